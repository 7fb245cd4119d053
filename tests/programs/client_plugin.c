/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin linked to libcuda.so.1, as ggml's CUDA backend is. Loaded by client_dlopen.c with RTLD_LOCAL. */
#include "exercise.h"

__attribute__((visibility("default"))) int plugin_run(unsigned count, uint64_t bytes, uint64_t seed)
{
    return exercise_device(count, bytes, seed);
}
