/* SPDX-License-Identifier: Apache-2.0 */
/* Executable graphs: instantiation, launch, update. Called by applications.
 * Rules: an executable holds a frozen program; a launch is one task that runs the program's nodes one after the other in
 * an order that respects the edges. Programs are dropped with no lock held: that may end a module, which takes it.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static void program_drop(struct sim_program *p)
{
    if (!p || atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < p->count; i++)
        sim_work_drop(p->works[i]);
    sim_graph_memory_drop(p->memory);
    free(p->works);
    free(p->kinds);
    free(p->needed);
    free(p->nodes);
    free(p);
}

/* [locked] The nodes in an order that respects the edges; NULL with *cycle set, or out of memory. */
static struct sim_program *compile(CUgraph g, bool *cycle)
{
    static unsigned walks;
    unsigned mark = 0x80000000u | ++walks;
    *cycle = false;
    struct sim_program *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    atomic_init(&p->refs, 1);
    unsigned room = g->count ? g->count : 1;
    p->works = calloc(room, sizeof *p->works);
    p->kinds = calloc(room, sizeof *p->kinds);
    p->needed = calloc(room, sizeof *p->needed);
    p->nodes = calloc(room, sizeof *p->nodes);
    if (!p->works || !p->kinds || !p->needed || !p->nodes) {
        program_drop(p);
        return NULL;
    }
    for (bool progress = true; p->count < g->count && progress;) {
        progress = false;
        for (unsigned i = 0; i < g->count; i++) {
            CUgraphNode n = g->nodes[i];
            bool free_to_go = n->mark != mark;
            for (unsigned k = 0; free_to_go && k < n->needed; k++)
                free_to_go = n->needs[k]->mark == mark;
            if (!free_to_go)
                continue;
            n->mark = mark;
            progress = true;
            if (n->work)
                sim_work_ref(n->work);
            p->works[p->count] = n->work;
            p->kinds[p->count] = n->kind;
            p->nodes[p->count] = n;
            p->needed[p->count++] = n->needed;
        }
    }
    if (p->count < g->count) {
        *cycle = true;
        program_drop(p);
        return NULL;
    }
    p->memory = g->memory;
    if (p->memory)
        atomic_fetch_add(&p->memory->refs, 1);
    return p;
}

static CUresult instantiate(CUgraphExec *out, CUgraph handle, unsigned long long flags)
{
    bool cycle = false;
    if (!out || flags & ~(unsigned long long)(CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD |
                                              CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY))
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphExec e = calloc(1, sizeof *e);
    if (!e)
        return CUDA_ERROR_OUT_OF_MEMORY;
    e->flags = flags;
    sim_take();
    CUgraph g = sim_object(SIM_GRAPH, (uint64_t)(uintptr_t)handle);
    e->program = g ? compile(g, &cycle) : NULL;
    CUresult r = !g || cycle ? CUDA_ERROR_INVALID_VALUE : e->program ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && !sim_object_add(SIM_EXEC, (uint64_t)(uintptr_t)e, e))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    if (r) {
        program_drop(e->program);
        free(e);
        return r;
    }
    *out = e;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
    SIM_ENTRY();
    if (phErrorNode)
        *phErrorNode = NULL;
    if (logBuffer && bufferSize)
        *logBuffer = 0;
    return instantiate(phGraphExec, hGraph, 0);
}

SIM_API CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
    return cuGraphInstantiate(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
}

SIM_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags)
{
    SIM_ENTRY();
    return instantiate(phGraphExec, hGraph, flags);
}

static CUresult with_params(CUgraphExec *out, CUgraph g, CUDA_GRAPH_INSTANTIATE_PARAMS *p)
{
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = instantiate(out, g, p->flags);
    p->hErrNode_out = NULL;
    p->result_out = r ? CUDA_GRAPH_INSTANTIATE_ERROR : CUDA_GRAPH_INSTANTIATE_SUCCESS;
    return r;
}

SIM_API CUresult cuGraphExecDestroy(CUgraphExec hGraphExec)
{
    SIM_ENTRY();
    sim_take();
    CUgraphExec e = sim_object(SIM_EXEC, (uint64_t)(uintptr_t)hGraphExec);
    if (e)
        sim_object_drop(SIM_EXEC, (uint64_t)(uintptr_t)e);
    sim_give();
    if (!e)
        return CUDA_ERROR_INVALID_VALUE;
    program_drop(e->program);
    free(e);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags)
{
    SIM_ENTRY();
    sim_take();
    CUgraphExec e = flags ? sim_object(SIM_EXEC, (uint64_t)(uintptr_t)hGraphExec) : NULL;
    if (e)
        *flags = e->flags;
    sim_give();
    return e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo)
{
    SIM_ENTRY();
    bool cycle = false, same = false;
    sim_take();
    CUgraphExec e = sim_object(SIM_EXEC, (uint64_t)(uintptr_t)hGraphExec);
    CUgraph g = sim_object(SIM_GRAPH, (uint64_t)(uintptr_t)hGraph);
    struct sim_program *p = e && g && resultInfo ? compile(g, &cycle) : NULL;
    if (p) {
        struct sim_program *old = e->program;
        same = p->count == old->count;
        for (unsigned i = 0; same && i < p->count; i++)
            same = p->kinds[i] == old->kinds[i] && p->needed[i] == old->needed[i];
        if (same) {
            CUgraphNode *nodes = p->nodes; /* the executable is still addressed by the graph it came from */
            p->nodes = old->nodes;
            old->nodes = nodes;
            e->program = p;
            p = old;
        }
    }
    sim_give();
    if (!e || !g || !resultInfo)
        return CUDA_ERROR_INVALID_VALUE;
    bool made = p != NULL;
    program_drop(p);
    memset(resultInfo, 0, sizeof *resultInfo);
    resultInfo->result = same ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    if (same)
        return CUDA_SUCCESS;
    return made || cycle ? CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE : CUDA_ERROR_OUT_OF_MEMORY;
}

/* ---- new parameters for a node of an executable: a program is never changed, so it gets a copy with one other work */

/* Takes over op. */
static CUresult replace(CUgraphExec handle, CUgraphNode node, struct sim_op op)
{
    struct sim_work *w = sim_work_new(op);
    struct sim_program *fresh = w ? calloc(1, sizeof *fresh) : NULL, *old = NULL;
    if (!fresh) {
        sim_work_drop(w);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult r = CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgraphExec e = sim_object(SIM_EXEC, (uint64_t)(uintptr_t)handle);
    for (unsigned i = 0; e && i < e->program->count; i++) {
        if (e->program->nodes[i] != node || e->program->kinds[i] != op.kind)
            continue;
        unsigned n = e->program->count;
        r = CUDA_ERROR_OUT_OF_MEMORY;
        atomic_init(&fresh->refs, 1);
        fresh->works = malloc(n * sizeof *fresh->works);
        fresh->kinds = malloc(n * sizeof *fresh->kinds);
        fresh->needed = malloc(n * sizeof *fresh->needed);
        fresh->nodes = malloc(n * sizeof *fresh->nodes);
        if (!fresh->works || !fresh->kinds || !fresh->needed || !fresh->nodes)
            break;
        memcpy(fresh->kinds, e->program->kinds, n * sizeof *fresh->kinds);
        memcpy(fresh->needed, e->program->needed, n * sizeof *fresh->needed);
        memcpy(fresh->nodes, e->program->nodes, n * sizeof *fresh->nodes);
        for (unsigned k = 0; k < n; k++) {
            fresh->works[k] = k == i ? w : e->program->works[k];
            if (fresh->works[k])
                sim_work_ref(fresh->works[k]);
        }
        fresh->count = n;
        fresh->memory = e->program->memory;
        if (fresh->memory)
            atomic_fetch_add(&fresh->memory->refs, 1);
        old = e->program;
        e->program = fresh;
        fresh = NULL;
        r = CUDA_SUCCESS;
        break;
    }
    sim_give();
    if (fresh) {
        atomic_store(&fresh->refs, 1);
        program_drop(fresh);
    }
    program_drop(old);
    sim_work_drop(w);
    return r;
}

SIM_API CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D *copyParams, CUcontext ctx)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = copyParams ? sim_copy_op(copyParams, ctx, &op) : CUDA_ERROR_INVALID_VALUE;
    return r ? r : replace(hGraphExec, hNode, op);
}

SIM_API CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = memsetParams ? sim_memset_op(memsetParams, ctx, &op) : CUDA_ERROR_INVALID_VALUE;
    return r ? r : replace(hGraphExec, hNode, op);
}

SIM_API CUresult cuGraphExecHostNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_HOST_NODE_PARAMS *nodeParams)
{
    SIM_ENTRY();
    struct sim_op op;
    CUresult r = sim_host_op(nodeParams, &op);
    return r ? r : replace(hGraphExec, hNode, op);
}

static CUresult run_program(void *arg)
{
    const struct sim_program *p = arg;
    CUresult r = CUDA_SUCCESS;
    for (unsigned i = 0; i < p->count && !r; i++)
        if (p->works[i])
            r = p->works[i]->op.run(p->works[i]->op.arg);
    return r;
}

static void drop_program(void *arg)
{
    program_drop(arg);
}

static CUresult launch(CUgraphExec handle, CUstream stream, bool pt)
{
    sim_take();
    CUgraphExec e = sim_object(SIM_EXEC, (uint64_t)(uintptr_t)handle);
    struct sim_program *p = e ? e->program : NULL;
    if (p)
        atomic_fetch_add(&p->refs, 1);
    sim_give();
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    /* Launched into a capturing stream it becomes a child graph node. */
    return sim_enqueue(stream, pt, (struct sim_op){run_program, drop_program, p, CU_GRAPH_NODE_TYPE_GRAPH});
}

static CUresult upload(CUgraphExec handle)
{
    sim_take();
    bool ok = sim_object(SIM_EXEC, (uint64_t)(uintptr_t)handle) != NULL;
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

#define GRAPH_ENTRIES(suffix, pt) \
    SIM_API CUresult cuGraphLaunch##suffix(CUgraphExec e, CUstream s) { SIM_ENTRY(); return launch(e, s, pt); } \
    SIM_API CUresult cuGraphUpload##suffix(CUgraphExec e, CUstream s) { SIM_ENTRY(); (void)s; return upload(e); } \
    SIM_API CUresult cuGraphInstantiateWithParams##suffix(CUgraphExec *out, CUgraph g, CUDA_GRAPH_INSTANTIATE_PARAMS *p) \
    { SIM_ENTRY(); return with_params(out, g, p); }
GRAPH_ENTRIES(, false)
GRAPH_ENTRIES(_ptsz, true)
