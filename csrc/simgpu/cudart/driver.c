/* SPDX-License-Identifier: Apache-2.0 */
/* Finds the driver and its entries, and makes a context current. Called through rt_init and rt_context by every entry.
 */
#define _GNU_SOURCE
#include "rt.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

struct rt_driver rt;
_Thread_local struct rt_thread rt_thread;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static cudaError_t initialised;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CUcontext primaries[64]; /* retained once per device, until it is reset */
static atomic_uint resets;

static const struct row {
    const char *name;
    int version;
    cuuint64_t flags;
    size_t field;
} rows[] = {
#define DRIVER(name, version) {#name, version, 0, offsetof(struct rt_driver, name)},
#define DRIVER_PT(name, version, pt_version, pt) \
    {#name, version, 0, offsetof(struct rt_driver, name[0])}, \
    {#name, pt_version, CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM, offsetof(struct rt_driver, name[1])},
#include "driver.def"
#undef DRIVER
#undef DRIVER_PT
};

/* Stands for an entry that the driver does not have; the caller's arguments are not looked at. */
static CUresult missing(void)
{
    return CUDA_ERROR_NOT_SUPPORTED;
}

static void initialise(void)
{
    initialised = cudaErrorInsufficientDriver;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    PFN_cuGetProcAddress_v12000 get = library ? (PFN_cuGetProcAddress_v12000)dlsym(library, "cuGetProcAddress_v2") : NULL;
    void *found = NULL;
    if (!get)
        return;
    get("", &found, 0, 0, NULL); /* NVIDIA's runtime asks this first */
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        found = NULL;
        if (get(rows[i].name, &found, rows[i].version, rows[i].flags, NULL) || !found)
            found = (void *)(uintptr_t)missing; /* an older driver: calls that need it fail, the others work */
        *(void **)((char *)&rt + rows[i].field) = found;
    }
    initialised = rt_error(rt.cuInit(0));
}

cudaError_t rt_init(void)
{
    pthread_once(&once, initialise);
    return initialised;
}

cudaError_t rt_context(void)
{
    CUcontext current;
    return rt_current(&current);
}

/* Whether this thread's current context went with a reset, by whichever thread. Asked once for each reset. */
static bool gone(void)
{
    CUdevice device;
    unsigned now = rt_resets();
    if (rt_thread.resets == now)
        return false;
    CUresult r = rt.cuCtxGetDevice(&device);
    if (r == CUDA_ERROR_INVALID_CONTEXT || r == CUDA_ERROR_CONTEXT_IS_DESTROYED)
        return true;
    rt_thread.resets = now;
    return false;
}

unsigned rt_resets(void)
{
    return atomic_load(&resets);
}

cudaError_t rt_reset(int device)
{
    CUdevice d;
    RT_NEED(rt_init());
    RT_NEED(rt_error(rt.cuDeviceGet(&d, device)));
    pthread_mutex_lock(&lock);
    rt_forget_functions();
    CUresult r = rt.cuDevicePrimaryCtxReset(d);
    if (!r && primaries[d]) { /* a reset does not release (cuda.h) */
        rt.cuDevicePrimaryCtxRelease(d);
        primaries[d] = NULL;
    }
    atomic_fetch_add(&resets, 1);
    pthread_mutex_unlock(&lock);
    return rt_error(r);
}

cudaError_t rt_current(CUcontext *out)
{
    CUcontext current = NULL;
    CUdevice device;
    RT_NEED(rt_init());
    RT_NEED(rt_error(rt.cuCtxGetCurrent(&current)));
    *out = current;
    if (current && !gone())
        return cudaSuccess;
    RT_NEED(rt_error(rt.cuDeviceGet(&device, rt_thread.device)));
    pthread_mutex_lock(&lock);
    CUcontext *primary = &primaries[device];
    CUresult r = *primary ? CUDA_SUCCESS : rt.cuDevicePrimaryCtxRetain(primary, device);
    *out = current = *primary;
    pthread_mutex_unlock(&lock);
    return rt_error(r ? r : rt.cuCtxSetCurrent(current));
}
