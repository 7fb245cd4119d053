/* SPDX-License-Identifier: Apache-2.0 */
/* Physical memory in either tier. Called by engine.c; hook_vmm.c uses the location. Rules: bytes are counted when the
 * driver gives them and when it gets them back, nowhere else. */
#include "tiering/tiering.h"

#include <pthread.h>

#include "shim/log.h"

static struct spill_probe_result probed; /* `backend` is written last: readers test it without the lock */
static pthread_mutex_t probing = PTHREAD_MUTEX_INITIALIZER;

const char *spill_backend_name(enum spill_backend backend)
{
    static const char *const name[] = { "unprobed", "host-numa", "host", "hostalloc", "none" };
    return name[backend];
}

const struct spill_probe_result *spill_backend(int device)
{
    if (__atomic_load_n(&probed.backend, __ATOMIC_ACQUIRE) != SPILL_BACKEND_UNPROBED)
        return &probed;
    pthread_mutex_lock(&probing);
    if (probed.backend == SPILL_BACKEND_UNPROBED) {
        struct spill_probe_result found = { SPILL_BACKEND_NONE, 0, false };
        spill_settings()->probe(device, &found);
        probed.numa = found.numa;
        probed.mixed_copy = found.mixed_copy;
        __atomic_store_n(&probed.backend, found.backend, __ATOMIC_RELEASE);
        spill_log(SPILL_LOG_INFO, "RAM reaches the GPU by backend=%s numa=%d mixed_copy=%d",
                  spill_backend_name(found.backend), found.numa, found.mixed_copy);
    }
    pthread_mutex_unlock(&probing);
    return &probed;
}

/* The probe needs a context of its own (some hundred MiB): a quarter of any card is enough for that. */
void spill_backend_foresee(int device, uint64_t free_after)
{
    if (spill_settings()->spill && spill_backend_known() == SPILL_BACKEND_UNPROBED && free_after < spill_device(device)->total / 4)
        spill_backend(device);
}

enum spill_backend spill_backend_known(void)
{
    return __atomic_load_n(&probed.backend, __ATOMIC_ACQUIRE);
}

bool spill_mixed_copy(void)
{
    return spill_backend_known() != SPILL_BACKEND_UNPROBED && probed.mixed_copy;
}

CUmemLocation spill_host_location(void)
{
    CUmemLocation location = { .type = CU_MEM_LOCATION_TYPE_HOST, .id = 0 };
    if (spill_backend_known() == SPILL_BACKEND_HOST_NUMA) {
        location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA;
        location.id = probed.numa;
    }
    return location;
}

CUmemAccessDesc spill_cpu_access(void)
{
    /* cuMemSetAccess takes no HOST descriptor before 13.0, and ignores the node. */
    return (CUmemAccessDesc){ .location = { .type = CU_MEM_LOCATION_TYPE_HOST_NUMA, .id = spill_host_location().id },
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
}

void spill_backing_refused(uint64_t bytes, CUresult error)
{
    char size[16];
    spill_log(SPILL_LOG_WARN, "the driver did not pin %s of RAM that the budget had granted, error=%d: a limit of its own or of "
              "the machine is reached (spillshim doctor)", spill_size_text(bytes, size), (int)error);
}

CUresult spill_backing_take(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle *out)
{
    CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED };
    if (spill_pool_take(device, tier, bytes, out)) {
        if (tier == SPILL_RAM)
            spill_budget_give(bytes, 0); /* it was asked for, and pinned, when it was made */
        spill_account(device, tier == SPILL_VRAM ? (int64_t)bytes : 0, tier == SPILL_RAM ? (int64_t)bytes : 0);
        return CUDA_SUCCESS;
    }
    if (tier == SPILL_RAM) {
        prop.location = spill_host_location();
    } else {
        prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        prop.location.id = device;
        prop.allocFlags.gpuDirectRDMACapable = spill_device(device)->rdma; /* as cudaMalloc's memory is */
    }
    CUresult r = spill_driver()->cuMemCreate(out, bytes, &prop, 0);
    if (r == CUDA_ERROR_OUT_OF_MEMORY && (tier == SPILL_RAM ? spill_pool_trim_ram(UINT64_MAX) : spill_pool_trim(device, bytes)))
        r = spill_driver()->cuMemCreate(out, bytes, &prop, 0);
    if (r != CUDA_SUCCESS && tier == SPILL_RAM)
        spill_backing_refused(bytes, r);
    if (r != CUDA_SUCCESS)
        return r;
    if (tier == SPILL_RAM)
        spill_budget_pinned(bytes);
    spill_account(device, tier == SPILL_VRAM ? (int64_t)bytes : 0, tier == SPILL_RAM ? (int64_t)bytes : 0);
    return CUDA_SUCCESS;
}

void spill_backing_give(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle handle)
{
    CUresult r = spill_driver()->cuMemRelease(handle);
    if (r != CUDA_SUCCESS)
        spill_log(SPILL_LOG_ERROR, "cuMemRelease failed error=%d bytes=%llu; they stay counted", (int)r, (unsigned long long)bytes);
    else if (tier == SPILL_RAM)
        spill_budget_give(bytes, bytes);
    if (r == CUDA_SUCCESS)
        spill_account(device, tier == SPILL_VRAM ? -(int64_t)bytes : 0, tier == SPILL_RAM ? -(int64_t)bytes : 0);
}

void spill_backing_recycle(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle handle)
{
    if (spill_pool_give(device, tier, bytes, handle))
        spill_account(device, tier == SPILL_VRAM ? -(int64_t)bytes : 0, tier == SPILL_RAM ? -(int64_t)bytes : 0);
    else
        spill_backing_give(device, tier, bytes, handle);
}

CUresult spill_fixed_take(int device, uint64_t bytes, CUdeviceptr *out)
{
    const struct spill_driver *d = spill_driver();
    void *host;
    CUresult r = d->cuMemHostAlloc(&host, bytes, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE);
    if (r != CUDA_SUCCESS) {
        spill_backing_refused(bytes, r);
        return r;
    }
    /* The address must be the same on both sides, or free and copies could not tell what they are given. */
    r = d->cuMemHostGetDevicePointer_v2(out, host, 0);
    if (r == CUDA_SUCCESS && *out != (CUdeviceptr)host)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r != CUDA_SUCCESS) {
        d->cuMemFreeHost(host);
        return r;
    }
    spill_budget_pinned(bytes);
    spill_account(device, 0, (int64_t)bytes);
    return CUDA_SUCCESS;
}

void spill_fixed_give(int device, uint64_t bytes, CUdeviceptr p, bool gone)
{
    CUresult r = gone ? CUDA_SUCCESS : spill_driver()->cuMemFreeHost((void *)p);
    if (r != CUDA_SUCCESS) {
        spill_log(SPILL_LOG_ERROR, "cuMemFreeHost failed error=%d bytes=%llu; they stay counted", (int)r, (unsigned long long)bytes);
        return;
    }
    spill_budget_give(bytes, bytes);
    spill_account(device, 0, -(int64_t)bytes);
}
