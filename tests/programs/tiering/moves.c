/* SPDX-License-Identifier: Apache-2.0 */
/* Moves by the tiering engine alone, on the simulated driver: orders in both directions, re-cutting, refusals; then every driver call
 * of a move, and of a reclaim, fails, one after another and in pairs. Built and run by tests/integration/test_tiering_moves.py.
 *
 *   moves PROC_ROOT [pairs]     pairs: every pair of calls too
 * Prints one line per scenario; exit 0 only if no byte changed, nothing leaked, and a hole was never left where bytes can be read. */
#include "harness.h"

#define SIZE (24 * MIB)

static struct spill_settings settings;
static CUcontext ctx;
static size_t start;

static struct spill_region *region_of(CUdeviceptr p)
{
    struct spill_region *region = spill_region_find(p);
    CHECK(region != NULL);
    return region;
}

static CUdeviceptr allocated(size_t size, unsigned salt)
{
    CUdeviceptr p;
    CHECK(spill_alloc(size, &p) == CUDA_SUCCESS);
    write_bytes(p, size, salt);
    return p;
}

static void freed(CUdeviceptr p) { CHECK(spill_free(p) == CUDA_SUCCESS); }

static void check_sums(void) { sums_agree(start, 0); }

static void orders(void)
{
    snprintf(scenario, sizeof scenario, "orders");
    CUdeviceptr a = allocated(SIZE, 1), b = allocated(SIZE, 2), c = allocated(40 * MIB, 3); /* c is spilled in part: 64 MiB less headroom */
    CHECK(region_of(c)->ram_bytes > 0);
    uint64_t spilled = region_of(c)->ram_bytes;
    check_sums();

    struct spill_order_result r = spill_order_demote(UINT64_MAX, 100);
    CHECK(r.reason == SPILL_REASON_NONE && r.moved == 88 * MIB - spilled && r.left == 0);
    check_sums();
    CHECK(free_vram() == start);
    read_bytes(a, SIZE, 1), read_bytes(b, SIZE, 2), read_bytes(c, 40 * MIB, 3);
    r = spill_order_demote(UINT64_MAX, 100);
    CHECK(r.reason == SPILL_REASON_NOTHING && r.moved == 0);
    settings.moves = true;
    for (int waits = 0; waits < 4; waits++)
        spill_settle();
    settings.moves = false;
    CHECK(free_vram() == start); /* an order holds */

    write_bytes(a, SIZE, 4);
    r = spill_order_promote(16 * MIB, 100);
    CHECK(r.reason == SPILL_REASON_NONE && r.moved == 16 * MIB && r.left == 72 * MIB);
    check_sums();
    r = spill_order_promote(UINT64_MAX, 100);
    CHECK(r.reason == SPILL_REASON_VRAM && r.left > 0 && r.left == region_of(a)->ram_bytes + region_of(b)->ram_bytes + region_of(c)->ram_bytes);
    CHECK(free_vram() >= start / 8 && free_vram() < start / 8 + 8 * MIB); /* down to the headroom */
    check_sums();
    read_bytes(a, SIZE, 4), read_bytes(b, SIZE, 2), read_bytes(c, 40 * MIB, 3);

    spill_region_pin(region_of(a), "test");
    uint64_t of_a = region_of(a)->mapped - region_of(a)->ram_bytes;
    r = spill_order_demote(UINT64_MAX, 100);
    CHECK(r.reason == SPILL_REASON_PINNED && r.left == of_a && region_of(a)->mapped - region_of(a)->ram_bytes == of_a);
    check_sums();
    freed(a), freed(b), freed(c);
    check_empty(start);
    printf("orders\n");
}

/* One move at a time, of a span that a test names. */
static bool once(void *arg, struct spill_want *want)
{
    struct spill_want *left = arg;
    if (!left->region)
        return false;
    *want = *left;
    left->region = NULL;
    return true;
}

static enum spill_reason move(CUdeviceptr p, uint64_t offset, uint64_t bytes, enum spill_tier to, uint64_t stay, uint64_t piece)
{
    struct spill_want want = { region_of(p), offset, bytes, to, stay, piece };
    struct spill_series series = { .next = once, .arg = &want, .deadline_ns = spill_now_ns() + 50000000u };
    spill_lock();
    enum spill_reason why = spill_move_series(&series);
    spill_unlock();
    return why;
}

static void recutting(void)
{
    snprintf(scenario, sizeof scenario, "re-cutting");
    CUdeviceptr p = allocated(32 * MIB, 5);
    struct spill_region *region = region_of(p);
    CHECK(region->chunk_count == 4 && !region->ram_bytes);
    /* The second chunk keeps 4 of its 8 MiB. */
    CHECK(move(p, 8 * MIB, 8 * MIB, SPILL_RAM, 4 * MIB, 2 * MIB) == SPILL_REASON_NONE);
    CHECK(region->chunk_count == 6 && region->ram_bytes == 4 * MIB);
    CHECK(region->chunks[1].tier == SPILL_VRAM && region->chunks[1].length == 2 && region->chunks[2].tier == SPILL_RAM && region->chunks[2].length == 1);
    check_sums();
    read_bytes(p, 32 * MIB, 5);
    /* Two chunks of 2 MiB come back as one. */
    CHECK(move(p, 12 * MIB, 4 * MIB, SPILL_VRAM, 0, 8 * MIB) == SPILL_REASON_NONE);
    CHECK(region->chunk_count == 5 && region->chunks[2].length == 2 && !region->ram_bytes);
    check_sums();
    read_bytes(p, 32 * MIB, 5);
    freed(p);
    check_empty(start);
    printf("re-cutting\n");
}

static struct spill_region *pinned_meanwhile;

static void pin_now(void) { spill_region_pin(pinned_meanwhile, "test"); }

static void refusals(void)
{
    snprintf(scenario, sizeof scenario, "refusals");
    CUdeviceptr p = allocated(SIZE, 6);
    struct spill_move_stats before = *spill_move_stats();
    spill_capture_begin(NULL, false);
    struct spill_order_result r = spill_order_demote(UINT64_MAX, 5);
    spill_capture_end(NULL, false);
    CHECK(r.reason == SPILL_REASON_CAPTURE && r.left == SIZE && spill_move_stats()->refused_capture > before.refused_capture);
    fail_with = CUDA_ERROR_NOT_READY, calls = 0;
    spill_context_ends(ctx, true);
    r = spill_order_demote(UINT64_MAX, 5);
    spill_context_ends(ctx, false);
    CHECK(r.reason == SPILL_REASON_PINNED && r.left == SIZE);
    CHECK(spill_move_stats()->safepoints == before.safepoints);
    /* A hook that was inside the gate pins what has been prepared already. */
    after_create = pin_now;
    pinned_meanwhile = region_of(p);
    CHECK(move(p, 8 * MIB, 8 * MIB, SPILL_RAM, 0, 8 * MIB) == SPILL_REASON_PINNED);
    after_create = NULL;
    CHECK(!region_of(p)->ram_bytes);
    check_sums();
    read_bytes(p, SIZE, 6);
    freed(p);
    check_empty(start);
    printf("refusals\n");
}

/* What comes last and is small ends up in VRAM, and the largest region pays: at once, or when allocations have settled. */
static void late(bool at_once)
{
    snprintf(scenario, sizeof scenario, "late allocations, displaced at once: %d", at_once);
    CUdeviceptr weights = allocated(56 * MIB, 8), cache, work;
    CHECK(region_of(weights)->ram_bytes == 0);
    settings.moves = at_once;
    cache = allocated(16 * MIB, 9);
    CHECK(region_of(cache)->ram_bytes == (at_once ? 0 : 16 * MIB));
    work = allocated(6 * MIB, 10);
    check_sums();
    settings.moves = true;
    uint64_t before = spill_move_stats()->promoted_bytes;
    for (int waits = 0; waits < 3; waits++)
        spill_settle();
    CHECK(region_of(cache)->ram_bytes == 0 && region_of(work)->ram_bytes == 0);
    CHECK(region_of(weights)->ram_bytes == 22 * MIB);
    CHECK(free_vram() == start / 8); /* nothing more was taken than was needed */
    CHECK(at_once || spill_move_stats()->promoted_bytes >= before + 22 * MIB);
    /* Spread: of every two neighbouring chunks of 8 MiB at least one gave something. */
    uint64_t run = 0;
    for (uint32_t i = 0; i < region_of(weights)->chunk_count; i++) {
        const struct spill_chunk *c = &region_of(weights)->chunks[i];
        run = c->tier == SPILL_RAM ? 0 : run + spill_chunk_bytes(c);
        CHECK(run <= 16 * MIB);
    }
    check_sums();
    uint64_t safepoints = spill_move_stats()->safepoints;
    for (int waits = 0; waits < 5; waits++)
        spill_settle();
    CHECK(spill_move_stats()->safepoints == safepoints); /* once */
    read_bytes(weights, 56 * MIB, 8), read_bytes(cache, 16 * MIB, 9), read_bytes(work, 6 * MIB, 10);
    freed(cache);
    for (int waits = 0; waits < 3; waits++)
        spill_settle();
    CHECK(region_of(weights)->ram_bytes == 6 * MIB); /* what became free went to it */
    check_sums();
    read_bytes(weights, 56 * MIB, 8);
    freed(weights), freed(work);
    check_empty(start);
    printf("late allocations\n");
}

/* The driver lacks VRAM: regions give it some, of whatever size they are. */
static void reclaims(void)
{
    snprintf(scenario, sizeof scenario, "reclaim");
    CUdeviceptr big = allocated(40 * MIB, 11), small = allocated(16 * MIB, 12), rest;
    size_t left = free_vram();
    CHECK(left == start / 8 && real.cuMemAlloc_v2(&rest, left) == CUDA_SUCCESS && free_vram() == 0);
    settings.moves = false;
    CHECK(!spill_reclaim(0, 0) && free_vram() == 0);
    settings.moves = true;
    spill_capture_begin(NULL, false);
    CHECK(!spill_reclaim(0, 0) && free_vram() == 0);
    spill_capture_end(NULL, false);
    CHECK(spill_reclaim(0, 0) && free_vram() == start / 8); /* the headroom once more */
    CHECK(region_of(big)->ram_bytes == start / 8 && !region_of(small)->ram_bytes); /* the largest paid */
    CHECK(spill_reclaim(0, 20 * MIB) && free_vram() == start / 8 + 20 * MIB);
    CHECK(spill_reclaim(0, 28 * MIB) && free_vram() == start - left && !spill_reclaim(0, 0)); /* all, and then nothing */
    sums_agree(start, left);
    read_bytes(big, 40 * MIB, 11), read_bytes(small, 16 * MIB, 12);
    CHECK(real.cuMemFree_v2(rest) == CUDA_SUCCESS);
    freed(big), freed(small);
    check_empty(start);
    printf("reclaim\n");
}

/* A move with call `first`, and call `second` after it, failing; true if so many were made. */
static bool faulty(enum spill_tier to, uint64_t stay, long first, long second)
{
    CUdeviceptr p = allocated(SIZE, 7);
    snprintf(scenario, sizeof scenario, "move to %s, stay %llu, calls %ld and %ld fail", to == SPILL_RAM ? "RAM" : "VRAM",
             (unsigned long long)stay, first, second);
    if (to == SPILL_VRAM)
        CHECK(move(p, 8 * MIB, 16 * MIB, SPILL_RAM, 0, 2 * MIB) == SPILL_REASON_NONE);
    uint64_t ram = region_of(p)->ram_bytes, poisoned = spill_move_stats()->poisoned;
    calls = 0, fail_at = first, fail_at_too = second, fail_with = CUDA_ERROR_UNKNOWN;
    enum spill_reason why = move(p, 8 * MIB, 16 * MIB, to, stay, 4 * MIB);
    bool reached = calls >= (second ? second : first);
    fail_at = fail_at_too = 0;
    CHECK(!region_of(p)->poisoned && spill_move_stats()->poisoned == poisoned); /* two failures are put right */
    if (why != SPILL_REASON_NONE)
        CHECK(region_of(p)->ram_bytes == ram);
    read_bytes(p, SIZE, 7);
    freed(p);
    check_empty(start);
    return reached;
}

static bool faulty_to_ram(long first, long second) { return faulty(SPILL_RAM, 0, first, second); }
static bool faulty_to_ram_in_part(long first, long second) { return faulty(SPILL_RAM, 4 * MIB, first, second); }
static bool faulty_to_vram(long first, long second) { return faulty(SPILL_VRAM, 0, first, second); }

/* The same for a reclaim, which tells whether it gained anything. */
static bool faulty_reclaim(long first, long second)
{
    snprintf(scenario, sizeof scenario, "reclaim, calls %ld and %ld fail", first, second);
    CUdeviceptr p = allocated(16 * MIB, 13);
    size_t before = free_vram();
    uint64_t poisoned = spill_move_stats()->poisoned;
    calls = 0, fail_at = first, fail_at_too = second, fail_with = CUDA_ERROR_UNKNOWN;
    bool gained = spill_reclaim(0, 0), reached = calls >= (second ? second : first);
    fail_at = fail_at_too = 0;
    CHECK(spill_move_stats()->poisoned == poisoned && gained == (region_of(p)->ram_bytes > 0) && gained == (free_vram() > before));
    read_bytes(p, 16 * MIB, 13);
    freed(p);
    check_empty(start);
    return reached;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return printf("usage: moves PROC_ROOT [pairs] (and a libcuda.so.1)\n"), 2;
    settings = harness_settings(argv[1]);
    write_meminfo(argv[1], 8 << 20);
    ctx = harness_start(&settings);
    spill_context_known(ctx);
    start = free_vram();
    spill_budget_ledger();
    orders();
    recutting();
    refusals();
    late(true);
    late(false);
    reclaims();
    calls_fail("move to RAM", faulty_to_ram, argc > 2);
    calls_fail("move to RAM of a part", faulty_to_ram_in_part, argc > 2);
    calls_fail("move to VRAM", faulty_to_vram, argc > 2);
    calls_fail("reclaim", faulty_reclaim, argc > 2);
    printf("ok\n");
    return 0;
}
