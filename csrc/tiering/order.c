/* SPDX-License-Identifier: Apache-2.0 */
/* Whole-program moves by order: everything that may be moved goes to RAM, or to VRAM as far as there is room. Called by the worker
 * thread for whoever sits at the control socket.
 * Rules: the engine lock is held for one series at a time, so that the program can allocate in between; a busy GPU is asked again
 * after a pause that doubles. */
#include "tiering/moving.h"

#include <time.h>

enum { DRAIN_MS = 2, PAUSE_MS = 50, LONGEST_BACKOFF_MS = 64 };

struct rest {
    enum spill_tier to;
    uint64_t movable, stuck;
};

static void add_rest(struct spill_region *region, void *arg)
{
    struct rest *r = arg;
    if (region->limbo)
        return;
    uint64_t bytes = r->to == SPILL_VRAM ? region->ram_bytes - spill_hint_cold(region) : region->mapped - region->ram_bytes;
    *(spill_movable(region) ? &r->movable : &r->stuck) += bytes;
}

enum spill_reason spill_order_carry_out(bool (*next)(void *plan, struct spill_want *want), struct spill_sweep *plan,
                                        unsigned patience_ms, uint64_t *moved)
{
    unsigned backoff_ms = 1;
    uint64_t give_up = spill_now_ns() + patience_ms * 1000000ull;
    *moved = 0;
    for (;;) {
        const struct spill_sweep before = *plan;
        plan->ctx = NULL;
        struct spill_series series = { .next = next, .arg = plan, .pause_ns = spill_ms(PAUSE_MS), .bulk = true };
        spill_lock();
        series.deadline_ns = spill_now_ns() + spill_ms(DRAIN_MS);
        enum spill_reason why = spill_move_series(&series);
        spill_unlock();
        *moved += series.moved;
        if (series.moved) {
            backoff_ms = 1;
            give_up = spill_now_ns() + patience_ms * 1000000ull;
        }
        if (why == SPILL_REASON_NONE)
            continue;
        if ((why != SPILL_REASON_BUSY && why != SPILL_REASON_CAPTURE) || spill_now_ns() >= give_up)
            return why;
        *plan = before; /* nothing of it was moved */
        const struct timespec nap = { 0, backoff_ms * 1000000l };
        nanosleep(&nap, NULL);
        backoff_ms = backoff_ms < LONGEST_BACKOFF_MS ? backoff_ms * 2 : backoff_ms;
    }
}

static struct spill_order_result carry_out(enum spill_tier to, uint64_t bytes, unsigned patience_ms)
{
    struct spill_order_result result = { 0, 0, SPILL_REASON_NONE };
    struct spill_sweep plan = { .to = to, .left = bytes };
    result.reason = spill_order_carry_out(spill_sweep_next, &plan, patience_ms, &result.moved);
    struct rest rest = { .to = to };
    spill_settle_not();
    spill_lock();
    spill_region_each(add_rest, &rest);
    if (to == SPILL_RAM) /* VRAM was to be freed for somebody else */
        spill_pool_trim(-1, UINT64_MAX);
    spill_unlock();
    result.left = rest.movable + rest.stuck;
    if (result.reason == SPILL_REASON_NOTHING) {
        if (plan.full)
            result.reason = SPILL_REASON_VRAM;
        else if (!plan.left || !result.left)
            result.reason = result.moved ? SPILL_REASON_NONE : SPILL_REASON_NOTHING;
        else
            result.reason = rest.stuck ? SPILL_REASON_PINNED : SPILL_REASON_NOTHING;
    }
    return result;
}

struct spill_order_result spill_order_demote(uint64_t bytes, unsigned patience_ms)
{
    return carry_out(SPILL_RAM, bytes, patience_ms);
}

struct spill_order_result spill_order_promote(uint64_t bytes, unsigned patience_ms)
{
    return carry_out(SPILL_VRAM, bytes, patience_ms);
}
