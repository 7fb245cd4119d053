/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, events and capture. The handles are the driver's.
 */
#include "rt.h"

#include <string.h>

RT(cudaStreamCreate, (cudaStream_t * pStream), (pStream))
{
    RT_CALL(rt.cuStreamCreate(pStream, CU_STREAM_DEFAULT));
}

RT(cudaStreamCreateWithFlags, (cudaStream_t * pStream, unsigned int flags), (pStream, flags))
{
    RT_CALL(rt.cuStreamCreate(pStream, flags));
}

RT(cudaStreamCreateWithPriority, (cudaStream_t * pStream, unsigned int flags, int priority), (pStream, flags, priority))
{
    RT_CALL(rt.cuStreamCreateWithPriority(pStream, flags, priority));
}

RT(cudaStreamDestroy, (cudaStream_t stream), (stream))
{
    RT_CALL(rt.cuStreamDestroy(stream));
}

RT_SZ(cudaStreamSynchronize, (cudaStream_t stream), (stream))
{
    RT_CALL(rt.cuStreamSynchronize[pt](stream));
}

RT_SZ(cudaStreamQuery, (cudaStream_t stream), (stream))
{
    RT_CALL(rt.cuStreamQuery[pt](stream));
}

RT_SZ(cudaStreamWaitEvent, (cudaStream_t stream, cudaEvent_t event, unsigned int flags), (stream, event, flags))
{
    RT_CALL(rt.cuStreamWaitEvent[pt](stream, event, flags));
}

RT_SZ(cudaStreamGetFlags, (cudaStream_t hStream, unsigned int *flags), (hStream, flags))
{
    RT_CALL(rt.cuStreamGetFlags[pt](hStream, flags));
}

RT_SZ(cudaStreamGetPriority, (cudaStream_t hStream, int *priority), (hStream, priority))
{
    RT_CALL(rt.cuStreamGetPriority[pt](hStream, priority));
}

RT(cudaEventCreate, (cudaEvent_t * event), (event))
{
    RT_CALL(rt.cuEventCreate(event, CU_EVENT_DEFAULT));
}

RT(cudaEventCreateWithFlags, (cudaEvent_t * event, unsigned int flags), (event, flags))
{
    RT_CALL(rt.cuEventCreate(event, flags));
}

RT(cudaEventDestroy, (cudaEvent_t event), (event))
{
    RT_CALL(rt.cuEventDestroy(event));
}

RT_SZ(cudaEventRecord, (cudaEvent_t event, cudaStream_t stream), (event, stream))
{
    RT_CALL(rt.cuEventRecord[pt](event, stream));
}

RT_SZ(cudaEventRecordWithFlags, (cudaEvent_t event, cudaStream_t stream, unsigned int flags), (event, stream, flags))
{
    RT_CALL(rt.cuEventRecordWithFlags[pt](event, stream, flags));
}

RT(cudaEventQuery, (cudaEvent_t event), (event))
{
    RT_CALL(rt.cuEventQuery(event));
}

RT(cudaEventSynchronize, (cudaEvent_t event), (event))
{
    RT_CALL(rt.cuEventSynchronize(event));
}

RT(cudaEventElapsedTime, (float *ms, cudaEvent_t start, cudaEvent_t end), (ms, start, end))
{
    RT_CALL(rt.cuEventElapsedTime(ms, start, end));
}

RT_SZ(cudaStreamBeginCapture, (cudaStream_t stream, enum cudaStreamCaptureMode mode), (stream, mode))
{
    RT_CALL(rt.cuStreamBeginCapture[pt](stream, (CUstreamCaptureMode)mode));
}

RT_SZ(cudaStreamEndCapture, (cudaStream_t stream, cudaGraph_t *pGraph), (stream, pGraph))
{
    RT_CALL(rt.cuStreamEndCapture[pt](stream, pGraph));
}

RT_SZ(cudaStreamIsCapturing, (cudaStream_t stream, enum cudaStreamCaptureStatus *pCaptureStatus), (stream, pCaptureStatus))
{
    RT_CALL(rt.cuStreamIsCapturing[pt](stream, (CUstreamCaptureStatus *)pCaptureStatus));
}

_Static_assert(sizeof(cudaGraphEdgeData) == sizeof(CUgraphEdgeData), "the runtime's edge data are the driver's");

/* Without a place for edge data the driver answers LOSSY_QUERY where an edge has some: what the older forms are documented to do. */
static cudaError_t capture_info(int pt, cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                cudaGraph_t *graph, const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
                                size_t *count)
{
    RT_CALL(rt.cuStreamGetCaptureInfo[pt](stream, (CUstreamCaptureStatus *)status, (cuuint64_t *)id, graph, dependencies,
                                          (const CUgraphEdgeData **)edges, count));
}

#if CUDART_VERSION >= 13000
#else /* the names of 12: the first form, _v2 with the graph, _v3 with edges */
#undef cudaStreamGetCaptureInfo
RT_SZ(cudaStreamGetCaptureInfo, (cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id),
      (stream, status, id))
{
    return capture_info(pt, stream, status, id, NULL, NULL, NULL, NULL);
}

RT_API cudaError_t cudaStreamGetCaptureInfo_v2_ptsz(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                                    unsigned long long *id, cudaGraph_t *graph,
                                                    const cudaGraphNode_t **dependencies, size_t *numDependencies);
RT_SZ(cudaStreamGetCaptureInfo_v2,
      (cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
       const cudaGraphNode_t **dependencies, size_t *numDependencies),
      (stream, status, id, graph, dependencies, numDependencies))
{
    return capture_info(pt, stream, status, id, graph, dependencies, NULL, numDependencies);
}
#endif

#if CUDART_VERSION >= 13000
RT_SZ(cudaStreamGetCaptureInfo,
#else
RT_SZ(cudaStreamGetCaptureInfo_v3,
#endif
      (cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
       const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edgeData, size_t *numDependencies),
      (stream, status, id, graph, dependencies, edgeData, numDependencies))
{
    return capture_info(pt, stream, status, id, graph, dependencies, edgeData, numDependencies);
}

RT(cudaThreadExchangeStreamCaptureMode, (enum cudaStreamCaptureMode * mode), (mode))
{
    RT_CALL(rt.cuThreadExchangeStreamCaptureMode((CUstreamCaptureMode *)mode));
}

/* ---- the rarer entries */

RT_SZ(cudaStreamAddCallback, (cudaStream_t stream, cudaStreamCallback_t callback, void *userData, unsigned int flags),
      (stream, callback, userData, flags))
{
    /* The two kinds of callback differ in the name of the error's type only. */
    RT_CALL(rt.cuStreamAddCallback[pt](stream, (CUstreamCallback)(uintptr_t)callback, userData, flags));
}

RT_SZ(cudaStreamGetId, (cudaStream_t hStream, unsigned long long *streamId), (hStream, streamId))
{
    RT_CALL(rt.cuStreamGetId[pt](hStream, streamId));
}

_Static_assert(sizeof(cudaStreamAttrValue) == sizeof(CUstreamAttrValue), "the runtime's stream attributes are the driver's");

RT_SZ(cudaStreamCopyAttributes, (cudaStream_t dst, cudaStream_t src), (dst, src))
{
    RT_CALL(rt.cuStreamCopyAttributes[pt](dst, src));
}

RT_SZ(cudaStreamGetAttribute, (cudaStream_t hStream, cudaStreamAttrID attr, cudaStreamAttrValue *value_out), (hStream, attr, value_out))
{
    RT_CALL(rt.cuStreamGetAttribute[pt](hStream, (CUstreamAttrID)attr, (CUstreamAttrValue *)value_out));
}

RT_SZ(cudaStreamSetAttribute, (cudaStream_t hStream, cudaStreamAttrID attr, const cudaStreamAttrValue *value), (hStream, attr, value))
{
    RT_CALL(rt.cuStreamSetAttribute[pt](hStream, (CUstreamAttrID)attr, (const CUstreamAttrValue *)value));
}

RT_SZ(cudaStreamBeginCaptureToGraph,
      (cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t *dependencies, const cudaGraphEdgeData *dependencyData,
       size_t numDependencies, enum cudaStreamCaptureMode mode),
      (stream, graph, dependencies, dependencyData, numDependencies, mode))
{
    RT_CALL(rt.cuStreamBeginCaptureToGraph[pt](stream, graph, dependencies, (const CUgraphEdgeData *)dependencyData, numDependencies,
                                               (CUstreamCaptureMode)mode));
}

#if CUDART_VERSION >= 13000
RT_SZ(cudaStreamUpdateCaptureDependencies,
#else
RT_SZ(cudaStreamUpdateCaptureDependencies,
      (cudaStream_t stream, cudaGraphNode_t *dependencies, size_t numDependencies, unsigned int flags),
      (stream, dependencies, numDependencies, flags))
{
    RT_CALL(rt.cuStreamUpdateCaptureDependencies[pt](stream, dependencies, NULL, numDependencies, flags));
}

RT_API cudaError_t cudaStreamUpdateCaptureDependencies_v2_ptsz(cudaStream_t stream, cudaGraphNode_t *dependencies,
                                                               const cudaGraphEdgeData *dependencyData, size_t numDependencies,
                                                               unsigned int flags);
RT_SZ(cudaStreamUpdateCaptureDependencies_v2,
#endif
      (cudaStream_t stream, cudaGraphNode_t *dependencies, const cudaGraphEdgeData *dependencyData, size_t numDependencies,
       unsigned int flags),
      (stream, dependencies, dependencyData, numDependencies, flags))
{
    RT_CALL(rt.cuStreamUpdateCaptureDependencies[pt](stream, dependencies, (const CUgraphEdgeData *)dependencyData, numDependencies,
                                                     flags));
}

#if CUDART_VERSION < 13000
RT(cudaEventElapsedTime_v2, (float *ms, cudaEvent_t start, cudaEvent_t end), (ms, start, end))
{
    RT_CALL(rt.cuEventElapsedTime(ms, start, end));
}
#endif

_Static_assert(sizeof(cudaIpcEventHandle_t) == sizeof(CUipcEventHandle), "the runtime's IPC handles are the driver's");

RT(cudaIpcGetEventHandle, (cudaIpcEventHandle_t * handle, cudaEvent_t event), (handle, event))
{
    RT_CALL(rt.cuIpcGetEventHandle((CUipcEventHandle *)handle, event));
}

RT(cudaIpcOpenEventHandle, (cudaEvent_t * event, cudaIpcEventHandle_t handle), (event, handle))
{
    CUipcEventHandle h;
    memcpy(&h, &handle, sizeof h);
    RT_CALL(rt.cuIpcOpenEventHandle(event, h));
}
