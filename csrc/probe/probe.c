/* SPDX-License-Identifier: Apache-2.0 */
/* spillshim-probe: finds out how RAM can be given to the GPU on this machine. Run by the preloaded library when
 * VRAM is getting short, and by `spillshim doctor`.
 *
 *   spillshim-probe [--device N] [--library FILE] [--json]
 *   spillshim-probe --try BACKEND ...     (one attempt, in a process of its own: cuMemCreate of host memory can crash)
 *
 * One line: backend=NAME numa=N granularity=BYTES mixed_copy=0|1 host_access=0|1 detail=...
 * Exit: 0 a backend works, 3 none does, 4 no driver or no such device, 5 nothing could be tried, for want of memory or of a
 * context (backend=untried), 2 usage.
 * Rules: a few granules of memory, plain allocations; what is printed was tried, not asked. */
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ENTRIES(X)                                                                                                        \
    X(cuInit) X(cuDriverGetVersion) X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceTotalMem_v2)          \
    X(cuDeviceGetAttribute) X(cuDevicePrimaryCtxRetain) X(cuCtxSetCurrent) X(cuMemAddressReserve) X(cuMemAddressFree)     \
    X(cuMemCreate) X(cuMemMap) X(cuMemUnmap) X(cuMemRelease) X(cuMemSetAccess) X(cuMemGetAllocationGranularity)           \
    X(cuMemsetD8_v2) X(cuMemcpyDtoH_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyDtoD_v2) X(cuMemHostAlloc) X(cuMemFreeHost)          \
    X(cuMemHostGetDevicePointer_v2) X(cuCtxSynchronize) X(cuGetErrorName)

static struct {
#define X(name) __typeof__(&name) name;
    ENTRIES(X)
#undef X
} cu;

static const char *const BACKENDS[] = { "host-numa", "host", "hostalloc" };
enum { TRIES = 3, TIMEOUT_S = 20, NO_DEVICE = 4, UNTRIED = 5 };
/* cuda.h names these differently over the years; the numbers are the ABI. */
enum { ATTRIBUTE_VMM = 102, ATTRIBUTE_HOST_NUMA_ID = 134, ATTRIBUTE_HOST_NUMA_VMM = 141, ATTRIBUTE_HOST_VMM = 145 };

static char failure[200];
static bool untried; /* out of memory, or no context to be had: the attempt says nothing about the backend */

static const char *error_name(CUresult r)
{
    const char *name = NULL;
    return cu.cuGetErrorName && cu.cuGetErrorName(r, &name) == CUDA_SUCCESS && name ? name : "unknown error";
}

/* Remember what failed first; true on success. */
static bool ok(CUresult r, const char *what)
{
    if (r == CUDA_ERROR_OUT_OF_MEMORY)
        untried = true;
    if (r != CUDA_SUCCESS && !failure[0])
        snprintf(failure, sizeof failure, "%s: %s (%d)", what, error_name(r), (int)r);
    return r == CUDA_SUCCESS;
}

static bool load(const char *library)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(failure, sizeof failure, "%s", dlerror());
        return false;
    }
#define X(name) cu.name = (__typeof__(cu.name))dlsym(handle, #name);
    ENTRIES(X)
#undef X
    if (!cu.cuInit || !cu.cuDeviceGetCount) {
        snprintf(failure, sizeof failure, "%s has no cuInit", library);
        return false;
    }
    return ok(cu.cuInit(0), "cuInit");
}

static int attribute(CUdevice device, int which, int fallback)
{
    int value;
    return cu.cuDeviceGetAttribute(&value, (CUdevice_attribute)which, device) == CUDA_SUCCESS ? value : fallback;
}

/* ---- one attempt ---- */

/* The same bytes through device memory and back. */
static bool round_trip(CUdeviceptr p, size_t bytes, const char *what)
{
    unsigned char *host = malloc(bytes), *back = malloc(bytes);
    bool good = host && back;
    for (size_t i = 0; good && i < bytes; i++)
        host[i] = (unsigned char)(i * 131 + 7);
    good = good && ok(cu.cuMemsetD8_v2(p, 0xa5, bytes), what) && ok(cu.cuMemcpyDtoH_v2(back, p, bytes), what);
    if (good && (back[0] != 0xa5 || back[bytes - 1] != 0xa5)) {
        snprintf(failure, sizeof failure, "%s: memset was not read back", what);
        good = false;
    }
    good = good && ok(cu.cuMemcpyHtoD_v2(p, host, bytes), what) && ok(cu.cuMemcpyDtoH_v2(back, p, bytes), what);
    if (good && memcmp(host, back, bytes) != 0) {
        snprintf(failure, sizeof failure, "%s: bytes came back changed", what);
        good = false;
    }
    free(host);
    free(back);
    return good;
}

static bool try_hostalloc(void)
{
    void *host;
    CUdeviceptr p;
    size_t bytes = 2 << 20;
    if (!ok(cu.cuMemHostAlloc(&host, bytes, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE), "cuMemHostAlloc"))
        return false;
    bool good = ok(cu.cuMemHostGetDevicePointer_v2(&p, host, 0), "cuMemHostGetDevicePointer");
    if (good && p != (CUdeviceptr)host) {
        snprintf(failure, sizeof failure, "device and host address of pinned memory differ");
        good = false;
    }
    good = good && round_trip(p, bytes, "copies on cuMemHostAlloc memory");
    cu.cuMemFreeHost(host);
    if (good)
        printf("numa=-1 granularity=%zu mixed_copy=0 host_access=1", bytes);
    return good;
}

/* Device, host, device chunks side by side, as a region will be; then copies on each and over all. */
static bool try_vmm(int device, int numa, CUmemLocationType type)
{
    CUmemAllocationProp vram = { .type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device } };
    CUmemAllocationProp ram = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { .type = type, .id = numa } };
    CUmemGenericAllocationHandle handle[3];
    CUdeviceptr base;
    size_t unit = 0, other = 0;
    if (!cu.cuMemCreate || !cu.cuMemAddressReserve) {
        snprintf(failure, sizeof failure, "the driver has no virtual memory management");
        return false;
    }
    if (!ok(cu.cuMemGetAllocationGranularity(&unit, &vram, CU_MEM_ALLOC_GRANULARITY_MINIMUM), "cuMemGetAllocationGranularity"))
        return false;
    if (cu.cuMemGetAllocationGranularity(&other, &ram, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS && other > unit)
        unit = other;
    if (unit > 2 << 20) {
        snprintf(failure, sizeof failure, "granularity of %zu bytes, above the 2 MiB that regions are made of", unit);
        return false;
    }
    unit = 2 << 20;
    if (!ok(cu.cuMemCreate(&handle[1], unit, &ram, 0), "cuMemCreate of host memory") ||
        !ok(cu.cuMemCreate(&handle[0], unit, &vram, 0), "cuMemCreate of VRAM") ||
        !ok(cu.cuMemCreate(&handle[2], unit, &vram, 0), "cuMemCreate of VRAM") ||
        !ok(cu.cuMemAddressReserve(&base, 3 * unit, 0, 0, 0), "cuMemAddressReserve"))
        return false;
    for (int i = 0; i < 3; i++)
        if (!ok(cu.cuMemMap(base + (size_t)i * unit, unit, 0, handle[i], 0), "cuMemMap"))
            return false;
    CUmemAccessDesc gpu = { .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device },
                            .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
    CUmemAccessDesc cpu = { .location = { .type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = numa < 0 ? 0 : numa },
                            .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
    if (!ok(cu.cuMemSetAccess(base, 3 * unit, &gpu, 1), "cuMemSetAccess over VRAM and RAM"))
        return false;
    bool host_access = ok(cu.cuMemSetAccess(base + unit, unit, &cpu, 1), "cuMemSetAccess for the CPU");
    if (!host_access || !round_trip(base + unit, unit, "copies on host memory") ||
        !round_trip(base, unit, "copies on device memory") ||
        !ok(cu.cuMemcpyDtoD_v2(base, base + unit, unit), "copy from RAM to VRAM") ||
        !ok(cu.cuMemcpyDtoD_v2(base + unit, base + 2 * unit, unit), "copy from VRAM to RAM") ||
        !ok(cu.cuCtxSynchronize(), "cuCtxSynchronize"))
        return false;
    /* The last question, because a driver that dislikes it might not forgive. */
    bool mixed = round_trip(base + unit / 2, unit, "copies over VRAM and RAM") && cu.cuCtxSynchronize() == CUDA_SUCCESS;
    printf("numa=%d granularity=%zu mixed_copy=%d host_access=1", numa, unit, mixed);
    return true;
}

static int attempt(const char *backend, int device, const char *library)
{
    CUdevice handle;
    CUcontext ctx;
    if (!load(library) || !ok(cu.cuDeviceGet(&handle, device), "cuDeviceGet")) {
        printf("%s", failure);
        return untried ? UNTRIED : 1;
    }
    /* A device in an exclusive mode, for one, has a context for the program and none for us. */
    if (!ok(cu.cuDevicePrimaryCtxRetain(&ctx, handle), "cuDevicePrimaryCtxRetain") || !ok(cu.cuCtxSetCurrent(ctx), "cuCtxSetCurrent")) {
        printf("%s", failure);
        return UNTRIED;
    }
    int numa = attribute(handle, ATTRIBUTE_HOST_NUMA_ID, 0);
    bool good;
    failure[0] = 0;
    if (numa < 0)
        numa = 0; /* no NUMA: node 0 */
    if (strcmp(backend, BACKENDS[0]) == 0)
        good = try_vmm(device, numa, CU_MEM_LOCATION_TYPE_HOST_NUMA);
    else if (strcmp(backend, BACKENDS[1]) == 0)
        good = try_vmm(device, 0, CU_MEM_LOCATION_TYPE_HOST);
    else
        good = try_hostalloc();
    if (!good)
        printf("%s", failure);
    fflush(stdout);
    /* Without the driver's exit handlers: after a failed attempt they may hang. */
    _exit(good ? 0 : untried ? UNTRIED : 1);
}

/* ---- all attempts ---- */

struct result {
    bool works, untried;
    char text[256];
};

static struct result run_attempt(const char *self, const char *backend, const char *device, const char *library)
{
    struct result out = { false, false, "" };
    int fd[2], status = 0;
    if (pipe(fd) < 0) {
        snprintf(out.text, sizeof out.text, "pipe: %s", strerror(errno));
        return out;
    }
    pid_t pid = fork();
    if (pid < 0) {
        snprintf(out.text, sizeof out.text, "fork: %s", strerror(errno));
        close(fd[0]);
        close(fd[1]);
        return out;
    }
    if (pid == 0) {
        dup2(fd[1], 1);
        close(fd[0]);
        close(fd[1]);
        execl(self, self, "--try", backend, "--device", device, "--library", library, (char *)NULL);
        _exit(127);
    }
    close(fd[1]);
    size_t have = 0;
    time_t deadline = time(NULL) + TIMEOUT_S;
    bool timed_out = false;
    for (;;) {
        struct pollfd p = { .fd = fd[0], .events = POLLIN };
        int ready = poll(&p, 1, 1000);
        if (ready == 0 && time(NULL) >= deadline) {
            timed_out = true;
            kill(pid, SIGKILL);
            break;
        }
        if (ready <= 0)
            continue;
        ssize_t n = read(fd[0], out.text + have, sizeof out.text - 1 - have);
        if (n <= 0)
            break;
        have += (size_t)n;
        if (have == sizeof out.text - 1)
            break;
    }
    close(fd[0]);
    out.text[have] = 0;
    waitpid(pid, &status, 0);
    out.works = !timed_out && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    out.untried = !timed_out && WIFEXITED(status) && WEXITSTATUS(status) == UNTRIED;
    if (timed_out)
        snprintf(out.text, sizeof out.text, "no answer within %d s", TIMEOUT_S);
    else if (WIFSIGNALED(status))
        snprintf(out.text, sizeof out.text, "the driver crashed (%s)", strsignal(WTERMSIG(status)));
    return out;
}

static void json_string(const char *s)
{
    putchar('"');
    for (; *s; s++)
        if (*s == '"' || *s == '\\')
            printf("\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            printf("\\u%04x", *s);
        else
            putchar(*s);
    putchar('"');
}

static void json_devices(int device)
{
    int count = 0, version = 0;
    cu.cuDriverGetVersion(&version);
    cu.cuDeviceGetCount(&count);
    printf("\"driver\": %d, \"device\": %d, \"devices\": [", version, device);
    for (int i = 0; i < count; i++) {
        char name[128] = "";
        size_t total = 0;
        CUdevice d;
        if (cu.cuDeviceGet(&d, i) != CUDA_SUCCESS)
            continue;
        cu.cuDeviceGetName(name, sizeof name, d);
        cu.cuDeviceTotalMem_v2(&total, d);
        printf("%s{\"ordinal\": %d, \"name\": ", i ? ", " : "", i);
        json_string(name);
        printf(", \"total\": %zu, \"vmm\": %d, \"host_numa_id\": %d, \"host_numa_vmm\": %d, \"host_vmm\": %d}", total,
               attribute(d, ATTRIBUTE_VMM, 0), attribute(d, ATTRIBUTE_HOST_NUMA_ID, -1),
               attribute(d, ATTRIBUTE_HOST_NUMA_VMM, -1), attribute(d, ATTRIBUTE_HOST_VMM, -1));
    }
    printf("], ");
}

static int all_attempts(const char *self, const char *device, const char *library, bool json)
{
    int best = -1, count = 0;
    struct result result[TRIES];
    bool driver = load(library) && ok(cu.cuDeviceGetCount(&count), "cuDeviceGetCount");
    if (driver && atoi(device) >= count) {
        snprintf(failure, sizeof failure, "no device %s: the driver shows %d", device, count);
        driver = false;
    }
    if (!driver) {
        if (json) {
            printf("{\"backend\": \"none\", \"error\": ");
            json_string(failure);
            printf(", \"devices\": [], \"tries\": []}\n");
        } else {
            printf("backend=none detail=%s\n", failure);
        }
        return NO_DEVICE;
    }
    if (json) {
        printf("{\"library\": ");
        json_string(library);
        printf(", ");
        json_devices(atoi(device));
        printf("\"tries\": [");
        fflush(stdout);
    }
    for (int i = 0; i < TRIES; i++) {
        result[i] = run_attempt(self, BACKENDS[i], device, library);
        if (result[i].works && best < 0)
            best = i;
        if (json) {
            printf("%s{\"backend\": \"%s\", \"works\": %s, \"detail\": ", i ? ", " : "", BACKENDS[i],
                   result[i].works ? "true" : "false");
            json_string(result[i].text);
            printf("}");
        }
        /* The library only wants the best; and a lesser one must not win because the better could not be tried. */
        if (!json && (best >= 0 || result[i].untried)) {
            if (best < 0)
                printf("backend=untried detail=%s\n", result[i].text);
            else
                printf("backend=%s %s detail=tried\n", BACKENDS[best], result[best].text);
            return best < 0 ? UNTRIED : 0;
        }
    }
    if (json)
        printf("], \"backend\": \"%s\"}\n", best < 0 ? "none" : BACKENDS[best]);
    else
        printf("backend=none detail=%s | %s | %s\n", result[0].text, result[1].text, result[2].text);
    return best < 0 ? 3 : 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: spillshim-probe [--device N] [--library FILE] [--json]\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *device = "0", *library = "libcuda.so.1", *backend = NULL;
    bool json = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc)
            device = argv[++i];
        else if (strcmp(argv[i], "--library") == 0 && i + 1 < argc)
            library = argv[++i];
        else if (strcmp(argv[i], "--try") == 0 && i + 1 < argc)
            backend = argv[++i];
        else
            return usage();
    }
    if (device[strspn(device, "0123456789")] || !*device)
        return usage();
    if (backend)
        return attempt(backend, atoi(device), library);
    return all_attempts("/proc/self/exe", device, library, json);
}
