/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of the simulated GPU as one struct, read from the environment once. Used by the driver and by NVML.
 * Rules: no other file calls getenv for SIMGPU_*.
 */
#ifndef SIM_CONFIG_H
#define SIM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SIM_HOST_VMM_NUMA, SIM_HOST_VMM_HOST, SIM_HOST_VMM_NONE, SIM_HOST_VMM_CRASH };
enum { SIM_MIXED_AUTO, SIM_MIXED_REFUSE, SIM_MIXED_ALLOW };
enum { SIM_OVERLAP_AUTO, SIM_OVERLAP_NO, SIM_OVERLAP_YES };
enum { SIM_PEERS_YES, SIM_PEERS_NO };
enum { SIM_CLOCK_SIMULATED, SIM_CLOCK_REAL };
enum { SIM_UNKNOWN_NOOP, SIM_UNKNOWN_PROBE, SIM_UNKNOWN_FAIL };

enum { SIM_VMM_CREATE, SIM_VMM_MAP, SIM_VMM_ACCESS, SIM_VMM_UNMAP, SIM_VMM_RESERVE, SIM_VMM_COSTS };

struct sim_config {
#define SIM_SIZE(field, var, def, doc) uint64_t field;
#define SIM_COUNT(field, var, def, lo, hi, doc) int field;
#define SIM_CHOICE(field, var, def, words, doc) int field;
#define SIM_TEXT(field, var, def, doc) const char *field;
#include "config.def"
#undef SIM_SIZE
#undef SIM_COUNT
#undef SIM_CHOICE
#undef SIM_TEXT
    uint64_t vmm_ns[SIM_VMM_COSTS]; /* from vmm */
    bool bad; /* a value was malformed; said on stderr; cuInit and nvmlInit fail */
};

/* The settings; parsed at the first call. Never NULL. */
const struct sim_config *sim_config(void);

/* Append a line of n bytes to a log file (stub_log.c). */
void sim_append(const char *path, const char *line, size_t n);

/* A stub was called: it is named on stderr and in SIMGPU_STUB_LOG, once (stub_log.c). `library`: "driver" or "NVML". */
void sim_stub_reached(const char *name, const char *library);

/* A decimal number without sign or exponent, as the C locale writes it whatever the program's is. */
double sim_decimal(const char *text, char **end);

/* One line on stderr, "simgpu: ...", as a single write(2). */
void sim_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
