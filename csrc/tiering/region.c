/* SPDX-License-Identifier: Apache-2.0 */
/* Regions and their chunks. Called by engine.c and by every hook that is handed a pointer.
 * Rules: slots are never freed, so a look-up without a lock can't read freed memory; a slot's fields change only while
 * no address leads to it. */
#include "tiering/tiering.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "shim/log.h"

enum { PAGE_SLOTS = 256, MAX_PAGES = 4096 };

static struct spill_region *page[MAX_PAGES];
static uint32_t slot_count;
static struct spill_region *free_slots; /* linked through `ctx`, which a free slot has no use for */
static uint64_t next_buffer_id = 1ull << 48; /* apart from the driver's own, which count up from 1 */

/* Fixed regions lie outside the arena: few, found by a scan. The counter spares every other pointer the lock. */
static pthread_rwlock_t fixed_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct spill_region **fixed;
static uint32_t fixed_count, fixed_room;

static struct spill_region *slot(uint32_t index)
{
    return &__atomic_load_n(&page[index / PAGE_SLOTS], __ATOMIC_ACQUIRE)[index % PAGE_SLOTS];
}

struct spill_region *spill_region_new(uint32_t chunks)
{
    struct spill_region *region;
    struct spill_chunk *list = chunks ? calloc(chunks, sizeof *list) : NULL;
    if (chunks && !list)
        return NULL;
    if (free_slots) {
        region = free_slots;
        free_slots = (struct spill_region *)region->ctx;
    } else {
        uint32_t index = slot_count;
        if (index == PAGE_SLOTS * MAX_PAGES)
            return free(list), NULL;
        if (index % PAGE_SLOTS == 0) {
            struct spill_region *fresh = calloc(PAGE_SLOTS, sizeof *fresh);
            if (!fresh)
                return free(list), NULL;
            __atomic_store_n(&page[index / PAGE_SLOTS], fresh, __ATOMIC_RELEASE);
        }
        region = slot(index);
        region->index = index;
        slot_count++;
    }
    uint32_t index = region->index, generation = region->generation + 1;
    memset(region, 0, sizeof *region);
    region->index = index;
    region->generation = generation;
    region->chunks = list;
    region->chunk_count = chunks;
    region->buffer_id = next_buffer_id++;
    region->live = true;
    return region;
}

void spill_region_recycle(struct spill_region *region)
{
    free(region->chunks);
    region->chunks = NULL;
    region->chunk_count = 0;
    region->live = false;
    region->ctx = (CUcontext)free_slots;
    free_slots = region;
}

bool spill_region_publish(struct spill_region *region)
{
    if (!region->fixed) {
        spill_arena_mark(region->base, region->mapped, region->index);
        return true;
    }
    pthread_rwlock_wrlock(&fixed_lock);
    if (fixed_count == fixed_room) {
        uint32_t room = fixed_room ? fixed_room * 2 : 16;
        struct spill_region **grown = realloc(fixed, room * sizeof(struct spill_region *));
        if (!grown) {
            pthread_rwlock_unlock(&fixed_lock);
            return false;
        }
        fixed = grown;
        fixed_room = room;
    }
    fixed[fixed_count] = region;
    __atomic_store_n(&fixed_count, fixed_count + 1, __ATOMIC_RELEASE);
    pthread_rwlock_unlock(&fixed_lock);
    return true;
}

void spill_region_withdraw(struct spill_region *region)
{
    if (!region->fixed) {
        spill_arena_mark(region->base, region->mapped, UINT32_MAX);
        return;
    }
    pthread_rwlock_wrlock(&fixed_lock);
    for (uint32_t i = 0; i < fixed_count; i++)
        if (fixed[i] == region) {
            fixed[i] = fixed[fixed_count - 1];
            __atomic_store_n(&fixed_count, fixed_count - 1, __ATOMIC_RELEASE);
            break;
        }
    pthread_rwlock_unlock(&fixed_lock);
}

struct spill_region *spill_region_find(CUdeviceptr p)
{
    struct spill_region *found = NULL;
    uint32_t index = spill_arena_slot(p);
    if (index != UINT32_MAX) /* a region need not fill its last place */
        return p - slot(index)->base < slot(index)->mapped ? slot(index) : NULL;
    if (!__atomic_load_n(&fixed_count, __ATOMIC_ACQUIRE))
        return NULL;
    pthread_rwlock_rdlock(&fixed_lock);
    for (uint32_t i = 0; i < fixed_count && !found; i++)
        if (p - fixed[i]->base < fixed[i]->mapped)
            found = fixed[i];
    pthread_rwlock_unlock(&fixed_lock);
    return found;
}

void spill_region_tell(const struct spill_region *region)
{
    spill_log(SPILL_LOG_DEBUG, "region base=0x%llx bytes=%llu ram=%llu chunks=%u device=%d", region->base,
              (unsigned long long)region->size, (unsigned long long)region->ram_bytes, region->chunk_count, region->device);
}

struct spill_region *spill_region_slot(uint32_t index)
{
    return index < slot_count ? slot(index) : NULL;
}

void spill_region_each(void (*visit)(struct spill_region *, void *), void *arg)
{
    for (uint32_t i = 0; i < slot_count; i++)
        if (slot(i)->live)
            visit(slot(i), arg);
}

uint32_t spill_chunk_at(const struct spill_region *region, uint64_t offset)
{
    uint32_t at = (uint32_t)(offset >> SPILL_GRANULE_SHIFT), low = 0, high = region->chunk_count - 1;
    while (low < high) {
        uint32_t middle = (low + high + 1) / 2;
        if (region->chunks[middle].start <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

uint64_t spill_region_run(const struct spill_region *region, CUdeviceptr p, uint64_t limit, enum spill_tier *tier)
{
    uint64_t offset = p - region->base;
    uint64_t left = region->mapped - offset < limit ? region->mapped - offset : limit;
    if (region->fixed) {
        *tier = SPILL_RAM;
        return left;
    }
    uint32_t low = spill_chunk_at(region, offset);
    *tier = (enum spill_tier)region->chunks[low].tier;
    uint64_t end;
    do {
        end = (uint64_t)(region->chunks[low].start + region->chunks[low].length) << SPILL_GRANULE_SHIFT;
        low++;
    } while (end < offset + left && low < region->chunk_count && region->chunks[low].tier == *tier);
    return end - offset < left ? end - offset : left;
}
