/* SPDX-License-Identifier: Apache-2.0 */
/* Which entries of the libraries above the driver (runtime, cuBLAS) a program called. Called by every such entry.
 * SIMGPU_CALLS names a file that gets each name once a process; SIMGPU_STUB_LOG one for the names of those without a body.
 */
#ifndef SIM_CALLS_H
#define SIM_CALLS_H

/* `name` must be a literal: its address identifies it. Neither changes errno. */
void sim_called(const char *name);
/* The same for an entry that is not implemented, which is named on stderr too. */
void sim_stub_called(const char *name);
/* One line on stderr for each name. */
void sim_say_once(const char *name, const char *what);

#endif
