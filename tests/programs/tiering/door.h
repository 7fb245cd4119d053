/* SPDX-License-Identifier: Apache-2.0 */
/* A door to the simulated driver for programs that drive the tiering engine: each call of the thread that asks for it is counted, fails
 * on request or ends the process, and what the engine was given by the driver is weighed against what it gave back; and checks.
 * Included once, by harness.h and open.h.
 * Rules: a CHECK that is false ends the program with its line and the thread's scenario; the counter and the requests belong to the
 * calling thread; only calls made through the door count, which are the engine's own (and, behind hooks, those of the application
 * that pass one of these entries). */
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim/driver.h"

#define MIB ((size_t)1 << 20)
#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            printf("%s:%d: %s is false (%s)\n", __FILE__, __LINE__, #condition, scenario); \
            fflush(stdout);                                                                \
            _exit(1);                                                                      \
        }                                                                                  \
    } while (0)

static _Thread_local char scenario[200] = "start";
static struct spill_driver real;

static _Thread_local long calls, fail_at, fail_at_too; /* the fail_at-th counted call fails, and the fail_at_too-th; 0: none */
static _Thread_local long fail_from;                   /* ... and every one from this on */
static _Thread_local long die_at;                      /* ... at this one the process is killed */
static _Thread_local CUresult fail_with = CUDA_ERROR_UNKNOWN;
static _Thread_local void (*after_create)(void);
static size_t host_bytes; /* of RAM that was ever created */

/* What the engine holds of the driver's. */
static struct {
    atomic_long handles, mapped, events; /* mapped: bytes */
} held;

static bool fails(void)
{
    ++calls;
    if (calls == die_at)
        kill(getpid(), SIGKILL);
    return calls == fail_at || calls == fail_at_too || (fail_from && calls >= fail_from);
}

/* Forget all requests; how many calls were counted. */
static inline long door_calm(void)
{
    long counted = calls;
    calls = fail_at = fail_at_too = fail_from = die_at = 0;
    return counted;
}

#define COUNTED(symbol, params, ...)                                       \
    static CUresult counted_##symbol params                                \
    {                                                                      \
        return fails() ? fail_with : real.symbol(__VA_ARGS__);             \
    }
#define WEIGHED(symbol, params, change, ...)                               \
    static CUresult counted_##symbol params                                \
    {                                                                      \
        CUresult r = fails() ? fail_with : real.symbol(__VA_ARGS__);       \
        if (r == CUDA_SUCCESS)                                             \
            change;                                                        \
        return r;                                                          \
    }
WEIGHED(cuMemMap, (CUdeviceptr p, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags),
        held.mapped += (long)size, p, size, offset, handle, flags)
WEIGHED(cuMemUnmap, (CUdeviceptr p, size_t size), held.mapped -= (long)size, p, size)
WEIGHED(cuEventCreate, (CUevent * event, unsigned flags), held.events++, event, flags)
COUNTED(cuMemSetAccess, (CUdeviceptr p, size_t size, const CUmemAccessDesc *desc, size_t count), p, size, desc, count)
COUNTED(cuMemAddressReserve, (CUdeviceptr * p, size_t size, size_t alignment, CUdeviceptr address, unsigned long long flags), p, size,
        alignment, address, flags)
COUNTED(cuMemGetInfo_v2, (size_t *free_now, size_t *total), free_now, total)
COUNTED(cuCtxGetDevice, (CUdevice *device), device)
COUNTED(cuMemcpyDtoDAsync_v2, (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream), to, from, bytes, stream)
COUNTED(cuStreamSynchronize, (CUstream stream), stream)
COUNTED(cuStreamCreate, (CUstream * stream, unsigned flags), stream, flags)
COUNTED(cuEventRecord, (CUevent event, CUstream stream), event, stream)
COUNTED(cuEventQuery, (CUevent event), event)
COUNTED(cuCtxPushCurrent_v2, (CUcontext ctx), ctx)

/* Never failed: what the driver does not take back stays counted, on purpose. */
static CUresult counted_cuMemRelease(CUmemGenericAllocationHandle handle)
{
    CUresult r = real.cuMemRelease(handle);
    held.handles -= r == CUDA_SUCCESS;
    return r;
}

static CUresult counted_cuEventDestroy_v2(CUevent event)
{
    CUresult r = real.cuEventDestroy_v2(event);
    held.events -= r == CUDA_SUCCESS;
    return r;
}

static CUresult counted_cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                                    unsigned long long flags)
{
    if (fails())
        return fail_with;
    CUresult r = real.cuMemCreate(handle, size, prop, flags);
    held.handles += r == CUDA_SUCCESS;
    if (r == CUDA_SUCCESS && prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        __atomic_fetch_add(&host_bytes, size, __ATOMIC_RELAXED);
    if (r == CUDA_SUCCESS && after_create)
        after_create();
    return r;
}

static _Thread_local void (*before_record)(void);

static CUresult counted_cuCtxRecordEvent(CUcontext ctx, CUevent event)
{
    if (before_record)
        before_record();
    return fails() ? fail_with : real.cuCtxRecordEvent(ctx, event);
}

static void (*meanwhile)(void); /* done by another thread while this one waits for a context */

static CUresult counted_cuEventSynchronize(CUevent event)
{
    CUresult r = fails() ? fail_with : real.cuEventSynchronize(event);
    if (meanwhile)
        meanwhile();
    return r;
}

/* The door's own function for a symbol, or NULL. */
static void *door_counted(const char *symbol)
{
#define WRAPPED(name) { #name, (void *)counted_##name }
    static const struct { const char *symbol; void *function; } wrapped[] = {
        WRAPPED(cuMemCreate), WRAPPED(cuMemRelease), WRAPPED(cuMemMap), WRAPPED(cuMemUnmap), WRAPPED(cuMemSetAccess),
        WRAPPED(cuMemAddressReserve), WRAPPED(cuMemGetInfo_v2), WRAPPED(cuCtxGetDevice), WRAPPED(cuMemcpyDtoDAsync_v2),
        WRAPPED(cuStreamSynchronize), WRAPPED(cuStreamCreate), WRAPPED(cuCtxRecordEvent), WRAPPED(cuEventCreate),
        WRAPPED(cuEventRecord), WRAPPED(cuEventQuery), WRAPPED(cuEventDestroy_v2), WRAPPED(cuCtxPushCurrent_v2), WRAPPED(cuEventSynchronize),
    };
    for (size_t i = 0; i < sizeof wrapped / sizeof wrapped[0]; i++)
        if (strcmp(symbol, wrapped[i].symbol) == 0)
            return wrapped[i].function;
    return NULL;
}
