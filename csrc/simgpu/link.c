/* SPDX-License-Identifier: Apache-2.0 */
/* Who has the link between host and device, in simulated time. Called by sched.c (copies, when they are queued) and by
 * whatever uses the link while it runs (clock.c, copy.c, memset.c, misc.c).
 * The model has to give the same times whatever order workers really run in, so it may only look at what is known when work
 * is queued:
 * - One copy engine per direction, as CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT says. A copy whose start is known when it is
 *   queued (only copies, memsets and marks before it, or work that the host has waited for) gets its engine for a slot, in
 *   the order of queueing.
 * - All other users of the link go by the slots that were queued before them: a copy waits for free gaps, a kernel has half
 *   of the link while a slot lasts. Among each other they are not slowed, nor do they slow slots.
 * Rules: no lock of the driver is taken. Slots are kept as long as newer ones do not push them out.
 */
#include "doubt.h"
#include "state.h"

#include <stdlib.h>

#define SLOTS 4096u /* a power of two */

struct slot {
    uint64_t start, end, order; /* order: of queueing */
};
static struct engine {
    struct slot slots[SLOTS];
    uint64_t made; /* the newest is slots[(made - 1) % SLOTS] */
} *engines[SIM_MAX_DEVICES][2];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static bool shared(void)
{
    return !sim_doubt(SIM_DOUBT_LINK_SHARED);
}

uint64_t sim_link_reserve(int device, unsigned way, uint64_t order, uint64_t start, uint64_t ns)
{
    if (!shared() || !ns)
        return start + ns;
    pthread_mutex_lock(&mutex);
    bool ok = true;
    for (unsigned i = 0; i < 2; i++) {
        struct engine **e = &engines[device][i];
        if (!(way & 1u << i))
            continue;
        if (!*e && !(*e = calloc(1, sizeof **e)))
            ok = false; /* no memory: this copy is not seen by others */
        else if ((*e)->made && (*e)->slots[((*e)->made - 1) % SLOTS].end > start)
            start = (*e)->slots[((*e)->made - 1) % SLOTS].end;
    }
    for (unsigned i = 0; i < 2 && ok; i++)
        if (way & 1u << i) {
            struct engine *e = engines[device][i];
            e->slots[e->made++ % SLOTS] = (struct slot){start, start + ns, order};
        }
    pthread_mutex_unlock(&mutex);
    return start + ns;
}

/* [mutex] How long `ns` of work lasts on one engine from `start` on, `share` of 2 halves of it being left by slots. */
static uint64_t around(const struct engine *e, uint64_t order, uint64_t start, uint64_t ns, unsigned share)
{
    uint64_t now = start, first = e->made > SLOTS ? e->made - SLOTS : 0, last = e->made;
    while (first < last) { /* slots follow each other in time: the first that ends later than now */
        uint64_t middle = first + (last - first) / 2;
        if (e->slots[middle % SLOTS].end > now)
            last = middle;
        else
            first = middle + 1;
    }
    for (uint64_t i = first; i < e->made && ns; i++) {
        const struct slot *s = &e->slots[i % SLOTS];
        if (s->order >= order) /* queued later */
            continue;
        if (s->start > now) { /* the gap before it */
            uint64_t gap = s->start - now, used = gap < ns ? gap : ns;
            now += used;
            ns -= used;
            if (!ns)
                break;
        }
        uint64_t length = s->end - now, most = length * share / 2;
        if (most >= ns && share) {
            now += (ns * 2 + share - 1) / share;
            ns = 0;
        } else {
            now = s->end;
            ns -= most;
        }
    }
    return now + ns - start;
}

uint64_t sim_link_ns(int device, unsigned way, uint64_t order, uint64_t start, uint64_t ns, bool kernel)
{
    uint64_t longest = ns;
    if (!ns || !shared())
        return ns;
    pthread_mutex_lock(&mutex);
    for (unsigned i = 0; i < 2; i++)
        if (way & 1u << i && engines[device][i]) {
            uint64_t here = around(engines[device][i], order, start, ns, kernel ? 1 : 0);
            longest = here > longest ? here : longest;
        }
    pthread_mutex_unlock(&mutex);
    return longest;
}
