/* SPDX-License-Identifier: Apache-2.0 */
/* Managed memory: advice, prefetches, and what can be asked about a range.
 * CUDA 13 names places by location; 12 has that as _v2, and a device number (-1: the CPU) in the entry without suffix.
 */
#include "rt.h"

_Static_assert(sizeof(struct cudaMemLocation) == sizeof(CUmemLocation), "the runtime's locations are the driver's");

static CUmemLocation place(struct cudaMemLocation location)
{
    return (CUmemLocation){.type = (CUmemLocationType)location.type, .id = location.id};
}

#if CUDART_VERSION >= 13000
#define WITH_LOCATION(name) name
#else
#define WITH_LOCATION(name) name##_v2

static struct cudaMemLocation numbered(int device)
{
    return device == cudaCpuDeviceId ? (struct cudaMemLocation){.type = cudaMemLocationTypeHost}
                                     : (struct cudaMemLocation){.type = cudaMemLocationTypeDevice, .id = device};
}

RT(cudaMemAdvise, (const void *devPtr, size_t count, enum cudaMemoryAdvise advice, int device), (devPtr, count, advice, device))
{
    RT_CALL(rt.cuMemAdvise((CUdeviceptr)(uintptr_t)devPtr, count, (CUmem_advise)advice, place(numbered(device))));
}

RT_SZ(cudaMemPrefetchAsync, (const void *devPtr, size_t count, int dstDevice, cudaStream_t stream), (devPtr, count, dstDevice, stream))
{
    RT_CALL(rt.cuMemPrefetchAsync[pt]((CUdeviceptr)(uintptr_t)devPtr, count, place(numbered(dstDevice)), 0, stream));
}

/* Not declared for programs: the macro of the header leads to it. */
RT_API cudaError_t cudaMemPrefetchAsync_v2_ptsz(const void *devPtr, size_t count, struct cudaMemLocation location, unsigned int flags,
                                                cudaStream_t stream);
#endif

RT(WITH_LOCATION(cudaMemAdvise), (const void *devPtr, size_t count, enum cudaMemoryAdvise advice, struct cudaMemLocation location),
   (devPtr, count, advice, location))
{
    RT_CALL(rt.cuMemAdvise((CUdeviceptr)(uintptr_t)devPtr, count, (CUmem_advise)advice, place(location)));
}

#if CUDART_VERSION >= 13000
RT_SZ(cudaMemPrefetchAsync,
#else
RT_SZ(cudaMemPrefetchAsync_v2,
#endif
      (const void *devPtr, size_t count, struct cudaMemLocation location, unsigned int flags, cudaStream_t stream),
      (devPtr, count, location, flags, stream))
{
    RT_CALL(rt.cuMemPrefetchAsync[pt]((CUdeviceptr)(uintptr_t)devPtr, count, place(location), flags, stream));
}

RT(cudaMemRangeGetAttribute,
   (void *data, size_t dataSize, enum cudaMemRangeAttribute attribute, const void *devPtr, size_t count),
   (data, dataSize, attribute, devPtr, count))
{
    RT_CALL(rt.cuMemRangeGetAttribute(data, dataSize, (CUmem_range_attribute)attribute, (CUdeviceptr)(uintptr_t)devPtr, count));
}

RT(cudaMemRangeGetAttributes,
   (void **data, size_t *dataSizes, enum cudaMemRangeAttribute *attributes, size_t numAttributes, const void *devPtr, size_t count),
   (data, dataSizes, attributes, numAttributes, devPtr, count))
{
    RT_CALL(rt.cuMemRangeGetAttributes(data, dataSizes, (CUmem_range_attribute *)attributes, numAttributes,
                                       (CUdeviceptr)(uintptr_t)devPtr, count));
}

RT_SZ(cudaStreamAttachMemAsync, (cudaStream_t stream, void *devPtr, size_t length, unsigned int flags),
      (stream, devPtr, length, flags))
{
    RT_CALL(rt.cuStreamAttachMemAsync[pt](stream, (CUdeviceptr)(uintptr_t)devPtr, length, flags));
}
