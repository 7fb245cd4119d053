/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a plugin (plugin_kernels.cu), lets it answer, closes it, TIMES times: plugin_host PLUGIN TIMES. Called by
 * test_link_shapes.py. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    for (int i = 0; argc == 3 && i < atoi(argv[2]); i++) {
        void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (!plugin) {
            puts(dlerror());
            return 1;
        }
        int (*answer)(int) = (int (*)(int))dlsym(plugin, "answer");
        if (!answer || answer(21) != 42)
            return 2;
        dlclose(plugin);
    }
    return argc == 3 ? 0 : 3;
}
