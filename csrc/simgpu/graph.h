/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs and captures as the driver keeps them. Included by graph.c, capture.c, stream.c and event.c.
 * Rules: all fields under sim_lock; a running launch holds a program, which nothing changes any more.
 */
#ifndef SIM_GRAPH_H
#define SIM_GRAPH_H

#include "state.h"

struct CUgraphNode_st {
    CUgraph graph;
    CUgraphNodeType kind;
    struct sim_work *work; /* NULL: an empty node */
    CUgraphNode *needs;
    unsigned needed;
    unsigned mark; /* scratch of walks: below 2^31 of capture.c, above of graph.c */
    union { /* as they were given, for the Get*Params entries; valid when `described` */
        CUDA_MEMCPY3D copy;
        CUDA_MEMSET_NODE_PARAMS set;
        CUDA_HOST_NODE_PARAMS host;
    } params;
    bool described;
    CUcontext ctx;
};

struct CUgraph_st {
    CUgraphNode *nodes;
    unsigned count, room;
    uint64_t id;
    struct sim_graph_memory *memory;
};

/* Allocations made while capturing. They live as long as the graph or a program made from it. */
struct sim_graph_memory {
    atomic_int refs;
    CUdeviceptr *owned;
    unsigned count;
};
void sim_graph_memory_drop(struct sim_graph_memory *m); /* pool.c; no lock held */

struct sim_program {
    atomic_int refs;
    unsigned count;
    struct sim_work **works;
    CUgraphNodeType *kinds;
    unsigned *needed;
    CUgraphNode *nodes; /* only compared: the graph may be gone */
    struct sim_graph_memory *memory;
};

struct CUgraphExec_st {
    struct sim_program *program;
    unsigned long long flags;
};

struct sim_capture {
    struct sim_capture *next;
    CUgraph graph;
    CUstream origin;
    CUstreamCaptureMode mode;
    uint64_t thread, id;
    bool invalid, borrowed; /* borrowed: the graph was given by the app */
};

extern struct sim_capture *sim_captures;
struct sim_capture *sim_capture_by_id(uint64_t id);

CUgraph sim_graph_new(void);
CUresult sim_graph_add(CUgraph g, CUgraphNodeType kind, struct sim_work *w, CUgraphNode const *needs, unsigned count,
                       CUgraphNode *out); /* takes over w */
/* Append an empty node to the stream's capture (an allocation or a free: nothing is left to run). */
CUresult sim_capture_empty(CUstream s, CUgraphNodeType kind);
bool sim_tips_set(CUstream s, CUgraphNode const *nodes, unsigned count);
bool sim_tips_add(CUstream s, CUgraphNode const *nodes, unsigned count);

/* Operations from parameters, for graph nodes (copy_entries.c, memset.c, graph.c). Validated now. */
CUresult sim_host_op(const CUDA_HOST_NODE_PARAMS *p, struct sim_op *out);
CUresult sim_copy_op(const CUDA_MEMCPY3D *p, CUcontext ctx, struct sim_op *out);
CUresult sim_memop_op(const CUDA_BATCH_MEM_OP_NODE_PARAMS *p, struct sim_op *out); /* memop.c */
void sim_memop_params(const struct sim_op *op, CUDA_BATCH_MEM_OP_NODE_PARAMS *out); /* paramArray points into the operation */
CUresult sim_memset_op(const CUDA_MEMSET_NODE_PARAMS *p, CUcontext ctx, struct sim_op *out);

#endif
