/* SPDX-License-Identifier: Apache-2.0 */
/* Copies of boxes, also from and to arrays, and as the parameters of graph nodes.
 * The runtime counts in elements where an array takes part and in bytes else; the driver counts in bytes.
 */
#include "rt.h"

/* Bytes of an element of the array among the two, 1 where there is none. */
static cudaError_t element(cudaArray_t a, cudaArray_t b, size_t *out)
{
    CUDA_ARRAY3D_DESCRIPTOR d;
    size_t bytes = 1;
    *out = 1;
    if (!a && !b)
        return cudaSuccess;
    RT_NEED(rt_error(rt.cuArray3DGetDescriptor(&d, (CUarray)(a ? a : b))));
    switch (d.Format) {
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF: bytes = 2; break;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT: bytes = 4; break;
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8: break;
    default: return cudaErrorNotSupported; /* block-compressed and video formats */
    }
    *out = bytes * d.NumChannels;
    return cudaSuccess;
}

static CUmemorytype side(cudaArray_t array, enum cudaMemcpyKind kind, bool host)
{
    return array ? CU_MEMORYTYPE_ARRAY
           : kind == cudaMemcpyDefault ? CU_MEMORYTYPE_UNIFIED
           : host ? CU_MEMORYTYPE_HOST
                  : CU_MEMORYTYPE_DEVICE;
}

cudaError_t rt_copy3d(const struct cudaMemcpy3DParms *p, CUDA_MEMCPY3D *out)
{
    size_t size;
    if (!p)
        return cudaErrorInvalidValue;
    if ((unsigned)p->kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    RT_NEED(rt_context());
    RT_NEED(element(p->srcArray, p->dstArray, &size));
    *out = (CUDA_MEMCPY3D){
        .srcXInBytes = p->srcPos.x * (p->srcArray ? size : 1),
        .srcY = p->srcPos.y,
        .srcZ = p->srcPos.z,
        .srcMemoryType = side(p->srcArray, p->kind, p->kind == cudaMemcpyHostToDevice || p->kind == cudaMemcpyHostToHost),
        .srcHost = p->srcPtr.ptr,
        .srcDevice = (CUdeviceptr)(uintptr_t)p->srcPtr.ptr,
        .srcArray = (CUarray)p->srcArray,
        .srcPitch = p->srcPtr.pitch,
        .srcHeight = p->srcPtr.ysize,
        .dstXInBytes = p->dstPos.x * (p->dstArray ? size : 1),
        .dstY = p->dstPos.y,
        .dstZ = p->dstPos.z,
        .dstMemoryType = side(p->dstArray, p->kind, p->kind == cudaMemcpyDeviceToHost || p->kind == cudaMemcpyHostToHost),
        .dstHost = p->dstPtr.ptr,
        .dstDevice = (CUdeviceptr)(uintptr_t)p->dstPtr.ptr,
        .dstArray = (CUarray)p->dstArray,
        .dstPitch = p->dstPtr.pitch,
        .dstHeight = p->dstPtr.ysize,
        .WidthInBytes = p->extent.width * size,
        .Height = p->extent.height,
        .Depth = p->extent.depth,
    };
    return cudaSuccess;
}

RT_DS(cudaMemcpy3D, (const struct cudaMemcpy3DParms *p), (p))
{
    CUDA_MEMCPY3D c;
    RT_NEED(rt_copy3d(p, &c));
    return rt_error(rt.cuMemcpy3D[pt](&c));
}

RT_SZ(cudaMemcpy3DAsync, (const struct cudaMemcpy3DParms *p, cudaStream_t stream), (p, stream))
{
    CUDA_MEMCPY3D c;
    RT_NEED(rt_copy3d(p, &c));
    return rt_error(rt.cuMemcpy3DAsync[pt](&c, stream));
}

static cudaError_t between(const struct cudaMemcpy3DPeerParms *p, CUDA_MEMCPY3D_PEER *out)
{
    CUDA_MEMCPY3D c;
    if (!p)
        return cudaErrorInvalidValue;
    struct cudaMemcpy3DParms one = {
        .srcArray = p->srcArray,
        .srcPos = p->srcPos,
        .srcPtr = p->srcPtr,
        .dstArray = p->dstArray,
        .dstPos = p->dstPos,
        .dstPtr = p->dstPtr,
        .extent = p->extent,
        .kind = cudaMemcpyDeviceToDevice,
    };
    RT_NEED(rt_copy3d(&one, &c));
    *out = (CUDA_MEMCPY3D_PEER){
        .srcXInBytes = c.srcXInBytes,
        .srcY = c.srcY,
        .srcZ = c.srcZ,
        .srcMemoryType = c.srcMemoryType,
        .srcDevice = c.srcDevice,
        .srcArray = c.srcArray,
        .srcPitch = c.srcPitch,
        .srcHeight = c.srcHeight,
        .dstXInBytes = c.dstXInBytes,
        .dstY = c.dstY,
        .dstZ = c.dstZ,
        .dstMemoryType = c.dstMemoryType,
        .dstDevice = c.dstDevice,
        .dstArray = c.dstArray,
        .dstPitch = c.dstPitch,
        .dstHeight = c.dstHeight,
        .WidthInBytes = c.WidthInBytes,
        .Height = c.Height,
        .Depth = c.Depth,
    };
    RT_NEED(rt_primary(p->srcDevice, &out->srcContext));
    return rt_primary(p->dstDevice, &out->dstContext);
}

RT_DS(cudaMemcpy3DPeer, (const struct cudaMemcpy3DPeerParms *p), (p))
{
    CUDA_MEMCPY3D_PEER c;
    RT_NEED(between(p, &c));
    return rt_error(rt.cuMemcpy3DPeer[pt](&c));
}

RT_SZ(cudaMemcpy3DPeerAsync, (const struct cudaMemcpy3DPeerParms *p, cudaStream_t stream), (p, stream))
{
    CUDA_MEMCPY3D_PEER c;
    RT_NEED(between(p, &c));
    return rt_error(rt.cuMemcpy3DPeerAsync[pt](&c, stream));
}
