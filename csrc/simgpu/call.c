/* SPDX-License-Identifier: Apache-2.0 */
/* What a watched call does before and after its entry's own code: see call.h. Called by the generated entries.c.
 * Rule: static TLS is scarce (a companion needs some too), so a call lies on the stack of its frame.
 */
#include "call.h"

#include "config.h"
#include "faults.h"

#include <pthread.h>

static _Thread_local struct sim_call *inner; /* the call that this thread is in */

atomic_uint sim_watch = 1;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void look(void)
{
    sim_faults_read();
    atomic_store(&sim_watch, sim_config()->trace[0] || sim_faults_any());
}

struct sim_call *sim_call_now(void)
{
    return inner;
}

bool sim_call_begin(struct sim_call *c, unsigned entry, CUstream stream)
{
    pthread_once(&once, look);
    *c = (struct sim_call){.outer = inner, .entry = entry, .stream = stream};
    inner = c;
    sim_trace_call(c);
    sim_fault_call(c);
    return !c->answer;
}

CUresult sim_call_end(struct sim_call *c, CUresult r)
{
    inner = c->outer;
    if (c->lost)
        r = c->lost;
    if (r)
        sim_trace_result(c, r);
    return r;
}
