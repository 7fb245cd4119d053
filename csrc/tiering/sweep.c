/* SPDX-License-Identifier: Apache-2.0 */
/* The sweep: which moves bring regions, one after the other from front to back, into one tier. Called by move.c for order.c and
 * settle.c. Rules: runs are long, because what a move costs beside its copy is paid for each run; VRAM is filled down to the
 * headroom, never below. */
#include "tiering/moving.h"

#define RUN ((uint64_t)1 << 30)

uint64_t spill_promotion_room(int device)
{
    const struct spill_device *d = spill_device(device);
    uint64_t usable = 0, device_free;
    if (spill_vram_free(device, &usable, &device_free) != CUDA_SUCCESS || usable < d->headroom)
        return 0;
    return usable - d->headroom;
}

bool spill_sweep_next(void *arg, struct spill_want *want)
{
    struct spill_sweep *p = arg;
    struct spill_region *region;
    for (; p->left && (region = spill_region_slot(p->slot)); p->slot++, p->offset = 0) {
        if (!spill_movable(region) || (p->only && region != p->only) || p->offset >= region->mapped)
            continue;
        uint32_t first = spill_chunk_at(region, p->offset);
        while (first < region->chunk_count && region->chunks[first].tier == p->to)
            first++;
        if (first == region->chunk_count)
            continue;
        if (p->ctx && p->ctx != region->ctx)
            return false; /* the next series begins here */
        uint64_t most = p->left < RUN ? p->left : RUN, bytes = 0;
        if (p->to == SPILL_VRAM) {
            uint64_t free_now = spill_promotion_room(region->device);
            most = free_now < most ? free_now : most;
        }
        for (uint32_t i = first; i < region->chunk_count && region->chunks[i].tier != p->to; i++) {
            if (bytes + spill_chunk_bytes(&region->chunks[i]) > most)
                break;
            bytes += spill_chunk_bytes(&region->chunks[i]);
        }
        p->full = !bytes;
        if (p->full)
            return false;
        p->ctx = region->ctx;
        *want = (struct spill_want){ .region = region, .offset = (uint64_t)region->chunks[first].start << SPILL_GRANULE_SHIFT,
                                     .bytes = bytes, .to = p->to, .piece = spill_settings()->chunk };
        p->offset = want->offset + bytes;
        p->left -= bytes;
        return true;
    }
    return false;
}

