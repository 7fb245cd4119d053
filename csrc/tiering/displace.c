/* SPDX-License-Identifier: Apache-2.0 */
/* Displacement: VRAM is made free now, for something that needs it more than the largest region does. Called by engine.c (a late
 * allocation finds no room), reclaim.c (the driver itself is out of memory) and settle.c.
 * Rules: the largest pays, because a byte less in VRAM slows it least; it pays in small chunks spread evenly over it, so that one
 * kernel meets both tiers; never at the cost of a region that is not larger than what is to be gained. */
#include "tiering/moving.h"

#include "shim/log.h"

/* A walk over one region: of its VRAM chunks the n-th gives so much that the bytes given so far are `give` / `vram` of those seen. */
struct spread {
    struct spill_region *region;
    uint64_t vram, give; /* bytes at the start, in VRAM and to be given */
    uint64_t seen, given;
    uint64_t offset;
};

static uint64_t ceil_to(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

static bool next(void *arg, struct spill_want *want)
{
    struct spread *s = arg;
    uint64_t unit = spill_settings()->spill_chunk, usable = 0, device_free;
    const struct spill_region *region = s->region;
    while (s->offset < region->mapped && s->given < s->give) {
        const struct spill_chunk *c = &region->chunks[spill_chunk_at(region, s->offset)];
        uint64_t bytes = spill_chunk_bytes(c), at = (uint64_t)c->start << SPILL_GRANULE_SHIFT;
        s->offset = at + bytes;
        if (c->tier != SPILL_VRAM)
            continue;
        s->seen += bytes;
        /* In double: exact enough for whole units, and no product of bytes can overflow. */
        uint64_t due = ceil_to((uint64_t)((double)s->seen / (double)s->vram * (double)s->give), unit);
        if (due <= s->given)
            continue;
        uint64_t share = due - s->given < bytes ? due - s->given : bytes;
        /* What stays needs a new backing before the old one is free. */
        if (share < bytes && (spill_vram_free(region->device, &usable, &device_free) != CUDA_SUCCESS || usable < bytes - share))
            share = bytes;
        s->given += share;
        *want = (struct spill_want){ .region = s->region, .offset = at, .bytes = bytes, .to = SPILL_RAM, .stay = bytes - share, .piece = unit };
        return true;
    }
    return false;
}

struct search {
    int device;
    uint64_t than;
    CUcontext ctx;
    struct spill_region *largest;
};

static void consider(struct spill_region *region, void *arg)
{
    struct search *s = arg;
    if (region->device != s->device || region->mapped <= s->than || region->ram_bytes == region->mapped || !spill_movable(region))
        return;
    if (!s->largest || region->mapped > s->largest->mapped)
        s->largest = region;
}

uint64_t spill_displace(int device, uint64_t bytes, uint64_t than, uint64_t deadline_ns, uint64_t pause_ns, enum spill_reason *why)
{
    uint64_t freed = 0, until = spill_now_ns() + pause_ns;
    *why = SPILL_REASON_NONE;
    if (!spill_settings()->spill || spill_backend(device)->backend > SPILL_BACKEND_HOST)
        return *why = SPILL_REASON_BACKEND, 0;
    while (freed < bytes) {
        struct search search = { .device = device, .than = than };
        spill_region_each(consider, &search);
        if (!search.largest)
            return *why = SPILL_REASON_NOTHING, freed;
        struct spread spread = { .region = search.largest, .vram = search.largest->mapped - search.largest->ram_bytes };
        spread.give = ceil_to(bytes - freed, SPILL_GRANULE) < spread.vram ? ceil_to(bytes - freed, SPILL_GRANULE) : spread.vram;
        uint64_t now = spill_now_ns();
        if (freed && now >= until)
            return *why = SPILL_REASON_BUSY, freed;
        struct spill_series series = { .next = next, .arg = &spread, .deadline_ns = deadline_ns > now || !freed ? deadline_ns : until,
                                       .pause_ns = until > now ? until - now : 0, .bulk = true };
        *why = spill_move_series(&series);
        freed += series.moved;
        if (*why != SPILL_REASON_NONE || !series.moved)
            break;
    }
    spill_pool_trim(device, UINT64_MAX); /* whoever needs it need not be us */
    spill_log(SPILL_LOG_DEBUG, "displaced=%llu wanted=%llu why=%d", (unsigned long long)freed, (unsigned long long)bytes, (int)*why);
    return freed;
}
