/* SPDX-License-Identifier: Apache-2.0 */
/* What nvcc's generated code registers: fatbins, kernels (by the address of their host stub) and variables; and the <<<>>>
 * protocol. Called by constructors of the program and its libraries, before main and without a driver.
 * Rules: registering only remembers; a fatbin is loaded at the first use of a kernel or variable in it.
 */
#include "rt.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct fatbin {
    const void *image; /* nvcc's wrapper struct; the handle that the program holds is the address of this field */
    CUlibrary library; /* NULL until loaded */
    cudaError_t failed;
    unsigned resets; /* how many there were when the program's pointers to managed variables were filled */
};

enum kind { KERNEL, VARIABLE, MANAGED };
struct item {
    struct item *next;
    const void *host; /* stub, shadow variable, or (managed) the program's pointer variable */
    struct fatbin *fatbin;
    const char *name;
    enum kind kind;
    CUkernel kernel;
    CUfunction function; /* the kernel's, in the context below; it is in by_function */
    CUcontext context;
    struct item *next_function;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct item **buckets;
static size_t bucket_count, items;
enum { FUNCTION_BUCKETS = 1024 };
static struct item *by_function[FUNCTION_BUCKETS]; /* for rt_stub_of: the other way round */

static struct item **bucket(const void *host, size_t count)
{
    return &buckets[((uintptr_t)host * UINT64_C(0x9e3779b97f4a7c15) >> 24) & (count - 1)];
}

static bool grow(void)
{
    size_t count = bucket_count ? 2 * bucket_count : 256;
    struct item **old = buckets, **fresh = calloc(count, sizeof *fresh);
    if (!fresh)
        return false;
    buckets = fresh;
    for (size_t i = 0; i < bucket_count; i++)
        for (struct item *x = old[i], *next; x; x = next) {
            next = x->next;
            struct item **b = bucket(x->host, count);
            x->next = *b;
            *b = x;
        }
    free(old);
    bucket_count = count;
    return true;
}

/* A later registration of the same address wins: a library was loaded where another one had been. */
static void add(void **handle, const void *host, const char *name, enum kind kind)
{
    struct item *x = calloc(1, sizeof *x);
    pthread_mutex_lock(&lock);
    if (x && (items < bucket_count || grow() || bucket_count)) {
        struct item **b = bucket(host, bucket_count);
        *x = (struct item){.next = *b, .host = host, .fatbin = (struct fatbin *)handle, .name = name, .kind = kind};
        *b = x;
        items++;
    } else {
        free(x);
    }
    pthread_mutex_unlock(&lock);
}

static struct item *find(const void *host, enum kind least, enum kind most)
{
    struct item *x = bucket_count ? *bucket(host, bucket_count) : NULL;
    while (x && (x->host != host || x->kind < least || x->kind > most))
        x = x->next;
    return x;
}

/* With the lock held. Managed variables get their address as soon as there is one, and a new one after a reset. */
static cudaError_t load(struct fatbin *f)
{
    unsigned now = rt_resets();
    if (f->failed || (f->library && f->resets == now))
        return f->failed;
    if (!f->library) {
        cudaError_t e = rt_error(rt.cuLibraryLoadData(&f->library, f->image, NULL, NULL, 0, NULL, NULL, 0));
        if (e == cudaErrorMemoryAllocation) /* there may be room the next time */
            return e;
        f->failed = e;
    }
    f->resets = now;
    for (size_t i = 0; i < bucket_count && !f->failed; i++)
        for (struct item *x = buckets[i]; x; x = x->next) {
            CUdeviceptr address;
            if (x->fatbin == f && x->kind == MANAGED && !rt.cuLibraryGetManaged(&address, NULL, f->library, x->name))
                *(void **)(uintptr_t)x->host = (void *)(uintptr_t)address;
        }
    return f->failed;
}

cudaError_t rt_kernel(const void *function, CUkernel *out)
{
    RT_NEED(rt_context());
    pthread_mutex_lock(&lock);
    struct item *x = find(function, KERNEL, KERNEL);
    cudaError_t e = cudaSuccess;
    if (x && !(e = load(x->fatbin)) && !x->kernel && rt.cuLibraryGetKernel(&x->kernel, x->fatbin->library, x->name))
        e = cudaErrorInvalidDeviceFunction;
    *out = x ? x->kernel : (CUkernel)(uintptr_t)function; /* not a stub: perhaps a cudaKernel_t, which the driver checks */
    pthread_mutex_unlock(&lock);
    return e ? e : *out ? cudaSuccess : cudaErrorInvalidDeviceFunction;
}

static struct item **function_bucket(CUfunction function)
{
    return &by_function[(uintptr_t)function * UINT64_C(0x9e3779b97f4a7c15) >> 54];
}

static void forget_function(struct item *x)
{
    if (!x->function)
        return;
    struct item **p = function_bucket(x->function);
    while (*p && *p != x)
        p = &(*p)->next_function;
    if (*p)
        *p = x->next_function;
    x->function = NULL;
}

static void keep_function(struct item *x, CUfunction function, CUcontext context)
{
    forget_function(x);
    struct item **b = function_bucket(function);
    x->function = function;
    x->context = context;
    x->next_function = *b;
    *b = x;
}

cudaError_t rt_function(const void *function, CUfunction *out)
{
    CUkernel kernel;
    CUcontext current;
    RT_NEED(rt_current(&current));
    pthread_mutex_lock(&lock);
    struct item *x = find(function, KERNEL, KERNEL);
    *out = x && x->context == current ? x->function : NULL;
    pthread_mutex_unlock(&lock);
    if (*out)
        return cudaSuccess;
    RT_NEED(rt_kernel(function, &kernel));
    CUresult r = rt.cuKernelGetFunction(out, kernel);
    if (r)
        return r == CUDA_ERROR_INVALID_HANDLE ? cudaErrorInvalidDeviceFunction : rt_error(r);
    pthread_mutex_lock(&lock);
    if ((x = find(function, KERNEL, KERNEL)))
        keep_function(x, *out, current);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

const void *rt_stub_of(CUfunction function)
{
    pthread_mutex_lock(&lock);
    struct item *x = *function_bucket(function);
    while (x && x->function != function)
        x = x->next_function;
    const void *host = x ? x->host : NULL;
    pthread_mutex_unlock(&lock);
    return host;
}

void rt_forget_functions(void)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < FUNCTION_BUCKETS; i++)
        while (by_function[i])
            forget_function(by_function[i]);
    pthread_mutex_unlock(&lock);
}

cudaError_t rt_symbol(const void *symbol, CUdeviceptr *address, size_t *bytes)
{
    RT_NEED(rt_context());
    pthread_mutex_lock(&lock);
    struct item *x = find(symbol, VARIABLE, MANAGED);
    cudaError_t e = x ? load(x->fatbin) : cudaErrorInvalidSymbol;
    if (!e && rt.cuLibraryGetGlobal(address, bytes, x->fatbin->library, x->name))
        e = cudaErrorInvalidSymbol;
    pthread_mutex_unlock(&lock);
    return e;
}

/* ---- nvcc's protocol: declared in crt/host_runtime.h and crt/device_functions.h for C++ only */

RT_API void **__cudaRegisterFatBinary(void *fatCubin);
RT_API void __cudaRegisterFatBinaryEnd(void **handle);
RT_API void __cudaUnregisterFatBinary(void **handle);
RT_API void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int thread_limit, void *tid,
                                   void *bid, void *bdim, void *gdim, int *wsize);
RT_API void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant,
                              int global);
RT_API void __cudaRegisterManagedVar(void **handle, void **host, char *device, const char *name, int ext, size_t size,
                                     int constant, int global);
RT_API char __cudaInitModule(void **handle);
RT_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream);
RT_API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream);
RT_API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host);

RT_API void **__cudaRegisterFatBinary(void *fatCubin)
{
    sim_called("__cudaRegisterFatBinary");
    struct fatbin *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->image = fatCubin;
    return (void **)(void *)f;
}

RT_API void __cudaRegisterFatBinaryEnd(void **handle)
{
    sim_called("__cudaRegisterFatBinaryEnd");
    (void)handle;
}

RT_API void __cudaUnregisterFatBinary(void **handle)
{
    sim_called("__cudaUnregisterFatBinary");
    struct fatbin *f = (struct fatbin *)(void *)handle;
    if (!f)
        return;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < bucket_count; i++)
        for (struct item **p = &buckets[i], *x; (x = *p);) {
            if (x->fatbin == f) {
                *p = x->next;
                forget_function(x);
                free(x);
                items--;
            } else {
                p = &x->next;
            }
        }
    if (!items) { /* the program ends, or a library with its own copy of this runtime is closed */
        free(buckets);
        buckets = NULL;
        bucket_count = 0;
    }
    pthread_mutex_unlock(&lock);
    if (f->library)
        rt.cuLibraryUnload(f->library);
    free(f);
}

RT_API void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int thread_limit, void *tid,
                                   void *bid, void *bdim, void *gdim, int *wsize)
{
    sim_called("__cudaRegisterFunction");
    (void)device;
    (void)thread_limit;
    (void)tid;
    (void)bid;
    (void)bdim;
    (void)gdim;
    (void)wsize;
    add(handle, host, name, KERNEL);
}

RT_API void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant,
                              int global)
{
    sim_called("__cudaRegisterVar");
    (void)device;
    (void)ext;
    (void)size;
    (void)constant;
    (void)global;
    add(handle, host, name, VARIABLE);
}

RT_API void __cudaRegisterManagedVar(void **handle, void **host, char *device, const char *name, int ext, size_t size,
                                     int constant, int global)
{
    sim_called("__cudaRegisterManagedVar");
    (void)device;
    (void)ext;
    (void)size;
    (void)constant;
    (void)global;
    add(handle, host, name, MANAGED);
}

/* The program is about to touch a __managed__ variable. */
RT_API char __cudaInitModule(void **handle)
{
    sim_called("__cudaInitModule");
    if (rt_note(rt_context()))
        return 0;
    pthread_mutex_lock(&lock);
    cudaError_t e = load((struct fatbin *)(void *)handle);
    pthread_mutex_unlock(&lock);
    return rt_note(e) == cudaSuccess;
}

RT_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream)
{
    sim_called("__cudaPushCallConfiguration");
    struct rt_thread *t = &rt_thread;
    if (t->depth == sizeof t->calls / sizeof t->calls[0])
        return (unsigned)rt_note(cudaErrorLaunchFailure);
    t->calls[t->depth++] = (struct rt_call){grid, block, shared, stream};
    return 0;
}

RT_API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    sim_called("__cudaPopCallConfiguration");
    struct rt_thread *t = &rt_thread;
    if (!t->depth)
        return rt_note(cudaErrorMissingConfiguration);
    struct rt_call *c = &t->calls[--t->depth];
    *grid = c->grid;
    *block = c->block;
    *shared = c->shared;
    *(cudaStream_t *)stream = c->stream;
    return cudaSuccess;
}

RT_API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host)
{
    sim_called("__cudaGetKernel");
    CUkernel k = NULL;
    cudaError_t e = rt_kernel(host, &k);
    if (e == cudaErrorMemoryAllocation) { /* nvcc's code keeps the answer: the stub is taken too, when there is room */
        *kernel = (cudaKernel_t)(uintptr_t)host;
        return cudaSuccess;
    }
    *kernel = (cudaKernel_t)k;
    return rt_note(e);
}
