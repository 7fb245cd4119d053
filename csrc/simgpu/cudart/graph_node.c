/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes of graphs, added and changed one by one.
 * The runtime's parameter structs differ from the driver's in kernels (a host stub, not a function) and copies; in a node of a
 * kernel that no stub of this program stands for (a library's own), asking for parameters fails with InvalidDeviceFunction:
 * ggml's update of captured graphs relies on both.
 */
#include "rt.h"

#include <string.h>

#define NODE_PLACE cudaGraphNode_t *pGraphNode, cudaGraph_t graph, const cudaGraphNode_t *pDependencies, size_t numDependencies
#define NODE_ARGS pGraphNode, graph, pDependencies, numDependencies

RT(cudaGraphAddEmptyNode, (NODE_PLACE), (NODE_ARGS))
{
    RT_CALL(rt.cuGraphAddEmptyNode(NODE_ARGS));
}

/* ---- kernels */

static cudaError_t kernel_params(const struct cudaKernelNodeParams *from, CUDA_KERNEL_NODE_PARAMS_v2 *to)
{
    if (!from)
        return cudaErrorInvalidValue;
    *to = (CUDA_KERNEL_NODE_PARAMS_v2){
        .gridDimX = from->gridDim.x,
        .gridDimY = from->gridDim.y,
        .gridDimZ = from->gridDim.z,
        .blockDimX = from->blockDim.x,
        .blockDimY = from->blockDim.y,
        .blockDimZ = from->blockDim.z,
        .sharedMemBytes = from->sharedMemBytes,
        .kernelParams = from->kernelParams,
        .extra = from->extra,
    };
    return rt_function(from->func, &to->func);
}

RT(cudaGraphAddKernelNode, (NODE_PLACE, const struct cudaKernelNodeParams *pNodeParams), (NODE_ARGS, pNodeParams))
{
    CUDA_KERNEL_NODE_PARAMS_v2 p;
    RT_NEED(kernel_params(pNodeParams, &p));
    return rt_error(rt.cuGraphAddKernelNode(NODE_ARGS, &p));
}

RT(cudaGraphKernelNodeGetParams, (cudaGraphNode_t node, struct cudaKernelNodeParams *pNodeParams), (node, pNodeParams))
{
    CUDA_KERNEL_NODE_PARAMS_v2 p;
    if (!pNodeParams)
        return cudaErrorInvalidValue;
    RT_NEED(rt_context());
    RT_NEED(rt_error(rt.cuGraphKernelNodeGetParams(node, &p)));
    const void *stub = rt_stub_of(p.func);
    if (!stub)
        return cudaErrorInvalidDeviceFunction;
    *pNodeParams = (struct cudaKernelNodeParams){
        .func = (void *)(uintptr_t)stub,
        .gridDim = {p.gridDimX, p.gridDimY, p.gridDimZ},
        .blockDim = {p.blockDimX, p.blockDimY, p.blockDimZ},
        .sharedMemBytes = p.sharedMemBytes,
        .kernelParams = p.kernelParams,
        .extra = p.extra,
    };
    return cudaSuccess;
}

RT(cudaGraphKernelNodeSetParams, (cudaGraphNode_t node, const struct cudaKernelNodeParams *pNodeParams), (node, pNodeParams))
{
    CUDA_KERNEL_NODE_PARAMS_v2 p;
    RT_NEED(kernel_params(pNodeParams, &p));
    return rt_error(rt.cuGraphKernelNodeSetParams(node, &p));
}

RT(cudaGraphExecKernelNodeSetParams,
   (cudaGraphExec_t hGraphExec, cudaGraphNode_t node, const struct cudaKernelNodeParams *pNodeParams),
   (hGraphExec, node, pNodeParams))
{
    CUDA_KERNEL_NODE_PARAMS_v2 p;
    RT_NEED(kernel_params(pNodeParams, &p));
    return rt_error(rt.cuGraphExecKernelNodeSetParams(hGraphExec, node, &p));
}

/* ---- copies */

RT(cudaGraphAddMemcpyNode, (NODE_PLACE, const struct cudaMemcpy3DParms *pCopyParams), (NODE_ARGS, pCopyParams))
{
    CUDA_MEMCPY3D c;
    CUcontext current;
    RT_NEED(rt_copy3d(pCopyParams, &c));
    RT_NEED(rt_current(&current));
    return rt_error(rt.cuGraphAddMemcpyNode(NODE_ARGS, &c, current));
}

static struct cudaMemcpy3DParms one_row(void *dst, const void *src, size_t count, enum cudaMemcpyKind kind)
{
    return (struct cudaMemcpy3DParms){
        .srcPtr = {(void *)(uintptr_t)src, count, count, 1},
        .dstPtr = {dst, count, count, 1},
        .extent = {count, 1, 1},
        .kind = kind,
    };
}

RT(cudaGraphAddMemcpyNode1D, (NODE_PLACE, void *dst, const void *src, size_t count, enum cudaMemcpyKind kind),
   (NODE_ARGS, dst, src, count, kind))
{
    struct cudaMemcpy3DParms p = one_row(dst, src, count, kind);
    return body_cudaGraphAddMemcpyNode(NODE_ARGS, &p);
}

RT(cudaGraphMemcpyNodeSetParams, (cudaGraphNode_t node, const struct cudaMemcpy3DParms *pNodeParams), (node, pNodeParams))
{
    CUDA_MEMCPY3D c;
    RT_NEED(rt_copy3d(pNodeParams, &c));
    return rt_error(rt.cuGraphMemcpyNodeSetParams(node, &c));
}

RT(cudaGraphExecMemcpyNodeSetParams,
   (cudaGraphExec_t hGraphExec, cudaGraphNode_t node, const struct cudaMemcpy3DParms *pNodeParams), (hGraphExec, node, pNodeParams))
{
    CUDA_MEMCPY3D c;
    CUcontext current;
    RT_NEED(rt_copy3d(pNodeParams, &c));
    RT_NEED(rt_current(&current));
    return rt_error(rt.cuGraphExecMemcpyNodeSetParams(hGraphExec, node, &c, current));
}

RT(cudaGraphExecMemcpyNodeSetParams1D,
   (cudaGraphExec_t hGraphExec, cudaGraphNode_t node, void *dst, const void *src, size_t count, enum cudaMemcpyKind kind),
   (hGraphExec, node, dst, src, count, kind))
{
    struct cudaMemcpy3DParms p = one_row(dst, src, count, kind);
    return body_cudaGraphExecMemcpyNodeSetParams(hGraphExec, node, &p);
}

/* ---- memsets */

_Static_assert(sizeof(struct cudaMemsetParams) == offsetof(CUDA_MEMSET_NODE_PARAMS_v2, ctx) &&
                   sizeof(CUDA_MEMSET_NODE_PARAMS_v1) == sizeof(struct cudaMemsetParams),
               "the runtime's memset parameters are the driver's first form");

RT(cudaGraphAddMemsetNode, (NODE_PLACE, const struct cudaMemsetParams *pMemsetParams), (NODE_ARGS, pMemsetParams))
{
    CUcontext current;
    RT_NEED(rt_current(&current));
    return rt_error(rt.cuGraphAddMemsetNode(NODE_ARGS, (const CUDA_MEMSET_NODE_PARAMS_v1 *)pMemsetParams, current));
}

RT(cudaGraphMemsetNodeGetParams, (cudaGraphNode_t node, struct cudaMemsetParams *pNodeParams), (node, pNodeParams))
{
    RT_CALL(rt.cuGraphMemsetNodeGetParams(node, (CUDA_MEMSET_NODE_PARAMS_v1 *)pNodeParams));
}

RT(cudaGraphMemsetNodeSetParams, (cudaGraphNode_t node, const struct cudaMemsetParams *pNodeParams), (node, pNodeParams))
{
    RT_CALL(rt.cuGraphMemsetNodeSetParams(node, (const CUDA_MEMSET_NODE_PARAMS_v1 *)pNodeParams));
}

RT(cudaGraphExecMemsetNodeSetParams,
   (cudaGraphExec_t hGraphExec, cudaGraphNode_t node, const struct cudaMemsetParams *pNodeParams), (hGraphExec, node, pNodeParams))
{
    CUcontext current;
    RT_NEED(rt_current(&current));
    return rt_error(
        rt.cuGraphExecMemsetNodeSetParams(hGraphExec, node, (const CUDA_MEMSET_NODE_PARAMS_v1 *)pNodeParams, current));
}

/* ---- host functions, child graphs, events */

_Static_assert(sizeof(struct cudaHostNodeParams) == sizeof(CUDA_HOST_NODE_PARAMS_v1), "the runtime's host node is the driver's");

RT(cudaGraphAddHostNode, (NODE_PLACE, const struct cudaHostNodeParams *pNodeParams), (NODE_ARGS, pNodeParams))
{
    RT_CALL(rt.cuGraphAddHostNode(NODE_ARGS, (const CUDA_HOST_NODE_PARAMS_v1 *)pNodeParams));
}

RT(cudaGraphHostNodeGetParams, (cudaGraphNode_t node, struct cudaHostNodeParams *pNodeParams), (node, pNodeParams))
{
    RT_CALL(rt.cuGraphHostNodeGetParams(node, (CUDA_HOST_NODE_PARAMS_v1 *)pNodeParams));
}

RT(cudaGraphHostNodeSetParams, (cudaGraphNode_t node, const struct cudaHostNodeParams *pNodeParams), (node, pNodeParams))
{
    RT_CALL(rt.cuGraphHostNodeSetParams(node, (const CUDA_HOST_NODE_PARAMS_v1 *)pNodeParams));
}

RT(cudaGraphExecHostNodeSetParams,
   (cudaGraphExec_t hGraphExec, cudaGraphNode_t node, const struct cudaHostNodeParams *pNodeParams), (hGraphExec, node, pNodeParams))
{
    RT_CALL(rt.cuGraphExecHostNodeSetParams(hGraphExec, node, (const CUDA_HOST_NODE_PARAMS_v1 *)pNodeParams));
}

RT(cudaGraphAddChildGraphNode, (NODE_PLACE, cudaGraph_t childGraph), (NODE_ARGS, childGraph))
{
    RT_CALL(rt.cuGraphAddChildGraphNode(NODE_ARGS, childGraph));
}

RT(cudaGraphChildGraphNodeGetGraph, (cudaGraphNode_t node, cudaGraph_t *pGraph), (node, pGraph))
{
    RT_CALL(rt.cuGraphChildGraphNodeGetGraph(node, pGraph));
}

RT(cudaGraphExecChildGraphNodeSetParams, (cudaGraphExec_t hGraphExec, cudaGraphNode_t node, cudaGraph_t childGraph),
   (hGraphExec, node, childGraph))
{
    RT_CALL(rt.cuGraphExecChildGraphNodeSetParams(hGraphExec, node, childGraph));
}

RT(cudaGraphAddEventRecordNode, (NODE_PLACE, cudaEvent_t event), (NODE_ARGS, event))
{
    RT_CALL(rt.cuGraphAddEventRecordNode(NODE_ARGS, event));
}

RT(cudaGraphAddEventWaitNode, (NODE_PLACE, cudaEvent_t event), (NODE_ARGS, event))
{
    RT_CALL(rt.cuGraphAddEventWaitNode(NODE_ARGS, event));
}

#define EVENT_NODE(what) \
    RT(cudaGraph##what##NodeGetEvent, (cudaGraphNode_t node, cudaEvent_t *event_out), (node, event_out)) \
    { \
        RT_CALL(rt.cuGraph##what##NodeGetEvent(node, event_out)); \
    } \
    RT(cudaGraph##what##NodeSetEvent, (cudaGraphNode_t node, cudaEvent_t event), (node, event)) \
    { \
        RT_CALL(rt.cuGraph##what##NodeSetEvent(node, event)); \
    } \
    RT(cudaGraphExec##what##NodeSetEvent, (cudaGraphExec_t hGraphExec, cudaGraphNode_t hNode, cudaEvent_t event), \
       (hGraphExec, hNode, event)) \
    { \
        RT_CALL(rt.cuGraphExec##what##NodeSetEvent(hGraphExec, hNode, event)); \
    }

EVENT_NODE(EventRecord)
EVENT_NODE(EventWait)

/* ---- attributes of kernel nodes; memory nodes */

_Static_assert(sizeof(cudaLaunchAttributeValue) == sizeof(CUkernelNodeAttrValue), "the runtime's launch attributes are the driver's");

RT(cudaGraphKernelNodeCopyAttributes, (cudaGraphNode_t hDst, cudaGraphNode_t hSrc), (hDst, hSrc))
{
    RT_CALL(rt.cuGraphKernelNodeCopyAttributes(hDst, hSrc));
}

RT(cudaGraphKernelNodeGetAttribute, (cudaGraphNode_t hNode, cudaLaunchAttributeID attr, cudaLaunchAttributeValue *value_out),
   (hNode, attr, value_out))
{
    RT_CALL(rt.cuGraphKernelNodeGetAttribute(hNode, (CUkernelNodeAttrID)attr, (CUkernelNodeAttrValue *)value_out));
}

RT(cudaGraphKernelNodeSetAttribute, (cudaGraphNode_t hNode, cudaLaunchAttributeID attr, const cudaLaunchAttributeValue *value),
   (hNode, attr, value))
{
    RT_CALL(rt.cuGraphKernelNodeSetAttribute(hNode, (CUkernelNodeAttrID)attr, (const CUkernelNodeAttrValue *)value));
}

_Static_assert(sizeof(struct cudaMemAllocNodeParams) == sizeof(CUDA_MEM_ALLOC_NODE_PARAMS_v1),
               "the runtime's allocation parameters are the driver's");

RT(cudaGraphAddMemAllocNode, (NODE_PLACE, struct cudaMemAllocNodeParams *nodeParams), (NODE_ARGS, nodeParams))
{
    RT_CALL(rt.cuGraphAddMemAllocNode(NODE_ARGS, (CUDA_MEM_ALLOC_NODE_PARAMS_v1 *)nodeParams));
}

RT(cudaGraphMemAllocNodeGetParams, (cudaGraphNode_t node, struct cudaMemAllocNodeParams *params_out), (node, params_out))
{
    RT_CALL(rt.cuGraphMemAllocNodeGetParams(node, (CUDA_MEM_ALLOC_NODE_PARAMS_v1 *)params_out));
}

RT(cudaGraphAddMemFreeNode, (NODE_PLACE, void *dptr), (NODE_ARGS, dptr))
{
    RT_CALL(rt.cuGraphAddMemFreeNode(NODE_ARGS, (CUdeviceptr)(uintptr_t)dptr));
}

RT(cudaGraphMemFreeNodeGetParams, (cudaGraphNode_t node, void *dptr_out), (node, dptr_out))
{
    RT_CALL(rt.cuGraphMemFreeNodeGetParams(node, (CUdeviceptr *)dptr_out));
}
