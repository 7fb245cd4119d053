/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations that stayed with the driver: how many bytes of VRAM the program holds beside its regions. Called by the
 * allocation hooks. Needed for a VRAM limit and for the summary; wrong numbers here never touch correctness.
 * Rules: a lock of its own (programs allocate small things from many threads), taken after the engine's, never before. */
#include "tiering/tiering.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct spill_native *table;
static size_t room, used; /* used counts removed entries too */

static size_t hash(CUdeviceptr p, size_t n) { return (size_t)((p >> 8) * 0x9e3779b97f4a7c15ull >> 20) & (n - 1); }

static struct spill_native *find(CUdeviceptr p)
{
    for (size_t i = room ? hash(p, room) : 0; room && table[i].p; i = (i + 1) & (room - 1))
        if (table[i].p == p)
            return &table[i];
    return NULL;
}

/* True if it took an empty place, not one of a removed entry. */
static bool insert(struct spill_native *t, size_t n, struct spill_native e)
{
    size_t i = hash(e.p, n);
    while (t[i].p > 1)
        i = (i + 1) & (n - 1);
    bool empty = t[i].p == 0;
    t[i] = e;
    return empty;
}

static bool grow(void)
{
    size_t live = 0;
    for (size_t i = 0; i < room; i++)
        live += table[i].p > 1;
    size_t wider = 256;
    while (wider < live * 4)
        wider *= 2;
    struct spill_native *fresh = calloc(wider, sizeof *fresh);
    if (!fresh)
        return false;
    for (size_t i = 0; i < room; i++)
        if (table[i].p > 1)
            insert(fresh, wider, table[i]);
    free(table);
    table = fresh;
    room = wider;
    used = live;
    return true;
}

static void count(int device, int64_t bytes)
{
    spill_count(&spill_stats()->native_bytes, bytes);
    spill_account_other(device, bytes, 0);
}

static void drop(struct spill_native *e)
{
    count(e->device, -(int64_t)e->bytes);
    e->p = 1;
}

void spill_native_restore(const struct spill_native *was)
{
    pthread_mutex_lock(&lock);
    /* The driver gives an address out again only after a free; one that we have not seen (a pool's, a graph's) is made good. */
    struct spill_native *stale = find(was->p);
    if (stale)
        drop(stale);
    if ((used + 1) * 2 <= room || grow()) {
        used += insert(table, room, *was);
        count(was->device, (int64_t)was->bytes);
    }
    pthread_mutex_unlock(&lock);
}

void spill_native_add(CUdeviceptr p, uint64_t bytes, int device)
{
    struct spill_native e = { p, bytes, device, NULL };
    spill_driver()->cuCtxGetCurrent(&e.ctx);
    spill_count(&spill_stats()->native_count, 1);
    spill_native_restore(&e);
}

bool spill_native_remove(CUdeviceptr p, struct spill_native *was)
{
    pthread_mutex_lock(&lock);
    struct spill_native *e = find(p);
    if (e) {
        *was = *e;
        drop(e);
    }
    pthread_mutex_unlock(&lock);
    return e != NULL;
}

void spill_native_discard(CUcontext ctx)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < room; i++)
        if (table[i].p > 1 && table[i].ctx == ctx)
            drop(&table[i]);
    pthread_mutex_unlock(&lock);
}
