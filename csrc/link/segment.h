/* SPDX-License-Identifier: Apache-2.0 */
/* The segment: what a process tells of itself, in shared memory that others may map. Written by tiering/stats.c and by the
 * worker (shim/control.c); read through the cffi module (spill_segment_read).
 * Rules: made at the first managed allocation, never before; where there is no memory for it the same is written to a static
 * one that nobody sees, and the program notices nothing; nothing in it is ever read to decide something. */
#ifndef SPILL_SEGMENT_H
#define SPILL_SEGMENT_H

#include "spillshim_abi.h"

/* This process's. Never NULL; not to be kept over an allocation or a fork. */
struct spill_segment_file *spill_segment(void);
/* Make the shared one; what has been counted so far comes along. Under the lock of those who count. 0 or an errno. */
int spill_segment_make(uint64_t job);
/* Its descriptor, -1 where there is none. */
int spill_segment_fd(void);
/* In the child of a fork: the parent's is left alone, the child counts for itself. */
void spill_segment_abandon(void);

/* What it says of now. `why` is cut where it doesn't fit. */
void spill_segment_publish(enum spill_state state, const char *why, uint64_t vram, uint64_t ram, uint64_t managed,
                           uint64_t regions);

/* Around a change of several fields. Short: whoever else has something to write waits. */
void spill_segment_begin(void);
void spill_segment_end(void);

#endif
