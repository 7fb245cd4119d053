/* SPDX-License-Identifier: Apache-2.0 */
/* SIMGPU_TRACE=FILE: what a program asked of the driver, in the order in which it asked. Called by call.c and faults.c.
 *
 *   PID TID NS STREAM ENTRY            a call begins; these are all lines with five words
 *   PID TID NS STREAM ENTRY = RESULT   it ended, and not with CUDA_SUCCESS
 *   PID TID NS STREAM ENTRY ! FAULT    SIMGPU_FAULTS has struck
 *
 * NS is the calling thread's simulated time in nanoseconds. STREAM is the stream that the call names: its id (cuStreamGetId),
 * `legacy` or `thread` for a default stream, `?` for none that lives, `-` when the entry takes none. Calls of one entry by
 * another are not there. FILE is appended to, by all processes.
 * Rules: one write(2) a line, made before the entry runs: a call that never comes back is the last line of its thread. The
 * file is opened for each line, because programs close descriptors that they do not know.
 */
#define _GNU_SOURCE
#include "call.h"
#include "state.h"

#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *stream_word(CUstream handle, char room[24])
{
    if (!handle)
        return "-";
    if (handle == CU_STREAM_LEGACY)
        return "legacy";
    if (handle == CU_STREAM_PER_THREAD)
        return "thread";
    if (sim_ready()) /* after a fork the lock may be held by a thread that is not there */
        return "?";
    sim_take();
    const struct CUstream_st *s = sim_object(SIM_STREAM, (uint64_t)(uintptr_t)handle);
    if (s)
        snprintf(room, 24, "%llu", (unsigned long long)s->id);
    sim_give();
    return s ? room : "?";
}

static void line_of(const struct sim_call *c, char sign, const char *what)
{
    const char *path = sim_config()->trace;
    char line[400], room[24];
    if (!path[0])
        return;
    int n = snprintf(line, sizeof line, "%d %ld %llu %s %s%s%.*s%.*s\n", (int)getpid(), (long)syscall(SYS_gettid),
                     (unsigned long long)sim_host_now(), stream_word(c->stream, room), sim_entry_names[c->entry],
                     sign ? " " : "", sign ? 1 : 0, &sign, sign ? (int)(sizeof line / 2) : 0, what);
    if (n > 0 && (size_t)n < sizeof line)
        sim_append(path, line, (size_t)n);
}

void sim_trace_call(const struct sim_call *c)
{
    line_of(c, 0, "");
}

void sim_trace_result(const struct sim_call *c, CUresult r)
{
    char room[16], what[80];
    snprintf(what, sizeof what, " %s", sim_error_word(r, room));
    line_of(c, '=', what);
}

void sim_trace_fault(const struct sim_call *c, const char *what)
{
    char text[220];
    snprintf(text, sizeof text, " %s", what);
    line_of(c, '!', text);
}
