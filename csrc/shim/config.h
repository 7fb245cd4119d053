/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's settings, read once from the environment (table: config.def). Called from all of shim/; tiering/ gets a
 * struct spill_settings instead (process.c), because it knows no environment.
 * Rules: usable before constructors have run and from any thread; no malloc; a malformed value is named once in the log
 * and replaced by its default, because a guest must not stop the program. `spillshim run` refuses it beforehand. */
#ifndef SPILL_CONFIG_H
#define SPILL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

enum { SPILL_TEXT_MAX = 256 };

/* A size or a share. `set` is false where the variable was empty. */
struct spill_amount {
    bool set;
    bool percent;
    double value; /* bytes, or 0..100 */
};

typedef bool spill_BOOL;
typedef struct spill_amount spill_AMOUNT;
typedef int spill_CHOICE;
typedef char spill_TEXT[SPILL_TEXT_MAX];

struct spill_config {
#define ENV(name, type, field, def, help) spill_##type field;
#include "shim/config.def"
#undef ENV
};

enum { SPILL_REPORT_VRAM, SPILL_REPORT_VIRTUAL };
enum { SPILL_OOM_NEVER, SPILL_OOM_SOFT };
enum { SPILL_MOVES_AUTO, SPILL_MOVES_ORDER, SPILL_MOVES_OFF };

const struct spill_config *spill_config(void);

/* Bytes of `a`, a percentage taken of `whole`; `fallback` where it isn't set. */
uint64_t spill_amount_bytes(const struct spill_amount *a, uint64_t whole, uint64_t fallback);

/* Log unknown SPILLSHIM_* names and malformed values, once; called at the first managed allocation. */
void spill_config_complain(void);

#endif
