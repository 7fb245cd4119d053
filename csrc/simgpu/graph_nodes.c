/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes: adding them, asking and changing what they do, in every ABI. Called by applications.
 * Rules: every entry becomes CUgraphNodeParams (graph_params.c); captured nodes are asked and changed as added ones are. What
 * points into a node stays valid until its parameters change or it is destroyed (cuda.h, cuGraphKernelNodeGetParams); a
 * kernel's parameters stay in place beyond that (launch.h).
 */
#include "faults.h"
#include "graph.h"
#include "launch.h"

#include <stdlib.h>
#include <string.h>

/* [locked] The graph and the dependencies, each once, of it. */
static CUresult check_needs(CUgraph g, const CUgraphNode *needs, const CUgraphEdgeData *edges, size_t count, CUgraphNodeType kind)
{
    uint64_t mark = sim_unique();
    if (!g || (count && !needs) || count > UINT32_MAX)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        CUgraphNode n = sim_node_of(needs[i]);
        if (!n || n->graph != g || n->mark == mark || (edges && !sim_edge_ok(&edges[i], n->act.kind, kind)))
            return CUDA_ERROR_INVALID_VALUE;
        n->mark = mark;
    }
    return CUDA_SUCCESS;
}

/* [locked] A child for a node: a clone of the graph, or the graph itself. */
static CUresult adopt(CUgraph g, const CUDA_CHILD_GRAPH_NODE_PARAMS *p, CUgraph *child)
{
    CUgraph from = sim_graph_of(p->graph);
    bool move = p->ownership == CU_GRAPH_CHILD_GRAPH_OWNERSHIP_MOVE;
    if (!from || from == g || from->moved || (move && from->parent) || (!move && p->ownership != CU_GRAPH_CHILD_GRAPH_OWNERSHIP_CLONE) ||
        (!move && from->memory) || from->conditional || (move && from->instantiated))
        return CUDA_ERROR_INVALID_VALUE;
    for (CUgraph up = g; up; up = up->parent ? up->parent->graph : NULL)
        if (up == from)
            return CUDA_ERROR_INVALID_VALUE; /* into itself */
    if (!move)
        return sim_graph_clone(from, child);
    from->moved = true;
    *child = from;
    return CUDA_SUCCESS;
}

static CUresult add(CUgraphNode *out, CUgraph handle, const CUgraphNode *needs, const CUgraphEdgeData *edges, size_t count,
                    CUgraphNodeParams *p)
{
    struct sim_act act;
    CUgraphNode n = NULL;
    CUgraph child = NULL, *bodies = NULL;
    if (!out || !p)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take(); /* before anything is made of the parameters: an allocation node reserves memory */
    CUresult r = check_needs(sim_graph_of(handle), needs, edges, count, p->type);
    sim_give();
    if (r || (r = sim_act_make(p, handle, NULL, &act)))
        return r;
    sim_take();
    CUgraph g = sim_graph_of(handle);
    r = check_needs(g, needs, edges, count, p->type);
    if (!r && p->type == CU_GRAPH_NODE_TYPE_GRAPH)
        r = adopt(g, &p->graph, &child);
    if (!r && p->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
        r = sim_condition_bodies(g, &act, p->conditional.size, &bodies, &child);
    if (!r)
        r = sim_graph_add(g, act, needs, edges, (unsigned)count, &n);
    if (n) {
        n->child = child;
        n->bodies = bodies;
        if (bodies)
            p->conditional.phGraph_out = bodies;
        if (child)
            child->parent = n;
        if (child && child->memory)
            g->memory = true;
        *out = n;
    } else if (child) {
        sim_graph_forget(child);
        if (bodies)
            sim_condition_unuse(&act);
    }
    if (!n && act.kind == CU_GRAPH_NODE_TYPE_MEM_FREE)
        sim_graph_alloc_unfree(act.alloc, g);
    sim_give();
    if (!n) {
        sim_act_drop(&act);
        if (child)
            sim_graph_free(child);
        free(bodies);
    }
    return r;
}

static CUresult add_any(CUgraphNode *out, CUgraph g, const CUgraphNode *needs, const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *p)
{
    return p && sim_params_clean(p) ? add(out, g, needs, edges, count, p) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphAddNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies,
                                CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    return add_any(phGraphNode, hGraph, dependencies, NULL, numDependencies, nodeParams);
}

SIM_API CUresult cuGraphAddNode_v2(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                   const CUgraphEdgeData *dependencyData, size_t numDependencies, CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    return add_any(phGraphNode, hGraph, dependencies, dependencyData, numDependencies, nodeParams);
}

/* The third form, and the second of cuGraphNodeSetParams, hold a kernel's function to the context that is named. */
static CUresult same_context(const CUgraphNodeParams *p)
{
    CUDA_KERNEL_NODE_PARAMS kernel;
    struct sim_op op;
    if (!p || p->type != CU_GRAPH_NODE_TYPE_KERNEL || !p->kernel.func || !p->kernel.ctx)
        return CUDA_SUCCESS;
    memcpy(&kernel, &p->kernel, sizeof kernel);
    CUresult r = sim_launch_op(&kernel, &op);
    if (r)
        return r;
    if (sim_launch_context(&op) != kernel.ctx)
        r = CUDA_ERROR_INVALID_CONTEXT;
    op.drop(op.arg);
    return r;
}

SIM_API CUresult cuGraphAddNode_v3(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                   const CUgraphEdgeData *dependencyData, size_t numDependencies, CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    CUresult r = same_context(nodeParams);
    return r ? r : add_any(phGraphNode, hGraph, dependencies, dependencyData, numDependencies, nodeParams);
}

/* The entries of one kind each: a name, the parameters they take, and how these become CUgraphNodeParams p. */
#define ADD(kind_name, arguments, kind, ...) \
    SIM_API CUresult cuGraphAdd##kind_name(CUgraphNode *out, CUgraph graph, const CUgraphNode *needs, size_t count arguments) \
    { \
        SIM_ENTRY(); \
        CUgraphNodeParams p = {.type = kind}; \
        __VA_ARGS__ \
        return add(out, graph, needs, NULL, count, &p); \
    }
#define COMMA ,
#define GIVEN(in) if (!(in)) return CUDA_ERROR_INVALID_VALUE

/* The first ABI ends before kern and ctx. */
static void widen(CUDA_KERNEL_NODE_PARAMS_v3 *out, const CUDA_KERNEL_NODE_PARAMS_v1 *in)
{
    memset(out, 0, sizeof *out);
    memcpy(out, in, sizeof *in);
}

ADD(EmptyNode, , CU_GRAPH_NODE_TYPE_EMPTY)
ADD(KernelNode, COMMA const CUDA_KERNEL_NODE_PARAMS_v1 *in, CU_GRAPH_NODE_TYPE_KERNEL, GIVEN(in); widen(&p.kernel, in);)
ADD(KernelNode_v2, COMMA const CUDA_KERNEL_NODE_PARAMS *in, CU_GRAPH_NODE_TYPE_KERNEL, GIVEN(in); memcpy(&p.kernel, in, sizeof *in);)
ADD(MemcpyNode, COMMA const CUDA_MEMCPY3D *in COMMA CUcontext ctx, CU_GRAPH_NODE_TYPE_MEMCPY, GIVEN(in);
    p.memcpy.copyCtx = ctx; p.memcpy.copyParams = *in;)
ADD(MemsetNode, COMMA const CUDA_MEMSET_NODE_PARAMS *in COMMA CUcontext ctx, CU_GRAPH_NODE_TYPE_MEMSET, GIVEN(in);
    memcpy(&p.memset, in, sizeof *in); p.memset.ctx = ctx;)
ADD(HostNode, COMMA const CUDA_HOST_NODE_PARAMS *in, CU_GRAPH_NODE_TYPE_HOST, GIVEN(in); p.host.fn = in->fn; p.host.userData = in->userData;)
ADD(ChildGraphNode, COMMA CUgraph child, CU_GRAPH_NODE_TYPE_GRAPH, p.graph.graph = child;)
ADD(EventRecordNode, COMMA CUevent event, CU_GRAPH_NODE_TYPE_EVENT_RECORD, p.eventRecord.event = event;)
ADD(EventWaitNode, COMMA CUevent event, CU_GRAPH_NODE_TYPE_WAIT_EVENT, p.eventWait.event = event;)
ADD(BatchMemOpNode, COMMA const CUDA_BATCH_MEM_OP_NODE_PARAMS *in, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, GIVEN(in);
    memcpy(&p.memOp, in, sizeof *in);)
ADD(MemFreeNode, COMMA CUdeviceptr dptr, CU_GRAPH_NODE_TYPE_MEM_FREE, p.free.dptr = dptr;)

SIM_API CUresult cuGraphAddMemAllocNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                        size_t numDependencies, CUDA_MEM_ALLOC_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    if (!nodeParams)
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphNodeParams p = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
    memcpy(&p.alloc, nodeParams, sizeof *nodeParams);
    CUresult r = add(phGraphNode, hGraph, dependencies, NULL, numDependencies, &p);
    if (!r)
        nodeParams->dptr = p.alloc.dptr;
    return r;
}

/* ---- asking */

static CUresult get(CUgraphNode handle, CUgraphNodeParams *out)
{
    sim_take();
    CUgraphNode n = sim_node_of(handle);
    CUresult r = n ? sim_act_params(&n->act, n->child, out) : CUDA_ERROR_INVALID_VALUE;
    if (!r && out->type == CU_GRAPH_NODE_TYPE_KERNEL)
        r = sim_launch_view_params(&n->view, sim_act_op(&n->act), (CUDA_KERNEL_NODE_PARAMS *)&out->kernel);
    if (!r && out->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
        sim_condition_params(&n->act, n->child, n->bodies, &out->conditional);
    sim_give();
    return r;
}

SIM_API CUresult cuGraphNodeGetParams(CUgraphNode hNode, CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    return nodeParams ? get(hNode, nodeParams) : CUDA_ERROR_INVALID_VALUE;
}

#define GET(entry, type_name, kind, ...) \
    SIM_API CUresult cuGraph##entry(CUgraphNode node, type_name *out) \
    { \
        SIM_ENTRY(); \
        CUgraphNodeParams p; \
        CUresult r = out ? get(node, &p) : CUDA_ERROR_INVALID_VALUE; \
        if (!r && p.type != kind) \
            r = CUDA_ERROR_INVALID_VALUE; \
        if (!r) { \
            __VA_ARGS__ \
        } \
        return r; \
    }

GET(KernelNodeGetParams, CUDA_KERNEL_NODE_PARAMS_v1, CU_GRAPH_NODE_TYPE_KERNEL, memcpy(out, &p.kernel, sizeof *out);)
GET(KernelNodeGetParams_v2, CUDA_KERNEL_NODE_PARAMS, CU_GRAPH_NODE_TYPE_KERNEL, memcpy(out, &p.kernel, sizeof *out);)
GET(MemcpyNodeGetParams, CUDA_MEMCPY3D, CU_GRAPH_NODE_TYPE_MEMCPY, *out = p.memcpy.copyParams;)
GET(MemsetNodeGetParams, CUDA_MEMSET_NODE_PARAMS, CU_GRAPH_NODE_TYPE_MEMSET, memcpy(out, &p.memset, sizeof *out);)
GET(HostNodeGetParams, CUDA_HOST_NODE_PARAMS, CU_GRAPH_NODE_TYPE_HOST, out->fn = p.host.fn; out->userData = p.host.userData;)
GET(BatchMemOpNodeGetParams, CUDA_BATCH_MEM_OP_NODE_PARAMS, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, memcpy(out, &p.memOp, sizeof *out);)
GET(ChildGraphNodeGetGraph, CUgraph, CU_GRAPH_NODE_TYPE_GRAPH, *out = p.graph.graph;)
GET(EventRecordNodeGetEvent, CUevent, CU_GRAPH_NODE_TYPE_EVENT_RECORD, *out = p.eventRecord.event;)
GET(EventWaitNodeGetEvent, CUevent, CU_GRAPH_NODE_TYPE_WAIT_EVENT, *out = p.eventWait.event;)
GET(MemAllocNodeGetParams, CUDA_MEM_ALLOC_NODE_PARAMS, CU_GRAPH_NODE_TYPE_MEM_ALLOC, memcpy(out, &p.alloc, sizeof *out);)
GET(MemFreeNodeGetParams, CUdeviceptr, CU_GRAPH_NODE_TYPE_MEM_FREE, *out = p.free.dptr;)

/* What a node is, and its names. */
#define ASK(entry, type_name, expression) \
    SIM_API CUresult cuGraph##entry(CUgraphNode node, type_name *out) \
    { \
        SIM_ENTRY(); \
        sim_take(); \
        CUgraphNode n = out ? sim_node_of(node) : NULL; \
        if (n) \
            *out = expression; \
        sim_give(); \
        return n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; \
    }
ASK(NodeGetType, CUgraphNodeType, n->act.kind)
ASK(NodeGetContainingGraph, CUgraph, n->graph)
ASK(NodeGetLocalId, unsigned int, n->id)
ASK(NodeGetToolsId, unsigned long long, n->unique)

SIM_API CUresult cuGraphGetId(CUgraph hGraph, unsigned int *graphId)
{
    SIM_ENTRY();
    sim_take();
    CUgraph g = graphId ? sim_graph_of(hGraph) : NULL;
    if (g)
        *graphId = (unsigned)g->id;
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- changing */

/* Takes over the act. */
static CUresult put(CUgraphNode handle, struct sim_act act)
{
    sim_take();
    CUgraphNode n = sim_node_of(handle);
    CUresult r = n && n->act.kind == act.kind ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    struct sim_act old = act;
    if (!r) {
        old = n->act;
        n->act = act;
        if (n->view)
            sim_launch_view_refresh(&n->view, sim_act_op(&act));
    }
    sim_give();
    sim_act_drop(&old);
    return r;
}

static CUresult set(CUgraphNode handle, CUgraphNodeParams *p)
{
    struct sim_act act;
    sim_take();
    CUgraphNode n = sim_node_of(handle);
    CUresult r = n && n->act.kind == p->type ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    struct sim_work *like = !r && p->type == CU_GRAPH_NODE_TYPE_KERNEL ? n->act.work : NULL;
    if (like)
        sim_work_ref(like);
    sim_give();
    if (!r && (p->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || p->type == CU_GRAPH_NODE_TYPE_MEM_FREE || p->type == CU_GRAPH_NODE_TYPE_GRAPH ||
               p->type == CU_GRAPH_NODE_TYPE_CONDITIONAL))
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r)
        r = sim_act_make(p, NULL, like, &act);
    sim_work_drop(like);
    return r ? r : put(handle, act);
}

SIM_API CUresult cuGraphNodeSetParams(CUgraphNode hNode, CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    return nodeParams && sim_params_clean(nodeParams) ? set(hNode, nodeParams) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphNodeSetParams_v2(CUgraphNode hNode, CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    CUresult r = same_context(nodeParams);
    return r ? r : cuGraphNodeSetParams(hNode, nodeParams);
}

#define SET(entry, type_name, kind, ...) \
    SIM_API CUresult cuGraph##entry(CUgraphNode node, type_name in) \
    { \
        SIM_ENTRY(); \
        CUgraphNodeParams p = {.type = kind}; \
        __VA_ARGS__ \
        return set(node, &p); \
    }

/* The context that copies and memsets keep when only their parameters are given. */
static CUcontext context_of(CUgraphNode handle)
{
    sim_take();
    CUgraphNode n = sim_node_of(handle);
    CUcontext ctx = n ? n->act.ctx : NULL;
    sim_give();
    return ctx;
}

SET(KernelNodeSetParams, const CUDA_KERNEL_NODE_PARAMS_v1 *, CU_GRAPH_NODE_TYPE_KERNEL, GIVEN(in); widen(&p.kernel, in);)
SET(KernelNodeSetParams_v2, const CUDA_KERNEL_NODE_PARAMS *, CU_GRAPH_NODE_TYPE_KERNEL, GIVEN(in); memcpy(&p.kernel, in, sizeof *in);)
SET(MemcpyNodeSetParams, const CUDA_MEMCPY3D *, CU_GRAPH_NODE_TYPE_MEMCPY, GIVEN(in); p.memcpy.copyCtx = context_of(node);
    p.memcpy.copyParams = *in;)
SET(MemsetNodeSetParams, const CUDA_MEMSET_NODE_PARAMS *, CU_GRAPH_NODE_TYPE_MEMSET, GIVEN(in); memcpy(&p.memset, in, sizeof *in);
    p.memset.ctx = context_of(node);)
SET(HostNodeSetParams, const CUDA_HOST_NODE_PARAMS *, CU_GRAPH_NODE_TYPE_HOST, GIVEN(in); p.host.fn = in->fn; p.host.userData = in->userData;)
SET(BatchMemOpNodeSetParams, const CUDA_BATCH_MEM_OP_NODE_PARAMS *, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, GIVEN(in);
    memcpy(&p.memOp, in, sizeof *in);)
SET(EventRecordNodeSetEvent, CUevent, CU_GRAPH_NODE_TYPE_EVENT_RECORD, p.eventRecord.event = in;)
SET(EventWaitNodeSetEvent, CUevent, CU_GRAPH_NODE_TYPE_WAIT_EVENT, p.eventWait.event = in;)

/* ---- attributes of kernel nodes: another attribute makes another operation of the same parameters */

/* An operation of the node, held; NULL: not a kernel node. */
static struct sim_work *kernel_of(CUgraphNode handle)
{
    sim_take();
    CUgraphNode n = sim_node_of(handle);
    struct sim_work *w = n && n->act.kind == CU_GRAPH_NODE_TYPE_KERNEL ? n->act.work : NULL;
    if (w)
        sim_work_ref(w);
    sim_give();
    return w;
}

static CUresult with_attributes(CUgraphNode handle, const struct sim_op *like, const CUlaunchAttribute *attributes, unsigned count)
{
    CUDA_KERNEL_NODE_PARAMS p;
    struct sim_op op;
    sim_launch_params(like, &p);
    CUresult r = sim_launch_op_with(&p, attributes, count, &op);
    if (r)
        return r;
    struct sim_act act = {.kind = CU_GRAPH_NODE_TYPE_KERNEL, .ctx = sim_launch_context(&op), .work = sim_work_new(op)};
    return act.work ? put(handle, act) : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_API CUresult cuGraphKernelNodeGetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr, CUkernelNodeAttrValue *value_out)
{
    SIM_ENTRY();
    struct sim_work *w = value_out ? kernel_of(hNode) : NULL;
    if (!w || attr <= CU_LAUNCH_ATTRIBUTE_IGNORE || attr >= CU_LAUNCH_ATTRIBUTE_MAX) {
        sim_work_drop(w);
        return CUDA_ERROR_INVALID_VALUE;
    }
    unsigned count;
    const CUlaunchAttribute *all = sim_launch_attributes(sim_fault_inner(&w->op), &count);
    memset(value_out, 0, sizeof *value_out); /* never set: the default of every attribute */
    for (unsigned i = 0; i < count; i++)
        if (all[i].id == attr)
            *value_out = all[i].value;
    sim_work_drop(w);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGraphKernelNodeSetAttribute(CUgraphNode hNode, CUkernelNodeAttrID attr, const CUkernelNodeAttrValue *value)
{
    SIM_ENTRY();
    struct sim_work *w = value ? kernel_of(hNode) : NULL;
    if (!w || attr <= CU_LAUNCH_ATTRIBUTE_IGNORE || attr >= CU_LAUNCH_ATTRIBUTE_MAX) {
        sim_work_drop(w);
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUlaunchAttribute all[CU_LAUNCH_ATTRIBUTE_MAX + 1];
    unsigned count, kept = 0;
    const CUlaunchAttribute *had = sim_launch_attributes(sim_fault_inner(&w->op), &count);
    for (unsigned i = 0; i < count && kept < CU_LAUNCH_ATTRIBUTE_MAX; i++)
        if (had[i].id != attr)
            all[kept++] = had[i];
    memset(&all[kept], 0, sizeof all[kept]);
    all[kept].id = attr;
    all[kept++].value = *value;
    CUresult r = with_attributes(hNode, sim_fault_inner(&w->op), all, kept);
    sim_work_drop(w);
    return r;
}

SIM_API CUresult cuGraphKernelNodeCopyAttributes(CUgraphNode dst, CUgraphNode src)
{
    SIM_ENTRY();
    struct sim_work *to = kernel_of(dst), *from = kernel_of(src);
    CUresult r = CUDA_ERROR_INVALID_VALUE;
    if (to && from) {
        unsigned count;
        const CUlaunchAttribute *all = sim_launch_attributes(sim_fault_inner(&from->op), &count);
        r = with_attributes(dst, sim_fault_inner(&to->op), all, count);
    }
    sim_work_drop(to);
    sim_work_drop(from);
    return r;
}
