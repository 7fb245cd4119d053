/* SPDX-License-Identifier: Apache-2.0 */
/* What the chunks say, what the counters say, what the ledger says and what the driver says is the same. Included by harness.h and
 * open.h. Rule: nobody else allocates or frees meanwhile. */
#include "link/ledger.h"
#include "tiering/moving.h"

static size_t free_vram(void)
{
    size_t free_now = 0, total;
    CHECK(real.cuMemGetInfo_v2(&free_now, &total) == CUDA_SUCCESS);
    return free_now;
}

/* How far the driver's free VRAM may be off: a real one takes some for itself. */
static uint64_t sums_slack;

/* `start`: free VRAM when there was no region; `native`: bytes of VRAM that the driver has given to others since then. */
static inline void sums_agree(size_t start, uint64_t native)
{
    uint64_t ram = 0, vram = 0, managed = 0;
    spill_lock();
    spill_move_tidy();               /* what a busy GPU has left prepared */
    spill_pool_trim(-1, UINT64_MAX); /* what is kept for reuse counts for nobody, or as pinned */
    spill_pool_trim_ram(UINT64_MAX);
    for (uint32_t i = 0; spill_region_slot(i); i++) {
        const struct spill_region *region = spill_region_slot(i);
        uint64_t own = 0, all_of_it = 0;
        for (uint32_t c = 0; region->live && c < region->chunk_count; c++) {
            const struct spill_chunk *chunk = &region->chunks[c];
            CHECK(chunk->length && chunk->start == all_of_it >> SPILL_GRANULE_SHIFT);
            all_of_it += spill_chunk_bytes(chunk);
            own += chunk->tier == SPILL_RAM ? spill_chunk_bytes(chunk) : 0;
        }
        if (!region->live)
            continue;
        CHECK(all_of_it == region->mapped && own == region->ram_bytes);
        managed += region->mapped;
        ram += own;
        vram += all_of_it - own;
    }
    struct spill_ledger_slot *own = spill_budget_ledger()->own;
    const struct spill_stats *s = spill_stats();
    CHECK(own->ram_asked == ram && own->ram_pinned == ram && own->device[0].ram == ram);
    CHECK(s->managed_bytes == managed && s->spilled_bytes == ram);
    CHECK(s->vram_bytes == vram + s->native_bytes && own->device[0].vram == s->vram_bytes);
    CHECK(held.mapped == (long)managed);
    uint64_t is = free_vram(), should = start - vram - native;
    CHECK((is > should ? is - should : should - is) <= sums_slack);
    spill_unlock();
}
