// SPDX-License-Identifier: Apache-2.0
// Kernels that use the CUDA language widely: what simk.h must understand. nvcc makes the cubin of it, g++ the companion;
// test_simgpu_language.py launches each and knows the results.
#include <assert.h>
#include <stdint.h>
#include "simk.h"

__constant__ int table[4] = {10, 20, 30, 40};

// One word for each statement, in order.
extern "C" __global__ void integers(const unsigned *__restrict__ in, unsigned *__restrict__ out)
{
    unsigned v = __ldg(in + threadIdx.x), *o = out + 20 * threadIdx.x;
    *o++ = __popc(v);
    *o++ = __clz((int)v);
    *o++ = __ffs((int)v);
    *o++ = __brev(v);
    *o++ = __byte_perm(v, ~v, 0x3524);
    *o++ = __byte_perm(v, 0x80ff7f01u, 0xc0d4);
    *o++ = __umulhi(v, 0x9e3779b9u);
    *o++ = (unsigned)__mulhi((int)v, -3);
    *o++ = __funnelshift_l(v, ~v, 7);
    *o++ = __funnelshift_r(v, ~v, 40);
    *o++ = (unsigned)__dp4a((int)v, 0x01ff02fe, 5);
    *o++ = (unsigned)__sad((int)v, 7, 1u);
    *o++ = (unsigned)__popcll((unsigned long long)v << 17 | v);
    *o++ = (unsigned)__clzll((long long)v);
    *o++ = min(v, 100u) + max((int)v, 5);
    *o++ = table[v % 4];
    *o++ = (unsigned)__float2int_rn(__int_as_float(0x40200000) * (float)(v % 1000)); // 2.5 times
    *o++ = (unsigned)__float2int_rz(-1.5f * (float)(v % 1000));
    *o++ = (unsigned)__float_as_int(__saturatef((float)v / 4294967296.0f));
    *o++ = (unsigned)__float2int_rn(3e10f);
}
SIM_KERNEL(integers);

extern "C" __global__ void floats(const float *in, float *out)
{
    float v = in[threadIdx.x], s, c, *o = out + 8 * threadIdx.x;
    __sincosf(v, &s, &c);
    o[0] = rsqrtf(v);
    o[1] = __expf(v);
    o[2] = __logf(v);
    o[3] = s * s + c * c;
    o[4] = __fdividef(1, v);
    o[5] = __fmaf_rn(v, v, 1);
    o[6] = fmaxf(v, 2) + __powf(v, 0.5f);
    o[7] = (float)rsqrt((double)v);
}
SIM_KERNEL(floats);

struct __align__(16) Packed {
    float4 a;
    int2 b;
    short3 c;
};

extern "C" __global__ void __launch_bounds__(64) vectors(Packed p, float4 *out, uint3 *where)
{
    uint3 me = threadIdx;
    dim3 block = blockDim;
    float4 v = make_float4(p.a.x + me.x, p.a.y, p.a.z, (float)block.x);
    int2 w = make_int2(p.b.x, p.b.y);
    v.y += (float)(w.x * w.y);
    v.z += (float)make_short3(p.c.x, p.c.y, p.c.z).z;
    out[me.x] = v;
    where[me.x] = make_uint3(me.x, gridDim.x, (unsigned)sizeof(Packed));
}
SIM_KERNEL(vectors);

template <typename T, int N> __device__ T power(T v)
{
    T r = 1;
#pragma unroll
    for (int i = 0; i < N; i++)
        r *= v;
    return r;
}
template <typename T, int N> __global__ void powers(T *p)
{
    p[threadIdx.x] = power<T, N>(p[threadIdx.x]);
}
#ifdef __CUDACC__
template __global__ void powers<long long, 3>(long long *);
#endif
SIM_KERNEL((powers<long long, 3>));

extern "C" __global__ void more_atomics(unsigned *u, long long *l, double *d, float *f)
{
    atomicInc(&u[0], 9u);
    atomicDec(&u[1], 9u);
    atomicSub(&u[2], 3u);
    atomicXor(&u[3], 1u << threadIdx.x % 32);
    atomicOr_block(&u[4], 1u << threadIdx.x % 32);
    atomicAnd_system(&u[5], ~(1u << threadIdx.x % 32));
    atomicAdd((unsigned long long *)&l[0], 1ull << 33);
    atomicMax(&l[1], (long long)threadIdx.x - 5);
    atomicMin(&l[2], -(long long)threadIdx.x);
    atomicAdd(d, 0.25);
    atomicAdd_system(f, 0.5f);
    atomicExch(&f[1], 2.5f);
}
SIM_KERNEL(more_atomics);

// The sum of each warp by shuffles, and of the block by shared memory; every thread gets both.
extern "C" __global__ void warp_sums(const int *in, int *warp, int *block)
{
    __shared__ int part[32];
    unsigned lane = threadIdx.x % 32, full = 0xffffffffu;
    int v = in[threadIdx.x];
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(full, v, d);
    warp[threadIdx.x] = v;
    if (lane == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x < blockDim.x / 32 ? part[lane] : 0;
    if (threadIdx.x < 32)
        for (int d = 16; d; d /= 2)
            v += __shfl_down_sync(full, v, d);
    if (threadIdx.x == 0)
        part[0] = v;
    __syncthreads();
    block[threadIdx.x] = part[0];
}
SIM_KERNEL(warp_sums);

// 16 words for each thread of a block of 64.
extern "C" __global__ void warp_functions(unsigned *out)
{
    unsigned t = threadIdx.x, lane = t % 32, full = 0xffffffffu, *o = out + 16 * t;
    int all;
    o[0] = __shfl_sync(full, t, 5);
    o[1] = __shfl_sync(full, t, (int)lane + 1, 8); // within rows of eight
    o[2] = __shfl_up_sync(full, t, 3);
    o[3] = __shfl_down_sync(full, t, 2, 4);
    o[4] = (unsigned)__shfl_sync(full, 1.5 * t, 31) * 2;
    o[5] = __ballot_sync(full, t % 3 == 0);
    o[6] = (unsigned)__any_sync(full, t == 40) + 2u * (unsigned)__all_sync(full, t < 32);
    o[7] = __match_any_sync(full, t / 10);
    o[8] = __match_all_sync(full, t / 32, &all);
    o[8] += (unsigned)all;
    if (lane < 8) { // a part of the warp
        o[9] = __shfl_xor_sync(0xffu, t, 1);
        __syncwarp(0xffu);
        o[10] = __reduce_add_sync(0xffu, t);
    } else {
        o[9] = __ballot_sync(0xffffff00u, 1);
        o[10] = __reduce_max_sync(0xffffff00u, t);
    }
    o[11] = (unsigned)__reduce_min_sync(full, -(int)t);
    __syncthreads();
    o[12] = out[16 * (63 - t)]; // word 0 of the thread at the other end
    if (lane >= 20)
        return; // those who have returned are not waited for
    o[13] = __popc(__ballot_sync(0xfffffu, 1));
    o[14] = __shfl_sync(0xfffffu, t, 19);
    o[15] = (unsigned)__reduce_xor_sync(0xfffffu, t);
}
SIM_KERNEL(warp_functions);

extern "C" __global__ void two_dimensional(int *out)
{
    unsigned t = threadIdx.x + blockDim.x * threadIdx.y;
    out[t] = __shfl_sync(0xffffffffu, (int)(threadIdx.y * 100 + threadIdx.x), 31);
}
SIM_KERNEL(two_dimensional);

// What goes wrong.
extern "C" __global__ void asserts(int v)
{
    assert(v != 3 && "a number but three");
}
SIM_KERNEL(asserts);

extern "C" __global__ void traps(void)
{
    __trap();
}
SIM_KERNEL(traps);

extern "C" __global__ void divides(int *p, int by)
{
    *p = 7 / by;
}
SIM_KERNEL(divides);

__device__ __noinline__ int deep(volatile int *p, int n)
{
    volatile char room[1000];
    room[n % 1000] = (char)n;
    return n ? deep(p, n - 1) + room[n % 1000] : *p;
}
extern "C" __global__ void overflows(int *p, int depth, int meet)
{
    if (meet)
        __syncthreads(); // from here on on a fiber's stack
    *p = deep(p, depth);
}
SIM_KERNEL(overflows);

// Lane 0 waits for a thread that waits for the block.
extern "C" __global__ void never_meets(void)
{
    if (threadIdx.x == 0)
        __syncwarp(3);
    else
        __syncthreads();
}
SIM_KERNEL(never_meets);

extern "C" __global__ void empty(void) {}
SIM_KERNEL(empty);
