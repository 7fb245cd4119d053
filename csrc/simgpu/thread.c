/* SPDX-License-Identifier: Apache-2.0 */
/* Per-thread state (context stack, capture mode, per-thread default streams) and guarded execution.
 * Called by ctx.c, capture.c and whatever runs simulated device code.
 * Rules: a fault outside sim_guarded is not ours: it goes to the handler that was there before.
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "sanitizer.h"
#include "state.h"

#include <setjmp.h>
#include <signal.h>
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
        if (!t->own[i].ctx->dead)
            sim_stream_retire(t->own[i].stream);
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

/* ---- guarded execution */

struct guard {
    sigjmp_buf back;
    struct sim_watched watched;
};
static _Thread_local struct guard *guard;
static struct sigaction old_segv, old_bus;
static pthread_once_t guard_once = PTHREAD_ONCE_INIT;

void sim_fault(void)
{
    struct guard *g = guard;
    if (g) {
        guard = NULL;
        sim_watch_jump(&g->watched);
        siglongjmp(g->back, 1);
    }
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    sim_fault();
    struct sigaction *old = sig == SIGBUS ? &old_bus : &old_segv;
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(sig, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(sig);
    } else { /* die of it as if we were not there: the access is repeated when we return */
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(sig, &plain, NULL);
        if (info->si_code <= 0)
            raise(sig); /* sent by someone, nothing would be repeated */
    }
}

static void arm(void)
{
    /* SA_NODEFER: we leave by longjmp without restoring a mask. SA_ONSTACK: an app may have given its threads one. */
    struct sigaction a = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&a.sa_mask);
    sigaction(SIGSEGV, &a, &old_segv);
    sigaction(SIGBUS, &a, &old_bus);
}

CUresult sim_guarded(void (*body)(void *), void *arg)
{
    pthread_once(&guard_once, arm);
    struct guard here, *volatile before = guard;
    sim_watch_begin(&here.watched);
    if (sigsetjmp(here.back, 0)) {
        sim_watch_landed(&here.watched);
        guard = before;
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    guard = &here;
    body(arg);
    guard = before;
    return CUDA_SUCCESS;
}
