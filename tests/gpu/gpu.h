/* SPDX-License-Identifier: Apache-2.0 */
/* What experiments do to a GPU: the driver by dlopen, one context, memory at VRAM and RAM locations, patterns, and a kernel
 * that is busy for a given time. Included after experiment.h by tests/gpu/NAME.c; the kernels are facts.cu.
 * Rules: driver API only, by exact symbol name; plain allocations of device 0 (CUDA_VISIBLE_DEVICES chooses it); nothing may
 * run for ever: the busy kernel ends at a word in host memory or at a clock limit. A function that fails returns false and
 * leaves the reason in xp_failure. */
#ifndef GPU_H
#define GPU_H

#define __CUDA_API_VERSION_INTERNAL /* declares every ABI under its own name */
#include <cuda.h>
#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>

#include "experiment.h"

/* cuda.h names these differently over the years, or not at all; the numbers are the ABI. */
enum { XP_DEVICE = 1, XP_HOST = 2, XP_HOST_NUMA = 3, XP_HOST_NUMA_CURRENT = 4 };
enum { XP_ATTRIBUTE_VMM = 102, XP_ATTRIBUTE_HOST_NUMA_ID = 134, XP_ATTRIBUTE_HOST_NUMA_VMM = 141, XP_ATTRIBUTE_HOST_VMM = 145 };

#define XP_ENTRIES(X) \
    X(cuInit) X(cuDriverGetVersion) X(cuGetErrorName) X(cuDeviceGet) X(cuDeviceGetCount) X(cuDeviceGetName) \
    X(cuDeviceGetAttribute) X(cuDeviceTotalMem_v2) X(cuDevicePrimaryCtxRetain) X(cuCtxSetCurrent) X(cuCtxSynchronize) \
    X(cuModuleLoadData) X(cuModuleGetFunction) X(cuLaunchKernel) X(cuMemGetInfo_v2) X(cuMemAlloc_v2) X(cuMemFree_v2) \
    X(cuMemHostAlloc) X(cuMemFreeHost) X(cuMemHostGetDevicePointer_v2) X(cuMemAddressReserve) X(cuMemAddressFree) \
    X(cuMemCreate) X(cuMemRelease) X(cuMemMap) X(cuMemUnmap) X(cuMemSetAccess) X(cuMemGetAllocationGranularity) \
    X(cuMemRetainAllocationHandle) X(cuMemcpy) X(cuMemcpyAsync) X(cuMemcpyHtoD_v2) X(cuMemcpyHtoDAsync_v2) X(cuMemcpyDtoH_v2) \
    X(cuMemcpyDtoHAsync_v2) X(cuMemcpyDtoD_v2) X(cuMemcpyDtoDAsync_v2) X(cuMemcpyPeer) X(cuMemcpyPeerAsync) X(cuMemcpy2D_v2) \
    X(cuMemcpy2DAsync_v2) X(cuMemcpy3D_v2) X(cuMemcpy3DAsync_v2) X(cuMemsetD8_v2) X(cuMemsetD8Async) X(cuMemsetD32_v2) \
    X(cuMemsetD32Async) X(cuMemsetD2D8_v2) X(cuMemsetD2D8Async) X(cuStreamCreate) X(cuStreamDestroy_v2) X(cuStreamSynchronize) \
    X(cuStreamQuery) X(cuStreamBeginCapture_v2) X(cuStreamEndCapture) X(cuStreamIsCapturing) \
    X(cuThreadExchangeStreamCaptureMode) X(cuEventCreate) X(cuEventRecord) X(cuEventQuery) X(cuEventSynchronize) \
    X(cuEventElapsedTime) X(cuEventDestroy_v2) X(cuGraphCreate) X(cuGraphDestroy) X(cuGraphGetNodes) X(cuGraphNodeGetType) \
    X(cuGraphInstantiateWithFlags) X(cuGraphLaunch) X(cuGraphExecDestroy) X(cuGraphAddMemcpyNode) X(cuGraphAddMemsetNode) \
    X(cuGraphMemcpyNodeGetParams) X(cuGraphMemcpyNodeSetParams) X(cuGraphExecMemcpyNodeSetParams) \
    X(cuGraphExecMemsetNodeSetParams) X(cuGraphMemsetNodeGetParams) X(cuPointerGetAttribute) X(cuPointerGetAttributes) \
    X(cuPointerSetAttribute) X(cuMemGetAddressRange_v2) X(cuIpcGetMemHandle) X(cuMemGetHandleForAddressRange)

/* Entries that not every cuda.h declares: typed here, NULL where the driver lacks them. Structures are passed as void. */
#define XP_LATE_ENTRIES(X) \
    X(cuGraphExecUpdate_v2, (CUgraphExec, CUgraph, void *result)) \
    X(cuMemcpyBatchAsync, (CUdeviceptr *, CUdeviceptr *, size_t *, size_t, void *attributes, size_t *, size_t, size_t *, CUstream)) \
    X(cuMemcpyBatchAsync_v2, (CUdeviceptr *, CUdeviceptr *, size_t *, size_t, void *attributes, size_t *, size_t, CUstream)) \
    X(cuCtxRecordEvent, (CUcontext, CUevent))

static struct {
#define X(name) __typeof__(&name) name;
    XP_ENTRIES(X)
#undef X
#define X(name, args) CUresult (*name) args;
    XP_LATE_ENTRIES(X)
#undef X
} cu;

static struct {
    void *library;
    int driver; /* cuDriverGetVersion */
    CUdevice device;
    CUcontext ctx;
    CUmodule module;
    CUmemLocation host; /* where cuMemCreate gives RAM; type 0: nowhere */
    size_t unit;        /* granularity of both locations, bytes */
    CUfunction fill, check, add, differs, spin;
    CUdeviceptr counters; /* two words for xp_check and xp_differs */
} gpu XP_UNUSED;

static char xp_failure[256] = "";

/* ---- errors ---- */

XP_UNUSED static const char *xp_error(CUresult r)
{
    const char *name = NULL;
    if (r == CUDA_SUCCESS)
        return "success";
    return cu.cuGetErrorName && cu.cuGetErrorName(r, &name) == CUDA_SUCCESS && name ? name : "unknown error";
}

/* Keep what failed; true on success. */
XP_UNUSED static bool xp_ok(CUresult r, const char *what)
{
    if (r != CUDA_SUCCESS)
        snprintf(xp_failure, sizeof xp_failure, "%.*s: %s (%d)", (int)strcspn(what, "("), what, xp_error(r), (int)r);
    return r == CUDA_SUCCESS;
}

/* if (XP(cuMemMap(p, n, 0, h, 0))) ... */
#define XP(call) xp_ok(cu.call, #call)

/* After an error: is the context still usable? A sticky error answers every call. Waits for all work. */
XP_UNUSED static bool xp_alive(void)
{
    size_t free_bytes, total;
    return cu.cuCtxSynchronize() == CUDA_SUCCESS && cu.cuMemGetInfo_v2(&free_bytes, &total) == CUDA_SUCCESS;
}

/* ---- driver, device, context, kernels ---- */

XP_UNUSED static bool xp_driver(void)
{
    /* Lazy loading would load a kernel at its first launch, and may then wait for a kernel that is busy on purpose. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    gpu.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!gpu.library) {
        snprintf(xp_failure, sizeof xp_failure, "no driver: %s", dlerror());
        return false;
    }
#define X(name) \
    if (!(cu.name = (__typeof__(cu.name))dlsym(gpu.library, #name))) \
        snprintf(xp_failure, sizeof xp_failure, "this driver has no %s", #name);
    XP_ENTRIES(X)
#undef X
#define X(name, args) *(void **)&cu.name = dlsym(gpu.library, #name);
    XP_LATE_ENTRIES(X)
#undef X
    return !xp_failure[0] && XP(cuInit(0)) && XP(cuDriverGetVersion(&gpu.driver)) && XP(cuDeviceGet(&gpu.device, 0));
}

/* INT_MIN: the driver does not know the attribute. */
XP_UNUSED static int xp_attribute(int which)
{
    int v;
    return cu.cuDeviceGetAttribute(&v, (CUdevice_attribute)which, gpu.device) == CUDA_SUCCESS ? v : INT_MIN;
}

/* NAME.ptx beside the executable, else beside the sources. The text is kept: a driver may compile it later. */
XP_UNUSED static bool xp_module(const char *name, CUmodule *module)
{
    char exe[PATH_MAX] = "", source[] = __FILE__, path[PATH_MAX + 80];
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0)
        exe[0] = 0;
    snprintf(path, sizeof path, "%s/%s.ptx", dirname(exe), name);
    FILE *f = fopen(path, "rb");
    if (!f) {
        snprintf(path, sizeof path, "%s/%s.ptx", dirname(source), name);
        f = fopen(path, "rb");
    }
    if (!f) {
        snprintf(xp_failure, sizeof xp_failure, "%s.ptx is neither beside the executable nor at %.150s", name, path);
        return false;
    }
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *text = calloc(1, (size_t)n + 1);
    bool read = text && fread(text, 1, (size_t)n, f) == (size_t)n;
    fclose(f);
    if (!read) {
        snprintf(xp_failure, sizeof xp_failure, "cannot read %.200s", path);
        return false;
    }
    return XP(cuModuleLoadData(module, text));
}

/* Blocks until everything is done. args as for cuLaunchKernel. */
XP_UNUSED static CUresult xp_launch(CUfunction f, unsigned blocks, unsigned threads, CUstream s, void **args)
{
    return cu.cuLaunchKernel(f, blocks, 1, 1, threads, 1, 1, 0, s, args, NULL);
}

/* Grid for n words: 256 threads each; the kernels stride, so it need not cover them. */
XP_UNUSED static unsigned xp_blocks(size_t words)
{
    size_t n = (words + 255) / 256;
    return n > 1024 ? 1024 : n ? (unsigned)n : 1;
}

/* Context and driver, without kernels and without knowing where RAM can be had. */
XP_UNUSED static bool xp_context(void)
{
    return xp_driver() && XP(cuDevicePrimaryCtxRetain(&gpu.ctx, gpu.device)) && XP(cuCtxSetCurrent(gpu.ctx));
}

/* Context and the kernels of facts.cu. */
XP_UNUSED static bool xp_kernels(void)
{
    return xp_context() && xp_module("facts", &gpu.module) && XP(cuModuleGetFunction(&gpu.fill, gpu.module, "xp_fill")) &&
           XP(cuModuleGetFunction(&gpu.check, gpu.module, "xp_check")) && XP(cuModuleGetFunction(&gpu.add, gpu.module, "xp_add")) &&
           XP(cuModuleGetFunction(&gpu.differs, gpu.module, "xp_differs")) &&
           XP(cuModuleGetFunction(&gpu.spin, gpu.module, "xp_spin")) && XP(cuMemAlloc_v2(&gpu.counters, 16));
}

/* ---- memory ---- */

XP_UNUSED static CUmemAllocationProp xp_prop(int type, int id)
{
    CUmemAllocationProp p;
    memset(&p, 0, sizeof p);
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = (CUmemLocationType)type;
    p.location.id = id;
    return p;
}

/* Find where cuMemCreate gives RAM: HOST_NUMA at the device's node, then HOST. It can crash there: cases run in children.
 * Also sets gpu.unit. False: nowhere, and why. */
XP_UNUSED static bool xp_find_host(void)
{
    int node = xp_attribute(XP_ATTRIBUTE_HOST_NUMA_ID);
    CUmemAllocationProp vram = xp_prop(XP_DEVICE, (int)gpu.device);
    struct {
        int type, id;
    } tries[] = { { XP_HOST_NUMA, node == INT_MIN || node < 0 ? 0 : node }, { XP_HOST, 0 } };
    size_t unit = 0;
    if (!XP(cuMemGetAllocationGranularity(&gpu.unit, &vram, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)))
        return false;
    char first[128] = "";
    for (int i = 0; i < 2; i++) {
        CUmemAllocationProp p = xp_prop(tries[i].type, tries[i].id);
        CUmemGenericAllocationHandle h;
        if (XP(cuMemGetAllocationGranularity(&unit, &p, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED))) {
            if (unit < gpu.unit)
                unit = gpu.unit;
            if (XP(cuMemCreate(&h, unit, &p, 0))) {
                cu.cuMemRelease(h);
                gpu.unit = unit;
                gpu.host = p.location;
                return true;
            }
        }
        if (!i)
            snprintf(first, sizeof first, "HOST_NUMA: %.100s", xp_failure);
    }
    char second[96];
    snprintf(second, sizeof second, "%.90s", xp_failure);
    snprintf(xp_failure, sizeof xp_failure, "cuMemCreate gives no RAM here (%.110s; HOST: %.90s)", first, second);
    return false;
}

/* tier 'D': VRAM, 'H': RAM. */
XP_UNUSED static CUmemAllocationProp xp_tier(char tier)
{
    return tier == 'D' ? xp_prop(XP_DEVICE, (int)gpu.device) : xp_prop((int)gpu.host.type, gpu.host.id);
}

XP_UNUSED static CUmemAccessDesc xp_for_gpu(void)
{
    CUmemAccessDesc d;
    memset(&d, 0, sizeof d);
    d.location.type = (CUmemLocationType)XP_DEVICE;
    d.location.id = (int)gpu.device;
    d.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    return d;
}

XP_UNUSED static CUmemAccessDesc xp_for_cpu(void)
{
    CUmemAccessDesc d = xp_for_gpu();
    d.location = gpu.host;
    return d;
}

/* Chunks of equal size side by side in a reservation of their own; tiers "DHDH". */
struct xp_span {
    CUdeviceptr base;
    size_t chunk, bytes;
    int n;
    char tiers[40];
    CUmemGenericAllocationHandle handles[40];
};

/* Back chunk i of a span with a fresh handle and map it; no access yet. */
XP_UNUSED static bool xp_back(struct xp_span *s, int i, char tier)
{
    CUmemAllocationProp p = xp_tier(tier);
    if (!XP(cuMemCreate(&s->handles[i], s->chunk, &p, 0)))
        return false;
    if (!XP(cuMemMap(s->base + (size_t)i * s->chunk, s->chunk, 0, s->handles[i], 0))) {
        cu.cuMemRelease(s->handles[i]);
        s->handles[i] = 0;
        return false;
    }
    s->tiers[i] = tier;
    return true;
}

/* Access for the GPU to all of it by one call; for the CPU to each RAM chunk, if asked for. */
XP_UNUSED static bool xp_grant(struct xp_span *s, bool cpu)
{
    CUmemAccessDesc g = xp_for_gpu(), c = xp_for_cpu();
    if (!XP(cuMemSetAccess(s->base, s->bytes, &g, 1)))
        return false;
    for (int i = 0; cpu && i < s->n; i++)
        if (s->tiers[i] == 'H' && !XP(cuMemSetAccess(s->base + (size_t)i * s->chunk, s->chunk, &c, 1)))
            return false;
    return true;
}

XP_UNUSED static void xp_span_drop(struct xp_span *s)
{
    for (int i = 0; i < s->n; i++)
        if (s->handles[i]) {
            cu.cuMemUnmap(s->base + (size_t)i * s->chunk, s->chunk);
            cu.cuMemRelease(s->handles[i]);
        }
    if (s->base)
        cu.cuMemAddressFree(s->base, s->bytes);
    memset(s, 0, sizeof *s);
}

/* Reserve and map, without access. On failure nothing is left behind. */
XP_UNUSED static bool xp_span_map(struct xp_span *s, const char *tiers, size_t chunk)
{
    memset(s, 0, sizeof *s);
    s->n = (int)strlen(tiers);
    s->chunk = chunk;
    s->bytes = (size_t)s->n * chunk;
    bool ok = XP(cuMemAddressReserve(&s->base, s->bytes, 0, 0, 0));
    if (!ok)
        s->base = 0;
    for (int i = 0; ok && i < s->n; i++)
        ok = xp_back(s, i, tiers[i]);
    if (!ok)
        xp_span_drop(s);
    return ok;
}

XP_UNUSED static bool xp_span_make(struct xp_span *s, const char *tiers, size_t chunk, bool cpu)
{
    if (!xp_span_map(s, tiers, chunk))
        return false;
    if (xp_grant(s, cpu))
        return true;
    xp_span_drop(s);
    return false;
}

/* ---- patterns ---- */

/* word i = xp_mix(seed + i), written by a kernel; waits. */
XP_UNUSED static bool xp_fill(CUdeviceptr p, size_t bytes, uint64_t seed)
{
    uint64_t words = bytes / 8;
    void *args[] = { &p, &words, &seed };
    return xp_ok(xp_launch(gpu.fill, xp_blocks(words), 256, NULL, args), "launch of xp_fill") && XP(cuCtxSynchronize());
}

XP_UNUSED static bool xp_counters(CUfunction f, size_t words, void **args, uint64_t second, uint64_t out[2])
{
    uint64_t start[2] = { 0, second };
    return XP(cuMemcpyHtoD_v2(gpu.counters, start, sizeof start)) &&
           xp_ok(xp_launch(f, xp_blocks(words), 256, NULL, args), "launch of a checking kernel") && XP(cuCtxSynchronize()) &&
           XP(cuMemcpyDtoH_v2(out, gpu.counters, 16));
}

/* *bad = words that are not xp_mix(seed + i) + add, counted by a kernel; waits. */
XP_UNUSED static bool xp_check(CUdeviceptr p, size_t bytes, uint64_t seed, uint64_t add, uint64_t *bad)
{
    uint64_t words = bytes / 8, out[2];
    CUdeviceptr first = gpu.counters + 8;
    void *args[] = { &p, &words, &seed, &add, &gpu.counters, &first };
    if (!xp_counters(gpu.check, words, args, ~(uint64_t)0, out))
        return false;
    *bad = out[0];
    return true;
}

/* *bad = words that are not `value`, *any = all those words or'ed; waits. */
XP_UNUSED static bool xp_differs(CUdeviceptr p, size_t bytes, uint64_t value, uint64_t *bad, uint64_t *any)
{
    uint64_t words = bytes / 8, out[2];
    CUdeviceptr or = gpu.counters + 8;
    void *args[] = { &p, &words, &value, &gpu.counters, &or };
    if (!xp_counters(gpu.differs, words, args, 0, out))
        return false;
    *bad = out[0];
    *any = out[1];
    return true;
}

/* ---- a busy GPU ---- */

/* One thread that is busy until `seconds` after its start: a host thread then sets the word it waits for (so a caller that
 * is blocked inside the driver is set free). A clock limit of twice that and a second more ends it in any case. */
struct xp_spin {
    volatile uint64_t *control; /* mapped host memory, see facts.cu */
    CUstream stream;
    pthread_t thread;
    double started, seconds;
    volatile int stop; /* release it now */
    bool running;
};

static void *xp_spin_release(void *arg)
{
    struct xp_spin *s = arg;
    while (xp_now() < s->started + s->seconds && !s->stop)
        xp_sleep(0.0005);
    s->control[0] = 1;
    __sync_synchronize();
    return NULL;
}

/* Wait for the kernel and its thread. *by: 1 the host ended it, 2 its clock limit, 0 unknown. False: the GPU's error. */
XP_UNUSED static bool xp_spin_end(struct xp_spin *s, int *by)
{
    bool ok = true;
    if (s->running) {
        s->stop = 1;
        pthread_join(s->thread, NULL);
        s->running = false;
        ok = XP(cuStreamSynchronize(s->stream));
        if (by)
            *by = (int)s->control[2];
    }
    return ok;
}

XP_UNUSED static void xp_spin_drop(struct xp_spin *s)
{
    if (s->control)
        cu.cuMemFreeHost((void *)s->control);
    if (s->stream)
        cu.cuStreamDestroy_v2(s->stream);
    memset(s, 0, sizeof *s);
}

/* Memory and a non-blocking stream: made while the GPU is idle, used for many spins. */
XP_UNUSED static bool xp_spin_make(struct xp_spin *s)
{
    memset(s, 0, sizeof *s);
    return XP(cuMemHostAlloc((void **)(uintptr_t)&s->control, 4096, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE)) &&
           XP(cuStreamCreate(&s->stream, CU_STREAM_NON_BLOCKING));
}

/* Start it in `stream` (NULL: its own) and come back when the GPU runs it. touch: memory that it keeps using, or 0. */
XP_UNUSED static bool xp_spin_start(struct xp_spin *s, CUstream stream, double seconds, CUdeviceptr touch, size_t touch_bytes)
{
    CUdeviceptr control;
    int khz = xp_attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
    uint64_t clocks = (uint64_t)((khz > 0 ? khz : 1000000) * 1e3 * (2 * seconds + 1)), words = touch_bytes / 8;
    void *args[] = { &control, &clocks, &touch, &words };
    memset((void *)s->control, 0, 64);
    __sync_synchronize();
    if (!XP(cuMemHostGetDevicePointer_v2(&control, (void *)s->control, 0)) ||
        !xp_ok(xp_launch(gpu.spin, 1, 1, stream ? stream : s->stream, args), "launch of xp_spin"))
        return false;
    double give_up = xp_now() + 10;
    while (!s->control[1] && xp_now() < give_up)
        cu.cuStreamQuery(stream ? stream : s->stream); /* also makes a lazy submission happen */
    s->started = xp_now();
    s->seconds = seconds;
    s->stop = 0;
    if (!s->control[1] || pthread_create(&s->thread, NULL, xp_spin_release, s)) {
        s->control[0] = 1;
        snprintf(xp_failure, sizeof xp_failure, "the busy kernel did not start within 10 s");
        return false;
    }
    s->running = true;
    return true;
}

/* Is the busy kernel still at work? */
XP_UNUSED static bool xp_spinning(const struct xp_spin *s)
{
    return s->running && s->control[1] && !s->control[2];
}

#endif
