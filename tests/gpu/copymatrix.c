/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment copymatrix: every memcpy and memset form on VRAM, on RAM chunks and on ranges that cross from one to the other,
 * with RAM opened for the GPU alone ("gpu") and for the CPU too ("cpu"). Three questions a cell:
 *   works    does it answer success, and are the bytes right (checked by a kernel, not by another copy)?
 *   blocks   behind a busy kernel in its own stream: how long does the call hold its caller?
 *   capture  may it be captured, and does the graph do the right thing? (forms with a stream)
 * Decides: the rule by which copies are split at tier borders, and whether RAM chunks are always opened for the CPU.
 * A form that crashes or breaks the context is an answer: the row is said, a fresh process goes on.
 * gpu-check: groups=facts order=30 expect=30 limit=170 */
#include "gpu.h"

#include <setjmp.h>

static const double BUSY = 0.06; /* of the kernel that calls are timed behind, seconds */
enum { N = 2 << 20 };            /* bytes of a linear copy: more than the driver would put into a command buffer */
/* A rectangle: rows whose third one crosses the border between two chunks of 2 MiB. */
enum { ROWS = 4, WIDTH = 256 << 10, PITCH = 512 << 10 };

/* ---- operands: a row of two chunks, and where in it the operand begins ---- */

enum where { VRAM, RAM, VRAM_VRAM, VRAM_RAM, RAM_VRAM, RAM_RAM, PINNED, PAGEABLE, NOTHING };
static const struct {
    const char *name, *tiers;
} WHERE[] = { { "vram", "DD" }, { "ram", "HH" }, { "vram+vram", "DD" }, { "vram+ram", "DH" }, { "ram+vram", "HD" }, { "ram+ram", "HH" },
              { "pinned", "" }, { "pageable", "" }, { "", "" } };

static bool crosses(enum where w)
{
    return w == VRAM_VRAM || w == VRAM_RAM || w == RAM_VRAM || w == RAM_RAM;
}

static bool mixed(enum where w)
{
    return w == VRAM_RAM || w == RAM_VRAM;
}

static bool has_ram(enum where w)
{
    return w == RAM || w == RAM_RAM || mixed(w);
}

/* ---- forms ---- */

enum shape { LINEAR, RECTANGLE, FILL1, FILL4, FILL_RECTANGLE };
enum form { HTOD, HTOD_ASYNC, DTOH, DTOH_ASYNC, DTOD, DTOD_ASYNC, COPY, COPY_ASYNC, PEER, PEER_ASYNC, BATCH, C2D, C2D_ASYNC, C3D, C3D_ASYNC,
            SET8, SET8_ASYNC, SET32, SET32_ASYNC, SET2D8, SET2D8_ASYNC, FORMS };
static const struct {
    const char *name;
    enum shape shape;
    bool async;
} FORM[FORMS] = {
    [HTOD] = { "HtoD", LINEAR, false },
    [HTOD_ASYNC] = { "HtoDAsync", LINEAR, true },
    [DTOH] = { "DtoH", LINEAR, false },
    [DTOH_ASYNC] = { "DtoHAsync", LINEAR, true },
    [DTOD] = { "DtoD", LINEAR, false },
    [DTOD_ASYNC] = { "DtoDAsync", LINEAR, true },
    [COPY] = { "Memcpy", LINEAR, false },
    [COPY_ASYNC] = { "MemcpyAsync", LINEAR, true },
    [PEER] = { "Peer", LINEAR, false },
    [PEER_ASYNC] = { "PeerAsync", LINEAR, true },
    [BATCH] = { "BatchAsync", LINEAR, true },
    [C2D] = { "2D", RECTANGLE, false },
    [C2D_ASYNC] = { "2DAsync", RECTANGLE, true },
    [C3D] = { "3D", RECTANGLE, false },
    [C3D_ASYNC] = { "3DAsync", RECTANGLE, true },
    [SET8] = { "MemsetD8", FILL1, false },
    [SET8_ASYNC] = { "MemsetD8Async", FILL1, true },
    [SET32] = { "MemsetD32", FILL4, false },
    [SET32_ASYNC] = { "MemsetD32Async", FILL4, true },
    [SET2D8] = { "MemsetD2D8", FILL_RECTANGLE, false },
    [SET2D8_ASYNC] = { "MemsetD2D8Async", FILL_RECTANGLE, true },
};

static struct cell {
    enum form form;
    enum where dst, src;
    char name[64];
} cells[256];
static int cell_count;

static void cell(enum form f, enum where dst, enum where src)
{
    struct cell *c = &cells[cell_count++];
    *c = (struct cell){ f, dst, src, "" };
    if (src == NOTHING)
        snprintf(c->name, sizeof c->name, "%s.%s", FORM[f].name, WHERE[dst].name);
    else
        snprintf(c->name, sizeof c->name, "%s.%s>%s", FORM[f].name, WHERE[src].name, WHERE[dst].name);
}

enum question { WORKS, BLOCKS, CAPTURE, QUESTIONS };
static const char *const QUESTION[QUESTIONS] = { "works", "blocks", "capture" };

static void row_name(char *row, size_t size, enum question q, const struct cell *c)
{
    snprintf(row, size, "copymatrix.%s.%s", QUESTION[q], c->name);
}

static const char *belief_of(enum question q, const struct cell *c)
{
    if (q == BLOCKS) {
        if (FORM[c->form].async)
            return c->src == PAGEABLE || c->dst == PAGEABLE ? NULL : "copy.async_returns_at_once";
        return "copy.sync_waits";
    }
    if (mixed(c->dst) || mixed(c->src))
        return "copy.over_tiers_refused";
    if (c->dst == VRAM_VRAM || c->src == VRAM_VRAM)
        return "copy.over_device_mappings";
    if (has_ram(c->dst) || has_ram(c->src))
        return "copy.ram_mappings";
    return NULL;
}

static void declare(void)
{
    static const enum where one[] = { VRAM, RAM, VRAM_VRAM, VRAM_RAM, RAM_VRAM };
    static const enum form sets[] = { SET8, SET8_ASYNC, SET32_ASYNC };
    for (int i = 0; i < 5; i++) {
        cell(HTOD, one[i], PAGEABLE);
        cell(HTOD_ASYNC, one[i], PAGEABLE);
        cell(HTOD_ASYNC, one[i], PINNED);
        cell(DTOH, PAGEABLE, one[i]);
        cell(DTOH_ASYNC, PAGEABLE, one[i]);
        cell(DTOH_ASYNC, PINNED, one[i]);
        for (int k = 0; k < 3; k++)
            cell(sets[k], one[i], NOTHING);
    }
    static const struct {
        enum where dst, src;
    } two[] = { { VRAM, VRAM }, { RAM, VRAM }, { VRAM, RAM }, { RAM, RAM }, { VRAM, VRAM_RAM }, { VRAM_RAM, VRAM }, { VRAM_RAM, VRAM_RAM }, { RAM_RAM, RAM_RAM }, { VRAM_VRAM, VRAM_VRAM } };
    static const enum form full[] = { DTOD, DTOD_ASYNC, COPY_ASYNC };
    for (size_t i = 0; i < sizeof two / sizeof two[0]; i++)
        for (int k = 0; k < 3; k++)
            cell(full[k], two[i].dst, two[i].src);
    /* The other forms: within RAM, and across a border. */
    static const enum form rest[] = { COPY, PEER, PEER_ASYNC, BATCH, C2D, C2D_ASYNC, C3D, C3D_ASYNC };
    for (size_t k = 0; k < sizeof rest / sizeof rest[0]; k++) {
        cell(rest[k], RAM, RAM);
        cell(rest[k], VRAM_RAM, VRAM);
        cell(rest[k], VRAM, VRAM_RAM);
    }
    static const enum form few[] = { SET32, SET2D8, SET2D8_ASYNC };
    for (int k = 0; k < 3; k++) {
        cell(few[k], RAM, NOTHING);
        cell(few[k], VRAM_RAM, NOTHING);
    }
    static const char *const decides[QUESTIONS] = { "split copies at tier borders; open RAM for the CPU always?", "whether a spilled range makes an asynchronous copy synchronous",
                                                    "whether captured copies need splitting" };
    for (int q = 0; q < QUESTIONS; q++)
        for (int i = 0; i < cell_count; i++) {
            char row[96], ask[200];
            static const char *const asks[QUESTIONS] = { "right bytes?", "ms that the call takes behind a kernel that is busy for 60 ms", "captured, instantiated, launched: right bytes?" };
            if (q == CAPTURE && !FORM[cells[i].form].async)
                continue;
            row_name(row, sizeof row, (enum question)q, &cells[i]);
            snprintf(ask, sizeof ask, "%s: %s", cells[i].name, asks[q]);
            xp_row(QUESTION[q], row, ask, q == BLOCKS ? "ms" : "bool", belief_of((enum question)q, &cells[i]), decides[q]);
            /* a driver that copies by CPU may crash */
            xp_row_may_die(belief_of((enum question)q, &cells[i]) ? XP_CORRECTS : XP_MEASURED);
        }
}

/* ---- one attempt ---- */

static struct xp_span rows_of[2][8]; /* [access][where], chunks of 2 MiB or the unit */
static unsigned char *pinned, *pageable;
static CUstream stream; /* blocking: the legacy stream waits for it */
static struct xp_spin spin;

static bool start(void)
{
    if (!xp_kernels() || !xp_find_host() || !XP(cuMemHostAlloc((void **)(uintptr_t)&pinned, 2 * N, 0)) || !(pageable = malloc(2 * N)) || !xp_spin_make(&spin) ||
        !XP(cuStreamCreate(&stream, CU_STREAM_DEFAULT)))
        return false;
    memset(pageable, 1, 2 * N); /* present, so that no first touch is timed */
    return true;
}

/* Operands are made when first wanted: source and destination have rows of their own. */
static struct xp_span sources[2][8];

static struct xp_span *span_of(struct xp_span table[2][8], enum where w, bool cpu)
{
    struct xp_span *s = &table[cpu][w];
    return s->base || xp_span_make(s, WHERE[w].tiers, gpu.unit < N ? N : gpu.unit, cpu) ? s : NULL;
}

/* Where an operand of a shape begins. */
static CUdeviceptr begin(const struct xp_span *s, enum where w, enum shape shape)
{
    if (!crosses(w))
        return s->base;
    return s->base + s->chunk - (shape == RECTANGLE || shape == FILL_RECTANGLE ? 2 * PITCH + WIDTH / 2 : N / 2);
}

static size_t extent(enum shape s)
{
    return s == RECTANGLE || s == FILL_RECTANGLE ? (ROWS - 1) * PITCH + WIDTH : N;
}

struct attempt {
    enum form form;
    CUdeviceptr dst, src; /* device operands */
    void *host;           /* the host operand */
    bool pageable_dst;
};

static CUresult issue(const struct attempt *a, CUstream s)
{
    CUDA_MEMCPY2D flat = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = a->src, .srcPitch = PITCH, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                           .dstDevice = a->dst, .dstPitch = PITCH, .WidthInBytes = WIDTH, .Height = ROWS };
    CUDA_MEMCPY3D solid = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = a->src, .srcPitch = PITCH, .srcHeight = ROWS,
                            .dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = a->dst, .dstPitch = PITCH, .dstHeight = ROWS,
                            .WidthInBytes = WIDTH, .Height = ROWS, .Depth = 1 };
    /* CUmemcpyAttributes: srcAccessOrder 1 = STREAM, two location hints and flags left at zero; 24 bytes and some more. */
    unsigned attributes[16] = { 1 };
    CUdeviceptr dst = a->dst, src = a->src;
    size_t size = N, first = 0, bad = 0;
    switch (a->form) {
    case HTOD: return cu.cuMemcpyHtoD_v2(a->dst, a->host, N);
    case HTOD_ASYNC: return cu.cuMemcpyHtoDAsync_v2(a->dst, a->host, N, s);
    case DTOH: return cu.cuMemcpyDtoH_v2(a->host, a->src, N);
    case DTOH_ASYNC: return cu.cuMemcpyDtoHAsync_v2(a->host, a->src, N, s);
    case DTOD: return cu.cuMemcpyDtoD_v2(a->dst, a->src, N);
    case DTOD_ASYNC: return cu.cuMemcpyDtoDAsync_v2(a->dst, a->src, N, s);
    case COPY: return cu.cuMemcpy(a->dst, a->src, N);
    case COPY_ASYNC: return cu.cuMemcpyAsync(a->dst, a->src, N, s);
    case PEER: return cu.cuMemcpyPeer(a->dst, gpu.ctx, a->src, gpu.ctx, N);
    case PEER_ASYNC: return cu.cuMemcpyPeerAsync(a->dst, gpu.ctx, a->src, gpu.ctx, N, s);
    case BATCH:
        if (cu.cuMemcpyBatchAsync)
            return cu.cuMemcpyBatchAsync(&dst, &src, &size, 1, attributes, &first, 1, &bad, s);
        if (cu.cuMemcpyBatchAsync_v2)
            return cu.cuMemcpyBatchAsync_v2(&dst, &src, &size, 1, attributes, &first, 1, s);
        return CUDA_ERROR_NOT_FOUND;
    case C2D: return cu.cuMemcpy2D_v2(&flat);
    case C2D_ASYNC: return cu.cuMemcpy2DAsync_v2(&flat, s);
    case C3D: return cu.cuMemcpy3D_v2(&solid);
    case C3D_ASYNC: return cu.cuMemcpy3DAsync_v2(&solid, s);
    case SET8: return cu.cuMemsetD8_v2(a->dst, 0x5a, N);
    case SET8_ASYNC: return cu.cuMemsetD8Async(a->dst, 0x5a, N, s);
    case SET32: return cu.cuMemsetD32_v2(a->dst, 0x5a5a5a5a, N / 4);
    case SET32_ASYNC: return cu.cuMemsetD32Async(a->dst, 0x5a5a5a5a, N / 4, s);
    case SET2D8: return cu.cuMemsetD2D8_v2(a->dst, PITCH, 0x5a, WIDTH, ROWS);
    case SET2D8_ASYNC: return cu.cuMemsetD2D8Async(a->dst, PITCH, 0x5a, WIDTH, ROWS, s);
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

/* Source: the seed's pattern; destination: another one. */
static bool prepare(const struct cell *c, bool cpu, uint64_t seed, struct attempt *a)
{
    enum shape shape = FORM[c->form].shape;
    memset(a, 0, sizeof *a);
    a->form = c->form;
    if (c->src == PINNED || c->src == PAGEABLE) {
        uint64_t *w = a->host = c->src == PINNED ? pinned : pageable;
        for (size_t i = 0; i < N / 8; i++)
            w[i] = xp_mix(seed + i);
    } else if (c->src != NOTHING) {
        struct xp_span *s = span_of(sources, c->src, cpu);
        if (!s)
            return false;
        a->src = begin(s, c->src, shape);
        if (!xp_fill(a->src, extent(shape), seed))
            return false;
    }
    if (c->dst == PINNED || c->dst == PAGEABLE) {
        a->host = c->dst == PINNED ? pinned : pageable;
        memset(a->host, 0x11, N);
    } else {
        struct xp_span *s = span_of(rows_of, c->dst, cpu);
        if (!s)
            return false;
        a->dst = begin(s, c->dst, shape);
        return xp_fill(a->dst, extent(shape), ~seed);
    }
    return true;
}

/* Are the bytes where they belong? Counted by a kernel, or by the CPU in host memory. False: an error came up. */
static bool verify(const struct cell *c, const struct attempt *a, uint64_t seed, uint64_t *bad)
{
    uint64_t n = 0, any;
    *bad = 0;
    if (c->dst == PINNED || c->dst == PAGEABLE) {
        const uint64_t *w = a->host;
        for (size_t i = 0; i < N / 8; i++)
            *bad += w[i] != xp_mix(seed + i);
        return true;
    }
    switch (FORM[c->form].shape) {
    case LINEAR: return xp_check(a->dst, N, seed, 0, bad);
    case FILL1:
    case FILL4: return xp_differs(a->dst, N, 0x5a5a5a5a5a5a5a5aull, bad, &any);
    default:
        for (int r = 0; r < ROWS; r++, *bad += n)
            if (!(FORM[c->form].shape == RECTANGLE ? xp_check(a->dst + (size_t)r * PITCH, WIDTH, seed + (uint64_t)r * PITCH / 8, 0, &n)
                                                   : xp_differs(a->dst + (size_t)r * PITCH, WIDTH, 0x5a5a5a5a5a5a5a5aull, &n, &any)))
                return false;
        return true;
    }
}

/* What one attempt showed. */
struct outcome {
    bool tried, dead, crashed, right, late;
    CUresult answer;
    uint64_t bad;
    double ms;
    char what[160];
};

static void describe(struct outcome *o)
{
    if (!o->tried)
        snprintf(o->what, sizeof o->what, "not tried: %.120s", xp_failure);
    else if (o->crashed)
        snprintf(o->what, sizeof o->what, "crashed the process");
    else if (o->answer != CUDA_SUCCESS)
        snprintf(o->what, sizeof o->what, "%s%s", xp_error(o->answer), o->dead ? ", and the context is dead" : "");
    else if (o->dead)
        snprintf(o->what, sizeof o->what, "accepted, then the context died: %.90s", xp_failure);
    else if (o->bad)
        snprintf(o->what, sizeof o->what, "accepted, %llu words wrong", (unsigned long long)o->bad);
    else
        snprintf(o->what, sizeof o->what, "right");
}

static sigjmp_buf crash;
static pthread_t caller;

static void on_crash(int signal_number)
{
    if (pthread_equal(pthread_self(), caller))
        siglongjmp(crash, signal_number);
    signal(signal_number, SIG_DFL); /* a thread of the driver: the process dies of it, the parent says so */
}

/* The driver may copy by CPU, and fault: caught, so that the row can be said; the process is not used further. */
static CUresult guarded(const struct attempt *a, CUstream s, struct outcome *o)
{
    CUresult r = CUDA_ERROR_UNKNOWN;
    caller = pthread_self();
    signal(SIGSEGV, on_crash);
    signal(SIGBUS, on_crash);
    if (sigsetjmp(crash, 1))
        o->crashed = o->dead = true;
    else
        r = issue(a, s);
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    return r;
}

static void finish(const struct cell *c, const struct attempt *a, uint64_t seed, struct outcome *o)
{
    if (o->crashed)
        return;
    if (o->answer == CUDA_SUCCESS)
        o->dead = !XP(cuCtxSynchronize()) || !verify(c, a, seed, &o->bad);
    else
        o->dead = !xp_alive();
    o->right = o->answer == CUDA_SUCCESS && !o->dead && !o->bad;
}

static void works(const struct cell *c, bool cpu, struct outcome *o)
{
    struct attempt a;
    uint64_t seed = xp.seed * 1000 + 1;
    if (!(o->tried = prepare(c, cpu, seed, &a)))
        return;
    o->answer = guarded(&a, stream, o);
    /* A pageable source may be changed as soon as the call is back. */
    if (!o->crashed && c->src == PAGEABLE)
        memset(a.host, 0x77, N);
    finish(c, &a, seed, o);
}

static void blocks(const struct cell *c, bool cpu, struct outcome *o)
{
    struct attempt a;
    uint64_t seed = xp.seed * 1000 + 2;
    if (!(o->tried = prepare(c, cpu, seed, &a)))
        return;
    /* Once without the kernel: whatever the driver prepares at a first use is not timed. */
    o->answer = guarded(&a, stream, o);
    if (o->crashed || o->answer != CUDA_SUCCESS) {
        finish(c, &a, seed, o);
        return;
    }
    if (!XP(cuCtxSynchronize())) {
        o->dead = true;
        return;
    }
    if (!(o->tried = prepare(c, cpu, seed, &a) && xp_spin_start(&spin, stream, BUSY, 0, 0)))
        return;
    double t = xp_now();
    o->answer = guarded(&a, stream, o);
    o->ms = (xp_now() - t) * 1e3;
    if (o->crashed)
        return;
    /* spin.stream is not the stream that it runs in: the device is waited for. */
    spin.stop = 1;
    pthread_join(spin.thread, NULL);
    spin.running = false;
    finish(c, &a, seed, o);
}

static void capture(const struct cell *c, bool cpu, struct outcome *o)
{
    struct attempt a;
    uint64_t seed = xp.seed * 1000 + 3;
    CUgraph graph = NULL;
    CUgraphExec exec = NULL;
    if (!(o->tried = prepare(c, cpu, seed, &a) && XP(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))))
        return;
    o->answer = guarded(&a, stream, o);
    if (o->crashed)
        return;
    CUresult ended = cu.cuStreamEndCapture(stream, &graph);
    if (o->answer == CUDA_SUCCESS)
        o->answer = ended;
    if (o->answer == CUDA_SUCCESS)
        o->answer = cu.cuGraphInstantiateWithFlags(&exec, graph, 0);
    if (o->answer == CUDA_SUCCESS)
        o->answer = cu.cuGraphLaunch(exec, stream);
    finish(c, &a, seed, o);
    if (exec && !o->dead)
        cu.cuGraphExecDestroy(exec);
    if (graph && !o->dead)
        cu.cuGraphDestroy(graph);
}

/* ---- rows ---- */

static bool as_believed(enum question q, const struct cell *c, const struct outcome *o)
{
    if (q == BLOCKS) {
        bool waits = o->ms > BUSY * 1e3 / 2;
        if (FORM[c->form].async)
            return !waits;
        bool inside = (c->dst == VRAM || c->dst == VRAM_VRAM) && (c->src == VRAM || c->src == VRAM_VRAM || c->src == NOTHING);
        return waits == !inside;
    }
    if (mixed(c->dst) || mixed(c->src))
        return o->answer == CUDA_ERROR_INVALID_VALUE && !o->dead;
    return o->right;
}

static void ask(enum question q, void (*attempt)(const struct cell *, bool cpu, struct outcome *))
{
    if (!start()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    for (int i = 0; i < cell_count; i++) {
        const struct cell *c = &cells[i];
        struct outcome o[2];
        char row[96];
        if (q == CAPTURE && !FORM[c->form].async)
            continue;
        row_name(row, sizeof row, q, c);
        if (!xp_begin(row, 6))
            continue;
        bool ram = has_ram(c->dst) || has_ram(c->src), dead = false, untried = false, believed = true, right = true, timed = q != BLOCKS;
        memset(o, 0, sizeof o);
        /* With the CPU's access first: it is the one less likely to crash, and a dead process tries no more. */
        for (int cpu = ram; cpu >= 0; cpu--) {
            if (dead) {
                snprintf(o[cpu].what, sizeof o[cpu].what, "not tried after that");
                right = false;
                continue;
            }
            /* A busy machine only ever makes a call later: one that seems to wait against belief is timed again. */
            double least = INFINITY;
            for (int k = 0; k < 3; k++) {
                memset(&o[cpu], 0, sizeof o[cpu]);
                attempt(c, cpu, &o[cpu]);
                least = fmin(least, o[cpu].ms);
                if (q != BLOCKS || !o[cpu].right || as_believed(q, c, &o[cpu]) || !belief_of(q, c))
                    break;
            }
            if (o[cpu].right)
                o[cpu].ms = least;
            describe(&o[cpu]);
            dead = o[cpu].dead;
            untried |= !o[cpu].tried;
            if (q != BLOCKS || o[cpu].right) /* a refused call has no time that a belief could be about */
                believed = believed && as_believed(q, c, &o[cpu]);
            timed |= o[cpu].right;
            right = right && o[cpu].right;
        }
        if (untried && !dead) {
            xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", o[0].tried ? o[1].what : o[0].what);
            if (!xp_alive())
                xp_again();
            continue;
        }
        struct xp_text *raw = calloc(1, sizeof *raw);
        for (int cpu = 0; cpu <= ram; cpu++) {
            xp_add(raw, "%s\"%s\": {\"right\": %s, \"answer\": %d, \"ms\": %.3f, \"what\": ", cpu ? ", " : "", cpu ? "cpu" : "gpu", o[cpu].right ? "true" : "false",
                   (int)o[cpu].answer, o[cpu].ms);
            xp_add_string(raw, o[cpu].what);
            xp_add(raw, "}");
        }
        char seen[512], time[2][64] = { "", "" };
        for (int k = 0; q == BLOCKS && k <= ram; k++)
            if (o[k].right)
                snprintf(time[k], sizeof time[k], ", %.2f ms: %s", o[k].ms, o[k].ms > BUSY * 1e3 / 2 ? "waits" : "returns at once");
        if (ram)
            snprintf(seen, sizeof seen, "GPU access alone: %s%s; with CPU access: %s%s", o[0].what, time[0], o[1].what, time[1]);
        else
            snprintf(seen, sizeof seen, "%s%s", o[0].what, time[0]);
        xp_say(row, timed ? xp_verdict(row, believed) : XP_MEASURED, q == BLOCKS ? (o[0].right ? o[0].ms : ram && o[1].right ? o[1].ms : XP_NAN) : right, raw->s, "%s", seen);
        free(raw);
        if (dead)
            xp_again();
    }
}

static void ask_works(void)
{
    ask(WORKS, works);
}

static void ask_blocks(void)
{
    ask(BLOCKS, blocks);
}

static void ask_capture(void)
{
    ask(CAPTURE, capture);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "works", ask_works, 60 }, { "capture", ask_capture, 45 }, { "blocks", ask_blocks, 60 } };
    return xp_main(argc, argv, declare, cases, 3);
}
