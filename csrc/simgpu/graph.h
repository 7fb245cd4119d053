/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs and captures as the driver keeps them. Included by graph*.c, capture.c and what records into a capture
 * (stream.c, event.c, pool.c, copy*.c, memset.c, launch*.c).
 * Rules: all fields under sim_lock. What a node does is an act: an operation that never changes, or a named thing (an event,
 * an allocation); its parameters are asked of the operation, never kept beside it. A program is a graph as it was when it
 * was instantiated or updated: nothing changes it any more, and a running launch holds it.
 */
#ifndef SIM_GRAPH_H
#define SIM_GRAPH_H

#include "state.h"

struct sim_act {
    CUgraphNodeType kind;
    struct sim_work *work;          /* kernel, memcpy, memset, host, batch memory operations; held */
    CUcontext ctx;                  /* where it runs; NULL: anywhere */
    CUevent event;                  /* record, wait; checked when it is used */
    struct sim_graph_alloc *alloc;  /* allocation, free; held */
    struct sim_condition *condition; /* conditional; held */
    CUgraphConditionalNodeType branch;
};
/* What parameters are asked of (NULL: an act without operation). */
const struct sim_op *sim_act_op(const struct sim_act *a);
void sim_act_hold(const struct sim_act *a);
void sim_act_drop(const struct sim_act *a); /* no lock held: the last holder of an operation may end a module */

struct CUgraphNode_st {
    CUgraph graph;
    struct sim_act act;
    CUgraph child;          /* CU_GRAPH_NODE_TYPE_GRAPH, and of CONDITIONAL what holds its bodies: owned */
    CUgraph *bodies;        /* conditional: as the application sees them */
    CUgraphNode *needs;     /* in the order in which the edges were made */
    CUgraphEdgeData *edges; /* of needs */
    unsigned needed;
    unsigned id;            /* within its graph, never used again */
    uint64_t mark; /* of the newest walk that came by (sim_unique) */
    unsigned slot; /* scratch of walks */
    struct sim_launch_view *view; /* of a kernel's parameters, once asked for (launch.h) */
    uint64_t unique, original; /* original: the node's number that this one was cloned from, 0: none */
};

struct CUgraph_st {
    CUgraphNode *nodes; /* in the order in which they were made */
    unsigned count, room, next_id;
    uint64_t id, original;
    bool memory;        /* holds allocation or free nodes, itself or in a child */
    bool conditional;   /* holds conditional nodes, itself or in a body */
    bool instantiated;  /* with such nodes: an executable of it exists */
    struct sim_condition *conditions; /* made for it; held */
    CUgraphNode parent; /* the node that owns it, NULL: the application does */
    bool moved;         /* its ownership was given to the parent (not cloned into it) */
    struct sim_user_ref *objects;
    CUgraph next_left;  /* of a capture that came to nothing, until it is freed */
};

CUgraph sim_graph_of(CUgraph handle);        /* [locked] NULL: not a live graph */
CUgraphNode sim_node_of(CUgraphNode handle); /* [locked] */
CUgraph sim_graph_new(void);                 /* [locked] NULL: out of memory */
void sim_graph_forget(CUgraph g);            /* [locked] the handles of it, its nodes and children end */
void sim_graph_free(CUgraph g);              /* then this; no lock held */
/* [locked] Takes over `act`'s references on success. Edges NULL: plain ones. */
CUresult sim_graph_add(CUgraph g, struct sim_act act, CUgraphNode const *needs, const CUgraphEdgeData *edges, unsigned count,
                       CUgraphNode *out);
/* [locked] A copy with everything below it. */
CUresult sim_graph_clone(CUgraph g, CUgraph *out);
/* [locked] The nodes so that each comes behind what it needs, each one's place in `slot`; false: there is a circle, and
 * *bad is on it. `order` has room for g->count. */
bool sim_graph_order(CUgraph g, CUgraphNode *order, CUgraphNode *bad);
bool sim_edge_plain(const CUgraphEdgeData *e);
bool sim_edge_ok(const CUgraphEdgeData *e, CUgraphNodeType from, CUgraphNodeType to);

/* ---- acts from and to parameters (graph_params.c) */

/* Is everything zero that its kind does not use? (cuda.h, cuGraphAddNode: it must be) */
bool sim_params_clean(const CUgraphNodeParams *p);
/* What `p` describes, checked now; references are the caller's. The address of an allocation is returned in p. `into`: for
 * allocation and free nodes. `like` (may be NULL): the kernel whose launch attributes the new one keeps. No lock held. */
CUresult sim_act_make(CUgraphNodeParams *p, CUgraph into, const struct sim_work *like, struct sim_act *out);
/* [locked] The parameters of an act, pointing into its operation. NOT_SUPPORTED: a captured operation of a form that
 * parameters cannot say (a batch, an array). */
CUresult sim_act_params(const struct sim_act *a, CUgraph child, CUgraphNodeParams *out);
/* [locked] The two operands of a copy, the one of a memset, as a number for what is mapped there now (0: nothing of the
 * driver's), and where: bit 0 VRAM, bit 1 RAM, device from bit 8. Which of them are there is the result. */
struct sim_operand {
    uint64_t p, n, mapped;
    unsigned place;
};
unsigned sim_act_operands(const struct sim_act *a, struct sim_operand out[2]);

/* Operations from parameters and back (copy_entries.c, memset.c, memop.c, graph_params.c). *_op validate now; *_params are false for what
 * they cannot describe. sim_*_extent: the bytes that it touches, from the first to behind the last. */
CUresult sim_copy_op(const CUDA_MEMCPY3D *p, CUcontext ctx, struct sim_op *out);
bool sim_copy_params(const struct sim_op *op, CUDA_MEMCPY3D *out);
bool sim_copy_operands(const struct sim_op *op, struct sim_operand out[2]);
CUresult sim_memset_op(const CUDA_MEMSET_NODE_PARAMS *p, CUcontext ctx, struct sim_op *out);
void sim_memset_params(const struct sim_op *op, CUDA_MEMSET_NODE_PARAMS *out);
void sim_memset_operand(const struct sim_op *op, struct sim_operand *out);
CUresult sim_memop_op(const CUDA_BATCH_MEM_OP_NODE_PARAMS *p, struct sim_op *out); /* memop.c */
void sim_memop_params(const struct sim_op *op, CUDA_BATCH_MEM_OP_NODE_PARAMS *out); /* paramArray points into the operation */
CUresult sim_host_op(const CUDA_HOST_NODE_PARAMS *p, struct sim_op *out);
void sim_host_params(const struct sim_op *op, CUDA_HOST_NODE_PARAMS *out);

/* ---- events of nodes (event.c), [locked] */
CUresult sim_event_find(CUevent handle, CUcontext *ctx);  /* INVALID_HANDLE; NOT_SUPPORTED: shared with other processes */
struct sim_task *sim_event_task(CUevent handle);          /* what a wait waits for, as a reference; NULL: nothing */
struct sim_task *sim_event_promise(CUevent handle);       /* the event is recorded: when the caller keeps it. A reference */

/* ---- memory of graphs (graph_memory.c) */

/* Reserve an address; memory comes with the launch. */
CUresult sim_graph_alloc_new(CUcontext ctx, CUgraph owner, const CUDA_MEM_ALLOC_NODE_PARAMS_v2 *p, struct sim_graph_alloc **out); /* [locked] */
void sim_graph_alloc_params(const struct sim_graph_alloc *a, CUDA_MEM_ALLOC_NODE_PARAMS_v2 *out);
CUdeviceptr sim_graph_alloc_address(const struct sim_graph_alloc *a);
CUresult sim_graph_alloc_free_node(CUdeviceptr p, CUgraph in, struct sim_graph_alloc **out); /* [locked] may `in` free it? A reference */
void sim_graph_alloc_unfree(struct sim_graph_alloc *a, CUgraph in); /* [locked] that free node was not made after all */
void sim_graph_alloc_hold(struct sim_graph_alloc *a);
void sim_graph_alloc_drop(struct sim_graph_alloc *a); /* no lock held */
void sim_graph_alloc_mapped(struct sim_graph_alloc *a, int change); /* [locked] by so many executables that were launched */
CUresult sim_graph_alloc_back(struct sim_graph_alloc *a); /* [locked] get memory; OUT_OF_MEMORY */
bool sim_graph_alloc_live(const struct sim_graph_alloc *a);             /* [locked] launched and not freed */
void sim_graph_alloc_set(struct sim_graph_alloc *a, bool live);         /* [locked] */
void sim_graph_alloc_busy(struct sim_graph_alloc *a, struct sim_task *launch); /* [locked] until that has run */
void sim_graph_alloc_open(struct sim_graph_alloc *a);  /* the launch has reached the allocation node */
void sim_graph_alloc_close(struct sim_graph_alloc *a); /* the free node */
/* [locked] Freeing it outside of graphs: the reference of the launch becomes the caller's. NULL: it is not allocated now, or a
 * graph's to free. Then the operation that ends the access, which takes over that reference (NULL: none). */
struct sim_graph_alloc *sim_graph_alloc_claim(struct sim_map *m);
struct sim_op sim_graph_alloc_close_op(struct sim_graph_alloc *a);

/* ---- conditional nodes (graph_condition.c) */
void sim_condition_hold(struct sim_condition *c); /* NULL: nothing */
void sim_condition_drop(struct sim_condition *c); /* no lock held, unless it is not the last */
void sim_conditions_drop(struct sim_condition *list); /* a graph's; no lock held */
/* A conditional node for the graph; the reference is the caller's. INVALID_VALUE: the handle is taken, or of another graph or
 * context. No lock held. */
CUresult sim_condition_act(const CUDA_CONDITIONAL_NODE_PARAMS *p, CUgraph into, struct sim_act *out);
/* [locked] Its bodies, and the child that holds them (also on failure: to be forgotten and freed). The node has its handle now. */
CUresult sim_condition_bodies(CUgraph g, const struct sim_act *act, unsigned size, CUgraph **bodies, CUgraph *child);
void sim_condition_unuse(const struct sim_act *act); /* [locked] the node goes */
void sim_condition_params(const struct sim_act *act, CUgraph child, CUgraph *bodies, CUDA_CONDITIONAL_NODE_PARAMS *out); /* [locked] */
CUgraphInstantiateResult sim_conditions_check(CUgraph g, CUgraphNode *bad); /* [locked] */
struct sim_slot;
void sim_condition_begin(struct sim_slot *s, void *arg); /* a launch begins: handles get their initial values */
bool sim_condition_next(const struct sim_slot *s, unsigned turn, unsigned *body); /* which body runs next; false: none */

/* ---- user objects (graph_object.c) */
struct sim_user_ref {
    struct sim_user_ref *next;
    struct CUuserObject_st *object;
    unsigned count;
};
bool sim_user_refs_copy(const struct sim_user_ref *from, struct sim_user_ref **to); /* [locked] */
void sim_user_refs_drop(struct sim_user_ref *refs);                                 /* no lock held */

/* ---- executables (graph_program.c, graph_exec.c, graph_update.c) */
struct sim_slot {
    CUgraphNode node; /* only compared: it may be gone, or another one (see unique) */
    uint64_t unique;
    struct sim_act act;
    struct sim_program *child;
    unsigned *needs, needed; /* slots */
    CUgraphEdgeData *edges;
    unsigned rank;           /* place among the nodes of its graph */
    struct sim_operand operands[2]; /* as they were mapped when it was instantiated or set */
    unsigned operand_count;
    bool sink, disabled;
};
struct sim_program {
    atomic_int refs;
    unsigned count, total; /* total: with those of children */
    struct sim_slot *slots; /* each behind what it needs */
    struct sim_user_ref *objects;
};
/* [locked] INVALID_VALUE with *bad: a circle. */
CUresult sim_program_new(CUgraph g, struct sim_program **out, CUgraphNode *bad);
struct sim_program *sim_program_copy(const struct sim_program *p); /* [locked] NULL: out of memory */
void sim_program_hold(struct sim_program *p);
void sim_program_drop(struct sim_program *p); /* no lock held */
void sim_program_each(struct sim_program *p, void (*visit)(struct sim_slot *s, void *arg), void *arg);
CUresult sim_program_graph(const struct sim_program *p, CUgraph *out); /* [locked] a graph like it */

struct CUgraphExec_st {
    struct sim_program *program;
    unsigned long long flags;
    uint64_t id, graph; /* of the graph it was made from */
    bool conditional;
    bool memory, mapped; /* mapped: its allocations have been backed by a launch or an upload */
    struct sim_task *last; /* its newest launch */
};

/* ---- captures (capture.c) */
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
/* [locked] Append to a capturing stream. Takes over the act's references on success. *out (may be NULL) is the node. */
CUresult sim_capture_add(CUstream s, struct sim_act act, CUgraphNode *out);
bool sim_tips_set(CUstream s, CUgraphNode const *nodes, const CUgraphEdgeData *edges, unsigned count);
bool sim_tips_add(CUstream s, CUgraphNode const *nodes, const CUgraphEdgeData *edges, unsigned count);

#endif
