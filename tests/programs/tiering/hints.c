/* SPDX-License-Identifier: Apache-2.0 */
/* Hints to the tiering engine alone, on the simulated driver: where they place a region, who pays for it, what is never brought back;
 * then every driver call of a cold() and of an allocation that is kept in VRAM fails, one after another and in pairs. Built and run by
 * tests/integration/test_tiering_moves.py.
 *
 *   hints PROC_ROOT [pairs]     pairs: every pair of calls too
 * A card of 64 MiB, of which 8 are headroom; chunks of 8 MiB and 2 MiB. Prints one line per scenario, at last "ok". */
#include "harness.h"

static struct spill_settings settings;
static CUcontext ctx;
static size_t start;

static struct spill_region *region_of(CUdeviceptr p)
{
    struct spill_region *region = spill_region_find(p);
    CHECK(region != NULL);
    return region;
}

static CUresult try(enum spill_hint hint, size_t size, CUdeviceptr *p)
{
    enum spill_hint before = spill_hint_set(hint);
    CUresult r = spill_alloc(size, p);
    CHECK(spill_hint_set(before) == hint);
    return r;
}

static CUdeviceptr allocated(enum spill_hint hint, size_t size, unsigned salt)
{
    CUdeviceptr p;
    CHECK(try(hint, size, &p) == CUDA_SUCCESS);
    write_bytes(p, size, salt);
    return p;
}

static void freed(CUdeviceptr p) { CHECK(spill_free(p) == CUDA_SUCCESS); }

static void settle(void)
{
    settings.moves = true;
    for (int waits = 0; waits < 4; waits++)
        spill_settle();
    settings.moves = false;
}

static uint64_t cold_of(CUdeviceptr p)
{
    spill_lock();
    uint64_t bytes = spill_hint_cold(region_of(p));
    spill_unlock();
    return bytes;
}

static void wishes(void)
{
    snprintf(scenario, sizeof scenario, "a wish for RAM");
    CUdeviceptr p = allocated(SPILL_HINT_RAM, 20 * MIB, 1), q;
    CHECK(region_of(p)->ram_bytes == 20 * MIB && cold_of(p) == 20 * MIB && region_of(p)->chunk_count == 3 && free_vram() == start);
    settle();
    struct spill_order_result r = spill_order_promote(UINT64_MAX, 100);
    CHECK(r.moved == 0 && r.left == 0 && r.reason == SPILL_REASON_NOTHING && region_of(p)->ram_bytes == 20 * MIB);
    sums_agree(start, 0);
    /* Soft out-of-memory is for what would rather be in VRAM. */
    settings.soft_oom = true;
    q = allocated(SPILL_HINT_RAM, 6 * MIB, 2);
    settings.soft_oom = false;
    CHECK(region_of(q)->ram_bytes == 6 * MIB);
    read_bytes(p, 20 * MIB, 1), read_bytes(q, 6 * MIB, 2);
    freed(p), freed(q);
    /* Where the budget has none, it is placed as any other. */
    settings.spill = false;
    p = allocated(SPILL_HINT_RAM, 20 * MIB, 3);
    settings.spill = true;
    CHECK(region_of(p)->ram_bytes == 0 && cold_of(p) == 0);
    freed(p);
    check_empty(start);
    printf("a wish for RAM\n");
}

static void kept(void)
{
    snprintf(scenario, sizeof scenario, "kept in VRAM");
    CUdeviceptr other = allocated(SPILL_HINT_NONE, 30 * MIB, 4), p, q;
    settings.moves = false;
    CHECK(try(SPILL_HINT_VRAM, 40 * MIB, &p) == CUDA_ERROR_OUT_OF_MEMORY); /* nothing may be moved for it */
    settings.moves = true;
    p = allocated(SPILL_HINT_VRAM, 40 * MIB, 5); /* the headroom too is no reason to be in RAM */
    CHECK(region_of(p)->ram_bytes == 0 && region_of(other)->ram_bytes == 6 * MIB && spill_region_pinned(region_of(p)));
    CHECK(try(SPILL_HINT_VRAM, 30 * MIB, &q) == CUDA_ERROR_OUT_OF_MEMORY && region_of(p)->ram_bytes == 0);
    settings.moves = false;
    struct spill_order_result r = spill_order_demote(UINT64_MAX, 100);
    CHECK(r.left == 40 * MIB && r.reason == SPILL_REASON_PINNED && region_of(p)->ram_bytes == 0);
    CHECK(spill_hint_demote(p, 40 * MIB, 100) == 0); /* the first word counts */
    sums_agree(start, 0);
    read_bytes(p, 40 * MIB, 5), read_bytes(other, 30 * MIB, 4);
    freed(p), freed(other);
    check_empty(start);
    printf("kept in VRAM\n");
}

/* Somebody else takes the VRAM while the region is being built: there is no falling back on RAM. */
static void taken_meanwhile(void)
{
    snprintf(scenario, sizeof scenario, "kept, and the VRAM is taken meanwhile");
    CUdeviceptr p;
    calls = 0, fail_with = CUDA_ERROR_OUT_OF_MEMORY;
    CHECK(try(SPILL_HINT_VRAM, 24 * MIB, &p) == CUDA_SUCCESS);
    long made = door_calm();
    freed(p);
    unsigned refused = 0;
    for (long at = 1; at <= made; at++) {
        calls = 0, fail_at = at, fail_at_too = at + 1; /* the engine asks twice */
        CUresult r = try(SPILL_HINT_VRAM, 24 * MIB, &p);
        door_calm();
        refused += r != CUDA_SUCCESS;
        if (r == CUDA_SUCCESS) {
            CHECK(region_of(p)->ram_bytes == 0);
            freed(p);
        }
        check_empty(start);
    }
    fail_with = CUDA_ERROR_UNKNOWN;
    CHECK(refused >= 3); /* a chunk each */
    printf("taken meanwhile\n");
}

static void cold(void)
{
    snprintf(scenario, sizeof scenario, "cold");
    CUdeviceptr p = allocated(SPILL_HINT_NONE, 31 * MIB, 6), late;
    CHECK(spill_hint_in_ram(p, 31 * MIB) == 0 && region_of(p)->mapped == 32 * MIB);
    /* From the middle of the first chunk, of which two granules stay (the range begins inside the second), to the middle of the third. */
    CHECK(spill_hint_demote(p + 3 * MIB, 17 * MIB, 100) == 12 * MIB && cold_of(p) == 12 * MIB && free_vram() == start - 20 * MIB);
    CHECK(spill_hint_in_ram(p + 4 * MIB, 2 * MIB) == 2 * MIB && spill_hint_in_ram(p, 4 * MIB) == 0);
    CHECK(spill_hint_demote(p + 5 * MIB, MIB, 100) == MIB); /* it is there already */
    CHECK(spill_hint_demote(p + 17 * MIB, MIB, 100) == 0);  /* less than a chunk */
    /* To the end of the region: what is left of its last granule is nobody's. */
    CHECK(spill_hint_demote(p + 24 * MIB, UINT64_MAX, 100) == 7 * MIB && cold_of(p) == 20 * MIB);
    read_bytes(p, 31 * MIB, 6);
    sums_agree(start, 0);
    /* Others get what it gave up, and it gets nothing back: not by the pass, not by an order. */
    late = allocated(SPILL_HINT_NONE, 48 * MIB, 7);
    uint64_t spilled = region_of(late)->ram_bytes;
    CHECK(spilled == 4 * MIB);
    CHECK(spill_hint_demote(p, 31 * MIB, 100) == 31 * MIB && cold_of(p) == 32 * MIB);
    settle();
    CHECK(region_of(late)->ram_bytes == 0 && region_of(p)->ram_bytes == 32 * MIB);
    freed(late);
    struct spill_order_result r = spill_order_promote(UINT64_MAX, 100);
    CHECK(r.moved == 0 && r.left == 0 && region_of(p)->ram_bytes == 32 * MIB);
    read_bytes(p, 31 * MIB, 6);
    /* What went to RAM for other reasons is marked where it is. */
    late = allocated(SPILL_HINT_NONE, 16 * MIB, 8);
    r = spill_order_demote(UINT64_MAX, 100);
    CHECK(r.moved == 16 * MIB && cold_of(late) == 0 && spill_hint_demote(late, 16 * MIB, 100) == 16 * MIB && cold_of(late) == 16 * MIB);
    freed(late), freed(p);
    CHECK(spill_hint_demote(p, 31 * MIB, 100) == 0 && spill_hint_in_ram(p, 31 * MIB) == 0);
    check_empty(start);
    printf("cold\n");
}

static void refusals(void)
{
    snprintf(scenario, sizeof scenario, "nothing can be moved");
    CUdeviceptr p = allocated(SPILL_HINT_NONE, 24 * MIB, 9);
    spill_capture_begin(NULL, false);
    CHECK(spill_hint_demote(p, 24 * MIB, 5) == 0);
    spill_capture_end(NULL, false);
    settings.spill = false;
    CHECK(spill_hint_demote(p, 24 * MIB, 5) == 0);
    settings.spill = true;
    CHECK(cold_of(p) == 0);
    read_bytes(p, 24 * MIB, 9);
    freed(p);
    check_empty(start);
    printf("nothing can be moved\n");
}

/* On a driver that copies over one tier only, for a program whose copies are not cut. */
static void blind(void)
{
    snprintf(scenario, sizeof scenario, "one tier alone");
    settings.blind = true;
    CUdeviceptr p = allocated(SPILL_HINT_NONE, 40 * MIB, 10), q = allocated(SPILL_HINT_NONE, 26 * MIB, 11);
    CHECK(region_of(p)->ram_bytes == 0 && region_of(q)->ram_bytes == 26 * MIB);
    freed(q);
    /* Who can't spill keeps the headroom; the holdback is for who could. */
    q = allocated(SPILL_HINT_NONE, 18 * MIB, 11);
    CHECK(region_of(q)->ram_bytes == 18 * MIB);
    freed(q), freed(p);
    settings.insist_on_holdback = true, spill_device(0)->holdback = 32 * MIB;
    p = allocated(SPILL_HINT_NONE, 40 * MIB, 10);
    CHECK(region_of(p)->ram_bytes == 0);
    settings.insist_on_holdback = false, spill_device(0)->holdback = 0;
    /* The VRAM is gone when it comes to it: then RAM whole. */
    calls = 0, fail_with = CUDA_ERROR_OUT_OF_MEMORY;
    unsigned whole = 0;
    for (long at = 1; at <= 12; at++) {
        calls = 0, fail_at = at, fail_at_too = at + 1;
        CUresult r = try(SPILL_HINT_NONE, 16 * MIB, &q);
        door_calm();
        if (r != CUDA_SUCCESS)
            continue;
        CHECK(region_of(q)->ram_bytes == 0 || region_of(q)->ram_bytes == 16 * MIB);
        whole += region_of(q)->ram_bytes != 0;
        freed(q);
    }
    fail_with = CUDA_ERROR_UNKNOWN;
    CHECK(whole > 0);
    settings.blind = false;
    freed(p);
    check_empty(start);
    printf("one tier alone\n");
}

/* With call `first`, and call `second` after it, failing; true if so many were made. */
static bool faulty_cold(long first, long second)
{
    snprintf(scenario, sizeof scenario, "cold, calls %ld and %ld fail", first, second);
    CUdeviceptr p = allocated(SPILL_HINT_NONE, 12 * MIB, 12);
    calls = 0, fail_at = first, fail_at_too = second;
    uint64_t said = spill_hint_demote(p + 2 * MIB, 10 * MIB, 5);
    bool reached = calls >= (second ? second : first);
    door_calm();
    CHECK(said == region_of(p)->ram_bytes && cold_of(p) == said && !region_of(p)->poisoned);
    read_bytes(p, 12 * MIB, 12);
    freed(p);
    check_empty(start);
    return reached;
}

/* 40 of the card's 64 MiB belong to others. */
static bool faulty_kept(long first, long second)
{
    snprintf(scenario, sizeof scenario, "kept, calls %ld and %ld fail", first, second);
    CUdeviceptr other = allocated(SPILL_HINT_NONE, 16 * MIB, 13), p = 0;
    settings.moves = true;
    while (try(SPILL_HINT_VRAM, 12 * MIB, &p) != CUDA_SUCCESS) /* a GPU that seemed busy the last time is left alone for a while */
        ;
    freed(p);
    CHECK(spill_order_promote(UINT64_MAX, 100).moved > 0 && !region_of(other)->ram_bytes);
    calls = 0, fail_at = first, fail_at_too = second;
    CUresult r = try(SPILL_HINT_VRAM, 12 * MIB, &p);
    bool reached = calls >= (second ? second : first);
    door_calm();
    settings.moves = false;
    CHECK(!region_of(other)->poisoned);
    if (r == CUDA_SUCCESS) {
        CHECK(region_of(p)->ram_bytes == 0);
        freed(p);
    }
    read_bytes(other, 16 * MIB, 13);
    freed(other);
    check_empty(start);
    return reached;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return printf("usage: hints PROC_ROOT [pairs] (and a libcuda.so.1)\n"), 2;
    settings = harness_settings(argv[1]);
    write_meminfo(argv[1], 8 << 20);
    ctx = harness_start(&settings);
    spill_context_known(ctx);
    start = free_vram();
    spill_budget_ledger();
    wishes();
    kept();
    taken_meanwhile();
    cold();
    refusals();
    blind();
    calls_fail("cold", faulty_cold, argc > 2);
    CUdeviceptr others;
    CHECK(real.cuMemAlloc_v2(&others, 40 * MIB) == CUDA_SUCCESS);
    start = free_vram();
    calls_fail("kept", faulty_kept, argc > 2);
    printf("ok\n");
    return 0;
}
