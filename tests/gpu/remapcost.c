/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment remapcost: what do create, map, access, unmap and release cost, by chunk size and tier; one handle a call or a run
 * of them; one thread or four; with handles from a pool (what a move does). Nothing runs on the GPU meanwhile.
 * Anchors (kvcached, A100, 2 MiB of VRAM): create 193 us, map 1.5, access 36, unmap 26.
 * Decides: chunk sizes, whether handles are recycled, how moves are batched.
 * gpu-check: groups=facts order=50 expect=15 limit=120 */
#include "gpu.h"

enum { CREATE, MAP, ACCESS, UNMAP, RELEASE, CALLS };
static const char *const CALL[CALLS] = { "create", "map", "access", "unmap", "release" };
static const size_t SIZE[] = { 2 << 20, 8 << 20, 32 << 20, 128 << 20 };
enum { SIZES = 4, RUN = 16, THREADS = 4 };
static const char *const TIER[2] = { "vram", "ram" };

static void declare(void)
{
    char row[96], ask[200], of[16];
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < SIZES; i++) {
            snprintf(of, sizeof of, "%s", TIER[t]);
            for (int c = 0; c < CALLS; c++) {
                snprintf(row, sizeof row, "remapcost.%s_%s_%zum", CALL[c], TIER[t], SIZE[i] >> 20);
                snprintf(ask, sizeof ask, "%s of one chunk of %zu MiB in %s", CALL[c], SIZE[i] >> 20, TIER[t]);
                xp_row(of, row, ask, "us", NULL, "chunk sizes; recycling of handles");
            }
            snprintf(row, sizeof row, "remapcost.pooled_%s_%zum", TIER[t], SIZE[i] >> 20);
            snprintf(ask, sizeof ask, "unmap, map of another ready handle of %s, access: %zu MiB", TIER[t], SIZE[i] >> 20);
            xp_row(of, row, ask, "us", NULL, "what a move pauses for beside its copy");
        }
    for (int t = 0; t < 2; t++) {
        snprintf(of, sizeof of, "run_%s", TIER[t]);
        static const char *const what[] = { "access_run", "access_each", "unmap_run", "unmap_each" };
        for (int k = 0; k < 4; k++) {
            snprintf(row, sizeof row, "remapcost.%s_%s", what[k], TIER[t]);
            snprintf(ask, sizeof ask, "%s for 16 chunks of 2 MiB side by side in %s, %s", k < 2 ? "access" : "unmap", TIER[t], k % 2 ? "a call each" : "one call");
            xp_row(of, row, ask, "us", NULL, "one call over each run of chunks");
        }
    }
    for (int t = 0; t < 2; t++) {
        snprintf(of, sizeof of, "threads_%s", TIER[t]);
        for (int n = 1; n <= THREADS; n += THREADS - 1) {
            snprintf(row, sizeof row, "remapcost.cycle_%s_%dt", TIER[t], n);
            snprintf(ask, sizeof ask, "create to release, 2 MiB in %s, by %d thread%s at once: time of a cycle over all threads", TIER[t], n, n > 1 ? "s" : "");
            xp_row(of, row, ask, "us", NULL, "whether moves gain from threads");
        }
    }
    xp_row("reserve", "remapcost.reserve_8g", "reserve and free 8 GiB of addresses", "us", NULL, "start-up of the arena");
    xp_row("reserve", "remapcost.reserve_1t", "reserve and free 1 TiB of addresses", "us", NULL, "start-up of the arena");
    xp_row("reserve", "remapcost.reserve_largest", "the largest reservation that succeeds, by powers of two", "bytes", NULL, "size of the arena");
}

static bool start(bool with_ram)
{
    if (xp_context() && (xp_find_host() || !with_ram))
        return true;
    xp_rest_unanswered("%s", xp_failure);
    return false;
}

static double us(double since)
{
    return (xp_now() - since) * 1e6;
}

static void say(const char *row, struct xp_samples *s, const char *extra)
{
    struct xp_stats st = xp_stats(s);
    struct xp_text *t = calloc(1, sizeof *t);
    xp_add_stats(t, "us", st);
    xp_say(row, XP_MEASURED, st.median, t->s, "median of %d: %.1f us (%.1f to %.1f)%s", st.n, st.median, st.min, st.max, extra);
    free(t);
}

/* ---- one chunk ---- */

static bool cycle(size_t size, char tier, CUdeviceptr at, struct xp_samples *took)
{
    CUmemAllocationProp p = xp_tier(tier);
    CUmemAccessDesc g = xp_for_gpu();
    CUmemGenericAllocationHandle h;
    double t = xp_now();
    if (!XP(cuMemCreate(&h, size, &p, 0)))
        return false;
    xp_sample(&took[CREATE], us(t));
    t = xp_now();
    bool ok = XP(cuMemMap(at, size, 0, h, 0));
    xp_sample(&took[MAP], us(t));
    t = xp_now();
    ok = ok && XP(cuMemSetAccess(at, size, &g, 1));
    xp_sample(&took[ACCESS], us(t));
    t = xp_now();
    ok = ok && XP(cuMemUnmap(at, size));
    xp_sample(&took[UNMAP], us(t));
    t = xp_now();
    ok = XP(cuMemRelease(h)) && ok;
    xp_sample(&took[RELEASE], us(t));
    return ok;
}

static bool pooled(size_t size, char tier, CUdeviceptr at, struct xp_samples *took)
{
    CUmemAllocationProp p = xp_tier(tier);
    CUmemAccessDesc g = xp_for_gpu();
    CUmemGenericAllocationHandle h[2] = { 0, 0 };
    bool ok = XP(cuMemCreate(&h[0], size, &p, 0)) && XP(cuMemCreate(&h[1], size, &p, 0)) && XP(cuMemMap(at, size, 0, h[0], 0)) &&
              XP(cuMemSetAccess(at, size, &g, 1));
    for (int i = 1; ok && i <= 24; i++) {
        double t = xp_now();
        ok = XP(cuMemUnmap(at, size)) && XP(cuMemMap(at, size, 0, h[i % 2], 0)) && XP(cuMemSetAccess(at, size, &g, 1));
        if (i > 4)
            xp_sample(took, us(t));
    }
    cu.cuMemUnmap(at, size);
    for (int i = 0; i < 2; i++)
        if (h[i])
            cu.cuMemRelease(h[i]);
    return ok;
}

static void single(char tier)
{
    static struct xp_samples took[SIZES][CALLS], swap[SIZES];
    const char *name = TIER[tier == 'H'];
    char row[96];
    CUdeviceptr at;
    if (!start(tier == 'H'))
        return;
    if (!XP(cuMemAddressReserve(&at, SIZE[SIZES - 1], 0, 0, 0))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int i = 0; i < SIZES; i++) {
        size_t size = SIZE[i];
        snprintf(row, sizeof row, "remapcost.%s_%s_%zum", CALL[0], name, size >> 20);
        if (!xp_begin(row, 30))
            continue;
        /* Enough turns for a median, but no longer than two seconds a size: pinning 128 MiB takes tens of ms. */
        bool fits = size % gpu.unit == 0 && size <= (tier == 'D' ? xp.vram : xp.ram) / 2;
        if (!fits)
            snprintf(xp_failure, sizeof xp_failure, "%zu MiB do not fit into what may be used, or into the granularity", size >> 20);
        bool ok = fits && cycle(size, tier, at, took[i]);
        for (int c = 0; ok && c < CALLS; c++)
            took[i][c].n = 0; /* the first one warms up */
        double end = xp_now() + 2;
        for (int k = 0; ok && k < 40 && (k < 5 || xp_now() < end); k++)
            ok = cycle(size, tier, at, took[i]);
        for (int c = 0; c < CALLS; c++) {
            snprintf(row, sizeof row, "remapcost.%s_%s_%zum", CALL[c], name, size >> 20);
            if (ok)
                say(row, &took[i][c], "");
            else
                xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        }
        snprintf(row, sizeof row, "remapcost.pooled_%s_%zum", name, size >> 20);
        if (ok && pooled(size, tier, at, &swap[i])) {
            char extra[80];
            struct xp_stats st = xp_stats(&swap[i]);
            snprintf(extra, sizeof extra, "; %.2f ms a GiB", st.median / 1e3 * (double)XP_GIB / (double)size);
            say(row, &swap[i], extra);
        } else
            xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    }
}

static void vram(void)
{
    single('D');
}

static void ram(void)
{
    single('H');
}

/* ---- runs ---- */

static void run(char tier)
{
    static struct xp_samples took[4];
    static const char *const what[] = { "access_run", "access_each", "unmap_run", "unmap_each" };
    char tiers[RUN + 1], row[96];
    struct xp_span s;
    CUmemAccessDesc g = xp_for_gpu();
    if (!start(tier == 'H'))
        return;
    g = xp_for_gpu();
    memset(tiers, tier, RUN);
    tiers[RUN] = 0;
    snprintf(row, sizeof row, "remapcost.access_run_%s", TIER[tier == 'H']);
    if (!xp_begin(row, 30))
        return;
    bool ok = xp_span_map(&s, tiers, gpu.unit);
    for (int k = 0; ok && k < 12; k++) {
        bool each = k % 2;
        double t = xp_now();
        if (each)
            for (int i = 0; ok && i < RUN; i++)
                ok = XP(cuMemSetAccess(s.base + (size_t)i * s.chunk, s.chunk, &g, 1));
        else
            ok = XP(cuMemSetAccess(s.base, s.bytes, &g, 1));
        if (k > 1)
            xp_sample(&took[each], us(t));
        t = xp_now();
        if (each)
            for (int i = 0; ok && i < RUN; i++)
                ok = XP(cuMemUnmap(s.base + (size_t)i * s.chunk, s.chunk));
        else
            ok = ok && XP(cuMemUnmap(s.base, s.bytes));
        if (k > 1)
            xp_sample(&took[2 + each], us(t));
        for (int i = 0; ok && i < RUN; i++)
            ok = XP(cuMemMap(s.base + (size_t)i * s.chunk, s.chunk, 0, s.handles[i], 0));
    }
    for (int k = 0; ok && k < 4; k++) {
        snprintf(row, sizeof row, "remapcost.%s_%s", what[k], TIER[tier == 'H']);
        say(row, &took[k], "");
    }
    xp_rest_unanswered("%s", xp_failure);
}

static void run_vram(void)
{
    run('D');
}

static void run_ram(void)
{
    run('H');
}

/* ---- threads ---- */

enum { CYCLES = 40 };
struct worker {
    pthread_t thread;
    CUdeviceptr at;
    char tier;
    bool ok;
    double begin, end;
    struct xp_samples took[CALLS];
};
static pthread_barrier_t together;

static void *work(void *arg)
{
    struct worker *w = arg;
    w->ok = cu.cuCtxSetCurrent(gpu.ctx) == CUDA_SUCCESS;
    pthread_barrier_wait(&together);
    w->begin = xp_now();
    for (int i = 0; w->ok && i < CYCLES; i++) {
        for (int c = 0; c < CALLS; c++)
            w->took[c].n = 0;
        w->ok = cycle(gpu.unit, w->tier, w->at, w->took);
    }
    w->end = xp_now();
    return NULL;
}

static void threads(char tier)
{
    static struct worker workers[THREADS];
    char row[96];
    CUdeviceptr base;
    if (!start(tier == 'H'))
        return;
    if (!XP(cuMemAddressReserve(&base, THREADS * gpu.unit, 0, 0, 0))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int n = 1; n <= THREADS; n += THREADS - 1) {
        struct xp_samples *whole = calloc(1, sizeof *whole);
        bool ok = true;
        snprintf(row, sizeof row, "remapcost.cycle_%s_%dt", TIER[tier == 'H'], n);
        for (int repeat = 0; ok && repeat < 6 && (repeat || xp_begin(row, 30)); repeat++) {
            pthread_barrier_init(&together, NULL, (unsigned)n);
            for (int i = 0; i < n; i++) {
                workers[i] = (struct worker){ .at = base + (size_t)i * gpu.unit, .tier = tier };
                if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
                    exit(3);
            }
            double begin = INFINITY, end = 0;
            for (int i = 0; i < n; i++) {
                pthread_join(workers[i].thread, NULL);
                ok = ok && workers[i].ok;
                begin = fmin(begin, workers[i].begin);
                end = fmax(end, workers[i].end);
            }
            if (repeat)
                xp_sample(whole, (end - begin) * 1e6 / (n * CYCLES));
            pthread_barrier_destroy(&together);
        }
        if (ok && whole->n)
            say(row, whole, "");
        else
            xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        free(whole);
    }
}

static void threads_vram(void)
{
    threads('D');
}

static void threads_ram(void)
{
    threads('H');
}

/* ---- reservations ---- */

static void reserve(void)
{
    static struct xp_samples took[2];
    static const char *const rows[] = { "remapcost.reserve_8g", "remapcost.reserve_1t" };
    static const size_t sizes[] = { 8 * XP_GIB, 1024 * XP_GIB };
    CUdeviceptr at;
    if (!xp_context()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int i = 0; i < 2; i++) {
        bool ok = xp_begin(rows[i], 20);
        for (int k = 0; ok && k < 12; k++) {
            double t = xp_now();
            ok = XP(cuMemAddressReserve(&at, sizes[i], 0, 0, 0)) && XP(cuMemAddressFree(at, sizes[i]));
            if (k)
                xp_sample(&took[i], us(t));
        }
        if (ok)
            say(rows[i], &took[i], "");
        else
            xp_say(rows[i], XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    }
    if (xp_begin("remapcost.reserve_largest", 20)) {
        size_t n = (size_t)1 << 48;
        while (n >= XP_GIB && cu.cuMemAddressReserve(&at, n, 0, 0, 0) != CUDA_SUCCESS)
            n /= 2;
        if (n < XP_GIB)
            xp_say("remapcost.reserve_largest", XP_UNANSWERED, XP_NAN, NULL, "not even 1 GiB could be reserved");
        else {
            cu.cuMemAddressFree(at, n);
            xp_say("remapcost.reserve_largest", XP_MEASURED, (double)n, NULL, "%zu GiB", n / XP_GIB);
        }
    }
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = {
        { "vram", vram, 30 },         { "ram", ram, 40 },         { "run_vram", run_vram, 20 }, { "run_ram", run_ram, 20 },
        { "reserve", reserve, 20 },   { "threads_vram", threads_vram, 30 }, { "threads_ram", threads_ram, 30 },
    };
    return xp_main(argc, argv, declare, cases, 7);
}
