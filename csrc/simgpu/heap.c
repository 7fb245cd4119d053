/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's own heap, so that SIMGPU_FAULTS can exhaust it (site `heap`): the linker sends every malloc, calloc, realloc and
 * strdup of the driver here (--wrap). Rule: with no fault on, a load and a branch more than the C library's.
 */
#include "faults.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *p, size_t n);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__wrap_realloc(void *p, size_t n);
char *__wrap_strdup(const char *text);

static bool exhausted(void)
{
    if (!sim_watched() || !sim_fault_site(SIM_SITE_HEAP))
        return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t n)
{
    return exhausted() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t count, size_t n)
{
    return exhausted() ? NULL : __real_calloc(count, n);
}

void *__wrap_realloc(void *p, size_t n)
{
    return exhausted() ? NULL : __real_realloc(p, n);
}

char *__wrap_strdup(const char *text)
{
    return exhausted() ? NULL : __real_strdup(text);
}
