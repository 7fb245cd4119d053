/* SPDX-License-Identifier: Apache-2.0 */
/* The application's own physical memory (cuMemCreate): which tier its handles took, until they are both released and
 * unmapped. Called by hook_vmm.c and split.c.
 * Rules: all but spill_handle_run and spill_handle_open_to_cpu is called under the lock; such memory is placed once and
 * never moved; the driver may give a handle's number out again after its release, while the old memory is still mapped, so
 * mappings outlive handle entries; memory may be named again after its last release. */
#include "tiering/tiering.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "shim/log.h"

/* Physical memory, counted in names (live handle entries) and mappings. */
struct memory {
    uint64_t bytes;
    int device;
    enum spill_tier tier;
    uint32_t names, mappings;
};

struct named {
    CUmemGenericAllocationHandle handle;
    struct memory *memory;
    uint32_t references; /* cuMemCreate and Retain less Release */
    struct named *next;
};

struct mapping {
    CUdeviceptr at;
    uint64_t bytes;
    struct memory *memory;
};

enum { BUCKETS = 1024 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct named *by_handle[BUCKETS];
static struct mapping *mappings; /* sorted by address: expandable segments make thousands, and copies look here */
static size_t mapping_count, mapping_room;
static uint32_t ram_mappings; /* of these, with memory in RAM; read without the lock */

void spill_handles_lock(void) { pthread_mutex_lock(&lock); }
void spill_handles_unlock(void) { pthread_mutex_unlock(&lock); }

static struct named **find(CUmemGenericAllocationHandle handle)
{
    struct named **n = &by_handle[(handle * 0x9e3779b97f4a7c15ull >> 32) % BUCKETS];
    while (*n && (*n)->handle != handle)
        n = &(*n)->next;
    return n;
}

/* Index of the first mapping that ends beyond `p`. */
static size_t first_beyond(CUdeviceptr p)
{
    size_t low = 0, high = mapping_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (mappings[middle].at + mappings[middle].bytes > p)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The mapping that holds `p`, or NULL. */
static struct mapping *mapping_at(CUdeviceptr p)
{
    size_t i = first_beyond(p);
    return i < mapping_count && mappings[i].at <= p ? &mappings[i] : NULL;
}

/* Another name for `memory`; false without memory of our own (then it goes uncounted, and stays right itself). */
static bool name(CUmemGenericAllocationHandle handle, struct memory *memory)
{
    struct named *n = malloc(sizeof *n), **at = find(handle);
    if (!n)
        return false;
    *n = (struct named){ handle, memory, 1, *at };
    *at = n;
    memory->names++;
    return true;
}

static void drop_if_unused(struct memory *m)
{
    if (m->names || m->mappings)
        return;
    if (m->tier == SPILL_RAM) {
        spill_count(&spill_stats()->spilled_bytes, -(int64_t)m->bytes);
        spill_account_other(m->device, 0, -(int64_t)m->bytes);
        spill_budget_give(m->bytes, m->bytes);
    } else {
        spill_count(&spill_stats()->native_bytes, -(int64_t)m->bytes);
        spill_account_other(m->device, -(int64_t)m->bytes, 0);
    }
    free(m);
}

void spill_handle_add(CUmemGenericAllocationHandle handle, uint64_t bytes, int device, enum spill_tier tier)
{
    struct memory *m = malloc(sizeof *m);
    struct spill_stats *s = spill_stats();
    if (!m)
        return;
    *m = (struct memory){ bytes, device, tier, 0, 0 };
    if (!name(handle, m)) {
        free(m);
        return;
    }
    if (tier == SPILL_RAM) {
        spill_count(&s->spilled_count, 1);
        spill_count(&s->spilled_total, (int64_t)bytes);
        spill_count(&s->spilled_bytes, (int64_t)bytes);
        spill_account_other(device, 0, (int64_t)bytes);
    } else {
        spill_count(&s->native_count, 1);
        spill_count(&s->native_bytes, (int64_t)bytes);
        spill_account_other(device, (int64_t)bytes, 0);
    }
}

void spill_handle_retain(CUmemGenericAllocationHandle handle, CUdeviceptr at)
{
    const struct mapping *m = mapping_at(at);
    struct named *n = *find(handle);
    if (n)
        n->references++;
    else if (m)
        name(handle, m->memory);
}

void spill_handle_release(CUmemGenericAllocationHandle handle)
{
    struct named **at = find(handle), *n = *at;
    if (n && --n->references == 0) {
        *at = n->next;
        n->memory->names--;
        drop_if_unused(n->memory);
        free(n);
    }
}

void spill_handle_map(CUmemGenericAllocationHandle handle, CUdeviceptr at, uint64_t bytes)
{
    struct named *n = *find(handle);
    if (!n)
        return;
    if (mapping_count == mapping_room) {
        size_t room = mapping_room ? 2 * mapping_room : 64;
        struct mapping *wider = realloc(mappings, room * sizeof *wider);
        if (!wider)
            return;
        mappings = wider;
        mapping_room = room;
    }
    size_t i = first_beyond(at);
    memmove(&mappings[i + 1], &mappings[i], (mapping_count - i) * sizeof *mappings);
    mappings[i] = (struct mapping){ at, bytes, n->memory };
    mapping_count++;
    n->memory->mappings++;
    if (n->memory->tier == SPILL_RAM)
        __atomic_fetch_add(&ram_mappings, 1, __ATOMIC_RELAXED);
}

void spill_handle_unmap(CUdeviceptr base, uint64_t bytes)
{
    size_t first = first_beyond(base), end = first;
    for (; end < mapping_count && mappings[end].at - base < bytes; end++) {
        struct memory *m = mappings[end].memory;
        m->mappings--;
        if (m->tier == SPILL_RAM)
            __atomic_fetch_sub(&ram_mappings, 1, __ATOMIC_RELAXED);
        drop_if_unused(m);
    }
    if (end > first) /* else there may be no table yet */
        memmove(&mappings[first], &mappings[end], (mapping_count - end) * sizeof *mappings);
    mapping_count -= end - first;
}

uint64_t spill_handle_run(CUdeviceptr p, uint64_t limit)
{
    if (!__atomic_load_n(&ram_mappings, __ATOMIC_RELAXED))
        return limit;
    pthread_mutex_lock(&lock);
    const struct mapping *first = mapping_at(p), *end = mappings + mapping_count, *m = first;
    uint64_t run = first ? first->at + first->bytes - p : limit;
    while (run < limit && ++m < end && m->at == p + run && m->memory->tier == first->memory->tier)
        run += m->bytes;
    /* Past the last mapping the range is the driver's to refuse. */
    bool known = run < limit && m < end && m->at == p + run;
    pthread_mutex_unlock(&lock);
    return known ? run : limit;
}

void spill_handle_open_to_cpu(CUdeviceptr at, uint64_t bytes)
{
    const CUmemAccessDesc cpu = spill_cpu_access();
    if (!__atomic_load_n(&ram_mappings, __ATOMIC_RELAXED))
        return;
    pthread_mutex_lock(&lock);
    for (size_t i = first_beyond(at); i < mapping_count && mappings[i].at - at < bytes; i++) {
        if (mappings[i].memory->tier != SPILL_RAM)
            continue;
        CUresult r = spill_driver()->cuMemSetAccess(mappings[i].at, mappings[i].bytes, &cpu, 1);
        if (r != CUDA_SUCCESS)
            spill_log(SPILL_LOG_DEBUG, "spilled memory of the application not opened to the CPU error=%d bytes=%llu", (int)r,
                      (unsigned long long)mappings[i].bytes);
    }
    pthread_mutex_unlock(&lock);
}
