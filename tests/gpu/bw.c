/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment bw: how fast bytes come. VRAM alone, the link by the copy engines and by kernels that read and write RAM in
 * place, kernels over mixtures of VRAM and RAM in three layouts, and unified memory's fault-in as the alternative.
 * Decides: whether spread placement hides the link behind VRAM, whether promoting by copy beats reading in place, what a
 * reuse of spilled bytes costs, and the rates that the summary line stands on.
 * gpu-check: groups=bandwidth order=60 expect=60 limit=170
 * Rules: times are events of the device around the work alone; a sum over all bytes read must come out right, or the row is
 * not answered; GB/s are 1e9 bytes. Managed memory: at most a third of what is free, never to oversubscribe. */
#include "bw.h"
#include "gpu.h"

enum { REPEATS = 5, LAYOUTS = 3, SHARES = 9, REUSE_BYTES = 8 << 20, REUSES = 16 };
static const char *const layouts[LAYOUTS] = { "tail", "chunk", "granule" };
static const char *const layout_texts[LAYOUTS] = { "its RAM at the end", "its RAM spread evenly in 4 MiB between VRAM of up to 32 MiB",
                                                   "its RAM spread evenly in 2 MiB between VRAM in 2 MiB" };
static const int percents[SHARES] = { 100, 99, 97, 95, 90, 75, 50, 25, 0 }; /* of VRAM */
static const int q4_percents[] = { 100, 97, 90, 50 };
enum { Q4_SHARES = sizeof q4_percents / sizeof q4_percents[0] };
static const char *const reads[] = { "4", "8", "16", "q4" };

/* ---- rows ---- */

static const char *name(const char *format, ...) __attribute__((format(printf, 1, 2)));
static const char *name(const char *format, ...)
{
    static char text[4][160];
    static int next;
    char *t = text[next++ % 4];
    va_list a;
    va_start(a, format);
    vsnprintf(t, sizeof text[0], format, a);
    va_end(a);
    return t;
}

static void declare(void)
{
    const char *roof = "the roofline that every spilled program is measured against";
    xp_row("vram", "bandwidth.hbm_read", "a kernel reads VRAM in 16-byte loads", "GB/s", NULL, roof);
    xp_row("vram", "bandwidth.hbm_read_4", "a kernel reads VRAM in 4-byte loads", "GB/s", NULL, roof);
    xp_row("vram", "bandwidth.hbm_q4", "a Q4_0-like matrix-vector product over VRAM", "GB/s", NULL, roof);
    xp_row("vram", "bandwidth.hbm_write", "a kernel writes VRAM in 16-byte stores", "GB/s", NULL, roof);
    xp_row("vram", "bandwidth.hbm_copy", "a copy inside VRAM (bytes copied)", "GB/s", NULL, "what compacting VRAM costs");
    const char *move = "what promoting and demoting a chunk costs";
    xp_row("link", "bandwidth.link_h2d", "the copy engine reads pinned RAM (cuMemHostAlloc)", "GB/s", NULL, move);
    xp_row("link", "bandwidth.link_d2h", "the copy engine writes pinned RAM (cuMemHostAlloc)", "GB/s", NULL, move);
    xp_row("link", "bandwidth.link_both", "both ways at once, bytes of both together", "GB/s", NULL, "whether swaps demote and promote at the same time");
    xp_row("link", "bandwidth.link_h2d_vmm", "the copy engine reads RAM of cuMemCreate", "GB/s", NULL, move);
    xp_row("link", "bandwidth.link_d2h_vmm", "the copy engine writes RAM of cuMemCreate", "GB/s", NULL, move);
    static const struct {
        const char *of, *suffix, *what;
    } ram[] = { { "zero_copy", "", "RAM as the shim takes it (HOST_NUMA, else HOST)" },
                { "zero_copy_host", "_host", "RAM of cuMemCreate at HOST" },
                { "zero_copy_hostalloc", "_hostalloc", "RAM of cuMemHostAlloc" } };
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 4; k++)
            xp_row(ram[i].of, name("bandwidth.zero_copy%s_%s", ram[i].suffix, reads[k]),
                   name(k < 3 ? "a kernel reads %s in place, in %s-byte loads" : "a Q4_0-like matrix-vector product over %s, in place", ram[i].what,
                        reads[k]),
                   "GB/s", NULL, "whether spilled bytes are read in place or copied first, and which backend comes first");
        xp_row(ram[i].of, name("bandwidth.zero_write%s", ram[i].suffix), name("a kernel writes %s in place", ram[i].what), "GB/s", NULL,
               "what KV and activations in RAM cost");
    }
    xp_row("zero_copy", "bandwidth.zero_copy_against_copy", "reading RAM in place in 16-byte loads, times as fast as the copy engine reads it",
           "ratio", "clock.zero_copy_at_link_rate", "whether promoting by copy beats reading in place");
    for (int l = 0; l < LAYOUTS; l++)
        for (int s = 0; s < SHARES; s++)
            xp_row("mix", name("bandwidth.mix_%s_%d", layouts[l], percents[s]),
                   name("one kernel reads a region of %d %% VRAM, %s", percents[s], layout_texts[l]), "GB/s", NULL,
                   "how the bytes that must live in RAM are laid out");
    for (int s = 0; s < Q4_SHARES; s++)
        xp_row("mix", name("bandwidth.mix_q4_chunk_%d", q4_percents[s]),
               name("a Q4_0-like product over a region of %d %% VRAM, %s", q4_percents[s], layout_texts[1]), "GB/s", NULL,
               "below which overflow spilling beats computing on the CPU");
    xp_row("mix", "bandwidth.overlap", "does a kernel read VRAM and RAM at the same time (RAM spread in 2 MiB, both as long)? 1: wholly, 0: one after the other",
           "ratio", "clock.overlap", "whether spread placement is worth its handles");
    xp_row("mix", "bandwidth.overlap_tail", "the same with the RAM at the end", "ratio", NULL, "whether spread placement is worth its handles");
    xp_row("reuse", "bandwidth.reuse_ram", "the same 8 MiB of RAM read 16 times in one launch, against once", "ratio", "clock.ram_not_cached",
           "whether small hot buffers may stay in RAM");
    xp_row("reuse", "bandwidth.reuse_vram", "the same for VRAM", "ratio", NULL, "what the second-level cache gives");
    const char *uvm = "the fair comparison with unified memory";
    xp_row("uvm", "bandwidth.uvm_fault_in", "a kernel sweeps managed memory that is on the host", "GB/s", NULL, uvm);
    xp_row("uvm", "bandwidth.uvm_evict", "managed memory is prefetched back to the host", "GB/s", NULL, uvm);
    xp_row("uvm", "bandwidth.uvm_cycle", "emulated UVM cycle: both together, per byte", "GB/s", NULL, uvm);
    xp_row("uvm", "bandwidth.uvm_against_zero_copy", "reading as much RAM in place, times as fast as the emulated UVM cycle (goal 3)", "ratio",
           "clock.managed_at_link_rate", uvm);
}

/* ---- what is measured ---- */

static CUfunction expect, fill, read4, read8, read16, q4;
static CUevent from, to;
static CUdeviceptr sum, activations;
static size_t size; /* bytes of a region */
static unsigned cores;
static CUresult (*wait_event)(CUstream, CUevent, unsigned);
static CUresult (*alloc_managed)(CUdeviceptr *, size_t, unsigned);

static bool function(CUfunction *f, CUmodule m, const char *n)
{
    return XP(cuModuleGetFunction(f, m, n));
}

static bool launch(CUfunction f, unsigned blocks, unsigned threads, void **args)
{
    return xp_ok(xp_launch(f, blocks, threads, NULL, args), "launch");
}

static unsigned tiles(size_t bytes)
{
    size_t n = (bytes + TILE_BYTES - 1) / TILE_BYTES, most = (size_t)cores * 8;
    return (unsigned)(n < most ? n : most);
}

static bool run_fill(CUdeviceptr p, size_t bytes)
{
    u64 n = bytes, seed = xp.seed;
    void *args[] = { &p, &n, &seed };
    return launch(fill, tiles(bytes), BLOCK, args);
}

static bool run_read(CUfunction f, CUdeviceptr p, size_t bytes, u64 passes)
{
    u64 n = bytes;
    void *args[] = { &p, &n, &passes, &sum };
    return launch(f, tiles(bytes), BLOCK, args);
}

static bool run_q4(CUdeviceptr p, size_t bytes)
{
    u64 rows = bytes / Q4_ROW_BYTES;
    void *args[] = { &p, &rows, &activations, &sum };
    return launch(q4, (unsigned)(rows < cores * 16 ? rows : cores * 16), Q4_THREADS, args);
}

static bool get_sum(u64 *out)
{
    return XP(cuCtxSynchronize()) && XP(cuMemcpyDtoH_v2(out, sum, sizeof *out));
}

static bool zero_sum(void)
{
    u64 zero = 0;
    return XP(cuMemcpyHtoD_v2(sum, &zero, sizeof zero));
}

/* What reading `bytes` of the fill gives, without reading them. */
static bool expected(size_t bytes, u64 *out)
{
    u64 words = bytes / 4, seed = xp.seed;
    void *args[] = { &words, &seed, &sum };
    return zero_sum() && launch(expect, cores * 8, BLOCK, args) && get_sum(out);
}

static bool open_gpu(void)
{
    CUmodule m;
    unsigned char x[Q4_X_BYTES];
    if (!xp_context() || !xp_module("bw", &m) || !function(&expect, m, "bw_expect") || !function(&fill, m, "bw_fill") ||
        !function(&read4, m, "bw_read4") || !function(&read8, m, "bw_read8") || !function(&read16, m, "bw_read16") || !function(&q4, m, "bw_q4") ||
        !XP(cuEventCreate(&from, 0)) || !XP(cuEventCreate(&to, 0)) || !XP(cuMemAlloc_v2(&sum, 256)) ||
        !XP(cuMemAlloc_v2(&activations, sizeof x)))
        return false;
    for (size_t i = 0; i < sizeof x; i++)
        x[i] = (unsigned char)xp_mix(i);
    int n = xp_attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    cores = n > 0 ? (unsigned)n : 16;
    /* The simulated device's rates do not depend on the size, and its kernels run on a CPU. */
    const char *device = getenv("GPU_CHECK_DEVICE");
    size = device && !strcmp(device, "sim") ? 32 * XP_MIB : 2 * XP_GIB;
    if (size > xp.vram / 8)
        size = xp.vram / 8;
    if (size > xp.ram / 8)
        size = xp.ram / 8;
    size = size / (32 * XP_MIB) * 32 * XP_MIB;
    *(void **)&wait_event = dlsym(gpu.library, "cuStreamWaitEvent");
    *(void **)&alloc_managed = dlsym(gpu.library, "cuMemAllocManaged");
    if (size < 32 * XP_MIB) {
        snprintf(xp_failure, sizeof xp_failure, "--vram and --ram allow regions of less than 32 MiB: too small to measure");
        return false;
    }
    return XP(cuMemcpyHtoD_v2(activations, x, sizeof x));
}

/* One timing: `work` between two events of the default stream, milliseconds. */
struct timing {
    bool (*work)(void *);
    void *arg;
    size_t bytes;
};

static bool once(const struct timing *t, double *ms)
{
    float f = 0;
    if (!XP(cuEventRecord(from, NULL)) || !t->work(t->arg) || !XP(cuEventRecord(to, NULL)) || !XP(cuEventSynchronize(to)) ||
        !XP(cuEventElapsedTime(&f, from, to)))
        return false;
    *ms = (double)f;
    if (f <= 0)
        snprintf(xp_failure, sizeof xp_failure, "the device's events report no time for it");
    return f > 0;
}

/* One untimed turn, then REPEATS; in GB/s. */
static bool timed(const struct timing *t, struct xp_stats *out)
{
    struct xp_samples s = { 0 };
    double ms;
    if (!t->work(t->arg) || !XP(cuCtxSynchronize()))
        return false;
    for (int i = 0; i < REPEATS; i++) {
        if (!once(t, &ms))
            return false;
        xp_sample(&s, (double)t->bytes / ms / 1e6);
    }
    *out = xp_stats(&s);
    return true;
}

static void say_unanswered(const char *row)
{
    xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    if (!xp_alive())
        xp_again();
}

static const char *raw_of(struct xp_stats s, size_t bytes)
{
    static struct xp_text t;
    t.n = 0;
    xp_add(&t, "\"bytes\": %zu", bytes);
    xp_add_stats(&t, "GB/s", s);
    return t.s;
}

static void say_rate(const char *row, struct xp_stats s, size_t bytes, const char *what)
{
    xp_say(row, XP_MEASURED, s.median, raw_of(s, bytes), "%.1f GB/s (%.1f to %.1f)%s%s", s.median, s.min, s.max, *what ? ", " : "", what);
}

/* A rate that stands alone: measure and say. */
static void rate(const char *row, bool (*work)(void *), void *arg, size_t bytes, const char *what)
{
    struct timing t = { work, arg, bytes };
    struct xp_stats s;
    if (!xp_begin(row, 40))
        return;
    if (timed(&t, &s))
        say_rate(row, s, bytes, what);
    else
        say_unanswered(row);
}

/* Reads with a check of the sum: of the fill for reads, of `right` for products. */
struct reading {
    CUfunction f; /* NULL: the Q4 product */
    CUdeviceptr p;
    size_t bytes;
    u64 passes;
};

static bool work_read(void *arg)
{
    const struct reading *r = arg;
    return r->f ? run_read(r->f, r->p, r->bytes, r->passes) : run_q4(r->p, r->bytes);
}

static size_t bytes_of(const struct reading *r)
{
    return r->f ? r->bytes * r->passes : r->bytes / Q4_ROW_BYTES * Q4_ROW_BYTES;
}

static bool measure_read(struct reading r, u64 right, struct xp_stats *out)
{
    struct timing t = { work_read, &r, bytes_of(&r) };
    u64 got;
    if (!zero_sum() || !timed(&t, out) || !get_sum(&got))
        return false;
    if (got != right * r.passes * (REPEATS + 1)) {
        snprintf(xp_failure, sizeof xp_failure, "WRONG BYTES: the sum over %d turns is %llx instead of %llx", REPEATS + 1, got,
                 right * r.passes * (REPEATS + 1));
        return false;
    }
    return true;
}

static void read_row(const char *row, struct reading r, u64 right, const char *what)
{
    struct xp_stats s;
    if (!xp_begin(row, 40))
        return;
    if (measure_read(r, right, &s))
        say_rate(row, s, bytes_of(&r), what);
    else
        say_unanswered(row);
}

/* The product over the fill in VRAM: what the same over RAM must come to. */
static bool expected_q4(size_t bytes, u64 *out)
{
    CUdeviceptr p;
    if (!XP(cuMemAlloc_v2(&p, bytes)))
        return false;
    bool ok = run_fill(p, bytes) && zero_sum() && run_q4(p, bytes) && get_sum(out);
    return XP(cuMemFree_v2(p)) && ok;
}

struct stretch {
    CUdeviceptr to, from;
    size_t bytes;
    CUstream stream;
};

static bool work_fill(void *arg)
{
    const struct stretch *s = arg;
    return run_fill(s->to, s->bytes);
}

static bool work_copy(void *arg)
{
    const struct stretch *s = arg;
    return XP(cuMemcpyAsync(s->to, s->from, s->bytes, s->stream));
}

/* ---- case vram ---- */

static void vram(void)
{
    CUdeviceptr a, b;
    u64 right, right_q4;
    if (!open_gpu() || !expected(size, &right) || !expected_q4(size, &right_q4) || !XP(cuMemAlloc_v2(&a, size)) || !XP(cuMemAlloc_v2(&b, size))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    struct stretch whole = { a, b, size, NULL };
    rate("bandwidth.hbm_write", work_fill, &whole, size, "");
    read_row("bandwidth.hbm_read", (struct reading){ read16, a, size, 1 }, right, "");
    read_row("bandwidth.hbm_read_4", (struct reading){ read4, a, size, 1 }, right, "");
    read_row("bandwidth.hbm_q4", (struct reading){ NULL, a, size, 1 }, right_q4, "");
    rate("bandwidth.hbm_copy", work_copy, &whole, size, "");
}

/* ---- RAM of each kind ---- */

struct ram {
    struct xp_span span;
    void *pinned;
    CUdeviceptr p;
};

static void ram_drop(struct ram *m)
{
    if (m->pinned)
        cu.cuMemFreeHost(m->pinned);
    else
        xp_span_drop(&m->span);
    memset(m, 0, sizeof *m);
}

/* Of gpu.host (in chunks of 32 MiB or more, at most 32 of them) or, without one, of cuMemHostAlloc. */
static bool ram_make(struct ram *m, size_t bytes)
{
    memset(m, 0, sizeof *m);
    if (!gpu.host.type)
        return XP(cuMemHostAlloc(&m->pinned, bytes, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE)) &&
               XP(cuMemHostGetDevicePointer_v2(&m->p, m->pinned, 0));
    char tiers[33] = "";
    size_t n = bytes / (32 * XP_MIB);
    while (n > 32 || bytes % (n * gpu.unit))
        n--;
    memset(tiers, 'H', n);
    if (!xp_span_make(&m->span, tiers, bytes / n, false))
        return false;
    m->p = m->span.base;
    return true;
}

/* ---- case link ---- */

struct both {
    struct stretch down, up;
};

/* Both ways between the two events of the default stream: each stream starts after it and is waited for by it. */
static bool work_both(void *arg)
{
    struct both *b = arg;
    static CUevent start, done[2];
    if (!start && (!XP(cuEventCreate(&start, CU_EVENT_DISABLE_TIMING)) || !XP(cuEventCreate(&done[0], CU_EVENT_DISABLE_TIMING)) ||
                   !XP(cuEventCreate(&done[1], CU_EVENT_DISABLE_TIMING))))
        return false;
    struct stretch *each[2] = { &b->down, &b->up };
    if (!XP(cuEventRecord(start, NULL)))
        return false;
    for (int i = 0; i < 2; i++)
        if (!xp_ok(wait_event(each[i]->stream, start, 0), "cuStreamWaitEvent") || !work_copy(each[i]) || !XP(cuEventRecord(done[i], each[i]->stream)))
            return false;
    return xp_ok(wait_event(NULL, done[0], 0), "cuStreamWaitEvent") && xp_ok(wait_event(NULL, done[1], 0), "cuStreamWaitEvent");
}

static void link_rates(void)
{
    struct ram pinned, mapped;
    CUdeviceptr card;
    CUstream streams[2];
    if (!open_gpu() || !ram_make(&pinned, size) || !XP(cuMemAlloc_v2(&card, size)) || !XP(cuStreamCreate(&streams[0], CU_STREAM_NON_BLOCKING)) ||
        !XP(cuStreamCreate(&streams[1], CU_STREAM_NON_BLOCKING)) || !run_fill(card, size) || !XP(cuCtxSynchronize())) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    struct stretch up = { card, pinned.p, size, NULL }, down = { pinned.p, card, size, NULL };
    rate("bandwidth.link_d2h", work_copy, &down, size, "");
    rate("bandwidth.link_h2d", work_copy, &up, size, "");
    size_t half = size / 2;
    struct both b = { { pinned.p, card, half, streams[0] }, { card + half, pinned.p + half, half, streams[1] } };
    rate("bandwidth.link_both", work_both, &b, size, "");
    ram_drop(&pinned);
    if (!xp_find_host() || !ram_make(&mapped, size)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    up.from = down.to = mapped.p;
    rate("bandwidth.link_d2h_vmm", work_copy, &down, size, "");
    rate("bandwidth.link_h2d_vmm", work_copy, &up, size, "");
}

/* ---- cases zero_copy* ---- */

static void in_place(const char *suffix, const char *what)
{
    struct ram m;
    u64 right, right_q4;
    if (!expected(size, &right) || !expected_q4(size, &right_q4) || !ram_make(&m, size)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    struct stretch whole = { m.p, 0, size, NULL };
    rate(name("bandwidth.zero_write%s", suffix), work_fill, &whole, size, what);
    CUfunction f[] = { read4, read8, read16, NULL };
    for (int k = 0; k < 4; k++)
        read_row(name("bandwidth.zero_copy%s_%s", suffix, reads[k]), (struct reading){ f[k], m.p, size, 1 }, f[k] ? right : right_q4, what);
    ram_drop(&m);
}

/* The same RAM by a kernel and by the copy engine. */
static void against_copy(const char *row)
{
    struct ram m;
    CUdeviceptr card;
    struct xp_stats direct, copied;
    u64 right;
    if (!xp_begin(row, 40))
        return;
    struct stretch up = { 0, 0, size, NULL };
    struct timing t = { work_copy, &up, size };
    bool ok = expected(size, &right) && ram_make(&m, size) && XP(cuMemAlloc_v2(&card, size)) && run_fill(m.p, size) &&
              measure_read((struct reading){ read16, m.p, size, 1 }, right, &direct);
    up.to = card;
    up.from = m.p;
    if (!ok || !timed(&t, &copied)) {
        say_unanswered(row);
        return;
    }
    double ratio = direct.median / copied.median;
    xp_say(row, xp_verdict(row, ratio > 0.9 && ratio < 1.1), ratio, raw_of(copied, size), "in place %.1f GB/s, copy engine %.1f GB/s", direct.median,
           copied.median);
}

static void zero_copy(void)
{
    if (!open_gpu() || !xp_find_host()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    in_place("", (int)gpu.host.type == XP_HOST_NUMA ? "HOST_NUMA" : "HOST");
    against_copy("bandwidth.zero_copy_against_copy");
}

static void zero_copy_host(void)
{
    CUmemAllocationProp p = xp_prop(XP_HOST, 0);
    CUmemGenericAllocationHandle h;
    if (!open_gpu()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    CUresult r = cu.cuMemGetAllocationGranularity(&gpu.unit, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (gpu.unit < 2 * XP_MIB)
        gpu.unit = 2 * XP_MIB;
    if (!r)
        r = cu.cuMemCreate(&h, gpu.unit, &p, 0);
    if (r == CUDA_ERROR_INVALID_VALUE || r == CUDA_ERROR_NOT_SUPPORTED) { /* an answer: there is nothing to be measured */
        for (int k = 0; k < 5; k++)
            xp_say(k < 4 ? name("bandwidth.zero_copy_host_%s", reads[k]) : "bandwidth.zero_write_host", XP_MEASURED, XP_NAN, "\"refused\": true",
                   "this driver refuses cuMemCreate at HOST: %s", xp_error(r));
        return;
    }
    if (r) {
        xp_rest_unanswered("cuMemCreate at HOST: %s", xp_error(r));
        return;
    }
    cu.cuMemRelease(h);
    gpu.host = p.location;
    in_place("_host", "");
}

static void zero_copy_hostalloc(void)
{
    if (open_gpu())
        in_place("_hostalloc", "");
    else
        xp_rest_unanswered("%s", xp_failure);
}

/* ---- case mix ---- */

enum { MAX_PIECES = 2048 };
struct mix {
    CUdeviceptr base;
    size_t bytes, in_ram;
    int n;
    size_t piece[MAX_PIECES];
};

static void mix_drop(struct mix *m)
{
    CUdeviceptr at = m->base;
    for (int i = 0; i < m->n; at += m->piece[i++])
        cu.cuMemUnmap(at, m->piece[i]);
    if (m->base)
        cu.cuMemAddressFree(m->base, m->bytes);
    m->base = 0;
    m->n = 0;
}

/* Map `bytes` more of one tier in pieces of at most `most`. The mapping alone keeps a handle alive. */
static bool mix_add(struct mix *m, CUdeviceptr *at, char tier, size_t bytes, size_t most)
{
    while (bytes) {
        size_t n = bytes < most ? bytes : most;
        CUmemAllocationProp p = xp_tier(tier);
        CUmemGenericAllocationHandle h;
        if (m->n == MAX_PIECES) {
            snprintf(xp_failure, sizeof xp_failure, "more than %d pieces", MAX_PIECES);
            return false;
        }
        if (!XP(cuMemCreate(&h, n, &p, 0)))
            return false;
        bool mapped = XP(cuMemMap(*at, n, 0, h, 0));
        cu.cuMemRelease(h);
        if (!mapped)
            return false;
        m->piece[m->n++] = n;
        *at += n;
        bytes -= n;
    }
    return true;
}

/* A region whose RAM share is spread as `layout` says; filled. */
static bool mix_make(struct mix *m, int layout, double share)
{
    const size_t unit = gpu.unit, ram_piece = layout == 0 ? size : layout == 1 ? 4 * XP_MIB : unit, vram_piece = layout == 2 ? unit : 32 * XP_MIB;
    CUmemAccessDesc g = xp_for_gpu();
    memset(m, 0, sizeof *m);
    m->bytes = size;
    m->in_ram = (size_t)(share * (double)size / (double)unit + 0.5) * unit;
    if (share > 0 && !m->in_ram)
        m->in_ram = unit;
    size_t pieces = (m->in_ram + ram_piece - 1) / ram_piece, left = m->in_ram, in_vram = size - m->in_ram, given = 0;
    if (!XP(cuMemAddressReserve(&m->base, size, 0, 0, 0)))
        return false;
    CUdeviceptr at = m->base;
    bool ok = pieces || mix_add(m, &at, 'D', size, vram_piece);
    for (size_t i = 0; ok && i < pieces; i++) {
        size_t until = in_vram / unit * (i + 1) / pieces * unit, n = left < ram_piece ? left : ram_piece;
        ok = mix_add(m, &at, 'D', until - given, vram_piece) && mix_add(m, &at, 'H', n, layout == 0 ? 32 * XP_MIB : ram_piece);
        given = until;
        left -= n;
    }
    ok = ok && XP(cuMemSetAccess(m->base, size, &g, 1)) && run_fill(m->base, size) && XP(cuCtxSynchronize());
    if (!ok)
        mix_drop(m);
    return ok;
}

/* Seconds that a turn over the mix takes. */
static bool mix_time(int layout, double share, u64 right, double *seconds, size_t *in_ram)
{
    static struct mix m;
    struct xp_stats s;
    if (!mix_make(&m, layout, share))
        return false;
    bool ok = measure_read((struct reading){ read16, m.base, size, 1 }, right, &s);
    *seconds = (double)size / s.median / 1e9;
    *in_ram = m.in_ram;
    mix_drop(&m);
    return ok;
}

/* How far a kernel over both tiers is from "one after the other" (0) to "at the same time" (1), where both take as long. */
static void overlap(const char *row, int layout, u64 right)
{
    double all_vram, all_ram, seconds;
    size_t in_ram, none;
    if (!xp_begin(row, 60))
        return;
    if (!mix_time(layout, 0, right, &all_vram, &none) || !mix_time(layout, 1, right, &all_ram, &none)) {
        say_unanswered(row);
        return;
    }
    if (!mix_time(layout, all_vram / (all_vram + all_ram), right, &seconds, &in_ram)) {
        say_unanswered(row);
        return;
    }
    double share = (double)in_ram / (double)size, a = (1 - share) * all_vram, b = share * all_ram, longer = a > b ? a : b;
    double value = (a + b - seconds) / (a + b - longer);
    char raw[300];
    snprintf(raw, sizeof raw, "\"share_in_ram\": %.6f, \"vram_alone_ms\": %.6f, \"ram_alone_ms\": %.6f, \"both_ms\": %.6f", share, a * 1e3, b * 1e3,
             seconds * 1e3);
    const char *verdict = value >= 0.7 ? xp_verdict(row, true) : value <= 0.3 ? xp_verdict(row, false) : XP_MEASURED;
    xp_say(row, verdict, value, raw, "VRAM %.3f ms, RAM %.3f ms, both in one kernel %.3f ms: %.0f %% overlapped", a * 1e3, b * 1e3, seconds * 1e3,
           100 * value);
}

static void mix_row(const char *row, int layout, int percent, CUfunction f, u64 right)
{
    static struct mix m;
    struct xp_stats s;
    if (!xp_begin(row, 40))
        return;
    if (!mix_make(&m, layout, 1 - percent / 100.0)) {
        say_unanswered(row);
        return;
    }
    struct reading r = { f, m.base, size, 1 };
    bool ok = measure_read(r, right, &s);
    if (ok) {
        static struct xp_text raw;
        raw.n = 0;
        xp_add(&raw, "%s, \"bytes_in_ram\": %zu, \"pieces\": %d", raw_of(s, bytes_of(&r)), m.in_ram, m.n);
        xp_say(row, XP_MEASURED, s.median, raw.s, "%.1f GB/s (%.1f to %.1f), %.1f %% in RAM, %d pieces", s.median, s.min, s.max,
               100.0 * (double)m.in_ram / (double)size, m.n);
    } else {
        say_unanswered(row);
    }
    mix_drop(&m);
}

static void mix(void)
{
    u64 right, right_q4;
    if (!open_gpu() || !xp_find_host() || !expected(size, &right) || !expected_q4(size, &right_q4)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    overlap("bandwidth.overlap", 2, right);
    overlap("bandwidth.overlap_tail", 0, right);
    for (int s = 0; s < SHARES; s++)
        for (int l = 0; l < LAYOUTS; l++)
            mix_row(name("bandwidth.mix_%s_%d", layouts[l], percents[s]), l, percents[s], read16, right);
    for (int s = 0; s < Q4_SHARES; s++)
        mix_row(name("bandwidth.mix_q4_chunk_%d", q4_percents[s]), 1, q4_percents[s], NULL, right_q4);
}

/* ---- case reuse ---- */

static void reuse_row(const char *row, CUdeviceptr p, u64 right)
{
    struct xp_stats one, many;
    if (!xp_begin(row, 40))
        return;
    if (!run_fill(p, REUSE_BYTES) || !measure_read((struct reading){ read16, p, REUSE_BYTES, 1 }, right, &one) ||
        !measure_read((struct reading){ read16, p, REUSE_BYTES, REUSES }, right, &many)) {
        say_unanswered(row);
        return;
    }
    struct xp_text raw = { 0 };
    double ratio = many.median / one.median;
    xp_add(&raw, "\"bytes\": %d, \"passes\": %d", REUSE_BYTES, REUSES);
    xp_add_stats(&raw, "once_GB/s", one);
    xp_add_stats(&raw, "again_GB/s", many);
    /* Sixteen passes hide a launch's start-up, so a little more than once is no cache; a cache gives many times the rate. */
    xp_say(row, xp_verdict(row, ratio < 3), ratio, raw.s, "once %.1f GB/s, %d times %.1f GB/s", one.median, REUSES, many.median);
}

static void reuse(void)
{
    CUdeviceptr card;
    struct ram m;
    u64 right;
    if (!open_gpu() || !expected(REUSE_BYTES, &right) || !XP(cuMemAlloc_v2(&card, REUSE_BYTES))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    reuse_row("bandwidth.reuse_vram", card, right);
    if (!xp_find_host())
        gpu.host.type = 0; /* cuMemHostAlloc, then */
    if (ram_make(&m, 32 * XP_MIB))
        reuse_row("bandwidth.reuse_ram", m.p, right);
    xp_rest_unanswered("%s", xp_failure);
}

/* ---- case uvm ---- */

struct managed {
    CUdeviceptr p;
    size_t bytes;
};

static bool work_evict(void *arg)
{
    const struct managed *m = arg;
    static CUresult (*old)(CUdeviceptr, size_t, CUdevice, CUstream);
    static CUresult (*new)(CUdeviceptr, size_t, CUmemLocation, unsigned, CUstream);
    CUmemLocation host;
    memset(&host, 0, sizeof host);
    host.type = (CUmemLocationType)XP_HOST;
    *(void **)&new = dlsym(gpu.library, "cuMemPrefetchAsync_v2");
    *(void **)&old = dlsym(gpu.library, "cuMemPrefetchAsync");
    return xp_ok(new ? new(m->p, m->bytes, host, 0, NULL) : old(m->p, m->bytes, CU_DEVICE_CPU, NULL), "cuMemPrefetchAsync");
}

static void uvm(void)
{
    struct xp_samples in = { 0 }, out = { 0 }, cycle = { 0 };
    struct managed m = { 0 };
    size_t free_bytes = 0, total;
    u64 right, got;
    if (!open_gpu() || !XP(cuMemGetInfo_v2(&free_bytes, &total))) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    m.bytes = size < XP_GIB ? size : XP_GIB;
    if (free_bytes / 3 < m.bytes || xp_attribute(CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS) != 1) {
        xp_rest_unanswered(free_bytes / 3 < m.bytes ? "%zu MiB free: not three times the %zu MiB of the buffer"
                                                    : "%zu MiB free, but managed memory of %zu MiB cannot fault here",
                           free_bytes / XP_MIB, m.bytes / XP_MIB);
        return;
    }
    if (!expected(m.bytes, &right) || !zero_sum() || !xp_ok(alloc_managed(&m.p, m.bytes, CU_MEM_ATTACH_GLOBAL), "cuMemAllocManaged") ||
        !run_fill(m.p, m.bytes) || !XP(cuCtxSynchronize())) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    struct reading r = { read16, m.p, m.bytes, 1 };
    struct timing evict = { work_evict, &m, m.bytes }, sweep = { work_read, &r, m.bytes };
    xp_begin("bandwidth.uvm_fault_in", 60);
    for (int i = 0; i < 5; i++) {
        double a, b;
        if (!once(&evict, &a) || !once(&sweep, &b)) {
            xp_rest_unanswered("%s", xp_failure);
            return;
        }
        xp_sample(&out, (double)m.bytes / a / 1e6);
        xp_sample(&in, (double)m.bytes / b / 1e6);
        xp_sample(&cycle, (double)m.bytes / (a + b) / 1e6);
    }
    if (!get_sum(&got) || got != 5 * right) {
        xp_rest_unanswered("WRONG BYTES: the sum over 5 sweeps is not that of the fill");
        return;
    }
    struct xp_stats c = xp_stats(&cycle), direct;
    say_rate("bandwidth.uvm_fault_in", xp_stats(&in), m.bytes, "");
    say_rate("bandwidth.uvm_evict", xp_stats(&out), m.bytes, "");
    say_rate("bandwidth.uvm_cycle", c, m.bytes, "");
    cu.cuMemFree_v2(m.p);
    struct ram ram;
    if (!xp_find_host())
        gpu.host.type = 0;
    if (!ram_make(&ram, m.bytes) || !run_fill(ram.p, m.bytes) || !measure_read((struct reading){ read16, ram.p, m.bytes, 1 }, right, &direct)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    double ratio = direct.median / c.median; /* at the link's rate both ways: 2 */
    xp_say("bandwidth.uvm_against_zero_copy", xp_verdict("bandwidth.uvm_against_zero_copy", ratio > 1.6 && ratio < 2.4), ratio,
           raw_of(direct, m.bytes), "in place %.1f GB/s, UVM cycle %.1f GB/s",
           direct.median, c.median);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = {
        { "vram", vram, 30 },
        { "link", link_rates, 30 },
        { "zero_copy", zero_copy, 30 },
        { "mix", mix, 90 },
        { "reuse", reuse, 20 },
        { "zero_copy_hostalloc", zero_copy_hostalloc, 30 },
        { "zero_copy_host", zero_copy_host, 30 },
        { "uvm", uvm, 40 },
    };
    return xp_main(argc, argv, declare, cases, sizeof cases / sizeof cases[0]);
}
