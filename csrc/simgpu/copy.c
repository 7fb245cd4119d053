/* SPDX-License-Identifier: Apache-2.0 */
/* The copy engine: boxes of bytes between any two places. Called by copy_entries.c, graph.c and array.c.
 * Rules: operands are checked whole (from first to last byte) against the memory map; the bytes are moved on the
 * stream, guarded; the simulated time is bytes by the slower of the two places' rates.
 */
#include "copy.h"
#include "doubt.h"

#include <stdlib.h>
#include <string.h>

uint64_t sim_cost_ns(bool over_link, uint64_t bytes)
{
    const struct sim_config *c = sim_config();
    return sim_ns_at(bytes, over_link ? c->link : c->hbm);
}

struct sim_job *sim_job_new(unsigned boxes)
{
    struct sim_job *j = calloc(1, sizeof *j + boxes * sizeof j->boxes[0]);
    if (j)
        j->count = boxes;
    return j;
}

uint64_t sim_box_extent(const struct sim_box *b, const struct sim_side *s)
{
    uint64_t layers, rows, n;
    if (__builtin_mul_overflow(b->depth - 1, s->slice, &layers) || __builtin_mul_overflow(b->height - 1, s->pitch, &rows) ||
        __builtin_add_overflow(layers, rows, &n) || __builtin_add_overflow(n, b->width, &n))
        return 0;
    return n;
}

static void join(struct sim_span *all, const struct sim_span *one)
{
    all->known |= one->known;
    all->vram |= one->vram;
    all->ram |= one->ram;
    all->pinned |= one->pinned;
    all->managed |= one->managed;
}

CUresult sim_side_check(CUcontext ctx, const struct sim_box *b, const struct sim_side *s, bool write, struct sim_span *span)
{
    uint64_t n = sim_box_extent(b, s), rows = 1, layers = 1, width = n;
    if (!n || s->p + n < s->p)
        return CUDA_ERROR_INVALID_VALUE;
    if (sim_doubt(SIM_DOUBT_RECTANGLE)) {
        width = b->width;
        rows = b->height;
        layers = b->depth;
    }
    CUresult r = CUDA_SUCCESS;
    *span = (struct sim_span){0};
    for (uint64_t z = 0; !r && z < layers; z++)
        for (uint64_t y = 0; !r && y < rows; y++) {
            struct sim_span one;
            r = sim_span(s->in ? s->in : ctx, s->p + z * s->slice + y * s->pitch, width, write, &one);
            join(span, &one);
        }
    if (!r && s->must == SIM_DEVICE_SIDE && !span->known)
        r = CUDA_ERROR_INVALID_VALUE;
    return r;
}

CUresult sim_job_check(CUcontext ctx, struct sim_job *job, size_t *bad)
{
    CUresult r = CUDA_SUCCESS;
    job->device_only = true;
    sim_take();
    for (unsigned i = 0; i < job->count && !r; i++) {
        struct sim_box *b = &job->boxes[i];
        struct sim_span dst, src;
        if (!b->width || !b->height || !b->depth)
            continue;
        r = sim_side_check(ctx, b, &b->dst, true, &dst);
        if (!r)
            r = sim_side_check(ctx, b, &b->src, false, &src);
        if (r) {
            if (bad)
                *bad = i;
            break;
        }
        bool vram_only = dst.known && src.known && !dst.ram && !src.ram;
        uint64_t bytes = b->width * b->height * b->depth;
        job->pageable |= !dst.known || !src.known;
        job->device_only &= vram_only;
        job->mapped_ram |= (dst.ram && !dst.pinned) || (src.ram && !src.pinned);
        /* Inside VRAM every byte is read and written by the same memory. */
        if (vram_only)
            job->cost_ns += sim_cost_ns(false, 2 * bytes);
        else
            job->link_ns += sim_cost_ns(true, bytes);
        job->way |= vram_only ? 0u : (dst.known && dst.vram ? 0u : (unsigned)SIM_WAY_OUT) | (src.known && src.vram ? 0u : (unsigned)SIM_WAY_IN);
    }
    sim_give();
    return r;
}

static void move(void *arg)
{
    const struct sim_job *j = arg;
    for (unsigned i = 0; i < j->count; i++) {
        const struct sim_box *b = &j->boxes[i];
        bool packed = b->height <= 1 || (b->dst.pitch == b->width && b->src.pitch == b->width);
        for (uint64_t z = 0; z < b->depth; z++) {
            char *d = (char *)(uintptr_t)(b->dst.p + z * b->dst.slice);
            const char *s = (const char *)(uintptr_t)(b->src.p + z * b->src.slice);
            if (packed) {
                memmove(d, s, b->width * b->height);
                continue;
            }
            for (uint64_t y = 0; y < b->height; y++)
                memmove(d + y * b->dst.pitch, s + y * b->src.pitch, b->width);
        }
    }
}

static CUresult run_job(void *arg)
{
    const struct sim_job *j = arg;
    sim_charge_ns(j->cost_ns);
    sim_charge_link(j->link_ns, j->way, false);
    return sim_guarded(move, arg);
}

struct sim_op sim_job_op(struct sim_job *job)
{
    return (struct sim_op){run_job, free, job, CU_GRAPH_NODE_TYPE_MEMCPY, NULL};
}

CUresult sim_job_submit(struct sim_job *job, CUstream stream, bool pt, bool wait)
{
    /* Pageable memory is the caller's again when the call returns (cuda.h: such copies may be synchronous). */
    bool block = wait || job->pageable || (job->mapped_ram && sim_doubt(SIM_DOUBT_ASYNC_WAITS));
    return sim_enqueue_timed(stream, pt, sim_job_op(job), (struct sim_demand){true, job->way, job->cost_ns + job->link_ns}, block);
}

static bool within(uint64_t from, uint64_t n, uint64_t all)
{
    return from <= all && n <= all - from;
}

CUresult sim_side_of(CUmemorytype type, uint64_t host, CUdeviceptr device, CUarray array, uint64_t x, uint64_t y, uint64_t z,
                     uint64_t pitch, uint64_t height, const struct sim_box *b, struct sim_side *out)
{
    if (type == CU_MEMORYTYPE_ARRAY) {
        sim_take();
        struct CUarray_st *a = sim_array(array);
        bool fits = a && within(x, b->width, a->pitch) && within(y, b->height, a->desc.Height ? a->desc.Height : 1) &&
                    within(z, b->depth, a->desc.Depth ? a->desc.Depth : 1);
        if (fits)
            *out = (struct sim_side){a->base + x + y * a->pitch + z * a->slice, a->pitch, a->slice, SIM_DEVICE_SIDE, NULL};
        sim_give();
        return !a ? CUDA_ERROR_INVALID_HANDLE : fits ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    }
    if (type != CU_MEMORYTYPE_HOST && type != CU_MEMORYTYPE_DEVICE && type != CU_MEMORYTYPE_UNIFIED)
        return CUDA_ERROR_INVALID_VALUE;
    if (!pitch && b->height <= 1 && b->depth <= 1 && !y && !z)
        pitch = x + b->width;
    if (!height && (b->depth <= 1 && !z))
        height = y + b->height;
    if (pitch < x + b->width || height < y + b->height)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t slice, rows, layers, p = type == CU_MEMORYTYPE_HOST ? host : device;
    if (__builtin_mul_overflow(pitch, height, &slice) || __builtin_mul_overflow(pitch, y, &rows) ||
        __builtin_mul_overflow(slice, z, &layers) || __builtin_add_overflow(p, x, &p) ||
        __builtin_add_overflow(p, rows, &p) || __builtin_add_overflow(p, layers, &p))
        return CUDA_ERROR_INVALID_VALUE;
    *out = (struct sim_side){p, pitch, slice, type == CU_MEMORYTYPE_DEVICE ? SIM_DEVICE_SIDE : SIM_ANY, NULL};
    return CUDA_SUCCESS;
}
