/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts, primary and created, and what is asked of the current one. Called by applications.
 * Rules: a context object is never freed, only marked dead, so that a thread that still has it current gets
 * CUDA_ERROR_CONTEXT_IS_DESTROYED; destroying one waits for its work and gives back its memory. It is dead before it is
 * waited for: a thread that retains the primary context meanwhile gets a new one, and two that end it end it once.
 */
#include "green.h"

#include <stdlib.h>

static struct CUctx_st *primaries[SIM_MAX_DEVICES];
static struct CUctx_st *dead_ones; /* [sim_lock] */

static CUresult context_new(int device, unsigned flags, unsigned api, CUcontext *out)
{
    CUcontext c = calloc(1, sizeof *c);
    if (!c)
        return CUDA_ERROR_OUT_OF_MEMORY;
    c->device = device;
    c->flags = flags;
    c->api = api;
    c->id = sim_unique();
    c->limits[CU_LIMIT_STACK_SIZE] = 1024;
    c->limits[CU_LIMIT_PRINTF_FIFO_SIZE] = 1 << 20;
    c->limits[CU_LIMIT_MALLOC_HEAP_SIZE] = 8 << 20;
    c->limits[CU_LIMIT_DEV_RUNTIME_SYNC_DEPTH] = 2;
    c->limits[CU_LIMIT_DEV_RUNTIME_PENDING_LAUNCH_COUNT] = 2048;
    c->limits[CU_LIMIT_MAX_L2_FETCH_GRANULARITY] = 64;
    c->legacy = sim_stream_new(c, 0, 0);
    if (!c->legacy || !sim_object_add(SIM_CONTEXT, (uint64_t)(uintptr_t)c, c)) {
        if (c->legacy)
            sim_stream_close(c->legacy);
        free(c);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    c->legacy->legacy = true;
    *out = c;
    return CUDA_SUCCESS;
}

CUcontext sim_ctx_view(CUcontext base, CUgreenCtx green)
{
    CUcontext c = calloc(1, sizeof *c);
    if (c) {
        c->device = base->device;
        c->id = sim_unique();
        c->base = base;
        c->green = green;
    }
    return c;
}

void sim_ctx_view_end(CUcontext view)
{
    view->dead = true;
    view->green = NULL;
    view->buried = dead_ones;
    dead_ones = view;
}

/* [locked] Nobody finds it any more. */
static void context_kill(CUcontext c)
{
    sim_object_drop(SIM_CONTEXT, (uint64_t)(uintptr_t)c);
    if (c->primary)
        sim_green_base_gone(c);
    c->dead = true;
    c->buried = dead_ones;
    dead_ones = c;
}

/* Known ones, and one way of waiting at the most. */
static bool flags_ok(unsigned flags)
{
    return !(flags & ~(unsigned)CU_CTX_FLAGS_MASK) && __builtin_popcount(flags & CU_CTX_SCHED_MASK) <= 1;
}

/* Wait for a killed one's work, give back what it holds. */
static void context_end(CUcontext c)
{
    sim_drain(c);
    sim_take();
    while (c->streams) {
        CUstream s = c->streams;
        sim_capture_forget(s);
        sim_object_drop(SIM_STREAM, (uint64_t)(uintptr_t)s);
        sim_stream_close(s);
    }
    c->legacy = NULL;
    sim_events_forget(c);
    struct sim_task *gate = c->gate;
    c->gate = NULL;
    sim_give();
    sim_task_drop(gate);
    sim_ctx_wipe(c);
    sim_code_context_gone(c);
}

CUresult sim_current(CUcontext *out)
{
    struct sim_thread *t = sim_self();
    if (!t)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUcontext c = t->depth ? t->stack[t->depth - 1] : NULL;
    if (!c)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (c->base) {
        if (c->dead || c->base->dead)
            return CUDA_ERROR_CONTEXT_IS_DESTROYED;
        c = c->base;
    }
    if (c->dead)
        return c->primary ? CUDA_ERROR_INVALID_CONTEXT : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    *out = c;
    return (CUresult)atomic_load(&c->sticky);
}

/* The given context, or the current one for NULL. */
static CUresult context_of(CUcontext given, CUcontext *out)
{
    if (!given)
        return sim_current(out);
    sim_take();
    CUcontext c = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)given);
    sim_give();
    if (!c)
        return CUDA_ERROR_INVALID_CONTEXT;
    *out = c;
    return (CUresult)atomic_load(&c->sticky);
}

/* ---- primary contexts */

SIM_API CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
    SIM_ENTRY();
    if (!pctx)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    CUresult r = CUDA_SUCCESS;
    sim_take();
    CUcontext c = primaries[dev];
    if (!c || c->dead) {
        unsigned flags = c ? c->flags : 0, retained = c ? c->retained : 0;
        r = context_new(dev, flags, 3020, &c);
        if (!r) {
            c->primary = true;
            c->retained = retained;
            primaries[dev] = c;
        }
    }
    if (!r) {
        c->retained++;
        *pctx = c;
    }
    sim_give();
    return r;
}

/* Release (the last one ends the context) or reset, which "does not release it" (cuda.h): whoever retained it still has to. */
static CUresult primary_end(CUdevice dev, bool reset)
{
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    CUcontext c = primaries[dev];
    bool held = c && c->retained;
    bool ends = held && (reset || --c->retained == 0) && !c->dead;
    if (ends)
        context_kill(c);
    sim_give();
    if (!held)
        return reset ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (ends)
        context_end(c);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev)
{
    SIM_ENTRY();
    return primary_end(dev, false);
}

SIM_API CUresult cuDevicePrimaryCtxRelease(CUdevice dev)
{
    SIM_ENTRY();
    return primary_end(dev, false);
}

SIM_API CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev)
{
    SIM_ENTRY();
    return primary_end(dev, true);
}

SIM_API CUresult cuDevicePrimaryCtxReset(CUdevice dev)
{
    SIM_ENTRY();
    return primary_end(dev, true);
}

static CUresult primary_flags(CUdevice dev, unsigned flags)
{
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!flags_ok(flags))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = CUDA_SUCCESS;
    sim_take();
    if (!primaries[dev]) { /* remember the flags in a dead object: the next retain takes them over */
        CUcontext c = calloc(1, sizeof *c);
        if (c) {
            c->dead = c->primary = true;
            c->device = dev;
            c->buried = dead_ones;
            dead_ones = c;
        } else {
            r = CUDA_ERROR_OUT_OF_MEMORY;
        }
        primaries[dev] = c;
    }
    if (!r)
        primaries[dev]->flags = flags;
    sim_give();
    return r;
}

SIM_API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags)
{
    SIM_ENTRY();
    return primary_flags(dev, flags);
}

SIM_API CUresult cuDevicePrimaryCtxSetFlags(CUdevice dev, unsigned int flags)
{
    SIM_ENTRY();
    return primary_flags(dev, flags);
}

SIM_API CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active)
{
    SIM_ENTRY();
    if (!flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    CUcontext c = primaries[dev];
    *flags = c ? c->flags : 0;
    *active = c && !c->dead;
    sim_give();
    return CUDA_SUCCESS;
}

/* ---- created contexts and the stack */

static CUresult create(CUcontext *pctx, unsigned flags, CUdevice dev, unsigned api)
{
    struct sim_thread *t = sim_self();
    if (!pctx || !flags_ok(flags) || !t || t->depth == sizeof t->stack / sizeof *t->stack)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    CUresult r = context_new(dev, flags, api, pctx);
    sim_give();
    if (!r)
        t->stack[t->depth++] = *pctx;
    return r;
}

SIM_API CUresult cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev)
{
    SIM_ENTRY();
    return create(pctx, flags, dev, 3020);
}

/* A share of the multiprocessors is MPS' to give (cuda.h, cuCtxCreate_v3), and this machine has no MPS. */
static CUresult affinity(const CUexecAffinityParam *params, int count)
{
    if (count < 0 || !params != !count)
        return CUDA_ERROR_INVALID_VALUE;
    for (int i = 0; i < count; i++)
        if (params[i].type != CU_EXEC_AFFINITY_TYPE_SM_COUNT || !params[i].param.smCount.val)
            return CUDA_ERROR_INVALID_VALUE;
    return count ? CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY : CUDA_SUCCESS;
}

SIM_API CUresult cuDeviceGetExecAffinitySupport(int *pi, CUexecAffinityType type, CUdevice dev)
{
    SIM_ENTRY();
    if (!pi || type != CU_EXEC_AFFINITY_TYPE_SM_COUNT)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    *pi = 0;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuCtxGetExecAffinity(CUexecAffinityParam *pExecAffinity, CUexecAffinityType type)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && (!pExecAffinity || type != CU_EXEC_AFFINITY_TYPE_SM_COUNT))
        r = CUDA_ERROR_INVALID_VALUE;
    return r ? r : CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY;
}

SIM_API CUresult cuCtxCreate_v3(CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags, CUdevice dev)
{
    SIM_ENTRY();
    CUresult r = affinity(paramsArray, numParams);
    return r ? r : create(pctx, flags, dev, 3020);
}

SIM_API CUresult cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags, CUdevice dev)
{
    SIM_ENTRY();
    CUctxCreateParams none = {0}, *p = ctxCreateParams ? ctxCreateParams : &none;
    if (p->cigParams) /* CU_DEVICE_ATTRIBUTE_D3D12_CIG_SUPPORTED and its like are 0 */
        return p->execAffinityParams || p->numExecAffinityParams ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
    CUresult r = affinity(p->execAffinityParams, p->numExecAffinityParams);
    return r ? r : create(pctx, flags, dev, 3020);
}

static CUresult destroy(CUcontext ctx)
{
    sim_take();
    CUcontext c = ctx ? sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)ctx) : NULL;
    bool mine = c && !c->primary;
    if (mine)
        context_kill(c);
    sim_give();
    if (!mine)
        return CUDA_ERROR_INVALID_CONTEXT;
    struct sim_thread *t = sim_self();
    context_end(c);
    if (t && t->depth && t->stack[t->depth - 1] == c)
        t->depth--;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuCtxDestroy_v2(CUcontext ctx)
{
    SIM_ENTRY();
    return destroy(ctx);
}

SIM_API CUresult cuCtxDestroy(CUcontext ctx)
{
    SIM_ENTRY();
    return destroy(ctx);
}

static bool live(CUcontext ctx)
{
    sim_take();
    bool ok = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)ctx) != NULL;
    sim_give();
    return ok;
}

static CUresult push(CUcontext ctx)
{
    struct sim_thread *t = sim_self();
    if (!ctx || !live(ctx))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!t || t->depth == sizeof t->stack / sizeof *t->stack)
        return CUDA_ERROR_INVALID_VALUE;
    t->stack[t->depth++] = ctx;
    return CUDA_SUCCESS;
}

static CUresult pop(CUcontext *pctx)
{
    struct sim_thread *t = sim_self();
    if (!t || !t->depth || !t->stack[t->depth - 1])
        return CUDA_ERROR_INVALID_CONTEXT;
    CUcontext c = t->stack[--t->depth];
    if (pctx)
        *pctx = c;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuCtxPushCurrent_v2(CUcontext ctx)
{
    SIM_ENTRY();
    return push(ctx);
}

SIM_API CUresult cuCtxPushCurrent(CUcontext ctx)
{
    SIM_ENTRY();
    return push(ctx);
}

SIM_API CUresult cuCtxPopCurrent_v2(CUcontext *pctx)
{
    SIM_ENTRY();
    return pop(pctx);
}

SIM_API CUresult cuCtxPopCurrent(CUcontext *pctx)
{
    SIM_ENTRY();
    return pop(pctx);
}

SIM_API CUresult cuCtxSetCurrent(CUcontext ctx)
{
    SIM_ENTRY();
    struct sim_thread *t = sim_self();
    if (!t)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!ctx) { /* pops, when there is something to pop (cuda.h, cuCtxSetCurrent) */
        if (t->depth)
            t->depth--;
        return CUDA_SUCCESS;
    }
    if (!live(ctx))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!t->depth)
        t->depth = 1;
    t->stack[t->depth - 1] = ctx;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuCtxGetCurrent(CUcontext *pctx)
{
    SIM_ENTRY();
    struct sim_thread *t = sim_self();
    if (!pctx || !t)
        return CUDA_ERROR_INVALID_VALUE;
    *pctx = t->depth ? t->stack[t->depth - 1] : NULL;
    return CUDA_SUCCESS;
}

/* ---- queries */

SIM_API CUresult cuCtxGetDevice(CUdevice *device)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && !device)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *device = c->device;
    return r;
}

SIM_API CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext ctx)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = context_of(ctx, &c);
    if (!r && !device)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *device = c->device;
    return r;
}

SIM_API CUresult cuCtxGetApiVersion(CUcontext ctx, unsigned int *version)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = context_of(ctx, &c);
    if (!r && !version)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *version = c->api;
    return r;
}

SIM_API CUresult cuCtxGetId(CUcontext ctx, unsigned long long *ctxId)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = context_of(ctx, &c);
    if (!r && !ctxId)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *ctxId = c->id;
    return r;
}

SIM_API CUresult cuCtxGetFlags(unsigned int *flags)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && !flags)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *flags = c->flags;
    return r;
}

SIM_API CUresult cuCtxSetFlags(unsigned int flags)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && !flags_ok(flags))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        c->flags = flags;
    return r;
}

SIM_API CUresult cuCtxGetLimit(size_t *pvalue, CUlimit limit)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && !pvalue)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r && (unsigned)limit >= CU_LIMIT_MAX)
        r = CUDA_ERROR_UNSUPPORTED_LIMIT;
    if (!r)
        *pvalue = c->limits[limit];
    return r;
}

SIM_API CUresult cuCtxSetLimit(CUlimit limit, size_t value)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && (unsigned)limit >= CU_LIMIT_MAX)
        r = CUDA_ERROR_UNSUPPORTED_LIMIT;
    if (!r)
        c->limits[limit] = value;
    return r;
}

SIM_API CUresult cuCtxGetCacheConfig(CUfunc_cache *pconfig)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && !pconfig)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *pconfig = (CUfunc_cache)c->cache;
    return r;
}

SIM_API CUresult cuCtxSetCacheConfig(CUfunc_cache config)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && (unsigned)config > CU_FUNC_CACHE_PREFER_EQUAL)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        c->cache = (int)config;
    return r;
}

SIM_API CUresult cuCtxGetSharedMemConfig(CUsharedconfig *pConfig)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && !pConfig)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        *pConfig = (CUsharedconfig)c->banks;
    return r;
}

SIM_API CUresult cuCtxSetSharedMemConfig(CUsharedconfig config)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && (unsigned)config > CU_SHARED_MEM_CONFIG_EIGHT_BYTE_BANK_SIZE)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        c->banks = (int)config;
    return r;
}

SIM_API CUresult cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    if (!r && leastPriority)
        *leastPriority = 0;
    if (!r && greatestPriority)
        *greatestPriority = SIM_GREATEST_PRIORITY;
    return r;
}

SIM_API CUresult cuCtxResetPersistingL2Cache(void)
{
    SIM_ENTRY();
    CUcontext c;
    return sim_current(&c);
}

/* ---- waiting */

static CUresult synchronize(CUcontext c)
{
    sim_take();
    CUresult r = sim_capture_sync(c);
    sim_give();
    if (r)
        return r;
    sim_drain(c);
    sim_pools_sync(c->device);
    return (CUresult)atomic_load(&c->sticky);
}

SIM_API CUresult cuCtxSynchronize(void)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = sim_current(&c);
    return r ? r : synchronize(c);
}

SIM_API CUresult cuCtxSynchronize_v2(CUcontext ctx)
{
    SIM_ENTRY();
    CUcontext c;
    CUresult r = context_of(ctx, &c);
    return r ? r : synchronize(c);
}
