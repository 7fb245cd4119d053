/* SPDX-License-Identifier: Apache-2.0 */
/* Every memset entry, each in the legacy and the per-thread default-stream form. Called by applications and graph.c.
 * Rules: as for copies; a synchronous memset of VRAM only queues the work, one of host memory waits (CUDA
 * documentation, API synchronisation behaviour).
 */
#include "copy.h"
#include "doubt.h"

#include <stdlib.h>
#include <string.h>

struct fill {
    uint64_t p, pitch, width, height; /* bytes; rows */
    unsigned value, element;
    uint64_t cost_ns;
    bool ram;
};

static void fill(void *arg)
{
    const struct fill *f = arg;
    for (uint64_t y = 0; y < f->height; y++) {
        char *row = (char *)(uintptr_t)(f->p + y * f->pitch);
        uint8_t low = (uint8_t)f->value;
        bool bytes = f->element == 1 || f->value == low * (f->element == 2 ? 0x0101u : 0x01010101u);
        if (bytes)
            memset(row, low, f->width);
        else if (f->element == 2)
            for (uint64_t i = 0; i < f->width / 2; i++)
                ((uint16_t *)(void *)row)[i] = (uint16_t)f->value;
        else
            for (uint64_t i = 0; i < f->width / 4; i++)
                ((uint32_t *)(void *)row)[i] = f->value;
    }
}

static CUresult run_fill(void *arg)
{
    const struct fill *f = arg;
    if (f->ram)
        sim_charge_link(f->cost_ns, SIM_WAY_OUT, false);
    else
        sim_charge_ns(f->cost_ns);
    return sim_guarded(fill, arg);
}

/* Check and build; *span: where it lies. */
static CUresult make(CUcontext ctx, CUdeviceptr dst, uint64_t pitch, unsigned value, unsigned element, uint64_t width,
                     uint64_t height, struct sim_op *out, struct sim_span *span)
{
    uint64_t bytes;
    if ((element != 1 && element != 2 && element != 4) || dst % element || (height > 1 && pitch % element) ||
        __builtin_mul_overflow(width, (uint64_t)element, &bytes) || (height > 1 && pitch < bytes))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_box box = {.dst = {dst, pitch, 0, SIM_DEVICE_SIDE}, .width = bytes, .height = height, .depth = 1};
    sim_take();
    CUresult r = sim_side_check(ctx, &box, &box.dst, true, span);
    sim_give();
    if (r)
        return r;
    struct fill *f = malloc(sizeof *f);
    if (!f)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *f = (struct fill){dst, pitch, bytes, height, element == 2 ? value & 0xffff : value, element, sim_cost_ns(span->ram, bytes * height), span->ram};
    if (element == 1)
        f->value &= 0xff;
    *out = (struct sim_op){run_fill, free, f, CU_GRAPH_NODE_TYPE_MEMSET, NULL};
    return CUDA_SUCCESS;
}

static CUresult set(CUdeviceptr dst, uint64_t pitch, unsigned value, unsigned element, uint64_t width, uint64_t height,
                    CUstream s, bool pt, bool synchronous)
{
    CUcontext ctx;
    struct sim_op op;
    struct sim_span span;
    CUresult r = sim_current(&ctx);
    if (r || !width || !height)
        return r;
    r = make(ctx, dst, pitch, value, element, width, height, &op, &span);
    if (r)
        return r;
    const struct fill *f = op.arg;
    struct sim_demand demand = {true, f->ram ? SIM_WAY_OUT : 0, f->cost_ns};
    bool wait = span.ram && (synchronous || (!span.pinned && sim_doubt(SIM_DOUBT_ASYNC_WAITS)));
    return sim_enqueue_timed(s, pt, op, demand, wait);
}

CUresult sim_memset_op(const CUDA_MEMSET_NODE_PARAMS *p, CUcontext handle, struct sim_op *out)
{
    sim_take();
    CUcontext ctx = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)handle);
    sim_give();
    struct sim_span span;
    if (!ctx)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (!p->width || !p->height)
        return CUDA_ERROR_INVALID_VALUE;
    return make(ctx, p->dst, p->pitch, p->value, p->elementSize, p->width, p->height, out, &span);
}

void sim_memset_params(const struct sim_op *op, CUDA_MEMSET_NODE_PARAMS *out)
{
    const struct fill *f = op->arg;
    *out = (CUDA_MEMSET_NODE_PARAMS){f->p, f->pitch, f->value, f->element, f->width / f->element, f->height};
}

void sim_memset_operand(const struct sim_op *op, struct sim_operand *out)
{
    const struct fill *f = op->arg;
    *out = (struct sim_operand){.p = f->p, .n = (f->height - 1) * f->pitch + f->width};
}

#define SET_ENTRIES(D, Z, pt, bits, type, size) \
    SIM_API CUresult cuMemsetD##bits##_v2##D(CUdeviceptr dst, type v, size_t n) \
    { SIM_ENTRY(); return set(dst, 0, v, size, n, 1, NULL, pt, true); } \
    SIM_API CUresult cuMemsetD##bits##Async##Z(CUdeviceptr dst, type v, size_t n, CUstream s) \
    { SIM_ENTRY(); return set(dst, 0, v, size, n, 1, s, pt, false); } \
    SIM_API CUresult cuMemsetD2D##bits##_v2##D(CUdeviceptr dst, size_t pitch, type v, size_t width, size_t height) \
    { SIM_ENTRY(); return set(dst, pitch, v, size, width, height, NULL, pt, true); } \
    SIM_API CUresult cuMemsetD2D##bits##Async##Z(CUdeviceptr dst, size_t pitch, type v, size_t width, size_t height, CUstream s) \
    { SIM_ENTRY(); return set(dst, pitch, v, size, width, height, s, pt, false); }
SET_ENTRIES(, , false, 8, unsigned char, 1)
SET_ENTRIES(, , false, 16, unsigned short, 2)
SET_ENTRIES(, , false, 32, unsigned int, 4)
SET_ENTRIES(_ptds, _ptsz, true, 8, unsigned char, 1)
SET_ENTRIES(_ptds, _ptsz, true, 16, unsigned short, 2)
SET_ENTRIES(_ptds, _ptsz, true, 32, unsigned int, 4)
