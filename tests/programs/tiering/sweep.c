/* SPDX-License-Identifier: Apache-2.0 */
/* Driver calls that fail, and processes that die, at every point of a displacement, a settle pass, a free and a teardown; by the engine
 * alone, on the simulated driver. (Allocations: faults.c. Single moves and reclaims: moves.c.) Built and run by
 * tests/integration/test_tiering_sweep.py.
 *
 *   sweep PROC_ROOT singles|pairs      each call fails once; each does with one soon after it
 *   sweep PROC_ROOT lasting STEP       every call fails from the n-th on, for every STEP-th n: in a process each
 *   sweep PROC_ROOT kills STEP         the process is killed at the n-th call; this one survives, on the same device and ledger
 * Prints one line per scene; exit 0 only if no byte changed, nothing leaked and what survives goes on. */
#include "harness.h"

#include <spawn.h>
#include <sys/wait.h>

#define WEIGHTS (20 * MIB)
#define CACHE (12 * MIB)

static struct spill_settings settings;
static CUcontext ctx;
static size_t start;
static CUdeviceptr weights, cache;
static const char *self, *root;
extern char **environ;

static struct spill_region *region_of(CUdeviceptr p)
{
    struct spill_region *region = spill_region_find(p);
    CHECK(region != NULL);
    return region;
}

/* Weights come first and fill VRAM, the cache goes to RAM for the most part, and the placement was not mended. */
static void allocate(void)
{
    settings.moves = false;
    CHECK(spill_alloc(WEIGHTS, &weights) == CUDA_SUCCESS && spill_alloc(CACHE, &cache) == CUDA_SUCCESS);
    CHECK(region_of(weights)->ram_bytes == 0 && region_of(cache)->ram_bytes > 0);
    settings.moves = true;
    write_bytes(weights, WEIGHTS, 1);
    write_bytes(cache, CACHE, 2);
}

/* ---- what is swept over: each may fail, and says whether it did ---- */

static bool displaces(void)
{
    enum spill_reason why;
    spill_lock();
    uint64_t freed = spill_displace(0, 7 * MIB, CACHE, spill_now_ns() + spill_ms(2), spill_ms(100), &why);
    spill_unlock();
    return freed >= 7 * MIB;
}

static bool settles(void)
{
    for (int waits = 0; waits < 4; waits++)
        spill_settle();
    return region_of(cache)->ram_bytes == 0;
}

static bool frees(void)
{
    if (spill_free(cache) != CUDA_SUCCESS)
        return false;
    cache = 0;
    return true;
}

static bool frees_late(void)
{
    if (spill_free_async(cache, NULL, false) != CUDA_SUCCESS)
        return false;
    cache = 0;
    return true;
}

/* The application has destroyed the context: nothing is asked any more, all is forgotten. */
static bool tears_down(void)
{
    spill_discard_context(ctx);
    weights = cache = 0;
    return true;
}

static const struct scene {
    const char *name;
    bool (*act)(void);
} scenes[] = {
    { "displacement", displaces }, { "settle pass", settles }, { "free", frees }, { "free in stream order", frees_late },
    { "teardown", tears_down },
};
enum { SCENES = sizeof scenes / sizeof *scenes, NEAR = 3 }; /* a pair is at most NEAR calls apart: what unwinds the first */

/* ---- failures that pass ---- */

static void check_all(void)
{
    spill_lock();
    while (spill_limbo_any())
        spill_limbo_sweep(100);
    spill_unlock();
    sums_agree(start, 0);
    if (weights)
        read_bytes(weights, WEIGHTS, 1);
    if (cache)
        read_bytes(cache, CACHE, 2);
}

static void free_all(void)
{
    if (cache)
        CHECK(spill_free(cache) == CUDA_SUCCESS);
    if (weights)
        CHECK(spill_free(weights) == CUDA_SUCCESS);
    weights = cache = 0;
}

/* True if so many calls were made. */
static bool faulty(const struct scene *scene, long first, long second)
{
    snprintf(scenario, sizeof scenario, "%s, calls %ld and %ld fail", scene->name, first, second);
    allocate();
    door_calm();
    fail_at = first, fail_at_too = second;
    bool done = scene->act();
    long made = door_calm();
    bool reached = made >= (second ? second : first);
    CHECK(done || made >= first);
    CHECK(spill_move_stats()->poisoned == 0);
    check_all();
    free_all();
    check_empty(start);
    CHECK(held.handles == 0 && held.mapped == 0);
    return reached;
}

static void sweep(const struct scene *scene, bool pairs)
{
    long singles = 1, doubles = 0;
    for (; faulty(scene, singles, 0); singles++)
        ;
    for (long first = 1; pairs && first < singles; first++)
        for (long second = first + 1; second <= first + NEAR && faulty(scene, first, second); second++)
            doubles++;
    printf("%s: %ld driver calls, %ld pairs\n", scene->name, singles - 1, doubles);
}

/* ---- processes of their own ---- */

/* Run this program as `what` for one scene and call; its wait status. */
static int child(const char *what, unsigned scene, long n)
{
    char which[16], call[16];
    char *const argv[] = { (char *)self, (char *)root, (char *)what, which, call, NULL };
    pid_t pid;
    int status;
    snprintf(which, sizeof which, "%u", scene);
    snprintf(call, sizeof call, "%ld", n);
    fflush(stdout);
    CHECK(posix_spawn(&pid, self, NULL, NULL, argv, environ) == 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

enum { ENDED = 0, WRONG = 1, SPARED = 3, POISONED = 4 }; /* how a child exits; SPARED: fewer calls were made */

/* The driver refuses everything from the n-th call on, then works again: what is not a hole goes on. */
static int lasting(const struct scene *scene, long n)
{
    snprintf(scenario, sizeof scenario, "%s, all calls from %ld on fail", scene->name, n);
    allocate();
    door_calm();
    fail_from = n;
    scene->act();
    bool reached = door_calm() >= n;
    unsigned poisoned = (unsigned)spill_move_stats()->poisoned;
    CHECK(poisoned <= 1 && (poisoned == 0) == (atomic_load(&spill_poison) == 0));
    const struct { CUdeviceptr p; size_t size; unsigned salt; } both[] = { { weights, WEIGHTS, 1 }, { cache, CACHE, 2 } };
    for (int i = 0; i < 2; i++) {
        struct spill_region *region = both[i].p ? region_of(both[i].p) : NULL;
        if (!region)
            continue;
        CHECK(!region->poisoned || (poisoned && !spill_movable(region)));
        if (!region->poisoned)
            read_bytes(both[i].p, both[i].size, both[i].salt);
    }
    /* Orders still move the others, allocations still work, and everything can be freed. */
    spill_order_demote(UINT64_MAX, 10);
    if (cache && !region_of(cache)->poisoned) {
        CHECK(region_of(cache)->ram_bytes == region_of(cache)->mapped);
        read_bytes(cache, CACHE, 2);
    }
    CUdeviceptr more;
    CHECK(spill_alloc(16 * MIB, &more) == CUDA_SUCCESS);
    write_bytes(more, 16 * MIB, 3);
    read_bytes(more, 16 * MIB, 3);
    CHECK(spill_free(more) == CUDA_SUCCESS);
    free_all();
    spill_exit_begins();
    spill_exit_ends();
    return poisoned ? POISONED : reached ? ENDED : SPARED;
}

static void sweep_lasting(unsigned scene, long step)
{
    long runs = 0, poisoned = 0;
    for (long n = 1;; n += step) {
        int status = child("lasting-child", scene, n);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) != WRONG);
        if (WEXITSTATUS(status) == SPARED)
            break;
        runs++;
        poisoned += WEXITSTATUS(status) == POISONED;
    }
    printf("%s: %ld lasting failures, %ld of them left a hole\n", scenes[scene].name, runs, poisoned);
}

static void sweep_kills(unsigned scene, long step)
{
    long kills = 0;
    CUdeviceptr own;
    snprintf(scenario, sizeof scenario, "%s, killed", scenes[scene].name);
    CHECK(spill_alloc(4 * MIB, &own) == CUDA_SUCCESS);
    write_bytes(own, 4 * MIB, 4);
    for (long n = 1;; n += step) {
        size_t before = free_vram();
        int status = child("kills-child", scene, n);
        struct spill_ledger_sum sum;
        struct spill_ledger *ledger = spill_budget_ledger();
        spill_ledger_lock(ledger); /* whoever asks for RAM clears the slots of the dead */
        spill_ledger_unlock(ledger);
        spill_usage(spill_device(0), &sum);
        CHECK(sum.processes == 1 && sum.ram_asked == 0 && sum.ram_pinned == 0 && sum.vram_of_job == 4 * MIB);
        CHECK(free_vram() == before);
        sums_agree(start, 0);
        read_bytes(own, 4 * MIB, 4);
        if (WIFEXITED(status)) {
            CHECK(WEXITSTATUS(status) == SPARED);
            break;
        }
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        kills++;
    }
    CHECK(spill_free(own) == CUDA_SUCCESS);
    check_empty(start);
    printf("%s: killed at %ld calls\n", scenes[scene].name, kills);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return printf("usage: sweep PROC_ROOT singles|pairs|lasting STEP|kills STEP (and a libcuda.so.1)\n"), 2;
    self = argv[0], root = argv[1];
    const char *what = argv[2];
    long step = argc > 3 ? atol(argv[3]) : 1;
    settings = harness_settings(root);
    settings.managed_min = 4 * MIB, settings.chunk = 4 * MIB;
    if (strstr(what, "child") == NULL)
        write_meminfo(root, 8 << 20);
    ctx = harness_start(&settings);
    spill_context_known(ctx);
    start = free_vram();
    spill_budget_ledger();
    if (strcmp(what, "lasting-child") == 0)
        return lasting(&scenes[step], atol(argv[4]));
    if (strcmp(what, "kills-child") == 0) {
        allocate();
        door_calm();
        die_at = atol(argv[4]);
        scenes[step].act();
        return SPARED;
    }
    for (unsigned i = 0; i < SCENES; i++) {
        if (strcmp(what, "lasting") == 0)
            sweep_lasting(i, step);
        else if (strcmp(what, "kills") == 0)
            sweep_kills(i, step);
        else
            sweep(&scenes[i], strcmp(what, "pairs") == 0);
    }
    printf("ok\n");
    return 0;
}
