/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels of the driver experiments (mixed, copymatrix, unmaprace, graph, migrate, zero): compiled by nvcc into facts.ptx
 * and, as C, into facts.simk.so for the simulated driver. Loaded through gpu.h.
 * Rules: 64-bit words only; grid-stride loops, so that any grid works; no shared memory, no barriers; the spinning kernel
 * ends by itself, whatever the host does. */
#include <simk.h>

#ifdef __cplusplus
#define KERNEL extern "C" __global__ void
#else
#define KERNEL __global__ void
#endif
typedef unsigned long long word; /* CUDA's 64-bit atomics take it, not uint64_t */

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014); gpu.h states the same for the host. */
static __device__ __inline__ word mix(word z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

#define EACH(i, words) \
    for (word i = (word)blockIdx.x * blockDim.x + threadIdx.x, step = (word)gridDim.x * blockDim.x; i < (words); i += step)

/* p[i] = mix(seed + i) */
KERNEL xp_fill(word *p, word words, word seed)
{
    EACH(i, words)
        p[i] = mix(seed + i);
}

/* bad += words that are not mix(seed + i) + add; *first = the smallest such i. */
KERNEL xp_check(const word *p, word words, word seed, word add, word *bad, word *first)
{
    EACH(i, words)
        if (p[i] != mix(seed + i) + add) {
            atomicAdd(bad, 1ull);
            atomicMin(first, i);
        }
}

/* p[i] += add: every launch is to be seen exactly once. */
KERNEL xp_add(word *p, word words, word add)
{
    EACH(i, words)
        p[i] += add;
}

/* bad += words that are not `value`; any = or of all words. */
KERNEL xp_differs(const word *p, word words, word value, word *bad, word *any)
{
    EACH(i, words)
        if (p[i] != value) {
            atomicAdd(bad, 1ull);
            atomicOr(any, p[i]);
        }
}

/* One thread, busy until the host sets control[0], or for at most `clocks` cycles. control (mapped host memory):
 * [1] = 1 as soon as it runs; [2] = 1 ended by the host, 2 ended by the clock; [3] = turns. While it runs it reads and
 * rewrites words of `touch` all over its extent (touch_words 0: touches nothing). */
KERNEL xp_spin(volatile word *control, word clocks, volatile word *touch, word touch_words)
{
    word start = (word)clock64(), turns = 0, why = 2;
    if (blockIdx.x || threadIdx.x)
        return;
    control[1] = 1;
    __threadfence_system();
    while ((word)clock64() - start < clocks) {
        if (control[0]) {
            why = 1;
            break;
        }
        if (touch_words) {
            word at = (turns * 40503) % touch_words;
            touch[at] = touch[at];
        }
        turns++;
    }
    control[3] = turns;
    __threadfence_system();
    control[2] = why;
}

#ifndef __CUDACC__
SIM_KERNEL(xp_fill, word *, word, word);
SIM_KERNEL(xp_check, const word *, word, word, word, word *, word *);
SIM_KERNEL(xp_add, word *, word, word);
SIM_KERNEL(xp_differs, const word *, word, word, word *, word *);
SIM_KERNEL(xp_spin, volatile word *, word, volatile word *, word);
#endif
