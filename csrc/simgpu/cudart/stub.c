/* SPDX-License-Identifier: Apache-2.0 */
/* What a runtime entry without a body does: it names itself, on stderr and in SIMGPU_STUB_LOG, and fails. Called by the
 * generated rt_stubs.c.
 */
#define _GNU_SOURCE
#include "rt.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int rt_stub(const char *name);

int rt_stub(const char *name)
{
    char line[160];
    const char *log = getenv("SIMGPU_STUB_LOG");
    int n = snprintf(line, sizeof line, "simgpu: the runtime's %s is not implemented\n", name);
    ssize_t done = n > 0 ? write(2, line, (size_t)n) : 0;
    int fd = log && *log ? open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : -1;
    if (fd >= 0) {
        n = snprintf(line, sizeof line, "%s\n", name);
        done = write(fd, line, (size_t)n);
        close(fd);
    }
    (void)done;
    return rt_note(cudaErrorNotSupported);
}
