/* SPDX-License-Identifier: Apache-2.0 */
/* The tiering engine alone, on the simulated driver, with every driver call of an allocation and of a release made to fail,
 * one after another; then what only a second thread brings about. Built and run by tests/integration/test_tiering_faults.py.
 * No hook, no interposition: the engine is linked in and gets a door whose entries count and fail.
 *
 *   faults MEMINFO    MEMINFO: the fake /proc/meminfo below the engine's proc_root, which one scenario rewrites
 * Prints one line per scenario; exit 0 only if nothing leaked and no byte changed. */
#include "harness.h"

#include <pthread.h>
#include <sys/file.h>
#include <unistd.h>

static char root[512];
static size_t tip_at; /* once so many bytes of RAM are pinned, MemAvailable drops */

static CUcontext ctx;

static void destroy(void) { spill_discard_context(ctx); }

static void tip(void)
{
    if (tip_at && host_bytes >= tip_at)
        write_meminfo(root, 100 * 1024);
}

/* ---- the ledger's lock, which the kernel grants once to all threads of a process ---- */

static int flock_holders, flock_shared;

int flock(int fd, int operation)
{
    static int (*next)(int, int);
    if (!next)
        next = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    if (operation == LOCK_UN)
        __atomic_fetch_sub(&flock_holders, 1, __ATOMIC_SEQ_CST);
    int r = next(fd, operation);
    if (operation == LOCK_EX && __atomic_fetch_add(&flock_holders, 1, __ATOMIC_SEQ_CST) > 0)
        __atomic_store_n(&flock_shared, 1, __ATOMIC_SEQ_CST);
    if (operation == LOCK_EX)
        usleep(500);
    return r;
}

static void *ask_and_give(void *arg)
{
    char why[160];
    for (int i = 0; i < 50; i++)
        if (spill_budget_ask(MIB, why))
            spill_budget_give(MIB, 0);
    return arg;
}

/* ---- scenarios ---- */

static void check_bytes(CUdeviceptr p, size_t size)
{
    write_bytes(p, size, 1);
    read_bytes(p, size, 1);
}

/* Fail call after call until one allocation makes none that fails. Returns how many calls it made. */
static long sweep_allocation(size_t size, CUresult with, size_t free_at_start)
{
    for (long n = 1;; n++) {
        CUdeviceptr p = 0;
        snprintf(scenario, sizeof scenario, "allocation of %zu bytes, call %ld fails with %d", size, n, (int)with);
        calls = 0;
        fail_at = n;
        fail_with = with;
        CUresult r = spill_alloc(size, &p);
        bool reached = calls >= n;
        fail_at = 0;
        if (r == CUDA_SUCCESS) {
            check_bytes(p, size);
            CHECK(spill_free(p) == CUDA_SUCCESS);
            CHECK(spill_region_find(p) == NULL);
        } else {
            CHECK(r == with || r == CUDA_ERROR_OUT_OF_MEMORY);
        }
        check_empty(free_at_start);
        if (!reached) {
            CHECK(r == CUDA_SUCCESS);
            return n - 1;
        }
    }
}

int main(int argc, char **argv)
{
    CUdeviceptr p;
    if (argc != 2)
        return printf("usage: faults PROC_ROOT (and a libcuda.so.1)\n"), 2;
    snprintf(root, sizeof root, "%s", argv[1]);
    struct spill_settings settings = harness_settings(root);
    settings.managed_min = 8 * MIB, settings.chunk = 4 * MIB; /* as many chunks as elsewhere, in half the bytes */
    write_meminfo(root, 8 << 20);
    after_create = tip;
    ctx = harness_start(&settings);
    size_t start = free_vram();
    spill_budget_ledger();

    /* The reservation of the arena is made by the first allocation that succeeds, so its failures come first. */
    printf("allocation in VRAM: %ld driver calls\n", sweep_allocation(20 * MIB, CUDA_ERROR_UNKNOWN, start));
    printf("allocation in VRAM, out of memory: %ld driver calls\n", sweep_allocation(20 * MIB, CUDA_ERROR_OUT_OF_MEMORY, start));
    printf("allocation over the edge: %ld driver calls\n", sweep_allocation(40 * MIB, CUDA_ERROR_UNKNOWN, start));
    printf("allocation over the edge, out of memory: %ld driver calls\n", sweep_allocation(40 * MIB, CUDA_ERROR_OUT_OF_MEMORY, start));

    snprintf(scenario, sizeof scenario, "a free whose wait fails leaves the region as it was");
    CHECK(spill_alloc(40 * MIB, &p) == CUDA_SUCCESS);
    calls = 0, fail_at = 1, fail_with = CUDA_ERROR_LAUNCH_FAILED;
    CHECK(spill_free(p) == CUDA_ERROR_LAUNCH_FAILED);
    fail_at = 0;
    check_bytes(p, 40 * MIB);
    CHECK(spill_free(p) == CUDA_SUCCESS);
    check_empty(start);

    snprintf(scenario, sizeof scenario, "a region whose context is destroyed while its free waits is released once");
    CHECK(spill_alloc(40 * MIB, &p) == CUDA_SUCCESS);
    meanwhile = destroy;
    CHECK(spill_free(p) == CUDA_SUCCESS);
    meanwhile = NULL;
    check_empty(start);
    CUdeviceptr one, two;
    CHECK(spill_alloc(20 * MIB, &one) == CUDA_SUCCESS && spill_alloc(20 * MIB, &two) == CUDA_SUCCESS);
    CHECK(one + 20 * MIB <= two || two + 20 * MIB <= one);
    CHECK(spill_free(one) == CUDA_SUCCESS && spill_free(two) == CUDA_SUCCESS);
    check_empty(start);

    snprintf(scenario, sizeof scenario, "one thread at a time asks for RAM");
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, ask_and_give, NULL) == 0);
    ask_and_give(NULL);
    pthread_join(thread, NULL);
    CHECK(!flock_shared);
    check_empty(start);

    snprintf(scenario, sizeof scenario, "RAM gets short while a region is being pinned");
    host_bytes = 0;
    tip_at = 300 * MIB;
    CHECK(spill_alloc(700 * MIB, &p) == CUDA_ERROR_OUT_OF_MEMORY);
    CHECK(host_bytes >= tip_at && host_bytes < tip_at + 512 * MIB); /* noticed within 256 MiB, not at the end */
    tip_at = 0;
    check_empty(start);
    CHECK(spill_alloc(40 * MIB, &p) == CUDA_ERROR_OUT_OF_MEMORY); /* and not before RAM is there again */
    check_empty(start);
    write_meminfo(root, 8 << 20);
    CHECK(spill_alloc(40 * MIB, &p) == CUDA_SUCCESS);
    CHECK(spill_free(p) == CUDA_SUCCESS);
    check_empty(start);
    printf("ok\n");
    return 0;
}
