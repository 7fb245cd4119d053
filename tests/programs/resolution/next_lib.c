/* SPDX-License-Identifier: Apache-2.0 */
/* Two libraries that define the same function, the first calling the second's by RTLD_NEXT (what malloc wrappers do), and
 * a library that opens a neighbour through its own RUNPATH. Both need libc to see the library as the caller of dlsym and
 * dlopen, not the shim. -DFIRST, -DSECOND, -DOPENER, -DPROGRAM */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#if defined(FIRST)
static __thread int depth;
int twice(int x)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "twice");
    if (++depth > 4)
        return depth = 0, -1;
    int r = next ? next(x) : -2;
    depth = 0;
    return r;
}
#elif defined(SECOND)
int twice(int x)
{
    return 2 * x;
}
#elif defined(OPENER)
int open_neighbour(const char *name)
{
    return dlopen(name, RTLD_NOW) != NULL;
}
#else
int twice(int x);
int open_neighbour(const char *name);
int main(void)
{
    printf("twice\t%d\nneighbour\t%d\n", twice(21), open_neighbour("libneighbour.so"));
    return 0;
}
#endif
