/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket, as socket.h says. */
#define _GNU_SOURCE /* struct ucred, accept4, O_PATH */
#include "link/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "link/own.h"

enum { BACKLOG = 8 };

struct spill_fd spill_fd_own(int fd)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return (struct spill_fd){ .fd = -1 };
    return (struct spill_fd){ fd, st.st_dev, st.st_ino };
}

bool spill_fd_ours(const struct spill_fd *fd)
{
    struct stat st;
    return fd->fd >= 0 && fstat(fd->fd, &st) == 0 && st.st_dev == fd->dev && st.st_ino == fd->ino;
}

void spill_fd_close(struct spill_fd *fd)
{
    if (spill_fd_ours(fd))
        close(fd->fd);
    fd->fd = -1;
}

/* ---- the listener ---- */

/* The folder's descriptor, or -1 and errno. Another user must not be able to put something else under our names. */
static int open_dir(const char *dir, bool create)
{
    if (create && mkdir(dir, 0700) < 0 && errno != EEXIST)
        return -1;
    int fd = open(dir, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int err = fd < 0 ? 0 : spill_own_check(fd, S_IFDIR);
    if (!err)
        return fd;
    close(fd);
    errno = err;
    return -1;
}

/* By way of the folder's descriptor: short enough for any folder, and surely in the one that was looked at. */
static struct sockaddr_un address(int dirfd, const char *name)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d/%s", dirfd, name);
    return a;
}

static int new_socket(void)
{
    return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* True where a process listens under `name`: one with our pid in another namespace of pids. */
static bool somebody_listens(int dirfd, const char *name)
{
    struct sockaddr_un a = address(dirfd, name);
    int fd = new_socket();
    if (fd < 0)
        return false;
    bool alive = connect(fd, (struct sockaddr *)&a, sizeof a) == 0 || errno == EAGAIN;
    close(fd);
    return alive;
}

/* Under another name until it listens: whoever meets PID.sock may take a refusal for the proof that nobody is there. */
static int listen_in(struct spill_listener *l, int dirfd, int fd)
{
    struct stat st;
    char draft[40];
    if (somebody_listens(dirfd, l->name))
        return EADDRINUSE;
    snprintf(draft, sizeof draft, "%s.new", l->name);
    struct sockaddr_un a = address(dirfd, draft);
    unlinkat(dirfd, draft, 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0)
        return errno;
    if (fchmodat(dirfd, draft, 0600, 0) == 0 && listen(fd, BACKLOG) == 0 &&
        fstatat(dirfd, draft, &st, AT_SYMLINK_NOFOLLOW) == 0 && renameat(dirfd, draft, dirfd, l->name) == 0) {
        l->dev = st.st_dev;
        l->ino = st.st_ino;
        return 0;
    }
    int err = errno;
    unlinkat(dirfd, draft, 0);
    return err;
}

int spill_listen(struct spill_listener *l, const char *dir, pid_t pid)
{
    l->socket.fd = -1;
    l->name[0] = 0;
    if (strlen(dir) >= sizeof l->dir)
        return ENAMETOOLONG;
    snprintf(l->dir, sizeof l->dir, "%s", dir);
    int dirfd = open_dir(dir, true);
    if (dirfd < 0)
        return errno;
    int fd = new_socket(), err = fd < 0 ? errno : 0;
    snprintf(l->name, sizeof l->name, "%d.sock", (int)pid);
    if (!err)
        err = listen_in(l, dirfd, fd);
    close(dirfd);
    if (err) {
        if (fd >= 0)
            close(fd);
        l->name[0] = 0;
        return err;
    }
    l->socket = spill_fd_own(fd);
    return 0;
}

void spill_listen_end(struct spill_listener *l)
{
    struct stat st;
    int dirfd = l->name[0] ? open_dir(l->dir, false) : -1;
    /* Before the file goes, so that nobody else can have put theirs in its place meanwhile. */
    if (dirfd >= 0 && fstatat(dirfd, l->name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlinkat(dirfd, l->name, 0);
    if (dirfd >= 0)
        close(dirfd);
    l->name[0] = 0;
    spill_fd_close(&l->socket);
}

int spill_accept(const struct spill_listener *l)
{
    struct ucred who;
    socklen_t size = sizeof who;
    if (!spill_fd_ours(&l->socket))
        return errno = EBADF, -1;
    int fd = accept4(l->socket.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return -1;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && (who.uid == geteuid() || who.uid == 0))
        return fd;
    close(fd);
    return errno = EACCES, -1;
}

/* ---- messages ---- */

int spill_receive(int fd, struct spill_request *out)
{
    struct iovec iov = { out, sizeof *out };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    /* Without room for ancillary data: descriptors that somebody sends are closed by the kernel. */
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (n != sizeof *out || msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || out->magic != SPILL_CONTROL_MAGIC ||
        out->version != SPILL_CONTROL_VERSION || out->command < SPILL_COMMAND_STATUS || out->command > SPILL_COMMAND_PROMOTE)
        return -1;
    return 1;
}

bool spill_reply(int fd, const struct spill_reply *reply, int pass)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = { { 0 } };
    struct iovec iov = { (void *)reply, sizeof *reply };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    if (pass >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof pass);
        memcpy(CMSG_DATA(c), &pass, sizeof pass);
    }
    return sendmsg(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof *reply;
}
