/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of soak.c and race.c: compiled by nvcc into soak_kernels.ptx and, as C, into a companion for the simulated driver. */
#include "simk.h"

#ifdef __cplusplus
#define KERNEL extern "C" __global__ void
#define SEEN(flag) (*(flag))
#define YIELD() (void)0
#else
#include <sched.h>
#define KERNEL __global__ void
#define SEEN(flag) __atomic_load_n(flag, __ATOMIC_ACQUIRE)
#define YIELD() sched_yield()
#endif

/* Each word depends on itself, its index and the salt: a lost or doubled launch shows. */
KERNEL mix(unsigned *words, unsigned n, unsigned salt)
{
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        words[i] = words[i] * 2654435761u + salt + i;
}

KERNEL combine(unsigned *to, const unsigned *from, unsigned n, unsigned salt)
{
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        to[i] = to[i] * 5u + (from[i] ^ salt);
}

/* One thread. Touches `words` before and after it has seen the host raise the flag (mapped host memory) to `until`. */
KERNEL spin(volatile unsigned *flag, unsigned until, unsigned *words, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        words[i] += 1;
    while (SEEN(flag) < until)
        YIELD();
    __threadfence_system();
    for (unsigned i = 0; i < n; i++)
        words[i] += 1;
}

#ifndef __CUDACC__
SIM_KERNEL(mix, unsigned *, unsigned, unsigned);
SIM_KERNEL(combine, unsigned *, const unsigned *, unsigned, unsigned);
SIM_KERNEL(spin, volatile unsigned *, unsigned, unsigned *, unsigned);
#endif
