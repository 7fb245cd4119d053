/* SPDX-License-Identifier: Apache-2.0 */
/* The settle pass: once a program's allocations have settled, the placement that they got one by one is mended as a whole. Called after
 * every successful wait of the application for the GPU.
 *
 * Programs allocate weights, then caches, then work space; first come, first served leaves the last, smallest and hottest in RAM. So
 * region after region, the smallest first, is brought into VRAM, and the largest one pays for it, spread evenly; what then is free
 * goes to whoever still has bytes in RAM. Each region is visited once: a pass ends, and what it leaves stays until allocations change.
 *
 * Rules: never a swap between regions of one size, nor against a larger one; a program that is captured, busy or frozen is left alone
 * and asked again at later waits, ever more rarely; one that is known to allocate more (late.c) is not asked yet; without spilled bytes a
 * wait costs three loads. */
#include "tiering/moving.h"

#include <stdatomic.h>

#include "shim/log.h"

/* Waits without an allocation or free between them before the placement counts as settled. */
enum { QUIET_WAITS = 2, DRAIN_MS = 2, PAUSE_MS = 50, LONGEST_SKIP = 1024 };

static _Atomic uint64_t changes;       /* of what is managed */
static _Atomic uint64_t quiet_since;   /* `changes` at the last wait */
static _Atomic unsigned quiet, skip, skipped; /* waits; lossy between threads: they decide only when, never what */
static _Atomic uint64_t settled_at = UINT64_MAX;

void spill_unsettled(void) { atomic_fetch_add_explicit(&changes, 1, memory_order_relaxed); }

void spill_settle_not(void)
{
    atomic_store_explicit(&settled_at, atomic_load_explicit(&changes, memory_order_relaxed), memory_order_relaxed);
}

struct search {
    int device;
    uint64_t above; /* visited: everything up to this size and slot */
    uint32_t slot;
    struct spill_region *found, *largest;
};

/* Order of the visits: by size, then by slot. */
static bool before(uint64_t size, uint32_t slot, const struct spill_region *region)
{
    return size < region->mapped || (size == region->mapped && slot < region->index);
}

static void consider(struct spill_region *region, void *arg)
{
    struct search *s = arg;
    if (region->device != s->device || !spill_movable(region))
        return;
    if (!s->largest || region->mapped > s->largest->mapped)
        s->largest = region;
    if (region->ram_bytes == spill_hint_cold(region) || !before(s->above, s->slot, region))
        return;
    if (!s->found || !before(s->found->mapped, s->found->index, region))
        s->found = region;
}

static enum spill_reason promote(struct spill_region *region)
{
    struct spill_sweep sweep = { .to = SPILL_VRAM, .left = UINT64_MAX, .only = region, .slot = region->index };
    struct spill_series series = { .next = spill_sweep_next, .arg = &sweep, .pause_ns = spill_ms(PAUSE_MS), .bulk = true };
    enum spill_reason why;
    do {
        sweep.ctx = NULL;
        series.deadline_ns = spill_now_ns() + spill_ms(DRAIN_MS);
        why = spill_move_series(&series);
    } while (why == SPILL_REASON_NONE);
    return why;
}

/* Bring `region` into VRAM, at the cost of `largest`. */
static enum spill_reason mend(struct spill_region *region, const struct spill_region *largest)
{
    enum spill_reason why = SPILL_REASON_NONE;
    uint64_t room = spill_promotion_room(region);
    uint64_t cold = spill_hint_cold(region);
    while (region->mapped < largest->mapped && region->ram_bytes - cold > room) {
        uint64_t lacks = region->ram_bytes - cold - room, now = spill_now_ns();
        if (!spill_displace(region->device, lacks, region->mapped, now + spill_ms(DRAIN_MS), spill_ms(PAUSE_MS), &why))
            break;
        room = spill_promotion_room(region);
    }
    if (why == SPILL_REASON_BUSY || why == SPILL_REASON_CAPTURE || why == SPILL_REASON_STATE)
        return why;
    return promote(region);
}

/* True once every region has been visited. */
static bool pass(int device)
{
    struct search search = { .device = device };
    for (;;) {
        search.found = search.largest = NULL;
        spill_region_each(consider, &search);
        if (!search.found)
            return true;
        enum spill_reason why = mend(search.found, search.largest);
        if (why == SPILL_REASON_BUSY || why == SPILL_REASON_CAPTURE)
            return false;
        if (why == SPILL_REASON_STATE || why == SPILL_REASON_DRIVER)
            return true;
        search.above = search.found->mapped;
        search.slot = search.found->index;
    }
}

static bool due(void)
{
    uint64_t now = atomic_load_explicit(&changes, memory_order_relaxed);
    if (now == atomic_load_explicit(&settled_at, memory_order_relaxed))
        return false;
    if (now != atomic_load_explicit(&quiet_since, memory_order_relaxed)) {
        atomic_store_explicit(&quiet_since, now, memory_order_relaxed);
        atomic_store_explicit(&quiet, 0, memory_order_relaxed);
        atomic_store_explicit(&skip, 0, memory_order_relaxed);
        return false;
    }
    if (atomic_fetch_add_explicit(&quiet, 1, memory_order_relaxed) + 1 < QUIET_WAITS)
        return false;
    if (atomic_load_explicit(&skipped, memory_order_relaxed) < atomic_load_explicit(&skip, memory_order_relaxed)) {
        atomic_fetch_add_explicit(&skipped, 1, memory_order_relaxed);
        return false;
    }
    return true;
}

static void tell(struct spill_region *region, void *unused)
{
    (void)unused;
    spill_region_tell(region);
}

void spill_settle(void)
{
    int device;
    if (!spill_late_waited() || !__atomic_load_n(&spill_stats()->spilled_bytes, __ATOMIC_RELAXED) || !due() ||
        spill_current_device(&device) != CUDA_SUCCESS || !spill_trylock())
        return;
    uint64_t now = atomic_load_explicit(&changes, memory_order_relaxed);
    uint64_t promoted = spill_move_stats()->promoted_bytes, demoted = spill_move_stats()->demoted_bytes;
    CUstreamCaptureMode mode = spill_capture_enter();
    bool done = pass(device);
    spill_capture_leave(mode);
    if (done) {
        atomic_store_explicit(&settled_at, now, memory_order_relaxed);
        spill_log(SPILL_LOG_INFO, "settled: %llu bytes promoted, %llu demoted",
                  (unsigned long long)(spill_move_stats()->promoted_bytes - promoted),
                  (unsigned long long)(spill_move_stats()->demoted_bytes - demoted));
        spill_region_each(tell, NULL);
    } else {
        unsigned was = atomic_load_explicit(&skip, memory_order_relaxed);
        atomic_store_explicit(&skip, was ? was < LONGEST_SKIP ? was * 2 : was : 1, memory_order_relaxed);
        atomic_store_explicit(&skipped, 0, memory_order_relaxed);
    }
    spill_late_rest();
    spill_unlock();
    if (spill_settings()->rest)
        spill_settings()->rest();
}
