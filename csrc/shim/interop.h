/* SPDX-License-Identifier: Apache-2.0 */
/* Types of the driver entries whose own headers (cudaGL.h, cudaEGL.h, cudaVDPAU.h) need those of graphics libraries, which
 * are not there where this is built: as in these headers, with what OpenGL, EGL and VDPAU define their handles to be. For
 * hooks.def; nothing calls these entries. */
#ifndef SPILL_INTEROP_H
#define SPILL_INTEROP_H

#include <cuda.h>
#include <stdint.h>

struct CUeglStreamConnection_st;

typedef CUresult(CUDAAPI *PFN_cuGLCtxCreate_v3020)(CUcontext *, unsigned int, CUdevice);
typedef CUresult(CUDAAPI *PFN_cuGraphicsGLRegisterBuffer_v3000)(CUgraphicsResource *, uint32_t buffer, unsigned int);
typedef CUresult(CUDAAPI *PFN_cuGraphicsGLRegisterImage_v3000)(CUgraphicsResource *, uint32_t image, uint32_t target, unsigned int);
typedef CUresult(CUDAAPI *PFN_cuGraphicsEGLRegisterImage_v7000)(CUgraphicsResource *, void *image, unsigned int);
typedef CUresult(CUDAAPI *PFN_cuEGLStreamConsumerConnect_v7000)(struct CUeglStreamConnection_st **, void *stream);
typedef CUresult(CUDAAPI *PFN_cuEGLStreamConsumerConnectWithFlags_v8000)(struct CUeglStreamConnection_st **, void *stream, unsigned int);
typedef CUresult(CUDAAPI *PFN_cuEGLStreamProducerConnect_v7000)(struct CUeglStreamConnection_st **, void *stream, int32_t, int32_t);
typedef CUresult(CUDAAPI *PFN_cuEventCreateFromEGLSync_v9000)(CUevent *, void *sync, unsigned int);
typedef CUresult(CUDAAPI *PFN_cuVDPAUCtxCreate_v3020)(CUcontext *, unsigned int, CUdevice, uint32_t device, void *look_up);
typedef CUresult(CUDAAPI *PFN_cuGraphicsVDPAURegisterVideoSurface_v3010)(CUgraphicsResource *, uint32_t surface, unsigned int);
typedef CUresult(CUDAAPI *PFN_cuGraphicsVDPAURegisterOutputSurface_v3010)(CUgraphicsResource *, uint32_t surface, unsigned int);

#endif
