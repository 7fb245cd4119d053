/* SPDX-License-Identifier: Apache-2.0 */
/* The arena: one device address reservation, and the table from addresses to regions. Called by engine.c, move.c, pool.c, region.c.
 * Rules: the reservation is made once and never freed; addresses are handed out in places of 32 MiB, because they cost nothing and the
 * table a word for each place; the table is read without a lock (one aligned word). */
#include "tiering/tiering.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "shim/log.h"

/* Free address ranges, sorted, never adjacent. */
struct extent {
    uint64_t base, size;
    struct extent *next;
};

static CUdeviceptr arena_base;
static uint64_t arena_size; /* 0 until reserved */
static uint32_t *place;     /* slot index + 1; 0: no region */
static struct extent *free_list;

/* Addresses cost nothing, running out of them does: several times what the machine could ever back, so that
 * fragmentation never matters. Halved where the driver (or RLIMIT_AS) refuses. */
static const uint64_t LARGEST = 16ull << 40, SMALLEST = 1ull << 30;

enum { PLACE_SHIFT = 25 };

static uint64_t places(uint64_t bytes)
{
    const uint64_t place_bytes = (uint64_t)1 << PLACE_SHIFT;
    return (bytes + place_bytes - 1) & ~(place_bytes - 1);
}

static CUresult reserve(uint64_t need)
{
    const struct spill_driver *d = spill_driver();
    CUresult r = CUDA_ERROR_OUT_OF_MEMORY;
    for (uint64_t size = LARGEST; size >= SMALLEST && size >= need; size /= 2) {
        r = d->cuMemAddressReserve(&arena_base, size, 0, 0, 0);
        if (r != CUDA_SUCCESS)
            continue;
        uint64_t table = (size >> PLACE_SHIFT) * sizeof *place;
        place = mmap(NULL, table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        free_list = malloc(sizeof *free_list);
        if (place == MAP_FAILED || !free_list) {
            if (place != MAP_FAILED)
                munmap(place, table);
            free(free_list);
            d->cuMemAddressFree(arena_base, size);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        *free_list = (struct extent){ arena_base, size, NULL };
        /* Readers test the size first. */
        __atomic_store_n(&arena_size, size, __ATOMIC_RELEASE);
        spill_log(SPILL_LOG_DEBUG, "arena reserved base=0x%llx bytes=%llu", arena_base, (unsigned long long)size);
        return CUDA_SUCCESS;
    }
    return r;
}

CUresult spill_arena_take(uint64_t bytes, CUdeviceptr *out)
{
    bytes = places(bytes);
    if (!arena_size) {
        CUresult r = reserve(bytes);
        if (r != CUDA_SUCCESS)
            return r;
    }
    struct extent **best = NULL;
    for (struct extent **e = &free_list; *e; e = &(*e)->next)
        if ((*e)->size >= bytes && (!best || (*e)->size < (*best)->size))
            best = e;
    if (!best)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct extent *found = *best;
    *out = found->base;
    found->base += bytes;
    found->size -= bytes;
    if (!found->size) {
        *best = found->next;
        free(found);
    }
    return CUDA_SUCCESS;
}

void spill_arena_give(CUdeviceptr base, uint64_t bytes)
{
    bytes = places(bytes);
    struct extent **at = &free_list, *before = NULL;
    for (; *at && (*at)->base < base; at = &(*at)->next)
        before = *at;
    struct extent *after = *at;
    bool joins_before = before && before->base + before->size == base;
    bool joins_after = after && base + bytes == after->base;
    if (joins_before && joins_after) {
        before->size += bytes + after->size;
        before->next = after->next;
        free(after);
    } else if (joins_before) {
        before->size += bytes;
    } else if (joins_after) {
        after->base = base;
        after->size += bytes;
    } else {
        struct extent *e = malloc(sizeof *e);
        if (!e)
            return; /* these addresses are lost, no memory is */
        *e = (struct extent){ base, bytes, after };
        *at = e;
    }
}

void spill_arena_mark(CUdeviceptr base, uint64_t bytes, uint32_t index)
{
    uint64_t first = (base - arena_base) >> PLACE_SHIFT;
    for (uint64_t i = 0; i < places(bytes) >> PLACE_SHIFT; i++)
        __atomic_store_n(&place[first + i], index + 1, __ATOMIC_RELEASE);
}

bool spill_arena_contains(CUdeviceptr p)
{
    uint64_t size = __atomic_load_n(&arena_size, __ATOMIC_ACQUIRE);
    return size && p - arena_base < size; /* the base is being written while there is no size */
}

uint32_t spill_arena_slot(CUdeviceptr p)
{
    if (!spill_arena_contains(p))
        return UINT32_MAX;
    return __atomic_load_n(&place[(p - arena_base) >> PLACE_SHIFT], __ATOMIC_ACQUIRE) - 1;
}
