/* SPDX-License-Identifier: Apache-2.0 */
/* The hook table and the tables of environment variables (SPILLSHIM_*, SIMGPU_*) as data, for Python (documentation, tests). Linked into the cffi module only. */
#include <stddef.h>

#include "spillshim_abi.h"

static const struct { const char *symbol, *name; uint32_t version, flags; } hooks[] = {
#define HOOK(symbol, name, version, flags, pfn) { #symbol, name, version, flags },
#define HOOK_AGAIN(symbol, name, version, flags, pfn) HOOK(symbol, name, version, flags, pfn)
#define HOOK_BY_NAME(symbol, pfn) { #symbol, "", 0, 0 },
#define HOOK_NVML(symbol) { #symbol, "", 0, 0 },
#define HOOK_LIBC(symbol) { #symbol, "", 0, 0 },
#include "shim/hooks.def"
};

static const struct { const char *name, *type, *def, *help; } vars[] = {
#define ENV(name, type, field, def, help) { "SPILLSHIM_" #name, #type, def, help },
#include "shim/config.def"
#undef ENV
};

static const struct { const char *name, *kind, *def, *values, *help; } sim_vars[] = {
#define SIM_SIZE(field, var, def, help) { var, "size", def, "", help },
#define SIM_COUNT(field, var, def, lo, hi, help) { var, "count", def, #lo ".." #hi, help },
#define SIM_CHOICE(field, var, def, words, help) { var, "choice", def, words, help },
#define SIM_TEXT(field, var, def, help) { var, "text", def, "", help },
#include "simgpu/config.def"
#undef SIM_SIZE
#undef SIM_COUNT
#undef SIM_CHOICE
#undef SIM_TEXT
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
uint32_t spill_sim_count(void) { return sizeof sim_vars / sizeof sim_vars[0]; }
const char *spill_sim_name(uint32_t i) { return i < spill_sim_count() ? sim_vars[i].name : NULL; }
const char *spill_sim_kind(uint32_t i) { return i < spill_sim_count() ? sim_vars[i].kind : NULL; }
const char *spill_sim_default(uint32_t i) { return i < spill_sim_count() ? sim_vars[i].def : NULL; }
const char *spill_sim_values(uint32_t i) { return i < spill_sim_count() ? sim_vars[i].values : NULL; }
const char *spill_sim_help(uint32_t i) { return i < spill_sim_count() ? sim_vars[i].help : NULL; }
