/* SPDX-License-Identifier: Apache-2.0 */
/* The allocator, as allocator.h says. Called by the program, from any thread.
 * Rules: the work is hook_alloc.c's, so that an allocation is the same by either way; a primary context is retained for the length of
 * a call, and for good only where nobody else has made it: then the memory that is handed out lives in it. */
#include "shim/allocator.h"

#include "shim/hook.h"
#include "shim/log.h"
#include "shim/resolve.h"

enum { COLD_PATIENCE_MS = 250 };

struct visit {
    CUstreamCaptureMode mode; /* the thread's */
    bool pushed;
    int release; /* the device whose primary context was retained for the call; -1: none */
};

/* Have a context of `device` current, until leave(), and no capture in the way: who allocates for a captured graph by an allocator of
 * his own wants memory, not a node. */
static CUresult enter(int device, struct visit *v)
{
    const struct spill_driver *d = spill_driver();
    CUdevice now;
    CUcontext ctx;
    unsigned flags;
    int active = 0;
    *v = (struct visit){ .mode = CU_STREAM_CAPTURE_MODE_GLOBAL, .release = -1 };
    if (!d->cuInit || !d->cuCtxGetDevice)
        return SPILL_MISSING;
    CUresult r = d->cuCtxGetDevice(&now);
    bool none = r == CUDA_ERROR_INVALID_CONTEXT || r == CUDA_ERROR_NOT_INITIALIZED;
    if (r == CUDA_ERROR_NOT_INITIALIZED && (r = d->cuInit(0)) != CUDA_SUCCESS)
        return r;
    v->mode = spill_capture_enter();
    if (r == CUDA_SUCCESS && !none && now == device)
        return CUDA_SUCCESS;
    if (none)
        r = CUDA_SUCCESS;
    if (r == CUDA_SUCCESS)
        r = d->cuDevicePrimaryCtxGetState(device, &flags, &active);
    /* By our own hooks: this context has to be known, as any that the program makes. */
    if (r == CUDA_SUCCESS)
        r = cuDevicePrimaryCtxRetain(&ctx, device);
    if (r != CUDA_SUCCESS)
        return r;
    if (active)
        v->release = device;
    r = d->cuCtxPushCurrent_v2(ctx);
    v->pushed = r == CUDA_SUCCESS;
    return r;
}

static void leave(const struct visit *v)
{
    CUcontext popped;
    if (v->pushed)
        spill_driver()->cuCtxPopCurrent_v2(&popped);
    if (v->release >= 0)
        cuDevicePrimaryCtxRelease_v2(v->release);
    spill_capture_leave(v->mode);
}

static CUresult allocate(const void *caller, size_t size, int device, CUdeviceptr *p)
{
    struct visit v;
    CUresult r = enter(device, &v);
    if (r == CUDA_SUCCESS)
        r = spill_alloc_for_allocator(caller, p, size);
    leave(&v);
    return r;
}

int spill_memory_free(uint64_t p, int device)
{
    struct visit v;
    CUresult r = enter(device, &v);
    if (r == CUDA_SUCCESS)
        r = cuMemFree_v2((CUdeviceptr)p);
    leave(&v);
    return (int)r;
}

int spill_memory_alloc(size_t size, int device, uint64_t *p)
{
    CUdeviceptr got = 0;
    CUresult r = p ? allocate(__builtin_return_address(0), size, device, &got) : CUDA_ERROR_INVALID_VALUE;
    if (r == CUDA_SUCCESS)
        *p = got;
    return (int)r;
}

/* PyTorch asks for nothing of 0 bytes, and means it. Out-of-memory is told by its own caching allocator, which gives back what it holds
 * and asks again. */
void *spill_torch_alloc(ssize_t size, int device, void *stream)
{
    CUdeviceptr p = 0;
    (void)stream;
    if (size <= 0)
        return NULL;
    CUresult r = allocate(__builtin_return_address(0), (size_t)size, device, &p);
    if (r != CUDA_SUCCESS)
        spill_log(r == CUDA_ERROR_OUT_OF_MEMORY ? SPILL_LOG_INFO : SPILL_LOG_ERROR, "the allocator has no %zd bytes for device %d: error=%d",
                  size, device, (int)r);
    return r == CUDA_SUCCESS ? (void *)p : NULL;
}

void spill_torch_free(void *p, ssize_t size, int device, void *stream)
{
    (void)stream;
    if (!p)
        return;
    CUresult r = (CUresult)spill_memory_free((CUdeviceptr)p, device);
    /* At the end of a process PyTorch frees what the driver has given up already. */
    if (r != CUDA_SUCCESS)
        spill_log(r == CUDA_ERROR_DEINITIALIZED ? SPILL_LOG_DEBUG : SPILL_LOG_ERROR, "%zd bytes of device %d could not be freed: error=%d",
                  size, device, (int)r);
}

int spill_memory_hint(int hint)
{
    return hint < SPILL_HINT_NONE || hint > SPILL_HINT_VRAM ? -1 : (int)spill_hint_set((enum spill_hint)hint);
}

uint64_t spill_memory_cold(uint64_t p, uint64_t bytes)
{
    return spill_started() && !spill_dead() ? spill_hint_demote((CUdeviceptr)p, bytes, COLD_PATIENCE_MS) : 0;
}

uint64_t spill_memory_in_ram(uint64_t p, uint64_t bytes)
{
    return spill_started() && !spill_dead() ? spill_hint_in_ram((CUdeviceptr)p, bytes) : 0;
}

int spill_memory_hooked(void) { return spill_interposed(); }
