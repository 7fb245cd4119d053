// SPDX-License-Identifier: Apache-2.0
// A shared library with a kernel: `int answer(int)` returns its argument plus 21. Opened by runtime_api.cu.
#include "simk.h"

__global__ void plus(int *p, int by)
{
    *p += by;
}
SIM_KERNEL(plus);

#ifdef __CUDACC__
extern "C" int answer(int from)
{
    int *p, result = -1;
    if (cudaMalloc(&p, sizeof *p) != cudaSuccess)
        return -2;
    cudaMemcpy(p, &from, sizeof from, cudaMemcpyHostToDevice);
    plus<<<1, 1>>>(p, 21);
    cudaMemcpy(&result, p, sizeof result, cudaMemcpyDeviceToHost);
    cudaFree(p);
    return result;
}
#endif
