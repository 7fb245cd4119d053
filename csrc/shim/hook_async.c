/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of the stream-ordered allocator. While VRAM lasts the driver's own pools serve these calls (they are fast
 * because they reuse); only what they refuse becomes a region. A region is usable at once, which is more than stream
 * order asks for; its free waits in limbo for the stream's work.
 * Rules: an allocation or free that is being captured is the graph's: never ours. */
#include "shim/hook.h"
#include "shim/resolve.h"

static bool stream_captures(CUstream stream, bool ptsz)
{
    const struct spill_driver *d = spill_driver();
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (!spill_capturing())
        return false;
    CUresult r = (ptsz ? d->cuStreamIsCapturing_ptsz : d->cuStreamIsCapturing)(stream, &status);
    return r == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

/* As a cuMemAlloc it would be native: VRAM is reclaimed for it, and the program not given RAM. */
static bool retry(CUresult r, int device, size_t size)
{
    return size < spill_settings()->managed_min && spill_soft_heard(size) && spill_worth_retrying(r, size) &&
           spill_vram_allows(device, size);
}

/* After (or instead of, where the limit forbids it) the driver's answer `r`. */
static CUresult finish(CUresult r, int device, size_t size, CUdeviceptr *out, CUstream stream, bool ptsz)
{
    if ((r != CUDA_SUCCESS && r != CUDA_ERROR_OUT_OF_MEMORY) || stream_captures(stream, ptsz))
        return spill_seen(r);
    if (r == CUDA_SUCCESS) {
        spill_native_add(*out, size, device);
        if (spill_soft_heard(size))
            spill_soft_unheard(); /* its episode is over */
        return r;
    }
    r = spill_alloc(size, out);
    return r == CUDA_ERROR_OUT_OF_MEMORY ? spill_answer_oom() : r;
}

/* `real` is the driver's call; `caller` the return address of the hook. */
#define ALLOCATE(symbol, ptsz, real)                                                                            \
    int device;                                                                                                 \
    SPILL_NEEDS(symbol);                                                                                        \
    if (!spill_on() || !dptr || !bytesize || spill_current_device(&device) != CUDA_SUCCESS)                     \
        return real;                                                                                            \
    spill_path_count(__builtin_return_address(0), #symbol);                                                     \
    spill_stats_learn(device);                                                                                  \
    CUresult r = spill_vram_allows(device, bytesize) || stream_captures(hStream, ptsz) ? (real) : CUDA_ERROR_OUT_OF_MEMORY; \
    if (retry(r, device, bytesize))                                                                             \
        r = (real);                                                                                             \
    return finish(r, device, bytesize, dptr, hStream, ptsz)

#define ALLOC_ASYNC(symbol, ptsz)                                                              \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdeviceptr *dptr, size_t bytesize, CUstream hStream) \
    {                                                                                          \
        ALLOCATE(symbol, ptsz, spill_driver()->symbol(dptr, bytesize, hStream));               \
    }

#define ALLOC_FROM_POOL(symbol, ptsz)                                                                             \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream) \
    {                                                                                                             \
        ALLOCATE(symbol, ptsz, spill_driver()->symbol(dptr, bytesize, pool, hStream));                            \
    }

ALLOC_ASYNC(cuMemAllocAsync, false)
ALLOC_ASYNC(cuMemAllocAsync_ptsz, true)
ALLOC_FROM_POOL(cuMemAllocFromPoolAsync, false)
ALLOC_FROM_POOL(cuMemAllocFromPoolAsync_ptsz, true)

static CUresult free_async(CUdeviceptr p, CUstream stream, bool ptsz, CUresult(CUDAAPI *real)(CUdeviceptr, CUstream))
{
    struct spill_native was;
    if (!p || !spill_started() || spill_dead())
        return spill_dead_free(p, real(p, stream));
    struct spill_region *region = spill_region_find(p);
    if (region)
        return p == region->base ? spill_seen(spill_free_async(p, stream, ptsz)) : CUDA_ERROR_INVALID_VALUE;
    if (spill_arena_contains(p))
        return CUDA_ERROR_INVALID_VALUE;
    bool counted = spill_native_remove(p, &was);
    CUresult r = real(p, stream);
    if (r != CUDA_SUCCESS && counted)
        spill_native_restore(&was);
    return spill_seen(r);
}

SPILL_EXPORT CUresult CUDAAPI cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream)
{
    SPILL_NEEDS(cuMemFreeAsync);
    return free_async(dptr, hStream, false, spill_driver()->cuMemFreeAsync);
}

SPILL_EXPORT CUresult CUDAAPI cuMemFreeAsync_ptsz(CUdeviceptr dptr, CUstream hStream)
{
    SPILL_NEEDS(cuMemFreeAsync_ptsz);
    return free_async(dptr, hStream, true, spill_driver()->cuMemFreeAsync_ptsz);
}
