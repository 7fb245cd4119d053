/* SPDX-License-Identifier: Apache-2.0 */
/* Entries for what this device does not have: multicast, pools shared between processes, sparse arrays, hardware
 * decompression, GPUDirect RDMA flushes. Called by applications that ask before they look at the attributes.
 * Rules: each device attribute that announces such a thing answers 0 (device.c), and the entry what cuda.h names for that;
 * arguments are checked first where the driver needs no support for it.
 */
#include "state.h"

static CUresult refuse(bool arguments_ok)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    return r ? r : arguments_ok ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

/* ---- multicast: CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED is 0, so no multicast handle exists */

SIM_API CUresult cuMulticastCreate(CUmemGenericAllocationHandle *mcHandle, const CUmulticastObjectProp *prop)
{
    SIM_ENTRY();
    return mcHandle && prop ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMulticastGetGranularity(size_t *granularity, const CUmulticastObjectProp *prop, CUmulticastGranularity_flags option)
{
    SIM_ENTRY();
    bool known = option == CU_MULTICAST_GRANULARITY_MINIMUM || option == CU_MULTICAST_GRANULARITY_RECOMMENDED;
    return granularity && prop && known ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

#define NO_MULTICAST(name, ...) \
    SIM_API CUresult name(__VA_ARGS__) { SIM_ENTRY(); return CUDA_ERROR_INVALID_VALUE; }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
NO_MULTICAST(cuMulticastAddDevice, CUmemGenericAllocationHandle mc, CUdevice dev)
NO_MULTICAST(cuMulticastBindMem, CUmemGenericAllocationHandle mc, size_t at, CUmemGenericAllocationHandle mem, size_t from, size_t size, unsigned long long flags)
NO_MULTICAST(cuMulticastBindMem_v2, CUmemGenericAllocationHandle mc, CUdevice dev, size_t at, CUmemGenericAllocationHandle mem, size_t from, size_t size, unsigned long long flags)
NO_MULTICAST(cuMulticastBindAddr, CUmemGenericAllocationHandle mc, size_t at, CUdeviceptr p, size_t size, unsigned long long flags)
NO_MULTICAST(cuMulticastBindAddr_v2, CUmemGenericAllocationHandle mc, CUdevice dev, size_t at, CUdeviceptr p, size_t size, unsigned long long flags)
NO_MULTICAST(cuMulticastUnbind, CUmemGenericAllocationHandle mc, CUdevice dev, size_t at, size_t size)

/* ---- pools between processes: CU_DEVICE_ATTRIBUTE_MEMPOOL_SUPPORTED_HANDLE_TYPES is 0, so no pool was made for it */

SIM_API CUresult cuMemPoolExportToShareableHandle(void *out, CUmemoryPool pool, CUmemAllocationHandleType type, unsigned long long flags)
{
    SIM_ENTRY();
    return CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemPoolExportPointer(CUmemPoolPtrExportData *out, CUdeviceptr ptr)
{
    SIM_ENTRY();
    return CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemPoolImportFromShareableHandle(CUmemoryPool *out, void *handle, CUmemAllocationHandleType type, unsigned long long flags)
{
    SIM_ENTRY();
    return out && !flags ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemPoolImportPointer(CUdeviceptr *out, CUmemoryPool pool, CUmemPoolPtrExportData *data)
{
    SIM_ENTRY();
    return CUDA_ERROR_INVALID_VALUE;
}

/* ---- sparse arrays: CU_DEVICE_ATTRIBUTE_SPARSE_CUDA_ARRAY_SUPPORTED is 0; decompression: its algorithm mask is 0 */

SIM_API CUresult cuFlushGPUDirectRDMAWrites(CUflushGPUDirectRDMAWritesTarget target, CUflushGPUDirectRDMAWritesScope scope)
{
    SIM_ENTRY();
    return refuse(target == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX &&
                  (scope == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER || scope == CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_ALL_DEVICES));
}

#define REFUSED_ENTRIES(Z) \
    SIM_API CUresult cuMemMapArrayAsync##Z(CUarrayMapInfo *list, unsigned int count, CUstream s) \
    { SIM_ENTRY(); return refuse(list && count); } \
    SIM_API CUresult cuMemBatchDecompressAsync##Z(CUmemDecompressParams *list, size_t count, unsigned int flags, size_t *bad, CUstream s) \
    { SIM_ENTRY(); return refuse(list && count && !flags); }
REFUSED_ENTRIES()
REFUSED_ENTRIES(_ptsz)
#pragma GCC diagnostic pop
