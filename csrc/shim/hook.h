/* SPDX-License-Identifier: Apache-2.0 */
/* What the files hook_*.c share. Rules of a hook: the driver's own answer in every case that is not ours; no lock held
 * over a call that can wait for the GPU; errors are CUresult values, never an exit. */
#ifndef SPILL_HOOK_H
#define SPILL_HOOK_H

#include "shim/driver.h"
#include "shim/process.h"
#include "tiering/gate.h"
#include "tiering/moving.h"

/* The program got our symbol by linking, but the driver it runs on has no such entry. */
#define SPILL_NEEDS(symbol)               \
    do {                                  \
        if (!spill_driver()->symbol)      \
            return SPILL_MISSING;         \
    } while (0)

/* The same for an entry that submits work which may touch managed memory, or that keeps its operands: the rest of the hook is
 * inside the gate, so that nothing is moved between what it looks up and what the driver does with it. */
static inline void spill_gate_cleanup(const char *entered)
{
    (void)entered;
    spill_gate_leave();
}
#define SPILL_GATED(symbol) \
    SPILL_NEEDS(symbol);    \
    __attribute__((cleanup(spill_gate_cleanup))) const char gated_ = (spill_gate_enter(), 0)

/* What left a hole in a region, or CUDA_SUCCESS. Inside the gate. */
static inline CUresult spill_poisoned(void)
{
    return (CUresult)atomic_load_explicit(&spill_poison, memory_order_relaxed);
}

/* Whether a call that answered `r` is worth making again: it ran out of memory, some could be made free since, and the thread is
 * outside the gate. `bytes` it asked for, 0: not known. hook_reclaim.c */
bool spill_worth_retrying(CUresult r, uint64_t bytes);
/* What `CALL` answers, or, where it was worth retrying, what it answers the second time. */
#define SPILL_RETRIED(CALL)                                                                    \
    ({                                                                                         \
        CUresult retried_ = (CALL);                                                            \
        if (__builtin_expect(retried_ != CUDA_SUCCESS, 0) && spill_worth_retrying(retried_, 0)) \
            retried_ = (CALL);                                                                 \
        spill_seen(retried_);                                                                  \
    })

/* cuMemAlloc for `caller`, who came to our allocator and by no hook. hook_alloc.c */
CUresult spill_alloc_for_allocator(const void *caller, CUdeviceptr *dptr, size_t bytesize);

/* CUDA_SUCCESS if an allocation or free is legal for this thread now; else the driver's error. hook_alloc.c */
CUresult spill_capture_verdict(void);

/* What to answer for a free of `p` that went to the driver, whose answer is `r`, because the process is dead or nothing was ever
 * managed. hook_alloc.c */
CUresult spill_dead_free(CUdeviceptr p, CUresult r);

/* A copy or memset over [a, a + bytes) and, where `b` isn't 0, [b, b + bytes), done piece by piece: a piece lies in one
 * tier on each side. Where the driver takes mixed ranges, or none is touched, the piece is the whole. */
struct spill_split {
    CUdeviceptr a, b;
    uint64_t at;    /* offset of the piece, bytes */
    uint64_t bytes; /* its length */
    uint64_t left;  /* bytes from `at` on */
    CUresult error; /* of a range: spill_range_error */
    bool sync;      /* a region asked for synchronous memory operations (CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) */
};
struct spill_split spill_split_start(CUdeviceptr a, CUdeviceptr b, uint64_t bytes);
bool spill_split_next(struct spill_split *split);

/* Bytes from `p` that one driver call may cover, at most `limit`. split.c */
uint64_t spill_run(CUdeviceptr p, uint64_t limit);
/* CUDA_SUCCESS, or what to answer for a copy over [p, p + bytes): CUDA_ERROR_INVALID_VALUE where it begins in a region and ends
 * beyond it, or begins where a region was; what poisoned the region, where that has a hole. */
CUresult spill_range_error(CUdeviceptr p, uint64_t bytes);
static inline CUresult spill_ranges_error(CUdeviceptr a, uint64_t a_bytes, CUdeviceptr b, uint64_t b_bytes)
{
    CUresult r = a ? spill_range_error(a, a_bytes) : CUDA_SUCCESS;
    return r == CUDA_SUCCESS && b ? spill_range_error(b, b_bytes) : r;
}
/* True where every call may pass as it is: nothing managed, or the driver takes mixed ranges. */
bool spill_copies_pass(void);

/* True where the region of either address asked for synchronous memory operations. */
bool spill_synchronous(CUdeviceptr a, CUdeviceptr b);

/* After a synchronous form on a region that asked for it: wait, as the driver would have. */
CUresult spill_sync_memops(bool per_thread);

/* ---- pins (hook_graph.c) ---- */

/* Pin the region of an operand, where it is in one. */
void spill_pin_operand(CUdeviceptr p);
void spill_pin_copies(const CUdeviceptr *dsts, const CUdeviceptr *srcs, size_t count);
void spill_pin_mem_ops(const CUstreamBatchMemOpParams *ops, size_t count);
void spill_pin_fabric(const CUDA_FABRIC_COPY_BATCH_OP *ops, size_t count);
/* True where `stream` is being captured. While nothing is: one load. Else one driver call. */
bool spill_stream_captured(CUstream stream, bool ptsz);
static inline bool spill_captured(CUstream stream, bool ptsz)
{
    return __builtin_expect(spill_capturing(), 0) && spill_stream_captured(stream, ptsz);
}
/* In the hook of a copy: a captured one becomes a node, which keeps its operands. */
static inline void spill_pin_captured(CUstream stream, bool ptsz, CUdeviceptr a, CUdeviceptr b)
{
    if (spill_captured(stream, ptsz))
        spill_pin_copies(&a, &b, 1);
}

static inline bool spill_device_space(CUmemorytype type)
{
    return type == CU_MEMORYTYPE_DEVICE || type == CU_MEMORYTYPE_UNIFIED;
}
/* Address of the first byte of a side (src or dst) of a three-dimensional copy; 0: not device memory. */
#define SPILL_START_3D(c, side)                                                                              \
    (spill_device_space((c)->side##MemoryType)                                                               \
         ? (c)->side##Device + ((c)->side##Z * (c)->side##Height + (c)->side##Y) * (c)->side##Pitch + (c)->side##XInBytes \
         : 0)

/* Run `CALL` (an expression that uses split.at and split.bytes) for each piece, then return: `DONE` after the last. */
#define SPILL_PIECES_THEN(A, B, BYTES, DONE, CALL)                                                 \
    do {                                                                                           \
        struct spill_split split = spill_split_start((CUdeviceptr)(A), (CUdeviceptr)(B), (BYTES)); \
        if (split.error != CUDA_SUCCESS)                                                           \
            return split.error;                                                                    \
        do {                                                                                       \
            CUresult piece_ = (CALL);                                                              \
            if (piece_ != CUDA_SUCCESS)                                                            \
                return spill_seen(piece_);                                                         \
        } while (spill_split_next(&split));                                                        \
        return DONE;                                                                               \
    } while (0)
#define SPILL_PIECES(A, B, BYTES, CALL) SPILL_PIECES_THEN(A, B, BYTES, CUDA_SUCCESS, CALL)
/* For the forms without a stream. */
#define SPILL_PIECES_SYNC(A, B, BYTES, PER_THREAD, CALL) \
    SPILL_PIECES_THEN(A, B, BYTES, split.sync ? spill_sync_memops(PER_THREAD) : CUDA_SUCCESS, CALL)

#endif
