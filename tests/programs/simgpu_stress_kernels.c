/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of simgpu_stress.c as host code (its PTX is in that file). With a barrier, so that fibers run. */
#include "simk.h"

/* Each block adds 1 to its words, through shared memory and with all threads at the barriers. */
__global__ void bump(unsigned *words, unsigned n)
{
    __shared__ unsigned row[64];
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    row[threadIdx.x] = i < n ? words[i] : 0;
    __syncthreads();
    unsigned mirrored = row[blockDim.x - 1 - threadIdx.x] + 1;
    __syncthreads();
    row[blockDim.x - 1 - threadIdx.x] = mirrored;
    __syncthreads();
    if (i < n)
        words[i] = row[threadIdx.x];
}
SIM_KERNEL(bump, unsigned *, unsigned);

/* Every thread counts in one word that kernels of other streams count in too. */
__global__ void count(unsigned *total)
{
    atomicAdd(total, 1u);
}
SIM_KERNEL(count, unsigned *);
