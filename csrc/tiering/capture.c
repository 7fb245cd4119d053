/* SPDX-License-Identifier: Apache-2.0 */
/* The stream captures under way in the process. Called by the hooks of capture, of streams' and of contexts' ends; asked by
 * whoever wants to ask the driver something that would break a capture.
 * Rules: a capture is known from before the driver begins it until after it has ended; it also ends with its stream and
 * with its context, else frees would wait for its end for ever; the child of a fork touches nothing. */
#include "tiering/tiering.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct capture {
    CUstream stream;
    CUcontext ctx;
    pthread_t thread; /* of a per-thread default stream, whose handle all threads share */
    struct capture *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct capture *list;
static atomic_int count;

bool spill_capturing(void) { return atomic_load(&count) > 0; }

bool spill_capture_hold_off(void)
{
    pthread_mutex_lock(&lock);
    if (!list)
        return true;
    pthread_mutex_unlock(&lock);
    return false;
}

void spill_capture_let_in(void) { pthread_mutex_unlock(&lock); }

CUcontext spill_stream_context(CUstream stream)
{
    const struct spill_driver *d = spill_driver();
    CUcontext ctx = NULL;
    /* 0, 1 and 2 name the default streams. */
    if ((uintptr_t)stream <= 2 || !d->cuStreamGetCtx || d->cuStreamGetCtx(stream, &ctx) != CUDA_SUCCESS)
        d->cuCtxGetCurrent(&ctx);
    return ctx;
}

static CUstream named(CUstream stream, bool ptsz)
{
    return !stream && ptsz ? CU_STREAM_PER_THREAD : stream;
}

void spill_capture_begin(CUstream stream, bool ptsz)
{
    struct capture *c = spill_dead() ? NULL : malloc(sizeof *c);
    if (!c)
        return; /* unknown: what we ask may break it, as another thread's call could */
    *c = (struct capture){ named(stream, ptsz), spill_stream_context(stream), pthread_self(), NULL };
    pthread_mutex_lock(&lock);
    c->next = list;
    list = c;
    atomic_fetch_add(&count, 1);
    pthread_mutex_unlock(&lock);
}

static void drop(struct capture **at)
{
    struct capture *c = *at;
    *at = c->next;
    atomic_fetch_sub(&count, 1);
    free(c);
}

void spill_capture_end(CUstream stream, bool ptsz)
{
    CUcontext ctx = NULL;
    stream = named(stream, ptsz);
    if (spill_dead())
        return;
    if (stream == CU_STREAM_PER_THREAD)
        ctx = spill_stream_context(stream);
    pthread_mutex_lock(&lock);
    for (struct capture **at = &list; *at; at = &(*at)->next)
        if ((*at)->stream == stream && (!ctx || ((*at)->ctx == ctx && pthread_equal((*at)->thread, pthread_self())))) {
            drop(at);
            break;
        }
    pthread_mutex_unlock(&lock);
}

void spill_capture_context_gone(CUcontext ctx)
{
    if (spill_dead())
        return;
    pthread_mutex_lock(&lock);
    for (struct capture **at = &list; *at;)
        if ((*at)->ctx == ctx)
            drop(at);
        else
            at = &(*at)->next;
    pthread_mutex_unlock(&lock);
}
