/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of cuMemAlloc, cuMemAllocPitch and cuMemFree. Called by the program, through every path that resolve.c serves.
 * Rules: what the driver would have granted is never refused; what it would have refused with another error than
 * out-of-memory is answered by the driver itself. */
#include "shim/hook.h"
#include "shim/resolve.h"

/* Whether an allocation is allowed now is the driver's to say while something is being captured: ask it with a small
 * one in the thread's own capture mode. */
CUresult spill_capture_verdict(void)
{
    const struct spill_driver *d = spill_driver();
    CUdeviceptr small;
    if (!spill_capturing())
        return CUDA_SUCCESS;
    CUresult r = d->cuMemAlloc_v2(&small, 256);
    if (r == CUDA_ERROR_OUT_OF_MEMORY)
        return CUDA_SUCCESS; /* it is legal; for so little there was no room */
    if (r != CUDA_SUCCESS)
        return r;
    CUstreamCaptureMode mode = spill_capture_enter();
    d->cuMemFree_v2(small);
    spill_capture_leave(mode);
    return CUDA_SUCCESS;
}

/* The driver's own allocation, within the limit; counted. */
static CUresult native(int device, size_t size, CUdeviceptr *out)
{
    if (!spill_vram_allows(device, size))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = spill_driver()->cuMemAlloc_v2(out, size);
    if (r == CUDA_ERROR_OUT_OF_MEMORY && spill_pool_yield(device))
        r = spill_driver()->cuMemAlloc_v2(out, size);
    if (r == CUDA_SUCCESS)
        spill_native_add(*out, size, device);
    return spill_seen(r);
}

/* `size` bytes: small ones from the driver while it has room, large ones as a region; each as the other's last resort. */
static CUresult allocate(int device, size_t size, CUdeviceptr *out)
{
    enum spill_hint hint = spill_hint_now();
    uint64_t least = hint == SPILL_HINT_RAM && spill_settings()->managed_min > SPILL_GRANULE ? SPILL_GRANULE : spill_settings()->managed_min;
    bool managed = size >= least && spill_device(device)->vmm;
    CUresult r = managed ? spill_seen(spill_alloc(size, out)) : native(device, size, out);
    /* Rather than give a small one a granule of RAM: it may be read at every step, and only the first of many comes here. What is to
     * be kept in VRAM has no other resort. */
    if ((managed ? hint == SPILL_HINT_VRAM : spill_soft_heard(size)) && spill_worth_retrying(r, size)) {
        r = managed ? spill_seen(spill_alloc(size, out)) : native(device, size, out);
        if (r == CUDA_SUCCESS)
            spill_soft_unheard();
    }
    if (r == CUDA_SUCCESS || (!managed && r != CUDA_ERROR_OUT_OF_MEMORY))
        return r;
    CUresult other = managed ? native(device, size, out) : spill_alloc(size, out);
    if (other == CUDA_SUCCESS)
        spill_soft_unheard();
    return other == CUDA_ERROR_OUT_OF_MEMORY ? spill_answer_oom() : other;
}

static CUresult take(enum spill_path path, const void *caller, CUdeviceptr *dptr, size_t bytesize)
{
    int device;
    SPILL_NEEDS(cuMemAlloc_v2);
    if (!spill_on() || !dptr || !bytesize || spill_current_device(&device) != CUDA_SUCCESS)
        return spill_driver()->cuMemAlloc_v2(dptr, bytesize);
    spill_path_count_by(path, caller, "cuMemAlloc_v2");
    spill_stats_learn(device);
    CUresult r = spill_capture_verdict();
    return r != CUDA_SUCCESS ? r : allocate(device, bytesize, dptr);
}

SPILL_EXPORT CUresult CUDAAPI cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)
{
    return take(SPILL_PATH_UNKNOWN, __builtin_return_address(0), dptr, bytesize);
}

CUresult spill_alloc_for_allocator(const void *caller, CUdeviceptr *dptr, size_t bytesize)
{
    return take(SPILL_PATH_ALLOCATOR, caller, dptr, bytesize);
}

static CUresult native_pitch(int device, CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned element)
{
    if (!spill_vram_allows(device, width * height))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = spill_driver()->cuMemAllocPitch_v2(out, pitch, width, height, element);
    if (r == CUDA_SUCCESS)
        spill_native_add(*out, *pitch * height, device);
    return spill_seen(r);
}

SPILL_EXPORT CUresult CUDAAPI cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height,
                                                 unsigned int ElementSizeBytes)
{
    int device;
    size_t pitch, size;
    CUdeviceptr row;
    SPILL_NEEDS(cuMemAllocPitch_v2);
    const struct spill_driver *d = spill_driver();
    if (!spill_on() || !dptr || !pPitch || __builtin_mul_overflow(WidthInBytes, Height, &size) ||
        spill_current_device(&device) != CUDA_SUCCESS)
        return d->cuMemAllocPitch_v2(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    spill_path_count(__builtin_return_address(0), "cuMemAllocPitch_v2");
    spill_stats_learn(device);
    CUresult r = CUDA_ERROR_OUT_OF_MEMORY;
    if (size < spill_settings()->managed_min)
        r = native_pitch(device, dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    if (r != CUDA_ERROR_OUT_OF_MEMORY)
        return r;
    r = spill_capture_verdict();
    if (r != CUDA_SUCCESS)
        return r;
    /* The pitch is the driver's secret: one row tells it. */
    CUstreamCaptureMode mode = spill_capture_enter();
    r = SPILL_RETRIED(d->cuMemAllocPitch_v2(&row, &pitch, WidthInBytes, 1, ElementSizeBytes));
    if (r == CUDA_SUCCESS)
        d->cuMemFree_v2(row);
    spill_capture_leave(mode);
    if (r != CUDA_SUCCESS)
        return r;
    if (__builtin_mul_overflow(pitch, Height, &size))
        return spill_answer_oom();
    r = allocate(device, size, dptr);
    if (r == CUDA_SUCCESS)
        *pPitch = pitch;
    return r;
}

/* To the driver a region's address is no allocation: it must not blame the pointer for what happened to the process. */
CUresult spill_dead_free(CUdeviceptr p, CUresult r)
{
    bool region = r == CUDA_ERROR_INVALID_VALUE && spill_started() && spill_dead() && !spill_forked() && spill_region_find(p);
    return region ? spill_dead_error() : spill_seen(r);
}

SPILL_EXPORT CUresult CUDAAPI cuMemFree_v2(CUdeviceptr dptr)
{
    const struct spill_driver *d = spill_driver();
    struct spill_native was;
    SPILL_NEEDS(cuMemFree_v2);
    if (!dptr || !spill_started() || spill_dead())
        return spill_dead_free(dptr, d->cuMemFree_v2(dptr));
    struct spill_region *region = spill_region_find(dptr);
    if (region) {
        CUresult r = dptr == region->base && !region->limbo ? spill_capture_verdict() : CUDA_ERROR_INVALID_VALUE;
        return r != CUDA_SUCCESS ? r : spill_seen(spill_free(dptr));
    }
    if (spill_arena_contains(dptr))
        return CUDA_ERROR_INVALID_VALUE; /* freed already: to the driver it would be part of our reservation */
    bool counted = spill_native_remove(dptr, &was);
    CUresult r = d->cuMemFree_v2(dptr);
    if (r != CUDA_SUCCESS && counted)
        spill_native_restore(&was);
    return spill_seen(r);
}
