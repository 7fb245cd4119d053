/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a library and calls its `int plugin_main(const char *)`. Usage: host local|deepbind LIBRARY [ARGUMENT] */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 64;
    void *library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL | (strcmp(argv[1], "deepbind") ? 0 : RTLD_DEEPBIND));
    int (*plugin_main)(const char *) = library ? (int (*)(const char *))dlsym(library, "plugin_main") : NULL;
    if (!plugin_main) {
        printf("error\t%s\n", dlerror());
        return 2;
    }
    return plugin_main(argc > 3 ? argv[3] : NULL);
}
