/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: nodes, edges, parameters. Called by applications and by capture.c; executables are graph_exec.c.
 * Rules: nodes that were given parameters can be asked for them, captured ones cannot.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static CUgraph graph_of(CUgraph g) { return sim_object(SIM_GRAPH, (uint64_t)(uintptr_t)g); }
static CUgraphNode node_of(CUgraphNode n) { return sim_object(SIM_NODE, (uint64_t)(uintptr_t)n); }

CUgraph sim_graph_new(void)
{
    CUgraph g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->id = sim_unique();
    if (!sim_object_add(SIM_GRAPH, (uint64_t)(uintptr_t)g, g)) {
        free(g);
        return NULL;
    }
    return g;
}

CUresult sim_graph_add(CUgraph g, CUgraphNodeType kind, struct sim_work *w, CUgraphNode const *needs, unsigned count,
                       CUgraphNode *out)
{
    CUgraphNode n = calloc(1, sizeof *n);
    CUgraphNode *copy = malloc((count ? count : 1) * sizeof *copy);
    if (g->count == g->room) {
        unsigned room = g->room ? 2 * g->room : 16;
        CUgraphNode *grown = realloc(g->nodes, room * sizeof *grown);
        if (grown) {
            g->nodes = grown;
            g->room = room;
        }
    }
    if (!n || !copy || g->count == g->room || !sim_object_add(SIM_NODE, (uint64_t)(uintptr_t)n, n)) {
        free(n);
        free(copy);
        sim_work_drop(w);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (count)
        memcpy(copy, needs, count * sizeof *copy);
    n->graph = g;
    n->kind = kind;
    n->work = w;
    n->needs = copy;
    n->needed = count;
    g->nodes[g->count++] = n;
    *out = n;
    return CUDA_SUCCESS;
}

/* No lock held: dropping the operation may end a module, which takes it. The node is not registered any more. */
static void node_free(CUgraphNode n)
{
    sim_work_drop(n->work);
    free(n->needs);
    free(n);
}

SIM_API CUresult cuGraphCreate(CUgraph *phGraph, unsigned int flags)
{
    SIM_ENTRY();
    if (!phGraph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    *phGraph = sim_graph_new();
    sim_give();
    return *phGraph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_API CUresult cuGraphDestroy(CUgraph hGraph)
{
    SIM_ENTRY();
    sim_take();
    CUgraph g = graph_of(hGraph);
    if (g) {
        for (struct sim_capture *c = sim_captures; c; c = c->next)
            if (c->graph == g && !c->invalid)
                g = NULL; /* a capture still writes it */
    }
    if (g) {
        sim_object_drop(SIM_GRAPH, (uint64_t)(uintptr_t)g);
        for (unsigned i = 0; i < g->count; i++)
            sim_object_drop(SIM_NODE, (uint64_t)(uintptr_t)g->nodes[i]);
    }
    sim_give();
    if (!g)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < g->count; i++)
        node_free(g->nodes[i]);
    sim_graph_memory_drop(g->memory);
    free(g->nodes);
    free(g);
    return CUDA_SUCCESS;
}

/* ---- explicit nodes */

/* [locked] Check graph and dependencies. */
static CUresult check(CUgraph *g, const CUgraphNode *deps, size_t count)
{
    *g = graph_of(*g);
    if (!*g || (count && !deps))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        CUgraphNode n = node_of(deps[i]);
        if (!n || n->graph != *g)
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

/* Takes over op (op.run NULL: an empty node). `described`: the parameters to keep, or NULL. */
static CUresult add(CUgraphNode *out, CUgraph g, const CUgraphNode *deps, size_t count, struct sim_op op, CUcontext ctx,
                    const void *described, size_t described_size)
{
    struct sim_work *w = NULL;
    if (op.run && !(w = sim_work_new(op)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUgraphNode n;
    sim_take();
    CUresult r = out ? check(&g, deps, count) : CUDA_ERROR_INVALID_VALUE;
    if (!r && w)
        sim_work_ref(w); /* ours is let go below, outside the lock */
    if (!r)
        r = sim_graph_add(g, op.kind, w, deps, (unsigned)count, &n);
    if (!r) {
        if (described) {
            memcpy(&n->params, described, described_size);
            n->described = true;
        }
        n->ctx = ctx;
        *out = n;
    }
    sim_give();
    sim_work_drop(w);
    return r;
}

SIM_API CUresult cuGraphAddEmptyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies)
{
    SIM_ENTRY();
    return add(phGraphNode, hGraph, dependencies, numDependencies, (struct sim_op){.kind = CU_GRAPH_NODE_TYPE_EMPTY}, NULL, NULL, 0);
}

SIM_API CUresult cuGraphAddMemcpyNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                      size_t numDependencies, const CUDA_MEMCPY3D *copyParams, CUcontext ctx)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = copyParams ? sim_copy_op(copyParams, ctx, &op) : CUDA_ERROR_INVALID_VALUE;
    return r ? r : add(phGraphNode, hGraph, dependencies, numDependencies, op, ctx, copyParams, sizeof *copyParams);
}

SIM_API CUresult cuGraphAddMemsetNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                      size_t numDependencies, const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = memsetParams ? sim_memset_op(memsetParams, ctx, &op) : CUDA_ERROR_INVALID_VALUE;
    return r ? r : add(phGraphNode, hGraph, dependencies, numDependencies, op, ctx, memsetParams, sizeof *memsetParams);
}

static CUresult run_host(void *arg)
{
    const CUDA_HOST_NODE_PARAMS *p = arg;
    sim_call_host(p->fn, p->userData);
    return CUDA_SUCCESS;
}

CUresult sim_host_op(const CUDA_HOST_NODE_PARAMS *p, struct sim_op *op)
{
    if (!p || !p->fn)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_HOST_NODE_PARAMS *copy = malloc(sizeof *copy);
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *copy = *p;
    *op = (struct sim_op){run_host, free, copy, CU_GRAPH_NODE_TYPE_HOST};
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGraphAddHostNode(CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies,
                                    size_t numDependencies, const CUDA_HOST_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = sim_host_op(nodeParams, &op);
    return r ? r : add(phGraphNode, hGraph, dependencies, numDependencies, op, NULL, nodeParams, sizeof *nodeParams);
}

/* ---- parameters of nodes */

static CUresult get_params(CUgraphNode handle, CUgraphNodeType kind, void *out, size_t size)
{
    sim_take();
    CUgraphNode n = out ? node_of(handle) : NULL;
    CUresult r = n && n->kind == kind ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (!r && !n->described)
        r = CUDA_ERROR_NOT_SUPPORTED; /* captured: the operation is known, its parameters are not kept */
    if (!r)
        memcpy(out, &n->params, size);
    sim_give();
    return r;
}

/* Takes over op. */
static CUresult set_params(CUgraphNode handle, struct sim_op op, const void *params, size_t size)
{
    struct sim_work *w = sim_work_new(op), *old = NULL;
    if (!w)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    CUgraphNode n = node_of(handle);
    CUresult r = n && n->kind == op.kind ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (r) {
        old = w;
    } else {
        old = n->work;
        n->work = w;
        memcpy(&n->params, params, size);
        n->described = true;
    }
    sim_give();
    sim_work_drop(old);
    return r;
}

SIM_API CUresult cuGraphMemcpyNodeGetParams(CUgraphNode hNode, CUDA_MEMCPY3D *nodeParams)
{
    SIM_ENTRY();
    return get_params(hNode, CU_GRAPH_NODE_TYPE_MEMCPY, nodeParams, sizeof *nodeParams);
}

SIM_API CUresult cuGraphMemcpyNodeSetParams(CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams)
{
    SIM_ENTRY();
    struct sim_op op;
    sim_take();
    CUgraphNode n = node_of(hNode);
    CUcontext ctx = n ? n->ctx : NULL;
    sim_give();
    CUresult r = n && nodeParams ? sim_copy_op(nodeParams, ctx, &op) : CUDA_ERROR_INVALID_VALUE;
    return r ? r : set_params(hNode, op, nodeParams, sizeof *nodeParams);
}

SIM_API CUresult cuGraphMemsetNodeGetParams(CUgraphNode hNode, CUDA_MEMSET_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    return get_params(hNode, CU_GRAPH_NODE_TYPE_MEMSET, nodeParams, sizeof *nodeParams);
}

SIM_API CUresult cuGraphMemsetNodeSetParams(CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    struct sim_op op;
    sim_take();
    CUgraphNode n = node_of(hNode);
    CUcontext ctx = n ? n->ctx : NULL;
    sim_give();
    CUresult r = n && nodeParams ? sim_memset_op(nodeParams, ctx, &op) : CUDA_ERROR_INVALID_VALUE;
    return r ? r : set_params(hNode, op, nodeParams, sizeof *nodeParams);
}

SIM_API CUresult cuGraphHostNodeGetParams(CUgraphNode hNode, CUDA_HOST_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    return get_params(hNode, CU_GRAPH_NODE_TYPE_HOST, nodeParams, sizeof *nodeParams);
}

SIM_API CUresult cuGraphHostNodeSetParams(CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = sim_host_op(nodeParams, &op);
    return r ? r : set_params(hNode, op, nodeParams, sizeof *nodeParams);
}

SIM_API CUresult cuGraphNodeGetType(CUgraphNode hNode, CUgraphNodeType *type)
{
    SIM_ENTRY();
    sim_take();
    CUgraphNode n = type ? node_of(hNode) : NULL;
    if (n)
        *type = n->kind;
    sim_give();
    return n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphDestroyNode(CUgraphNode hNode)
{
    SIM_ENTRY();
    sim_take();
    CUgraphNode n = node_of(hNode);
    if (n) {
        CUgraph g = n->graph;
        unsigned kept = 0;
        for (unsigned i = 0; i < g->count; i++) {
            CUgraphNode o = g->nodes[i];
            if (o == n)
                continue;
            unsigned needed = 0;
            for (unsigned k = 0; k < o->needed; k++)
                if (o->needs[k] != n)
                    o->needs[needed++] = o->needs[k];
            o->needed = needed;
            g->nodes[kept++] = o;
        }
        g->count = kept;
        sim_object_drop(SIM_NODE, (uint64_t)(uintptr_t)n);
    }
    sim_give();
    if (n)
        node_free(n);
    return n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- topology */

/* The usual two-step protocol: a NULL array asks for the number, else up to *count are written and the rest is NULL. */
static CUresult list(CUgraph handle, CUgraphNode *nodes, size_t *count, bool roots)
{
    sim_take();
    CUgraph g = count ? graph_of(handle) : NULL;
    if (g) {
        size_t n = 0;
        for (unsigned i = 0; i < g->count; i++) {
            if (roots && g->nodes[i]->needed)
                continue;
            if (nodes && n < *count)
                nodes[n] = g->nodes[i];
            n++;
        }
        for (size_t i = n; nodes && i < *count; i++)
            nodes[i] = NULL;
        *count = nodes && n > *count ? *count : n;
    }
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes)
{
    SIM_ENTRY();
    return list(hGraph, nodes, numNodes, false);
}

SIM_API CUresult cuGraphGetRootNodes(CUgraph hGraph, CUgraphNode *rootNodes, size_t *numRootNodes)
{
    SIM_ENTRY();
    return list(hGraph, rootNodes, numRootNodes, true);
}

static CUresult edges(CUgraph handle, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data, size_t *count)
{
    sim_take();
    CUgraph g = count && !from == !to ? graph_of(handle) : NULL;
    if (g) {
        size_t n = 0;
        for (unsigned i = 0; i < g->count; i++)
            for (unsigned k = 0; k < g->nodes[i]->needed; k++, n++)
                if (from && n < *count) {
                    from[n] = g->nodes[i]->needs[k];
                    to[n] = g->nodes[i];
                    if (data)
                        memset(&data[n], 0, sizeof data[n]);
                }
        *count = from && n > *count ? *count : n;
    }
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphGetEdges(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, size_t *numEdges)
{
    SIM_ENTRY();
    return edges(hGraph, from, to, NULL, numEdges);
}

SIM_API CUresult cuGraphGetEdges_v2(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *edgeData, size_t *numEdges)
{
    SIM_ENTRY();
    return edges(hGraph, from, to, edgeData, numEdges);
}

/* The nodes that one depends on, or that depend on it. */
static CUresult neighbours(CUgraphNode handle, CUgraphNode *out, CUgraphEdgeData *data, size_t *count, bool dependents)
{
    sim_take();
    CUgraphNode n = count ? node_of(handle) : NULL;
    if (n) {
        size_t found = 0;
        for (unsigned i = 0; i < n->graph->count; i++) {
            CUgraphNode o = n->graph->nodes[i];
            CUgraphNode from = dependents ? o : n, to = dependents ? n : o;
            for (unsigned k = 0; k < from->needed; k++)
                if (from->needs[k] == to) {
                    if (out && found < *count) {
                        out[found] = o;
                        if (data)
                            memset(&data[found], 0, sizeof data[found]);
                    }
                    found++;
                }
        }
        *count = out && found > *count ? *count : found;
    }
    sim_give();
    return n ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphNodeGetDependencies(CUgraphNode hNode, CUgraphNode *dependencies, size_t *numDependencies)
{
    SIM_ENTRY();
    return neighbours(hNode, dependencies, NULL, numDependencies, false);
}

SIM_API CUresult cuGraphNodeGetDependencies_v2(CUgraphNode hNode, CUgraphNode *dependencies, CUgraphEdgeData *edgeData, size_t *numDependencies)
{
    SIM_ENTRY();
    return neighbours(hNode, dependencies, edgeData, numDependencies, false);
}

SIM_API CUresult cuGraphNodeGetDependentNodes(CUgraphNode hNode, CUgraphNode *dependentNodes, size_t *numDependentNodes)
{
    SIM_ENTRY();
    return neighbours(hNode, dependentNodes, NULL, numDependentNodes, true);
}

SIM_API CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode hNode, CUgraphNode *dependentNodes, CUgraphEdgeData *edgeData, size_t *numDependentNodes)
{
    SIM_ENTRY();
    return neighbours(hNode, dependentNodes, edgeData, numDependentNodes, true);
}

static CUresult independ(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, size_t count)
{
    sim_take();
    CUgraph g = graph_of(handle);
    CUresult r = g && (!count || (from && to)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < count; i++) {
        CUgraphNode n = node_of(to[i]);
        unsigned k = 0;
        while (n && n->graph == g && k < n->needed && n->needs[k] != from[i])
            k++;
        if (!n || n->graph != g || k == n->needed)
            r = CUDA_ERROR_INVALID_VALUE; /* no such edge */
        else
            n->needs[k] = n->needs[--n->needed];
    }
    sim_give();
    return r;
}

SIM_API CUresult cuGraphRemoveDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies)
{
    SIM_ENTRY();
    return independ(hGraph, from, to, numDependencies);
}

SIM_API CUresult cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                              const CUgraphEdgeData *edgeData, size_t numDependencies)
{
    SIM_ENTRY();
    (void)edgeData; /* all edges are alike */
    return independ(hGraph, from, to, numDependencies);
}

static CUresult depend(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, size_t count)
{
    sim_take();
    CUgraph g = graph_of(handle);
    CUresult r = g && (!count || (from && to)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < count; i++) {
        CUgraphNode a = node_of(from[i]), b = node_of(to[i]);
        if (!a || !b || a == b || a->graph != g || b->graph != g) {
            r = CUDA_ERROR_INVALID_VALUE;
            break;
        }
        for (unsigned k = 0; k < b->needed; k++)
            if (b->needs[k] == a)
                r = CUDA_ERROR_INVALID_VALUE; /* an edge exists once */
        CUgraphNode *grown = r ? NULL : realloc(b->needs, (b->needed + 1) * sizeof *grown);
        if (grown) {
            b->needs = grown;
            b->needs[b->needed++] = a;
        } else if (!r) {
            r = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    sim_give();
    return r;
}

SIM_API CUresult cuGraphAddDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies)
{
    SIM_ENTRY();
    return depend(hGraph, from, to, numDependencies);
}

SIM_API CUresult cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                           const CUgraphEdgeData *edgeData, size_t numDependencies)
{
    SIM_ENTRY();
    (void)edgeData; /* every edge waits for the whole node */
    return depend(hGraph, from, to, numDependencies);
}
