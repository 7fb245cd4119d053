/* SPDX-License-Identifier: Apache-2.0 */
/* An own wrapper around a driver entry, as profilers have: it counts and calls the next cuMemAlloc_v2 in line.
 * Built as a program (with -DPROGRAM, linked to libcuda.so.1 and exporting its wrapper) and as a library to preload. */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static __thread int depth;

/* A recursion would end in a stack overflow; 4 levels prove it. */
__attribute__((visibility("default"))) CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t bytes)
{
    CUresult (*next)(CUdeviceptr *, size_t) = (CUresult(*)(CUdeviceptr *, size_t))dlsym(RTLD_NEXT, "cuMemAlloc_v2");
    if (++depth > 4) {
        printf("recursion\n");
        depth--;
        return CUDA_ERROR_UNKNOWN;
    }
    Dl_info info;
    if (depth == 1)
        printf("next\t%s\n", next && dladdr((void *)next, &info) ? strrchr(info.dli_fname, '/') + 1 : "NULL");
    CUresult r = next ? next(p, bytes) : CUDA_ERROR_NOT_FOUND;
    depth--;
    return r;
}

#ifdef PROGRAM
int main(void)
{
    CUdeviceptr p = 0;
    CUdevice device;
    CUcontext context;
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context))
        return 2;
    CUresult r = cuMemAlloc_v2(&p, 4096);
    printf("result\t%d\n", (int)r);
    return r ? 1 : cuMemFree_v2(p) != CUDA_SUCCESS;
}
#endif
