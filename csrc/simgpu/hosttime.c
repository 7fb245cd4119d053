/* SPDX-License-Identifier: Apache-2.0 */
/* Simulated host time: one clock per thread. Called by whatever costs host time (launches, memory management), and by sched.c,
 * which moves a thread on to the end of what it waited for.
 * Rules: a thread's clock starts at 0 and never goes back. No thread reads another's: they meet only in what both touch (a
 * stream's newest submission, an event's recording, a finished task, the memory map), in the manner of Lamport's clocks. So one
 * thread's times depend on its own calls alone, and what one thread waited for another to do is over by its clock too.
 * Host work that is no CUDA call takes no time.
 * SIMGPU_CLOCK=real: what is spent is really waited for too; the clock does not change by that.
 */
#include "state.h"

#include <errno.h>
#include <time.h>

#define SPIN_NS 100000u /* a sleep wakes up some 50 us late: the last of it is spun */

static _Thread_local uint64_t now_ns;
static _Atomic uint64_t memory_ns; /* end of the last call that changed the memory map */

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
    uint64_t last = atomic_load(&memory_ns);
    while (last < now_ns && !atomic_compare_exchange_weak(&memory_ns, &last, now_ns)) {
    }
    if (ns && sim_config()->clock == SIM_CLOCK_REAL)
        sim_real_until(sim_real_ns() + ns);
}

void sim_host_meet_memory(void)
{
    sim_host_reach(atomic_load(&memory_ns));
}

uint64_t sim_real_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void sim_real_until(uint64_t ns)
{
    if (sim_real_ns() + SPIN_NS < ns) {
        struct timespec t = {(time_t)((ns - SPIN_NS) / 1000000000u), (long)((ns - SPIN_NS) % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
        }
    }
    while (sim_real_ns() < ns) {
    }
}
