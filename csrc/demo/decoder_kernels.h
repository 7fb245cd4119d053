/* SPDX-License-Identifier: Apache-2.0 */
/* The launch geometry that decoder.c and decoder_kernels.cu share. Changing a figure here changes every checksum; the
 * model in tests/integration/test_demo.py states the same figures.
 */
#ifndef DECODER_KERNELS_H
#define DECODER_KERNELS_H

typedef unsigned long long dec_word; /* CUDA's 64-bit atomics take unsigned long long, not uint64_t */

enum {
    BLOCK = 256,                       /* threads of every block */
    TILE_BYTES = 64 << 10,             /* one block's bytes: many blocks for a GPU, small enough for a core's L2 */
    TILE_WORDS = TILE_BYTES / 8,
    TILE_PAIRS = TILE_BYTES / 16,
};

#endif
