/* SPDX-License-Identifier: Apache-2.0 */
/* Events that processes share. Included by event.c and ipc.c; made of a page that all of them map (ipc_event.c).
 * Rules: recordings are numbered over all processes; one is reached when it has run, or its process can run it no more.
 */
#ifndef SIM_IPC_H
#define SIM_IPC_H

#include "state.h"

struct sim_shared_event;
struct sim_shared_event *sim_shared_event_new(void); /* NULL: out of memory or descriptors */
struct sim_shared_event *sim_shared_event_open(int fd); /* another process'; takes fd over; NULL: out of memory */
int sim_shared_event_fd(const struct sim_shared_event *e);
void sim_shared_event_hold(struct sim_shared_event *e); /* NULL: nothing */
void sim_shared_event_drop(struct sim_shared_event *e);

unsigned sim_shared_event_newest(const struct sim_shared_event *e); /* number of the newest recording; 0: never recorded */
unsigned sim_shared_event_record(struct sim_shared_event *e);       /* announce one by this process; its number */
struct sim_work *sim_shared_event_signal(struct sim_shared_event *e, unsigned number); /* reaches it; NULL: out of memory */
bool sim_shared_event_reached(struct sim_shared_event *e);          /* is the newest? */
void sim_shared_event_wait(struct sim_shared_event *e);             /* until what is the newest now is reached; no lock held */
struct sim_work *sim_shared_event_waiter(struct sim_shared_event *e); /* the same as a stream's operation; NULL: out of memory */

/* What ipc.c asks of event.c. */
CUresult sim_event_import(struct sim_shared_event *shared, CUevent *out); /* of the current context; takes over shared */
CUresult sim_event_export(CUevent handle, struct sim_shared_event **out, int *device);  /* [locked] INVALID_HANDLE */

#endif
