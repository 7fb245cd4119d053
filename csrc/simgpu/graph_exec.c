/* SPDX-License-Identifier: Apache-2.0 */
/* Executable graphs: instantiation, upload, launch. Called by applications; updates are graph_update.c.
 * Rules: a launch is one task. It runs the program's nodes one after the other, each at the simulated time at which what it
 * needs has ended, and lasts as long as the longest path. Launches of one executable wait for each other, whatever their
 * streams. What its events and allocations are to the host is settled when it is launched: a recorded event is a promise
 * that the node keeps.
 */
#include "doubt.h"
#include "graph.h"

#include <stdlib.h>
#include <string.h>

static CUgraphExec exec_of(CUgraphExec e) { return sim_object(SIM_EXEC, (uint64_t)(uintptr_t)e); }

/* ---- instantiation */

static void any_memory(struct sim_slot *s, void *arg)
{
    *(bool *)arg |= s->act.alloc != NULL;
}

/* What a device launch may hold (cuda.h, cuGraphInstantiate). */
static CUgraphInstantiateResult device_launch(const struct sim_program *p, CUcontext *ctx, unsigned *works, CUgraphNode *bad)
{
    for (unsigned i = 0; i < p->count; i++) {
        const struct sim_slot *s = &p->slots[i];
        CUgraphNodeType kind = s->act.kind;
        bool works_here = kind == CU_GRAPH_NODE_TYPE_KERNEL || kind == CU_GRAPH_NODE_TYPE_MEMCPY || kind == CU_GRAPH_NODE_TYPE_MEMSET;
        *works += works_here;
        *bad = s->node;
        if (!works_here && kind != CU_GRAPH_NODE_TYPE_GRAPH)
            return CUDA_GRAPH_INSTANTIATE_NODE_OPERATION_NOT_SUPPORTED;
        if (works_here && *ctx && s->act.ctx != *ctx)
            return CUDA_GRAPH_INSTANTIATE_MULTIPLE_CTXS_NOT_SUPPORTED;
        if (works_here)
            *ctx = s->act.ctx;
        CUgraphInstantiateResult r = s->child ? device_launch(s->child, ctx, works, bad) : CUDA_GRAPH_INSTANTIATE_SUCCESS;
        if (r)
            return r;
    }
    *bad = NULL;
    return CUDA_GRAPH_INSTANTIATE_SUCCESS;
}

static CUresult upload(CUgraphExec handle, CUstream stream, bool pt);

static CUresult instantiate(CUgraphExec *out, CUgraph handle, unsigned long long flags, CUgraphNode *bad, CUgraphInstantiateResult *why)
{
    const unsigned long long known = CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH | CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH |
                                     CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    *bad = NULL;
    *why = CUDA_GRAPH_INSTANTIATE_ERROR;
    bool device = flags & CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    if (!out || flags & ~known || (device && (flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)))
        return CUDA_ERROR_INVALID_VALUE;
    CUgraphExec e = calloc(1, sizeof *e);
    if (!e)
        return CUDA_ERROR_OUT_OF_MEMORY;
    e->flags = flags;
    sim_take();
    CUgraph g = sim_graph_of(handle);
    CUresult r = !g || g->moved || ((g->memory || g->conditional) && g->instantiated) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    CUgraphInstantiateResult conditions = r ? CUDA_GRAPH_INSTANTIATE_SUCCESS : sim_conditions_check(g, bad);
    if (conditions) {
        *why = conditions;
        r = CUDA_ERROR_INVALID_VALUE;
    }
    if (!r && (r = sim_program_new(g, &e->program, bad)) == CUDA_ERROR_INVALID_VALUE)
        *why = CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;
    if (!r && device) {
        CUcontext ctx = NULL;
        unsigned works = 0;
        CUgraphInstantiateResult found = device_launch(e->program, &ctx, &works, bad);
        if (found || !works) {
            *why = found ? found : CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;
            r = found ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
        }
    }
    if (!r && !sim_object_add(SIM_EXEC, (uint64_t)(uintptr_t)e, e))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        e->id = sim_unique();
        e->graph = g->id;
        sim_program_each(e->program, any_memory, &e->memory);
        e->conditional = g->conditional;
        g->instantiated |= e->memory || e->conditional;
        *why = CUDA_GRAPH_INSTANTIATE_SUCCESS;
    }
    sim_give();
    if (r) {
        sim_program_drop(e->program);
        free(e);
        return r;
    }
    *out = e;
    return CUDA_SUCCESS;
}

static CUresult with_log(CUgraphExec *out, CUgraph g, CUgraphNode *error_node, char *log, size_t size)
{
    CUgraphNode bad;
    CUgraphInstantiateResult why;
    CUresult r = instantiate(out, g, 0, &bad, &why);
    if (error_node)
        *error_node = bad;
    if (log && size)
        *log = 0; /* what there is to say is in the result and the node */
    return r;
}

SIM_API CUresult cuGraphInstantiate(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
    SIM_ENTRY();
    return with_log(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
}

SIM_API CUresult cuGraphInstantiate_v2(CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize)
{
    SIM_ENTRY();
    return with_log(phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize);
}

SIM_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags)
{
    SIM_ENTRY();
    CUgraphNode bad;
    CUgraphInstantiateResult why;
    return instantiate(phGraphExec, hGraph, flags, &bad, &why);
}

static CUresult with_params(CUgraphExec *out, CUgraph g, CUDA_GRAPH_INSTANTIATE_PARAMS *p, bool pt)
{
    if (!p)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = instantiate(out, g, p->flags & ~(cuuint64_t)CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD, &p->hErrNode_out, &p->result_out);
    if (!r && (p->flags & CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD) && (r = upload(*out, p->hUploadStream, pt))) {
        p->result_out = CUDA_GRAPH_INSTANTIATE_ERROR;
        cuGraphExecDestroy(*out);
        *out = NULL;
    }
    return r;
}

static void unmap(struct sim_slot *s, void *arg)
{
    (void)arg;
    if (s->act.kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        sim_graph_alloc_mapped(s->act.alloc, -1);
}

struct lookup {
    uint64_t id;
    CUgraph found;
};

static void find_graph(void *object, void *arg)
{
    struct lookup *l = arg;
    if (((CUgraph)object)->id == l->id)
        l->found = object;
}

SIM_API CUresult cuGraphExecDestroy(CUgraphExec hGraphExec)
{
    SIM_ENTRY();
    sim_take();
    CUgraphExec e = exec_of(hGraphExec);
    if (e) {
        sim_object_drop(SIM_EXEC, (uint64_t)(uintptr_t)e);
        if (e->mapped)
            sim_program_each(e->program, unmap, NULL);
        struct lookup l = {e->graph, NULL};
        if (e->memory || e->conditional)
            sim_object_each(SIM_GRAPH, find_graph, &l);
        if (l.found)
            l.found->instantiated = false;
    }
    sim_give();
    if (!e)
        return CUDA_ERROR_INVALID_VALUE;
    sim_program_drop(e->program);
    sim_task_drop(e->last);
    free(e);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGraphExecGetFlags(CUgraphExec hGraphExec, cuuint64_t *flags)
{
    SIM_ENTRY();
    sim_take();
    CUgraphExec e = flags ? exec_of(hGraphExec) : NULL;
    if (e)
        *flags = e->flags;
    sim_give();
    return e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphExecGetId(CUgraphExec hGraphExec, unsigned int *graphId)
{
    SIM_ENTRY();
    sim_take();
    CUgraphExec e = graphId ? exec_of(hGraphExec) : NULL;
    if (e)
        *graphId = (unsigned)e->id;
    sim_give();
    return e ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* ---- a launch */

struct flight {
    struct sim_program *program;
    struct { struct sim_task *task; bool promise; } *events; /* per slot, of children too: to keep, or to wait for */
    uint64_t *ends;           /* per slot: when it has ended, in simulated time */
};

static CUresult run_slot(struct flight *f, const struct sim_slot *s, unsigned first, unsigned at);

/* Runs p, whose slots are numbered from `first`; leaves the clock at its end. */
static CUresult run_program(struct flight *f, const struct sim_program *p, unsigned first)
{
    uint64_t start = sim_task_clock(), end = start;
    CUresult r = CUDA_SUCCESS;
    unsigned at = first + p->count; /* children's slots come behind their parent's */
    for (unsigned i = 0; i < p->count && !r; i++) {
        const struct sim_slot *s = &p->slots[i];
        uint64_t from = start;
        for (unsigned k = 0; k < s->needed; k++)
            if (f->ends[first + s->needs[k]] > from)
                from = f->ends[first + s->needs[k]];
        sim_task_set_clock(from);
        r = run_slot(f, s, first + i, at);
        at += s->child ? s->child->total : 0;
        f->ends[first + i] = sim_task_clock();
        if (f->ends[first + i] > end)
            end = f->ends[first + i];
    }
    sim_task_set_clock(end);
    return r;
}

/* Bodies stand behind each other, and behind the nodes that hold them. */
static CUresult run_bodies(struct flight *f, const struct sim_slot *s, unsigned children)
{
    const struct sim_program *holder = s->child;
    CUresult r = CUDA_SUCCESS;
    unsigned body;
    for (unsigned turn = 0; !r && sim_condition_next(s, turn, &body); turn += !turn) {
        unsigned at = children + holder->count;
        for (unsigned i = 0; i < body; i++)
            at += holder->slots[i].child->total;
        r = run_program(f, holder->slots[body].child, at);
    }
    return r;
}

static CUresult run_slot(struct flight *f, const struct sim_slot *s, unsigned self, unsigned children)
{
    struct sim_task *t = f->events[self].task;
    if (s->disabled)
        return CUDA_SUCCESS;
    switch (s->act.kind) {
    case CU_GRAPH_NODE_TYPE_GRAPH:
        return run_program(f, s->child, children);
    case CU_GRAPH_NODE_TYPE_CONDITIONAL:
        return run_bodies(f, s, children);
    case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
        if (t)
            sim_promise_keep(t, sim_task_clock());
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
        if (t) {
            sim_task_wait(t);
            if (t->end_ns > sim_task_clock())
                sim_task_set_clock(t->end_ns);
        }
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
        sim_graph_alloc_open(s->act.alloc);
        return CUDA_SUCCESS;
    case CU_GRAPH_NODE_TYPE_MEM_FREE:
        sim_graph_alloc_close(s->act.alloc);
        return CUDA_SUCCESS;
    default:
        return s->act.work ? s->act.work->op.run(s->act.work->op.arg) : CUDA_SUCCESS;
    }
}

static CUresult run_flight(void *arg)
{
    struct flight *f = arg;
    sim_program_each(f->program, sim_condition_begin, NULL);
    return run_program(f, f->program, 0);
}

static void drop_flight(void *arg)
{
    struct flight *f = arg;
    for (unsigned i = 0; i < f->program->total; i++)
        if (f->events[i].task) {
            if (f->events[i].promise) /* one that no node came to keep (an error, a failed launch) is kept all the same */
                sim_promise_keep(f->events[i].task, sim_task_clock());
            sim_task_drop(f->events[i].task);
        }
    sim_program_drop(f->program);
    free(f->events);
    free(f->ends);
    free(f);
}

static struct flight *flight_new(struct sim_program *p)
{
    struct flight *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->events = calloc(p->total ? p->total : 1, sizeof *f->events);
    f->ends = calloc(p->total ? p->total : 1, sizeof *f->ends);
    if (!f->events || !f->ends) {
        free(f->events);
        free(f->ends);
        free(f);
        return NULL;
    }
    f->program = p;
    return f;
}

/* ---- what the host knows of a launch: [locked], in the order in which the nodes run */

/* Would every allocation node find its address free, and every free node its memory allocated? `live` is not changed: what this
 * launch does itself is kept in marks. */
struct rehearsal {
    bool auto_free;
    CUresult result;
    const struct sim_program *program;
};

static bool allocated_before(const struct sim_program *p, const struct sim_slot *s, const struct sim_graph_alloc *a, bool *reached)
{
    for (unsigned i = 0; i < p->count && !*reached; i++) {
        const struct sim_slot *o = &p->slots[i];
        if (o == s) {
            *reached = true;
            return false;
        }
        if (o->child ? allocated_before(o->child, s, a, reached) : o->act.kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC && o->act.alloc == a)
            return true;
    }
    return false;
}

static void rehearse(struct sim_slot *s, void *arg)
{
    struct rehearsal *h = arg;
    bool reached = false;
    if (h->result)
        return;
    if (s->act.kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
        if (sim_graph_alloc_live(s->act.alloc) && !h->auto_free)
            h->result = CUDA_ERROR_INVALID_VALUE;
        else
            h->result = sim_graph_alloc_back(s->act.alloc);
    } else if (s->act.kind == CU_GRAPH_NODE_TYPE_MEM_FREE) {
        if (!sim_graph_alloc_live(s->act.alloc) && !allocated_before(h->program, s, s->act.alloc, &reached))
            h->result = CUDA_ERROR_INVALID_VALUE;
    } else if (s->act.kind == CU_GRAPH_NODE_TYPE_EVENT_RECORD || s->act.kind == CU_GRAPH_NODE_TYPE_WAIT_EVENT) {
        CUcontext ctx;
        h->result = sim_event_find(s->act.event, &ctx);
    } else if (s->operand_count && sim_doubt(SIM_DOUBT_COPY_NODES)) {
        struct sim_operand now[2];
        unsigned n = sim_act_operands(&s->act, now);
        for (unsigned i = 0; i < n; i++)
            if (now[i].mapped != s->operands[i].mapped)
                h->result = CUDA_ERROR_INVALID_VALUE;
    }
}

static void map(struct sim_slot *s, void *arg)
{
    (void)arg;
    if (s->act.kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
        sim_graph_alloc_mapped(s->act.alloc, 1);
}

static CUresult rehearsed(CUgraphExec e)
{
    struct rehearsal h = {e->flags & CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH, CUDA_SUCCESS, e->program};
    sim_program_each(e->program, rehearse, &h);
    if (!h.result && !e->mapped) {
        e->mapped = true;
        sim_program_each(e->program, map, NULL);
    }
    return h.result;
}

struct take_off {
    struct sim_task *launch;
};

static void use_memory(struct sim_slot *s, void *arg)
{
    struct take_off *o = arg;
    if (!s->act.alloc)
        return;
    sim_graph_alloc_busy(s->act.alloc, o->launch);
    sim_graph_alloc_set(s->act.alloc, s->act.kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC);
}

/* Events as a launch finds and leaves them. */
static CUresult use_events(struct flight *f, const struct sim_program *p, unsigned first)
{
    unsigned at = first + p->count;
    for (unsigned i = 0; i < p->count; i++) {
        const struct sim_slot *s = &p->slots[i];
        if (s->act.kind == CU_GRAPH_NODE_TYPE_WAIT_EVENT)
            f->events[first + i].task = sim_event_task(s->act.event);
        if (s->act.kind == CU_GRAPH_NODE_TYPE_EVENT_RECORD) {
            f->events[first + i].promise = true;
            if (!(f->events[first + i].task = sim_event_promise(s->act.event)))
                return CUDA_ERROR_OUT_OF_MEMORY;
        }
        if (s->child) {
            CUresult r = use_events(f, s->child, at);
            if (r)
                return r;
            at += s->child->total;
        }
    }
    return CUDA_SUCCESS;
}

/* [locked] Into a capture: a child graph like the executable, from now on its own. */
static CUresult captured(CUgraphExec e, CUstream s, CUgraph *waste)
{
    CUgraph child;
    CUgraphNode n;
    if (s->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (e->memory || e->conditional)
        return CUDA_ERROR_NOT_SUPPORTED; /* a child graph may not hold such nodes */
    CUresult r = sim_program_graph(e->program, &child);
    if (!r)
        r = sim_capture_add(s, (struct sim_act){.kind = CU_GRAPH_NODE_TYPE_GRAPH}, &n);
    if (r) {
        if (child)
            sim_graph_forget(child);
        *waste = child;
        return r;
    }
    n->child = child;
    child->parent = n;
    return CUDA_SUCCESS;
}

static CUresult launch(CUgraphExec handle, CUstream stream, bool pt)
{
    CUcontext ctx;
    CUstream s;
    CUgraph waste = NULL;
    struct sim_work *w = NULL;
    struct sim_task *old = NULL;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    CUgraphExec e = exec_of(handle);
    r = e ? sim_stream_find(stream, pt, &s) : CUDA_ERROR_INVALID_VALUE;
    if (!r && s->capture) {
        r = captured(e, s, &waste);
        sim_give();
        if (waste)
            sim_graph_free(waste);
        return r;
    }
    if (!r && s->legacy)
        sim_capture_implicit(s->ctx, &r);
    if (!r)
        r = rehearsed(e);
    struct flight *f = r ? NULL : flight_new(e->program);
    if (!r && !f)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (f) {
        sim_program_hold(e->program);
        r = use_events(f, e->program, 0);
        w = sim_work_new((struct sim_op){run_flight, drop_flight, f, CU_GRAPH_NODE_TYPE_GRAPH, NULL});
        r = w ? r : CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!r) {
        struct sim_task *t;
        sim_work_ref(w);
        r = sim_submit(s, w, &e->last, e->last ? 1 : 0, &t);
        if (!r) {
            sim_program_each(e->program, use_memory, &(struct take_off){t});
            old = e->last;
            e->last = t;
        }
    }
    sim_give();
    sim_work_drop(w);
    sim_task_drop(old);
    return r;
}

static CUresult upload(CUgraphExec handle, CUstream stream, bool pt)
{
    CUcontext ctx;
    CUstream s;
    struct sim_task *old = NULL;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    CUgraphExec e = exec_of(handle);
    r = e ? sim_stream_find(stream, pt, &s) : CUDA_ERROR_INVALID_VALUE;
    if (!r && s->capture)
        r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!r && s->legacy)
        sim_capture_implicit(s->ctx, &r);
    if (!r)
        r = rehearsed(e);
    if (!r) {
        struct sim_task *t;
        r = sim_submit(s, NULL, &e->last, e->last ? 1 : 0, &t);
        if (!r) {
            old = e->last;
            e->last = t;
        }
    }
    sim_give();
    sim_task_drop(old);
    return r;
}

#define GRAPH_ENTRIES(suffix, pt) \
    SIM_API CUresult cuGraphLaunch##suffix(CUgraphExec e, CUstream s) { SIM_ENTRY(); return launch(e, s, pt); } \
    SIM_API CUresult cuGraphUpload##suffix(CUgraphExec e, CUstream s) { SIM_ENTRY(); return upload(e, s, pt); } \
    SIM_API CUresult cuGraphInstantiateWithParams##suffix(CUgraphExec *out, CUgraph g, CUDA_GRAPH_INSTANTIATE_PARAMS *p) \
    { SIM_ENTRY(); return with_params(out, g, p, pt); }
GRAPH_ENTRIES(, false)
GRAPH_ENTRIES(_ptsz, true)
