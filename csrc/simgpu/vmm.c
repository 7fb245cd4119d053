/* SPDX-License-Identifier: Apache-2.0 */
/* Virtual memory management: reservations, handles, mappings, access. Called by applications and by the shim.
 * A reservation is PROT_NONE address space, a handle a piece of one sparse file (exportable ones have a file of their
 * own, so that thousands of chunks do not need thousands of descriptors), a mapping is MAP_FIXED of it, access is
 * mprotect. Rules: whole mappings only; bytes count from cuMemCreate until released *and* unmapped.
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "faults.h"
#include "state.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE ((uint64_t)4096)

struct sim_handle {
    uint64_t id, size, offset;
    CUmemAllocationProp prop;
    int fd;
    bool own_file, imported, lent;
    unsigned users, mapped; /* cuMemCreate/Retain/Import minus cuMemRelease; mappings */
};

static int store = -1;       /* [locked] the file of handles that are not exportable */
static uint64_t store_end;   /* never used again: a hole is punched instead */

static bool in_ram(const CUmemLocation *l)
{
    return l->type != CU_MEM_LOCATION_TYPE_DEVICE;
}

static int tier_of(const struct sim_handle *h)
{
    return in_ram(&h->prop.location) ? SIM_RAM : h->prop.location.id;
}

/* ---- reservations */

SIM_API CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr, unsigned long long flags)
{
    SIM_ENTRY();
    if (!ptr || !size || size % PAGE || addr % PAGE || (alignment & (alignment - 1)) || flags)
        return CUDA_ERROR_INVALID_VALUE;
    uint64_t align = alignment < SIM_GRAN ? SIM_GRAN : alignment, span = size + align;
    if (span < size)
        return CUDA_ERROR_OUT_OF_MEMORY;
    struct sim_reservation *r = calloc(1, sizeof *r);
    if (!r)
        return CUDA_ERROR_OUT_OF_MEMORY;
    const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint64_t base = 0;
    if (addr && addr % align == 0) { /* a hint: taken when free */
        void *p = mmap((void *)(uintptr_t)addr, size, PROT_NONE, kind | MAP_FIXED_NOREPLACE, -1, 0);
        if (p != MAP_FAILED && (uint64_t)(uintptr_t)p != addr)
            munmap(p, size);
        else if (p != MAP_FAILED)
            base = addr;
    }
    if (!base) {
        char *p = mmap(NULL, span, PROT_NONE, kind, -1, 0);
        if (p == MAP_FAILED) {
            free(r);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        uint64_t at = (uint64_t)(uintptr_t)p;
        base = sim_round(at, align);
        if (base > at)
            munmap(p, base - at);
        if (at + span > base + size)
            munmap((void *)(uintptr_t)(base + size), at + span - base - size);
    }
    r->base = base;
    r->size = size;
    r->id = sim_unique();
    sim_take();
    bool ok = sim_reservation_add(r);
    sim_give();
    if (!ok) {
        munmap((void *)(uintptr_t)base, size);
        free(r);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *ptr = base;
    sim_host_spend(sim_config()->vmm_ns[SIM_VMM_RESERVE]);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size)
{
    SIM_ENTRY();
    sim_take();
    struct sim_reservation *r = sim_reservation_find(ptr);
    bool ok = r && r->base == ptr && r->size == size && !r->mapped;
    if (ok) {
        sim_reservation_remove(r);
        munmap((void *)(uintptr_t)ptr, size);
    }
    sim_give();
    if (!ok)
        return CUDA_ERROR_INVALID_VALUE;
    free(r);
    return CUDA_SUCCESS;
}

/* ---- handles */

/* A handle type that other systems have: Windows' ones, fabric (its device attribute answers 0). */
static bool known_type(unsigned types)
{
    const unsigned all = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_WIN32 | CU_MEM_HANDLE_TYPE_WIN32_KMT | CU_MEM_HANDLE_TYPE_FABRIC;
    return types && !(types & ~all);
}

/* What this device and driver say about a location and the rest of the properties. */
static CUresult check_prop(const CUmemAllocationProp *p)
{
    static const CUresult missing[][2] = {{CUDA_ERROR_NOT_SUPPORTED, CUDA_ERROR_INVALID_VALUE}, /* no host memory; not this kind */
                                          {CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE},
                                          {CUDA_ERROR_NOT_SUPPORTED, CUDA_ERROR_NOT_SUPPORTED}};
    const struct sim_config *c = sim_config();
    const CUresult *lacks = missing[sim_doubt(SIM_DOUBT_NO_LOCATION)];
    if (!p || p->type != CU_MEM_ALLOCATION_TYPE_PINNED)
        return CUDA_ERROR_INVALID_VALUE;
    if (p->requestedHandleTypes != CU_MEM_HANDLE_TYPE_NONE && p->requestedHandleTypes != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return known_type(p->requestedHandleTypes) ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    switch (p->location.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
        return sim_device_ok(p->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
        if (c->host_vmm == SIM_HOST_VMM_NONE || c->host_vmm == SIM_HOST_VMM_HOST)
            return lacks[c->host_vmm == SIM_HOST_VMM_HOST];
        if (p->requestedHandleTypes && sim_doubt(SIM_DOUBT_NUMA_EXPORT))
            return sim_doubt(SIM_DOUBT_NUMA_EXPORT) == 1 ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
        return p->location.id == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEM_LOCATION_TYPE_HOST:
        if (c->host_vmm == SIM_HOST_VMM_NONE || c->host_vmm == SIM_HOST_VMM_NUMA)
            return lacks[1];
        return p->requestedHandleTypes ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    default: /* HOST_NUMA_CURRENT is always refused */
        return CUDA_ERROR_INVALID_VALUE;
    }
}

/* [locked] Give the handle its piece of a file. */
static bool place(struct sim_handle *h)
{
    if (h->prop.requestedHandleTypes) {
        char name[64]; /* tells an importer what it is */
        snprintf(name, sizeof name, "simgpu-%d-%d", (int)h->prop.location.type, h->prop.location.id);
        h->fd = memfd_create(name, MFD_CLOEXEC);
        h->own_file = true;
        if (h->fd >= 0 && ftruncate(h->fd, (off_t)h->size) == 0)
            return true;
        if (h->fd >= 0)
            close(h->fd);
        return false;
    }
    if (store < 0) {
        store = memfd_create("simgpu-store", MFD_CLOEXEC);
        if (store < 0 || ftruncate(store, (off_t)1 << 60)) {
            if (store >= 0)
                close(store);
            store = -1;
            return false;
        }
    }
    h->fd = store;
    h->offset = store_end;
    store_end += h->size;
    return true;
}

/* Bytes of the handle that were ever touched: the rest of its file are holes. */
static uint64_t written(const struct sim_handle *h)
{
    uint64_t bytes = 0;
    for (off_t at = (off_t)h->offset, end = at + (off_t)h->size, data; at < end;) {
        data = lseek(h->fd, at, SEEK_DATA);
        if (data < 0 || data >= end)
            break;
        at = lseek(h->fd, data, SEEK_HOLE);
        if (at < data)
            break;
        bytes += (uint64_t)((at < end ? at : end) - data);
    }
    return bytes;
}

/* [locked] Free the memory once nobody names or maps it. */
static void settle(struct sim_handle *h)
{
    if (h->users || h->mapped)
        return;
    if (h->imported)
        sim_machine_unborrow(sim_shared_key(h->fd));
    else {
        if (h->lent)
            sim_machine_unlend(sim_shared_key(h->fd));
        sim_recycle(tier_of(h), written(h));
        sim_machine_return(tier_of(h), h->size);
    }
    if (h->own_file)
        close(h->fd);
    else
        fallocate(h->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)h->offset, (off_t)h->size);
    free(h);
}

static struct sim_handle *handle_of(CUmemGenericAllocationHandle id)
{
    return sim_object(SIM_HANDLE, id);
}

SIM_API CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop, unsigned long long flags)
{
    SIM_ENTRY();
    CUresult r = check_prop(prop);
    if (r)
        return r;
    if (!handle || !size || size % SIM_GRAN || flags)
        return CUDA_ERROR_INVALID_VALUE;
    if (in_ram(&prop->location) && sim_config()->host_vmm == SIM_HOST_VMM_CRASH) {
        signal(SIGSEGV, SIG_DFL); /* as some real drivers do; no handler may save the caller */
        raise(SIGSEGV);
    }
    struct sim_handle *h = calloc(1, sizeof *h);
    if (!h)
        return CUDA_ERROR_OUT_OF_MEMORY;
    h->id = sim_unique();
    h->size = size;
    h->prop = *prop;
    h->users = 1;
    sim_take();
    r = sim_capture_unsafe_vmm(false);
    bool taken = !r && sim_charge(tier_of(h), size);
    if (!r && (!taken || !place(h) || !sim_object_add(SIM_HANDLE, h->id, h))) {
        if (taken)
            sim_machine_return(tier_of(h), size);
        r = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (!r)
        *handle = h->id;
    sim_give();
    if (r)
        free(h);
    if (r)
        return r;
    sim_poison_file(tier_of(h), h->fd, h->offset, size); /* nobody else has the number yet */
    sim_host_spend(sim_config()->vmm_ns[SIM_VMM_CREATE] + (in_ram(&prop->location) ? sim_pin_ns(size) : 0));
    return CUDA_SUCCESS;
}

SIM_API CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    SIM_ENTRY();
    sim_take();
    struct sim_handle *h = handle_of(handle);
    if (h && --h->users == 0) {
        sim_object_drop(SIM_HANDLE, handle);
        settle(h);
    }
    sim_give();
    return h ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *addr)
{
    SIM_ENTRY();
    sim_take();
    struct sim_map *m = handle ? sim_map_find((uint64_t)(uintptr_t)addr) : NULL;
    struct sim_handle *h = m ? m->handle : NULL;
    CUresult r = h ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (h && h->users == 0 && !sim_object_add(SIM_HANDLE, h->id, h)) /* released before, named again */
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r) {
        h->users++;
        *handle = h->id;
    }
    sim_give();
    return r;
}

SIM_API CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option)
{
    SIM_ENTRY();
    CUresult r = check_prop(prop);
    if (r)
        return r;
    if (!granularity || (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM && option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED))
        return CUDA_ERROR_INVALID_VALUE;
    *granularity = option == CU_MEM_ALLOC_GRANULARITY_RECOMMENDED && sim_doubt(SIM_DOUBT_GRANULARITY) ? 16 * SIM_GRAN : SIM_GRAN;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle)
{
    SIM_ENTRY();
    sim_take();
    struct sim_handle *h = prop ? handle_of(handle) : NULL;
    if (h)
        *prop = h->prop;
    sim_give();
    return h ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuMemExportToShareableHandle(void *shareableHandle, CUmemGenericAllocationHandle handle,
                                              CUmemAllocationHandleType handleType, unsigned long long flags)
{
    SIM_ENTRY();
    if (!shareableHandle || flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    struct sim_handle *h = handle_of(handle);
    bool ok = h && handleType == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && (h->prop.requestedHandleTypes & handleType);
    int fd = ok ? fcntl(h->fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (fd >= 0 && !h->imported && !h->lent) {
        h->lent = true;
        sim_machine_lend(sim_shared_key(fd), tier_of(h), h->size);
    }
    sim_give();
    if (!ok)
        return CUDA_ERROR_INVALID_VALUE;
    if (fd < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    *(int *)shareableHandle = fd;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *osHandle, CUmemAllocationHandleType shHandleType)
{
    SIM_ENTRY();
    if (!handle)
        return CUDA_ERROR_INVALID_VALUE;
    if (shHandleType != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
        return known_type(shHandleType) ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
    char path[40], name[80];
    int type, id, fd = (int)(intptr_t)osHandle;
    struct stat st;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, name, sizeof name - 1);
    name[n > 0 ? n : 0] = 0;
    if (sscanf(name, "/memfd:simgpu-%d-%d", &type, &id) != 2 || fstat(fd, &st) || st.st_size <= 0 || st.st_size % (off_t)SIM_GRAN ||
        (type == CU_MEM_LOCATION_TYPE_DEVICE ? !sim_device_ok(id) : type != CU_MEM_LOCATION_TYPE_HOST_NUMA))
        return CUDA_ERROR_INVALID_VALUE; /* no handle, or memory of a device that this process does not see */
    struct sim_handle *h = calloc(1, sizeof *h);
    if (!h)
        return CUDA_ERROR_OUT_OF_MEMORY;
    h->id = sim_unique();
    h->size = (uint64_t)st.st_size;
    h->prop = (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                    .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR};
    h->prop.location.type = (CUmemLocationType)type;
    h->prop.location.id = id;
    h->own_file = h->imported = true; /* its bytes are the exporter's */
    h->users = 1;
    h->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    sim_take();
    bool ok = h->fd >= 0 && sim_object_add(SIM_HANDLE, h->id, h);
    sim_give();
    if (!ok) {
        if (h->fd >= 0)
            close(h->fd);
        free(h);
        return CUDA_ERROR_OPERATING_SYSTEM;
    }
    sim_machine_borrow(sim_shared_key(fd), tier_of(h), h->size);
    *handle = h->id;
    return CUDA_SUCCESS;
}

/* ---- mappings */

SIM_API CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags)
{
    SIM_ENTRY();
    CUresult r = sim_fault_after_unmap(false, ptr, size);
    if (r)
        return r;
    struct sim_map *m = sim_map_new();
    if (!m)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    struct sim_handle *h = handle_of(handle);
    struct sim_reservation *res = sim_reservation_find(ptr);
    struct sim_map *next = sim_map_at(sim_map_from(ptr));
    if (!h || !res || flags || offset || size != h->size || ptr % SIM_GRAN || size > res->base + res->size - ptr ||
        (next && next->base < ptr + size))
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r)
        r = sim_capture_unsafe_vmm(false);
    if (!r) {
        m->kind = SIM_MAP_VMM;
        m->base = ptr;
        m->size = m->real_size = size;
        m->in_ram = in_ram(&h->prop.location);
        m->device = m->in_ram ? 0 : h->prop.location.id;
        m->handle = h;
        m->reservation = res;
        void *p = mmap((void *)(uintptr_t)ptr, size, PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, h->fd, (off_t)h->offset);
        if (p == MAP_FAILED || !sim_map_add(m)) {
            if (p != MAP_FAILED)
                mmap((void *)(uintptr_t)ptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
            r = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    if (!r) {
        madvise((void *)(uintptr_t)ptr, size, MADV_HUGEPAGE); /* where the system lets shared memory have them */
        madvise((void *)(uintptr_t)ptr, size, MADV_DONTFORK);
        h->mapped++;
        res->mapped++;
    }
    sim_give();
    if (r)
        free(m);
    else
        sim_host_spend(sim_config()->vmm_ns[SIM_VMM_MAP]);
    return r;
}

/* [locked] Is [ptr, ptr+size) exactly a row of whole VMM mappings? With `gaps`, reserved address space may lie between. */
static bool whole(uint64_t ptr, uint64_t size, bool gaps)
{
    if (!size || ptr + size < ptr)
        return false;
    uint64_t at = ptr;
    for (size_t i = sim_map_from(ptr); at < ptr + size; i++) {
        struct sim_map *m = sim_map_at(i);
        if (!m || m->base < at || m->kind != SIM_MAP_VMM || (!gaps && m->base != at))
            return false;
        at = m->base + m->size;
    }
    return at == ptr + size;
}

struct contexts {
    CUcontext list[64];
    unsigned count;
};

static void collect(void *object, void *arg)
{
    struct contexts *c = arg;
    if (c->count < sizeof c->list / sizeof *c->list)
        c->list[c->count++] = object;
}

static void drain_all(void)
{
    struct contexts c = {.count = 0};
    sim_take();
    sim_object_each(SIM_CONTEXT, collect, &c);
    sim_give();
    while (c.count)
        sim_drain(c.list[--c.count]);
}

SIM_API CUresult cuMemUnmap(CUdeviceptr ptr, size_t size)
{
    SIM_ENTRY();
    if (sim_doubt(SIM_DOUBT_UNMAP_DRAINS))
        drain_all();
    unsigned handles = 0;
    sim_take();
    CUresult r = whole(ptr, size, sim_doubt(SIM_DOUBT_UNMAP_GAP)) ? sim_capture_unsafe_vmm(true) : CUDA_ERROR_INVALID_VALUE;
    if (!r && mmap((void *)(uintptr_t)ptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    for (struct sim_map *m; !r && (m = sim_map_at(sim_map_from(ptr))) && m->base < ptr + size; handles++) {
        sim_map_remove(m);
        m->reservation->mapped--;
        m->handle->mapped--;
        settle(m->handle);
        free(m);
    }
    if (!r)
        sim_fault_unmapped(ptr, size);
    sim_give();
    if (!r)
        sim_host_spend(handles * sim_config()->vmm_ns[SIM_VMM_UNMAP]);
    return r;
}

/* ---- access */

/* Both sides use the same pages: what either may do is possible. */
static int protection(const struct sim_map *m)
{
    bool any = m->devices || m->host_access, write = m->writers || m->host_writes;
    return !any ? PROT_NONE : !write ? PROT_READ : PROT_READ | PROT_WRITE;
}

static CUresult check_access(const CUmemAccessDesc *d, const struct sim_map *m)
{
    if (d->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE && d->flags != CU_MEM_ACCESS_FLAGS_PROT_READ && d->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
        return CUDA_ERROR_INVALID_VALUE;
    switch (d->location.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
        if (!sim_device_ok(d->location.id))
            return CUDA_ERROR_INVALID_DEVICE;
        if (m->in_ram || d->location.id == m->device || d->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE || sim_peer_possible(d->location.id, m->device))
            return CUDA_SUCCESS;
        return sim_doubt(SIM_DOUBT_PEER_GRANT) ? CUDA_ERROR_INVALID_DEVICE : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA: /* its id is ignored */
        return m->in_ram ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    case CU_MEM_LOCATION_TYPE_HOST:
        return m->in_ram && sim_config()->driver >= 13000 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static void grant(struct sim_map *m, const CUmemAccessDesc *d)
{
    bool some = d->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE, write = d->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (d->location.type == CU_MEM_LOCATION_TYPE_DEVICE) {
        unsigned bit = 1u << d->location.id;
        m->devices = some ? m->devices | bit : m->devices & ~bit;
        m->writers = write ? m->writers | bit : m->writers & ~bit;
    } else {
        m->host_access = some;
        m->host_writes = write;
    }
}

SIM_API CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count)
{
    SIM_ENTRY();
    if (!desc || !count)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = sim_fault_after_unmap(true, ptr, size);
    if (r)
        return r;
    sim_take();
    r = whole(ptr, size, false) ? sim_capture_unsafe_vmm(false) : CUDA_ERROR_INVALID_VALUE;
    unsigned handles = 0;
    struct sim_map *m;
    size_t first = sim_map_from(ptr);
    for (size_t i = first; !r && (m = sim_map_at(i)) && m->base < ptr + size; i++)
        for (size_t k = 0; !r && k < count; k++)
            r = check_access(&desc[k], m);
    uint64_t run = ptr;
    int prot = -1;
    for (size_t i = first; !r && (m = sim_map_at(i)) && m->base < ptr + size; i++, handles++) {
        for (size_t k = 0; k < count; k++)
            grant(m, &desc[k]);
        int mine = protection(m);
        if (prot != -1 && mine != prot) { /* one call for each run of equal protection */
            if (mprotect((void *)(uintptr_t)run, m->base - run, prot))
                r = CUDA_ERROR_OUT_OF_MEMORY; /* too many mappings */
            run = m->base;
        }
        prot = mine;
    }
    if (!r && mprotect((void *)(uintptr_t)run, ptr + size - run, prot))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    if (!r)
        sim_host_spend(handles * sim_config()->vmm_ns[SIM_VMM_ACCESS]);
    return r;
}

SIM_API CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr ptr)
{
    SIM_ENTRY();
    sim_take();
    struct sim_map *m = flags && location ? sim_map_find(ptr) : NULL;
    CUresult r = m && m->kind == SIM_MAP_VMM ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    if (!r) {
        bool device = location->type == CU_MEM_LOCATION_TYPE_DEVICE, some = m->host_access, write = m->host_writes;
        if (device && !sim_device_ok(location->id)) {
            r = CUDA_ERROR_INVALID_VALUE;
        } else if (device) {
            some = m->devices >> location->id & 1;
            write = m->writers >> location->id & 1;
        } else if (location->type != CU_MEM_LOCATION_TYPE_HOST && location->type != CU_MEM_LOCATION_TYPE_HOST_NUMA) {
            r = CUDA_ERROR_INVALID_VALUE;
        }
        if (!r)
            *flags = write ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : some ? CU_MEM_ACCESS_FLAGS_PROT_READ : CU_MEM_ACCESS_FLAGS_PROT_NONE;
    }
    sim_give();
    return r;
}

bool sim_handle_exportable(const struct sim_handle *h) { return h->prop.requestedHandleTypes != CU_MEM_HANDLE_TYPE_NONE; }
bool sim_handle_rdma(const struct sim_handle *h) { return h->prop.allocFlags.gpuDirectRDMACapable != 0; }
uint64_t sim_handle_id(const struct sim_handle *h) { return h->id; }
