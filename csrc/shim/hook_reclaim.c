/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of the entries for which the driver itself takes VRAM: code, executables of graphs, streams and events, limits, arrays. Where
 * it has none left, some is reclaimed and the call made once more. Launches and uploads, which pass the gate too, are in
 * hook_launch.c, allocations in hook_alloc.c and hook_async.c.
 * Rules: such a call has done nothing where it answers CUDA_ERROR_OUT_OF_MEMORY ("unable to allocate enough memory or other resources
 * to perform the requested operation", cuda.h), so that it may be repeated; it is, once; any other answer passes as it is. What takes
 * RAM only is not here (cuMemHostAlloc, cuLinkComplete), nor what has no context yet in which idleness could be proven. */
#include <string.h>

#include "shim/hook.h"

bool spill_worth_retrying(CUresult r, uint64_t bytes)
{
    int device;
    return r == CUDA_ERROR_OUT_OF_MEMORY && spill_started() && !spill_dead() && !spill_capturing() && !spill_gate_inside() &&
           spill_poisoned() == CUDA_SUCCESS && spill_current_device(&device) == CUDA_SUCCESS && spill_reclaim(device, bytes);
}

#define RETRIED(symbol, params, args)                      \
    SPILL_EXPORT CUresult CUDAAPI symbol params            \
    {                                                      \
        SPILL_NEEDS(symbol);                               \
        return SPILL_RETRIED(spill_driver()->symbol args); \
    }

/* ---- code, also where it is loaded as late as at its first use ---- */

RETRIED(cuModuleLoad, (CUmodule *module, const char *fname), (module, fname))
RETRIED(cuModuleLoadData, (CUmodule *module, const void *image), (module, image))
RETRIED(cuModuleLoadFatBinary, (CUmodule *module, const void *fatCubin), (module, fatCubin))
RETRIED(cuModuleGetFunction, (CUfunction *hfunc, CUmodule hmod, const char *name), (hfunc, hmod, name))
RETRIED(cuModuleGetGlobal_v2, (CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name), (dptr, bytes, hmod, name))
RETRIED(cuLibraryGetKernel, (CUkernel *pKernel, CUlibrary library, const char *name), (pKernel, library, name))
RETRIED(cuLibraryGetModule, (CUmodule *pMod, CUlibrary library), (pMod, library))
RETRIED(cuLibraryGetGlobal, (CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name), (dptr, bytes, library, name))
RETRIED(cuLibraryGetManaged, (CUdeviceptr *dptr, size_t *bytes, CUlibrary library, const char *name), (dptr, bytes, library, name))
RETRIED(cuKernelGetFunction, (CUfunction *pFunc, CUkernel kernel), (pFunc, kernel))
RETRIED(cuKernelGetAttribute, (int *pi, CUfunction_attribute attrib, CUkernel kernel, CUdevice dev), (pi, attrib, kernel, dev))
RETRIED(cuKernelSetAttribute, (CUfunction_attribute attrib, int val, CUkernel kernel, CUdevice dev), (attrib, val, kernel, dev))
RETRIED(cuKernelSetCacheConfig, (CUkernel kernel, CUfunc_cache config, CUdevice dev), (kernel, config, dev))
RETRIED(cuFuncGetAttribute, (int *pi, CUfunction_attribute attrib, CUfunction hfunc), (pi, attrib, hfunc))
RETRIED(cuFuncSetAttribute, (CUfunction hfunc, CUfunction_attribute attrib, int value), (hfunc, attrib, value))
RETRIED(cuFuncLoad, (CUfunction function), (function))

/* The sizes of log buffers are given and answered in the same words (CUjit_option): the second attempt gets what the first one got. */
struct options {
    void **values;
    size_t count;
    void *given[CU_JIT_NUM_OPTIONS];
};

static void keep(struct options *o, void **values, unsigned count)
{
    o->values = values;
    o->count = !values ? 0 : count < CU_JIT_NUM_OPTIONS ? count : CU_JIT_NUM_OPTIONS;
    if (o->count)
        memcpy(o->given, values, o->count * sizeof *values);
}

static bool give_again(const struct options *o)
{
    if (o->count)
        memcpy(o->values, o->given, o->count * sizeof *o->values);
    return true;
}

#define COMPILED(symbol, params, values, count, args)                          \
    SPILL_EXPORT CUresult CUDAAPI symbol params                                \
    {                                                                          \
        struct options o;                                                      \
        SPILL_NEEDS(symbol);                                                   \
        keep(&o, values, count);                                               \
        CUresult r = spill_driver()->symbol args;                              \
        if (r != CUDA_SUCCESS && spill_worth_retrying(r, 0) && give_again(&o)) \
            r = spill_driver()->symbol args;                                   \
        return spill_seen(r);                                                  \
    }
COMPILED(cuModuleLoadDataEx,
         (CUmodule *module, const void *image, unsigned int numOptions, CUjit_option *options, void **optionValues), optionValues,
         numOptions, (module, image, numOptions, options, optionValues))
COMPILED(cuLibraryLoadData,
         (CUlibrary *library, const void *code, CUjit_option *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
          CUlibraryOption *libraryOptions, void **libraryOptionValues, unsigned int numLibraryOptions),
         jitOptionsValues, numJitOptions,
         (library, code, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues, numLibraryOptions))
COMPILED(cuLibraryLoadFromFile,
         (CUlibrary *library, const char *fileName, CUjit_option *jitOptions, void **jitOptionsValues, unsigned int numJitOptions,
          CUlibraryOption *libraryOptions, void **libraryOptionValues, unsigned int numLibraryOptions),
         jitOptionsValues, numJitOptions,
         (library, fileName, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues, numLibraryOptions))

/* ---- graphs ---- */

RETRIED(cuGraphInstantiate, (CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize),
        (phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize))
RETRIED(cuGraphInstantiate_v2,
        (CUgraphExec *phGraphExec, CUgraph hGraph, CUgraphNode *phErrorNode, char *logBuffer, size_t bufferSize),
        (phGraphExec, hGraph, phErrorNode, logBuffer, bufferSize))
RETRIED(cuGraphInstantiateWithFlags, (CUgraphExec *phGraphExec, CUgraph hGraph, unsigned long long flags), (phGraphExec, hGraph, flags))
RETRIED(cuGraphInstantiateWithParams, (CUgraphExec *phGraphExec, CUgraph hGraph, CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams),
        (phGraphExec, hGraph, instantiateParams))
RETRIED(cuGraphInstantiateWithParams_ptsz,
        (CUgraphExec *phGraphExec, CUgraph hGraph, CUDA_GRAPH_INSTANTIATE_PARAMS *instantiateParams),
        (phGraphExec, hGraph, instantiateParams))
RETRIED(cuGraphExecUpdate,
        (CUgraphExec hGraphExec, CUgraph hGraph, CUgraphNode *hErrorNode_out, CUgraphExecUpdateResult *updateResult_out),
        (hGraphExec, hGraph, hErrorNode_out, updateResult_out))
RETRIED(cuGraphExecUpdate_v2, (CUgraphExec hGraphExec, CUgraph hGraph, CUgraphExecUpdateResultInfo *resultInfo),
        (hGraphExec, hGraph, resultInfo))

/* ---- contexts' own things ---- */

RETRIED(cuCtxSetLimit, (CUlimit limit, size_t value), (limit, value))
RETRIED(cuStreamCreate, (CUstream *phStream, unsigned int Flags), (phStream, Flags))
RETRIED(cuStreamCreateWithPriority, (CUstream *phStream, unsigned int flags, int priority), (phStream, flags, priority))
RETRIED(cuEventCreate, (CUevent *phEvent, unsigned int Flags), (phEvent, Flags))

/* ---- arrays, which are never managed ---- */

RETRIED(cuArrayCreate_v2, (CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray), (pHandle, pAllocateArray))
RETRIED(cuArray3DCreate_v2, (CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray), (pHandle, pAllocateArray))
RETRIED(cuMipmappedArrayCreate,
        (CUmipmappedArray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc, unsigned int numMipmapLevels),
        (pHandle, pMipmappedArrayDesc, numMipmapLevels))
