/* SPDX-License-Identifier: Apache-2.0 */
/* The application's own physical memory (cuMemCreate): which tier its handles took, until they are both released and
 * unmapped. Called by hook_vmm.c. Rules: all but the lock itself is called under it; such memory is placed once and never moved; the driver may give a handle's
 * number out again after its release, while the old memory is still mapped, so mappings outlive handle entries. */
#include "tiering/tiering.h"

#include <pthread.h>
#include <stdlib.h>

/* Physical memory, counted in handles (references) and mappings. */
struct memory {
    uint64_t bytes;
    int device;
    enum spill_tier tier;
    uint32_t references, mappings;
};

struct named {
    CUmemGenericAllocationHandle handle;
    struct memory *memory;
    struct named *next;
};

struct mapping {
    CUdeviceptr at;
    uint64_t bytes;
    struct memory *memory;
    struct mapping *next;
};

enum { BUCKETS = 1024 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct named *by_handle[BUCKETS];
static struct mapping *mappings; /* few: applications map in large pieces and unmap by address range */
static uint32_t ram_mappings;    /* of these, with memory in RAM; read without the lock */

void spill_handles_lock(void) { pthread_mutex_lock(&lock); }
void spill_handles_unlock(void) { pthread_mutex_unlock(&lock); }

static struct named **find(CUmemGenericAllocationHandle handle)
{
    struct named **n = &by_handle[(handle * 0x9e3779b97f4a7c15ull >> 32) % BUCKETS];
    while (*n && (*n)->handle != handle)
        n = &(*n)->next;
    return n;
}

static void drop_if_unused(struct memory *m)
{
    if (m->references || m->mappings)
        return;
    if (m->tier == SPILL_RAM) {
        struct spill_stats *s = spill_stats();
        s->spilled_bytes -= m->bytes;
        spill_account(m->device, 0, -(int64_t)m->bytes);
        spill_budget_give(m->bytes, m->bytes);
    } else {
        spill_stats()->native_bytes -= m->bytes;
        spill_account(m->device, -(int64_t)m->bytes, 0);
    }
    free(m);
}

void spill_handle_add(CUmemGenericAllocationHandle handle, uint64_t bytes, int device, enum spill_tier tier)
{
    struct memory *m = malloc(sizeof *m);
    struct named *n = malloc(sizeof *n);
    if (!m || !n) {
        free(m);
        free(n);
        return; /* uncounted: the memory itself is the application's and stays right */
    }
    *m = (struct memory){ bytes, device, tier, 1, 0 };
    struct named **at = find(handle);
    *n = (struct named){ handle, m, *at };
    *at = n;
    struct spill_stats *s = spill_stats();
    if (tier == SPILL_RAM) {
        s->spilled_count++;
        s->spilled_total += bytes;
        s->spilled_bytes += bytes;
        spill_account(device, 0, (int64_t)bytes);
    } else {
        s->native_count++;
        s->native_bytes += bytes;
        if (s->native_bytes > s->native_peak)
            s->native_peak = s->native_bytes;
        spill_account(device, (int64_t)bytes, 0);
    }
}

void spill_handle_retain(CUmemGenericAllocationHandle handle)
{
    struct named *n = *find(handle);
    if (n)
        n->memory->references++;
}

void spill_handle_release(CUmemGenericAllocationHandle handle)
{
    struct named **at = find(handle), *n = *at;
    if (n && --n->memory->references == 0) {
        *at = n->next;
        drop_if_unused(n->memory);
        free(n);
    }
}

void spill_handle_map(CUmemGenericAllocationHandle handle, CUdeviceptr at, uint64_t bytes)
{
    struct named *n = *find(handle);
    struct mapping *m = n ? malloc(sizeof *m) : NULL;
    if (m) {
        *m = (struct mapping){ at, bytes, n->memory, mappings };
        mappings = m;
        n->memory->mappings++;
        if (n->memory->tier == SPILL_RAM)
            __atomic_fetch_add(&ram_mappings, 1, __ATOMIC_RELAXED);
    }
}

void spill_handle_unmap(CUdeviceptr base, uint64_t bytes)
{
    for (struct mapping **m = &mappings; *m;) {
        struct mapping *gone = *m;
        if (gone->at - base >= bytes) {
            m = &gone->next;
            continue;
        }
        *m = gone->next;
        gone->memory->mappings--;
        if (gone->memory->tier == SPILL_RAM)
            __atomic_fetch_sub(&ram_mappings, 1, __ATOMIC_RELAXED);
        drop_if_unused(gone->memory);
        free(gone);
    }
}

/* The mapping that holds `p`, or NULL. */
static const struct mapping *mapping_at(CUdeviceptr p)
{
    for (const struct mapping *m = mappings; m; m = m->next)
        if (p - m->at < m->bytes)
            return m;
    return NULL;
}

uint64_t spill_handle_run(CUdeviceptr p, uint64_t limit)
{
    if (!__atomic_load_n(&ram_mappings, __ATOMIC_RELAXED))
        return limit;
    pthread_mutex_lock(&lock);
    const struct mapping *first = mapping_at(p), *next = first;
    uint64_t run = first ? first->at + first->bytes - p : limit;
    while (run < limit && (next = mapping_at(p + run)) && next->memory->tier == first->memory->tier)
        run += next->bytes;
    pthread_mutex_unlock(&lock);
    /* Past the last mapping the range is the driver's to refuse. */
    return run < limit && next ? run : limit;
}
