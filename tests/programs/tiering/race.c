/* SPDX-License-Identifier: Apache-2.0 */
/* Work from many threads on many streams while moves are ordered without a pause. Runs behind a shim whose functions are visible
 * (open.h); built and run by
 * tests/integration/test_tiering_race.py, and by tests/gpu/race.py on a GPU.
 *
 *   race SEED MOVES DEADLINE_MS [SECONDS SLACK_MIB]   until MOVES moves of each kind are done, and for SECONDS, at safepoints that
 *                                   are reached in DEADLINE_MS or not at all; SLACK_MIB: how far a real driver's free VRAM may be
 *                                   off at the end. SIMGPU_KERNELS names the kernels' companion
 *
 * Each lane is a thread that does one thing that programs do, on memory of its own whose every word it knows: the three kinds of
 * streams, graphs, host functions that call CUDA, a kernel that waits for what its thread does only after other work, copies of
 * pageable memory that are left under way, captures, allocations that come and go. One more thread orders moves. A wrong word or an
 * answer that the driver would not have given ends the program; how long the gate was closed is printed, not judged. */
#include "open.h"
#include "tiering/gate.h"

#define SIZE (5 * MIB)
#define WORDS ((unsigned)(SIZE / 4))
enum { BATCH = 6 };

struct lane {
    const char *name;
    void (*turn)(struct lane *lane);
    uint64_t state;
    CUstream stream, other;
    CUdeviceptr p, scratch;
    unsigned *model, *back, *up;
    unsigned *flag, flags; /* mapped, read by kernels; times it was raised */
    CUgraphExec exec;
    atomic_uint called;
    unsigned long turns;
};

static CUcontext ctx;
static CUfunction mix, spin;
static atomic_bool enough;

/* ---- what lanes share ---- */

static void model_mix(struct lane *l, unsigned at, unsigned n, unsigned salt)
{
    for (unsigned i = 0; i < n; i++)
        l->model[at + i] = l->model[at + i] * 2654435761u + salt + i;
}

static void run_mix(struct lane *l, unsigned at, unsigned n, unsigned salt, CUstream stream)
{
    CUdeviceptr words = l->p + at * 4ull;
    MUST(cuLaunchKernel(mix, 4, 1, 1, 32, 1, 1, 0, stream, (void *[]){ &words, &n, &salt }, NULL));
}

/* A span of words that lies over the edges of chunks more often than not. */
static unsigned span(struct lane *l, unsigned *at)
{
    unsigned n = 1 + draw(&l->state, 1u << (6 + draw(&l->state, 12)));
    *at = draw(&l->state, WORDS - n + 1);
    return n;
}

static void mix_some(struct lane *l)
{
    for (int i = 0; i < BATCH; i++) {
        unsigned at, n = span(l, &at), salt = draw(&l->state, 1u << 30);
        run_mix(l, at, n, salt, l->stream);
        model_mix(l, at, n, salt);
    }
}

static void check(struct lane *l)
{
    MUST(cuMemcpyDtoHAsync(l->back, l->p, SIZE, l->stream));
    MUST(cuStreamSynchronize(l->stream));
    for (unsigned i = 0; i < WORDS; i++)
        if (l->back[i] != l->model[i]) {
            printf("word %u of 0x%llx is %x instead of %x\n", i, l->p, l->back[i], l->model[i]);
            CHECK(!"every word is as the lane knows it");
        }
}

static void fill(struct lane *l, unsigned value)
{
    MUST(cuMemsetD32Async(l->p, value, WORDS, l->stream));
    for (unsigned i = 0; i < WORDS; i++)
        l->model[i] = value;
}

/* ---- the lanes ---- */

static void turn_launches(struct lane *l) { mix_some(l); }

static void turn_graph(struct lane *l)
{
    /* Three launches of one kernel, captured at the first turn. */
    for (int i = 0; i < 3; i++) {
        MUST(cuGraphLaunch(l->exec, l->stream));
        model_mix(l, 100, WORDS - 200, 77);
    }
}

static void turn_capture(struct lane *l)
{
    CUgraph graph;
    CUgraphExec exec;
    MUST(cuStreamBeginCapture(l->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    run_mix(l, 0, WORDS, 5, l->stream);
    run_mix(l, 7, 1000, 6, l->stream);
    MUST(cuStreamEndCapture(l->stream, &graph));
    MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
    MUST(cuGraphLaunch(exec, l->stream));
    model_mix(l, 0, WORDS, 5);
    model_mix(l, 7, 1000, 6);
    MUST(cuStreamSynchronize(l->stream));
    MUST(cuGraphExecDestroy(exec));
    MUST(cuGraphDestroy(graph));
}

static void CUDA_CB call_back(void *arg)
{
    struct lane *l = arg;
    /* CUDA forbids it; a driver may let it pass. Either way the thread that runs this may find the gate closed. */
    CUresult r = cuCtxSetCurrent(ctx);
    if (r == CUDA_SUCCESS)
        r = cuMemsetD8Async(l->scratch, 1, 4096, l->other);
    if (r != CUDA_ERROR_NOT_PERMITTED)
        MUST(r);
    atomic_fetch_add(&l->called, 1);
}

static void turn_callbacks(struct lane *l)
{
    unsigned before = atomic_load(&l->called);
    for (int i = 0; i < 3; i++) {
        MUST(cuLaunchHostFunc(l->stream, call_back, l));
        mix_some(l);
    }
    MUST(cuStreamSynchronize(l->stream));
    MUST(cuStreamSynchronize(l->other));
    CHECK(atomic_load(&l->called) == before + 3);
}

static void turn_spin(struct lane *l)
{
    unsigned until = ++l->flags, n = 4096;
    CUdeviceptr words = l->p + SIZE / 2, flag = (CUdeviceptr)l->flag;
    MUST(cuLaunchKernel(spin, 1, 1, 1, 1, 1, 1, 0, l->stream, (void *[]){ &flag, &until, &words, &n }, NULL));
    /* Whoever closes the gate now waits for the kernel, which waits for this thread, which waits at the gate. */
    MUST(cuMemsetD8Async(l->scratch, 2, 4096, l->other));
    MUST(cuMemsetD8Async(l->scratch + SIZE / 2, 3, 4096, l->other));
    __atomic_store_n(l->flag, until, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < n; i++)
        l->model[WORDS / 2 + i] += 2;
}

static void turn_pageable(struct lane *l)
{
    for (int i = 0; i < 2; i++) {
        unsigned at, n = span(l, &at);
        for (unsigned k = 0; k < n; k++)
            l->up[at + k] = l->model[at + k] = draw(&l->state, 1u << 30);
        MUST(cuMemcpyHtoDAsync(l->p + at * 4ull, l->up + at, n * 4ull, l->stream));
        MUST(cuStreamSynchronize(l->stream)); /* before `up` is written again, elsewhere or not */
        MUST(cuMemcpyHtoDAsync(l->p + at * 4ull, l->up + at, n * 4ull, l->stream));
    }
}

static void turn_churn(struct lane *l)
{
    mix_some(l);
    check(l);
    run_mix(l, 0, WORDS, 1, l->stream); /* the free waits for it */
    MUST(draw(&l->state, 2) ? cuMemFreeAsync(l->p, l->stream) : cuMemFree(l->p));
    MUST(cuMemAlloc(&l->p, SIZE));
    fill(l, draw(&l->state, 1u << 30));
}

static struct lane lanes[] = {
    { .name = "legacy stream", .turn = turn_launches },
    { .name = "per-thread stream", .turn = turn_launches },
    { .name = "blocking stream", .turn = turn_launches },
    { .name = "non-blocking stream", .turn = turn_launches },
    { .name = "graphs", .turn = turn_graph },
    { .name = "captures", .turn = turn_capture },
    { .name = "callbacks", .turn = turn_callbacks },
    { .name = "a kernel that waits", .turn = turn_spin },
    { .name = "pageable copies", .turn = turn_pageable },
    { .name = "allocations", .turn = turn_churn },
};
enum { LANES = sizeof lanes / sizeof *lanes };

static void lane_begins(struct lane *l, unsigned index)
{
    CUgraph graph;
    if (index == 1)
        l->stream = CU_STREAM_PER_THREAD;
    else if (index)
        MUST(cuStreamCreate(&l->stream, index == 2 ? CU_STREAM_DEFAULT : CU_STREAM_NON_BLOCKING));
    MUST(cuStreamCreate(&l->other, CU_STREAM_NON_BLOCKING));
    MUST(cuMemAlloc(&l->p, SIZE));
    if (l->turn == turn_callbacks || l->turn == turn_spin)
        MUST(cuMemAlloc(&l->scratch, SIZE));
    MUST(cuMemHostAlloc((void **)&l->flag, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
    *l->flag = 0;
    l->model = malloc(SIZE), l->up = malloc(SIZE);
    CHECK(l->model && l->up);
    /* A copy to pageable memory keeps its thread inside the gate until it is done. */
    if (l->turn == turn_pageable)
        CHECK((l->back = malloc(SIZE)) != NULL);
    else
        MUST(cuMemHostAlloc((void **)&l->back, SIZE, 0));
    fill(l, index);
    if (l->turn == turn_graph) {
        MUST(cuStreamBeginCapture(l->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        run_mix(l, 100, WORDS - 200, 77, l->stream);
        MUST(cuStreamEndCapture(l->stream, &graph));
        MUST(cuGraphInstantiateWithFlags(&l->exec, graph, 0));
        MUST(cuGraphDestroy(graph));
    }
}

static void lane_ends(struct lane *l)
{
    check(l);
    if (l->exec)
        MUST(cuGraphExecDestroy(l->exec));
    MUST(cuMemFree(l->p));
    if (l->scratch)
        MUST(cuMemFree(l->scratch));
    MUST(cuMemFreeHost(l->flag));
    MUST(cuStreamDestroy(l->other));
    if ((uintptr_t)l->stream > 2)
        MUST(cuStreamDestroy(l->stream));
    free(l->model);
    if (l->turn == turn_pageable)
        free(l->back);
    else
        MUST(cuMemFreeHost(l->back));
    free(l->up);
}

static void *lane_body(void *arg)
{
    const struct timespec nap = { 0, 2000000 };
    struct lane *l = arg;
    MUST(cuCtxSetCurrent(ctx));
    lane_begins(l, (unsigned)(l - lanes));
    while (!atomic_load(&enough)) {
        snprintf(scenario, sizeof scenario, "%s, turn %lu", l->name, l->turns);
        l->turn(l);
        if (++l->turns % 4 == 0)
            check(l);
        nanosleep(&nap, NULL); /* a program does something else, too */
    }
    lane_ends(l);
    return NULL;
}

/* Move up to `bytes` to one tier, as order.c does it, but with a deadline of the test's. */
static void order(enum spill_tier to, uint64_t bytes, uint64_t deadline_ns)
{
    struct spill_sweep plan = { .to = to, .left = bytes };
    struct spill_series series = { .next = spill_sweep_next, .arg = &plan, .pause_ns = spill_ms(50), .bulk = true };
    enum spill_reason why;
    do {
        plan.ctx = NULL;
        spill_lock();
        series.deadline_ns = spill_now_ns() + deadline_ns;
        why = spill_move_series(&series);
        spill_unlock();
    } while (why == SPILL_REASON_NONE);
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 6)
        return printf("usage: race SEED MOVES DEADLINE_MS [SECONDS SLACK_MIB]\n"), 2;
    const struct timespec breath = { 0, 500000 };
    uint64_t deadline_ns = spill_ms((unsigned)atoi(argv[3]));
    uint64_t seed = strtoull(argv[1], NULL, 10), state = seed_of(seed, 1000), wanted = strtoull(argv[2], NULL, 10), cut = 0, turns = 0, rounds = 0;
    uint64_t until = spill_now_ns() + spill_ms(argc > 4 ? 1000 * (unsigned)atoi(argv[4]) : 0);
    const struct spill_move_stats *s;
    CUdevice device;
    CUmodule module;
    CUdeviceptr p;
    pthread_t ids[LANES];
    sums_slack = argc > 5 ? (uint64_t)atoi(argv[5]) * MIB : 0;
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&ctx, device));
    MUST(cuCtxSetCurrent(ctx));
    module = open_module();
    MUST(cuModuleGetFunction(&mix, module, "mix"));
    MUST(cuModuleGetFunction(&spin, module, "spin"));
    open_door();
    MUST(cuMemAlloc(&p, 4 * MIB)); /* the engine starts, and probes */
    CHECK(spill_region_find(p) != NULL);
    MUST(cuMemFree(p));
    size_t whole = free_vram();
    s = spill_move_stats(); /* now where it stays */
    for (unsigned i = 0; i < LANES; i++) {
        lanes[i].state = seed_of(seed, i);
        CHECK(pthread_create(&ids[i], NULL, lane_body, &lanes[i]) == 0);
    }
    while (s->demoted < wanted || s->promoted < wanted || cut < wanted || spill_now_ns() < until) {
        snprintf(scenario, sizeof scenario, "round %llu of orders", (unsigned long long)rounds++);
        order(SPILL_RAM, draw(&state, 8) ? draw(&state, 12u << 20) : UINT64_MAX, deadline_ns);
        order(SPILL_VRAM, draw(&state, 8) ? draw(&state, 12u << 20) : UINT64_MAX, deadline_ns);
        for (int i = 0; i < 6; i++)
            cut += open_recut(&state, deadline_ns);
        nanosleep(&breath, NULL);
        CHECK(spill_state_now() == SPILL_OPEN);
    }
    atomic_store(&enough, true);
    for (unsigned i = 0; i < LANES; i++) {
        pthread_join(ids[i], NULL);
        turns += lanes[i].turns;
    }
    spill_lock();
    while (spill_limbo_any())
        spill_limbo_sweep(100);
    spill_unlock();
    snprintf(scenario, sizeof scenario, "the end");
    sums_agree(whole, 0);
    CHECK(held.handles == 0 && held.mapped == 0 && s->poisoned == 0 && s->rolled_back == 0);
    printf("seed %llu: %llu demotions, %llu promotions, %llu moves cut anew against %llu turns of %d threads; safepoints: %llu, busy: %llu, "
           "capturing: %llu; the gate was closed for at most %.3f ms, %llu closers gave up, %llu calls waited at it\n",
           (unsigned long long)seed, (unsigned long long)s->demoted, (unsigned long long)s->promoted, (unsigned long long)cut,
           (unsigned long long)turns, LANES, (unsigned long long)s->safepoints, (unsigned long long)s->refused_busy,
           (unsigned long long)s->refused_capture, (double)atomic_load(&spill_gate_stats.longest_ns) * 1e-6,
           (unsigned long long)atomic_load(&spill_gate_stats.gave_up), (unsigned long long)atomic_load(&spill_gate_stats.parked));
    MUST(cuModuleUnload(module));
    MUST(cuDevicePrimaryCtxRelease(device));
    printf("ok\n");
    return 0;
}
