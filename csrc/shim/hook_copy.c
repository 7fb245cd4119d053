/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of the one-dimensional copies: cut at tier boundaries (split.c), else passed on as they are.
 * Rules: the pieces of one copy go to the same stream in order of address; a copy that fails in the middle answers its
 * error, as a driver's copy does that fails on the device. Host operands are never looked at: they are the program's. */
#include "shim/hook.h"

#include <stdlib.h>
#include <string.h>

/* One row of hooks.def and its per-thread-default-stream twin. */
#define SYNC_PAIR(symbol, params, a, b, count, args)                                             \
    SPILL_EXPORT CUresult CUDAAPI symbol params                                                  \
    {                                                                                            \
        SPILL_GATED(symbol);                                                                     \
        SPILL_PIECES_SYNC(a, b, count, false, spill_driver()->symbol args);                      \
    }                                                                                            \
    SPILL_EXPORT CUresult CUDAAPI symbol##_ptds params                                           \
    {                                                                                            \
        SPILL_GATED(symbol##_ptds);                                                              \
        SPILL_PIECES_SYNC(a, b, count, true, spill_driver()->symbol##_ptds args);                \
    }
#define ASYNC_PAIR(symbol, params, a, b, count, args)                  \
    SPILL_EXPORT CUresult CUDAAPI symbol params                        \
    {                                                                  \
        SPILL_GATED(symbol);                                           \
        spill_pin_captured(hStream, false, a, b);                      \
        SPILL_PIECES(a, b, count, spill_driver()->symbol args);        \
    }                                                                  \
    SPILL_EXPORT CUresult CUDAAPI symbol##_ptsz params                 \
    {                                                                  \
        SPILL_GATED(symbol##_ptsz);                                    \
        spill_pin_captured(hStream, true, a, b);                       \
        SPILL_PIECES(a, b, count, spill_driver()->symbol##_ptsz args); \
    }
#define AT(p) ((p) + split.at)
#define HOST_AT(p) ((char *)(p) + split.at)
#define N split.bytes

SYNC_PAIR(cuMemcpy, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount), dst, src, ByteCount, (AT(dst), AT(src), N))
ASYNC_PAIR(cuMemcpyAsync, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream), dst, src, ByteCount,
           (AT(dst), AT(src), N, hStream))
SYNC_PAIR(cuMemcpyPeer, (CUdeviceptr dst, CUcontext dctx, CUdeviceptr src, CUcontext sctx, size_t ByteCount), dst, src,
          ByteCount, (AT(dst), dctx, AT(src), sctx, N))
ASYNC_PAIR(cuMemcpyPeerAsync,
           (CUdeviceptr dst, CUcontext dctx, CUdeviceptr src, CUcontext sctx, size_t ByteCount, CUstream hStream), dst, src,
           ByteCount, (AT(dst), dctx, AT(src), sctx, N, hStream))
SYNC_PAIR(cuMemcpyHtoD_v2, (CUdeviceptr dst, const void *src, size_t ByteCount), dst, 0, ByteCount,
          (AT(dst), HOST_AT(src), N))
ASYNC_PAIR(cuMemcpyHtoDAsync_v2, (CUdeviceptr dst, const void *src, size_t ByteCount, CUstream hStream), dst, 0, ByteCount,
           (AT(dst), HOST_AT(src), N, hStream))
SYNC_PAIR(cuMemcpyDtoH_v2, (void *dst, CUdeviceptr src, size_t ByteCount), src, 0, ByteCount, (HOST_AT(dst), AT(src), N))
ASYNC_PAIR(cuMemcpyDtoHAsync_v2, (void *dst, CUdeviceptr src, size_t ByteCount, CUstream hStream), src, 0, ByteCount,
           (HOST_AT(dst), AT(src), N, hStream))
SYNC_PAIR(cuMemcpyDtoD_v2, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount), dst, src, ByteCount, (AT(dst), AT(src), N))
ASYNC_PAIR(cuMemcpyDtoDAsync_v2, (CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream), dst, src, ByteCount,
           (AT(dst), AT(src), N, hStream))
SYNC_PAIR(cuMemcpyDtoA_v2, (CUarray dst, size_t dstOffset, CUdeviceptr src, size_t ByteCount), src, 0, ByteCount,
          (dst, dstOffset + split.at, AT(src), N))
SYNC_PAIR(cuMemcpyAtoD_v2, (CUdeviceptr dst, CUarray src, size_t srcOffset, size_t ByteCount), dst, 0, ByteCount,
          (AT(dst), src, srcOffset + split.at, N))
ASYNC_PAIR(cuMemcpyWithAttributesAsync,
           (CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream hStream), dst, src, size,
           (AT(dst), AT(src), N, attr, hStream))

/* ---- batches ---- */

/* A batch with every copy cut where it crosses tiers. Two ABIs: 12.8 reports the index of the copy that failed. */
struct batch {
    CUdeviceptr *dsts, *srcs;
    size_t *sizes, *first; /* first[i]: index of copy i's first piece */
    size_t *attr_index;
    size_t count;
};

static size_t pieces_of(CUdeviceptr dst, CUdeviceptr src, size_t size)
{
    size_t count = 1;
    struct spill_split split = spill_split_start(dst, src, size);
    while (spill_split_next(&split))
        count++;
    return count;
}

static void batch_drop(struct batch *b)
{
    free(b->dsts);
    free(b->srcs);
    free(b->sizes);
    free(b->first);
    free(b->attr_index);
}

/* CUDA_SUCCESS with out->count == count: nothing crosses, pass the program's own arrays. */
static CUresult batch_cut(const CUdeviceptr *dsts, const CUdeviceptr *srcs, const size_t *sizes, size_t count,
                          const size_t *attr_index, size_t attrs, struct batch *out)
{
    *out = (struct batch){ .count = count };
    if (spill_copies_pass() || !dsts || !srcs || !sizes)
        return CUDA_SUCCESS;
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        CUresult r = spill_ranges_error(dsts[i], sizes[i], srcs[i], sizes[i]);
        if (r != CUDA_SUCCESS)
            return r;
        total += pieces_of(dsts[i], srcs[i], sizes[i]);
    }
    if (total == count)
        return CUDA_SUCCESS;
    *out = (struct batch){ calloc(total, sizeof(CUdeviceptr)), calloc(total, sizeof(CUdeviceptr)), calloc(total, sizeof(size_t)),
                           calloc(count, sizeof(size_t)), calloc(attrs + 1, sizeof(size_t)), 0 };
    if (!out->dsts || !out->srcs || !out->sizes || !out->first || !out->attr_index) {
        batch_drop(out);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        struct spill_split split = spill_split_start(dsts[i], srcs[i], sizes[i]);
        out->first[i] = out->count;
        do {
            out->dsts[out->count] = dsts[i] + split.at;
            out->srcs[out->count] = srcs[i] + split.at;
            out->sizes[out->count++] = split.bytes;
        } while (spill_split_next(&split));
    }
    /* Attribute k holds from copy attr_index[k] on. An index past the end is the driver's to refuse. */
    for (size_t k = 0; attr_index && k < attrs; k++)
        out->attr_index[k] = attr_index[k] < count ? out->first[attr_index[k]] : out->count + attr_index[k] - count;
    return CUDA_SUCCESS;
}

static size_t original_index(const struct batch *b, size_t count, size_t piece)
{
    size_t i = 0;
    while (i + 1 < count && b->first[i + 1] <= piece)
        i++;
    return i;
}

#define BATCH(symbol, ptsz, FAIL_PARAM, FAIL_ARG, ON_FAIL)                                                                       \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,                \
                                         CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs FAIL_PARAM,         \
                                         CUstream hStream)                                                                 \
    {                                                                                                                      \
        struct batch b;                                                                                                    \
        SPILL_GATED(symbol);                                                                                               \
        if (spill_captured(hStream, ptsz))                                                                                 \
            spill_pin_copies(dsts, srcs, count);                                                                           \
        CUresult r = batch_cut(dsts, srcs, sizes, count, attrsIdxs, numAttrs, &b);                                         \
        if (r != CUDA_SUCCESS)                                                                                             \
            return r;                                                                                                      \
        if (!b.dsts)                                                                                                       \
            return spill_driver()->symbol(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs FAIL_ARG, hStream);         \
        r = spill_driver()->symbol(b.dsts, b.srcs, b.sizes, b.count, attrs, b.attr_index, numAttrs FAIL_ARG, hStream);     \
        ON_FAIL                                                                                                            \
        batch_drop(&b);                                                                                                    \
        return r;                                                                                                          \
    }
#define COMMA ,
#define MAP_FAILED_INDEX                                         \
    if (r != CUDA_SUCCESS && failIdx && *failIdx != SIZE_MAX)    \
        *failIdx = original_index(&b, count, *failIdx);

BATCH(cuMemcpyBatchAsync, false, COMMA size_t *failIdx, COMMA failIdx, MAP_FAILED_INDEX)
BATCH(cuMemcpyBatchAsync_ptsz, true, COMMA size_t *failIdx, COMMA failIdx, MAP_FAILED_INDEX)
BATCH(cuMemcpyBatchAsync_v2, false, , , )
BATCH(cuMemcpyBatchAsync_v2_ptsz, true, , , )
