/* SPDX-License-Identifier: Apache-2.0 */
/* Limbo: regions that the application has freed and the GPU may still use. Called by the free hooks, and swept by every
 * allocation, free and synchronise. Rules: an address is reused only after its event is done; nothing is asked of the
 * driver while any stream of the process is capturing, for a query can invalidate a capture. */
#include "tiering/moving.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "shim/log.h"

struct entry {
    struct spill_region *region;
    CUevent event; /* NULL: freed during a capture, nothing could be recorded then */
    CUcontext ctx; /* the event's, which dies with it */
    struct entry *next;
};

static struct entry *list;
static atomic_uint waiting;

bool spill_limbo_any(void) { return atomic_load_explicit(&waiting, memory_order_relaxed) != 0; }

static bool add(struct spill_region *region, CUevent event, CUcontext ctx)
{
    struct entry *e = malloc(sizeof *e);
    if (!e)
        return false;
    *e = (struct entry){ region, event, ctx, list };
    list = e;
    atomic_fetch_add(&waiting, 1);
    return true;
}

CUresult spill_free_async(CUdeviceptr p, CUstream stream, bool ptsz)
{
    const struct spill_driver *d = spill_driver();
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUevent event = NULL;
    CUresult r = (ptsz ? d->cuStreamIsCapturing_ptsz : d->cuStreamIsCapturing)(stream, &status);
    if (r != CUDA_SUCCESS)
        return r;
    /* A graph can free only what a graph has allocated; the driver says so of a cuMemAlloc pointer. */
    if (status != CU_STREAM_CAPTURE_STATUS_NONE)
        return CUDA_ERROR_INVALID_VALUE;
    spill_lock();
    struct spill_region *region = spill_claim(p);
    if (!region) {
        spill_unlock();
        return CUDA_ERROR_INVALID_VALUE;
    }
    CUstreamCaptureMode mode = spill_capture_enter();
    /* An event is of the context of its stream, which need not be the current one. */
    CUcontext popped, ctx = spill_stream_context(stream);
    spill_context_known(ctx);
    r = d->cuCtxPushCurrent_v2(ctx);
    if (r == CUDA_SUCCESS) {
        r = d->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
        if (r == CUDA_SUCCESS)
            r = (ptsz ? d->cuEventRecord_ptsz : d->cuEventRecord)(event, stream);
        if (r == CUDA_SUCCESS && !add(region, event, ctx))
            r = CUDA_ERROR_OUT_OF_MEMORY;
        if (r != CUDA_SUCCESS && event)
            d->cuEventDestroy_v2(event);
        d->cuCtxPopCurrent_v2(&popped);
    }
    region->limbo = r == CUDA_SUCCESS;
    spill_limbo_sweep(0);
    spill_capture_leave(mode);
    spill_unlock();
    return r;
}

void spill_limbo_defer(struct spill_region *region)
{
    if (!add(region, NULL, NULL))
        spill_log(SPILL_LOG_ERROR, "no memory to remember a free of %llu bytes; they stay allocated",
                  (unsigned long long)region->size);
}

/* Proof that all work of the current context is done that was queued until now: an event over the whole context, so that
 * the engine lock is not held over a wait. Drivers before 12.5 have none: there the context is waited for. */
static CUresult ask_context(struct entry *e)
{
    const struct spill_driver *d = spill_driver();
    if (!d->cuCtxRecordEvent)
        return d->cuCtxSynchronize();
    CUresult r = d->cuEventCreate(&e->event, CU_EVENT_DISABLE_TIMING);
    if (r != CUDA_SUCCESS)
        return r;
    e->ctx = e->region->ctx;
    r = d->cuCtxRecordEvent(e->region->ctx, e->event);
    if (r == CUDA_SUCCESS)
        return d->cuEventQuery(e->event);
    d->cuEventDestroy_v2(e->event);
    e->event = NULL;
    return r;
}

static bool finished(struct entry *e)
{
    const struct spill_driver *d = spill_driver();
    bool waits = !e->event && !d->cuCtxRecordEvent;
    CUcontext popped;
    /* Of a context that is being destroyed the handle may be none any more. */
    if (spill_context_dying(e->region->ctx) || (e->event && spill_context_dying(e->ctx)))
        return false;
    /* No capture may begin between the look and the question, which would break it. None can be kept waiting for the GPU. */
    if (waits ? spill_capturing() : !spill_capture_hold_off())
        return false;
    CUresult r = d->cuCtxPushCurrent_v2(e->region->ctx);
    if (r == CUDA_SUCCESS) {
        r = e->event ? d->cuEventQuery(e->event) : ask_context(e);
        if (r == CUDA_SUCCESS && e->event)
            d->cuEventDestroy_v2(e->event);
        d->cuCtxPopCurrent_v2(&popped);
    }
    if (!waits)
        spill_capture_let_in();
    return spill_seen(r) == CUDA_SUCCESS;
}

static bool sweep_once(void)
{
    bool any = false;
    for (struct entry **at = &list; *at;) {
        struct entry *e = *at;
        if (!finished(e)) {
            at = &e->next;
            continue;
        }
        *at = e->next;
        atomic_fetch_sub(&waiting, 1);
        spill_region_release(e->region);
        free(e);
        any = true;
    }
    return any;
}

bool spill_limbo_sweep(unsigned patience_ms)
{
    const struct timespec pause = { 0, 500000 };
    bool any = false;
    if (!list || spill_dead())
        return false;
    any |= sweep_once();
    for (unsigned half_ms = 0; list && half_ms < 2 * patience_ms; half_ms++) {
        nanosleep(&pause, NULL);
        any |= sweep_once();
    }
    return any;
}

void spill_limbo_forget(const struct spill_region *region)
{
    for (struct entry **at = &list; *at; at = &(*at)->next) {
        struct entry *e = *at;
        if (e->region != region)
            continue;
        *at = e->next;
        atomic_fetch_sub(&waiting, 1);
        free(e);
        return;
    }
}

void spill_limbo_context_gone(CUcontext ctx)
{
    /* The work that such an event stood for is over too. */
    for (struct entry *e = list; e; e = e->next)
        if (e->event && e->ctx == ctx)
            e->event = NULL;
}
