// SPDX-License-Identifier: Apache-2.0
// An ordinary CUDA program: allocates pieces and one big buffer, fills them by kernels, copies and sets across them, checks
// every byte on the device and samples on the host, and prints a checksum that depends on each byte.
//   saxpy_spill PIECES PIECE_MIB BIG_MIB      BIG_MIB at least 3 * PIECE_MIB; exit 0: all correct; 1: wrong bytes or a failed call; 2: out of memory
// Compiled by nvcc (-cudart shared) and, for the simulated driver, by g++ as companion (kernels only).
#include <stdint.h>
#ifdef __CUDACC__
#include <stdio.h>
#include <stdlib.h>
#include <vector>
#endif
#include "simk.h"

typedef unsigned long long u64;

__host__ __device__ inline u64 pattern(u64 index, u64 seed)
{
    u64 x = (index + 1) * 0x9e3779b97f4a7c15ull ^ seed * 0xbf58476d1ce4e5b9ull;
    return x ^ (x >> 29);
}

// A block takes BLOCK * EACH neighbouring words; a thread every BLOCK-th of them.
enum { BLOCK = 128, EACH = 32 };
#define FOR_EACH_WORD(i, n) \
    for (u64 i = (u64)blockIdx.x * BLOCK * EACH + threadIdx.x, end = i + BLOCK * EACH < (n) ? i + BLOCK * EACH : (n); i < end; i += BLOCK)

__constant__ float gain[4];
__device__ unsigned launches;
SIM_GLOBAL(gain);
SIM_GLOBAL(launches);

__global__ void fill(u64 *p, u64 words, u64 seed)
{
    FOR_EACH_WORD(i, words)
        p[i] = pattern(i, seed);
}
SIM_KERNEL(fill);

struct Range { // passed by value: two pointers inside one parameter
    const u64 *p;
    u64 words, seed, first; // word i holds pattern(first + i, seed)
    u64 *wrong;
};

__global__ void check(Range r, u64 *sum)
{
    u64 s = 0, bad = 0;
    FOR_EACH_WORD(i, r.words) {
        u64 v = r.p[i];
        bad += v != pattern(r.first + i, r.seed);
        s += v * (2 * i + 1);
    }
    atomicAdd(sum, s);
    if (bad)
        atomicAdd(r.wrong, bad);
}
SIM_KERNEL(check);

__global__ void sum_bytes(const unsigned char *p, u64 n, u64 *sum)
{
    __shared__ u64 part[128];
    u64 s = 0;
    const u64 per_block = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * per_block;
    for (u64 i = first + threadIdx.x; i < n && i < first + per_block; i += blockDim.x)
        s += p[i];
    part[threadIdx.x] = s;
    __syncthreads();
    for (unsigned d = blockDim.x / 2; d; d /= 2) {
        if (threadIdx.x < d)
            part[threadIdx.x] += part[threadIdx.x + d];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        atomicAdd(sum, part[0]);
}
SIM_KERNEL(sum_bytes);

template <typename T> __global__ void saxpy(T *y, const T *x, T a, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i == 0)
        atomicAdd(&launches, 1u);
    if (i < n)
        y[i] = a * gain[i % 4] * x[i] + y[i];
}
#ifdef __CUDACC__
template __global__ void saxpy<float>(float *, const float *, float, int);
#endif
SIM_KERNEL((saxpy<float>));

#ifdef __CUDACC__
#define CHECK(call) \
    do { \
        cudaError_t e = (call); \
        if (e != cudaSuccess) { \
            printf("%s: %s (line %d)\n", #call, cudaGetErrorName(e), __LINE__); \
            exit(e == cudaErrorMemoryAllocation ? 2 : 1); \
        } \
    } while (0)
#define EXPECT(condition) \
    do { \
        if (!(condition)) { \
            printf("not true: %s (line %d)\n", #condition, __LINE__); \
            exit(1); \
        } \
    } while (0)

static u64 *wrong, *sum; // device

static unsigned blocks(u64 words)
{
    return (unsigned)((words + BLOCK * EACH - 1) / (BLOCK * EACH));
}

static void verify(const u64 *p, u64 words, u64 first, u64 seed)
{
    u64 bad = 0;
    if (!words)
        return;
    check<<<blocks(words), BLOCK>>>(Range{p, words, seed, first, wrong}, sum);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(&bad, wrong, sizeof bad, cudaMemcpyDeviceToHost));
    if (bad) {
        printf("%llu of %llu words are wrong\n", bad, words);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    EXPECT(argc == 4);
    const size_t pieces = strtoul(argv[1], NULL, 10), piece = strtoul(argv[2], NULL, 10) << 20, big = strtoul(argv[3], NULL, 10) << 20;
    EXPECT(pieces && piece && big >= 3 * piece);
    cudaDeviceProp prop;
    size_t free0, total, free1;
    CHECK(cudaGetDeviceProperties(&prop, 0));
    CHECK(cudaMemGetInfo(&free0, &total));
    EXPECT(total <= prop.totalGlobalMem && free0 <= total);
    CHECK(cudaMalloc(&wrong, 4096));
    CHECK(cudaMemset(wrong, 0, 4096));
    sum = wrong + 1;

    std::vector<u64 *> p(pieces);
    for (size_t i = 0; i < pieces; i++) {
        CHECK(cudaMalloc(&p[i], piece));
        fill<<<blocks(piece / 8), BLOCK>>>(p[i], piece / 8, i);
        CHECK(cudaGetLastError());
    }
    u64 *b;
    CHECK(cudaMalloc(&b, big));
    fill<<<blocks(big / 8), BLOCK>>>(b, big / 8, 1000);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemGetInfo(&free1, &total));
    EXPECT(free1 < free0);

    cudaPointerAttributes at;
    CHECK(cudaPointerGetAttributes(&at, (char *)b + big / 2));
    EXPECT(at.type == cudaMemoryTypeDevice && at.device == 0 && at.devicePointer == (char *)b + big / 2);

    for (size_t i = 0; i < pieces; i++)
        verify(p[i], piece / 8, 0, i);
    verify(b, big / 8, 0, 1000);

    // Copies and memsets that start and end inside, at odd word counts.
    const u64 n = piece / 8 - 3, words = big / 8;
    CHECK(cudaMemcpy(b + 1, p[0] + 2, n * 8, cudaMemcpyDeviceToDevice)); // word 1 + i holds pattern(2 + i, 0)
    verify(b + 1, n, 2, 0);
    verify(b + 1 + n, words - 1 - n, 1 + n, 1000);
    const u64 from = words / 2 - 7, length = words / 4 + 5;
    CHECK(cudaMemset(b + from, 0x5a, length * 8));
    verify(b + 1 + n, from > 1 + n ? from - 1 - n : 0, 1 + n, 1000);
    verify(b + from + length, words - from - length, from + length, 1000);
    u64 bytes = 0, *bytes_sum = wrong + 2;
    sum_bytes<<<32, 128>>>((const unsigned char *)(b + from), length * 8, bytes_sum);
    CHECK(cudaMemcpy(&bytes, bytes_sum, 8, cudaMemcpyDeviceToHost));
    EXPECT(bytes == length * 8 * 0x5a);
    std::vector<u64> host(n);
    CHECK(cudaMemcpy(host.data(), b + 1, n * 8, cudaMemcpyDeviceToHost));
    for (u64 i = 0; i < n; i++)
        EXPECT(host[i] == pattern(2 + i, 0));
    for (u64 i = 0; i < n; i++)
        host[i] = pattern(i, 77);
    CHECK(cudaMemcpy(b + words - n, host.data(), n * 8, cudaMemcpyHostToDevice));
    verify(b + words - n, n, 0, 77);

    // Stream-ordered allocation, a second stream, events, a module variable and a template kernel.
    const int count = 1 << 18;
    cudaStream_t s;
    cudaEvent_t start, stop;
    float *x, *y, ms = -1;
    const float scale[4] = {1, 2, 3, 4};
    CHECK(cudaStreamCreate(&s));
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    CHECK(cudaMemcpyToSymbol(gain, scale, sizeof scale));
    CHECK(cudaMallocAsync(&x, count * sizeof *x, s));
    CHECK(cudaMallocAsync(&y, count * sizeof *y, s));
    std::vector<float> hx(count), hy(count, 1.0f);
    for (int i = 0; i < count; i++)
        hx[i] = (float)(i % 1000);
    CHECK(cudaEventRecord(start, s));
    CHECK(cudaMemcpyAsync(x, hx.data(), count * sizeof *x, cudaMemcpyHostToDevice, s));
    CHECK(cudaMemcpyAsync(y, hy.data(), count * sizeof *y, cudaMemcpyHostToDevice, s));
    saxpy<float><<<count / 256, 256, 0, s>>>(y, x, 2.0f, count);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpyAsync(hy.data(), y, count * sizeof *y, cudaMemcpyDeviceToHost, s));
    CHECK(cudaEventRecord(stop, s));
    CHECK(cudaFreeAsync(x, s));
    CHECK(cudaFreeAsync(y, s));
    CHECK(cudaStreamSynchronize(s));
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    EXPECT(ms >= 0);
    for (int i = 0; i < count; i++)
        EXPECT(hy[i] == 2.0f * scale[i % 4] * (float)(i % 1000) + 1.0f);
    unsigned count_launches = 0;
    CHECK(cudaMemcpyFromSymbol(&count_launches, launches, sizeof count_launches));
    EXPECT(count_launches == 1);

    u64 total_sum = 0;
    CHECK(cudaMemcpy(&total_sum, sum, sizeof total_sum, cudaMemcpyDeviceToHost));
    for (u64 *q : p)
        CHECK(cudaFree(q));
    CHECK(cudaFree(b));
    CHECK(cudaFree(wrong));
    CHECK(cudaDeviceSynchronize());
    printf("checksum %016llx over %zu MiB\n", total_sum, (pieces * piece + big) >> 20);
    return 0;
}
#endif
