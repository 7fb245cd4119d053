/* SPDX-License-Identifier: Apache-2.0 */
/* What pins a region: something of the kind that keeps addresses is done with managed memory, then the program ends and its
 * statistics tell. Linked to libcuda.so.1; run by tests/integration/test_pins.py, one process for each way.
 *
 *   pins WAY     exit 1: a call failed, and is named; 2: no such way */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB ((size_t)1 << 20)
#define MUST(call)                                      \
    do {                                                \
        CUresult r_ = (call);                           \
        if (r_ != CUDA_SUCCESS) {                       \
            fprintf(stderr, "%s: %d\n", #call, (int)r_); \
            exit(1);                                    \
        }                                               \
    } while (0)

/* Entries that a program reaches only by asking for the per-thread default stream. */
CUresult cuStreamBeginCapture_v2_ptsz(CUstream stream, CUstreamCaptureMode mode);
CUresult cuStreamEndCapture_ptsz(CUstream stream, CUgraph *graph);
CUresult cuMemsetD8Async_ptsz(CUdeviceptr dst, unsigned char value, size_t count, CUstream stream);

static CUcontext ctx;
static CUdeviceptr a, b, small, other; /* a and b are managed, the others stay with the driver */
static CUstream stream;
static CUgraph graph;
static CUgraphNode node;
static CUgraphExec exec;

static void capture_begin(void) { MUST(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED)); }
static void capture_end(void) { MUST(cuStreamEndCapture(stream, &graph)); }

static CUDA_MEMCPY3D box(CUdeviceptr to, CUdeviceptr from)
{
    return (CUDA_MEMCPY3D){ .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = from, .srcPitch = 256, .srcHeight = 4,
                            .dstMemoryType = CU_MEMORYTYPE_DEVICE, .dstDevice = to, .dstPitch = 256, .dstHeight = 4,
                            .WidthInBytes = 256, .Height = 1, .Depth = 1 };
}

static CUDA_MEMSET_NODE_PARAMS zeroes(CUdeviceptr to)
{
    return (CUDA_MEMSET_NODE_PARAMS){ .dst = to, .elementSize = 4, .width = 64, .height = 1 };
}

static CUstreamBatchMemOpParams write_one(CUdeviceptr to)
{
    CUstreamBatchMemOpParams op;
    memset(&op, 0, sizeof op);
    op.writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32;
    op.writeValue.address = to;
    op.writeValue.value = 1;
    return op;
}

/* ---- captured ---- */

static void captured_copy(void)
{
    capture_begin();
    MUST(cuMemcpyDtoDAsync(a, b, 4096, stream));
    capture_end();
}

static void captured_upload(void)
{
    static char bytes[4096];
    capture_begin();
    MUST(cuMemcpyHtoDAsync(a, bytes, sizeof bytes, stream));
    capture_end();
}

static void captured_2d(void)
{
    CUDA_MEMCPY2D c = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = b, .srcPitch = 256, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = small, .dstPitch = 256, .WidthInBytes = 256, .Height = 4 };
    capture_begin();
    MUST(cuMemcpy2DAsync(&c, stream));
    capture_end();
}

static void captured_3d(void)
{
    CUDA_MEMCPY3D c = box(a, b);
    capture_begin();
    MUST(cuMemcpy3DAsync(&c, stream));
    capture_end();
}

static void captured_memset(void)
{
    capture_begin();
    MUST(cuMemsetD32Async(a, 7, 64, stream));
    capture_end();
}

static void captured_memset_2d(void)
{
    capture_begin();
    MUST(cuMemsetD2D8Async(a, 256, 7, 64, 4, stream));
    capture_end();
}

static void captured_per_thread(void)
{
    MUST(cuStreamBeginCapture_v2_ptsz(NULL, CU_STREAM_CAPTURE_MODE_RELAXED));
    MUST(cuMemsetD8Async_ptsz(a, 7, 64, NULL));
    MUST(cuStreamEndCapture_ptsz(NULL, &graph));
}

static void captured_value(void)
{
    capture_begin();
    MUST(cuStreamWriteValue32(stream, a, 1, 0));
    capture_end();
}

static void captured_mem_ops(void)
{
    CUstreamBatchMemOpParams ops[] = { write_one(a), write_one(b) };
    capture_begin();
    MUST(cuStreamBatchMemOp(stream, 2, ops, 0));
    capture_end();
}

/* ---- added and changed by hand ---- */

static void add_copy(CUdeviceptr to, CUdeviceptr from)
{
    CUDA_MEMCPY3D c = box(to, from);
    MUST(cuGraphAddMemcpyNode(&node, graph, NULL, 0, &c, ctx));
}

static void add_memset(CUdeviceptr to)
{
    CUDA_MEMSET_NODE_PARAMS m = zeroes(to);
    MUST(cuGraphAddMemsetNode(&node, graph, NULL, 0, &m, ctx));
}

static void add_mem_op(CUdeviceptr to)
{
    CUstreamBatchMemOpParams op = write_one(to);
    CUDA_BATCH_MEM_OP_NODE_PARAMS p = { ctx, 1, &op, 0 };
    MUST(cuGraphAddBatchMemOpNode(&node, graph, NULL, 0, &p));
}

static void instantiate(void) { MUST(cuGraphInstantiate(&exec, graph, 0)); }

static void added_copy(void) { add_copy(a, b); }
static void added_memset(void) { add_memset(a); }
static void added_mem_op(void) { add_mem_op(a); }

static void set_copy(void)
{
    CUDA_MEMCPY3D c = box(small, b);
    add_copy(small, other);
    MUST(cuGraphMemcpyNodeSetParams(node, &c));
}

static void set_memset(void)
{
    CUDA_MEMSET_NODE_PARAMS m = zeroes(a);
    add_memset(small);
    MUST(cuGraphMemsetNodeSetParams(node, &m));
}

static void set_mem_op(void)
{
    CUstreamBatchMemOpParams op = write_one(a);
    CUDA_BATCH_MEM_OP_NODE_PARAMS p = { ctx, 1, &op, 0 };
    add_mem_op(small);
    MUST(cuGraphBatchMemOpNodeSetParams(node, &p));
}

static void set_in_executable_copy(void)
{
    CUDA_MEMCPY3D c = box(small, b);
    add_copy(small, other);
    instantiate();
    MUST(cuGraphExecMemcpyNodeSetParams(exec, node, &c, ctx));
}

static void set_in_executable_memset(void)
{
    CUDA_MEMSET_NODE_PARAMS m = zeroes(a);
    add_memset(small);
    instantiate();
    MUST(cuGraphExecMemsetNodeSetParams(exec, node, &m, ctx));
}

static void set_in_executable_mem_op(void)
{
    CUstreamBatchMemOpParams op = write_one(a);
    CUDA_BATCH_MEM_OP_NODE_PARAMS p = { ctx, 1, &op, 0 };
    add_mem_op(small);
    instantiate();
    MUST(cuGraphExecBatchMemOpNodeSetParams(exec, node, &p));
}

static CUgraphNodeParams any_copy(CUdeviceptr to, CUdeviceptr from)
{
    CUgraphNodeParams p = { .type = CU_GRAPH_NODE_TYPE_MEMCPY };
    p.memcpy.copyCtx = ctx;
    p.memcpy.copyParams = box(to, from);
    return p;
}

static CUgraphNodeParams any_memset(CUdeviceptr to)
{
    CUgraphNodeParams p = { .type = CU_GRAPH_NODE_TYPE_MEMSET };
    p.memset.ctx = ctx;
    p.memset.dst = to;
    p.memset.elementSize = 4;
    p.memset.width = 64;
    p.memset.height = 1;
    return p;
}

static void add_any(CUgraphNodeParams p) { MUST(cuGraphAddNode(&node, graph, NULL, NULL, 0, &p)); }
static void added_any_copy(void) { add_any(any_copy(a, b)); }
static void added_any_memset(void) { add_any(any_memset(a)); }

static void added_any_mem_op(void)
{
    CUstreamBatchMemOpParams op = write_one(a);
    CUgraphNodeParams p = { .type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP };
    p.memOp.ctx = ctx;
    p.memOp.count = 1;
    p.memOp.paramArray = &op;
    add_any(p);
}

static void set_any(void)
{
    CUgraphNodeParams p = any_memset(a);
    add_any(any_memset(small));
    MUST(cuGraphNodeSetParams(node, &p));
}

static void set_in_executable_any(void)
{
    CUgraphNodeParams p = any_memset(a);
    add_any(any_memset(small));
    instantiate();
    MUST(cuGraphExecNodeSetParams(exec, node, &p));
}

/* ---- other devices, and what does not pin ---- */

static void sync_memops(void)
{
    unsigned on = 1;
    MUST(cuPointerSetAttribute(&on, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, a));
}

static void twice(void)
{
    captured_memset();
    captured_memset();
}

/* A region that comes after a pinned one was freed, maybe at the same address and in the same slot. */
static void freed(void)
{
    added_memset();
    MUST(cuGraphDestroy(graph));
    MUST(cuGraphCreate(&graph, 0));
    MUST(cuMemFree(a));
    MUST(cuMemAlloc(&a, 20 * MIB));
    added_memset();
}

static void no_copy(void)
{
    MUST(cuMemcpyDtoDAsync(a, b, 4096, stream));
    MUST(cuStreamSynchronize(stream)); /* it is no blocking stream: nothing else orders it with the next one */
    MUST(cuMemsetD8(a, 1, 4096));
    MUST(cuCtxSynchronize());
    MUST(cuStreamWriteValue32(stream, a, 1, 0));
    MUST(cuStreamSynchronize(stream));
}

static void no_copy_beside_a_capture(void)
{
    CUstream second;
    MUST(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    capture_begin();
    MUST(cuMemcpyDtoDAsync(a, b, 4096, second));
    MUST(cuMemsetD8Async(a, 1, 4096, second));
    MUST(cuMemsetD8Async(small, 1, 4096, stream));
    capture_end();
    MUST(cuStreamSynchronize(second));
}

static void no_own_memory(void)
{
    add_copy(small, other);
    add_memset(other);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } ways[] = {
#define WAY(name) { #name, name }
        WAY(captured_copy), WAY(captured_upload), WAY(captured_2d), WAY(captured_3d), WAY(captured_memset), WAY(captured_memset_2d),
        WAY(captured_per_thread), WAY(captured_value), WAY(captured_mem_ops), WAY(added_copy), WAY(added_memset), WAY(added_mem_op),
        WAY(set_copy), WAY(set_memset), WAY(set_mem_op), WAY(set_in_executable_copy), WAY(set_in_executable_memset),
        WAY(set_in_executable_mem_op), WAY(added_any_copy), WAY(added_any_memset), WAY(added_any_mem_op), WAY(set_any),
        WAY(set_in_executable_any), WAY(sync_memops), WAY(twice), WAY(freed), WAY(no_copy), WAY(no_copy_beside_a_capture),
        WAY(no_own_memory),
    };
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&ctx, 0));
    MUST(cuCtxSetCurrent(ctx));
    MUST(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    MUST(cuGraphCreate(&graph, 0));
    MUST(cuMemAlloc(&a, 20 * MIB));
    MUST(cuMemAlloc(&b, 20 * MIB));
    MUST(cuMemAlloc(&small, MIB));
    MUST(cuMemAlloc(&other, MIB));
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (argc == 2 && !strcmp(argv[1], ways[i].name)) {
            ways[i].run();
            return 0;
        }
    return 2;
}
