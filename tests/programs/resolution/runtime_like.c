/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin that gets the driver as NVIDIA's runtime does: dlopen, one dlsym, an empty query, then by name and version.
 * For host.c. */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <cudaTypedefs.h>
#include <dlfcn.h>
#include <stdio.h>

__attribute__((visibility("default"))) int plugin_main(const char *argument)
{
    CUdriverProcAddressQueryResult status;
    CUdeviceptr p = 0;
    CUdevice device;
    CUcontext context;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *f = NULL;
    PFN_cuGetProcAddress_v12000 get = driver ? (PFN_cuGetProcAddress_v12000)dlsym(driver, "cuGetProcAddress_v2") : NULL;
    (void)argument;
    if (!get)
        return 2;
    printf("empty\t%d\n", (int)get("", &f, 0, 0, &status));
#define GET(name, version, type) type name = NULL; \
    if (get(#name, (void **)&name, version, 0, &status) || !name) return 3;
    GET(cuInit, 2000, PFN_cuInit_v2000)
    GET(cuDeviceGet, 2000, PFN_cuDeviceGet_v2000)
    GET(cuDevicePrimaryCtxRetain, 7000, PFN_cuDevicePrimaryCtxRetain_v7000)
    GET(cuCtxSetCurrent, 4000, PFN_cuCtxSetCurrent_v4000)
    GET(cuMemAlloc, 3020, PFN_cuMemAlloc_v3020)
    GET(cuMemFree, 3020, PFN_cuMemFree_v3020)
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context))
        return 4;
    Dl_info info;
    dladdr((void *)cuMemAlloc, &info);
    printf("symbol\t%s\n", info.dli_sname);
    CUresult r = cuMemAlloc(&p, 32 << 20);
    printf("result\t%d\n", (int)r);
    return r ? 1 : cuMemFree(p) != CUDA_SUCCESS;
}
