/* SPDX-License-Identifier: Apache-2.0 */
/* Entries that are not implemented name themselves, and lines go to log files. Called by the generated stubs of the driver
 * and of NVML (through sim_stub, sim_nvml_stub) and by the trace; linked into both libraries.
 * Rules: one write(2) a line; a log that cannot be written is said once, and no reason to fail a call.
 */
#define _GNU_SOURCE
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void sim_append(const char *path, const char *line, size_t n)
{
    int f = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    static atomic_bool said;
    if (f < 0) {
        if (!atomic_exchange(&said, true))
            sim_complain("cannot write to %s: %s", path, strerror(errno));
        return;
    }
    ssize_t written = write(f, line, n);
    (void)written;
    close(f);
}

/* Once for each name: programs poll. Names are literals of a generated file, so the pointer identifies them. */
static bool first_time(const char *name)
{
    static const char *seen[1024];
    static unsigned count;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    bool fresh = true;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < count; i++)
        fresh &= seen[i] != name;
    if (fresh && count < sizeof seen / sizeof *seen)
        seen[count++] = name;
    pthread_mutex_unlock(&lock);
    return fresh;
}

void sim_stub_reached(const char *name, const char *library)
{
    char line[128];
    if (!first_time(name))
        return;
    int n = snprintf(line, sizeof line, "%s\n", name);
    sim_complain("%s is not implemented by the simulated %s", name, library);
    if (sim_config()->stub_log[0] && n > 0 && (size_t)n < sizeof line)
        sim_append(sim_config()->stub_log, line, (size_t)n);
}
