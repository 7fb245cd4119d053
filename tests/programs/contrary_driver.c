/* SPDX-License-Identifier: Apache-2.0 */
/* A driver that does otherwise than simgpu believes: stands as libcuda.so.1 before the simulated one, forwards what GPU
 * experiments call, and changes single entries, in ways that SIMGPU_FAULTS and SIMGPU_DOUBT do not know.
 * CONTRARY=NAME[,NAME...] chooses; CONTRARY_REAL=path of simgpu's libcuda.so.1.
 * Used by tests/integration/test_gpu_experiments.py to show that each experiment can see the other answer. x86-64 only. */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include "gpu.h"

static void *real;

#define X(name) \
    __attribute__((used, visibility("hidden"))) void *to_##name; \
    __asm__(".text\n.globl " #name "\n.type " #name ", @function\n" #name ": jmp *to_" #name "(%rip)\n");
XP_ENTRIES(X)
#undef X
#define X(name, args) \
    __attribute__((used, visibility("hidden"))) void *to_##name; \
    __asm__(".text\n.globl " #name "\n.type " #name ", @function\n" #name ": jmp *to_" #name "(%rip)\n");
XP_LATE_ENTRIES(X)
#undef X

#define REAL(name) ((__typeof__(&name))dlsym(real, #name))

/* The mapping stays usable: as if no translation were ever invalidated. */
static CUresult unmap_lazy(CUdeviceptr p, size_t n)
{
    (void)p;
    (void)n;
    return CUDA_SUCCESS;
}

static CUresult async_waits(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream stream)
{
    CUresult r = REAL(cuMemcpyDtoDAsync_v2)(d, s, n, stream);
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    REAL(cuStreamIsCapturing)(stream, &status);
    return r || status ? r : REAL(cuStreamSynchronize)(stream);
}

static CUresult copy_loses(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream stream)
{
    return REAL(cuMemcpyDtoDAsync_v2)(d, s, n - 8, stream);
}

static CUresult memset_crashes(CUdeviceptr d, unsigned char v, size_t n, CUstream stream)
{
    (void)d;
    (void)v;
    (void)n;
    (void)stream;
    *(volatile int *)8 = 0;
    return CUDA_SUCCESS;
}

static CUresult copy_params_taken(CUgraphExec e, CUgraphNode n, const CUDA_MEMCPY3D *p, CUcontext c)
{
    (void)e;
    (void)n;
    (void)p;
    (void)c;
    return CUDA_SUCCESS; /* the same operands: there is nothing to do */
}

static CUresult access_single(CUdeviceptr p, size_t n, const CUmemAccessDesc *d, size_t count)
{
    size_t size = 0;
    CUdeviceptr base;
    if (REAL(cuMemGetAddressRange_v2)(&base, &size, p) == CUDA_SUCCESS && n > size)
        return CUDA_ERROR_INVALID_VALUE;
    return REAL(cuMemSetAccess)(p, n, d, count);
}

static CUresult free_at_once(CUdeviceptr p)
{
    (void)p;
    return CUDA_SUCCESS;
}

static CUresult always_ready(CUevent e)
{
    (void)e;
    return CUDA_SUCCESS;
}

static CUresult type_is_device(void *data, CUpointer_attribute a, CUdeviceptr p)
{
    CUresult r = REAL(cuPointerGetAttribute)(data, a, p);
    if (r == CUDA_SUCCESS && a == CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
        *(unsigned *)data = CU_MEMORYTYPE_DEVICE;
    return r;
}

__attribute__((constructor)) static void start(void)
{
    static const struct {
        const char *name;
        void **entry, *other;
    } ways[] = {
        { "unmap-lazy", &to_cuMemUnmap, (void *)unmap_lazy },
        { "async-waits", &to_cuMemcpyDtoDAsync_v2, (void *)async_waits },
        { "copy-loses", &to_cuMemcpyDtoDAsync_v2, (void *)copy_loses },
        { "memset-crashes", &to_cuMemsetD8Async, (void *)memset_crashes },
        { "params-taken", &to_cuGraphExecMemcpyNodeSetParams, (void *)copy_params_taken },
        { "access-single", &to_cuMemSetAccess, (void *)access_single },
        { "free-at-once", &to_cuMemFree_v2, (void *)free_at_once },
        { "always-ready", &to_cuEventQuery, (void *)always_ready },
        { "type-is-device", &to_cuPointerGetAttribute, (void *)type_is_device },
    };
    const char *path = getenv("CONTRARY_REAL"), *chosen = getenv("CONTRARY");
    real = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!real || !chosen) {
        fprintf(stderr, "contrary driver: CONTRARY_REAL and CONTRARY must be set (%s)\n", real ? "no CONTRARY" : dlerror());
        exit(2);
    }
#define X(name) to_##name = dlsym(real, #name);
    XP_ENTRIES(X)
#undef X
#define X(name, args) to_##name = dlsym(real, #name);
    XP_LATE_ENTRIES(X)
#undef X
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++)
        if (strstr(chosen, ways[i].name))
            *ways[i].entry = ways[i].other;
}
