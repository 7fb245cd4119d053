/* SPDX-License-Identifier: Apache-2.0 */
/* The state of the process: open, frozen (nothing is moved any more) or dead (nothing is touched any more), and why. Asked by
 * the mover before each safepoint and by nearly every hook; set by the hooks of triggers, by shim/freeze.c, and by whoever
 * sees an answer of the driver that leaves nothing usable behind.
 * Rules: a state is only ever left for a later one; its first reason is kept and logged once; whatever sets it takes no lock
 * and asks the driver nothing, because it may happen anywhere; nothing here is called at a launch. */
#include "tiering/tiering.h"

#include <stdatomic.h>

#include "shim/log.h"

/* The reason is the state: there is no moment at which one is known without the other. */
static _Atomic(const char *) frozen, dead;
static atomic_bool aside, ending;
static _Atomic(CUresult) dead_error = CUDA_SUCCESS;

/* As long as a safepoint may take in all, and then some; milliseconds. */
enum { MOVE_PATIENCE_MS = 1000 };

bool spill_dead(void) { return atomic_load_explicit(&dead, memory_order_acquire) != NULL; }

CUresult spill_dead_error(void) { return atomic_load(&dead_error); }

bool spill_forked(void) { return spill_dead() && spill_dead_error() == CUDA_SUCCESS; }

bool spill_aside(void) { return atomic_load_explicit(&aside, memory_order_relaxed); }

enum spill_state spill_state_now(void)
{
    if (spill_dead())
        return SPILL_DEAD;
    return atomic_load_explicit(&frozen, memory_order_acquire) ? SPILL_FROZEN : SPILL_OPEN;
}

const char *spill_state_name(enum spill_state state)
{
    static const char *const names[] = { "open", "frozen", "dead" };
    return names[state];
}

const char *spill_state_why(void)
{
    const char *why = atomic_load_explicit(&dead, memory_order_acquire);
    if (!why)
        why = atomic_load_explicit(&frozen, memory_order_acquire);
    return why ? why : "";
}

/* True for the first. */
static bool settle(_Atomic(const char *) *reason, const char *why)
{
    const char *none = NULL;
    return atomic_compare_exchange_strong(reason, &none, why);
}

/* Once, and not before there is anything that could be moved: a program that uses no CUDA memory hears nothing of us. */
void spill_state_tell(void)
{
    static atomic_bool told;
    const char *why = atomic_load_explicit(&frozen, memory_order_acquire);
    if (!why || !spill_settings() || atomic_exchange(&told, true))
        return;
    if (spill_aside())
        spill_log(SPILL_LOG_WARN, "stepping aside: %s; nothing is spilled or moved from now on", why);
    else
        spill_log(SPILL_LOG_WARN, "frozen: %s; placement stays as it is, spilling goes on", why);
}

void spill_freeze(const char *why)
{
    if (!spill_dead() && settle(&frozen, why))
        spill_state_tell();
}

void spill_step_aside(const char *why)
{
    if (atomic_exchange(&aside, true))
        return;
    if (!settle(&frozen, why) && spill_settings())
        spill_log(SPILL_LOG_WARN, "stepping aside: %s; nothing is spilled from now on", why);
    spill_state_tell();
}

void spill_look(void)
{
    const struct spill_settings *settings = spill_settings();
    if (!spill_dead() && settings && settings->look)
        settings->look();
}

bool spill_may_move(void)
{
    spill_look();
    return spill_state_now() == SPILL_OPEN && !atomic_load(&ending);
}

/* Of all but the first two cuda.h says that they leave "the process in an inconsistent state and any further CUDA work will
 * return the same error", or that the process must be terminated. */
static const char *fatal(CUresult answer)
{
    switch ((int)answer) {
    case CUDA_ERROR_DEINITIALIZED: return "the driver is shutting down (error 4)";
    case CUDA_ERROR_CONTAINED: return "the driver answered CUDA_ERROR_CONTAINED (226)";
    case CUDA_ERROR_ILLEGAL_ADDRESS: return "the driver answered CUDA_ERROR_ILLEGAL_ADDRESS (700)";
    case CUDA_ERROR_LAUNCH_TIMEOUT: return "the driver answered CUDA_ERROR_LAUNCH_TIMEOUT (702)";
    case CUDA_ERROR_HARDWARE_STACK_ERROR: return "the driver answered CUDA_ERROR_HARDWARE_STACK_ERROR (714)";
    case CUDA_ERROR_ILLEGAL_INSTRUCTION: return "the driver answered CUDA_ERROR_ILLEGAL_INSTRUCTION (715)";
    case CUDA_ERROR_MISALIGNED_ADDRESS: return "the driver answered CUDA_ERROR_MISALIGNED_ADDRESS (716)";
    case CUDA_ERROR_INVALID_ADDRESS_SPACE: return "the driver answered CUDA_ERROR_INVALID_ADDRESS_SPACE (717)";
    case CUDA_ERROR_INVALID_PC: return "the driver answered CUDA_ERROR_INVALID_PC (718)";
    case CUDA_ERROR_LAUNCH_FAILED: return "the driver answered CUDA_ERROR_LAUNCH_FAILED (719)";
    case CUDA_ERROR_TENSOR_MEMORY_LEAK: return "the driver answered CUDA_ERROR_TENSOR_MEMORY_LEAK (721)";
    case CUDA_ERROR_MPS_CLIENT_TERMINATED: return "the driver answered CUDA_ERROR_MPS_CLIENT_TERMINATED (810)";
    default: return NULL;
    }
}

/* A context is lost, or a device may be failing: what is left goes on, but no byte is moved any more that needn't be. */
static const char *doubtful(CUresult answer)
{
    switch ((int)answer) {
    case CUDA_ERROR_ECC_UNCORRECTABLE: return "the driver answered CUDA_ERROR_ECC_UNCORRECTABLE (214)";
    case CUDA_ERROR_NVLINK_UNCORRECTABLE: return "the driver answered CUDA_ERROR_NVLINK_UNCORRECTABLE (220)";
    case CUDA_ERROR_ASSERT: return "a device-side assert has ended a context (error 710)";
    default: return NULL;
    }
}

void spill_seen_error(CUresult answer)
{
    const char *why = fatal(answer);
    CUresult none = CUDA_SUCCESS;
    if (why) {
        atomic_compare_exchange_strong(&dead_error, &none, answer);
        if (settle(&dead, why) && spill_settings())
            spill_log(SPILL_LOG_WARN, "dead: %s; managed memory is left as it is, every call goes to the driver", why);
    } else if ((why = doubtful(answer))) {
        spill_freeze(why);
    }
}

/* ---- the ends of a process ---- */

void spill_after_fork(void)
{
    settle(&dead, "the child of a process that used CUDA");
    spill_budget_abandon();
}

void spill_exit_begins(void)
{
    atomic_store(&ending, true);
    /* A move is under way where this waits. The lock may be the thread's own: a signal handler may call exit(). */
    if (spill_lock_within(MOVE_PATIENCE_MS))
        spill_unlock();
}

void spill_exit_ends(void)
{
    CUresult none = CUDA_SUCCESS;
    atomic_compare_exchange_strong(&dead_error, &none, CUDA_ERROR_DEINITIALIZED);
    settle(&dead, "the process has ended");
}
