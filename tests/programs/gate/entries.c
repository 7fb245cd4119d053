/* SPDX-License-Identifier: Apache-2.0 */
/* Which hooks are inside the gate when they call the driver? Calls the hooks that it is linked with, each with arguments that are
 * all zero, on a driver whose entries only note how deep in the gate the calling thread is. Built and run by
 * tests/unit/test_gate_entries.py.
 *
 * Prints "SYMBOL DEPTH LEFT" for every row of hooks.def whose hook is linked in: the depth at which the driver's entry of that
 * name was called (-1: never), and the depth afterwards. */
#include <stdio.h>
#include <string.h>

#include "shim/hook.h"
#include "shim/resolve.h"

/* ---- what the hooks need from outside ---- */

void *spill_real_symbol(enum spill_lib lib, const char *symbol) { return (void)lib, (void)symbol, NULL; }
/* The hooks take their long way. */
bool spill_started(void) { return true; }
bool spill_on(void) { return true; }

/* ---- the driver ---- */

static const char *called; /* the hook's own symbol */
static int depth_then;

static int depth(void)
{
    return spill_gate_mine ? (int)atomic_load(&spill_gate_mine->inside) : 0;
}

static CUresult note(const char *symbol)
{
    if (!strcmp(symbol, called))
        depth_then = depth();
    return CUDA_ERROR_INVALID_VALUE; /* so that no hook looks for what a success would have left behind */
}

#define HOOK(symbol, name, version, flags, pfn) \
    static CUresult driver_##symbol(void) { return note(#symbol); }
#include "shim/hooks.def"
#define DRIVER(symbol, pfn) \
    static CUresult driver_##symbol(void) { return note(#symbol); }
#include "shim/driver.def"

static void *look_up(const char *symbol, bool nvml)
{
    if (nvml)
        return NULL;
#define HOOK(name, base, version, flags, pfn) \
    if (!strcmp(symbol, #name))               \
        return (void *)driver_##name;
#include "shim/hooks.def"
#define DRIVER(name, pfn)       \
    if (!strcmp(symbol, #name)) \
        return (void *)driver_##name;
#include "shim/driver.def"
    return NULL;
}

#define HOOK(symbol, name, version, flags, pfn) extern __typeof__(*(pfn)0) symbol __attribute__((weak));
#include "shim/hooks.def"

static const struct {
    const char *symbol;
    void *hook; /* NULL: not linked in */
} hooks[] = {
#define HOOK(symbol, name, version, flags, pfn) { #symbol, (void *)symbol },
#include "shim/hooks.def"
};

typedef CUresult (*any_hook)(long, long, long, long, long, long, long, long, long, long, long, long);

int main(void)
{
    static const struct spill_settings nothing_moves;
    spill_driver_fill(look_up);
    spill_engine_start(&nothing_moves);
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++) {
        if (!hooks[i].hook)
            continue;
        called = hooks[i].symbol;
        depth_then = -1;
        ((any_hook)hooks[i].hook)(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        printf("%s %d %d\n", called, depth_then, depth());
    }
    return 0;
}
