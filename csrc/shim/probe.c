/* SPDX-License-Identifier: Apache-2.0 */
/* Finding the host backend: runs spillshim-probe, because some drivers crash in cuMemCreate for host memory and a guest
 * must not. Called once per process, by backing.c, when VRAM is getting short.
 * Rules: the program must not notice the child: no SIGCHLD, invisible to its wait(), no shared descriptors, no preload. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shim/config.h"
#include "shim/elfwalk.h"
#include "shim/log.h"
#include "shim/process.h"
#include "shim/resolve.h"

extern char **environ;

enum { STACK = 64 << 10, OUTPUT = 1024 };

/* By glibc's other names: a race detector in the program takes clone for a fork and notes what sigaction sets, and as the
 * child shares the memory, it would think the program's own threads and handlers gone. */
extern int __clone(int (*body)(void *), void *stack, int flags, void *arg, ...);
extern int __sigaction(int number, const struct sigaction *set, struct sigaction *was);

struct child {
    char *const *argv;
    char **env;
    int out;
    sigset_t mask;
};

/* In the child, on its own stack, in the parent's memory until exec: async-signal-safe calls only. */
static int child_main(void *arg)
{
    const struct child *c = arg;
    struct sigaction action = { .sa_handler = SIG_DFL };
    for (int s = 1; s < NSIG; s++) {
        struct sigaction old;
        if (__sigaction(s, NULL, &old) == 0 && old.sa_handler != SIG_IGN && old.sa_handler != SIG_DFL)
            __sigaction(s, &action, NULL);
    }
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(c->out, 1) < 0 || dup2(null, 2) < 0)
        _exit(125);
    /* What the program left inheritable; kernels before 5.9 can't, there the probe holds it while it runs. */
    syscall(SYS_close_range, 3, ~0u, 0);
    sigprocmask(SIG_SETMASK, &c->mask, NULL);
    execve(c->argv[0], c->argv, c->env);
    _exit(127);
}

/* The program's environment without what would load us (or others) into the probe. */
static char **probe_environment(void)
{
    size_t n = 0, kept = 0;
    while (environ && environ[n])
        n++;
    char **env = calloc(n + 2, sizeof *env);
    for (size_t i = 0; env && i < n; i++)
        if (strncmp(environ[i], "LD_PRELOAD=", 11) != 0 && strncmp(environ[i], "CUDA_INJECTION64_PATH=", 22) != 0)
            env[kept++] = environ[i];
    return env;
}

static long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Everything the child writes until it closes its end, or false at the deadline. */
static bool collect(int fd, char *text, size_t size, long deadline)
{
    size_t have = 0;
    for (;;) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        long left = deadline - now_ms();
        int n = left > 0 ? poll(&p, 1, (int)left) : 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        ssize_t got = read(fd, text + have, size - 1 - have);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0 || have + (size_t)got == size - 1) {
            text[have + (got > 0 ? (size_t)got : 0)] = 0;
            return true;
        }
        have += (size_t)got;
    }
}

static bool run(char *const argv[], char *text, size_t size, long timeout_ms)
{
    int pipe_fd[2], status;
    struct child c = { .argv = argv, .env = probe_environment() };
    void *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    sigset_t all;
    bool ok = false;
    if (!c.env || stack == MAP_FAILED || pipe2(pipe_fd, O_CLOEXEC) < 0)
        goto out;
    c.out = pipe_fd[1];
    sigfillset(&all);
    /* Signals wait: a handler of the program must not run in the child, which shares its memory. Exit signal 0 hides the
     * child from SIGCHLD and from a wait() that does not ask for such children. */
    pthread_sigmask(SIG_SETMASK, &all, &c.mask);
    pid_t pid = __clone(child_main, (char *)stack + STACK, CLONE_VM | CLONE_VFORK, &c);
    pthread_sigmask(SIG_SETMASK, &c.mask, NULL);
    close(pipe_fd[1]);
    if (pid > 0) {
        ok = collect(pipe_fd[0], text, size, now_ms() + timeout_ms);
        if (!ok)
            kill(pid, SIGKILL);
        while (waitpid(pid, &status, __WCLONE) < 0 && errno == EINTR)
            continue;
    }
    close(pipe_fd[0]);
out:
    if (stack != MAP_FAILED)
        munmap(stack, STACK);
    free(c.env);
    return ok;
}

/* Where the probe is: beside this library, unless told otherwise. */
static bool probe_path(char *out, size_t size)
{
    const char *own = spill_own_object() ? spill_own_object()->l_name : "";
    const char *slash = strrchr(own, '/');
    if (spill_config()->probe[0])
        snprintf(out, size, "%s", spill_config()->probe);
    else if (slash)
        snprintf(out, size, "%.*s/spillshim-probe", (int)(slash - own), own);
    else
        snprintf(out, size, "./spillshim-probe");
    return access(out, X_OK) == 0;
}

static long value(const char *text, const char *key)
{
    const char *p = strstr(text, key);
    return p ? strtol(p + strlen(key), NULL, 10) : -1;
}

static enum spill_backend backend_named(const char *text)
{
    for (int b = SPILL_BACKEND_HOST_NUMA; b <= SPILL_BACKEND_NONE; b++) {
        const char *name = spill_backend_name((enum spill_backend)b);
        if (strncmp(text, "backend=", 8) == 0 && strncmp(text + 8, name, strlen(name)) == 0 && text[8 + strlen(name)] == ' ')
            return (enum spill_backend)b;
    }
    return SPILL_BACKEND_UNPROBED;
}

static bool attribute(int device, int which)
{
    int value = 0;
    return spill_driver()->cuDeviceGetAttribute(&value, (CUdevice_attribute)which, device) == CUDA_SUCCESS && value == 1;
}

/* CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED (12.9) and ..._HOST_VIRTUAL_... (13.0): older drivers
 * answer an error. */
static enum spill_backend asked_of_driver(int device)
{
    return attribute(device, 141) ? SPILL_BACKEND_HOST_NUMA : attribute(device, 145) ? SPILL_BACKEND_HOST : SPILL_BACKEND_HOSTALLOC;
}

void spill_probe_run(int device, struct spill_probe_result *out)
{
    const struct spill_config *c = spill_config();
    char path[512], ordinal[16], text[OUTPUT] = "";
    const struct spill_device *d = spill_device(device);
    int numa = c->numa[0] ? atoi(c->numa) : d ? d->numa : 0;
    if (c->backend != 0) {
        /* Chosen by the user: indices of the choice and of enum spill_backend agree. */
        *out = (struct spill_probe_result){ (enum spill_backend)c->backend, numa, false };
        return;
    }
    *out = (struct spill_probe_result){ SPILL_BACKEND_HOSTALLOC, numa, false };
    if (!probe_path(path, sizeof path)) {
        spill_log(SPILL_LOG_WARN, "no executable spillshim-probe at %s: falling back to backend hostalloc; reinstall, or set "
                  "SPILLSHIM_PROBE", path);
        return;
    }
    const char *library = spill_real_path(SPILL_LIB_CUDA);
    snprintf(ordinal, sizeof ordinal, "%d", device);
    char *const argv[] = { path, "--device", ordinal, "--library", (char *)(library ? library : "libcuda.so.1"), NULL };
    double seconds = strtod(c->probe_timeout, NULL);
    if (!run(argv, text, sizeof text, seconds > 0 ? (long)(seconds * 1000) : 30000)) {
        spill_log(SPILL_LOG_WARN, "spillshim-probe gave no answer within %s s: falling back to backend hostalloc", c->probe_timeout);
        return;
    }
    if (strncmp(text, "backend=untried", 15) == 0) {
        /* No VRAM left for the probe's own context, or the device lets no second process in: believe what a driver that
         * can be asked says of itself. */
        out->backend = asked_of_driver(device);
        spill_log(SPILL_LOG_INFO, "the probe could not try (%.80s); by the driver's attributes backend=%s", text,
                  spill_backend_name(out->backend));
        return;
    }
    enum spill_backend found = backend_named(text);
    if (found == SPILL_BACKEND_UNPROBED) {
        spill_log(SPILL_LOG_WARN, "spillshim-probe failed (said: %.80s): falling back to backend hostalloc", text);
        return;
    }
    out->backend = found;
    out->mixed_copy = value(text, "mixed_copy=") == 1;
    if (!c->numa[0] && value(text, "numa=") >= 0)
        out->numa = (int)value(text, "numa=");
}
