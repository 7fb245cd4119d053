/* SPDX-License-Identifier: Apache-2.0 */
/* What a kernel that no companion holds does in SIMGPU_UNKNOWN_KERNEL=probe: it reads the memory that its parameters name,
 * so that launches of real programs meet unmapped and ungranted memory as they would on a GPU, and cost simulated time.
 * Called by launch.c.
 * Rules: every 8-byte word of the parameters is looked at, so pointers inside structs count; a mapping is read once however
 * many words name it. It only reads: writing back what was read would undo what another stream wrote meanwhile. Which pages
 * are read follows from SIMGPU_PROBE_SHARE alone, evenly spread, so every run reads the same.
 */
#include "launch.h"

#include "code.h"

#include <stdlib.h>
#include <string.h>

#define PAGE UINT64_C(4096)

CUresult sim_probe_find(const unsigned char *params, size_t bytes, struct sim_probes *out)
{
    size_t words = bytes / sizeof(uint64_t);
    if (words && !(out->ranges = malloc(words * sizeof *out->ranges)))
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    for (size_t i = 0; i < words; i++) {
        uint64_t word;
        memcpy(&word, params + i * sizeof word, sizeof word);
        const struct sim_map *m = sim_map_find(word);
        size_t k = 0;
        while (m && k < out->count && out->ranges[k].base != m->base)
            k++;
        if (m && k == out->count)
            out->ranges[out->count++] = (struct sim_range){m->base, m->size};
    }
    sim_give();
    return CUDA_SUCCESS;
}

/* Reads `share` per cent of a range's pages: page i is one of them when i * share passes a multiple of 100. The first always is. */
static void probe(const struct sim_range *r, uint64_t share)
{
    uint64_t pages = (r->size + PAGE - 1) / PAGE;
    for (uint64_t i = 0; i < pages; i++) {
        if (i && i * share / 100 == (i - 1) * share / 100)
            continue;
        const volatile char *p = (const volatile char *)(uintptr_t)(r->base + i * PAGE);
        uint64_t left = r->size - i * PAGE;
        sim_touch((const void *)p, left < PAGE ? left : PAGE);
        (void)*p;
    }
}

void sim_probe_run(const struct sim_probes *probes)
{
    for (size_t i = 0; i < probes->count; i++)
        probe(&probes->ranges[i], (uint64_t)sim_config()->probe_share);
}
