/* SPDX-License-Identifier: Apache-2.0 */
/* Warp intrinsics: a warp is 32 threads of a block with consecutive numbers, each on a fiber of its own once it waits for the
 * others. Included by simk.h; C++ only (in C, using one does not compile).
 * Rules (CUDA C++ Programming Guide, warp functions): all threads named in the mask call the same function with the same mask.
 * The last to arrive works out everybody's result, so one wait is enough. Threads that have returned, and lanes that the
 * block does not fill, are not waited for. What a shuffle reads from a lane outside the mask is the caller's own value.
 */
#ifndef SIMK_WARP_H
#define SIMK_WARP_H

#ifdef __cplusplus
enum simk_warp_op {
    SIMK_SYNC, SIMK_SHFL, SIMK_BALLOT, SIMK_MATCH_ANY, SIMK_MATCH_ALL,
    SIMK_ADD, SIMK_MIN_U, SIMK_MAX_U, SIMK_MIN_I, SIMK_MAX_I, SIMK_AND, SIMK_OR, SIMK_XOR
};

static inline unsigned long long simk_fold(unsigned op, unsigned long long a, unsigned long long b)
{
    switch (op) {
    case SIMK_ADD: return (unsigned)(a + b);
    case SIMK_MIN_U: return a < b ? a : b;
    case SIMK_MAX_U: return a < b ? b : a;
    case SIMK_MIN_I: return (int)a < (int)b ? a : b;
    case SIMK_MAX_I: return (int)a < (int)b ? b : a;
    case SIMK_AND: return a & b;
    case SIMK_XOR: return a ^ b;
    default: return a | b;
    }
}

/* Everybody of `group` is there: each lane's result. */
static inline void simk_warp_work(struct simk_warp *w, unsigned group, unsigned op)
{
    unsigned long long all = 0, equal = 1;
    unsigned first = (unsigned)__builtin_ctz(group);
    for (unsigned i = first, any = 0; i < 32; i++)
        if (group >> i & 1) {
            unsigned long long v = op == SIMK_BALLOT ? (unsigned long long)(w->lane[i].value != 0) << i : w->lane[i].value;
            all = any ? simk_fold(op, all, v) : v;
            any = 1;
            equal &= w->lane[i].value == w->lane[first].value;
        }
    for (unsigned i = first; i < 32; i++) {
        struct simk_lane *l = &w->lane[i];
        if (!(group >> i & 1))
            continue;
        if (op == SIMK_SHFL) {
            l->result = group >> l->from & 1 ? w->lane[l->from].value : l->value;
        } else if (op == SIMK_MATCH_ANY) {
            l->result = 0;
            for (unsigned k = 0; k < 32; k++)
                l->result |= (unsigned long long)((group >> k & 1) && w->lane[k].value == l->value) << k;
        } else {
            l->result = op == SIMK_MATCH_ALL ? (equal ? group : 0) : all;
        }
    }
}

/* If all of `mask` that can come have come: work out their results and make them ready, except `self`. */
static inline int simk_warp_complete(struct simk_warp *w, unsigned mask, const struct simk_fiber *self)
{
    struct simk_pool *p = simk_self.pool;
    unsigned group = mask & ~w->gone, op = SIMK_SYNC;
    if (!group || (w->waiting & group) != group)
        return 0;
    for (unsigned i = 0, any = 0; i < 32; i++)
        if (group >> i & 1) {
            if (w->lane[i].mask != mask)
                return 0; /* it waits for another group first */
            if (any && w->lane[i].op != op)
                simk_stop(SIMK_LAUNCH_FAILED, "threads of a warp met in different warp functions");
            op = w->lane[i].op;
            any = 1;
        }
    simk_warp_work(w, group, op);
    w->waiting &= ~group;
    for (unsigned i = 0; i < 32; i++)
        if ((group >> i & 1) && w->lane[i].fiber != self)
            simk_ready(p, w->lane[i].fiber);
    return 1;
}

static inline void simk_alive(struct simk_pool *p, const struct simk_fiber *f)
{
    p->warp[f->thread / 32].gone &= ~(1u << f->thread % 32);
}

/* First use in a block: who has returned already? All that were started, except those that wait and the caller. */
static __attribute__((noinline)) void simk_warp_begin(void)
{
    struct simk_state *s = &simk_self;
    struct simk_pool *p = simk_pool();
    unsigned threads = s->block.x * s->block.y * s->block.z, started = s->exhausted ? threads : simk_number(s) + 1;
    for (unsigned w = 0; w < SIMK_MAX_THREADS / 32; w++) {
        p->warp[w].waiting = 0;
        p->warp[w].gone = 0;
    }
    for (unsigned t = 0; t < SIMK_MAX_THREADS; t++)
        if (t < started || t >= threads)
            p->warp[t / 32].gone |= 1u << t % 32;
    s->current->thread = simk_number(s);
    simk_alive(p, s->current);
    for (unsigned i = 0; i < p->waiting_count; i++)
        simk_alive(p, p->waiting[i]);
    for (unsigned i = p->ready_at; i != p->ready_end; i++)
        simk_alive(p, p->ready[i % (2 * SIMK_MAX_THREADS)]);
    s->warps = 1;
}

/* The current thread returns: somebody may have waited for it alone. */
static __attribute__((noinline, unused)) void simk_warp_leave(void)
{
    unsigned number = simk_number(&simk_self);
    struct simk_warp *w = &simk_self.pool->warp[number / 32];
    w->gone |= 1u << number % 32;
    for (unsigned left = w->waiting; left; left &= left - 1)
        if (w->waiting & (left & -left))
            simk_warp_complete(w, w->lane[__builtin_ctz(left)].mask, NULL);
}

static __attribute__((noinline, unused)) unsigned long long simk_warp_meet(unsigned mask, unsigned op, unsigned long long value, int from)
{
    if (!simk_self.warps)
        simk_warp_begin();
    unsigned number = simk_number(&simk_self), lane = number % 32;
    struct simk_warp *w = &simk_self.pool->warp[number / 32];
    struct simk_lane *l = &w->lane[lane];
    if (!(mask >> lane & 1))
        simk_stop(SIMK_LAUNCH_FAILED, "a thread calls a warp function whose mask does not name it");
    simk_self.current->thread = number;
    *l = simk_lane{simk_self.current, mask, op, from, value, 0};
    w->waiting |= 1u << lane;
    if (!simk_warp_complete(w, mask, simk_self.current))
        simk_wait();
    return l->result;
}

static inline int simk_lane_id(void) { return (int)(simk_number(&simk_self) % 32); }

static inline void __syncwarp(unsigned mask = 0xffffffffu) { simk_warp_meet(mask, SIMK_SYNC, 0, 0); }
static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    return (unsigned)simk_warp_meet(mask, SIMK_BALLOT, predicate != 0, 0);
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate)
{
    return !simk_warp_meet(mask, SIMK_BALLOT, predicate == 0, 0);
}
/* Which threads run together is nobody's promise; here each runs alone. */
static inline unsigned __activemask(void) { return 1u << simk_lane_id(); }

template <typename T> static inline unsigned long long simk_bits(T v)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warp functions take values of 4 or 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &v, sizeof v);
    return bits;
}
template <typename T> static inline T simk_shfl(unsigned mask, T v, int from)
{
    unsigned long long bits = simk_warp_meet(mask, SIMK_SHFL, simk_bits(v), from);
    memcpy(&v, &bits, sizeof v);
    return v;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T v, int from, int width = 32)
{
    int me = simk_lane_id();
    return simk_shfl(mask, v, (me & ~(width - 1)) | (from & (width - 1)));
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32)
{
    int me = simk_lane_id(), from = me - (int)by;
    return simk_shfl(mask, v, from < (me & ~(width - 1)) ? me : from);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32)
{
    int me = simk_lane_id(), from = me + (int)by;
    return simk_shfl(mask, v, from > (me | (width - 1)) ? me : from);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32)
{
    int me = simk_lane_id(), from = me ^ with;
    return simk_shfl(mask, v, from > (me | (width - 1)) ? me : from);
}
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T v)
{
    return (unsigned)simk_warp_meet(mask, SIMK_MATCH_ANY, simk_bits(v), 0);
}
template <typename T> static inline unsigned __match_all_sync(unsigned mask, T v, int *all)
{
    unsigned group = (unsigned)simk_warp_meet(mask, SIMK_MATCH_ALL, simk_bits(v), 0);
    *all = group != 0;
    return group;
}
#define SIMK_REDUCE(name, type, op) \
    static inline type name(unsigned mask, type v) { return (type)simk_warp_meet(mask, op, (unsigned)v, 0); }
SIMK_REDUCE(__reduce_add_sync, unsigned, SIMK_ADD)
SIMK_REDUCE(__reduce_add_sync, int, SIMK_ADD)
SIMK_REDUCE(__reduce_min_sync, unsigned, SIMK_MIN_U)
SIMK_REDUCE(__reduce_min_sync, int, SIMK_MIN_I)
SIMK_REDUCE(__reduce_max_sync, unsigned, SIMK_MAX_U)
SIMK_REDUCE(__reduce_max_sync, int, SIMK_MAX_I)
SIMK_REDUCE(__reduce_and_sync, unsigned, SIMK_AND)
SIMK_REDUCE(__reduce_or_sync, unsigned, SIMK_OR)
SIMK_REDUCE(__reduce_xor_sync, unsigned, SIMK_XOR)
#undef SIMK_REDUCE

#else
static __attribute__((noinline, unused)) void simk_warp_leave(void) {}
#define SIMK_CXX_ONLY(name) void name(void) __attribute__((error("warp functions need a companion built as C++ (g++ -x c++)")));
SIMK_CXX_ONLY(__syncwarp)
SIMK_CXX_ONLY(__ballot_sync)
SIMK_CXX_ONLY(__any_sync)
SIMK_CXX_ONLY(__all_sync)
SIMK_CXX_ONLY(__shfl_sync)
SIMK_CXX_ONLY(__shfl_up_sync)
SIMK_CXX_ONLY(__shfl_down_sync)
SIMK_CXX_ONLY(__shfl_xor_sync)
#undef SIMK_CXX_ONLY
#endif
#endif
