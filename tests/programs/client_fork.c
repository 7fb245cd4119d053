/* SPDX-License-Identifier: Apache-2.0 */
/* A process tree: the parent uses CUDA, forks children that exec CUDA programs (this one again), and one child that does
 * nothing but exit. Ends with the worst status of all.
 * Usage: client_fork CHILDREN COUNT MIB SEED */
#define _GNU_SOURCE
#include "exercise.h"

#include <sys/wait.h>
#include <unistd.h>

static int worst(int a, int status)
{
    int b = WIFEXITED(status) ? WEXITSTATUS(status) : 99;
    return b > a ? b : a;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 64;
    int children = atoi(argv[1]), status;
    unsigned count = (unsigned)atoi(argv[2]);
    uint64_t bytes = strtoull(argv[3], NULL, 10) << 20, seed = strtoull(argv[4], NULL, 10);
    int result = exercise_device(count, bytes, seed);
    char next[32];

    if (children == 0)
        return exercise_say(result);
    fflush(stdout);
    pid_t plain = fork();
    if (plain == 0)
        exit(7); /* runs atexit handlers and destructors in a copy of a process that used CUDA */
    if (waitpid(plain, &status, 0) != plain || !WIFEXITED(status) || WEXITSTATUS(status) != 7) {
        fprintf(stderr, "the child that only exits ended with status %#x\n", status);
        result = result > 98 ? result : 98;
    }
    for (int i = 0; i < children; i++) {
        pid_t child = fork();
        if (child == 0) {
            snprintf(next, sizeof next, "%" PRIu64, seed + 1000 * (i + 1));
            execl("/proc/self/exe", "client_fork", "0", argv[2], argv[3], next, (char *)NULL);
            _exit(97);
        }
        if (waitpid(child, &status, 0) != child)
            return 96;
        result = worst(result, status);
    }
    return exercise_say(result);
}
