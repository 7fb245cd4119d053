/* SPDX-License-Identifier: Apache-2.0 */
/* Putting processes to sleep (cuCheckpointProcess*). Called by applications that hibernate others.
 * Rules: refused, as a driver refuses it on a platform without the feature: no process of this simulated machine sleeps.
 * A process id that is not there is told apart, as the real driver's argument check would.
 */
#include "state.h"

#include <errno.h>
#include <signal.h>

static CUresult refuse(int pid)
{
    return pid <= 0 || (kill(pid, 0) && errno == ESRCH) ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
}

SIM_API CUresult cuCheckpointProcessGetRestoreThreadId(int pid, int *tid)
{
    SIM_ENTRY();
    return tid ? refuse(pid) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuCheckpointProcessGetState(int pid, CUprocessState *state)
{
    SIM_ENTRY();
    return state ? refuse(pid) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuCheckpointProcessLock(int pid, CUcheckpointLockArgs *args)
{
    SIM_ENTRY();
    (void)args;
    return refuse(pid);
}

SIM_API CUresult cuCheckpointProcessCheckpoint(int pid, CUcheckpointCheckpointArgs *args)
{
    SIM_ENTRY();
    (void)args;
    return refuse(pid);
}

SIM_API CUresult cuCheckpointProcessRestore(int pid, CUcheckpointRestoreArgs *args)
{
    SIM_ENTRY();
    (void)args;
    return refuse(pid);
}

SIM_API CUresult cuCheckpointProcessUnlock(int pid, CUcheckpointUnlockArgs *args)
{
    SIM_ENTRY();
    (void)args;
    return refuse(pid);
}
