/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of everything else that gives the GPU work which may touch managed memory: kernels, graphs, memory operations of
 * streams. Called by the program, on its hottest path.
 * Rules: inside the gate there are one look and the driver's call, nothing else; no lock, nothing shared is written. What the driver
 * had no memory for (code, local memory, nodes) has not run: outside the gate some is reclaimed, and it is launched again. Not here:
 * events, what concerns cudaMallocManaged memory alone, arrays. */
#include "shim/hook.h"

/* Over a hole nothing is submitted: nobody knows whether it would run into it. */
#define INSIDE(CALL)                                      \
    ({                                                    \
        spill_gate_enter();                               \
        CUresult inside_ = spill_poisoned();              \
        if (__builtin_expect(inside_ == CUDA_SUCCESS, 1)) \
            inside_ = (CALL);                             \
        spill_gate_leave();                               \
        inside_;                                          \
    })
#define GATED(symbol, params, args)                     \
    SPILL_EXPORT CUresult CUDAAPI symbol params         \
    {                                                   \
        const struct spill_driver *d = spill_driver();  \
        if (!d->symbol)                                 \
            return SPILL_MISSING;                       \
        return SPILL_RETRIED(INSIDE(d->symbol args));   \
    }
/* With its per-thread-default-stream twin. */
#define GATED_SZ(symbol, params, args) \
    GATED(symbol, params, args)        \
    GATED(symbol##_ptsz, params, args)

GATED_SZ(cuLaunchKernel,
         (CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX,
          unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream, void **kernelParams,
          void **extra),
         (f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream, kernelParams, extra))
GATED_SZ(cuLaunchKernelEx, (const CUlaunchConfig *config, CUfunction f, void **kernelParams, void **extra),
         (config, f, kernelParams, extra))
GATED_SZ(cuLaunchCooperativeKernel,
         (CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ, unsigned int blockDimX,
          unsigned int blockDimY, unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream, void **kernelParams),
         (f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, hStream, kernelParams))
GATED(cuLaunchCooperativeKernelMultiDevice, (CUDA_LAUNCH_PARAMS *launchParamsList, unsigned int numDevices, unsigned int flags),
      (launchParamsList, numDevices, flags))
GATED(cuLaunch, (CUfunction f), (f))
GATED(cuLaunchGrid, (CUfunction f, int grid_width, int grid_height), (f, grid_width, grid_height))
GATED(cuLaunchGridAsync, (CUfunction f, int grid_width, int grid_height, CUstream hStream),
      (f, grid_width, grid_height, hStream))
GATED_SZ(cuGraphLaunch, (CUgraphExec hGraphExec, CUstream hStream), (hGraphExec, hStream))
GATED_SZ(cuGraphUpload, (CUgraphExec hGraphExec, CUstream hStream), (hGraphExec, hStream))
GATED_SZ(cuMemBatchDecompressAsync,
         (CUmemDecompressParams *paramsArray, size_t count, unsigned int flags, size_t *errorIndex, CUstream stream),
         (paramsArray, count, flags, errorIndex, stream))

/* ---- functions of the program ---- */

/* A function of the program may wait for a thread that is held back here (for a lock, or as if it called CUDA itself). So it must not
 * begin once the GPU was seen idle: a driver whose cuMemUnmap waits for all work would never come back to the mover. It touches no
 * managed memory itself, so a hole does not concern it. */
#define FUNCTION(symbol, params, args)                     \
    SPILL_EXPORT CUresult CUDAAPI symbol params            \
    {                                                      \
        SPILL_GATED(symbol);                               \
        return spill_seen(spill_driver()->symbol args);    \
    }
#define FUNCTION_SZ(symbol, params, args) \
    FUNCTION(symbol, params, args)        \
    FUNCTION(symbol##_ptsz, params, args)
FUNCTION_SZ(cuLaunchHostFunc, (CUstream hStream, CUhostFn fn, void *userData), (hStream, fn, userData))
FUNCTION_SZ(cuLaunchHostFunc_v2, (CUstream hStream, CUhostFn fn, void *userData, unsigned int syncMode), (hStream, fn, userData, syncMode))
FUNCTION_SZ(cuStreamAddCallback, (CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags),
            (hStream, callback, userData, flags))

/* ---- what becomes a node when it is captured ---- */

#define VALUE(symbol, type, ptsz)                                                                             \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUstream stream, CUdeviceptr addr, type value, unsigned int flags)   \
    {                                                                                                         \
        SPILL_GATED(symbol);                                                                                  \
        spill_pin_captured(stream, ptsz, addr, 0);                                                            \
        CUresult r = spill_poisoned();                                                                        \
        return r != CUDA_SUCCESS ? r : spill_seen(spill_driver()->symbol(stream, addr, value, flags));        \
    }
#define VALUE_SZ(symbol, type)  \
    VALUE(symbol, type, false) \
    VALUE(symbol##_ptsz, type, true)
VALUE_SZ(cuStreamWaitValue32, cuuint32_t)
VALUE_SZ(cuStreamWaitValue32_v2, cuuint32_t)
VALUE_SZ(cuStreamWaitValue64, cuuint64_t)
VALUE_SZ(cuStreamWaitValue64_v2, cuuint64_t)
VALUE_SZ(cuStreamWriteValue32, cuuint32_t)
VALUE_SZ(cuStreamWriteValue32_v2, cuuint32_t)
VALUE_SZ(cuStreamWriteValue64, cuuint64_t)
VALUE_SZ(cuStreamWriteValue64_v2, cuuint64_t)

#define MEM_OPS(symbol, ptsz)                                                                                                \
    SPILL_EXPORT CUresult CUDAAPI symbol(CUstream stream, unsigned int count, CUstreamBatchMemOpParams *paramArray,          \
                                         unsigned int flags)                                                                 \
    {                                                                                                                        \
        SPILL_GATED(symbol);                                                                                                 \
        if (spill_captured(stream, ptsz))                                                                                    \
            spill_pin_mem_ops(paramArray, count);                                                                            \
        CUresult r = spill_poisoned();                                                                                       \
        return r != CUDA_SUCCESS ? r : spill_seen(spill_driver()->symbol(stream, count, paramArray, flags));                 \
    }
MEM_OPS(cuStreamBatchMemOp, false)
MEM_OPS(cuStreamBatchMemOp_ptsz, true)
MEM_OPS(cuStreamBatchMemOp_v2, false)
MEM_OPS(cuStreamBatchMemOp_v2_ptsz, true)

#define FABRIC(symbol, ptsz)                                                                                             \
    SPILL_EXPORT CUresult CUDAAPI symbol(size_t numOps, CUDA_FABRIC_COPY_BATCH_OP *opList, unsigned long long flags,     \
                                         CUstream hStream)                                                               \
    {                                                                                                                    \
        SPILL_GATED(symbol);                                                                                             \
        if (spill_captured(hStream, ptsz))                                                                               \
            spill_pin_fabric(opList, numOps);                                                                            \
        CUresult r = spill_poisoned();                                                                                   \
        return r != CUDA_SUCCESS ? r : spill_seen(spill_driver()->symbol(numOps, opList, flags, hStream));               \
    }
FABRIC(cuFabricCpyBatchAsync, false)
FABRIC(cuFabricCpyBatchAsync_ptsz, true)
