/* SPDX-License-Identifier: Apache-2.0 */
/* What `ollama gpu-discover` does, after ollama fb30760 (discover/native_probe.go, native_probe_linux.go), in a process of its
 * own: the libraries of ggml by dlopen, the devices of its backends; then the driver by dlopen, looked up name by name, and NVML
 * for its version alone; devices of both merged. Started by tests/clients/ollama.py as
 *     ollama_probe [--lib-dir DIR]...      DIR holds libggml-base.so, libggml.so or libggml-cuda.so, as ollama's folders do
 * stdout holds one JSON object and nothing else, because ollama parses it. Exit code 1: no device was found. */
#include <ctype.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEVICES = 8, PATH_SIZE = 4096 };
enum { MAJOR = 75, MINOR = 76, INTEGRATED = 18 }; /* attributes of the driver */

struct device {
    char name[64], description[128], pci[32];
    uint64_t total, free;
    int major, minor, integrated, cuda, driver;
};

/* Its public layout (ggml-backend.h), which ollama declares for itself in the same way. */
struct ggml_props {
    const char *name, *description;
    size_t free, total;
    int type;
    const char *pci;
    bool caps[4];
};

static void *library(const char *folder, const char *name, int scope)
{
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0 ? dlopen(path, RTLD_NOW | scope) : NULL;
}

static int probe_ggml(int folders, char **folder, struct device *out)
{
    int found = 0;
    void *base = library(folder[0], "libggml-base.so", RTLD_GLOBAL), *ggml = library(folder[0], "libggml.so", RTLD_GLOBAL);
    if (!base || !ggml)
        return 0;
    void *(*load)(const char *) = (void *(*)(const char *))dlsym(ggml, "ggml_backend_load");
    size_t (*count)(void *) = (size_t(*)(void *))dlsym(base, "ggml_backend_reg_dev_count");
    void *(*get)(void *, size_t) = (void *(*)(void *, size_t))dlsym(base, "ggml_backend_reg_dev_get");
    void (*props)(void *, struct ggml_props *) = (void (*)(void *, struct ggml_props *))dlsym(base, "ggml_backend_dev_get_props");
    if (!load || !count || !get || !props)
        return 0;
    for (int i = 0; i < folders; i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "%s/libggml-cuda.so", folder[i]);
        void *backend = access(path, F_OK) == 0 ? load(path) : NULL;
        for (size_t n = 0; backend && n < count(backend) && found < DEVICES; n++) {
            struct ggml_props p = { 0 };
            props(get(backend, n), &p);
            if (!p.total)
                continue;
            struct device *d = &out[found++];
            snprintf(d->name, sizeof d->name, "%s", p.name);
            snprintf(d->description, sizeof d->description, "%s", p.description);
            snprintf(d->pci, sizeof d->pci, "%s", p.pci ? p.pci : "");
            d->total = p.total;
            d->free = p.free;
        }
    }
    return found;
}

static int driver_version(void)
{
    char version[80];
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvml)
        return 0;
    int (*init)(void) = (int (*)(void))dlsym(nvml, "nvmlInit_v2");
    int (*shutdown)(void) = (int (*)(void))dlsym(nvml, "nvmlShutdown");
    int (*ask)(char *, unsigned) = (int (*)(char *, unsigned))dlsym(nvml, "nvmlSystemGetDriverVersion");
    if (!init || !shutdown || !ask || init() != 0)
        return 0;
    int result = ask(version, sizeof version);
    shutdown();
    return result == 0 ? atoi(version) : 0;
}

static int probe_driver(struct device *out)
{
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!cuda)
        return 0;
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(cuda, "cuInit");
    int (*version)(int *) = (int (*)(int *))dlsym(cuda, "cuDriverGetVersion");
    int (*count)(int *) = (int (*)(int *))dlsym(cuda, "cuDeviceGetCount");
    int (*get)(int *, int) = (int (*)(int *, int))dlsym(cuda, "cuDeviceGet");
    int (*attribute)(int *, int, int) = (int (*)(int *, int, int))dlsym(cuda, "cuDeviceGetAttribute");
    int (*name)(char *, int, int) = (int (*)(char *, int, int))dlsym(cuda, "cuDeviceGetName");
    int (*total)(size_t *, int) = (int (*)(size_t *, int))dlsym(cuda, "cuDeviceTotalMem_v2");
    int (*pci)(char *, int, int) = (int (*)(char *, int, int))dlsym(cuda, "cuDeviceGetPCIBusId");
    int devices = 0, cuda_version = 0;
    if (!init || !version || !count || !get || !attribute || !name || !total || init(0) != 0)
        return 0;
    version(&cuda_version);
    int driver = driver_version();
    if (count(&devices) != 0)
        return 0;
    for (int i = 0; i < devices && i < DEVICES; i++) {
        struct device *d = &out[i];
        int device;
        size_t bytes = 0;
        if (get(&device, i) != 0)
            continue;
        attribute(&d->major, MAJOR, device);
        attribute(&d->minor, MINOR, device);
        attribute(&d->integrated, INTEGRATED, device);
        name(d->description, sizeof d->description, device);
        total(&bytes, device);
        d->total = bytes;
        if (pci)
            pci(d->pci, sizeof d->pci, device);
        for (char *c = d->pci; *c; c++)
            *c = (char)tolower((unsigned char)*c);
        d->cuda = cuda_version;
        d->driver = driver;
    }
    return devices < DEVICES ? devices : DEVICES;
}

int main(int argc, char **argv)
{
    char *folder[DEVICES] = { "." };
    int folders = 0;
    struct device all[DEVICES] = { 0 }, driver[DEVICES] = { 0 };
    for (int i = 1; i + 1 < argc && folders < DEVICES; i += 2)
        folder[folders++] = argv[i + 1];
    int found = probe_ggml(folders, folder, all), cuda = probe_driver(driver);
    for (int i = 0; i < cuda; i++) {
        struct device *d = &all[i];
        if (i >= found) { /* the backend did not load: the driver's word alone */
            *d = driver[i];
            continue;
        }
        d->major = driver[i].major;
        d->minor = driver[i].minor;
        d->integrated = driver[i].integrated;
        d->cuda = driver[i].cuda;
        d->driver = driver[i].driver;
    }
    found = found > cuda ? found : cuda;
    printf("{\"devices\": [");
    for (int i = 0; i < found; i++)
        printf("%s{\"name\": \"%s\", \"description\": \"%s\", \"pci\": \"%s\", \"total\": %llu, \"free\": %llu, "
               "\"driver_total\": %llu, \"compute\": [%d, %d], \"integrated\": %d, \"cuda\": %d, \"driver\": %d}",
               i ? ", " : "", all[i].name, all[i].description, all[i].pci, (unsigned long long)all[i].total,
               (unsigned long long)all[i].free, (unsigned long long)driver[i].total, all[i].major, all[i].minor, all[i].integrated,
               all[i].cuda, all[i].driver);
    puts("]}");
    return found == 0;
}
