/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the simulated NVML share. Included by nvml*.c.
 * Rules: every entry that takes a device checks it first, in the order of real NVML: initialised, known device, arguments.
 */
#ifndef SIM_NVML_H
#define SIM_NVML_H

#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#define SIM_API __attribute__((visibility("default")))

/* NVML_ERROR_UNINITIALIZED, NVML_ERROR_INVALID_ARGUMENT, or the device's ordinal in *device. */
nvmlReturn_t sim_nvml_device(nvmlDevice_t handle, int *device);
/* NVML_ERROR_INSUFFICIENT_SIZE when `value` with its end does not fit. */
nvmlReturn_t sim_nvml_text(char *out, unsigned length, const char *value);
nvmlReturn_t sim_nvml_handle(unsigned index, nvmlDevice_t *out);

#define ENTRY() do { int none_; nvmlReturn_t r_ = sim_nvml_device(NULL, &none_); if (r_ == NVML_ERROR_UNINITIALIZED) return r_; } while (0)
#define DEVICE() int dev; do { nvmlReturn_t r_ = sim_nvml_device(device, &dev); if (r_) return r_; } while (0)

#endif
