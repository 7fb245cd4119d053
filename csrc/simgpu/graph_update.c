/* SPDX-License-Identifier: Apache-2.0 */
/* Changes of executable graphs: cuGraphExecUpdate, Exec*SetParams, nodes switched off and on. Called by applications.
 * Rules: each makes another program, so that launches that are under way keep theirs; a refused one changes nothing. What may
 * change is what cuda.h says at cuGraphExecUpdate and at each Exec*SetParams. An operand whose mapping changed since it was
 * instantiated (unmapped, mapped anew) is refused, as cuGraphExecMemcpyNodeSetParams says; see graph.set_params_after_remap.
 */
#include "doubt.h"
#include "graph.h"
#include "launch.h"

#include <stdlib.h>
#include <string.h>

static CUgraphExec exec_of(CUgraphExec e) { return sim_object(SIM_EXEC, (uint64_t)(uintptr_t)e); }

/* ---- may this act take the place of that one? */

static bool flat(const struct sim_act *a)
{
    CUDA_MEMCPY3D c;
    return sim_copy_params(sim_act_op(a), &c) && c.Height <= 1 && c.Depth <= 1;
}

/* [locked] Are the operands where a copy or memset of an executable may have them? */
static bool operands_ok(const struct sim_slot *s, const struct sim_act *fresh)
{
    struct sim_operand now[2], then[2];
    unsigned n = sim_act_operands(fresh, now);
    sim_act_operands(&s->act, then); /* what lies under the old addresses today */
    int doubt = sim_doubt(SIM_DOUBT_SET_AFTER_REMAP);
    for (unsigned i = 0; i < n && i < s->operand_count; i++) {
        if (doubt == 0 && then[i].mapped != s->operands[i].mapped)
            return false;
        if (doubt <= 1 && now[i].place != s->operands[i].place)
            return false;
    }
    return true;
}

static bool memcpy_ok(const struct sim_slot *s, const struct sim_act *fresh, bool update)
{
    CUDA_MEMCPY3D a, b;
    if (!sim_copy_params(sim_act_op(&s->act), &a) || !sim_copy_params(sim_act_op(fresh), &b))
        return update; /* a captured form without parameters can only be captured again */
    if (!update && (!flat(&s->act) || !flat(fresh)))
        return false;
    return a.srcMemoryType == b.srcMemoryType && a.dstMemoryType == b.dstMemoryType && operands_ok(s, fresh);
}

static bool memset_ok(const struct sim_slot *s, const struct sim_act *fresh)
{
    CUDA_MEMSET_NODE_PARAMS a, b;
    sim_memset_params(sim_act_op(&s->act), &a);
    sim_memset_params(sim_act_op(fresh), &b);
    bool same = a.width == b.width && a.height == b.height && a.elementSize == b.elementSize && (a.height <= 1 || a.pitch == b.pitch);
    bool both_flat = a.height <= 1 && b.height <= 1;
    return (same || (both_flat && sim_doubt(SIM_DOUBT_MEMSET_SIZE))) && operands_ok(s, fresh);
}

static bool waits(CUstreamBatchMemOpType t) { return t == CU_STREAM_MEM_OP_WAIT_VALUE_32 || t == CU_STREAM_MEM_OP_WAIT_VALUE_64; }

/* Addresses and values, and which way a wait waits (cuda.h, cuGraphExecBatchMemOpNodeSetParams). */
static bool batch_ok(const struct sim_slot *s, const struct sim_act *fresh)
{
    CUDA_BATCH_MEM_OP_NODE_PARAMS a, b;
    sim_memop_params(sim_act_op(&s->act), &a);
    sim_memop_params(sim_act_op(fresh), &b);
    bool ok = a.ctx == b.ctx && a.count == b.count;
    for (unsigned i = 0; ok && i < a.count; i++)
        ok = a.paramArray[i].operation == b.paramArray[i].operation || (waits(a.paramArray[i].operation) && waits(b.paramArray[i].operation));
    return ok;
}

static bool cooperative(const struct sim_act *a)
{
    unsigned count;
    const CUlaunchAttribute *all = sim_launch_attributes(sim_act_op(a), &count);
    for (unsigned i = 0; i < count; i++)
        if (all[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
            return all[i].value.cooperative != 0;
    return false;
}

/* [locked] */
static CUgraphExecUpdateResult fits(const struct sim_slot *s, const struct sim_act *fresh, bool update)
{
    switch (s->act.kind) {
    case CU_GRAPH_NODE_TYPE_KERNEL:
        if (s->act.ctx != fresh->ctx)
            return CU_GRAPH_EXEC_UPDATE_ERROR_UNSUPPORTED_FUNCTION_CHANGE;
        return update && cooperative(&s->act) != cooperative(fresh) ? CU_GRAPH_EXEC_UPDATE_ERROR_ATTRIBUTES_CHANGED : CU_GRAPH_EXEC_UPDATE_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEMCPY:
        return s->act.ctx == fresh->ctx && memcpy_ok(s, fresh, update) ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    case CU_GRAPH_NODE_TYPE_MEMSET:
        return s->act.ctx == fresh->ctx && memset_ok(s, fresh) ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP:
        return batch_ok(s, fresh) ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        return s->act.ctx == fresh->ctx ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        return s->act.alloc == fresh->alloc ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_NOT_SUPPORTED;
    case CU_GRAPH_NODE_TYPE_CONDITIONAL: /* its handle, flags and default are the other graph's from now on */
        return s->act.ctx == fresh->ctx && s->act.branch == fresh->branch && !sim_doubt(SIM_DOUBT_CONDITION_UPDATE)
                   ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_PARAMETERS_CHANGED;
    default:
        return CU_GRAPH_EXEC_UPDATE_SUCCESS;
    }
}

/* ---- pairing two programs, from their ends backwards along the order of edges (cuda.h, cuGraphExecUpdate) */

struct pairing {
    const struct sim_program *old;
    struct sim_program *fresh;
    unsigned *partner; /* per old slot: the fresh one + 1; 0: none yet */
    CUgraphExecUpdateResultInfo *info;
};

static bool refuse(struct pairing *p, CUgraphExecUpdateResult why, CUgraphNode node, CUgraphNode from)
{
    *p->info = (CUgraphExecUpdateResultInfo){why, node, from};
    return false;
}

static bool update_program(const struct sim_program *old, struct sim_program *fresh, CUgraphExecUpdateResultInfo *info);

/* `below`: the fresh node whose dependency this is, NULL for an end. *again: they are a pair already. */
static bool pair(struct pairing *p, unsigned a, unsigned b, CUgraphNode below, bool *again)
{
    const struct sim_slot *old = &p->old->slots[a];
    struct sim_slot *fresh = &p->fresh->slots[b];
    *again = p->partner[a] == b + 1;
    if (*again)
        return true;
    if (p->partner[a])
        return refuse(p, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, below ? below : fresh->node, below ? fresh->node : NULL);
    if (old->act.kind != fresh->act.kind)
        return refuse(p, CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED, fresh->node, NULL);
    if (old->needed != fresh->needed)
        return refuse(p, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, fresh->node, NULL);
    CUgraphExecUpdateResult why = fits(old, &fresh->act, true);
    if (why)
        return refuse(p, why, fresh->node, NULL);
    if (old->child && !update_program(old->child, fresh->child, p->info))
        return false;
    for (unsigned k = 0; k < old->needed; k++)
        if (memcmp(&old->edges[k], &fresh->edges[k], sizeof old->edges[k]))
            return refuse(p, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, fresh->node, p->fresh->slots[fresh->needs[k]].node);
    p->partner[a] = b + 1;
    return true;
}

struct step {
    unsigned old, fresh;
    CUgraphNode below;
};

/* A pair and all above it. `todo` has room for every edge: a chain may be longer than a thread's stack is deep. */
static bool pair_all(struct pairing *p, struct step first, struct step *todo)
{
    unsigned n = 0;
    todo[n++] = first;
    while (n) {
        struct step s = todo[--n];
        bool again;
        if (!pair(p, s.old, s.fresh, s.below, &again))
            return false;
        const struct sim_slot *old = &p->old->slots[s.old], *fresh = &p->fresh->slots[s.fresh];
        for (unsigned k = again ? 0 : old->needed; k-- > 0;)
            todo[n++] = (struct step){old->needs[k], fresh->needs[k], fresh->node};
    }
    return true;
}

/* The slots without dependents, in the order in which their nodes were made. */
static unsigned sinks(const struct sim_program *p, unsigned *out)
{
    unsigned n = 0;
    for (unsigned i = 0; i < p->count; i++)
        if (p->slots[i].sink) {
            unsigned at = n++;
            for (; at && p->slots[out[at - 1]].rank > p->slots[i].rank; at--)
                out[at] = out[at - 1];
            out[at] = i;
        }
    return n;
}

/* [locked] Puts the names of `old` on `fresh`, or says why not. */
static bool update_program(const struct sim_program *old, struct sim_program *fresh, CUgraphExecUpdateResultInfo *info)
{
    size_t room = (old->count > fresh->count ? old->count : fresh->count) + 1, edges = 1;
    for (unsigned i = 0; i < old->count; i++)
        edges += old->slots[i].needed;
    unsigned *ends = calloc(3 * room, sizeof *ends), *fresh_ends = ends + room;
    struct step *todo = malloc(edges * sizeof *todo);
    struct pairing p = {old, fresh, ends ? ends + 2 * room : NULL, info};
    bool ok = ends && todo;
    if (!ok)
        *info = (CUgraphExecUpdateResultInfo){CU_GRAPH_EXEC_UPDATE_ERROR, NULL, NULL};
    if (ok && old->count != fresh->count)
        ok = refuse(&p, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, NULL, NULL);
    unsigned n = ok ? sinks(old, ends) : 0, m = ok ? sinks(fresh, fresh_ends) : 0;
    if (n != m)
        ok = refuse(&p, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED, m > n ? fresh->slots[fresh_ends[n]].node : NULL, NULL);
    for (unsigned i = 0; ok && i < n; i++)
        ok = pair_all(&p, (struct step){ends[i], fresh_ends[i], NULL}, todo);
    for (unsigned i = 0; ok && i < old->count; i++) { /* the executable is still addressed by the graph it came from */
        struct sim_slot *to = &fresh->slots[p.partner[i] - 1];
        to->node = old->slots[i].node;
        to->unique = old->slots[i].unique;
        to->disabled = old->slots[i].disabled;
    }
    free(todo);
    free(ends);
    return ok;
}

static CUresult update(CUgraphExec handle, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
    struct sim_program *fresh = NULL;
    CUgraphNode bad = NULL;
    *info = (CUgraphExecUpdateResultInfo){CU_GRAPH_EXEC_UPDATE_ERROR, NULL, NULL};
    sim_take();
    CUgraphExec e = exec_of(handle);
    CUgraph g = sim_graph_of(graph);
    CUresult r = e && g && !g->moved ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (!r && sim_conditions_check(g, &bad))
        r = CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    if (!r && (r = sim_program_new(g, &fresh, &bad)) == CUDA_ERROR_INVALID_VALUE)
        r = CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE; /* a circle */
    if (!r && !update_program(e->program, fresh, info))
        r = CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    if (!r) {
        struct sim_program *old = e->program;
        e->program = fresh;
        fresh = old;
        info->result = CU_GRAPH_EXEC_UPDATE_SUCCESS;
    }
    sim_give();
    sim_program_drop(fresh);
    return r;
}

SIM_API CUresult cuGraphExecUpdate_v2(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo)
{
    SIM_ENTRY();
    return resultInfo ? update(hGraphExec, hGraph, resultInfo) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphExecUpdate(CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out, CUgraphExecUpdateResult *updateResult_out)
{
    SIM_ENTRY();
    CUgraphExecUpdateResultInfo info;
    if (!updateResult_out)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = update(hGraphExec, hGraph, &info);
    *updateResult_out = info.result;
    if (hErrorNode_out)
        *hErrorNode_out = info.errorNode;
    return r;
}

/* ---- one node */

struct change {
    CUgraphNode node;
    uint64_t unique;
    struct sim_act *act;       /* another act, taken over when it fits; or */
    struct sim_program *child; /* another child, taken over when it fits; or */
    int enabled;               /* 0, 1; -1: neither */
    CUresult result;
    bool done;
};

static void change_slot(struct sim_slot *s, struct change *c)
{
    c->done = true;
    if (c->act) {
        if (s->act.kind != c->act->kind || fits(s, c->act, false)) {
            c->result = CUDA_ERROR_INVALID_VALUE;
            return;
        }
        struct sim_act old = s->act;
        s->act = *c->act;
        *c->act = old; /* the caller drops it */
        s->operand_count = sim_act_operands(&s->act, s->operands);
    } else if (c->child) {
        CUgraphExecUpdateResultInfo info;
        if (s->act.kind != CU_GRAPH_NODE_TYPE_GRAPH || !update_program(s->child, c->child, &info)) {
            c->result = CUDA_ERROR_INVALID_VALUE;
            return;
        }
        struct sim_program *old = s->child;
        s->child = c->child;
        c->child = old;
    } else {
        bool can = s->act.kind == CU_GRAPH_NODE_TYPE_KERNEL || s->act.kind == CU_GRAPH_NODE_TYPE_MEMSET || s->act.kind == CU_GRAPH_NODE_TYPE_MEMCPY;
        if (can)
            s->disabled = !c->enabled;
        else
            c->result = CUDA_ERROR_INVALID_VALUE;
    }
}

static bool holds(const struct sim_program *p, const struct change *c)
{
    for (unsigned i = 0; i < p->count; i++)
        if ((p->slots[i].node == c->node && p->slots[i].unique == c->unique) || (p->slots[i].child && holds(p->slots[i].child, c)))
            return true;
    return false;
}

/* [locked] A program like p with the change in it; NULL with the reason in c->result. */
static struct sim_program *changed(const struct sim_program *p, struct change *c, struct sim_program **waste)
{
    struct sim_program *fresh = sim_program_copy(p);
    if (!fresh)
        c->result = CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; fresh && !c->done && i < fresh->count; i++) {
        struct sim_slot *s = &fresh->slots[i];
        if (s->node == c->node && s->unique == c->unique) {
            change_slot(s, c);
        } else if (s->child && holds(s->child, c)) {
            struct sim_program *child = changed(s->child, c, waste);
            if (child) {
                atomic_fetch_sub(&s->child->refs, 1); /* never the last: the program that is copied holds it */
                s->child = child;
            }
        }
    }
    if (!c->done && !c->result)
        c->result = CUDA_ERROR_INVALID_VALUE; /* the node was not in the graph */
    if (c->result) {
        *waste = fresh;
        return NULL;
    }
    return fresh;
}

static CUresult change(CUgraphExec handle, struct change *c)
{
    struct sim_program *waste = NULL;
    sim_take();
    CUgraphExec e = exec_of(handle);
    CUgraphNode n = sim_node_of(c->node); /* it must not have been removed (cuda.h) */
    if (!e || !n) {
        c->result = CUDA_ERROR_INVALID_VALUE;
    } else {
        c->unique = n->unique;
        struct sim_program *fresh = changed(e->program, c, &waste);
        if (fresh) {
            waste = e->program;
            e->program = fresh;
        }
    }
    sim_give();
    sim_program_drop(waste);
    return c->result;
}

static CUresult set(CUgraphExec e, CUgraphNode node, CUgraphNodeParams *p)
{
    struct sim_act act;
    struct change c = {.node = node, .enabled = -1};
    if (p->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || p->type == CU_GRAPH_NODE_TYPE_MEM_FREE || p->type == CU_GRAPH_NODE_TYPE_CONDITIONAL)
        return CUDA_ERROR_NOT_SUPPORTED;
    if (p->type == CU_GRAPH_NODE_TYPE_GRAPH) {
        CUgraphNode bad = NULL;
        sim_take();
        CUgraph g = sim_graph_of(p->graph.graph);
        CUresult r = g && !g->memory && !g->conditional ? sim_program_new(g, &c.child, &bad) : CUDA_ERROR_INVALID_VALUE;
        sim_give();
        if (!r)
            r = change(e, &c);
        sim_program_drop(c.child);
        return r;
    }
    sim_take();
    CUgraphNode n = sim_node_of(node);
    struct sim_work *like = n && n->act.kind == CU_GRAPH_NODE_TYPE_KERNEL && p->type == n->act.kind ? n->act.work : NULL;
    if (like)
        sim_work_ref(like);
    sim_give();
    CUresult r = sim_act_make(p, NULL, like, &act);
    sim_work_drop(like);
    if (r)
        return r;
    c.act = &act;
    r = change(e, &c);
    sim_act_drop(&act); /* the new one when it was refused, else the old one */
    return r;
}

SIM_API CUresult cuGraphExecNodeSetParams(CUgraphExec hGraphExec, CUgraphNode hNode, CUgraphNodeParams *nodeParams)
{
    SIM_ENTRY();
    return nodeParams && sim_params_clean(nodeParams) ? set(hGraphExec, hNode, nodeParams) : CUDA_ERROR_INVALID_VALUE;
}

#define SET(entry, arguments, kind, ...) \
    SIM_API CUresult cuGraphExec##entry(CUgraphExec e, CUgraphNode node, arguments) \
    { \
        SIM_ENTRY(); \
        CUgraphNodeParams p = {.type = kind}; \
        __VA_ARGS__ \
        return set(e, node, &p); \
    }
#define COMMA ,
#define GIVEN(in) if (!(in)) return CUDA_ERROR_INVALID_VALUE

SET(KernelNodeSetParams, const CUDA_KERNEL_NODE_PARAMS_v1 *in, CU_GRAPH_NODE_TYPE_KERNEL, GIVEN(in); memcpy(&p.kernel, in, sizeof *in);)
SET(KernelNodeSetParams_v2, const CUDA_KERNEL_NODE_PARAMS *in, CU_GRAPH_NODE_TYPE_KERNEL, GIVEN(in); memcpy(&p.kernel, in, sizeof *in);)
SET(MemcpyNodeSetParams, const CUDA_MEMCPY3D *in COMMA CUcontext ctx, CU_GRAPH_NODE_TYPE_MEMCPY, GIVEN(in); p.memcpy.copyCtx = ctx;
    p.memcpy.copyParams = *in;)
SET(MemsetNodeSetParams, const CUDA_MEMSET_NODE_PARAMS *in COMMA CUcontext ctx, CU_GRAPH_NODE_TYPE_MEMSET, GIVEN(in);
    memcpy(&p.memset, in, sizeof *in); p.memset.ctx = ctx;)
SET(HostNodeSetParams, const CUDA_HOST_NODE_PARAMS *in, CU_GRAPH_NODE_TYPE_HOST, GIVEN(in); p.host.fn = in->fn; p.host.userData = in->userData;)
SET(BatchMemOpNodeSetParams, const CUDA_BATCH_MEM_OP_NODE_PARAMS *in, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, GIVEN(in);
    memcpy(&p.memOp, in, sizeof *in);)
SET(ChildGraphNodeSetParams, CUgraph in, CU_GRAPH_NODE_TYPE_GRAPH, p.graph.graph = in;)
SET(EventRecordNodeSetEvent, CUevent in, CU_GRAPH_NODE_TYPE_EVENT_RECORD, p.eventRecord.event = in;)
SET(EventWaitNodeSetEvent, CUevent in, CU_GRAPH_NODE_TYPE_WAIT_EVENT, p.eventWait.event = in;)

SIM_API CUresult cuGraphNodeSetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int isEnabled)
{
    SIM_ENTRY();
    struct change c = {.node = hNode, .enabled = isEnabled != 0};
    return change(hGraphExec, &c);
}

static const struct sim_slot *slot_of(const struct sim_program *p, CUgraphNode n)
{
    const struct sim_slot *found = NULL;
    for (unsigned i = 0; i < p->count && !found; i++)
        if (p->slots[i].node == n && p->slots[i].unique == n->unique)
            found = &p->slots[i];
        else if (p->slots[i].child)
            found = slot_of(p->slots[i].child, n);
    return found;
}

SIM_API CUresult cuGraphNodeGetEnabled(CUgraphExec hGraphExec, CUgraphNode hNode, unsigned int *isEnabled)
{
    SIM_ENTRY();
    sim_take();
    CUgraphExec e = isEnabled ? exec_of(hGraphExec) : NULL;
    CUgraphNode n = sim_node_of(hNode);
    const struct sim_slot *s = e && n ? slot_of(e->program, n) : NULL;
    bool can = s && (s->act.kind == CU_GRAPH_NODE_TYPE_KERNEL || s->act.kind == CU_GRAPH_NODE_TYPE_MEMSET || s->act.kind == CU_GRAPH_NODE_TYPE_MEMCPY);
    if (can)
        *isEnabled = !s->disabled;
    sim_give();
    return can ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
