/* SPDX-License-Identifier: Apache-2.0 */
/* The geometry that bw.c and its kernels (bw.cu) share. */
#ifndef BW_H
#define BW_H

typedef unsigned long long u64; /* CUDA's 64-bit atomics take unsigned long long, not uint64_t */

enum {
    BLOCK = 256,             /* threads of a block of the reading and writing kernels */
    UNROLL = 8,              /* loads that a thread has under way */
    TILE_BYTES = 64 << 10,   /* neighbouring bytes that a block reads before it goes on */
    Q4_BLOCKS = 256,         /* 18-byte blocks in a row of the Q4-like matrix: 8192 weights */
    Q4_THREADS = 128,
    Q4_ROW_BYTES = Q4_BLOCKS * 18,
    Q4_X_BYTES = Q4_BLOCKS * 32,
};

#endif
