/* SPDX-License-Identifier: Apache-2.0 */
/* Which way simgpu holds a belief that no GPU has confirmed yet. Included by whatever encodes such a belief.
 * SIMGPU_DOUBT= is a seed (every belief of doubt.def gets a branch drawn from it) or names: "id", "id=2", separated by
 * commas. Rules: the same value gives the same branches in every process; the doubted ones are said once, on stderr, by cuInit.
 */
#ifndef SIM_DOUBT_H
#define SIM_DOUBT_H

#include <stdbool.h>

enum sim_doubt {
#define SIM_DOUBT(name, id, branches, text) SIM_DOUBT_##name,
#include "doubt.def"
#undef SIM_DOUBT
    SIM_DOUBTS
};

/* The branch in force: 0 is the belief as BELIEFS.md has it. Cheap: one load. */
int sim_doubt(enum sim_doubt belief);

/* Reads SIMGPU_DOUBT; called once, by config.c. False, with a line on stderr: malformed. */
bool sim_doubt_parse(const char *text);
/* Name on stderr what is doubted; nothing when nothing is. Called by cuInit. */
void sim_doubt_say(void);

#endif
