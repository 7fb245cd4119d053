/* SPDX-License-Identifier: Apache-2.0 */
/* Simulated host time: one clock per thread. Called by whatever costs host time (launches, memory management), and by sched.c,
 * which moves a thread on to the end of what it waited for.
 * Rules: a thread's clock starts at 0 and never goes back. No thread reads another's: they meet only in what both touch (a
 * stream's newest submission, an event's recording, a finished task), in the manner of Lamport's clocks. So one thread's times
 * depend on its own calls alone, and of two threads those that one of them waited for come first.
 * Host work that is no CUDA call takes no time.
 */
#include "state.h"

static _Thread_local uint64_t now_ns;

uint64_t sim_host_now(void)
{
    return now_ns;
}

void sim_host_reach(uint64_t ns)
{
    if (ns > now_ns)
        now_ns = ns;
}

void sim_host_spend(uint64_t ns)
{
    now_ns += ns;
}
