/* SPDX-License-Identifier: Apache-2.0 */
/* The one thread of the shim's own, named "spillshim": it answers the control socket and carries out orders. Started by
 * process.c with the first region, so never in a process that manages nothing, and not with SPILLSHIM_CONTROL=0.
 * While memory is kept for reuse it ticks (tiering/pool.c). Rules: idle it sleeps without a timeout; no signal of the program is ever delivered to it; what it has begun ends before the
 * program's exit goes on, and nothing is begun after that; the child of a fork has none; whatever it lacks (a thread, a socket, a
 * folder), the program runs on. */
#ifndef SPILL_WORKER_H
#define SPILL_WORKER_H

#include <poll.h>

/* Once, without a lock held. */
void spill_worker_start(void);
/* The program is ending: what is being done is done, and nothing more is begun. */
void spill_worker_stop(void);
/* In the child of a fork. */
void spill_worker_abandon(void);
/* Have it look at what there is to do. Any thread, any lock; does nothing where it doesn't run. */
void spill_worker_wake(void);

/* ---- control.c: its socket. One thread at a time: the worker, before it runs its starter, at the end whoever ends it ---- */

enum { SPILL_CONTROL_CLIENTS = 8, SPILL_CONTROL_FDS = 1 + SPILL_CONTROL_CLIENTS };

/* Listen, where there is a folder for it. First of all. */
void spill_control_open(void);
/* What to poll for, SPILL_CONTROL_FDS of them. Returns milliseconds to sleep at most, -1: no limit. */
int spill_control_watch(struct pollfd fds[]);
/* Answer what has come, without waiting for anybody. */
void spill_control_turn(const struct pollfd fds[]);
/* Take the socket's file away; no answers any more. */
void spill_control_close(void);
/* In the child of a fork: the parent's connections are the parent's. */
void spill_control_abandon(void);

#endif
