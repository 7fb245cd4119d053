/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket of a process: PID.sock in a folder of its user's own. Called by the worker (shim/control.c); the other
 * side is spillshim/control.py. Messages: spillshim_abi.h.
 * Rules: nobody but this user and root is heard; what comes in is bounded before it is looked at, and what isn't a request
 * ends its connection, never more; nothing here blocks; a descriptor that the program closed under us (some close all that they
 * find) is neither used nor closed, because its number may be the program's by now. */
#ifndef SPILL_SOCKET_H
#define SPILL_SOCKET_H

#include <stdbool.h>
#include <sys/types.h>

#include "spillshim_abi.h"

/* A descriptor, and what it was when it became ours. */
struct spill_fd {
    int fd; /* -1: none */
    dev_t dev;
    ino_t ino;
};

struct spill_fd spill_fd_own(int fd);
bool spill_fd_ours(const struct spill_fd *fd);
/* Close it if it is still ours. */
void spill_fd_close(struct spill_fd *fd);

/* A socket that listens, the folder it lies in, and the file that it is there. */
struct spill_listener {
    struct spill_fd socket;
    char dir[4096];
    char name[32]; /* "" where there is no file */
    dev_t dev;
    ino_t ino;
};

/* Listen as `pid`.sock in the folder `dir`, which is made if it isn't there. What a dead process left under that name is
 * replaced. 0 or an errno: EPERM the folder is not ours alone, EADDRINUSE somebody listens there. */
int spill_listen(struct spill_listener *l, const char *dir, pid_t pid);
/* Stop listening and take the file away. */
void spill_listen_end(struct spill_listener *l);
/* A caller who may be heard, or -1: errno is EACCES for one who was turned away, else accept's. */
int spill_accept(const struct spill_listener *l);

/* The next request. 1: there is one; 0: none yet; -1: the connection is to be ended. */
int spill_receive(int fd, struct spill_request *out);
/* Send an answer, with descriptor `pass` unless it is -1. False where the connection is to be ended: who asks has to read. */
bool spill_reply(int fd, const struct spill_reply *reply, int pass);

#endif
