/* SPDX-License-Identifier: Apache-2.0 */
/* Initialisation, versions, errors: what every other entry stands on.
 * Called by applications (cu* entries) and through SIM_ENTRY by every other file.
 * Rules: the process state is one of: not initialised, ready, forked (CUDA is unusable in a child), leaving (exit).
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "faults.h"
#include "state.h"

#include <stdio.h>
#include <string.h>

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
        if (!sim_doubt(SIM_DOUBT_LATE_CALLS))
            atomic_store(&state, LEAVING);
        sim_machine_leave();
    }
}

CUresult sim_stub(const char *name)
{
    sim_stub_reached(name, "driver");
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* Not the driver's: what a test compares with the list of stubs (STUBS.md). NULL past the last entry. */
__attribute__((visibility("default"))) const char *simgpu_entry(unsigned index, int *stub)
{
    if (index >= sim_entry_count)
        return NULL;
    *stub = sim_is_stub(index);
    return sim_entry_names[index];
}

CUresult sim_ready(void)
{
    switch (atomic_load(&state)) {
    case READY: return sim_in_host_call() ? CUDA_ERROR_NOT_PERMITTED : CUDA_SUCCESS;
    case LEAVING: return CUDA_ERROR_DEINITIALIZED;
    default: return CUDA_ERROR_NOT_INITIALIZED;
    }
}

SIM_API CUresult cuInit(unsigned int Flags)
{
    int now = atomic_load(&state);
    if (now == READY && Flags == 0)
        return CUDA_SUCCESS;
    if (now == FORKED)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (now == LEAVING)
        return CUDA_ERROR_DEINITIALIZED;
    if (Flags != 0 || sim_config()->bad || !sim_faults_ok())
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

#define PREFIX "CUDA_ERROR_"

const char *sim_error_word(CUresult r, char room[16])
{
    const struct error *e = error_of(r);
    if (e)
        return strncmp(e->name, PREFIX, strlen(PREFIX)) ? e->name : e->name + strlen(PREFIX);
    snprintf(room, 16, "%d", (int)r);
    return room;
}

CUresult sim_error_named(const char *word, size_t n)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        char room[16];
        const char *names[] = {errors[i].name, sim_error_word(errors[i].code, room), room};
        snprintf(room, sizeof room, "%d", (int)errors[i].code);
        for (size_t k = 0; k < 3; k++)
            if (strlen(names[k]) == n && !memcmp(names[k], word, n))
                return errors[i].code;
    }
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGetErrorName(CUresult error, const char **pStr)
{
    const struct error *e = error_of(error);
    if (pStr)
        *pStr = e ? e->name : NULL;
    return e && pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGetErrorString(CUresult error, const char **pStr)
{
    const struct error *e = error_of(error);
    if (pStr)
        *pStr = e ? e->text : NULL;
    return e && pStr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/* The private tables of NVIDIA's runtime are not imitated; programs that need them must see that at once. */
SIM_API CUresult cuGetExportTable(const void **ppExportTable, const CUuuid *pExportTableId)
{
    if (!ppExportTable || !pExportTableId)
        return CUDA_ERROR_INVALID_VALUE;
    *ppExportTable = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
