/* SPDX-License-Identifier: Apache-2.0 */
/* SIMGPU_FAULTS: calls that fail, are late, lose their answer or die, as asked. See faults.c for the grammar.
 * Included by call.c, driver.c and the few places where a fault strikes inside an entry.
 * Rules: a fault that refuses a call strikes before the entry's code, so the driver's state is as before; one at a site makes
 * the driver itself unwind.
 */
#ifndef SIM_FAULTS_H
#define SIM_FAULTS_H

#include "call.h"

/* Read SIMGPU_FAULTS; call.c does so before the first call. */
void sim_faults_read(void);
bool sim_faults_any(void);
/* False: malformed, and said on stderr; cuInit fails. */
bool sim_faults_ok(void);

/* Apply the rules that name this call: sets its answer, lost or queued, sleeps, or does not return. */
void sim_fault_call(struct sim_call *c);

/* True: what the driver takes here, for the call that this thread is in, must fail. */
enum sim_site { SIM_SITE_ENTRY, SIM_SITE_VRAM, SIM_SITE_RAM, SIM_SITE_HEAP, SIM_SITE_UNMAP };
bool sim_fault_site(enum sim_site site);

/* The operation as the call queues it: `op`, or one that ends with the fault's code instead of running. */
struct sim_op sim_fault_op(struct sim_op op);
/* The operation itself, whichever of the two it is: what is asked for its parameters. */
const struct sim_op *sim_fault_inner(const struct sim_op *op);

/* "after-unmap": a range was unmapped (successfully); may a map or an access grant of this range go ahead? */
void sim_fault_unmapped(uint64_t base, uint64_t size);
CUresult sim_fault_after_unmap(bool grant, uint64_t base, uint64_t size);

/* CUDA_SUCCESS: no result has this name (with or without "CUDA_ERROR_") or number (driver.c). */
CUresult sim_error_named(const char *word, size_t n);

#endif
