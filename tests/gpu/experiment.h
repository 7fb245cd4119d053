/* SPDX-License-Identifier: Apache-2.0 */
/* The frame of an experiment on a GPU: options, rows, cases. Included once by each program tests/gpu/NAME.c; driver and
 * memory helpers are in gpu.h. Compiled with: cc -std=gnu11 -O2 -Wall -I<cuda.h's folder> NAME.c -ldl -lpthread -lm
 *
 * An experiment declares its rows (what is asked) and its cases (who answers them). The starting process never touches the
 * driver: it runs each case in a child (the same program, --child CASE), forwards the rows that come and answers for those
 * that do not. So a crash, a hang or a dead context costs the rows it belongs to:
 *   - a child announces the row it works on (xp_begin) with a time limit; past it the child is killed and started again for
 *     the rows that are left;
 *   - a row whose child died is "unanswered", unless dying is one of its answers (xp_row_may_die);
 *   - after a sticky error the child calls xp_again() and a fresh one carries on with a fresh context.
 *
 *   static void declare(void) { xp_row("main", "zero.fresh_vram", "what fresh VRAM holds", "bool", "vmm.fresh_is_zero", "scrubbing"); }
 *   static void body(void)    { if (xp_begin("zero.fresh_vram", 10)) xp_say("zero.fresh_vram", XP_CONFIRMS, 1, NULL, "all zero"); }
 *   int main(int argc, char **argv) { static const struct xp_case c[] = { { "main", body, 30 } };
 *                                     return xp_main(argc, argv, declare, c, 1); }
 *
 * Each row is one line of JSON on stdout, flushed at once. By hand: NAME --child CASE shows what one case says.
 * Exit: 0 when every declared row was said, whatever it says; 1 when not; 2 usage. */
#ifndef EXPERIMENT_H
#define EXPERIMENT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define XP_UNUSED __attribute__((unused))
#define XP_MIB ((size_t)1 << 20)
#define XP_GIB ((size_t)1 << 30)
#define XP_NAN NAN

/* What a row says about the belief it names; a figure without a belief is "measured". */
#define XP_CONFIRMS "confirms"
#define XP_CORRECTS "corrects"
#define XP_MEASURED "measured"
#define XP_UNANSWERED "unanswered"

enum { XP_MAX_ROWS = 2048, XP_LINE = 1 << 16, XP_EXIT_AGAIN = 75 };

/* ---- options: what the experiment may use ---- */

static struct {
    size_t vram, ram; /* bytes of VRAM and of pinned RAM, at most */
    double seconds;   /* for the whole experiment */
    unsigned seed;
    const char *child; /* the case that this process is a child for, else NULL */
    const char *self;  /* argv[0], for messages */
} xp XP_UNUSED = { .vram = 12 * XP_GIB, .ram = 24 * XP_GIB, .seconds = 60, .seed = 1 };

/* ---- small things ---- */

/* CLOCK_MONOTONIC in seconds. */
XP_UNUSED static double xp_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

XP_UNUSED static void xp_sleep(double seconds)
{
    struct timespec t = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };
    while (nanosleep(&t, &t) < 0 && errno == EINTR)
        ;
}

/* splitmix64 */
XP_UNUSED static uint64_t xp_mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Text that is built piece by piece and cut when full: never an overflow. Start with {0}. */
struct xp_text {
    size_t n;
    char s[XP_LINE / 2];
};

XP_UNUSED __attribute__((format(printf, 2, 3))) static void xp_add(struct xp_text *t, const char *format, ...)
{
    va_list a;
    va_start(a, format);
    int n = t->n < sizeof t->s ? vsnprintf(t->s + t->n, sizeof t->s - t->n, format, a) : 0;
    va_end(a);
    if (n > 0)
        t->n = t->n + (size_t)n < sizeof t->s ? t->n + (size_t)n : sizeof t->s;
}

/* A JSON string with its quotes. */
XP_UNUSED static void xp_add_string(struct xp_text *t, const char *s)
{
    xp_add(t, "\"");
    for (; *s; s++)
        if (*s == '"' || *s == '\\')
            xp_add(t, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            xp_add(t, "\\u%04x", *s);
        else
            xp_add(t, "%c", *s);
    xp_add(t, "\"");
}

/* A JSON number, null when it is none. */
XP_UNUSED static void xp_add_number(struct xp_text *t, double v)
{
    if (isfinite(v))
        xp_add(t, v == floor(v) && fabs(v) < 0x1p53 ? "%.0f" : "%.9g", v);
    else
        xp_add(t, "null");
}

/* ---- samples ---- */

struct xp_samples {
    int n;
    double v[4096]; /* further ones are dropped */
};

struct xp_stats {
    int n;
    double median, min, max, p99;
};

XP_UNUSED static void xp_sample(struct xp_samples *s, double v)
{
    if (s->n < (int)(sizeof s->v / sizeof s->v[0]))
        s->v[s->n++] = v;
}

static int xp_order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* NaN everywhere without samples. Sorts them. */
XP_UNUSED static struct xp_stats xp_stats(struct xp_samples *s)
{
    struct xp_stats r = { s->n, NAN, NAN, NAN, NAN };
    if (!s->n)
        return r;
    qsort(s->v, (size_t)s->n, sizeof s->v[0], xp_order);
    r.median = s->n % 2 ? s->v[s->n / 2] : (s->v[s->n / 2 - 1] + s->v[s->n / 2]) / 2;
    r.min = s->v[0];
    r.max = s->v[s->n - 1];
    r.p99 = s->v[(int)ceil(0.99 * s->n) - 1];
    return r;
}

/* `"NAME": {"n", "median", "min", "max"}`, for a row's raw object. */
XP_UNUSED static void xp_add_stats(struct xp_text *t, const char *name, struct xp_stats s)
{
    xp_add(t, "%s\"%s\": {\"n\": %d, \"median\": ", t->n && t->s[t->n - 1] != '{' ? ", " : "", name, s.n);
    xp_add_number(t, s.median);
    xp_add(t, ", \"min\": ");
    xp_add_number(t, s.min);
    xp_add(t, ", \"max\": ");
    xp_add_number(t, s.max);
    xp_add(t, ", \"p99\": ");
    xp_add_number(t, s.p99);
    xp_add(t, "}");
}

/* ---- rows ---- */

struct xp_row {
    char of[32], name[96];
    char *ask, *unit, *belief, *decides; /* belief NULL: a figure nobody has a belief about */
    const char *dying;                   /* verdict when the child dies in it; NULL: unanswered */
    bool said;
};

static struct xp_row xp_rows[XP_MAX_ROWS];
static int xp_row_count;

static struct xp_row *xp_row_find(const char *name)
{
    for (int i = 0; i < xp_row_count; i++)
        if (!strcmp(xp_rows[i].name, name))
            return &xp_rows[i];
    return NULL;
}

/* Declare a row of a case. `unit`: bool, us, ms, GB/s, bytes, count, code, text ... `belief`: an id of simgpu's
 * BELIEFS.md or NULL. `decides`: what in the design hangs on it. The texts are copied. */
XP_UNUSED static void xp_row(const char *of, const char *name, const char *ask, const char *unit, const char *belief, const char *decides)
{
    if (xp_row_count == XP_MAX_ROWS || strlen(name) >= sizeof xp_rows[0].name || strlen(of) >= sizeof xp_rows[0].of || xp_row_find(name)) {
        fprintf(stderr, "row %s: declared twice, name too long or more than %d rows\n", name, XP_MAX_ROWS);
        exit(2);
    }
    struct xp_row *r = &xp_rows[xp_row_count++];
    strcpy(r->of, of);
    strcpy(r->name, name);
    r->ask = strdup(ask);
    r->unit = strdup(unit);
    r->belief = belief ? strdup(belief) : NULL;
    r->decides = strdup(decides);
}

/* The last declared row is answered, with this verdict, when the process that asks it dies of a signal. A hang is no answer. */
XP_UNUSED static void xp_row_may_die(const char *verdict)
{
    xp_rows[xp_row_count - 1].dying = verdict;
}

static void xp_write(const char *s, size_t n)
{
    while (n) {
        ssize_t w = write(STDOUT_FILENO, s, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            _exit(3); /* nobody listens any more */
        s += w;
        n -= (size_t)w;
    }
}

static void xp_emit(struct xp_row *r, const char *verdict, double value, const char *raw, const char *seen)
{
    static struct xp_text t;
    t.n = 0;
    xp_add(&t, "{\"row\": \"%s\", \"ask\": ", r->name);
    xp_add_string(&t, r->ask);
    xp_add(&t, ", \"seen\": ");
    xp_add_string(&t, seen);
    xp_add(&t, ", \"value\": ");
    xp_add_number(&t, strcmp(verdict, XP_UNANSWERED) ? value : NAN);
    xp_add(&t, ", \"unit\": \"%s\", \"belief\": ", r->unit);
    if (r->belief)
        xp_add_string(&t, r->belief);
    else
        xp_add(&t, "null");
    xp_add(&t, ", \"verdict\": \"%s\", \"decides\": ", verdict);
    xp_add_string(&t, r->decides);
    /* A raw object that no longer fits is left out rather than cut. */
    bool fits = raw && t.n + strlen(raw) + 32 < sizeof t.s;
    xp_add(&t, ", \"raw\": {%s}}\n", fits ? raw : "");
    xp_write(t.s, t.n);
    r->said = true;
}

/* Say a declared row. `value`: a number in the row's unit (XP_NAN: none); `raw`: the inside of a JSON object, or NULL;
 * `seen`: what was seen, for a person. Only the first answer counts. */
XP_UNUSED __attribute__((format(printf, 5, 6))) static void xp_say(const char *name, const char *verdict, double value, const char *raw,
                                                                    const char *seen, ...)
{
    static char text[8192];
    struct xp_row *r = xp_row_find(name);
    va_list a;
    if (!r) {
        fprintf(stderr, "row %s was never declared\n", name);
        exit(3);
    }
    if (r->said)
        return;
    va_start(a, seen);
    vsnprintf(text, sizeof text, seen, a);
    va_end(a);
    xp_emit(r, verdict, value, raw, text);
}

/* CONFIRMS or CORRECTS, for a yes-or-no belief; MEASURED for a row without belief. */
XP_UNUSED static const char *xp_verdict(const char *name, bool as_believed)
{
    struct xp_row *r = xp_row_find(name);
    return !r || !r->belief ? XP_MEASURED : as_believed ? XP_CONFIRMS : XP_CORRECTS;
}

/* Is this row still to be answered? If so, announce it: past `seconds` without an answer this process is killed. */
XP_UNUSED static bool xp_begin(const char *name, double seconds)
{
    struct xp_row *r = xp_row_find(name);
    char line[160];
    if (!r) {
        fprintf(stderr, "row %s was never declared\n", name);
        exit(3);
    }
    if (r->said)
        return false;
    int n = snprintf(line, sizeof line, "@%s %.3f\n", name, seconds);
    xp_write(line, (size_t)n);
    return true;
}

/* Every row of this case that is still open has the same reason for not being answered. */
XP_UNUSED __attribute__((format(printf, 1, 2))) static void xp_rest_unanswered(const char *why, ...)
{
    char text[1024];
    va_list a;
    va_start(a, why);
    vsnprintf(text, sizeof text, why, a);
    va_end(a);
    for (int i = 0; i < xp_row_count; i++)
        if (xp.child && !strcmp(xp_rows[i].of, xp.child) && !xp_rows[i].said)
            xp_emit(&xp_rows[i], XP_UNANSWERED, NAN, NULL, text);
}

/* The context is dead: let a fresh process answer the rows that are left. Say the present row before. */
XP_UNUSED __attribute__((noreturn)) static void xp_again(void)
{
    _exit(XP_EXIT_AGAIN); /* without the driver's exit handlers: after a sticky error they may hang */
}

/* ---- cases ---- */

struct xp_case {
    const char *name;
    void (*run)(void);
    double seconds; /* for the case with all its restarts */
};

static struct xp_row *xp_open_row(const char *of)
{
    for (int i = 0; i < xp_row_count; i++)
        if (!strcmp(xp_rows[i].of, of) && !xp_rows[i].said)
            return &xp_rows[i];
    return NULL;
}

static pid_t xp_spawn(const struct xp_case *c, int *out)
{
    static char done[XP_MAX_ROWS + 1];
    char vram[32], ram[32], seconds[32], seed[32];
    int fd[2];
    for (int i = 0; i < xp_row_count; i++)
        done[i] = xp_rows[i].said ? '1' : '0';
    done[xp_row_count] = 0;
    snprintf(vram, sizeof vram, "%zu", xp.vram);
    snprintf(ram, sizeof ram, "%zu", xp.ram);
    snprintf(seconds, sizeof seconds, "%.3f", c->seconds);
    snprintf(seed, sizeof seed, "%u", xp.seed);
    if (pipe(fd) < 0)
        return -1;
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(3);
        dup2(fd[1], STDOUT_FILENO);
        close(fd[0]);
        close(fd[1]);
        execl("/proc/self/exe", xp.self, "--child", c->name, "--done", done, "--vram", vram, "--ram", ram, "--seconds", seconds,
              "--seed", seed, (char *)NULL);
        _exit(127);
    }
    close(fd[1]);
    *out = fd[0];
    return pid;
}

/* One line of a child: an announcement or a row. */
static void xp_hear(char *line, struct xp_row **at, double *deadline)
{
    char name[96];
    double seconds;
    struct xp_row *r;
    if (sscanf(line, "@%95s %lf", name, &seconds) == 2) {
        *at = xp_row_find(name);
        *deadline = xp_now() + seconds;
    } else if (sscanf(line, "{\"row\": \"%95[^\"]\"", name) == 1 && (r = xp_row_find(name)) && !r->said) {
        r->said = true;
        if (*at == r) {
            *at = NULL;
            *deadline = INFINITY;
        }
        xp_write(line, strlen(line));
        xp_write("\n", 1);
    } else {
        fprintf(stderr, "%s\n", line); /* neither: something printed by a library */
    }
}

/* Read a child to its end or to its deadline. Returns its wait status; *timed_out. */
static int xp_listen(pid_t pid, int fd, double end, struct xp_row **at, bool *timed_out)
{
    static char buffer[XP_LINE];
    size_t have = 0;
    double deadline = INFINITY;
    int status = 0;
    *timed_out = false;
    for (;;) {
        double until = deadline < end ? deadline : end, left = until - xp_now();
        struct pollfd p = { .fd = fd, .events = POLLIN };
        if (left <= 0) {
            *timed_out = true;
            kill(pid, SIGKILL);
            break;
        }
        if (poll(&p, 1, left > 1 ? 1000 : (int)(left * 1000) + 1) <= 0)
            continue;
        ssize_t n = read(fd, buffer + have, sizeof buffer - 1 - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        have += (size_t)n;
        buffer[have] = 0;
        char *start = buffer, *newline;
        for (; (newline = strchr(start, '\n')); start = newline + 1) {
            *newline = 0;
            xp_hear(start, at, &deadline);
        }
        have -= (size_t)(start - buffer);
        memmove(buffer, start, have);
        if (have == sizeof buffer - 1)
            have = 0; /* a line that cannot be one of ours */
    }
    close(fd);
    /* It has closed its stdout; it may still hang in its exit handlers. */
    for (double give_up = xp_now() + 10; !*timed_out && xp_now() < give_up; xp_sleep(0.002))
        if (waitpid(pid, &status, WNOHANG) == pid)
            return status;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return *timed_out ? status : 0;
}

static void xp_run_case(const struct xp_case *c)
{
    double end = xp_now() + c->seconds;
    while (xp_open_row(c->name)) {
        struct xp_row *at = NULL, *open;
        bool timed_out;
        char why[256];
        int fd, before = 0, after = 0;
        for (int i = 0; i < xp_row_count; i++)
            before += xp_rows[i].said;
        pid_t pid = xp_spawn(c, &fd);
        if (pid < 0) {
            snprintf(why, sizeof why, "no child process: %s", strerror(errno));
            at = NULL;
            end = 0;
        } else {
            int status = xp_listen(pid, fd, end, &at, &timed_out);
            if (timed_out)
                snprintf(why, sizeof why, xp_now() >= end ? "the %.0f s of its case were over" : "no answer within its time (case of %.0f s)",
                         c->seconds);
            else if (WIFSIGNALED(status))
                snprintf(why, sizeof why, "the process died: %s", strsignal(WTERMSIG(status)));
            else if (WEXITSTATUS(status) == XP_EXIT_AGAIN)
                snprintf(why, sizeof why, "the context died before the row was answered");
            else if (WEXITSTATUS(status))
                snprintf(why, sizeof why, "the process ended with exit status %d", WEXITSTATUS(status));
            else
                snprintf(why, sizeof why, "the case ended without answering it");
            if (at && !at->said)
                xp_emit(at, at->dying && !timed_out && WIFSIGNALED(status) ? at->dying : XP_UNANSWERED, -1, NULL, why);
            if (!timed_out && !WIFSIGNALED(status) && WEXITSTATUS(status) != XP_EXIT_AGAIN)
                end = 0; /* it ran to its end: what is open stays so */
        }
        for (int i = 0; i < xp_row_count; i++)
            after += xp_rows[i].said;
        if (xp_now() >= end || after == before) /* a child that brings nothing is not tried twice */
            while ((open = xp_open_row(c->name)))
                xp_emit(open, XP_UNANSWERED, NAN, NULL, why);
    }
}

/* "512M", "12G", bytes. 0: not a size. */
static size_t xp_size(const char *s)
{
    char *end;
    unsigned long long n = strtoull(s, &end, 10);
    const char *units = "KMGT", *u = *end ? strchr(units, *end) : NULL;
    if (end == s || *s == '-' || (*end && (!u || end[1])))
        return 0;
    return (size_t)n << (u ? 10 * (u - units + 1) : 0);
}

static int xp_usage(void)
{
    fprintf(stderr, "usage: %s [--list] [--vram BYTES] [--ram BYTES] [--seconds S] [--seed N] [--child CASE]\n", xp.self);
    return 2;
}

/* The experiment's main. Cases run in the order given; those that no longer fit into --seconds are unanswered. */
XP_UNUSED static int xp_main(int argc, char **argv, void (*declare)(void), const struct xp_case *cases, int count)
{
    const char *done = NULL;
    bool list = false;
    xp.self = argv[0];
    for (int i = 1; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--list")) {
            list = true;
            continue;
        }
        if (!v)
            return xp_usage();
        i++;
        if (!strcmp(argv[i - 1], "--vram") && (xp.vram = xp_size(v)))
            continue;
        if (!strcmp(argv[i - 1], "--ram") && (xp.ram = xp_size(v)))
            continue;
        if (!strcmp(argv[i - 1], "--seconds") && (xp.seconds = atof(v)) > 0)
            continue;
        if (!strcmp(argv[i - 1], "--seed")) {
            xp.seed = (unsigned)strtoul(v, NULL, 10);
            continue;
        }
        if (!strcmp(argv[i - 1], "--child")) {
            xp.child = v;
            continue;
        }
        if (!strcmp(argv[i - 1], "--done")) {
            done = v;
            continue;
        }
        return xp_usage();
    }
    declare();
    if (list) {
        for (int i = 0; i < xp_row_count; i++)
            puts(xp_rows[i].name);
        return 0;
    }
    if (xp.child) {
        for (int i = 0; done && i < xp_row_count && done[i]; i++)
            xp_rows[i].said = done[i] == '1';
        for (int i = 0; i < count; i++)
            if (!strcmp(cases[i].name, xp.child)) {
                cases[i].run();
                /* Without the driver's exit handlers: everything is said, and they may hang. */
                _exit(0);
            }
        return xp_usage();
    }
    signal(SIGPIPE, SIG_IGN);
    double end = xp_now() + xp.seconds;
    for (int i = 0; i < count; i++) {
        struct xp_case c = cases[i];
        struct xp_row *open;
        double left = end - xp_now();
        if (left < 1) {
            while ((open = xp_open_row(c.name)))
                xp_emit(open, XP_UNANSWERED, NAN, NULL, "skipped: the time given by --seconds was over");
            continue;
        }
        if (c.seconds > left)
            c.seconds = left;
        xp_run_case(&c);
    }
    for (int i = 0; i < xp_row_count; i++)
        if (!xp_rows[i].said)
            return 1;
    return 0;
}

#endif
