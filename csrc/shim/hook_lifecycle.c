/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of synchronisation (where the GPU has just been waited for, limbo is swept and placement is mended), of capture (counted:
 * nothing is asked of the driver then) and of contexts: who moves memory must know all of them, and their regions end with them.
 * Rules: the driver's call first, ours after it; a primary context is never retained by us. */
#include "shim/config.h"
#include "shim/hook.h"
#include "tiering/moving.h"

static CUcontext primary[SPILL_MAX_DEVICES];

/* As the program retained it, or NULL. */
static CUcontext primary_context(int device)
{
    return device >= 0 && device < SPILL_MAX_DEVICES ? __atomic_load_n(&primary[device], __ATOMIC_RELAXED) : NULL;
}

static CUresult synchronised(CUresult r)
{
    spill_seen(r);
    /* Whoever has the lock is about to sweep, too, and an allocation may hold it for seconds. */
    if (r == CUDA_SUCCESS && spill_limbo_any() && !spill_dead() && spill_trylock()) {
        CUstreamCaptureMode mode = spill_capture_enter();
        spill_limbo_sweep(0);
        spill_capture_leave(mode);
        spill_unlock();
    }
    if (r == CUDA_SUCCESS && spill_started() && !spill_dead() && spill_settings()->moves)
        spill_settle();
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuCtxSynchronize(void)
{
    SPILL_NEEDS(cuCtxSynchronize);
    return synchronised(spill_driver()->cuCtxSynchronize());
}

SPILL_EXPORT CUresult CUDAAPI cuCtxSynchronize_v2(CUcontext ctx)
{
    SPILL_NEEDS(cuCtxSynchronize_v2);
    return synchronised(spill_driver()->cuCtxSynchronize_v2(ctx));
}

SPILL_EXPORT CUresult CUDAAPI cuStreamSynchronize(CUstream hStream)
{
    SPILL_NEEDS(cuStreamSynchronize);
    return synchronised(spill_driver()->cuStreamSynchronize(hStream));
}

SPILL_EXPORT CUresult CUDAAPI cuStreamSynchronize_ptsz(CUstream hStream)
{
    SPILL_NEEDS(cuStreamSynchronize_ptsz);
    return synchronised(spill_driver()->cuStreamSynchronize_ptsz(hStream));
}

/* ---- capture ---- */

/* Known before the driver begins, so that no other thread queries something into the middle of it; through the gate, so that
 * the proof of idleness, which would break it, isn't under way. */
#define BEGIN(symbol, ptsz, params, ...)                             \
    SPILL_EXPORT CUresult CUDAAPI symbol params                      \
    {                                                                \
        SPILL_GATED(symbol);                                         \
        spill_capture_begin(hStream, ptsz);                          \
        CUresult r = spill_driver()->symbol(__VA_ARGS__);            \
        if (r != CUDA_SUCCESS)                                       \
            spill_capture_end(hStream, ptsz);                        \
        return r;                                                    \
    }

#define GRAPH_PARAMS                                                                                                  \
    (CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,        \
     size_t numDependencies, CUstreamCaptureMode mode)

#define AGAIN_PARAMS \
    (CUstream hStream, CUstreamCaptureMode mode, CUgraph hGraph, CUgraphRecaptureCallback callbackFunc, void *userData)

BEGIN(cuStreamBeginCapture, false, (CUstream hStream), hStream)
BEGIN(cuStreamBeginCapture_ptsz, true, (CUstream hStream), hStream)
BEGIN(cuStreamBeginCapture_v2, false, (CUstream hStream, CUstreamCaptureMode mode), hStream, mode)
BEGIN(cuStreamBeginCapture_v2_ptsz, true, (CUstream hStream, CUstreamCaptureMode mode), hStream, mode)
BEGIN(cuStreamBeginCaptureToGraph, false, GRAPH_PARAMS, hStream, hGraph, dependencies, dependencyData, numDependencies, mode)
BEGIN(cuStreamBeginCaptureToGraph_ptsz, true, GRAPH_PARAMS, hStream, hGraph, dependencies, dependencyData, numDependencies, mode)
BEGIN(cuStreamBeginRecaptureToGraph, false, AGAIN_PARAMS, hStream, mode, hGraph, callbackFunc, userData)
BEGIN(cuStreamBeginRecaptureToGraph_ptsz, true, AGAIN_PARAMS, hStream, mode, hGraph, callbackFunc, userData)

/* A capture that was invalidated ends with an error, but it ends: the stream's state before and after tells. */
static CUresult end_capture(CUstream stream, CUgraph *graph, bool ptsz, CUresult(CUDAAPI *end)(CUstream, CUgraph *),
                            CUresult(CUDAAPI *query)(CUstream, CUstreamCaptureStatus *))
{
    CUstreamCaptureStatus before = CU_STREAM_CAPTURE_STATUS_NONE, after = CU_STREAM_CAPTURE_STATUS_NONE;
    if (!query)
        return end(stream, graph);
    query(stream, &before);
    CUresult r = end(stream, graph);
    if (r != CUDA_SUCCESS)
        query(stream, &after);
    if (before != CU_STREAM_CAPTURE_STATUS_NONE && after == CU_STREAM_CAPTURE_STATUS_NONE)
        spill_capture_end(stream, ptsz);
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuStreamEndCapture(CUstream hStream, CUgraph *phGraph)
{
    SPILL_NEEDS(cuStreamEndCapture);
    return end_capture(hStream, phGraph, false, spill_driver()->cuStreamEndCapture, spill_driver()->cuStreamIsCapturing);
}

SPILL_EXPORT CUresult CUDAAPI cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *phGraph)
{
    SPILL_NEEDS(cuStreamEndCapture_ptsz);
    return end_capture(hStream, phGraph, true, spill_driver()->cuStreamEndCapture_ptsz, spill_driver()->cuStreamIsCapturing_ptsz);
}

SPILL_EXPORT CUresult CUDAAPI cuStreamDestroy_v2(CUstream hStream)
{
    SPILL_NEEDS(cuStreamDestroy_v2);
    CUresult r = spill_driver()->cuStreamDestroy_v2(hStream);
    if (r == CUDA_SUCCESS && spill_capturing())
        spill_capture_end(hStream, false);
    return r;
}

/* ---- contexts: their beginning, and their end, which takes their regions along ---- */

static bool watched(void) { return !spill_config()->disable && !spill_dead(); }

static CUresult began(CUresult r, const CUcontext *ctx, void (*known)(CUcontext))
{
    if (r == CUDA_SUCCESS && watched()) {
        spill_context_wait_for_end(*ctx);
        known(*ctx);
    }
    return spill_seen(r);
}

#define CREATE(symbol, params, ...)                                                            \
    SPILL_EXPORT CUresult CUDAAPI symbol params                                                \
    {                                                                                          \
        SPILL_NEEDS(symbol);                                                                   \
        return began(spill_driver()->symbol(__VA_ARGS__), pctx, spill_context_created);        \
    }
CREATE(cuCtxCreate_v2, (CUcontext *pctx, unsigned int flags, CUdevice dev), pctx, flags, dev)
CREATE(cuCtxCreate_v3, (CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams, unsigned int flags, CUdevice dev),
       pctx, paramsArray, numParams, flags, dev)

SPILL_EXPORT CUresult CUDAAPI cuCtxCreate_v4(CUcontext *pctx, CUctxCreateParams *ctxCreateParams, unsigned int flags, CUdevice dev)
{
    SPILL_NEEDS(cuCtxCreate_v4);
    if (ctxCreateParams && ctxCreateParams->cigParams && watched())
        spill_freeze("the program shares memory with a graphics library");
    return began(spill_driver()->cuCtxCreate_v4(pctx, ctxCreateParams, flags, dev), pctx, spill_context_created);
}

SPILL_EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
    SPILL_NEEDS(cuDevicePrimaryCtxRetain);
    CUresult r = spill_driver()->cuDevicePrimaryCtxRetain(pctx, dev);
    if (r == CUDA_SUCCESS && dev >= 0 && dev < SPILL_MAX_DEVICES)
        __atomic_store_n(&primary[dev], *pctx, __ATOMIC_RELAXED);
    return began(r, pctx, spill_context_known);
}

/* The driver may end `ctx` from here on: moves and sweeps are kept off it, but not waited with, for the driver waits for the
 * GPU now. */
static bool may_end(CUcontext ctx)
{
    bool ours = ctx && watched();
    if (ours)
        spill_context_ends(ctx, true);
    return ours;
}

/* It has ended, or it has not after all. */
static void ended(CUcontext ctx, bool ours, bool gone)
{
    if (gone)
        spill_capture_context_gone(ctx);
    if (ours && gone && spill_started()) {
        spill_discard_context(ctx);
        spill_native_discard(ctx);
    }
    if (ours && gone)
        spill_context_gone(ctx);
    else if (ours)
        spill_context_ends(ctx, false);
}

SPILL_EXPORT CUresult CUDAAPI cuCtxDestroy_v2(CUcontext ctx)
{
    SPILL_NEEDS(cuCtxDestroy_v2);
    bool ours = may_end(ctx);
    CUresult r = spill_driver()->cuCtxDestroy_v2(ctx);
    ended(ctx, ours, r == CUDA_SUCCESS);
    return spill_seen(r);
}

static bool inactive(CUdevice dev)
{
    unsigned flags;
    int active = 1;
    return spill_driver()->cuDevicePrimaryCtxGetState(dev, &flags, &active) == CUDA_SUCCESS && !active;
}

/* Two generations each, with one signature: CUDA's own runtime asks for the older. A reset ends the context in any case, a
 * release where it was the last. */
#define PRIMARY(symbol, last)                                      \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdevice dev)             \
    {                                                              \
        SPILL_NEEDS(symbol);                                       \
        CUcontext ctx = primary_context(dev);                      \
        bool ours = may_end(ctx);                                  \
        CUresult r = spill_driver()->symbol(dev);                  \
        ended(ctx, ours, r == CUDA_SUCCESS && (last));             \
        return spill_seen(r);                                      \
    }
PRIMARY(cuDevicePrimaryCtxRelease, inactive(dev))
PRIMARY(cuDevicePrimaryCtxRelease_v2, inactive(dev))
PRIMARY(cuDevicePrimaryCtxReset, true)
PRIMARY(cuDevicePrimaryCtxReset_v2, true)
