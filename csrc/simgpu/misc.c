/* SPDX-License-Identifier: Apache-2.0 */
/* Entries with little to do here that programs expect to succeed: profiler marks, stream attributes, log callbacks,
 * bookkeeping of graph memory. Called by applications.
 * Rules: arguments are checked as strictly as elsewhere.
 */
#include "state.h"

#include <stdlib.h>
#include <string.h>

/* ---- stream attributes: kept, not acted on */

struct kept {
    struct kept *next;
    uint64_t stream; /* its id: never used again */
    CUstreamAttrID attr;
    CUstreamAttrValue value;
};
static struct kept *attributes; /* [locked] */

static bool attribute_ok(CUstreamAttrID a)
{
    return a == CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW || a == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY ||
           a == CU_LAUNCH_ATTRIBUTE_PRIORITY || a == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN || a == CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP;
}

/* [locked] */
static struct kept *attribute_of(uint64_t stream, CUstreamAttrID a, bool make)
{
    struct kept *k = attributes;
    while (k && (k->stream != stream || k->attr != a))
        k = k->next;
    if (!k && make && (k = calloc(1, sizeof *k))) {
        k->stream = stream;
        k->attr = a;
        k->next = attributes;
        attributes = k;
    }
    return k;
}

static CUresult attribute(CUstream handle, bool pt, CUstreamAttrID a, CUstreamAttrValue *out, const CUstreamAttrValue *in)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!attribute_ok(a) || (!out && !in))
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    if (!r && a == CU_LAUNCH_ATTRIBUTE_PRIORITY) {
        if (in)
            s->priority = in->priority;
        else
            out->priority = s->priority;
    } else if (!r) {
        struct kept *k = attribute_of(s->id, a, in != NULL);
        if (in && k)
            k->value = *in;
        else if (in)
            r = CUDA_ERROR_OUT_OF_MEMORY;
        else if (k)
            *out = k->value;
        else
            memset(out, 0, sizeof *out);
    }
    sim_give();
    return r;
}

static CUresult copy_attributes(CUstream dst, CUstream src, bool pt)
{
    CUcontext ctx;
    CUstream a, b;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    sim_take();
    r = sim_stream_find(dst, pt, &a);
    if (!r)
        r = sim_stream_find(src, pt, &b);
    for (struct kept *k = r ? NULL : attributes; k; k = k->next)
        if (k->stream == b->id) {
            struct kept *mine = attribute_of(a->id, k->attr, true);
            if (mine)
                mine->value = k->value;
        }
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

/* ---- profiler marks and log callbacks: nobody listens, nothing is logged */

SIM_API CUresult cuProfilerStart(void)
{
    SIM_ENTRY();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuProfilerStop(void)
{
    SIM_ENTRY();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuLogsRegisterCallback(CUlogsCallback callbackFunc, void *userData, CUlogsCallbackHandle *callback_out)
{
    (void)userData;
    /* No SIM_ENTRY: runtimes call it before cuInit. */
    if (!callbackFunc)
        return CUDA_ERROR_INVALID_VALUE;
    if (callback_out)
        *callback_out = (CUlogsCallbackHandle)(uintptr_t)sim_unique();
    return CUDA_SUCCESS;
}

SIM_API CUresult cuLogsUnregisterCallback(CUlogsCallbackHandle callback)
{
    return callback ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
