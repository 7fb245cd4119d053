/* SPDX-License-Identifier: Apache-2.0 */
/* What moves cost, by the simulated GPU's clock. Built and run by benchmarks/migration.py, with the engine but without its clock.c and
 * with spill_gate_open and spill_contexts_idle wrapped (ld's --wrap): a pause lasts from the proof of idleness to the gate's opening.
 * With HARNESS_GPU and clock.c, by the machine's clock on a real GPU: tests/gpu/moves.py.
 *
 *   migration PROC_ROOT raw MIB                    two plain copies: what the link carries
 *   migration PROC_ROOT bulk MIB                   a region goes to RAM by order, comes back, goes and comes again
 *   migration PROC_ROOT exchange MIB               one region goes, another one comes, in turns of one run
 *   migration PROC_ROOT steady COUNT SEED          single moves, sized for the link
 *   migration PROC_ROOT allocation MIB             alloc and free of a region, three times
 *
 * Prints one JSON object a line. Around each part it asks for the driver's version, so that a trace of the driver's calls can be
 * divided. Every byte that was written is compared at the end. */
#include "harness.h"

/* ---- the clock ---- */

static CUresult (*driver_version)(int *);

#ifdef HARNESS_GPU
static void clock_start(void)
{
    driver_version = (CUresult (*)(int *))lookup("cuDriverGetVersion", false);
}
#else
/* An event on an idle stream tells the calling thread's simulated time. */
static CUresult (*event_synchronize)(CUevent);
static CUresult (*event_elapsed)(float *, CUevent, CUevent);
static CUstream clock_stream;
static CUevent origin, mark;
static uint64_t passed_ns;

static void clock_start(void)
{
    event_synchronize = (CUresult (*)(CUevent))lookup("cuEventSynchronize", false);
    event_elapsed = (CUresult (*)(float *, CUevent, CUevent))lookup("cuEventElapsedTime", false);
    driver_version = (CUresult (*)(int *))lookup("cuDriverGetVersion", false);
    CHECK(real.cuStreamCreate(&clock_stream, CU_STREAM_NON_BLOCKING) == CUDA_SUCCESS);
    CHECK(real.cuEventCreate(&origin, CU_EVENT_DEFAULT) == CUDA_SUCCESS && real.cuEventCreate(&mark, CU_EVENT_DEFAULT) == CUDA_SUCCESS);
    CHECK(real.cuEventRecord(origin, clock_stream) == CUDA_SUCCESS);
}

uint64_t spill_now_ns(void)
{
    float ms = 0;
    CHECK(real.cuEventRecord(mark, clock_stream) == CUDA_SUCCESS && event_synchronize(mark) == CUDA_SUCCESS);
    CHECK(event_elapsed(&ms, origin, mark) == CUDA_SUCCESS);
    uint64_t now = passed_ns + (uint64_t)((double)ms * 1e6 + 0.5);
    if (ms > 100) { /* a float tells long times in coarse steps */
        CUevent was = origin;
        passed_ns = now;
        origin = mark;
        mark = was;
    }
    return now;
}
#endif

/* ---- pauses ---- */

static uint64_t idle_at, pauses[20000];
static size_t pause_count;
bool __real_spill_contexts_idle(uint64_t deadline_ns);
void __real_spill_gate_open(void);
bool __wrap_spill_contexts_idle(uint64_t deadline_ns);
void __wrap_spill_gate_open(void);

bool __wrap_spill_contexts_idle(uint64_t deadline_ns)
{
    bool idle = __real_spill_contexts_idle(deadline_ns);
    idle_at = idle ? spill_now_ns() : 0;
    return idle;
}

void __wrap_spill_gate_open(void)
{
    if (idle_at && pause_count < sizeof pauses / sizeof *pauses)
        pauses[pause_count++] = spill_now_ns() - idle_at;
    idle_at = 0;
    __real_spill_gate_open();
}

/* ---- parts ---- */

static uint64_t part_began;

static void part_begins(void)
{
    int version;
    pause_count = 0;
    part_began = spill_now_ns();
    driver_version(&version);
}

static void part_ends(const char *what, uint64_t bytes)
{
    int version;
    driver_version(&version);
    uint64_t ns = spill_now_ns() - part_began;
    printf("{\"part\": \"%s\", \"bytes\": %llu, \"ns\": %llu, \"pauses_ns\": [", what, (unsigned long long)bytes, (unsigned long long)ns);
    for (size_t i = 0; i < pause_count; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)pauses[i]);
    printf("]}\n");
}

static struct spill_region *region_of(CUdeviceptr p)
{
    struct spill_region *region = spill_region_find(p);
    CHECK(region != NULL);
    return region;
}

static CUdeviceptr allocated(size_t size)
{
    CUdeviceptr p;
    CHECK(spill_alloc(size, &p) == CUDA_SUCCESS);
    return p;
}

/* Some bytes of every granule. */
static void write_samples(CUdeviceptr p, size_t size)
{
    for (size_t at = 0; at < size; at += SPILL_GRANULE)
        write_bytes(p + at, 4096, 1);
}

static void check_samples(CUdeviceptr p, size_t size)
{
    for (size_t at = 0; at < size; at += SPILL_GRANULE)
        read_bytes(p + at, 4096, 1);
}

static void raw(size_t size)
{
    void *host;
    CUdeviceptr device;
    CHECK(real.cuMemHostAlloc(&host, size, 0) == CUDA_SUCCESS && real.cuMemAlloc_v2(&device, size) == CUDA_SUCCESS);
    CHECK(real.cuMemcpyHtoD_v2(device, host, size) == CUDA_SUCCESS); /* once for nothing: a link may sleep */
    part_begins();
    CHECK(real.cuMemcpyHtoD_v2(device, host, size) == CUDA_SUCCESS);
    part_ends("raw in", size);
    part_begins();
    CHECK(real.cuMemcpyDtoH_v2(host, device, size) == CUDA_SUCCESS);
    part_ends("raw out", size);
}

static void bulk(size_t size)
{
    CUdeviceptr p = allocated(size);
    write_samples(p, size);
    for (int round = 0; round < 2; round++) {
        part_begins();
        struct spill_order_result r = spill_order_demote(UINT64_MAX, 100);
        part_ends(round ? "demote, again" : "demote", r.moved);
        CHECK(r.moved == size && region_of(p)->ram_bytes == size);
        part_begins();
        r = spill_order_promote(UINT64_MAX, 100);
        part_ends(round ? "promote, again" : "promote", r.moved);
        CHECK(r.moved == size && !region_of(p)->ram_bytes);
    }
    check_samples(p, size);
    CHECK(spill_free(p) == CUDA_SUCCESS);
}

/* Moves of two regions in turns: `home` comes, `away` goes, a run each. */
struct exchange {
    struct spill_region *away, *home;
    uint64_t offset;
    bool comes; /* next, by turns */
};

static bool exchange_next(void *arg, struct spill_want *want)
{
    struct exchange *e = arg;
    const uint64_t run = e->away->mapped < 1024 * MIB ? e->away->mapped : 1024 * MIB;
    if (e->offset == e->away->mapped)
        return false;
    *want = (struct spill_want){ .region = e->comes ? e->home : e->away, .offset = e->offset, .bytes = run,
                                 .to = e->comes ? SPILL_VRAM : SPILL_RAM, .piece = 32 * MIB };
    e->offset += e->comes ? 0 : run;
    e->comes = !e->comes;
    return true;
}

static void exchange(size_t size)
{
    CUdeviceptr p[2] = { allocated(size), allocated(size) };
    write_samples(p[0], size), write_samples(p[1], size);
    spill_order_demote(size, 100);
    CHECK(!region_of(p[1])->ram_bytes);
    /* The first time fills the pool. */
    for (int round = 0; round < 2; round++) {
        struct exchange e = { region_of(p[!round]), region_of(p[round]), 0, true };
        struct spill_series series = { .next = exchange_next, .arg = &e, .pause_ns = UINT64_MAX / 2, .bulk = true };
        uint64_t moved = 0;
        part_begins();
        spill_lock();
        series.deadline_ns = spill_now_ns() + 1000000000u;
        enum spill_reason why;
        while ((why = spill_move_series(&series)) == SPILL_REASON_NONE)
            moved += series.moved;
        CHECK(why == SPILL_REASON_NOTHING && moved == 2 * size);
        spill_unlock();
        part_ends(round ? "exchange, again" : "exchange", moved);
        CHECK(!region_of(p[round])->ram_bytes && region_of(p[!round])->ram_bytes == size);
    }
    check_samples(p[0], size), check_samples(p[1], size);
    CHECK(spill_free(p[0]) == CUDA_SUCCESS && spill_free(p[1]) == CUDA_SUCCESS);
}

static void steady(size_t count, unsigned seed)
{
    const size_t size = 256 * MIB;
    CUdeviceptr p = allocated(size);
    write_samples(p, size);
    /* The first moves tell how fast the link is. */
    for (size_t i = 0; i < 16 + count; i++) {
        uint64_t moved, offset;
        struct spill_region *region = region_of(p);
        enum spill_tier to = rand_r(&seed) % 2 ? SPILL_RAM : SPILL_VRAM;
        if (region->ram_bytes == (to == SPILL_RAM ? size : 0))
            to = to == SPILL_RAM ? SPILL_VRAM : SPILL_RAM;
        do
            offset = (uint64_t)(rand_r(&seed) % (size >> SPILL_GRANULE_SHIFT)) << SPILL_GRANULE_SHIFT;
        while (region->chunks[spill_chunk_at(region, offset)].tier == to);
        if (i == 16)
            part_begins();
        uint64_t now = spill_now_ns();
        spill_lock();
        CHECK(spill_steady_move(region, offset, to, now + 1000000u, &moved) == SPILL_REASON_NONE && moved);
        spill_unlock();
    }
    part_ends("steady", spill_steady_bytes(0));
    check_samples(p, size);
    CHECK(spill_free(p) == CUDA_SUCCESS);
}

static void allocation(size_t size)
{
    for (int round = 0; round < 3; round++) {
        part_begins();
        CUdeviceptr p = allocated(size);
        part_ends(round ? "alloc, again" : "alloc", size);
        write_samples(p, size);
        part_begins();
        CHECK(spill_free(p) == CUDA_SUCCESS);
        part_ends("free", size);
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return printf("usage: migration PROC_ROOT raw|bulk|exchange|steady|allocation NUMBER [SEED] (and a libcuda.so.1)\n"), 2;
    struct spill_settings settings = harness_settings(argv[1]);
    settings.keep = true;
    settings.chunk = 32 * MIB;
    settings.spill_chunk = 4 * MIB;
    CUcontext ctx = harness_start(&settings);
    spill_context_known(ctx);
    clock_start();
    size_t number = strtoul(argv[3], NULL, 10);
    CHECK(number > 0);
    if (!strcmp(argv[2], "raw"))
        raw(number * MIB);
    else if (!strcmp(argv[2], "bulk"))
        bulk(number * MIB);
    else if (!strcmp(argv[2], "exchange"))
        exchange(number * MIB);
    else if (!strcmp(argv[2], "steady"))
        steady(number, (unsigned)(argc > 4 ? strtoul(argv[4], NULL, 10) : 1));
    else if (!strcmp(argv[2], "allocation"))
        allocation(number * MIB);
    else
        CHECK(!"one of the parts");
    return 0;
}
