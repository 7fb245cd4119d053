/* SPDX-License-Identifier: Apache-2.0 */
/* Allocates through link-time references to libcuda.so.1, as ggml does, and prints where they are bound. Built as a program
 * (-DPROGRAM) and as a plugin for host.c. */
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

__attribute__((visibility("default"))) int plugin_main(const char *argument)
{
    CUdeviceptr p = 0;
    CUdevice device;
    CUcontext context;
    Dl_info info;
    (void)argument;
    printf("bound\t%s\n", dladdr((void *)cuMemAlloc_v2, &info) ? strrchr(info.dli_fname, '/') + 1 : "?");
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context))
        return 3;
    CUresult r = cuMemAlloc_v2(&p, 32 << 20);
    printf("result\t%d\n", (int)r);
    return r ? 1 : cuMemFree_v2(p) != CUDA_SUCCESS;
}

#ifdef PROGRAM
int main(void)
{
    return plugin_main(NULL);
}
#endif
