/* SPDX-License-Identifier: Apache-2.0 */
/* libnvidia-ml.so.1 of the simulated machine: what is asked of it by frameworks and by tools. Called by applications.
 * Rules: it looks at the shared state of the machine and never joins it; it does not need libcuda. Entries that are not
 * here are generated stubs that answer NVML_ERROR_NOT_SUPPORTED and name themselves once.
 */
#define _GNU_SOURCE
#include "nvml_sim.h"

#include "config.h"
#include "identity.h"
#include "machine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

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
    static const struct { nvmlReturn_t code; const char *text; } errors[] = {
#include "nvml_errors.inc" /* generated from nvml.h by gen_stubs.py */
    };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == result)
            return errors[i].text;
    return "Unknown Error";
}

nvmlReturn_t sim_nvml_text(char *out, unsigned length, const char *value)
{
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (length <= strlen(value))
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, value, strlen(value) + 1);
    return NVML_SUCCESS;
}

/* The driver branch that first had a CUDA version (CUDA release notes, table of minimum drivers). */
static int branch(void)
{
    static const int from[][2] = {{13000, 580}, {12090, 575}, {12080, 570}, {12060, 560}, {12050, 555}, {12040, 550}, {12030, 545},
                                  {12020, 535}, {12010, 530}, {12000, 525}, {11080, 520}, {11070, 515}, {11060, 510}, {11050, 495}, {11040, 470}};
    for (size_t i = 0; i < sizeof from / sizeof *from; i++)
        if (sim_config()->driver >= from[i][0])
            return from[i][1];
    return 465;
}

SIM_API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    ENTRY();
    char mine[32];
    snprintf(mine, sizeof mine, "%d.00.simgpu", branch());
    return sim_nvml_text(version, length, mine);
}

SIM_API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    ENTRY();
    char mine[32];
    snprintf(mine, sizeof mine, "%d.%d.00.simgpu", sim_config()->driver / 1000, branch());
    return sim_nvml_text(version, length, mine);
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

nvmlReturn_t sim_nvml_device(nvmlDevice_t handle, int *device)
{
    if (atomic_load(&users) <= 0)
        return NVML_ERROR_UNINITIALIZED;
    uintptr_t at = (uintptr_t)handle, base = (uintptr_t)serial;
    if (at < base || at >= base + (uintptr_t)sim_config()->devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = (int)(at - base);
    return NVML_SUCCESS;
}

nvmlReturn_t sim_nvml_handle(unsigned index, nvmlDevice_t *out)
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
SIM_API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device) { return sim_nvml_handle(index, device); }
SIM_API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) { return sim_nvml_handle(index, device); }

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
            return sim_nvml_handle((unsigned)i, device);
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
    return sim_nvml_handle(bus - SIM_BUS(0), device);
}

SIM_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device) { return by_pci(pciBusId, device); }
SIM_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device) { return by_pci(pciBusId, device); }

int sim_nvml_refuse(void *device);
int sim_nvml_refuse(void *device)
{
    int dev;
    nvmlReturn_t r = sim_nvml_device(device, &dev);
    return r ? (int)r : NVML_ERROR_NOT_SUPPORTED;
}

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
    return sim_nvml_text(name, length, SIM_DEVICE_NAME);
}

SIM_API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    DEVICE();
    char mine[64];
    uuid_text(dev, mine, sizeof mine);
    return sim_nvml_text(uuid, length, mine);
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

/* Graphics and MPS processes: there are none. */
static nvmlReturn_t nobody(nvmlDevice_t device, unsigned *room)
{
    DEVICE();
    (void)dev;
    if (!room)
        return NVML_ERROR_INVALID_ARGUMENT;
    *room = 0;
    return NVML_SUCCESS;
}

#define PROCESS_ENTRIES(suffix, type) \
    SIM_API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses##suffix(nvmlDevice_t device, unsigned int *infoCount, type *infos) \
    { return processes(device, infoCount, infos, sizeof *infos); } \
    SIM_API nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses##suffix(nvmlDevice_t device, unsigned int *infoCount, type *infos) \
    { (void)infos; return nobody(device, infoCount); } \
    SIM_API nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses##suffix(nvmlDevice_t device, unsigned int *infoCount, type *infos) \
    { (void)infos; return nobody(device, infoCount); }
PROCESS_ENTRIES(, nvmlProcessInfo_v1_t)
PROCESS_ENTRIES(_v2, nvmlProcessInfo_v2_t)
PROCESS_ENTRIES(_v3, nvmlProcessInfo_t)

/* The newest form: one list for all kinds. Too small a list: its size is told (nvml.h). */
SIM_API nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device, nvmlProcessDetailList_t *plist)
{
    DEVICE();
    pid_t pids[256];
    uint64_t bytes[256];
    if (!plist || plist->mode >= NVML_PROCESS_MODE_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (plist->version != nvmlProcessDetailList_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    bool any = plist->mode == NVML_PROCESS_MODE_COMPUTE || plist->mode == NVML_PROCESS_MODE_ALL;
    unsigned n = any ? sim_machine_processes(dev, pids, bytes, 256) : 0;
    bool fits = n <= plist->numProcArrayEntries && (!n || plist->procArray);
    for (unsigned i = 0; fits && i < n; i++)
        plist->procArray[i] = (nvmlProcessDetail_v1_t){.pid = (unsigned)pids[i], .usedGpuMemory = bytes[i],
                                                       .gpuInstanceId = 0xFFFFFFFFu, .computeInstanceId = 0xFFFFFFFFu};
    plist->numProcArrayEntries = n;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}
