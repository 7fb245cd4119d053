/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of graphs: what allocation and free nodes name. Called by graph_params.c, graph_exec.c, capture.c, pool.c, mem.c.
 * Rules (cuda.h, cuGraphAddMemAllocNode; Programming Guide, graph memory nodes): an allocation has its address from the moment
 * its node is made and for as long as a node, an executable or an unfreed launch knows it; it can be accessed from where
 * a launch reaches its node to where a free is reached. Its VRAM is taken by the first launch or upload and stays reserved
 * for graphs, even when its graph is gone, until cuDeviceGraphMemTrim. Each allocation has memory of its own: lifetimes
 * that do not overlap share none here.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct sim_graph_alloc {
    struct sim_graph_alloc *next;
    atomic_int refs; /* nodes, executables, a launch that is not freed */
    struct sim_map *map;
    uint64_t size, charged;
    uint64_t owner;    /* the graph that allocates it */
    uint64_t freed_by; /* the graph that holds a free node of it, 0: none */
    unsigned mapped;   /* executables whose launch or upload has mapped it */
    bool live, backed;
    bool fresh; /* backed anew: what its pages hold is settled when a launch opens them */
    struct sim_task *busy; /* the newest launch that uses it */
    CUDA_MEM_ALLOC_NODE_PARAMS_v2 params;
    CUmemAccessDesc access[];
};

/* Memory that graphs have reserved and no allocation uses: it waits for the next one of its size, or for a trim. */
struct spare {
    struct spare *next;
    int device;
    uint64_t size, charged;
};

enum { USED, RESERVED, MARKS };
static struct sim_graph_alloc *all; /* [locked] this and all below */
static struct spare *spares;
static struct { uint64_t now, high; } marks[SIM_MAX_DEVICES][MARKS];

static void count(int device, int what, int64_t bytes)
{
    marks[device][what].now += (uint64_t)bytes;
    if (marks[device][what].now > marks[device][what].high)
        marks[device][what].high = marks[device][what].now;
}

static void protect(const struct sim_graph_alloc *a, int prot)
{
    mprotect((void *)(uintptr_t)a->map->base, a->size, prot);
}

CUresult sim_graph_alloc_new(CUcontext ctx, CUgraph owner, const CUDA_MEM_ALLOC_NODE_PARAMS_v2 *p, struct sim_graph_alloc **out)
{
    const CUmemPoolProps *props = &p->poolProps;
    if (props->allocType != CU_MEM_ALLOCATION_TYPE_PINNED || props->handleTypes != CU_MEM_HANDLE_TYPE_NONE || !p->bytesize ||
        (p->accessDescCount && !p->accessDescs) || p->accessDescCount > SIM_MAX_DEVICES)
        return CUDA_ERROR_INVALID_VALUE;
    if (props->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_NOT_SUPPORTED; /* cuda.h knows others for pools; graphs over host memory are not simulated */
    if (!sim_device_ok(props->location.id))
        return CUDA_ERROR_INVALID_DEVICE;
    for (size_t i = 0; i < p->accessDescCount; i++)
        if (p->accessDescs[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || !sim_device_ok(p->accessDescs[i].location.id))
            return CUDA_ERROR_INVALID_VALUE;
    if (p->bytesize >= (size_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_graph_alloc *a = calloc(1, sizeof *a + p->accessDescCount * sizeof *a->access);
    struct sim_map *m = sim_map_new();
    uint64_t size = sim_round(p->bytesize, SIM_GRAN);
    void *at = a && m ? sim_pages(size) : NULL;
    if (at) {
        m->kind = SIM_MAP_POOLED;
        m->base = (uint64_t)(uintptr_t)at;
        m->size = p->bytesize;
        m->device = props->location.id;
        m->ctx = ctx;
        m->graph = a;
    }
    if (!at || !sim_map_add(m)) {
        if (at)
            sim_pages_free(at, size);
        free(m);
        free(a);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    atomic_init(&a->refs, 1);
    a->map = m;
    a->size = size;
    a->owner = owner->id;
    a->params = *p;
    a->params.dptr = m->base;
    if (p->accessDescCount) /* without any, the array may be NULL */
        memcpy(a->access, p->accessDescs, p->accessDescCount * sizeof *a->access);
    a->params.accessDescs = p->accessDescCount ? a->access : NULL;
    a->next = all;
    all = a;
    protect(a, PROT_NONE);
    *out = a;
    return CUDA_SUCCESS;
}

void sim_graph_alloc_params(const struct sim_graph_alloc *a, CUDA_MEM_ALLOC_NODE_PARAMS_v2 *out)
{
    *out = a->params;
}

CUdeviceptr sim_graph_alloc_address(const struct sim_graph_alloc *a)
{
    return a->params.dptr;
}

void sim_graph_alloc_hold(struct sim_graph_alloc *a)
{
    atomic_fetch_add(&a->refs, 1);
}

/* [locked] Its memory goes to what graphs keep; the pages themselves are given back. */
static void unback(struct sim_graph_alloc *a)
{
    int device = a->map->device;
    if (!a->backed)
        return;
    void *pages = (void *)(uintptr_t)a->map->base;
    sim_recycle_pages(device, pages, a->size);
    madvise(pages, a->size, MADV_DONTNEED);
    a->backed = false;
    if (a->mapped)
        count(device, USED, -(int64_t)a->size);
    struct spare *s = malloc(sizeof *s);
    if (s) {
        *s = (struct spare){spares, device, a->size, a->charged};
        spares = s;
    } else { /* nowhere to note it: as if it were trimmed at once */
        sim_vram_return(device, a->size, a->charged);
        count(device, RESERVED, -(int64_t)a->size);
    }
}

void sim_graph_alloc_drop(struct sim_graph_alloc *a)
{
    if (!a || atomic_fetch_sub(&a->refs, 1) != 1)
        return;
    sim_take();
    for (struct sim_graph_alloc **p = &all; *p; p = &(*p)->next)
        if (*p == a) {
            *p = a->next;
            break;
        }
    unback(a);
    sim_map_remove(a->map);
    sim_give();
    sim_pages_free((void *)(uintptr_t)a->map->base, a->size);
    sim_task_drop(a->busy);
    free(a->map);
    free(a);
}

CUresult sim_graph_alloc_free_node(CUdeviceptr p, CUgraph in, struct sim_graph_alloc **out)
{
    struct sim_map *m = sim_map_find(p);
    struct sim_graph_alloc *a = m && m->base == p ? m->graph : NULL;
    if (!a || a->freed_by)
        return CUDA_ERROR_INVALID_VALUE;
    a->freed_by = in->id;
    sim_graph_alloc_hold(a);
    *out = a;
    return CUDA_SUCCESS;
}

void sim_graph_alloc_unfree(struct sim_graph_alloc *a, CUgraph in)
{
    if (in && a->freed_by == in->id)
        a->freed_by = 0;
}

void sim_graph_alloc_mapped(struct sim_graph_alloc *a, int change)
{
    bool before = a->mapped;
    a->mapped += (unsigned)change;
    if (a->backed && before != (a->mapped != 0))
        count(a->map->device, USED, a->mapped ? (int64_t)a->size : -(int64_t)a->size);
}

CUresult sim_graph_alloc_back(struct sim_graph_alloc *a)
{
    if (a->backed)
        return CUDA_SUCCESS;
    int device = a->map->device;
    struct spare **s = &spares;
    while (*s && ((*s)->device != device || (*s)->size != a->size))
        s = &(*s)->next;
    if (*s) {
        struct spare *taken = *s;
        a->charged = taken->charged;
        *s = taken->next;
        free(taken);
    } else if (sim_vram_take(device, a->size, &a->charged)) {
        count(device, RESERVED, (int64_t)a->size);
    } else {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    a->backed = a->fresh = true;
    if (a->mapped)
        count(device, USED, (int64_t)a->size);
    return CUDA_SUCCESS;
}

bool sim_graph_alloc_live(const struct sim_graph_alloc *a)
{
    return a->live;
}

void sim_graph_alloc_set(struct sim_graph_alloc *a, bool live)
{
    if (live == a->live)
        return;
    a->live = live;
    atomic_fetch_add(&a->refs, live ? 1 : -1); /* never the last: whoever frees it holds it through a node or a map */
}

void sim_graph_alloc_busy(struct sim_graph_alloc *a, struct sim_task *launch)
{
    sim_task_drop(a->busy);
    a->busy = launch;
    atomic_fetch_add(&launch->refs, 1);
}

void sim_graph_alloc_open(struct sim_graph_alloc *a)
{
    protect(a, PROT_READ | PROT_WRITE);
    if (a->fresh)
        sim_poison_new(a->map->device, (void *)(uintptr_t)a->map->base, a->size);
    a->fresh = false;
}

void sim_graph_alloc_close(struct sim_graph_alloc *a)
{
    protect(a, PROT_NONE);
}

struct sim_graph_alloc *sim_graph_alloc_claim(struct sim_map *m)
{
    struct sim_graph_alloc *a = m->graph;
    if (!a->live || a->freed_by)
        return NULL;
    a->live = false;
    return a;
}

static CUresult run_close(void *arg)
{
    sim_graph_alloc_close(arg);
    return CUDA_SUCCESS;
}

static void drop_close(void *arg)
{
    sim_graph_alloc_drop(arg);
}

struct sim_op sim_graph_alloc_close_op(struct sim_graph_alloc *a)
{
    return (struct sim_op){run_close, drop_close, a, CU_GRAPH_NODE_TYPE_MEM_FREE, NULL};
}

/* ---- what is reserved */

static CUresult attribute(CUdevice device, CUgraphMem_attribute attr, uint64_t *value, bool set)
{
    if (!value || (unsigned)attr > CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    bool high = attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH || attr == CU_GRAPH_MEM_ATTR_RESERVED_MEM_HIGH;
    int what = attr == CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT || attr == CU_GRAPH_MEM_ATTR_USED_MEM_HIGH ? USED : RESERVED;
    CUresult r = CUDA_SUCCESS;
    sim_take();
    if (!set)
        *value = high ? marks[device][what].high : marks[device][what].now;
    else if (high && !*value) /* the high marks may only be reset */
        marks[device][what].high = marks[device][what].now;
    else
        r = CUDA_ERROR_INVALID_VALUE;
    sim_give();
    return r;
}

SIM_API CUresult cuDeviceGetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value)
{
    SIM_ENTRY();
    return attribute(device, attr, value, false);
}

SIM_API CUresult cuDeviceSetGraphMemAttribute(CUdevice device, CUgraphMem_attribute attr, void *value)
{
    SIM_ENTRY();
    return attribute(device, attr, value, true);
}

SIM_API CUresult cuDeviceGraphMemTrim(CUdevice device)
{
    SIM_ENTRY();
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    for (struct sim_graph_alloc *a = all; a; a = a->next)
        if (a->map->device == device && !a->live && (!a->busy || atomic_load(&a->busy->done)))
            unback(a);
    for (struct spare **p = &spares; *p;) {
        struct spare *s = *p;
        if (s->device != device) {
            p = &s->next;
            continue;
        }
        *p = s->next;
        sim_vram_return(device, s->size, s->charged);
        count(device, RESERVED, -(int64_t)s->size);
        free(s);
    }
    sim_give();
    return CUDA_SUCCESS;
}
