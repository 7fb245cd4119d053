/* SPDX-License-Identifier: Apache-2.0 */
/* What came late: for each of a program's first regions, how much VRAM the later and smaller ones, and what is not managed, took at most.
 * That is what should have been left free for them when it was placed. Called by engine.c and settle.c while something is remembered
 * (shim/remember.c writes it down, and knows it at the next start).
 *
 * Only smaller ones count, because the settle pass gives VRAM to the smallest first and has the largest pay: what is kept back so is what
 * that pass would have made free, so nothing is left to be moved. Only the start counts (START_WAITS): VRAM is not kept for hours for
 * what comes then.
 *
 * Rules: under the engine lock, but for spill_late_waited; counts of regions and waits decide, never times, so that two runs of one
 * program see the same. */
#include "tiering/moving.h"

/* Waits of the program for the GPU after a region was made that count as its start: a loader may wait for each of its tensors. */
enum { START_WAITS = 1 << 14, GRACE_WAITS = 16 };

static struct spill_late list[SPILL_LATE_MAX];
static uint32_t count;
static uint32_t regions[SPILL_MAX_DEVICES]; /* made so far, */
static uint64_t last_at[SPILL_MAX_DEVICES]; /* the last of them after so many waits */
static uint64_t ram_at_rest[SPILL_MAX_DEVICES];
static _Atomic uint64_t waits, hold_until;

static bool wanted(void) { return spill_settings()->recall != NULL; }

uint64_t spill_late_waits(void) { return atomic_load_explicit(&waits, memory_order_relaxed); }

/* There was `other` in no region, after `at` waits. */
static void note(struct spill_late *e, uint64_t other, uint64_t at)
{
    uint64_t need = e->smaller + (other > e->other ? other - e->other : 0);
    if (e->live && need > e->need && at >= e->since && at - e->since <= START_WAITS) {
        e->need = need;
        e->after = regions[e->device] - e->index - 1;
        e->waits = last_at[e->device] - e->since;
        e->rest = at - last_at[e->device];
    }
}

static void note_all(int device)
{
    uint64_t at, other = spill_other_peak(device, &at);
    for (uint32_t i = 0; i < count; i++)
        if (list[i].device == device)
            note(&list[i], other, at);
}

/* Whether what was kept for `e` has come: all but an eighth, because drivers and small allocations differ a little. */
static bool arrived(const struct spill_late *e)
{
    return !e->live || e->need >= e->kept - e->kept / 8;
}

/* Until how many waits more is known to come than `e` has seen. While regions lack, twice as many as last time; once they have come, what
 * lacks is in none, or has another size than last time. */
static uint64_t awaited_until(const struct spill_late *e)
{
    uint32_t come = regions[e->device] - e->index - 1;
    if (!e->kept || arrived(e) || come > e->was.after)
        return 0;
    return come < e->was.after ? e->since + 2 * e->was.waits + GRACE_WAITS : last_at[e->device] + 2 * e->was.rest + GRACE_WAITS;
}

static void hold(void)
{
    uint64_t until = 0;
    for (uint32_t i = 0; i < count; i++)
        until = awaited_until(&list[i]) > until ? awaited_until(&list[i]) : until;
    atomic_store_explicit(&hold_until, until, memory_order_relaxed);
}

/* Whether VRAM is rather `region`'s, whenever it comes. */
static bool goes_before(const struct spill_region *region, const struct spill_late *e)
{
    return region->device == e->device && (region->mapped < e->mapped || region->keep);
}

bool spill_late_recall(int device, size_t size, enum spill_hint hint, struct spill_recall *out)
{
    *out = (struct spill_recall){ .keep = 0 };
    return wanted() && hint == SPILL_HINT_NONE && count < SPILL_LATE_MAX &&
           spill_settings()->recall(spill_device(device)->limit, regions[device], size, out);
}

void spill_late_new(struct spill_region *region, const struct spill_recall *known)
{
    if (!wanted())
        return;
    region->late = true;
    note_all(region->device);
    uint64_t now, other = spill_other_peak(region->device, &now);
    uint32_t index = regions[region->device]++;
    last_at[region->device] = now;
    for (uint32_t i = 0; i < count; i++)
        if (list[i].live && goes_before(region, &list[i])) {
            list[i].smaller += region->mapped;
            note(&list[i], other, now);
        }
    if (count < SPILL_LATE_MAX)
        list[count++] = (struct spill_late){ .size = region->size, .mapped = region->mapped, .limit = spill_device(region->device)->limit,
                                             .id = region->buffer_id, .slot = region->index, .index = index, .device = region->device,
                                             .live = true, .stays = region->keep, .other = other, .since = now, .was = *known,
                                             .kept = known->trusted ? known->keep : 0 };
    hold();
}

void spill_late_gone(const struct spill_region *region)
{
    if (!wanted() || !region->late)
        return;
    note_all(region->device);
    for (uint32_t i = 0; i < count; i++) {
        struct spill_late *e = &list[i];
        if (e->id == region->buffer_id)
            e->live = false;
        else if (e->live && e->id < region->buffer_id && goes_before(region, e))
            e->smaller -= region->mapped;
    }
    hold();
}

bool spill_late_waited(void)
{
    if (!wanted())
        return true;
    uint64_t waited = atomic_fetch_add_explicit(&waits, 1, memory_order_relaxed) + 1;
    return waited > atomic_load_explicit(&hold_until, memory_order_relaxed);
}

/* What the program itself wants in RAM is not lacking in VRAM. */
static void take_off_cold(struct spill_region *region, void *unused)
{
    (void)unused;
    ram_at_rest[region->device] -= spill_hint_cold(region);
}

void spill_late_rest(void)
{
    if (!wanted())
        return;
    for (int i = 0; i < SPILL_MAX_DEVICES; i++)
        ram_at_rest[i] = regions[i] ? __atomic_load_n(&spill_device(i)->ram_used, __ATOMIC_RELAXED) : 0;
    spill_region_each(take_off_cold, NULL);
    for (uint32_t i = 0; i < count; i++) {
        struct spill_late *e = &list[i];
        const struct spill_region *region = spill_region_slot(e->slot);
        e->rested = e->live && region->live && region->buffer_id == e->id;
        e->ram = e->rested ? region->ram_bytes : 0;
    }
}

/* Who pays for what does not fit: the largest, until it is enough. Of regions of one size the last, for the others came while there was
 * room. */
static void choose_payers(int device)
{
    uint64_t left = ram_at_rest[device];
    while (left) {
        struct spill_late *largest = NULL;
        for (uint32_t i = 0; i < count; i++)
            if (list[i].device == device && list[i].rested && !list[i].stays && !list[i].payer &&
                (!largest || list[i].mapped >= largest->mapped))
                largest = &list[i];
        if (!largest)
            break;
        largest->payer = true;
        left -= largest->mapped < left ? largest->mapped : left;
    }
}

uint32_t spill_late_copy(struct spill_late *out)
{
    for (uint32_t i = 0; i < count; i++)
        list[i].payer = false;
    for (int device = 0; device < SPILL_MAX_DEVICES; device++) {
        if (!regions[device])
            continue;
        note_all(device);
        choose_payers(device);
    }
    for (uint32_t i = 0; i < count; i++)
        out[i] = list[i];
    return count;
}
