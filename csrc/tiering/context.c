/* SPDX-License-Identifier: Apache-2.0 */
/* The contexts of the process, and the driver's own proof that they are idle. Called by the hooks of contexts' beginnings and
 * ends, by every managed allocation, and by safepoint.c.
 * Rules: the driver is asked about every context that could touch managed memory; one that is active and unknown means that
 * nothing is proven; nothing is retained, and what was made in a context (event, stream) dies with it. */
#include "tiering/moving.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "shim/log.h"

struct context {
    CUcontext ctx;
    int device;
    CUevent event; /* made at the first proof */
    CUstream stream;
    bool asked; /* recorded, not yet seen done */
    bool dying;   /* the application is destroying it */
    bool created; /* by cuCtxCreate; every other context is a device's primary one */
    struct context *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct context *list;
static bool lost; /* one could not be remembered: nothing can be proven any more */

static struct context *find(CUcontext ctx)
{
    struct context *c = list;
    while (c && c->ctx != ctx)
        c = c->next;
    return c;
}

void spill_context_known(CUcontext ctx)
{
    if (!ctx || spill_dead())
        return;
    pthread_mutex_lock(&lock);
    if (!find(ctx)) {
        struct context *c = malloc(sizeof *c);
        if (c) {
            *c = (struct context){ .ctx = ctx, .device = -1, .next = list };
            list = c;
        }
        lost |= !c;
    }
    pthread_mutex_unlock(&lock);
}

void spill_context_created(CUcontext ctx)
{
    spill_context_known(ctx);
    pthread_mutex_lock(&lock);
    struct context *c = find(ctx);
    if (c)
        c->created = true;
    pthread_mutex_unlock(&lock);
}

void spill_context_gone(CUcontext ctx)
{
    if (spill_dead())
        return;
    pthread_mutex_lock(&lock);
    for (struct context **at = &list; *at; at = &(*at)->next) {
        struct context *c = *at;
        if (c->ctx != ctx)
            continue;
        *at = c->next;
        free(c);
        break;
    }
    pthread_mutex_unlock(&lock);
}

void spill_context_ends(CUcontext ctx, bool ends)
{
    spill_lock();
    pthread_mutex_lock(&lock);
    struct context *c = find(ctx);
    if (c)
        c->dying = ends;
    pthread_mutex_unlock(&lock);
    spill_unlock();
}

bool spill_context_dying(CUcontext ctx)
{
    pthread_mutex_lock(&lock);
    struct context *c = find(ctx);
    bool dying = !c || c->dying;
    pthread_mutex_unlock(&lock);
    return dying;
}

void spill_context_wait_for_end(CUcontext ctx)
{
    const struct timespec nap = { 0, 50000 };
    for (;;) {
        pthread_mutex_lock(&lock);
        struct context *c = find(ctx);
        bool dying = c && c->dying;
        pthread_mutex_unlock(&lock);
        if (!dying || spill_dead())
            return;
        nanosleep(&nap, NULL);
    }
}

CUstream spill_context_stream(CUcontext ctx)
{
    pthread_mutex_lock(&lock);
    struct context *c = find(ctx);
    if (c && !c->stream && spill_driver()->cuStreamCreate(&c->stream, CU_STREAM_NON_BLOCKING) != CUDA_SUCCESS)
        c->stream = NULL;
    CUstream stream = c ? c->stream : NULL;
    pthread_mutex_unlock(&lock);
    return stream;
}

/* Have the driver put a mark behind all work of the context. */
static CUresult ask(struct context *c)
{
    const struct spill_driver *d = spill_driver();
    CUcontext popped;
    CUresult r = d->cuCtxPushCurrent_v2(c->ctx);
    if (r != CUDA_SUCCESS)
        return r;
    if (c->device < 0)
        r = d->cuCtxGetDevice(&c->device);
    if (r == CUDA_SUCCESS && !c->event)
        r = d->cuEventCreate(&c->event, CU_EVENT_DISABLE_TIMING);
    if (r == CUDA_SUCCESS)
        r = d->cuCtxRecordEvent(c->ctx, c->event);
    d->cuCtxPopCurrent_v2(&popped);
    return r;
}

static CUresult answered(struct context *c)
{
    const struct spill_driver *d = spill_driver();
    CUcontext popped;
    CUresult r = d->cuCtxPushCurrent_v2(c->ctx);
    if (r != CUDA_SUCCESS)
        return r;
    r = d->cuEventQuery(c->event);
    d->cuCtxPopCurrent_v2(&popped);
    return r;
}

/* Contexts whose beginning escaped the hooks: of the primary ones the driver says whether they live. */
static bool all_known(void)
{
    const struct spill_driver *d = spill_driver();
    int count = 0, active;
    unsigned flags;
    if (lost || d->cuDeviceGetCount(&count) != CUDA_SUCCESS)
        return false;
    for (int device = 0; device < count; device++) {
        if (d->cuDevicePrimaryCtxGetState(device, &flags, &active) != CUDA_SUCCESS)
            return false;
        bool known = !active;
        for (struct context *c = list; c && !known; c = c->next)
            known = c->device == device && !c->created;
        if (!known)
            return false;
    }
    return true;
}

static bool idle(uint64_t deadline_ns)
{
    const struct timespec nap = { 0, 20000 };
    for (struct context *c = list; c; c = c->next) {
        /* The handle of one that is being destroyed may be none any more; its work is being waited for. */
        CUresult r = c->dying ? CUDA_ERROR_NOT_READY : spill_seen(ask(c));
        if (r != CUDA_SUCCESS)
            return false;
        c->asked = true;
    }
    if (!all_known())
        return false;
    for (unsigned round = 0;; round++) {
        bool any = false;
        for (struct context *c = list; c; c = c->next) {
            CUresult r = c->asked ? spill_seen(answered(c)) : CUDA_SUCCESS;
            if (r != CUDA_SUCCESS && r != CUDA_ERROR_NOT_READY)
                return false;
            c->asked = r != CUDA_SUCCESS;
            any |= c->asked;
        }
        if (!any)
            return true;
        if (spill_now_ns() >= deadline_ns)
            return false;
        if (round > 50) /* work that lasts: leave the processor to whoever feeds it */
            nanosleep(&nap, NULL);
    }
}

bool spill_contexts_idle(uint64_t deadline_ns)
{
    if (!spill_driver()->cuCtxRecordEvent)
        return false;
    pthread_mutex_lock(&lock);
    bool proven = idle(deadline_ns);
    pthread_mutex_unlock(&lock);
    return proven;
}
