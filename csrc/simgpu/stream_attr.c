/* SPDX-License-Identifier: Apache-2.0 */
/* Stream attributes: kept with their stream and copied between streams. Called by applications; sched.c frees them.
 * Rules: what cuda.h marks as valid for streams; values out of their range are refused, a priority is clamped as at the
 * stream's making. Nothing acts on them: the task engine knows no priorities (BELIEFS.md, laxness).
 */
#include "state.h"

#include <stdlib.h>

static const CUstreamAttrID ids[] = {CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW, CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY,
                                     CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN, CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP,
                                     CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING};
enum { WINDOW, SYNC, DOMAIN, DOMAIN_MAP, NVLINK, IDS = sizeof ids / sizeof *ids, PRIORITY = IDS, UNKNOWN };

static int index_of(CUstreamAttrID a)
{
    if (a == CU_LAUNCH_ATTRIBUTE_PRIORITY)
        return PRIORITY;
    for (int i = 0; i < IDS; i++)
        if (ids[i] == a)
            return i;
    return UNKNOWN;
}

static bool value_ok(int which, const CUstreamAttrValue *v)
{
    switch (which) {
    case WINDOW: {
        const CUaccessPolicyWindow *w = &v->accessPolicyWindow;
        return w->hitRatio >= 0 && w->hitRatio <= 1 && (unsigned)w->hitProp <= CU_ACCESS_PROPERTY_PERSISTING &&
               (unsigned)w->missProp <= CU_ACCESS_PROPERTY_STREAMING;
    }
    case SYNC: return (unsigned)v->syncPolicy >= CU_SYNC_POLICY_AUTO && (unsigned)v->syncPolicy <= CU_SYNC_POLICY_BLOCKING_SYNC;
    case DOMAIN: return (unsigned)v->memSyncDomain <= CU_LAUNCH_MEM_SYNC_DOMAIN_REMOTE;
    case DOMAIN_MAP: return !v->memSyncDomainMap.default_ && !v->memSyncDomainMap.remote; /* there is one domain */
    case NVLINK: return v->nvlinkUtilCentricScheduling <= 1;
    default: return true;
    }
}

/* [locked] The stream's values, defaults at first; NULL: out of memory. */
static CUstreamAttrValue *values_of(CUstream s)
{
    if (!s->attributes && (s->attributes = calloc(IDS, sizeof *s->attributes)))
        s->attributes[SYNC].syncPolicy = CU_SYNC_POLICY_AUTO;
    return s->attributes;
}

static CUresult attribute(CUstream handle, bool pt, CUstreamAttrID a, CUstreamAttrValue *out, const CUstreamAttrValue *in)
{
    CUcontext ctx;
    CUstream s;
    int which = index_of(a);
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (which == UNKNOWN || (!out && !in) || (in && !value_ok(which, in)))
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    if (!r && which == PRIORITY) {
        if (in)
            s->priority = sim_priority(in->priority);
        else
            out->priority = s->priority;
    } else if (!r) {
        CUstreamAttrValue *v = values_of(s);
        if (!v)
            r = CUDA_ERROR_OUT_OF_MEMORY;
        else if (in)
            v[which] = *in;
        else
            *out = v[which];
    }
    sim_give();
    return r;
}

static CUresult copy_attributes(CUstream dst, CUstream src, bool pt)
{
    CUcontext ctx;
    CUstream to, from;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    r = sim_stream_find(dst, pt, &to);
    if (!r)
        r = sim_stream_find(src, pt, &from);
    if (!r && to->ctx != from->ctx)
        r = CUDA_ERROR_INVALID_VALUE;
    if (!r && (!values_of(to) || !values_of(from)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    for (int i = 0; !r && i < IDS; i++)
        to->attributes[i] = from->attributes[i];
    if (!r)
        to->priority = from->priority;
    sim_give();
    return r;
}

#define ATTRIBUTE_ENTRIES(suffix, pt) \
    SIM_API CUresult cuStreamGetAttribute##suffix(CUstream s, CUstreamAttrID a, CUstreamAttrValue *v) \
    { SIM_ENTRY(); return attribute(s, pt, a, v, NULL); } \
    SIM_API CUresult cuStreamSetAttribute##suffix(CUstream s, CUstreamAttrID a, const CUstreamAttrValue *v) \
    { SIM_ENTRY(); return attribute(s, pt, a, NULL, v); } \
    SIM_API CUresult cuStreamCopyAttributes##suffix(CUstream dst, CUstream src) { SIM_ENTRY(); return copy_attributes(dst, src, pt); }
ATTRIBUTE_ENTRIES(, false)
ATTRIBUTE_ENTRIES(_ptsz, true)
