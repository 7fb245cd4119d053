/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of the application's own virtual memory management (ggml's pool, PyTorch's expandable segments, vLLM's sleep
 * mode). A cuMemCreate that VRAM has no room for gets a real handle whose memory lies in RAM: the application maps,
 * opens and releases it as any other; it is placed once and never moved.
 * Rules: what names a host location is passed through untouched. A handle that is asked for as exportable is one in RAM
 * too, where the driver makes such (HOST_NUMA), else there is none (SPILLSHIM_EXPORTABLE). */
#include "shim/hook.h"
#include "shim/log.h"
#include "shim/resolve.h"

/* A handle of `size` bytes in RAM in the place of one in VRAM; the budget has been asked. */
static CUresult create_in_ram(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                              unsigned long long flags)
{
    CUmemAllocationProp host = { .type = prop->type, .requestedHandleTypes = prop->requestedHandleTypes,
                                 .location = spill_host_location() };
    bool exportable = prop->requestedHandleTypes != CU_MEM_HANDLE_TYPE_NONE;
    char why[160];
    if (!spill_budget_ask(size, why)) {
        spill_log(SPILL_LOG_WARN, "cuMemCreate does not spill, the program gets out-of-memory: %s", why);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    CUresult r = spill_driver()->cuMemCreate(handle, size, &host, flags);
    bool no_such = exportable && r != CUDA_SUCCESS && r != CUDA_ERROR_OUT_OF_MEMORY;
    if (no_such && spill_settings()->exportable) {
        host.requestedHandleTypes = CU_MEM_HANDLE_TYPE_NONE;
        r = spill_driver()->cuMemCreate(handle, size, &host, flags);
    }
    if (r != CUDA_SUCCESS) {
        spill_budget_give(size, 0);
        if (no_such && !spill_settings()->exportable)
            spill_log(SPILL_LOG_WARN, "cuMemCreate of %zu bytes asks for an exportable handle, and the driver makes none in RAM, "
                      "error=%d: the program gets out-of-memory (SPILLSHIM_EXPORTABLE=1 spills it all the same)", size, (int)r);
        else
            spill_backing_refused(size, r);
        return r;
    }
    spill_budget_pinned(size);
    return CUDA_SUCCESS;
}

static CUresult overflow(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                         unsigned long long flags)
{
    int device = prop->location.id;
    spill_look();
    if (!spill_settings()->spill || spill_aside())
        return spill_answer_oom();
    if (spill_backend(device)->backend > SPILL_BACKEND_HOST || spill_soft_oom(size))
        return spill_answer_oom();
    CUresult r = create_in_ram(handle, size, prop, flags);
    if (r != CUDA_SUCCESS)
        return spill_answer_oom();
    spill_handle_add(*handle, size, device, SPILL_RAM);
    spill_log(SPILL_LOG_INFO, "cuMemCreate spilled bytes=%zu device=%d", size, device);
    return CUDA_SUCCESS;
}

/* What the driver says, within the limit; counted. */
static CUresult in_vram(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags)
{
    CUresult r = CUDA_ERROR_OUT_OF_MEMORY;
    spill_handles_lock();
    if (spill_vram_allows(prop->location.id, size)) {
        r = spill_driver()->cuMemCreate(handle, size, prop, flags);
        if (r == CUDA_SUCCESS)
            spill_handle_add(*handle, size, prop->location.id, SPILL_VRAM);
    }
    spill_handles_unlock();
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
                                          const CUmemAllocationProp *prop, unsigned long long flags)
{
    const struct spill_driver *d = spill_driver();
    SPILL_NEEDS(cuMemCreate);
    if (!spill_on() || !handle || !prop || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        !spill_device(prop->location.id))
        return d->cuMemCreate(handle, size, prop, flags);
    spill_path_count(__builtin_return_address(0), "cuMemCreate");
    spill_stats_learn(prop->location.id);
    CUresult r = in_vram(handle, size, prop, flags);
    if (r == CUDA_ERROR_OUT_OF_MEMORY && spill_pool_yield(prop->location.id))
        r = in_vram(handle, size, prop, flags);
    if (r != CUDA_ERROR_OUT_OF_MEMORY)
        return r;
    spill_handles_lock();
    r = overflow(handle, size, prop, flags);
    spill_handles_unlock();
    if (r == CUDA_SUCCESS)
        spill_managed();
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuMemRelease(CUmemGenericAllocationHandle handle)
{
    SPILL_NEEDS(cuMemRelease);
    if (!spill_started() || spill_dead())
        return spill_driver()->cuMemRelease(handle);
    spill_handles_lock();
    CUresult r = spill_driver()->cuMemRelease(handle);
    if (r == CUDA_SUCCESS)
        spill_handle_release(handle);
    spill_handles_unlock();
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                                       unsigned long long flags)
{
    SPILL_NEEDS(cuMemMap);
    if (!spill_started() || spill_dead())
        return spill_driver()->cuMemMap(ptr, size, offset, handle, flags);
    if (spill_arena_contains(ptr))
        return CUDA_ERROR_INVALID_VALUE; /* not an address the application reserved */
    spill_handles_lock();
    CUresult r = spill_driver()->cuMemMap(ptr, size, offset, handle, flags);
    if (r == CUDA_SUCCESS)
        spill_handle_map(handle, ptr, size);
    spill_handles_unlock();
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuMemUnmap(CUdeviceptr ptr, size_t size)
{
    SPILL_NEEDS(cuMemUnmap);
    if (!spill_started() || spill_dead())
        return spill_driver()->cuMemUnmap(ptr, size);
    if (spill_arena_contains(ptr))
        return CUDA_ERROR_INVALID_VALUE;
    spill_handles_lock();
    CUresult r = spill_driver()->cuMemUnmap(ptr, size);
    if (r == CUDA_SUCCESS)
        spill_handle_unmap(ptr, size);
    spill_handles_unlock();
    return r;
}

/* What of the range has spilled is opened to the CPU as well, because a region's RAM is. */
SPILL_EXPORT CUresult CUDAAPI cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)
{
    bool writable = false;
    SPILL_NEEDS(cuMemSetAccess);
    if (!spill_started() || spill_dead())
        return spill_driver()->cuMemSetAccess(ptr, size, desc, count);
    if (spill_arena_contains(ptr))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = spill_driver()->cuMemSetAccess(ptr, size, desc, count);
    for (size_t i = 0; r == CUDA_SUCCESS && i < count; i++)
        writable |= desc[i].location.type == CU_MEM_LOCATION_TYPE_DEVICE && desc[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (writable)
        spill_handle_open_to_cpu(ptr, size);
    return r;
}

SPILL_EXPORT CUresult CUDAAPI cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)
{
    SPILL_NEEDS(cuMemRetainAllocationHandle);
    if (!spill_started() || spill_dead())
        return spill_driver()->cuMemRetainAllocationHandle(handle, addr);
    /* Memory from cuMemAlloc has no handle; ours must not be seen, or it would be exported or remapped. */
    if (spill_arena_contains((CUdeviceptr)addr))
        return CUDA_ERROR_INVALID_VALUE;
    spill_handles_lock();
    CUresult r = spill_driver()->cuMemRetainAllocationHandle(handle, addr);
    if (r == CUDA_SUCCESS)
        spill_handle_retain(*handle, (CUdeviceptr)addr);
    spill_handles_unlock();
    return r;
}
