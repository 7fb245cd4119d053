/* SPDX-License-Identifier: Apache-2.0 */
/* The occupancy queries, from the device's own attributes. Entries cuOccupancy*.
 * Registers are counted in steps as the hardware allocates them, shared memory to the byte, so a figure may be one block high.
 */
#include "code.h"
#include "identity.h"

#define REGISTERS_EACH 256 /* registers are given to a warp in such steps (CUDA occupancy calculator, 5.0 and later) */

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int registers_of_warp(const struct sim_code *code)
{
    return (int)sim_round((uint64_t)code->registers * 32, REGISTERS_EACH);
}

int sim_code_max_threads(const struct sim_code *code)
{
    if (!code->registers)
        return code->max_threads;
    int warps = SIM_BLOCK_REGISTERS / registers_of_warp(code);
    return least(code->max_threads, 32 * warps);
}

int sim_active_blocks(struct CUfunc_st *f, int block, size_t dynamic)
{
    CUdevice dev = f->module->context->device;
    size_t reserved = (size_t)sim_device_attribute(dev, CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
    if (block > sim_code_max_threads(f->code) || dynamic > (size_t)sim_settings(f)->max_dynamic_shared)
        return 0;
    size_t shared = (size_t)f->code->shared + dynamic + reserved;
    int warps = (block + 31) / 32;
    int n = sim_device_attribute(dev, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR) / (32 * warps);
    n = least(n, sim_device_attribute(dev, CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR));
    if (f->code->registers)
        n = least(n, sim_device_attribute(dev, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR) / registers_of_warp(f->code) / warps);
    if (shared)
        n = least(n, (int)((size_t)sim_device_attribute(dev, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) / shared));
    return n;
}

static CUresult blocks_per_sm(int *blocks, CUfunction func, int block, size_t dynamic)
{
    struct CUfunc_st *f;
    if (!blocks || block <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (!r)
        *blocks = sim_active_blocks(f, block, dynamic);
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
    int most = sim_code_max_threads(f->code), top = limit > 0 ? least(limit, most) : most;
    for (int b = top < 32 ? top : top / 32 * 32; b > 0; b -= 32) {
        int threads = b * sim_active_blocks(f, b, dynamic_of ? dynamic_of(b) : dynamic);
        if (threads > best) {
            best = threads;
            best_block = b;
        }
    }
    if (!best)
        return CUDA_ERROR_INVALID_VALUE;
    *block = best_block;
    *grid = best / best_block * sim_device_attribute(f->module->context->device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
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
    int per_block = sim_device_attribute(f->module->context->device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) / numBlocks -
                    sim_device_attribute(f->module->context->device, CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK) - f->code->shared;
    per_block = least(per_block, SIM_MAX_SHARED - f->code->shared);
    *dynamicSmemSize = per_block > 0 ? (size_t)per_block : 0;
    return CUDA_SUCCESS;
}

/* A cluster's blocks run at the same time on neighbouring multiprocessors. How many of these are neighbours on a GPU is not
 * documented; here all are. */
static int blocks_at_once(struct CUfunc_st *f, const CUlaunchConfig *c)
{
    uint64_t threads = (uint64_t)c->blockDimX * c->blockDimY * c->blockDimZ;
    if (!threads || threads > SIM_MAX_THREADS)
        return 0;
    return sim_active_blocks(f, (int)threads, c->sharedMemBytes) *
           sim_device_attribute(f->module->context->device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
}

SIM_API CUresult cuOccupancyMaxPotentialClusterSize(int *clusterSize, CUfunction func, const CUlaunchConfig *config)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!clusterSize || !config)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (r)
        return r;
    int blocks = blocks_at_once(f, config);
    *clusterSize = 0;
    int most = sim_settings(f)->non_portable ? SIM_MAX_CLUSTER_ANY : SIM_MAX_CLUSTER;
    for (int size = 1; size <= most && size <= blocks; size *= 2)
        *clusterSize = size;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuOccupancyMaxActiveClusters(int *numClusters, CUfunction func, const CUlaunchConfig *config)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    if (!numClusters || !config || (config->numAttrs && !config->attrs))
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_function_of(func, &f);
    if (r)
        return r;
    const struct sim_settings *set = sim_settings(f);
    uint64_t size = (uint64_t)set->cluster[0] * (uint64_t)set->cluster[1] * (uint64_t)set->cluster[2];
    for (unsigned i = 0; i < config->numAttrs; i++)
        if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
            size = (uint64_t)config->attrs[i].value.clusterDim.x * config->attrs[i].value.clusterDim.y * config->attrs[i].value.clusterDim.z;
    if (!size) /* "Without required sizes, the cluster size must be specified in config" (cuda.h) */
        return CUDA_ERROR_INVALID_VALUE;
    if (size > (set->non_portable ? SIM_MAX_CLUSTER_ANY : SIM_MAX_CLUSTER))
        return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    *numClusters = blocks_at_once(f, config) / (int)size;
    return CUDA_SUCCESS;
}
