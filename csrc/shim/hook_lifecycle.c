/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of synchronisation (where the GPU has just been waited for, limbo is swept and placement is mended), of capture (counted: nothing is asked
 * of the driver then) and of the end of contexts (their regions end with them).
 * Rules: the driver's call first, ours after it; a primary context is never retained by us. */
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

/* ---- the end of contexts ---- */

static void context_gone(CUcontext ctx)
{
    spill_capture_context_gone(ctx);
    if (!spill_started() || spill_dead() || !ctx)
        return;
    spill_discard_context(ctx);
    spill_native_discard(ctx);
}

SPILL_EXPORT CUresult CUDAAPI cuCtxDestroy_v2(CUcontext ctx)
{
    SPILL_NEEDS(cuCtxDestroy_v2);
    CUresult r = spill_driver()->cuCtxDestroy_v2(ctx);
    if (r == CUDA_SUCCESS)
        context_gone(ctx);
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
    SPILL_NEEDS(cuDevicePrimaryCtxRetain);
    CUresult r = spill_driver()->cuDevicePrimaryCtxRetain(pctx, dev);
    if (r == CUDA_SUCCESS && dev >= 0 && dev < SPILL_MAX_DEVICES)
        __atomic_store_n(&primary[dev], *pctx, __ATOMIC_RELAXED);
    return r;
}

/* Two generations each, with one signature: CUDA's own runtime asks for the older. */
#define RELEASE(symbol)                                                                                                    \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdevice dev)                                                                     \
    {                                                                                                                      \
        SPILL_NEEDS(symbol);                                                                                               \
        unsigned flags;                                                                                                    \
        int active = 1;                                                                                                    \
        CUresult r = spill_driver()->symbol(dev);                                                                          \
        if (r == CUDA_SUCCESS &&                                                                                           \
            spill_driver()->cuDevicePrimaryCtxGetState(dev, &flags, &active) == CUDA_SUCCESS && !active)                   \
            context_gone(primary_context(dev));                                                                                             \
        return r;                                                                                                          \
    }
RELEASE(cuDevicePrimaryCtxRelease)
RELEASE(cuDevicePrimaryCtxRelease_v2)

#define RESET(symbol)                                 \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdevice dev) \
    {                                                 \
        SPILL_NEEDS(symbol);                          \
        CUresult r = spill_driver()->symbol(dev);     \
        if (r == CUDA_SUCCESS)                        \
            context_gone(primary_context(dev));                        \
        return r;                                     \
    }
RESET(cuDevicePrimaryCtxReset)
RESET(cuDevicePrimaryCtxReset_v2)
