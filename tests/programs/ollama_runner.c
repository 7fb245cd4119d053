/* SPDX-License-Identifier: Apache-2.0 */
/* Stands where llama-server stands under ollama, with the options that ollama fb30760 gives it (discover/llama_server.go,
 * llm/llama_server.go): knows no CUDA by itself, opens the backend that GGML_BACKEND_PATH names. Started by
 * tests/clients/ollama.py:
 *     ollama_runner                       says what devices there are and its system_info, then waits to be killed
 *     ollama_runner --list-devices        the list that is parsed, on stdout
 *     ollama_runner --model FILE -c N     loads: weights of the file's size, a KV cache of N tokens, a compute buffer
 * Other options are ignored. Loaded, it speaks as tests/clients/programs/llama_server.py does: {"context": N}, then for each
 * line of stdin `decode N` or `end` one JSON object on stdout. Exit code 3: the model could not be loaded. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ollama_backend.h"

#define MIB ((size_t)1 << 20)
enum { KV_KIB_PER_TOKEN = 32, COMPUTE_MIB = 16 };

static __typeof__(backend_init) *init;
static __typeof__(backend_device) *ask_device;
static __typeof__(backend_load) *load;
static __typeof__(backend_token) *decode;
static __typeof__(backend_free) *unload;

static void open_backend(void)
{
    const char *path = getenv("GGML_BACKEND_PATH");
    void *backend = dlopen(path ? path : "libggml-cuda.so", RTLD_NOW | RTLD_LOCAL);
    if (!backend) {
        fprintf(stderr, "load_backend: %s\n", dlerror());
        exit(1);
    }
    init = (__typeof__(init))dlsym(backend, "backend_init");
    ask_device = (__typeof__(ask_device))dlsym(backend, "backend_device");
    load = (__typeof__(load))dlsym(backend, "backend_load");
    decode = (__typeof__(decode))dlsym(backend, "backend_token");
    unload = (__typeof__(unload))dlsym(backend, "backend_free");
    if (!init || !ask_device || !load || !decode || !unload || init() != 0)
        exit(1);
    fprintf(stderr, "load_backend: loaded CUDA backend from %s\n", path);
}

static struct backend_device device(void)
{
    struct backend_device d;
    if (ask_device(&d) != 0)
        exit(1);
    return d;
}

static void serve(const char *file, size_t context)
{
    char line[128];
    struct stat facts;
    struct backend_device d = device();
    if (stat(file, &facts) != 0 || facts.st_size < (off_t)MIB) {
        fprintf(stderr, "error loading model: %s\n", file);
        exit(3);
    }
    fprintf(stderr, "llama_model_load_from_file_impl: using device CUDA0 (%s) (%s) - %zu MiB free\n", d.name, d.pci, d.free / MIB);
    if (load((size_t)facts.st_size / MIB, context * KV_KIB_PER_TOKEN / 1024, COMPUTE_MIB) != 0)
        exit(3);
    printf("{\"context\": %zu}\n", context);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && strncmp(line, "end", 3) != 0) {
        int count = atoi(line + strcspn(line, " ")), good = 0;
        while (good < count && decode() == 0)
            good++;
        printf("{\"decoded\": %d, \"failed\": %d}\n", good, count - good);
        fflush(stdout);
    }
    if (unload() != 0)
        exit(4);
}

int main(int argc, char **argv)
{
    const char *file = NULL;
    size_t context = 0;
    open_backend();
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--list-devices") == 0) {
            struct backend_device d = device();
            printf("Available devices:\n  CUDA0: %s (%zu MiB, %zu MiB free)\n", d.name, d.total / MIB, d.free / MIB);
            return 0;
        } else if (strcmp(argv[i], "--model") == 0 && i + 1 < argc) {
            file = argv[++i];
        } else if (strcmp(argv[i], "-c") == 0 && i + 1 < argc) {
            context = strtoul(argv[++i], NULL, 10);
        }
    fprintf(stderr, "system_info: n_threads = 1 | CUDA : ARCHS = 750,900 | USE_GRAPHS = 1 |\n");
    if (file)
        serve(file, context);
    else
        pause();
    return 0;
}
