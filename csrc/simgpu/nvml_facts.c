/* SPDX-License-Identifier: Apache-2.0 */
/* What a simulated card is, as NVML tells it: modes, links, topology, affinity, BAR1. Called by tools and by frameworks that
 * look at the machine before they use it.
 * Rules: the answers agree with the driver's attributes (device.c); nothing is invented that somebody could take for a
 * measurement (see nvml_refused.c).
 */
#define _GNU_SOURCE
#include "nvml_sim.h"

#include "config.h"
#include "identity.h"
#include "machine.h"

#include <sched.h>
#include <stdlib.h>

static nvmlReturn_t number(nvmlDevice_t device, unsigned *out, unsigned value)
{
    DEVICE();
    (void)dev;
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    *out = value;
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

/* Megatransfers per second of that generation. */
static unsigned transfers(void)
{
    static const unsigned mt[] = {2500, 5000, 8000, 16000, 32000, 64000};
    return mt[generation() - 1];
}

SIM_API nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *gen) { return number(device, gen, generation()); }
SIM_API nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *gen) { return number(device, gen, generation()); }
SIM_API nvmlReturn_t nvmlDeviceGetGpuMaxPcieLinkGeneration(nvmlDevice_t device, unsigned int *gen) { return number(device, gen, generation()); }
SIM_API nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *width) { return number(device, width, 16); }
SIM_API nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t device, unsigned int *width) { return number(device, width, 16); }
SIM_API nvmlReturn_t nvmlDeviceGetPcieSpeed(nvmlDevice_t device, unsigned int *speed) { return number(device, speed, transfers()); }
SIM_API nvmlReturn_t nvmlDeviceGetMultiGpuBoard(nvmlDevice_t device, unsigned int *multiGpuBool) { return number(device, multiGpuBool, 0); }
SIM_API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *isMigDevice) { return number(device, isMigDevice, 0); }
SIM_API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count) { return number(device, count, 0); }
SIM_API nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned int *cores) { return number(device, cores, SIM_SMS * 128); }
SIM_API nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned int *width) { return number(device, width, SIM_BUS_WIDTH); }

SIM_API nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *arch)
{
    return number(device, arch, NVML_DEVICE_ARCH_HOPPER); /* compute capability 9.0 */
}

SIM_API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minorNumber)
{
    DEVICE();
    return number(device, minorNumber, (unsigned)dev);
}

SIM_API nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned int *boardId)
{
    DEVICE();
    return number(device, boardId, (unsigned)SIM_BUS(dev) << 8);
}

#define SETTING(name, type, value) \
    SIM_API nvmlReturn_t name(nvmlDevice_t device, type *out) \
    { DEVICE(); (void)dev; if (!out) return NVML_ERROR_INVALID_ARGUMENT; *out = value; return NVML_SUCCESS; }
SETTING(nvmlDeviceGetBrand, nvmlBrandType_t, NVML_BRAND_UNKNOWN)
SETTING(nvmlDeviceGetComputeMode, nvmlComputeMode_t, NVML_COMPUTEMODE_DEFAULT)
SETTING(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, NVML_FEATURE_DISABLED)
SETTING(nvmlDeviceGetDisplayActive, nvmlEnableState_t, NVML_FEATURE_DISABLED)
SETTING(nvmlDeviceGetDisplayMode, nvmlEnableState_t, NVML_FEATURE_DISABLED)
SETTING(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t, NVML_GPU_VIRTUALIZATION_MODE_NONE)

SIM_API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    DEVICE();
    (void)dev;
    if (!major || !minor)
        return NVML_ERROR_INVALID_ARGUMENT;
    *major = 9;
    *minor = 0;
    return NVML_SUCCESS;
}

/* A share of wall-clock time in which kernels ran, which the simulated clock knows nothing of; 0 is what an idle card says. */
SIM_API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    DEVICE();
    (void)dev;
    if (!utilization)
        return NVML_ERROR_INVALID_ARGUMENT;
    *utilization = (nvmlUtilization_t){0};
    return NVML_SUCCESS;
}

/* "No data": no process was seen busy since (nvml.h: NVML_ERROR_NOT_FOUND). */
SIM_API nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *utilization,
                                                     unsigned int *processSamplesCount, unsigned long long lastSeenTimeStamp)
{
    DEVICE();
    (void)dev, (void)utilization, (void)lastSeenTimeStamp;
    if (!processSamplesCount)
        return NVML_ERROR_INVALID_ARGUMENT;
    *processSamplesCount = 0;
    return NVML_ERROR_NOT_FOUND;
}

/* The window through which the CPU reaches VRAM: as large as VRAM, and unused, because no process maps it. */
SIM_API nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory)
{
    DEVICE();
    uint64_t used, capacity;
    if (!bar1Memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_machine_usage(dev, &used, &capacity);
    *bar1Memory = (nvmlBAR1Memory_t){.bar1Total = capacity, .bar1Free = capacity};
    return NVML_SUCCESS;
}

/* ---- fields: none of those that tools read is known here */

SIM_API nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values)
{
    DEVICE();
    (void)dev;
    if (valuesCount <= 0 || !values)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < valuesCount; i++)
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

/* ---- topology: one host bridge, peers through PCIe, no NVLink */

SIM_API nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device1, nvmlDevice_t device2, nvmlGpuTopologyLevel_t *pathInfo)
{
    int a, b;
    nvmlReturn_t r = sim_nvml_device(device1, &a);
    if (!r)
        r = sim_nvml_device(device2, &b);
    if (r)
        return r;
    if (!pathInfo)
        return NVML_ERROR_INVALID_ARGUMENT;
    *pathInfo = a == b ? NVML_TOPOLOGY_INTERNAL : NVML_TOPOLOGY_HOSTBRIDGE;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level, unsigned int *count, nvmlDevice_t *deviceArray)
{
    DEVICE();
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = deviceArray ? *count : 0, found = 0;
    for (int i = 0; level == NVML_TOPOLOGY_HOSTBRIDGE && i < sim_config()->devices; i++) {
        if (i == dev)
            continue;
        if (found < room)
            sim_nvml_handle((unsigned)i, &deviceArray[found]);
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device1, nvmlDevice_t device2, nvmlGpuP2PCapsIndex_t p2pIndex, nvmlGpuP2PStatus_t *p2pStatus)
{
    int a, b;
    nvmlReturn_t r = sim_nvml_device(device1, &a);
    if (!r)
        r = sim_nvml_device(device2, &b);
    if (r)
        return r;
    if (!p2pStatus || a == b || p2pIndex >= NVML_P2P_CAPS_INDEX_UNKNOWN)
        return NVML_ERROR_INVALID_ARGUMENT;
    bool pcie = p2pIndex != NVML_P2P_CAPS_INDEX_NVLINK && p2pIndex != NVML_P2P_CAPS_INDEX_ATOMICS;
    *p2pStatus = pcie ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t device1, nvmlDevice_t device2, int *onSameBoard)
{
    int a, b;
    nvmlReturn_t r = sim_nvml_device(device1, &a);
    if (!r)
        r = sim_nvml_device(device2, &b);
    if (r)
        return r;
    if (!onSameBoard)
        return NVML_ERROR_INVALID_ARGUMENT;
    *onSameBoard = a == b;
    return NVML_SUCCESS;
}

/* Every CPU that this process may use is near; a machine of one node. */
static nvmlReturn_t cpus(nvmlDevice_t device, unsigned words, unsigned long *set)
{
    DEVICE();
    (void)dev;
    if (!words || !set)
        return NVML_ERROR_INVALID_ARGUMENT;
    cpu_set_t mine;
    CPU_ZERO(&mine);
    if (sched_getaffinity(0, sizeof mine, &mine))
        return NVML_ERROR_UNKNOWN;
    const unsigned bits = 8 * sizeof *set;
    for (unsigned w = 0; w < words; w++) {
        set[w] = 0;
        for (unsigned b = 0; b < bits; b++)
            if (w * bits + b < CPU_SETSIZE && CPU_ISSET(w * bits + b, &mine))
                set[w] |= 1ul << b;
    }
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet)
{
    return cpus(device, cpuSetSize, cpuSet);
}

SIM_API nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet, nvmlAffinityScope_t scope)
{
    return scope > NVML_AFFINITY_SCOPE_SOCKET ? NVML_ERROR_INVALID_ARGUMENT : cpus(device, cpuSetSize, cpuSet);
}

SIM_API nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int nodeSetSize, unsigned long *nodeSet, nvmlAffinityScope_t scope)
{
    DEVICE();
    (void)dev;
    if (!nodeSetSize || !nodeSet || scope > NVML_AFFINITY_SCOPE_SOCKET)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(nodeSet, 0, nodeSetSize * sizeof *nodeSet);
    nodeSet[0] = 1; /* HOST_NUMA_ID is 0 */
    return NVML_SUCCESS;
}

/* ---- the system */

SIM_API nvmlReturn_t nvmlUnitGetCount(unsigned int *unitCount)
{
    ENTRY();
    if (!unitCount)
        return NVML_ERROR_INVALID_ARGUMENT;
    *unitCount = 0; /* S-class systems only */
    return NVML_SUCCESS;
}

SIM_API nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    ENTRY();
    char path[40], text[4096];
    if (!name || !length)
        return NVML_ERROR_INVALID_ARGUMENT;
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    return n ? sim_nvml_text(name, length, text) : NVML_ERROR_NOT_FOUND;
}
