/* SPDX-License-Identifier: Apache-2.0 */
/* What dlsym, dlvsym and dlopen answer. Called by dl_x86_64.S alone.
 * Rules: a hook is handed out only where the real look-up finds the real library's function of exactly that name; in any
 * other case the program gets, from libc itself and with its own return address, what it would get without us. Up to the
 * point where a hooked name is known to be meant, no libc function is called (libasan looks up names before it is ready). */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "shim/config.h"
#include "shim/elfwalk.h"
#include "shim/log.h"
#include "shim/resolve.h"
#include "shim/testbreak.h"

#ifdef SPILL_TEST_BREAKS
#include <string.h>
#endif

extern const char spill_entry_dlsym[] __attribute__((visibility("hidden")));
extern const char spill_entry_dlvsym[] __attribute__((visibility("hidden")));
extern const char spill_entry_dlopen[] __attribute__((visibility("hidden")));

/* One question to the dynamic linker; `version` is NULL for dlsym. */
struct question {
    void *handle;
    const char *name, *version;
    const void *caller;
    bool versioned;
};

static const struct spill_jump nothing_found;

SPILL_EARLY static bool is_library(const struct link_map *object, enum spill_lib lib)
{
    return object && spill_elf_is(object, lib == SPILL_LIB_CUDA ? "libcuda.so" : "libnvidia-ml.so");
}

SPILL_EARLY static struct spill_jump answer(void *value)
{
    return (struct spill_jump){ NULL, value };
}

/* The real function, with the caller's return address: as if we weren't there. */
SPILL_EARLY static struct spill_jump pass(const struct question *q)
{
    const struct spill_real_dl *dl = spill_real_dl();
    void *target = q->versioned ? (void *)dl->vsym : (void *)dl->sym;
    if (!target)
        return nothing_found;
    if (!SPILL_FIX(tail_jump))
        return answer(q->versioned ? dl->vsym(q->handle, q->name, q->version) : dl->sym(q->handle, q->name));
    return (struct spill_jump){ target, NULL };
}

/* The real look-up with us as the caller: exact for handles; RTLD_NEXT then means what follows us in the global scope. */
SPILL_EARLY static void *look_up(const struct question *q, void *handle)
{
    const struct spill_real_dl *dl = spill_real_dl();
    return q->versioned ? dl->vsym(handle, q->name, q->version) : dl->sym(handle, q->name);
}

/* The real look-up in `object` and what it was linked to. An object isn't a handle: that of a library which came in as a
 * dependency has no search list before it is opened. */
SPILL_EARLY static void *look_up_in(const struct question *q, const struct link_map *object)
{
    const struct spill_real_dl *dl = spill_real_dl();
    void *handle = dl->open && dl->close ? dl->open(object->l_name, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (!handle)
        return NULL;
    void *value = look_up(q, handle);
    dl->close(handle);
    return value;
}

SPILL_EARLY static struct spill_jump hand_out(const struct question *q, const struct spill_hook *hook)
{
    spill_path_handed(hook, q->versioned ? SPILL_PATH_DLVSYM : SPILL_PATH_DLSYM, q->caller);
    return answer(hook->function);
}

/* dlsym, dlvsym or dlopen asked for by name: whoever would get libc's gets ours, else its later look-ups escape. */
SPILL_EARLY static struct spill_jump linker_function(const struct question *q, const char *ours)
{
    if (!SPILL_FIX(dlsym_of_dlsym))
        return pass(q);
    if (q->handle != RTLD_DEFAULT && q->handle != RTLD_NEXT) {
        void *value = look_up(q, q->handle);
        const struct link_map *object = value ? spill_elf_containing(value) : NULL;
        return answer(object && (spill_elf_is(object, "libc.so") || spill_elf_is(object, "libdl.so")) ? (void *)ours : value);
    }
    /* Our definitions carry no version and so are skipped by dlvsym. */
    if (q->versioned)
        return look_up_in(q, spill_real_dl()->object) ? answer((void *)ours) : pass(q);
    if (q->handle == RTLD_NEXT && !spill_comes_before(spill_elf_containing(q->caller), spill_own_object()))
        return answer((void *)ours);
    return pass(q);
}

/* A hooked name looked up in the global scope: by RTLD_DEFAULT or by the handle of the program itself. Our own export is
 * always there, so the answer is what would be found without it. */
SPILL_EARLY static struct spill_jump in_global_scope(const struct question *q, const struct spill_hook *hook)
{
    void *value = look_up(q, q->handle);
    const struct link_map *object = value ? spill_elf_containing(value) : NULL;
    if (object && object != spill_own_object() && !is_library(object, hook->lib))
        return pass(q); /* somebody before us defines it himself */
    if (!SPILL_FIX(probe) && object)
        return pass(q);
    void *without_us = look_up(q, RTLD_NEXT);
    if (without_us)
        return is_library(spill_elf_containing(without_us), hook->lib) ? hand_out(q, hook) : answer(without_us);
    const struct link_map *caller = spill_elf_containing(q->caller);
    /* An object that was loaded later also sees what was loaded with it. */
    if (q->handle == RTLD_DEFAULT && caller && caller != spill_elf_program()
        && is_library(spill_elf_containing(look_up_in(q, caller)), hook->lib))
        return hand_out(q, hook);
    return answer(look_up(q, RTLD_NEXT)); /* NULL, and dlerror() says so */
}

/* A hooked name by RTLD_NEXT. Our export stands for the real library's function where that would be found without us: for
 * an object before us in the global scope by what follows us there; for one after us the first that defines the name after
 * it, else it would find the real function behind our back. */
SPILL_EARLY static struct spill_jump next_after_caller(const struct question *q, const struct spill_hook *hook)
{
    const struct link_map *caller = spill_elf_containing(q->caller), *own = spill_own_object();
    if (!SPILL_FIX(tail_jump))
        return answer(look_up(q, RTLD_NEXT));
    if (!caller)
        return pass(q);
    if (q->versioned) /* our definitions carry no version and so are skipped */
        return is_library(spill_elf_containing(look_up(q, RTLD_NEXT)), hook->lib) ? hand_out(q, hook) : pass(q);
    bool before = spill_comes_before(caller, own);
    for (const struct link_map *m = caller->l_next; m && (!before || m != own); m = m->l_next)
        if (m != own && spill_elf_symbol(m, q->name))
            return !before && is_library(m, hook->lib) ? hand_out(q, hook) : pass(q);
    if (!before || !SPILL_FIX(next))
        return pass(q);
    void *value = look_up(q, RTLD_NEXT);
    return is_library(spill_elf_containing(value), hook->lib) ? hand_out(q, hook) : answer(value);
}

SPILL_EARLY static struct spill_jump in_handle(const struct question *q, const struct spill_hook *hook)
{
    void *value = look_up(q, q->handle);
    const struct link_map *object = value ? spill_elf_containing(value) : NULL;
    return is_library(object, hook->lib) ? hand_out(q, hook) : answer(value);
}

SPILL_EARLY static struct spill_jump filter(const struct question *q)
{
    if (!q->name || !spill_real_dl()->sym || (q->versioned && (!spill_real_dl()->vsym || !SPILL_FIX(dlvsym))))
        return pass(q);
#ifdef SPILL_TEST_BREAKS
    int (*volatile libc_strcmp)(const char *, const char *) = strcmp;
    if (!SPILL_FIX(local_strings) && libc_strcmp(q->name, "dlsym") == 0)
        return linker_function(q, spill_entry_dlsym);
#endif
    const char *rest;
    if ((rest = spill_str_after(q->name, "dl"))) {
        const char *ours = spill_str_equal(rest, "sym") ? spill_entry_dlsym
            : spill_str_equal(rest, "vsym")             ? spill_entry_dlvsym
            : spill_str_equal(rest, "open")             ? spill_entry_dlopen
                                                        : NULL;
        return ours ? linker_function(q, ours) : pass(q);
    }
    if (!spill_str_after(q->name, "cu") && !spill_str_after(q->name, "nvml"))
        return pass(q);
    const struct spill_hook *hook = spill_hook_of_symbol(q->name);
    if (!hook || spill_config()->disable)
        return pass(q);
    /* On WSL the driver looks its own functions up by dlsym: given our hooks it would call itself for ever. */
    const struct link_map *caller = spill_elf_containing(q->caller);
    if (caller == spill_own_object()
        || (SPILL_FIX(driver_caller) && (is_library(caller, SPILL_LIB_CUDA) || is_library(caller, SPILL_LIB_NVML))))
        return pass(q);
    if (q->handle == RTLD_NEXT)
        return next_after_caller(q, hook);
    if (q->handle == RTLD_DEFAULT || q->handle == spill_elf_program())
        return in_global_scope(q, hook);
    return in_handle(q, hook);
}

/* For dlsym(handle, name); the third argument register holds nothing. */
SPILL_EARLY __attribute__((visibility("hidden")))
struct spill_jump spill_filter_dlsym(void *handle, const char *name, const void *unused, const void *caller)
{
    struct question q = { handle, name, NULL, caller, false };
    (void)unused;
    return filter(&q);
}

SPILL_EARLY __attribute__((visibility("hidden")))
struct spill_jump spill_filter_dlvsym(void *handle, const char *name, const char *version, const void *caller)
{
    struct question q = { handle, name, version, caller, true };
    return filter(&q);
}

/* RTLD_DEEPBIND makes a library prefer its own dependencies to what is preloaded; its CUDA calls would escape us. */
SPILL_EARLY __attribute__((visibility("hidden")))
struct spill_jump spill_filter_dlopen(const char *file, int flags, const void *unused, const void *caller)
{
    const struct spill_real_dl *dl = spill_real_dl();
    (void)unused;
    (void)caller;
    if (!dl->open)
        return nothing_found;
    if (!SPILL_FIX(tail_jump))
        return answer(dl->open(file, flags));
    if ((flags & RTLD_DEEPBIND) && SPILL_FIX(deepbind) && !spill_config()->keep_deepbind && !spill_config()->disable) {
        spill_log(SPILL_LOG_DEBUG, "RTLD_DEEPBIND masked file=%s", file ? file : "(program)");
        flags &= ~RTLD_DEEPBIND;
    }
    return (struct spill_jump){ (void *)dl->open, (void *)(uintptr_t)(unsigned)flags };
}
