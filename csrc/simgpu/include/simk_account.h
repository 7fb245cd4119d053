/* SPDX-License-Identifier: Apache-2.0 */
/* What gcc calls at each memory access of code compiled with -fsanitize=thread, answered by telling the driver which bytes
 * were touched: so the simulated clock knows what a kernel reads and writes without a line in its source. Included by
 * simk.h under SIM_ACCOUNT; the sanitizer's own library must not be linked (-nodefaultlibs).
 * Rules: nothing here may be instrumented itself; the names are given by assembler labels, because the compiler knows the
 * plain ones as built-ins. Accesses outside the driver's memory (a thread's own variables) are told too and ignored there.
 */
#ifndef SIMK_ACCOUNT_H
#define SIMK_ACCOUNT_H

#ifdef __cplusplus
extern "C" {
#endif

#define SIMK_HIDDEN __attribute__((weak, visibility("hidden"), no_sanitize("thread")))
/* One such function: its result, name, parameters, and what it does. */
#define SIMK_HOOK(result, name, parameters, ...) \
    SIMK_HIDDEN result simk_##name parameters __asm__("__tsan_" #name); \
    SIMK_HIDDEN result simk_##name parameters { __VA_ARGS__ }
#define SIMK_SEE(p, n) do { if (simk_touch) simk_touch((const void *)(p), (n)); } while (0)

#define SIMK_ACCESS(bytes) \
    SIMK_HOOK(void, read##bytes, (const void *p), SIMK_SEE(p, bytes);) \
    SIMK_HOOK(void, write##bytes, (void *p), SIMK_SEE(p, bytes);) \
    SIMK_HOOK(void, unaligned_read##bytes, (const void *p), SIMK_SEE(p, bytes);) \
    SIMK_HOOK(void, unaligned_write##bytes, (void *p), SIMK_SEE(p, bytes);)
SIMK_ACCESS(1)
SIMK_ACCESS(2)
SIMK_ACCESS(4)
SIMK_ACCESS(8)
SIMK_ACCESS(16)
SIMK_HOOK(void, read_range, (const void *p, size_t n), SIMK_SEE(p, n);)
SIMK_HOOK(void, write_range, (void *p, size_t n), SIMK_SEE(p, n);)
SIMK_HOOK(void, vptr_update, (void *p, void *v), (void)p; (void)v;)
SIMK_HOOK(void, func_entry, (void *caller), (void)caller;)
SIMK_HOOK(void, func_exit, (void), )
SIMK_HOOK(void, init, (void), )

/* Atomics: all in the strongest order, as elsewhere in simk.h. What changes its word reads and writes it. */
#define SIMK_CHANGE(bits, op, builtin) \
    SIMK_HOOK(uint##bits##_t, atomic##bits##_##op, (uint##bits##_t *p, uint##bits##_t v, int order), \
              (void)order; SIMK_SEE(p, 2 * sizeof v); return builtin(p, v, __ATOMIC_SEQ_CST);)
#define SIMK_SWAP(bits, op) \
    SIMK_HOOK(unsigned char, atomic##bits##_##op, \
              (uint##bits##_t *p, uint##bits##_t *was, uint##bits##_t v, int order, int order_failed), \
              (void)order; (void)order_failed; SIMK_SEE(p, 2 * sizeof v); \
              return __atomic_compare_exchange_n(p, was, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);)
#define SIMK_ATOMIC(bits) \
    SIMK_HOOK(uint##bits##_t, atomic##bits##_load, (const uint##bits##_t *p, int order), \
              (void)order; SIMK_SEE(p, sizeof *p); return __atomic_load_n(p, __ATOMIC_SEQ_CST);) \
    SIMK_HOOK(void, atomic##bits##_store, (uint##bits##_t *p, uint##bits##_t v, int order), \
              (void)order; SIMK_SEE(p, sizeof v); __atomic_store_n(p, v, __ATOMIC_SEQ_CST);) \
    SIMK_CHANGE(bits, exchange, __atomic_exchange_n) \
    SIMK_CHANGE(bits, fetch_add, __atomic_fetch_add) \
    SIMK_CHANGE(bits, fetch_sub, __atomic_fetch_sub) \
    SIMK_CHANGE(bits, fetch_and, __atomic_fetch_and) \
    SIMK_CHANGE(bits, fetch_or, __atomic_fetch_or) \
    SIMK_CHANGE(bits, fetch_xor, __atomic_fetch_xor) \
    SIMK_SWAP(bits, compare_exchange_strong) \
    SIMK_SWAP(bits, compare_exchange_weak)
SIMK_ATOMIC(8)
SIMK_ATOMIC(16)
SIMK_ATOMIC(32)
SIMK_ATOMIC(64)
SIMK_HOOK(void, atomic_thread_fence, (int order), (void)order; __atomic_thread_fence(__ATOMIC_SEQ_CST);)
SIMK_HOOK(void, atomic_signal_fence, (int order), (void)order; __atomic_signal_fence(__ATOMIC_SEQ_CST);)

#ifdef __cplusplus
}
#endif
#endif
