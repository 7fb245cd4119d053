/* SPDX-License-Identifier: Apache-2.0 */
/* Stream-ordered allocation and memory pools. Called by applications.
 * Rules: a pool keeps what was freed and hands it out again to the freeing stream at once, to others when the free has
 * run; it gives memory back when trimmed, or above its threshold whenever the host has waited for the device. Freed
 * memory is made inaccessible when the stream reaches the free. Allocations made while capturing are the graph's (graph_memory.c).
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct block {
    struct block *next;
    uint64_t id, base, size, asked, charged;
    bool used, sealed;
    struct sim_task *freed;
    uint64_t stream, round; /* where it was freed; how often it was */
    struct sim_map *map;    /* while used */
};

struct CUmemPoolHandle_st {
    struct CUmemPoolHandle_st *next;
    CUmemLocation location;
    int tier; /* device, or SIM_RAM */
    unsigned devices; /* bit per device whose kernels may reach it (cuMemPoolSetAccess) */
    bool fixed, gone; /* fixed: a device's default pool */
    uint64_t most; /* bytes that it may reserve, 0: no limit */
    uint64_t threshold, reserved, reserved_high, used, used_high;
    int reuse[4];
    struct block *blocks;
};

static CUmemoryPool pools;                          /* [locked] */
static CUmemoryPool defaults[SIM_MAX_DEVICES], current[SIM_MAX_DEVICES];

static CUmemoryPool pool_new(CUmemLocation location)
{
    CUmemoryPool p = calloc(1, sizeof *p);
    if (!p || !sim_object_add(SIM_POOL, (uint64_t)(uintptr_t)p, p)) {
        free(p);
        return NULL;
    }
    p->location = location;
    p->tier = location.type == CU_MEM_LOCATION_TYPE_DEVICE ? location.id : SIM_RAM;
    p->devices = p->tier >= 0 ? 1u << p->tier : ~0u;
    for (int i = 0; i < 4; i++)
        p->reuse[i] = 1;
    p->next = pools;
    pools = p;
    return p;
}

static CUmemoryPool default_pool(int device)
{
    if (!defaults[device]) {
        CUmemLocation l = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
        defaults[device] = pool_new(l);
        if (defaults[device])
            defaults[device]->fixed = true;
    }
    return defaults[device];
}

static CUmemoryPool current_pool(int device)
{
    return current[device] ? current[device] : default_pool(device);
}

static CUmemoryPool pool_of(CUmemoryPool handle)
{
    return sim_object(SIM_POOL, (uint64_t)(uintptr_t)handle);
}

static bool idle(const struct block *b)
{
    return !b->used && (!b->freed || atomic_load(&b->freed->done));
}

static bool tier_take(int tier, uint64_t bytes, uint64_t *charged)
{
    if (tier >= 0)
        return sim_vram_take(tier, bytes, charged);
    *charged = sim_round(bytes, 4096);
    return sim_charge(SIM_RAM, *charged);
}

static void block_free(CUmemoryPool p, struct block **link)
{
    struct block *b = *link;
    *link = b->next;
    void *pages = (void *)(uintptr_t)b->base;
    sim_recycle_pages(p->tier, pages, b->size);
    sim_pages_free(pages, b->size);
    if (p->tier >= 0)
        sim_vram_return(p->tier, b->size, b->charged);
    else
        sim_machine_return(SIM_RAM, b->charged);
    p->reserved -= b->size;
    sim_task_drop(b->freed);
    free(b);
}

/* [locked] Give back idle blocks until no more than `keep` bytes are reserved. */
static void trim(CUmemoryPool p, uint64_t keep)
{
    for (struct block **link = &p->blocks; *link && p->reserved > keep;)
        if (idle(*link))
            block_free(p, link);
        else
            link = &(*link)->next;
}

/* [locked] A destroyed pool goes when its last block does. */
static void bury(CUmemoryPool p)
{
    if (!p->gone)
        return;
    trim(p, 0);
    if (p->blocks)
        return;
    for (CUmemoryPool *link = &pools; *link; link = &(*link)->next)
        if (*link == p) {
            *link = p->next;
            break;
        }
    free(p);
}

void sim_pools_sync(int device)
{
    sim_take();
    for (CUmemoryPool p = pools, next; p; p = next) {
        next = p->next;
        if (p->tier != device && p->tier >= 0)
            continue;
        trim(p, p->threshold);
        bury(p);
    }
    sim_give();
}

/* [locked] A block that fits and that this stream may have now. */
static struct block *reuse(CUmemoryPool p, uint64_t bytes, uint64_t stream)
{
    struct block *best = NULL;
    for (struct block *b = p->blocks; b; b = b->next)
        if (!b->used && b->size >= bytes && b->size <= 2 * bytes + SIM_GRAN && (b->stream == stream || idle(b)) &&
            (!best || b->size < best->size))
            best = b;
    return best;
}

static struct block *fresh(CUmemoryPool p, uint64_t bytes)
{
    struct block *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->id = sim_unique();
    b->size = sim_round(bytes, bytes >= 1 << 20 ? SIM_GRAN : 512);
    bool room = !p->most || b->size <= p->most;
    if (room && p->most) {
        trim(p, p->most - b->size);
        room = p->reserved <= p->most - b->size;
    }
    bool taken = room && tier_take(p->tier, b->size, &b->charged);
    if (room && !taken) { /* what other pools of the device only keep is given back first */
        for (CUmemoryPool o = pools; o; o = o->next)
            if (o->tier == p->tier)
                trim(o, 0);
        taken = tier_take(p->tier, b->size, &b->charged);
    }
    void *at = taken ? sim_pages(b->size) : NULL;
    if (!at) {
        if (taken && p->tier >= 0)
            sim_vram_return(p->tier, b->size, b->charged);
        else if (taken)
            sim_machine_return(SIM_RAM, b->charged);
        free(b);
        return NULL;
    }
    sim_poison_new(p->tier, at, b->size);
    b->base = (uint64_t)(uintptr_t)at;
    b->next = p->blocks;
    p->blocks = b;
    p->reserved += b->size;
    if (p->reserved > p->reserved_high)
        p->reserved_high = p->reserved;
    return b;
}

/* [locked] */
static CUresult give(CUmemoryPool p, uint64_t bytes, CUcontext ctx, uint64_t stream, struct block **out)
{
    struct sim_map *m = sim_map_new();
    struct block *b = m ? reuse(p, bytes, stream) : NULL;
    if (m && !b)
        b = fresh(p, bytes);
    if (!b) {
        free(m);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->kind = SIM_MAP_POOLED;
    m->base = b->base;
    m->size = bytes;
    m->device = ctx->device;
    m->in_ram = p->tier < 0;
    m->ctx = ctx;
    m->pool = p;
    if (!sim_map_add(m)) {
        free(m);
        return CUDA_ERROR_OUT_OF_MEMORY; /* the block stays in the pool */
    }
    if (b->sealed)
        mprotect((void *)(uintptr_t)b->base, sim_round(b->size, 4096), PROT_READ | PROT_WRITE);
    b->sealed = false;
    b->used = true;
    b->asked = bytes;
    b->map = m;
    b->round++;
    p->used += b->size;
    if (p->used > p->used_high)
        p->used_high = p->used;
    *out = b;
    return CUDA_SUCCESS;
}

/* [locked] The used block at an address, with its pool. */
static struct block *block_at(CUdeviceptr ptr, CUmemoryPool *pool)
{
    struct sim_map *m = sim_map_find(ptr);
    if (!m || m->kind != SIM_MAP_POOLED || m->base != ptr || m->graph)
        return NULL;
    *pool = m->pool;
    for (struct block *b = m->pool->blocks; b; b = b->next)
        if (b->used && b->base == ptr)
            return b;
    return NULL;
}

/* [locked] Back into the pool; `freed` (a reference, or NULL: now) is when. */
static void take_back(CUmemoryPool p, struct block *b, struct sim_task *freed, uint64_t stream)
{
    sim_map_remove(b->map);
    free(b->map);
    b->map = NULL;
    b->used = false;
    b->stream = stream;
    sim_task_drop(b->freed);
    b->freed = freed;
    p->used -= b->size;
}

struct seal { /* names the block, which may be gone by then, and its pool too: cuMemFree and cuMemPoolDestroy do not wait */
    uint64_t id, round;
};

/* [locked] What it held is gone; `closed`: and an access is a fault from now on. */
static void seal(struct block *b, bool closed)
{
    void *p = (void *)(uintptr_t)b->base;
    sim_poison_touched(p, b->size);
    if (closed)
        mprotect(p, sim_round(b->size, 4096), PROT_NONE);
    b->sealed = closed;
}

/* The stream has reached the free. When it has been given the block again meanwhile, what it does next on it comes after this. */
static CUresult run_seal(void *arg)
{
    const struct seal *s = arg;
    sim_take();
    for (CUmemoryPool p = pools; p; p = p->next)
        for (struct block *b = p->blocks; b; b = b->next)
            if (b->id == s->id && !b->sealed)
                seal(b, b->round == s->round && !b->used);
    sim_give();
    return CUDA_SUCCESS;
}

/* [locked] An allocation node: the pool only says where. */
static CUresult capture_alloc(CUstream s, CUmemoryPool p, size_t bytes, CUdeviceptr *out, struct sim_graph_alloc **unused)
{
    CUDA_MEM_ALLOC_NODE_PARAMS_v2 params = {.bytesize = bytes};
    params.poolProps.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    params.poolProps.location = p->location;
    struct sim_act act = {.kind = CU_GRAPH_NODE_TYPE_MEM_ALLOC, .ctx = s->ctx};
    CUresult r = s->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                                     : sim_graph_alloc_new(s->ctx, s->capture->graph, &params, &act.alloc);
    if (r)
        return r;
    *out = sim_graph_alloc_address(act.alloc);
    if ((r = sim_capture_add(s, act, NULL)))
        *unused = act.alloc;
    return r;
}

static CUresult alloc(CUdeviceptr *out, size_t bytes, CUmemoryPool handle, bool named, CUstream stream, bool pt)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!out || !bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (bytes >= (size_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct block *b = NULL;
    struct sim_graph_alloc *unused = NULL;
    sim_take();
    CUmemoryPool p = named ? pool_of(handle) : current_pool(ctx->device);
    r = p ? sim_stream_find(stream, pt, &s) : named ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && s->capture) {
        r = capture_alloc(s, p, bytes, out, &unused);
    } else if (!r) {
        if (s->legacy)
            sim_capture_implicit(s->ctx, &r);
        if (!r)
            r = give(p, bytes, ctx, s->id, &b);
    }
    if (b)
        *out = b->base;
    sim_give();
    sim_graph_alloc_drop(unused);
    return r;
}

/* [locked] Memory that a graph allocated, freed by a capture or on a stream. `w` was made for a pool's memory and becomes another operation. */
static CUresult release_graph(CUstream s, struct sim_map *m, struct sim_work *w, struct sim_graph_alloc **unused)
{
    struct sim_act act = {.kind = CU_GRAPH_NODE_TYPE_MEM_FREE, .ctx = s->ctx};
    if (s->capture) {
        CUresult r = s->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                                         : sim_graph_alloc_free_node(m->base, s->capture->graph, &act.alloc);
        if (!r && (r = sim_capture_add(s, act, NULL))) {
            sim_graph_alloc_unfree(act.alloc, s->capture->graph);
            *unused = act.alloc;
        }
        return r;
    }
    CUresult r = CUDA_SUCCESS;
    if (s->legacy)
        sim_capture_implicit(s->ctx, &r);
    struct sim_graph_alloc *a = r ? NULL : sim_graph_alloc_claim(m);
    if (r || !a)
        return r ? r : CUDA_ERROR_INVALID_VALUE;
    w->op.drop(w->op.arg);
    w->op = sim_graph_alloc_close_op(a);
    sim_work_ref(w);
    return sim_submit(s, w, NULL, 0, NULL);
}

static CUresult release(CUdeviceptr ptr, CUstream stream, bool pt)
{
    CUcontext ctx;
    CUstream s;
    CUmemoryPool p;
    CUresult r = sim_current(&ctx);
    if (r || !ptr)
        return r ? r : CUDA_ERROR_INVALID_VALUE;
    struct seal *note = malloc(sizeof *note);
    struct sim_work *w = note ? sim_work_new((struct sim_op){run_seal, free, note, CU_GRAPH_NODE_TYPE_MEM_FREE, NULL}) : NULL;
    if (!w)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_task *t = NULL;
    struct sim_map *plain = NULL;
    struct sim_graph_alloc *unused = NULL;
    sim_take();
    struct block *b = block_at(ptr, &p);
    r = sim_stream_find(stream, pt, &s);
    struct sim_map *m = r || b ? NULL : sim_map_find(ptr);
    if (m && m->graph) {
        r = m->base == ptr ? release_graph(s, m, w, &unused) : CUDA_ERROR_INVALID_VALUE;
    } else if (!r && s->capture) {
        r = s->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_INVALID_VALUE; /* only a graph's (cuda.h) */
    } else if (!r && b) {
        if (s->legacy)
            sim_capture_implicit(s->ctx, &r);
        if (!r) {
            *note = (struct seal){b->id, b->round};
            sim_work_ref(w);
            r = sim_submit(s, w, NULL, 0, &t);
        }
        if (!r)
            take_back(p, b, t, s->id);
    } else if (!r) { /* cuMemAlloc's memory may be freed in stream order too */
        plain = sim_map_find(ptr);
        if (!plain || plain->base != ptr || plain->kind != SIM_MAP_DEVICE) {
            plain = NULL;
            r = CUDA_ERROR_INVALID_VALUE;
        } else {
            sim_map_remove(plain);
            t = sim_stream_last(s);
        }
    }
    sim_give();
    sim_work_drop(w);
    sim_graph_alloc_drop(unused);
    if (plain) {
        if (t)
            sim_task_wait(t);
        sim_task_drop(t);
        r = sim_map_release(plain);
    }
    return r;
}

CUresult sim_pool_free_now(CUdeviceptr ptr)
{
    CUmemoryPool p;
    sim_take();
    struct block *b = block_at(ptr, &p);
    if (b) {
        take_back(p, b, NULL, 0);
        seal(b, true);
        trim(p, p->threshold);
        bury(p);
    }
    sim_give();
    return b ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

#define POOL_ENTRIES(suffix, pt) \
    SIM_API CUresult cuMemAllocAsync##suffix(CUdeviceptr *out, size_t n, CUstream s) \
    { SIM_ENTRY(); return alloc(out, n, NULL, false, s, pt); } \
    SIM_API CUresult cuMemAllocFromPoolAsync##suffix(CUdeviceptr *out, size_t n, CUmemoryPool pool, CUstream s) \
    { SIM_ENTRY(); return alloc(out, n, pool, true, s, pt); } \
    SIM_API CUresult cuMemFreeAsync##suffix(CUdeviceptr p, CUstream s) { SIM_ENTRY(); return release(p, s, pt); }
POOL_ENTRIES(, false)
POOL_ENTRIES(_ptsz, true)

/* ---- pools as objects */

static CUresult check_location(const CUmemLocation *l)
{
    if (l->type == CU_MEM_LOCATION_TYPE_DEVICE)
        return sim_device_ok(l->id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    return l->type == CU_MEM_LOCATION_TYPE_HOST || (l->type == CU_MEM_LOCATION_TYPE_HOST_NUMA && l->id == 0) /* there is one node */
               ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps)
{
    SIM_ENTRY();
    if (!pool || !poolProps || poolProps->allocType != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (poolProps->handleTypes != CU_MEM_HANDLE_TYPE_NONE)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUresult r = check_location(&poolProps->location);
    if (r)
        return r;
    sim_take();
    CUmemoryPool p = pool_new(poolProps->location);
    if (p) {
        p->most = poolProps->maxSize;
        *pool = p;
    }
    sim_give();
    return p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_API CUresult cuMemPoolDestroy(CUmemoryPool pool)
{
    SIM_ENTRY();
    sim_take();
    CUmemoryPool p = pool_of(pool);
    bool ok = p && !p->fixed;
    if (ok) {
        sim_object_drop(SIM_POOL, (uint64_t)(uintptr_t)p);
        for (int i = 0; i < SIM_MAX_DEVICES; i++)
            if (current[i] == p)
                current[i] = NULL;
        p->gone = true;
        bury(p);
    }
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep)
{
    SIM_ENTRY();
    sim_take();
    CUmemoryPool p = pool_of(pool);
    if (p)
        trim(p, minBytesToKeep);
    sim_give();
    return p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult attribute(CUmemoryPool handle, CUmemPool_attribute attr, void *value, bool set)
{
    CUresult r = CUDA_SUCCESS;
    sim_take();
    CUmemoryPool p = value ? pool_of(handle) : NULL;
    if (!p) {
        sim_give();
        return CUDA_ERROR_INVALID_VALUE;
    }
    uint64_t *wide = NULL;
    int narrow = 0;
    switch (attr) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC:
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES:
        if (set)
            memcpy(&p->reuse[attr], value, sizeof(int));
        else
            memcpy(value, &p->reuse[attr], sizeof(int));
        break;
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: wide = &p->threshold; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT: wide = &p->reserved; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: wide = &p->reserved_high; break;
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: wide = &p->used; break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: wide = &p->used_high; break;
    case CU_MEMPOOL_ATTR_MAX_POOL_SIZE: wide = &p->most; break; /* this and what follows may only be asked */
    case CU_MEMPOOL_ATTR_ALLOCATION_TYPE: narrow = CU_MEM_ALLOCATION_TYPE_PINNED; break;
    case CU_MEMPOOL_ATTR_EXPORT_HANDLE_TYPES: narrow = CU_MEM_HANDLE_TYPE_NONE; break;
    case CU_MEMPOOL_ATTR_LOCATION_ID: narrow = p->location.id; break;
    case CU_MEMPOOL_ATTR_LOCATION_TYPE: narrow = (int)p->location.type; break;
    case CU_MEMPOOL_ATTR_HW_DECOMPRESS_ENABLED: narrow = 0; break;
    case CU_MEMPOOL_ATTR_LOCALITY_DOMAIN_ID: narrow = -1; break;
    default: r = CUDA_ERROR_INVALID_VALUE; break;
    }
    if (attr > CU_MEMPOOL_ATTR_USED_MEM_HIGH && set) {
        r = CUDA_ERROR_INVALID_VALUE;
    } else if (wide && !set) {
        memcpy(value, wide, sizeof *wide);
    } else if (!r && attr > CU_MEMPOOL_ATTR_USED_MEM_HIGH) {
        memcpy(value, &narrow, sizeof narrow);
    } else if (wide) {
        uint64_t v;
        memcpy(&v, value, sizeof v);
        if (attr == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)
            p->threshold = v;
        else if (v == 0 && attr == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH) /* the high marks may only be reset */
            p->reserved_high = p->reserved;
        else if (v == 0 && attr == CU_MEMPOOL_ATTR_USED_MEM_HIGH)
            p->used_high = p->used;
        else
            r = CUDA_ERROR_INVALID_VALUE;
    }
    sim_give();
    return r;
}

SIM_API CUresult cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value)
{
    SIM_ENTRY();
    return attribute(pool, attr, value, true);
}

SIM_API CUresult cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attr, void *value)
{
    SIM_ENTRY();
    return attribute(pool, attr, value, false);
}

bool sim_pool_open_to(CUmemoryPool p, int device)
{
    return p->devices >> device & 1;
}

/* [locked] */
static CUresult check_access(CUmemoryPool p, const CUmemAccessDesc *d)
{
    bool known = d->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE || d->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (!known || d->location.type != CU_MEM_LOCATION_TYPE_DEVICE || !sim_device_ok(d->location.id))
        return CUDA_ERROR_INVALID_VALUE;
    if (p->tier < 0 || d->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE)
        return p->tier == d->location.id ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; /* its own device cannot be shut out */
    return p->tier == d->location.id || sim_peer_possible(d->location.id, p->tier) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

SIM_API CUresult cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count)
{
    SIM_ENTRY();
    sim_take();
    CUmemoryPool p = map && count ? pool_of(pool) : NULL;
    CUresult r = p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < count; i++)
        r = check_access(p, &map[i]);
    for (size_t i = 0; !r && i < count; i++) {
        unsigned bit = 1u << map[i].location.id;
        p->devices = map[i].flags ? p->devices | bit : p->devices & ~bit;
    }
    sim_give();
    return r;
}

SIM_API CUresult cuMemPoolGetAccess(CUmemAccess_flags *flags, CUmemoryPool memPool, CUmemLocation *location)
{
    SIM_ENTRY();
    sim_take();
    CUmemoryPool p = flags && location ? pool_of(memPool) : NULL;
    bool ok = p && location->type == CU_MEM_LOCATION_TYPE_DEVICE && sim_device_ok(location->id);
    if (ok)
        *flags = sim_pool_open_to(p, location->id) ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult pool_for(CUmemoryPool *out, CUdevice dev, bool fixed)
{
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    *out = fixed ? default_pool(dev) : current_pool(dev);
    sim_give();
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult set_pool(CUdevice dev, CUmemoryPool pool)
{
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    CUmemoryPool p = pool_of(pool);
    bool ok = p && p->tier == dev;
    if (ok)
        current[dev] = p;
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool_out, CUdevice dev)
{
    SIM_ENTRY();
    return pool_for(pool_out, dev, true);
}

SIM_API CUresult cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice dev)
{
    SIM_ENTRY();
    return pool_for(pool, dev, false);
}

SIM_API CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool)
{
    SIM_ENTRY();
    return set_pool(dev, pool);
}

static CUresult located(const CUmemLocation *l, CUmemAllocationType type)
{
    if (!l || type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    return l->type == CU_MEM_LOCATION_TYPE_DEVICE ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

SIM_API CUresult cuMemGetDefaultMemPool(CUmemoryPool *pool_out, CUmemLocation *location, CUmemAllocationType type)
{
    SIM_ENTRY();
    CUresult r = located(location, type);
    return r ? r : pool_for(pool_out, location->id, true);
}

SIM_API CUresult cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, CUmemAllocationType type)
{
    SIM_ENTRY();
    CUresult r = located(location, type);
    return r ? r : pool_for(pool, location->id, false);
}

SIM_API CUresult cuMemSetMemPool(CUmemLocation *location, CUmemAllocationType type, CUmemoryPool pool)
{
    SIM_ENTRY();
    CUresult r = located(location, type);
    return r ? r : set_pool(location->id, pool);
}
