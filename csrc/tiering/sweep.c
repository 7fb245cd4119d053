/* SPDX-License-Identifier: Apache-2.0 */
/* The sweep: which moves bring regions, one after the other from front to back, into one tier. Called by move.c for order.c and
 * settle.c. Rules: runs are long, because what a move costs beside its copy is paid for each run; the first of a series is shorter,
 * because nothing is copied while it is prepared; VRAM is filled down to the headroom, never below. */
#include "tiering/moving.h"

#define FIRST_RUN ((uint64_t)256 << 20)
#define RUN ((uint64_t)1 << 30)

static uint64_t run_of(const struct spill_sweep *p, uint64_t wanted)
{
    uint64_t most = p->ctx ? RUN : FIRST_RUN;
    return wanted < most ? wanted : most;
}

uint64_t spill_promotion_room(const struct spill_region *region)
{
    const struct spill_device *d = spill_device(region->device);
    uint64_t usable = 0, device_free;
    CUcontext popped;
    /* The worker has no context of its own, and the program's may be of another device. */
    if (spill_driver()->cuCtxPushCurrent_v2(region->ctx) != CUDA_SUCCESS)
        return 0;
    CUresult r = spill_vram_free(region->device, &usable, &device_free);
    spill_driver()->cuCtxPopCurrent_v2(&popped);
    return r == CUDA_SUCCESS && usable > d->headroom ? usable - d->headroom : 0;
}

/* Whole chunks until it is as much as was asked for: whoever sends memory away wants so much room. */
static uint64_t run_down(const struct spill_sweep *p, const struct spill_region *region, uint32_t first)
{
    uint64_t most = run_of(p, p->left), bytes = 0;
    for (uint32_t i = first; i < region->chunk_count && region->chunks[i].tier != p->to && bytes < most; i++)
        bytes += spill_chunk_bytes(&region->chunks[i]);
    return bytes;
}

static bool takes(const struct spill_sweep *p, const struct spill_chunk *c)
{
    return c->tier != p->to && !c->cold; /* only what is in RAM is ever cold */
}

/* Whole chunks that there is room for, no more than was asked for; where that is less than one chunk, its end (`*stay`: its
 * beginning, which stays). */
static uint64_t run_up(struct spill_sweep *p, const struct spill_region *region, uint32_t first, uint64_t *stay)
{
    if (!p->ctx)
        p->room = spill_promotion_room(region);
    uint64_t room = p->room, wanted = p->left & ~(SPILL_GRANULE - 1), bytes = 0;
    uint64_t most = run_of(p, wanted), chunk = spill_chunk_bytes(&region->chunks[first]);
    most = room < most ? room : most;
    for (uint32_t i = first; i < region->chunk_count && takes(p, &region->chunks[i]); i++) {
        if (bytes + spill_chunk_bytes(&region->chunks[i]) > most)
            break;
        bytes += spill_chunk_bytes(&region->chunks[i]);
    }
    if (!bytes && wanted && wanted < chunk && wanted <= room) {
        *stay = chunk - wanted;
        bytes = chunk;
    }
    p->room -= bytes - *stay;
    p->full = !bytes && wanted;
    if (!wanted)
        p->left = 0; /* less than a granule is as good as done */
    return bytes;
}

bool spill_sweep_next(void *arg, struct spill_want *want)
{
    struct spill_sweep *p = arg;
    struct spill_region *region;
    for (; p->left && (region = spill_region_slot(p->slot)); p->slot++, p->offset = 0) {
        if (!spill_movable(region) || (p->only && region != p->only) || p->offset >= region->mapped)
            continue;
        uint32_t first = spill_chunk_at(region, p->offset);
        while (first < region->chunk_count && !takes(p, &region->chunks[first]))
            first++;
        if (first == region->chunk_count)
            continue;
        if (p->ctx && p->ctx != region->ctx)
            return false; /* the next series begins here */
        uint64_t stay = 0, bytes = p->to == SPILL_RAM ? run_down(p, region, first) : run_up(p, region, first, &stay);
        if (!bytes)
            return false;
        p->ctx = region->ctx;
        *want = (struct spill_want){ .region = region, .offset = (uint64_t)region->chunks[first].start << SPILL_GRANULE_SHIFT,
                                     .bytes = bytes, .to = p->to, .stay = stay, .piece = spill_settings()->chunk };
        p->offset = want->offset + bytes;
        p->left -= bytes - stay < p->left ? bytes - stay : p->left;
        return true;
    }
    return false;
}

