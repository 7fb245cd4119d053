/* SPDX-License-Identifier: Apache-2.0 */
/* Runs what touches device memory, and makes results of its faults: a GPU reports them, it does not kill the process.
 * Called by whatever runs copies and kernels; kernels can also be stopped on purpose (simk.h).
 * Rules: a fault outside a guard is not ours: it goes to the handler that was there before. A guard is left by a long jump,
 * also from a fiber's stack, so nothing below it may own what must be given back.
 * What becomes what (cuda.h): an access to memory that is not there, 700; a stack that overflows, HARDWARE_STACK_ERROR; an
 * integer division by zero or a trap, LAUNCH_FAILED. A GPU divides by zero without a fault, but the program is as wrong.
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "sanitizer.h"
#include "state.h"

#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

struct guard {
    sigjmp_buf out;
    volatile CUresult result;
    struct sim_watched watched;
};

#define HANDLER_STACK ((size_t)64 << 10) /* bytes; the kernel's own frame takes up to 11 KiB with AMX */
#define PAGE ((uintptr_t)4096)

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
enum { SIGNALS = sizeof signals / sizeof *signals };
static _Thread_local struct guard *guard;
static struct sigaction before[SIGNALS];
static pthread_once_t armed = PTHREAD_ONCE_INIT;
static pthread_key_t stack_key;
static _Thread_local bool has_stack;
static _Thread_local uintptr_t low, top; /* of the thread's own stack, its guard included; 0: unknown */

/* Is a fault at `at` the stack's? It ends in a guard page below. The thread's own we know; a fiber's is where the stack pointer
 * is about to leave it: a push just below, or a frame of some pages that reaches across. */
static bool overflow(uintptr_t at, uintptr_t sp)
{
    if (!top || sim_pages_own(at)) /* a copy has no deep stack; the driver's own addresses are no stack, though they may lie beside one */
        return false;
    if (sp >= low && sp < top)
        return at >= low && at < low + (top - low) / 2 && at < sp + 4 * PAGE;
    return at + PAGE > sp && at < sp + 4 * PAGE;
}

/* Does not return when this thread runs guarded code. */
static void leave(CUresult result)
{
    struct guard *g = guard;
    if (g) {
        guard = NULL;
        g->result = result;
        sim_watch_jump(&g->watched);
        siglongjmp(g->out, 1);
    }
}

static CUresult result_of(int sig, const siginfo_t *info, const void *context)
{
    int otherwise = sim_doubt(SIM_DOUBT_FAULT_RESULTS);
    if (sig == SIGFPE || sig == SIGILL)
        return sig == SIGILL && otherwise ? CUDA_ERROR_ILLEGAL_INSTRUCTION : CUDA_ERROR_LAUNCH_FAILED;
#ifdef __x86_64__
    const ucontext_t *u = context;
    if (sig == SIGSEGV && overflow((uintptr_t)info->si_addr, (uintptr_t)u->uc_mcontext.gregs[REG_RSP]))
        return otherwise ? CUDA_ERROR_LAUNCH_FAILED : CUDA_ERROR_HARDWARE_STACK_ERROR;
#else
    (void)info;
    (void)context;
#endif
    return CUDA_ERROR_ILLEGAL_ADDRESS;
}

static void pass_on(int sig, siginfo_t *info, void *context)
{
    unsigned i = 0;
    while (signals[i] != sig)
        i++;
    const struct sigaction *old = &before[i];
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(sig, info, context);
    } else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
        old->sa_handler(sig);
    } else { /* die of it as if we were not there: the instruction is repeated when we return */
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(sig, &plain, NULL);
        if (info->si_code <= 0)
            raise(sig); /* sent by someone, nothing would be repeated */
    }
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    if (info->si_code > 0) /* not one that somebody sent */
        leave(result_of(sig, info, context));
    pass_on(sig, info, context);
}

static void drop_stack(void *stack)
{
    stack_t off = {.ss_flags = SS_DISABLE};
    sigaltstack(&off, NULL);
    munmap(stack, HANDLER_STACK);
}

static void arm(void)
{
    /* SA_NODEFER: we leave by longjmp without restoring a mask. SA_ONSTACK: the program may have given its threads one. */
    struct sigaction a = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&a.sa_mask);
    pthread_key_create(&stack_key, drop_stack);
    for (unsigned i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &a, &before[i]);
}

/* A stack for the handler, unless this thread has one. Without memory for it an overflow kills the process, as ever. */
static void give_stack(void)
{
    stack_t now;
    pthread_attr_t attr;
    void *lowest;
    size_t size, fence;
    has_stack = true;
    if (!pthread_getattr_np(pthread_self(), &attr)) {
        if (!pthread_attr_getstack(&attr, &lowest, &size) && !pthread_attr_getguardsize(&attr, &fence)) {
            low = (uintptr_t)lowest - fence;
            top = (uintptr_t)lowest + size;
        }
        pthread_attr_destroy(&attr);
    }
    if (sigaltstack(NULL, &now) || !(now.ss_flags & SS_DISABLE))
        return;
    void *p = mmap(NULL, HANDLER_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return;
    stack_t own = {.ss_sp = p, .ss_size = HANDLER_STACK};
    if (sigaltstack(&own, NULL) || pthread_setspecific(stack_key, p))
        drop_stack(p);
}

CUresult sim_guarded(void (*body)(void *), void *arg)
{
    pthread_once(&armed, arm);
    struct guard here, *volatile outer = guard;
    sim_watch_begin(&here.watched);
    if (sigsetjmp(here.out, 0)) {
        sim_watch_landed(&here.watched);
        guard = outer;
        return here.result;
    }
    guard = &here;
    body(arg);
    guard = outer;
    return CUDA_SUCCESS;
}

CUresult sim_guarded_kernel(void (*body)(void *), void *arg)
{
    pthread_once(&armed, arm);
    if (!has_stack)
        give_stack();
    return sim_guarded(body, arg);
}

void sim_fault(void)
{
    leave(CUDA_ERROR_ILLEGAL_ADDRESS);
}

void sim_guard_stop(int result, const char *why)
{
    sim_complain("a kernel was stopped: %s", why);
    leave((CUresult)result);
    abort(); /* a companion that runs on its own */
}
