/* SPDX-License-Identifier: Apache-2.0 */
/* Finds companions (.so files made with simk.h, which hold kernels as host code) and the kernels in them.
 * Called by launch.c and code_module.c. Sources, in this order: SIMGPU_KERNELS (':' between files), <main executable>.simk.so,
 * and <image file>.simk.so, where the image file is what the code was loaded from or the object whose memory it lies in.
 */
#define _GNU_SOURCE
#include "code.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct companion {
    struct companion *next;
    char *path;
    const struct simk_registry *registry; /* NULL: not there or unusable, said once */
    const char **names;                   /* of registry's kernels */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* not sim_lock: dlopen runs foreign constructors */
static struct companion *companions, **last = &companions;
static bool listed;

static const char *symbol_of(const struct simk_kernel *k)
{
    Dl_info info;
    if (k->name)
        return k->name;
    return dladdr(k->entry(), &info) && info.dli_sname ? info.dli_sname : "";
}

static bool usable(struct companion *c, void *handle)
{
    const struct simk_registry *r = dlsym(handle, "simk_registry");
    if (!r) {
        sim_complain("%s registers no kernels: it was not compiled with simk.h", c->path);
        return false;
    }
    if (r->abi != SIMK_ABI) {
        sim_complain("%s was compiled with a simk.h of version %u, this driver reads version %u; compile it again", c->path,
                     r->abi, SIMK_ABI);
        return false;
    }
    size_t n = (size_t)(r->kernels_end - r->kernels);
    if (!(c->names = calloc(n + 1, sizeof *c->names)))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!*(c->names[i] = symbol_of(r->kernels[i])))
            sim_complain("%s: a kernel without a dynamic symbol (static?) cannot be found; name it with SIM_KERNEL_SYMBOL", c->path);
    if (r->touch)
        *r->touch = sim_touch;
    *r->stop = sim_guard_stop;
    *r->condition = sim_condition_set;
    c->registry = r;
    return true;
}

/* [lock] Load a companion once. `wanted`: the user asked for it, so its absence is worth a line. */
static void load(const char *path, bool wanted)
{
    for (struct companion *c = companions; c; c = c->next)
        if (!strcmp(c->path, path))
            return;
    struct companion *c = calloc(1, sizeof *c);
    if (!c || !(c->path = strdup(path))) {
        free(c);
        return;
    }
    *last = c;
    last = &c->next;
    if (!wanted && access(path, F_OK) != 0)
        return;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        sim_complain("cannot load the companion %s: %s", path, dlerror());
    else if (!usable(c, handle))
        dlclose(handle);
}

static void load_beside(const char *file)
{
    char path[PATH_MAX + 16];
    size_t n = strlen(file);
    if (!n || n > PATH_MAX)
        return;
    memcpy(path, file, n);
    memcpy(path + n, ".simk.so", sizeof ".simk.so");
    load(path, false);
}

/* [lock] */
static void load_all(const char *image_file)
{
    if (!listed) {
        char exe[PATH_MAX];
        listed = true;
        char *list = strdup(sim_config()->kernels ? sim_config()->kernels : ""), *rest = list;
        for (char *path; list && (path = strsep(&rest, ":"));)
            if (*path)
                load(path, true);
        free(list);
        ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
        if (n > 0) {
            exe[n] = 0;
            load_beside(exe);
        }
    }
    if (image_file)
        load_beside(image_file);
}

const struct simk_kernel *sim_companion_kernel(const char *name, const char *image_file)
{
    const struct simk_kernel *found = NULL;
    pthread_mutex_lock(&lock);
    load_all(image_file);
    for (struct companion *c = companions; c && !found; c = c->next)
        for (size_t i = 0; c->registry && !found && c->registry->kernels + i < c->registry->kernels_end; i++)
            if (!strcmp(c->names[i], name))
                found = c->registry->kernels[i];
    pthread_mutex_unlock(&lock);
    return found;
}

const struct simk_global *sim_companion_global(const char *name, const char *image_file)
{
    const struct simk_global *found = NULL;
    pthread_mutex_lock(&lock);
    load_all(image_file);
    for (struct companion *c = companions; c && !found; c = c->next)
        for (size_t i = 0; c->registry && !found && c->registry->globals + i < c->registry->globals_end; i++)
            if (!strcmp(c->registry->globals[i]->name, name))
                found = c->registry->globals[i];
    pthread_mutex_unlock(&lock);
    return found;
}
