/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of what programs ask about a pointer, and of what shares memory with others. To the driver a region is a piece
 * of a huge reservation, partly in host memory; the program must see what cuMemAlloc would have given: device memory of
 * its own base and size, in the context that allocated it.
 * Rules: everything about a region is answered from our table; sharing it is refused, because a handle would outlive or
 * bypass the region; everything else is the driver's. */
#include "shim/hook.h"
#include "shim/log.h"

#include <string.h>

/* The live region of an address that a program may legally ask about, or NULL. */
static struct spill_region *region_of(CUdeviceptr p)
{
    if (!spill_started() || spill_forked())
        return NULL;
    struct spill_region *region = spill_region_find(p);
    return region && !region->limbo && p - region->base < region->size ? region : NULL;
}

/* In the arena, but in no region: freed, or never allocated. The driver would speak of our reservation. */
static bool ours_but_free(CUdeviceptr p)
{
    return spill_started() && !spill_forked() && (spill_arena_contains(p) || spill_region_find(p)) && !region_of(p);
}

/* Answers as for cuMemAlloc'ed memory (cuda.h, cuPointerGetAttribute). NOT_SUPPORTED: one that this file doesn't know. */
static CUresult answer(const struct spill_region *region, CUdeviceptr p, CUpointer_attribute attribute, void *data)
{
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)data = region->ctx; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)data = CU_MEMORYTYPE_DEVICE; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)data = p; break;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER: *(void **)data = NULL; return CUDA_ERROR_INVALID_VALUE;
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS: return CUDA_ERROR_INVALID_VALUE; /* GPUDirect v1: needs the driver's own memory */
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: *(unsigned *)data = region->sync_memops; break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)data = region->buffer_id; break;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *(unsigned *)data = 0; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = region->device; break;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: *(unsigned *)data = 0; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)data = region->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)data = region->size; break;
    case CU_POINTER_ATTRIBUTE_MAPPED: *(unsigned *)data = 1; break;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: *(unsigned long long *)data = 0; break;
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: *(unsigned *)data = 0; break;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: *(unsigned *)data = CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE; break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: *(CUmemoryPool *)data = NULL; break;
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE: *(size_t *)data = region->size; break;
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: *(CUdeviceptr *)data = region->base; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID: *(unsigned long long *)data = region->buffer_id; break;
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE: *(unsigned *)data = 0; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

SPILL_EXPORT CUresult CUDAAPI cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr)
{
    SPILL_NEEDS(cuPointerGetAttribute);
    if (ours_but_free(ptr))
        return CUDA_ERROR_INVALID_VALUE;
    const struct spill_region *region = data ? region_of(ptr) : NULL;
    CUresult r = region ? answer(region, ptr, attribute, data) : CUDA_ERROR_NOT_SUPPORTED;
    return r == CUDA_ERROR_NOT_SUPPORTED ? spill_driver()->cuPointerGetAttribute(data, attribute, ptr) : r;
}

SPILL_EXPORT CUresult CUDAAPI cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data,
                                                     CUdeviceptr ptr)
{
    SPILL_NEEDS(cuPointerGetAttributes);
    const struct spill_driver *d = spill_driver();
    const struct spill_region *region = region_of(ptr);
    if (!region || !attributes || !data || !numAttributes) {
        /* An unknown pointer is no error here: every attribute comes back empty. A freed region's address must look so
         * too, and the driver would describe our reservation: ask it about an address that is nobody's. */
        return d->cuPointerGetAttributes(numAttributes, attributes, data, ours_but_free(ptr) ? 1 : ptr);
    }
    for (unsigned i = 0; i < numAttributes; i++) {
        CUresult r = data[i] ? answer(region, ptr, attributes[i], data[i]) : CUDA_ERROR_INVALID_VALUE;
        if (r == CUDA_ERROR_NOT_SUPPORTED)
            r = d->cuPointerGetAttributes(1, &attributes[i], &data[i], ptr);
        if (r != CUDA_SUCCESS && (!data[i] || attributes[i] != CU_POINTER_ATTRIBUTE_HOST_POINTER))
            return r;
    }
    return CUDA_SUCCESS;
}

SPILL_EXPORT CUresult CUDAAPI cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
    SPILL_GATED(cuPointerSetAttribute);
    struct spill_region *region = region_of(ptr);
    if (!region)
        return ours_but_free(ptr) ? CUDA_ERROR_INVALID_VALUE : spill_driver()->cuPointerSetAttribute(value, attribute, ptr);
    if (attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS || !value)
        return CUDA_ERROR_INVALID_VALUE;
    /* The driver can't set it on mapped memory; the copy hooks honour it (split.c). */
    region->sync_memops = *(const unsigned *)value != 0;
    /* Asked for by those who let other devices at the memory (RDMA, third parties), which know its place for good. */
    spill_region_pin(region, "an allocation with synchronous memory operations, as other devices' drivers ask for");
    return CUDA_SUCCESS;
}

SPILL_EXPORT CUresult CUDAAPI cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr)
{
    SPILL_NEEDS(cuMemGetAddressRange_v2);
    if (ours_but_free(dptr))
        return CUDA_ERROR_NOT_FOUND;
    const struct spill_region *region = region_of(dptr);
    if (!region)
        return spill_driver()->cuMemGetAddressRange_v2(pbase, psize, dptr);
    if (pbase)
        *pbase = region->base;
    if (psize)
        *psize = region->size;
    return CUDA_SUCCESS;
}

static void say_unshareable(const char *what, const struct spill_region *region)
{
    spill_log(SPILL_LOG_WARN, "%s refused for an allocation of %llu bytes: managed memory can't be shared with other "
              "processes or devices; SPILLSHIM_MANAGED_MIN above that size leaves it to the driver while VRAM lasts",
              what, (unsigned long long)region->size);
}

SPILL_EXPORT CUresult CUDAAPI cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr)
{
    SPILL_NEEDS(cuIpcGetMemHandle);
    const struct spill_region *region = region_of(dptr);
    if (!region)
        return spill_driver()->cuIpcGetMemHandle(pHandle, dptr);
    say_unshareable("cuIpcGetMemHandle", region);
    return CUDA_ERROR_INVALID_VALUE;
}

SPILL_EXPORT CUresult CUDAAPI cuMemGetHandleForAddressRange(void *handle, CUdeviceptr dptr, size_t size,
                                                            CUmemRangeHandleType handleType, unsigned long long flags)
{
    SPILL_NEEDS(cuMemGetHandleForAddressRange);
    const struct spill_region *region = region_of(dptr);
    if (!region)
        return spill_driver()->cuMemGetHandleForAddressRange(handle, dptr, size, handleType, flags);
    say_unshareable("cuMemGetHandleForAddressRange", region);
    return CUDA_ERROR_NOT_SUPPORTED;
}
