/* SPDX-License-Identifier: Apache-2.0 */
/* Moves in steady state: so small that the pause stays below a millisecond. Called by move.c (how long copies took) and by whoever
 * mends placement while the program runs.
 * Rules: the size follows from the link as our own copies saw it, in either direction, never from what a link is said to carry;
 * nothing seen yet means the smallest move, which then is the first measurement. */
#include "tiering/moving.h"

/* Of a pause of at most 1 ms; the rest is for unmapping, mapping and opening. */
enum { COPY_US = 700 };

static uint64_t rate[SPILL_MAX_DEVICES]; /* bytes per second; under the engine lock */

void spill_steady_seen(int device, uint64_t bytes, uint64_t ns)
{
    uint64_t seen = (uint64_t)((double)bytes * 1e9 / (double)(ns ? ns : 1));
    uint64_t *known = &rate[device];
    /* A copy that was disturbed is slow: down slowly. A small one carries its own start: up at once. */
    *known = seen > *known ? seen : *known - (*known - seen) / 8;
}

uint64_t spill_steady_bytes(int device)
{
    uint64_t bytes = (uint64_t)((double)rate[device] * COPY_US * 1e-6) & ~(SPILL_GRANULE - 1);
    return bytes < SPILL_GRANULE ? SPILL_GRANULE : bytes;
}

static bool once(void *arg, struct spill_want *want)
{
    struct spill_want *left = arg;
    if (!left->region)
        return false;
    *want = *left;
    left->region = NULL;
    return true;
}

enum spill_reason spill_steady_move(struct spill_region *region, uint64_t offset, enum spill_tier to, uint64_t deadline_ns, uint64_t *moved)
{
    *moved = 0;
    if (!spill_movable(region))
        return SPILL_REASON_PINNED;
    const struct spill_chunk *c = &region->chunks[spill_chunk_at(region, offset)];
    if (c->tier == to)
        return SPILL_REASON_NOTHING;
    uint64_t bytes = spill_chunk_bytes(c), most = spill_steady_bytes(region->device);
    /* The other part of the chunk keeps its tier, but not its backing: it is copied inside VRAM, which costs little, or inside RAM,
     * which the link carries in both directions at once. */
    struct spill_want want = { .region = region, .offset = (uint64_t)c->start << SPILL_GRANULE_SHIFT, .bytes = bytes, .to = to,
                               .stay = bytes > most ? bytes - most : 0, .piece = bytes };
    struct spill_series series = { .next = once, .arg = &want, .deadline_ns = deadline_ns };
    enum spill_reason why = spill_move_series(&series);
    *moved = series.moved;
    return why;
}
