/* SPDX-License-Identifier: Apache-2.0 */
/* The task engine: streams as queues, each with a worker thread from its first task that cannot be run at once.
 * Called by stream.c, event.c, capture.c and what waits.
 * Rules: a task waits only for tasks submitted before it, so nothing can deadlock. The legacy default stream orders
 * itself against all blocking streams of its context both ways (cuda.h, stream synchronisation behaviour).
 * Time is simulated: a task starts at the latest end of what it waited for and lasts what its operation charged.
 */
#define _GNU_SOURCE
#include "faults.h"
#include "state.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER; /* some task is done */
static unsigned waiting;                                   /* threads in wait on `finished` */
static _Thread_local uint64_t charged_ns;

struct sim_work *sim_work_new(struct sim_op op)
{
    struct sim_work *w = malloc(sizeof *w);
    if (!w) {
        if (op.drop)
            op.drop(op.arg);
        return NULL;
    }
    atomic_init(&w->refs, 1);
    w->op = sim_watched() ? sim_fault_op(op) : op;
    return w;
}

void sim_work_ref(struct sim_work *w)
{
    atomic_fetch_add(&w->refs, 1);
}

void sim_work_drop(struct sim_work *w)
{
    if (w && atomic_fetch_sub(&w->refs, 1) == 1) {
        if (w->op.drop)
            w->op.drop(w->op.arg);
        free(w);
    }
}

void sim_task_drop(struct sim_task *t)
{
    if (t && atomic_fetch_sub(&t->refs, 1) == 1)
        free(t);
}

void sim_charge_ns(uint64_t ns)
{
    charged_ns += ns;
}

static bool ready(const struct sim_task *t)
{
    for (unsigned i = 0; i < t->needed; i++)
        if (!atomic_load(&t->needs[i]->done))
            return false;
    return true;
}

/* Run a task whose needs are met. With the mutex held, which is let go while the operation runs. */
static void run_task(struct sim_task *t)
{
    CUstream s = t->stream;
    uint64_t start = s->clock_ns;
    for (unsigned i = 0; i < t->needed; i++) {
        if (t->needs[i]->end_ns > start)
            start = t->needs[i]->end_ns;
        sim_task_drop(t->needs[i]);
    }
    free(t->needs);
    t->needs = NULL;
    t->needed = 0;
    s->busy = true;
    pthread_mutex_unlock(&mutex);
    charged_ns = 0;
    if (t->work && !atomic_load(&s->ctx->sticky)) {
        CUresult r = t->work->op.run ? t->work->op.run(t->work->op.arg) : CUDA_SUCCESS;
        int none = 0;
        if (r)
            atomic_compare_exchange_strong(&s->ctx->sticky, &none, (int)r);
    }
    uint64_t cost = charged_ns;
    sim_work_drop(t->work);
    t->work = NULL;
    pthread_mutex_lock(&mutex);
    s->busy = false;
    s->clock_ns = t->end_ns = start + cost;
    atomic_store(&t->done, true);
    if (waiting)
        pthread_cond_broadcast(&finished);
    if (s->worker && s->head)
        pthread_cond_signal(&s->wake);
}

static void stream_free(CUstream s)
{
    sim_task_drop(s->last);
    pthread_cond_destroy(&s->wake);
    free(s->tips);
    free(s);
}

static void *work(void *arg)
{
    CUstream s = arg;
    prctl(PR_SET_NAME, "simgpu-stream");
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (s->busy || (!s->head && !s->closed))
            pthread_cond_wait(&s->wake, &mutex);
        struct sim_task *t = s->head;
        if (!t)
            break;
        while (!ready(t)) {
            waiting++;
            pthread_cond_wait(&finished, &mutex);
            waiting--;
        }
        s->head = t->next;
        if (!s->head)
            s->tail = NULL;
        run_task(t);
        sim_task_drop(t);
    }
    pthread_mutex_unlock(&mutex);
    stream_free(s);
    return NULL;
}

static bool start_worker(CUstream s)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all); /* the app's signals belong to the app's threads; faults are delivered all the same */
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&thread, &attr, work, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    s->worker = r == 0;
    return s->worker;
}

CUstream sim_stream_new(CUcontext ctx, unsigned flags, int priority)
{
    CUstream s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->ctx = ctx;
    s->flags = flags;
    s->priority = priority;
    s->id = sim_unique();
    pthread_cond_init(&s->wake, NULL);
    s->next = ctx->streams;
    ctx->streams = s;
    return s;
}

void sim_stream_close(CUstream s)
{
    for (CUstream *p = &s->ctx->streams; *p; p = &(*p)->next)
        if (*p == s) {
            *p = s->next;
            break;
        }
    pthread_mutex_lock(&mutex);
    s->closed = true;
    bool mine = !s->worker && !s->busy;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&mutex);
    if (mine)
        stream_free(s);
}

static bool blocking(const struct CUstream_st *s)
{
    return !s->legacy && !(s->flags & CU_STREAM_NON_BLOCKING);
}

/* Collect what a new task of s has to wait for. Returns how many were written. */
static unsigned collect(CUstream s, struct sim_task *const *after, unsigned count, struct sim_task **out, bool everything)
{
    unsigned n = 0;
    for (unsigned i = 0; i < count; i++)
        out[n++] = after[i];
    if (s->legacy || everything) {
        for (CUstream o = s->ctx->streams; o; o = o->next)
            if (o != s && o->last && (everything || blocking(o)))
                out[n++] = o->last;
    } else if (blocking(s) && s->ctx->legacy->last) {
        out[n++] = s->ctx->legacy->last;
    }
    for (unsigned i = 0; i < n; i++)
        atomic_fetch_add(&out[i]->refs, 1);
    return n;
}

static CUresult submit(CUstream s, struct sim_work *w, struct sim_task *const *after, unsigned count, bool everything,
                       struct sim_task **out, bool *now)
{
    unsigned room = count + 1;
    if (s->legacy || everything)
        for (CUstream o = s->ctx->streams; o; o = o->next)
            room++;
    struct sim_task *t = calloc(1, sizeof *t), **needs = calloc(room, sizeof *needs);
    if (!t || !needs) {
        free(t);
        free(needs);
        sim_work_drop(w);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    atomic_init(&t->refs, out ? 3 : 2); /* the queue, stream->last, the caller */
    t->work = w;
    t->stream = s;
    t->needs = needs;
    pthread_mutex_lock(&mutex);
    t->needed = collect(s, after, count, needs, everything);
    bool idle = !s->head && !s->busy && ready(t);
    bool mark = idle && !w; /* nothing to run and nothing to wait for */
    bool inl = idle && w && now;
    if (!mark && !inl && !s->worker && !start_worker(s)) {
        pthread_mutex_unlock(&mutex);
        for (unsigned i = 0; i < t->needed; i++)
            sim_task_drop(needs[i]);
        free(needs);
        free(t);
        sim_work_drop(w);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct sim_task *previous = s->last;
    s->last = t;
    if (mark) {
        run_task(t);
        sim_task_drop(t);
    } else if (inl) {
        s->busy = true;
    } else {
        if (s->tail)
            s->tail->next = t;
        else
            s->head = t;
        s->tail = t;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&mutex);
    sim_task_drop(previous);
    if (now)
        *now = inl;
    if (out)
        *out = t;
    return CUDA_SUCCESS;
}

CUresult sim_submit(CUstream s, struct sim_work *w, struct sim_task *const *after, unsigned count, struct sim_task **out)
{
    return submit(s, w, after, count, false, out, NULL);
}

CUresult sim_submit_now(CUstream s, struct sim_work *w, struct sim_task **out, bool *now)
{
    return submit(s, w, NULL, 0, false, out, now);
}

CUresult sim_submit_fence(CUcontext ctx, CUstream s, struct sim_task **out)
{
    return submit(s ? s : ctx->legacy, NULL, NULL, 0, true, out, NULL);
}

void sim_task_run(struct sim_task *t)
{
    CUstream s = t->stream;
    pthread_mutex_lock(&mutex);
    run_task(t);
    bool orphan = s->closed && !s->worker;
    pthread_mutex_unlock(&mutex);
    sim_task_drop(t);
    if (orphan)
        stream_free(s);
}

void sim_task_wait(struct sim_task *t)
{
    if (atomic_load(&t->done))
        return;
    pthread_mutex_lock(&mutex);
    waiting++;
    while (!atomic_load(&t->done))
        pthread_cond_wait(&finished, &mutex);
    waiting--;
    pthread_mutex_unlock(&mutex);
}

struct sim_task *sim_stream_last(CUstream s)
{
    pthread_mutex_lock(&mutex);
    struct sim_task *t = s->last;
    if (t)
        atomic_fetch_add(&t->refs, 1);
    pthread_mutex_unlock(&mutex);
    return t;
}

void sim_drain(CUcontext ctx)
{
    sim_take();
    unsigned count = 0, n = 0;
    for (CUstream s = ctx->streams; s; s = s->next)
        count++;
    struct sim_task **open = calloc(count ? count : 1, sizeof *open);
    if (open) {
        pthread_mutex_lock(&mutex);
        for (CUstream s = ctx->streams; s; s = s->next)
            if (s->last && !atomic_load(&s->last->done)) {
                atomic_fetch_add(&s->last->refs, 1);
                open[n++] = s->last;
            }
        pthread_mutex_unlock(&mutex);
    }
    sim_give();
    while (n) {
        sim_task_wait(open[--n]);
        sim_task_drop(open[n]);
    }
    free(open);
}
