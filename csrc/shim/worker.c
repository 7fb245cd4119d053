/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's thread, as worker.h says. */
#define _GNU_SOURCE /* pthread_setname_np */
#include "shim/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "link/socket.h"
#include "shim/log.h"
#include "tiering/tiering.h"

/* A driver's calls need some hundred KiB, the program's thread-local data comes out of it too; what isn't used costs nothing. */
enum { STACK = 1 << 20, PATIENCE_S = 5, TICK_MS = 2000 };

static struct spill_fd bell = { .fd = -1 }; /* an eventfd; these share an inode, so what is certain is that it is no file */
static bool running, stopping;
/* Held while the worker acts. Whoever ends the process takes it and keeps it. */
static pthread_mutex_t acting = PTHREAD_MUTEX_INITIALIZER;

static bool is_stopping(void) { return __atomic_load_n(&stopping, __ATOMIC_ACQUIRE); }

void spill_worker_wake(void)
{
    const uint64_t one = 1;
    if (!__atomic_load_n(&running, __ATOMIC_ACQUIRE) || !spill_fd_ours(&bell))
        return;
    ssize_t ignored = write(bell.fd, &one, sizeof one); /* EAGAIN: it rings already */
    (void)ignored;
}

static void hear(struct pollfd *p)
{
    uint64_t count;
    if (p->revents && (!spill_fd_ours(&bell) || (read(bell.fd, &count, sizeof count) < 0 && errno != EAGAIN)))
        p->fd = -1; /* the program closed it: nobody rings any more */
}

static void *body(void *unused)
{
    struct pollfd fds[1 + SPILL_CONTROL_FDS] = { { .fd = bell.fd, .events = POLLIN } };
    pthread_setname_np(pthread_self(), "spillshim");
    pthread_mutex_lock(&acting);
    while (!is_stopping()) {
        int timeout = spill_control_watch(&fds[1]);
        bool tick = spill_pool_any() && (timeout < 0 || timeout > TICK_MS);
        pthread_mutex_unlock(&acting);
        int n = poll(fds, 1 + SPILL_CONTROL_FDS, tick ? TICK_MS : timeout);
        pthread_mutex_lock(&acting);
        if (n < 0 && errno != EINTR)
            break;
        if (is_stopping() || n < 0)
            continue;
        if (!n && tick)
            spill_pool_tick();
        hear(&fds[0]);
        spill_control_turn(&fds[1]);
    }
    spill_control_close();
    pthread_mutex_unlock(&acting);
    return unused;
}

/* What the worker is at has deadlines of its own; should the thread that exits hold what the worker waits for, it is left where
 * it is, and never gets on. */
void spill_worker_stop(void)
{
    struct timespec until;
    __atomic_store_n(&stopping, true, __ATOMIC_RELEASE);
    if (!__atomic_load_n(&running, __ATOMIC_ACQUIRE))
        return;
    spill_worker_wake();
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    if (pthread_mutex_timedlock(&acting, &until) == 0)
        spill_control_close();
}

void spill_worker_start(void)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, mask;
    if (is_stopping())
        return; /* an exit handler of the program allocates */
    bell = spill_fd_own(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    int err = bell.fd < 0 ? EMFILE : pthread_attr_init(&attr);
    if (!err) {
        pthread_attr_setstacksize(&attr, STACK);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        spill_control_open(); /* here, so that the process can be found from now on */
        __atomic_store_n(&running, true, __ATOMIC_RELEASE);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &mask);
        err = pthread_create(&thread, &attr, body, NULL);
        pthread_sigmask(SIG_SETMASK, &mask, NULL);
        pthread_attr_destroy(&attr);
    }
    if (!err)
        return;
    __atomic_store_n(&running, false, __ATOMIC_RELEASE);
    spill_control_close();
    spill_fd_close(&bell);
    spill_log(SPILL_LOG_DEBUG, "no thread for orders: %s; `spillshim status` does not find this process", strerror(err));
}

void spill_worker_abandon(void)
{
    if (!__atomic_load_n(&running, __ATOMIC_ACQUIRE))
        return;
    __atomic_store_n(&running, false, __ATOMIC_RELEASE);
    spill_fd_close(&bell);
    spill_control_abandon();
}
