/* SPDX-License-Identifier: Apache-2.0 */
/* Where the bytes of a new region go, and how they are cut into chunks. Pure: called by engine.c, and by Python through
 * the cffi module (tests, lab).
 *
 * VRAM first, down to headroom; a region that exceeds half of VRAM and has to spill anyway leaves the holdback too. One that
 * fits is placed whole: nothing could bring its bytes back later, and without us the program would have had them all in
 * VRAM. What must go to RAM is spread evenly over the region in small chunks, so that a kernel that reads one tensor meets both tiers and can draw
 * on the device's memory and on the link at the same time. */
#include "spillshim_abi.h"

static uint64_t minimum(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t floor_to(uint64_t value, uint64_t unit) { return value / unit * unit; }

void spill_place(const struct spill_place_in *in, struct spill_place_out *out)
{
    uint64_t kept = in->headroom;
    bool fits = in->vram_free >= kept && in->size <= in->vram_free - kept;
    if (in->size > in->vram_total / 2 && (!fits || in->insist))
        kept += in->holdback;
    uint64_t room = in->vram_free > kept ? floor_to(in->vram_free - kept, in->granularity) : 0;
    out->vram = minimum(in->size, room);
    out->ram = in->size - out->vram;
    uint64_t large = floor_to(in->chunk, in->granularity), small = floor_to(in->spill_chunk, in->granularity);
    if (small < in->granularity)
        small = in->granularity;
    if (large < small)
        large = small;
    /* Alone in its region a tier needs no small chunks; else the lesser part is the one that must be spread. */
    out->vram_chunk = out->vram >= out->ram ? large : small;
    out->ram_chunk = out->ram > out->vram ? large : small;
}

static uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

/* The lesser part comes in `pieces` chunks; between the (k-1)th and the k-th lie the bytes of the greater part from
 * fraction k/(pieces+1) to (k+1)/(pieces+1). In granules, so that the products stay below 2^64. */
uint64_t spill_layout(const struct spill_place_in *in, const struct spill_place_out *out,
                      struct spill_layout_step *steps, uint64_t max)
{
    uint64_t unit = in->granularity, count = 0, offset = 0;
    int lesser = out->ram > out->vram ? 0 : 1;
    uint64_t less = (lesser ? out->ram : out->vram) / unit, more = (lesser ? out->vram : out->ram) / unit;
    uint64_t less_chunk = (lesser ? out->ram_chunk : out->vram_chunk) / unit;
    uint64_t more_chunk = (lesser ? out->vram_chunk : out->ram_chunk) / unit;
    uint64_t pieces = less ? divide_up(less, less_chunk) : 0;

    for (uint64_t k = 0; k <= pieces; k++) {
        uint64_t from = more / (pieces + 1) * k + more % (pieces + 1) * k / (pieces + 1);
        uint64_t to = more / (pieces + 1) * (k + 1) + more % (pieces + 1) * (k + 1) / (pieces + 1);
        for (uint64_t n; from < to; from += n) {
            n = minimum(more_chunk, to - from);
            if (count < max)
                steps[count] = (struct spill_layout_step){ offset * unit, n * unit, (uint32_t)!lesser, 0 };
            count++;
            offset += n;
        }
        if (k == pieces)
            break;
        uint64_t n = minimum(less_chunk, less - k * less_chunk);
        if (count < max)
            steps[count] = (struct spill_layout_step){ offset * unit, n * unit, (uint32_t)lesser, 0 };
        count++;
        offset += n;
    }
    return count;
}
