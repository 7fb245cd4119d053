/* SPDX-License-Identifier: Apache-2.0 */
/* The page behind an event that processes share: the newest recording, the newest that was reached, and who made it.
 * Called by event.c (recording, waiting) and ipc.c (handles).
 * Rules: waiting is a futex on the page. A process that dies never reaches its recordings, so who waits looks after it from
 * time to time; a real driver takes its work off the device, too. The clocks of two processes have nothing to do with each
 * other: waiting for another one takes no simulated time.
 */
#define _GNU_SOURCE
#include "ipc.h"

#include <linux/futex.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOK_NS 20000000L /* between two looks after the recording process */

struct page { /* shared */
    _Atomic uint32_t newest, reached;
    _Atomic int32_t pid;    /* of the newest recording */
    _Atomic uint64_t start; /* of that process */
};

struct sim_shared_event {
    atomic_int refs;
    int fd;
    struct page *page;
};

struct sim_shared_event *sim_shared_event_open(int fd)
{
    struct sim_shared_event *e = malloc(sizeof *e);
    void *p = e && fd >= 0 ? mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (p == MAP_FAILED) {
        if (fd >= 0)
            close(fd);
        free(e);
        return NULL;
    }
    atomic_init(&e->refs, 1);
    e->fd = fd;
    e->page = p;
    return e;
}

struct sim_shared_event *sim_shared_event_new(void)
{
    int fd = memfd_create("simgpu-ipc-event", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, sizeof(struct page))) {
        close(fd);
        fd = -1;
    }
    return sim_shared_event_open(fd);
}

int sim_shared_event_fd(const struct sim_shared_event *e) { return e->fd; }

void sim_shared_event_hold(struct sim_shared_event *e)
{
    if (e)
        atomic_fetch_add(&e->refs, 1);
}

void sim_shared_event_drop(struct sim_shared_event *e)
{
    if (!e || atomic_fetch_sub(&e->refs, 1) != 1)
        return;
    munmap(e->page, sizeof *e->page);
    close(e->fd);
    free(e);
}

unsigned sim_shared_event_newest(const struct sim_shared_event *e)
{
    return atomic_load(&e->page->newest);
}

unsigned sim_shared_event_record(struct sim_shared_event *e)
{
    atomic_store(&e->page->start, sim_process_start(getpid()));
    atomic_store(&e->page->pid, getpid());
    return atomic_fetch_add(&e->page->newest, 1) + 1;
}

static bool behind(const struct page *p, uint32_t number)
{
    return (int32_t)(atomic_load(&p->reached) - number) < 0;
}

static void reach(struct page *p, uint32_t number)
{
    uint32_t was = atomic_load(&p->reached);
    while ((int32_t)(was - number) < 0 && !atomic_compare_exchange_weak(&p->reached, &was, number))
        ;
    syscall(SYS_futex, &p->reached, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static bool recorder_lives(const struct page *p)
{
    uint64_t start = sim_process_start(atomic_load(&p->pid));
    return start && start == atomic_load(&p->start);
}

bool sim_shared_event_reached(struct sim_shared_event *e)
{
    return !behind(e->page, atomic_load(&e->page->newest)) || !recorder_lives(e->page);
}

static void wait_for(struct page *p, uint32_t number)
{
    const struct timespec look = {0, LOOK_NS};
    for (uint32_t seen; behind(p, number);) {
        if (!recorder_lives(p)) {
            reach(p, number);
            return;
        }
        seen = atomic_load(&p->reached);
        if (behind(p, number))
            syscall(SYS_futex, &p->reached, FUTEX_WAIT, seen, &look, NULL, 0);
    }
}

void sim_shared_event_wait(struct sim_shared_event *e)
{
    wait_for(e->page, atomic_load(&e->page->newest));
}

/* ---- operations */

struct step {
    struct sim_shared_event *event;
    uint32_t number;
};

static CUresult signal_step(void *arg)
{
    const struct step *s = arg;
    reach(s->event->page, s->number);
    return CUDA_SUCCESS;
}

static CUresult wait_step(void *arg)
{
    const struct step *s = arg;
    wait_for(s->event->page, s->number);
    return CUDA_SUCCESS;
}

static void drop_step(void *arg)
{
    struct step *s = arg;
    sim_shared_event_drop(s->event);
    free(s);
}

/* One that a failed context does not run is reached all the same, or others would wait for ever. */
static void drop_signal(void *arg)
{
    signal_step(arg);
    drop_step(arg);
}

static struct sim_work *work(struct sim_shared_event *e, uint32_t number, CUresult (*run)(void *), void (*drop)(void *))
{
    struct step *s = malloc(sizeof *s);
    if (!s)
        return NULL;
    sim_shared_event_hold(e);
    *s = (struct step){e, number};
    return sim_work_new((struct sim_op){run, drop, s, CU_GRAPH_NODE_TYPE_EMPTY, NULL});
}

struct sim_work *sim_shared_event_signal(struct sim_shared_event *e, unsigned number)
{
    return work(e, number, signal_step, drop_signal);
}

struct sim_work *sim_shared_event_waiter(struct sim_shared_event *e)
{
    return work(e, atomic_load(&e->page->newest), wait_step, drop_step);
}
