/* SPDX-License-Identifier: Apache-2.0 */
/* The gate's slow half: slots, parking, closing, fork. gate.h has the protocol and its rules. Called through gate.h by hooks,
 * and by whoever makes moves.
 * Rules: no lock and no malloc of ours, since a signal handler may get here; slots lie in pages that are never freed, because a
 * closer walks them without a lock, and a thread that ends leaves its slot to the next one. */
#define _GNU_SOURCE
#include "tiering/gate.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 63 };
struct batch {
    struct spill_gate_slot slot[BATCH];
    _Alignas(64) _Atomic(struct batch *) next; /* NULL: the last */
};
_Static_assert(sizeof(struct batch) == 4096, "a batch is a page");

_Thread_local struct spill_gate_slot *spill_gate_mine;
_Alignas(64) _Atomic uint32_t spill_gate_word;
_Alignas(64) struct spill_gate_stats spill_gate_stats;

static struct batch first;
static atomic_bool stuck;   /* a thread goes in and out unseen */
static atomic_bool closing; /* one closer at a time */
static uint64_t closed_at;  /* ns; the closer's */
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void wait_while_closed(void)
{
    uint32_t seen;
    while ((seen = atomic_load_explicit(&spill_gate_word, memory_order_seq_cst)) != 0)
        syscall(SYS_futex, &spill_gate_word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

/* ---- slots ---- */

static void leave_for_good(struct spill_gate_slot *slot)
{
    atomic_store_explicit(&slot->through, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->inside, 0, memory_order_release);
    atomic_store_explicit(&slot->taken, 0, memory_order_release);
}

/* Also where the thread ended in the middle of a call (pthread_exit, cancellation): it submits nothing more. */
static void thread_gone(void *slot)
{
    spill_gate_mine = NULL;
    leave_for_good(slot);
}

/* In the child of a fork only the forking thread is left. The gate may have been closed by another. */
static void in_child(void)
{
    for (struct batch *b = &first; b; b = atomic_load(&b->next))
        for (int i = 0; i < BATCH; i++)
            if (&b->slot[i] != spill_gate_mine)
                leave_for_good(&b->slot[i]);
    atomic_store(&spill_gate_word, 0);
    atomic_store(&closing, false);
}

static void start(void)
{
    if (pthread_key_create(&key, thread_gone) || pthread_atfork(NULL, NULL, in_child))
        atomic_store(&stuck, true);
}

static struct spill_gate_slot *free_slot(void)
{
    struct batch *b = &first, *more;
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            uint32_t none = 0;
            if (!atomic_load_explicit(&b->slot[i].taken, memory_order_relaxed) &&
                atomic_compare_exchange_strong(&b->slot[i].taken, &none, 1))
                return &b->slot[i];
        }
        if ((more = atomic_load(&b->next)) == NULL) {
            more = mmap(NULL, sizeof *more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (more == MAP_FAILED)
                return NULL;
            struct batch *theirs = NULL;
            if (!atomic_compare_exchange_strong(&b->next, &theirs, more)) {
                munmap(more, sizeof *more);
                more = theirs;
            }
        }
        b = more;
    }
}

struct spill_gate_slot *spill_gate_slot_take(void)
{
    int before = errno;
    struct spill_gate_slot *slot = NULL;
    pthread_once(&once, start);
    if (!atomic_load(&stuck) && (slot = free_slot()) != NULL) {
        spill_gate_mine = slot;
        pthread_setspecific(key, slot); /* where that fails nobody gives the slot back: it stays taken, and outside */
    } else {
        /* After `stuck` is set no closer succeeds; one that did before is waited for. */
        atomic_store(&stuck, true);
        wait_while_closed();
    }
    errno = before;
    return slot;
}

/* ---- waiting at the gate ---- */

void spill_gate_park(struct spill_gate_slot *slot, uint32_t depth)
{
    int before = errno;
    atomic_fetch_add_explicit(&spill_gate_stats.parked, 1, memory_order_relaxed);
    do {
        atomic_store_explicit(&slot->inside, 0, memory_order_release);
        wait_while_closed();
        atomic_exchange_explicit(&slot->inside, depth, memory_order_seq_cst);
    } while (atomic_load_explicit(&spill_gate_word, memory_order_seq_cst));
    errno = before;
}

/* ---- closing ---- */

void spill_gate_open(void)
{
    struct spill_gate_slot *mine = spill_gate_mine;
    uint64_t lasted = now_ns() - closed_at;
    if (lasted > atomic_load_explicit(&spill_gate_stats.longest_ns, memory_order_relaxed))
        atomic_store_explicit(&spill_gate_stats.longest_ns, lasted, memory_order_relaxed);
    /* Opened before this thread is outside: a signal handler in between must not wait for its own thread. */
    atomic_store_explicit(&spill_gate_word, 0, memory_order_seq_cst);
    atomic_store_explicit(&mine->through, 0, memory_order_relaxed);
    atomic_store_explicit(&mine->inside, 0, memory_order_release);
    syscall(SYS_futex, &spill_gate_word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    atomic_store_explicit(&closing, false, memory_order_release);
}

/* Spin shortly, then sleep: most calls are over in a microsecond, some last long. */
static void pause_a_little(unsigned round)
{
    if (round < 200) {
        __builtin_ia32_pause();
        return;
    }
    struct timespec nap = { 0, round < 300 ? 5000 : 50000 };
    nanosleep(&nap, NULL);
}

static bool everybody_out(const struct spill_gate_slot *mine, uint64_t deadline_ns)
{
    /* A batch that is added behind our back, or a slot that is taken, belongs to a thread that sees the gate closed. */
    for (struct batch *b = &first; b; b = atomic_load(&b->next))
        for (int i = 0; i < BATCH; i++)
            for (unsigned round = 0; &b->slot[i] != mine && atomic_load(&b->slot[i].inside); round++) {
                if (now_ns() >= deadline_ns)
                    return false;
                pause_a_little(round);
            }
    return !atomic_load(&stuck);
}

bool spill_gate_close(uint64_t deadline_ns)
{
    struct spill_gate_slot *mine = spill_gate_mine ? spill_gate_mine : spill_gate_slot_take();
    if (!mine || atomic_load(&stuck) || atomic_load_explicit(&mine->inside, memory_order_relaxed))
        return false;
    if (atomic_exchange_explicit(&closing, true, memory_order_acquire))
        return false;
    closed_at = now_ns();
    atomic_store_explicit(&mine->inside, 1, memory_order_relaxed);
    atomic_store_explicit(&mine->through, 1, memory_order_relaxed);
    atomic_store_explicit(&spill_gate_word, 1, memory_order_seq_cst);
    bool closed = everybody_out(mine, deadline_ns);
    atomic_fetch_add_explicit(closed ? &spill_gate_stats.closed : &spill_gate_stats.gave_up, 1, memory_order_relaxed);
    if (!closed)
        spill_gate_open();
    return closed;
}
