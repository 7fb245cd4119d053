/* SPDX-License-Identifier: Apache-2.0 */
/* Allocation: device, host, managed and stream-ordered memory, and what can be asked about a pointer.
 */
#include "rt.h"

#include <string.h>

static CUdeviceptr ptr(const void *p)
{
    return (CUdeviceptr)(uintptr_t)p;
}

RT(cudaMalloc, (void **devPtr, size_t size), (devPtr, size))
{
    CUdeviceptr p = 0;
    if (!devPtr)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    if (size)
        RT_NEED(rt_error(rt.cuMemAlloc(&p, size)));
    *devPtr = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT(cudaMallocPitch, (void **devPtr, size_t *pitch, size_t width, size_t height), (devPtr, pitch, width, height))
{
    CUdeviceptr p = 0;
    if (!devPtr || !pitch)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    *pitch = 0;
    if (width && height)
        RT_NEED(rt_error(rt.cuMemAllocPitch(&p, pitch, width, height, 16)));
    *devPtr = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT(cudaFree, (void *devPtr), (devPtr))
{
    RT_NEED(rt_context());
    return devPtr ? rt_error(rt.cuMemFree(ptr(devPtr))) : cudaSuccess;
}

RT(cudaMallocManaged, (void **devPtr, size_t size, unsigned int flags), (devPtr, size, flags))
{
    CUdeviceptr p = 0;
    if (!devPtr)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    RT_NEED(rt_error(rt.cuMemAllocManaged(&p, size, flags)));
    *devPtr = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT(cudaHostAlloc, (void **pHost, size_t size, unsigned int flags), (pHost, size, flags))
{
    if (!pHost)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    if (size)
        return rt_error(rt.cuMemHostAlloc(pHost, size, flags));
    *pHost = NULL;
    return cudaSuccess;
}

RT(cudaMallocHost, (void **p, size_t size), (p, size))
{
    return body_cudaHostAlloc(p, size, cudaHostAllocDefault);
}

RT(cudaFreeHost, (void *p), (p))
{
    RT_NEED(rt_context());
    return p ? rt_error(rt.cuMemFreeHost(p)) : cudaSuccess;
}

RT(cudaHostRegister, (void *p, size_t size, unsigned int flags), (p, size, flags))
{
    RT_CALL(rt.cuMemHostRegister(p, size, flags));
}

RT(cudaHostUnregister, (void *p), (p))
{
    RT_CALL(rt.cuMemHostUnregister(p));
}

RT(cudaHostGetDevicePointer, (void **pDevice, void *pHost, unsigned int flags), (pDevice, pHost, flags))
{
    CUdeviceptr p = 0;
    if (!pDevice)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    RT_NEED(rt_error(rt.cuMemHostGetDevicePointer(&p, pHost, flags)));
    *pDevice = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT(cudaHostGetFlags, (unsigned int *pFlags, void *pHost), (pFlags, pHost))
{
    RT_CALL(rt.cuMemHostGetFlags(pFlags, pHost));
}

RT_SZ(cudaMallocAsync, (void **devPtr, size_t size, cudaStream_t hStream), (devPtr, size, hStream))
{
    CUdeviceptr p = 0;
    if (!devPtr)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    if (size)
        RT_NEED(rt_error(rt.cuMemAllocAsync[pt](&p, size, hStream)));
    *devPtr = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT_SZ(cudaMallocFromPoolAsync, (void **out, size_t size, cudaMemPool_t memPool, cudaStream_t stream), (out, size, memPool, stream))
{
    CUdeviceptr p = 0;
    if (!out)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    RT_NEED(rt_error(rt.cuMemAllocFromPoolAsync[pt](&p, size, memPool, stream)));
    *out = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT_SZ(cudaFreeAsync, (void *devPtr, cudaStream_t hStream), (devPtr, hStream))
{
    RT_NEED(rt_context());
    return devPtr ? rt_error(rt.cuMemFreeAsync[pt](ptr(devPtr), hStream)) : cudaSuccess;
}

RT(cudaDeviceGetDefaultMemPool, (cudaMemPool_t * memPool, int device), (memPool, device))
{
    RT_CALL(rt.cuDeviceGetDefaultMemPool(memPool, device));
}

RT(cudaDeviceGetMemPool, (cudaMemPool_t * memPool, int device), (memPool, device))
{
    RT_CALL(rt.cuDeviceGetMemPool(memPool, device));
}

RT(cudaDeviceSetMemPool, (int device, cudaMemPool_t memPool), (device, memPool))
{
    RT_CALL(rt.cuDeviceSetMemPool(device, memPool));
}

_Static_assert(sizeof(struct cudaMemPoolProps) == sizeof(CUmemPoolProps), "the runtime's pool properties are the driver's");
_Static_assert(sizeof(struct cudaMemAccessDesc) == sizeof(CUmemAccessDesc), "the runtime's access descriptors are the driver's");

RT(cudaMemPoolCreate, (cudaMemPool_t * memPool, const struct cudaMemPoolProps *poolProps), (memPool, poolProps))
{
    RT_CALL(rt.cuMemPoolCreate(memPool, (const CUmemPoolProps *)poolProps));
}

RT(cudaMemPoolDestroy, (cudaMemPool_t memPool), (memPool))
{
    RT_CALL(rt.cuMemPoolDestroy(memPool));
}

RT(cudaMemPoolGetAttribute, (cudaMemPool_t memPool, enum cudaMemPoolAttr attr, void *value), (memPool, attr, value))
{
    RT_CALL(rt.cuMemPoolGetAttribute(memPool, (CUmemPool_attribute)attr, value));
}

RT(cudaMemPoolSetAttribute, (cudaMemPool_t memPool, enum cudaMemPoolAttr attr, void *value), (memPool, attr, value))
{
    RT_CALL(rt.cuMemPoolSetAttribute(memPool, (CUmemPool_attribute)attr, value));
}

RT(cudaMemPoolTrimTo, (cudaMemPool_t memPool, size_t minBytesToKeep), (memPool, minBytesToKeep))
{
    RT_CALL(rt.cuMemPoolTrimTo(memPool, minBytesToKeep));
}

RT(cudaMemPoolSetAccess, (cudaMemPool_t memPool, const struct cudaMemAccessDesc *descList, size_t count), (memPool, descList, count))
{
    RT_CALL(rt.cuMemPoolSetAccess(memPool, (const CUmemAccessDesc *)descList, count));
}

RT(cudaMemGetInfo, (size_t * free, size_t *total), (free, total))
{
    RT_CALL(rt.cuMemGetInfo(free, total));
}

RT(cudaPointerGetAttributes, (struct cudaPointerAttributes * attributes, const void *p), (attributes, p))
{
    CUmemorytype type = 0;
    CUdeviceptr device = 0;
    void *host = NULL;
    unsigned managed = 0;
    int ordinal = 0;
    CUpointer_attribute which[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
                                   CU_POINTER_ATTRIBUTE_HOST_POINTER, CU_POINTER_ATTRIBUTE_IS_MANAGED,
                                   CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
    void *values[] = {&type, &device, &host, &managed, &ordinal};
    if (!attributes)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    RT_NEED(rt_error(rt.cuPointerGetAttributes(5, which, values, ptr(p))));
    memset(attributes, 0, sizeof *attributes);
    if (!type) {
        attributes->type = cudaMemoryTypeUnregistered;
        attributes->device = cudaInvalidDeviceId;
        attributes->hostPointer = (void *)(uintptr_t)p;
        return cudaSuccess;
    }
    attributes->type = managed                     ? cudaMemoryTypeManaged
                       : type == CU_MEMORYTYPE_HOST ? cudaMemoryTypeHost
                                                    : cudaMemoryTypeDevice;
    attributes->device = ordinal;
    attributes->devicePointer = (void *)(uintptr_t)device;
    attributes->hostPointer = host;
    return cudaSuccess;
}

_Static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(CUipcMemHandle), "the runtime's IPC handle is the driver's");

RT(cudaIpcGetMemHandle, (cudaIpcMemHandle_t * handle, void *devPtr), (handle, devPtr))
{
    RT_CALL(rt.cuIpcGetMemHandle((CUipcMemHandle *)handle, ptr(devPtr)));
}

RT(cudaIpcOpenMemHandle, (void **devPtr, cudaIpcMemHandle_t handle, unsigned int flags), (devPtr, handle, flags))
{
    CUdeviceptr p = 0;
    CUipcMemHandle h;
    if (!devPtr)
        return cudaErrorInvalidValue;
    memcpy(&h, &handle, sizeof h);
    RT_NEED(rt_context());
    RT_NEED(rt_error(rt.cuIpcOpenMemHandle(&p, h, flags)));
    *devPtr = (void *)(uintptr_t)p;
    return cudaSuccess;
}

RT(cudaIpcCloseMemHandle, (void *devPtr), (devPtr))
{
    RT_CALL(rt.cuIpcCloseMemHandle(ptr(devPtr)));
}

RT(cudaMalloc3D, (struct cudaPitchedPtr * pitchedDevPtr, struct cudaExtent extent), (pitchedDevPtr, extent))
{
    void *p;
    size_t pitch, rows;
    if (!pitchedDevPtr)
        return cudaErrorInvalidValue;
    if (__builtin_mul_overflow(extent.height, extent.depth, &rows))
        return cudaErrorMemoryAllocation;
    RT_NEED(body_cudaMallocPitch(&p, &pitch, extent.width, rows));
    *pitchedDevPtr = (struct cudaPitchedPtr){p, pitch, extent.width, extent.height};
    return cudaSuccess;
}

RT(cudaMemPoolGetAccess, (enum cudaMemAccessFlags * flags, cudaMemPool_t memPool, struct cudaMemLocation *location),
   (flags, memPool, location))
{
    RT_CALL(rt.cuMemPoolGetAccess((CUmemAccess_flags *)flags, memPool, (CUmemLocation *)location));
}

RT(cudaMemPoolExportToShareableHandle,
   (void *shareableHandle, cudaMemPool_t memPool, enum cudaMemAllocationHandleType handleType, unsigned int flags),
   (shareableHandle, memPool, handleType, flags))
{
    RT_CALL(rt.cuMemPoolExportToShareableHandle(shareableHandle, memPool, (CUmemAllocationHandleType)handleType, flags));
}

RT(cudaMemPoolImportFromShareableHandle,
   (cudaMemPool_t * memPool, void *shareableHandle, enum cudaMemAllocationHandleType handleType, unsigned int flags),
   (memPool, shareableHandle, handleType, flags))
{
    RT_CALL(rt.cuMemPoolImportFromShareableHandle(memPool, shareableHandle, (CUmemAllocationHandleType)handleType, flags));
}

_Static_assert(sizeof(struct cudaMemPoolPtrExportData) == sizeof(CUmemPoolPtrExportData), "the runtime's export data are the driver's");

RT(cudaMemPoolExportPointer, (struct cudaMemPoolPtrExportData * exportData, void *p), (exportData, p))
{
    RT_CALL(rt.cuMemPoolExportPointer((CUmemPoolPtrExportData *)exportData, ptr(p)));
}

RT(cudaMemPoolImportPointer, (void **p, cudaMemPool_t memPool, struct cudaMemPoolPtrExportData *exportData), (p, memPool, exportData))
{
    RT_CALL(rt.cuMemPoolImportPointer((CUdeviceptr *)p, memPool, (CUmemPoolPtrExportData *)exportData));
}
