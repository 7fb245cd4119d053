/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of what programs ask about memory: cuMemGetInfo, cuDeviceTotalMem (device properties are made of it), NVML.
 * One model for all of them:
 *   report=vram     total = the VRAM this job may use; free = what of it is free, less what has spilled: bytes in RAM are
 *                   VRAM that is owed, so free falls with every allocation and rises with every free, wherever it lies
 *   report=virtual  both raised by RAM: total by the most that may ever be pinned, at most SPILLSHIM_REPORT_LIMIT; free by what
 *                   of that isn't in use. Bytes in RAM beyond the limit are owed as above: with a limit of 0 both say the same
 * What is kept for reuse (pool.c) is free to the program whose it is, and to nobody else.
 * Rules: 0 <= free <= total always; no answer differs between two processes of a job at the same moment, but for what they keep;
 * without a limit, with report=vram, nothing spilled and nothing kept, the driver's numbers pass untouched. */
#include "shim/config.h"
#include "shim/hook.h"
#include "shim/resolve.h"

#include <string.h>

struct amounts {
    uint64_t free, total;
};

/* A program that moves memory itself must not be told of RAM that it won't get: it plans by what it hears, before it allocates
 * anything large, which is when we look otherwise. */
static bool stepped_aside(void)
{
    spill_look();
    return spill_aside();
}

/* The model, from what the device itself says. */
static struct amounts model(const struct spill_device *d, struct amounts device)
{
    struct spill_ledger_sum sum;
    device.free += spill_pool_vram(d->key);
    struct amounts out = { device.free, d->limit < device.total ? d->limit : device.total };
    spill_usage(d, &sum);
    if (d->limit < d->total) {
        uint64_t left = sum.vram_of_job < d->limit ? d->limit - sum.vram_of_job : 0;
        if (left < out.free)
            out.free = left;
    }
    uint64_t ceiling = 0, beyond = 0;
    if (spill_config()->report == SPILL_REPORT_VIRTUAL && spill_settings()->spill && !stepped_aside()) {
        ceiling = spill_budget_ceiling();
        beyond = spill_amount_bytes(&spill_config()->report_limit, out.total, UINT64_MAX);
        beyond = beyond < ceiling ? beyond : ceiling;
        out.total += beyond;
    }
    if (sum.ram_on_device <= beyond) {
        /* RAM is everybody's: what others hold of it, on other devices too, can't be had here. */
        uint64_t left = beyond - sum.ram_on_device, unused = sum.ram_asked < ceiling ? ceiling - sum.ram_asked : 0;
        out.free += left < unused ? left : unused;
    } else {
        uint64_t owed = sum.ram_on_device - beyond;
        out.free -= owed < out.free ? owed : out.free;
    }
    if (out.free > out.total)
        out.free = out.total;
    return out;
}

SPILL_EXPORT CUresult CUDAAPI cuMemGetInfo_v2(size_t *free, size_t *total)
{
    size_t free_now, all;
    int device;
    SPILL_NEEDS(cuMemGetInfo_v2);
    if (!spill_on())
        return spill_driver()->cuMemGetInfo_v2(free, total);
    /* Some programs ask for one of the two only, and drivers take it. */
    CUresult r = spill_driver()->cuMemGetInfo_v2(&free_now, &all);
    if (r != CUDA_SUCCESS)
        return r;
    struct amounts out = { free_now, all };
    if (spill_current_device(&device) == CUDA_SUCCESS)
        out = model(spill_device(device), out);
    if (free)
        *free = out.free;
    if (total)
        *total = out.total;
    return CUDA_SUCCESS;
}

SPILL_EXPORT CUresult CUDAAPI cuDeviceTotalMem_v2(size_t *bytes, CUdevice dev)
{
    SPILL_NEEDS(cuDeviceTotalMem_v2);
    CUresult r = spill_driver()->cuDeviceTotalMem_v2(bytes, dev);
    if (r != CUDA_SUCCESS || !spill_on() || !spill_device(dev))
        return r;
    *bytes = model(spill_device(dev), (struct amounts){ *bytes, *bytes }).total;
    return CUDA_SUCCESS;
}

/* ---- NVML: a process may ask it without ever using CUDA, so nothing here asks libcuda ---- */

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "GPU-xxxxxxxx-xxxx-..." holds the bytes that cuDeviceGetUuid gives. */
static uint64_t key_of(nvmlDevice_t device)
{
    char text[NVML_DEVICE_UUID_V2_BUFFER_SIZE];
    unsigned char uuid[16];
    unsigned have = 0;
    if (!spill_driver_nvml()->nvmlDeviceGetUUID ||
        spill_driver_nvml()->nvmlDeviceGetUUID(device, text, sizeof text) != NVML_SUCCESS)
        return 0;
    for (const char *p = strchr(text, '-'); p && *p && have < 32; p++) {
        int digit = hex(*p);
        if (digit >= 0) {
            uuid[have / 2] = (unsigned char)(have % 2 ? uuid[have / 2] | digit : digit << 4);
            have++;
        }
    }
    return have == 32 ? spill_device_key(uuid) : 0;
}

static bool nvml_model(nvmlDevice_t device, struct amounts in, struct amounts *out)
{
    struct spill_device facts;
    if (!spill_on())
        return false;
    spill_device_limits(&facts, key_of(device), in.total);
    *out = model(&facts, in);
    return out->free != in.free || out->total != in.total;
}

SPILL_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    const struct spill_driver *d = spill_driver_nvml();
    struct amounts out;
    if (!d->nvmlDeviceGetMemoryInfo)
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    nvmlReturn_t r = d->nvmlDeviceGetMemoryInfo(device, memory);
    if (r != NVML_SUCCESS || !nvml_model(device, (struct amounts){ memory->free, memory->total }, &out))
        return r;
    memory->total = out.total;
    memory->free = out.free;
    memory->used = out.total - out.free;
    return r;
}

SPILL_EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    const struct spill_driver *d = spill_driver_nvml();
    struct amounts out;
    if (!d->nvmlDeviceGetMemoryInfo_v2)
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    nvmlReturn_t r = d->nvmlDeviceGetMemoryInfo_v2(device, memory);
    if (r != NVML_SUCCESS || !nvml_model(device, (struct amounts){ memory->free, memory->total }, &out))
        return r;
    memory->total = out.total;
    memory->free = out.free;
    /* The driver's own share stays reserved where total still holds it. */
    if (memory->reserved > out.total - out.free)
        memory->reserved = out.total - out.free;
    memory->used = out.total - out.free - memory->reserved;
    return r;
}
