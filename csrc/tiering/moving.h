/* SPDX-License-Identifier: Apache-2.0 */
/* Moving: the same address, another tier. Called by shim/ (hooks, worker), by engine.c and by unit tests.
 *
 * A move copies a run of chunks into other backings through a second mapping (the *window*), while the GPU is proven idle puts
 * these in the place of the old ones, and opens the gate again. The application sees nothing of it but the pause.
 *
 * Rules
 *   - everything here runs under the engine lock, on a thread that is outside the gate; lock order: engine, then gate;
 *   - what can be prepared is prepared with the gate open; in the pause there are the copy, one unmap, a map for every chunk and
 *     one or two grants of access;
 *   - the old backing is given up only when the new one is in its place; a failure puts the old mapping back. If that fails too
 *     the region is *poisoned*: whoever uses it gets the driver's error, the gate never opens onto a hole that may be used;
 *   - a chunk list changes only inside a safepoint: gated hooks read it without a lock.
 */
#ifndef SPILL_MOVING_H
#define SPILL_MOVING_H

#include <stdatomic.h>

#include "tiering/tiering.h"

/* ---- stats.c ---- */

/* Never NULL; not to be kept over an allocation. */
struct spill_move_stats *spill_move_stats(void);
/* A safepoint was reached after `ns` of waiting; it was left after `ns`; a move in it is complete. */
void spill_drain_add(uint64_t ns);
void spill_pause_add(bool bulk, uint64_t ns);
void spill_move_add(enum spill_tier to, uint64_t bytes);

/* ---- context.c: the contexts of the process, and the driver's word that they are idle ---- */

/* A context exists (from the hooks of its creation, and of every allocation in it; _created: by cuCtxCreate, so it is no
 * device's primary one), and ends. Any thread, any lock. */
void spill_context_known(CUcontext ctx);
void spill_context_created(CUcontext ctx);
void spill_context_gone(CUcontext ctx);
/* The application is destroying it (true), or the driver refused (false): no move begins in it, and nothing is asked about it.
 * Waits for what is under way. */
void spill_context_ends(CUcontext ctx, bool ends);
/* True for one that we don't know, too. */
bool spill_context_dying(CUcontext ctx);
/* The driver gave out the handle `ctx`: where another thread has just had its bearer destroyed, wait until we have forgotten it. */
void spill_context_wait_for_end(CUcontext ctx);
/* True once the driver has said of every known context that all work submitted to it is done; false at `deadline_ns`
 * (CLOCK_MONOTONIC), or where a context is active that we were never told of. The gate is closed. */
bool spill_contexts_idle(uint64_t deadline_ns);
/* Our own stream in `ctx`, made at the first call; the context is current. NULL where the driver makes none. */
CUstream spill_context_stream(CUcontext ctx);

/* ---- clock.c ---- */

uint64_t spill_now_ns(void); /* CLOCK_MONOTONIC */

/* ---- steady.c: moves that a running program does not notice ---- */

/* Bytes of one such move between the tiers of `device`: what its link was seen to carry in 0.7 ms, in whole granules, at least one. */
uint64_t spill_steady_bytes(int device);
/* From move.c: a copy over the link of `device` took so long. */
void spill_steady_seen(int device, uint64_t bytes, uint64_t ns);
/* Move what holds `offset` of `region` to tier `to`: one chunk, or the part of it that is small enough. In one pause, reached before
 * `deadline_ns`; counted apart from bulk moves. Under the engine lock. *moved: bytes. */
enum spill_reason spill_steady_move(struct spill_region *region, uint64_t offset, enum spill_tier to, uint64_t deadline_ns, uint64_t *moved);

/* ---- safepoint.c ---- */

static inline uint64_t spill_ms(unsigned ms) { return ms * 1000000ull; }
/* Close the gate and have idleness proven, both before `deadline_ns`. NONE: closed, spill_safepoint_leave opens it. Else it is
 * open. */
enum spill_reason spill_safepoint_enter(uint64_t deadline_ns);
/* Whether one could be entered: the same, and open again. Not counted. */
enum spill_reason spill_safepoint_look(uint64_t deadline_ns);
/* `bulk`: ordered or settling, counted apart from what goes on in steady state. */
void spill_safepoint_leave(bool bulk);

/* ---- mapping.c: the driver's calls over a run of chunks, asked again where it answers NOT_READY ---- */

CUresult spill_map(CUdeviceptr at, uint64_t bytes, CUmemGenericAllocationHandle handle);
CUresult spill_unmap(CUdeviceptr at, uint64_t bytes);
/* For what must not stay mapped: several attempts, whatever the driver answers. */
CUresult spill_unmap_surely(CUdeviceptr at, uint64_t bytes);
/* Open mappings of one device's chunks to it and its peers, and what is in RAM to the CPU. */
CUresult spill_open(CUdeviceptr at, uint64_t bytes, int device, const struct spill_chunk *chunks, uint32_t count);

/* ---- move.c ---- */

/* The driver's error that left a hole in a region, or CUDA_SUCCESS: what every launch answers from then on, because nobody knows what
 * a kernel will touch. Copies answer it only for a poisoned region. */
extern _Atomic int spill_poison;

/* What may be moved of a region now. */
bool spill_movable(const struct spill_region *region);

/* One move: the span is a row of whole chunks of one tier, the other than `to`. Of it `stay` bytes (0: none), the first, keep their
 * tier and become one chunk; the rest moves, cut into chunks of at most `piece` bytes. All in bytes, multiples of the granule. */
struct spill_want {
    struct spill_region *region;
    uint64_t offset, bytes;
    enum spill_tier to;
    uint64_t stay, piece;
    bool cold; /* mark what goes to RAM so */
};

/* Moves in one safepoint. `next` names them, one after the other; regions of one context and device, spans that do not overlap. It is
 * asked for the first with the gate open, for the others in the pause, until `pause_ns` have passed. */
struct spill_series {
    bool (*next)(void *arg, struct spill_want *want);
    void *arg;
    uint64_t deadline_ns; /* of reaching the safepoint */
    uint64_t pause_ns;    /* 0: one move only */
    bool bulk;
    uint64_t moved;          /* out: bytes that have changed their tier */
    uint64_t pause_until_ns; /* own use */
};

/* NONE: all that `next` named was moved. NOTHING: it named nothing. Else why the series ended early; `moved` tells what was done. */
enum spill_reason spill_move_series(struct spill_series *series);
/* Give up what a move had prepared that found the GPU busy. Unmaps: call it where a region is unmapped anyway. */
void spill_move_tidy(void);

/* ---- sweep.c ---- */

/* VRAM of the region's device that promotions may fill: down to the headroom. Bytes. */
uint64_t spill_promotion_room(const struct spill_region *region);

/* `next` of a series: from slot to slot, in order of address. What is cold stays in RAM. Zeroed but for the first three. */
struct spill_sweep {
    enum spill_tier to;
    uint64_t left;                   /* bytes still wanted */
    const struct spill_region *only; /* NULL: every region */
    uint32_t slot;                   /* where it goes on */
    uint64_t offset;
    CUcontext ctx; /* of the series; reset it before the next one */
    uint64_t room; /* own use: bytes of VRAM that the series may still fill */
    bool full;     /* VRAM has no room for the next chunk */
};
bool spill_sweep_next(void *sweep, struct spill_want *want);

/* ---- displace.c ---- */

/* Free up to `bytes` of VRAM on `device`: regions larger than `than` bytes are demoted, the largest first, in small chunks spread
 * evenly over it. The safepoint is reached before `deadline_ns`, and lasts `pause_ns` at most. Returns the bytes freed; *why as
 * spill_move_series. The context of the calling thread must be current. */
uint64_t spill_displace(int device, uint64_t bytes, uint64_t than, uint64_t deadline_ns, uint64_t pause_ns, enum spill_reason *why);

/* ---- reclaim.c ---- */

/* Have the driver give back what its stream-ordered pool only keeps for reuse. */
void spill_driver_pool_trim(int device);
/* The driver ran out of memory over a call that is over: make some free, at least `bytes` (0: nobody knows how much it lacks). True
 * if anything was gained, so that the call is worth making again. The calling thread is outside the gate, holds no lock of ours, and
 * has a context of `device` current. May take a quarter of a second while the GPU is busy. */
bool spill_reclaim(int device, uint64_t bytes);

/* ---- settle.c ---- */

/* The application has waited for the GPU, successfully: if its allocations have settled, mend the placement, once. Takes the engine
 * lock where it can be had at once. The calling thread is outside the gate. */
void spill_settle(void);
/* Placement is as somebody ordered it: leave it so until allocations change. */
void spill_settle_not(void);
/* An allocation or free has changed what is managed; under the engine lock. */
void spill_unsettled(void);

/* ---- order.c: whole programs ---- */

struct spill_order_result {
    uint64_t moved; /* bytes */
    uint64_t left;  /* bytes that could be moved in principle, and were not */
    enum spill_reason reason;
};

/* Move `bytes` (UINT64_MAX: all) of all regions to RAM, rounded up to whole chunks, or at most so many to VRAM. Takes the engine lock for a batch at a time, and waits
 * for the GPU to be idle for at most `patience_ms` without progress. On any thread that is outside the gate; needs no current
 * context. */
struct spill_order_result spill_order_demote(uint64_t bytes, unsigned patience_ms);
struct spill_order_result spill_order_promote(uint64_t bytes, unsigned patience_ms);
/* The same for moves that `next` names by `plan`, which is set back where a series found the GPU busy. *moved: bytes. */
enum spill_reason spill_order_carry_out(bool (*next)(void *plan, struct spill_want *want), struct spill_sweep *plan,
                                        unsigned patience_ms, uint64_t *moved);

#endif
