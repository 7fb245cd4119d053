/* SPDX-License-Identifier: Apache-2.0 */
/* Copies and memsets, also to and from device variables.
 * The kind chooses the driver entry, as in NVIDIA's runtime: a declared direction is not checked against the pointers here.
 */
#include "rt.h"

static CUdeviceptr ptr(const void *p)
{
    return (CUdeviceptr)(uintptr_t)p;
}

RT_DS(cudaMemcpy, (void *dst, const void *src, size_t count, enum cudaMemcpyKind kind), (dst, src, count, kind))
{
    RT_NEED(rt_context());
    if (!count)
        return cudaSuccess;
    switch (kind) {
    case cudaMemcpyHostToDevice: return rt_error(rt.cuMemcpyHtoD[pt](ptr(dst), src, count));
    case cudaMemcpyDeviceToHost: return rt_error(rt.cuMemcpyDtoH[pt](dst, ptr(src), count));
    case cudaMemcpyDeviceToDevice: return rt_error(rt.cuMemcpyDtoD[pt](ptr(dst), ptr(src), count));
    case cudaMemcpyHostToHost:
    case cudaMemcpyDefault: return rt_error(rt.cuMemcpy[pt](ptr(dst), ptr(src), count));
    default: return cudaErrorInvalidMemcpyDirection;
    }
}

RT_SZ(cudaMemcpyAsync, (void *dst, const void *src, size_t count, enum cudaMemcpyKind kind, cudaStream_t stream),
      (dst, src, count, kind, stream))
{
    RT_NEED(rt_context());
    if (!count)
        return cudaSuccess;
    switch (kind) {
    case cudaMemcpyHostToDevice: return rt_error(rt.cuMemcpyHtoDAsync[pt](ptr(dst), src, count, stream));
    case cudaMemcpyDeviceToHost: return rt_error(rt.cuMemcpyDtoHAsync[pt](dst, ptr(src), count, stream));
    case cudaMemcpyDeviceToDevice: return rt_error(rt.cuMemcpyDtoDAsync[pt](ptr(dst), ptr(src), count, stream));
    case cudaMemcpyHostToHost:
    case cudaMemcpyDefault: return rt_error(rt.cuMemcpyAsync[pt](ptr(dst), ptr(src), count, stream));
    default: return cudaErrorInvalidMemcpyDirection;
    }
}

/* Neither has a per-thread variant. */
RT(cudaMemcpyPeer, (void *dst, int dstDevice, const void *src, int srcDevice, size_t count),
      (dst, dstDevice, src, srcDevice, count))
{
    CUcontext to, from;
    RT_NEED(rt_primary(dstDevice, &to));
    RT_NEED(rt_primary(srcDevice, &from));
    return rt_error(rt.cuMemcpyPeer[0](ptr(dst), to, ptr(src), from, count));
}

RT(cudaMemcpyPeerAsync, (void *dst, int dstDevice, const void *src, int srcDevice, size_t count, cudaStream_t stream),
      (dst, dstDevice, src, srcDevice, count, stream))
{
    CUcontext to, from;
    RT_NEED(rt_primary(dstDevice, &to));
    RT_NEED(rt_primary(srcDevice, &from));
    return rt_error(rt.cuMemcpyPeerAsync[0](ptr(dst), to, ptr(src), from, count, stream));
}

static CUDA_MEMCPY2D rectangle(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height,
                               enum cudaMemcpyKind kind)
{
    bool any = kind == cudaMemcpyDefault;
    CUDA_MEMCPY2D c = {.srcPitch = spitch, .dstPitch = dpitch, .WidthInBytes = width, .Height = height};
    c.srcMemoryType = any ? CU_MEMORYTYPE_UNIFIED
                      : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    c.dstMemoryType = any ? CU_MEMORYTYPE_UNIFIED
                      : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
    c.srcHost = src;
    c.srcDevice = ptr(src);
    c.dstHost = dst;
    c.dstDevice = ptr(dst);
    return c;
}

/* The reference: rows may not overlap, which has an error of its own. */
static cudaError_t fits(size_t dpitch, size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind)
{
    if ((unsigned)kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    return height && (width > dpitch || width > spitch) ? cudaErrorInvalidPitchValue : cudaSuccess;
}

RT_DS(cudaMemcpy2D, (void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind),
      (dst, dpitch, src, spitch, width, height, kind))
{
    CUDA_MEMCPY2D c = rectangle(dst, dpitch, src, spitch, width, height, kind);
    RT_NEED(fits(dpitch, spitch, width, height, kind));
    RT_CALL(rt.cuMemcpy2DUnaligned[pt](&c));
}

RT_SZ(cudaMemcpy2DAsync,
      (void *dst, size_t dpitch, const void *src, size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind,
       cudaStream_t stream),
      (dst, dpitch, src, spitch, width, height, kind, stream))
{
    CUDA_MEMCPY2D c = rectangle(dst, dpitch, src, spitch, width, height, kind);
    RT_NEED(fits(dpitch, spitch, width, height, kind));
    RT_CALL(rt.cuMemcpy2DAsync[pt](&c, stream));
}

RT_DS(cudaMemset, (void *devPtr, int value, size_t count), (devPtr, value, count))
{
    RT_NEED(rt_context());
    return count ? rt_error(rt.cuMemsetD8[pt](ptr(devPtr), (unsigned char)value, count)) : cudaSuccess;
}

RT_SZ(cudaMemsetAsync, (void *devPtr, int value, size_t count, cudaStream_t stream), (devPtr, value, count, stream))
{
    RT_NEED(rt_context());
    return count ? rt_error(rt.cuMemsetD8Async[pt](ptr(devPtr), (unsigned char)value, count, stream)) : cudaSuccess;
}

RT_DS(cudaMemset2D, (void *devPtr, size_t pitch, int value, size_t width, size_t height), (devPtr, pitch, value, width, height))
{
    RT_CALL(rt.cuMemsetD2D8[pt](ptr(devPtr), pitch, (unsigned char)value, width, height));
}

RT_SZ(cudaMemset2DAsync, (void *devPtr, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream),
      (devPtr, pitch, value, width, height, stream))
{
    RT_CALL(rt.cuMemsetD2D8Async[pt](ptr(devPtr), pitch, (unsigned char)value, width, height, stream));
}

/* count bytes at offset of a variable. */
static cudaError_t part(const void *symbol, size_t count, size_t offset, CUdeviceptr *out)
{
    size_t bytes;
    RT_NEED(rt_symbol(symbol, out, &bytes));
    if (offset > bytes || count > bytes - offset)
        return cudaErrorInvalidValue;
    *out += offset;
    return cudaSuccess;
}

RT_DS(cudaMemcpyToSymbol, (const void *symbol, const void *src, size_t count, size_t offset, enum cudaMemcpyKind kind),
      (symbol, src, count, offset, kind))
{
    CUdeviceptr d;
    if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    RT_NEED(part(symbol, count, offset, &d));
    return body_cudaMemcpy(pt, (void *)(uintptr_t)d, src, count, kind);
}

RT_DS(cudaMemcpyFromSymbol, (void *dst, const void *symbol, size_t count, size_t offset, enum cudaMemcpyKind kind),
      (dst, symbol, count, offset, kind))
{
    CUdeviceptr d;
    if (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    RT_NEED(part(symbol, count, offset, &d));
    return body_cudaMemcpy(pt, dst, (void *)(uintptr_t)d, count, kind);
}

RT_SZ(cudaMemcpyToSymbolAsync,
      (const void *symbol, const void *src, size_t count, size_t offset, enum cudaMemcpyKind kind, cudaStream_t stream),
      (symbol, src, count, offset, kind, stream))
{
    CUdeviceptr d;
    if (kind != cudaMemcpyHostToDevice && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    RT_NEED(part(symbol, count, offset, &d));
    return body_cudaMemcpyAsync(pt, (void *)(uintptr_t)d, src, count, kind, stream);
}

RT_SZ(cudaMemcpyFromSymbolAsync,
      (void *dst, const void *symbol, size_t count, size_t offset, enum cudaMemcpyKind kind, cudaStream_t stream),
      (dst, symbol, count, offset, kind, stream))
{
    CUdeviceptr d;
    if (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyDeviceToDevice && kind != cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    RT_NEED(part(symbol, count, offset, &d));
    return body_cudaMemcpyAsync(pt, dst, (void *)(uintptr_t)d, count, kind, stream);
}

RT(cudaGetSymbolAddress, (void **devPtr, const void *symbol), (devPtr, symbol))
{
    CUdeviceptr d = 0;
    if (!devPtr)
        return cudaErrorInvalidValue;
    RT_NEED(rt_symbol(symbol, &d, NULL));
    *devPtr = (void *)(uintptr_t)d;
    return cudaSuccess;
}

RT(cudaGetSymbolSize, (size_t * size, const void *symbol), (size, symbol))
{
    CUdeviceptr d;
    return size ? rt_symbol(symbol, &d, size) : cudaErrorInvalidValue;
}
