/* SPDX-License-Identifier: Apache-2.0 */
/* Handles of memory and events for other processes (cuIpc*). Called by applications and communication libraries.
 * Rules: an allocation's pages become a file in memory when it is first exported, and what a handle names is that file, by its
 * place among the exporter's descriptors and its number: a handle that outlived what it was for is found out. Memory that is
 * open in several processes counts once (machine.c). VMM memory and pools are shared by descriptors of their own (vmm.c).
 */
#define _GNU_SOURCE
#include "ipc.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { IPC_MEMORY = 0x4d435049, IPC_EVENT = 0x45435049 }; /* "IPCM", "IPCE" */

struct ipc { /* what a handle holds */
    uint32_t kind;
    int32_t pid, fd, device;
    uint64_t key, size;
};
_Static_assert(sizeof(struct ipc) <= CU_IPC_HANDLE_SIZE, "a handle is 64 bytes");

static void seal(char *handle, struct ipc ipc)
{
    memset(handle, 0, CU_IPC_HANDLE_SIZE);
    memcpy(handle, &ipc, sizeof ipc);
}

/* What a handle names, and a descriptor of its file. */
static CUresult unseal(const char *handle, uint32_t kind, struct ipc *ipc, int *fd)
{
    char path[64];
    memcpy(ipc, handle, sizeof *ipc);
    if (ipc->kind != kind || !sim_device_ok(ipc->device))
        return CUDA_ERROR_INVALID_VALUE;
    if (ipc->pid == (int32_t)getpid())
        return CUDA_ERROR_INVALID_CONTEXT; /* not in the process that exported it */
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)ipc->pid, (int)ipc->fd);
    *fd = open(path, O_RDWR | O_CLOEXEC);
    if (*fd >= 0 && sim_shared_key(*fd) == ipc->key)
        return CUDA_SUCCESS;
    if (*fd >= 0)
        close(*fd);
    return CUDA_ERROR_INVALID_HANDLE; /* the exporter is gone or has freed it */
}

/* ---- memory */

static bool all_zero(const char *p, size_t n)
{
    return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

/* Move private pages into a shared file at the same address. The context is idle; nobody else has the map. */
static bool share(struct sim_map *m)
{
    const size_t page = 4096;
    int fd = memfd_create("simgpu-ipc", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    bool ok = ftruncate(fd, (off_t)m->real_size) == 0;
    for (uint64_t at = 0; ok && at < m->real_size; at += page) {
        const char *p = (const char *)(uintptr_t)(m->base + at);
        if (!all_zero(p, page)) /* holes stay holes */
            ok = pwrite(fd, p, page, (off_t)at) == (ssize_t)page;
    }
    if (ok)
        ok = mmap((void *)(uintptr_t)m->base, m->real_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0) != MAP_FAILED;
    if (!ok) {
        close(fd);
        return false;
    }
    m->fd = fd;
    m->shared = sim_shared_key(fd);
    sim_machine_lend(m->shared, m->device, m->charged);
    return true;
}

SIM_API CUresult cuIpcGetMemHandle(CUipcMemHandle *pHandle, CUdeviceptr dptr)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!pHandle)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    struct sim_map *m = sim_map_find(dptr);
    CUcontext owner = m && m->kind == SIM_MAP_DEVICE && m->base == dptr ? m->ctx : NULL;
    sim_give();
    if (!owner)
        return CUDA_ERROR_INVALID_VALUE;
    sim_drain(owner); /* nothing may write while the pages move */
    sim_take();
    m = sim_map_find(dptr);
    if (!m || m->kind != SIM_MAP_DEVICE || m->base != dptr)
        r = CUDA_ERROR_INVALID_VALUE; /* freed meanwhile */
    else if (m->fd < 0 && !share(m))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r)
        seal(pHandle->reserved, (struct ipc){IPC_MEMORY, (int32_t)getpid(), m->fd, m->device, m->shared, m->size});
    sim_give();
    return r;
}

/* [locked] What this context has open of it already. */
static struct sim_map *opened(CUcontext ctx, uint64_t key)
{
    struct sim_map *m;
    for (size_t i = 0; (m = sim_map_at(i)); i++)
        if (m->kind == SIM_MAP_IPC && m->ctx == ctx && m->shared == key)
            return m;
    return NULL;
}

/* A new map of the file. */
static CUresult map_file(CUcontext ctx, const struct ipc *ipc, int fd, CUdeviceptr *out)
{
    uint64_t size = sim_round(ipc->size, 4096);
    struct sim_map *m = sim_map_new();
    void *p = m ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0) : MAP_FAILED;
    if (p == MAP_FAILED) {
        free(m);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    m->kind = SIM_MAP_IPC;
    m->base = *out = (uint64_t)(uintptr_t)p;
    m->size = ipc->size;
    m->real_size = size;
    m->device = ipc->device;
    m->ctx = ctx;
    m->shared = ipc->key;
    m->opened = 1;
    sim_machine_borrow(m->shared, m->device, sim_round(ipc->size, SIM_GRAN));
    sim_take();
    CUresult r = sim_current(&ctx); /* again: another thread may be ending the context */
    if (!r && !sim_map_add(m))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    if (r) {
        sim_machine_unborrow(m->shared);
        munmap(p, size);
        free(m);
    }
    return r;
}

static CUresult open_memory(CUdeviceptr *out, const CUipcMemHandle *handle, unsigned flags)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    struct ipc ipc;
    int fd;
    if (!out || flags != CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        return CUDA_ERROR_INVALID_VALUE;
    if ((r = unseal(handle->reserved, IPC_MEMORY, &ipc, &fd)))
        return r;
    sim_take();
    struct sim_map *m = opened(ctx, ipc.key);
    if (m) {
        m->opened++;
        *out = m->base;
    } else if (ipc.device != ctx->device && !sim_peer_possible(ctx->device, ipc.device)) {
        r = CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    }
    sim_give();
    if (!m && !r)
        r = map_file(ctx, &ipc, fd, out);
    close(fd);
    return r;
}

SIM_API CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags)
{
    SIM_ENTRY();
    return open_memory(pdptr, &handle, Flags);
}

SIM_API CUresult cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags)
{
    SIM_ENTRY();
    return open_memory(pdptr, &handle, Flags);
}

SIM_API CUresult cuIpcCloseMemHandle(CUdeviceptr dptr)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    struct sim_map *m = sim_map_find(dptr);
    bool ok = m && m->kind == SIM_MAP_IPC && m->base == dptr, last = ok && --m->opened == 0;
    CUcontext owner = ok ? m->ctx : NULL;
    if (last)
        sim_map_remove(m);
    sim_give();
    if (!ok)
        return CUDA_ERROR_INVALID_VALUE;
    if (!last)
        return CUDA_SUCCESS;
    sim_drain(owner);
    return sim_map_release(m);
}

/* ---- events */

SIM_API CUresult cuIpcGetEventHandle(CUipcEventHandle *pHandle, CUevent event)
{
    SIM_ENTRY();
    if (!pHandle)
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_shared_event *e;
    int device;
    sim_take();
    CUresult r = sim_event_export(event, &e, &device);
    if (!r) {
        int fd = sim_shared_event_fd(e);
        seal(pHandle->reserved, (struct ipc){IPC_EVENT, (int32_t)getpid(), fd, device, sim_shared_key(fd), 0});
    }
    sim_give();
    return r;
}

SIM_API CUresult cuIpcOpenEventHandle(CUevent *phEvent, CUipcEventHandle handle)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    struct ipc ipc;
    int fd;
    if (!phEvent)
        return CUDA_ERROR_INVALID_VALUE;
    if ((r = unseal(handle.reserved, IPC_EVENT, &ipc, &fd)))
        return r;
    struct sim_shared_event *e = sim_shared_event_open(fd);
    return e ? sim_event_import(e, phEvent) : CUDA_ERROR_MAP_FAILED;
}
