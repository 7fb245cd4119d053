/* SPDX-License-Identifier: Apache-2.0 */
/* The one door to the real driver: every call that the shim makes into libcuda or libnvidia-ml goes through
 * `spill_driver()->symbol(...)`. Called from hook_*.c and tiering/.
 * Rules: filled once, from the real libraries only (resolve.c), never from ourselves; an entry that the driver does not
 * have is NULL; nothing here is called before a program made a CUDA call. */
#ifndef SPILL_DRIVER_H
#define SPILL_DRIVER_H

/* Undoes cuda.h's renaming (cuMemAlloc -> cuMemAlloc_v2): here a name is the exported symbol of that name. */
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#include <cuda.h>
#include <cudaTypedefs.h>
#include <nvml.h>
#include <stdbool.h>

#include "shim/interop.h"

struct spill_driver {
#define HOOK(symbol, name, version, flags, pfn) pfn symbol;
#define HOOK_BY_NAME(symbol, pfn) pfn symbol;
#define HOOK_NVML(symbol) __typeof__(&symbol) symbol;
#include "shim/hooks.def"
#define DRIVER(symbol, pfn) pfn symbol;
#define DRIVER_NVML(symbol) __typeof__(&symbol) symbol;
#include "shim/driver.def"
};

/* The door, filled at the first call. Entries are NULL where no driver could be loaded. */
const struct spill_driver *spill_driver(void);

/* The same for a call into NVML: a program that only asks NVML must not make us load libcuda. */
const struct spill_driver *spill_driver_nvml(void);

/* Fill the door from `lookup` instead (unit tests of tiering/, which know no interposition). */
void spill_driver_fill(void *(*lookup)(const char *symbol, bool nvml));

/* Answer of a hook whose driver entry is missing: the program got our symbol, the driver has none. */
#define SPILL_MISSING CUDA_ERROR_NOT_FOUND

#endif
