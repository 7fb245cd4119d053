/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of the two- and three-dimensional copies: a box whose rows lie in both tiers is cut into boxes that don't.
 * Rules: what lies in one tier goes in one call; a box that is malformed goes to the driver as it is. Host operands and
 * arrays are never cut for their own sake. */
#include "shim/hook.h"

#include <stdlib.h>

/* One operand: address of its first byte, bytes from row to row and from layer to layer; start 0: not device memory. */
struct side {
    CUdeviceptr start;
    uint64_t pitch, layer;
};

/* Extent in bytes, rows, layers. */
struct box {
    uint64_t width, height, depth;
};

/* Do the part of the copy that begins at byte x of row y of layer z. */
typedef CUresult (*part_fn)(void *copy, size_t x, size_t y, size_t z, struct box part);

static uint64_t span(const struct side *s, struct box b)
{
    return (b.depth - 1) * s->layer + (b.height - 1) * s->pitch + b.width;
}

/* Whether one call may cover `b` from byte x of row y of layer z on. */
static bool whole(const struct side *s, size_t y, size_t z, struct box b)
{
    return !s->start || spill_run(s->start + z * s->layer + y * s->pitch, span(s, b)) == span(s, b);
}

/* Rows from (y, z) on that lie in one tier; 0: not even one. */
static uint64_t rows_in_run(const struct side *s, size_t y, size_t z, struct box rest)
{
    if (!s->start)
        return rest.height;
    uint64_t run = spill_run(s->start + z * s->layer + y * s->pitch, span(s, rest));
    return run < rest.width ? 0 : s->pitch ? (run - rest.width) / s->pitch + 1 : rest.height;
}

static uint64_t bytes_in_run(const struct side *s, size_t x, size_t y, size_t z, uint64_t limit)
{
    return s->start ? spill_run(s->start + z * s->layer + y * s->pitch + x, limit) : limit;
}

static uint64_t times(uint64_t a, uint64_t b)
{
    uint64_t product;
    return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

/* Also one whose span exceeds 64 bits. */
static bool malformed(const struct side *s, struct box b)
{
    uint64_t rows = times(b.height - 1, s->pitch), layers = times(b.depth - 1, s->layer), sum;
    return s->start && ((b.height > 1 && s->pitch < b.width) || (b.depth > 1 && s->layer < times(s->pitch, b.height)) ||
                        __builtin_add_overflow(rows, layers, &sum) || __builtin_add_overflow(sum, b.width, &sum));
}

static CUresult row_in_pieces(const struct side *a, const struct side *b, size_t y, size_t z, uint64_t width, void *copy,
                              part_fn part)
{
    for (uint64_t x = 0, n; x < width; x += n) {
        n = bytes_in_run(b, x, y, z, bytes_in_run(a, x, y, z, width - x));
        CUresult r = part(copy, x, y, z, (struct box){ n, 1, 1 });
        if (r != CUDA_SUCCESS)
            return r;
    }
    return CUDA_SUCCESS;
}

static CUresult walk(struct side a, struct side b, struct box box, void *copy, part_fn part)
{
    if (spill_copies_pass() || !box.width || !box.height || !box.depth || malformed(&a, box) || malformed(&b, box))
        return part(copy, 0, 0, 0, box);
    CUresult error = spill_ranges_error(a.start, span(&a, box), b.start, span(&b, box));
    if (error != CUDA_SUCCESS)
        return error;
    if (whole(&a, 0, 0, box) && whole(&b, 0, 0, box))
        return part(copy, 0, 0, 0, box);
    for (uint64_t z = 0; z < box.depth; z++)
        for (uint64_t y = 0, rows; y < box.height; y += rows) {
            struct box rest = { box.width, box.height - y, 1 };
            uint64_t in_a = rows_in_run(&a, y, z, rest), in_b = rows_in_run(&b, y, z, rest);
            rows = in_a < in_b ? in_a : in_b;
            CUresult r;
            if (rows) {
                r = part(copy, 0, y, z, (struct box){ box.width, rows, 1 });
            } else {
                rows = 1;
                r = row_in_pieces(&a, &b, y, z, box.width, copy, part);
            }
            if (r != CUDA_SUCCESS)
                return r;
        }
    return CUDA_SUCCESS;
}

/* What a form answers after its parts: `sync` is one without a stream. */
static CUresult finish(CUresult r, const struct side *a, const struct side *b, bool sync, bool per_thread)
{
    return r == CUDA_SUCCESS && sync && spill_synchronous(a->start, b->start) ? spill_sync_memops(per_thread) : r;
}

/* ---- cuMemcpy2D ---- */

struct call_2d {
    CUDA_MEMCPY2D copy;
    CUresult(CUDAAPI *sync)(const CUDA_MEMCPY2D *);
    CUresult(CUDAAPI *async)(const CUDA_MEMCPY2D *, CUstream);
    CUstream stream;
    bool per_thread; /* the default stream is the thread's own */
};

static CUresult part_2d(void *arg, size_t x, size_t y, size_t z, struct box b)
{
    struct call_2d *call = arg;
    CUDA_MEMCPY2D c = call->copy;
    (void)z;
    c.srcXInBytes += x;
    c.dstXInBytes += x;
    c.srcY += y;
    c.dstY += y;
    c.WidthInBytes = b.width;
    c.Height = b.height;
    return call->async ? call->async(&c, call->stream) : call->sync(&c);
}

static CUresult copy_2d(struct call_2d call)
{
    const CUDA_MEMCPY2D *c = &call.copy;
    struct side src = { 0 }, dst = { 0 };
    if (spill_device_space(c->srcMemoryType))
        src = (struct side){ c->srcDevice + c->srcY * c->srcPitch + c->srcXInBytes, c->srcPitch, 0 };
    if (spill_device_space(c->dstMemoryType))
        dst = (struct side){ c->dstDevice + c->dstY * c->dstPitch + c->dstXInBytes, c->dstPitch, 0 };
    if (call.async)
        spill_pin_captured(call.stream, call.per_thread, dst.start, src.start);
    return finish(walk(dst, src, (struct box){ c->WidthInBytes, c->Height, 1 }, &call, part_2d), &src, &dst, !call.async,
                  call.per_thread);
}

#define SYNC_2D(symbol, is_ptds)                                                                                       \
    SPILL_EXPORT CUresult CUDAAPI symbol(const CUDA_MEMCPY2D *pCopy)                                                   \
    {                                                                                                                  \
        SPILL_GATED(symbol);                                                                                           \
        if (!pCopy)                                                                                                    \
            return spill_driver()->symbol(pCopy);                                                                      \
        return copy_2d((struct call_2d){ .copy = *pCopy, .sync = spill_driver()->symbol, .per_thread = is_ptds });     \
    }
#define ASYNC_2D(symbol, ptsz)                                                                                         \
    SPILL_EXPORT CUresult CUDAAPI symbol(const CUDA_MEMCPY2D *pCopy, CUstream hStream)                                 \
    {                                                                                                                  \
        SPILL_GATED(symbol);                                                                                           \
        if (!pCopy)                                                                                                    \
            return spill_driver()->symbol(pCopy, hStream);                                                             \
        return copy_2d((struct call_2d){ *pCopy, NULL, spill_driver()->symbol, hStream, ptsz });                       \
    }

SYNC_2D(cuMemcpy2D_v2, false)
SYNC_2D(cuMemcpy2D_v2_ptds, true)
SYNC_2D(cuMemcpy2DUnaligned_v2, false)
SYNC_2D(cuMemcpy2DUnaligned_v2_ptds, true)
ASYNC_2D(cuMemcpy2DAsync_v2, false)
ASYNC_2D(cuMemcpy2DAsync_v2_ptsz, true)

/* ---- cuMemcpy3D and cuMemcpy3DPeer: two structs with the same fields ---- */

#define DEFINE_3D(STRUCT, name)                                                                                              \
    struct call_##name {                                                                                                     \
        STRUCT copy;                                                                                                         \
        CUresult(CUDAAPI *sync)(const STRUCT *);                                                                             \
        CUresult(CUDAAPI *async)(const STRUCT *, CUstream);                                                                  \
        CUstream stream;                                                                                                     \
        bool per_thread;                                                                                                     \
    };                                                                                                                       \
    static CUresult part_##name(void *arg, size_t x, size_t y, size_t z, struct box b)                                       \
    {                                                                                                                        \
        struct call_##name *call = arg;                                                                                      \
        STRUCT c = call->copy;                                                                                               \
        c.srcXInBytes += x;                                                                                                  \
        c.dstXInBytes += x;                                                                                                  \
        c.srcY += y;                                                                                                         \
        c.dstY += y;                                                                                                         \
        c.srcZ += z;                                                                                                         \
        c.dstZ += z;                                                                                                         \
        c.WidthInBytes = b.width;                                                                                            \
        c.Height = b.height;                                                                                                 \
        c.Depth = b.depth;                                                                                                   \
        return call->async ? call->async(&c, call->stream) : call->sync(&c);                                                 \
    }                                                                                                                        \
    static CUresult copy_##name(struct call_##name call)                                                                     \
    {                                                                                                                        \
        const STRUCT *c = &call.copy;                                                                                        \
        struct side src = { SPILL_START_3D(c, src), c->srcPitch, times(c->srcPitch, c->srcHeight) };                         \
        struct side dst = { SPILL_START_3D(c, dst), c->dstPitch, times(c->dstPitch, c->dstHeight) };                         \
        if (call.async)                                                                                                      \
            spill_pin_captured(call.stream, call.per_thread, dst.start, src.start);                                          \
        return finish(walk(dst, src, (struct box){ c->WidthInBytes, c->Height, c->Depth }, &call, part_##name), &src, &dst,  \
                      !call.async, call.per_thread);                                                                         \
    }
DEFINE_3D(CUDA_MEMCPY3D, 3d)
DEFINE_3D(CUDA_MEMCPY3D_PEER, peer)

#define SYNC_3D(symbol, STRUCT, name, is_ptds)                                                                           \
    SPILL_EXPORT CUresult CUDAAPI symbol(const STRUCT *pCopy)                                                            \
    {                                                                                                                    \
        SPILL_GATED(symbol);                                                                                             \
        if (!pCopy)                                                                                                      \
            return spill_driver()->symbol(pCopy);                                                                        \
        return copy_##name((struct call_##name){ .copy = *pCopy, .sync = spill_driver()->symbol, .per_thread = is_ptds }); \
    }
#define ASYNC_3D(symbol, STRUCT, name, ptsz)                                                                            \
    SPILL_EXPORT CUresult CUDAAPI symbol(const STRUCT *pCopy, CUstream hStream)                                         \
    {                                                                                                                   \
        SPILL_GATED(symbol);                                                                                            \
        if (!pCopy)                                                                                                     \
            return spill_driver()->symbol(pCopy, hStream);                                                              \
        return copy_##name((struct call_##name){ *pCopy, NULL, spill_driver()->symbol, hStream, ptsz });                \
    }

SYNC_3D(cuMemcpy3D_v2, CUDA_MEMCPY3D, 3d, false)
SYNC_3D(cuMemcpy3D_v2_ptds, CUDA_MEMCPY3D, 3d, true)
ASYNC_3D(cuMemcpy3DAsync_v2, CUDA_MEMCPY3D, 3d, false)
ASYNC_3D(cuMemcpy3DAsync_v2_ptsz, CUDA_MEMCPY3D, 3d, true)
SYNC_3D(cuMemcpy3DPeer, CUDA_MEMCPY3D_PEER, peer, false)
SYNC_3D(cuMemcpy3DPeer_ptds, CUDA_MEMCPY3D_PEER, peer, true)
ASYNC_3D(cuMemcpy3DPeerAsync, CUDA_MEMCPY3D_PEER, peer, false)
ASYNC_3D(cuMemcpy3DPeerAsync_ptsz, CUDA_MEMCPY3D_PEER, peer, true)

/* ---- batches of boxes ---- */

/* The operations, each cut where it crosses tiers. `origin[i]`: index of the program's operation that i is a part of. */
struct op_list {
    CUDA_MEMCPY3D_BATCH_OP *ops;
    size_t *origin;
    size_t count, room;
    const CUDA_MEMCPY3D_BATCH_OP *whole; /* being cut */
    size_t index;                        /* its index */
    uint64_t element;                    /* bytes of an element of its extents */
};

static CUresult add_part(void *arg, size_t x, size_t y, size_t z, struct box b)
{
    struct op_list *list = arg;
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 16;
        CUDA_MEMCPY3D_BATCH_OP *ops = realloc(list->ops, room * sizeof *ops);
        if (ops)
            list->ops = ops;
        size_t *origin = realloc(list->origin, room * sizeof *origin);
        if (origin)
            list->origin = origin;
        if (!ops || !origin)
            return CUDA_ERROR_OUT_OF_MEMORY;
        list->room = room;
    }
    CUDA_MEMCPY3D_BATCH_OP op = *list->whole;
    CUmemcpy3DOperand *side[] = { &op.src, &op.dst };
    for (int i = 0; i < 2; i++) {
        if (side[i]->type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
            side[i]->op.array.offset.x += x / list->element;
            side[i]->op.array.offset.y += y;
            side[i]->op.array.offset.z += z;
            continue;
        }
        size_t row = side[i]->op.ptr.rowLength ? side[i]->op.ptr.rowLength : list->whole->extent.width;
        size_t layer = side[i]->op.ptr.layerHeight ? side[i]->op.ptr.layerHeight : list->whole->extent.height;
        side[i]->op.ptr.ptr += (z * layer + y) * row * list->element + x;
        /* 0 meant "as the extent": of the whole, not of the part. */
        side[i]->op.ptr.rowLength = row;
        side[i]->op.ptr.layerHeight = layer;
    }
    op.extent = (CUextent3D){ b.width / list->element, b.height, b.depth };
    list->ops[list->count] = op;
    list->origin[list->count++] = list->index;
    return CUDA_SUCCESS;
}

static uint64_t element_bytes(const CUDA_MEMCPY3D_BATCH_OP *op)
{
    static const struct { CUarray_format format; uint64_t bytes; } sizes[] = {
        { CU_AD_FORMAT_UNSIGNED_INT8, 1 }, { CU_AD_FORMAT_SIGNED_INT8, 1 }, { CU_AD_FORMAT_UNSIGNED_INT16, 2 },
        { CU_AD_FORMAT_SIGNED_INT16, 2 }, { CU_AD_FORMAT_HALF, 2 }, { CU_AD_FORMAT_UNSIGNED_INT32, 4 },
        { CU_AD_FORMAT_SIGNED_INT32, 4 }, { CU_AD_FORMAT_FLOAT, 4 },
    };
    CUDA_ARRAY3D_DESCRIPTOR d;
    const CUmemcpy3DOperand *array = op->src.type == CU_MEMCPY_OPERAND_TYPE_ARRAY   ? &op->src
                                     : op->dst.type == CU_MEMCPY_OPERAND_TYPE_ARRAY ? &op->dst
                                                                                    : NULL;
    if (!array)
        return 1;
    if (!spill_driver()->cuArray3DGetDescriptor_v2 ||
        spill_driver()->cuArray3DGetDescriptor_v2(&d, array->op.array.array) != CUDA_SUCCESS)
        return 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (sizes[i].format == d.Format)
            return sizes[i].bytes * d.NumChannels;
    return 0;
}

static struct side operand(const CUmemcpy3DOperand *o, const CUDA_MEMCPY3D_BATCH_OP *op, uint64_t element)
{
    if (o->type != CU_MEMCPY_OPERAND_TYPE_POINTER)
        return (struct side){ 0 };
    uint64_t row = (o->op.ptr.rowLength ? o->op.ptr.rowLength : op->extent.width) * element;
    return (struct side){ o->op.ptr.ptr, row, row * (o->op.ptr.layerHeight ? o->op.ptr.layerHeight : op->extent.height) };
}

/* CUDA_SUCCESS with list->ops NULL: pass the program's own operations. */
static CUresult cut_ops(const CUDA_MEMCPY3D_BATCH_OP *ops, size_t count, struct op_list *list)
{
    *list = (struct op_list){ 0 };
    if (spill_copies_pass() || !ops)
        return CUDA_SUCCESS;
    CUresult r = CUDA_SUCCESS;
    for (size_t i = 0; i < count && r == CUDA_SUCCESS; i++) {
        list->whole = &ops[i];
        list->index = i;
        list->element = element_bytes(&ops[i]);
        struct box box = { ops[i].extent.width * list->element, ops[i].extent.height, ops[i].extent.depth };
        if (!list->element) {
            /* An array of a format that we can't measure: whole, the driver decides. */
            list->element = 1;
            box.width = ops[i].extent.width;
            r = add_part(list, 0, 0, 0, box);
            continue;
        }
        r = walk(operand(&ops[i].dst, &ops[i], list->element), operand(&ops[i].src, &ops[i], list->element), box, list, add_part);
    }
    if (r != CUDA_SUCCESS || list->count == count) {
        free(list->ops);
        free(list->origin);
        list->ops = NULL;
    }
    return r;
}

static void pin_captured(CUstream stream, bool ptsz, const CUDA_MEMCPY3D_BATCH_OP *ops, size_t count)
{
    if (!ops || !spill_captured(stream, ptsz))
        return;
    for (size_t i = 0; i < count; i++) {
        if (ops[i].src.type == CU_MEMCPY_OPERAND_TYPE_POINTER)
            spill_pin_operand(ops[i].src.op.ptr.ptr);
        if (ops[i].dst.type == CU_MEMCPY_OPERAND_TYPE_POINTER)
            spill_pin_operand(ops[i].dst.op.ptr.ptr);
    }
}

#define COMMA ,
#define BATCH_3D(symbol, ptsz, FAIL_PARAM, FAIL_ARG, ON_FAIL)                                               \
    SPILL_EXPORT CUresult CUDAAPI symbol(size_t numOps, CUDA_MEMCPY3D_BATCH_OP *opList FAIL_PARAM,          \
                                         unsigned long long flags, CUstream hStream)                        \
    {                                                                                                       \
        struct op_list list;                                                                                \
        SPILL_GATED(symbol);                                                                                \
        pin_captured(hStream, ptsz, opList, numOps);                                                        \
        CUresult r = cut_ops(opList, numOps, &list);                                                        \
        if (r != CUDA_SUCCESS)                                                                              \
            return r;                                                                                       \
        if (!list.ops)                                                                                      \
            return spill_driver()->symbol(numOps, opList FAIL_ARG, flags, hStream);                         \
        r = spill_driver()->symbol(list.count, list.ops FAIL_ARG, flags, hStream);                          \
        ON_FAIL                                                                                             \
        free(list.ops);                                                                                     \
        free(list.origin);                                                                                  \
        return r;                                                                                           \
    }
#define MAP_FAILED_INDEX                                                        \
    if (r != CUDA_SUCCESS && failIdx && *failIdx < list.count)                  \
        *failIdx = list.origin[*failIdx];

BATCH_3D(cuMemcpy3DBatchAsync, false, COMMA size_t *failIdx, COMMA failIdx, MAP_FAILED_INDEX)
BATCH_3D(cuMemcpy3DBatchAsync_ptsz, true, COMMA size_t *failIdx, COMMA failIdx, MAP_FAILED_INDEX)
BATCH_3D(cuMemcpy3DBatchAsync_v2, false, , , )
BATCH_3D(cuMemcpy3DBatchAsync_v2_ptsz, true, , , )

#define WITH_ATTRIBUTES_3D(symbol, ptsz)                                                                            \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUDA_MEMCPY3D_BATCH_OP *op, unsigned long long flags, CUstream hStream)    \
    {                                                                                                               \
        struct op_list list;                                                                                        \
        SPILL_GATED(symbol);                                                                                        \
        pin_captured(hStream, ptsz, op, 1);                                                                         \
        CUresult r = cut_ops(op, op ? 1 : 0, &list);                                                                \
        if (r != CUDA_SUCCESS)                                                                                      \
            return r;                                                                                               \
        if (!list.ops)                                                                                              \
            return spill_driver()->symbol(op, flags, hStream);                                                      \
        for (size_t i = 0; i < list.count && r == CUDA_SUCCESS; i++)                                                \
            r = spill_driver()->symbol(&list.ops[i], flags, hStream);                                               \
        free(list.ops);                                                                                             \
        free(list.origin);                                                                                          \
        return r;                                                                                                   \
    }
WITH_ATTRIBUTES_3D(cuMemcpy3DWithAttributesAsync, false)
WITH_ATTRIBUTES_3D(cuMemcpy3DWithAttributesAsync_ptsz, true)
