/* SPDX-License-Identifier: Apache-2.0 */
/* Entries with little to do here that programs expect to succeed: profiler marks, log callbacks, bookkeeping of
 * graph memory. Called by applications.
 * Rules: arguments are checked as strictly as elsewhere.
 */
#include "state.h"

#include <string.h>

/* ---- profiler marks and log callbacks: nobody listens, nothing is logged */

SIM_API CUresult cuProfilerStart(void)
{
    SIM_ENTRY();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuProfilerStop(void)
{
    SIM_ENTRY();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuLogsRegisterCallback(CUlogsCallback callbackFunc, void *userData, CUlogsCallbackHandle *callback_out)
{
    (void)userData;
    /* No SIM_ENTRY: runtimes call it before cuInit. */
    if (!callbackFunc)
        return CUDA_ERROR_INVALID_VALUE;
    if (callback_out)
        *callback_out = (CUlogsCallbackHandle)(uintptr_t)sim_unique();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuLogsUnregisterCallback(CUlogsCallbackHandle callback)
{
    return callback ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
