/* SPDX-License-Identifier: Apache-2.0 */
/* What a program needs that links the tiering engine alone, without hooks: the functions that the engine gets from outside, and
 * door.h. Included once, by each such program of this folder.
 * With HARNESS_GPU it is for a real GPU (tests/gpu/moves.py): time is the machine's, events are asked and not waited for, RAM comes
 * from the node that the GPU names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "door.h"
#include "sums.h"
#include "link/ledger.h"
#include "shim/log.h"
#include "shim/resolve.h"
#include "tiering/moving.h"

/* ---- what the engine needs from outside ---- */

void spill_log(enum spill_log_level level, const char *fmt, ...)
{
    va_list args;
    const char *verbose = getenv("HARNESS_VERBOSE");
    if (!verbose || (level > SPILL_LOG_WARN && *verbose != '2'))
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
    int node = 0;
#ifdef HARNESS_GPU
    CHECK(real.cuDeviceGetAttribute(&node, CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID, device) == CUDA_SUCCESS);
#else
    (void)device;
#endif
    *out = (struct spill_probe_result){ SPILL_BACKEND_HOST_NUMA, node < 0 ? 0 : node, false };
}

/* Small chunks, no holdback; the ledger in $HARNESS_STATE, /proc below `root`. */
static struct spill_settings harness_settings(const char *root)
{
    return (struct spill_settings){
        .spill = true, .managed_min = 16 * MIB, .chunk = 8 * MIB, .spill_chunk = 2 * MIB, .state_dir = getenv("HARNESS_STATE"),
        .proc_root = root, .vram_limit = all, .headroom = eighth, .holdback = none, .host_limit = unlimited,
        .ram_reserve = half_gib, .probe = probe,
    };
}

static inline void write_meminfo(const char *root, unsigned long available_kib)
{
    char path[600];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    fprintf(f, "MemTotal:       16777216 kB\nMemAvailable:   %8lu kB\n", available_kib);
    fclose(f);
}

#ifndef HARNESS_GPU
/* ---- the engine's clock: it goes by looks and naps, so that no deadline depends on who else has the processor ----
 * The programs are linked with --wrap=clock_gettime,--wrap=nanosleep. */

static _Atomic uint64_t clock_ns = 1000000000u;
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __real_nanosleep(const struct timespec *nap, struct timespec *left);
int __wrap_nanosleep(const struct timespec *nap, struct timespec *left);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    if (clock != CLOCK_MONOTONIC)
        return __real_clock_gettime(clock, now);
    uint64_t ns = clock_ns += 100;
    *now = (struct timespec){ (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
    return 0;
}

int __wrap_nanosleep(const struct timespec *nap, struct timespec *left)
{
    clock_ns += (uint64_t)nap->tv_sec * 1000000000u + (uint64_t)nap->tv_nsec;
    return __real_nanosleep(nap, left);
}
#endif

/* ---- the door ---- */

static void *lookup(const char *symbol, bool nvml)
{
    static void *library;
    if (nvml)
        return NULL;
    if (!library)
        library = dlopen("libcuda.so.1", RTLD_NOW);
    return library ? dlsym(library, symbol) : NULL;
}

#ifndef HARNESS_GPU
/* Waits: how soon the simulated device gets to an event must not count as work that lasts. */
static CUresult harness_cuEventQuery(CUevent event)
{
    CUresult (*wait)(CUevent) = (CUresult(*)(CUevent))lookup("cuEventSynchronize", false);
    return fails() ? fail_with : wait(event);
}
#endif

static void *counted(const char *symbol, bool nvml)
{
    void *own = door_counted(symbol);
#ifndef HARNESS_GPU
    if (strcmp(symbol, "cuEventQuery") == 0)
        own = (void *)harness_cuEventQuery;
#endif
    return own ? own : lookup(symbol, nvml);
}

/* Driver up, primary context current, door counted, engine started. */
static CUcontext harness_start(const struct spill_settings *settings)
{
    CUdevice device;
    CUcontext ctx;
    CHECK(lookup("cuInit", false) != NULL);
    spill_driver_fill(lookup);
    real = *spill_driver();
    spill_driver_fill(counted);
    CHECK(((CUresult(*)(unsigned))lookup("cuInit", false))(0) == CUDA_SUCCESS && real.cuDeviceGet(&device, 0) == CUDA_SUCCESS);
    CHECK(real.cuDevicePrimaryCtxRetain(&ctx, device) == CUDA_SUCCESS);
    CHECK(((CUresult(*)(CUcontext))lookup("cuCtxSetCurrent", false))(ctx) == CUDA_SUCCESS);
    spill_engine_start(settings);
    return ctx;
}

/* ---- checks ---- */

/* Nothing is held: by the device, by the budget, by the counters, in the tables. */
static inline void check_empty(size_t free_at_start)
{
    struct spill_ledger_slot *own = spill_budget_ledger()->own;
    CHECK(own != NULL);
    CHECK(free_vram() == free_at_start);
    CHECK(own->ram_asked == 0 && own->ram_pinned == 0);
    CHECK(own->device[0].vram == 0 && own->device[0].ram == 0);
    CHECK(spill_stats()->managed_bytes == 0 && spill_stats()->spilled_bytes == 0 && spill_stats()->vram_bytes == 0);
}

/* Each driver call of `run` fails, one after another, and with `pairs` two of them; it answers whether the last one was reached. */
static inline void calls_fail(const char *what, bool (*run)(long first, long second), bool pairs)
{
    long singles = 1, doubles = 0;
    for (; run(singles, 0); singles++)
        ;
    for (long first = 1; pairs && first < singles; first++)
        for (long second = first + 1; run(first, second); second++)
            doubles++;
    printf("%s: %ld driver calls, %ld pairs\n", what, singles - 1, doubles);
}

/* What stands at address `p`, a multiple of 8. */
static uint64_t word_of(CUdeviceptr p, unsigned salt) { return (p ^ ((uint64_t)salt << 40)) * 0x9e3779b97f4a7c15ull; }

/* Write [p, p + size) of a region, tier by tier; and compare it. */
static inline void write_bytes(CUdeviceptr p, size_t size, unsigned salt)
{
    uint64_t *sent = malloc(size);
    CHECK(sent);
    for (size_t i = 0; i < size / 8; i++)
        sent[i] = word_of(p + i * 8, salt);
    for (uint64_t at = 0, n; at < size; at += n) {
        enum spill_tier tier;
        n = spill_region_run(spill_region_find(p + at), p + at, size - at, &tier);
        CHECK(real.cuMemcpyHtoD_v2(p + at, (char *)sent + at, n) == CUDA_SUCCESS);
    }
    free(sent);
}

static inline void read_bytes(CUdeviceptr p, size_t size, unsigned salt)
{
    uint64_t *got = calloc(1, size);
    CHECK(got);
    for (uint64_t at = 0, n; at < size; at += n) {
        enum spill_tier tier;
        n = spill_region_run(spill_region_find(p + at), p + at, size - at, &tier);
        CHECK(real.cuMemcpyDtoH_v2((char *)got + at, p + at, n) == CUDA_SUCCESS);
    }
    for (size_t i = 0; i < size / 8; i++)
        if (got[i] != word_of(p + i * 8, salt)) {
            printf("offset %zu of 0x%llx holds %llx instead of %llx\n", i * 8, p, (unsigned long long)got[i],
                   (unsigned long long)word_of(p + i * 8, salt));
            CHECK(!"every byte is as it was written");
        }
    free(got);
}
