// SPDX-License-Identifier: Apache-2.0
// The companion of simgpu_cost.c: a kernel that does nothing.
#include "simk.h"

__global__ void nothing(void *p, unsigned n) {}
SIM_KERNEL_SYMBOL(nothing, "nothing");
