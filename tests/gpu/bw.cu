/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels of the bandwidth experiment. Launched by bw.c; compiled by nvcc into bw.ptx (see its head) and, as C, into
 * bw.simk.so for simgpu.
 * Rules: every load goes into a sum that is written out, so that nothing is optimised away; 32-bit words whatever the load
 * width, so that one expected sum fits all of them. The grid walks in tiles of TILE_BYTES: neighbouring threads read
 * neighbouring words, a thread has eight loads under way, and the whole grid advances through memory together.
 * Integers only, no shared memory, no barrier.
 */
#include "bw.h"

#include <simk.h>

#ifdef __cplusplus
#define KERNEL extern "C" __global__ void
#else
#define KERNEL __global__ void
#endif

typedef unsigned int u32;

static __device__ __inline__ u32 pattern(u64 index, u64 seed)
{
    u32 x = (u32)(index + seed) * 0x9e3779b1u;
    return x ^ (x >> 15);
}

/* out[0] += the sum of what bw_fill wrote, without touching the memory that it wrote to. */
KERNEL bw_expect(u64 words, u64 seed, u64 *out)
{
    u64 sum = 0, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += step)
        sum += pattern(i, seed);
    atomicAdd(out, sum);
}

/* Writes `bytes` (a multiple of 16) with 16-byte stores. */
KERNEL bw_fill(u32 *to, u64 bytes, u64 seed)
{
    for (u64 tile = blockIdx.x; tile * TILE_BYTES < bytes; tile += gridDim.x)
        for (u32 i = 0; i < TILE_BYTES / 16 / BLOCK; i++) {
            u64 at = tile * (TILE_BYTES / 16) + i * BLOCK + threadIdx.x;
            uint4 v;
            if (at * 16 >= bytes)
                return;
            v.x = pattern(4 * at, seed);
            v.y = pattern(4 * at + 1, seed);
            v.z = pattern(4 * at + 2, seed);
            v.w = pattern(4 * at + 3, seed);
            ((uint4 *)to)[at] = v;
        }
}

#define SUM4(v) (v)
#define SUM8(v) ((u64)(v).x + (v).y)
#define SUM16(v) ((u64)(v).x + (v).y + (v).z + (v).w)

/* out[0] += the sum of `bytes` (a multiple of 16), read `passes` times. A tile is read by another block in each pass,
 * so that a second read cannot come from a core's own cache.
 */
#define READ(name, type, size, SUM) \
    KERNEL name(const u32 *from, u64 bytes, u64 passes, u64 *out) \
    { \
        const type *in = (const type *)from; \
        u64 tiles = (bytes + TILE_BYTES - 1) / TILE_BYTES, sum = 0; \
        for (u64 pass = 0; pass < passes; pass++) \
            for (u64 tile = (blockIdx.x + pass * 37) % gridDim.x; tile < tiles; tile += gridDim.x) { \
                u64 at = tile * (TILE_BYTES / size) + threadIdx.x; \
                if ((tile + 1) * TILE_BYTES <= bytes) { \
                    for (u32 i = 0; i < TILE_BYTES / size / BLOCK; i += UNROLL) { \
                        type v[UNROLL]; \
                        for (u32 k = 0; k < UNROLL; k++) \
                            v[k] = in[at + (u64)(i + k) * BLOCK]; \
                        for (u32 k = 0; k < UNROLL; k++) \
                            sum += SUM(v[k]); \
                    } \
                } else { \
                    for (u64 end = bytes / size; at < end; at += BLOCK) \
                        sum += SUM(in[at]); \
                } \
            } \
        atomicAdd(out, sum); \
    }
READ(bw_read4, u32, 4, SUM4)
READ(bw_read8, uint2, 8, SUM8)
READ(bw_read16, uint4, 16, SUM16)

#ifdef __CUDACC__
#define DOT4(a, b, c) __dp4a((int)(a), (int)(b), (int)(c))
#else
static inline int DOT4(u32 a, u32 b, int c)
{
    for (int i = 0; i < 32; i += 8)
        c += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
    return c;
}
#endif

/* One row of a matrix in blocks as of llama.cpp's Q4_0: a 16-bit scale and 32 four-bit weights, 18 bytes, read in
 * 16-bit loads because nothing is aligned better; x: ROW_WEIGHTS signed bytes. out[0] += the sum of all rows' products.
 * A block of threads per row; two threads per 18 bytes.
 */
KERNEL bw_q4(const unsigned short *matrix, u64 rows, const u32 *x, u64 *out)
{
    long long sum = 0;
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x)
        for (u32 at = threadIdx.x; at < Q4_BLOCKS * 2; at += Q4_THREADS) {
            const unsigned short *block = matrix + (row * Q4_BLOCKS + at / 2) * 9;
            const u32 *activations = x + at / 2 * 8 + at % 2 * 2;
            const unsigned short *q = block + 1 + at % 2 * 4;
            u32 low = q[0] | (u32)q[1] << 16, high = q[2] | (u32)q[3] << 16;
            int dot = DOT4(low & 0x0f0f0f0fu, activations[0], 0);
            dot = DOT4(high & 0x0f0f0f0fu, activations[1], dot);
            dot = DOT4((low >> 4) & 0x0f0f0f0fu, activations[4], dot);
            dot = DOT4((high >> 4) & 0x0f0f0f0fu, activations[5], dot);
            sum += (long long)dot * block[0];
        }
    atomicAdd(out, (u64)sum);
}

SIM_KERNEL(bw_expect, u64, u64, u64 *);
SIM_KERNEL(bw_fill, u32 *, u64, u64);
SIM_KERNEL(bw_read4, const u32 *, u64, u64, u64 *);
SIM_KERNEL(bw_read8, const u32 *, u64, u64, u64 *);
SIM_KERNEL(bw_read16, const u32 *, u64, u64, u64 *);
SIM_KERNEL(bw_q4, const unsigned short *, u64, const u32 *, u64 *);
