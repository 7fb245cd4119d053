/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, versions, limits, peers, and the error state.
 */
#include "rt.h"

#include <string.h>

RT(cudaDriverGetVersion, (int *driverVersion), (driverVersion))
{
    if (!driverVersion)
        return cudaErrorInvalidValue;
    rt_init();
    if (!rt.cuDriverGetVersion || rt.cuDriverGetVersion(driverVersion))
        *driverVersion = 0; /* documented: without a driver, and no error */
    return cudaSuccess;
}

RT(cudaRuntimeGetVersion, (int *runtimeVersion), (runtimeVersion))
{
    if (!runtimeVersion)
        return cudaErrorInvalidValue;
    *runtimeVersion = CUDART_VERSION;
    return cudaSuccess;
}

RT_API cudaError_t cudaGetLastError(void)
{
    sim_called("cudaGetLastError");
    cudaError_t e = rt_thread.last;
    rt_thread.last = cudaSuccess;
    return e;
}

RT_API cudaError_t cudaPeekAtLastError(void)
{
    sim_called("cudaPeekAtLastError");
    return rt_thread.last;
}

RT_API const char *cudaGetErrorName(cudaError_t error)
{
    sim_called("cudaGetErrorName");
    switch ((int)error) {
#define RT_ERROR_NAME(name, number) case number: return #name;
#include "rt_errors.inc"
#undef RT_ERROR_NAME
    default: return "unrecognized error code";
    }
}

RT_API const char *cudaGetErrorString(cudaError_t error)
{
    sim_called("cudaGetErrorString");
    const char *text = NULL;
    if (error == cudaSuccess)
        return "no error";
    if (!rt_init() && !rt.cuGetErrorString((CUresult)error, &text) && text)
        return text;
    return cudaGetErrorName(error);
}

RT(cudaGetDeviceCount, (int *count), (count))
{
    if (!count)
        return cudaErrorInvalidValue;
    *count = 0;
    RT_NEED(rt_init());
    RT_NEED(rt_error(rt.cuDeviceGetCount(count)));
    return *count ? cudaSuccess : cudaErrorNoDevice;
}

RT(cudaGetDevice, (int *device), (device))
{
    CUcontext current = NULL;
    CUdevice d;
    if (!device)
        return cudaErrorInvalidValue;
    RT_NEED(rt_init());
    *device = rt_thread.device;
    if (!rt.cuCtxGetCurrent(&current) && current && !rt.cuCtxGetDevice(&d))
        *device = d;
    return cudaSuccess;
}

RT(cudaSetDevice, (int device), (device))
{
    CUdevice d;
    RT_NEED(rt_init());
    RT_NEED(rt_error(rt.cuDeviceGet(&d, device)));
    rt_thread.device = device;
    RT_NEED(rt_error(rt.cuCtxSetCurrent(NULL)));
    return rt_context();
}

RT(cudaInitDevice, (int device, unsigned int deviceFlags, unsigned int flags), (device, deviceFlags, flags))
{
    CUcontext before = NULL;
    CUdevice d;
    int old = rt_thread.device;
    if (flags & ~(unsigned)cudaInitDeviceFlagsAreValid)
        return cudaErrorInvalidValue;
    RT_NEED(rt_init());
    RT_NEED(rt_error(rt.cuDeviceGet(&d, device)));
    if (flags)
        RT_NEED(rt_error(rt.cuDevicePrimaryCtxSetFlags(d, deviceFlags & cudaDeviceMask)));
    rt.cuCtxGetCurrent(&before);
    cudaError_t e = body_cudaSetDevice(device);
    rt_thread.device = old;
    rt.cuCtxSetCurrent(before);
    return e;
}

RT(cudaSetDeviceFlags, (unsigned int flags), (flags))
{
    RT_NEED(rt_init());
    return rt_error(rt.cuDevicePrimaryCtxSetFlags((CUdevice)rt_thread.device, flags & cudaDeviceMask));
}

RT(cudaGetDeviceFlags, (unsigned int *flags), (flags))
{
    int active;
    if (!flags)
        return cudaErrorInvalidValue;
    RT_NEED(rt_init());
    return rt_error(rt.cuDevicePrimaryCtxGetState((CUdevice)rt_thread.device, flags, &active));
}

RT(cudaDeviceGetAttribute, (int *value, enum cudaDeviceAttr attr, int device), (value, attr, device))
{
    RT_NEED(rt_init());
    return rt_error(rt.cuDeviceGetAttribute(value, (CUdevice_attribute)attr, device));
}

/* One property and the attributes that fill it, in order. */
static const struct property {
    size_t offset;
    CUdevice_attribute attribute;
    bool wide; /* size_t, not int */
} properties[] = {
#define P_INT(field, attribute) {offsetof(struct cudaDeviceProp, field), CU_DEVICE_ATTRIBUTE_##attribute, false}
#define P_SIZE(field, attribute) {offsetof(struct cudaDeviceProp, field), CU_DEVICE_ATTRIBUTE_##attribute, true}
    P_SIZE(sharedMemPerBlock, MAX_SHARED_MEMORY_PER_BLOCK),
    P_INT(regsPerBlock, MAX_REGISTERS_PER_BLOCK),
    P_INT(warpSize, WARP_SIZE),
    P_SIZE(memPitch, MAX_PITCH),
    P_INT(maxThreadsPerBlock, MAX_THREADS_PER_BLOCK),
    P_INT(maxThreadsDim[0], MAX_BLOCK_DIM_X),
    P_INT(maxThreadsDim[1], MAX_BLOCK_DIM_Y),
    P_INT(maxThreadsDim[2], MAX_BLOCK_DIM_Z),
    P_INT(maxGridSize[0], MAX_GRID_DIM_X),
    P_INT(maxGridSize[1], MAX_GRID_DIM_Y),
    P_INT(maxGridSize[2], MAX_GRID_DIM_Z),
    P_SIZE(totalConstMem, TOTAL_CONSTANT_MEMORY),
    P_INT(major, COMPUTE_CAPABILITY_MAJOR),
    P_INT(minor, COMPUTE_CAPABILITY_MINOR),
    P_SIZE(textureAlignment, TEXTURE_ALIGNMENT),
    P_SIZE(texturePitchAlignment, TEXTURE_PITCH_ALIGNMENT),
    P_INT(multiProcessorCount, MULTIPROCESSOR_COUNT),
    P_INT(integrated, INTEGRATED),
    P_INT(canMapHostMemory, CAN_MAP_HOST_MEMORY),
    P_SIZE(surfaceAlignment, SURFACE_ALIGNMENT),
    P_INT(concurrentKernels, CONCURRENT_KERNELS),
    P_INT(ECCEnabled, ECC_ENABLED),
    P_INT(pciBusID, PCI_BUS_ID),
    P_INT(pciDeviceID, PCI_DEVICE_ID),
    P_INT(pciDomainID, PCI_DOMAIN_ID),
    P_INT(asyncEngineCount, ASYNC_ENGINE_COUNT),
    P_INT(unifiedAddressing, UNIFIED_ADDRESSING),
    P_INT(memoryBusWidth, GLOBAL_MEMORY_BUS_WIDTH),
    P_INT(l2CacheSize, L2_CACHE_SIZE),
    P_INT(maxThreadsPerMultiProcessor, MAX_THREADS_PER_MULTIPROCESSOR),
    P_INT(streamPrioritiesSupported, STREAM_PRIORITIES_SUPPORTED),
    P_INT(globalL1CacheSupported, GLOBAL_L1_CACHE_SUPPORTED),
    P_INT(localL1CacheSupported, LOCAL_L1_CACHE_SUPPORTED),
    P_SIZE(sharedMemPerMultiprocessor, MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
    P_INT(regsPerMultiprocessor, MAX_REGISTERS_PER_MULTIPROCESSOR),
    P_INT(managedMemory, MANAGED_MEMORY),
    P_INT(isMultiGpuBoard, MULTI_GPU_BOARD),
    P_INT(multiGpuBoardGroupID, MULTI_GPU_BOARD_GROUP_ID),
    P_INT(hostNativeAtomicSupported, HOST_NATIVE_ATOMIC_SUPPORTED),
    P_INT(pageableMemoryAccess, PAGEABLE_MEMORY_ACCESS),
    P_INT(concurrentManagedAccess, CONCURRENT_MANAGED_ACCESS),
    P_INT(computePreemptionSupported, COMPUTE_PREEMPTION_SUPPORTED),
    P_INT(canUseHostPointerForRegisteredMem, CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM),
    P_INT(cooperativeLaunch, COOPERATIVE_LAUNCH),
    P_SIZE(sharedMemPerBlockOptin, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
    P_INT(pageableMemoryAccessUsesHostPageTables, PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES),
    P_INT(directManagedMemAccessFromHost, DIRECT_MANAGED_MEM_ACCESS_FROM_HOST),
    P_INT(maxBlocksPerMultiProcessor, MAX_BLOCKS_PER_MULTIPROCESSOR),
    P_SIZE(reservedSharedMemPerBlock, RESERVED_SHARED_MEMORY_PER_BLOCK),
    P_INT(hostRegisterSupported, HOST_REGISTER_SUPPORTED),
    P_INT(memoryPoolsSupported, MEMORY_POOLS_SUPPORTED),
    P_INT(gpuDirectRDMASupported, GPU_DIRECT_RDMA_SUPPORTED),
    P_INT(clusterLaunch, CLUSTER_LAUNCH),
    P_INT(ipcEventSupported, IPC_EVENT_SUPPORTED),
    P_INT(maxTexture1D, MAXIMUM_TEXTURE1D_WIDTH),
    P_INT(maxTexture1DMipmap, MAXIMUM_TEXTURE1D_MIPMAPPED_WIDTH),
    P_INT(maxTexture2D[0], MAXIMUM_TEXTURE2D_WIDTH),
    P_INT(maxTexture2D[1], MAXIMUM_TEXTURE2D_HEIGHT),
    P_INT(maxTexture2DMipmap[0], MAXIMUM_TEXTURE2D_MIPMAPPED_WIDTH),
    P_INT(maxTexture2DMipmap[1], MAXIMUM_TEXTURE2D_MIPMAPPED_HEIGHT),
    P_INT(maxTexture2DLinear[0], MAXIMUM_TEXTURE2D_LINEAR_WIDTH),
    P_INT(maxTexture2DLinear[1], MAXIMUM_TEXTURE2D_LINEAR_HEIGHT),
    P_INT(maxTexture2DLinear[2], MAXIMUM_TEXTURE2D_LINEAR_PITCH),
    P_INT(maxTexture2DGather[0], MAXIMUM_TEXTURE2D_GATHER_WIDTH),
    P_INT(maxTexture2DGather[1], MAXIMUM_TEXTURE2D_GATHER_HEIGHT),
    P_INT(maxTexture3D[0], MAXIMUM_TEXTURE3D_WIDTH),
    P_INT(maxTexture3D[1], MAXIMUM_TEXTURE3D_HEIGHT),
    P_INT(maxTexture3D[2], MAXIMUM_TEXTURE3D_DEPTH),
    P_INT(maxTexture3DAlt[0], MAXIMUM_TEXTURE3D_WIDTH_ALTERNATE),
    P_INT(maxTexture3DAlt[1], MAXIMUM_TEXTURE3D_HEIGHT_ALTERNATE),
    P_INT(maxTexture3DAlt[2], MAXIMUM_TEXTURE3D_DEPTH_ALTERNATE),
    P_INT(maxTextureCubemap, MAXIMUM_TEXTURECUBEMAP_WIDTH),
    P_INT(maxTexture1DLayered[0], MAXIMUM_TEXTURE1D_LAYERED_WIDTH),
    P_INT(maxTexture1DLayered[1], MAXIMUM_TEXTURE1D_LAYERED_LAYERS),
    P_INT(maxTexture2DLayered[0], MAXIMUM_TEXTURE2D_LAYERED_WIDTH),
    P_INT(maxTexture2DLayered[1], MAXIMUM_TEXTURE2D_LAYERED_HEIGHT),
    P_INT(maxTexture2DLayered[2], MAXIMUM_TEXTURE2D_LAYERED_LAYERS),
    P_INT(maxTextureCubemapLayered[0], MAXIMUM_TEXTURECUBEMAP_LAYERED_WIDTH),
    P_INT(maxTextureCubemapLayered[1], MAXIMUM_TEXTURECUBEMAP_LAYERED_LAYERS),
    P_INT(maxSurface1D, MAXIMUM_SURFACE1D_WIDTH),
    P_INT(maxSurface2D[0], MAXIMUM_SURFACE2D_WIDTH),
    P_INT(maxSurface2D[1], MAXIMUM_SURFACE2D_HEIGHT),
    P_INT(maxSurface3D[0], MAXIMUM_SURFACE3D_WIDTH),
    P_INT(maxSurface3D[1], MAXIMUM_SURFACE3D_HEIGHT),
    P_INT(maxSurface3D[2], MAXIMUM_SURFACE3D_DEPTH),
    P_INT(maxSurface1DLayered[0], MAXIMUM_SURFACE1D_LAYERED_WIDTH),
    P_INT(maxSurface1DLayered[1], MAXIMUM_SURFACE1D_LAYERED_LAYERS),
    P_INT(maxSurface2DLayered[0], MAXIMUM_SURFACE2D_LAYERED_WIDTH),
    P_INT(maxSurface2DLayered[1], MAXIMUM_SURFACE2D_LAYERED_HEIGHT),
    P_INT(maxSurface2DLayered[2], MAXIMUM_SURFACE2D_LAYERED_LAYERS),
    P_INT(maxSurfaceCubemap, MAXIMUM_SURFACECUBEMAP_WIDTH),
    P_INT(maxSurfaceCubemapLayered[0], MAXIMUM_SURFACECUBEMAP_LAYERED_WIDTH),
    P_INT(maxSurfaceCubemapLayered[1], MAXIMUM_SURFACECUBEMAP_LAYERED_LAYERS),
    P_INT(tccDriver, TCC_DRIVER),
    P_INT(persistingL2CacheMaxSize, MAX_PERSISTING_L2_CACHE_SIZE),
    P_INT(accessPolicyMaxWindowSize, MAX_ACCESS_POLICY_WINDOW_SIZE),
    P_INT(sparseCudaArraySupported, SPARSE_CUDA_ARRAY_SUPPORTED),
    P_INT(hostRegisterReadOnlySupported, READ_ONLY_HOST_REGISTER_SUPPORTED),
    P_INT(timelineSemaphoreInteropSupported, TIMELINE_SEMAPHORE_INTEROP_SUPPORTED),
    P_INT(gpuDirectRDMAFlushWritesOptions, GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS),
    P_INT(gpuDirectRDMAWritesOrdering, GPU_DIRECT_RDMA_WRITES_ORDERING),
    P_INT(memoryPoolSupportedHandleTypes, MEMPOOL_SUPPORTED_HANDLE_TYPES),
    P_INT(deferredMappingCudaArraySupported, DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED),
    P_INT(unifiedFunctionPointers, UNIFIED_FUNCTION_POINTERS),
#if CUDART_VERSION >= 13000
    P_INT(deviceNumaConfig, NUMA_CONFIG),
    P_INT(deviceNumaId, NUMA_ID),
    P_INT(hostNumaId, HOST_NUMA_ID),
    P_INT(mpsEnabled, MPS_ENABLED),
    P_INT(gpuPciDeviceID, GPU_PCI_DEVICE_ID),
    P_INT(gpuPciSubsystemID, GPU_PCI_SUBSYSTEM_ID),
    P_INT(hostNumaMultinodeIpcSupported, HOST_NUMA_MULTINODE_IPC_SUPPORTED),
#else
    P_INT(clockRate, CLOCK_RATE),
    P_INT(deviceOverlap, GPU_OVERLAP),
    P_INT(kernelExecTimeoutEnabled, KERNEL_EXEC_TIMEOUT),
    P_INT(computeMode, COMPUTE_MODE),
    P_INT(memoryClockRate, MEMORY_CLOCK_RATE),
    P_INT(singleToDoublePrecisionPerfRatio, SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO),
    P_INT(cooperativeMultiDeviceLaunch, COOPERATIVE_MULTI_DEVICE_LAUNCH),
#endif
#undef P_INT
#undef P_SIZE
};

/* What the driver does not know an attribute for stays 0. */
RT(cudaGetDeviceProperties, (struct cudaDeviceProp * prop, int device), (prop, device))
{
    CUdevice d;
    if (!prop)
        return cudaErrorInvalidValue;
    RT_NEED(rt_init());
    RT_NEED(rt_error(rt.cuDeviceGet(&d, device)));
    memset(prop, 0, sizeof *prop);
    RT_NEED(rt_error(rt.cuDeviceGetName(prop->name, sizeof prop->name, d)));
    RT_NEED(rt_error(rt.cuDeviceGetUuid((CUuuid *)&prop->uuid, d)));
    RT_NEED(rt_error(rt.cuDeviceTotalMem(&prop->totalGlobalMem, d)));
    for (size_t i = 0; i < sizeof properties / sizeof properties[0]; i++) {
        const struct property *p = &properties[i];
        int value = 0;
        if (rt.cuDeviceGetAttribute(&value, p->attribute, d))
            value = 0;
        if (p->wide)
            *(size_t *)(void *)((char *)prop + p->offset) = (size_t)value;
        else
            *(int *)(void *)((char *)prop + p->offset) = value;
    }
    return cudaSuccess;
}

RT(cudaDeviceGetPCIBusId, (char *pciBusId, int len, int device), (pciBusId, len, device))
{
    RT_NEED(rt_init());
    return rt_error(rt.cuDeviceGetPCIBusId(pciBusId, len, device));
}

RT(cudaDeviceGetByPCIBusId, (int *device, const char *pciBusId), (device, pciBusId))
{
    RT_NEED(rt_init());
    return rt_error(rt.cuDeviceGetByPCIBusId(device, pciBusId));
}

RT(cudaDeviceSynchronize, (void), ())
{
    RT_CALL(rt.cuCtxSynchronize());
}

RT(cudaDeviceReset, (void), ())
{
    int device;
    RT_NEED(body_cudaGetDevice(&device));
    return rt_reset(device);
}

RT(cudaDeviceGetStreamPriorityRange, (int *leastPriority, int *greatestPriority), (leastPriority, greatestPriority))
{
    RT_CALL(rt.cuCtxGetStreamPriorityRange(leastPriority, greatestPriority));
}

RT(cudaDeviceGetLimit, (size_t * pValue, enum cudaLimit limit), (pValue, limit))
{
    RT_CALL(rt.cuCtxGetLimit(pValue, (CUlimit)limit));
}

RT(cudaDeviceSetLimit, (enum cudaLimit limit, size_t value), (limit, value))
{
    RT_CALL(rt.cuCtxSetLimit((CUlimit)limit, value));
}

RT(cudaDeviceCanAccessPeer, (int *canAccessPeer, int device, int peerDevice), (canAccessPeer, device, peerDevice))
{
    RT_NEED(rt_init());
    return rt_error(rt.cuDeviceCanAccessPeer(canAccessPeer, device, peerDevice));
}

cudaError_t rt_primary(int device, CUcontext *out)
{
    CUcontext before = NULL;
    int old = rt_thread.device;
    RT_NEED(rt_context());
    rt.cuCtxGetCurrent(&before);
    cudaError_t e = body_cudaSetDevice(device);
    if (!e)
        rt.cuCtxGetCurrent(out);
    rt_thread.device = old;
    rt.cuCtxSetCurrent(before);
    return e;
}

RT(cudaDeviceEnablePeerAccess, (int peerDevice, unsigned int flags), (peerDevice, flags))
{
    CUcontext peer;
    RT_NEED(rt_primary(peerDevice, &peer));
    return rt_error(rt.cuCtxEnablePeerAccess(peer, flags));
}

RT(cudaDeviceDisablePeerAccess, (int peerDevice), (peerDevice))
{
    CUcontext peer;
    RT_NEED(rt_primary(peerDevice, &peer));
    return rt_error(rt.cuCtxDisablePeerAccess(peer));
}

/* The flags are the driver's; the version decides which ABI a name means. */
RT_SZ(cudaGetDriverEntryPointByVersion,
      (const char *symbol, void **funcPtr, unsigned int cudaVersion, unsigned long long flags,
       enum cudaDriverEntryPointQueryResult *driverStatus),
      (symbol, funcPtr, cudaVersion, flags, driverStatus))
{
    CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
    RT_NEED(rt_init());
    if (!symbol || !funcPtr)
        return cudaErrorInvalidValue;
    if (pt && !flags)
        flags = cudaEnablePerThreadDefaultStream;
    CUresult r = rt.cuGetProcAddress(symbol, funcPtr, (int)cudaVersion, flags, &status);
    if (driverStatus)
        *driverStatus = (enum cudaDriverEntryPointQueryResult)status;
    return r == CUDA_ERROR_NOT_FOUND && driverStatus ? cudaSuccess : rt_error(r);
}

RT_SZ(cudaGetDriverEntryPoint,
      (const char *symbol, void **funcPtr, unsigned long long flags, enum cudaDriverEntryPointQueryResult *driverStatus),
      (symbol, funcPtr, flags, driverStatus))
{
    return body_cudaGetDriverEntryPointByVersion(pt, symbol, funcPtr, CUDART_VERSION, flags, driverStatus);
}

RT(cudaDeviceGetP2PAttribute, (int *value, enum cudaDeviceP2PAttr attr, int srcDevice, int dstDevice),
   (value, attr, srcDevice, dstDevice))
{
    RT_NEED(rt_init());
    return rt_error(rt.cuDeviceGetP2PAttribute(value, (CUdevice_P2PAttribute)attr, srcDevice, dstDevice));
}

RT(cudaDeviceGetCacheConfig, (enum cudaFuncCache * pCacheConfig), (pCacheConfig))
{
    RT_CALL(rt.cuCtxGetCacheConfig((CUfunc_cache *)pCacheConfig));
}

RT(cudaDeviceSetCacheConfig, (enum cudaFuncCache cacheConfig), (cacheConfig))
{
    RT_CALL(rt.cuCtxSetCacheConfig((CUfunc_cache)cacheConfig));
}

RT(cudaCtxResetPersistingL2Cache, (void), ())
{
    RT_CALL(rt.cuCtxResetPersistingL2Cache());
}

/* Declared in cuda_profiler_api.h, which comes with the compiler. */
RT_API cudaError_t cudaProfilerStart(void);
RT_API cudaError_t cudaProfilerStop(void);

RT(cudaProfilerStart, (void), ())
{
    RT_CALL(rt.cuProfilerStart());
}

RT(cudaProfilerStop, (void), ())
{
    RT_CALL(rt.cuProfilerStop());
}

RT_API struct cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w, enum cudaChannelFormatKind f)
{
    sim_called("cudaCreateChannelDesc");
    return (struct cudaChannelFormatDesc){x, y, z, w, f};
}
