/* SPDX-License-Identifier: Apache-2.0 */
/* What graph nodes do: acts made from CUgraphNodeParams, and the other way. Called by graph_nodes.c, graph_update.c.
 * Rules: one description for all ABIs, CUgraphNodeParams; older entries are put into it. Everything is checked when an act is
 * made, as an operation on a stream would be. Not here: external semaphores (NOT_SUPPORTED).
 */
#include "faults.h"
#include "graph.h"
#include "launch.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS_v3) == sizeof(CUDA_KERNEL_NODE_PARAMS), "kernel nodes are described in one way");
_Static_assert(sizeof(CUDA_BATCH_MEM_OP_NODE_PARAMS_v2) == sizeof(CUDA_BATCH_MEM_OP_NODE_PARAMS), "batches too");
_Static_assert(sizeof(CUDA_MEM_ALLOC_NODE_PARAMS_v2) == sizeof(CUDA_MEM_ALLOC_NODE_PARAMS), "allocations too");

static CUresult run_host(void *arg)
{
    const CUDA_HOST_NODE_PARAMS *p = arg;
    sim_call_host(p->fn, p->userData);
    return CUDA_SUCCESS;
}

CUresult sim_host_op(const CUDA_HOST_NODE_PARAMS *p, struct sim_op *op)
{
    if (!p->fn)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_HOST_NODE_PARAMS *copy = malloc(sizeof *copy);
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *copy = *p;
    *op = (struct sim_op){run_host, free, copy, CU_GRAPH_NODE_TYPE_HOST, NULL};
    return CUDA_SUCCESS;
}

void sim_host_params(const struct sim_op *op, CUDA_HOST_NODE_PARAMS *out)
{
    memcpy(out, op->arg, sizeof *out);
}

/* The context to use: the given one, or the current one. */
static CUresult context(CUcontext *ctx)
{
    if (!*ctx)
        return sim_current(ctx);
    sim_take();
    *ctx = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)*ctx);
    sim_give();
    return *ctx ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

static CUresult make_event(CUevent event, CUcontext *ctx)
{
    sim_take();
    CUresult r = sim_event_find(event, ctx);
    sim_give();
    return r;
}

static CUresult make_alloc(CUDA_MEM_ALLOC_NODE_PARAMS_v2 *p, CUgraph into, struct sim_act *out)
{
    CUresult r = sim_current(&out->ctx);
    if (r)
        return r;
    sim_take();
    CUgraph g = sim_graph_of(into);
    r = g && !g->parent ? sim_graph_alloc_new(out->ctx, g, p, &out->alloc) : CUDA_ERROR_INVALID_VALUE;
    sim_give();
    if (!r)
        p->dptr = sim_graph_alloc_address(out->alloc);
    return r;
}

static CUresult make_free(CUdeviceptr p, CUgraph into, struct sim_act *out)
{
    sim_take();
    CUgraph g = sim_graph_of(into);
    CUresult r = g && !g->parent ? sim_graph_alloc_free_node(p, g, &out->alloc) : CUDA_ERROR_INVALID_VALUE;
    sim_give();
    return r;
}

/* How much of the union a kind uses. */
static size_t used_by(const CUgraphNodeParams *p)
{
    switch (p->type) {
    case CU_GRAPH_NODE_TYPE_KERNEL: return sizeof p->kernel;
    case CU_GRAPH_NODE_TYPE_MEMCPY: return sizeof p->memcpy;
    case CU_GRAPH_NODE_TYPE_MEMSET: return sizeof p->memset;
    case CU_GRAPH_NODE_TYPE_HOST: return sizeof p->host;
    case CU_GRAPH_NODE_TYPE_GRAPH: return sizeof p->graph;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT: return sizeof p->eventWait;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD: return sizeof p->eventRecord;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC: return sizeof p->alloc;
    case CU_GRAPH_NODE_TYPE_MEM_FREE: return sizeof p->free;
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: return sizeof p->memOp;
    case CU_GRAPH_NODE_TYPE_CONDITIONAL: return sizeof p->conditional;
    case CU_GRAPH_NODE_TYPE_EMPTY: return 0;
    default: return sizeof p->asBytes; /* refused for what it is */
    }
}

bool sim_params_clean(const CUgraphNodeParams *p)
{
    bool clean = !p->reserved0[0] && !p->reserved0[1] && !p->reserved0[2] && !p->reserved2;
    for (size_t i = used_by(p); clean && i < sizeof p->asBytes; i++)
        clean = !p->asBytes[i];
    return clean;
}

CUresult sim_act_make(CUgraphNodeParams *p, CUgraph into, const struct sim_work *like, struct sim_act *out)
{
    struct sim_op op = {0};
    CUresult r;
    *out = (struct sim_act){.kind = p->type};
    switch (p->type) {
    case CU_GRAPH_NODE_TYPE_EMPTY:
    case CU_GRAPH_NODE_TYPE_GRAPH: /* the child is the node's, not the act's */
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        out->event = p->eventWait.event;
        return make_event(p->eventWait.event, &out->ctx);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        out->event = p->eventRecord.event;
        return make_event(p->eventRecord.event, &out->ctx);
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        return make_alloc(&p->alloc, into, out);
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        return make_free(p->free.dptr, into, out);
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        return sim_condition_act(&p->conditional, into, out);
    case CU_GRAPH_NODE_TYPE_KERNEL: {
        CUDA_KERNEL_NODE_PARAMS kernel;
        memcpy(&kernel, &p->kernel, sizeof kernel);
        unsigned count = 0;
        const CUlaunchAttribute *attributes = like ? sim_launch_attributes(sim_fault_inner(&like->op), &count) : NULL;
        if (!(r = sim_launch_op_with(&kernel, attributes, count, &op)))
            out->ctx = sim_launch_context(&op);
        break;
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        out->ctx = p->memcpy.copyCtx;
        if (p->memcpy.flags || p->memcpy.reserved)
            return CUDA_ERROR_INVALID_VALUE;
        if (!(r = context(&out->ctx)))
            r = sim_copy_op(&p->memcpy.copyParams, out->ctx, &op);
        break;
    case CU_GRAPH_NODE_TYPE_MEMSET: {
        CUDA_MEMSET_NODE_PARAMS set;
        memcpy(&set, &p->memset, sizeof set); /* the newer struct only adds the context */
        out->ctx = p->memset.ctx;
        if (!(r = context(&out->ctx)))
            r = sim_memset_op(&set, out->ctx, &op);
        break;
    }
    case CU_GRAPH_NODE_TYPE_HOST: {
        CUDA_HOST_NODE_PARAMS host = {p->host.fn, p->host.userData};
        out->ctx = p->host.ctx;
        if (p->host.syncMode > CU_HOST_TASK_SPINWAIT)
            return CUDA_ERROR_INVALID_VALUE;
        r = sim_host_op(&host, &op);
        break;
    }
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: {
        CUDA_BATCH_MEM_OP_NODE_PARAMS batch;
        memcpy(&batch, &p->memOp, sizeof batch);
        out->ctx = batch.ctx;
        r = sim_memop_op(&batch, &op);
        break;
    }
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_SIGNAL:
    case CU_GRAPH_NODE_TYPE_EXT_SEMAS_WAIT:
        return CUDA_ERROR_NOT_SUPPORTED;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!r && !(out->work = sim_work_new(op)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    return r;
}

CUresult sim_act_params(const struct sim_act *a, CUgraph child, CUgraphNodeParams *out)
{
    memset(out, 0, sizeof *out);
    out->type = a->kind;
    const struct sim_op *op = sim_act_op(a);
    switch (a->kind) {
    case CU_GRAPH_NODE_TYPE_KERNEL: {
        CUDA_KERNEL_NODE_PARAMS kernel;
        sim_launch_params(op, &kernel);
        memcpy(&out->kernel, &kernel, sizeof kernel);
        return CUDA_SUCCESS;
    }
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        out->memcpy.copyCtx = a->ctx;
        return sim_copy_params(op, &out->memcpy.copyParams) ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
    case CU_GRAPH_NODE_TYPE_MEMSET: {
        CUDA_MEMSET_NODE_PARAMS set;
        sim_memset_params(op, &set);
        memcpy(&out->memset, &set, sizeof set);
        out->memset.ctx = a->ctx;
        return CUDA_SUCCESS;
    }
    case CU_GRAPH_NODE_TYPE_HOST: {
        CUDA_HOST_NODE_PARAMS host;
        sim_host_params(op, &host);
        out->host.fn = host.fn;
        out->host.userData = host.userData;
        out->host.ctx = a->ctx;
        return CUDA_SUCCESS;
    }
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: {
        CUDA_BATCH_MEM_OP_NODE_PARAMS batch;
        sim_memop_params(op, &batch);
        memcpy(&out->memOp, &batch, sizeof batch);
        return CUDA_SUCCESS;
    }
    case CU_GRAPH_NODE_TYPE_GRAPH:
        out->graph.graph = child;
        out->graph.ownership = CU_GRAPH_CHILD_GRAPH_OWNERSHIP_INVALID; /* a handle to look at, not one to add again */
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        out->eventWait.event = a->event;
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        out->eventRecord.event = a->event;
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        sim_graph_alloc_params(a->alloc, &out->alloc);
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        out->free.dptr = sim_graph_alloc_address(a->alloc);
        return CUDA_SUCCESS;
    default: /* empty: nothing to tell; conditional: the node tells it */
        return CUDA_SUCCESS;
    }
}

/* [locked] */
static void look(struct sim_operand *o)
{
    struct sim_map *m;
    o->mapped = o->place = 0;
    for (size_t i = sim_map_from(o->p); (m = sim_map_at(i)) && m->base < o->p + o->n; i++) {
        o->mapped = (o->mapped ^ m->id) * 0x100000001b3u; /* FNV: which mappings, in their order */
        o->place |= (m->in_ram ? 2u : 1u) | 0x100u << m->device;
    }
}

unsigned sim_act_operands(const struct sim_act *a, struct sim_operand out[2])
{
    unsigned count = 0;
    if (a->kind == CU_GRAPH_NODE_TYPE_MEMCPY && sim_copy_operands(sim_act_op(a), out))
        count = 2;
    if (a->kind == CU_GRAPH_NODE_TYPE_MEMSET) {
        sim_memset_operand(sim_act_op(a), &out[0]);
        count = 1;
    }
    for (unsigned i = 0; i < count; i++)
        look(&out[i]);
    return count;
}
