/* SPDX-License-Identifier: Apache-2.0 */
/* The frame around every entry of the driver: what happens before and after the entry's own code when calls are traced
 * (SIMGPU_TRACE) or faulted (SIMGPU_FAULTS). Included by the generated entries.c, trace.c and faults.c.
 * Rules: with neither on a frame costs a load and a branch; calls that entries make among themselves pass no frame.
 */
#ifndef SIM_CALL_H
#define SIM_CALL_H

#include "sim.h"

#include <stdatomic.h>

struct sim_call {
    struct sim_call *outer; /* that this thread is in too: a callback may ask the driver */
    unsigned entry;   /* index in sim_entry_names */
    CUstream stream;  /* that the call names; CU_STREAM_LEGACY and _PER_THREAD for the default ones; NULL: it names none */
    CUresult answer;  /* of a call that is refused before its code runs */
    CUresult lost;    /* an answer that takes the place of the real one */
    CUresult queued;  /* what the operation that the call queues will end with */
};

extern const char *const sim_entry_names[]; /* sorted */
extern const unsigned sim_entry_count;
int sim_is_stub(unsigned index); /* nobody has written its code (generated) */
const char *simgpu_entry(unsigned index, int *stub);

extern atomic_uint sim_watch; /* not 0: calls are traced or faulted, or nobody has looked yet */
static inline bool sim_watched(void)
{
    return __builtin_expect(atomic_load_explicit(&sim_watch, memory_order_relaxed) != 0, 0);
}

#define SIM_NO_STREAM ((CUstream)0)
static inline CUstream sim_stream_named(CUstream s, bool per_thread)
{
    return s ? s : per_thread ? CU_STREAM_PER_THREAD : CU_STREAM_LEGACY;
}

/* Begin a watched call of this thread. False: its code must not run, the answer is c->answer. */
bool sim_call_begin(struct sim_call *c, unsigned entry, CUstream stream);
/* End it, with what its code answered; gives what the program gets. */
CUresult sim_call_end(struct sim_call *c, CUresult r);
/* The watched call that this thread is in, or NULL. */
struct sim_call *sim_call_now(void);

/* trace.c: a line for the call; one more when it failed; one for each fault put in. */
void sim_trace_call(const struct sim_call *c);
void sim_trace_result(const struct sim_call *c, CUresult r);
void sim_trace_fault(const struct sim_call *c, const char *what);

/* The entry's name of `r` without "CUDA_ERROR_", or its number (driver.c). `room`: what a number is written to. */
const char *sim_error_word(CUresult r, char room[16]);

#endif
