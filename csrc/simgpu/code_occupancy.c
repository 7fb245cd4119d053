/* SPDX-License-Identifier: Apache-2.0 */
/* The occupancy queries, from the device's own attributes. Entries cuOccupancy*.
 * Registers and shared memory are counted without the hardware's allocation granularity, so figures may be one block high.
 */
#include "code.h"

static int device_attribute(CUdevice_attribute attribute)
{
    CUdevice device;
    int value = 0;
    if (cuCtxGetDevice(&device) || cuDeviceGetAttribute(&value, attribute, device))
        return 0;
    return value;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int active_blocks(const struct CUfunc_st *f, int block, size_t dynamic)
{
    size_t reserved = (size_t)device_attribute(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
    size_t shared = (size_t)f->code->shared + dynamic + reserved;
    int warps = (block + 31) / 32;
    if (block > f->code->max_threads || dynamic > (size_t)*sim_function_shared((struct CUfunc_st *)f))
        return 0;
    int n = device_attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR) / (32 * warps);
    n = least(n, device_attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR));
    if (f->code->registers)
        n = least(n, device_attribute(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR) / (f->code->registers * 32 * warps));
    if (shared)
        n = least(n, (int)((size_t)device_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) / shared));
    return n;
}

static CUresult blocks_per_sm(int *blocks, CUfunction func, int block, size_t dynamic)
{
    struct CUfunc_st *f;
    if (!blocks || block <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (!r)
        *blocks = active_blocks(f, block, dynamic);
    return r;
}

SIM_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, CUfunction func, int blockSize, size_t dynamicSMemSize)
{
    SIM_ENTRY();
    return blocks_per_sm(numBlocks, func, blockSize, dynamicSMemSize);
}

SIM_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *numBlocks, CUfunction func, int blockSize,
                                                                      size_t dynamicSMemSize, unsigned int flags)
{
    SIM_ENTRY();
    if (flags & ~(unsigned)CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE)
        return CUDA_ERROR_INVALID_VALUE;
    return blocks_per_sm(numBlocks, func, blockSize, dynamicSMemSize);
}

static CUresult potential(int *grid, int *block, CUfunction func, CUoccupancyB2DSize dynamic_of, size_t dynamic, int limit)
{
    struct CUfunc_st *f;
    if (!grid || !block)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (r)
        return r;
    int best = 0, best_block = 0;
    int top = limit > 0 ? least(limit, f->code->max_threads) : f->code->max_threads;
    for (int b = top < 32 ? top : top / 32 * 32; b > 0; b -= 32) {
        int threads = b * active_blocks(f, b, dynamic_of ? dynamic_of(b) : dynamic);
        if (threads > best) {
            best = threads;
            best_block = b;
        }
    }
    if (!best)
        return CUDA_ERROR_INVALID_VALUE;
    *block = best_block;
    *grid = best / best_block * device_attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, CUfunction func,
                                                  CUoccupancyB2DSize blockSizeToDynamicSMemSize, size_t dynamicSMemSize,
                                                  int blockSizeLimit)
{
    SIM_ENTRY();
    return potential(minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize, blockSizeLimit);
}

SIM_API CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, CUfunction func,
                                                           CUoccupancyB2DSize blockSizeToDynamicSMemSize, size_t dynamicSMemSize,
                                                           int blockSizeLimit, unsigned int flags)
{
    SIM_ENTRY();
    if (flags & ~(unsigned)CU_OCCUPANCY_DISABLE_CACHING_OVERRIDE)
        return CUDA_ERROR_INVALID_VALUE;
    return potential(minGridSize, blockSize, func, blockSizeToDynamicSMemSize, dynamicSMemSize, blockSizeLimit);
}

SIM_API CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamicSmemSize, CUfunction func, int numBlocks, int blockSize)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!dynamicSmemSize || numBlocks <= 0 || blockSize <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (r)
        return r;
    int per_block = device_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) / numBlocks -
                    device_attribute(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK) - f->code->shared;
    per_block = least(per_block, SIM_MAX_SHARED - f->code->shared);
    *dynamicSmemSize = per_block > 0 ? (size_t)per_block : 0;
    return CUDA_SUCCESS;
}
