/* SPDX-License-Identifier: Apache-2.0 */
/* Streams: creation, default streams, waiting, host functions. Called by applications; sim_stream_find by all
 * stream-ordered entries. Rules: default streams and their order are the engine's business (sched.c).
 */
#include "graph.h"
#include "green.h"

#include <stdlib.h>

static CUresult own_stream(CUcontext ctx, CUstream *out)
{
    struct sim_thread *t = sim_self();
    if (!t)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < t->owned; i++)
        if (t->own[i].ctx == ctx) {
            *out = t->own[i].stream;
            return CUDA_SUCCESS;
        }
    void *grown = realloc(t->own, (t->owned + 1) * sizeof *t->own);
    if (!grown)
        return CUDA_ERROR_OUT_OF_MEMORY;
    t->own = grown;
    CUstream s = sim_stream_new(ctx, 0, 0);
    if (!s)
        return CUDA_ERROR_OUT_OF_MEMORY;
    s->per_thread = true;
    t->own[t->owned].ctx = ctx;
    t->own[t->owned++].stream = s;
    *out = s;
    return CUDA_SUCCESS;
}

CUresult sim_stream_find(CUstream handle, bool ptsz, CUstream *out)
{
    if (handle && handle != CU_STREAM_LEGACY && handle != CU_STREAM_PER_THREAD) {
        *out = sim_object(SIM_STREAM, (uint64_t)(uintptr_t)handle);
        if (*out && (*out)->ctx->dead) /* its end waits for what was queued before, not for more */
            return CUDA_ERROR_CONTEXT_IS_DESTROYED;
        return !*out ? CUDA_ERROR_INVALID_HANDLE : (*out)->detached ? CUDA_ERROR_STREAM_DETACHED : CUDA_SUCCESS;
    }
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (handle == CU_STREAM_PER_THREAD || (!handle && ptsz))
        return own_stream(ctx, out);
    *out = ctx->legacy;
    return CUDA_SUCCESS;
}

int sim_priority(int asked)
{
    return asked > 0 ? 0 : asked < SIM_GREATEST_PRIORITY ? SIM_GREATEST_PRIORITY : asked;
}

static CUresult create(CUstream *out, unsigned flags, int priority)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!out || (flags & ~(unsigned)CU_STREAM_NON_BLOCKING))
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    r = sim_current(&ctx); /* again: another thread may be ending the context, and has closed its streams */
    CUstream s = r ? NULL : sim_stream_new(ctx, flags, sim_priority(priority));
    if (s && !sim_object_add(SIM_STREAM, (uint64_t)(uintptr_t)s, s)) {
        sim_stream_close(s);
        s = NULL;
    }
    if (s && sim_green_join(sim_green_current(), s)) {
        sim_object_drop(SIM_STREAM, (uint64_t)(uintptr_t)s);
        sim_stream_close(s);
        s = NULL;
    }
    if (s)
        *out = s;
    sim_give();
    return r ? r : s ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_API CUresult cuStreamCreate(CUstream *phStream, unsigned int Flags)
{
    SIM_ENTRY();
    return create(phStream, Flags, 0);
}

SIM_API CUresult cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority)
{
    SIM_ENTRY();
    return create(phStream, flags, priority);
}

static CUresult destroy(CUstream handle)
{
    sim_take();
    CUstream s = sim_object(SIM_STREAM, (uint64_t)(uintptr_t)handle);
    CUresult r = s ? (CUresult)atomic_load(&s->ctx->sticky) : CUDA_ERROR_INVALID_HANDLE; /* said, though the stream goes */
    if (s) {
        sim_capture_forget(s);
        sim_object_drop(SIM_STREAM, (uint64_t)(uintptr_t)s);
        sim_stream_retire(s); /* its work still runs */
    }
    sim_give();
    return r;
}

SIM_API CUresult cuStreamDestroy_v2(CUstream hStream)
{
    SIM_ENTRY();
    return destroy(hStream);
}

SIM_API CUresult cuStreamDestroy(CUstream hStream)
{
    SIM_ENTRY();
    return destroy(hStream);
}

static CUresult query(CUstream handle, bool pt)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    struct sim_task *t = NULL;
    r = sim_stream_find(handle, pt, &s);
    if (!r)
        r = sim_capture_stream_sync(s);
    if (!r && s->legacy) /* asks for the blocking streams too */
        r = sim_submit(s, NULL, NULL, 0, &t);
    else if (!r)
        t = sim_stream_last(s);
    sim_give();
    if (!r && t && !sim_task_seen(t))
        r = CUDA_ERROR_NOT_READY;
    sim_task_drop(t);
    return r ? r : (CUresult)atomic_load(&ctx->sticky);
}

static CUresult synchronize(CUstream handle, bool pt)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    struct sim_task *t = NULL;
    r = sim_stream_find(handle, pt, &s);
    if (!r)
        r = sim_capture_stream_sync(s);
    bool whole = !r && s->legacy;
    if (whole)
        r = sim_submit(s, NULL, NULL, 0, &t);
    else if (!r)
        t = sim_stream_last(s);
    sim_give();
    if (r)
        return r;
    if (t)
        sim_task_wait(t);
    sim_task_drop(t);
    if (whole) {
        sim_take();
        sim_saw_blocking(ctx);
        sim_give();
    }
    sim_pools_sync(ctx->device);
    return (CUresult)atomic_load(&ctx->sticky);
}

struct callback {
    CUstreamCallback fn;
    CUcontext ctx;
    CUstream stream;
    void *data;
};

static void call_back(void *arg)
{
    const struct callback *c = arg;
    c->fn(c->stream, (CUresult)atomic_load(&c->ctx->sticky), c->data);
}

static CUresult run_callback(void *arg)
{
    sim_call_back(call_back, arg);
    return CUDA_SUCCESS;
}

static CUresult add_callback(CUstream s, bool pt, CUstreamCallback fn, void *data, unsigned flags)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!fn || flags)
        return CUDA_ERROR_INVALID_VALUE;
    struct callback *c = malloc(sizeof *c);
    if (!c)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *c = (struct callback){fn, ctx, s, data};
    return sim_enqueue(s, pt, (struct sim_op){run_callback, free, c, SIM_OP_CALLBACK, NULL});
}

static CUresult host(CUstream s, bool pt, CUhostFn fn, void *data, unsigned mode)
{
    struct sim_op op;
    if (mode > CU_HOST_TASK_SPINWAIT)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_host_op(&(CUDA_HOST_NODE_PARAMS){.fn = fn, .userData = data}, &op);
    return r ? r : sim_enqueue(s, pt, op);
}

struct property {
    int priority;
    unsigned flags;
    unsigned long long id;
    CUcontext ctx, shown; /* shown: what stands for a green context */
    CUgreenCtx green;
};

static CUresult property_of(CUstream handle, bool pt, struct property *out)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    CUgreenCtx g = r ? NULL : s->legacy || s->per_thread ? sim_green_current() : s->green;
    if (!r && g && s->per_thread)
        r = CUDA_ERROR_INVALID_HANDLE; /* cuda.h, cuStreamGetCtx_v2 */
    if (!r)
        *out = (struct property){s->priority, s->flags, s->id, s->ctx, g ? g->view : s->ctx, g};
    sim_give();
    return r;
}

static CUresult get_ctx(CUstream s, bool pt, CUcontext *ctx, CUgreenCtx *green)
{
    struct property p;
    CUresult r = ctx ? property_of(s, pt, &p) : CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *ctx = p.ctx;
    if (!r && green)
        *green = p.green;
    return r;
}

#define ASK(suffix, pt, entry, type, expression) \
    SIM_API CUresult entry##suffix(CUstream s, type *out) \
    { \
        SIM_ENTRY(); \
        struct property p; \
        CUresult r = out ? property_of(s, pt, &p) : CUDA_ERROR_INVALID_VALUE; \
        if (!r) \
            *out = expression; \
        return r; \
    }

#define STREAM_ENTRIES(suffix, pt) \
    ASK(suffix, pt, cuStreamGetPriority, int, p.priority) \
    ASK(suffix, pt, cuStreamGetFlags, unsigned int, p.flags) \
    ASK(suffix, pt, cuStreamGetId, unsigned long long, p.id) \
    ASK(suffix, pt, cuStreamGetCtx, CUcontext, p.shown) \
    ASK(suffix, pt, cuStreamGetDevice, CUdevice, p.ctx->device) \
    SIM_API CUresult cuStreamQuery##suffix(CUstream s) { SIM_ENTRY(); return query(s, pt); } \
    SIM_API CUresult cuStreamSynchronize##suffix(CUstream s) { SIM_ENTRY(); return synchronize(s, pt); } \
    SIM_API CUresult cuStreamGetCtx_v2##suffix(CUstream s, CUcontext *ctx, CUgreenCtx *green) \
    { SIM_ENTRY(); return get_ctx(s, pt, ctx, green); } \
    SIM_API CUresult cuLaunchHostFunc##suffix(CUstream s, CUhostFn fn, void *data) \
    { SIM_ENTRY(); return host(s, pt, fn, data, CU_HOST_TASK_BLOCKING); } \
    SIM_API CUresult cuLaunchHostFunc_v2##suffix(CUstream s, CUhostFn fn, void *data, unsigned int mode) \
    { SIM_ENTRY(); return host(s, pt, fn, data, mode); } \
    SIM_API CUresult cuStreamAddCallback##suffix(CUstream s, CUstreamCallback fn, void *data, unsigned int flags) \
    { SIM_ENTRY(); return add_callback(s, pt, fn, data, flags); }
STREAM_ENTRIES(, false)
STREAM_ENTRIES(_ptsz, true)
