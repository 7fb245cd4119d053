/* SPDX-License-Identifier: Apache-2.0 */
/* The hook table and the environment table as data, for Python (documentation, tests). Linked into the cffi module only. */
#include <stddef.h>

#include "spillshim_abi.h"

static const struct { const char *symbol, *name; uint32_t version, flags; } hooks[] = {
#define HOOK(symbol, name, version, flags, pfn) { #symbol, name, version, flags },
#define HOOK_NVML(symbol) { #symbol, "", 0, 0 },
#define HOOK_LIBC(symbol) { #symbol, "", 0, 0 },
#include "shim/hooks.def"
};

static const struct { const char *name, *type, *def, *help; } vars[] = {
#define ENV(name, type, field, def, help) { "SPILLSHIM_" #name, #type, def, help },
#include "shim/config.def"
#undef ENV
};

uint32_t spill_hook_count(void) { return sizeof hooks / sizeof hooks[0]; }
const char *spill_hook_symbol(uint32_t i) { return i < spill_hook_count() ? hooks[i].symbol : NULL; }
const char *spill_hook_name(uint32_t i) { return i < spill_hook_count() ? hooks[i].name : NULL; }
uint32_t spill_hook_version(uint32_t i) { return i < spill_hook_count() ? hooks[i].version : 0; }
uint32_t spill_hook_flags(uint32_t i) { return i < spill_hook_count() ? hooks[i].flags : 0; }
uint32_t spill_env_count(void) { return sizeof vars / sizeof vars[0]; }
const char *spill_env_name(uint32_t i) { return i < spill_env_count() ? vars[i].name : NULL; }
const char *spill_env_type(uint32_t i) { return i < spill_env_count() ? vars[i].type : NULL; }
const char *spill_env_default(uint32_t i) { return i < spill_env_count() ? vars[i].def : NULL; }
const char *spill_env_help(uint32_t i) { return i < spill_env_count() ? vars[i].help : NULL; }
