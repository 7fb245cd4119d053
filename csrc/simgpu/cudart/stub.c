/* SPDX-License-Identifier: Apache-2.0 */
/* What a runtime entry without a body does: it names itself and fails. Called by the generated rt_stubs.c. */
#include "calls.h"
#include "rt.h"

int rt_stub(const char *name);

int rt_stub(const char *name)
{
    sim_stub_called(name);
    return rt_note(cudaErrorNotSupported);
}
