/* SPDX-License-Identifier: Apache-2.0 */
/* What a program needed is written into the folder SPILLSHIM_REMEMBER, and read from there when it runs again. `spillshim run` makes the
 * folder, one for each program and model (spillshim/remember.py reads the same files). Called by process.c.
 *
 * A file is one region that something had to be taken from: LIMIT-INDEX-SIZE.json (the VRAM of its device, its place among the regions
 * there from 0, and its bytes). So whoever allocates finds what is known of just this allocation, by name, and nothing where anything
 * differs; processes of one program that do different things have different files, those that do the same write the same.
 *
 * Rules: nothing here stops the program or makes it wait for more than a small file; a file that isn't whole, of another version or not
 * ours alone is as good as none; a file is replaced as a whole, there are never more than MAX_FILES. */
#ifndef SPILL_REMEMBER_H
#define SPILL_REMEMBER_H

#include <stdbool.h>

#include "tiering/tiering.h"

/* Whether SPILLSHIM_REMEMBER names a folder. */
bool spill_remember_wanted(void);
/* As struct spill_settings says. */
bool spill_remember_recall(uint64_t limit, uint32_t index, uint64_t size, struct spill_recall *out);
void spill_remember_rest(void);
/* The process ends; nothing is moved any more. */
void spill_remember_exit(void);

#endif
