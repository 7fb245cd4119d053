/* SPDX-License-Identifier: Apache-2.0 */
/* What a program needs that runs behind the shim, hooks and all, and yet orders moves and looks at chunks itself: a shim whose
 * functions are visible (tests/engine.py), the door of door.h between it and the driver, kernels, a source of random numbers.
 * Included once, by each such program of this folder. OPEN_KERNELS: path of soak_kernels.ptx. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>

#include "door.h"
#include "shim/resolve.h"
#include "sums.h"

/* driver.h wants cuda.h without its renaming of current entries; programs are compiled with it. */
#define cuMemAlloc cuMemAlloc_v2
#define cuMemFree cuMemFree_v2
#define cuMemGetAddressRange cuMemGetAddressRange_v2
#define cuMemcpyHtoD cuMemcpyHtoD_v2
#define cuMemcpyDtoH cuMemcpyDtoH_v2
#define cuMemcpyDtoD cuMemcpyDtoD_v2
#define cuMemcpyHtoDAsync cuMemcpyHtoDAsync_v2
#define cuMemcpyDtoHAsync cuMemcpyDtoHAsync_v2
#define cuMemcpyDtoDAsync cuMemcpyDtoDAsync_v2
#define cuMemcpy2DAsync cuMemcpy2DAsync_v2
#define cuMemcpy2DUnaligned cuMemcpy2DUnaligned_v2
#define cuMemsetD8 cuMemsetD8_v2
#define cuMemsetD16 cuMemsetD16_v2
#define cuMemsetD32 cuMemsetD32_v2
#define cuMemsetD2D8 cuMemsetD2D8_v2
#define cuStreamBeginCapture cuStreamBeginCapture_v2
#define cuStreamDestroy cuStreamDestroy_v2
#define cuEventDestroy cuEventDestroy_v2
#define cuCtxCreate cuCtxCreate_v4
#define cuCtxDestroy cuCtxDestroy_v2
#define cuCtxPopCurrent cuCtxPopCurrent_v2
#define cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2

static inline void open_fail(const char *what, int line, CUresult r)
{
    const char *name = "?";
    cuGetErrorName(r, &name);
    printf("line %d: %s: %s (%s)\n", line, what, name, scenario);
    fflush(stdout);
    _exit(1);
}
#define MUST(call)                               \
    do {                                         \
        CUresult must_ = (call);                 \
        if (must_ != CUDA_SUCCESS)               \
            open_fail(#call, __LINE__, must_);   \
    } while (0)

/* The kernels, in the current context. */
static CUmodule open_module(void)
{
    static char text[1 << 16];
    CUmodule module;
    FILE *f = fopen(OPEN_KERNELS, "r");
    CHECK(f && fread(text, 1, sizeof text - 1, f) > 0 && feof(f));
    fclose(f);
    MUST(cuModuleLoadData(&module, text));
    return module;
}

static void *open_lookup(const char *symbol, bool nvml)
{
    void *own = nvml ? NULL : door_counted(symbol);
    return own ? own : spill_real_symbol(nvml ? SPILL_LIB_NVML : SPILL_LIB_CUDA, symbol);
}

/* Put the door between the shim and the driver; before other threads use either. */
static void open_door(void)
{
    real = *spill_driver();
    spill_driver_fill(open_lookup);
}

static unsigned draw(uint64_t *state, unsigned below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((*state >> 33) % below);
}

static uint64_t seed_of(uint64_t seed, unsigned part)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15ull + part + 1;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    return z ^ (z >> 31);
}

/* One move, of a span that a test names. */
static bool open_once(void *arg, struct spill_want *want)
{
    struct spill_want *left = arg;
    if (!left->region)
        return false;
    *want = *left;
    left->region = NULL;
    return true;
}

/* Move a row of chunks of any region to the other tier, cut anew: some of it stays, pieces are smaller or larger. True if it was done.
 * Takes the engine lock. */
static bool open_recut(uint64_t *state, uint64_t deadline_ns)
{
    bool done = false;
    unsigned slots = 0;
    spill_lock();
    while (spill_region_slot(slots))
        slots++;
    struct spill_region *region = slots ? spill_region_slot(draw(state, slots)) : NULL;
    if (region && spill_movable(region)) {
        uint32_t first = draw(state, region->chunk_count), last = first, most = 1 + draw(state, 4);
        uint64_t bytes = 0;
        for (; last < region->chunk_count && last - first < most && region->chunks[last].tier == region->chunks[first].tier; last++)
            bytes += spill_chunk_bytes(&region->chunks[last]);
        uint32_t before = region->chunk_count, granules = (uint32_t)(bytes >> SPILL_GRANULE_SHIFT);
        bool split = granules > last - first;
        struct spill_want want = { .region = region, .offset = (uint64_t)region->chunks[first].start << SPILL_GRANULE_SHIFT,
                                   .bytes = bytes, .to = region->chunks[first].tier == SPILL_RAM ? SPILL_VRAM : SPILL_RAM,
                                   .stay = split ? draw(state, granules) * SPILL_GRANULE : 0, .piece = split ? SPILL_GRANULE : bytes };
        struct spill_series series = { .next = open_once, .arg = &want, .deadline_ns = spill_now_ns() + deadline_ns };
        if (granules > 1)
            done = spill_move_series(&series) == SPILL_REASON_NONE && region->chunk_count != before;
    }
    spill_unlock();
    return done;
}
