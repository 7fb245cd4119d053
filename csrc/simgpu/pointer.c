/* SPDX-License-Identifier: Apache-2.0 */
/* Questions about pointers. Called by applications, communication libraries and the shim. Rules: the answers for VMM memory differ from those for cuMemAlloc as real drivers' do: no context, the
 * range is the reservation, the mapping is one handle, host-located memory says it is host memory.
 */
#include "doubt.h"
#include "state.h"

#include <string.h>

/* [locked] Write one attribute of a known pointer. `res` only: inside a reservation, but nothing is mapped there. */
static CUresult answer(CUcontext ctx, CUpointer_attribute a, CUdeviceptr p, const struct sim_map *m,
                       const struct sim_reservation *res, void *data)
{
    bool vmm = !m || m->kind == SIM_MAP_VMM;
    bool plain = m && (m->kind == SIM_MAP_DEVICE || m->kind == SIM_MAP_POOLED);
    if (m && m->reservation)
        res = m->reservation;
    if (!m && a != CU_POINTER_ATTRIBUTE_MAPPED && a != CU_POINTER_ATTRIBUTE_RANGE_START_ADDR && a != CU_POINTER_ATTRIBUTE_RANGE_SIZE)
        return CUDA_ERROR_INVALID_VALUE;
    switch (a) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = !vmm ? m->ctx : sim_doubt(SIM_DOUBT_VMM_CONTEXT) ? ctx : NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = m->in_ram && !(vmm && sim_doubt(SIM_DOUBT_HOST_TYPE) == 2) ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = p;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        if (!(m->kind == SIM_MAP_MANAGED || m->kind == SIM_MAP_HOST || m->kind == SIM_MAP_REGISTERED || m->host_access))
            return CUDA_ERROR_INVALID_VALUE;
        *(void **)data = (void *)(uintptr_t)p;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS:
        if (m->kind != SIM_MAP_DEVICE)
            return CUDA_ERROR_INVALID_VALUE;
        *(CUDA_POINTER_ATTRIBUTE_P2P_TOKENS *)data = (CUDA_POINTER_ATTRIBUTE_P2P_TOKENS){m->id, 1};
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
        *(unsigned *)data = m->sync_memops;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        *(unsigned long long *)data = m->id;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
        *(unsigned *)data = m->kind == SIM_MAP_MANAGED;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = !vmm || !m->in_ram ? m->device : sim_doubt(SIM_DOUBT_HOST_TYPE) ? ctx->device : -1;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *(unsigned *)data = m->kind == SIM_MAP_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = vmm ? res->base : m->base;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = vmm ? res->size : m->size;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned *)data = m != NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        *(unsigned long long *)data = m->handle && sim_handle_exportable(m->handle) ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        *(unsigned *)data = plain || (m->handle && sim_handle_rdma(m->handle));
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        *(unsigned *)data = !vmm || m->writers >> ctx->device & 1   ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE
                            : m->devices >> ctx->device & 1 ? CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READ
                                                            : CU_POINTER_ATTRIBUTE_ACCESS_FLAG_NONE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        *(CUmemoryPool *)data = m->pool;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        *(size_t *)data = m->size;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        *(CUdeviceptr *)data = m->base;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID:
        *(unsigned long long *)data = m->handle ? sim_handle_id(m->handle) : m->id;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE:
        *(unsigned *)data = 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_LOCALITY_DOMAIN_ORDINAL:
        *(int *)data = -1;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

/* Bytes of an attribute's value, for the zeroes of cuPointerGetAttributes. */
static size_t width(CUpointer_attribute a)
{
    switch (a) {
    case CU_POINTER_ATTRIBUTE_P2P_TOKENS: return sizeof(CUDA_POINTER_ATTRIBUTE_P2P_TOKENS);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
    case CU_POINTER_ATTRIBUTE_IS_HW_DECOMPRESS_CAPABLE: case CU_POINTER_ATTRIBUTE_LOCALITY_DOMAIN_ORDINAL:
        return 4;
    default:
        return 8;
    }
}

SIM_API CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr ptr)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!data)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    struct sim_map *m = sim_map_find(ptr);
    struct sim_reservation *res = m ? NULL : sim_reservation_find(ptr);
    r = m || res ? answer(ctx, attribute, ptr, m, res, data) : CUDA_ERROR_INVALID_VALUE;
    sim_give();
    return r;
}

/* Unlike the singular form, an unknown pointer is not an error: every value is zero (cuda.h, cuPointerGetAttributes). */
SIM_API CUresult cuPointerGetAttributes(unsigned int numAttributes, CUpointer_attribute *attributes, void **data, CUdeviceptr ptr)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!numAttributes || !attributes || !data)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < numAttributes; i++)
        if (!data[i] || (int)attributes[i] < CU_POINTER_ATTRIBUTE_CONTEXT || attributes[i] > CU_POINTER_ATTRIBUTE_LOCALITY_DOMAIN_ORDINAL)
            return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    struct sim_map *m = sim_map_find(ptr);
    struct sim_reservation *res = m ? NULL : sim_reservation_find(ptr);
    for (unsigned i = 0; i < numAttributes; i++) {
        memset(data[i], 0, width(attributes[i]));
        if (attributes[i] == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
            *(int *)data[i] = sim_doubt(SIM_DOUBT_PLURAL) ? 0 : -2;
        if (m || res)
            answer(ctx, attributes[i], ptr, m, res, data[i]);
    }
    sim_give();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuPointerSetAttribute(const void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    struct sim_map *m = value && attribute == CU_POINTER_ATTRIBUTE_SYNC_MEMOPS ? sim_map_find(ptr) : NULL;
    bool ok = m && (m->kind == SIM_MAP_DEVICE || m->kind == SIM_MAP_POOLED || m->kind == SIM_MAP_MANAGED ||
                    (m->kind == SIM_MAP_VMM && sim_doubt(SIM_DOUBT_VMM_CONTEXT)));
    if (ok)
        m->sync_memops = *(const unsigned *)value != 0;
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    struct sim_map *m = sim_map_find(dptr);
    bool ok = m && m->kind != SIM_MAP_REGISTERED;
    if (ok && pbase)
        *pbase = m->kind == SIM_MAP_VMM && m->in_ram && sim_doubt(SIM_DOUBT_RANGE) ? 0 : m->base;
    if (ok && psize)
        *psize = m->size;
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* dma-buf descriptors need a kernel driver. */
SIM_API CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr dptr, size_t size, CUmemRangeHandleType handleType, unsigned long long flags)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    (void)flags;
    if (!handle || !dptr || !size || handleType != CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_ERROR_NOT_SUPPORTED;
}
