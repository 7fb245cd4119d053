/* SPDX-License-Identifier: Apache-2.0 */
/* What a launch costs in simulated time: the bytes that its kernel touches, counted per tier. Called by launch.c around each
 * kernel, and by accounting companions (simk_account.h) at each access.
 * Rules: every access pays, as if no cache existed; VRAM and RAM are drawn on at the same time, unless SIMGPU_OVERLAP=no
 * says one after the other; managed memory that lies on the host comes over the link once; copies that hold the link slow a
 * kernel down (link.c); nothing else takes time. Counts depend on the kernel alone, so a figure is repeatable.
 */
#include "code.h"

#include <string.h>

static _Thread_local struct sim_account *counting; /* of the launch that this thread runs */

/* [locked] Pages are as open as anyone's grant made them; is this device kept out all the same? */
static bool closed(const struct sim_map *m, CUcontext c)
{
    if (m->kind == SIM_MAP_VMM)
        return !(m->devices >> c->device & 1);
    if (m->kind == SIM_MAP_IPC)
        return m->ctx != c && m->device != c->device;
    if (m->kind == SIM_MAP_POOLED)
        return m->device != c->device && !(m->pool && sim_pool_open_to(m->pool, c->device));
    return m->kind == SIM_MAP_DEVICE && m->device != c->device && !sim_peer_enabled(c, m->ctx);
}

/* The map of the driver that holds the address, or the gap between two. */
static struct sim_place find(const struct sim_account *a, uint64_t p)
{
    struct sim_place found = {0, UINT64_MAX, SIM_NOWHERE};
    bool denied = false;
    sim_take();
    size_t i = sim_map_from(p);
    struct sim_map *m = sim_map_at(i), *before = i ? sim_map_at(i - 1) : NULL;
    if (m && p >= m->base) {
        denied = closed(m, a->context);
        if (m->away == 1)
            m->away = a->id;
        found = (struct sim_place){m->base, m->base + m->size, m->in_ram || m->away == a->id ? SIM_IN_RAM : SIM_IN_VRAM};
    } else {
        found.base = before ? before->base + before->size : 0;
        found.end = m ? m->base : UINT64_MAX;
    }
    sim_give();
    if (denied)
        sim_fault();
    return found;
}

void sim_touch(const void *address, size_t bytes)
{
    uint64_t p = (uint64_t)(uintptr_t)address;
    struct sim_account *a = counting;
    if (!a)
        return;
    struct sim_place *at = &a->places[(p >> 21) % SIM_PLACES];
    if (__builtin_expect(p < at->base || p >= at->end, 0))
        *at = find(a, p);
    a->bytes[at->tier] += bytes;
}

CUcontext sim_running_context(void)
{
    return counting ? counting->context : NULL;
}

void sim_account_begin(struct sim_account *a, CUcontext context)
{
    memset(a, 0, sizeof *a);
    a->context = context;
    a->id = sim_unique() + 1; /* 0 and 1 mean something else in sim_map.away */
    counting = a;
}

void sim_account_end(struct sim_account *a)
{
    counting = NULL;
    if (!a->bytes[SIM_IN_VRAM] && !a->bytes[SIM_IN_RAM])
        return;
    uint64_t vram = sim_cost_ns(false, a->bytes[SIM_IN_VRAM]);
    uint64_t ram = sim_link_time(sim_cost_ns(true, a->bytes[SIM_IN_RAM]), SIM_WAY_IN, true); /* what it writes counts as read */
    sim_charge_ns(sim_config()->overlap == SIM_OVERLAP_NO ? vram + ram : vram > ram ? vram : ram);
}
