/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of synchronisation (limbo is swept where the GPU has just been waited for), of capture (counted: nothing is asked
 * of the driver then) and of the end of contexts (their regions end with them).
 * Rules: the driver's call first, ours after it; a primary context is never retained by us. */
#include "shim/hook.h"

static CUcontext primary[SPILL_MAX_DEVICES];

CUcontext spill_primary_context(int device)
{
    return device >= 0 && device < SPILL_MAX_DEVICES ? __atomic_load_n(&primary[device], __ATOMIC_RELAXED) : NULL;
}

static CUresult synchronised(CUresult r)
{
    if (r == CUDA_SUCCESS && spill_limbo_any() && !spill_dead()) {
        spill_lock();
        spill_limbo_sweep(0);
        spill_unlock();
    }
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

/* Counted before the driver begins, so that no other thread queries something into the middle of it. */
#define BEGIN(symbol, params, ...)                                   \
    SPILL_EXPORT CUresult CUDAAPI symbol params                      \
    {                                                                \
        SPILL_NEEDS(symbol);                                         \
        spill_capture_count(+1);                                     \
        CUresult r = spill_driver()->symbol(__VA_ARGS__);            \
        if (r != CUDA_SUCCESS)                                       \
            spill_capture_count(-1);                                 \
        return r;                                                    \
    }

#define GRAPH_PARAMS                                                                                                  \
    (CUstream hStream, CUgraph hGraph, const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,        \
     size_t numDependencies, CUstreamCaptureMode mode)

BEGIN(cuStreamBeginCapture, (CUstream hStream), hStream)
BEGIN(cuStreamBeginCapture_ptsz, (CUstream hStream), hStream)
BEGIN(cuStreamBeginCapture_v2, (CUstream hStream, CUstreamCaptureMode mode), hStream, mode)
BEGIN(cuStreamBeginCapture_v2_ptsz, (CUstream hStream, CUstreamCaptureMode mode), hStream, mode)
BEGIN(cuStreamBeginCaptureToGraph, GRAPH_PARAMS, hStream, hGraph, dependencies, dependencyData, numDependencies, mode)
BEGIN(cuStreamBeginCaptureToGraph_ptsz, GRAPH_PARAMS, hStream, hGraph, dependencies, dependencyData, numDependencies, mode)

/* A capture that was invalidated ends with an error, but it ends: the stream's state before and after tells. */
static CUresult end_capture(CUstream stream, CUgraph *graph, CUresult(CUDAAPI *end)(CUstream, CUgraph *),
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
        spill_capture_count(-1);
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuStreamEndCapture(CUstream hStream, CUgraph *phGraph)
{
    SPILL_NEEDS(cuStreamEndCapture);
    return end_capture(hStream, phGraph, spill_driver()->cuStreamEndCapture, spill_driver()->cuStreamIsCapturing);
}

SPILL_EXPORT CUresult CUDAAPI cuStreamEndCapture_ptsz(CUstream hStream, CUgraph *phGraph)
{
    SPILL_NEEDS(cuStreamEndCapture_ptsz);
    return end_capture(hStream, phGraph, spill_driver()->cuStreamEndCapture_ptsz, spill_driver()->cuStreamIsCapturing_ptsz);
}

/* ---- the end of contexts ---- */

SPILL_EXPORT CUresult CUDAAPI cuCtxDestroy_v2(CUcontext ctx)
{
    SPILL_NEEDS(cuCtxDestroy_v2);
    CUresult r = spill_driver()->cuCtxDestroy_v2(ctx);
    if (r == CUDA_SUCCESS && spill_started() && !spill_dead())
        spill_discard_context(ctx);
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

static void primary_gone(CUdevice dev)
{
    if (!spill_started() || spill_dead() || !spill_primary_context(dev))
        return;
    spill_discard_context(spill_primary_context(dev));
    spill_native_discard(dev);
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
            primary_gone(dev);                                                                                             \
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
            primary_gone(dev);                        \
        return r;                                     \
    }
RESET(cuDevicePrimaryCtxReset)
RESET(cuDevicePrimaryCtxReset_v2)
