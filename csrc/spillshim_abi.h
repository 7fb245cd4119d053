/* SPDX-License-Identifier: Apache-2.0 */
/* The contract between the preloaded library and Python: layouts in shared memory and the functions of the cffi module
 * `spillshim._abi`. Read by both sides: by the C compiler, and by cffi between the two marker comments.
 * Rules: fixed-width fields only; a change of layout raises SPILL_ABI_VERSION; the offsets are asserted below. */
#ifndef SPILLSHIM_ABI_H
#define SPILLSHIM_ABI_H

#include <stdbool.h>
#include <stdint.h>

/* cffi: begin */
#define SPILL_ABI_VERSION 1
#define SPILL_LEDGER_SLOTS 256
#define SPILL_LEDGER_DEVICES 8

/* What one process holds on one device, in bytes. `key` is a hash of the device's UUID: ordinals differ between
 * processes. Written by the owner alone, read by all. */
struct spill_ledger_device {
    uint64_t key;
    uint64_t vram; /* allocated through the driver or by us, in VRAM */
    uint64_t ram;  /* spilled: pinned RAM that stands in for VRAM */
};

/* One process. A slot whose pid is 0 is free; it is live while its owner holds the file lock on the slot's bytes. */
struct spill_ledger_slot {
    uint32_t pid;
    uint32_t reserved_field;
    uint64_t job;          /* processes of one job share a VRAM limit */
    uint64_t ram_asked;    /* admitted by the budget, bytes */
    uint64_t ram_pinned;   /* of these, already pinned */
    uint64_t padding[4];
    struct spill_ledger_device device[SPILL_LEDGER_DEVICES];
};

/* The file <state dir>/ledger: what all processes of one user hold. Slots are claimed and RAM is asked for under an
 * exclusive flock of the file; a dead process's slot is taken back by whoever holds the lock next. */
struct spill_ledger_file {
    uint32_t magic;
    uint32_t version;
    uint64_t padding[7];
    struct spill_ledger_slot slot[SPILL_LEDGER_SLOTS];
};

/* Sums over the live processes of a ledger. */
struct spill_ledger_sum {
    uint64_t processes;
    uint64_t ram_asked;
    uint64_t ram_pinned;
    uint64_t vram_of_job; /* on the device and in the job that were asked for */
    uint64_t ram_on_device;
};

/* How the bytes of a new region are to be divided. All in bytes. */
struct spill_place_in {
    uint64_t size;        /* of the region, a multiple of the granularity */
    uint64_t vram_free;   /* what the driver (or the limit) still has */
    uint64_t vram_total;  /* the device's VRAM (or the limit) */
    uint64_t headroom;    /* never used by a region */
    uint64_t holdback;    /* not used by a region that exceeds half of vram_total and has to spill anyway */
    uint64_t insist;      /* 1: nor by one that exceeds half and would fit */
    uint64_t chunk;       /* chunk size of the greater part */
    uint64_t spill_chunk; /* chunk size of the lesser part */
    uint64_t granularity; /* 2 MiB on every device known */
};

struct spill_place_out {
    uint64_t vram;        /* bytes of the region that go to VRAM */
    uint64_t ram;         /* the rest */
    uint64_t vram_chunk;  /* largest chunk of each part */
    uint64_t ram_chunk;
};

/* One chunk of a layout, in order of address. tier: 0 VRAM, 1 RAM. */
struct spill_layout_step {
    uint64_t offset;
    uint64_t size;
    uint32_t tier;
    uint32_t reserved_field;
};

/* Divide a region (pure; csrc/tiering/placement.c). */
void spill_place(const struct spill_place_in *in, struct spill_place_out *out);
/* The chunks of that division, evenly spread; at most `max` are written, the full number is returned. */
uint64_t spill_layout(const struct spill_place_in *in, const struct spill_place_out *out,
                      struct spill_layout_step *steps, uint64_t max);

/* What may still be done to a process's memory. */
enum spill_state {
    SPILL_OPEN,
    SPILL_FROZEN, /* allocations spill as ever; nothing is moved after it was placed */
    SPILL_DEAD,   /* every call passes through; the driver is asked for nothing, memory is left alone */
};

/* Why nothing, or less than was wanted, was moved. */
enum spill_reason {
    SPILL_REASON_NONE,     /* all that was wanted */
    SPILL_REASON_NOTHING,  /* nothing there to be moved */
    SPILL_REASON_STATE,    /* the process is frozen or dead: spill_state_why() */
    SPILL_REASON_CAPTURE,  /* a stream is being captured */
    SPILL_REASON_BUSY,     /* the GPU was not idle before the deadline */
    SPILL_REASON_VRAM,     /* no room in VRAM */
    SPILL_REASON_RAM,      /* the budget grants no more RAM */
    SPILL_REASON_DRIVER,   /* the driver refused a step; everything is where it was */
    SPILL_REASON_PINNED,   /* what is left is pinned, or fixed in RAM */
    SPILL_REASON_BACKEND,  /* chunks cannot lie in RAM: no backend for them, or no spilling is wanted */
};

#define SPILL_PAUSE_BUCKETS 40

/* How long the gate was closed, from the proof of idleness to its opening. bucket[i] counts pauses of [2^i, 2^(i+1)) ns. */
struct spill_pauses {
    uint64_t count;
    uint64_t total_ns;
    uint64_t longest_ns;
    uint64_t bucket[SPILL_PAUSE_BUCKETS];
};

/* Safepoints and moves of a process since its start. Counters, written with relaxed atomics. */
struct spill_move_stats {
    uint64_t safepoints;      /* reached */
    uint64_t refused_state;   /* not tried: the process is frozen or dead */
    uint64_t refused_capture; /* not tried: a stream is being captured */
    uint64_t refused_busy;    /* given up at the deadline */
    uint64_t drain_ns;        /* from the closing of the gate to the proof of idleness, in all */
    uint64_t parked;          /* times a thread waited at the closed gate */
    uint64_t promoted, promoted_bytes; /* moves completed, one for each safepoint */
    uint64_t demoted, demoted_bytes;
    uint64_t rolled_back;     /* moves that failed and left everything where it was */
    uint64_t poisoned;        /* regions that a double failure made unusable */
    struct spill_pauses pause[2]; /* 0: steady state; 1: bulk, by order or while settling */
};

/* ---- the segment: what a process tells of itself ---- */

#define SPILL_SEGMENT_VERSION 1
#define SPILL_SEGMENT_WHY 128
#define SPILL_SEGMENT_TABLES 8

/* Something that lies behind the fixed part. `kind` 0: none. Readers pass over kinds and versions that they do not know: so
 * the segment grows without a new version. */
struct spill_segment_table {
    uint32_t kind;
    uint32_t version;
    uint64_t offset; /* bytes from the segment's beginning */
    uint64_t bytes;
};

/* A memfd of the process, sealed against every change of its size, handed out over the control socket. Changed between an
 * odd `sequence` and the next even one, so that a copy made at one even number is of one moment. */
struct spill_segment_file {
    uint32_t magic;
    uint32_t version;
    uint64_t bytes;    /* of the segment, a whole number of pages */
    uint64_t sequence;
    uint64_t pid;
    uint64_t started;  /* when the process did: clock ticks since boot, field 22 of /proc/PID/stat */
    uint64_t job;
    /* As of the last answer to SPILL_COMMAND_STATUS. */
    uint64_t state;    /* enum spill_state */
    char why[SPILL_SEGMENT_WHY]; /* of a state that is not open; ends with a 0 */
    uint64_t vram;     /* bytes that the process holds in VRAM, its small allocations among them */
    uint64_t ram;      /* and in pinned RAM */
    uint64_t managed;  /* bytes of its regions, wherever they lie */
    uint64_t regions;
    /* At any time. */
    struct spill_move_stats moves;
    struct spill_segment_table table[SPILL_SEGMENT_TABLES];
};

/* Copy the fixed part of the segment behind `fd` as of one moment. 0, or -errno: EPERM it isn't sealed, EPROTO it is not a
 * segment of this version, EAGAIN its owner stopped in the middle of a change. */
int spill_segment_read(int fd, struct spill_segment_file *out);

/* ---- the control socket: a SOCK_SEQPACKET socket PID.sock, one message a request, one a reply ---- */

#define SPILL_CONTROL_MAGIC 0x43435053u /* "SPCC" */
#define SPILL_CONTROL_VERSION 1

enum spill_command {
    SPILL_COMMAND_STATUS = 1, /* the reply carries the segment's descriptor, unless the process has none */
    SPILL_COMMAND_DEMOTE,     /* `bytes` to RAM, rounded up to whole chunks; UINT64_MAX: all */
    SPILL_COMMAND_PROMOTE,    /* at most `bytes` to VRAM */
};

/* A message of another length, magic or version, or with an unknown command, ends its connection. */
struct spill_request {
    uint32_t magic;
    uint32_t version;
    uint64_t id; /* comes back in the reply */
    uint64_t command;
    uint64_t bytes;
};

struct spill_reply {
    uint32_t magic;
    uint32_t version;
    uint64_t id;
    uint64_t command;
    uint64_t reason; /* enum spill_reason: why less was moved than was wanted */
    uint64_t moved;  /* bytes */
    uint64_t left;   /* bytes that could have been moved in principle */
};

/* Read-only view of the ledger in folder `dir` (NULL: the default). Returns the number of live processes copied to
 * `slots` (at most SPILL_LEDGER_SLOTS), or -errno. */
int spill_ledger_read(const char *dir, struct spill_ledger_slot *slots);

/* The hook table and the environment tables (shim, simulated driver), for documentation, --sim and tests. */
uint32_t spill_hook_count(void);
const char *spill_hook_symbol(uint32_t index);
const char *spill_hook_name(uint32_t index);
uint32_t spill_hook_version(uint32_t index);
uint32_t spill_hook_flags(uint32_t index);
uint32_t spill_env_count(void);
const char *spill_env_name(uint32_t index);
const char *spill_env_type(uint32_t index);
const char *spill_env_default(uint32_t index);
const char *spill_env_help(uint32_t index);
uint32_t spill_sim_count(void);
const char *spill_sim_name(uint32_t index);
const char *spill_sim_kind(uint32_t index); /* size, count, choice, text */
const char *spill_sim_default(uint32_t index);
const char *spill_sim_values(uint32_t index); /* of a count "LOWEST..HIGHEST", of a choice "word|word" */
const char *spill_sim_help(uint32_t index);
/* cffi: end */

#define SPILL_LEDGER_MAGIC 0x4c4c5053u /* "SPLL" */
#define SPILL_SEGMENT_MAGIC 0x47475053u /* "SPGG" */

_Static_assert(sizeof(struct spill_ledger_device) == 24, "ledger device");
_Static_assert(sizeof(struct spill_ledger_slot) == 64 + 24 * SPILL_LEDGER_DEVICES, "ledger slot");
_Static_assert(__builtin_offsetof(struct spill_ledger_slot, device) == 64, "ledger slot devices");
_Static_assert(__builtin_offsetof(struct spill_ledger_file, slot) == 64, "ledger header");
_Static_assert(sizeof(struct spill_pauses) == 8 * (3 + SPILL_PAUSE_BUCKETS), "pauses");
_Static_assert(sizeof(struct spill_move_stats) == 8 * 12 + 2 * sizeof(struct spill_pauses), "move stats");
_Static_assert(sizeof(struct spill_layout_step) == 24, "layout step");
_Static_assert(sizeof(struct spill_segment_table) == 24, "segment table");
_Static_assert(__builtin_offsetof(struct spill_segment_file, sequence) == 16, "segment sequence");
_Static_assert(__builtin_offsetof(struct spill_segment_file, state) == 48, "segment state");
_Static_assert(__builtin_offsetof(struct spill_segment_file, vram) == 56 + SPILL_SEGMENT_WHY, "segment memory");
_Static_assert(__builtin_offsetof(struct spill_segment_file, moves) == 88 + SPILL_SEGMENT_WHY, "segment moves");
_Static_assert(sizeof(struct spill_segment_file) ==
               88 + SPILL_SEGMENT_WHY + sizeof(struct spill_move_stats) + 24 * SPILL_SEGMENT_TABLES, "segment");
_Static_assert(sizeof(struct spill_request) == 32, "request");
_Static_assert(sizeof(struct spill_reply) == 48, "reply");

#endif
