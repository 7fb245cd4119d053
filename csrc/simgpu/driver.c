/* SPDX-License-Identifier: Apache-2.0 */
/* Initialisation, versions, errors, tracing: what every other entry stands on.
 * Called by applications (cu* entries) and through SIM_ENTRY by every other file.
 * Rules: the process state is one of: not initialised, ready, forked (CUDA is unusable in a child), leaving (exit).
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "state.h"

#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

pthread_mutex_t sim_lock = PTHREAD_MUTEX_INITIALIZER;

enum { FRESH, READY, FORKED, LEAVING };
static atomic_int state;
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;

static void in_child(void)
{
    if (atomic_load(&state) == READY)
        atomic_store(&state, FORKED);
}

__attribute__((destructor)) static void leave(void)
{
    if (atomic_load(&state) == READY) {
        atomic_store(&state, LEAVING);
        sim_machine_leave();
    }
}

void sim_trace(const char *entry)
{
    const struct sim_config *c = sim_config();
    if (!c->trace[0])
        return;
    char line[160];
    int n = snprintf(line, sizeof line, "%d %ld %s\n", (int)getpid(), (long)syscall(SYS_gettid), entry);
    if (n > 0 && (size_t)n < sizeof line)
        sim_append(c->trace, line, (size_t)n);
}

CUresult sim_stub(const char *name)
{
    sim_trace(name);
    sim_stub_reached(name, "driver");
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult sim_ready(void)
{
    switch (atomic_load(&state)) {
    case READY: return CUDA_SUCCESS;
    case LEAVING: return CUDA_ERROR_DEINITIALIZED;
    default: return CUDA_ERROR_NOT_INITIALIZED;
    }
}

SIM_API CUresult cuInit(unsigned int Flags)
{
    sim_trace(__func__);
    int now = atomic_load(&state);
    if (now == READY && Flags == 0)
        return CUDA_SUCCESS;
    if (now == FORKED)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (now == LEAVING)
        return CUDA_ERROR_DEINITIALIZED;
    if (Flags != 0 || sim_config()->bad)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = CUDA_SUCCESS;
    pthread_mutex_lock(&init_lock);
    if (atomic_load(&state) == FRESH) {
        if (sim_machine_join()) {
            r = CUDA_ERROR_OPERATING_SYSTEM;
        } else {
            pthread_atfork(NULL, NULL, in_child);
            sim_doubt_say();
            atomic_store(&state, READY);
        }
    }
    pthread_mutex_unlock(&init_lock);
    return r;
}

SIM_API CUresult cuDriverGetVersion(int *driverVersion)
{
    sim_trace(__func__);
    if (!driverVersion)
        return CUDA_ERROR_INVALID_VALUE;
    *driverVersion = sim_config()->driver;
    return CUDA_SUCCESS;
}

struct error {
    CUresult code;
    const char *name, *text;
};

static const struct error errors[] = {
#include "errors.inc" /* generated from cuda.h by gen_stubs.py */
};

static const struct error *error_of(CUresult code)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code)
            return &errors[i];
    return NULL;
}

SIM_API CUresult cuGetErrorName(CUresult error, const char **pStr)
{
    sim_trace(__func__);
    const struct error *e = error_of(error);
    if (pStr)
        *pStr = e ? e->name : NULL;
    return e && pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGetErrorString(CUresult error, const char **pStr)
{
    sim_trace(__func__);
    const struct error *e = error_of(error);
    if (pStr)
        *pStr = e ? e->text : NULL;
    return e && pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The private tables of NVIDIA's runtime are not imitated; programs that need them must see that at once. */
SIM_API CUresult cuGetExportTable(const void **ppExportTable, const CUuuid *pExportTableId)
{
    sim_trace(__func__);
    if (!ppExportTable || !pExportTableId)
        return CUDA_ERROR_INVALID_VALUE;
    *ppExportTable = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
