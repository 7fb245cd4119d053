/* SPDX-License-Identifier: Apache-2.0 */
/* The demo decoder's kernels. Launched by decoder.c; compiled by nvcc into decoder.ptx and, as C, into decoder.simk.so
 * for simgpu.
 * Rules: 64-bit integers only, and every sum is an unordered 64-bit sum, so results do not depend on grid shape, order
 * or machine. Every multiplier is odd: multiplication is then a bijection mod 2^64, so a changed word always changes the
 * accumulator that it went into. A block owns one contiguous tile (TILE_BYTES): neighbouring threads read neighbouring
 * 16 bytes (coalesced on a GPU), and a simulator that runs the threads one after another stays inside its cache.
 * No shared memory and no __syncthreads: the simulator would have to switch stacks for them.
 */
#include "decoder_kernels.h"

#include <simk.h>

#ifdef __cplusplus
#define KERNEL extern "C" __global__ void
#else
#define KERNEL __global__ void
#endif
#define GOLDEN 0x9e3779b97f4a7c15ull

/* For the simulated GPU's clock, which counts the bytes that it is told of: a block's first thread tells of the whole tile, once
 * for reading it and once for writing it. TOUCH_WORDS: of the tile that begins at word `at` of `width`. */
#ifdef SIM_ACCOUNT
#define TOUCH_TILE(p, bytes) do { if (threadIdx.x == 0 && simk_touch) simk_touch((p), (bytes)); } while (0)
#define TOUCH_WORDS(p, at, width, most, times) \
    do { \
        if ((at) < (width)) \
            TOUCH_TILE((p) + (at), ((width) - (at) < (most) ? (width) - (at) : (most)) * 8 * (times)); \
    } while (0)
#else
#define TOUCH_TILE(p, bytes) ((void)0)
#define TOUCH_WORDS(p, at, width, most, times) ((void)0)
#endif

/* Sixteen bytes in one load. */
struct __attribute__((aligned(16))) pair {
    dec_word a, b;
};

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection on 64 bits. */
static __device__ __inline__ dec_word mix(dec_word z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* dst[0..words) = the seeded generator's words first .. first + words. Even counts only. */
KERNEL dec_fill(dec_word *dst, dec_word words, dec_word seed, dec_word first)
{
    struct pair *out = (struct pair *)dst;
    dec_word at = (dec_word)blockIdx.x * TILE_PAIRS + threadIdx.x, end = words / 2;
    if (at < end)
        TOUCH_TILE(out + at, (end - at < TILE_PAIRS ? end - at : TILE_PAIRS) * sizeof *out);
    for (int i = 0; i < TILE_PAIRS / BLOCK; i++, at += BLOCK)
        if (at < end) {
            struct pair p;
            p.a = mix(seed + (first + 2 * at + 1) * GOLDEN);
            p.b = mix(seed + (first + 2 * at + 2) * GOLDEN);
            out[at] = p;
        }
}

/* x = the token's embedding; y = 0. */
KERNEL dec_embed(dec_word *x, dec_word *y, dec_word width, dec_word token)
{
    dec_word at = (dec_word)blockIdx.x * TILE_WORDS + threadIdx.x;
    TOUCH_WORDS(x, at, width, TILE_WORDS, 1);
    TOUCH_WORDS(y, at, width, TILE_WORDS, 1);
    for (int i = 0; i < TILE_WORDS / BLOCK; i++, at += BLOCK)
        if (at < width) {
            x[at] = mix(token + (at + 1) * GOLDEN);
            y[at] = 0;
        }
}

/* y += contributions of all `words` words of w under the activations x: the whole of a layer's weights, or of its KV
 * rows so far. Thread t of all threads evaluates two polynomials in the odd number x[t mod width] | 1 over its words.
 */
KERNEL dec_read(const dec_word *w, dec_word words, const dec_word *x, dec_word *y, dec_word width, dec_word salt)
{
    const struct pair *in = (const struct pair *)w;
    dec_word at = (dec_word)blockIdx.x * TILE_PAIRS + threadIdx.x, end = words / 2;
    dec_word lane = ((dec_word)blockIdx.x * BLOCK + threadIdx.x) % width;
    dec_word m = (x[lane] + salt) | 1, a = 0, b = 0;
    if (at >= end)
        return;
    TOUCH_TILE(in + at, (end - at < TILE_PAIRS ? end - at : TILE_PAIRS) * sizeof *in);
    TOUCH_WORDS(x, lane, width, BLOCK, 1);
    TOUCH_WORDS(y, lane, width, BLOCK, 2);
    if (at + TILE_PAIRS - BLOCK < end) {
#ifdef __CUDACC__
#pragma unroll
#endif
        for (int i = 0; i < TILE_PAIRS / BLOCK; i++) {
            struct pair p = in[at + (dec_word)i * BLOCK];
            a = a * m + p.a;
            b = b * m + p.b;
        }
    } else {
        for (; at < end; at += BLOCK) {
            struct pair p = in[at];
            a = a * m + p.a;
            b = b * m + p.b;
        }
    }
    atomicAdd(&y[lane], mix(a + b * GOLDEN));
}

/* One KV row of this layer: row[0..words) from the activations so far. */
KERNEL dec_kv_append(dec_word *row, dec_word words, const dec_word *y, dec_word width, dec_word salt)
{
    dec_word at = (dec_word)blockIdx.x * TILE_WORDS + threadIdx.x;
    TOUCH_WORDS(row, at, words, TILE_WORDS, 1);
    TOUCH_WORDS(y, at % width, width, words < TILE_WORDS ? words : TILE_WORDS, 1);
    for (int i = 0; i < TILE_WORDS / BLOCK; i++, at += BLOCK)
        if (at < words)
            row[at] = mix(y[at % width] + (salt ^ at));
}

/* The residual step: x absorbs y, y = 0. */
KERNEL dec_combine(dec_word *x, dec_word *y, dec_word width, dec_word salt)
{
    dec_word at = (dec_word)blockIdx.x * TILE_WORDS + threadIdx.x;
    TOUCH_WORDS(x, at, width, TILE_WORDS, 2);
    TOUCH_WORDS(y, at, width, TILE_WORDS, 2);
    for (int i = 0; i < TILE_WORDS / BLOCK; i++, at += BLOCK)
        if (at < width) {
            x[at] = mix(x[at] * GOLDEN + y[at] + salt);
            y[at] = 0;
        }
}

/* *out += a digest of all of x: the "logits" that the host makes the next token from. */
KERNEL dec_logits(const dec_word *x, dec_word width, dec_word *out)
{
    dec_word at = (dec_word)blockIdx.x * TILE_WORDS + threadIdx.x, sum = 0;
    TOUCH_WORDS(x, at, width, TILE_WORDS, 1);
    for (int i = 0; i < TILE_WORDS / BLOCK; i++, at += BLOCK)
        if (at < width)
            sum += mix(x[at] ^ (at + 1) * GOLDEN);
    atomicAdd(out, sum);
}

SIM_KERNEL(dec_fill, dec_word *, dec_word, dec_word, dec_word);
SIM_KERNEL(dec_embed, dec_word *, dec_word *, dec_word, dec_word);
SIM_KERNEL(dec_read, const dec_word *, dec_word, const dec_word *, dec_word *, dec_word, dec_word);
SIM_KERNEL(dec_kv_append, dec_word *, dec_word, const dec_word *, dec_word, dec_word);
SIM_KERNEL(dec_combine, dec_word *, dec_word *, dec_word, dec_word);
SIM_KERNEL(dec_logits, const dec_word *, dec_word, dec_word *);
