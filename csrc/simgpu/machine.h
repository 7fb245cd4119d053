/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated machine: VRAM of each device and pinnable RAM, shared by all processes with the same SIMGPU_NAME.
 * Used by the driver (joins, charges) and by NVML (looks on). State is one file in /dev/shm, locked with flock, so
 * that the kernel lets go of the lock when a process is killed; a dead process' share is returned by the next caller.
 */
#ifndef SIM_MACHINE_H
#define SIM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SIM_MAX_DEVICES 8
#define SIM_RAM (-1) /* in place of a device number: the pinnable host memory */

/* Take a place in the machine. 0, or -1 (said on stderr): the file cannot be made, is full, or is in use by processes
 * with other sizes. */
int sim_machine_join(void);
/* Give back everything this process holds; the last one removes the file. Harmless when not joined. */
void sim_machine_leave(void);
/* Take `bytes` of a device's VRAM or of RAM; false when it does not hold that much more. */
bool sim_machine_charge(int tier, uint64_t bytes);
void sim_machine_return(int tier, uint64_t bytes);
/* Memory that several processes have: it counts as its owner's while that has it, then as long as anyone has it open.
 * `key` is a number that all of them know (sim_shared_key). Lending twice is harmless; borrowing is counted. */
void sim_machine_lend(uint64_t key, int tier, uint64_t bytes);
void sim_machine_unlend(uint64_t key); /* the owner frees it, and returns its bytes itself; harmless when it was not lent */
void sim_machine_borrow(uint64_t key, int tier, uint64_t bytes);
void sim_machine_unborrow(uint64_t key);
uint64_t sim_shared_key(int fd); /* of a file in memory, never 0 */
uint64_t sim_process_start(pid_t pid); /* in clock ticks; 0: it is gone, or as good as */
/* Bytes in use by all living processes, and the capacity. Works without having joined (then of the living machine, or
 * an empty one of the configured size). */
void sim_machine_usage(int tier, uint64_t *used, uint64_t *capacity);
/* Up to `room` processes with VRAM of `device`; returns how many there are. */
unsigned sim_machine_processes(int device, pid_t *pids, uint64_t *bytes, unsigned room);

#endif
