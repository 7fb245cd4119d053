/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger: what all processes of one user hold in VRAM and in pinned RAM. Called by tiering/budget.c (the owner's
 * side) and by the cffi module (spill_ledger_read).
 * Rules: the file is made at the first join, never before; it is trusted only if it and its folder belong to us and
 * nobody else can write them; every value read from another process's slot is a report, bounded before use. */
#ifndef SPILL_LEDGER_H
#define SPILL_LEDGER_H

#include <stdbool.h>
#include <stddef.h>

#include "spillshim_abi.h"

struct spill_ledger {
    struct spill_ledger_file *file; /* NULL until joined */
    struct spill_ledger_slot *own;  /* NULL until joined, or when all slots are taken */
    int fd;
};

/* Default folder of the ledger into `out`: /dev/shm/spillshim-UID. */
void spill_ledger_default_dir(char *out, size_t size);

/* Open (making it if needed) the ledger in `dir` (NULL or "": the default) and claim a slot for this process.
 * 0 or an errno; a failed join leaves `ledger` empty and usable (nothing is shared then). Nobody leaves: the slot is the
 * process's until it is gone, and its memory with it. */
int spill_ledger_join(struct spill_ledger *ledger, const char *dir, uint64_t job);

/* In the child of a fork: let go of the parent's slot without touching it. */
void spill_ledger_abandon(struct spill_ledger *ledger);

/* Exclusive lock for admissions. Slots of dead processes are freed by the locker. */
void spill_ledger_lock(struct spill_ledger *ledger);
void spill_ledger_unlock(struct spill_ledger *ledger);

/* Sums over live slots; `job` and `device_key` select what vram_of_job and ram_on_device count. No lock needed. */
void spill_ledger_sum(const struct spill_ledger *ledger, uint64_t job, uint64_t device_key, struct spill_ledger_sum *out);

/* The same from the file in `dir`, for a process that has not joined; zeros where there is none. */
void spill_ledger_peek(const char *dir, uint64_t job, uint64_t device_key, struct spill_ledger_sum *out);

#endif
