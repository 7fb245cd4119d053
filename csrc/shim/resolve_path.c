/* SPDX-License-Identifier: Apache-2.0 */
/* The record of which object got which hook by which path, and how often it called it, as resolve.h says.
 * Fixed tables, entries are only ever added; a full table loses detail ("unknown", or a call not counted), nothing else. */
#include "shim/resolve.h"

#include <sched.h>
#include <stdatomic.h>

#include "shim/elfwalk.h"
#include "shim/log.h"

enum { MODULES = 64, NAME = 64, HOOKS = 256, COUNTS = 256 };

static struct module {
    char name[NAME];                 /* file name; set before `modules_used` counts it */
    _Atomic(unsigned char) got[HOOKS]; /* enum spill_path by which it was last handed this hook */
} modules[MODULES];
static atomic_uint modules_used;

/* By which path each hook was last handed to anybody. */
static _Atomic(unsigned char) handed_last[HOOKS];

static struct count {
    const struct module *module;
    const struct spill_hook *hook;
    enum spill_path path;
    atomic_ullong calls;
} counts[COUNTS];
static atomic_uint counts_used;

static atomic_flag adding = ATOMIC_FLAG_INIT;

static void lock(void)
{
    while (atomic_flag_test_and_set_explicit(&adding, memory_order_acquire))
        sched_yield();
}

static void unlock(void)
{
    atomic_flag_clear_explicit(&adding, memory_order_release);
}

const char *spill_path_name(enum spill_path path)
{
    static const char *const names[SPILL_PATH_COUNT] = { "unknown", "link", "dlsym", "dlvsym", "cuGetProcAddress",
                                                       "allocator" };
    return names[path];
}

/* Equal, where `stored` may be `name` cut to NAME - 1 characters. */
static bool same_name(const char *stored, const char *name)
{
    int i = 0;
    while (i < NAME - 1 && stored[i] && stored[i] == name[i])
        i++;
    return i == NAME - 1 || stored[i] == name[i];
}

static struct module *search_module(const char *name)
{
    unsigned used = atomic_load_explicit(&modules_used, memory_order_acquire);
    for (unsigned i = 0; i < used; i++)
        if (same_name(modules[i].name, name))
            return &modules[i];
    return NULL;
}

/* The module's entry, made where there is none; NULL when the table is full. */
static struct module *module_named(const char *name)
{
    struct module *m = search_module(name);
    if (m)
        return m;
    lock();
    m = search_module(name);
    unsigned used = atomic_load_explicit(&modules_used, memory_order_relaxed);
    if (!m && used < MODULES) {
        m = &modules[used];
        for (int i = 0; i < NAME - 1 && name[i]; i++)
            m->name[i] = name[i];
        atomic_store_explicit(&modules_used, used + 1, memory_order_release);
    }
    unlock();
    return m;
}

void spill_path_handed(const struct spill_hook *hook, enum spill_path path, const void *caller)
{
    const struct link_map *object = spill_elf_containing(caller);
    struct module *m = module_named(object ? spill_elf_name(object) : "?");
    unsigned index = (unsigned)(hook - spill_hooks);
    if (index < HOOKS) {
        if (m)
            atomic_store_explicit(&m->got[index], path, memory_order_relaxed);
        atomic_store_explicit(&handed_last[index], path, memory_order_relaxed);
    }
    spill_log(SPILL_LOG_DEBUG, "hook handed out symbol=%s path=%s module=%s", hook->symbol, spill_path_name(path),
              m ? m->name : "?");
}

static enum spill_path path_of(const struct link_map *object, const struct spill_hook *hook, struct module *m)
{
    unsigned index = (unsigned)(hook - spill_hooks);
    if (index >= HOOKS)
        return SPILL_PATH_UNKNOWN;
    enum spill_path path = m ? atomic_load_explicit(&m->got[index], memory_order_relaxed) : SPILL_PATH_UNKNOWN;
    if (path == SPILL_PATH_UNKNOWN && object && spill_elf_refers(object, hook->symbol)) {
        path = SPILL_PATH_LINK;
        /* Remembered: reading the relocations of a large program at each allocation would be slow. */
        if (m)
            atomic_store_explicit(&m->got[index], path, memory_order_relaxed);
    }
    return path != SPILL_PATH_UNKNOWN ? path : atomic_load_explicit(&handed_last[index], memory_order_relaxed);
}

static struct count *search_count(const struct module *m, const struct spill_hook *hook, enum spill_path path)
{
    unsigned used = atomic_load_explicit(&counts_used, memory_order_acquire);
    for (unsigned i = 0; i < used; i++)
        if (counts[i].module == m && counts[i].hook == hook && counts[i].path == path)
            return &counts[i];
    return NULL;
}

void spill_path_count(const void *return_address, const char *symbol)
{
    spill_path_count_by(SPILL_PATH_UNKNOWN, return_address, symbol);
}

void spill_path_count_by(enum spill_path path, const void *return_address, const char *symbol)
{
    const struct spill_hook *hook = spill_hook_of_symbol(symbol);
    if (!hook)
        return;
    const struct link_map *object = spill_elf_containing(return_address);
    struct module *m = module_named(object ? spill_elf_name(object) : "?");
    if (path == SPILL_PATH_UNKNOWN)
        path = path_of(object, hook, m);
    struct count *c = search_count(m, hook, path);
    if (!c) {
        lock();
        c = search_count(m, hook, path);
        unsigned used = atomic_load_explicit(&counts_used, memory_order_relaxed);
        if (!c && used < COUNTS) {
            c = &counts[used];
            c->module = m, c->hook = hook, c->path = path;
            atomic_store_explicit(&counts_used, used + 1, memory_order_release);
        }
        unlock();
    }
    if (c)
        atomic_fetch_add_explicit(&c->calls, 1, memory_order_relaxed);
}

bool spill_path_each(unsigned index, struct spill_path_entry *out)
{
    if (index >= atomic_load_explicit(&counts_used, memory_order_acquire))
        return false;
    const struct count *c = &counts[index];
    out->module = c->module ? c->module->name : "?";
    out->path = spill_path_name(c->path);
    out->symbol = c->hook->symbol;
    out->calls = atomic_load_explicit(&c->calls, memory_order_relaxed);
    return true;
}
