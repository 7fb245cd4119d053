/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA's atomics as real ones, because kernels of other streams run on other host threads. Included by simk.h.
 * Rules: all are system-wide and in the strongest order, so the _block and _system forms are the same.
 */
#ifndef SIMK_ATOMIC_H
#define SIMK_ATOMIC_H

#define SIMK_ATOMIC_FLOAT(name, type, bits, expression) \
    static inline type name(type *p, type v) \
    { \
        bits *b = (bits *)p, was = __atomic_load_n(b, __ATOMIC_RELAXED), now; \
        type a, r; \
        do { \
            memcpy(&a, &was, sizeof a); \
            r = (expression); \
            memcpy(&now, &r, sizeof now); \
        } while (!__atomic_compare_exchange_n(b, &was, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)); \
        return a; \
    }
typedef uint32_t __attribute__((may_alias)) simk_bits32;
typedef uint64_t __attribute__((may_alias)) simk_bits64;
SIMK_ATOMIC_FLOAT(simk_add_f, float, simk_bits32, a + v)
SIMK_ATOMIC_FLOAT(simk_add_d, double, simk_bits64, a + v)
SIMK_ATOMIC_FLOAT(simk_exch_f, float, simk_bits32, v)
#undef SIMK_ATOMIC_FLOAT

#define SIMK_ATOMICS(type, suffix) \
    static inline type simk_add_##suffix(type *p, type v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
    static inline type simk_sub_##suffix(type *p, type v) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
    static inline type simk_cas_##suffix(type *p, type was, type v) \
    { \
        __atomic_compare_exchange_n(p, &was, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        return was; \
    } \
    static inline type simk_exch_##suffix(type *p, type v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
    static inline type simk_max_##suffix(type *p, type v) \
    { \
        type was = __atomic_load_n(p, __ATOMIC_RELAXED); \
        while (was < v && !__atomic_compare_exchange_n(p, &was, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) { \
        } \
        return was; \
    } \
    static inline type simk_min_##suffix(type *p, type v) \
    { \
        type was = __atomic_load_n(p, __ATOMIC_RELAXED); \
        while (v < was && !__atomic_compare_exchange_n(p, &was, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) { \
        } \
        return was; \
    } \
    static inline type simk_xor_##suffix(type *p, type v) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); } \
    static inline type simk_or_##suffix(type *p, type v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); } \
    static inline type simk_and_##suffix(type *p, type v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
SIMK_ATOMICS(int, i)
SIMK_ATOMICS(unsigned, u)
SIMK_ATOMICS(long, l)
SIMK_ATOMICS(unsigned long, ul)
SIMK_ATOMICS(long long, ll)
SIMK_ATOMICS(unsigned long long, ull)
#undef SIMK_ATOMICS

/* Up to a limit and back to 0; down to 0, and from there or from above the limit to the limit. */
#define SIMK_ATOMIC_WRAP(name, expression) \
    static inline unsigned name(unsigned *p, unsigned v) \
    { \
        unsigned was = __atomic_load_n(p, __ATOMIC_RELAXED); \
        while (!__atomic_compare_exchange_n(p, &was, (expression), 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) { \
        } \
        return was; \
    }
SIMK_ATOMIC_WRAP(atomicInc, was >= v ? 0 : was + 1)
SIMK_ATOMIC_WRAP(atomicDec, was == 0 || was > v ? v : was - 1)
#undef SIMK_ATOMIC_WRAP

#ifdef __cplusplus
#define SIMK_OVERLOAD(cuda, op, type, suffix) \
    static inline type cuda(type *p, type v) { return simk_##op##_##suffix(p, v); }
#define SIMK_OVERLOADS(cuda, op) \
    SIMK_OVERLOAD(cuda, op, int, i) SIMK_OVERLOAD(cuda, op, unsigned, u) SIMK_OVERLOAD(cuda, op, long, l) \
    SIMK_OVERLOAD(cuda, op, unsigned long, ul) SIMK_OVERLOAD(cuda, op, long long, ll) \
    SIMK_OVERLOAD(cuda, op, unsigned long long, ull)
SIMK_OVERLOADS(atomicAdd, add)
SIMK_OVERLOAD(atomicAdd, add, float, f)
SIMK_OVERLOAD(atomicAdd, add, double, d)
SIMK_OVERLOADS(atomicSub, sub)
SIMK_OVERLOADS(atomicExch, exch)
SIMK_OVERLOAD(atomicExch, exch, float, f)
SIMK_OVERLOADS(atomicMax, max)
SIMK_OVERLOADS(atomicMin, min)
SIMK_OVERLOADS(atomicXor, xor)
SIMK_OVERLOADS(atomicOr, or)
SIMK_OVERLOADS(atomicAnd, and)
#undef SIMK_OVERLOAD
#define SIMK_OVERLOAD(cuda, op, type, suffix) \
    static inline type cuda(type *p, type was, type v) { return simk_##op##_##suffix(p, was, v); }
SIMK_OVERLOADS(atomicCAS, cas)
#undef SIMK_OVERLOAD
#undef SIMK_OVERLOADS
#else
#define SIMK_PICK(op, p) \
    int *: simk_##op##_i, unsigned *: simk_##op##_u, long *: simk_##op##_l, unsigned long *: simk_##op##_ul, \
    long long *: simk_##op##_ll, unsigned long long *: simk_##op##_ull
#define atomicAdd(p, v) _Generic((p), SIMK_PICK(add, p), float *: simk_add_f, double *: simk_add_d)((p), (v))
#define atomicSub(p, v) _Generic((p), SIMK_PICK(sub, p))((p), (v))
#define atomicExch(p, v) _Generic((p), SIMK_PICK(exch, p), float *: simk_exch_f)((p), (v))
#define atomicMax(p, v) _Generic((p), SIMK_PICK(max, p))((p), (v))
#define atomicMin(p, v) _Generic((p), SIMK_PICK(min, p))((p), (v))
#define atomicXor(p, v) _Generic((p), SIMK_PICK(xor, p))((p), (v))
#define atomicOr(p, v) _Generic((p), SIMK_PICK(or, p))((p), (v))
#define atomicAnd(p, v) _Generic((p), SIMK_PICK(and, p))((p), (v))
#define atomicCAS(p, was, v) _Generic((p), SIMK_PICK(cas, p))((p), (was), (v))
#endif

#define atomicAdd_block atomicAdd
#define atomicAdd_system atomicAdd
#define atomicSub_block atomicSub
#define atomicSub_system atomicSub
#define atomicExch_block atomicExch
#define atomicExch_system atomicExch
#define atomicMax_block atomicMax
#define atomicMax_system atomicMax
#define atomicMin_block atomicMin
#define atomicMin_system atomicMin
#define atomicInc_block atomicInc
#define atomicInc_system atomicInc
#define atomicDec_block atomicDec
#define atomicDec_system atomicDec
#define atomicCAS_block atomicCAS
#define atomicCAS_system atomicCAS
#define atomicAnd_block atomicAnd
#define atomicAnd_system atomicAnd
#define atomicOr_block atomicOr
#define atomicOr_system atomicOr
#define atomicXor_block atomicXor
#define atomicXor_system atomicXor

#endif
