/* SPDX-License-Identifier: Apache-2.0 */
/* The door to the real driver, as driver.h says. */
#include "shim/driver.h"

#include <sched.h>
#include <stdatomic.h>

#include "shim/resolve.h"

static struct spill_driver door;
static atomic_int state; /* 0 empty, 1 being filled, 2 CUDA filled */
static atomic_int nvml_state;

static void fill_cuda(void *(*lookup)(const char *, bool))
{
#define HOOK(symbol, name, version, flags, pfn) door.symbol = (pfn)lookup(#symbol, false);
#define HOOK_BY_NAME(symbol, pfn) door.symbol = (pfn)lookup(#symbol, false);
#include "shim/hooks.def"
#define DRIVER(symbol, pfn) door.symbol = (pfn)lookup(#symbol, false);
#include "shim/driver.def"
}

static void fill_nvml(void *(*lookup)(const char *, bool))
{
#define HOOK_NVML(symbol) door.symbol = (__typeof__(&symbol))lookup(#symbol, true);
#include "shim/hooks.def"
#define DRIVER_NVML(symbol) door.symbol = (__typeof__(&symbol))lookup(#symbol, true);
#include "shim/driver.def"
}

static void *from_real(const char *symbol, bool nvml)
{
    return spill_real_symbol(nvml ? SPILL_LIB_NVML : SPILL_LIB_CUDA, symbol);
}

/* Runs `fill` once. Not pthread_once: a library constructor may get here while another thread waits in the loader. */
static void once(atomic_int *which, void (*fill)(void *(*)(const char *, bool)))
{
    int expected = 0;
    if (__builtin_expect(atomic_load_explicit(which, memory_order_acquire) == 2, 1))
        return;
    if (atomic_compare_exchange_strong(which, &expected, 1)) {
        fill(from_real);
        atomic_store_explicit(which, 2, memory_order_release);
    } else {
        while (atomic_load_explicit(which, memory_order_acquire) != 2)
            sched_yield();
    }
}

const struct spill_driver *spill_driver(void)
{
    once(&state, fill_cuda);
    return &door;
}

const struct spill_driver *spill_driver_nvml(void)
{
    once(&nvml_state, fill_nvml);
    return &door;
}

void spill_driver_fill(void *(*lookup)(const char *symbol, bool nvml))
{
    fill_cuda(lookup);
    fill_nvml(lookup);
    atomic_store(&state, 2);
    atomic_store(&nvml_state, 2);
}
