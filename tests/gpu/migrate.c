/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment migrate: moves under load, as spillshim makes them. A thread launches kernels without pause, each of which adds to
 * every word of one chunk of a region of up to 1 GiB; the main thread moves chunk after chunk from VRAM to RAM, and then back:
 * close a gate that the launching thread passes, wait for the device, copy through an alias mapping of a ready handle, unmap, map,
 * grant access, open the gate. At the end every word is compared with what the launches must have made of it.
 * Decides: the cost of a safepoint, and how much may be moved in one.
 * gpu-check: groups=facts order=90 expect=12 limit=100 */
#include "gpu.h"

enum { MOST = 32, SLOT = 4 }; /* chunks at most; launches in flight at most */

static void declare(void)
{
    const char *cost = "safepoint cost; size of a move";
    xp_row("gpu", "migrate.bytes_right", "after moving every chunk to RAM and back under a launching thread, every word is what it must be", "bool",
           "vmm.remapped_under_load", "the design: chunks move under their address");
    static const struct {
        const char *name, *ask, *unit;
    } figures[] = {
        { "pause_%s_ms", "gate closed to gate open, a chunk %s: median", "ms" },
        { "drain_%s_us", "part of it: waiting for the device, %s", "us" },
        { "copy_%s_us", "part of it: the copy, %s", "us" },
        { "remap_%s_us", "part of it: unmap, map, access, %s", "us" },
        { "rate_%s", "bytes over pauses without the drain, %s", "GB/s" },
        { "stall_p99_%s_ms", "99th percentile of what a launch took its caller, %s", "ms" },
    };
    for (int back = 0; back < 2; back++)
        for (size_t i = 0; i < sizeof figures / sizeof figures[0]; i++) {
            char name[64], row[96], ask[200];
            snprintf(name, sizeof name, figures[i].name, back ? "promote" : "demote");
            snprintf(row, sizeof row, "migrate.%s", name);
            snprintf(ask, sizeof ask, figures[i].ask, back ? "RAM to VRAM" : "VRAM to RAM");
            xp_row("gpu", row, ask, figures[i].unit, NULL, cost);
        }
    xp_row("gpu", "migrate.pause_remap_only_ms", "a pause that moves nothing: drain, unmap and map of the same handle, access", "ms", NULL, cost);
    xp_row("gpu", "migrate.launches", "launches made meanwhile", "count", NULL, cost);
}

static struct xp_span region;
static int chunks;
static uint64_t added[MOST]; /* by launches, to each word of a chunk */

/* ---- the launching thread ---- */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static volatile int stop;
static struct launcher {
    pthread_t thread;
    CUstream stream;
    CUevent slot[SLOT];
    uint64_t launches;
    bool failed;
    char failure[256];
    struct {
        double at, took;
    } *log;
    size_t room;
} load;

static void *launch(void *arg)
{
    struct launcher *l = arg;
    uint64_t words = region.chunk / 8, state = xp.seed;
    bool ok = xp_ok(cu.cuCtxSetCurrent(gpu.ctx), "cuCtxSetCurrent");
    for (uint64_t n = 0; ok && !stop; n++) {
        /* A bounded queue, waited for outside the gate: else the drain would measure how far this thread runs ahead. */
        if (n >= SLOT)
            ok = xp_ok(cu.cuEventSynchronize(l->slot[n % SLOT]), "cuEventSynchronize");
        state = xp_mix(state);
        int i = (int)(state % (uint64_t)chunks);
        CUdeviceptr p = region.base + (size_t)i * region.chunk;
        uint64_t add = 1 + state % 7;
        void *args[] = { &p, &words, &add };
        double t = xp_now();
        pthread_mutex_lock(&gate);
        ok = ok && xp_ok(xp_launch(gpu.add, xp_blocks(words), 256, l->stream, args), "launch of xp_add") &&
             xp_ok(cu.cuEventRecord(l->slot[n % SLOT], l->stream), "cuEventRecord");
        if (ok)
            added[i] += add;
        pthread_mutex_unlock(&gate);
        if (n < l->room) {
            l->log[n].at = t;
            l->log[n].took = xp_now() - t;
        }
        l->launches = n + 1;
    }
    if (!ok) {
        snprintf(l->failure, sizeof l->failure, "%s", xp_failure);
        l->failed = true;
    }
    return NULL;
}

/* ---- moves ---- */

static CUdeviceptr alias;
static struct xp_samples pause_ms[3], drain_us[3], copy_us[2], remap_us[2], rate[2];

/* Chunk i gets the backing `fresh` (a ready handle), with its bytes; its old handle is returned in *left. */
static bool move(int i, int back, CUmemGenericAllocationHandle fresh, CUmemGenericAllocationHandle *left)
{
    CUdeviceptr at = region.base + (size_t)i * region.chunk;
    CUmemAccessDesc g = xp_for_gpu();
    bool same = fresh == region.handles[i];
    if (!same && (!XP(cuMemMap(alias, region.chunk, 0, fresh, 0)) || !XP(cuMemSetAccess(alias, region.chunk, &g, 1)))) /* before the pause */
        return false;
    pthread_mutex_lock(&gate);
    double t0 = xp_now();
    bool ok = XP(cuCtxSynchronize());
    double t1 = xp_now();
    ok = ok && (same || (XP(cuMemcpyDtoDAsync_v2(alias, at, region.chunk, load.stream)) && XP(cuStreamSynchronize(load.stream))));
    double t2 = xp_now();
    ok = ok && XP(cuMemUnmap(at, region.chunk)) && XP(cuMemMap(at, region.chunk, 0, fresh, 0)) && XP(cuMemSetAccess(at, region.chunk, &g, 1));
    double t3 = xp_now();
    pthread_mutex_unlock(&gate);
    if (!ok)
        return false;
    *left = region.handles[i];
    region.handles[i] = fresh;
    int k = same ? 2 : back;
    xp_sample(&pause_ms[k], (t3 - t0) * 1e3);
    xp_sample(&drain_us[k], (t1 - t0) * 1e6);
    if (!same) {
        xp_sample(&copy_us[back], (t2 - t1) * 1e6);
        xp_sample(&remap_us[back], (t3 - t2) * 1e6);
        xp_sample(&rate[back], (double)region.chunk / (t3 - t1) / 1e9);
    }
    return same || XP(cuMemUnmap(alias, region.chunk));
}

static void figure(const char *format, int back, struct xp_samples *s)
{
    struct xp_stats st = xp_stats(s);
    struct xp_text *t = calloc(1, sizeof *t);
    char name[64], row[96];
    snprintf(name, sizeof name, format, back ? "promote" : "demote");
    snprintf(row, sizeof row, "migrate.%s", name);
    xp_add_stats(t, "all", st);
    xp_add(t, ", \"chunk\": %zu, \"chunks\": %d", region.chunk, chunks);
    if (st.n)
        xp_say(row, XP_MEASURED, st.median, t->s, "median of %d: %.3f (%.3f to %.3f, p99 %.3f)", st.n, st.median, st.min, st.max, st.p99);
    free(t);
}

static void stalls(int back, double from, double to)
{
    static struct xp_samples s;
    char row[96];
    size_t n = load.launches < load.room ? load.launches : load.room;
    s.n = 0;
    snprintf(row, sizeof row, "migrate.stall_p99_%s_ms", back ? "promote" : "demote");
    /* The newest samples of the phase: those are as good as any other. */
    for (size_t i = 0; i < n; i++)
        if (load.log[i].at >= from && load.log[i].at + load.log[i].took <= to)
            xp_sample(&s, load.log[i].took * 1e3);
    struct xp_stats st = xp_stats(&s);
    if (!st.n)
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "no launch ended in that phase");
    else
        xp_say(row, XP_MEASURED, st.p99, NULL, "p99 of %d launches: %.3f ms, median %.4f, largest %.3f", st.n, st.p99, st.median, st.max);
}

static void body(void)
{
    char tiers[MOST + 1];
    CUmemGenericAllocationHandle spare = 0, left = 0;
    if (!xp_kernels() || !xp_find_host() || !xp_begin("migrate.bytes_right", 60)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    /* The region, its copy in RAM and a spare of each must fit; at most 1 GiB. */
    size_t chunk = 32 * XP_MIB, room = xp.vram < xp.ram ? xp.vram : xp.ram;
    while (chunk > gpu.unit && chunk * (MOST + 8) > room)
        chunk /= 2;
    chunks = (int)(room / chunk) - 2;
    if (chunks > MOST)
        chunks = MOST;
    if (chunks < 1) {
        xp_rest_unanswered("too little memory may be used for a single chunk");
        return;
    }
    memset(tiers, 'D', (size_t)chunks);
    tiers[chunks] = 0;
    CUmemAllocationProp ram = xp_tier('H');
    load.room = 1 << 20;
    load.log = calloc(load.room, sizeof *load.log);
    bool ok = xp_span_make(&region, tiers, chunk, false) && XP(cuMemAddressReserve(&alias, chunk, 0, 0, 0)) && XP(cuStreamCreate(&load.stream, CU_STREAM_NON_BLOCKING));
    for (int i = 0; ok && i < SLOT; i++)
        ok = XP(cuEventCreate(&load.slot[i], CU_EVENT_DISABLE_TIMING));
    ok = ok && xp_fill(region.base, region.bytes, xp.seed) && XP(cuMemCreate(&spare, chunk, &ram, 0));
    if (!ok || !load.log || pthread_create(&load.thread, NULL, launch, &load)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    /* Pools: the first demotion takes a fresh RAM handle each (its creation is not part of a pause); promotions get the handles
     * that the demotions left. */
    CUmemGenericAllocationHandle vram_pool[MOST] = { 0 };
    double mark[3];
    double end = xp_now() + fmin(15, xp.seconds * 0.3);
    int demoted = 0;
    xp_sleep(0.1); /* let the load settle */
    mark[0] = xp_now();
    for (int i = 0; ok && i < chunks && (i < 3 || xp_now() < end) && !load.failed; i++, demoted++) {
        if (!spare)
            ok = XP(cuMemCreate(&spare, chunk, &ram, 0));
        ok = ok && move(i, 0, spare, &left);
        vram_pool[i] = left;
        spare = 0;
        xp_sleep(0.002); /* the launching thread's turn */
    }
    mark[1] = xp_now();
    for (int i = 0; ok && i < demoted && !load.failed; i++) {
        ok = move(i, 1, vram_pool[i], &left) && XP(cuMemRelease(left));
        xp_sleep(0.002);
    }
    mark[2] = xp_now();
    end = xp_now() + fmin(5, xp.seconds * 0.1);
    for (int i = 0; ok && i < 50 && (i < 5 || xp_now() < end) && !load.failed; i++) {
        ok = move(i % chunks, 0, region.handles[i % chunks], &left);
        xp_sleep(0.001);
    }
    stop = 1;
    char failed[256];
    snprintf(failed, sizeof failed, "%s", xp_failure);
    pthread_join(load.thread, NULL);
    if (!ok || load.failed) {
        const char *why = load.failed ? load.failure : failed;
        bool alive = xp_alive();
        /* A device error of a move or of a launch is the answer that is feared; a refused allocation is none. */
        if (!alive)
            xp_say("migrate.bytes_right", xp_verdict("migrate.bytes_right", false), 0, NULL, "%s, after %d moves", why, pause_ms[0].n + pause_ms[1].n);
        xp_rest_unanswered("%s", why);
        return;
    }
    uint64_t wrong = 0, bad;
    ok = XP(cuCtxSynchronize());
    for (int i = 0; ok && i < chunks; i++) { /* chunk i's pattern starts at its own word */
        ok = xp_check(region.base + (size_t)i * chunk, chunk, xp.seed + (uint64_t)i * (chunk / 8), added[i], &bad);
        wrong += bad;
    }
    if (!ok) {
        xp_say("migrate.bytes_right", xp_verdict("migrate.bytes_right", false), 0, NULL, "%s", xp_failure);
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    xp_say("migrate.bytes_right", xp_verdict("migrate.bytes_right", !wrong), !wrong, NULL, "%d chunks of %zu MiB to RAM and back, %llu launches, %llu wrong words", demoted,
           chunk / XP_MIB, (unsigned long long)load.launches, (unsigned long long)wrong);
    for (int back = 0; back < 2; back++) {
        figure("pause_%s_ms", back, &pause_ms[back]);
        figure("drain_%s_us", back, &drain_us[back]);
        figure("copy_%s_us", back, &copy_us[back]);
        figure("remap_%s_us", back, &remap_us[back]);
        figure("rate_%s", back, &rate[back]);
        stalls(back, mark[back], mark[back + 1]);
    }
    struct xp_stats only = xp_stats(&pause_ms[2]), drained = xp_stats(&drain_us[2]);
    struct xp_text *t = calloc(1, sizeof *t);
    xp_add_stats(t, "pause_ms", only);
    xp_add_stats(t, "drain_us", drained);
    xp_say("migrate.pause_remap_only_ms", XP_MEASURED, only.median, t->s, "median of %d: %.3f ms, of which %.3f drain", only.n, only.median, drained.median / 1e3);
    free(t);
    xp_say("migrate.launches", XP_MEASURED, (double)load.launches, NULL, "%llu in %.1f s", (unsigned long long)load.launches, xp_now() - mark[0]);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "gpu", body, 60 } };
    return xp_main(argc, argv, declare, cases, 1);
}
