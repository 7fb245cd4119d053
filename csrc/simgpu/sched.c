/* SPDX-License-Identifier: Apache-2.0 */
/* The task engine: streams as queues, each with a worker thread from its first task that cannot be run at once.
 * Called by stream.c, event.c, capture.c and what waits.
 * Rules: a task waits only for tasks submitted before it, so nothing can deadlock. The legacy default stream orders
 * itself against all blocking streams of its context both ways (cuda.h, stream synchronisation behaviour). Who waits is
 * woken by the task he waits for and by no other. Marks (tasks without work) are completed by whoever finishes what they
 * waited for: they need no worker.
 * Time is simulated: a task starts at the latest of its submission (host time), its stream's clock and the ends of what it
 * waited for, and lasts what its operation charged. None of that depends on the order in which workers really run.
 */
#define _GNU_SOURCE
#include "faults.h"
#include "state.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

/* Kernels and host functions run on it; fibers bring their own. Reserved address space, touched only by use. */
#define STACK_BYTES ((size_t)2 << 20)

#if defined(__SANITIZE_ADDRESS__)
#define SPARES 0u /* a task that is used after its end must be found */
#else
#define SPARES 256u
#endif

struct sim_waiter { /* a host thread in sim_task_wait */
    struct sim_waiter *next;
    pthread_cond_t wake;
    bool woken;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sim_task *spare; /* [mutex] for reuse */
static unsigned spare_count;
static uint64_t submitted;                            /* tasks so far */
static _Thread_local struct sim_task *running;        /* the task that this thread runs */
static _Thread_local uint64_t started_ns, charged_ns; /* of its operation */

struct sim_work *sim_work_new(struct sim_op op)
{
    struct sim_work *w = op.room ? op.room : malloc(sizeof *w);
    if (!w) {
        if (op.drop)
            op.drop(op.arg);
        return NULL;
    }
    atomic_init(&w->refs, 1);
    w->op = sim_watched() ? sim_fault_op(op) : op;
    w->demand = (struct sim_demand){0};
    return w;
}

void sim_work_ref(struct sim_work *w)
{
    atomic_fetch_add(&w->refs, 1);
}

void sim_work_drop(struct sim_work *w)
{
    if (w && atomic_fetch_sub(&w->refs, 1) == 1) {
        struct sim_work *own = w->op.room ? NULL : w;
        if (w->op.drop)
            w->op.drop(w->op.arg);
        free(own);
    }
}

static void task_free(struct sim_task *t)
{
    if (t->edges != t->few)
        free(t->edges);
    free(t);
}

void sim_task_drop(struct sim_task *t)
{
    if (t && atomic_fetch_sub(&t->refs, 1) == 1)
        task_free(t);
}

/* With the mutex held: the same, but a task that nobody holds any more is kept for the next submission. One thread takes
 * them and others give them back, which is what malloc is worst at. */
static void task_recycle(struct sim_task *t)
{
    if (!t || atomic_fetch_sub(&t->refs, 1) != 1)
        return;
    if (spare_count == SPARES || t->edges != t->few) {
        task_free(t);
        return;
    }
    t->next = spare;
    spare = t;
    spare_count++;
}

void sim_charge_ns(uint64_t ns)
{
    charged_ns += ns;
}

uint64_t sim_task_clock(void)
{
    return started_ns + charged_ns;
}

void sim_task_set_clock(uint64_t ns)
{
    charged_ns = ns > started_ns ? ns - started_ns : 0;
}

uint64_t sim_link_time(uint64_t ns, unsigned way, bool kernel)
{
    struct sim_task *t = running;
    return t && !t->fixed ? sim_link_ns(t->stream->ctx->device, way, t->order, sim_task_clock(), ns, kernel) : ns;
}

void sim_charge_link(uint64_t ns, unsigned way, bool kernel)
{
    sim_charge_ns(sim_link_time(ns, way, kernel));
}

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* ---- running; everything here with the mutex held, except where said */

static void stream_free(CUstream s)
{
    sim_task_drop(s->last);
    pthread_cond_destroy(&s->wake);
    free(s->tips);
    free(s->tip_edges);
    free(s->attributes);
    free(s);
}

/* Let the next task of a stream go, if it can: a mark is finished (it joins `list`), work is the worker's. */
static void kick(CUstream s, struct sim_task **list)
{
    struct sim_task *t = s->head;
    if (s->busy)
        return;
    if (!t) {
        if (s->closed && s->worker)
            pthread_cond_signal(&s->wake);
        else if (s->closed)
            stream_free(s);
        return;
    }
    if (t->pending)
        return;
    if (t->work) {
        if (s->asleep)
            pthread_cond_signal(&s->wake);
        return;
    }
    s->head = t->next;
    if (!s->head)
        s->tail = NULL;
    s->busy = true;
    if (!t->fixed)
        t->end_ns = later(s->clock_ns, t->start_ns);
    t->next = *list;
    *list = t;
}

/* A task of a busy stream has run (or a promise, which has no stream, is kept), its end is known. Takes over a reference. */
static void finish(struct sim_task *first)
{
    first->next = NULL;
    for (struct sim_task *list = first, *t; (t = list);) {
        CUstream s = t->stream;
        list = t->next;
        if (s) {
            s->busy = false;
            s->clock_ns = t->end_ns;
        }
        atomic_store(&t->done, true);
        for (struct sim_waiter *w = t->waiters, *next; w; w = next) {
            next = w->next;
            w->woken = true;
            pthread_cond_signal(&w->wake);
        }
        for (struct sim_edge *e = t->followers; e; e = e->next) {
            e->task->start_ns = later(e->task->start_ns, t->end_ns);
            if (--e->task->pending == 0 && e->task->stream->head == e->task)
                kick(e->task->stream, &list);
        }
        if (s)
            kick(s, &list);
        task_recycle(t);
    }
}

/* Run a task whose needs are met, its stream being marked busy; lets the mutex go meanwhile. */
static void run_task(struct sim_task *t)
{
    struct sim_work *w = t->work;
    atomic_int *sticky = &t->stream->ctx->sticky;
    uint64_t start = later(t->stream->clock_ns, t->start_ns);
    pthread_mutex_unlock(&mutex);
    bool real = sim_config()->clock == SIM_CLOCK_REAL;
    uint64_t began = real ? sim_real_ns() : 0;
    struct sim_task *outer = running; /* a host function that may call CUDA (order.host_functions_call_nothing) copies */
    uint64_t outer_started = started_ns, outer_charged = charged_ns;
    running = t;
    started_ns = start;
    charged_ns = 0;
    if (!atomic_load(sticky) || w->op.kind == SIM_OP_CALLBACK) {
        CUresult r = w->op.run ? w->op.run(w->op.arg) : CUDA_SUCCESS;
        int none = 0;
        if (r)
            atomic_compare_exchange_strong(sticky, &none, (int)r);
    }
    if (!t->fixed)
        t->end_ns = start + charged_ns;
    if (real)
        sim_real_until(began + (t->end_ns - start));
    running = outer;
    started_ns = outer_started;
    charged_ns = outer_charged;
    sim_work_drop(w);
    pthread_mutex_lock(&mutex);
    t->work = NULL;
    finish(t);
}

static void *work(void *arg)
{
    CUstream s = arg;
    prctl(PR_SET_NAME, "simgpu-stream");
    pthread_mutex_lock(&mutex);
    for (;;) {
        struct sim_task *t = s->head;
        if (t && !s->busy && !t->pending) {
            s->head = t->next;
            if (!s->head)
                s->tail = NULL;
            s->busy = true;
            run_task(t);
        } else if (!t && !s->busy && s->closed) {
            break;
        } else {
            s->asleep = true;
            pthread_cond_wait(&s->wake, &mutex);
            s->asleep = false;
        }
    }
    stream_free(s);
    pthread_mutex_unlock(&mutex);
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
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int r = pthread_create(&thread, &attr, work, s);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    s->worker = r == 0;
    return s->worker;
}

/* ---- streams */

/* [locked] Close the retired streams whose work is done. */
static void reap(CUcontext ctx)
{
    for (CUstream s = ctx->streams, next; s; s = next) {
        next = s->next;
        if (s->retired && (!s->last || atomic_load(&s->last->done)))
            sim_stream_close(s);
    }
}

void sim_stream_retire(CUstream s)
{
    s->retired = true;
    reap(s->ctx);
}

CUstream sim_stream_new(CUcontext ctx, unsigned flags, int priority)
{
    CUstream s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    reap(ctx);
    s->ctx = ctx;
    s->flags = flags;
    s->priority = priority;
    s->id = sim_unique();
    s->reached_ns = sim_host_now();
    pthread_cond_init(&s->wake, NULL);
    s->next = ctx->streams;
    ctx->streams = s;
    if (ctx->gate && sim_submit(s, NULL, &ctx->gate, 1, NULL)) {
        sim_stream_close(s);
        return NULL;
    }
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
    if (s->worker)
        pthread_cond_signal(&s->wake);
    else if (!s->busy && !s->head)
        stream_free(s);
    pthread_mutex_unlock(&mutex);
}

static bool blocking(const struct CUstream_st *s)
{
    return !s->legacy && !(s->flags & CU_STREAM_NON_BLOCKING);
}

/* ---- submission */

/* With the mutex held: t will wait for `need`, noted in its edge until link_needs. t->known becomes false when it isn't
 * known when that ends, t->end_ns the latest of those that are. */
static void follow(struct sim_task *t, struct sim_task *need)
{
    t->known &= need->known;
    if (need->known)
        t->end_ns = later(t->end_ns, need->end_ns);
    if (atomic_load(&need->done))
        t->start_ns = later(t->start_ns, need->end_ns);
    else
        t->edges[t->pending++].task = need;
}

static void link_needs(struct sim_task *t)
{
    for (unsigned i = 0; i < t->pending; i++) {
        struct sim_task *need = t->edges[i].task;
        t->edges[i] = (struct sim_edge){t, need->followers};
        need->followers = &t->edges[i];
    }
}

/* With the mutex held: t, of stream s, waits for everything that it has to. */
static void follow_all(struct sim_task *t, CUstream s, struct sim_task *const *after, unsigned count, bool everything)
{
    for (unsigned i = 0; i < count; i++)
        follow(t, after[i]);
    if (s->legacy || everything) {
        for (CUstream o = s->ctx->streams; o; o = o->next)
            if (o != s && o->last && (everything || blocking(o)))
                follow(t, o->last);
    } else if (blocking(s) && s->ctx->legacy->last) {
        follow(t, s->ctx->legacy->last);
    }
}

/* With the mutex held: fix the end of a task now if everything that it depends on is known. */
static void foresee(struct sim_task *t, CUstream s)
{
    const struct sim_work *w = t->work;
    t->known &= !w || w->demand.known;
    if (s->last) {
        t->known &= s->last->known;
        if (s->last->known)
            t->end_ns = later(t->end_ns, s->last->end_ns);
    }
    if (t->known && w)
        t->end_ns = w->demand.way ? sim_link_reserve(s->ctx->device, w->demand.way, t->order, t->end_ns, w->demand.ns)
                                  : t->end_ns + w->demand.ns;
    t->fixed = t->known;
}

/* With the mutex held. NULL: out of memory. */
static struct sim_task *task_new(CUstream s, struct sim_work *w, unsigned edges, int refs)
{
    struct sim_task *t = spare;
    if (t) {
        spare = t->next;
        spare_count--;
    } else if (!(t = malloc(sizeof *t))) {
        return NULL;
    }
    *t = (struct sim_task){.refs = refs, .work = w, .stream = s, .edges = t->few};
    if (edges > sizeof t->few / sizeof t->few[0] && !(t->edges = malloc(edges * sizeof *t->edges))) {
        free(t);
        return NULL;
    }
    return t;
}

struct sim_task *sim_promise_new(void)
{
    pthread_mutex_lock(&mutex);
    struct sim_task *t = task_new(NULL, NULL, 0, 1);
    pthread_mutex_unlock(&mutex);
    if (t)
        t->submit_ns = sim_host_now();
    return t;
}

void sim_promise_keep(struct sim_task *t, uint64_t ns)
{
    pthread_mutex_lock(&mutex);
    if (!atomic_load(&t->done)) {
        t->end_ns = ns;
        atomic_fetch_add(&t->refs, 1);
        finish(t);
    }
    pthread_mutex_unlock(&mutex);
}

static CUresult submit(CUstream s, struct sim_work *w, struct sim_task *const *after, unsigned count, bool everything,
                       struct sim_task **out, bool *now)
{
    unsigned edges = count + 1;
    if (s->legacy || everything)
        for (CUstream o = s->ctx->streams; o; o = o->next)
            edges++;
    /* Who submits to a stream is later than its last submission, whoever made that. */
    sim_host_reach(s->reached_ns);
    sim_host_meet_memory();
    if (w) /* not slept for with SIMGPU_CLOCK=real: what is done here takes about as long */
        sim_host_reach(sim_host_now() + (uint64_t)sim_config()->launch);
    pthread_mutex_lock(&mutex);
    struct sim_task *t = task_new(s, w, edges, out ? 3 : 2); /* the queue, stream->last, the caller */
    if (!t) {
        pthread_mutex_unlock(&mutex);
        sim_work_drop(w);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    t->submit_ns = t->start_ns = t->end_ns = sim_host_now();
    t->known = true;
    t->order = submitted++;
    follow_all(t, s, after, count, everything);
    bool idle = !s->head && !s->busy && !t->pending;
    bool inl = idle && w && now;
    if (w && !inl && !s->worker && !start_worker(s)) {
        atomic_store(&t->refs, 1);
        task_recycle(t);
        pthread_mutex_unlock(&mutex);
        sim_work_drop(w);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    link_needs(t);
    foresee(t, s);
    s->reached_ns = t->submit_ns;
    struct sim_task *previous = s->last;
    s->last = t;
    if (inl) {
        s->busy = true;
    } else if (idle && !w) { /* nothing to run and nothing to wait for */
        s->busy = true;
        if (!t->fixed)
            t->end_ns = later(s->clock_ns, t->start_ns);
        finish(t);
    } else {
        if (s->tail)
            s->tail->next = t;
        else
            s->head = t;
        s->tail = t;
        if (s->asleep && idle)
            pthread_cond_signal(&s->wake);
    }
    task_recycle(previous);
    pthread_mutex_unlock(&mutex);
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
    pthread_mutex_lock(&mutex);
    run_task(t);
    t->known = true;
    pthread_mutex_unlock(&mutex);
    sim_host_reach(t->end_ns);
}

/* ---- waiting; no lock held */

void sim_task_wait(struct sim_task *t)
{
    pthread_mutex_lock(&mutex);
    if (!atomic_load(&t->done)) {
        struct sim_waiter me = {.next = t->waiters, .wake = PTHREAD_COND_INITIALIZER};
        t->waiters = &me;
        while (!me.woken)
            pthread_cond_wait(&me.wake, &mutex);
        pthread_cond_destroy(&me.wake);
    }
    t->known = true;
    pthread_mutex_unlock(&mutex);
    sim_host_reach(t->end_ns);
}

bool sim_task_seen(struct sim_task *t)
{
    if (!atomic_load(&t->done))
        return false;
    sim_task_wait(t); /* does not wait any more */
    return true;
}

void sim_saw_blocking(CUcontext ctx)
{
    pthread_mutex_lock(&mutex);
    for (CUstream s = ctx->streams; s; s = s->next)
        if (blocking(s) && s->last && atomic_load(&s->last->done))
            s->last->known = true;
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
    /* One stream after the other, by falling id: as the list is sorted, newest first. Each is waited for once, however much
     * others submit meanwhile, and no memory is needed. */
    uint64_t below = UINT64_MAX;
    for (struct sim_task *t;;) {
        t = NULL;
        sim_take();
        for (CUstream s = ctx->streams; s && !t; s = s->next)
            if (s->id < below) {
                below = s->id;
                t = sim_stream_last(s);
                if (t && sim_task_seen(t)) { /* the usual case, without letting the lock go */
                    sim_task_drop(t);
                    t = NULL;
                }
            }
        if (!t)
            reap(ctx);
        sim_give();
        if (!t)
            return;
        sim_task_wait(t);
        sim_task_drop(t);
    }
}
