/* SPDX-License-Identifier: Apache-2.0 */
/* The real libraries and their symbols, as resolve.h says. */
#define _GNU_SOURCE
#include "shim/resolve.h"

#include <dlfcn.h>
#include <stdatomic.h>

#include "shim/elfwalk.h"
#include "shim/log.h"
#include "shim/testbreak.h"

/* `name` is matched against SONAMEs, `file` is what is loaded where the program hasn't loaded it. */
static const struct library {
    const char *name, *file;
} libraries[SPILL_LIB_COUNT] = {
    [SPILL_LIB_CUDA] = { "libcuda.so", "libcuda.so.1" },
    [SPILL_LIB_NVML] = { "libnvidia-ml.so", "libnvidia-ml.so.1" },
};

static _Atomic(struct link_map *) pinned[SPILL_LIB_COUNT];

static struct spill_real_dl real;
static atomic_int real_known;

SPILL_EARLY static bool take_dl_from(const char *library)
{
    struct link_map *object = spill_elf_find(library, spill_own_object());
    void *sym = object ? spill_elf_symbol(object, "dlsym") : NULL;
    if (!sym)
        return false;
    /* Threads that race here store the same values. */
    __atomic_store_n((void **)&real.sym, sym, __ATOMIC_RELAXED);
    __atomic_store_n((void **)&real.vsym, spill_elf_symbol(object, "dlvsym"), __ATOMIC_RELAXED);
    __atomic_store_n((void **)&real.open, spill_elf_symbol(object, "dlopen"), __ATOMIC_RELAXED);
    __atomic_store_n((void **)&real.close, spill_elf_symbol(object, "dlclose"), __ATOMIC_RELAXED);
    __atomic_store_n(&real.object, object, __ATOMIC_RELAXED);
    return true;
}

SPILL_EARLY const struct spill_real_dl *spill_real_dl(void)
{
    if (!atomic_load_explicit(&real_known, memory_order_acquire)) {
        /* In libc since glibc 2.34; libdl's own are only forwarders there, but real before. */
        if (take_dl_from("libc.so") || take_dl_from("libdl.so"))
            atomic_store_explicit(&real_known, 1, memory_order_release);
    }
    return &real;
}

SPILL_EARLY struct link_map *spill_own_object(void)
{
    static _Atomic(struct link_map *) own;
    struct link_map *object = atomic_load_explicit(&own, memory_order_relaxed);
    if (!object) {
        object = spill_elf_containing((const void *)spill_own_object);
        atomic_store_explicit(&own, object, memory_order_relaxed);
    }
    return object;
}

SPILL_EARLY bool spill_comes_before(const struct link_map *a, const struct link_map *b)
{
    for (const struct link_map *m = spill_elf_program(); m && m != b; m = m->l_next)
        if (m == a)
            return true;
    return false;
}

bool spill_interposed(void)
{
    const struct link_map *own = spill_own_object(), *driver = spill_elf_find(libraries[SPILL_LIB_CUDA].name, own);
    return spill_comes_before(own, spill_real_dl()->object) && (!driver || spill_comes_before(own, driver));
}

/* The library where it is loaded; NULL where it isn't. */
static struct link_map *loaded(enum spill_lib lib)
{
    struct link_map *object = atomic_load_explicit(&pinned[lib], memory_order_acquire);
    return object ? object : spill_elf_find(libraries[lib].name, spill_own_object());
}

/* The library, loaded and pinned. */
static struct link_map *required(enum spill_lib lib)
{
    const struct spill_real_dl *dl = spill_real_dl();
    struct link_map *object = atomic_load_explicit(&pinned[lib], memory_order_acquire);
    if (object || !dl->open)
        return object;
    object = loaded(lib);
    /* By its own path where it is there already: with RTLD_NOLOAD this only marks it. One that lives in another namespace
     * (dlmopen) isn't found so; it is used, but stays unpinned. */
    struct link_map *marked = dl->open(object ? object->l_name : libraries[lib].file,
                                       RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE | (object ? RTLD_NOLOAD : 0));
    if (marked == NULL)
        return object;
    if (marked == spill_own_object())
        return NULL;
    atomic_store_explicit(&pinned[lib], marked, memory_order_release);
    spill_log(SPILL_LOG_DEBUG, "real library file=%s path=%s", libraries[lib].file, marked->l_name);
    return marked;
}

void *spill_real_symbol(enum spill_lib lib, const char *symbol)
{
    /* Not by RTLD_NEXT: a library that came in by dlopen with RTLD_LOCAL isn't in our search order. */
    if (!SPILL_FIX(real_by_library))
        return spill_real_dl()->sym(RTLD_NEXT, symbol);
    struct link_map *object = required(lib);
    return object ? spill_elf_symbol(object, symbol) : NULL;
}

const char *spill_real_path(enum spill_lib lib)
{
    struct link_map *object = loaded(lib);
    return object ? object->l_name : NULL;
}
