/* SPDX-License-Identifier: Apache-2.0 */
/* The tiering engine: managed memory whose bytes may live in VRAM or in RAM under one address. Called by shim/hook_*.c
 * and by unit tests; knows no hooks and no environment.
 *
 * Glossary
 *   arena    one device address reservation for all managed memory, in granules of 2 MiB
 *   region   what the application got from one allocation; never moves; [base, base + size)
 *   chunk    a part of a region that is backed by one handle, mapped whole; lies in exactly one tier
 *   backing  that handle: physical memory from the driver, in VRAM or in pinned RAM; pooled when freed
 *   fixed    a region outside the arena, one cuMemHostAlloc buffer: for drivers that cannot map host handles
 *   limbo    freed by the application, not yet by the GPU
 *
 * Rules
 *   - one owner each: the arena owns addresses, a region its chunks, a chunk its backing;
 *   - a step that fails is unwound completely before the error is answered;
 *   - budgets are asked before bytes are pinned, and given back after they are released;
 *   - look-ups by address take no lock: an address that an application may legally use is in no state of change;
 *   - everything else happens under the one engine lock (spill_lock); the order of all locks: csrc/DESIGN.md.
 */
#ifndef SPILL_TIERING_H
#define SPILL_TIERING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shim/driver.h"
#include "spillshim_abi.h"

enum { SPILL_GRANULE_SHIFT = 21, SPILL_MAX_DEVICES = 16 };
#define SPILL_GRANULE ((uint64_t)1 << SPILL_GRANULE_SHIFT)

enum spill_tier { SPILL_VRAM, SPILL_RAM };

/* How RAM is given to the GPU. Chunks need one of the first two; HOSTALLOC makes fixed regions. */
enum spill_backend {
    SPILL_BACKEND_UNPROBED,
    SPILL_BACKEND_HOST_NUMA,
    SPILL_BACKEND_HOST,
    SPILL_BACKEND_HOSTALLOC,
    SPILL_BACKEND_NONE,
};

/* What the probe found. */
struct spill_probe_result {
    enum spill_backend backend;
    int numa;        /* node of HOST_NUMA backings */
    bool mixed_copy; /* one copy may span VRAM and RAM */
};

/* What is known of a region from the last time that the program ran. */
struct spill_recall {
    uint64_t keep;  /* bytes of VRAM that came to be needed after it */
    uint32_t after; /* regions that its device had got until then, */
    uint64_t waits; /* how often the program had waited for the GPU until the last of them, */
    uint64_t rest;  /* and how often from there on */
    bool trusted;   /* it was so each time; else keep nothing back for it */
};

/* Settings of the engine. Filled by shim/process.c. */
struct spill_settings {
    bool spill;           /* false: never use RAM */
    bool soft_oom;        /* the first allocation of an episode that would spill answers out-of-memory */
    bool moves;           /* placement is mended without anybody's order */
    bool insist_on_holdback; /* keep it even from a region that would fit */
    bool keep;            /* freed memory is kept for reuse: somebody calls spill_pool_tick */
    bool exportable;      /* where RAM has no exportable handles, spill requests for them into others */
    bool blind;           /* the program's calls don't pass us: its copies can't be cut where they cross tiers */
    uint64_t managed_min; /* bytes; smaller allocations stay native while the driver has room */
    uint64_t chunk, spill_chunk;
    uint64_t job;         /* processes of one job share the VRAM limit */
    const char *state_dir; /* of the ledger; "" for the default */
    const char *proc_root; /* "" for the machine's own /proc and /sys */
    /* Device-dependent amounts: bytes, of `total` bytes of VRAM. */
    uint64_t (*vram_limit)(uint64_t total);
    uint64_t (*headroom)(uint64_t total);
    uint64_t (*holdback)(uint64_t total);
    /* Bytes of `total` bytes of RAM: what all processes of this user may pin, and what nobody may. */
    uint64_t (*host_limit)(uint64_t total);
    uint64_t (*ram_reserve)(uint64_t total);
    /* Find the backend, in a child process; called once, when VRAM is getting short. */
    void (*probe)(int device, struct spill_probe_result *out);
    /* There is a first region, or a first handle of the application's in RAM. Called once, without a lock held. NULL: nothing
     * to do. */
    void (*managed)(void);
    /* The first memory is kept for reuse: spill_pool_tick is wanted from now on. NULL: nobody wants to know. Under the engine lock. */
    void (*kept)(void);
    /* What is known of the region that is to be the `index`-th of a device with `limit` bytes of VRAM, `size` bytes; false: nothing. Under
     * the engine lock. NULL: nothing is remembered, neither this time nor for the next. */
    bool (*recall)(uint64_t limit, uint32_t index, uint64_t size, struct spill_recall *out);
    /* Allocations have settled: what is to be remembered may be written down. Without a lock held. NULL with recall. */
    void (*rest)(void);
    /* Look for reasons to be frozen that come without a call: libraries, debuggers. NULL: there are none. */
    void (*look)(void);
};

/* 24 bytes a chunk; `start` and `length` in granules, from the region's base. */
struct spill_chunk {
    CUmemGenericAllocationHandle handle;
    uint32_t start;
    uint32_t length;
    uint8_t tier;
    bool hole; /* not mapped: a move failed twice over it */
    bool cold; /* in RAM because the program said so: not brought back */
    uint8_t spare[5];
};

static inline uint64_t spill_chunk_bytes(const struct spill_chunk *chunk)
{
    return (uint64_t)chunk->length << SPILL_GRANULE_SHIFT;
}

struct spill_region {
    CUdeviceptr base;
    uint64_t size;   /* what the application asked for, bytes */
    uint64_t mapped; /* size rounded up to granules; of a fixed region: size */
    struct spill_chunk *chunks;
    uint32_t chunk_count; /* 0 for a fixed region */
    uint32_t generation;  /* raised whenever the slot is used again */
    CUcontext ctx;        /* current when it was allocated */
    uint64_t buffer_id;   /* unique in the process; CU_POINTER_ATTRIBUTE_BUFFER_ID */
    uint64_t ram_bytes;   /* of `mapped` */
    uint32_t index;       /* of the slot */
    int device;
    bool live; /* false: free slot */
    bool fixed;
    bool limbo;
    bool keep; /* never in RAM: the program said so */
    bool late; /* what it took counts as needed after others: late.c */
    bool sync_memops;
    bool poisoned; /* a part of it is a hole: moving.h */
    _Atomic(const char *) pinned; /* why it is never moved; NULL: it may be */
};

/* Counters of the process, for the summary; bytes. Changed with spill_count, because several locks guard those who do; the
 * peaks are spill_account's. */
struct spill_stats {
    uint64_t managed_count, managed_bytes, managed_peak;
    uint64_t native_count, native_bytes, native_peak;
    uint64_t spilled_count, spilled_bytes, spilled_peak, spilled_total;
    uint64_t vram_bytes, vram_peak;
    uint64_t regions; /* now */
    uint64_t share_ram, share_all; /* bytes in RAM and in all when the bytes in RAM peaked */
    uint64_t oom_count;
    uint64_t pins_count, pins_bytes; /* regions that were ever pinned */
};

static inline void spill_count(uint64_t *counter, int64_t change)
{
    __atomic_fetch_add(counter, (uint64_t)change, __ATOMIC_RELAXED);
}

/* ---- engine.c ---- */

/* Once per process, before anything else here. */
void spill_engine_start(const struct spill_settings *settings);
const struct spill_settings *spill_settings(void);
struct spill_stats *spill_stats(void);
void spill_lock(void);
/* False at once where another thread has the lock: for work that may as well be left. */
bool spill_trylock(void);
/* Wait at most `ms` milliseconds for it. False where it was not to be had. */
bool spill_lock_within(unsigned ms);
void spill_unlock(void);

/* Allocate `size` bytes for the current context, in VRAM, in RAM or in both. CUDA_ERROR_OUT_OF_MEMORY where neither has
 * room, or the budget says no, as the driver would have answered. */
CUresult spill_alloc(size_t size, CUdeviceptr *out);
/* See spill_settings.managed: to be called when there may be something; without a lock held. */
void spill_managed(void);
/* Free the region at `p` at once: waits until its context is idle, as the driver's cuMemFree does. */
CUresult spill_free(CUdeviceptr p);
/* The region at `p`, whose free has now been asked for; NULL where nothing begins there that isn't being freed already: between
 * a look-up without the lock and this another thread may have freed it, and the slot may hold another region. Under the lock. */
struct spill_region *spill_claim(CUdeviceptr p);
/* Release a region's memory and addresses; the GPU must be done with it. Under the engine lock. */
void spill_region_release(struct spill_region *region);
/* Forget every region of a context that the application destroyed. */
void spill_discard_context(CUcontext ctx);
/* Run the shim's own driver calls so that no capture of this thread forbids them; returns what spill_capture_leave wants. */
CUstreamCaptureMode spill_capture_enter(void);
void spill_capture_leave(CUstreamCaptureMode mode);
/* soft out-of-memory: true if this allocation of `size` bytes, which would spill, must fail once. */
bool spill_soft_oom(size_t size);
/* False while the program has not heard of it, and shall before anything is displaced. */
bool spill_soft_heard(size_t size);
/* The allocation was granted in another way: the program has heard of no refusal. */
void spill_soft_unheard(void);

/* ---- hint.c: what a program that knows of us says about its memory ---- */

enum spill_hint { SPILL_HINT_NONE, SPILL_HINT_RAM, SPILL_HINT_VRAM };

/* Of this thread's allocations from now on: RAM as long as there is any, VRAM or out-of-memory, or as usual. One load. */
enum spill_hint spill_hint_now(void);
/* Returns what held before. */
enum spill_hint spill_hint_set(enum spill_hint hint);
/* Where a new region goes by such a hint; *out holds the usual placement. */
void spill_hint_place(enum spill_hint hint, const struct spill_place_in *in, struct spill_place_out *out);
/* Bytes of a region that are in RAM because the program said so. Under the engine lock. */
uint64_t spill_hint_cold(const struct spill_region *region);
/* The program won't need [p, p + bytes) of a region soon: what chunks lie in it whole go to RAM, as far as moves are possible
 * (`patience_ms` as spill_order_demote), and stay there. Returns how many of the bytes lie in RAM now; 0 where `p` is in no region. */
uint64_t spill_hint_demote(CUdeviceptr p, uint64_t bytes, unsigned patience_ms);
/* The answer alone. */
uint64_t spill_hint_in_ram(CUdeviceptr p, uint64_t bytes);

/* ---- state.c: what may still be done to this process's memory ---- */

/* No lock; never goes back. */
enum spill_state spill_state_now(void);
const char *spill_state_name(enum spill_state state);
/* Why it is not open, for a log or a status; "" while it is. */
const char *spill_state_why(void);
/* Leave `open` for good, because of `why` (a static string, part of a sentence). The first reason of the state that the
 * process is in is the one that is told; it is logged once. Any thread, any lock held. */
void spill_freeze(const char *why);
/* One load: state_now() == SPILL_DEAD. */
bool spill_dead(void);
/* The error that the process died of, which the driver answers to everything from then on; CUDA_SUCCESS in the child of a
 * fork, which only inherited the table of regions. */
CUresult spill_dead_error(void);
bool spill_forked(void);
/* Freeze, and spill nothing any more either: somebody in the process moves memory himself and must hear when there is none. */
void spill_step_aside(const char *why);
bool spill_aside(void);
/* The engine has started: say what was noticed before. */
void spill_state_tell(void);
/* Look for what no call of the program told us (spill_settings.look): some microseconds, never at a launch. */
void spill_look(void);
/* Whether anything may be moved now: open, also after looking. Before each safepoint. */
bool spill_may_move(void);
/* Hand on what the driver answered, and note where it leaves nothing usable behind: then the process is dead. */
void spill_seen_error(CUresult answer);
static inline CUresult spill_seen(CUresult answer)
{
    if (__builtin_expect(answer != CUDA_SUCCESS, 0))
        spill_seen_error(answer);
    return answer;
}
/* In the child of a fork: everything passes through from now on, nothing is touched. */
void spill_after_fork(void);
/* The program is ending: no move begins any more, and none is under way when this returns. Frees still work. */
void spill_exit_begins(void);
/* Nothing of the driver may be used any more. */
void spill_exit_ends(void);

/* ---- device.c: what is known of each device, and how much of it is used ---- */

struct spill_device {
    uint64_t key;      /* hash of the UUID, the ledger's key */
    uint64_t total;    /* the device's VRAM */
    uint64_t limit;    /* VRAM that this job may use: total or less */
    uint64_t headroom, holdback;
    uint64_t vram_used, ram_used; /* by this process, bytes */
    /* Of these, in either tier, what is in no region; most of it since spill_other_peak was last asked, and when (spill_late_waits). */
    uint64_t other_used, other_peak, other_peak_at;
    uint64_t hbm_rate; /* bytes per second by clock and bus width; 0: unknown */
    bool vmm;          /* supports virtual memory management */
    bool rdma;         /* and memory that other devices may be let into */
    int numa;          /* nearest NUMA node, 0 where there is none */
    int peer_count;
    int peers[SPILL_MAX_DEVICES]; /* devices that can address this one's memory, itself first */
};

/* Facts about device `device`, found out at the first call; NULL if there is none. */
struct spill_device *spill_device(int device);
/* True once facts about any were found: from then on CUDA is initialised in this process. Takes no lock. */
bool spill_device_any(void);
/* Key of a device by its UUID: what two processes with different CUDA_VISIBLE_DEVICES agree on. */
uint64_t spill_device_key(const unsigned char uuid[16]);
/* Key, total, limit, headroom and holdback alone; asks the driver nothing. */
void spill_device_limits(struct spill_device *d, uint64_t key, uint64_t total);
/* What this user's processes, and this job's on device `d`, hold. Does not join the ledger for a process that holds
 * nothing. */
void spill_usage(const struct spill_device *d, struct spill_ledger_sum *sum);
/* Device of the current context, or the driver's error. */
CUresult spill_current_device(int *device);
/* VRAM that new allocations may still take on the current context's device: *usable under the limit (no headroom taken
 * off), *device_free as the driver says. Bytes. */
CUresult spill_vram_free(int device, uint64_t *usable, uint64_t *device_free);
/* Asked before every native allocation: true unless `bytes` more would exceed the job's limit. Asks nothing of the driver,
 * but may probe (spill_backend_foresee). */
bool spill_vram_allows(int device, uint64_t bytes);
/* What this process holds on all devices, bytes. Asks nothing of the driver, takes no lock. */
void spill_holdings(uint64_t *vram, uint64_t *ram);
/* Record that this process holds so many bytes more (or less); updates ledger and peaks (of all counters). */
void spill_account(int device, int64_t vram, int64_t ram);
/* The same for what is in no region: the driver's allocations and the application's own handles. */
void spill_account_other(int device, int64_t vram, int64_t ram);
/* Most bytes of these since the last call, and in *at when that was. */
uint64_t spill_other_peak(int device, uint64_t *at);

/* ---- late.c: how much comes after a region; under the engine lock where nothing else is said ---- */

enum { SPILL_LATE_MAX = 128 };

/* One of the first regions. */
struct spill_late {
    uint64_t size, mapped; /* as of the region, bytes */
    uint64_t limit;        /* VRAM of the device that may be used */
    uint64_t need;         /* most that later and smaller (or kept) regions and what is in no region took beside it while it lived */
    uint64_t waits, rest;  /* times that the program had waited for the GPU by then: until the last region, and from it on */
    uint32_t after;        /* regions of the device that came until then */
    uint64_t kept;         /* bytes kept back for them */
    struct spill_recall was; /* what was known of it */
    uint64_t ram;          /* bytes of it in RAM at the last rest */
    uint32_t index;        /* its place among the regions of its device, from 0 */
    int device;
    bool live;
    bool stays;  /* the program keeps it in VRAM */
    bool rested; /* was there at the last rest */
    bool payer;  /* of spill_late_copy: what does not fit into VRAM was best taken from it */
    /* own use */
    uint64_t smaller, other, since, id;
    uint32_t slot;
};

/* What is known of the next region of `device`, if it is to have `size` bytes. */
bool spill_late_recall(int device, size_t size, enum spill_hint hint, struct spill_recall *out);
/* It was made, with what was known of it (not for one that was wanted in RAM); a region is being forgotten. */
void spill_late_new(struct spill_region *region, const struct spill_recall *known);
void spill_late_gone(const struct spill_region *region);
/* The program has waited for the GPU, successfully. False while more is known to come, so that placement is not to be mended yet. No lock. */
bool spill_late_waited(void);
/* How often that was. No lock. */
uint64_t spill_late_waits(void);
/* Allocations have settled: where does everything lie? */
void spill_late_rest(void);
/* Copy all to `out`, which has room for SPILL_LATE_MAX. Returns how many. */
uint32_t spill_late_copy(struct spill_late *out);

/* ---- arena.c ---- */

/* Addresses for `bytes` (a multiple of the granule; whole places of 32 MiB are taken) in *out. The first call reserves the arena. */
CUresult spill_arena_take(uint64_t bytes, CUdeviceptr *out);
void spill_arena_give(CUdeviceptr base, uint64_t bytes);
/* Point the places of a region at its slot; UINT32_MAX clears them. */
void spill_arena_mark(CUdeviceptr base, uint64_t bytes, uint32_t index);
/* Slot of the region in whose places an address lies, UINT32_MAX for none. No lock. */
uint32_t spill_arena_slot(CUdeviceptr p);
bool spill_arena_contains(CUdeviceptr p);

/* ---- region.c ---- */

/* A slot with room for `chunks` chunks; NULL without memory. */
struct spill_region *spill_region_new(uint32_t chunks);
/* Make a region findable by address (false without memory), and the reverse. */
bool spill_region_publish(struct spill_region *region);
void spill_region_withdraw(struct spill_region *region);
/* The slot becomes free; its generation is raised. */
void spill_region_recycle(struct spill_region *region);
/* The region that holds address `p`, or NULL. Takes no lock for the arena. */
struct spill_region *spill_region_find(CUdeviceptr p);
/* Call `visit` for every live region; under the engine lock. */
void spill_region_each(void (*visit)(struct spill_region *, void *), void *arg);
/* One debug line: where it lies. */
void spill_region_tell(const struct spill_region *region);
/* Slot `index`, live or not; NULL past the last one. Under the engine lock. */
struct spill_region *spill_region_slot(uint32_t index);
/* Index of the chunk that holds `offset` (bytes from the base). Not of a fixed region. */
uint32_t spill_chunk_at(const struct spill_region *region, uint64_t offset);
/* Length of the run of bytes from `p` (inside `region`) that lies in one tier, at most `limit`; its tier in *tier. */
uint64_t spill_region_run(const struct spill_region *region, CUdeviceptr p, uint64_t limit, enum spill_tier *tier);

/* ---- pin.c ---- */

/* Never move `region` again, until it is freed; `why`: a static string. Takes no lock. */
void spill_region_pin(struct spill_region *region, const char *why);
bool spill_region_pinned(const struct spill_region *region);

/* ---- backing.c ---- */

/* Physical memory from the driver, counted as pinned or as VRAM of this process. RAM must have been granted before. */
CUresult spill_backing_take(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle *out);
/* One log line: RAM was granted by the budget and refused by the driver. */
void spill_backing_refused(uint64_t bytes, CUresult error);
void spill_backing_give(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle handle);
/* The same for what a move has emptied: kept for reuse, where the pool has room for it. */
void spill_backing_recycle(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle handle);
/* A whole region in RAM for drivers that cannot map host handles: one pinned, GPU-mapped buffer, device address in *out. */
CUresult spill_fixed_take(int device, uint64_t bytes, CUdeviceptr *out);
/* `gone`: its context was destroyed, and the buffer with it. */
void spill_fixed_give(int device, uint64_t bytes, CUdeviceptr p, bool gone);
/* What the probe found; the first call probes. */
const struct spill_probe_result *spill_backend(int device);
/* Probe now if `free_after` bytes, what would be free on `device` after the coming allocation, are little: later, on a full
 * device, the probe itself would find no memory. */
void spill_backend_foresee(int device, uint64_t free_after);
/* The same without probing: UNPROBED if nothing has had to spill yet. */
enum spill_backend spill_backend_known(void);
const char *spill_backend_name(enum spill_backend backend);
/* True when one copy may span VRAM and RAM; false where that is not known. */
bool spill_mixed_copy(void);
/* Location of a host backing under the present backend. */
CUmemLocation spill_host_location(void);
/* What opens such a backing to the CPU: the driver may do a copy between two host locations with it. */
CUmemAccessDesc spill_cpu_access(void);

/* ---- pool.c: backings kept for reuse. Under the engine lock, but for the last five ---- */

/* A kept handle of just this size, which counts for nobody until its new owner counts it (RAM: it is asked and pinned). */
bool spill_pool_take(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle *out);
/* Keep a handle; false: no, the caller gives it back to the driver. */
bool spill_pool_give(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle handle);
/* Keep the memory and the addresses of a region that is being freed, mapped as they are; false: no. */
bool spill_pool_keep_run(struct spill_region *region);
/* Make `region` of one that was kept: `bytes` on its device, all in VRAM, mapped and open. */
bool spill_pool_take_run(struct spill_region *region, uint64_t bytes);
/* Give `bytes` of VRAM (UINT64_MAX: all) of a device (-1: of all) back to the driver, the oldest regions first. Returns the bytes. */
uint64_t spill_pool_trim(int device, uint64_t bytes);
/* The same of RAM. Any lock of higher order. */
uint64_t spill_pool_trim_ram(uint64_t bytes);
/* The driver refused somebody VRAM of `device`: give all of it up. True if it is worth asking again. Takes the engine lock. */
bool spill_pool_yield(int device);
/* Some time has passed: what was kept and not asked for since the last tick but one is given up. Takes the engine lock where it can
 * be had at once. */
void spill_pool_tick(void);
bool spill_pool_any(void);
/* Whether so many bytes of RAM are kept. */
bool spill_pool_has_ram(uint64_t bytes);
/* Bytes of VRAM that are kept, of the device with this key; to the program they are free. */
uint64_t spill_pool_vram(uint64_t key);

/* ---- budget.c: how much RAM may be pinned ---- */

/* Ask for `bytes`. False when the user's limit, MemAvailable less the reserve, or the cgroup says no; `why` then holds a
 * phrase with the numbers. What was granted is given back with spill_budget_give. */
bool spill_budget_ask(uint64_t bytes, char why[160]);
/* So many of the granted bytes are pinned now: MemAvailable shows them from here on. */
void spill_budget_pinned(uint64_t bytes);
void spill_budget_give(uint64_t asked, uint64_t pinned);
/* True while pinning may go on: MemAvailable is still above half of the reserve. */
bool spill_budget_holds(void);
/* Most RAM that can ever stand in for VRAM: the same in all processes of the user. */
uint64_t spill_budget_ceiling(void);
/* The ledger, joined at the first call. Never NULL; empty if it could not be joined. */
struct spill_ledger *spill_budget_ledger(void);
bool spill_budget_joined(void);
/* In the child of a fork: let go of the parent's slot. */
void spill_budget_abandon(void);

/* ---- limbo.c ---- */

/* Free the region at `p` after the work now queued on `stream`. */
CUresult spill_free_async(CUdeviceptr p, CUstream stream, bool ptsz);
/* Free it at the next sweep outside a capture: a cuMemFree while something is captured cannot wait for the device. */
void spill_limbo_defer(struct spill_region *region);
/* Release what the GPU has finished with, waiting for it at most `patience_ms`. Does nothing during a capture. Under the
 * engine lock. True if anything was released. */
bool spill_limbo_sweep(unsigned patience_ms);
/* True if a sweep could release something; takes no lock. */
bool spill_limbo_any(void);
/* Drop the entries of a region whose context is gone. */
void spill_limbo_forget(const struct spill_region *region);
/* The context `ctx` is gone, and the events that were recorded in it. */
void spill_limbo_context_gone(CUcontext ctx);

/* ---- capture.c: the captures under way in the process; called by the capture hooks ---- */

/* A capture of `stream` begins (`ptsz`: 0 means the thread's own stream), and ends. An end without a beginning is ignored. */
void spill_capture_begin(CUstream stream, bool ptsz);
void spill_capture_end(CUstream stream, bool ptsz);
/* Captures end with their context too. */
void spill_capture_context_gone(CUcontext ctx);
bool spill_capturing(void);
/* False where something is being captured. Else no capture begins until spill_capture_let_in: for a question that would break
 * one, to be answered at once. */
bool spill_capture_hold_off(void);
void spill_capture_let_in(void);
/* Context of a stream; of the default streams the current one. */
CUcontext spill_stream_context(CUstream stream);

/* ---- native.c: allocations that stayed with the driver ---- */

struct spill_native {
    CUdeviceptr p; /* 0: empty, 1: removed */
    uint64_t bytes;
    int device;
    CUcontext ctx; /* current when it was allocated */
};

void spill_native_add(CUdeviceptr p, uint64_t bytes, int device);
/* Forget the allocation at `p`, before the driver frees it (its address may be given out again at once); false if it isn't
 * in the table. *was is what spill_native_restore wants if the driver refuses. */
bool spill_native_remove(CUdeviceptr p, struct spill_native *was);
void spill_native_restore(const struct spill_native *was);
/* The allocations of a context are gone with it. */
void spill_native_discard(CUcontext ctx);
/* The application's own handles (cuMemCreate): bytes count until released and unmapped. The lock is held over the
 * driver's call too, because the driver gives a released handle's number out again. */
void spill_handles_lock(void);
void spill_handles_unlock(void);
void spill_handle_add(CUmemGenericAllocationHandle handle, uint64_t bytes, int device, enum spill_tier tier);
/* The driver gave `handle` as a name of the memory that is mapped at `at`, which may have had none any more. */
void spill_handle_retain(CUmemGenericAllocationHandle handle, CUdeviceptr at);
void spill_handle_release(CUmemGenericAllocationHandle handle);
void spill_handle_map(CUmemGenericAllocationHandle handle, CUdeviceptr at, uint64_t bytes);
void spill_handle_unmap(CUdeviceptr at, uint64_t bytes);
/* Bytes from `p` on that lie in one tier of the application's own mappings, at most `limit`; `limit` where that is not known
 * to be less. Takes the lock itself, and only once something of these has spilled. */
uint64_t spill_handle_run(CUdeviceptr p, uint64_t limit);
/* Open what of [at, at + bytes) lies in RAM to the CPU too, as regions are. Takes the lock itself. */
void spill_handle_open_to_cpu(CUdeviceptr at, uint64_t bytes);

#endif
