/* SPDX-License-Identifier: Apache-2.0 */
/* Hints: what a program that knows of us says about its own memory. Set by shim/allocator.c for the calling thread; read by engine.c
 * where a region is placed, by sweep.c and settle.c where something might be brought back.
 *
 *   RAM    a wish: the region goes to RAM whole; where RAM is refused it is placed as any other
 *   VRAM   a condition: the region lies in VRAM and is never demoted (it is pinned); where there is none, out-of-memory
 *   cold   of memory that exists: it goes to RAM now, if anything can be moved
 *
 * Rules: what is in RAM by a hint is *cold*: no pass and no order brings it back, only its free ends that; hints are no statement
 * about the bytes, which stay as they are; a hint costs an allocation one load. */
#include "tiering/moving.h"

#define RUN ((uint64_t)256 << 20)

static __thread enum spill_hint current;

enum spill_hint spill_hint_now(void) { return current; }

enum spill_hint spill_hint_set(enum spill_hint hint)
{
    enum spill_hint before = current;
    current = hint;
    return before;
}

void spill_hint_place(enum spill_hint hint, const struct spill_place_in *in, struct spill_place_out *out)
{
    struct spill_place_in all = *in;
    if (hint == SPILL_HINT_RAM) {
        all.vram_free = 0;
    } else if (hint == SPILL_HINT_VRAM) {
        all.headroom = all.holdback = 0; /* wishes of ours, against a condition of the program's */
    } else {
        return;
    }
    spill_place(&all, out);
}

uint64_t spill_hint_cold(const struct spill_region *region)
{
    uint64_t bytes = 0;
    if (region->ram_bytes)
        for (uint32_t i = 0; i < region->chunk_count; i++)
            bytes += region->chunks[i].cold ? spill_chunk_bytes(&region->chunks[i]) : 0;
    return bytes;
}

/* ---- cold ---- */

/* `sweep` first: order.c keeps it. Of it `slot`, `offset` and `left` are used: what is still to be gone through. */
struct cold {
    struct spill_sweep sweep;
    uint32_t generation;
};

static uint64_t granule_up(uint64_t bytes) { return (bytes + SPILL_GRANULE - 1) & ~(SPILL_GRANULE - 1); }

static uint64_t start_of(const struct spill_chunk *c) { return (uint64_t)c->start << SPILL_GRANULE_SHIFT; }

/* Whether there is room to copy what stays of a chunk: it needs a new backing before the old one is free. */
static bool room_for(const struct spill_region *region, uint64_t bytes)
{
    uint64_t usable, device_free;
    CUcontext popped;
    if (!bytes)
        return true;
    if (spill_driver()->cuCtxPushCurrent_v2(region->ctx) != CUDA_SUCCESS)
        return false;
    CUresult r = spill_vram_free(region->device, &usable, &device_free);
    spill_driver()->cuCtxPopCurrent_v2(&popped);
    return r == CUDA_SUCCESS && usable >= bytes;
}

/* The next row of VRAM chunks that lie inside the range; of the first chunk what comes before the range stays. A last chunk that
 * reaches beyond it is left: only the first bytes of a chunk can stay. */
static bool next(void *arg, struct spill_want *want)
{
    struct spill_sweep *p = &((struct cold *)arg)->sweep;
    struct spill_region *region = spill_region_slot(p->slot);
    if (!region->live || region->generation != ((struct cold *)arg)->generation || !spill_movable(region))
        return false;
    uint64_t end = p->offset + p->left;
    for (uint32_t i = spill_chunk_at(region, p->offset); i < region->chunk_count && p->left; i++) {
        struct spill_chunk *c = &region->chunks[i];
        uint64_t at = start_of(c), stay = p->offset - at, after = at + spill_chunk_bytes(c);
        if (after > end)
            break;
        p->offset = after;
        p->left = end - after;
        if (c->tier == SPILL_RAM) {
            c->cold |= !stay;
            continue;
        }
        stay = granule_up(stay);
        if (at + stay == after || !room_for(region, stay))
            continue;
        *want = (struct spill_want){ .region = region, .offset = at, .bytes = after - at, .to = SPILL_RAM, .stay = stay,
                                     .piece = spill_settings()->chunk, .cold = true };
        while (++i < region->chunk_count && region->chunks[i].tier == SPILL_VRAM && want->bytes < RUN) {
            after = start_of(&region->chunks[i]) + spill_chunk_bytes(&region->chunks[i]);
            if (after > end)
                break;
            want->bytes = after - at;
        }
        p->offset = at + want->bytes;
        p->left = end - p->offset;
        return true;
    }
    p->left = 0;
    return false;
}

/* The region that `p` lies in, and *bytes of it from there on; or NULL. Under the engine lock. */
static struct spill_region *range(CUdeviceptr p, uint64_t *bytes)
{
    struct spill_region *region = spill_region_find(p);
    if (!region || !region->live || region->limbo || p - region->base >= region->size)
        return NULL;
    uint64_t left = region->size - (p - region->base);
    *bytes = *bytes < left ? *bytes : left;
    return region;
}

uint64_t spill_hint_in_ram(CUdeviceptr p, uint64_t bytes)
{
    uint64_t sum = 0;
    enum spill_tier tier;
    spill_lock();
    const struct spill_region *region = range(p, &bytes);
    for (uint64_t run; region && bytes; p += run, bytes -= run) {
        run = spill_region_run(region, p, bytes, &tier);
        sum += tier == SPILL_RAM ? run : 0;
    }
    spill_unlock();
    return sum;
}

uint64_t spill_hint_demote(CUdeviceptr p, uint64_t bytes, unsigned patience_ms)
{
    struct cold plan = { 0 };
    uint64_t moved = 0;
    spill_lock();
    const struct spill_region *region = range(p, &bytes);
    if (region) {
        plan = (struct cold){ .sweep = { .slot = region->index, .offset = p - region->base, .left = bytes },
                              .generation = region->generation };
        if (plan.sweep.offset + bytes == region->size)
            plan.sweep.left = region->mapped - plan.sweep.offset; /* what follows it in the last chunk is nobody's */
    }
    spill_unlock();
    if (!region || !bytes)
        return 0;
    spill_order_carry_out(next, &plan.sweep, patience_ms, &moved);
    if (moved) {
        spill_lock();
        spill_unsettled(); /* others may want the VRAM */
        spill_unlock();
    }
    return spill_hint_in_ram(p, bytes);
}
