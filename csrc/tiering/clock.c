/* SPDX-License-Identifier: Apache-2.0 */
/* What time it is. Called wherever a deadline or a pause is measured. A file of its own, because benchmarks/migration.py puts the
 * simulated GPU's clock in its place. */
#include "tiering/moving.h"

#include <time.h>

uint64_t spill_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
