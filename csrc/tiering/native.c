/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations that stayed with the driver: how many bytes of VRAM the program holds beside its regions. Called by the
 * allocation hooks. Needed for a VRAM limit and for the summary; wrong numbers here never touch correctness.
 * Rules: a lock of its own (programs allocate small things from many threads), taken after the engine's, never before. */
#include "tiering/tiering.h"

#include <pthread.h>
#include <stdlib.h>

struct entry {
    CUdeviceptr p; /* 0: empty, 1: removed */
    uint64_t bytes;
    int device;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *table;
static size_t room, used; /* used counts removed entries too */

static size_t hash(CUdeviceptr p, size_t n) { return (size_t)((p >> 8) * 0x9e3779b97f4a7c15ull >> 20) & (n - 1); }

static void insert(struct entry *t, size_t n, struct entry e)
{
    size_t i = hash(e.p, n);
    while (t[i].p > 1)
        i = (i + 1) & (n - 1);
    t[i] = e;
}

static bool grow(void)
{
    size_t live = 0;
    for (size_t i = 0; i < room; i++)
        live += table[i].p > 1;
    size_t wider = 256;
    while (wider < live * 4)
        wider *= 2;
    struct entry *fresh = calloc(wider, sizeof *fresh);
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
    struct spill_stats *s = spill_stats();
    s->native_bytes += (uint64_t)bytes;
    if (bytes > 0)
        s->native_count++;
    if (s->native_bytes > s->native_peak)
        s->native_peak = s->native_bytes;
    spill_account(device, bytes, 0);
}

void spill_native_add(CUdeviceptr p, uint64_t bytes, int device)
{
    pthread_mutex_lock(&lock);
    if ((used + 1) * 2 <= room || grow()) {
        insert(table, room, (struct entry){ p, bytes, device });
        used++;
        count(device, (int64_t)bytes);
    }
    pthread_mutex_unlock(&lock);
}

bool spill_native_remove(CUdeviceptr p, uint64_t *bytes, int *device)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = room ? hash(p, room) : 0; room && table[i].p; i = (i + 1) & (room - 1)) {
        if (table[i].p != p)
            continue;
        *bytes = table[i].bytes;
        *device = table[i].device;
        count(*device, -(int64_t)*bytes);
        table[i].p = 1;
        found = true;
        break;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void spill_native_discard(int device)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < room; i++)
        if (table[i].p > 1 && table[i].device == device) {
            count(device, -(int64_t)table[i].bytes);
            table[i].p = 1;
        }
    pthread_mutex_unlock(&lock);
}
