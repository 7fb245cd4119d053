/* SPDX-License-Identifier: Apache-2.0 */
/* Every memcpy entry of the driver, each in the legacy and the per-thread default-stream form. Called by applications.
 * Rules: parameters become boxes here, everything else is copy.c. A synchronous copy inside VRAM only queues the work
 * (CUDA documentation, API synchronisation behaviour); all others wait.
 */
#include "copy.h"

#include <stdlib.h>

static uint64_t at(const void *p) { return (uint64_t)(uintptr_t)p; }

/* Takes over a filled job. */
static CUresult go(struct sim_job *job, CUstream stream, bool pt, bool synchronous, size_t *bad)
{
    CUcontext ctx;
    CUresult r = job ? sim_current(&ctx) : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r)
        r = sim_job_check(ctx, job, bad);
    if (r) {
        free(job);
        return r;
    }
    bool wait = synchronous && !job->device_only;
    return sim_job_submit(job, stream, pt, wait);
}

static CUresult linear(uint64_t dst, int dst_must, uint64_t src, int src_must, size_t n, CUstream stream, bool pt, bool synchronous)
{
    CUcontext ctx;
    if (!n)
        return sim_current(&ctx);
    struct sim_job *job = sim_job_new(1);
    if (job) {
        job->boxes[0].dst.p = dst;
        job->boxes[0].dst.must = dst_must;
        job->boxes[0].src.p = src;
        job->boxes[0].src.must = src_must;
        job->boxes[0].width = n;
        job->boxes[0].height = job->boxes[0].depth = 1;
    }
    return go(job, stream, pt, synchronous, NULL);
}

/* A row of bytes inside an array. */
static CUresult array_row(CUarray array, size_t offset, size_t n, uint64_t *out)
{
    sim_take();
    struct CUarray_st *a = sim_array(array);
    bool fits = a && offset <= a->bytes && n <= a->bytes - offset;
    if (fits)
        *out = a->base + offset;
    sim_give();
    return !a ? CUDA_ERROR_INVALID_HANDLE : fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult to_array(CUarray array, size_t offset, uint64_t src, int src_must, size_t n, CUstream s, bool pt, bool synchronous)
{
    uint64_t p;
    CUresult r = array_row(array, offset, n, &p);
    return r ? r : linear(p, SIM_DEVICE_SIDE, src, src_must, n, s, pt, synchronous);
}

static CUresult from_array(uint64_t dst, int dst_must, CUarray array, size_t offset, size_t n, CUstream s, bool pt, bool synchronous)
{
    uint64_t p;
    CUresult r = array_row(array, offset, n, &p);
    return r ? r : linear(dst, dst_must, p, SIM_DEVICE_SIDE, n, s, pt, synchronous);
}

static CUresult between_arrays(CUarray dst, size_t dst_offset, CUarray src, size_t src_offset, size_t n, bool pt)
{
    uint64_t p;
    CUresult r = array_row(src, src_offset, n, &p);
    return r ? r : to_array(dst, dst_offset, p, SIM_DEVICE_SIDE, n, NULL, pt, true);
}

static CUresult flat(const CUDA_MEMCPY2D *c, CUstream s, bool pt, bool synchronous)
{
    if (!c)
        return CUDA_ERROR_INVALID_VALUE;
    CUcontext ctx;
    if (!c->WidthInBytes || !c->Height)
        return sim_current(&ctx);
    struct sim_job *job = sim_job_new(1);
    if (!job)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_box *b = &job->boxes[0];
    b->width = c->WidthInBytes;
    b->height = c->Height;
    b->depth = 1;
    CUresult r = sim_side_of(c->srcMemoryType, at(c->srcHost), c->srcDevice, c->srcArray, c->srcXInBytes, c->srcY, 0, c->srcPitch, 0, b, &b->src);
    if (!r)
        r = sim_side_of(c->dstMemoryType, at(c->dstHost), c->dstDevice, c->dstArray, c->dstXInBytes, c->dstY, 0, c->dstPitch, 0, b, &b->dst);
    if (r) {
        free(job);
        return r;
    }
    return go(job, s, pt, synchronous, NULL);
}

static CUresult solid_job(const CUDA_MEMCPY3D *c, struct sim_job **out)
{
    *out = NULL;
    if (!c || c->srcLOD || c->dstLOD || c->reserved0 || c->reserved1)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_job *job = sim_job_new(1);
    if (!job)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_box *b = &job->boxes[0];
    b->width = c->WidthInBytes;
    b->height = c->Height;
    b->depth = c->Depth;
    CUresult r = CUDA_SUCCESS;
    if (b->width && b->height && b->depth) {
        r = sim_side_of(c->srcMemoryType, at(c->srcHost), c->srcDevice, c->srcArray, c->srcXInBytes, c->srcY, c->srcZ, c->srcPitch, c->srcHeight, b, &b->src);
        if (!r)
            r = sim_side_of(c->dstMemoryType, at(c->dstHost), c->dstDevice, c->dstArray, c->dstXInBytes, c->dstY, c->dstZ, c->dstPitch, c->dstHeight, b, &b->dst);
    }
    if (r) {
        free(job);
        return r;
    }
    job->given = true;
    job->params = *c;
    *out = job;
    return CUDA_SUCCESS;
}

static CUresult solid(const CUDA_MEMCPY3D *c, CUstream s, bool pt, bool synchronous)
{
    struct sim_job *job;
    CUresult r = solid_job(c, &job);
    return r ? r : go(job, s, pt, synchronous, NULL);
}

/* NULL: no live context. */
static CUcontext live(CUcontext handle)
{
    sim_take();
    CUcontext c = sim_object(SIM_CONTEXT, at(handle));
    sim_give();
    return c;
}

/* Each side is reached from its own context: what is not open to the other device goes through the host (cuda.h, cuMemcpyPeer). */
static CUresult solid_peer(const CUDA_MEMCPY3D_PEER *c, CUstream s, bool pt, bool synchronous)
{
    if (!c)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_MEMCPY3D plain = {
        c->srcXInBytes, c->srcY, c->srcZ, c->srcLOD, c->srcMemoryType, c->srcHost, c->srcDevice, c->srcArray, NULL, c->srcPitch, c->srcHeight,
        c->dstXInBytes, c->dstY, c->dstZ, c->dstLOD, c->dstMemoryType, c->dstHost, c->dstDevice, c->dstArray, NULL, c->dstPitch, c->dstHeight,
        c->WidthInBytes, c->Height, c->Depth};
    struct sim_job *job;
    CUresult r = solid_job(&plain, &job);
    if (r)
        return r;
    job->boxes[0].src.in = c->srcMemoryType == CU_MEMORYTYPE_DEVICE ? live(c->srcContext) : NULL;
    job->boxes[0].dst.in = c->dstMemoryType == CU_MEMORYTYPE_DEVICE ? live(c->dstContext) : NULL;
    return go(job, s, pt, synchronous, NULL);
}

static CUresult peer(CUdeviceptr dst, CUcontext dst_ctx, CUdeviceptr src, CUcontext src_ctx, size_t n, CUstream s, bool pt, bool synchronous)
{
    CUcontext to = live(dst_ctx), from = live(src_ctx), here;
    if (!to || !from)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!n)
        return sim_current(&here);
    struct sim_job *job = sim_job_new(1);
    if (job)
        job->boxes[0] = (struct sim_box){{dst, 0, 0, SIM_DEVICE_SIDE, to}, {src, 0, 0, SIM_DEVICE_SIDE, from}, n, 1, 1};
    return go(job, s, pt, synchronous, NULL);
}

/* ---- batches */

static bool order_ok(CUmemcpySrcAccessOrder o)
{
    return o >= CU_MEMCPY_SRC_ACCESS_ORDER_STREAM && o <= CU_MEMCPY_SRC_ACCESS_ORDER_ANY;
}

static bool legacy(CUstream s, bool pt)
{
    return s == CU_STREAM_LEGACY || (!s && !pt);
}

static CUresult batch(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                      size_t *starts, size_t attr_count, size_t *bad, CUstream s, bool pt)
{
    if (bad)
        *bad = SIZE_MAX; /* the error is not of one copy */
    if (!dsts || !srcs || !sizes || !count || count > 1u << 24 || !attrs || !starts || !attr_count || attr_count > count ||
        starts[0] || legacy(s, pt))
        return CUDA_ERROR_INVALID_VALUE;
    bool during_call = false;
    for (size_t i = 0; i < attr_count; i++) {
        if (!order_ok(attrs[i].srcAccessOrder) || starts[i] >= count || (i && starts[i] <= starts[i - 1]))
            return CUDA_ERROR_INVALID_VALUE;
        during_call |= attrs[i].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
    }
    struct sim_job *job = sim_job_new((unsigned)count);
    for (size_t i = 0; job && i < count; i++) {
        struct sim_box *b = &job->boxes[i];
        b->dst.p = dsts[i];
        b->src.p = srcs[i];
        b->width = sizes[i];
        b->height = b->depth = 1;
        if (!sizes[i]) {
            free(job);
            if (bad)
                *bad = i;
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    return go(job, s, pt, during_call, bad);
}

static CUresult operand(const CUmemcpy3DOperand *o, uint64_t element, const struct sim_box *b, struct sim_side *out)
{
    if (o->type == CU_MEMCPY_OPERAND_TYPE_ARRAY)
        return sim_side_of(CU_MEMORYTYPE_ARRAY, 0, 0, o->op.array.array, o->op.array.offset.x * element, o->op.array.offset.y,
                           o->op.array.offset.z, 0, 0, b, out);
    if (o->type != CU_MEMCPY_OPERAND_TYPE_POINTER)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t pitch = o->op.ptr.rowLength ? o->op.ptr.rowLength * element : b->width; /* 0: as wide as the copy */
    uint64_t height = o->op.ptr.layerHeight ? o->op.ptr.layerHeight : b->height;
    return sim_side_of(CU_MEMORYTYPE_UNIFIED, 0, o->op.ptr.ptr, NULL, 0, 0, 0, pitch, height, b, out);
}

/* Bytes of one element: of the array that takes part, else a byte. */
static uint64_t element_of(const CUDA_MEMCPY3D_BATCH_OP *op)
{
    uint64_t n = 1;
    sim_take();
    const CUmemcpy3DOperand *sides[] = {&op->src, &op->dst};
    for (int i = 0; i < 2; i++)
        if (sides[i]->type == CU_MEMCPY_OPERAND_TYPE_ARRAY) {
            struct CUarray_st *a = sim_array(sides[i]->op.array.array);
            n = a ? a->element : 1;
        }
    sim_give();
    return n;
}

static CUresult solid_batch(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, size_t *bad, unsigned long long flags, CUstream s, bool pt)
{
    if (bad)
        *bad = SIZE_MAX;
    if (!count || count > 1u << 24 || !ops || flags || legacy(s, pt))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_job *job = sim_job_new((unsigned)count);
    bool during_call = false;
    for (size_t i = 0; job && i < count; i++) {
        struct sim_box *b = &job->boxes[i];
        uint64_t element = element_of(&ops[i]);
        b->height = ops[i].extent.height;
        b->depth = ops[i].extent.depth;
        bool bounded = !__builtin_mul_overflow(ops[i].extent.width, element, &b->width);
        CUresult r = bounded && b->width && b->height && b->depth && order_ok(ops[i].srcAccessOrder) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        if (!r)
            r = operand(&ops[i].dst, element, b, &b->dst);
        if (!r)
            r = operand(&ops[i].src, element, b, &b->src);
        if (r) {
            free(job);
            if (bad)
                *bad = i;
            return r;
        }
        during_call |= ops[i].srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
    }
    return go(job, s, pt, during_call, bad);
}

static CUresult with_attributes(CUdeviceptr dst, CUdeviceptr src, size_t size, CUmemcpyAttributes *attr, CUstream s, bool pt)
{
    if (!attr || !order_ok(attr->srcAccessOrder))
        return CUDA_ERROR_INVALID_VALUE;
    return linear(dst, SIM_ANY, src, SIM_ANY, size, s, pt, attr->srcAccessOrder == CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL);
}

/* ---- graph nodes */

CUresult sim_copy_op(const CUDA_MEMCPY3D *p, CUcontext handle, struct sim_op *out)
{
    struct sim_job *job;
    sim_take();
    CUcontext ctx = sim_object(SIM_CONTEXT, at(handle));
    sim_give();
    if (!ctx)
        return CUDA_ERROR_INVALID_CONTEXT;
    CUresult r = solid_job(p, &job);
    if (!r)
        r = sim_job_check(ctx, job, NULL);
    if (r) {
        free(job);
        return r;
    }
    *out = sim_job_op(job);
    return CUDA_SUCCESS;
}

/* How a captured copy names one side: memory of the host that no device allocation covers is HOST. */
static CUmemorytype type_of(const struct sim_side *s)
{
    const struct sim_map *m = sim_map_find(s->p);
    return s->must == SIM_DEVICE_SIDE || (m && m->kind != SIM_MAP_HOST && m->kind != SIM_MAP_REGISTERED) ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
}

bool sim_copy_params(const struct sim_op *op, CUDA_MEMCPY3D *out)
{
    const struct sim_job *j = op->arg;
    if (j->given)
        *out = j->params;
    if (j->given || j->count != 1)
        return j->given;
    const struct sim_box *b = &j->boxes[0];
    *out = (CUDA_MEMCPY3D){.WidthInBytes = b->width, .Height = b->height, .Depth = b->depth};
    out->srcMemoryType = type_of(&b->src);
    out->dstMemoryType = type_of(&b->dst);
    if (out->srcMemoryType == CU_MEMORYTYPE_HOST)
        out->srcHost = (const void *)(uintptr_t)b->src.p;
    else
        out->srcDevice = b->src.p;
    if (out->dstMemoryType == CU_MEMORYTYPE_HOST)
        out->dstHost = (void *)(uintptr_t)b->dst.p;
    else
        out->dstDevice = b->dst.p;
    out->srcPitch = b->src.pitch ? b->src.pitch : b->width;
    out->dstPitch = b->dst.pitch ? b->dst.pitch : b->width;
    out->srcHeight = b->src.pitch && b->src.slice ? b->src.slice / b->src.pitch : b->height;
    out->dstHeight = b->dst.pitch && b->dst.slice ? b->dst.slice / b->dst.pitch : b->height;
    return true;
}

bool sim_copy_operands(const struct sim_op *op, struct sim_operand out[2])
{
    const struct sim_job *j = op->arg;
    if (j->count != 1)
        return false;
    const struct sim_box *b = &j->boxes[0];
    out[0] = (struct sim_operand){.p = b->dst.p, .n = sim_box_extent(b, &b->dst)};
    out[1] = (struct sim_operand){.p = b->src.p, .n = sim_box_extent(b, &b->src)};
    return true;
}

/* ---- entries; D is the suffix of the synchronous ones, Z of those with a stream */

#define COPY_ENTRIES(D, Z, pt) \
    SIM_API CUresult cuMemcpy##D(CUdeviceptr dst, CUdeviceptr src, size_t n) \
    { SIM_ENTRY(); return linear(dst, SIM_ANY, src, SIM_ANY, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyAsync##Z(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) \
    { SIM_ENTRY(); return linear(dst, SIM_ANY, src, SIM_ANY, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyPeer##D(CUdeviceptr dst, CUcontext dctx, CUdeviceptr src, CUcontext sctx, size_t n) \
    { SIM_ENTRY(); return peer(dst, dctx, src, sctx, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyPeerAsync##Z(CUdeviceptr dst, CUcontext dctx, CUdeviceptr src, CUcontext sctx, size_t n, CUstream s) \
    { SIM_ENTRY(); return peer(dst, dctx, src, sctx, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyHtoD_v2##D(CUdeviceptr dst, const void *src, size_t n) \
    { SIM_ENTRY(); return linear(dst, SIM_DEVICE_SIDE, at(src), SIM_ANY, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyHtoDAsync_v2##Z(CUdeviceptr dst, const void *src, size_t n, CUstream s) \
    { SIM_ENTRY(); return linear(dst, SIM_DEVICE_SIDE, at(src), SIM_ANY, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyDtoH_v2##D(void *dst, CUdeviceptr src, size_t n) \
    { SIM_ENTRY(); return linear(at(dst), SIM_ANY, src, SIM_DEVICE_SIDE, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyDtoHAsync_v2##Z(void *dst, CUdeviceptr src, size_t n, CUstream s) \
    { SIM_ENTRY(); return linear(at(dst), SIM_ANY, src, SIM_DEVICE_SIDE, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyDtoD_v2##D(CUdeviceptr dst, CUdeviceptr src, size_t n) \
    { SIM_ENTRY(); return linear(dst, SIM_DEVICE_SIDE, src, SIM_DEVICE_SIDE, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyDtoDAsync_v2##Z(CUdeviceptr dst, CUdeviceptr src, size_t n, CUstream s) \
    { SIM_ENTRY(); return linear(dst, SIM_DEVICE_SIDE, src, SIM_DEVICE_SIDE, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyDtoA_v2##D(CUarray dst, size_t offset, CUdeviceptr src, size_t n) \
    { SIM_ENTRY(); return to_array(dst, offset, src, SIM_DEVICE_SIDE, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyAtoD_v2##D(CUdeviceptr dst, CUarray src, size_t offset, size_t n) \
    { SIM_ENTRY(); return from_array(dst, SIM_DEVICE_SIDE, src, offset, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyHtoA_v2##D(CUarray dst, size_t offset, const void *src, size_t n) \
    { SIM_ENTRY(); return to_array(dst, offset, at(src), SIM_ANY, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyHtoAAsync_v2##Z(CUarray dst, size_t offset, const void *src, size_t n, CUstream s) \
    { SIM_ENTRY(); return to_array(dst, offset, at(src), SIM_ANY, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyAtoH_v2##D(void *dst, CUarray src, size_t offset, size_t n) \
    { SIM_ENTRY(); return from_array(at(dst), SIM_ANY, src, offset, n, NULL, pt, true); } \
    SIM_API CUresult cuMemcpyAtoHAsync_v2##Z(void *dst, CUarray src, size_t offset, size_t n, CUstream s) \
    { SIM_ENTRY(); return from_array(at(dst), SIM_ANY, src, offset, n, s, pt, false); } \
    SIM_API CUresult cuMemcpyAtoA_v2##D(CUarray dst, size_t doff, CUarray src, size_t soff, size_t n) \
    { SIM_ENTRY(); return between_arrays(dst, doff, src, soff, n, pt); } \
    SIM_API CUresult cuMemcpy2D_v2##D(const CUDA_MEMCPY2D *c) { SIM_ENTRY(); return flat(c, NULL, pt, true); } \
    SIM_API CUresult cuMemcpy2DUnaligned_v2##D(const CUDA_MEMCPY2D *c) { SIM_ENTRY(); return flat(c, NULL, pt, true); } \
    SIM_API CUresult cuMemcpy2DAsync_v2##Z(const CUDA_MEMCPY2D *c, CUstream s) { SIM_ENTRY(); return flat(c, s, pt, false); } \
    SIM_API CUresult cuMemcpy3D_v2##D(const CUDA_MEMCPY3D *c) { SIM_ENTRY(); return solid(c, NULL, pt, true); } \
    SIM_API CUresult cuMemcpy3DAsync_v2##Z(const CUDA_MEMCPY3D *c, CUstream s) { SIM_ENTRY(); return solid(c, s, pt, false); } \
    SIM_API CUresult cuMemcpy3DPeer##D(const CUDA_MEMCPY3D_PEER *c) { SIM_ENTRY(); return solid_peer(c, NULL, pt, true); } \
    SIM_API CUresult cuMemcpy3DPeerAsync##Z(const CUDA_MEMCPY3D_PEER *c, CUstream s) \
    { SIM_ENTRY(); return solid_peer(c, s, pt, false); } \
    SIM_API CUresult cuMemcpyBatchAsync##Z(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs, \
                                           size_t *starts, size_t attr_count, size_t *bad, CUstream s) \
    { SIM_ENTRY(); return batch(dsts, srcs, sizes, count, attrs, starts, attr_count, bad, s, pt); } \
    SIM_API CUresult cuMemcpyBatchAsync_v2##Z(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs, \
                                              size_t *starts, size_t attr_count, CUstream s) \
    { SIM_ENTRY(); return batch(dsts, srcs, sizes, count, attrs, starts, attr_count, NULL, s, pt); } \
    SIM_API CUresult cuMemcpy3DBatchAsync##Z(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, size_t *bad, unsigned long long flags, CUstream s) \
    { SIM_ENTRY(); return solid_batch(count, ops, bad, flags, s, pt); } \
    SIM_API CUresult cuMemcpy3DBatchAsync_v2##Z(size_t count, CUDA_MEMCPY3D_BATCH_OP *ops, unsigned long long flags, CUstream s) \
    { SIM_ENTRY(); return solid_batch(count, ops, NULL, flags, s, pt); } \
    SIM_API CUresult cuMemcpyWithAttributesAsync##Z(CUdeviceptr dst, CUdeviceptr src, size_t n, CUmemcpyAttributes *attr, CUstream s) \
    { SIM_ENTRY(); return with_attributes(dst, src, n, attr, s, pt); } \
    SIM_API CUresult cuMemcpy3DWithAttributesAsync##Z(CUDA_MEMCPY3D_BATCH_OP *op, unsigned long long flags, CUstream s) \
    { SIM_ENTRY(); return solid_batch(1, op, NULL, flags, s, pt); }
COPY_ENTRIES(, , false)
COPY_ENTRIES(_ptds, _ptsz, true)
