/* SPDX-License-Identifier: Apache-2.0 */
/* The driver entries that the demo decoder calls, fetched at run time so that the program starts on a machine without a
 * driver. Used by decoder.c alone. Each entry is asked for as NVIDIA's runtime asks: base name and the CUDA version that
 * introduced the ABI in use.
 */
#ifndef DRIVER_TABLE_H
#define DRIVER_TABLE_H

#include <cuda.h>
#include <cudaTypedefs.h>

/* ENTRY(base name, version of the ABI, exported ELF symbol) */
#define DRIVER_ENTRIES(ENTRY) \
    ENTRY(cuInit, 2000, "cuInit") \
    ENTRY(cuDriverGetVersion, 2020, "cuDriverGetVersion") \
    ENTRY(cuGetErrorName, 6000, "cuGetErrorName") \
    ENTRY(cuGetErrorString, 6000, "cuGetErrorString") \
    ENTRY(cuDeviceGet, 2000, "cuDeviceGet") \
    ENTRY(cuDeviceGetName, 2000, "cuDeviceGetName") \
    ENTRY(cuDevicePrimaryCtxRetain, 7000, "cuDevicePrimaryCtxRetain") \
    ENTRY(cuDevicePrimaryCtxRelease, 11000, "cuDevicePrimaryCtxRelease_v2") \
    ENTRY(cuCtxSetCurrent, 4000, "cuCtxSetCurrent") \
    ENTRY(cuCtxSynchronize, 2000, "cuCtxSynchronize") \
    ENTRY(cuModuleLoadData, 2000, "cuModuleLoadData") \
    ENTRY(cuModuleUnload, 2000, "cuModuleUnload") \
    ENTRY(cuModuleGetFunction, 2000, "cuModuleGetFunction") \
    ENTRY(cuLaunchKernel, 4000, "cuLaunchKernel") \
    ENTRY(cuMemGetInfo, 3020, "cuMemGetInfo_v2") \
    ENTRY(cuMemAlloc, 3020, "cuMemAlloc_v2") \
    ENTRY(cuMemFree, 3020, "cuMemFree_v2") \
    ENTRY(cuMemcpyHtoD, 3020, "cuMemcpyHtoD_v2") \
    ENTRY(cuMemcpyDtoH, 3020, "cuMemcpyDtoH_v2") \
    ENTRY(cuMemcpyDtoHAsync, 3020, "cuMemcpyDtoHAsync_v2") \
    ENTRY(cuMemsetD8, 3020, "cuMemsetD8_v2") \
    ENTRY(cuStreamCreate, 2000, "cuStreamCreate") \
    ENTRY(cuStreamSynchronize, 2000, "cuStreamSynchronize") \
    ENTRY(cuStreamDestroy, 4000, "cuStreamDestroy_v2") \
    ENTRY(cuEventCreate, 2000, "cuEventCreate") \
    ENTRY(cuEventRecord, 2000, "cuEventRecord") \
    ENTRY(cuEventElapsedTime, 2000, "cuEventElapsedTime") \
    ENTRY(cuEventDestroy, 4000, "cuEventDestroy_v2")

struct driver {
#define ENTRY(name, version, symbol) PFN_##name##_v##version name;
    DRIVER_ENTRIES(ENTRY)
#undef ENTRY
};

extern struct driver cu;

/* Open libcuda.so.1 and fill `cu`. NULL on success, else what is missing and what to do (a static string). */
const char *driver_table_load(void);

#endif
