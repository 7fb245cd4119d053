/* SPDX-License-Identifier: Apache-2.0 */
/* Hooks of what puts addresses into a graph beyond a kernel's parameters: nodes that are added or changed by hand. The regions
 * they name are pinned; so are, through the hooks of copies, those that a captured stream names.
 * Rules: pinned before the driver hears of it and inside the gate, so that no move is under way; also where the driver then
 * refuses, because a pin costs little and a stale address everything. */
#include "shim/hook.h"

/* Unlike a kernel's, a copy's parameters can't be set any more once an operand's mapping has changed
 * (cuGraphExecMemcpyNodeSetParams), and whether it reads the address anew at each launch is not known. */
void spill_pin_operand(CUdeviceptr p)
{
    struct spill_region *region = spill_copies_pass() ? NULL : spill_region_find(p);
    if (region && !region->limbo)
        spill_region_pin(region, "an operand of a graph's copy, memset or memory operation");
}

void spill_pin_copies(const CUdeviceptr *dsts, const CUdeviceptr *srcs, size_t count)
{
    for (size_t i = 0; dsts && srcs && i < count; i++) {
        spill_pin_operand(dsts[i]);
        spill_pin_operand(srcs[i]);
    }
}

void spill_pin_fabric(const CUDA_FABRIC_COPY_BATCH_OP *ops, size_t count)
{
    for (size_t i = 0; ops && i < count; i++) {
        if (ops[i].src.type == CU_FABRIC_COPY_OPERAND_TYPE_POINTER)
            spill_pin_operand(ops[i].src.op.ptr.ptr);
        if (ops[i].dst.type == CU_FABRIC_COPY_OPERAND_TYPE_POINTER)
            spill_pin_operand(ops[i].dst.op.ptr.ptr);
    }
}

bool spill_stream_captured(CUstream stream, bool ptsz)
{
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    CUresult(CUDAAPI *ask)(CUstream, CUstreamCaptureStatus *) =
        ptsz ? spill_driver()->cuStreamIsCapturing_ptsz : spill_driver()->cuStreamIsCapturing;
    return ask && ask(stream, &status) == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

void spill_pin_mem_ops(const CUstreamBatchMemOpParams *ops, size_t count)
{
    for (size_t i = 0; ops && i < count; i++)
        switch (ops[i].operation) {
        case CU_STREAM_MEM_OP_WAIT_VALUE_32:
        case CU_STREAM_MEM_OP_WAIT_VALUE_64: spill_pin_operand(ops[i].waitValue.address); break;
        case CU_STREAM_MEM_OP_WRITE_VALUE_32:
        case CU_STREAM_MEM_OP_WRITE_VALUE_64: spill_pin_operand(ops[i].writeValue.address); break;
        case CU_STREAM_MEM_OP_ATOMIC_REDUCTION: spill_pin_operand(ops[i].atomicReduction.address); break;
        default: break;
        }
}

static void pin_copy(const CUDA_MEMCPY3D *c)
{
    if (!c)
        return;
    spill_pin_operand(SPILL_START_3D(c, src));
    spill_pin_operand(SPILL_START_3D(c, dst));
}

static void pin_memset(const CUDA_MEMSET_NODE_PARAMS *m)
{
    if (m)
        spill_pin_operand(m->dst);
}

static void pin_batch(const CUDA_BATCH_MEM_OP_NODE_PARAMS *b)
{
    if (b)
        spill_pin_mem_ops(b->paramArray, b->count);
}

static void pin_node(const CUgraphNodeParams *p)
{
    if (!p)
        return;
    switch (p->type) {
    case CU_GRAPH_NODE_TYPE_MEMCPY: pin_copy(&p->memcpy.copyParams); break;
    case CU_GRAPH_NODE_TYPE_MEMSET: spill_pin_operand(p->memset.dst); break;
    case CU_GRAPH_NODE_TYPE_BATCH_MEM_OP: spill_pin_mem_ops(p->memOp.paramArray, p->memOp.count); break;
    case CU_GRAPH_NODE_TYPE_MEMCPY_BATCH: spill_pin_copies(p->memcpyBatch.dsts, p->memcpyBatch.srcs, p->memcpyBatch.count); break;
    case CU_GRAPH_NODE_TYPE_FABRIC_CPY_BATCH: spill_pin_fabric(p->fabricCpyBatch.opList, p->fabricCpyBatch.numOps); break;
    default: break;
    }
}

#define NODE(symbol, params, args, pin)         \
    SPILL_EXPORT CUresult CUDAAPI symbol params \
    {                                           \
        SPILL_GATED(symbol);                    \
        pin;                                    \
        return spill_driver()->symbol args;     \
    }
#define ADD(...) (CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, size_t numDependencies, __VA_ARGS__)
#define ADDED(...) (phGraphNode, hGraph, dependencies, numDependencies, __VA_ARGS__)
#define EDGES                                                                                                                \
    (CUgraphNode *phGraphNode, CUgraph hGraph, const CUgraphNode *dependencies, const CUgraphEdgeData *dependencyData,       \
     size_t numDependencies, CUgraphNodeParams *nodeParams)
#define EDGED (phGraphNode, hGraph, dependencies, dependencyData, numDependencies, nodeParams)

NODE(cuGraphAddMemcpyNode, ADD(const CUDA_MEMCPY3D *copyParams, CUcontext ctx), ADDED(copyParams, ctx), pin_copy(copyParams))
NODE(cuGraphMemcpyNodeSetParams, (CUgraphNode hNode, const CUDA_MEMCPY3D *nodeParams), (hNode, nodeParams), pin_copy(nodeParams))
NODE(cuGraphExecMemcpyNodeSetParams, (CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMCPY3D *copyParams, CUcontext ctx),
     (hGraphExec, hNode, copyParams, ctx), pin_copy(copyParams))
NODE(cuGraphAddMemsetNode, ADD(const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx), ADDED(memsetParams, ctx),
     pin_memset(memsetParams))
NODE(cuGraphMemsetNodeSetParams, (CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *nodeParams), (hNode, nodeParams),
     pin_memset(nodeParams))
NODE(cuGraphExecMemsetNodeSetParams,
     (CUgraphExec hGraphExec, CUgraphNode hNode, const CUDA_MEMSET_NODE_PARAMS *memsetParams, CUcontext ctx),
     (hGraphExec, hNode, memsetParams, ctx), pin_memset(memsetParams))
NODE(cuGraphAddBatchMemOpNode, ADD(const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams), ADDED(nodeParams), pin_batch(nodeParams))
NODE(cuGraphBatchMemOpNodeSetParams, (CUgraphNode hNode, const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams), (hNode, nodeParams),
     pin_batch(nodeParams))
NODE(cuGraphExecBatchMemOpNodeSetParams,
     (CUgraphExec hGraphExec, CUgraphNode node, const CUDA_BATCH_MEM_OP_NODE_PARAMS *nodeParams), (hGraphExec, node, nodeParams),
     pin_batch(nodeParams))
NODE(cuGraphAddNode, ADD(CUgraphNodeParams *nodeParams), ADDED(nodeParams), pin_node(nodeParams))
NODE(cuGraphAddNode_v2, EDGES, EDGED, pin_node(nodeParams))
NODE(cuGraphAddNode_v3, EDGES, EDGED, pin_node(nodeParams))
NODE(cuGraphNodeSetParams, (CUgraphNode hNode, CUgraphNodeParams *nodeParams), (hNode, nodeParams), pin_node(nodeParams))
NODE(cuGraphNodeSetParams_v2, (CUgraphNode hNode, CUgraphNodeParams *nodeParams), (hNode, nodeParams), pin_node(nodeParams))
NODE(cuGraphExecNodeSetParams, (CUgraphExec hGraphExec, CUgraphNode hNode, CUgraphNodeParams *nodeParams),
     (hGraphExec, hNode, nodeParams), pin_node(nodeParams))
