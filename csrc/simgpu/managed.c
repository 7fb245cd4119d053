/* SPDX-License-Identifier: Apache-2.0 */
/* Managed memory: advice, prefetches, discards, and what can be asked about them. Called by applications.
 * Rules: arguments are checked as strictly as elsewhere; a hint changes times only, a discard contents too (cuda.h: reading is
 * indeterminate afterwards). Advice is kept by range and answered when a whole range agrees (cuda.h, cuMemRangeGetAttribute);
 * where the bytes are is known for a whole allocation only (sim_map.away).
 */
#include "state.h"

#include <stdlib.h>
#include <string.h>

enum property { READ_MOSTLY, PREFERRED, PREFETCHED, ACCESSED_BY /* + device */ };

/* One piece of advice; newer ones stand first. */
struct sim_note {
    struct sim_note *next;
    uint64_t base, end;
    unsigned property;
    CUmemLocation value; /* type 0: none */
};

void sim_notes_drop(struct sim_map *m)
{
    for (struct sim_note *n = m->notes, *next; n; n = next) {
        next = n->next;
        free(n);
    }
    m->notes = NULL;
}

/* [locked] The managed allocation that holds the range, or NULL. */
static struct sim_map *holder(CUdeviceptr p, size_t n)
{
    struct sim_map *m = sim_map_find(p);
    return n && m && m->kind == SIM_MAP_MANAGED && n <= m->base + m->size - p ? m : NULL;
}

static bool same(CUmemLocation a, CUmemLocation b)
{
    return a.type == b.type && (a.id == b.id || a.type == CU_MEM_LOCATION_TYPE_HOST || a.type == CU_MEM_LOCATION_TYPE_INVALID);
}

/* [locked] False: out of memory. */
static bool note(struct sim_map *m, CUdeviceptr p, size_t bytes, unsigned property, CUmemLocation value)
{
    struct sim_note *n = malloc(sizeof *n);
    if (!n)
        return false;
    uint64_t base = p, end = p + bytes;
    const struct sim_note *newest = m->notes;
    while (newest && newest->property != property)
        newest = newest->next;
    if (newest && same(newest->value, value) && newest->base <= end && newest->end >= base) { /* page after page becomes one piece */
        base = newest->base < base ? newest->base : base;
        end = newest->end > end ? newest->end : end;
    }
    for (struct sim_note **link = &m->notes; *link;) { /* what it covers is forgotten */
        struct sim_note *old = *link;
        if (old->property != property || old->base < base || old->end > end) {
            link = &old->next;
            continue;
        }
        *link = old->next;
        free(old);
    }
    *n = (struct sim_note){m->notes, base, end, property, value};
    m->notes = n;
    return true;
}

/* What all of [base, end) agrees on, looking from note n to older ones; type 0 where it does not. */
static CUmemLocation agreed(const struct sim_note *n, uint64_t base, uint64_t end, unsigned property)
{
    const CUmemLocation none = {.type = CU_MEM_LOCATION_TYPE_INVALID};
    while (n && (n->property != property || n->base >= end || n->end <= base))
        n = n->next;
    if (!n)
        return none;
    if (n->base > base && !same(agreed(n->next, base, n->base, property), n->value))
        return none;
    if (n->end < end && !same(agreed(n->next, n->end, end, property), n->value))
        return none;
    return n->value;
}

/* ---- advice */

static bool place_ok(CUmemLocation l)
{
    return l.type == CU_MEM_LOCATION_TYPE_DEVICE ? sim_device_ok(l.id)
           : l.type == CU_MEM_LOCATION_TYPE_HOST || l.type == CU_MEM_LOCATION_TYPE_HOST_NUMA || l.type == CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
}

static CUmemLocation place_of(CUdevice device)
{
    return device == CU_DEVICE_CPU ? (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_HOST}
                                   : (CUmemLocation){.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device};
}

static CUresult advise(CUdeviceptr p, size_t n, CUmem_advise advice, CUmemLocation place)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (advice < CU_MEM_ADVISE_SET_READ_MOSTLY || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY)
        return CUDA_ERROR_INVALID_VALUE;
    bool set = advice == CU_MEM_ADVISE_SET_READ_MOSTLY || advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION || advice == CU_MEM_ADVISE_SET_ACCESSED_BY;
    bool accessed = advice == CU_MEM_ADVISE_SET_ACCESSED_BY || advice == CU_MEM_ADVISE_UNSET_ACCESSED_BY;
    bool mostly = advice == CU_MEM_ADVISE_SET_READ_MOSTLY || advice == CU_MEM_ADVISE_UNSET_READ_MOSTLY;
    if ((accessed || advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION) && !place_ok(place))
        return CUDA_ERROR_INVALID_DEVICE;
    unsigned property = mostly ? READ_MOSTLY : !accessed ? PREFERRED
                        : ACCESSED_BY + (place.type == CU_MEM_LOCATION_TYPE_DEVICE ? (unsigned)place.id : SIM_MAX_DEVICES);
    CUmemLocation value = place;
    if (mostly)
        value = place_of(CU_DEVICE_CPU); /* any place: it is yes or no */
    if (!set)
        value.type = CU_MEM_LOCATION_TYPE_INVALID;
    sim_take();
    struct sim_map *m = holder(p, n);
    r = !m ? CUDA_ERROR_INVALID_VALUE : note(m, p, n, property, value) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    return r;
}

SIM_API CUresult cuMemAdvise(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUdevice device)
{
    SIM_ENTRY();
    return advise(devPtr, count, advice, place_of(device));
}

SIM_API CUresult cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, CUmem_advise advice, CUmemLocation location)
{
    SIM_ENTRY();
    return advise(devPtr, count, advice, location);
}

/* ---- questions */

static int device_of(CUmemLocation l)
{
    return l.type == CU_MEM_LOCATION_TYPE_DEVICE ? l.id : l.type == CU_MEM_LOCATION_TYPE_INVALID ? CU_DEVICE_INVALID : CU_DEVICE_CPU;
}

/* [locked] */
static CUresult answer(const struct sim_map *m, CUdeviceptr p, size_t n, CUmem_range_attribute a, void *data, size_t size)
{
    bool list = a == CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY;
    if (!data || (list ? !size || size % 4 : size != 4))
        return CUDA_ERROR_INVALID_VALUE;
    CUmemLocation preferred = agreed(m->notes, p, p + n, PREFERRED), prefetched = agreed(m->notes, p, p + n, PREFETCHED);
    int *out = data;
    switch (a) {
    case CU_MEM_RANGE_ATTRIBUTE_READ_MOSTLY: *out = agreed(m->notes, p, p + n, READ_MOSTLY).type != CU_MEM_LOCATION_TYPE_INVALID; break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION: *out = device_of(preferred); break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION: *out = device_of(prefetched); break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_TYPE: *out = (int)preferred.type; break;
    case CU_MEM_RANGE_ATTRIBUTE_PREFERRED_LOCATION_ID: *out = preferred.id; break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_TYPE: *out = (int)prefetched.type; break;
    case CU_MEM_RANGE_ATTRIBUTE_LAST_PREFETCH_LOCATION_ID: *out = prefetched.id; break;
    case CU_MEM_RANGE_ATTRIBUTE_ACCESSED_BY:
        for (unsigned d = 0; d <= SIM_MAX_DEVICES && size; d++) {
            CUmemLocation who = agreed(m->notes, p, p + n, ACCESSED_BY + d);
            if (who.type == CU_MEM_LOCATION_TYPE_INVALID)
                continue;
            *out++ = device_of(who);
            size -= 4;
        }
        for (; size; size -= 4)
            *out++ = CU_DEVICE_INVALID;
        break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult query(void **data, const size_t *sizes, const CUmem_range_attribute *attributes, size_t count, CUdeviceptr p, size_t n)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    const struct sim_map *m = holder(p, n);
    r = m ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < count; i++)
        r = answer(m, p, n, attributes[i], data[i], sizes[i]);
    sim_give();
    return r;
}

SIM_API CUresult cuMemRangeGetAttribute(void *data, size_t dataSize, CUmem_range_attribute attribute, CUdeviceptr devPtr, size_t count)
{
    SIM_ENTRY();
    return query(&data, &dataSize, &attribute, 1, devPtr, count);
}

SIM_API CUresult cuMemRangeGetAttributes(void **data, size_t *dataSizes, CUmem_range_attribute *attributes, size_t numAttributes,
                                         CUdeviceptr devPtr, size_t count)
{
    SIM_ENTRY();
    return !data || !dataSizes || !attributes || !numAttributes ? CUDA_ERROR_INVALID_VALUE
                                                                : query(data, dataSizes, attributes, numAttributes, devPtr, count);
}

SIM_API CUresult cuMemGetLocationInfo(CUdeviceptr ptr, size_t size, size_t summaryGranularity, size_t samplingGranularity,
                                      CUmemLocation *location_out)
{
    SIM_ENTRY();
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!location_out || !size || !summaryGranularity || summaryGranularity > size || samplingGranularity > summaryGranularity)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    const struct sim_map *m = holder(ptr, size);
    if (!m)
        r = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < (size + summaryGranularity - 1) / summaryGranularity; i++)
        location_out[i] = place_of(m->away == 1 ? CU_DEVICE_CPU : m->device);
    sim_give();
    return r;
}

/* ---- operations in a stream */

struct item {
    CUdeviceptr p;
    size_t bytes;
    bool discard, prefetch, to_host;
};
struct items {
    size_t count;
    struct item list[];
};

static CUresult run_items(void *arg)
{
    const struct items *all = arg;
    uint64_t in = 0, out = 0; /* bytes that change sides */
    sim_take();
    for (size_t i = 0; i < all->count; i++) {
        const struct item *one = &all->list[i];
        struct sim_map *m = holder(one->p, one->bytes);
        if (m && one->discard) { /* whole pages only: the rest of the outer ones is somebody's */
            uint64_t first = sim_round(one->p, 4096), last = (one->p + one->bytes) / 4096 * 4096;
            if (first < last)
                sim_poison_touched((void *)(uintptr_t)first, last - first);
        }
        if (m && one->prefetch) {
            *(one->to_host ? &out : &in) += (m->away == 1) != one->to_host && !one->discard ? one->bytes : 0;
            m->away = one->to_host;
        }
    }
    sim_give();
    sim_charge_link(sim_cost_ns(true, in), SIM_WAY_IN, false);
    sim_charge_link(sim_cost_ns(true, out), SIM_WAY_OUT, false);
    return CUDA_SUCCESS;
}

/* Takes over the items, whose places are known to be good. `places` (may be NULL) are noted as prefetched to. */
static CUresult submit(struct items *all, const CUmemLocation *places, CUstream s, bool pt)
{
    CUcontext ctx;
    CUresult r = all ? sim_current(&ctx) : CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    for (size_t i = 0; !r && i < all->count; i++)
        if (!holder(all->list[i].p, all->list[i].bytes))
            r = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && places && i < all->count; i++)
        if (!note(holder(all->list[i].p, all->list[i].bytes), all->list[i].p, all->list[i].bytes, PREFETCHED, places[i]))
            r = CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    if (r) {
        free(all);
        return r;
    }
    return sim_enqueue(s, pt, (struct sim_op){run_items, free, all, CU_GRAPH_NODE_TYPE_EMPTY, NULL});
}

static CUresult one(struct item what, const CUmemLocation *place, CUstream s, bool pt)
{
    if (place && !place_ok(*place))
        return CUDA_ERROR_INVALID_DEVICE;
    struct items *all = malloc(sizeof *all + sizeof what);
    if (all) {
        all->count = 1;
        all->list[0] = what;
    }
    return submit(all, place, s, pt);
}

static CUresult prefetch(CUdeviceptr p, size_t n, CUmemLocation place, unsigned flags, CUstream s, bool pt)
{
    if (flags)
        return CUDA_ERROR_INVALID_VALUE;
    return one((struct item){p, n, false, true, place.type != CU_MEM_LOCATION_TYPE_DEVICE}, &place, s, pt);
}

static CUresult attach(CUstream s, CUdeviceptr p, size_t n, unsigned flags, bool pt)
{
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST && flags != CU_MEM_ATTACH_SINGLE)
        return CUDA_ERROR_INVALID_VALUE;
    return one((struct item){p, n ? n : 1, false, false, false}, NULL, s, pt); /* 0: the whole allocation */
}

/* The batch forms: each place holds from its index to the next one's. */
static CUresult batch(CUdeviceptr *at, size_t *sizes, size_t count, CUmemLocation *places, size_t *starts, size_t place_count,
                      unsigned long long flags, bool discard, bool move, CUstream s, bool pt)
{
    if (!at || !sizes || !count || count > 1u << 24 || flags || s == CU_STREAM_LEGACY || (!s && !pt))
        return CUDA_ERROR_INVALID_VALUE;
    if (move && (!places || !starts || !place_count || place_count > count || starts[0]))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; move && i < place_count; i++) {
        if (starts[i] >= count || (i && starts[i] <= starts[i - 1]))
            return CUDA_ERROR_INVALID_VALUE;
        if (!place_ok(places[i]))
            return CUDA_ERROR_INVALID_DEVICE;
    }
    struct items *all = calloc(1, sizeof *all + count * sizeof all->list[0]);
    CUmemLocation *each = move ? calloc(count, sizeof *each) : NULL;
    if (!all || (move && !each)) {
        free(all);
        free(each);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    all->count = count;
    for (size_t i = 0, k = 0; i < count; i++) {
        if (move && k + 1 < place_count && starts[k + 1] == i)
            k++;
        if (move)
            each[i] = places[k];
        all->list[i] = (struct item){at[i], sizes[i], discard, move, move && places[k].type != CU_MEM_LOCATION_TYPE_DEVICE};
    }
    CUresult r = submit(all, each, s, pt);
    free(each);
    return r;
}

#define MANAGED_ENTRIES(Z, pt) \
    SIM_API CUresult cuMemPrefetchAsync##Z(CUdeviceptr p, size_t n, CUdevice dev, CUstream s) \
    { SIM_ENTRY(); return prefetch(p, n, place_of(dev), 0, s, pt); } \
    SIM_API CUresult cuMemPrefetchAsync_v2##Z(CUdeviceptr p, size_t n, CUmemLocation l, unsigned int flags, CUstream s) \
    { SIM_ENTRY(); return prefetch(p, n, l, flags, s, pt); } \
    SIM_API CUresult cuStreamAttachMemAsync##Z(CUstream s, CUdeviceptr p, size_t n, unsigned int flags) \
    { SIM_ENTRY(); return attach(s, p, n, flags, pt); } \
    SIM_API CUresult cuMemPrefetchBatchAsync##Z(CUdeviceptr *p, size_t *n, size_t count, CUmemLocation *l, size_t *at, size_t places, \
                                                unsigned long long flags, CUstream s) \
    { SIM_ENTRY(); return batch(p, n, count, l, at, places, flags, false, true, s, pt); } \
    SIM_API CUresult cuMemDiscardBatchAsync##Z(CUdeviceptr *p, size_t *n, size_t count, unsigned long long flags, CUstream s) \
    { SIM_ENTRY(); return batch(p, n, count, NULL, NULL, 0, flags, true, false, s, pt); } \
    SIM_API CUresult cuMemDiscardAndPrefetchBatchAsync##Z(CUdeviceptr *p, size_t *n, size_t count, CUmemLocation *l, size_t *at, \
                                                          size_t places, unsigned long long flags, CUstream s) \
    { SIM_ENTRY(); return batch(p, n, count, l, at, places, flags, true, true, s, pt); }
MANAGED_ENTRIES(, false)
MANAGED_ENTRIES(_ptsz, true)
