/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of soak.c and race.c as host code (their PTX is in open.h). */
#include <sched.h>

#include "simk.h"

/* Each word depends on itself, its index and the salt: a lost or doubled launch shows. */
__global__ void mix(unsigned *words, unsigned n, unsigned salt)
{
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        words[i] = words[i] * 2654435761u + salt + i;
}
SIM_KERNEL(mix, unsigned *, unsigned, unsigned);

__global__ void combine(unsigned *to, const unsigned *from, unsigned n, unsigned salt)
{
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        to[i] = to[i] * 5u + (from[i] ^ salt);
}
SIM_KERNEL(combine, unsigned *, const unsigned *, unsigned, unsigned);

/* Touches `words` before and after it has seen the host raise the flag to `until`. */
__global__ void spin(volatile unsigned *flag, unsigned until, unsigned *words, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        words[i] += 1;
    while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) < until)
        sched_yield();
    for (unsigned i = 0; i < n; i++)
        words[i] += 1;
}
SIM_KERNEL(spin, volatile unsigned *, unsigned, unsigned *, unsigned);
