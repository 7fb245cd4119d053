/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads that use one driver at once, as roughly as programs may: streams, events, VMM, pools, graphs, callbacks,
 * contexts that end with work queued. For race detectors; what the calls promise is checked on the way.
 * Usage: simgpu_stress SEED THREADS STEPS, with SIMGPU_KERNELS naming the companion of simgpu_stress_kernels.c.
 * Rules: no undefined use: every thread has its own buffers, streams and captures, and shares events, the module, the
 * default pool and one counter. Running out of memory and the driver's refusals around captures are answers, not errors;
 * any other unexpected result ends the program with 1. The order of steps of a thread depends on the seed alone.
 */
#include <cuda.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
#define WORDS 4096u
enum { EVENTS = 8, SLOTS = 16 };

static const char ptx[] =
    ".version 7.0\n.target sm_50\n.address_size 64\n"
    ".visible .entry bump( .param .u64 words, .param .u32 n ) { ret; }\n"
    ".visible .entry count( .param .u64 total ) { ret; }\n";

static CUdevice device;
static CUcontext primary;
static CUfunction bump, count;
static CUdeviceptr total;           /* counted in by `count` */
static CUevent events[EVENTS];      /* recorded and waited for by everyone */
static _Atomic CUdeviceptr seen[SLOTS]; /* addresses of others, for queries; often already freed */
static atomic_uint counts, callbacks, called, skipped;
static uint64_t seed;
static unsigned steps;

struct self {
    unsigned index;
    uint64_t state;
    CUstream streams[4];
    unsigned *host; /* WORDS */
};

static unsigned draw(struct self *s, unsigned below)
{
    s->state = s->state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(s->state >> 33) % below;
}

static void die(const char *what, int line, CUresult r)
{
    fprintf(stderr, "line %d: %s: %d\n", line, what, (int)r);
    _Exit(1);
}

/* True when the call did what was asked; false when memory or a capture stood in its way. */
static bool fine(CUresult r, const char *what, int line)
{
    if (r == CUDA_SUCCESS)
        return true;
    if (r != CUDA_ERROR_OUT_OF_MEMORY && (r < CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED || r > CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD))
        die(what, line, r);
    atomic_fetch_add(&skipped, 1);
    return false;
}
#define TRY(call) fine(call, #call, __LINE__)
#define MUST(call) do { CUresult r_ = (call); if (r_) die(#call, __LINE__, r_); } while (0)

static void CUDA_CB on_host(void *arg)
{
    atomic_fetch_add((atomic_uint *)arg, 1);
}

static void CUDA_CB on_stream(CUstream stream, CUresult status, void *arg)
{
    (void)stream;
    (void)status;
    atomic_fetch_add((atomic_uint *)arg, 1);
}

static CUstream any_stream(struct self *s)
{
    CUstream *slot = &s->streams[draw(s, 4)];
    if (*slot && draw(s, 8) == 0) {
        MUST(cuStreamDestroy(*slot)); /* with whatever is queued */
        *slot = NULL;
    }
    if (!*slot && cuStreamCreateWithPriority(slot, CU_STREAM_NON_BLOCKING, 0))
        *slot = NULL;
    return *slot ? *slot : CU_STREAM_PER_THREAD;
}

static CUresult run_bump(CUdeviceptr p, CUstream stream)
{
    unsigned n = WORDS;
    void *args[] = {&p, &n};
    return cuLaunchKernel(bump, WORDS / 64, 1, 1, 64, 1, 1, 0, stream, args, NULL);
}

static void compare(struct self *s, unsigned want, int line)
{
    for (unsigned i = 0; i < WORDS; i++)
        if (s->host[i] != want) {
            fprintf(stderr, "line %d: word %u is %u instead of %u\n", line, i, s->host[i], want);
            _Exit(1);
        }
}

/* Fill, change by kernel, read back. */
static void use(struct self *s, CUdeviceptr p, CUstream stream)
{
    unsigned value = draw(s, 1u << 30), times = draw(s, 3);
    atomic_store(&seen[draw(s, SLOTS)], p);
    bool ok = TRY(cuMemsetD32Async(p, value, WORDS, stream));
    for (unsigned i = 0; ok && i < times; i++)
        ok = TRY(run_bump(p, stream));
    memset(s->host, 0, WORDS * sizeof *s->host);
    ok = ok && TRY(cuMemcpyDtoHAsync(s->host, p, WORDS * sizeof *s->host, stream));
    if (TRY(cuStreamSynchronize(stream)) && ok)
        compare(s, value + times, __LINE__);
}

static void step_alloc(struct self *s)
{
    CUdeviceptr p;
    CUstream stream = any_stream(s);
    if (!TRY(cuMemAlloc(&p, (1 + draw(s, 20)) * MIB)))
        return;
    use(s, p, stream);
    if (draw(s, 2))
        (void)TRY(run_bump(p, stream)); /* the free waits for it */
    MUST(cuMemFree(p));
}

static void step_async(struct self *s)
{
    CUdeviceptr p;
    CUstream stream = any_stream(s);
    if (!TRY(cuMemAllocAsync(&p, (1 + draw(s, 4)) * MIB, stream)))
        return;
    use(s, p, stream);
    MUST(cuMemFreeAsync(p, stream));
}

static void step_vmm(struct self *s)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED};
    CUmemAccessDesc access = {.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle;
    CUdeviceptr base;
    size_t size = 2 * MIB;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    access.location = prop.location;
    if (!TRY(cuMemCreate(&handle, size, &prop, 0)))
        return;
    MUST(cuMemAddressReserve(&base, 2 * size, 0, 0, 0));
    for (unsigned i = 0; i < 2; i++) { /* the same bytes at two places, one after the other */
        MUST(cuMemMap(base + i * size, size, 0, handle, 0));
        MUST(cuMemSetAccess(base + i * size, size, &access, 1));
        use(s, base + i * size, any_stream(s));
        MUST(cuMemUnmap(base + i * size, size));
    }
    MUST(cuMemRelease(handle));
    MUST(cuMemAddressFree(base, 2 * size));
}

static void step_events(struct self *s)
{
    CUstream stream = any_stream(s);
    CUevent a = events[draw(s, EVENTS)], b = events[draw(s, EVENTS)], own;
    float ms;
    (void)TRY(cuEventRecord(a, stream));
    (void)TRY(cuStreamWaitEvent(draw(s, 2) ? stream : CU_STREAM_PER_THREAD, b, 0));
    CUresult r = cuEventQuery(b);
    if (r != CUDA_ERROR_NOT_READY)
        (void)TRY(r);
    r = cuEventElapsedTime(&ms, a, b); /* somebody may have recorded either again */
    if (r != CUDA_ERROR_NOT_READY && r != CUDA_ERROR_INVALID_HANDLE)
        (void)TRY(r);
    if (TRY(cuEventCreate(&own, CU_EVENT_DISABLE_TIMING))) {
        (void)TRY(cuEventRecord(own, stream));
        if (draw(s, 2))
            (void)TRY(cuEventSynchronize(own));
        MUST(cuEventDestroy(own)); /* recorded, perhaps not yet reached */
    }
}

static void step_callback(struct self *s)
{
    CUstream stream = any_stream(s);
    if (draw(s, 2) ? TRY(cuLaunchHostFunc(stream, on_host, &called)) : TRY(cuStreamAddCallback(stream, on_stream, &called, 0)))
        atomic_fetch_add(&callbacks, 1);
}

static void step_count(struct self *s)
{
    void *args[] = {&total};
    if (TRY(cuLaunchKernel(count, 2, 1, 1, 32, 1, 1, 0, draw(s, 4) ? any_stream(s) : NULL, args, NULL)))
        atomic_fetch_add(&counts, 64);
}

static void step_graph(struct self *s)
{
    CUstream stream = any_stream(s);
    CUdeviceptr p;
    CUgraph graph = NULL;
    CUgraphExec exec;
    unsigned launches = 1 + draw(s, 3);
    if (stream == CU_STREAM_PER_THREAD || !TRY(cuMemAlloc(&p, MIB)))
        return;
    bool ok = TRY(cuMemsetD32Async(p, 5, WORDS, stream)) && TRY(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED));
    if (ok) {
        ok = TRY(run_bump(p, stream)) && TRY(cuLaunchHostFunc(stream, on_host, &called)) && TRY(run_bump(p, stream));
        ok = TRY(cuStreamEndCapture(stream, &graph)) && ok;
    }
    if (ok && TRY(cuGraphInstantiateWithFlags(&exec, graph, 0))) {
        for (unsigned i = 0; i < launches; i++) {
            ok = ok && TRY(cuGraphLaunch(exec, stream));
            if (ok)
                atomic_fetch_add(&callbacks, 1);
        }
        MUST(cuGraphExecDestroy(exec)); /* perhaps while it runs */
        ok = ok && TRY(cuMemcpyDtoHAsync(s->host, p, WORDS * sizeof *s->host, stream));
        if (TRY(cuStreamSynchronize(stream)) && ok)
            compare(s, 5 + 2 * launches, __LINE__);
    }
    if (graph)
        MUST(cuGraphDestroy(graph));
    MUST(cuMemFree(p));
}

/* A context of one's own, ended with work queued. */
static void step_context(struct self *s)
{
    CUcontext own;
    CUstream stream;
    CUdeviceptr p;
    if (!TRY(cuCtxCreate(&own, NULL, 0, device)))
        return;
    if (TRY(cuStreamCreate(&stream, draw(s, 2) ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT)) && TRY(cuMemAlloc(&p, 4 * MIB))) {
        for (unsigned i = 0; i < 4; i++)
            (void)TRY(cuMemsetD8Async(p + i * MIB, (unsigned char)i, MIB, draw(s, 2) ? stream : NULL));
        if (TRY(cuLaunchHostFunc(stream, on_host, &called)))
            atomic_fetch_add(&callbacks, 1);
        atomic_store(&seen[draw(s, SLOTS)], p);
    }
    MUST(cuCtxDestroy(own));
    MUST(cuCtxSetCurrent(primary));
}

static void step_host(struct self *s)
{
    void *p, *mine = NULL;
    CUdeviceptr mapped;
    CUstream stream = any_stream(s);
    if (TRY(cuMemHostAlloc(&p, MIB, CU_MEMHOSTALLOC_DEVICEMAP))) {
        MUST(cuMemHostGetDevicePointer(&mapped, p, 0));
        use(s, mapped, stream);
        MUST(cuMemFreeHost(p));
    }
    if (posix_memalign(&mine, 4096, MIB) == 0) {
        if (TRY(cuMemHostRegister(mine, MIB, CU_MEMHOSTREGISTER_DEVICEMAP))) {
            MUST(cuMemHostGetDevicePointer(&mapped, mine, 0));
            use(s, mapped, stream);
            MUST(cuMemHostUnregister(mine));
        }
        free(mine);
    }
}

/* Questions about what may be gone. */
static void step_query(struct self *s)
{
    CUdeviceptr p = atomic_load(&seen[draw(s, SLOTS)]), base;
    size_t size, all;
    unsigned type;
    CUresult r = cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p);
    if (r && r != CUDA_ERROR_INVALID_VALUE)
        die("cuPointerGetAttribute", __LINE__, r);
    r = cuMemGetAddressRange(&base, &size, p);
    if (r && r != CUDA_ERROR_NOT_FOUND && r != CUDA_ERROR_INVALID_VALUE)
        die("cuMemGetAddressRange", __LINE__, r);
    MUST(cuMemGetInfo(&size, &all));
    if (draw(s, 4) == 0)
        (void)TRY(cuCtxSynchronize());
}

static void step_module(struct self *s)
{
    CUmodule module;
    CUfunction f;
    int value;
    (void)s;
    if (!TRY(cuModuleLoadData(&module, ptx)))
        return;
    MUST(cuModuleGetFunction(&f, module, "bump"));
    MUST(cuFuncGetAttribute(&value, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, f));
    void *args[] = {&total};
    MUST(cuModuleGetFunction(&f, module, "count"));
    if (TRY(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, any_stream(s), args, NULL)))
        atomic_fetch_add(&counts, 32);
    MUST(cuModuleUnload(module));
}

static void *body(void *arg)
{
    static void (*const step[])(struct self *) = {
        step_alloc, step_async, step_vmm, step_events, step_callback, step_count,
        step_graph, step_context, step_host, step_query, step_module,
    };
    struct self *s = arg;
    MUST(cuCtxSetCurrent(primary));
    for (unsigned i = 0; i < steps; i++)
        step[draw(s, sizeof step / sizeof *step)](s);
    for (unsigned i = 0; i < 4; i++)
        if (s->streams[i] && draw(s, 2)) /* the others end with the context */
            MUST(cuStreamDestroy(s->streams[i]));
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 64;
    seed = strtoull(argv[1], NULL, 10);
    unsigned threads = (unsigned)atoi(argv[2]), counted;
    steps = (unsigned)atoi(argv[3]);
    CUmodule module;
    MUST(cuInit(0));
    MUST(cuDeviceGet(&device, 0));
    MUST(cuDevicePrimaryCtxRetain(&primary, device));
    MUST(cuCtxSetCurrent(primary));
    MUST(cuModuleLoadData(&module, ptx));
    MUST(cuModuleGetFunction(&bump, module, "bump"));
    MUST(cuModuleGetFunction(&count, module, "count"));
    MUST(cuMemAlloc(&total, 4096));
    MUST(cuMemsetD32(total, 0, 1024));
    for (unsigned i = 0; i < EVENTS; i++)
        MUST(cuEventCreate(&events[i], i % 2 ? CU_EVENT_DISABLE_TIMING : CU_EVENT_DEFAULT));
    MUST(cuCtxSynchronize());

    struct self *selves = calloc(threads, sizeof *selves);
    pthread_t *ids = calloc(threads, sizeof *ids);
    if (!selves || !ids)
        return 65;
    for (unsigned i = 0; i < threads; i++) {
        selves[i] = (struct self){.index = i, .state = seed * 1000003u + i, .host = malloc(WORDS * sizeof(unsigned))};
        if (!selves[i].host || pthread_create(&ids[i], NULL, body, &selves[i]))
            return 65;
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        free(selves[i].host);
    }
    free(selves);
    free(ids);
    MUST(cuCtxSynchronize());
    MUST(cuMemcpyDtoH(&counted, total, sizeof counted));
    for (unsigned i = 0; i < EVENTS; i++)
        MUST(cuEventDestroy(events[i]));
    MUST(cuMemFree(total));
    MUST(cuModuleUnload(module));
    MUST(cuDevicePrimaryCtxRelease(device));
    if (counted != atomic_load(&counts) || atomic_load(&called) != atomic_load(&callbacks)) {
        fprintf(stderr, "counted %u of %u, called %u of %u\n", counted, atomic_load(&counts), atomic_load(&called), atomic_load(&callbacks));
        return 1;
    }
    printf("ok %u\n", atomic_load(&skipped));
    return 0;
}
