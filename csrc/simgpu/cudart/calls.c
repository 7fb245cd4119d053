/* SPDX-License-Identifier: Apache-2.0 */
/* See calls.h. Linked into the runtime and into the cuBLAS libraries.
 * Rules: the first call of a name writes, any later one costs a look into a hash table of addresses, without a lock; one
 * write(2) a line, so that lines of several processes do not mix; a log that cannot be written is no reason to fail a call.
 */
#define _GNU_SOURCE
#include "calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SLOTS = 4096 }; /* above the number of entries of any of the libraries */
typedef _Atomic(const char *) slot;

static slot called[SLOTS], said[SLOTS];

static bool first(slot *table, const char *name)
{
    size_t i = (uintptr_t)name * UINT64_C(0x9e3779b97f4a7c15) >> 52;
    for (size_t n = 0; n < SLOTS; n++, i = (i + 1) % SLOTS) {
        const char *there = atomic_load_explicit(&table[i], memory_order_relaxed);
        if (!there && atomic_compare_exchange_strong(&table[i], &there, name))
            return true;
        if (there == name)
            return false;
    }
    return false;
}

static void append(const char *variable, const char *name)
{
    char line[160];
    const char *path = getenv(variable);
    int n = snprintf(line, sizeof line, "%s\n", name);
    int fd = path && *path && n > 0 ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd < 0)
        return;
    ssize_t written = write(fd, line, (size_t)n);
    (void)written;
    close(fd);
}

void sim_called(const char *name)
{
    int saved = errno;
    if (first(called, name))
        append("SIMGPU_CALLS", name);
    errno = saved;
}

void sim_say_once(const char *name, const char *what)
{
    char line[256];
    int saved = errno;
    if (first(said, name)) {
        int n = snprintf(line, sizeof line, "simgpu: %s %s\n", name, what);
        ssize_t written = n > 0 ? write(2, line, (size_t)n) : 0;
        (void)written;
    }
    errno = saved;
}

void sim_stub_called(const char *name)
{
    int saved = errno;
    sim_called(name);
    if (first(said, name)) {
        char line[192];
        int n = snprintf(line, sizeof line, "simgpu: %s is not implemented\n", name);
        ssize_t written = n > 0 ? write(2, line, (size_t)n) : 0;
        (void)written;
        append("SIMGPU_STUB_LOG", name);
    }
    errno = saved;
}
