/* SPDX-License-Identifier: Apache-2.0 */
/* JSON into a buffer of fixed size. Called by stats.c and remember.c at a process's end.
 * Rules: no malloc; what has no room is cut off and nothing is written beyond; the caller keeps room for what must not be lost. */
#ifndef SPILL_JSON_H
#define SPILL_JSON_H

struct spill_json {
    char *at, *end; /* where to go on; past the buffer */
};

__attribute__((format(printf, 2, 3)))
void spill_json(struct spill_json *t, const char *fmt, ...);
/* 0 <= value < 1000, with six digits behind the point. */
void spill_json_fraction(struct spill_json *t, double value);
/* Quoted; NULL is null. */
void spill_json_string(struct spill_json *t, const char *s);

#endif
