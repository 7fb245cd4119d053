/* SPDX-License-Identifier: Apache-2.0 */
/* The gate: while it is closed no thread submits GPU work that could touch managed memory. Entered and left by every hook of
 * a submitting entry; closed by whoever makes moves.
 *
 *   submitter   inside = 1 (xchg)    gate closed?  then inside = 0, wait, again     submit ...    inside = 0
 *   closer      gate = closed        every other inside == 0 ?  until the deadline  proof, moves  gate = open
 *
 * Each side first writes its own word and then reads the other's, both in the one order of sequentially consistent accesses:
 * at least one of them sees the other. Model of the protocol and of how it may be got wrong: tests/model/gate.pml.
 *
 * Rules
 *   - a slot's counters are written by its own thread alone, and lie on a cache line of their own;
 *   - a call made inside a call that got through does not park: the outer one is already seen. A signal handler that interrupts
 *     a thread before it got through asks for itself, because the gate may be closed;
 *   - a closer never blocks: it polls to its deadline and opens again, because a kernel may spin on what a parked thread would
 *     do next, and a parked thread may hold a lock of the program;
 *   - a thread inside cannot close: it would wait for itself. What a closer calls while it holds the gate closed is nested;
 *   - a thread that leaves its call by siglongjmp stays inside for ever: from then on no closer succeeds, which is safe;
 *   - what counters show is only that nobody is submitting; that the device is idle is proven by the driver, afterwards.
 */
#ifndef SPILL_GATE_H
#define SPILL_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct spill_gate_slot {
    _Alignas(64) _Atomic uint32_t inside; /* gated calls that this thread is in */
    _Atomic uint32_t through;             /* `inside` of the call that got through the gate; 0 before it did */
    _Atomic uint32_t taken;               /* a thread owns the slot */
};

/* Counters since the start of the process; read without a lock. */
struct spill_gate_stats {
    _Atomic uint64_t closed;     /* times every other thread was outside */
    _Atomic uint64_t gave_up;    /* closers that met their deadline */
    _Atomic uint64_t parked;     /* times a thread waited at the gate */
    _Atomic uint64_t longest_ns; /* from closing to opening, at most, given up or not */
};
extern struct spill_gate_stats spill_gate_stats;

extern _Thread_local struct spill_gate_slot *spill_gate_mine; /* NULL before the thread's first gated call */
extern _Atomic uint32_t spill_gate_word;                      /* 0: open */

/* The slow parts of entering. A slot for this thread, or NULL where there is no memory for one. */
struct spill_gate_slot *spill_gate_slot_take(void);
/* Wait until the gate is open with inside == `depth` in sight of every closer. */
void spill_gate_park(struct spill_gate_slot *slot, uint32_t depth);

/* Around every driver call that may submit work. Enter may wait for the gate, takes no lock, and never fails; errno is kept. */
static inline void spill_gate_enter(void)
{
    struct spill_gate_slot *slot = spill_gate_mine;
    if (__builtin_expect(!slot, 0) && !(slot = spill_gate_slot_take()))
        return; /* from now on nobody can close the gate */
    uint32_t depth = atomic_load_explicit(&slot->inside, memory_order_relaxed) + 1;
    if (__builtin_expect(atomic_load_explicit(&slot->through, memory_order_relaxed) != 0, 0)) {
        atomic_store_explicit(&slot->inside, depth, memory_order_relaxed);
        return;
    }
    atomic_exchange_explicit(&slot->inside, depth, memory_order_seq_cst);
    if (__builtin_expect(atomic_load_explicit(&spill_gate_word, memory_order_seq_cst) != 0, 0))
        spill_gate_park(slot, depth);
    atomic_store_explicit(&slot->through, depth, memory_order_relaxed);
}

static inline void spill_gate_leave(void)
{
    struct spill_gate_slot *slot = spill_gate_mine;
    if (__builtin_expect(!slot, 0))
        return;
    uint32_t depth = atomic_load_explicit(&slot->inside, memory_order_relaxed);
    if (depth == atomic_load_explicit(&slot->through, memory_order_relaxed))
        atomic_store_explicit(&slot->through, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->inside, depth - 1, memory_order_release);
}

/* Whether this thread is in a gated call: it must not wait for whoever may be closing the gate. */
static inline bool spill_gate_inside(void)
{
    struct spill_gate_slot *slot = spill_gate_mine;
    return slot && atomic_load_explicit(&slot->inside, memory_order_relaxed) != 0;
}

/* Close the gate and wait until every other thread is outside, until `deadline_ns` of CLOCK_MONOTONIC (one look is always
 * made). True: closed, and the same thread opens it. False: it is open (another closer is at work, this thread is inside, the
 * deadline passed, or a thread could not be given a slot). */
bool spill_gate_close(uint64_t deadline_ns);
void spill_gate_open(void);

#endif
