/* SPDX-License-Identifier: Apache-2.0 */
/* Safepoints: the gate closed, and the driver's proof that every context is idle. Called by move.c and reclaim.c.
 * Rules: under the engine lock; nobody is kept waiting longer than the deadline plus the pause; while a stream is being captured
 * the driver is asked nothing, because recording an event over a context invalidates its captures. Beginning a capture passes
 * the gate, so that what is seen with the gate closed stays true until it opens. */
#include "tiering/moving.h"

#include "tiering/gate.h"

static uint64_t drained_at;

/* NONE: the gate is closed and everything idle. */
static enum spill_reason reach(uint64_t deadline_ns)
{
    struct spill_move_stats *s = spill_move_stats();
    if (spill_state_now() != SPILL_OPEN)
        return spill_count(&s->refused_state, 1), SPILL_REASON_STATE;
    if (spill_capturing())
        return spill_count(&s->refused_capture, 1), SPILL_REASON_CAPTURE;
    if (!spill_gate_close(deadline_ns))
        return spill_count(&s->refused_busy, 1), SPILL_REASON_BUSY;
    bool capturing = spill_capturing();
    if (capturing || !spill_contexts_idle(deadline_ns)) {
        spill_gate_open();
        if (capturing)
            return spill_count(&s->refused_capture, 1), SPILL_REASON_CAPTURE;
        return spill_count(&s->refused_busy, 1), SPILL_REASON_BUSY;
    }
    return SPILL_REASON_NONE;
}

enum spill_reason spill_safepoint_look(uint64_t deadline_ns)
{
    enum spill_reason why = reach(deadline_ns);
    if (why == SPILL_REASON_NONE)
        spill_gate_open();
    return why;
}

enum spill_reason spill_safepoint_enter(uint64_t deadline_ns)
{
    uint64_t began = spill_now_ns();
    enum spill_reason why = reach(deadline_ns);
    if (why != SPILL_REASON_NONE)
        return why;
    drained_at = spill_now_ns();
    spill_drain_add(drained_at - began);
    return why;
}

void spill_safepoint_leave(bool bulk)
{
    spill_gate_open();
    spill_pause_add(bulk, spill_now_ns() - drained_at);
}
