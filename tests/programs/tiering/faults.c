/* SPDX-License-Identifier: Apache-2.0 */
/* The tiering engine alone, on the simulated driver, with every driver call of an allocation and of a release made to fail,
 * one after another; then what only a second thread brings about. Built and run by tests/integration/test_tiering_faults.py.
 * No hook, no interposition: the engine is linked in and gets a door whose entries count and fail.
 *
 *   faults MEMINFO    MEMINFO: the fake /proc/meminfo below the engine's proc_root, which one scenario rewrites
 * Prints one line per scenario; exit 0 only if nothing leaked and no byte changed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "link/ledger.h"
#include "shim/config.h"
#include "shim/log.h"
#include "shim/resolve.h"
#include "tiering/tiering.h"

#define MIB ((size_t)1 << 20)
#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            printf("line %d: %s is false (%s)\n", __LINE__, #condition, scenario);    \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

static char scenario[200] = "start";
static char root[512];
static struct spill_driver real;

/* ---- what the engine needs from outside ---- */

void spill_log(enum spill_log_level level, const char *fmt, ...)
{
    va_list args;
    if (level > SPILL_LOG_WARN || !getenv("FAULTS_VERBOSE"))
        return;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}

void spill_say(const char *fmt, ...) { (void)fmt; }

const char *spill_size_text(unsigned long long bytes, char buf[16])
{
    snprintf(buf, 16, "%llu", bytes);
    return buf;
}

void *spill_real_symbol(enum spill_lib lib, const char *symbol)
{
    (void)lib;
    (void)symbol;
    return NULL;
}

static uint64_t all(uint64_t total) { return total; }
static uint64_t none(uint64_t total) { return total * 0; }
static uint64_t eighth(uint64_t total) { return total / 8; }
static uint64_t unlimited(uint64_t total) { return total | UINT64_MAX; }
static uint64_t half_gib(uint64_t total) { return total * 0 + 512 * MIB; }

static void probe(int device, struct spill_probe_result *out)
{
    (void)device;
    *out = (struct spill_probe_result){ SPILL_BACKEND_HOST_NUMA, 0, false };
}

/* ---- the door that fails ---- */

static long calls, fail_at; /* the fail_at-th counted call fails; 0: none */
static CUresult fail_with;
static size_t host_bytes, tip_at; /* once so many bytes of RAM are pinned, MemAvailable drops */

static void write_meminfo(unsigned long available_kib)
{
    char path[600];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    fprintf(f, "MemTotal:       16777216 kB\nMemAvailable:   %8lu kB\n", available_kib);
    fclose(f);
}

static bool fails(void) { return ++calls == fail_at; }

static CUresult counted_create(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                               unsigned long long flags)
{
    if (fails())
        return fail_with;
    CUresult r = real.cuMemCreate(handle, size, prop, flags);
    if (r == CUDA_SUCCESS && prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
        host_bytes += size;
        if (tip_at && host_bytes >= tip_at)
            write_meminfo(100 * 1024);
    }
    return r;
}

static CUresult counted_map(CUdeviceptr p, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                            unsigned long long flags)
{
    return fails() ? fail_with : real.cuMemMap(p, size, offset, handle, flags);
}

static CUresult counted_access(CUdeviceptr p, size_t size, const CUmemAccessDesc *desc, size_t count)
{
    return fails() ? fail_with : real.cuMemSetAccess(p, size, desc, count);
}

static CUresult counted_reserve(CUdeviceptr *p, size_t size, size_t alignment, CUdeviceptr address, unsigned long long flags)
{
    return fails() ? fail_with : real.cuMemAddressReserve(p, size, alignment, address, flags);
}

static CUresult counted_info(size_t *free_now, size_t *total)
{
    return fails() ? fail_with : real.cuMemGetInfo_v2(free_now, total);
}

static CUresult counted_device(CUdevice *device) { return fails() ? fail_with : real.cuCtxGetDevice(device); }

static CUcontext dies_meanwhile; /* destroyed by another thread while this one waits for it */

static CUresult counted_sync(void)
{
    CUresult r = fails() ? fail_with : real.cuCtxSynchronize();
    if (dies_meanwhile)
        spill_discard_context(dies_meanwhile);
    return r;
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

static void *lookup(const char *symbol, bool nvml)
{
    static void *library;
    if (nvml)
        return NULL;
    if (!library)
        library = dlopen("libcuda.so.1", RTLD_NOW);
    return library ? dlsym(library, symbol) : NULL;
}

static void *counted(const char *symbol, bool nvml)
{
    static const struct { const char *symbol; void *function; } wrapped[] = {
        { "cuMemCreate", (void *)counted_create },      { "cuMemMap", (void *)counted_map },
        { "cuMemSetAccess", (void *)counted_access },   { "cuMemAddressReserve", (void *)counted_reserve },
        { "cuMemGetInfo_v2", (void *)counted_info },    { "cuCtxGetDevice", (void *)counted_device },
        { "cuCtxSynchronize", (void *)counted_sync },
    };
    for (size_t i = 0; i < sizeof wrapped / sizeof wrapped[0]; i++)
        if (strcmp(symbol, wrapped[i].symbol) == 0)
            return wrapped[i].function;
    return lookup(symbol, nvml);
}

/* ---- scenarios ---- */

static size_t free_vram(void)
{
    size_t free_now = 0, total;
    CHECK(real.cuMemGetInfo_v2(&free_now, &total) == CUDA_SUCCESS);
    return free_now;
}

/* Nothing is held: by the device, by the budget, by the counters, in the tables. */
static void check_empty(size_t free_at_start)
{
    struct spill_ledger_slot *own = spill_budget_ledger()->own;
    CHECK(own != NULL);
    CHECK(free_vram() == free_at_start);
    CHECK(own->ram_asked == 0 && own->ram_pinned == 0);
    CHECK(own->device[0].vram == 0 && own->device[0].ram == 0);
    CHECK(spill_stats()->managed_bytes == 0 && spill_stats()->spilled_bytes == 0 && spill_stats()->vram_bytes == 0);
}

static void check_bytes(CUdeviceptr p, size_t size)
{
    unsigned char *sent = malloc(size), *got = calloc(1, size);
    CHECK(sent && got);
    for (size_t i = 0; i < size; i++)
        sent[i] = (unsigned char)(i * 2654435761u >> 13);
    for (uint64_t at = 0, n; at < size; at += n) {
        enum spill_tier tier;
        n = spill_region_run(spill_region_find(p + at), p + at, size - at, &tier);
        CHECK(real.cuMemcpyHtoD_v2(p + at, sent + at, n) == CUDA_SUCCESS);
        CHECK(real.cuMemcpyDtoH_v2(got + at, p + at, n) == CUDA_SUCCESS);
    }
    CHECK(memcmp(sent, got, size) == 0);
    free(sent);
    free(got);
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
            CHECK(spill_free(spill_region_find(p)) == CUDA_SUCCESS);
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
    CUdevice device;
    CUcontext ctx;
    CUdeviceptr p;
    if (argc != 2 || !lookup("cuInit", false))
        return printf("usage: faults PROC_ROOT (and a libcuda.so.1)\n"), 2;
    snprintf(root, sizeof root, "%s", argv[1]);
    const struct spill_settings settings = {
        .spill = true, .managed_min = 16 * MIB, .chunk = 8 * MIB, .spill_chunk = 2 * MIB, .state_dir = getenv("FAULTS_STATE"),
        .proc_root = root, .vram_limit = all, .headroom = eighth, .holdback = none, .host_limit = unlimited,
        .ram_reserve = half_gib, .probe = probe,
    };
    write_meminfo(8 << 20);
    spill_driver_fill(lookup);
    real = *spill_driver();
    spill_driver_fill(counted);
    CHECK(((CUresult(*)(unsigned))lookup("cuInit", false))(0) == CUDA_SUCCESS && real.cuDeviceGet(&device, 0) == CUDA_SUCCESS);
    CHECK(real.cuDevicePrimaryCtxRetain(&ctx, device) == CUDA_SUCCESS);
    CHECK(((CUresult(*)(CUcontext))lookup("cuCtxSetCurrent", false))(ctx) == CUDA_SUCCESS);
    spill_engine_start(&settings);
    size_t start = free_vram();
    spill_budget_ledger();

    /* The reservation of the arena is made by the first allocation that succeeds, so its failures come first. */
    printf("allocation in VRAM: %ld driver calls\n", sweep_allocation(40 * MIB, CUDA_ERROR_UNKNOWN, start));
    printf("allocation in VRAM, out of memory: %ld driver calls\n", sweep_allocation(40 * MIB, CUDA_ERROR_OUT_OF_MEMORY, start));
    printf("allocation over the edge: %ld driver calls\n", sweep_allocation(80 * MIB, CUDA_ERROR_UNKNOWN, start));
    printf("allocation over the edge, out of memory: %ld driver calls\n", sweep_allocation(80 * MIB, CUDA_ERROR_OUT_OF_MEMORY, start));

    snprintf(scenario, sizeof scenario, "a free whose wait fails leaves the region as it was");
    CHECK(spill_alloc(80 * MIB, &p) == CUDA_SUCCESS);
    calls = 0, fail_at = 1, fail_with = CUDA_ERROR_LAUNCH_FAILED;
    CHECK(spill_free(spill_region_find(p)) == CUDA_ERROR_LAUNCH_FAILED);
    fail_at = 0;
    check_bytes(p, 80 * MIB);
    CHECK(spill_free(spill_region_find(p)) == CUDA_SUCCESS);
    check_empty(start);

    snprintf(scenario, sizeof scenario, "a region whose context is destroyed while its free waits is released once");
    CHECK(spill_alloc(80 * MIB, &p) == CUDA_SUCCESS);
    dies_meanwhile = ctx;
    CHECK(spill_free(spill_region_find(p)) == CUDA_SUCCESS);
    dies_meanwhile = NULL;
    check_empty(start);
    CUdeviceptr one, two;
    CHECK(spill_alloc(40 * MIB, &one) == CUDA_SUCCESS && spill_alloc(40 * MIB, &two) == CUDA_SUCCESS);
    CHECK(one + 40 * MIB <= two || two + 40 * MIB <= one);
    CHECK(spill_free(spill_region_find(one)) == CUDA_SUCCESS && spill_free(spill_region_find(two)) == CUDA_SUCCESS);
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
    CHECK(spill_alloc(80 * MIB, &p) == CUDA_ERROR_OUT_OF_MEMORY); /* and not before RAM is there again */
    check_empty(start);
    write_meminfo(8 << 20);
    CHECK(spill_alloc(80 * MIB, &p) == CUDA_SUCCESS);
    CHECK(spill_free(spill_region_find(p)) == CUDA_SUCCESS);
    check_empty(start);
    printf("ok\n");
    return 0;
}
