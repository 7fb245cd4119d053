/* SPDX-License-Identifier: Apache-2.0 */
/* Events: record, query, wait, elapsed simulated time. Called by applications.
 * Rules: an event holds the task it was recorded as, so it outlives its stream; one recorded in a capturing stream
 * marks graph nodes instead and cannot be asked or waited for by the host.
 */
#include "graph.h"
#include "green.h"
#include "ipc.h"

#include <stdlib.h>
#include <string.h>

struct CUevent_st {
    CUcontext ctx;
    unsigned flags;
    struct sim_task *task; /* NULL: never recorded */
    uint64_t capture;      /* id of the capture it was recorded in, 0: none */
    CUgraphNode *nodes;
    unsigned count;
    struct sim_shared_event *shared; /* CU_EVENT_INTERPROCESS: what other processes see of it */
    unsigned number; /* of `task` among the recordings of all processes */
};

static CUevent event_of(CUevent handle)
{
    return sim_object(SIM_EVENT, (uint64_t)(uintptr_t)handle);
}

/* Of the current context. Takes over `shared`. */
static CUresult event_new(unsigned flags, struct sim_shared_event *shared, CUevent *out)
{
    CUcontext ctx;
    CUevent e = calloc(1, sizeof *e);
    CUresult r = e ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    if (!r)
        r = sim_current(&ctx); /* another thread may have ended it meanwhile */
    if (!r) {
        e->ctx = ctx;
        e->flags = flags;
        e->shared = shared;
        if (sim_object_add(SIM_EVENT, (uint64_t)(uintptr_t)e, e))
            *out = e;
        else
            r = CUDA_ERROR_OUT_OF_MEMORY;
    }
    sim_give();
    if (r) {
        sim_shared_event_drop(shared);
        free(e);
    }
    return r;
}

CUresult sim_event_import(struct sim_shared_event *shared, CUevent *out)
{
    return event_new(CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS, shared, out);
}

CUresult sim_event_export(CUevent handle, struct sim_shared_event **out, int *device)
{
    CUevent e = event_of(handle);
    if (!e || !e->shared)
        return CUDA_ERROR_INVALID_HANDLE;
    *out = e->shared;
    *device = e->ctx->device;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    const unsigned known = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
    if (!phEvent || Flags & ~known || ((Flags & CU_EVENT_INTERPROCESS) && !(Flags & CU_EVENT_DISABLE_TIMING)))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_shared_event *shared = NULL;
    if ((Flags & CU_EVENT_INTERPROCESS) && !(shared = sim_shared_event_new()))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return event_new(Flags, shared, phEvent);
}

/* [locked] */
static void forget(CUevent e)
{
    sim_object_drop(SIM_EVENT, (uint64_t)(uintptr_t)e);
    sim_task_drop(e->task);
    sim_shared_event_drop(e->shared);
    free(e->nodes);
    free(e);
}

static CUresult destroy(CUevent handle)
{
    sim_take();
    CUevent e = event_of(handle);
    CUresult r = e ? (CUresult)atomic_load(&e->ctx->sticky) : CUDA_ERROR_INVALID_HANDLE; /* said, though the event goes */
    if (e)
        forget(e);
    sim_give();
    return r;
}

static void forget_of(void *object, void *ctx)
{
    CUevent e = object;
    if (e->ctx == ctx)
        forget(e);
}

void sim_events_forget(CUcontext ctx)
{
    sim_object_each(SIM_EVENT, forget_of, ctx);
}

SIM_API CUresult cuEventDestroy_v2(CUevent hEvent)
{
    SIM_ENTRY();
    return destroy(hEvent);
}

SIM_API CUresult cuEventDestroy(CUevent hEvent)
{
    SIM_ENTRY();
    return destroy(hEvent);
}

/* [locked] Remember what a capturing stream has reached. */
static CUresult record_captured(CUevent e, CUstream s)
{
    if (s->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    CUgraphNode *nodes = malloc((s->tip_count + 1) * sizeof *nodes);
    if (!nodes)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (s->tip_count)
        memcpy(nodes, s->tips, s->tip_count * sizeof *nodes);
    free(e->nodes);
    e->nodes = nodes;
    e->count = s->tip_count;
    e->capture = s->capture->id;
    return CUDA_SUCCESS;
}

CUresult sim_event_find(CUevent handle, CUcontext *ctx)
{
    CUevent e = event_of(handle);
    if (!e)
        return CUDA_ERROR_INVALID_HANDLE;
    *ctx = e->ctx;
    return e->shared ? CUDA_ERROR_NOT_SUPPORTED : CUDA_SUCCESS;
}

struct sim_task *sim_event_task(CUevent handle)
{
    CUevent e = event_of(handle);
    if (!e || !e->task || e->capture)
        return NULL;
    atomic_fetch_add(&e->task->refs, 1);
    return e->task;
}

struct sim_task *sim_event_promise(CUevent handle)
{
    CUevent e = event_of(handle);
    struct sim_task *t = e ? sim_promise_new() : NULL;
    if (!t)
        return NULL;
    sim_task_drop(e->task);
    e->task = t;
    e->capture = 0;
    atomic_fetch_add(&t->refs, 1);
    return t;
}

/* [locked] Was it last recorded by another process? Then what it holds here says nothing. */
static bool foreign(CUevent e)
{
    return e->shared && !e->capture && sim_shared_event_newest(e->shared) != e->number;
}

/* [locked] What a recording submits: nothing but its place in the stream, unless other processes are to be told. */
static CUresult recording(CUevent e, struct sim_work **work, unsigned *number)
{
    *work = NULL;
    if (!e->shared)
        return CUDA_SUCCESS;
    *number = sim_shared_event_record(e->shared);
    return (*work = sim_shared_event_signal(e->shared, *number)) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* [locked] CU_EVENT_RECORD_EXTERNAL and CU_EVENT_WAIT_EXTERNAL: a node that acts on the event itself. */
static CUresult capture_external(CUstream s, CUevent e, CUgraphNodeType kind)
{
    if (e->shared)
        return CUDA_ERROR_NOT_SUPPORTED;
    return s->capture ? sim_capture_add(s, (struct sim_act){.kind = kind, .ctx = e->ctx, .event = e}, NULL) : CUDA_ERROR_INVALID_VALUE;
}

static CUresult record(CUevent handle, CUstream stream, bool pt, unsigned flags)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (flags & ~(unsigned)CU_EVENT_RECORD_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_task *fresh = NULL;
    sim_take();
    CUevent e = event_of(handle);
    r = e ? sim_stream_find(stream, pt, &s) : CUDA_ERROR_INVALID_HANDLE;
    if (!r && e->ctx != s->ctx)
        r = CUDA_ERROR_INVALID_HANDLE;
    if (!r && flags) {
        r = capture_external(s, e, CU_GRAPH_NODE_TYPE_EVENT_RECORD);
    } else if (!r && s->capture) {
        r = record_captured(e, s);
    } else if (!r) {
        if (s->legacy)
            sim_capture_implicit(s->ctx, &r);
        struct sim_work *work;
        unsigned number = 0;
        if (!r)
            r = recording(e, &work, &number);
        if (!r)
            r = sim_submit(s, work, NULL, 0, &fresh);
        if (!r) {
            struct sim_task *old = e->task;
            e->task = fresh;
            e->number = number;
            e->capture = 0;
            fresh = old;
        }
    }
    sim_give();
    sim_task_drop(fresh);
    return r;
}

/* [locked] On a stream of its own, so that nothing submitted later waits for it: a task behind everything of the context
 * (after NULL), or behind these. */
static CUresult apart(CUcontext c, struct sim_task *const *after, unsigned count, struct sim_task **out)
{
    CUstream s = sim_stream_new(c, CU_STREAM_NON_BLOCKING, 0);
    if (!s)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = after ? sim_submit(s, NULL, after, count, out) : sim_submit_fence(c, s, out);
    sim_stream_close(s);
    return r;
}

SIM_API CUresult cuCtxRecordEvent(CUcontext hCtx, CUevent hEvent)
{
    SIM_ENTRY();
    struct sim_task *fresh = NULL;
    sim_take();
    CUcontext c = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)hCtx);
    CUevent e = event_of(hEvent);
    CUresult r = !c ? CUDA_ERROR_INVALID_CONTEXT : !e || e->ctx != c ? CUDA_ERROR_INVALID_HANDLE : (CUresult)atomic_load(&c->sticky);
    if (!r && e->shared)
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r)
        r = sim_capture_sync(c);
    if (!r)
        r = apart(c, NULL, 0, &fresh);
    if (!r) {
        struct sim_task *old = e->task;
        e->task = fresh;
        e->capture = 0;
        fresh = old;
    }
    sim_give();
    sim_task_drop(fresh);
    return r;
}

/* [locked] The newest tasks of its streams, as references; NULL: out of memory. */
static struct sim_task **newest_of(CUgreenCtx g, unsigned *count)
{
    unsigned n = 0;
    for (CUstream s = g->base->streams; s; s = s->next)
        n += s->green == g;
    struct sim_task **list = malloc((n + 1) * sizeof *list);
    *count = 0;
    for (CUstream s = g->base->streams; list && s; s = s->next)
        if (s->green == g && (list[*count] = sim_stream_last(s)))
            ++*count;
    return list;
}

SIM_API CUresult cuGreenCtxRecordEvent(CUgreenCtx hCtx, CUevent hEvent)
{
    SIM_ENTRY();
    struct sim_task *fresh = NULL, **tasks = NULL;
    unsigned count = 0;
    sim_take();
    CUgreenCtx g = sim_green_of(hCtx);
    CUevent e = event_of(hEvent);
    CUresult r = !g ? CUDA_ERROR_INVALID_CONTEXT : !e || e->ctx != g->base ? CUDA_ERROR_INVALID_HANDLE : (CUresult)atomic_load(&g->base->sticky);
    if (!r && e->shared)
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r)
        r = sim_green_capture(g);
    if (!r && !(tasks = newest_of(g, &count)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r)
        r = apart(g->base, tasks, count, &fresh);
    if (!r) {
        struct sim_task *old = e->task;
        e->task = fresh;
        e->capture = 0;
        fresh = old;
    }
    sim_give();
    sim_task_drop(fresh);
    while (count)
        sim_task_drop(tasks[--count]);
    free(tasks);
    return r;
}

SIM_API CUresult cuGreenCtxWaitEvent(CUgreenCtx hCtx, CUevent hEvent)
{
    SIM_ENTRY();
    struct sim_task *gate = NULL, *old = NULL;
    sim_take();
    CUgreenCtx g = sim_green_of(hCtx);
    CUevent e = event_of(hEvent);
    CUresult r = !g ? CUDA_ERROR_INVALID_CONTEXT : !e ? CUDA_ERROR_INVALID_HANDLE : (CUresult)atomic_load(&g->base->sticky);
    if (!r && e->shared)
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r)
        r = sim_green_capture(g);
    struct sim_capture *of = e && e->capture ? sim_capture_by_id(e->capture) : NULL;
    if (!r && of) {
        of->invalid = true;
        r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (!r && e->task && !e->capture) {
        struct sim_task *const both[] = {e->task, g->gate};
        sim_host_reach(e->task->submit_ns);
        r = apart(g->base, both, g->gate ? 2 : 1, &gate);
        for (CUstream s = g->base->streams; s && !r; s = s->next)
            if (s->green == g)
                r = sim_submit(s, NULL, &gate, 1, NULL);
        if (gate) {
            old = g->gate;
            g->gate = gate;
        }
    }
    sim_give();
    sim_task_drop(old);
    return r;
}

SIM_API CUresult cuCtxWaitEvent(CUcontext hCtx, CUevent hEvent)
{
    SIM_ENTRY();
    struct sim_task *gate = NULL, *old = NULL;
    sim_take();
    CUcontext c = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)hCtx);
    CUevent e = event_of(hEvent);
    CUresult r = !c ? CUDA_ERROR_INVALID_CONTEXT : !e ? CUDA_ERROR_INVALID_HANDLE : (CUresult)atomic_load(&c->sticky);
    if (!r && e->shared)
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r)
        r = sim_capture_sync(c);
    struct sim_capture *of = e && e->capture ? sim_capture_by_id(e->capture) : NULL;
    if (!r && of) { /* an event that marks a place in a capture */
        of->invalid = true;
        r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (!r && e->task && !e->capture) {
        struct sim_task *const both[] = {e->task, c->gate};
        sim_host_reach(e->task->submit_ns);
        r = apart(c, both, c->gate ? 2 : 1, &gate);
        for (CUstream s = c->streams; s && !r; s = s->next)
            r = sim_submit(s, NULL, &gate, 1, NULL);
        if (gate) {
            old = c->gate;
            c->gate = gate;
        }
    }
    sim_give();
    sim_task_drop(old);
    return r;
}

/* [locked] Its task as a reference (NULL: nothing to wait for), or why the host may not ask. */
static CUresult task_of(CUevent handle, struct sim_task **out)
{
    CUevent e = event_of(handle);
    *out = NULL;
    if (!e)
        return CUDA_ERROR_INVALID_HANDLE;
    if (e->capture) {
        struct sim_capture *c = sim_capture_by_id(e->capture);
        if (c)
            c->invalid = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (e->task) {
        *out = e->task;
        atomic_fetch_add(&e->task->refs, 1);
    }
    return CUDA_SUCCESS;
}

SIM_API CUresult cuEventQuery(CUevent hEvent)
{
    SIM_ENTRY();
    struct sim_task *t = NULL;
    sim_take();
    CUresult r = task_of(hEvent, &t);
    if (!r)
        r = sim_capture_unsafe_event();
    if (!r) /* a context that has failed says so first: what it had queued will never be done */
        r = (CUresult)atomic_load(&event_of(hEvent)->ctx->sticky);
    bool away = !r && foreign(event_of(hEvent));
    if (away && !sim_shared_event_reached(event_of(hEvent)->shared))
        r = CUDA_ERROR_NOT_READY;
    sim_give();
    if (!r && !away && t && !sim_task_seen(t))
        r = CUDA_ERROR_NOT_READY;
    sim_task_drop(t);
    return r;
}

SIM_API CUresult cuEventSynchronize(CUevent hEvent)
{
    SIM_ENTRY();
    struct sim_task *t = NULL;
    sim_take();
    CUresult r = task_of(hEvent, &t);
    CUevent e = event_of(hEvent);
    CUcontext ctx = e ? e->ctx : NULL;
    if (!r)
        r = sim_capture_unsafe_event();
    struct sim_shared_event *shared = !r && foreign(e) ? e->shared : NULL;
    sim_shared_event_hold(shared);
    sim_give();
    if (r) {
        sim_task_drop(t);
        return r;
    }
    if (shared) {
        sim_shared_event_wait(shared);
        sim_shared_event_drop(shared);
        sim_task_drop(t);
    } else if (t) {
        sim_task_wait(t);
        sim_task_drop(t);
        sim_pools_sync(ctx->device);
    }
    return (CUresult)atomic_load(&ctx->sticky);
}

static CUresult elapsed(float *ms, CUevent start, CUevent end)
{
    if (!ms)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_task *a = NULL, *b = NULL;
    sim_take();
    CUevent ea = event_of(start), eb = event_of(end);
    CUresult r = !ea || !eb ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
    if (!r && ((ea->flags | eb->flags) & CU_EVENT_DISABLE_TIMING))
        r = CUDA_ERROR_INVALID_HANDLE;
    if (!r)
        r = (CUresult)atomic_load(&ea->ctx->sticky);
    if (!r)
        r = task_of(start, &a);
    if (!r)
        r = task_of(end, &b);
    sim_give();
    if (!r && (!a || !b))
        r = CUDA_ERROR_INVALID_HANDLE;
    if (!r && (!atomic_load(&a->done) || !atomic_load(&b->done)))
        r = CUDA_ERROR_NOT_READY;
    if (!r)
        *ms = (float)((double)(int64_t)(b->end_ns - a->end_ns) / 1e6);
    sim_task_drop(a);
    sim_task_drop(b);
    return r;
}

SIM_API CUresult cuEventElapsedTime(float *pMilliseconds, CUevent hStart, CUevent hEnd)
{
    SIM_ENTRY();
    return elapsed(pMilliseconds, hStart, hEnd);
}

SIM_API CUresult cuEventElapsedTime_v2(float *pMilliseconds, CUevent hStart, CUevent hEnd)
{
    SIM_ENTRY();
    return elapsed(pMilliseconds, hStart, hEnd);
}

/* [locked] A wait that touches a capture on either side. */
static CUresult wait_captured(CUstream s, CUevent e)
{
    struct sim_capture *from = e->capture ? sim_capture_by_id(e->capture) : NULL;
    struct sim_capture *to = s->capture;
    if (to && to->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!from) { /* the stream captures, the event is of earlier work */
        if (!e->task && !e->capture)
            return CUDA_SUCCESS;
        to->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (to && to != from) {
        to->invalid = from->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (s->legacy) {
        from->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    if (!to && s->ctx != from->origin->ctx)
        return CUDA_ERROR_NOT_SUPPORTED; /* captures over several contexts: not simulated */
    if (!(to ? sim_tips_add : sim_tips_set)(s, e->nodes, NULL, e->count))
        return CUDA_ERROR_OUT_OF_MEMORY;
    s->capture = from;
    return CUDA_SUCCESS;
}

static CUresult wait(CUstream stream, bool pt, CUevent handle, unsigned flags)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (flags & ~(unsigned)CU_EVENT_WAIT_EXTERNAL)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUevent e = event_of(handle);
    r = e ? sim_stream_find(stream, pt, &s) : CUDA_ERROR_INVALID_HANDLE;
    if (!r && flags) {
        r = capture_external(s, e, CU_GRAPH_NODE_TYPE_WAIT_EVENT);
    } else if (!r && (s->capture || (e->capture && sim_capture_by_id(e->capture)))) {
        r = wait_captured(s, e);
    } else if (!r && foreign(e)) {
        struct sim_work *work = sim_shared_event_waiter(e->shared);
        r = work ? sim_submit(s, work, NULL, 0, NULL) : CUDA_ERROR_OUT_OF_MEMORY;
    } else if (!r && e->task && !e->capture) {
        if (s->legacy)
            sim_capture_implicit(s->ctx, &r);
        sim_host_reach(e->task->submit_ns); /* whoever recorded it did so before this call */
        if (!r)
            r = sim_submit(s, NULL, &e->task, 1, NULL);
    }
    sim_give();
    return r;
}

#define EVENT_ENTRIES(suffix, pt) \
    SIM_API CUresult cuEventRecord##suffix(CUevent e, CUstream s) { SIM_ENTRY(); return record(e, s, pt, 0); } \
    SIM_API CUresult cuEventRecordWithFlags##suffix(CUevent e, CUstream s, unsigned int flags) \
    { SIM_ENTRY(); return record(e, s, pt, flags); } \
    SIM_API CUresult cuStreamWaitEvent##suffix(CUstream s, CUevent e, unsigned int flags) \
    { SIM_ENTRY(); return wait(s, pt, e, flags); }
EVENT_ENTRIES(, false)
EVENT_ENTRIES(_ptsz, true)
