/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment account: where the system books pinned RAM. For each way to get RAM that the GPU maps: the counters of
 * /proc/meminfo, /proc/self/status, /proc/self/smaps_rollup and the memory cgroup before, while it is held, and after; and the
 * same request under a locked-memory limit of 64 KiB.
 * Decides: which meter the RAM budget and the watchdog may trust, and whether `ulimit -l` is worth a check.
 * gpu-check: groups=facts order=90 expect=15 limit=120
 * Rules: every byte is written before it is counted; never more than half of MemAvailable. */
#include "gpu.h"

#include <sys/resource.h>

static const struct backend {
    const char *name;
    int type; /* location of cuMemCreate; 0: cuMemHostAlloc */
    const char *what;
} backends[] = {
    { "host_numa", XP_HOST_NUMA, "cuMemCreate at HOST_NUMA" }, { "host", XP_HOST, "cuMemCreate at HOST" }, { "hostalloc", 0, "cuMemHostAlloc" },
};
enum { BACKENDS = 3, SOURCES = 4, MAX_COUNTERS = 256, LIMITED = 256 << 20 };
static const char *const sources[SOURCES] = { "meminfo", "status", "smaps", "cgroup" };

static const char *row_of(const char *backend, const char *what)
{
    static char text[4][80];
    static int next;
    char *t = text[next++ % 4];
    snprintf(t, sizeof text[0], "account.%s.%s", backend, what);
    return t;
}

static void declare(void)
{
    static const char *const where[SOURCES] = { "/proc/meminfo", "/proc/self/status", "/proc/self/smaps_rollup", "the memory cgroup" };
    char ask[200], of[32];
    for (int b = 0; b < BACKENDS; b++) {
        for (int s = 0; s < SOURCES; s++) {
            snprintf(ask, sizeof ask, "which counters of %s see RAM of %s (share of it that the best one sees)", where[s], backends[b].what);
            xp_row(backends[b].name, row_of(backends[b].name, sources[s]), ask, "share", NULL, "which meter budget and watchdog may trust");
        }
        snprintf(ask, sizeof ask, "how much of it MemAvailable has again after its release (%s)", backends[b].what);
        xp_row(backends[b].name, row_of(backends[b].name, "release"), ask, "share", NULL, "whether giving RAM back relieves the machine at once");
        snprintf(ask, sizeof ask, "does %s give 256 MiB under `ulimit -l 64`?", backends[b].what);
        snprintf(of, sizeof of, "limited_%s", backends[b].name);
        xp_row(of, row_of(backends[b].name, "memlock"), ask, "bool", NULL, "whether doctor warns of the locked-memory limit");
    }
}

/* ---- counters ---- */

struct counter {
    char source, name[64]; /* index into sources */
    double bytes;
};
struct look {
    int n;
    bool seen[SOURCES];
    struct counter c[MAX_COUNTERS];
};

static void count(struct look *l, int source, const char *name, double bytes)
{
    if (l->n == MAX_COUNTERS)
        return;
    struct counter *c = &l->c[l->n++];
    c->source = (char)source;
    snprintf(c->name, sizeof c->name, "%.63s", name);
    c->bytes = bytes;
    l->seen[source] = true;
}

/* Lines "Name: 123 kB", or "name 123" in bytes. */
static bool read_lines(struct look *l, int source, const char *path)
{
    char line[400], name[64], unit[8];
    double v;
    FILE *f = fopen(path, "r");
    if (!f)
        return false;
    while (fgets(line, sizeof line, f)) {
        unit[0] = 0;
        if (sscanf(line, "%63[^ \t:]: %lf %7s", name, &v, unit) == 3 && !strcmp(unit, "kB"))
            count(l, source, name, v * 1024);
        else if (source == 3 && sscanf(line, "%63s %lf", name, &v) == 2)
            count(l, source, name, v);
    }
    fclose(f);
    return true;
}

/* The process's own memory cgroup: version 2 or 1; false where none can be seen. */
static bool cgroup_file(char *out, size_t room, const char *leaf2, const char *leaf1)
{
    char line[PATH_MAX + 64], path[PATH_MAX] = "";
    bool v1 = false;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *second = strchr(line, ':'), *third = second ? strchr(second + 1, ':') : NULL;
        if (!third)
            continue;
        third[strcspn(third, "\n")] = 0;
        *third = 0;
        bool memory = strstr(second + 1, "memory") != NULL;
        if (memory || (!v1 && !second[1])) {
            snprintf(path, sizeof path, "%.3000s", third + 1);
            v1 = memory;
        }
    }
    if (f)
        fclose(f);
    const char *leaf = v1 ? leaf1 : leaf2, *root = v1 ? "/sys/fs/cgroup/memory" : "/sys/fs/cgroup";
    /* In a container with a view of its own the path does not exist below the mount: then the mount's root is ours. */
    snprintf(out, room, "%s%.3000s/%s", root, path, leaf);
    if (access(out, R_OK))
        snprintf(out, room, "%s/%s", root, leaf);
    return access(out, R_OK) == 0;
}

static void look(struct look *l)
{
    char path[PATH_MAX + 64], text[64];
    memset(l, 0, sizeof *l);
    read_lines(l, 0, "/proc/meminfo");
    read_lines(l, 1, "/proc/self/status");
    read_lines(l, 2, "/proc/self/smaps_rollup");
    if (cgroup_file(path, sizeof path, "memory.stat", "memory.stat"))
        read_lines(l, 3, path);
    if (cgroup_file(path, sizeof path, "memory.current", "memory.usage_in_bytes")) {
        FILE *f = fopen(path, "r");
        if (f && fgets(text, sizeof text, f))
            count(l, 3, "memory.current", atof(text));
        if (f)
            fclose(f);
    }
}

static double value(const struct look *l, int source, const char *name)
{
    for (int i = 0; i < l->n; i++)
        if (l->c[i].source == source && !strcmp(l->c[i].name, name))
            return l->c[i].bytes;
    return NAN;
}

/* ---- the memory ---- */

struct held {
    void *pinned;
    struct xp_span span;
};

static bool take(const struct backend *b, size_t bytes, struct held *h)
{
    CUdeviceptr p;
    memset(h, 0, sizeof *h);
    if (!b->type) {
        if (!XP(cuMemHostAlloc(&h->pinned, bytes, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE)) ||
            !XP(cuMemHostGetDevicePointer_v2(&p, h->pinned, 0)))
            return false;
    } else {
        int node = b->type == XP_HOST_NUMA ? xp_attribute(XP_ATTRIBUTE_HOST_NUMA_ID) : 0;
        char tiers[33] = "";
        size_t n = bytes / (64 * XP_MIB);
        gpu.host = xp_prop(b->type, node < 0 ? 0 : node).location;
        n = n > 32 ? 32 : n ? n : 1;
        memset(tiers, 'H', n);
        if (!xp_span_make(&h->span, tiers, bytes / n / (2 * XP_MIB) * 2 * XP_MIB, false))
            return false;
        p = h->span.base;
        bytes = h->span.bytes;
    }
    return XP(cuMemsetD8_v2(p, 0x5a, bytes)) && XP(cuCtxSynchronize());
}

static void give(struct held *h)
{
    if (h->pinned)
        cu.cuMemFreeHost(h->pinned);
    xp_span_drop(&h->span);
}

/* A driver that has no such location has answered: there is nothing to book. */
static bool refused(const struct backend *b, const char *const *rows, int n)
{
    CUmemAllocationProp p = xp_prop(b->type, 0);
    CUmemGenericAllocationHandle h;
    if (!b->type)
        return false;
    int node = xp_attribute(XP_ATTRIBUTE_HOST_NUMA_ID);
    if (b->type == XP_HOST_NUMA && node > 0)
        p.location.id = node;
    CUresult r = cu.cuMemCreate(&h, 2 * XP_MIB, &p, 0);
    if (!r)
        cu.cuMemRelease(h);
    if (r != CUDA_ERROR_INVALID_VALUE && r != CUDA_ERROR_NOT_SUPPORTED && r != CUDA_ERROR_INVALID_DEVICE)
        return false;
    for (int i = 0; i < n; i++)
        xp_say(rows[i], XP_MEASURED, XP_NAN, "\"refused\": true", "nothing to book: this driver refuses %s (%s)", b->what, xp_error(r));
    return true;
}

/* ---- the case of one backend ---- */

static void source_row(const char *row, int s, const struct look *before, const struct look *with, size_t bytes)
{
    struct xp_text raw = { 0 }, seen = { 0 };
    double best = 0;
    if (!with->seen[s]) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, s == 3 ? "no memory cgroup can be seen from here" : "/proc has no %s here", sources[s]);
        return;
    }
    xp_add(&raw, "\"bytes\": %zu", bytes);
    for (int i = 0; i < with->n; i++) {
        const struct counter *c = &with->c[i];
        double moved = c->source == s ? c->bytes - value(before, s, c->name) : 0;
        if (fabs(moved) < 0.05 * (double)bytes)
            continue;
        xp_add(&raw, ", ");
        xp_add_string(&raw, c->name);
        xp_add(&raw, ": %.0f", moved);
        /* Addresses, promises and peaks are no memory. */
        static const char *const spaces[] = { "VmPeak", "VmSize", "VmData", "VmHWM", "Committed_AS" };
        bool memory = true;
        for (size_t k = 0; k < sizeof spaces / sizeof spaces[0]; k++)
            memory &= strcmp(c->name, spaces[k]) != 0;
        if (memory && fabs(moved) > best)
            best = fabs(moved);
        xp_add(&seen, "%s%s %+.2f GiB", seen.n ? ", " : "", c->name, moved / (double)XP_GIB);
    }
    xp_say(row, XP_MEASURED, best / (double)bytes, raw.s, "%s", seen.n ? seen.s : "no counter sees it");
}

static void account(const struct backend *b)
{
    static struct look before, with, after;
    const char *rows[SOURCES + 1];
    struct held h;
    for (int s = 0; s < SOURCES; s++)
        rows[s] = strdup(row_of(b->name, sources[s]));
    rows[SOURCES] = strdup(row_of(b->name, "release"));
    if (!xp_begin(rows[0], 60))
        return;
    if (!xp_context()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    if (refused(b, rows, SOURCES + 1))
        return;
    if (!take(b, 64 * XP_MIB, &h)) { /* once, so that the driver's own first use is not counted */
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    give(&h);
    look(&before);
    double available = value(&before, 0, "MemAvailable");
    size_t bytes = 8 * XP_GIB;
    if (bytes > xp.ram / 4)
        bytes = xp.ram / 4;
    if (!isnan(available) && (double)bytes > available / 2)
        bytes = (size_t)(available / 2);
    bytes = bytes / (64 * XP_MIB) * 64 * XP_MIB;
    if (!bytes || !take(b, bytes, &h)) {
        xp_rest_unanswered("%s", bytes ? xp_failure : "less than 64 MiB of RAM may be used");
        return;
    }
    if (h.span.bytes)
        bytes = h.span.bytes;
    look(&with);
    for (int s = 0; s < SOURCES; s++)
        source_row(rows[s], s, &before, &with, bytes);
    give(&h);
    xp_sleep(0.5);
    look(&after);
    double lost = available - value(&with, 0, "MemAvailable"), back = value(&after, 0, "MemAvailable") - value(&with, 0, "MemAvailable");
    char raw[160];
    snprintf(raw, sizeof raw, "\"bytes\": %zu, \"lost\": %.0f, \"back_after_0.5_s\": %.0f", bytes, lost, back);
    if (isnan(lost))
        xp_say(rows[SOURCES], XP_UNANSWERED, XP_NAN, NULL, "/proc/meminfo has no MemAvailable here");
    else
        xp_say(rows[SOURCES], XP_MEASURED, back / (double)bytes, raw, "MemAvailable fell by %.2f GiB and rose by %.2f GiB within 0.5 s of the release",
               lost / (double)XP_GIB, back / (double)XP_GIB);
}

static void limited(const struct backend *b)
{
    const char *row = row_of(b->name, "memlock");
    struct rlimit small = { 64 << 10, 64 << 10 };
    struct held h;
    if (!xp_begin(row, 30))
        return;
    if (setrlimit(RLIMIT_MEMLOCK, &small) || !xp_context()) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure[0] ? xp_failure : "the limit cannot be set");
        return;
    }
    if (refused(b, &row, 1))
        return;
    bool given = take(b, LIMITED, &h);
    xp_say(row, XP_MEASURED, given, geteuid() ? "\"root\": false" : "\"root\": true", given ? "given%.0s%s" : "%s%s", xp_failure,
           geteuid() ? "" : " (as root, whom the limit may not bind)");
    if (given)
        give(&h);
}

#define CASES(i, id) \
    static void account_##id(void) { account(&backends[i]); } \
    static void limited_##id(void) { limited(&backends[i]); }
CASES(0, host_numa)
CASES(1, host)
CASES(2, hostalloc)

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = {
        { "host_numa", account_host_numa, 40 }, { "host", account_host, 40 }, { "hostalloc", account_hostalloc, 40 },
        { "limited_host_numa", limited_host_numa, 20 }, { "limited_host", limited_host, 20 }, { "limited_hostalloc", limited_hostalloc, 20 },
    };
    return xp_main(argc, argv, declare, cases, 6);
}
