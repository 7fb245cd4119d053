/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin on the CUDA runtime (libcudart.so), which opens the driver by itself when it is first called. Loaded by
 * client_dlopen.c with RTLD_LOCAL: then no symbol of libcudart or libcuda is in the program's global scope. */
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(call) do { \
        cudaError_t r_ = (call); \
        if (r_ != cudaSuccess) { \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorName(r_)); \
            return r_ == cudaErrorMemoryAllocation ? 2 : 1; \
        } \
    } while (0)

static unsigned char expected(uint64_t seed, unsigned region, uint64_t i)
{
    return (unsigned char)((i * 0x9e3779b97f4a7c15ull + seed + region) >> 40);
}

__attribute__((visibility("default"))) int plugin_run(unsigned count, uint64_t bytes, uint64_t seed)
{
    void **region = calloc(count, sizeof *region);
    unsigned char *host = malloc(bytes);
    struct cudaDeviceProp properties;
    size_t free_bytes, total;

    if (!region || !host)
        return 1;
    MUST(cudaGetDeviceProperties(&properties, 0));
    MUST(cudaMemGetInfo(&free_bytes, &total));
    if (properties.totalGlobalMem != total || free_bytes > total) {
        fprintf(stderr, "totalGlobalMem %zu, cudaMemGetInfo free %zu total %zu\n", properties.totalGlobalMem, free_bytes, total);
        return 1;
    }
    for (unsigned r = 0; r < count; r++) {
        MUST(cudaMalloc(&region[r], bytes));
        for (uint64_t i = 0; i < bytes; i++)
            host[i] = expected(seed, r, i);
        MUST(cudaMemcpy(region[r], host, bytes, cudaMemcpyHostToDevice));
        MUST(cudaMemset((char *)region[r] + bytes / 4, 0x5c, bytes / 2));
    }
    for (unsigned r = 0; r < count; r++) {
        memset(host, 0, bytes);
        MUST(cudaMemcpy(host, region[r], bytes, cudaMemcpyDefault));
        for (uint64_t i = 0; i < bytes; i++) {
            unsigned char want = i >= bytes / 4 && i < bytes / 4 + bytes / 2 ? 0x5c : expected(seed, r, i);
            if (host[i] != want) {
                fprintf(stderr, "region %u byte %llu: %#x, expected %#x\n", r, (unsigned long long)i, host[i], want);
                return 1;
            }
        }
        MUST(cudaFree(region[r]));
    }
    free(host);
    free(region);
    return 0;
}
