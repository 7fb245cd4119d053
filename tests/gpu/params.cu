/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels of the parameter and the hook experiment: one with parameters of every kind, and empty ones with few and with
 * many parameters. Launched by params.c and hook.c; compiled by nvcc into params.ptx and, as C, into params.simk.so.
 */
#include "params.h"

#include <simk.h>

#ifdef __cplusplus
#define KERNEL extern "C" __global__ void
#else
#define KERNEL __global__ void
#endif

/* Two pointers hidden in a struct passed by value, between parameters that need padding. */
KERNEL par_mixed(unsigned char flag, struct pair_of_pointers two, unsigned short small, unsigned long long *out, int last)
{
    if (threadIdx.x == 0 && blockIdx.x == 0)
        *out = *two.first + *two.second + two.count + flag + small + (unsigned long long)last;
}

KERNEL par_empty0(void)
{
}

KERNEL par_empty8(void *a, void *b, void *c, void *d, int e, int f, float g, unsigned long long h)
{
}

KERNEL par_empty16(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h, int i, int j, int k, int l,
                   float m, float n, unsigned long long o, unsigned long long p)
{
}

SIM_KERNEL(par_mixed, unsigned char, struct pair_of_pointers, unsigned short, unsigned long long *, int);
SIM_KERNEL(par_empty0);
SIM_KERNEL(par_empty8, void *, void *, void *, void *, int, int, float, unsigned long long);
SIM_KERNEL(par_empty16, void *, void *, void *, void *, void *, void *, void *, void *, int, int, int, int, float, float,
           unsigned long long, unsigned long long);
