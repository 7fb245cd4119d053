/* SPDX-License-Identifier: Apache-2.0 */
/* Pinned host memory: allocated or registered. Called by applications.
 * Rules: it counts against SIMGPU_RAM; its device pointer is its host pointer (unified addressing).
 */
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE ((uint64_t)4096)

uint64_t sim_pin_ns(uint64_t bytes)
{
    return sim_ns_at(bytes, sim_config()->pin);
}

static CUresult pin(void **pp, uint64_t bytes, unsigned flags)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!pp || !bytes || (flags & ~(unsigned)(CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED)))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_map *m = sim_map_new();
    if (!m || bytes >= (uint64_t)1 << 46) {
        free(m);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->kind = SIM_MAP_HOST;
    m->in_ram = true;
    m->size = bytes;
    m->charged = m->real_size = sim_round(bytes, PAGE);
    m->device = ctx->device;
    m->ctx = ctx;
    m->flags = flags;
    uint64_t charged = m->charged;
    sim_take();
    r = sim_capture_unsafe();
    if (!r && !sim_charge(SIM_RAM, charged))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    bool taken = !r;
    sim_give();
    void *p = taken ? sim_pages(m->real_size) : NULL;
    if (p) /* written before anybody can free it: another thread may be ending the context */
        sim_poison_new(SIM_RAM, p, bytes);
    m->base = (uint64_t)(uintptr_t)p;
    sim_take();
    if (p && ctx->dead)
        r = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    else if (taken && (!p || !sim_map_add(m)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r && taken)
        sim_machine_return(SIM_RAM, charged);
    sim_give();
    if (!r) {
        sim_host_spend(sim_pin_ns(charged));
        *pp = p;
        return r;
    }
    if (p) {
        sim_recycle_pages(SIM_RAM, p, m->real_size);
        sim_pages_free(p, m->real_size);
    }
    free(m);
    return r;
}

static CUresult unpin(void *p, enum sim_map_kind kind, CUresult missing)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    r = sim_capture_unsafe();
    struct sim_map *m = r ? NULL : sim_map_find((uint64_t)(uintptr_t)p);
    if (m && (m->kind != kind || m->base != (uint64_t)(uintptr_t)p))
        m = NULL;
    CUcontext owner = m ? m->ctx : NULL;
    if (m)
        sim_map_remove(m);
    sim_give();
    if (r)
        return r;
    if (!m)
        return missing;
    sim_drain(owner->dead ? ctx : owner);
    return sim_map_release(m);
}

SIM_API CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags)
{
    SIM_ENTRY();
    return pin(pp, bytesize, Flags);
}

SIM_API CUresult cuMemAllocHost_v2(void **pp, size_t bytesize)
{
    SIM_ENTRY();
    return pin(pp, bytesize, 0);
}

SIM_API CUresult cuMemFreeHost(void *p)
{
    SIM_ENTRY();
    return p ? unpin(p, SIM_MAP_HOST, CUDA_ERROR_INVALID_VALUE) : CUDA_SUCCESS;
}

static bool held(uint64_t p)
{
    sim_take();
    bool found = sim_map_find(p) != NULL;
    sim_give();
    return found;
}

static CUresult enroll(void *p, uint64_t bytes, unsigned flags)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    const unsigned known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY;
    uint64_t at = (uint64_t)(uintptr_t)p;
    if (!p || !bytes || (flags & ~known) || at + bytes < at)
        return CUDA_ERROR_INVALID_VALUE;
    if (flags & CU_MEMHOSTREGISTER_IOMEMORY) /* there is no other device whose memory this could be */
        return CUDA_ERROR_NOT_SUPPORTED;
    uint64_t first = at / PAGE * PAGE, pages = sim_round(at + bytes, PAGE) - first;
    if (sim_pages_own(at) && !held(at)) /* freed device memory */
        return CUDA_ERROR_INVALID_VALUE;
    if (msync((void *)(uintptr_t)first, pages, MS_ASYNC) && errno == ENOMEM) /* nothing mapped there */
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_map *m = sim_map_new();
    if (!m)
        return CUDA_ERROR_OUT_OF_MEMORY;
    m->kind = SIM_MAP_REGISTERED;
    m->in_ram = true;
    m->base = at;
    m->size = bytes;
    m->charged = pages;
    m->device = ctx->device;
    m->ctx = ctx;
    m->flags = flags;
    sim_take();
    r = sim_capture_unsafe();
    struct sim_map *next = sim_map_at(sim_map_from(at));
    if (!r && ctx->dead)
        r = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (!r && next && next->base < at + bytes)
        r = next->kind == SIM_MAP_HOST || next->kind == SIM_MAP_REGISTERED ? CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
                                                                             : CUDA_ERROR_INVALID_VALUE;
    if (!r && !sim_charge(SIM_RAM, m->charged))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    else if (!r && !sim_map_add(m)) {
        sim_machine_return(SIM_RAM, m->charged);
        r = CUDA_ERROR_OUT_OF_MEMORY;
    }
    sim_give();
    if (r)
        free(m);
    else
        sim_host_spend(sim_pin_ns(pages));
    return r;
}

SIM_API CUresult cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags)
{
    SIM_ENTRY();
    return enroll(p, bytesize, Flags);
}

SIM_API CUresult cuMemHostRegister(void *p, size_t bytesize, unsigned int Flags)
{
    SIM_ENTRY();
    return enroll(p, bytesize, Flags);
}

SIM_API CUresult cuMemHostUnregister(void *p)
{
    SIM_ENTRY();
    return unpin(p, SIM_MAP_REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

SIM_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!pdptr || !p || Flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    const struct sim_map *m = sim_map_find((uint64_t)(uintptr_t)p);
    bool ok = m && (m->kind == SIM_MAP_HOST || m->kind == SIM_MAP_REGISTERED || m->kind == SIM_MAP_MANAGED);
    sim_give();
    if (!ok)
        return CUDA_ERROR_INVALID_VALUE;
    *pdptr = (CUdeviceptr)(uintptr_t)p;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuMemHostGetFlags(unsigned int *pFlags, void *p)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    struct sim_map *m = sim_map_find((uint64_t)(uintptr_t)p);
    bool ok = pFlags && m && m->kind == SIM_MAP_HOST;
    if (ok)
        *pFlags = m->flags | CU_MEMHOSTALLOC_DEVICEMAP; /* always mapped under unified addressing */
    sim_give();
    return ok ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
