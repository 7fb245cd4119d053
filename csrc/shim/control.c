/* SPDX-License-Identifier: Apache-2.0 */
/* What the worker says and does over its control socket: the status, orders to demote and to promote.
 * Rules: a caller is answered at once or not at all; one who does not read, or of whom nothing makes sense, loses its
 * connection; when all places are taken the one that was silent longest makes room. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "link/ledger.h"
#include "link/segment.h"
#include "link/socket.h"
#include "shim/config.h"
#include "shim/log.h"
#include "shim/process.h"
#include "shim/worker.h"
#include "tiering/moving.h"

enum {
    PAUSE_MS = 1000,
    PATIENCE_MS = 3000, /* with a GPU that is never idle */
};

struct client {
    struct spill_fd fd;
    uint64_t heard; /* number of the turn in which something came from it */
};

static struct spill_listener listener = { .socket = { .fd = -1 } };
static struct spill_fd shown = { .fd = -1 }; /* the segment */
static struct client clients[SPILL_CONTROL_CLIENTS];
static uint64_t turn;
static bool crowded; /* no descriptor for another caller: look again later */

/* The folder of this user's control sockets; spillshim/control.py looks in the same. */
static void folder(char *out, size_t size)
{
    const char *state = spill_config()->state_dir, *runtime = getenv("XDG_RUNTIME_DIR");
    struct stat st;
    if (state[0])
        snprintf(out, size, "%s", state);
    else if (runtime && runtime[0] == '/' && stat(runtime, &st) == 0)
        snprintf(out, size, "%s/spillshim", runtime);
    else
        spill_ledger_default_dir(out, size);
}

void spill_control_open(void)
{
    char dir[4096], fallback[64];
    for (int i = 0; i < SPILL_CONTROL_CLIENTS; i++)
        clients[i].fd.fd = -1;
    shown = spill_fd_own(spill_segment_fd());
    folder(dir, sizeof dir);
    int err = spill_listen(&listener, dir, getpid());
    if (err && !spill_config()->state_dir[0]) {
        spill_ledger_default_dir(fallback, sizeof fallback);
        err = spill_listen(&listener, fallback, getpid());
    }
    if (err)
        spill_log(SPILL_LOG_DEBUG, "no control socket in %s: %s; `spillshim status` does not find this process", dir,
                  strerror(err));
}

void spill_control_close(void)
{
    spill_listen_end(&listener);
    for (int i = 0; i < SPILL_CONTROL_CLIENTS; i++)
        spill_fd_close(&clients[i].fd);
}

void spill_control_abandon(void)
{
    listener.name[0] = 0;
    spill_control_close();
}

int spill_control_watch(struct pollfd fds[])
{
    fds[0] = (struct pollfd){ .fd = crowded ? -1 : listener.socket.fd, .events = POLLIN };
    for (int i = 0; i < SPILL_CONTROL_CLIENTS; i++)
        fds[1 + i] = (struct pollfd){ .fd = clients[i].fd.fd, .events = POLLIN };
    return crowded ? PAUSE_MS : -1;
}

/* ---- answers ---- */

/* What the segment says of now; its counters are always up to date. */
static void publish(void)
{
    const struct spill_stats *s = spill_stats();
    uint64_t vram, ram;
    spill_holdings(&vram, &ram);
    spill_segment_publish(spill_state_now(), spill_state_why(), vram, ram,
                          __atomic_load_n(&s->managed_bytes, __ATOMIC_RELAXED), __atomic_load_n(&s->regions, __ATOMIC_RELAXED));
}

static void carry_out(const struct spill_request *request, struct spill_reply *reply)
{
    struct spill_order_result r = request->command == SPILL_COMMAND_DEMOTE
                                      ? spill_order_demote(request->bytes, PATIENCE_MS)
                                      : spill_order_promote(request->bytes, PATIENCE_MS);
    reply->reason = r.reason;
    reply->moved = r.moved;
    reply->left = r.left;
}

/* False where the connection is to be ended. */
static bool answer(int fd)
{
    struct spill_request request;
    int got = spill_receive(fd, &request);
    if (got <= 0)
        return got == 0;
    struct spill_reply reply = { .magic = SPILL_CONTROL_MAGIC, .version = SPILL_CONTROL_VERSION, .id = request.id,
                                 .command = request.command };
    if (request.command != SPILL_COMMAND_STATUS) {
        carry_out(&request, &reply);
        return spill_reply(fd, &reply, -1);
    }
    publish();
    return spill_reply(fd, &reply, spill_fd_ours(&shown) ? shown.fd : -1);
}

/* ---- callers ---- */

static void admit(void)
{
    int fd = spill_accept(&listener);
    if (fd < 0) {
        if (errno == EACCES)
            spill_log(SPILL_LOG_INFO, "a process of another user was turned away from the control socket");
        else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            crowded = true;
        else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            listener.socket.fd = -1; /* the program closed it: the number is not ours any more */
        return;
    }
    struct client *place = &clients[0];
    for (int i = 0; i < SPILL_CONTROL_CLIENTS && place->fd.fd >= 0; i++)
        if (clients[i].fd.fd < 0 || clients[i].heard < place->heard)
            place = &clients[i];
    spill_fd_close(&place->fd);
    *place = (struct client){ spill_fd_own(fd), turn };
}

void spill_control_turn(const struct pollfd fds[])
{
    turn++;
    for (int i = 0; i < SPILL_CONTROL_CLIENTS; i++) {
        struct client *c = &clients[i];
        if (c->fd.fd < 0 || !fds[1 + i].revents)
            continue;
        c->heard = turn;
        if (!spill_fd_ours(&c->fd) || !answer(c->fd.fd))
            spill_fd_close(&c->fd);
    }
    if (crowded || fds[0].revents) {
        crowded = false;
        admit();
    }
}
