/* SPDX-License-Identifier: Apache-2.0 */
/* Plain device memory: cuMemAlloc and its like, budgets, cuMemFree with its implicit synchronise. Called by
 * applications; the helpers by pools, arrays and module loading.
 * Rules: device memory is private pages (pages.c), touched only by use; a fork does not copy it. A pointer is freed in its
 * own context, whichever is current (unified addressing); it dies with that context.
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "faults.h"
#include "graph.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define SMALL ((uint64_t)1 << 20) /* below, allocations share 2 MiB blocks */
#define PAGE ((uint64_t)4096)
#define TOO_LARGE ((uint64_t)1 << 46)

static uint64_t small_bytes[SIM_MAX_DEVICES]; /* [locked] */

bool sim_charge(int tier, uint64_t bytes)
{
    return !sim_fault_site(tier == SIM_RAM ? SIM_SITE_RAM : SIM_SITE_VRAM) && sim_machine_charge(tier, bytes);
}

bool sim_vram_take(int device, uint64_t bytes, uint64_t *charged)
{
    if (bytes >= TOO_LARGE || sim_fault_site(SIM_SITE_VRAM))
        return false;
    if (bytes >= SMALL || sim_doubt(SIM_DOUBT_STEPS)) {
        *charged = sim_round(bytes, SIM_GRAN);
        return sim_machine_charge(device, *charged);
    }
    uint64_t *total = &small_bytes[device], more = sim_round(bytes, 512);
    uint64_t grow = sim_round(*total + more, SIM_GRAN) - sim_round(*total, SIM_GRAN);
    if (grow && !sim_machine_charge(device, grow))
        return false;
    *total += more;
    *charged = more;
    return true;
}

void sim_vram_return(int device, uint64_t bytes, uint64_t charged)
{
    if (bytes >= SMALL || sim_doubt(SIM_DOUBT_STEPS)) {
        sim_machine_return(device, charged);
        return;
    }
    uint64_t *total = &small_bytes[device];
    uint64_t shrink = sim_round(*total, SIM_GRAN) - sim_round(*total - charged, SIM_GRAN);
    *total -= charged;
    if (shrink)
        sim_machine_return(device, shrink);
}

/* Whose recycled bytes a map's pages are; managed memory may lie anywhere and is counted as RAM. */
static int tier_of(enum sim_map_kind kind, int device)
{
    return kind == SIM_MAP_DEVICE ? device : SIM_RAM;
}

static CUresult device_map(CUcontext ctx, uint64_t bytes, enum sim_map_kind kind, CUdeviceptr *out)
{
    if (bytes >= TOO_LARGE)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_map *m = sim_map_new();
    if (!m)
        return CUDA_ERROR_OUT_OF_MEMORY;
    m->kind = kind;
    m->size = bytes;
    m->real_size = sim_round(bytes, PAGE);
    m->device = ctx->device;
    m->ctx = ctx;
    bool budgeted = kind == SIM_MAP_DEVICE; /* managed memory may exceed VRAM: nothing is taken from it */
    sim_take();
    CUresult r = !budgeted || sim_vram_take(m->device, bytes, &m->charged) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    bool taken = !r && budgeted;
    sim_give();
    void *p = r ? NULL : sim_pages(m->real_size);
    if (p) { /* written before anybody can free it: another thread may be ending the context */
        m->base = (uint64_t)(uintptr_t)p;
        if (budgeted)
            madvise(p, m->real_size, MADV_DONTFORK);
        sim_poison_new(tier_of(kind, m->device), p, bytes);
    }
    sim_take();
    if (p && ctx->dead)
        r = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    else if (!p || !sim_map_add(m))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r && taken)
        sim_vram_return(m->device, bytes, m->charged);
    if (!r)
        *out = m->base;
    sim_give();
    if (r && p) {
        sim_recycle_pages(tier_of(kind, m->device), p, m->real_size);
        sim_pages_free(p, m->real_size);
    }
    if (r)
        free(m);
    return r;
}

CUresult sim_device_alloc(CUcontext ctx, uint64_t bytes, CUdeviceptr *out)
{
    return device_map(ctx, bytes, SIM_MAP_DEVICE, out);
}

CUresult sim_map_release(struct sim_map *m)
{
    void *p = (void *)(uintptr_t)m->base;
    if (m->kind == SIM_MAP_IPC) { /* the exporter's pages, outside our address space */
        munmap(p, m->real_size);
        sim_machine_unborrow(m->shared);
    } else if (m->kind != SIM_MAP_REGISTERED) {
        sim_recycle_pages(tier_of(m->kind, m->device), p, m->real_size);
        sim_pages_free(p, m->real_size);
    }
    sim_take();
    if (m->kind == SIM_MAP_DEVICE && m->shared)
        sim_machine_unlend(m->shared);
    if (m->kind == SIM_MAP_DEVICE)
        sim_vram_return(m->device, m->size, m->charged);
    else if (m->kind == SIM_MAP_HOST || m->kind == SIM_MAP_REGISTERED)
        sim_machine_return(SIM_RAM, m->charged);
    sim_give();
    if (m->fd >= 0)
        close(m->fd);
    sim_notes_drop(m);
    free(m);
    return CUDA_SUCCESS;
}

CUresult sim_module_alloc(size_t bytes, CUdeviceptr *out)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    return r ? r : sim_device_alloc(ctx, bytes, out);
}

void sim_module_free(CUdeviceptr p)
{
    sim_take();
    struct sim_map *m = sim_map_find(p);
    if (m && m->base == p && m->kind == SIM_MAP_DEVICE)
        sim_map_remove(m);
    else
        m = NULL;
    sim_give();
    if (m)
        sim_map_release(m);
}

void sim_ctx_wipe(CUcontext ctx)
{
    for (;;) {
        struct sim_map *m;
        sim_take();
        for (size_t i = 0; (m = sim_map_at(i)); i++)
            if (m->ctx == ctx && m->kind != SIM_MAP_VMM && m->kind != SIM_MAP_POOLED)
                break;
        if (m)
            sim_map_remove(m);
        sim_give();
        if (!m)
            return;
        sim_map_release(m);
    }
}

/* ---- entries */

static CUresult alloc(CUdeviceptr *out, uint64_t bytes, enum sim_map_kind kind)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!out || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    r = sim_capture_unsafe();
    sim_give();
    return r ? r : device_map(ctx, bytes, kind, out);
}

SIM_API CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)
{
    SIM_ENTRY();
    return alloc(dptr, bytesize, SIM_MAP_DEVICE);
}

SIM_API CUresult cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned int ElementSizeBytes)
{
    SIM_ENTRY();
    if (!pPitch || !WidthInBytes || !Height || (ElementSizeBytes != 4 && ElementSizeBytes != 8 && ElementSizeBytes != 16))
        return CUDA_ERROR_INVALID_VALUE;
    if (WidthInBytes >= TOO_LARGE || Height >= TOO_LARGE)
        return CUDA_ERROR_OUT_OF_MEMORY;
    uint64_t pitch = sim_round(WidthInBytes, 512), bytes;
    if (__builtin_mul_overflow(pitch, (uint64_t)Height, &bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = alloc(dptr, bytes, SIM_MAP_DEVICE);
    if (!r)
        *pPitch = pitch;
    return r;
}

SIM_API CUresult cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags)
{
    SIM_ENTRY();
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST)
        return CUDA_ERROR_INVALID_VALUE;
    return alloc(dptr, bytesize, SIM_MAP_MANAGED);
}

SIM_API CUresult cuMemFree_v2(CUdeviceptr dptr)
{
    SIM_ENTRY();
    CUcontext ctx = NULL;
    CUresult r = sim_current(&ctx);
    if (r == CUDA_ERROR_INVALID_CONTEXT && sim_doubt(SIM_DOUBT_FREE_BARE))
        r = CUDA_SUCCESS;
    if (r || !dptr)
        return r;
    sim_take();
    r = sim_capture_unsafe();
    struct sim_map *m = r ? NULL : sim_map_find(dptr);
    bool pooled = m && m->kind == SIM_MAP_POOLED;
    bool ours = m && m->base == dptr && (m->kind == SIM_MAP_DEVICE || m->kind == SIM_MAP_MANAGED || pooled);
    struct sim_graph_alloc *graph = ours && m->graph ? sim_graph_alloc_claim(m) : NULL;
    ours &= !m || !m->graph || graph;
    if (ours && !pooled)
        sim_map_remove(m); /* nobody can name it any more, and no other free can win */
    CUcontext owner = ours ? m->ctx : NULL;
    sim_give();
    if (r)
        return r;
    if (!ours)
        return CUDA_ERROR_INVALID_VALUE;
    if (graph) {
        struct sim_op op = sim_graph_alloc_close_op(graph);
        r = op.run(op.arg);
        op.drop(op.arg);
        return r;
    }
    if (pooled) /* no implicit synchronisation for these (cuda.h, cuMemFree): what still runs on it faults */
        return sim_pool_free_now(dptr);
    if (!sim_doubt(SIM_DOUBT_FREE_WAITS))
        sim_drain(owner);
    return sim_map_release(m);
}

SIM_API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!free_bytes || !total)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t used, capacity;
    sim_machine_usage(ctx->device, &used, &capacity);
    *free_bytes = capacity - used;
    *total = capacity;
    return CUDA_SUCCESS;
}
