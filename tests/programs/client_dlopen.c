/* SPDX-License-Identifier: Apache-2.0 */
/* A program that knows no CUDA: it loads a plugin that does, privately (RTLD_LOCAL), with RTLD_DEEPBIND if asked.
 * Usage: client_dlopen PLUGIN local|deepbind COUNT MIB SEED */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc != 6)
        return 64;
    int flags = RTLD_NOW | RTLD_LOCAL | (strcmp(argv[2], "deepbind") ? 0 : RTLD_DEEPBIND);
    void *plugin = dlopen(argv[1], flags);
    if (!plugin) {
        fprintf(stderr, "%s\n", dlerror());
        return 65;
    }
    int (*run)(unsigned, uint64_t, uint64_t) = (int (*)(unsigned, uint64_t, uint64_t))dlsym(plugin, "plugin_run");
    if (!run)
        return 66;
    int result = run((unsigned)atoi(argv[3]), strtoull(argv[4], NULL, 10) << 20, strtoull(argv[5], NULL, 10));
    puts(result == 0 ? "ok" : result == 2 ? "oom" : "wrong");
    return result;
}
