/* SPDX-License-Identifier: Apache-2.0 */
/* The table of live objects (contexts, streams, events, graphs ...). Called by every file that hands out handles.
 * Rules: [locked]; keys are the handle values themselves; one hash table for all kinds.
 */
#include "state.h"

#include <stdlib.h>

struct entry {
    struct entry *next;
    enum sim_kind kind;
    uint64_t key;
    void *object;
};

static struct entry **buckets;
static size_t bucket_count, entries;

static size_t bucket_of(uint64_t key, size_t count)
{
    return (size_t)((key * 0x9e3779b97f4a7c15u) >> 20) & (count - 1);
}

static bool grow(void)
{
    size_t count = bucket_count ? 2 * bucket_count : 256;
    struct entry **fresh = calloc(count, sizeof *fresh);
    if (!fresh)
        return bucket_count != 0; /* slower, but it goes on */
    for (size_t i = 0; i < bucket_count; i++)
        for (struct entry *e = buckets[i], *next; e; e = next) {
            next = e->next;
            struct entry **b = &fresh[bucket_of(e->key, count)];
            e->next = *b;
            *b = e;
        }
    free(buckets);
    buckets = fresh;
    bucket_count = count;
    return true;
}

bool sim_object_add(enum sim_kind kind, uint64_t key, void *object)
{
    if (entries >= bucket_count && !grow())
        return false;
    struct entry *e = malloc(sizeof *e);
    if (!e)
        return false;
    struct entry **b = &buckets[bucket_of(key, bucket_count)];
    *e = (struct entry){*b, kind, key, object};
    *b = e;
    entries++;
    return true;
}

static struct entry **find(enum sim_kind kind, uint64_t key)
{
    if (!bucket_count)
        return NULL;
    struct entry **e = &buckets[bucket_of(key, bucket_count)];
    while (*e && ((*e)->key != key || (*e)->kind != kind))
        e = &(*e)->next;
    return *e ? e : NULL;
}

void *sim_object(enum sim_kind kind, uint64_t key)
{
    struct entry **e = find(kind, key);
    return e ? (*e)->object : NULL;
}

void sim_object_drop(enum sim_kind kind, uint64_t key)
{
    struct entry **e = find(kind, key);
    if (!e)
        return;
    struct entry *gone = *e;
    *e = gone->next;
    free(gone);
    entries--;
}

void sim_object_each(enum sim_kind kind, void (*visit)(void *object, void *arg), void *arg)
{
    for (size_t i = 0; i < bucket_count; i++)
        for (struct entry *e = buckets[i], *next; e; e = next) {
            next = e->next;
            if (e->kind == kind)
                visit(e->object, arg);
        }
}

uint64_t sim_unique(void)
{
    static atomic_uint_fast64_t last;
    return atomic_fetch_add(&last, 1) + 1;
}
