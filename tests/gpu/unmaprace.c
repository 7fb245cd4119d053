/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment unmaprace: what do mapping calls do while a kernel runs? A kernel is busy for half a second on chunk A of a
 * reservation; meanwhile chunk B of it is unmapped, mapped and opened, memory is created and freed, and the driver is asked
 * whether the device is idle. Then, each in a child of its own, A itself is taken from under the kernel.
 * Decides: is a drain needed before every unmap (belief: yes), and can other chunks be changed while kernels run?
 * gpu-check: groups=facts order=40 expect=14 limit=100 */
#include "gpu.h"

static const double BUSY = 0.5;

enum { UNMAP, MAP, ACCESS, CREATE, RELEASE, RESERVE, CALLS };
static const char *const CALL[CALLS] = { "unmap", "map", "access", "create", "release", "reserve" };

static void declare(void)
{
    const char *beside = "whether other chunks can move while kernels run", *drain = "drain before every unmap and free";
    char row[96], ask[200];
    for (int t = 0; t < 2; t++) {
        char tier[8];
        strcpy(tier, t ? "ram" : "vram");
        for (int i = 0; i < CALLS; i++) {
            snprintf(row, sizeof row, "unmaprace.%s_beside_%s", CALL[i], tier);
            snprintf(ask, sizeof ask, "time of %s for a chunk of %s while a kernel is busy on another chunk of the reservation", CALL[i],
                     t ? "RAM" : "VRAM");
            xp_row(t ? "beside_ram" : "beside_vram", row, ask, "us", i <= ACCESS ? "vmm.remap_beside_running_kernel" : NULL, beside);
        }
        snprintf(row, sizeof row, "unmaprace.kernel_unharmed_%s", tier);
        xp_row(t ? "beside_ram" : "beside_vram", row, "the busy kernel ends without error and the changed chunk is usable", "bool",
               "vmm.remap_beside_running_kernel", beside);
    }
    xp_row("regrant", "unmaprace.access_own", "time of cuMemSetAccess, with the same rights, over the chunk that a kernel is using", "us", NULL,
           "one access call over a run that holds busy chunks");
    xp_row("regrant", "unmaprace.access_own_unharmed", "the kernel goes on using it without error", "bool", NULL, "one access call over a run that holds busy chunks");
    xp_row("own", "unmaprace.unmap_own", "cuMemUnmap of the chunk that a kernel is using: does it wait for the kernel, and what does the kernel see?", "us",
           "vmm.unmap_no_drain", drain);
    xp_row("queued", "unmaprace.unmap_queued", "cuMemUnmap of a chunk that queued work will use: does it wait, and what does the work see?", "us",
           "vmm.unmap_no_drain", drain);
    xp_row("swap", "unmaprace.swap_own", "the chunk that a kernel is using gets another backing (unmap, map, access): what does the kernel see?", "us",
           "vmm.unmap_no_drain", drain);
    xp_row("free", "unmaprace.free_waits", "cuMemFree of memory that nobody uses, while a kernel is busy", "ms", "alloc.free_waits", "free drains first");
    xp_row("free", "unmaprace.alloc_waits", "cuMemAlloc while a kernel is busy", "ms", NULL, "what an allocation may cost a running program");
    xp_row("proof", "unmaprace.ctx_record_busy", "cuCtxRecordEvent while a kernel is busy on a non-blocking stream: returns at once, its event says not ready", "bool",
           "order.ctx_record_event", "the proof of idleness at a safepoint");
    xp_row("proof", "unmaprace.ctx_record_idle", "the same event is ready once the kernel has ended", "bool", "order.ctx_record_event", "the proof of idleness at a safepoint");
    xp_row("proof", "unmaprace.ctx_record_us", "time of cuCtxRecordEvent and cuEventQuery on an idle context", "us", NULL, "cost of a safepoint");
}

static bool start(bool ram)
{
    if (xp_kernels() && (xp_find_host() || !ram))
        return true;
    xp_rest_unanswered("%s", xp_failure);
    return false;
}

static void unanswered(const char *row)
{
    xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    if (!xp_alive())
        xp_again();
}

/* ---- other chunks ---- */

/* All calls once, each timed into s[]; a chunk of the tier at base + chunk is unmapped and mapped again. */
static bool turn(struct xp_span *s, char tier, struct xp_samples *samples)
{
    CUmemAllocationProp p = xp_tier(tier);
    CUmemGenericAllocationHandle fresh;
    CUmemAccessDesc g = xp_for_gpu();
    CUdeviceptr at = s->base + s->chunk, room;
    double t0 = xp_now();
    if (!XP(cuMemUnmap(at, s->chunk)))
        return false;
    double t1 = xp_now();
    if (!XP(cuMemMap(at, s->chunk, 0, s->handles[1], 0)))
        return false;
    double t2 = xp_now();
    if (!XP(cuMemSetAccess(at, s->chunk, &g, 1)))
        return false;
    double t3 = xp_now();
    if (!XP(cuMemCreate(&fresh, s->chunk, &p, 0)))
        return false;
    double t4 = xp_now();
    if (!XP(cuMemRelease(fresh)))
        return false;
    double t5 = xp_now();
    if (!XP(cuMemAddressReserve(&room, 64 * s->chunk, 0, 0, 0)))
        return false;
    double t6 = xp_now();
    cu.cuMemAddressFree(room, 64 * s->chunk);
    double took[CALLS] = { t1 - t0, t2 - t1, t3 - t2, t4 - t3, t5 - t4, t6 - t5 };
    for (int i = 0; i < CALLS; i++)
        xp_sample(&samples[i], took[i] * 1e6);
    return true;
}

static void beside(char tier)
{
    static struct xp_samples idle[CALLS], busy[CALLS];
    const char *name = tier == 'D' ? "vram" : "ram";
    char row[96], tiers[] = { 'D', tier, 0 };
    struct xp_span s;
    struct xp_spin spin;
    uint64_t bad = 0;
    int by = 0, turns = 0;
    if (!start(tier == 'H'))
        return;
    size_t chunk = xp.vram >= XP_GIB && xp.ram >= XP_GIB ? 32 * XP_MIB : gpu.unit;
    if (!xp_span_make(&s, tiers, chunk, false) || !xp_spin_make(&spin) || !xp_fill(s.base, s.bytes, xp.seed)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    bool ok = true;
    for (int i = 0; ok && i < 20; i++)
        ok = turn(&s, tier, idle);
    /* One turn a kernel, so that a call that waits shows as the rest of its half second. */
    for (int k = 0; ok && k < 3; k++) {
        snprintf(row, sizeof row, "unmaprace.kernel_unharmed_%s", name);
        if (!xp_begin(row, 20) && k == 0)
            return;
        ok = xp_spin_start(&spin, NULL, BUSY, s.base, s.chunk);
        for (int i = 0; ok && i < 10 && xp_spinning(&spin); i++, turns++)
            ok = turn(&s, tier, busy);
        bool ended = xp_spin_end(&spin, &by);
        ok = ok && ended;
    }
    if (!ok) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    bool usable = xp_check(s.base, s.chunk, xp.seed, 0, &bad) && !bad && xp_fill(s.base + chunk, chunk, 5) && xp_check(s.base + chunk, chunk, 5, 0, &bad) && !bad;
    xp_say(row, xp_verdict(row, usable), usable, NULL, usable ? "%d turns beside 3 busy kernels" : "after %d turns: %s", turns, usable ? "" : xp_failure);
    for (int i = 0; i < CALLS; i++) {
        struct xp_stats a = xp_stats(&idle[i]), b = xp_stats(&busy[i]);
        struct xp_text *t = calloc(1, sizeof *t);
        snprintf(row, sizeof row, "unmaprace.%s_beside_%s", CALL[i], name);
        xp_add_stats(t, "busy_us", b);
        xp_add_stats(t, "idle_us", a);
        xp_add(t, ", \"chunk\": %zu", chunk);
        /* The largest counts: a call that waits for the kernel takes the rest of its half second. */
        bool waits = b.max > BUSY * 1e6 / 4;
        xp_say(row, xp_verdict(row, !waits), b.median, t->s, "%.0f us busy, %.0f us idle, largest %.0f us%s", b.median, a.median, b.max,
               waits ? ": waits for the kernel" : "");
        free(t);
    }
}

static void beside_vram(void)
{
    beside('D');
}

static void beside_ram(void)
{
    beside('H');
}

static void regrant(void)
{
    static struct xp_samples took;
    struct xp_span s;
    struct xp_spin spin;
    CUmemAccessDesc g = xp_for_gpu();
    int by;
    if (!start(false) || !xp_begin("unmaprace.access_own_unharmed", 20))
        return;
    bool ok = xp_span_make(&s, "DD", gpu.unit, false) && xp_spin_make(&spin) && xp_spin_start(&spin, NULL, BUSY, s.base, s.bytes);
    for (int i = 0; ok && i < 20 && xp_spinning(&spin); i++) {
        double t = xp_now();
        ok = XP(cuMemSetAccess(s.base, s.bytes, &g, 1));
        xp_sample(&took, (xp_now() - t) * 1e6);
    }
    if (!ok) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    struct xp_stats st = xp_stats(&took);
    xp_say("unmaprace.access_own", XP_MEASURED, st.median, NULL, "median of %d: %.0f us, largest %.0f us%s", st.n, st.median, st.max,
           st.max > BUSY * 1e6 / 4 ? ": waits for the kernel" : "");
    bool unharmed = xp_spin_end(&spin, &by);
    xp_say("unmaprace.access_own_unharmed", XP_MEASURED, unharmed, NULL, "%s", unharmed ? "no error" : xp_failure);
}

/* ---- the chunk itself ---- */

static void taken(const char *row, bool swap)
{
    struct xp_span s;
    struct xp_spin spin;
    CUmemAllocationProp p = xp_tier('D');
    CUmemGenericAllocationHandle other = 0;
    CUmemAccessDesc g = xp_for_gpu();
    int by = 0;
    if (!start(false) || !xp_begin(row, 20))
        return;
    if (!xp_span_make(&s, "D", gpu.unit, false) || !xp_fill(s.base, s.bytes, xp.seed) || !xp_spin_make(&spin) ||
        (swap && !XP(cuMemCreate(&other, s.bytes, &p, 0))) || !xp_spin_start(&spin, NULL, BUSY, s.base, s.bytes)) {
        unanswered(row);
        return;
    }
    xp_sleep(0.02); /* well inside the kernel's use of it */
    double t = xp_now();
    CUresult r = cu.cuMemUnmap(s.base, s.bytes);
    if (r == CUDA_SUCCESS && swap) {
        r = cu.cuMemMap(s.base, s.bytes, 0, other, 0);
        if (r == CUDA_SUCCESS)
            r = cu.cuMemSetAccess(s.base, s.bytes, &g, 1);
    }
    double took = xp_now() - t;
    bool early = took < BUSY / 2;
    char call[100] = "";
    if (r != CUDA_SUCCESS)
        snprintf(call, sizeof call, "; the call answered %s", xp_error(r));
    xp_sleep(0.05); /* let the kernel meet it */
    char kernel[300] = "the kernel ended without error";
    bool unharmed = xp_spin_end(&spin, &by);
    if (!unharmed)
        snprintf(kernel, sizeof kernel, "the kernel got %s", xp_failure);
    char raw[160];
    snprintf(raw, sizeof raw, "\"busy_s\": %.2f, \"returned_early\": %s, \"kernel_unharmed\": %s", BUSY, early ? "true" : "false", unharmed ? "true" : "false");
    /* Swapped fast enough, the kernel may meet no hole: that says nothing against the belief. */
    bool as_believed = r == CUDA_SUCCESS ? early && (!unharmed || swap) : early && !unharmed;
    xp_say(row, xp_verdict(row, as_believed), took * 1e6, raw, "%s after %.0f us; %s%s", early ? "returns while the kernel runs," : "waits for the kernel, returns",
           took * 1e6, kernel, call);
}

static void own(void)
{
    taken("unmaprace.unmap_own", false);
}

static void swap(void)
{
    taken("unmaprace.swap_own", true);
}

static void queued(void)
{
    const char *row = "unmaprace.unmap_queued";
    struct xp_span s;
    struct xp_spin spin;
    if (!start(false) || !xp_begin(row, 20))
        return;
    uint64_t seed = 3;
    if (!xp_span_make(&s, "D", gpu.unit, false) || !xp_fill(s.base, s.bytes, xp.seed) || !xp_spin_make(&spin) ||
        !xp_spin_start(&spin, NULL, BUSY, 0, 0)) {
        unanswered(row);
        return;
    }
    uint64_t words = s.bytes / 8;
    void *args[] = { &s.base, &words, &seed };
    if (!xp_ok(xp_launch(gpu.fill, 64, 256, spin.stream, args), "launch of xp_fill behind a busy kernel")) {
        xp_spin_end(&spin, NULL);
        unanswered(row);
        return;
    }
    double t = xp_now();
    CUresult r = cu.cuMemUnmap(s.base, s.bytes);
    double took = xp_now() - t;
    bool early = took < BUSY / 2, unharmed = xp_spin_end(&spin, NULL);
    unharmed = cu.cuCtxSynchronize() == CUDA_SUCCESS && unharmed;
    xp_say(row, xp_verdict(row, early && !unharmed), took * 1e6, NULL, "%s after %.0f us (%s); the queued kernel %s",
           early ? "returns while it is queued," : "waits, returns", took * 1e6, xp_error(r), unharmed ? "ran without error" : "hit an error");
}

/* ---- allocations, and the proof of idleness ---- */

static void free_(void)
{
    struct xp_spin spin;
    CUdeviceptr a = 0, b = 0;
    size_t n = 32 * XP_MIB;
    if (!start(false))
        return;
    if (!XP(cuMemAlloc_v2(&a, n)) || !xp_spin_make(&spin)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    if (xp_begin("unmaprace.alloc_waits", 20)) {
        bool ok = xp_spin_start(&spin, NULL, BUSY, 0, 0);
        double t = xp_now();
        ok = ok && XP(cuMemAlloc_v2(&b, n));
        double took = (xp_now() - t) * 1e3;
        if (!xp_spin_end(&spin, NULL) || !ok)
            unanswered("unmaprace.alloc_waits");
        else
            xp_say("unmaprace.alloc_waits", XP_MEASURED, took, NULL, "%.2f ms of the %.0f ms that the kernel runs", took, BUSY * 1e3);
    }
    if (xp_begin("unmaprace.free_waits", 20)) {
        bool ok = xp_spin_start(&spin, NULL, BUSY, 0, 0);
        double t = xp_now();
        ok = ok && XP(cuMemFree_v2(a));
        double took = xp_now() - t;
        bool waits = took > BUSY / 2;
        if (!xp_spin_end(&spin, NULL) || !ok)
            unanswered("unmaprace.free_waits");
        else
            xp_say("unmaprace.free_waits", xp_verdict("unmaprace.free_waits", waits), took * 1e3, NULL, "%s after %.2f ms of the kernel's %.0f",
                   waits ? "waits, returns" : "returns", took * 1e3, BUSY * 1e3);
    }
}

static void proof(void)
{
    static struct xp_samples took;
    struct xp_spin spin;
    CUevent e;
    if (!start(false))
        return;
    if (!cu.cuCtxRecordEvent) {
        xp_rest_unanswered("this driver has no cuCtxRecordEvent");
        return;
    }
    if (!xp_begin("unmaprace.ctx_record_busy", 20))
        return;
    if (!XP(cuEventCreate(&e, CU_EVENT_DISABLE_TIMING)) || !xp_spin_make(&spin) || !xp_spin_start(&spin, NULL, BUSY, 0, 0)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    double t = xp_now();
    CUresult r = cu.cuCtxRecordEvent(gpu.ctx, e), q = cu.cuEventQuery(e);
    double us = (xp_now() - t) * 1e6;
    bool running = xp_spinning(&spin), as_believed = r == CUDA_SUCCESS && q == CUDA_ERROR_NOT_READY && running;
    xp_say("unmaprace.ctx_record_busy", xp_verdict("unmaprace.ctx_record_busy", as_believed), as_believed, NULL,
           "record: %s, query: %s, after %.0f us; the kernel was %s", xp_error(r), xp_error(q), us, running ? "running" : "over");
    if (!xp_spin_end(&spin, NULL)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    if (xp_begin("unmaprace.ctx_record_idle", 20)) {
        double give_up = xp_now() + 2;
        while ((q = cu.cuEventQuery(e)) == CUDA_ERROR_NOT_READY && xp_now() < give_up)
            xp_sleep(0.0001);
        xp_say("unmaprace.ctx_record_idle", xp_verdict("unmaprace.ctx_record_idle", r == CUDA_SUCCESS && q == CUDA_SUCCESS), q == CUDA_SUCCESS, NULL, "%s", xp_error(q));
    }
    if (xp_begin("unmaprace.ctx_record_us", 20)) {
        bool ok = true;
        for (int i = 0; ok && i < 200; i++) {
            t = xp_now();
            ok = cu.cuCtxRecordEvent(gpu.ctx, e) == CUDA_SUCCESS;
            double give_up = t + 1;
            while (ok && (q = cu.cuEventQuery(e)) == CUDA_ERROR_NOT_READY && xp_now() < give_up)
                ;
            ok = ok && q == CUDA_SUCCESS;
            xp_sample(&took, (xp_now() - t) * 1e6);
        }
        struct xp_stats s = xp_stats(&took);
        if (!ok)
            xp_say("unmaprace.ctx_record_us", XP_UNANSWERED, XP_NAN, NULL, "%s", xp_error(q));
        else
            xp_say("unmaprace.ctx_record_us", XP_MEASURED, s.median, NULL, "median %.1f us until ready, p99 %.1f, largest %.1f", s.median, s.p99, s.max);
    }
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = {
        { "beside_vram", beside_vram, 30 }, { "beside_ram", beside_ram, 30 }, { "own", own, 20 },    { "queued", queued, 20 },
        { "swap", swap, 20 },               { "regrant", regrant, 20 },       { "free", free_, 20 }, { "proof", proof, 20 },
    };
    return xp_main(argc, argv, declare, cases, 8);
}
