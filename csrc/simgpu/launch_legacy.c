/* SPDX-License-Identifier: Apache-2.0 */
/* The launches of old: cuFuncSetBlockShape, cuFuncSetSharedSize and cuParamSet* keep a function's next launch in the function,
 * cuLaunch* starts it. And cuLaunchCooperativeKernelMultiDevice. All deprecated; cuda.h still declares them.
 * Rules: what was set stays until it is set again; one thread prepares a function's launch at a time (cuda.h says nothing).
 */
#include "launch.h"

#include "code.h"

#include <string.h>

struct sim_next_launch { /* in the image's memory, from the first use on */
    unsigned block[3], shared, size;
    unsigned char params[SIM_MAX_PARAM_SIZE];
};

static CUresult next_of(CUfunction handle, struct CUfunc_st **f, struct sim_next_launch **out)
{
    CUresult r = sim_function_of(handle, f);
    if (r)
        return r;
    sim_take();
    if (!(*f)->next)
        (*f)->next = sim_image_alloc((*f)->module->image, sizeof **out);
    *out = (*f)->next;
    sim_give();
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

SIM_API CUresult cuFuncSetBlockShape(CUfunction hfunc, int x, int y, int z)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    struct sim_next_launch *n;
    CUresult r = next_of(hfunc, &f, &n);
    if (!r && (x <= 0 || y <= 0 || z <= 0))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        memcpy(n->block, (unsigned[]){(unsigned)x, (unsigned)y, (unsigned)z}, sizeof n->block);
    return r;
}

SIM_API CUresult cuFuncSetSharedSize(CUfunction hfunc, unsigned int bytes)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    struct sim_next_launch *n;
    CUresult r = next_of(hfunc, &f, &n);
    if (!r)
        n->shared = bytes;
    return r;
}

SIM_API CUresult cuParamSetSize(CUfunction hfunc, unsigned int numbytes)
{
    SIM_ENTRY();
    struct CUfunc_st *f;
    struct sim_next_launch *n;
    CUresult r = next_of(hfunc, &f, &n);
    if (!r && numbytes > sizeof n->params)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        n->size = numbytes;
    return r;
}

static CUresult set(CUfunction hfunc, int offset, const void *value, unsigned bytes)
{
    struct CUfunc_st *f;
    struct sim_next_launch *n;
    CUresult r = next_of(hfunc, &f, &n);
    if (!r && (offset < 0 || !value || bytes > sizeof n->params || (unsigned)offset > sizeof n->params - bytes))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        memcpy(n->params + offset, value, bytes);
    return r;
}

SIM_API CUresult cuParamSeti(CUfunction hfunc, int offset, unsigned int value)
{
    SIM_ENTRY();
    return set(hfunc, offset, &value, sizeof value);
}

SIM_API CUresult cuParamSetf(CUfunction hfunc, int offset, float value)
{
    SIM_ENTRY();
    return set(hfunc, offset, &value, sizeof value);
}

SIM_API CUresult cuParamSetv(CUfunction hfunc, int offset, void *ptr, unsigned int numbytes)
{
    SIM_ENTRY();
    return set(hfunc, offset, ptr, numbytes);
}

static CUresult start(CUfunction hfunc, int width, int height, CUstream stream)
{
    struct CUfunc_st *f;
    struct sim_next_launch *n;
    CUresult r = next_of(hfunc, &f, &n);
    if (r)
        return r;
    if (width <= 0 || height <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    size_t size = n->size;
    void *extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, n->params, CU_LAUNCH_PARAM_BUFFER_SIZE, &size, CU_LAUNCH_PARAM_END};
    return sim_launch(&(const CUDA_KERNEL_NODE_PARAMS){.func = hfunc, .gridDimX = (unsigned)width, .gridDimY = (unsigned)height,
                                                       .gridDimZ = 1, .blockDimX = n->block[0], .blockDimY = n->block[1],
                                                       .blockDimZ = n->block[2], .sharedMemBytes = n->shared, .extra = extra},
                      NULL, 0, stream, false);
}

SIM_API CUresult cuLaunch(CUfunction f)
{
    SIM_ENTRY();
    return start(f, 1, 1, NULL);
}

SIM_API CUresult cuLaunchGrid(CUfunction f, int grid_width, int grid_height)
{
    SIM_ENTRY();
    return start(f, grid_width, grid_height, NULL);
}

SIM_API CUresult cuLaunchGridAsync(CUfunction f, int grid_width, int grid_height, CUstream hStream)
{
    SIM_ENTRY();
    return start(f, grid_width, grid_height, hStream);
}

/* [sim_lock] The device of a stream that such a launch may name, or -1: no default stream (cuda.h). */
static int device_of(CUstream handle)
{
    bool own = handle && handle != CU_STREAM_LEGACY && handle != CU_STREAM_PER_THREAD;
    CUstream s = own ? sim_object(SIM_STREAM, (uintptr_t)handle) : NULL;
    return s ? s->ctx->device : -1;
}

/* The blocks of different devices never wait for each other here (simk.h has no barrier over devices), so each launch is ordered
 * in its own stream alone, which is what the flags ask for. Without them it would wait for the others' streams: refused. */
SIM_API CUresult cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *launchParamsList, unsigned int numDevices, unsigned int flags)
{
    SIM_ENTRY();
    const unsigned free_running = CUDA_COOPERATIVE_LAUNCH_MULTI_DEVICE_NO_PRE_LAUNCH_SYNC |
                                  CUDA_COOPERATIVE_LAUNCH_MULTI_DEVICE_NO_POST_LAUNCH_SYNC;
    const CUDA_LAUNCH_PARAMS *p = launchParamsList;
    uint64_t devices = 0;
    bool good = p && numDevices && !(flags & ~free_running);
    sim_take();
    for (unsigned i = 0; good && i < numDevices; i++) {
        int device = device_of(p[i].hStream);
        good = device >= 0 && !(devices >> device & 1) && p[i].gridDimX == p->gridDimX && p[i].gridDimY == p->gridDimY &&
               p[i].gridDimZ == p->gridDimZ && p[i].blockDimX == p->blockDimX && p[i].blockDimY == p->blockDimY &&
               p[i].blockDimZ == p->blockDimZ && p[i].sharedMemBytes == p->sharedMemBytes;
        devices |= good ? UINT64_C(1) << device : 0;
    }
    sim_give();
    if (!good)
        return CUDA_ERROR_INVALID_VALUE;
    if (numDevices > 1 && flags != free_running)
        return CUDA_ERROR_NOT_SUPPORTED;
    CUresult r = CUDA_SUCCESS;
    for (unsigned i = 0; i < numDevices && !r; i++)
        r = sim_launch(&(const CUDA_KERNEL_NODE_PARAMS){.func = p[i].function, .gridDimX = p->gridDimX, .gridDimY = p->gridDimY,
                                                        .gridDimZ = p->gridDimZ, .blockDimX = p->blockDimX,
                                                        .blockDimY = p->blockDimY, .blockDimZ = p->blockDimZ,
                                                        .sharedMemBytes = p->sharedMemBytes, .kernelParams = p[i].kernelParams},
                       &sim_cooperative, 1, p[i].hStream, false);
    return r;
}
