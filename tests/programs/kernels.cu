// SPDX-License-Identifier: Apache-2.0
// Kernels with every kind of parameter, for the tests of code loading and launching. nvcc makes cubin, fatbin and PTX of it,
// g++ the companion.
#include <stddef.h>
#include "simk.h"

struct Pair {
    float *a;
    int n;
    double *b;
};

__constant__ float coef[8] = {1, 2, 3};
__device__ int counter = 7;
__device__ unsigned long long big[1000];
SIM_GLOBAL(coef);
SIM_GLOBAL(counter);

__global__ void plain(float *p, size_t n, float v)
{
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        p[i] = v * coef[1] + (float)i;
}
SIM_KERNEL(plain);

__global__ void __launch_bounds__(128) mixed(char c, Pair s, float4 f, short h, const char *q)
{
    __shared__ float x[100];
    x[threadIdx.x] = s.a[0] + f.w + h;
    __syncthreads();
    s.b[threadIdx.x] = x[s.n] + c + q[0];
}
SIM_KERNEL(mixed);

template <typename T> __global__ void store(T *p, T v)
{
    *p = v;
}
#ifdef __CUDACC__
template __global__ void store<int>(int *, int);
template __global__ void store<unsigned char>(unsigned char *, unsigned char);
#endif
SIM_KERNEL((store<int>));
SIM_KERNEL((store<unsigned char>));

extern "C" __global__ void count(void)
{
    atomicAdd(&counter, 1);
    big[0] = 1;
}
SIM_KERNEL(count);

// Sums each block's part of p into out[block]; needs every thread at every barrier.
extern "C" __global__ void block_sum(const int *p, long long *out)
{
    SIM_DYNAMIC_SHARED(long long, part);
    unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), n = blockDim.x * blockDim.y * blockDim.z;
    part[t] = p[blockIdx.x * n + t];
    __syncthreads();
    for (unsigned d = n / 2; d; d /= 2) {
        long long other = t < d ? part[t + d] : 0;
        __syncthreads();
        if (t < d)
            part[t] += other;
        __syncthreads();
    }
    if (t == 0)
        out[blockIdx.x] = part[0];
}
SIM_KERNEL(block_sum);

// Odd threads leave before the barrier.
extern "C" __global__ void early_exit(int *out)
{
    __shared__ int arrived;
    if (threadIdx.x == 0)
        arrived = 0;
    __syncthreads();
    if (threadIdx.x % 2)
        return;
    atomicAdd(&arrived, 1);
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = arrived;
}
SIM_KERNEL(early_exit);

extern "C" __global__ void votes(int *out)
{
    int any = __syncthreads_or(threadIdx.x == 5), all = __syncthreads_and(threadIdx.x < 5);
    out[threadIdx.x] = any + 2 * all + 4 * __syncthreads_count(threadIdx.x % 3 == 0);
}
SIM_KERNEL(votes);

// Where every thread believes it is.
extern "C" __global__ void whoami(unsigned *out)
{
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block << 16 | thread;
}
SIM_KERNEL(whoami);

extern "C" __global__ void atomics(int *i, unsigned *u, unsigned long long *l, float *f)
{
    atomicAdd(&i[0], 2);
    atomicMax(&i[1], (int)threadIdx.x);
    atomicMin(&i[2], -(int)threadIdx.x);
    atomicCAS(&u[0], threadIdx.x, threadIdx.x + 1);
    atomicExch(&u[1], 9u);
    atomicAdd(l, 1ull << 33);
    atomicAdd(f, 0.5f);
}
SIM_KERNEL(atomics);

// Known to nvcc only.
#ifdef __CUDACC__
extern "C" __global__ void unknown(const char *p, size_t n)
{
    if (n && p[0] == p[n - 1])
        counter = 0;
}
#endif
