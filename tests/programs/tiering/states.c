/* SPDX-License-Identifier: Apache-2.0 */
/* The states of a process and the ends of contexts, by the tiering engine alone, on the simulated driver: who asks the driver what,
 * and who waits for whom. Built and run by tests/integration/test_tiering_states.py.
 *
 *   states PROC_ROOT
 * Prints one line per scenario; exit 0 only if all of them held. */
#include "harness.h"

#include <pthread.h>
#include <stdatomic.h>

#define SIZE (24 * MIB)

static struct spill_settings settings;
static CUcontext primary, other;
static size_t start;

static CUdeviceptr allocated(void)
{
    CUdeviceptr p;
    CHECK(spill_alloc(SIZE, &p) == CUDA_SUCCESS);
    return p;
}

static long asked_while_sweeping(unsigned *left)
{
    spill_lock();
    calls = 0;
    spill_limbo_sweep(0);
    *left = spill_limbo_any();
    spill_unlock();
    return calls;
}

static bool idle(void)
{
    return spill_contexts_idle(spill_now_ns() + 1000000000u);
}

/* ---- contexts ---- */

static void every_context_counts(void)
{
    snprintf(scenario, sizeof scenario, "a primary context that nobody told us of is no proven idle one");
    spill_context_created(other);
    CHECK(!idle());
    spill_context_known(primary);
    CHECK(idle());
    printf("%s\n", scenario);

    snprintf(scenario, sizeof scenario, "a context that is being destroyed is not asked about, and nothing is proven");
    spill_context_ends(primary, true);
    calls = 0;
    CHECK(!idle() && calls == 0); /* it is the newest, and so the first */
    spill_context_ends(primary, false);
    CHECK(idle());
    printf("%s\n", scenario);
}

static void sweeps_leave_a_dying_context_alone(void)
{
    unsigned left;
    CUdeviceptr p = allocated();
    snprintf(scenario, sizeof scenario, "a sweep leaves a region in limbo alone while its context is being destroyed");
    CHECK(spill_free_async(p, NULL, false) == CUDA_SUCCESS);
    /* What was queued is done, so that nothing but the context keeps the next sweep from it; the free has not swept it. */
    p = allocated();
    spill_lock();
    struct spill_region *region = spill_claim(p);
    CHECK(region && !spill_claim(p));
    spill_limbo_defer(region);
    spill_unlock();
    spill_context_ends(primary, true);
    CHECK(asked_while_sweeping(&left) == 0 && left);
    spill_context_ends(primary, false);
    CHECK(asked_while_sweeping(&left) > 0 && !left);
    check_empty(start);
    printf("%s\n", scenario);
}

static atomic_int step;

static void *waits_for_the_end(void *unused)
{
    atomic_store(&step, 1);
    spill_context_wait_for_end(other);
    CHECK(atomic_load(&step) == 2); /* not before */
    return unused;
}

static void a_handle_is_given_out_again(void)
{
    pthread_t thread;
    snprintf(scenario, sizeof scenario, "who gets a handle again waits until its former bearer is forgotten");
    spill_context_ends(other, true);
    CHECK(pthread_create(&thread, NULL, waits_for_the_end, NULL) == 0);
    while (!atomic_load(&step))
        sched_yield();
    atomic_store(&step, 2);
    spill_context_gone(other);
    pthread_join(thread, NULL);
    CHECK(idle());
    printf("%s\n", scenario);
}

/* ---- captures ---- */

static CUstream stream;
static pthread_t begins;
static atomic_bool asking;

static void *begin_capture(void *unused)
{
    spill_capture_begin(stream, false);
    CHECK(!atomic_load(&asking)); /* not in the middle of the question */
    return unused;
}

/* Another thread wants to begin a capture just when the driver is asked. */
static void wants_to_capture(void)
{
    const struct timespec chance = { 0, 20000000 };
    before_record = NULL;
    atomic_store(&asking, true);
    CHECK(pthread_create(&begins, NULL, begin_capture, NULL) == 0);
    nanosleep(&chance, NULL); /* for a capture that isn't kept waiting to be seen */
    CHECK(!spill_capturing());
    atomic_store(&asking, false);
}

static void no_capture_begins_in_a_question(void)
{
    unsigned left;
    CUdeviceptr p = allocated();
    snprintf(scenario, sizeof scenario, "no capture begins while the driver is asked what would break it");
    spill_lock();
    spill_limbo_defer(spill_claim(p));
    spill_unlock();
    before_record = wants_to_capture;
    asked_while_sweeping(&left);
    pthread_join(begins, NULL);
    CHECK(!left && spill_capturing());

    snprintf(scenario, sizeof scenario, "during a capture the driver is asked nothing about limbo");
    p = allocated();
    CHECK(spill_free(p) == CUDA_SUCCESS);
    CHECK(asked_while_sweeping(&left) == 0 && left);
    spill_capture_end(stream, false);
    CHECK(asked_while_sweeping(&left) > 0 && !left);
    check_empty(start);
    printf("%s\n", scenario);

    snprintf(scenario, sizeof scenario, "a capture that begins while a free waits delays the free");
    p = allocated();
    calls = 0, fail_at = 2, fail_with = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    CHECK(spill_free(p) == CUDA_SUCCESS);
    fail_at = 0;
    CHECK(spill_free(p) == CUDA_ERROR_INVALID_VALUE);
    CHECK(asked_while_sweeping(&left) > 0 && !left);
    check_empty(start);
    printf("%s\n", scenario);
}

/* ---- states ---- */

static int looks;
static void look(void)
{
    if (++looks == 2)
        spill_freeze("the second look found something");
}

static void *holds_the_lock(void *unused)
{
    const struct timespec chance = { 0, 20000000 };
    spill_lock();
    atomic_store(&step, 3);
    nanosleep(&chance, NULL); /* for an exit that doesn't wait to be seen */
    atomic_store(&step, 4);
    spill_unlock();
    return unused;
}

static void the_states(void)
{
    pthread_t thread;
    snprintf(scenario, sizeof scenario, "exit waits for a move that is under way, and none begins afterwards");
    CHECK(spill_may_move());
    CHECK(pthread_create(&thread, NULL, holds_the_lock, NULL) == 0);
    while (atomic_load(&step) != 3)
        sched_yield();
    spill_exit_begins();
    CHECK(atomic_load(&step) == 4);
    pthread_join(thread, NULL);
    CHECK(!spill_may_move() && spill_state_now() == SPILL_OPEN);
    CUdeviceptr p = allocated();
    CHECK(spill_free(p) == CUDA_SUCCESS); /* everything else goes on */
    printf("%s\n", scenario);

    snprintf(scenario, sizeof scenario, "frozen is noticed by a look, keeps its first reason, and goes on spilling");
    settings.look = look;
    looks = 0;
    spill_look();
    CHECK(spill_state_now() == SPILL_OPEN && !*spill_state_why());
    p = allocated(); /* looks too */
    CHECK(looks == 2 && spill_state_now() == SPILL_FROZEN && !spill_dead());
    spill_freeze("another reason");
    CHECK(strcmp(spill_state_why(), "the second look found something") == 0);
    CHECK(!spill_may_move());
    struct spill_order_result order = spill_order_demote(UINT64_MAX, 0);
    CHECK(order.moved == 0 && order.reason == SPILL_REASON_STATE);
    CHECK(spill_free(p) == CUDA_SUCCESS);
    check_empty(start);
    printf("%s\n", scenario);

    snprintf(scenario, sizeof scenario, "dead beats frozen, and keeps its first reason");
    CHECK(spill_seen(CUDA_ERROR_INVALID_VALUE) == CUDA_ERROR_INVALID_VALUE && spill_state_now() == SPILL_FROZEN);
    CHECK(spill_seen(CUDA_ERROR_LAUNCH_FAILED) == CUDA_ERROR_LAUNCH_FAILED && spill_state_now() == SPILL_DEAD && spill_dead());
    const char *why = spill_state_why();
    CHECK(strstr(why, "719") && spill_dead_error() == CUDA_ERROR_LAUNCH_FAILED && !spill_forked());
    spill_seen(CUDA_ERROR_ILLEGAL_ADDRESS);
    spill_exit_ends();
    CHECK(spill_state_why() == why && spill_dead_error() == CUDA_ERROR_LAUNCH_FAILED);
    int before = looks;
    CHECK(!spill_may_move() && looks == before);
    printf("%s\n", scenario);
}

int main(int argc, char **argv)
{
    if (argc != 2 || !lookup("cuInit", false))
        return printf("usage: states PROC_ROOT (and a libcuda.so.1)\n"), 2;
    write_meminfo(argv[1], 8 << 20);
    settings = harness_settings(argv[1]);
    primary = harness_start(&settings);
    start = free_vram();
    spill_budget_ledger();
    CUcontext popped;
    CHECK(((CUresult(*)(CUcontext *, unsigned, CUdevice))lookup("cuCtxCreate_v2", false))(&other, 0, 0) == CUDA_SUCCESS);
    CHECK(real.cuCtxPopCurrent_v2(&popped) == CUDA_SUCCESS && real.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
    start = free_vram();
    every_context_counts();
    sweeps_leave_a_dying_context_alone();
    a_handle_is_given_out_again();
    no_capture_begins_in_a_question();
    the_states();
    printf("ok\n");
    return 0;
}
