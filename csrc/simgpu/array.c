/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA arrays with plain linear storage, so that copies from and to them work. Called by applications.
 * Rules: they take VRAM like any allocation; textures and surfaces of them are not simulated.
 */
#include "copy.h"

#include <stdlib.h>

struct CUarray_st *sim_array(CUarray a)
{
    return sim_object(SIM_ARRAY, (uint64_t)(uintptr_t)a);
}

static unsigned format_bytes(CUarray_format f)
{
    switch (f) {
    case CU_AD_FORMAT_UNSIGNED_INT8: case CU_AD_FORMAT_SIGNED_INT8: return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16: case CU_AD_FORMAT_SIGNED_INT16: case CU_AD_FORMAT_HALF: return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32: case CU_AD_FORMAT_SIGNED_INT32: case CU_AD_FORMAT_FLOAT: return 4;
    default: return 0;
    }
}

static CUresult create(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR *d)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    unsigned element = format_bytes(d->Format) * d->NumChannels;
    if (!out || !element || (d->NumChannels != 1 && d->NumChannels != 2 && d->NumChannels != 4) || !d->Width ||
        (d->Depth && !d->Height && !(d->Flags & CUDA_ARRAY3D_LAYERED)) || d->Width > 1u << 20 || d->Height > 1u << 20 || d->Depth > 1u << 16)
        return CUDA_ERROR_INVALID_VALUE;
    struct CUarray_st *a = calloc(1, sizeof *a);
    if (!a)
        return CUDA_ERROR_OUT_OF_MEMORY;
    a->desc = *d;
    a->ctx = ctx;
    a->element = element;
    a->pitch = d->Width * element;
    a->slice = a->pitch * (d->Height ? d->Height : 1);
    a->bytes = a->slice * (d->Depth ? d->Depth : 1);
    sim_take();
    r = sim_capture_unsafe();
    sim_give();
    if (!r)
        r = sim_device_alloc(ctx, a->bytes, &a->base);
    if (!r) {
        sim_take();
        bool ok = sim_object_add(SIM_ARRAY, (uint64_t)(uintptr_t)a, a);
        sim_give();
        if (!ok) {
            sim_module_free(a->base);
            r = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    if (r)
        free(a);
    else
        *out = a;
    return r;
}

SIM_API CUresult cuArray3DCreate_v2(CUarray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray)
{
    SIM_ENTRY();
    return pAllocateArray ? create(pHandle, pAllocateArray) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuArrayCreate_v2(CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray)
{
    SIM_ENTRY();
    const CUDA_ARRAY_DESCRIPTOR *d = pAllocateArray;
    if (!d)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR full = {.Width = d->Width, .Height = d->Height, .Format = d->Format, .NumChannels = d->NumChannels};
    return create(pHandle, &full);
}

SIM_API CUresult cuArrayDestroy(CUarray hArray)
{
    SIM_ENTRY();
    sim_take();
    struct CUarray_st *a = sim_array(hArray);
    if (a)
        sim_object_drop(SIM_ARRAY, (uint64_t)(uintptr_t)a);
    sim_give();
    if (!a)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!a->ctx->dead) {
        sim_drain(a->ctx);
        sim_module_free(a->base); /* with its context the storage is gone already */
    }
    free(a);
    return CUDA_SUCCESS;
}

static CUresult describe(CUarray handle, CUDA_ARRAY3D_DESCRIPTOR *out)
{
    sim_take();
    struct CUarray_st *a = sim_array(handle);
    if (a)
        *out = a->desc;
    sim_give();
    return a ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

SIM_API CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR *pArrayDescriptor, CUarray hArray)
{
    SIM_ENTRY();
    return pArrayDescriptor ? describe(hArray, pArrayDescriptor) : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR *pArrayDescriptor, CUarray hArray)
{
    SIM_ENTRY();
    CUDA_ARRAY3D_DESCRIPTOR d;
    if (!pArrayDescriptor)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = describe(hArray, &d);
    if (!r)
        *pArrayDescriptor = (CUDA_ARRAY_DESCRIPTOR){.Width = d.Width, .Height = d.Height, .Format = d.Format, .NumChannels = d.NumChannels};
    return r;
}
