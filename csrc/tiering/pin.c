/* SPDX-License-Identifier: Apache-2.0 */
/* Pins: regions that must never be moved again, until they are freed. Set by hooks, from any thread; read by move.c.
 * Rules: takes no lock, for it is called while the gate is passed: who pins a region inside the gate has it pinned before the next
 * safepoint. The first reason is kept. */
#include "shim/log.h"
#include "tiering/tiering.h"

void spill_region_pin(struct spill_region *region, const char *why)
{
    const char *none = NULL;
    if (!atomic_compare_exchange_strong(&region->pinned, &none, why))
        return;
    spill_count(&spill_stats()->pins_count, 1);
    spill_count(&spill_stats()->pins_bytes, (int64_t)region->mapped);
    spill_log(SPILL_LOG_DEBUG, "region base=0x%llx pinned: %s", region->base, why);
}

bool spill_region_pinned(const struct spill_region *region)
{
    return atomic_load(&region->pinned) != NULL;
}
