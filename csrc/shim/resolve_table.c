/* SPDX-License-Identifier: Apache-2.0 */
/* hooks.def as data for the look-ups, as resolve.h says. A row whose function hasn't got the row's PFN type does not
 * compile: its address would be of type void. */
#include "shim/driver.h"
#include "shim/elfwalk.h"
#include "shim/resolve.h"

#define TYPED(symbol, pfn) \
    __builtin_choose_expr(__builtin_types_compatible_p(pfn, __typeof__(&symbol)), (void *)symbol, (void)0)

/* The bodies of these are in trigger.S. Where a header declares one otherwise than its row says, this does not compile. */
#define TRIGGER(symbol, name, version, flags, pfn, why) extern __typeof__(*(pfn)0) symbol;
#define HOOK_BY_NAME(symbol, pfn) extern __typeof__(*(pfn)0) symbol;
#include "shim/hooks.def"

const struct spill_hook spill_hooks[] = {
#define HOOK(symbol, name, version, flags, pfn) { #symbol, name, version, flags, SPILL_LIB_CUDA, TYPED(symbol, pfn) },
#define HOOK_AGAIN(symbol, name, version, flags, pfn) HOOK(symbol, name, version, flags, pfn)
#define HOOK_BY_NAME(symbol, pfn) { #symbol, NULL, 0, 0, SPILL_LIB_CUDA, TYPED(symbol, pfn) },
#define HOOK_NVML(symbol) { #symbol, NULL, 0, 0, SPILL_LIB_NVML, (void *)symbol },
#include "shim/hooks.def"
};
const unsigned spill_hook_rows = sizeof spill_hooks / sizeof spill_hooks[0];

SPILL_EARLY const struct spill_hook *spill_hook_of_symbol(const char *symbol)
{
    for (unsigned i = 0; i < spill_hook_rows; i++)
        if (spill_str_equal(spill_hooks[i].symbol, symbol))
            return &spill_hooks[i];
    return NULL;
}
