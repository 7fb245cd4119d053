/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a file or folder is this user's alone. Called for the ledger, for control sockets and for what is remembered: what another
 * user could have planted, or could change, is not to be trusted. */
#ifndef SPILL_OWN_H
#define SPILL_OWN_H

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

/* 0 where what is open as `fd` is a `kind` (S_IFDIR, S_IFREG) of this user's that nobody else may write; else an errno. */
static inline int spill_own_check(int fd, mode_t kind)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return errno;
    return (st.st_mode & S_IFMT) == kind && st.st_uid == geteuid() && !(st.st_mode & 022) ? 0 : EPERM;
}

#endif
