/* SPDX-License-Identifier: Apache-2.0 */
/* Counters of safepoints, pauses and moves. Written by safepoint.c and move.c, under the engine lock; read by whoever reports. */
#include "tiering/moving.h"

static struct spill_move_stats stats;

struct spill_move_stats *spill_move_stats(void) { return &stats; }

void spill_pause_add(struct spill_pauses *pauses, uint64_t ns)
{
    int bucket = ns ? 63 - __builtin_clzll(ns) : 0;
    spill_count(&pauses->count, 1);
    spill_count(&pauses->total_ns, (int64_t)ns);
    spill_count(&pauses->bucket[bucket < SPILL_PAUSE_BUCKETS ? bucket : SPILL_PAUSE_BUCKETS - 1], 1);
    if (ns > pauses->longest_ns)
        __atomic_store_n(&pauses->longest_ns, ns, __ATOMIC_RELAXED);
}
