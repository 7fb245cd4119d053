/* SPDX-License-Identifier: Apache-2.0 */
/* Soak: random sequences of what programs do with memory, with moves ordered and driver calls failing in between, against a model that
 * knows what every byte must be. Runs behind a shim whose functions are visible (open.h); built and run by
 * tests/integration/test_tiering_soak.py.
 *
 *   soak SEED THREADS STEPS     STEPS: of each thread, a multiple of 1000 or less than that; SIMGPU_KERNELS names the kernels' companion
 *
 * Each thread has regions, streams, graphs and a model of its own; memory, moves and the ledger are everybody's. After each step the
 * bytes that it touched are read back and compared; after every 1000 all bytes of all regions, and the sums of tiers and budgets; in the
 * end nothing may be held. With one thread the sequence depends on the seed alone.
 * Rules: an error that no fault was asked for ends the program, out-of-memory apart; a fault may fail what it was asked for, and
 * nothing else. */
#include "open.h"

#include <stddef.h>

enum { REGIONS = 7, GRAPHS = 3, BURST = 6, ROUND = 1000, STREAMS = 4, PLACES = 2 };
#define LARGEST_ACT (1 * MIB)
#define UP_ROOM (8 * MIB)
#define ALL_THREADS (80 * MIB) /* most bytes of all regions */

struct region {
    CUdeviceptr p; /* 0: free place */
    size_t size;
    unsigned char *model;
    unsigned place; /* of its context */
};

/* A context and what was made in it. */
struct place {
    CUcontext ctx; /* NULL: there is none now */
    CUmodule module;
    CUfunction mix, combine;
    CUstream stream[STREAMS]; /* 0: the legacy one, 1: the thread's own, 2: blocking, 3: non-blocking */
};

enum what { SET8, SET16, SET32, SET_2D, COPY, COPY_2D, UP, MIX, COMBINE, WHATS };

/* Work for the GPU that the model can do too. */
struct act {
    enum what what;
    struct region *to, *from;
    size_t at, from_at, bytes; /* bytes: of each side, gaps between rows included */
    size_t pitch, width;       /* of the two-dimensional ones */
    unsigned value;
    const unsigned char *host; /* of UP */
};

struct graph {
    CUgraphExec exec; /* NULL: free place */
    unsigned place, count;
    struct act act[BURST];
};

struct worker {
    unsigned index, threads, steps;
    uint64_t state;
    struct region region[REGIONS];
    struct graph graph[GRAPHS];
    struct place place[PLACES]; /* 0: the primary context */
    unsigned char *pageable, *pinned, *back; /* sources of UP; where bytes are read to */
    size_t up_used, held;
    atomic_uint called;
    unsigned contexts, recut, faults, faulted, refused, freed_late;
};

static CUdevice device;
static pthread_barrier_t round_ends;
static size_t start; /* free VRAM before the first region */
static struct worker *workers;

static unsigned any(struct worker *w, unsigned below) { return draw(&w->state, below); }
static bool one_in(struct worker *w, unsigned n) { return any(w, n) == 0; }

/* ---- places ---- */

static void place_open(struct place *at)
{
    at->module = open_module();
    MUST(cuModuleGetFunction(&at->mix, at->module, "mix"));
    MUST(cuModuleGetFunction(&at->combine, at->module, "combine"));
    at->stream[0] = NULL;
    at->stream[1] = CU_STREAM_PER_THREAD;
    MUST(cuStreamCreate(&at->stream[2], CU_STREAM_DEFAULT));
    MUST(cuStreamCreate(&at->stream[3], CU_STREAM_NON_BLOCKING));
}

static void place_enter(struct worker *w, unsigned place) { MUST(cuCtxSetCurrent(w->place[place].ctx)); }

/* ---- regions ---- */

static struct region *any_region(struct worker *w, unsigned place)
{
    for (unsigned i = any(w, REGIONS), n = 0; n < REGIONS; n++, i = (i + 1) % REGIONS)
        if (w->region[i].p && w->region[i].place == place)
            return &w->region[i];
    return NULL;
}

static void forget_graphs(struct worker *w, const struct region *of)
{
    for (unsigned g = 0; g < GRAPHS; g++) {
        bool uses = false;
        for (unsigned i = 0; w->graph[g].exec && i < w->graph[g].count; i++)
            uses |= w->graph[g].act[i].to == of || w->graph[g].act[i].from == of;
        if (uses) {
            MUST(cuGraphExecDestroy(w->graph[g].exec));
            w->graph[g].exec = NULL;
        }
    }
}

static void forget(struct worker *w, struct region *r)
{
    forget_graphs(w, r);
    w->held -= r->size;
    free(r->model);
    *r = (struct region){ 0 };
}

/* ---- reading back ---- */

static void compare(struct worker *w, const struct region *r, size_t at, size_t bytes)
{
    CUstream stream = w->place[r->place].stream[any(w, STREAMS)];
    for (size_t done = 0, n; done < bytes; done += n) {
        n = bytes - done < LARGEST_ACT ? bytes - done : LARGEST_ACT;
        memset(w->back, 0xee, n);
        switch (any(w, 3)) {
        case 0: MUST(cuMemcpyDtoH(w->back, r->p + at + done, n)); break;
        case 1: MUST(cuMemcpy((CUdeviceptr)w->back, r->p + at + done, n)); break;
        default:
            MUST(cuMemcpyDtoHAsync(w->back, r->p + at + done, n, stream));
            MUST(cuStreamSynchronize(stream));
        }
        if (memcmp(w->back, r->model + at + done, n) == 0)
            continue;
        for (size_t i = 0; i < n; i++)
            if (w->back[i] != r->model[at + done + i]) {
                printf("0x%llx + 0x%zx of 0x%zx holds %02x instead of %02x\n", r->p, at + done + i, r->size, w->back[i],
                       r->model[at + done + i]);
                break;
            }
        CHECK(!"every byte is as the model has it");
    }
}

/* ---- acts ---- */

/* A span of `r`: of all lengths alike, half of them over the edge of a granule. */
static void span(struct worker *w, const struct region *r, size_t most, size_t *at, size_t *bytes)
{
    *bytes = 4 + any(w, 1u << (3 + any(w, 18)));
    *bytes = *bytes < most ? *bytes : most;
    *bytes &= ~(size_t)3;
    size_t last = r->size - *bytes;
    *at = any(w, (unsigned)last + 1);
    if (r->size > SPILL_GRANULE && one_in(w, 2)) {
        size_t edge = (1 + any(w, (unsigned)(r->size / SPILL_GRANULE))) * SPILL_GRANULE, before = any(w, (unsigned)*bytes + 1);
        *at = edge > before ? edge - before : 0;
    }
    *at = (*at < last ? *at : last) & ~(size_t)3;
}

static bool plan(struct worker *w, struct act *a, unsigned place, bool captured)
{
    *a = (struct act){ .what = (enum what)any(w, WHATS), .to = any_region(w, place), .value = any(w, 1u << 30) };
    if (captured && (a->what == UP || (a->what != MIX && a->what != COMBINE && !one_in(w, 4))))
        a->what = one_in(w, 2) ? MIX : COMBINE; /* copies and memsets pin what they touch */
    if (!a->to)
        return false;
    span(w, a->to, a->to->size / 2 < LARGEST_ACT ? a->to->size / 2 : LARGEST_ACT, &a->at, &a->bytes);
    if (a->what == COPY || a->what == COPY_2D || a->what == COMBINE) {
        a->from = any_region(w, place);
        if (a->from->size < a->bytes)
            return false;
        a->from_at = any(w, (unsigned)(a->from->size - a->bytes) + 1) & ~3u;
        if (a->from == a->to && a->from_at < a->at + a->bytes && a->at < a->from_at + a->bytes)
            return false;
    }
    if (a->what == SET_2D || a->what == COPY_2D) {
        a->pitch = 16 + any(w, 1u << (1 + any(w, 18)));
        a->pitch = (a->pitch < a->bytes ? a->pitch : a->bytes) & ~(size_t)3;
        a->width = 1 + any(w, (unsigned)a->pitch);
        a->bytes = a->bytes / a->pitch * a->pitch;
    }
    if (a->what == UP) {
        if (w->up_used + a->bytes > UP_ROOM)
            return false;
        unsigned char *host = (one_in(w, 2) ? w->pinned : w->pageable) + w->up_used;
        for (size_t i = 0; i < a->bytes; i += 4)
            memcpy(host + i, &(unsigned){ (a->value + (unsigned)i) * 2246822519u }, 4);
        a->host = host;
        w->up_used += a->bytes;
    }
    return true;
}

static CUresult launch(struct worker *w, const struct act *a, CUstream stream)
{
    const struct place *at = &w->place[a->to->place];
    CUdeviceptr to = a->to->p + a->at, from = a->from ? a->from->p + a->from_at : 0;
    unsigned n = (unsigned)(a->bytes / 4), blocks = n < 256 ? 1 : 4;
    if (a->what == MIX)
        return cuLaunchKernel(at->mix, blocks, 1, 1, 32, 1, 1, 0, stream, (void *[]){ &to, &n, (void *)&a->value }, NULL);
    return cuLaunchKernel(at->combine, blocks, 1, 1, 32, 1, 1, 0, stream, (void *[]){ &to, &from, &n, (void *)&a->value }, NULL);
}

static CUresult queue(struct worker *w, const struct act *a, CUstream stream)
{
    CUdeviceptr to = a->to->p + a->at, from = a->from ? a->from->p + a->from_at : 0;
    CUDA_MEMCPY2D rows = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = from, .srcPitch = a->pitch, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                           .dstDevice = to, .dstPitch = a->pitch, .WidthInBytes = a->width, .Height = a->pitch ? a->bytes / a->pitch : 0 };
    switch (a->what) {
    case SET8: return cuMemsetD8Async(to, (unsigned char)a->value, a->bytes, stream);
    case SET16: return cuMemsetD16Async(to, (unsigned short)a->value, a->bytes / 2, stream);
    case SET32: return cuMemsetD32Async(to, a->value, a->bytes / 4, stream);
    case SET_2D: return cuMemsetD2D8Async(to, a->pitch, (unsigned char)a->value, a->width, a->bytes / a->pitch, stream);
    case COPY: return cuMemcpyDtoDAsync(to, from, a->bytes, stream);
    case COPY_2D: return cuMemcpy2DAsync(&rows, stream);
    case UP: return cuMemcpyHtoDAsync(to, a->host, a->bytes, stream);
    default: return launch(w, a, stream);
    }
}

/* The forms without a stream, which use the legacy one. */
static CUresult do_now(struct worker *w, const struct act *a)
{
    CUdeviceptr to = a->to->p + a->at, from = a->from ? a->from->p + a->from_at : 0;
    CUDA_MEMCPY2D rows = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = from, .srcPitch = a->pitch, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                           .dstDevice = to, .dstPitch = a->pitch, .WidthInBytes = a->width, .Height = a->pitch ? a->bytes / a->pitch : 0 };
    switch (a->what) {
    case SET8: return cuMemsetD8(to, (unsigned char)a->value, a->bytes);
    case SET16: return cuMemsetD16(to, (unsigned short)a->value, a->bytes / 2);
    case SET32: return cuMemsetD32(to, a->value, a->bytes / 4);
    case SET_2D: return cuMemsetD2D8(to, a->pitch, (unsigned char)a->value, a->width, a->bytes / a->pitch);
    case COPY: return one_in(w, 2) ? cuMemcpy(to, from, a->bytes) : cuMemcpyDtoD(to, from, a->bytes);
    case COPY_2D: return cuMemcpy2DUnaligned(&rows);
    case UP: return cuMemcpyHtoD(to, a->host, a->bytes);
    default: return launch(w, a, NULL);
    }
}

static void model(const struct act *a)
{
    unsigned char *to = a->to->model + a->at, *from = a->from ? a->from->model + a->from_at : NULL;
    unsigned *words = (unsigned *)to, *others = (unsigned *)from, n = (unsigned)(a->bytes / 4);
    switch (a->what) {
    case SET8: memset(to, (unsigned char)a->value, a->bytes); break;
    case SET16:
        for (size_t i = 0; i < a->bytes / 2; i++)
            ((unsigned short *)to)[i] = (unsigned short)a->value;
        break;
    case SET32:
        for (unsigned i = 0; i < n; i++)
            words[i] = a->value;
        break;
    case SET_2D:
        for (size_t row = 0; row < a->bytes; row += a->pitch)
            memset(to + row, (unsigned char)a->value, a->width);
        break;
    case COPY: memcpy(to, from, a->bytes); break;
    case COPY_2D:
        for (size_t row = 0; row < a->bytes; row += a->pitch)
            memcpy(to + row, from + row, a->width);
        break;
    case UP: memcpy(to, a->host, a->bytes); break;
    case MIX:
        for (unsigned i = 0; i < n; i++)
            words[i] = words[i] * 2654435761u + a->value + i;
        break;
    default:
        for (unsigned i = 0; i < n; i++)
            words[i] = words[i] * 5u + (others[i] ^ a->value);
    }
}

static void compare_acts(struct worker *w, const struct act *acts, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        compare(w, acts[i].to, acts[i].at, acts[i].bytes);
}

/* ---- moves ---- */

/* Have one or two of the next driver calls of this thread fail. */
static bool faults_begin(struct worker *w)
{
    static const CUresult errors[] = { CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_NOT_READY, CUDA_ERROR_NOT_SUPPORTED };
    if (!one_in(w, 4))
        return false;
    door_calm();
    fail_with = errors[any(w, 4)];
    fail_at = 1 + any(w, one_in(w, 2) ? 12 : 40);
    fail_at_too = one_in(w, 2) ? fail_at + 1 + any(w, 8) : 0;
    w->faults++;
    return true;
}

static void faults_end(struct worker *w)
{
    w->faulted += fail_at && calls >= fail_at;
    door_calm();
}

static void order_moves(struct worker *w)
{
    uint64_t bytes = one_in(w, 16) ? UINT64_MAX : (uint64_t)any(w, 6u << 20);
    unsigned patience = any(w, 3);
    bool capturing = spill_capturing();
    struct spill_order_result r = { 0 };
    enum spill_reason why;
    switch (any(w, 8)) {
    case 0:
    case 1: r = spill_order_demote(bytes, patience); break;
    case 2:
    case 3: r = spill_order_promote(bytes, patience); break;
    case 4: spill_settle(); break;
    case 5:
        spill_lock();
        spill_displace(0, 1 + any(w, 4u << 20), any(w, 8u << 20), spill_now_ns() + spill_ms(2), spill_ms(10), &why);
        spill_unlock();
        break;
    default: w->recut += open_recut(&w->state, spill_ms(2));
    }
    CHECK(!capturing || !r.moved || w->threads > 1);
}

static void step_move(struct worker *w)
{
    bool faulty = faults_begin(w);
    order_moves(w);
    if (faulty)
        faults_end(w);
    struct region *r = any_region(w, 0);
    size_t at, bytes;
    if (!r)
        return;
    span(w, r, r->size, &at, &bytes);
    compare(w, r, at, bytes);
}

/* ---- steps ---- */

static void step_work(struct worker *w)
{
    unsigned place = w->place[1].ctx && one_in(w, 4), count = one_in(w, 3) ? 1 + any(w, BURST) : 1, planned = 0;
    struct act act[BURST];
    CUstream stream = w->place[place].stream[any(w, STREAMS)];
    for (unsigned i = 0; i < count; i++)
        planned += plan(w, &act[planned], place, false);
    place_enter(w, place);
    if (planned == 1 && one_in(w, 3)) {
        MUST(do_now(w, &act[0]));
        stream = NULL;
    } else {
        for (unsigned i = 0; i < planned; i++)
            MUST(queue(w, &act[i], stream));
    }
    if (one_in(w, 6))
        order_moves(w); /* while it is under way */
    for (unsigned i = 0; i < planned; i++)
        model(&act[i]);
    if (w->threads == 1 && one_in(w, 4))
        MUST(cuCtxSynchronize()); /* where nobody captures */
    else
        MUST(cuStreamSynchronize(stream));
    compare_acts(w, act, planned);
    place_enter(w, 0);
}

static void step_alloc(struct worker *w)
{
    struct region *r = w->region;
    while (r < w->region + REGIONS && r->p)
        r++;
    static const unsigned mib[] = { 1, 1, 2, 4, 8 };
    size_t size = 2 * MIB + any(w, mib[any(w, 5)] << 20) / 4 * 4;
    if (r == w->region + REGIONS || w->held + size > ALL_THREADS / w->threads)
        return;
    *r = (struct region){ .size = size, .place = w->place[1].ctx && one_in(w, 3) };
    place_enter(w, r->place);
    bool faulty = faults_begin(w);
    CUresult answer = cuMemAlloc(&r->p, size);
    if (faulty)
        faults_end(w);
    if (answer != CUDA_SUCCESS) {
        CHECK(faulty || answer == CUDA_ERROR_OUT_OF_MEMORY);
        r->p = 0;
        w->refused++;
    } else {
        unsigned char fill = (unsigned char)any(w, 256);
        CHECK((r->model = malloc(size)) != NULL);
        memset(r->model, fill, size);
        w->held += size;
        MUST(cuMemsetD8(r->p, fill, size));
        MUST(cuStreamSynchronize(NULL));
        compare(w, r, 0, size);
    }
    place_enter(w, 0);
}

static void step_free(struct worker *w)
{
    unsigned place = w->place[1].ctx && one_in(w, 3);
    struct region *r = any_region(w, place);
    struct act act;
    if (!r || one_in(w, 3))
        return;
    place_enter(w, place);
    CUstream stream = w->place[place].stream[any(w, STREAMS)];
    bool async = place == 0 && one_in(w, 3);
    /* With work on it still under way: cuMemFree waits for that, cuMemFreeAsync is ordered behind it on the same stream. */
    if (plan(w, &act, place, false)) {
        MUST(queue(w, &act, stream));
        model(&act);
        if (!spill_region_find(r->p))
            MUST(cuStreamSynchronize(stream)); /* the driver's own cuMemFree need not wait */
    }
    forget_graphs(w, r);
    bool faulty = faults_begin(w);
    CUresult answer = async ? cuMemFreeAsync(r->p, stream) : cuMemFree(r->p);
    if (faulty)
        faults_end(w);
    if (answer != CUDA_SUCCESS) {
        CHECK(faulty);
        MUST(cuStreamSynchronize(stream));
        compare(w, r, 0, r->size);
        MUST(cuMemFree(r->p));
    }
    w->freed_late += async;
    forget(w, r);
    MUST(cuStreamSynchronize(stream)); /* what was queued may have touched another region */
    place_enter(w, 0);
}

static void step_capture(struct worker *w)
{
    unsigned place = w->place[1].ctx && one_in(w, 4), planned = 0;
    struct graph *g = &w->graph[any(w, GRAPHS)];
    static const CUstreamCaptureMode modes[] = { CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_GLOBAL };
    CUstreamCaptureMode mode = modes[any(w, w->threads > 1 ? 2 : 3)]; /* GLOBAL forbids others what they do */
    CUstream stream = w->place[place].stream[w->threads > 1 ? 3 : 2 + any(w, 2)]; /* others use the legacy stream */
    CUgraph graph;
    if (g->exec)
        MUST(cuGraphExecDestroy(g->exec));
    *g = (struct graph){ .place = place };
    for (unsigned i = 1 + any(w, BURST); i; i--)
        planned += plan(w, &g->act[planned], place, true);
    place_enter(w, place);
    struct region *victim = planned && mode == CU_STREAM_CAPTURE_MODE_RELAXED && one_in(w, 4) ? any_region(w, place) : NULL;
    MUST(cuStreamBeginCapture(stream, mode));
    for (unsigned i = 0; i < planned; i++)
        MUST(queue(w, &g->act[i], stream));
    if (one_in(w, 3))
        order_moves(w);
    for (unsigned i = 0; victim && i < planned; i++)
        if (g->act[i].to == victim || g->act[i].from == victim)
            victim = NULL;
    if (victim) {
        MUST(cuMemFree(victim->p)); /* it goes to limbo */
        forget(w, victim);
    }
    MUST(cuStreamEndCapture(stream, &graph));
    if (planned) {
        MUST(cuGraphInstantiateWithFlags(&g->exec, graph, 0));
        g->count = planned;
    }
    MUST(cuGraphDestroy(graph));
    place_enter(w, 0);
}

static void step_graph(struct worker *w)
{
    struct graph *g = &w->graph[any(w, GRAPHS)];
    if (!g->exec)
        return;
    CUstream stream = w->place[g->place].stream[any(w, STREAMS)];
    place_enter(w, g->place);
    for (unsigned times = 1 + any(w, 3); times; times--) {
        MUST(cuGraphLaunch(g->exec, stream));
        for (unsigned i = 0; i < g->count; i++)
            model(&g->act[i]);
        if (one_in(w, 4))
            order_moves(w);
    }
    MUST(cuStreamSynchronize(stream));
    compare_acts(w, g->act, g->count);
    place_enter(w, 0);
}

static void CUDA_CB on_host(void *arg) { atomic_fetch_add((atomic_uint *)arg, 1); }

static void step_callback(struct worker *w)
{
    CUstream stream = w->place[0].stream[any(w, STREAMS)];
    unsigned before = atomic_load(&w->called);
    struct act act;
    bool planned = plan(w, &act, 0, false);
    MUST(cuLaunchHostFunc(stream, on_host, &w->called));
    if (planned) {
        MUST(queue(w, &act, stream));
        model(&act);
    }
    MUST(cuLaunchHostFunc(stream, on_host, &w->called));
    if (one_in(w, 2))
        order_moves(w);
    MUST(cuStreamSynchronize(stream));
    CHECK(atomic_load(&w->called) == before + 2);
    if (planned)
        compare_acts(w, &act, 1);
}

/* A second context comes, or goes with all that is in it. */
static void step_context(struct worker *w)
{
    struct place *at = &w->place[1];
    if (!one_in(w, 6))
        return;
    if (!at->ctx) {
        CUresult r = cuCtxCreate(&at->ctx, NULL, 0, device);
        if (r != CUDA_SUCCESS) {
            if (r != CUDA_ERROR_OUT_OF_MEMORY)
                open_fail("cuCtxCreate", __LINE__, r);
            at->ctx = NULL;
            return;
        }
        w->contexts++;
        place_open(at);
        MUST(cuCtxPopCurrent(&(CUcontext){ NULL })); /* else the thread's stack grows with each one that it makes */
        place_enter(w, 0);
        return;
    }
    for (unsigned g = 0; g < GRAPHS; g++)
        if (w->graph[g].exec && w->graph[g].place == 1) {
            MUST(cuGraphExecDestroy(w->graph[g].exec));
            w->graph[g].exec = NULL;
        }
    MUST(cuCtxDestroy(at->ctx));
    MUST(cuCtxSetCurrent(w->place[0].ctx));
    *at = (struct place){ 0 };
    for (unsigned i = 0; i < REGIONS; i++)
        if (w->region[i].p && w->region[i].place == 1)
            forget(w, &w->region[i]);
}

/* Small, so the driver's own; copied to and from a region. */
static void step_native(struct worker *w)
{
    struct region *r = any_region(w, 0);
    CUdeviceptr p;
    size_t at, bytes;
    if (!r)
        return;
    span(w, r, MIB, &at, &bytes);
    CUresult answer = cuMemAlloc(&p, bytes);
    if (answer != CUDA_SUCCESS) {
        CHECK(answer == CUDA_ERROR_OUT_OF_MEMORY);
        return;
    }
    MUST(cuMemcpyDtoD(p, r->p + at, bytes));
    MUST(cuMemsetD8(r->p + at, 0x5a, bytes));
    MUST(cuMemcpyDtoD(r->p + at, p, bytes));
    MUST(cuStreamSynchronize(NULL)); /* none of these waits, nor need the driver's own cuMemFree */
    MUST(cuMemFree(p));
    compare(w, r, at, bytes);
}

static void step_query(struct worker *w)
{
    const struct region *r = any_region(w, 0);
    CUdeviceptr base;
    size_t size;
    unsigned type = 0;
    if (!r)
        return;
    MUST(cuMemGetAddressRange(&base, &size, r->p + any(w, (unsigned)r->size)));
    CHECK(base == r->p && size == r->size);
    MUST(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, r->p + r->size - 1));
    CHECK(type == CU_MEMORYTYPE_DEVICE);
}

/* ---- rounds ---- */

static uint64_t native_bytes(void)
{
    uint64_t bytes = 0; /* a fault makes an allocation the driver's own, which is taken in whole steps */
    for (unsigned t = 0; t < workers->threads; t++)
        for (unsigned i = 0; i < REGIONS; i++) {
            const struct region *r = &workers[t].region[i];
            if (r->p && !spill_region_find(r->p))
                bytes += (r->size + SPILL_GRANULE - 1) & ~(SPILL_GRANULE - 1);
        }
    return bytes;
}

static void end_round(struct worker *w)
{
    for (unsigned i = 0; i < REGIONS; i++)
        if (w->region[i].p) {
            place_enter(w, w->region[i].place);
            compare(w, &w->region[i], 0, w->region[i].size);
        }
    place_enter(w, 0);
    pthread_barrier_wait(&round_ends);
    if (w->index == 0) {
        spill_lock();
        while (spill_limbo_any())
            spill_limbo_sweep(100);
        spill_unlock();
        sums_agree(start, native_bytes());
        CHECK(spill_state_now() == SPILL_OPEN && spill_move_stats()->poisoned == 0);
    }
    pthread_barrier_wait(&round_ends);
}

static void *body(void *arg)
{
    static void (*const steps[])(struct worker *) = {
        step_work, step_work, step_work, step_work, step_work, step_work, step_work, step_move, step_move, step_move, step_alloc, step_free,
        step_capture, step_graph, step_graph, step_callback, step_context, step_native, step_query,
    };
    struct worker *w = arg;
    place_enter(w, 0);
    place_open(&w->place[0]);
    pthread_barrier_wait(&round_ends);
    if (w->index == 0)
        start = free_vram();
    pthread_barrier_wait(&round_ends);
    for (unsigned i = 1; i <= w->steps; i++) {
        unsigned which = any(w, sizeof steps / sizeof *steps);
        snprintf(scenario, sizeof scenario, "thread %u step %u kind %u", w->index, i, which);
        w->up_used = 0;
        steps[which](w);
        if (i % ROUND == 0 || i == w->steps)
            end_round(w);
    }
    snprintf(scenario, sizeof scenario, "thread %u ends", w->index);
    if (w->place[1].ctx) {
        MUST(cuCtxDestroy(w->place[1].ctx));
        MUST(cuCtxSetCurrent(w->place[0].ctx));
    }
    for (unsigned g = 0; g < GRAPHS; g++)
        if (w->graph[g].exec && w->graph[g].place == 0)
            MUST(cuGraphExecDestroy(w->graph[g].exec));
    for (unsigned i = 0; i < REGIONS; i++) {
        if (w->region[i].p && w->region[i].place == 0)
            MUST(cuMemFree(w->region[i].p));
        free(w->region[i].model);
    }
    MUST(cuStreamDestroy(w->place[0].stream[2]));
    MUST(cuStreamDestroy(w->place[0].stream[3]));
    MUST(cuModuleUnload(w->place[0].module));
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return printf("usage: soak SEED THREADS STEPS\n"), 2;
    uint64_t seed = strtoull(argv[1], NULL, 10);
    unsigned threads = (unsigned)atoi(argv[2]), steps = (unsigned)atoi(argv[3]), contexts = 0, recut = 0, faults = 0, faulted = 0, refused = 0, late = 0;
    CUcontext ctx;
    CUdeviceptr p;
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&ctx, device));
    MUST(cuCtxSetCurrent(ctx));
    open_door();
    MUST(cuMemAlloc(&p, 4 * MIB)); /* the engine starts, and probes */
    CHECK(spill_region_find(p) != NULL);
    MUST(cuMemFree(p));
    size_t whole = free_vram();
    workers = calloc(threads, sizeof *workers);
    pthread_t *ids = calloc(threads, sizeof *ids);
    pthread_barrier_init(&round_ends, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        struct worker *w = &workers[i];
        *w = (struct worker){ .index = i, .threads = threads, .steps = steps, .state = seed_of(seed, i), .pageable = malloc(UP_ROOM), .back = malloc(LARGEST_ACT) };
        MUST(cuMemHostAlloc((void **)&w->pinned, UP_ROOM, 0));
        w->place[0].ctx = ctx;
    }
    for (unsigned i = 0; i < threads; i++)
        CHECK(pthread_create(&ids[i], NULL, body, &workers[i]) == 0);
    for (unsigned i = 0; i < threads; i++) {
        struct worker *w = &workers[i];
        pthread_join(ids[i], NULL);
        MUST(cuMemFreeHost(w->pinned));
        free(w->pageable);
        free(w->back);
        contexts += w->contexts, recut += w->recut, faults += w->faults, faulted += w->faulted, refused += w->refused, late += w->freed_late;
    }
    MUST(cuCtxSynchronize());
    snprintf(scenario, sizeof scenario, "the end");
    sums_agree(whole, 0);
    CHECK(held.handles == 0 && held.mapped == 0);
    CHECK(held.events <= 1 + (long)contexts); /* one for each context that was ever asked, and that takes it along */
    const struct spill_move_stats *s = spill_move_stats();
    printf("seed %llu: %u operations; %llu demotions, %llu promotions, %u moves cut anew, %llu rolled back; safepoints: %llu, busy: %llu, "
           "capturing: %llu; %u faults asked for, %u met; %u second contexts; %u allocations refused, %u frees in stream order\n",
           (unsigned long long)seed, threads * steps, (unsigned long long)s->demoted, (unsigned long long)s->promoted, recut,
           (unsigned long long)s->rolled_back, (unsigned long long)s->safepoints, (unsigned long long)s->refused_busy,
           (unsigned long long)s->refused_capture, faults, faulted, contexts, refused, late);
    free(workers);
    free(ids);
    MUST(cuDevicePrimaryCtxRelease(device));
    printf("ok\n");
    return 0;
}
