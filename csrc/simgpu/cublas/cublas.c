/* SPDX-License-Identifier: Apache-2.0 */
/* The entries of libcublas that have state: handles with their stream, modes and workspace.
 * A handle takes device memory, as the real one does: the reference (cublasSetWorkspace) says that a default workspace is
 * allocated with the context, 32 MiB from compute capability 9.0 on and 4 MiB below. It is asked of the driver directly,
 * reached as a static runtime inside the library would: dlopen, one dlsym, cuGetProcAddress.
 */
#define _GNU_SOURCE
#include "blas.h"
#include "calls.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

enum { HANDLE_ALIVE = 0x626c6173 };

struct handle {
    unsigned alive;
    CUstream stream;
    CUcontext context;
    CUdeviceptr workspace; /* the default one */
    int pointer_mode, math_mode, atomics_mode, sm_count;
};

static struct {
    PFN_cuInit_v2000 init;
    PFN_cuCtxGetCurrent_v4000 current;
    PFN_cuCtxPushCurrent_v4000 push;
    PFN_cuCtxPopCurrent_v4000 pop;
    PFN_cuCtxGetDevice_v2000 device;
    PFN_cuDevicePrimaryCtxRetain_v7000 retain;
    PFN_cuDeviceGetAttribute_v2000 attribute;
    PFN_cuMemAlloc_v3020 alloc;
    PFN_cuMemFree_v3020 free;
    bool ready;
} driver;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_driver(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    PFN_cuGetProcAddress_v12000 get = library ? (PFN_cuGetProcAddress_v12000)dlsym(library, "cuGetProcAddress_v2") : NULL;
    const struct {
        const char *name;
        int version;
        void *at;
    } wanted[] = {
        {"cuInit", 2000, &driver.init},
        {"cuCtxGetCurrent", 4000, &driver.current},
        {"cuCtxPushCurrent", 4000, &driver.push},
        {"cuCtxPopCurrent", 4000, &driver.pop},
        {"cuCtxGetDevice", 2000, &driver.device},
        {"cuDevicePrimaryCtxRetain", 7000, &driver.retain},
        {"cuDeviceGetAttribute", 2000, &driver.attribute},
        {"cuMemAlloc", 3020, &driver.alloc},
        {"cuMemFree", 3020, &driver.free},
    };
    if (!get)
        return;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *found = NULL;
        if (get(wanted[i].name, &found, wanted[i].version, 0, NULL) || !found)
            return;
        *(void **)wanted[i].at = found;
    }
    driver.ready = !driver.init(0);
}

/* The default workspace of the current context, or of device 0's primary one where there is none. */
static int take_workspace(struct handle *h)
{
    CUdevice device = 0;
    int major = 0;
    if (driver.current(&h->context))
        return BLAS_NOT_INITIALIZED;
    bool none = !h->context;
    if (none && driver.retain(&h->context, device))
        return BLAS_NOT_INITIALIZED;
    if (driver.push(h->context))
        return BLAS_NOT_INITIALIZED;
    driver.device(&device);
    driver.attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    CUresult r = driver.alloc(&h->workspace, (size_t)(major >= 9 ? 32 : 4) << 20);
    driver.pop(NULL);
    return r ? BLAS_ALLOC_FAILED : BLAS_SUCCESS;
}

BLAS_API int cublasCreate_v2(struct handle **out);
BLAS_API int cublasCreate_v2(struct handle **out)
{
    sim_called("cublasCreate_v2");
    if (!out)
        return BLAS_INVALID_VALUE;
    pthread_once(&once, find_driver);
    struct handle *h = driver.ready ? calloc(1, sizeof *h) : NULL;
    if (!h)
        return driver.ready ? BLAS_ALLOC_FAILED : BLAS_NOT_INITIALIZED;
    int r = take_workspace(h);
    if (r) {
        free(h);
        return r;
    }
    h->alive = HANDLE_ALIVE;
    *out = h;
    return BLAS_SUCCESS;
}

BLAS_API int cublasDestroy_v2(struct handle *h);
BLAS_API int cublasDestroy_v2(struct handle *h)
{
    sim_called("cublasDestroy_v2");
    if (!h || h->alive != HANDLE_ALIVE)
        return BLAS_NOT_INITIALIZED;
    h->alive = 0;
    if (!driver.push(h->context)) {
        driver.free(h->workspace);
        driver.pop(NULL);
    }
    free(h);
    return BLAS_SUCCESS;
}

#define SETTING(type, set_name, get_name, field) \
    BLAS_API int set_name(struct handle *h, type value); \
    BLAS_API int set_name(struct handle *h, type value) \
    { \
        sim_called(#set_name); \
        if (!h || h->alive != HANDLE_ALIVE) \
            return BLAS_NOT_INITIALIZED; \
        h->field = value; \
        return BLAS_SUCCESS; \
    } \
    BLAS_API int get_name(struct handle *h, type *value); \
    BLAS_API int get_name(struct handle *h, type *value) \
    { \
        sim_called(#get_name); \
        if (!h || h->alive != HANDLE_ALIVE) \
            return BLAS_NOT_INITIALIZED; \
        if (!value) \
            return BLAS_INVALID_VALUE; \
        *value = h->field; \
        return BLAS_SUCCESS; \
    }

SETTING(CUstream, cublasSetStream_v2, cublasGetStream_v2, stream)
SETTING(int, cublasSetPointerMode_v2, cublasGetPointerMode_v2, pointer_mode)
SETTING(int, cublasSetMathMode, cublasGetMathMode, math_mode)
SETTING(int, cublasSetAtomicsMode, cublasGetAtomicsMode, atomics_mode)
SETTING(int, cublasSetSmCountTarget, cublasGetSmCountTarget, sm_count)

BLAS_API int cublasSetWorkspace_v2(struct handle *h, void *workspace, size_t bytes);
BLAS_API int cublasSetWorkspace_v2(struct handle *h, void *workspace, size_t bytes)
{
    sim_called("cublasSetWorkspace_v2");
    if (!h || h->alive != HANDLE_ALIVE)
        return BLAS_NOT_INITIALIZED;
    return !workspace && bytes ? BLAS_INVALID_VALUE : BLAS_SUCCESS;
}

BLAS_API int cublasGetVersion_v2(struct handle *h, int *version);
BLAS_API int cublasGetVersion_v2(struct handle *h, int *version)
{
    sim_called("cublasGetVersion_v2");
    (void)h; /* documented: may be NULL */
    if (!version)
        return BLAS_INVALID_VALUE;
    *version = blas_version();
    return BLAS_SUCCESS;
}

BLAS_API int cublasGetProperty(int which, int *value);
BLAS_API int cublasGetProperty(int which, int *value)
{
    sim_called("cublasGetProperty");
    return blas_property(which, value);
}

BLAS_API const char *cublasGetStatusName(int status);
BLAS_API const char *cublasGetStatusName(int status)
{
    sim_called("cublasGetStatusName");
    return blas_status_name(status);
}

BLAS_API const char *cublasGetStatusString(int status);
BLAS_API const char *cublasGetStatusString(int status)
{
    sim_called("cublasGetStatusString");
    return blas_status_text(status);
}
