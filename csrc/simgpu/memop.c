/* SPDX-License-Identifier: Apache-2.0 */
/* Stream memory operations: waits for, writes to and reductions of one word, in stream order. Called by applications; as a
 * batch node's operation by graph.c.
 * Rules: an operand is checked when it is queued (known to the driver, not managed, aligned), and again by the access itself,
 * which is guarded: what was unmapped meanwhile is the context's sticky CUDA_ERROR_ILLEGAL_ADDRESS. A wait sleeps between
 * looks, longer and longer; it ends too when its context fails or is destroyed. A captured batch is one node.
 * Source: cuda.h, CUDA_MEMOP.
 */
#include "doubt.h"
#include "graph.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST 255u             /* cuda.h: "Must be less than 256" */
#define LONGEST_NAP 1000000u  /* ns between two looks at a word that does not change */
#define PLACES 256u           /* places of the table of written words */

struct batch {
    CUcontext ctx;
    unsigned count, flags;
    CUstreamBatchMemOpParams ops[];
};

/* ---- when a word was last written by a stream, so that who waits for it is not earlier. Two words that share a place
 * forget each other: then the wait takes no time, as for words that the host writes. */

static struct { uint64_t address, ns; } written[PLACES];
static pthread_mutex_t written_lock = PTHREAD_MUTEX_INITIALIZER;

static size_t place(uint64_t address)
{
    return (size_t)((address >> 2) * 0x9E3779B97F4A7C15u >> 56) % PLACES;
}

static void note_write(uint64_t address)
{
    pthread_mutex_lock(&written_lock);
    written[place(address)].address = address;
    written[place(address)].ns = sim_task_clock();
    pthread_mutex_unlock(&written_lock);
}

static void wait_for_write(uint64_t address)
{
    pthread_mutex_lock(&written_lock);
    uint64_t ns = written[place(address)].address == address ? written[place(address)].ns : 0;
    pthread_mutex_unlock(&written_lock);
    if (ns > sim_task_clock())
        sim_charge_ns(ns - sim_task_clock());
}

/* ---- one operation; the body of each runs guarded */

static bool wide(const CUstreamBatchMemOpParams *p)
{
    return p->operation == CU_STREAM_MEM_OP_WAIT_VALUE_64 || p->operation == CU_STREAM_MEM_OP_WRITE_VALUE_64 ||
           (p->operation == CU_STREAM_MEM_OP_ATOMIC_REDUCTION &&
            p->atomicReduction.dataType == CU_STREAM_ATOMIC_REDUCTION_UNSIGNED_64);
}

static bool satisfied(const CUstreamBatchMemOpParams *p)
{
    const struct CUstreamMemOpWaitValueParams_st *w = &p->waitValue;
    const void *at = (const void *)(uintptr_t)w->address;
    bool big = wide(p);
    uint64_t now = big ? __atomic_load_n((const uint64_t *)at, __ATOMIC_SEQ_CST) : __atomic_load_n((const uint32_t *)at, __ATOMIC_SEQ_CST);
    uint64_t value = big ? w->value64 : w->value;
    switch (w->flags & 3u) {
    case CU_STREAM_WAIT_VALUE_EQ: return now == value;
    case CU_STREAM_WAIT_VALUE_AND: return (now & value) != 0;
    case CU_STREAM_WAIT_VALUE_NOR: return big ? ~(now | value) != 0 : (uint32_t)~(now | value) != 0;
    default: return big ? (int64_t)(now - value) >= 0 : (int32_t)(uint32_t)(now - value) >= 0; /* cyclic */
    }
}

struct look {
    const CUstreamBatchMemOpParams *op;
    bool there;
};

static void look(void *arg)
{
    struct look *l = arg;
    l->there = satisfied(l->op);
}

static void write_word(void *arg)
{
    const CUstreamBatchMemOpParams *p = arg;
    void *at = (void *)(uintptr_t)p->writeValue.address;
    if (wide(p))
        __atomic_store_n((uint64_t *)at, p->writeValue.value64, __ATOMIC_SEQ_CST);
    else
        __atomic_store_n((uint32_t *)at, p->writeValue.value, __ATOMIC_SEQ_CST);
}

#define REDUCE(type) do { \
        type *word_ = (type *)(uintptr_t)r->address; \
        type value_ = (type)r->value; \
        if (r->reductionOp == CU_STREAM_ATOMIC_REDUCTION_OP_OR) \
            __atomic_fetch_or(word_, value_, __ATOMIC_SEQ_CST); \
        else if (r->reductionOp == CU_STREAM_ATOMIC_REDUCTION_OP_AND) \
            __atomic_fetch_and(word_, value_, __ATOMIC_SEQ_CST); \
        else \
            __atomic_fetch_add(word_, value_, __ATOMIC_SEQ_CST); \
    } while (0)

static void reduce(void *arg)
{
    const CUstreamBatchMemOpParams *p = arg;
    const struct CUstreamMemOpAtomicReductionParams_st *r = &p->atomicReduction;
    if (wide(p))
        REDUCE(uint64_t);
    else
        REDUCE(uint32_t);
}

static CUresult run_wait(const struct batch *b, const CUstreamBatchMemOpParams *p)
{
    struct look l = {p, false};
    for (uint64_t nap = 1000;; nap = nap < LONGEST_NAP ? 2 * nap : nap) {
        CUresult r = sim_guarded(look, &l);
        if (r)
            return r;
        if (l.there) {
            wait_for_write(p->waitValue.address);
            return CUDA_SUCCESS;
        }
        if (atomic_load(&b->ctx->sticky))
            return CUDA_SUCCESS; /* the context's error is there already; what follows does not run */
        if (atomic_load(&b->ctx->dead))
            return CUDA_ERROR_CONTEXT_IS_DESTROYED;
        nanosleep(&(struct timespec){.tv_nsec = (long)nap}, NULL);
    }
}

static CUresult run(void *arg)
{
    struct batch *b = arg;
    CUresult r = CUDA_SUCCESS;
    for (unsigned i = 0; i < b->count && !r; i++) {
        CUstreamBatchMemOpParams *p = &b->ops[i];
        switch (p->operation) {
        case CU_STREAM_MEM_OP_WAIT_VALUE_32:
        case CU_STREAM_MEM_OP_WAIT_VALUE_64:
            r = run_wait(b, p);
            break;
        case CU_STREAM_MEM_OP_WRITE_VALUE_32:
        case CU_STREAM_MEM_OP_WRITE_VALUE_64:
            note_write(p->writeValue.address);
            r = sim_guarded(write_word, p);
            break;
        case CU_STREAM_MEM_OP_ATOMIC_REDUCTION:
            note_write(p->atomicReduction.address);
            r = sim_guarded(reduce, p);
            break;
        default: /* barriers: a simulated device has one order of its memory */
            break;
        }
    }
    return r;
}

/* ---- checks */

/* [locked] A word that the device may access: aligned, in the driver's memory, not managed. */
static CUresult check_word(CUcontext ctx, CUdeviceptr address, uint64_t bytes, bool write)
{
    struct sim_span span;
    if (address % bytes)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_span(ctx, address, bytes, write, &span);
    return r ? r : !span.known || span.managed ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static CUresult check(CUcontext ctx, const CUstreamBatchMemOpParams *p, bool v1)
{
    switch (p->operation) {
    case CU_STREAM_MEM_OP_WAIT_VALUE_32:
    case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        if (p->waitValue.flags & ~(3u | CU_STREAM_WAIT_VALUE_FLUSH))
            return CUDA_ERROR_INVALID_VALUE;
        if (p->waitValue.flags & CU_STREAM_WAIT_VALUE_FLUSH)
            return CUDA_ERROR_NOT_SUPPORTED; /* CU_DEVICE_ATTRIBUTE_CAN_FLUSH_REMOTE_WRITES is 0 */
        return check_word(ctx, p->waitValue.address, wide(p) ? 8 : 4, false);
    case CU_STREAM_MEM_OP_WRITE_VALUE_32:
    case CU_STREAM_MEM_OP_WRITE_VALUE_64:
        if (p->writeValue.flags & ~(v1 ? (unsigned)CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER : 0u))
            return CUDA_ERROR_INVALID_VALUE;
        return check_word(ctx, p->writeValue.address, wide(p) ? 8 : 4, true);
    case CU_STREAM_MEM_OP_BARRIER:
        return v1 || p->memoryBarrier.flags > CU_STREAM_MEMORY_BARRIER_TYPE_GPU ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
        return p->flushRemoteWrites.flags ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
    case CU_STREAM_MEM_OP_ATOMIC_REDUCTION:
        if (v1 || p->atomicReduction.flags ||
            (p->atomicReduction.reductionOp != CU_STREAM_ATOMIC_REDUCTION_OP_OR &&
             p->atomicReduction.reductionOp != CU_STREAM_ATOMIC_REDUCTION_OP_AND &&
             p->atomicReduction.reductionOp != CU_STREAM_ATOMIC_REDUCTION_OP_ADD) ||
            (p->atomicReduction.dataType != CU_STREAM_ATOMIC_REDUCTION_UNSIGNED_32 &&
             p->atomicReduction.dataType != CU_STREAM_ATOMIC_REDUCTION_UNSIGNED_64))
            return CUDA_ERROR_INVALID_VALUE;
        return check_word(ctx, p->atomicReduction.address, wide(p) ? 8 : 4, true);
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static CUresult make(CUcontext ctx, unsigned count, const CUstreamBatchMemOpParams *ops, unsigned flags, bool v1, struct sim_op *out)
{
    if (!ops || !count || count > MOST || flags)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = CUDA_SUCCESS;
    sim_take();
    for (unsigned i = 0; i < count && !r; i++)
        r = check(ctx, &ops[i], v1);
    sim_give();
    if (r)
        return r;
    struct batch *b = malloc(sizeof *b + count * sizeof b->ops[0]);
    if (!b)
        return CUDA_ERROR_OUT_OF_MEMORY;
    b->ctx = ctx;
    b->count = count;
    b->flags = flags;
    memcpy(b->ops, ops, count * sizeof b->ops[0]);
    *out = (struct sim_op){run, free, b, CU_GRAPH_NODE_TYPE_BATCH_MEM_OP, NULL};
    return CUDA_SUCCESS;
}

CUresult sim_memop_op(const CUDA_BATCH_MEM_OP_NODE_PARAMS *p, struct sim_op *out)
{
    sim_take();
    CUcontext ctx = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)p->ctx);
    sim_give();
    return ctx ? make(ctx, p->count, p->paramArray, p->flags, false, out) : CUDA_ERROR_INVALID_VALUE;
}

void sim_memop_params(const struct sim_op *op, CUDA_BATCH_MEM_OP_NODE_PARAMS *out)
{
    struct batch *b = op->arg;
    *out = (CUDA_BATCH_MEM_OP_NODE_PARAMS){b->ctx, b->count, b->ops, b->flags};
}

/* ---- entries */

static CUresult queue(CUstream s, bool pt, unsigned count, const CUstreamBatchMemOpParams *ops, unsigned flags, bool v1)
{
    CUcontext ctx;
    struct sim_op op;
    CUresult r = sim_current(&ctx);
    /* The first form needs a setting of the kernel module that is off by default; its attributes say so. */
    if (!r && v1 && !sim_doubt(SIM_DOUBT_MEMOPS_V1))
        r = CUDA_ERROR_NOT_SUPPORTED;
    if (!r)
        r = make(ctx, count, ops, flags, v1, &op);
    return r ? r : sim_enqueue(s, pt, op);
}

static CUresult wait(CUstream s, bool pt, CUdeviceptr address, uint64_t value, unsigned flags, bool big, bool v1)
{
    CUstreamBatchMemOpParams p = {.waitValue = {.operation = big ? CU_STREAM_MEM_OP_WAIT_VALUE_64 : CU_STREAM_MEM_OP_WAIT_VALUE_32,
                                                .address = address, .value64 = value, .flags = flags}};
    return queue(s, pt, 1, &p, 0, v1);
}

static CUresult put(CUstream s, bool pt, CUdeviceptr address, uint64_t value, unsigned flags, bool big, bool v1)
{
    CUstreamBatchMemOpParams p = {.writeValue = {.operation = big ? CU_STREAM_MEM_OP_WRITE_VALUE_64 : CU_STREAM_MEM_OP_WRITE_VALUE_32,
                                                 .address = address, .value64 = value, .flags = flags}};
    return queue(s, pt, 1, &p, 0, v1);
}

#define MEMOP_ENTRIES(suffix, pt, v1) \
    SIM_API CUresult cuStreamWaitValue32##suffix(CUstream s, CUdeviceptr p, cuuint32_t v, unsigned int flags) \
    { SIM_ENTRY(); return wait(s, pt, p, v, flags, false, v1); } \
    SIM_API CUresult cuStreamWaitValue64##suffix(CUstream s, CUdeviceptr p, cuuint64_t v, unsigned int flags) \
    { SIM_ENTRY(); return wait(s, pt, p, v, flags, true, v1); } \
    SIM_API CUresult cuStreamWriteValue32##suffix(CUstream s, CUdeviceptr p, cuuint32_t v, unsigned int flags) \
    { SIM_ENTRY(); return put(s, pt, p, v, flags, false, v1); } \
    SIM_API CUresult cuStreamWriteValue64##suffix(CUstream s, CUdeviceptr p, cuuint64_t v, unsigned int flags) \
    { SIM_ENTRY(); return put(s, pt, p, v, flags, true, v1); } \
    SIM_API CUresult cuStreamBatchMemOp##suffix(CUstream s, unsigned int count, CUstreamBatchMemOpParams *ops, unsigned int flags) \
    { SIM_ENTRY(); return queue(s, pt, count, ops, flags, v1); }
MEMOP_ENTRIES(, false, true)
MEMOP_ENTRIES(_ptsz, true, true)
MEMOP_ENTRIES(_v2, false, false)
MEMOP_ENTRIES(_v2_ptsz, true, false)
