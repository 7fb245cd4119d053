/* SPDX-License-Identifier: Apache-2.0 */
/* Programs of random allocations, each run twice by the tiering engine alone, on the simulated driver: the second time with what the first
 * one needed. Built and run by tests/integration/test_tiering_remembered.py.
 *
 *   remembered PROC_ROOT FIRST_SEED PROGRAMS
 * Exit 0 only if each second run that frees nothing on its way moved nothing, and both ended with VRAM in the hands of the smallest; and
 * if every byte stayed as it was. Prints what was moved in all the first time, and the second. */
#include <sys/wait.h>

#include "harness.h"

enum { MOST = 10, QUIET = 64, CHUNK = 8 << 20 };

struct step {
    uint64_t size;  /* bytes; a whole number of granules */
    unsigned waits; /* of the program for the GPU after it */
    bool freed;     /* before the next one */
};

struct known {
    uint32_t index;
    uint64_t size;
    struct spill_recall recall;
};

struct outcome {
    uint64_t moved;
    uint32_t count;
    struct known known[SPILL_LATE_MAX];
};

static struct step program[MOST];
static unsigned steps;
static bool frees; /* something is freed on the way */
static struct outcome before; /* of the first run */

static uint64_t state;

static unsigned any(unsigned below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(state >> 33) % below;
}

static void invent(unsigned seed)
{
    state = seed;
    any(1);
    frees = any(3) == 0;
    steps = 2 + any(MOST - 1);
    for (unsigned i = 0; i < steps; i++) {
        uint64_t size = any(4) ? 1 + any(8) : 12 + any(16);
        program[i] = (struct step){ 2 * MIB * size, any(3) ? 0 : any(12), frees && i && any(3) == 0 };
    }
}

static bool recall(uint64_t limit, uint32_t index, uint64_t size, struct spill_recall *out)
{
    for (uint32_t i = 0; i < before.count; i++)
        if (before.known[i].index == index && before.known[i].size == size) {
            CHECK(limit == 64 * MIB);
            *out = before.known[i].recall;
            return true;
        }
    return false;
}

/* Nobody has bytes in RAM beside a larger one in VRAM, and no VRAM is free while anybody has; but for less than a chunk, because the
 * settle pass brings in whole ones. */
static void check_placement(const CUdeviceptr *held, size_t start)
{
    uint64_t in_ram = 0;
    for (unsigned i = 0; i < steps; i++)
        for (unsigned j = 0; held[i] && j < steps; j++) {
            if (!held[j])
                continue;
            const struct spill_region *small = spill_region_find(held[i]), *large = spill_region_find(held[j]);
            CHECK(small->mapped >= large->mapped || !small->ram_bytes || large->mapped - large->ram_bytes < CHUNK);
            in_ram |= small->ram_bytes;
        }
    CHECK(!in_ram || free_vram() < start / 8 + CHUNK);
}

static void run(const char *root, bool second, struct outcome *out)
{
    static struct spill_settings settings;
    static struct spill_late late[SPILL_LATE_MAX];
    CUdeviceptr held[MOST] = { 0 };
    settings = harness_settings(root);
    settings.moves = true;
    settings.managed_min = 2 * MIB;
    settings.recall = recall;
    harness_start(&settings);
    size_t start = free_vram();
    for (unsigned i = 0; i < steps; i++) {
        CHECK(spill_alloc(program[i].size, &held[i]) == CUDA_SUCCESS);
        write_bytes(held[i], program[i].size, i);
        for (unsigned w = 0; w < program[i].waits; w++)
            spill_settle();
        if (program[i].freed) {
            read_bytes(held[i], program[i].size, i);
            CHECK(spill_free(held[i]) == CUDA_SUCCESS);
            held[i] = 0;
        }
    }
    for (unsigned w = 0; w < QUIET; w++)
        spill_settle();
    spill_lock();
    uint32_t count = spill_late_copy(late);
    spill_unlock();
    for (uint32_t i = 0; i < count; i++)
        if (late[i].payer)
            out->known[out->count++] = (struct known){ late[i].index, late[i].size, 
                                                       { late[i].need, late[i].after, late[i].waits, late[i].rest, true } };
    out->moved = spill_move_stats()->promoted_bytes + spill_move_stats()->demoted_bytes;
    CHECK(!second || frees || !out->moved);
    check_placement(held, start);
    for (unsigned i = 0; i < steps; i++)
        if (held[i]) {
            read_bytes(held[i], program[i].size, i);
            CHECK(spill_free(held[i]) == CUDA_SUCCESS);
        }
    check_empty(start);
}

/* In a process of its own, as the engine has one life in each. */
static struct outcome apart(const char *root, bool second)
{
    struct outcome out = { 0 };
    int ends[2], status;
    CHECK(pipe(ends) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        run(root, second, &out);
        _exit(write(ends[1], &out, sizeof out) == sizeof out ? 0 : 2);
    }
    close(ends[1]);
    CHECK(child > 0 && read(ends[0], &out, sizeof out) == sizeof out);
    close(ends[0]);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return out;
}

int main(int argc, char **argv)
{
    uint64_t cold = 0, warm = 0;
    CHECK(argc == 4);
    write_meminfo(argv[1], 8 << 20);
    for (unsigned seed = (unsigned)atoi(argv[2]), last = seed + (unsigned)atoi(argv[3]); seed < last; seed++) {
        invent(seed);
        before.count = 0;
        snprintf(scenario, sizeof scenario, "seed %u, first run", seed);
        struct outcome first = apart(argv[1], false);
        before = first;
        snprintf(scenario, sizeof scenario, "seed %u, second run", seed);
        cold += first.moved;
        warm += apart(argv[1], true).moved;
    }
    printf("moved: %llu bytes the first time, %llu the second\nok\n", (unsigned long long)cold, (unsigned long long)warm);
    return 0;
}
