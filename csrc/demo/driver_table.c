/* SPDX-License-Identifier: Apache-2.0 */
/* Fetches the driver entries of driver_table.h: dlopen of libcuda.so.1, cuGetProcAddress_v2 where the driver has it (12.0
 * and newer), else the exported symbols. Called once by decoder.c.
 */
#include "driver_table.h"

#include <dlfcn.h>
#include <stdio.h>

struct driver cu;

static char missing[512];

static void *find(void *lib, PFN_cuGetProcAddress_v12000 ask, const char *name, int version, const char *symbol)
{
    CUdriverProcAddressQueryResult why;
    void *entry = NULL;

    if (ask && ask(name, &entry, version, CU_GET_PROC_ADDRESS_LEGACY_STREAM, &why) == CUDA_SUCCESS && entry)
        return entry;
    return dlsym(lib, symbol);
}

const char *driver_table_load(void)
{
    void *lib = dlopen("libcuda.so.1", RTLD_NOW);
    PFN_cuGetProcAddress_v12000 ask = NULL;

    if (!lib) {
        snprintf(missing, sizeof missing,
                 "no CUDA driver: %s (install NVIDIA's driver)", dlerror());
        return missing;
    }
    *(void **)&ask = dlsym(lib, "cuGetProcAddress_v2");
#define ENTRY(name, version, symbol) \
    *(void **)&cu.name = find(lib, ask, #name, version, symbol); \
    if (!cu.name) { \
        snprintf(missing, sizeof missing, "the CUDA driver lacks %s; driver 470 (CUDA 11.4) or newer is needed", symbol); \
        return missing; \
    }
    DRIVER_ENTRIES(ENTRY)
#undef ENTRY
    return NULL;
}
