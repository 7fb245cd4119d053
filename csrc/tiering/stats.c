/* SPDX-License-Identifier: Apache-2.0 */
/* Counters of safepoints, pauses and moves. Written by safepoint.c and move.c, under the engine lock; read by whoever has the
 * segment that they lie in, or at the end of the process.
 * Rules: what belongs together is changed together, between spill_segment_begin and _end. */
#include "tiering/moving.h"

#include "link/segment.h"
#include "tiering/gate.h"

struct spill_move_stats *spill_move_stats(void) { return &spill_segment()->moves; }

void spill_drain_add(uint64_t ns)
{
    struct spill_move_stats *s = spill_move_stats();
    spill_segment_begin();
    spill_count(&s->safepoints, 1);
    spill_count(&s->drain_ns, (int64_t)ns);
    spill_segment_end();
}

void spill_pause_add(bool bulk, uint64_t ns)
{
    struct spill_pauses *pauses = &spill_move_stats()->pause[bulk];
    int bucket = ns ? 63 - __builtin_clzll(ns) : 0;
    uint64_t parked = atomic_load_explicit(&spill_gate_stats.parked, memory_order_relaxed);
    spill_segment_begin();
    spill_count(&pauses->count, 1);
    spill_count(&pauses->total_ns, (int64_t)ns);
    spill_count(&pauses->bucket[bucket < SPILL_PAUSE_BUCKETS ? bucket : SPILL_PAUSE_BUCKETS - 1], 1);
    if (ns > pauses->longest_ns)
        __atomic_store_n(&pauses->longest_ns, ns, __ATOMIC_RELAXED);
    __atomic_store_n(&spill_move_stats()->parked, parked, __ATOMIC_RELAXED);
    spill_segment_end();
}

void spill_move_add(enum spill_tier to, uint64_t bytes)
{
    struct spill_move_stats *s = spill_move_stats();
    spill_segment_begin();
    spill_count(to == SPILL_RAM ? &s->demoted : &s->promoted, 1);
    spill_count(to == SPILL_RAM ? &s->demoted_bytes : &s->promoted_bytes, (int64_t)bytes);
    spill_segment_end();
}
