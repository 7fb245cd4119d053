/* SPDX-License-Identifier: Apache-2.0 */
/* simk.h: kernels of a .cu file as host code, for the simulated driver.
 *
 * The same source is compiled twice: by nvcc for the program (there this header only defines SIM_KERNEL away), and by
 * gcc (-std=gnu11) or g++ (-std=c++17) into a companion .so, which the simulated driver loads and calls at each launch:
 *     g++ -x c++ -std=c++17 -O2 -fPIC -shared -I<dir of simk.h> app.cu -o app.simk.so
 * Host code of the file stands inside `#ifdef __CUDACC__`. Each kernel is registered once, after its definition:
 *     SIM_KERNEL(saxpy);                         C++: the parameter types are deduced, the name is the mangled one
 *     SIM_KERNEL((scale<float, 4>));             C++: an instance of a template, in parentheses
 *     SIM_KERNEL(saxpy, float, float *, int);    C: the types are named (C++ ignores them)
 *     SIM_KERNEL_SYMBOL(twin, "twin$v2");        C++: under another name
 *     SIM_GLOBAL(table);                         a __device__ or __constant__ variable that the host reads or writes
 *
 * One launch runs on one host thread, block after block and thread after thread. __syncthreads() and the warp intrinsics cost
 * only those who call them: the first caller of a block stays behind on its stack while a fresh one carries on with the next
 * thread. A kernel that can't go on (a barrier that not all reach, a failed assert) ends with the driver's sticky error.
 * simk_math.h, simk_atomic.h and simk_warp.h hold the rest of the language.
 * Compiled with -DSIM_ACCOUNT -fsanitize=thread and linked without that sanitizer's library, a companion tells the driver of
 * every access, and the simulated clock charges the launch for it (simk_account.h):
 *     gcc -x c -std=gnu11 -O2 -fPIC -shared -DSIM_ACCOUNT -fsanitize=thread -nodefaultlibs ... app.cu -o app.simk.so -lm -lc
 * Rules: a kernel must be free of undefined CUDA behaviour (no barrier in diverged code that expects exited threads); there
 * are no cooperative groups; dynamic shared memory is declared with SIM_DYNAMIC_SHARED(type, name), because "extern
 * __shared__" can't be said in C++; a kernel that spins on another block never ends.
 */
#ifndef SIMK_H
#define SIMK_H

#ifdef __CUDACC__
#define SIM_KERNEL(...)
#define SIM_KERNEL_SYMBOL(...)
#define SIM_GLOBAL(...)
#define SIM_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#else

#include <stddef.h>

/* ---- what the driver reads: the only part that must stay binary compatible (SIMK_ABI) ---- */

#define SIMK_ABI 4u

struct simk_dim {
    unsigned x, y, z;
};

struct simk_launch {
    struct simk_dim grid, block;
    size_t dynamic_shared; /* bytes of dynamic shared memory per block */
};

struct simk_kernel {
    const char *name;         /* NULL: the dynamic symbol at entry() */
    const void *(*entry)(void); /* address of the kernel itself */
    void (*run)(const struct simk_launch *launch, const void *params);
    size_t param_size; /* of the parameter buffer: a C struct of the parameters, with or without trailing padding */
    size_t param_count;
};

struct simk_global {
    const char *name;
    void *address;
    size_t size;
};

struct simk_registry {
    unsigned abi;
    struct simk_kernel *const *kernels, *const *kernels_end;
    struct simk_global *const *globals, *const *globals_end;
    void (**touch)(const void *address, size_t bytes); /* set by the driver; NULL: this companion does not account */
    /* Set by the driver: ends the running kernel with a CUresult, after a line on stderr. Does not return. */
    void (**stop)(int result, const char *why);
    void (**condition)(unsigned long long handle, unsigned value); /* set by the driver: cudaGraphSetConditional */
};

#ifndef SIMK_DRIVER /* the driver includes this header for the structs above only */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#ifdef __cplusplus
extern "C" {
#endif
extern struct simk_kernel *const __start_simk_kernels[] __attribute__((weak, visibility("hidden")));
extern struct simk_kernel *const __stop_simk_kernels[] __attribute__((weak, visibility("hidden")));
extern struct simk_global *const __start_simk_globals[] __attribute__((weak, visibility("hidden")));
extern struct simk_global *const __stop_simk_globals[] __attribute__((weak, visibility("hidden")));

#ifdef SIM_ACCOUNT
extern __attribute__((visibility("hidden"))) void (*simk_touch)(const void *address, size_t bytes);
__attribute__((weak, visibility("hidden"))) void (*simk_touch)(const void *address, size_t bytes);
#define SIMK_TOUCH &simk_touch
#else
#define SIMK_TOUCH NULL
#endif

extern __attribute__((visibility("hidden"))) void (*simk_stop)(int result, const char *why);
__attribute__((weak, visibility("hidden"))) void (*simk_stop)(int result, const char *why);
extern __attribute__((visibility("hidden"))) void (*simk_condition)(unsigned long long handle, unsigned value);
__attribute__((weak, visibility("hidden"))) void (*simk_condition)(unsigned long long handle, unsigned value);

/* The one symbol that the driver looks up. Weak, so that several objects of one companion may each include this header. */
extern struct simk_registry simk_registry __attribute__((weak, visibility("default")));
struct simk_registry simk_registry = {
    SIMK_ABI, __start_simk_kernels, __stop_simk_kernels, __start_simk_globals, __stop_simk_globals, SIMK_TOUCH,
    &simk_stop, &simk_condition,
};
#ifdef __cplusplus
}
#endif

/* ---- the language ---- */

#pragma GCC diagnostic ignored "-Wunknown-pragmas" /* "#pragma unroll" */

/* Protected, not default: the program's own host stub has the same mangled name and must not take our kernel's place. */
#define __global__ __attribute__((visibility("protected")))
#define __device__
#define __host__
#define __constant__
#define __managed__
/* One block runs at a time on a thread, so per-thread storage is block storage; kernels of other streams have their own. */
#define __shared__ static __thread
#ifndef __restrict__
#define __restrict__ __restrict
#endif
#ifndef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))
#endif
#ifndef __noinline__
#define __noinline__ __attribute__((noinline))
#endif
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define SIM_DYNAMIC_SHARED(type, name) type *const name = (type *)simk_self.shared

typedef struct simk_dim uint3; /* what threadIdx is */
#define SIMK_VECTOR3(type, name) typedef struct name##3 { type x, y, z; } name##3;
#define SIMK_VECTOR(type, name, bytes) \
    typedef struct name##1 { type x; } name##1; \
    typedef struct __attribute__((aligned(2 * bytes))) name##2 { type x, y; } name##2; \
    typedef struct __attribute__((aligned(4 * bytes > 16 ? 16 : 4 * bytes))) name##4 { type x, y, z, w; } name##4;
SIMK_VECTOR(signed char, char, 1)
SIMK_VECTOR(unsigned char, uchar, 1)
SIMK_VECTOR(short, short, 2)
SIMK_VECTOR(unsigned short, ushort, 2)
SIMK_VECTOR(int, int, 4)
SIMK_VECTOR(unsigned int, uint, 4)
SIMK_VECTOR(float, float, 4)
SIMK_VECTOR(long long, longlong, 8)
SIMK_VECTOR(unsigned long long, ulonglong, 8)
SIMK_VECTOR(double, double, 8)
#undef SIMK_VECTOR
SIMK_VECTOR3(signed char, char)
SIMK_VECTOR3(unsigned char, uchar)
SIMK_VECTOR3(short, short)
SIMK_VECTOR3(unsigned short, ushort)
SIMK_VECTOR3(int, int)
SIMK_VECTOR3(float, float)
SIMK_VECTOR3(long long, longlong)
SIMK_VECTOR3(unsigned long long, ulonglong)
SIMK_VECTOR3(double, double)
#undef SIMK_VECTOR3

#ifdef __cplusplus
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return uint3{x, y, z}; }
};
#else
typedef struct simk_dim dim3;
#endif

/* ---- running threads ---- */

#define SIMK_LAUNCH_FAILED 719 /* CUresult */
#define SIMK_ASSERT 710
#define SIMK_STACK ((size_t)128 << 10)
#define SIMK_MAX_THREADS 1024u

/* What a sanitizer must hear when a thread goes to another stack; nothing in a plain build. */
#if defined(__SANITIZE_THREAD__) && !defined(SIM_ACCOUNT)
#define SIMK_TSAN 1
#elif defined(__SANITIZE_ADDRESS__)
#define SIMK_ASAN 1
#endif
#ifdef __cplusplus
extern "C" {
#endif
#ifdef SIMK_TSAN
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
#elif defined(SIMK_ASAN)
void __sanitizer_start_switch_fiber(void **fake, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake, const void **bottom, size_t *size);
#endif
#ifdef __cplusplus
}
#endif

struct simk_fiber {
    ucontext_t context;
    char *stack; /* NULL: the worker thread's own */
#if defined(SIMK_TSAN) || defined(SIMK_ASAN)
    void *watched;      /* TSan: its fiber; ASan: the fake stack while another one runs */
    const void *bottom; /* ASan: the stack's bounds */
    size_t size;
#endif
    unsigned thread; /* its number in the block, while it waits */
};

/* What a thread of a warp that waits for others brought, and what it takes home. */
struct simk_lane {
    struct simk_fiber *fiber;
    unsigned mask, op;
    int from; /* the lane whose value it asks for */
    unsigned long long value, result;
};
struct simk_warp {
    struct simk_lane lane[32];
    unsigned waiting, gone; /* bit per lane; gone: has returned, or never was */
};

/* The fibers of one launch: created at its first barrier, kept for the next launch that needs some. */
struct simk_pool {
    struct simk_pool *next;
    struct simk_fiber fiber[SIMK_MAX_THREADS + 1];
    unsigned made, spare_count, live;
    struct simk_fiber *spare[SIMK_MAX_THREADS + 1];
    /* Those that may go on (a ring), and those that wait at the barrier; in order of arrival, so that a run is repeatable. */
    struct simk_fiber *ready[2 * SIMK_MAX_THREADS], *waiting[SIMK_MAX_THREADS + 1];
    unsigned ready_at, ready_end, waiting_count; /* the first two count on and on */
    struct simk_warp warp[SIMK_MAX_THREADS / 32];
#ifdef SIMK_ASAN
    struct simk_fiber *left; /* who was left in the newest switch */
#endif
};

struct simk_state {
    struct simk_dim thread, block_index, block, grid;
    int exhausted; /* every thread of the block has been started */
    int vote;      /* accumulator of the __syncthreads_*() forms */
    int warps;     /* a thread of this block has used a warp intrinsic: pool->warp is valid */
    void *shared;
    void (*threads)(const void *params);
    const void *params;
    struct simk_pool *pool; /* NULL until the first barrier */
    struct simk_fiber *current;
};

/* initial-exec: a kernel reads its indices through one segment-relative load instead of a call. */
extern __attribute__((visibility("hidden"), tls_model("initial-exec"))) __thread struct simk_state simk_self;
__attribute__((weak, visibility("hidden"), tls_model("initial-exec"))) __thread struct simk_state simk_self;
extern __attribute__((visibility("hidden"))) struct simk_pool *simk_pools;
__attribute__((weak, visibility("hidden"))) struct simk_pool *simk_pools;
extern __attribute__((visibility("hidden"))) char simk_pools_lock;
__attribute__((weak, visibility("hidden"))) char simk_pools_lock;

#define threadIdx (simk_self.thread)
#define blockIdx (simk_self.block_index)
#define blockDim (simk_self.block)
#define gridDim (simk_self.grid)
#define warpSize 32

static inline unsigned simk_number(const struct simk_state *s)
{
    return s->thread.x + s->block.x * (s->thread.y + s->block.y * s->thread.z);
}

static __attribute__((noinline, unused)) void simk_warp_leave(void);

/* Go to the block's next thread; 0 when there is none. */
static inline int simk_advance(void)
{
    struct simk_state *s = &simk_self;
    if (__builtin_expect(s->exhausted, 0))
        return 0;
    if (__builtin_expect(++s->thread.x < s->block.x, 1))
        return 1;
    s->thread.x = 0;
    if (++s->thread.y < s->block.y)
        return 1;
    s->thread.y = 0;
    if (++s->thread.z < s->block.z)
        return 1;
    s->exhausted = 1;
    return 0;
}

/* The same when the current thread has returned. */
static inline int simk_step(void)
{
    if (__builtin_expect(simk_self.warps, 0))
        simk_warp_leave();
    return simk_advance();
}

static inline struct simk_pool *simk_pool_take(void)
{
    while (__atomic_test_and_set(&simk_pools_lock, __ATOMIC_ACQUIRE)) {
    }
    struct simk_pool *p = simk_pools;
    if (p)
        simk_pools = p->next;
    __atomic_clear(&simk_pools_lock, __ATOMIC_RELEASE);
    if (!p) {
        p = (struct simk_pool *)calloc(1, sizeof *p);
        if (!p)
            abort();
        p->made = 1; /* fiber[0] is the worker thread itself */
    }
    return p;
}

static inline void simk_pool_give(struct simk_pool *p)
{
    while (__atomic_test_and_set(&simk_pools_lock, __ATOMIC_ACQUIRE)) {
    }
    p->next = simk_pools;
    simk_pools = p;
    __atomic_clear(&simk_pools_lock, __ATOMIC_RELEASE);
}

/* Go from one stack to the other. What runs after it may run on another thread: fibers outlive a launch. */
static inline void simk_swap(struct simk_pool *p, struct simk_fiber *from, struct simk_fiber *to)
{
    simk_self.current = to;
#ifdef SIMK_TSAN
    __tsan_switch_to_fiber(to->watched, 0);
#elif defined(SIMK_ASAN)
    p->left = from;
    __sanitizer_start_switch_fiber(&from->watched, to->bottom, to->size);
#endif
    swapcontext(&from->context, &to->context);
#ifdef SIMK_ASAN
    __sanitizer_finish_switch_fiber(from->watched, &p->left->bottom, &p->left->size);
#endif
    (void)p;
}

static inline void simk_ready(struct simk_pool *p, struct simk_fiber *f)
{
    p->ready[p->ready_end++ % (2 * SIMK_MAX_THREADS)] = f;
}

/* Leave `from` for whoever may run next. With nobody ready, the barrier is complete: all that wait become ready. */
static inline void simk_switch(struct simk_fiber *from)
{
    struct simk_pool *p = simk_self.pool;
    if (p->ready_at == p->ready_end) {
        if (simk_self.warps)
            for (unsigned w = 0; w < SIMK_MAX_THREADS / 32; w++)
                if (p->warp[w].waiting)
                    simk_stop(SIMK_LAUNCH_FAILED, "threads of a warp wait for some of their mask that never come");
        for (unsigned i = 0; i < p->waiting_count; i++)
            simk_ready(p, p->waiting[i]);
        p->waiting_count = 0;
    }
    struct simk_fiber *to = p->ready_at != p->ready_end ? p->ready[p->ready_at++ % (2 * SIMK_MAX_THREADS)] : &p->fiber[0];
    if (to == from)
        return;
    simk_swap(p, from, to);
}

/* Runs one thread of a block, then waits to be the stack of another. A function of its own, because the address of simk_self
 * is the calling thread's, which the compiler may keep in a register over the switch; the next turn may be another thread's. */
static __attribute__((noinline)) void simk_fiber_turn(void)
{
    __asm__ volatile("" ::: "memory"); /* keeps the call: it has effects that the compiler cannot see */
    struct simk_fiber *me = simk_self.current;
    if (simk_advance())
        simk_self.threads(simk_self.params);
    struct simk_pool *p = simk_self.pool;
    p->live--;
    p->spare[p->spare_count++] = me;
    simk_switch(me);
}

static void simk_fiber_main(void)
{
#ifdef SIMK_ASAN
    struct simk_fiber *left = simk_self.pool->left;
    __sanitizer_finish_switch_fiber(NULL, &left->bottom, &left->size);
#endif
    for (;;)
        simk_fiber_turn();
}

static inline void simk_fiber_make(struct simk_fiber *f)
{
    f->stack = (char *)mmap(NULL, SIMK_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (f->stack == (char *)MAP_FAILED)
        abort();
    mprotect(f->stack, 4096, PROT_NONE);
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = SIMK_STACK;
    f->context.uc_link = NULL;
#ifdef SIMK_TSAN
    f->watched = __tsan_create_fiber(0);
#elif defined(SIMK_ASAN)
    f->bottom = f->stack;
    f->size = SIMK_STACK;
#endif
    makecontext(&f->context, simk_fiber_main, 0);
}

static inline struct simk_fiber *simk_fiber_new(struct simk_pool *p)
{
    if (p->spare_count)
        return p->spare[--p->spare_count];
    if (p->made > SIMK_MAX_THREADS)
        abort(); /* the driver refuses blocks of more than 1024 threads */
    simk_fiber_make(&p->fiber[p->made]);
    return &p->fiber[p->made++];
}

static inline struct simk_pool *simk_pool(void)
{
    struct simk_state *s = &simk_self;
    if (!s->pool) {
        struct simk_pool *p = s->pool = simk_pool_take();
        p->live = p->ready_at = p->ready_end = p->waiting_count = 0;
        s->current = &p->fiber[0];
#ifdef SIMK_TSAN
        p->fiber[0].watched = __tsan_get_current_fiber();
#endif
    }
    return s->pool;
}

/* The current fiber has put itself where it will be found; go on with the others until somebody makes it ready. */
static __attribute__((noinline, unused)) void simk_wait(void)
{
    struct simk_state *s = &simk_self;
    struct simk_pool *p = s->pool;
    struct simk_dim me = s->thread;
    struct simk_fiber *f = s->current;
    if (s->exhausted) {
        simk_switch(f);
    } else { /* every thread starts before any goes on: so nothing that waits is resumed before the block is complete */
        struct simk_fiber *fresh = simk_fiber_new(p);
        p->live++;
        simk_swap(p, f, fresh);
    }
    s->thread = me;
}

/* A barrier of the block's threads; those that have returned count as arrived. */
static __attribute__((noinline, unused)) void simk_barrier(void)
{
    struct simk_pool *p = simk_pool();
    struct simk_fiber *f = simk_self.current;
    f->thread = simk_number(&simk_self);
    p->waiting[p->waiting_count++] = f;
    simk_wait();
}

static __attribute__((unused)) void simk_run(const struct simk_launch *l, const void *params, void (*threads)(const void *))
{
    struct simk_state *s = &simk_self;
    void *shared = l->dynamic_shared ? aligned_alloc(256, (l->dynamic_shared + 255) & ~(size_t)255) : NULL;
    if (l->dynamic_shared && !shared)
        abort();
    s->grid = l->grid;
    s->block = l->block;
    s->shared = shared;
    s->threads = threads;
    s->params = params;
    s->pool = NULL;
    for (unsigned z = 0; z < l->grid.z; z++)
        for (unsigned y = 0; y < l->grid.y; y++)
            for (unsigned x = 0; x < l->grid.x; x++) {
                s->block_index.x = x;
                s->block_index.y = y;
                s->block_index.z = z;
                s->thread.x = s->thread.y = s->thread.z = 0;
                s->exhausted = 0;
                s->vote = 0;
                s->warps = 0;
                threads(params);
                while (s->pool && s->pool->live) /* other threads of the block are still at a barrier */
                    simk_switch(&s->pool->fiber[0]);
            }
    if (s->pool)
        simk_pool_give(s->pool);
    free(shared);
}

#define __syncthreads() simk_barrier()
#define __syncthreads_or(p) simk_vote((p) != 0, 0)
#define __syncthreads_and(p) (!simk_vote((p) == 0, 0))
#define __syncthreads_count(p) simk_vote((p) != 0, 1)
static inline int simk_vote(int one, int count)
{
    simk_self.vote += one;
    simk_barrier();
    int v = simk_self.vote;
    simk_barrier();
    simk_self.vote = 0;
    simk_barrier();
    return count ? v : v != 0;
}
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_block() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#define __threadfence_system() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __trap() __builtin_trap()
/* Which body of a conditional node runs (cuda_device_runtime_api.h): the handle is one of cuGraphConditionalHandleCreate. */
typedef unsigned long long cudaGraphConditionalHandle;
#define cudaGraphSetConditional(handle, value) simk_condition((handle), (value))

/* A failed assert() of <assert.h> ends the kernel, not the process. */
#ifdef __cplusplus
extern "C"
#endif
__attribute__((weak, visibility("hidden"), noreturn)) void simk_assert_fail(const char *what, const char *file, unsigned line,
                                                                           const char *function) __asm__("__assert_fail");
__attribute__((weak, visibility("hidden"), noreturn)) void simk_assert_fail(const char *what, const char *file, unsigned line,
                                                                           const char *function)
{
    char text[512];
    snprintf(text, sizeof text, "%s:%u: %s: block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed.", file, line, function,
             blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, what);
    simk_stop(SIMK_ASSERT, text);
    __builtin_unreachable();
}
/* The simulated GPU's clock runs at 1 GHz (CU_DEVICE_ATTRIBUTE_CLOCK_RATE), in real time. */
static inline long long clock64(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (long long)t.tv_sec * 1000000000ll + t.tv_nsec;
}

#include "simk_atomic.h"
#include "simk_math.h"
#include "simk_warp.h"

#ifdef SIM_ACCOUNT
#include "simk_account.h"
#endif

/* ---- registration ---- */

#define SIMK_CAT_(a, b) a##b
#define SIMK_CAT(a, b) SIMK_CAT_(a, b)
/* A section of pointers, not of structs: compilers may put padding between structs. */
#define SIMK_LIST(kind, id) \
    static struct simk_##kind *const SIMK_CAT(simk_link_, id) __attribute__((section("simk_" #kind "s"), used)) = \
        &SIMK_CAT(simk_item_, id)
#define SIM_GLOBAL(variable) SIMK_GLOBAL(variable, __COUNTER__)
#define SIMK_GLOBAL(variable, id) \
    static struct simk_global SIMK_CAT(simk_item_, id) = {#variable, (void *)&variable, sizeof(variable)}; \
    SIMK_LIST(global, id)

#ifdef __cplusplus
#include <utility>

/* Offset of parameter `index` of a kernel with parameters A...; index = sizeof...(A): the size of them all. */
template <typename... A> constexpr size_t simk_offset(size_t index)
{
    size_t size[] = {sizeof(A)..., 0}, align[] = {alignof(A)..., 1}, at = 0;
    for (size_t i = 0; i < index; i++)
        at = (at + align[i] - 1) / align[i] * align[i] + size[i];
    return (at + align[index] - 1) / align[index] * align[index];
}

template <typename F, F f> struct simk_thunk;
template <typename... A, void (*f)(A...)> struct simk_thunk<void (*)(A...), f> {
    template <size_t... I> static void call(const char *p, std::index_sequence<I...>)
    {
        (void)p;
        do
            f(*reinterpret_cast<const A *>(p + simk_offset<A...>(I))...);
        while (simk_step());
    }
    static void threads(const void *p) { call(static_cast<const char *>(p), std::index_sequence_for<A...>()); }
    static void run(const struct simk_launch *l, const void *p) { simk_run(l, p, threads); }
    static const void *entry() { return reinterpret_cast<const void *>(f); }
    static constexpr size_t size = simk_offset<A...>(sizeof...(A)), count = sizeof...(A);
};

#define SIMK_KERNEL(k, symbol, id) \
    static struct simk_kernel SIMK_CAT(simk_item_, id) = { \
        symbol, simk_thunk<decltype(&(k)), (k)>::entry, simk_thunk<decltype(&(k)), (k)>::run, \
        simk_thunk<decltype(&(k)), (k)>::size, simk_thunk<decltype(&(k)), (k)>::count}; \
    SIMK_LIST(kernel, id)
#define SIM_KERNEL(k, ...) SIMK_KERNEL(k, NULL, __COUNTER__)
#define SIM_KERNEL_SYMBOL(k, symbol) SIMK_KERNEL(k, symbol, __COUNTER__)

#else

#define SIMK_COUNT_(_0, _1, _2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, _13, _14, _15, _16, n, ...) n
#define SIMK_COUNT(...) SIMK_COUNT_(_0, ##__VA_ARGS__, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
/* The fields, and the arguments; both count down, so that they meet in the same order. */
#define SIMK_D0(...)
#define SIMK_D1(t) __typeof__(t) p1;
#define SIMK_D2(t, ...) __typeof__(t) p2; SIMK_D1(__VA_ARGS__)
#define SIMK_D3(t, ...) __typeof__(t) p3; SIMK_D2(__VA_ARGS__)
#define SIMK_D4(t, ...) __typeof__(t) p4; SIMK_D3(__VA_ARGS__)
#define SIMK_D5(t, ...) __typeof__(t) p5; SIMK_D4(__VA_ARGS__)
#define SIMK_D6(t, ...) __typeof__(t) p6; SIMK_D5(__VA_ARGS__)
#define SIMK_D7(t, ...) __typeof__(t) p7; SIMK_D6(__VA_ARGS__)
#define SIMK_D8(t, ...) __typeof__(t) p8; SIMK_D7(__VA_ARGS__)
#define SIMK_D9(t, ...) __typeof__(t) p9; SIMK_D8(__VA_ARGS__)
#define SIMK_D10(t, ...) __typeof__(t) p10; SIMK_D9(__VA_ARGS__)
#define SIMK_D11(t, ...) __typeof__(t) p11; SIMK_D10(__VA_ARGS__)
#define SIMK_D12(t, ...) __typeof__(t) p12; SIMK_D11(__VA_ARGS__)
#define SIMK_D13(t, ...) __typeof__(t) p13; SIMK_D12(__VA_ARGS__)
#define SIMK_D14(t, ...) __typeof__(t) p14; SIMK_D13(__VA_ARGS__)
#define SIMK_D15(t, ...) __typeof__(t) p15; SIMK_D14(__VA_ARGS__)
#define SIMK_D16(t, ...) __typeof__(t) p16; SIMK_D15(__VA_ARGS__)
#define SIMK_A0
#define SIMK_A1 a->p1
#define SIMK_A2 a->p2, SIMK_A1
#define SIMK_A3 a->p3, SIMK_A2
#define SIMK_A4 a->p4, SIMK_A3
#define SIMK_A5 a->p5, SIMK_A4
#define SIMK_A6 a->p6, SIMK_A5
#define SIMK_A7 a->p7, SIMK_A6
#define SIMK_A8 a->p8, SIMK_A7
#define SIMK_A9 a->p9, SIMK_A8
#define SIMK_A10 a->p10, SIMK_A9
#define SIMK_A11 a->p11, SIMK_A10
#define SIMK_A12 a->p12, SIMK_A11
#define SIMK_A13 a->p13, SIMK_A12
#define SIMK_A14 a->p14, SIMK_A13
#define SIMK_A15 a->p15, SIMK_A14
#define SIMK_A16 a->p16, SIMK_A15

#define SIMK_KERNEL(k, id, n, ...) \
    struct SIMK_CAT(simk_args_, id) { SIMK_CAT(SIMK_D, n)(__VA_ARGS__) }; \
    static void SIMK_CAT(simk_threads_, id)(const void *params) \
    { \
        const struct SIMK_CAT(simk_args_, id) *a = (const struct SIMK_CAT(simk_args_, id) *)params; \
        (void)a; \
        do \
            k(SIMK_CAT(SIMK_A, n)); \
        while (simk_step()); \
    } \
    static void SIMK_CAT(simk_run_, id)(const struct simk_launch *l, const void *params) \
    { \
        simk_run(l, params, SIMK_CAT(simk_threads_, id)); \
    } \
    static const void *SIMK_CAT(simk_entry_, id)(void) { return (const void *)k; } \
    static struct simk_kernel SIMK_CAT(simk_item_, id) = {#k, SIMK_CAT(simk_entry_, id), SIMK_CAT(simk_run_, id), \
                                                        sizeof(struct SIMK_CAT(simk_args_, id)), n}; \
    SIMK_LIST(kernel, id)
#define SIM_KERNEL(k, ...) SIMK_KERNEL_(k, __COUNTER__, SIMK_COUNT(__VA_ARGS__), ##__VA_ARGS__)
#define SIMK_KERNEL_(k, id, n, ...) SIMK_KERNEL(k, id, n, ##__VA_ARGS__)
#endif

#endif /* SIMK_DRIVER */
#endif /* __CUDACC__ */
#endif
