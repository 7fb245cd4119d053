/* SPDX-License-Identifier: Apache-2.0 */
/* Conditional nodes: handles, which kernels set, and nodes that run one of their bodies by a handle's value, or one of them
 * again and again. Called by applications, graph_nodes.c, graph_exec.c and (sim_condition_set) by companions.
 * Rules (cuda.h, CU_GRAPH_NODE_TYPE_CONDITIONAL): a graph that holds such nodes is no child, is not cloned and is instantiated
 * once at a time, so a handle has one value. The bodies of a node are the children of the nodes of a graph that nobody else
 * knows, its child: so they are owned, instantiated, updated and printed as child graphs are.
 */
#include "code.h"
#include "graph.h"

#include <stdlib.h>

struct sim_condition {
    atomic_int refs;
    struct sim_condition *next; /* of the same graph */
    uint64_t handle;
    CUgraph graph;   /* the one it was made for, which holds it; compared only */
    CUcontext ctx;
    unsigned initial;
    bool assign;     /* the initial value, at each launch */
    bool used;       /* [sim_lock] a node has it */
    atomic_uint value;
};

void sim_condition_hold(struct sim_condition *c)
{
    if (c)
        atomic_fetch_add(&c->refs, 1);
}

void sim_condition_drop(struct sim_condition *c)
{
    if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    sim_take();
    sim_object_drop(SIM_CONDITION, c->handle);
    sim_give();
    free(c);
}

void sim_conditions_drop(struct sim_condition *list)
{
    for (struct sim_condition *next; list; list = next) {
        next = list->next;
        sim_condition_drop(list);
    }
}

SIM_API CUresult cuGraphConditionalHandleCreate(CUgraphConditionalHandle *pHandle_out, CUgraph hGraph, CUcontext ctx,
                                                unsigned int defaultLaunchValue, unsigned int flags)
{
    SIM_ENTRY();
    CUresult r = ctx ? CUDA_SUCCESS : sim_current(&ctx);
    if (r)
        return r;
    if (!pHandle_out || flags & ~(unsigned)CU_GRAPH_COND_ASSIGN_DEFAULT)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_condition *c = calloc(1, sizeof *c);
    if (!c)
        return CUDA_ERROR_OUT_OF_MEMORY;
    atomic_init(&c->refs, 1);
    atomic_init(&c->value, 0);
    c->handle = sim_unique();
    c->initial = defaultLaunchValue;
    c->assign = flags & CU_GRAPH_COND_ASSIGN_DEFAULT;
    sim_take();
    CUgraph g = sim_graph_of(hGraph);
    c->ctx = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)ctx);
    r = !g || !c->ctx ? CUDA_ERROR_INVALID_VALUE : sim_object_add(SIM_CONDITION, c->handle, c) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        c->graph = g;
        c->next = g->conditions;
        g->conditions = c;
        *pHandle_out = c->handle;
    }
    sim_give();
    if (r)
        free(c);
    return r;
}

void sim_condition_set(unsigned long long handle, unsigned value)
{
    CUcontext here = sim_running_context();
    sim_take();
    struct sim_condition *c = sim_object(SIM_CONDITION, handle);
    bool ours = c && c->ctx == here;
    if (ours)
        atomic_store(&c->value, value);
    sim_give();
    if (!ours)
        sim_guard_stop(CUDA_ERROR_LAUNCH_FAILED, c ? "cudaGraphSetConditional: the handle belongs to another context"
                                                   : "cudaGraphSetConditional: no such handle");
}

/* ---- nodes */

static bool size_ok(const CUDA_CONDITIONAL_NODE_PARAMS *p)
{
    return p->type == CU_GRAPH_COND_TYPE_IF      ? p->size == 1 || p->size == 2
           : p->type == CU_GRAPH_COND_TYPE_WHILE ? p->size == 1
                                                 : p->type == CU_GRAPH_COND_TYPE_SWITCH && p->size > 0;
}

CUresult sim_condition_act(const CUDA_CONDITIONAL_NODE_PARAMS *p, CUgraph into, struct sim_act *out)
{
    CUcontext ctx = p->ctx;
    CUresult r = ctx ? CUDA_SUCCESS : sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    CUgraph g = sim_graph_of(into);
    struct sim_condition *c = sim_object(SIM_CONDITION, p->handle);
    while (g && c && g != c->graph) /* of this graph, or of one that it is a child of */
        g = g->parent ? g->parent->graph : NULL;
    bool ok = g && c && !c->used && sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)ctx) == c->ctx && size_ok(p);
    if (ok) {
        sim_condition_hold(c); /* the graph holds it too: it cannot end here */
        out->condition = c;
        out->branch = p->type;
        out->ctx = c->ctx;
    }
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult sim_condition_bodies(CUgraph g, const struct sim_act *act, unsigned size, CUgraph **bodies, CUgraph *child)
{
    if (act->condition->used) /* another node took it meanwhile */
        return CUDA_ERROR_INVALID_VALUE;
    CUgraph *list = calloc(size, sizeof *list);
    CUgraph holder = list ? sim_graph_new() : NULL;
    CUresult r = holder ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; !r && i < size; i++) {
        CUgraphNode n;
        r = sim_graph_add(holder, (struct sim_act){.kind = CU_GRAPH_NODE_TYPE_GRAPH}, NULL, NULL, 0, &n);
        if (!r && !(n->child = list[i] = sim_graph_new()))
            r = CUDA_ERROR_OUT_OF_MEMORY;
        if (!r) {
            list[i]->parent = n;
            list[i]->moved = true;
        }
    }
    *child = holder;
    if (r) {
        free(list);
        return r;
    }
    *bodies = list;
    act->condition->used = true;
    for (CUgraph up = g; up; up = up->parent ? up->parent->graph : NULL)
        up->conditional = true;
    return CUDA_SUCCESS;
}

void sim_condition_unuse(const struct sim_act *act)
{
    if (act->condition)
        act->condition->used = false;
}

void sim_condition_params(const struct sim_act *act, CUgraph child, CUgraph *bodies, CUDA_CONDITIONAL_NODE_PARAMS *out)
{
    *out = (CUDA_CONDITIONAL_NODE_PARAMS){act->condition->handle, act->branch, child->count, bodies, act->ctx};
}

/* ---- instantiation */

static bool all_used(CUgraph g)
{
    bool used = true;
    for (struct sim_condition *c = g->conditions; c && used; c = c->next)
        used = c->used;
    for (unsigned i = 0; used && i < g->count; i++)
        used = !g->nodes[i]->child || all_used(g->nodes[i]->child);
    return used;
}

/* May all of it stand in a body that runs in the context? */
static CUgraphInstantiateResult body_ok(CUgraph g, CUcontext ctx, CUgraphNode *bad)
{
    CUgraphInstantiateResult r = CUDA_GRAPH_INSTANTIATE_SUCCESS;
    for (unsigned i = 0; !r && i < g->count; i++) {
        CUgraphNode n = g->nodes[i];
        CUgraphNodeType kind = n->act.kind;
        bool holds = kind == CU_GRAPH_NODE_TYPE_GRAPH || kind == CU_GRAPH_NODE_TYPE_CONDITIONAL, kernel = kind == CU_GRAPH_NODE_TYPE_KERNEL;
        *bad = n;
        if (!holds && !kernel && kind != CU_GRAPH_NODE_TYPE_MEMCPY && kind != CU_GRAPH_NODE_TYPE_MEMSET && kind != CU_GRAPH_NODE_TYPE_EMPTY)
            return CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;
        if ((kernel || kind == CU_GRAPH_NODE_TYPE_CONDITIONAL) && n->act.ctx != ctx)
            return CUDA_GRAPH_INSTANTIATE_MULTIPLE_CTXS_NOT_SUPPORTED;
        if (holds)
            r = body_ok(n->child, ctx, bad);
    }
    return r;
}

static CUgraphInstantiateResult bodies_ok(CUgraph g, CUgraphNode *bad)
{
    CUgraphInstantiateResult r = CUDA_GRAPH_INSTANTIATE_SUCCESS;
    for (unsigned i = 0; !r && i < g->count; i++) {
        CUgraphNode n = g->nodes[i];
        if (n->act.kind == CU_GRAPH_NODE_TYPE_CONDITIONAL)
            r = body_ok(n->child, n->act.ctx, bad);
        else if (n->child)
            r = bodies_ok(n->child, bad);
    }
    return r;
}

CUgraphInstantiateResult sim_conditions_check(CUgraph g, CUgraphNode *bad)
{
    CUgraphInstantiateResult r = all_used(g) ? bodies_ok(g, bad) : CUDA_GRAPH_INSTANTIATE_CONDITIONAL_HANDLE_UNUSED;
    if (!r)
        *bad = NULL;
    return r;
}

/* ---- a launch */

void sim_condition_begin(struct sim_slot *s, void *arg)
{
    (void)arg;
    struct sim_condition *c = s->act.condition;
    if (c && c->assign)
        atomic_store(&c->value, c->initial);
}

bool sim_condition_next(const struct sim_slot *s, unsigned turn, unsigned *body)
{
    unsigned value = atomic_load(&s->act.condition->value);
    if (turn && s->act.branch != CU_GRAPH_COND_TYPE_WHILE)
        return false;
    *body = s->act.branch == CU_GRAPH_COND_TYPE_SWITCH ? value : s->act.branch == CU_GRAPH_COND_TYPE_IF ? !value : 0;
    return s->act.branch == CU_GRAPH_COND_TYPE_WHILE ? value != 0 : *body < s->child->count;
}
