/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches, function attributes and occupancy.
 */
#include "rt.h"

#include <string.h>

/* The driver's INVALID_VALUE of a launch, by the runtime's name where the cause is a shape that this device never runs. */
static cudaError_t launched(CUresult r, dim3 grid, dim3 block)
{
    static const CUdevice_attribute limits[7] = {
        CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X,  CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y,  CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z,
        CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z,
        CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK};
    const uint64_t asked[7] = {grid.x, grid.y, grid.z, block.x, block.y, block.z, (uint64_t)block.x * block.y * block.z};
    CUdevice device;
    if (r != CUDA_ERROR_INVALID_VALUE || rt.cuCtxGetDevice(&device))
        return rt_error(r);
    for (int i = 0, most; i < 7; i++)
        if (!asked[i] || (!rt.cuDeviceGetAttribute(&most, limits[i], device) && asked[i] > (uint64_t)most))
            return cudaErrorInvalidConfiguration;
    return rt_error(r);
}

static cudaError_t start(int pt, const void *function, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream)
{
    CUfunction f;
    RT_NEED(rt_function(function, &f));
    if (shared > UINT32_MAX)
        return cudaErrorInvalidValue;
    CUresult r = rt.cuLaunchKernel[pt](f, grid.x, grid.y, grid.z, block.x, block.y, block.z, (unsigned)shared, stream, args, NULL);
    return launched(r, grid, block);
}

RT_SZ(cudaLaunchKernel, (const void *func, dim3 gridDim, dim3 blockDim, void **args, size_t sharedMem, cudaStream_t stream),
      (func, gridDim, blockDim, args, sharedMem, stream))
{
    return start(pt, func, gridDim, blockDim, args, sharedMem, stream);
}

RT_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream);
RT_API cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream);

RT_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream)
{
    sim_called("__cudaLaunchKernel");
    return rt_note(start(0, kernel, grid, block, args, shared, stream));
}

RT_API cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream)
{
    sim_called("__cudaLaunchKernel_ptsz");
    return rt_note(start(1, kernel, grid, block, args, shared, stream));
}

RT_SZ(cudaLaunchCooperativeKernel,
      (const void *func, dim3 gridDim, dim3 blockDim, void **args, size_t sharedMem, cudaStream_t stream),
      (func, gridDim, blockDim, args, sharedMem, stream))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    if (sharedMem > UINT32_MAX)
        return cudaErrorInvalidValue;
    CUresult r = rt.cuLaunchCooperativeKernel[pt](f, gridDim.x, gridDim.y, gridDim.z, blockDim.x, blockDim.y, blockDim.z,
                                                  (unsigned)sharedMem, stream, args);
    return launched(r, gridDim, blockDim);
}

_Static_assert(sizeof(cudaLaunchAttribute) == sizeof(CUlaunchAttribute), "the runtime's launch attributes are the driver's");

static CUlaunchConfig configuration(const cudaLaunchConfig_t *config)
{
    return (CUlaunchConfig){config->gridDim.x,  config->gridDim.y,  config->gridDim.z, config->blockDim.x, config->blockDim.y,
                            config->blockDim.z, (unsigned)config->dynamicSmemBytes, config->stream, (CUlaunchAttribute *)config->attrs,
                            config->numAttrs};
}

RT_SZ(cudaLaunchKernelExC, (const cudaLaunchConfig_t *config, const void *func, void **args), (config, func, args))
{
    CUfunction f;
    if (!config || config->dynamicSmemBytes > UINT32_MAX)
        return cudaErrorInvalidValue;
    RT_NEED(rt_function(func, &f));
    CUlaunchConfig c = configuration(config);
    return launched(rt.cuLaunchKernelEx[pt](&c, f, args, NULL), config->gridDim, config->blockDim);
}

RT_SZ(cudaLaunchHostFunc, (cudaStream_t stream, cudaHostFn_t fn, void *userData), (stream, fn, userData))
{
    RT_CALL(rt.cuLaunchHostFunc[pt](stream, fn, userData));
}

RT(cudaFuncGetAttributes, (struct cudaFuncAttributes * attr, const void *func), (attr, func))
{
    CUfunction f;
    int v[10];
    static const CUfunction_attribute which[10] = {
        CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
        CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, CU_FUNC_ATTRIBUTE_NUM_REGS, CU_FUNC_ATTRIBUTE_PTX_VERSION,
        CU_FUNC_ATTRIBUTE_BINARY_VERSION, CU_FUNC_ATTRIBUTE_CACHE_MODE_CA, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT};
    if (!attr)
        return cudaErrorInvalidValue;
    RT_NEED(rt_function(func, &f));
    for (size_t i = 0; i < 10; i++)
        RT_NEED(rt_error(rt.cuFuncGetAttribute(&v[i], which[i], f)));
    memset(attr, 0, sizeof *attr);
    attr->sharedSizeBytes = (size_t)v[0];
    attr->constSizeBytes = (size_t)v[1];
    attr->localSizeBytes = (size_t)v[2];
    attr->maxThreadsPerBlock = v[3];
    attr->numRegs = v[4];
    attr->ptxVersion = v[5];
    attr->binaryVersion = v[6];
    attr->cacheModeCA = v[7];
    attr->maxDynamicSharedSizeBytes = v[8];
    attr->preferredShmemCarveout = v[9];
    return cudaSuccess;
}

RT(cudaFuncSetAttribute, (const void *func, enum cudaFuncAttribute attr, int value), (func, attr, value))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    return rt_error(rt.cuFuncSetAttribute(f, (CUfunction_attribute)attr, value));
}

RT(cudaFuncSetCacheConfig, (const void *func, enum cudaFuncCache cacheConfig), (func, cacheConfig))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    return rt_error(rt.cuFuncSetCacheConfig(f, (CUfunc_cache)cacheConfig));
}

RT(cudaFuncGetName, (const char **name, const void *func), (name, func))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    return rt_error(rt.cuFuncGetName(name, f));
}

RT(cudaFuncGetParamInfo, (const void *func, size_t paramIndex, size_t *paramOffset, size_t *paramSize),
   (func, paramIndex, paramOffset, paramSize))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    return rt_error(rt.cuFuncGetParamInfo(f, paramIndex, paramOffset, paramSize));
}

RT(cudaGetFuncBySymbol, (cudaFunction_t * functionPtr, const void *symbolPtr), (functionPtr, symbolPtr))
{
    return functionPtr ? rt_function(symbolPtr, functionPtr) : cudaErrorInvalidValue;
}

RT(cudaGetKernel, (cudaKernel_t * kernelPtr, const void *entryFuncAddr), (kernelPtr, entryFuncAddr))
{
    return kernelPtr ? rt_kernel(entryFuncAddr, (CUkernel *)kernelPtr) : cudaErrorInvalidValue;
}

RT(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags,
   (int *numBlocks, const void *func, int blockSize, size_t dynamicSMemSize, unsigned int flags),
   (numBlocks, func, blockSize, dynamicSMemSize, flags))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    return rt_error(rt.cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(numBlocks, f, blockSize, dynamicSMemSize, flags));
}

RT(cudaOccupancyMaxActiveBlocksPerMultiprocessor, (int *numBlocks, const void *func, int blockSize, size_t dynamicSMemSize),
   (numBlocks, func, blockSize, dynamicSMemSize))
{
    return body_cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(numBlocks, func, blockSize, dynamicSMemSize, 0);
}

RT(cudaOccupancyAvailableDynamicSMemPerBlock, (size_t * dynamicSmemSize, const void *func, int numBlocks, int blockSize),
   (dynamicSmemSize, func, numBlocks, blockSize))
{
    CUfunction f;
    RT_NEED(rt_function(func, &f));
    return rt_error(rt.cuOccupancyAvailableDynamicSMemPerBlock(dynamicSmemSize, f, numBlocks, blockSize));
}

RT(cudaOccupancyMaxActiveClusters, (int *numClusters, const void *func, const cudaLaunchConfig_t *launchConfig),
   (numClusters, func, launchConfig))
{
    CUfunction f;
    if (!launchConfig || launchConfig->dynamicSmemBytes > UINT32_MAX)
        return cudaErrorInvalidValue;
    RT_NEED(rt_function(func, &f));
    CUlaunchConfig c = configuration(launchConfig);
    return rt_error(rt.cuOccupancyMaxActiveClusters(numClusters, f, &c));
}

RT(cudaOccupancyMaxPotentialClusterSize, (int *clusterSize, const void *func, const cudaLaunchConfig_t *launchConfig),
   (clusterSize, func, launchConfig))
{
    CUfunction f;
    if (!launchConfig || launchConfig->dynamicSmemBytes > UINT32_MAX)
        return cudaErrorInvalidValue;
    RT_NEED(rt_function(func, &f));
    CUlaunchConfig c = configuration(launchConfig);
    return rt_error(rt.cuOccupancyMaxPotentialClusterSize(clusterSize, f, &c));
}
