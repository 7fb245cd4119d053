/* SPDX-License-Identifier: Apache-2.0 */
/* The memory map: what lies at each device-visible address. Called by allocation, VMM, copies and pointer queries.
 * Rules: [locked]; two arrays sorted by address (mappings, reservations), which never overlap within themselves.
 */
#include "doubt.h"
#include "state.h"

#include <stdlib.h>
#include <string.h>

struct table {
    void **items; /* each begins with uint64_t base, size */
    size_t count, room;
};

static struct table maps, reservations;

static uint64_t base_of(const void *item) { return ((const uint64_t *)item)[0]; }
static uint64_t end_of(const void *item) { return base_of(item) + ((const uint64_t *)item)[1]; }

/* Index of the first item that ends after p. */
static size_t first_after(const struct table *t, uint64_t p)
{
    size_t lo = 0, hi = t->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (end_of(t->items[mid]) > p)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

static bool insert(struct table *t, void *item)
{
    if (t->count == t->room) {
        size_t room = t->room ? 2 * t->room : 64;
        void **items = realloc(t->items, room * sizeof *items);
        if (!items)
            return false;
        t->items = items;
        t->room = room;
    }
    size_t at = first_after(t, base_of(item));
    memmove(t->items + at + 1, t->items + at, (t->count - at) * sizeof *t->items);
    t->items[at] = item;
    t->count++;
    return true;
}

static void take_out(struct table *t, void *item)
{
    size_t at = first_after(t, base_of(item));
    if (at == t->count || t->items[at] != item)
        return;
    t->count--;
    memmove(t->items + at, t->items + at + 1, (t->count - at) * sizeof *t->items);
}

static void *find(const struct table *t, uint64_t p)
{
    size_t at = first_after(t, p);
    return at < t->count && base_of(t->items[at]) <= p ? t->items[at] : NULL;
}

struct sim_map *sim_map_new(void)
{
    struct sim_map *m = calloc(1, sizeof *m);
    if (m) {
        m->fd = -1;
        m->id = sim_unique();
    }
    return m;
}

bool sim_map_add(struct sim_map *m) { return insert(&maps, m); }
void sim_map_remove(struct sim_map *m) { take_out(&maps, m); }
struct sim_map *sim_map_find(uint64_t p) { return find(&maps, p); }
size_t sim_map_from(uint64_t p) { return first_after(&maps, p); }
struct sim_map *sim_map_at(size_t index) { return index < maps.count ? maps.items[index] : NULL; }
bool sim_reservation_add(struct sim_reservation *r) { return insert(&reservations, r); }
void sim_reservation_remove(struct sim_reservation *r) { take_out(&reservations, r); }
struct sim_reservation *sim_reservation_find(uint64_t p) { return find(&reservations, p); }

/* May work of the context do this to the map? */
static bool reachable(const struct sim_map *m, CUcontext ctx, bool write)
{
    if (m->kind == SIM_MAP_REGISTERED)
        return !write || !(m->flags & CU_MEMHOSTREGISTER_READ_ONLY);
    if (m->kind != SIM_MAP_VMM)
        return true; /* copies between devices need no peer access (cuda.h, cuMemcpy under unified addressing) */
    if (m->in_ram && sim_doubt(SIM_DOUBT_RAM_MAPPINGS) && !(write ? m->host_writes : m->host_access))
        return false;
    unsigned may = write ? m->writers : m->devices, who = 1u << ctx->device;
    if (!m->in_ram && sim_doubt(SIM_DOUBT_FOREIGN_GRANT))
        who |= 1u << m->device;
    return may & who;
}

CUresult sim_span(CUcontext ctx, uint64_t p, uint64_t n, bool write, struct sim_span *out)
{
    *out = (struct sim_span){0};
    if (n == 0)
        return CUDA_SUCCESS;
    if (p + n < p || p == 0)
        return CUDA_ERROR_INVALID_VALUE;
    size_t i = sim_map_from(p);
    struct sim_map *m = sim_map_at(i);
    bool hole = !m || m->base > p, vmm = hole ? sim_reservation_find(p) != NULL : m->kind == SIM_MAP_VMM;
    if (hole && !vmm) /* not ours, unless it was */
        return sim_pages_own(p) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    out->known = true;
    bool late = vmm && sim_doubt(SIM_DOUBT_COPY_LATE);
    for (uint64_t at = p; at < p + n; m = sim_map_at(++i)) {
        /* Only mappings of one reservation make one range; two allocations never do. */
        if (!m || m->base > at || !reachable(m, ctx, write) ||
            (at > p && (m->kind != SIM_MAP_VMM || m->reservation != sim_map_at(i - 1)->reservation)))
            return late ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        *(m->in_ram ? &out->ram : &out->vram) = true;
        out->pinned |= m->kind == SIM_MAP_HOST || m->kind == SIM_MAP_REGISTERED;
        out->managed |= m->kind == SIM_MAP_MANAGED;
        at = m->base + m->size;
    }
    if (out->vram && out->ram && sim_config()->mixed_copy == SIM_MIXED_REFUSE)
        return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}
