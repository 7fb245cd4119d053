/* SPDX-License-Identifier: Apache-2.0 */
/* The test switch of the resolution fixes: `SPILL_FIX(tail_jump)` is 1 in what we ship. A test-only build
 * (-DSPILL_TEST_BREAKS=1) makes it 0 when SPILLSHIM_TEST_BREAK names the fix, so that each trap's test can show that it
 * fails without the fix. Used by resolve*.c and getproc.c.
 * Rules: usable before constructors have run, so no libc call. */
#ifndef SPILL_TESTBREAK_H
#define SPILL_TESTBREAK_H

#ifdef SPILL_TEST_BREAKS

#include "shim/elfwalk.h"

extern char **environ;

/* Whether SPILLSHIM_TEST_BREAK=name[,name] holds `name`. */
SPILL_EARLY static inline int spill_test_broken(const char *name)
{
    for (char **e = environ; e && *e; e++) {
        const char *list = spill_str_after(*e, "SPILLSHIM_TEST_BREAK=");
        while (list && *list) {
            const char *rest = spill_str_after(list, name);
            if (rest && (*rest == 0 || *rest == ','))
                return 1;
            while (*list && *list != ',')
                list++;
            list += *list == ',';
        }
    }
    return 0;
}

#define SPILL_FIX(name) (!spill_test_broken(#name))
#else
#define SPILL_FIX(name) 1
#endif

#endif
