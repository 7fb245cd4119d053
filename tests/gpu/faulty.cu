/* SPDX-License-Identifier: Apache-2.0 */
/* A kernel that fails, for tests/conformance: compiled by nvcc into faulty.ptx and, as C, into faulty.simk.so. */
#include <simk.h>

#ifdef __cplusplus
#define KERNEL extern "C" __global__ void
#else
#define KERNEL __global__ void
#endif

/* Ends by itself when *stop is 0. */
KERNEL ft_trap(const unsigned long long *stop)
{
    if (*stop)
        __trap();
}

SIM_KERNEL(ft_trap, const unsigned long long *);
