/* SPDX-License-Identifier: Apache-2.0 */
/* libnvidia-ml.so.1 of the simulated machine: what is asked of it by frameworks and by tools. Called by applications.
 * Rules: it looks at the shared state of the machine and never joins it; it does not need libcuda. Entries that are not
 * here are generated stubs that answer NVML_ERROR_NOT_SUPPORTED and name themselves once.
 */
#define _GNU_SOURCE
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>

#include "config.h"
#include "identity.h"
#include "machine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SIM_API __attribute__((visibility("default")))

static atomic_int users;
static const char serial[SIM_MAX_DEVICES]; /* device handles are addresses in here */

nvmlReturn_t sim_nvml_stub(const char *name);
nvmlReturn_t sim_nvml_stub(const char *name)
{
    sim_stub_reached(name, "NVML");
    return NVML_ERROR_NOT_SUPPORTED;
}

static nvmlReturn_t init(void)
{
    if (sim_config()->bad)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    atomic_fetch_add(&users, 1);
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlInit(void) { return init(); }
SIM_API nvmlReturn_t nvmlInit_v2(void) { return init(); }
SIM_API nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { (void)flags; return init(); }

SIM_API nvmlReturn_t nvmlShutdown(void)
{
    int n = atomic_load(&users);
    while (n > 0 && !atomic_compare_exchange_weak(&users, &n, n - 1))
        ;
    return n > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

SIM_API const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "The operation was successful";
    case NVML_ERROR_UNINITIALIZED: return "NVML was not first initialized with nvmlInit()";
    case NVML_ERROR_INVALID_ARGUMENT: return "A supplied argument is invalid";
    case NVML_ERROR_NOT_SUPPORTED: return "The requested operation is not available on target device";
    case NVML_ERROR_NOT_FOUND: return "A query to find an object was unsuccessful";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "An input argument is not large enough";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "The simulated driver's settings are malformed";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "The provided version is invalid/unsupported";
    default: return "Unknown error";
    }
}

static nvmlReturn_t text(char *out, unsigned length, const char *value)
{
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (length <= strlen(value))
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, value, strlen(value) + 1);
    return NVML_SUCCESS;
}

#define ENTRY() do { if (atomic_load(&users) <= 0) return NVML_ERROR_UNINITIALIZED; } while (0)

SIM_API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    ENTRY();
    return text(version, length, "580.00.simgpu");
}

SIM_API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    ENTRY();
    return text(version, length, "13.580.00.simgpu");
}

SIM_API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = sim_config()->driver;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return nvmlSystemGetCudaDriverVersion(version);
}

/* ---- devices */

static nvmlReturn_t device_of(nvmlDevice_t handle, int *device)
{
    if (atomic_load(&users) <= 0)
        return NVML_ERROR_UNINITIALIZED;
    uintptr_t at = (uintptr_t)handle, base = (uintptr_t)serial;
    if (at < base || at >= base + (uintptr_t)sim_config()->devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = (int)(at - base);
    return NVML_SUCCESS;
}

static nvmlReturn_t by_index(unsigned index, nvmlDevice_t *out)
{
    ENTRY();
    if (!out || index >= (unsigned)sim_config()->devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = (nvmlDevice_t)(uintptr_t)(serial + index);
    return NVML_SUCCESS;
}

static nvmlReturn_t count(unsigned *out)
{
    ENTRY();
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = (unsigned)sim_config()->devices;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetCount(unsigned int *deviceCount) { return count(deviceCount); }
SIM_API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *deviceCount) { return count(deviceCount); }
SIM_API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) { return by_index(index, device); }
SIM_API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) { return by_index(index, device); }

/* As NVML prints it: GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx. */
static void uuid_text(int device, char *out, size_t size)
{
    char raw[16];
    sim_uuid(device, raw);
    const unsigned char *u = (const unsigned char *)raw;
    snprintf(out, size, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3], u[4],
             u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

SIM_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    ENTRY();
    if (!uuid || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < sim_config()->devices; i++) {
        char mine[64];
        uuid_text(i, mine, sizeof mine);
        if (!strcmp(mine, uuid))
            return by_index((unsigned)i, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t by_pci(const char *id, nvmlDevice_t *device)
{
    ENTRY();
    unsigned domain, bus, slot;
    if (!id || !device || sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (domain || slot || bus < SIM_BUS(0) || bus >= SIM_BUS((unsigned)sim_config()->devices))
        return NVML_ERROR_NOT_FOUND;
    return by_index(bus - SIM_BUS(0), device);
}

SIM_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device) { return by_pci(pciBusId, device); }
SIM_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device) { return by_pci(pciBusId, device); }

#define DEVICE() int dev; do { nvmlReturn_t r_ = device_of(device, &dev); if (r_) return r_; } while (0)

SIM_API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    DEVICE();
    if (!index)
        return NVML_ERROR_INVALID_ARGUMENT;
    *index = (unsigned)dev;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    DEVICE();
    return text(name, length, SIM_DEVICE_NAME);
}

SIM_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    DEVICE();
    char mine[64];
    uuid_text(dev, mine, sizeof mine);
    return text(uuid, length, mine);
}

static nvmlReturn_t pci(nvmlDevice_t device, nvmlPciInfo_t *info)
{
    DEVICE();
    if (!info)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(info, 0, sizeof *info);
    info->bus = (unsigned)SIM_BUS(dev);
    snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", SIM_BUS(dev));
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:%02X:00.0", SIM_BUS(dev));
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *info) { return pci(device, info); }
SIM_API nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *info) { return pci(device, info); }
SIM_API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) { return pci(device, info); }

SIM_API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    DEVICE();
    uint64_t used, capacity;
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_machine_usage(dev, &used, &capacity);
    *memory = (nvmlMemory_t){.total = capacity, .free = capacity - used, .used = used};
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    DEVICE();
    uint64_t used, capacity;
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    sim_machine_usage(dev, &used, &capacity);
    memory->total = capacity;
    memory->reserved = 0;
    memory->free = capacity - used;
    memory->used = used;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    DEVICE();
    if (!major || !minor)
        return NVML_ERROR_INVALID_ARGUMENT;
    *major = 9;
    *minor = 0;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    DEVICE();
    if (!utilization)
        return NVML_ERROR_INVALID_ARGUMENT;
    *utilization = (nvmlUtilization_t){0}; /* simulated work takes no device time */
    return NVML_SUCCESS;
}

/* The link as tools would describe one of the configured speed: 16 lanes of the first generation that carries it. */
static unsigned generation(void)
{
    unsigned g = 1;
    for (uint64_t rate = 4ull << 30; g < 6 && rate < sim_config()->link; g++)
        rate *= 2;
    return g;
}

static nvmlReturn_t link_answer(nvmlDevice_t device, unsigned *out, unsigned value)
{
    DEVICE();
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = value;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *gen) { return link_answer(device, gen, generation()); }
SIM_API nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *gen) { return link_answer(device, gen, generation()); }
SIM_API nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *width) { return link_answer(device, width, 16); }
SIM_API nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *width) { return link_answer(device, width, 16); }

/* ---- processes; the first version of the record has no instance ids */

static nvmlReturn_t processes(nvmlDevice_t device, unsigned *room, void *out, size_t stride)
{
    DEVICE();
    pid_t pids[256];
    uint64_t bytes[256];
    if (!room || (*room && !out))
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned n = sim_machine_processes(dev, pids, bytes, 256);
    bool fits = n <= *room;
    for (unsigned i = 0; fits && i < n; i++) {
        nvmlProcessInfo_v1_t *p = (nvmlProcessInfo_v1_t *)(void *)((char *)out + i * stride);
        memset(p, 0, stride);
        p->pid = (unsigned)pids[i];
        p->usedGpuMemory = bytes[i];
        if (stride > sizeof *p) {
            nvmlProcessInfo_t *full = (nvmlProcessInfo_t *)(void *)p;
            full->gpuInstanceId = full->computeInstanceId = 0xFFFFFFFFu;
        }
    }
    *room = n;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

SIM_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v1_t *infos)
{
    return processes(device, infoCount, infos, sizeof *infos);
}

SIM_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v2_t *infos)
{
    return processes(device, infoCount, infos, sizeof *infos);
}

SIM_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_t *infos)
{
    return processes(device, infoCount, infos, sizeof *infos);
}
