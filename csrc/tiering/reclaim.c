/* SPDX-License-Identifier: Apache-2.0 */
/* Reclaim: the driver found no memory for something of its own (code, a graph, local memory, a small allocation); some VRAM is made
 * free, so that its call can be made once more. Called after the failed call, by shim/hook_reclaim.c; the first step by engine.c too.
 *
 * In this order: what was freed already and waits in limbo, what we keep for reuse, what the driver's stream-ordered pool keeps, then
 * displacement, from regions of any size: a region pays with speed, the program without this call with its life.
 *
 * Rules: outside the gate, without any lock; nothing during a capture; the engine lock is held for one attempt at a time, the gate
 * closed only as long as that attempt drains; a GPU that stays busy costs one program's patience once, later calls ask it briefly. */
#include "tiering/moving.h"

#include <time.h>

#include "shim/log.h"

/* Milliseconds: the first attempt to reach a safepoint, the last (each waits twice as long as the one before), and the pause. In all
 * a quarter of a second: without the memory most programs end here. */
enum { DRAIN_MS = 2, LONGEST_DRAIN_MS = 128, PAUSE_MS = 100 };

/* How much an unnamed need is answered with at most, and at least where no headroom is kept. */
#define MOST ((uint64_t)1 << 30)
#define LEAST ((uint64_t)64 << 20)

/* Under the engine lock: the GPU was still busy when the last patience ended. */
static bool busy;

void spill_driver_pool_trim(int device)
{
    CUmemoryPool pool;
    const struct spill_driver *d = spill_driver();
    if (d->cuDeviceGetMemPool && d->cuMemPoolTrimTo && d->cuDeviceGetMemPool(&pool, device) == CUDA_SUCCESS)
        d->cuMemPoolTrimTo(pool, 0);
}

/* The driver does not say how much it lacks. The headroom is what was to be kept free for it, so it gets as much as that once more,
 * and a need that is larger still gets it again at the program's next attempt. So small calls come here rarely, too. */
static uint64_t amount(const struct spill_device *d, uint64_t bytes)
{
    uint64_t share = d->limit / 8 < LEAST ? d->limit / 8 : LEAST, spare = d->headroom > share ? d->headroom : share;
    spare = spare < MOST ? spare : MOST;
    return bytes > spare ? bytes : spare;
}

/* VRAM that has become usable since `before`, which is brought up to date; 0 where the driver doesn't say. */
static uint64_t gained_since(int device, uint64_t *before)
{
    uint64_t now, device_free, was = *before, kept = spill_pool_vram(spill_device(device)->key);
    *before = UINT64_MAX;
    if (spill_vram_free(device, &now, &device_free) != CUDA_SUCCESS)
        return 0;
    *before = now -= kept < now ? kept : now; /* it counts as free, and the driver hasn't got it */
    return now > was ? now - was : 0;
}

static uint64_t displace(int device, uint64_t bytes, enum spill_reason *why)
{
    const struct timespec nap = { 0, 1000000 };
    uint64_t freed = 0;
    for (unsigned drain_ms = DRAIN_MS;; drain_ms *= 2) {
        spill_lock();
        /* A GPU at work is found out before a move is prepared: what a move in vain had prepared would hold memory until the next
         * safepoint, just when there is too little of it. */
        *why = spill_safepoint_look(spill_now_ns() + spill_ms(drain_ms));
        if (*why == SPILL_REASON_NONE)
            freed += spill_displace(device, bytes - freed, 0, spill_now_ns() + spill_ms(drain_ms), spill_ms(PAUSE_MS), why);
        bool last = *why != SPILL_REASON_BUSY || freed >= bytes || busy || drain_ms >= LONGEST_DRAIN_MS;
        if (last)
            busy = *why == SPILL_REASON_BUSY && !freed;
        spill_unlock();
        if (last)
            return freed;
        nanosleep(&nap, NULL); /* whoever was kept waiting at the gate may be what the GPU waits for */
    }
}

bool spill_reclaim(int device, uint64_t bytes)
{
    const struct spill_device *d = spill_device(device);
    if (!d || spill_dead() || spill_capturing())
        return false;
    uint64_t before = UINT64_MAX, want = amount(d, bytes), displaced = 0;
    enum spill_reason why = SPILL_REASON_NONE;
    gained_since(device, &before);
    CUstreamCaptureMode mode = spill_capture_enter();
    spill_lock();
    spill_limbo_sweep(0);
    spill_pool_trim(device, UINT64_MAX);
    spill_driver_pool_trim(device);
    spill_unlock();
    uint64_t gained = gained_since(device, &before);
    if (gained < want && spill_settings()->moves && spill_state_now() == SPILL_OPEN)
        displaced = displace(device, want - gained, &why);
    spill_capture_leave(mode);
    spill_log(SPILL_LOG_INFO, "out of memory in the driver: reclaimed=%llu displaced=%llu wanted=%llu why=%d", (unsigned long long)gained,
              (unsigned long long)displaced, (unsigned long long)want, (int)why);
    return gained || displaced;
}
