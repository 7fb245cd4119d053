/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: made by hand or by a capture, instantiated, updated, launched.
 * CUDA 12 and 13 disagree about edges only: in 13 an entry without suffix takes edge data, in 12 it is called _v2 and the one
 * without suffix takes none. Where edge data has no place to go, the driver answers LOSSY_QUERY if there is any.
 */
#include "rt.h"

#include <string.h>

RT(cudaGraphCreate, (cudaGraph_t * pGraph, unsigned int flags), (pGraph, flags))
{
    RT_CALL(rt.cuGraphCreate(pGraph, flags));
}

RT(cudaGraphDestroy, (cudaGraph_t graph), (graph))
{
    RT_CALL(rt.cuGraphDestroy(graph));
}

RT(cudaGraphClone, (cudaGraph_t * pGraphClone, cudaGraph_t originalGraph), (pGraphClone, originalGraph))
{
    RT_CALL(rt.cuGraphClone(pGraphClone, originalGraph));
}

RT(cudaGraphGetNodes, (cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *numNodes), (graph, nodes, numNodes))
{
    RT_CALL(rt.cuGraphGetNodes(graph, nodes, numNodes));
}

RT(cudaGraphGetRootNodes, (cudaGraph_t graph, cudaGraphNode_t *pRootNodes, size_t *pNumRootNodes), (graph, pRootNodes, pNumRootNodes))
{
    RT_CALL(rt.cuGraphGetRootNodes(graph, pRootNodes, pNumRootNodes));
}

RT(cudaGraphNodeGetType, (cudaGraphNode_t node, enum cudaGraphNodeType *pType), (node, pType))
{
    RT_CALL(rt.cuGraphNodeGetType(node, (CUgraphNodeType *)pType));
}

RT(cudaGraphNodeFindInClone, (cudaGraphNode_t * pNode, cudaGraphNode_t originalNode, cudaGraph_t clonedGraph),
   (pNode, originalNode, clonedGraph))
{
    RT_CALL(rt.cuGraphNodeFindInClone(pNode, originalNode, clonedGraph));
}

RT(cudaGraphDestroyNode, (cudaGraphNode_t node), (node))
{
    RT_CALL(rt.cuGraphDestroyNode(node));
}

RT(cudaGraphNodeSetEnabled, (cudaGraphExec_t hGraphExec, cudaGraphNode_t hNode, unsigned int isEnabled),
   (hGraphExec, hNode, isEnabled))
{
    RT_CALL(rt.cuGraphNodeSetEnabled(hGraphExec, hNode, isEnabled));
}

RT(cudaGraphNodeGetEnabled, (cudaGraphExec_t hGraphExec, cudaGraphNode_t hNode, unsigned int *isEnabled),
   (hGraphExec, hNode, isEnabled))
{
    RT_CALL(rt.cuGraphNodeGetEnabled(hGraphExec, hNode, isEnabled));
}

/* ---- edges */

_Static_assert(sizeof(cudaGraphEdgeData) == sizeof(CUgraphEdgeData), "the runtime's edge data are the driver's");

#if CUDART_VERSION >= 13000
#define WITH_EDGES(name) name
#else
#define WITH_EDGES(name) name##_v2

RT(cudaGraphGetEdges, (cudaGraph_t graph, cudaGraphNode_t *from, cudaGraphNode_t *to, size_t *numEdges), (graph, from, to, numEdges))
{
    RT_CALL(rt.cuGraphGetEdges(graph, from, to, NULL, numEdges));
}

RT(cudaGraphNodeGetDependencies, (cudaGraphNode_t node, cudaGraphNode_t *pDependencies, size_t *pNumDependencies),
   (node, pDependencies, pNumDependencies))
{
    RT_CALL(rt.cuGraphNodeGetDependencies(node, pDependencies, NULL, pNumDependencies));
}

RT(cudaGraphNodeGetDependentNodes, (cudaGraphNode_t node, cudaGraphNode_t *pDependentNodes, size_t *pNumDependentNodes),
   (node, pDependentNodes, pNumDependentNodes))
{
    RT_CALL(rt.cuGraphNodeGetDependentNodes(node, pDependentNodes, NULL, pNumDependentNodes));
}

RT(cudaGraphAddDependencies, (cudaGraph_t graph, const cudaGraphNode_t *from, const cudaGraphNode_t *to, size_t numDependencies),
   (graph, from, to, numDependencies))
{
    RT_CALL(rt.cuGraphAddDependencies(graph, from, to, NULL, numDependencies));
}

RT(cudaGraphRemoveDependencies, (cudaGraph_t graph, const cudaGraphNode_t *from, const cudaGraphNode_t *to, size_t numDependencies),
   (graph, from, to, numDependencies))
{
    RT_CALL(rt.cuGraphRemoveDependencies(graph, from, to, NULL, numDependencies));
}
#endif

RT(WITH_EDGES(cudaGraphGetEdges),
   (cudaGraph_t graph, cudaGraphNode_t *from, cudaGraphNode_t *to, cudaGraphEdgeData *edgeData, size_t *numEdges),
   (graph, from, to, edgeData, numEdges))
{
    RT_CALL(rt.cuGraphGetEdges(graph, from, to, (CUgraphEdgeData *)edgeData, numEdges));
}

RT(WITH_EDGES(cudaGraphNodeGetDependencies),
   (cudaGraphNode_t node, cudaGraphNode_t *pDependencies, cudaGraphEdgeData *edgeData, size_t *pNumDependencies),
   (node, pDependencies, edgeData, pNumDependencies))
{
    RT_CALL(rt.cuGraphNodeGetDependencies(node, pDependencies, (CUgraphEdgeData *)edgeData, pNumDependencies));
}

RT(WITH_EDGES(cudaGraphNodeGetDependentNodes),
   (cudaGraphNode_t node, cudaGraphNode_t *pDependentNodes, cudaGraphEdgeData *edgeData, size_t *pNumDependentNodes),
   (node, pDependentNodes, edgeData, pNumDependentNodes))
{
    RT_CALL(rt.cuGraphNodeGetDependentNodes(node, pDependentNodes, (CUgraphEdgeData *)edgeData, pNumDependentNodes));
}

RT(WITH_EDGES(cudaGraphAddDependencies),
   (cudaGraph_t graph, const cudaGraphNode_t *from, const cudaGraphNode_t *to, const cudaGraphEdgeData *edgeData,
    size_t numDependencies),
   (graph, from, to, edgeData, numDependencies))
{
    RT_CALL(rt.cuGraphAddDependencies(graph, from, to, (const CUgraphEdgeData *)edgeData, numDependencies));
}

RT(WITH_EDGES(cudaGraphRemoveDependencies),
   (cudaGraph_t graph, const cudaGraphNode_t *from, const cudaGraphNode_t *to, const cudaGraphEdgeData *edgeData,
    size_t numDependencies),
   (graph, from, to, edgeData, numDependencies))
{
    RT_CALL(rt.cuGraphRemoveDependencies(graph, from, to, (const CUgraphEdgeData *)edgeData, numDependencies));
}

/* ---- executable graphs */

RT(cudaGraphInstantiate, (cudaGraphExec_t * pGraphExec, cudaGraph_t graph, unsigned long long flags), (pGraphExec, graph, flags))
{
    RT_CALL(rt.cuGraphInstantiateWithFlags(pGraphExec, graph, flags));
}

RT(cudaGraphInstantiateWithFlags, (cudaGraphExec_t * pGraphExec, cudaGraph_t graph, unsigned long long flags),
   (pGraphExec, graph, flags))
{
    RT_CALL(rt.cuGraphInstantiateWithFlags(pGraphExec, graph, flags));
}

_Static_assert(sizeof(cudaGraphInstantiateParams) == sizeof(CUDA_GRAPH_INSTANTIATE_PARAMS), "the runtime's parameters are the driver's");

RT_SZ(cudaGraphInstantiateWithParams,
      (cudaGraphExec_t * pGraphExec, cudaGraph_t graph, cudaGraphInstantiateParams *instantiateParams),
      (pGraphExec, graph, instantiateParams))
{
    RT_CALL(rt.cuGraphInstantiateWithParams[pt](pGraphExec, graph, (CUDA_GRAPH_INSTANTIATE_PARAMS *)instantiateParams));
}

RT(cudaGraphExecGetFlags, (cudaGraphExec_t graphExec, unsigned long long *flags), (graphExec, flags))
{
    RT_CALL(rt.cuGraphExecGetFlags(graphExec, (cuuint64_t *)flags));
}

_Static_assert(sizeof(cudaGraphExecUpdateResultInfo) == sizeof(CUgraphExecUpdateResultInfo), "the runtime's result is the driver's");

RT(cudaGraphExecUpdate, (cudaGraphExec_t hGraphExec, cudaGraph_t hGraph, cudaGraphExecUpdateResultInfo *resultInfo),
   (hGraphExec, hGraph, resultInfo))
{
    RT_CALL(rt.cuGraphExecUpdate(hGraphExec, hGraph, (CUgraphExecUpdateResultInfo *)resultInfo));
}

RT(cudaGraphExecDestroy, (cudaGraphExec_t graphExec), (graphExec))
{
    RT_CALL(rt.cuGraphExecDestroy(graphExec));
}

RT_SZ(cudaGraphUpload, (cudaGraphExec_t graphExec, cudaStream_t stream), (graphExec, stream))
{
    RT_CALL(rt.cuGraphUpload[pt](graphExec, stream));
}

RT_SZ(cudaGraphLaunch, (cudaGraphExec_t graphExec, cudaStream_t stream), (graphExec, stream))
{
    RT_CALL(rt.cuGraphLaunch[pt](graphExec, stream));
}

/* ---- memory that belongs to graphs */

RT(cudaDeviceGraphMemTrim, (int device), (device))
{
    RT_CALL(rt.cuDeviceGraphMemTrim(device));
}

RT(cudaDeviceGetGraphMemAttribute, (int device, enum cudaGraphMemAttributeType attr, void *value), (device, attr, value))
{
    RT_CALL(rt.cuDeviceGetGraphMemAttribute(device, (CUgraphMem_attribute)attr, value));
}

RT(cudaDeviceSetGraphMemAttribute, (int device, enum cudaGraphMemAttributeType attr, void *value), (device, attr, value))
{
    RT_CALL(rt.cuDeviceSetGraphMemAttribute(device, (CUgraphMem_attribute)attr, value));
}

/* ---- what is kept alive with a graph, and its picture */

RT(cudaUserObjectCreate,
   (cudaUserObject_t * object_out, void *ptr, cudaHostFn_t destroy, unsigned int initialRefcount, unsigned int flags),
   (object_out, ptr, destroy, initialRefcount, flags))
{
    RT_CALL(rt.cuUserObjectCreate((CUuserObject *)object_out, ptr, destroy, initialRefcount, flags));
}

RT(cudaUserObjectRetain, (cudaUserObject_t object, unsigned int count), (object, count))
{
    RT_CALL(rt.cuUserObjectRetain((CUuserObject)object, count));
}

RT(cudaUserObjectRelease, (cudaUserObject_t object, unsigned int count), (object, count))
{
    RT_CALL(rt.cuUserObjectRelease((CUuserObject)object, count));
}

RT(cudaGraphRetainUserObject, (cudaGraph_t graph, cudaUserObject_t object, unsigned int count, unsigned int flags),
   (graph, object, count, flags))
{
    RT_CALL(rt.cuGraphRetainUserObject(graph, (CUuserObject)object, count, flags));
}

RT(cudaGraphReleaseUserObject, (cudaGraph_t graph, cudaUserObject_t object, unsigned int count), (graph, object, count))
{
    RT_CALL(rt.cuGraphReleaseUserObject(graph, (CUuserObject)object, count));
}

RT(cudaGraphDebugDotPrint, (cudaGraph_t graph, const char *path, unsigned int flags), (graph, path, flags))
{
    RT_CALL(rt.cuGraphDebugDotPrint(graph, path, flags));
}
