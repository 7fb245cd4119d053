/* SPDX-License-Identifier: Apache-2.0 */
/* A companion in C: parameter types are named in SIM_KERNEL. Goes with the PTX in tests/unit/test_simgpu_code_launch.py. */
#include "simk.h"

struct wide {
    char tag;
    double values[2];
};

__device__ int offset_by;
SIM_GLOBAL(offset_by);

__global__ void add(int *out, const int *in, int n, short step)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        out[i] = in[i] + step + offset_by;
}
SIM_KERNEL(add, int *, const int *, int, short);

__global__ void take(char c, struct wide w, double *out)
{
    out[0] = c;
    out[1] = w.tag;
    out[2] = w.values[0];
    out[3] = w.values[1];
}
SIM_KERNEL(take, char, struct wide, double *);

__global__ void nothing(void)
{
}
SIM_KERNEL(nothing);

__global__ void slow(volatile unsigned *flag, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        *flag = i;
}
SIM_KERNEL(slow, volatile unsigned *, unsigned);
