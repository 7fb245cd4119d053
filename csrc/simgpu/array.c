/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA arrays and mipmapped arrays with plain linear storage, so that copies from and to them work. Called by applications.
 * Rules: they take VRAM like any allocation; textures and surfaces of them are not simulated. Sparse arrays and deferred
 * mapping are what no device attribute announces, planes what no supported format has.
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

struct CUmipmappedArray_st {
    unsigned count;
    CUarray levels[32];
};

static CUresult create(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR *d)
{
    CUcontext ctx;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (d->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
        return CUDA_ERROR_NOT_SUPPORTED;
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

static CUresult destroy(CUarray handle, bool level)
{
    sim_take();
    struct CUarray_st *a = sim_array(handle);
    if (a && a->level != level)
        a = NULL;
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

SIM_API CUresult cuArrayDestroy(CUarray hArray)
{
    SIM_ENTRY();
    return destroy(hArray, false);
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

/* What only other arrays have is INVALID_VALUE on these (cuda.h). */
static CUresult lacks(CUarray handle, bool arguments_ok)
{
    CUDA_ARRAY3D_DESCRIPTOR d;
    CUresult r = describe(handle, &d);
    return r && arguments_ok ? r : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuArrayGetPlane(CUarray *pPlaneArray, CUarray hArray, unsigned int planeIdx)
{
    SIM_ENTRY();
    (void)planeIdx;
    return lacks(hArray, pPlaneArray);
}

SIM_API CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUarray array, CUdevice device)
{
    SIM_ENTRY();
    return sim_device_ok(device) ? lacks(array, memoryRequirements) : CUDA_ERROR_INVALID_DEVICE;
}

SIM_API CUresult cuArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUarray array)
{
    SIM_ENTRY();
    return lacks(array, sparseProperties);
}

/* ---- mipmapped arrays: a row of arrays, each half as large as the one before */

static size_t halved(size_t n, unsigned times)
{
    return n >> times ? n >> times : n != 0;
}

SIM_API CUresult cuMipmappedArrayCreate(CUmipmappedArray *pHandle, const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc, unsigned int numMipmapLevels)
{
    SIM_ENTRY();
    const CUDA_ARRAY3D_DESCRIPTOR *d = pMipmappedArrayDesc;
    if (!pHandle || !d || !numMipmapLevels)
        return CUDA_ERROR_INVALID_VALUE;
    bool layered = d->Flags & CUDA_ARRAY3D_LAYERED;
    size_t largest = d->Width > d->Height ? d->Width : d->Height;
    if (!layered && d->Depth > largest)
        largest = d->Depth;
    unsigned most = 1; /* 1 + floor(log2(largest)), to which the number is clamped (cuda.h) */
    while (most < 32 && largest >> most)
        most++;
    struct CUmipmappedArray_st *m = calloc(1, sizeof *m);
    if (!m)
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = CUDA_SUCCESS;
    for (unsigned i = 0; !r && i < numMipmapLevels && i < most; i++) {
        CUDA_ARRAY3D_DESCRIPTOR level = *d;
        level.Width = halved(d->Width, i);
        level.Height = halved(d->Height, i);
        level.Depth = layered ? d->Depth : halved(d->Depth, i);
        r = create(&m->levels[i], &level);
        if (!r) {
            m->levels[i]->level = true;
            m->count++;
        }
    }
    sim_take();
    if (!r && !sim_object_add(SIM_MIPMAP, (uint64_t)(uintptr_t)m, m))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    if (!r) {
        *pHandle = m;
        return r;
    }
    while (m->count)
        destroy(m->levels[--m->count], true);
    free(m);
    return r;
}

SIM_API CUresult cuMipmappedArrayGetLevel(CUarray *pLevelArray, CUmipmappedArray hMipmappedArray, unsigned int level)
{
    SIM_ENTRY();
    sim_take();
    struct CUmipmappedArray_st *m = sim_object(SIM_MIPMAP, (uint64_t)(uintptr_t)hMipmappedArray);
    bool ok = m && pLevelArray && level < m->count;
    if (ok)
        *pLevelArray = m->levels[level];
    sim_give();
    return ok ? CUDA_SUCCESS : m ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
}

SIM_API CUresult cuMipmappedArrayDestroy(CUmipmappedArray hMipmappedArray)
{
    SIM_ENTRY();
    sim_take();
    struct CUmipmappedArray_st *m = sim_object(SIM_MIPMAP, (uint64_t)(uintptr_t)hMipmappedArray);
    if (m)
        sim_object_drop(SIM_MIPMAP, (uint64_t)(uintptr_t)m);
    sim_give();
    if (!m)
        return CUDA_ERROR_INVALID_HANDLE;
    while (m->count)
        destroy(m->levels[--m->count], true);
    free(m);
    return CUDA_SUCCESS;
}

static CUresult mipmap_lacks(CUmipmappedArray handle, bool arguments_ok)
{
    sim_take();
    bool live = sim_object(SIM_MIPMAP, (uint64_t)(uintptr_t)handle) != NULL;
    sim_give();
    return !arguments_ok || live ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_INVALID_HANDLE;
}

SIM_API CUresult cuMipmappedArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS *memoryRequirements, CUmipmappedArray mipmap, CUdevice device)
{
    SIM_ENTRY();
    return sim_device_ok(device) ? mipmap_lacks(mipmap, memoryRequirements) : CUDA_ERROR_INVALID_DEVICE;
}

SIM_API CUresult cuMipmappedArrayGetSparseProperties(CUDA_ARRAY_SPARSE_PROPERTIES *sparseProperties, CUmipmappedArray mipmap)
{
    SIM_ENTRY();
    return mipmap_lacks(mipmap, sparseProperties);
}
