/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's life in a process: off, started at the first call that could manage memory, summary at exit. Called by
 * hook_*.c. Rules: a process that never gets here has no thread, file or memory segment of ours. */
#ifndef SPILL_PROCESS_H
#define SPILL_PROCESS_H

#include <stdbool.h>

#include "tiering/tiering.h"

/* The hooks are visible symbols of the library, and the allocator (allocator.h); nothing else is. */
#define SPILL_EXPORT __attribute__((visibility("default")))

/* False when every call must pass through untouched: switched off, or the child of a process that used CUDA. The first
 * true starts the engine. */
bool spill_on(void);

/* True once spill_on() has started the engine; what only concerns managed memory returns early before. */
bool spill_started(void);

/* An out-of-memory is about to be answered to the program: count it. */
CUresult spill_answer_oom(void);

/* The backend probe, in a child process (probe.c). */
void spill_probe_run(int device, struct spill_probe_result *out);

/* Write the statistics line and the summary (stats.c); called once, at exit. */
void spill_stats_report(bool engine_started);

/* What the summary will say of `device`, its PCI address for one, is asked while the driver is still up; the first call
 * counts (stats.c). */
void spill_stats_learn(int device);

#endif
