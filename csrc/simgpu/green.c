/* SPDX-License-Identifier: Apache-2.0 */
/* Green contexts and device resources: shares of a device's multiprocessors. Called by applications; what streams and events
 * know of green contexts is in green.h. Source: cuda.h, CUDA_GREEN_CONTEXTS.
 * Rules: shares are counted, checked and answered; nothing runs slower for a small one, because computing takes no time. A
 * resource says where it comes from in the bytes that the application must not touch. Descriptors live as long as the process.
 */
#include "green.h"

#include "graph.h"
#include "identity.h"

#include <stdlib.h>
#include <string.h>

enum { STEP = 2 }; /* a share's smallest size and its alignment: the device is too small for the 8 of compute capability 9.0 */

/* In _internal_padding. */
struct origin {
    uint32_t magic;
    int32_t device;
    uint64_t split; /* 0: a whole; else the split that it came out of */
};
#define ORIGIN 0x4e454552u /* "REEN" */

struct CUdevResourceDesc_st {
    CUdevResourceDesc next; /* never freed, but not lost */
    CUdevResource resource; /* of all shares together */
};

static CUdevResourceDesc descriptors; /* [sim_lock] */
static CUgreenCtx greens;             /* [sim_lock] */

static CUdevResource share(int device, unsigned sms, uint64_t split)
{
    CUdevResource r = {.type = CU_DEV_RESOURCE_TYPE_SM};
    struct origin o = {ORIGIN, device, split};
    memcpy(r._internal_padding, &o, sizeof o);
    r.sm.smCount = sms;
    r.sm.minSmPartitionSize = r.sm.smCoscheduledAlignment = STEP;
    return r;
}

static CUresult origin_of(const CUdevResource *r, struct origin *o)
{
    if (!r)
        return CUDA_ERROR_INVALID_VALUE;
    if (r->type != CU_DEV_RESOURCE_TYPE_SM)
        return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    memcpy(o, r->_internal_padding, sizeof *o);
    return o->magic == ORIGIN && sim_device_ok(o->device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
}

/* ---- asking */

static CUresult check_ask(const CUdevResource *out, CUdevResourceType type)
{
    if (!out)
        return CUDA_ERROR_INVALID_VALUE;
    return type == CU_DEV_RESOURCE_TYPE_SM ? CUDA_SUCCESS : CUDA_ERROR_INVALID_RESOURCE_TYPE;
}

SIM_API CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource *resource, CUdevResourceType type)
{
    SIM_ENTRY();
    if (!sim_device_ok(device))
        return CUDA_ERROR_INVALID_DEVICE;
    CUresult r = check_ask(resource, type);
    if (!r)
        *resource = share(device, SIM_SMS, 0);
    return r;
}

static CUresult of_green(CUgreenCtx handle, CUdevResource *out)
{
    sim_take();
    CUgreenCtx g = sim_green_of(handle);
    if (g)
        *out = g->resource;
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

/* The view's green context; NULL: a plain context. */
static CUgreenCtx green_behind(CUcontext view)
{
    CUgreenCtx g = greens;
    while (g && g->view != view)
        g = g->next;
    return g;
}

SIM_API CUresult cuCtxGetDevResource(CUcontext hCtx, CUdevResource *resource, CUdevResourceType type)
{
    SIM_ENTRY();
    CUresult r = check_ask(resource, type);
    if (r)
        return r;
    sim_take();
    CUcontext base = sim_object(SIM_CONTEXT, (uint64_t)(uintptr_t)hCtx);
    CUgreenCtx g = base ? green_behind(hCtx) : NULL;
    if (base)
        *resource = g ? g->resource : share(base->device, SIM_SMS, 0);
    sim_give();
    return base ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

SIM_API CUresult cuGreenCtxGetDevResource(CUgreenCtx hCtx, CUdevResource *resource, CUdevResourceType type)
{
    SIM_ENTRY();
    CUresult r = check_ask(resource, type);
    return r ? r : of_green(hCtx, resource);
}

static CUresult of_stream(CUstream handle, bool pt, CUdevResource *out, CUdevResourceType type)
{
    CUstream s;
    CUresult r = check_ask(out, type);
    if (r)
        return r;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    CUgreenCtx g = r ? NULL : s->legacy ? sim_green_current() : s->green;
    if (!r)
        *out = g ? g->resource : share(s->ctx->device, SIM_SMS, 0);
    sim_give();
    return r;
}

SIM_API CUresult cuStreamGetDevResource(CUstream hStream, CUdevResource *resource, CUdevResourceType type)
{
    SIM_ENTRY();
    return of_stream(hStream, false, resource, type);
}

SIM_API CUresult cuStreamGetDevResource_ptsz(CUstream hStream, CUdevResource *resource, CUdevResourceType type)
{
    SIM_ENTRY();
    return of_stream(hStream, true, resource, type);
}

/* ---- splitting, describing */

SIM_API CUresult cuDevSmResourceSplitByCount(CUdevResource *result, unsigned int *nbGroups, const CUdevResource *input,
                                             CUdevResource *remainder, unsigned int flags, unsigned int minCount)
{
    SIM_ENTRY();
    struct origin o;
    const unsigned known = CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING | CU_DEV_SM_RESOURCE_SPLIT_MAX_POTENTIAL_CLUSTER_SIZE;
    if (!nbGroups || !input || flags & ~known)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = origin_of(input, &o);
    if (r)
        return r;
    if (o.split) /* "the output results cannot be split again without first creating a descriptor and a green context" */
        return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    if (minCount > input->sm.smCount)
        return CUDA_ERROR_INVALID_VALUE;
    unsigned size = minCount ? (unsigned)sim_round(minCount, STEP) : STEP, most = input->sm.smCount / size;
    if (!result) {
        *nbGroups = most;
        return CUDA_SUCCESS;
    }
    unsigned n = *nbGroups < most ? *nbGroups : most, left = input->sm.smCount - n * size;
    uint64_t split = sim_unique();
    for (unsigned i = 0; i < n; i++)
        result[i] = share(o.device, size, split);
    if (remainder)
        *remainder = left ? share(o.device, left, split) : (CUdevResource){.type = CU_DEV_RESOURCE_TYPE_INVALID};
    *nbGroups = n;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuDevResourceGenerateDesc(CUdevResourceDesc *phDesc, CUdevResource *resources, unsigned int nbResources)
{
    SIM_ENTRY();
    struct origin first, o;
    unsigned sms = 0;
    if (!phDesc || !resources || !nbResources)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < nbResources; i++) {
        CUresult r = origin_of(&resources[i], &o);
        if (r)
            return r;
        if (!i)
            first = o;
        else if (o.device != first.device || !o.split || o.split != first.split)
            return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
        sms += resources[i].sm.smCount;
    }
    if (sms > SIM_SMS)
        return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION; /* one of them twice */
    CUdevResourceDesc d = malloc(sizeof *d);
    if (!d)
        return CUDA_ERROR_OUT_OF_MEMORY;
    d->resource = share(first.device, sms, 0);
    sim_take();
    d->next = descriptors;
    descriptors = d;
    sim_give();
    *phDesc = d;
    return CUDA_SUCCESS;
}

/* ---- green contexts */

CUgreenCtx sim_green_of(CUgreenCtx handle)
{
    CUgreenCtx g = greens;
    while (g && g != handle)
        g = g->next;
    return g;
}

CUgreenCtx sim_green_current(void)
{
    const struct sim_thread *t = sim_self();
    return t && t->depth && t->stack[t->depth - 1] ? t->stack[t->depth - 1]->green : NULL;
}

SIM_API CUresult cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev, unsigned int flags)
{
    SIM_ENTRY();
    if (!phCtx || flags & ~(unsigned)CU_GREEN_CTX_DEFAULT_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    if (!sim_device_ok(dev))
        return CUDA_ERROR_INVALID_DEVICE;
    sim_take();
    CUdevResourceDesc d = descriptors;
    while (d && d != desc)
        d = d->next;
    sim_give();
    struct origin o;
    if (!d || origin_of(&d->resource, &o) || o.device != dev)
        return CUDA_ERROR_INVALID_VALUE;
    CUcontext base;
    CUresult r = cuDevicePrimaryCtxRetain(&base, dev);
    if (r)
        return r;
    CUgreenCtx g = calloc(1, sizeof *g);
    CUcontext view = g ? sim_ctx_view(base, g) : NULL;
    if (view) {
        *g = (struct CUgreenCtx_st){.view = view, .base = base, .resource = d->resource, .id = view->id};
        sim_take();
        bool ok = !atomic_load(&base->dead) && sim_object_add(SIM_CONTEXT, (uint64_t)(uintptr_t)view, base);
        if (ok) {
            g->next = greens;
            greens = g;
        } else {
            sim_ctx_view_end(view);
            view = NULL;
        }
        sim_give();
    }
    if (!view) {
        free(g);
        cuDevicePrimaryCtxRelease_v2(dev);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *phCtx = g;
    return CUDA_SUCCESS;
}

/* Its streams stay until they are destroyed, but nothing more can be done with them. */
static void detach(CUgreenCtx g)
{
    for (CUstream s = g->base->streams; s; s = s->next)
        if (s->green == g) {
            if (s->capture)
                s->capture->invalid = true;
            s->green = NULL;
            s->detached = true;
        }
}

SIM_API CUresult cuGreenCtxDestroy(CUgreenCtx hCtx)
{
    SIM_ENTRY();
    sim_take();
    CUgreenCtx g = sim_green_of(hCtx);
    if (g) {
        for (CUgreenCtx *p = &greens; *p; p = &(*p)->next)
            if (*p == g) {
                *p = g->next;
                break;
            }
        detach(g);
        sim_object_drop(SIM_CONTEXT, (uint64_t)(uintptr_t)g->view);
        sim_ctx_view_end(g->view);
    }
    sim_give();
    if (!g)
        return CUDA_ERROR_INVALID_CONTEXT;
    CUdevice device = g->base->device;
    sim_task_drop(g->gate);
    free(g);
    return cuDevicePrimaryCtxRelease_v2(device); /* also after a reset, which releases nothing */
}

void sim_green_base_gone(CUcontext base)
{
    for (CUgreenCtx g = greens; g; g = g->next)
        if (g->base == base)
            sim_object_drop(SIM_CONTEXT, (uint64_t)(uintptr_t)g->view);
}

SIM_API CUresult cuCtxFromGreenCtx(CUcontext *pContext, CUgreenCtx hCtx)
{
    SIM_ENTRY();
    if (!pContext)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgreenCtx g = sim_green_of(hCtx);
    if (g)
        *pContext = g->view;
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

SIM_API CUresult cuGreenCtxGetId(CUgreenCtx greenCtx, unsigned long long *greenCtxId)
{
    SIM_ENTRY();
    if (!greenCtxId)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgreenCtx g = sim_green_of(greenCtx ? greenCtx : sim_green_current());
    if (g)
        *greenCtxId = g->id;
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

/* ---- streams */

CUresult sim_green_join(CUgreenCtx g, CUstream s)
{
    s->green = g;
    return g && g->gate ? sim_submit(s, NULL, &g->gate, 1, NULL) : CUDA_SUCCESS;
}

CUresult sim_green_capture(CUgreenCtx g)
{
    CUresult r = CUDA_SUCCESS;
    for (CUstream s = g->base->streams; s; s = s->next)
        if (s->green == g && s->capture) {
            s->capture->invalid = true;
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    return r;
}

SIM_API CUresult cuGreenCtxStreamCreate(CUstream *phStream, CUgreenCtx greenCtx, unsigned int flags, int priority)
{
    SIM_ENTRY();
    if (!phStream || flags != CU_STREAM_NON_BLOCKING)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgreenCtx g = sim_green_of(greenCtx);
    CUresult r = !g || atomic_load(&g->base->dead) ? CUDA_ERROR_INVALID_CONTEXT : (CUresult)atomic_load(&g->base->sticky);
    CUstream s = r ? NULL : sim_stream_new(g->base, flags, sim_priority(priority));
    if (!r && (!s || !sim_object_add(SIM_STREAM, (uint64_t)(uintptr_t)s, s)))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && (r = sim_green_join(g, s)))
        sim_object_drop(SIM_STREAM, (uint64_t)(uintptr_t)s);
    if (r && s)
        sim_stream_close(s);
    sim_give();
    if (!r)
        *phStream = s;
    return r;
}

SIM_API CUresult cuStreamGetGreenCtx(CUstream hStream, CUgreenCtx *phCtx)
{
    SIM_ENTRY();
    if (!phCtx)
        return CUDA_ERROR_INVALID_VALUE;
    CUstream s;
    sim_take();
    CUresult r = sim_stream_find(hStream, false, &s);
    if (!r)
        *phCtx = s->legacy || s->per_thread ? sim_green_current() : s->green;
    sim_give();
    return r;
}
