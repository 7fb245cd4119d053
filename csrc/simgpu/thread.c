/* SPDX-License-Identifier: Apache-2.0 */
/* Per-thread state (context stack, capture mode, per-thread default streams).
 * Called by ctx.c, capture.c and whatever runs simulated device code.
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "state.h"

#include <stdlib.h>
#include <string.h>

static pthread_key_t key;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static _Thread_local struct sim_thread *self;

static void thread_gone(void *arg)
{
    struct sim_thread *t = arg;
    bool ours = sim_ready() == CUDA_SUCCESS; /* not in the child of a fork, whose locks nobody gives back */
    if (ours)
        sim_take();
    for (unsigned i = 0; ours && i < t->owned; i++)
        if (!t->own[i].ctx->dead) {
            sim_capture_forget(t->own[i].stream); /* nobody can end it any more */
            sim_stream_retire(t->own[i].stream);
        }
    if (ours)
        sim_give();
    free(t->own);
    free(t);
    self = NULL;
}

static void make_key(void)
{
    pthread_key_create(&key, thread_gone);
}

struct sim_thread *sim_self(void)
{
    if (self)
        return self;
    pthread_once(&key_once, make_key);
    struct sim_thread *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    t->id = sim_unique();
    pthread_setspecific(key, t);
    self = t;
    return t;
}

/* ---- the program's functions in streams */

static _Thread_local bool in_host_call;

bool sim_in_host_call(void)
{
    return in_host_call;
}

void sim_call_back(CUhostFn fn, void *data)
{
    in_host_call = true;
    fn(data);
    in_host_call = false;
}

void sim_call_host(CUhostFn fn, void *data)
{
    if (sim_doubt(SIM_DOUBT_HOST_CALLS))
        fn(data);
    else
        sim_call_back(fn, data);
}
