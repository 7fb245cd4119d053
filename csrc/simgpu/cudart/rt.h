/* SPDX-License-Identifier: Apache-2.0 */
/* A small CUDA runtime on the driver API, made from the public headers, for programs that load libcudart or link our archive.
 * Included by every file of this folder.
 * What it looks up, keeps and waits for is its own and not NVIDIA's: no rule of the shim (which entries have to be met, when
 * memory may move) is ever derived from it.
 * Rules: the driver is reached as NVIDIA's runtime reaches it (dlopen("libcuda.so.1"), one dlsym, then cuGetProcAddress
 * by name, version and flags), so that whatever sits between a program and its driver is met the same way. Nothing is
 * loaded before the first call that needs it. Device code is loaded when a kernel or variable of it is first used.
 */
#ifndef RT_H
#define RT_H

#include "calls.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RT_API __attribute__((visibility("default")))

/* As in cudaProfilerTypedefs.h, which needs a header that the wheels lack. */
typedef CUresult (*PFN_cuProfilerStart_v4000)(void);
typedef CUresult (*PFN_cuProfilerStop_v4000)(void);

/* The driver's entries; [1] of a pair is the per-thread-default-stream variant. */
struct rt_driver {
#define DRIVER(name, version) PFN_##name##_v##version name;
#define DRIVER_PT(name, version, pt_version, pt) PFN_##name##_v##version name[2];
#include "driver.def"
#undef DRIVER
#undef DRIVER_PT
};
extern struct rt_driver rt;

/* The calling thread's runtime state. */
struct rt_thread {
    cudaError_t last; /* cudaGetLastError */
    int device;       /* cudaSetDevice; 0 at first */
    unsigned resets;  /* how many cudaDeviceReset the current context is known to have outlived */
    struct rt_call {
        dim3 grid, block;
        size_t shared;
        cudaStream_t stream;
    } calls[16]; /* <<<>>> configurations; nested where an argument itself launches */
    unsigned depth;
};
extern _Thread_local struct rt_thread rt_thread;

/* The driver, loaded and initialised once; every later call gets the first call's answer. */
cudaError_t rt_init(void);
/* rt_init, and a context that is current on this thread: the app's, else the primary one of the thread's device. */
cudaError_t rt_context(void);
/* The same, and which context it is. */
cudaError_t rt_current(CUcontext *out);
/* The runtime's errors have the driver's numbers (driver_types.h). */
static inline cudaError_t rt_error(CUresult r) { return (cudaError_t)r; }

/* Ends a device's primary context, current on whichever threads; the next call that needs one makes it anew. */
cudaError_t rt_reset(int device);
/* How many there were. */
unsigned rt_resets(void);
/* The primary context of a device; the current one stays current. */
cudaError_t rt_primary(int device, CUcontext *out);
/* The kernel behind a host stub or a cudaKernel_t; cudaErrorInvalidDeviceFunction. */
cudaError_t rt_kernel(const void *function, CUkernel *out);
/* Its function in the current context. */
cudaError_t rt_function(const void *function, CUfunction *out);
/* The host stub whose kernel rt_function gave as this function; NULL. */
const void *rt_stub_of(CUfunction function);
/* Forgets every function that rt_function gave: their contexts are gone. */
void rt_forget_functions(void);
/* A copy's parameters as the driver takes them. */
cudaError_t rt_copy3d(const struct cudaMemcpy3DParms *p, CUDA_MEMCPY3D *out);
/* Address and bytes of the device variable behind a host symbol; cudaErrorInvalidSymbol. */
cudaError_t rt_symbol(const void *symbol, CUdeviceptr *address, size_t *bytes);

/* The programming guide: NotReady "is not considered an error and therefore not reported" by cudaGetLastError. */
static inline cudaError_t rt_note(cudaError_t e)
{
    if (e && e != cudaErrorNotReady)
        rt_thread.last = e;
    return e;
}

/* Entries. The body is a function of its own, so that every way out passes rt_note. A twin's body reads `pt`. */
#define RT_UNPACK(...) __VA_ARGS__
#define RT_TEXT(name) RT_TEXT_(name) /* after the renaming macros of the header */
#define RT_TEXT_(name) #name
#define RT(name, params, args) RT_(name, params, args)
#define RT_(name, params, args) \
    static cudaError_t body_##name params; \
    RT_API cudaError_t name params \
    { \
        sim_called(RT_TEXT(name)); \
        return rt_note(body_##name args); \
    } \
    static cudaError_t body_##name params
#define RT_TWIN(name, suffix, params, args) \
    static cudaError_t body_##name(int pt, RT_UNPACK params); \
    RT_API cudaError_t name params \
    { \
        sim_called(RT_TEXT(name)); \
        return rt_note(body_##name(0, RT_UNPACK args)); \
    } \
    RT_API cudaError_t name##suffix params \
    { \
        sim_called(#name #suffix); \
        return rt_note(body_##name(1, RT_UNPACK args)); \
    } \
    static cudaError_t body_##name(int pt, RT_UNPACK params)
#define RT_SZ(name, params, args) RT_TWIN(name, _ptsz, params, args)
#define RT_DS(name, params, args) RT_TWIN(name, _ptds, params, args)

#define RT_NEED(call) \
    do { \
        cudaError_t e_ = (call); \
        if (e_) \
            return e_; \
    } while (0)
/* Call a driver entry in a context and return its answer. */
#define RT_CALL(entry) \
    do { \
        RT_NEED(rt_context()); \
        return rt_error(entry); \
    } while (0)

#endif
