/* SPDX-License-Identifier: Apache-2.0 */
/* Cutting ranges where they cross from one tier into the other: a driver may refuse one copy over VRAM and RAM. Called by
 * the copy and memset hooks. Rules: no driver call; no lock, unless fixed regions or spilled handles of the application's own
 * exist; a range that touches no region costs a few comparisons. */
#include "shim/hook.h"

bool spill_copies_pass(void)
{
    return !spill_started() || spill_dead();
}

uint64_t spill_run(CUdeviceptr p, uint64_t limit)
{
    enum spill_tier tier;
    const struct spill_region *region = spill_region_find(p);
    if (spill_mixed_copy())
        return limit;
    if (!region)
        return spill_handle_run(p, limit);
    return region->ram_bytes && !region->fixed ? spill_region_run(region, p, limit, &tier) : limit;
}

CUresult spill_range_error(CUdeviceptr p, uint64_t bytes)
{
    const struct spill_region *region = spill_region_find(p);
    if (!region) /* an arena address that was freed: some drivers would find that out only when the copy runs */
        return !bytes || !spill_arena_contains(p) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (region->poisoned)
        return spill_poisoned();
    bool inside = p - region->base <= region->size && bytes <= region->size - (p - region->base);
    return inside ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

bool spill_synchronous(CUdeviceptr a, CUdeviceptr b)
{
    if (spill_copies_pass())
        return false;
    const struct spill_region *region = spill_region_find(a), *other = spill_region_find(b);
    return (region && region->sync_memops) || (other && other->sync_memops);
}

static void cut(struct spill_split *s)
{
    s->bytes = spill_run(s->a + s->at, s->left);
    if (s->b)
        s->bytes = spill_run(s->b + s->at, s->bytes);
}

struct spill_split spill_split_start(CUdeviceptr a, CUdeviceptr b, uint64_t bytes)
{
    struct spill_split s = { .a = a, .b = b, .bytes = bytes, .left = bytes };
    if (spill_copies_pass())
        return s;
    s.error = spill_ranges_error(a, bytes, b, bytes);
    if (s.error == CUDA_SUCCESS)
        cut(&s);
    s.sync = spill_synchronous(a, b);
    return s;
}

bool spill_split_next(struct spill_split *s)
{
    s->at += s->bytes;
    s->left -= s->bytes;
    if (!s->left)
        return false;
    cut(s);
    return true;
}

CUresult spill_sync_memops(bool per_thread)
{
    return spill_driver()->cuStreamSynchronize(per_thread ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY);
}
