/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment hook: what the preloaded library costs a program per call. Two workers (this program, --worker) live side by
 * side, one with the library and one without, and are asked in turn, first the one and then the other: A B, B A, A B ...
 * Decides: whether the launch hook is cheap enough to be on by default (goal: at most 40 ns and 1 % of a launch).
 * gpu-check: groups=hook order=200 expect=15 limit=90
 * Rules: the workers' clock is CLOCK_MONOTONIC around N calls, with the wait for the device outside where the call is
 * asynchronous; the figure is the median over rounds of with/without of one round. The library is GPU_CHECK_LIBRARY (or
 * SPILLSHIM_LIBRARY); it must be seen in the worker's memory map. */
#define _GNU_SOURCE
#include "gpu.h"

#include <fcntl.h>

enum { ROUNDS = 12, MANAGED = 64 << 20, SMALL = 64 << 10, COPY = 4 << 10, QUEUE = 500 };

static const struct operation {
    const char *name, *ask;
    int calls; /* of one sample on a GPU */
} operations[] = {
    { "launch_0", "launches of an empty kernel without parameters", 10000 },
    { "launch_8", "launches of an empty kernel with 8 parameters, 4 of them pointers into a managed allocation", 10000 },
    { "launch_16", "launches of an empty kernel with 16 parameters, 8 of them pointers into a managed allocation", 10000 },
    { "alloc_small", "cuMemAlloc and cuMemFree of 64 KiB, which stay the driver's", 1000 },
    { "alloc_managed", "cuMemAlloc and cuMemFree of 64 MiB, which the library manages", 100 },
    { "copy_h2d", "cuMemcpyHtoD of 4 KiB", 2000 },
    { "copy_d2d", "cuMemcpyDtoDAsync of 4 KiB inside a managed allocation", 5000 },
    { "memset", "cuMemsetD8Async of 4 KiB inside a managed allocation", 5000 },
    { "mem_info", "cuMemGetInfo", 2000 },
    { "pointer", "cuPointerGetAttribute (memory type) of a managed pointer", 5000 },
};
enum { OPERATIONS = sizeof operations / sizeof operations[0] };

static void declare(void)
{
    for (int i = 0; i < OPERATIONS; i++) {
        char row[64], ask[200];
        snprintf(row, sizeof row, "hook.%s", operations[i].name);
        snprintf(ask, sizeof ask, "%s: time with the library / without", operations[i].ask);
        xp_row("hook", row, ask, "ratio", NULL, i < 3 ? "whether launches are watched by default (at most 1.01)" : "what the hooks may cost");
    }
}

/* ---- the worker ---- */

static CUfunction empty[3];
static CUdeviceptr managed;
static CUstream stream;

static bool worker_open(void)
{
    CUmodule m;
    return xp_context() && xp_module("params", &m) && XP(cuModuleGetFunction(&empty[0], m, "par_empty0")) &&
           XP(cuModuleGetFunction(&empty[1], m, "par_empty8")) && XP(cuModuleGetFunction(&empty[2], m, "par_empty16")) &&
           XP(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING)) && XP(cuMemAlloc_v2(&managed, MANAGED));
}

static CUresult call(int op)
{
    static char buffer[COPY];
    static unsigned unsigned_value;
    size_t a, b;
    CUdeviceptr p[8];
    uint64_t word = 7;
    for (int i = 0; i < 8; i++)
        p[i] = managed + (size_t)i * (MANAGED / 8);
    void *args8[] = { &p[0], &p[1], &p[2], &p[3], &word, &word, &word, &word };
    void *args16[] = { &p[0], &p[1], &p[2], &p[3], &p[4], &p[5], &p[6], &p[7], &word, &word, &word, &word, &word, &word, &word, &word };
    CUresult r;
    switch (op) {
    case 0: return xp_launch(empty[0], 1, 32, stream, NULL);
    case 1: return xp_launch(empty[1], 1, 32, stream, args8);
    case 2: return xp_launch(empty[2], 1, 32, stream, args16);
    case 3: case 4:
        r = cu.cuMemAlloc_v2(&p[0], op == 3 ? SMALL : MANAGED);
        return r ? r : cu.cuMemFree_v2(p[0]);
    case 5: return cu.cuMemcpyHtoD_v2(managed, buffer, COPY);
    case 6: return cu.cuMemcpyDtoDAsync_v2(managed, managed + MANAGED / 2, COPY, stream);
    case 7: return cu.cuMemsetD8Async(managed, 0, COPY, stream);
    case 8: return cu.cuMemGetInfo_v2(&a, &b);
    default: return cu.cuPointerGetAttribute(&unsigned_value, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, managed);
    }
}

/* Nanoseconds per call. The queue is emptied before it is full: a full one makes the caller wait for the device. */
static bool worker_sample(int op, int calls, double *ns)
{
    double spent = 0;
    for (int done = 0; done < calls;) {
        int n = calls - done < QUEUE ? calls - done : QUEUE;
        CUresult r = CUDA_SUCCESS;
        double start = xp_now();
        for (int i = 0; i < n && !r; i++)
            r = call(op);
        spent += xp_now() - start;
        if (!xp_ok(r, operations[op].name) || !XP(cuCtxSynchronize()))
            return false;
        done += n;
    }
    *ns = spent * 1e9 / calls;
    return true;
}

/* Whether the library is mapped into this process. */
static bool has_library(const char *library)
{
    char line[PATH_MAX + 200], real[PATH_MAX];
    FILE *f = fopen("/proc/self/maps", "r");
    bool found = false;
    if (!f || !realpath(library, real))
        snprintf(real, sizeof real, "%s", library);
    while (f && !found && fgets(line, sizeof line, f))
        found = strstr(line, real) != NULL;
    if (f)
        fclose(f);
    return found;
}

/* "ready" or "fail TEXT", then for each line "OPERATION CALLS" one line with nanoseconds per call. */
static int worker(const char *library)
{
    int op, calls;
    if (*library && !has_library(library))
        snprintf(xp_failure, sizeof xp_failure, "the library was not loaded into the worker: %.150s", library);
    else if (worker_open()) {
        puts("ready");
        fflush(stdout);
        while (scanf("%d %d", &op, &calls) == 2) {
            double ns;
            if (op < 0 || op >= OPERATIONS || !worker_sample(op, calls, &ns))
                break;
            printf("%.3f\n", ns);
            fflush(stdout);
        }
    }
    if (xp_failure[0])
        printf("fail %s\n", xp_failure);
    fflush(stdout);
    _exit(0);
}

/* ---- the asking side ---- */

struct helper {
    pid_t pid;
    FILE *ask, *hear;
};

static bool helper_line(struct helper *h, char *line, int room)
{
    if (!fgets(line, room, h->hear)) {
        snprintf(xp_failure, sizeof xp_failure, "a worker ended without a word");
        return false;
    }
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "fail ", 5))
        snprintf(xp_failure, sizeof xp_failure, "%.240s", line + 5);
    return strncmp(line, "fail ", 5) != 0;
}

static bool helper_start(struct helper *h, const char *library)
{
    int in[2], out[2];
    char line[400];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
        return false;
    h->pid = fork();
    if (h->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        if (*library)
            setenv("LD_PRELOAD", library, 1);
        else
            unsetenv("LD_PRELOAD");
        setenv("SPILLSHIM_QUIET", "1", 1);
        execl("/proc/self/exe", xp.self, "--worker", library, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    h->ask = fdopen(in[1], "w");
    h->hear = fdopen(out[0], "r");
    return helper_line(h, line, sizeof line);
}

static bool helper_sample(struct helper *h, int op, int calls, double *ns)
{
    char line[400];
    fprintf(h->ask, "%d %d\n", op, calls);
    fflush(h->ask);
    return helper_line(h, line, sizeof line) && (*ns = atof(line)) > 0;
}

static void row(struct helper plain, struct helper with, int op)
{
    static struct xp_samples ratio, without_ns, with_ns;
    char name[64];
    double a, b;
    /* Samples of some 10 ms: long against a timer's grain, short enough that a noisy neighbour spoils few of them. */
    int calls = operations[op].calls;
    snprintf(name, sizeof name, "hook.%s", operations[op].name);
    if (!xp_begin(name, 30))
        return;
    ratio.n = without_ns.n = with_ns.n = 0;
    bool ok = helper_sample(&plain, op, calls / 10 + 1, &a) && helper_sample(&with, op, calls / 10 + 1, &b);
    if (ok && a * calls > 30e6)
        calls = (int)(30e6 / a) + 1;
    else if (ok && a * calls < 10e6 && calls > 1000)
        calls = (int)fmin(10e6 / a, 100000);
    for (int i = 0; ok && i < ROUNDS; i++) {
        ok = i % 2 ? helper_sample(&with, op, calls, &b) && helper_sample(&plain, op, calls, &a)
                   : helper_sample(&plain, op, calls, &a) && helper_sample(&with, op, calls, &b);
        xp_sample(&ratio, b / a);
        xp_sample(&without_ns, a);
        xp_sample(&with_ns, b);
    }
    if (!ok) {
        xp_rest_unanswered("%s", xp_failure[0] ? xp_failure : "a worker did not answer");
        _exit(0);
    }
    struct xp_text raw = { 0 };
    struct xp_stats r = xp_stats(&ratio), without = xp_stats(&without_ns), hooked = xp_stats(&with_ns);
    xp_add(&raw, "\"calls\": %d", calls);
    xp_add_stats(&raw, "ratio", r);
    xp_add_stats(&raw, "without_ns", without);
    xp_add_stats(&raw, "with_ns", hooked);
    xp_say(name, XP_MEASURED, r.median, raw.s, "%.0f ns without, %.0f ns with (%+.0f ns); %.3f times, from %.3f to %.3f in %d pairs; %.0f a second",
           without.median, hooked.median, hooked.median - without.median, r.median, r.min, r.max, r.n, 1e9 / hooked.median);
}

static void hook(void)
{
    struct helper plain = { 0 }, with = { 0 };
    const char *library = getenv("GPU_CHECK_LIBRARY");
    if (!library || !*library)
        library = getenv("SPILLSHIM_LIBRARY");
    if (!library || access(library, R_OK)) {
        xp_rest_unanswered("libspillshim.so is not built: GPU_CHECK_LIBRARY is %s", library ? library : "not set");
        return;
    }
    signal(SIGPIPE, SIG_IGN);
    if (!helper_start(&plain, "") || !helper_start(&with, library)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int op = 0; op < OPERATIONS; op++)
        row(plain, with, op);
    fclose(plain.ask);
    fclose(with.ask);
    waitpid(plain.pid, NULL, 0);
    waitpid(with.pid, NULL, 0);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "hook", hook, 60 } };
    if (argc == 3 && !strcmp(argv[1], "--worker"))
        return worker(argv[2]);
    return xp_main(argc, argv, declare, cases, 1);
}
