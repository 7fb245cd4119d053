/* SPDX-License-Identifier: Apache-2.0 */
/* What AddressSanitizer and ThreadSanitizer must hear when simulated device code is left by a longjmp out of a signal handler,
 * perhaps from a fiber's stack (simk.h). Called by sim_guarded (guard.c); empty in a plain build.
 * Rules: nothing else in the driver may depend on a sanitizer.
 */
#ifndef SIM_SANITIZER_H
#define SIM_SANITIZER_H

#if defined(__SANITIZE_THREAD__)
void *__tsan_get_current_fiber(void);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);

struct sim_watched { void *fiber; };
static inline void sim_watch_begin(struct sim_watched *w) { w->fiber = __tsan_get_current_fiber(); }
/* In the handler, before the jump: a jump may not cross fibers. */
static inline void sim_watch_jump(struct sim_watched *w)
{
    if (w->fiber != __tsan_get_current_fiber())
        __tsan_switch_to_fiber(w->fiber, 0);
}
static inline void sim_watch_landed(struct sim_watched *w) { (void)w; }

#elif defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
void __sanitizer_start_switch_fiber(void **fake, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake, const void **bottom, size_t *size);
void __asan_unpoison_memory_region(const volatile void *at, size_t size);

struct sim_watched { char *stack; size_t size; };
static inline void sim_watch_begin(struct sim_watched *w) { w->stack = NULL; }
static inline void sim_watch_jump(struct sim_watched *w) { (void)w; }
/* Back on the thread's own stack: say so, and forget the frames below, which never returned. */
static inline void sim_watch_landed(struct sim_watched *w)
{
    pthread_attr_t attr;
    void *stack;
    if (pthread_getattr_np(pthread_self(), &attr))
        return;
    pthread_attr_getstack(&attr, &stack, &w->size);
    pthread_attr_destroy(&attr);
    w->stack = stack;
    __sanitizer_start_switch_fiber(NULL, w->stack, w->size);
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
    char *here = __builtin_frame_address(0);
    if (here > w->stack && here < w->stack + w->size)
        __asan_unpoison_memory_region(w->stack, (size_t)(here - w->stack));
}

#else
struct sim_watched { char unused; };
static inline void sim_watch_begin(struct sim_watched *w) { (void)w; }
static inline void sim_watch_jump(struct sim_watched *w) { (void)w; }
static inline void sim_watch_landed(struct sim_watched *w) { (void)w; }
#endif

#endif
