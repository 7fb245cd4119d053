/* SPDX-License-Identifier: Apache-2.0 */
/* The gate alone, hammered and led into its corners. Run by tests/unit/test_gate.py, a process for each scenario, on the
 * sanitizers' builds too. gate.c is compiled in, so that a scenario can look at its slots.
 *
 *   gate SCENARIO     prints "ok" and exits 0, or the line that does not hold
 *
 * No scenario sleeps: where one thread has to be somewhere, another waits until it sees it there. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "tiering/gate.c"

#define CHECK(condition)                                                   \
    do {                                                                   \
        if (!(condition)) {                                                \
            printf("line %d: %s is false\n", __LINE__, #condition);        \
            exit(1);                                                       \
        }                                                                  \
    } while (0)
#define WAIT_UNTIL(condition)   \
    do {                        \
        while (!(condition))    \
            sched_yield();      \
    } while (0)

static uint64_t in_a_minute(void) { return now_ns() + 60000000000u; }
static uint64_t parked(void) { return atomic_load(&spill_gate_stats.parked); }
static uint64_t gave_up(void) { return atomic_load(&spill_gate_stats.gave_up); }
static uint32_t inside(const struct spill_gate_slot *slot) { return atomic_load(&slot->inside); }

static pthread_t started(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, arg) == 0);
    return thread;
}

static void *ended(pthread_t thread)
{
    void *result;
    CHECK(pthread_join(thread, &result) == 0);
    return result;
}

/* ---- a thread that goes in, says so, and comes out when told ---- */

static atomic_int arrived, may_leave;

static void *visitor(void *unused)
{
    (void)unused;
    spill_gate_enter();
    atomic_fetch_add(&arrived, 1);
    WAIT_UNTIL(atomic_load(&may_leave));
    spill_gate_leave();
    return spill_gate_mine;
}

/* ---- scenarios ---- */

enum { THREADS = 8, CLOSES = 500 };
static long moved; /* written with the gate closed, read inside: a data race if the gate does not hold */
static atomic_bool moving, finished;

static void *submitter(void *seen)
{
    for (int i = 0; i == 0 || !atomic_load(&finished); i++) {
        spill_gate_enter();
        CHECK(!atomic_load_explicit(&moving, memory_order_relaxed));
        if (i % 3 == 0) {
            spill_gate_enter(); /* a driver entry that calls another */
            CHECK(inside(spill_gate_mine) == 2);
            spill_gate_leave();
        }
        *(long *)seen += moved >= 0;
        spill_gate_leave();
    }
    return NULL;
}

static void exclusion(void)
{
    pthread_t thread[THREADS];
    long seen[THREADS] = { 0 };
    for (int i = 0; i < THREADS; i++)
        thread[i] = started(submitter, &seen[i]);
    for (int i = 0; i < CLOSES; i++) {
        CHECK(spill_gate_close(in_a_minute()));
        atomic_store_explicit(&moving, true, memory_order_relaxed);
        moved++;
        sched_yield();
        atomic_store_explicit(&moving, false, memory_order_relaxed);
        spill_gate_open();
    }
    atomic_store(&finished, true);
    for (int i = 0; i < THREADS; i++) {
        ended(thread[i]);
        CHECK(seen[i] > 0);
    }
    CHECK(atomic_load(&spill_gate_stats.closed) == CLOSES && gave_up() == 0);
    CHECK(atomic_load(&spill_gate_stats.longest_ns) > 0);
    printf("parked %llu times\n", (unsigned long long)parked());
}

static void *own_closer(void *arg)
{
    for (int i = 0; i < CLOSES; i++)
        if (spill_gate_close(in_a_minute())) {
            CHECK(!atomic_exchange_explicit(&moving, true, memory_order_relaxed));
            moved++;
            atomic_store_explicit(&moving, false, memory_order_relaxed);
            spill_gate_open();
            ++*(long *)arg;
        }
    return NULL;
}

/* Several closers beside the submitters: one at a time. */
static void closers(void)
{
    pthread_t thread[THREADS];
    long done[THREADS] = { 0 }, all = 0;
    for (int i = 0; i < THREADS; i++)
        thread[i] = started(i % 2 ? own_closer : submitter, &done[i]);
    for (int i = 1; i < THREADS; i += 2) {
        ended(thread[i]);
        all += done[i];
    }
    atomic_store(&finished, true);
    for (int i = 0; i < THREADS; i += 2)
        ended(thread[i]);
    CHECK(all == moved && all > 0 && atomic_load(&spill_gate_stats.closed) == (uint64_t)all);
    CHECK(spill_gate_close(in_a_minute()));
    spill_gate_open();
}

/* A thread stays inside: the closer gives up at its deadline, and everybody goes on. */
static void deadline(void)
{
    pthread_t thread = started(visitor, NULL);
    WAIT_UNTIL(atomic_load(&arrived));
    CHECK(!spill_gate_close(now_ns() + 2000000));
    CHECK(!spill_gate_close(0));
    CHECK(gave_up() == 2 && atomic_load(&spill_gate_word) == 0);
    spill_gate_enter();
    spill_gate_leave();
    CHECK(parked() == 0);
    atomic_store(&may_leave, 1);
    ended(thread);
    CHECK(spill_gate_close(0)); /* one look is always made */
    spill_gate_open();
}

/* Parked threads go on when the gate opens, and see what was done meanwhile. */
static void *reader(void *errno_kept)
{
    errno = ENOTTY;
    spill_gate_enter();
    *(bool *)errno_kept = errno == ENOTTY;
    long seen = moved;
    spill_gate_leave();
    return (void *)seen;
}

static void parking(void)
{
    pthread_t thread[THREADS];
    bool kept[THREADS] = { 0 };
    CHECK(spill_gate_close(in_a_minute()));
    for (int i = 0; i < THREADS; i++)
        thread[i] = started(reader, &kept[i]);
    WAIT_UNTIL(parked() == THREADS);
    moved = 42;
    spill_gate_open();
    for (int i = 0; i < THREADS; i++)
        CHECK((long)ended(thread[i]) == 42 && kept[i]);
    CHECK(inside(spill_gate_mine) == 0);
}

static void *one_close(void *unused)
{
    bool closed = spill_gate_close(in_a_minute());
    if (closed)
        spill_gate_open();
    return (void *)(long)closed;
}

/* A call inside a call goes through a gate that is being closed; a thread inside cannot close, nor a second closer. */
static void nesting(void)
{
    spill_gate_enter();
    CHECK(!spill_gate_close(in_a_minute()));
    pthread_t thread = started(one_close, NULL);
    WAIT_UNTIL(atomic_load(&spill_gate_word));
    spill_gate_enter();
    CHECK(inside(spill_gate_mine) == 2 && parked() == 0);
    spill_gate_leave();
    spill_gate_leave();
    CHECK(ended(thread));
    CHECK(spill_gate_close(in_a_minute()));
    spill_gate_enter(); /* what a closer calls itself */
    spill_gate_leave();
    CHECK(atomic_load(&spill_gate_word) == 1 && parked() == 0 && !ended(started(one_close, NULL)));
    spill_gate_open();
}

/* A signal handler that calls CUDA, in a thread that is parked, and in one that has shown itself but not got through. */
static void handler(int unused)
{
    (void)unused;
    spill_gate_enter();
    CHECK(atomic_load(&spill_gate_word) == 0);
    spill_gate_leave();
}

static void *interrupted(void *unused)
{
    (void)unused;
    spill_gate_enter();
    spill_gate_leave();
    return spill_gate_mine;
}

static void signals(void)
{
    struct sigaction action = { .sa_handler = handler };
    sigaction(SIGUSR1, &action, NULL);
    CHECK(spill_gate_close(in_a_minute()));
    pthread_t thread = started(interrupted, NULL);
    WAIT_UNTIL(parked() == 1);
    pthread_kill(thread, SIGUSR1);
    WAIT_UNTIL(parked() == 2); /* the handler asks for itself: the gate is closed */
    spill_gate_open();
    CHECK(inside(ended(thread)) == 0);

    /* Between the two halves of an entry. */
    struct spill_gate_slot *mine = spill_gate_mine;
    atomic_exchange(&mine->inside, 1);
    thread = started(one_close, NULL);
    WAIT_UNTIL(atomic_load(&spill_gate_word));
    handler(0);
    CHECK(ended(thread)); /* it got the gate while the handler was parked */
    CHECK(parked() == 3 && inside(mine) == 1 && atomic_load(&mine->through) == 0);
    atomic_store(&mine->inside, 0);
}

/* Threads that end inside: their slots are outside again, and used again. */
static void *leaves_by_exit(void *unused)
{
    (void)unused;
    spill_gate_enter();
    spill_gate_enter();
    pthread_exit(spill_gate_mine);
}

static void *cancelled(void *slot)
{
    spill_gate_enter();
    *(struct spill_gate_slot **)slot = spill_gate_mine;
    atomic_fetch_add(&arrived, 1);
    while (pause() < 0)
        continue;
    return NULL;
}

static void endings(void)
{
    struct spill_gate_slot *slot = ended(started(leaves_by_exit, NULL)), *again = NULL;
    CHECK(inside(slot) == 0 && atomic_load(&slot->through) == 0 && atomic_load(&slot->taken) == 0);
    pthread_t thread = started(cancelled, &again);
    WAIT_UNTIL(atomic_load(&arrived));
    CHECK(again == slot && !spill_gate_close(0));
    pthread_cancel(thread);
    CHECK(ended(thread) == PTHREAD_CANCELED);
    CHECK(spill_gate_close(0));
    spill_gate_open();
}

/* More threads than slots in the first page, all inside: each is seen. */
static void crowd(void)
{
    enum { MANY = 3 * BATCH };
    pthread_t thread[MANY];
    for (int i = 0; i < MANY; i++)
        thread[i] = started(visitor, NULL);
    WAIT_UNTIL(atomic_load(&arrived) == MANY);
    int seen = 0;
    for (struct batch *b = &first; b; b = atomic_load(&b->next))
        for (int i = 0; i < BATCH; i++)
            seen += inside(&b->slot[i]) == 1;
    CHECK(seen == MANY);
    CHECK(!spill_gate_close(0));
    atomic_store(&may_leave, 1);
    for (int i = 0; i < MANY; i++)
        ended(thread[i]);
    CHECK(spill_gate_close(0));
    spill_gate_open();
}

/* No memory for a slot: such a thread goes in and out as ever, and nobody can close any more. */
static void no_memory(void)
{
    pthread_t thread[BATCH], unseen;
    for (int i = 0; i < BATCH; i++)
        thread[i] = started(visitor, NULL);
    WAIT_UNTIL(atomic_load(&arrived) == BATCH);
    struct rlimit before, none = { 0, 0 };
    getrlimit(RLIMIT_AS, &before);
    none.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_AS, &none);
    spill_gate_enter(); /* the main thread has no slot yet */
    CHECK(!spill_gate_mine);
    spill_gate_leave();
    setrlimit(RLIMIT_AS, &before);
    atomic_store(&may_leave, 1);
    for (int i = 0; i < BATCH; i++)
        ended(thread[i]);
    unseen = started(visitor, NULL);
    CHECK(!ended(unseen));
    CHECK(!spill_gate_close(in_a_minute()) && atomic_load(&spill_gate_word) == 0);
}

/* The child of a fork: whoever was inside, or had the gate closed, is not there any more. */
static void *closed_for_a_while(void *unused)
{
    (void)unused;
    CHECK(spill_gate_close(in_a_minute()));
    atomic_fetch_add(&arrived, 1);
    WAIT_UNTIL(atomic_load(&may_leave));
    spill_gate_open();
    return NULL;
}

static void in_child_of(const char *what)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        spill_gate_enter();
        spill_gate_leave();
        bool closed = spill_gate_close(0);
        if (closed)
            spill_gate_open();
        _exit(closed && inside(spill_gate_mine) == 0 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status) {
        printf("the child of a process with %s: %d\n", what, status);
        exit(1);
    }
}

static void forks(void)
{
    pthread_t thread = started(visitor, NULL);
    WAIT_UNTIL(atomic_load(&arrived) == 1);
    in_child_of("a thread inside");
    CHECK(!spill_gate_close(0)); /* the parent still sees it */
    atomic_store(&may_leave, 1);
    ended(thread);
    atomic_store(&may_leave, 0);
    thread = started(closed_for_a_while, NULL);
    WAIT_UNTIL(atomic_load(&arrived) == 2);
    in_child_of("its gate closed");
    atomic_store(&may_leave, 1);
    ended(thread);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } scenarios[] = {
        { "exclusion", exclusion }, { "closers", closers }, { "deadline", deadline }, { "parking", parking },
        { "nesting", nesting }, { "signals", signals }, { "endings", endings }, { "crowd", crowd },
        { "no_memory", no_memory }, { "forks", forks },
    };
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        if (argc == 2 && !strcmp(argv[1], scenarios[i].name)) {
            scenarios[i].run();
            printf("ok\n");
            return 0;
        }
    printf("no such scenario\n");
    return 2;
}
