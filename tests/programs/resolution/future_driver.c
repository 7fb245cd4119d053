/* SPDX-License-Identifier: Apache-2.0 */
/* A libcuda.so.1 of a release to come: cuMemAlloc got a third ABI (version 99000) and cuCtxSynchronize is as in 13.0. Its
 * cuGetProcAddress follows the documented rule. What simgpu, a driver of today, can't serve. FUTURE_DRIVER_VERSION lowers it. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

CUresult cuMemAlloc_v3(void) { return CUDA_SUCCESS; }
CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) { (void)p; (void)n; return CUDA_ERROR_OUT_OF_MEMORY; }
CUresult cuMemAlloc(CUdeviceptr_v1 *p, unsigned n) { (void)p; (void)n; return CUDA_ERROR_OUT_OF_MEMORY; }
CUresult cuCtxSynchronize(void) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize_v2(CUcontext c) { (void)c; return CUDA_SUCCESS; }

static const struct {
    const char *name;
    int version;
    void *entry;
} rows[] = {
    { "cuMemAlloc", 2000, (void *)cuMemAlloc },
    { "cuMemAlloc", 3020, (void *)cuMemAlloc_v2 },
    { "cuMemAlloc", 99000, (void *)cuMemAlloc_v3 },
    { "cuCtxSynchronize", 2000, (void *)cuCtxSynchronize },
    { "cuCtxSynchronize", 13000, (void *)cuCtxSynchronize_v2 },
    { "cuGetProcAddress", 11030, (void *)cuGetProcAddress },
    { "cuGetProcAddress", 12000, (void *)cuGetProcAddress_v2 },
};

CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status)
{
    const char *own = getenv("FUTURE_DRIVER_VERSION");
    int newest = own ? atoi(own) : 99000;
    *pfn = NULL;
    (void)flags;
    for (unsigned i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strcmp(rows[i].name, symbol) && rows[i].version <= version && rows[i].version <= newest)
            *pfn = rows[i].entry;
    if (status)
        *status = *pfn ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *pfn ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult cuGetProcAddress(const char *symbol, void **pfn, int version, cuuint64_t flags)
{
    return cuGetProcAddress_v2(symbol, pfn, version, flags, NULL);
}
