/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture, and sim_enqueue, where an operation becomes either a task or a graph node.
 * Called by every stream-ordered entry. Source of the rules: cuda.h at cuStreamBeginCapture,
 * cuThreadExchangeStreamCaptureMode and the CUDA_ERROR_STREAM_CAPTURE_* codes.
 */
#include "doubt.h"
#include "graph.h"
#include "launch.h"

#include <stdlib.h>
#include <string.h>

struct sim_capture *sim_captures;

struct sim_capture *sim_capture_by_id(uint64_t id)
{
    struct sim_capture *c = sim_captures;
    while (c && c->id != id)
        c = c->next;
    return c;
}

/* ---- what a capture forbids */

CUresult sim_capture_unsafe(void)
{
    struct sim_thread *t = sim_self();
    if (!t || t->capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_SUCCESS;
    CUresult r = CUDA_SUCCESS;
    for (struct sim_capture *c = sim_captures; c; c = c->next) {
        bool mine = c->thread == t->id && c->mode != CU_STREAM_CAPTURE_MODE_RELAXED;
        bool other = c->thread != t->id && c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL &&
                     t->capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (mine || other) {
            c->invalid = true;
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return r;
}

CUresult sim_capture_sync(CUcontext ctx)
{
    CUresult r = CUDA_SUCCESS;
    for (struct sim_capture *c = sim_captures; c; c = c->next)
        if (c->origin->ctx == ctx) {
            c->invalid = true;
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    return r;
}

CUresult sim_capture_stream_sync(CUstream s)
{
    CUresult r = CUDA_SUCCESS;
    if (s->capture) {
        s->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (s->legacy)
        sim_capture_implicit(s->ctx, &r);
    return r;
}

void sim_capture_implicit(CUcontext ctx, CUresult *r)
{
    for (CUstream s = ctx->streams; s; s = s->next)
        if (s->capture && !(s->flags & CU_STREAM_NON_BLOCKING)) {
            s->capture->invalid = true;
            *r = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
}

CUresult sim_capture_unsafe_vmm(bool unmap)
{
    unsigned branch = sim_doubt(SIM_DOUBT_CAPTURE_VMM);
    return branch == 1 || (unmap && !branch) ? sim_capture_unsafe() : CUDA_SUCCESS;
}

CUresult sim_capture_unsafe_event(void)
{
    return sim_doubt(SIM_DOUBT_CAPTURE_QUERY) ? CUDA_SUCCESS : sim_capture_unsafe();
}

static CUgraph left; /* [locked] graphs of captures that came to nothing, freed where no lock is held */

static void leave(CUgraph g)
{
    sim_graph_forget(g);
    g->next_left = left;
    left = g;
}

static void free_left(void)
{
    sim_take();
    CUgraph g = left;
    left = NULL;
    sim_give();
    while (g) {
        CUgraph next = g->next_left;
        sim_graph_free(g);
        g = next;
    }
}

static void leave_capture(CUstream s)
{
    s->capture = NULL;
    free(s->tips);
    free(s->tip_edges);
    s->tips = NULL;
    s->tip_edges = NULL;
    s->tip_count = 0;
}

static void capture_end(struct sim_capture *c)
{
    for (CUstream s = c->origin->ctx->streams; s; s = s->next)
        if (s->capture == c)
            leave_capture(s);
    for (struct sim_capture **p = &sim_captures; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    free(c);
}

void sim_capture_forget(CUstream s)
{
    struct sim_capture *c = s->capture;
    if (!c)
        return;
    c->invalid = true;
    if (c->origin == s) {
        if (c->graph && !c->borrowed)
            leave(c->graph);
        capture_end(c);
    } else {
        leave_capture(s);
    }
}

/* ---- the nodes that the next operation of a stream depends on */

static bool tips_room(CUstream s, unsigned count)
{
    CUgraphNode *nodes = realloc(s->tips, (count + 1) * sizeof *nodes);
    if (nodes)
        s->tips = nodes;
    CUgraphEdgeData *edges = realloc(s->tip_edges, (count + 1) * sizeof *edges);
    if (edges)
        s->tip_edges = edges;
    return nodes && edges;
}

/* The given ones behind `kept` of those that are there. In new arrays: an application may hand back the ones that it was
 * shown (cuStreamGetCaptureInfo). */
static bool tips_make(CUstream s, unsigned kept, CUgraphNode const *nodes, const CUgraphEdgeData *edges, unsigned count)
{
    CUgraphNode *all = malloc(((size_t)kept + count + 1) * sizeof *all);
    CUgraphEdgeData *data = malloc(((size_t)kept + count + 1) * sizeof *data);
    if (!all || !data) {
        free(all);
        free(data);
        return false;
    }
    if (kept) {
        memcpy(all, s->tips, kept * sizeof *all);
        memcpy(data, s->tip_edges, kept * sizeof *data);
    }
    for (unsigned i = 0; i < count; i++) {
        unsigned k = 0;
        while (k < kept && all[k] != nodes[i])
            k++;
        if (k == kept || edges) /* an edge that is there already keeps what it is */
            data[k] = edges ? edges[i] : (CUgraphEdgeData){0};
        all[k] = nodes[i];
        kept += k == kept;
    }
    free(s->tips);
    free(s->tip_edges);
    s->tips = all;
    s->tip_edges = data;
    s->tip_count = kept;
    return true;
}

bool sim_tips_add(CUstream s, CUgraphNode const *nodes, const CUgraphEdgeData *edges, unsigned count)
{
    return tips_make(s, s->tip_count, nodes, edges, count);
}

bool sim_tips_set(CUstream s, CUgraphNode const *nodes, const CUgraphEdgeData *edges, unsigned count)
{
    return tips_make(s, 0, nodes, edges, count);
}

/* A launch that may overlap the kernel before it (CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) becomes a node with a
 * programmatic edge to it (Programming Guide, programmatic dependent launch, use in graphs). */
static bool programmatic(const struct sim_act *a)
{
    unsigned count;
    const CUlaunchAttribute *all = a->kind == CU_GRAPH_NODE_TYPE_KERNEL ? sim_launch_attributes(sim_act_op(a), &count) : NULL;
    for (unsigned i = 0; all && i < count; i++)
        if (all[i].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
            return all[i].value.programmaticStreamSerializationAllowed != 0;
    return false;
}

CUresult sim_capture_add(CUstream s, struct sim_act act, CUgraphNode *out)
{
    CUgraphNode node;
    if (s->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!tips_room(s, s->tip_count))
        return CUDA_ERROR_OUT_OF_MEMORY;
    bool overlap = programmatic(&act);
    for (unsigned i = 0; i < s->tip_count; i++)
        if (overlap && s->tips[i]->act.kind == CU_GRAPH_NODE_TYPE_KERNEL && sim_edge_plain(&s->tip_edges[i])) {
            s->tip_edges[i].from_port = CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC;
            s->tip_edges[i].type = CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC;
        } else if (!sim_edge_ok(&s->tip_edges[i], s->tips[i]->act.kind, act.kind)) {
            return CUDA_ERROR_INVALID_VALUE; /* what came by cuStreamUpdateCaptureDependencies suits kernels only */
        }
    CUresult r = sim_graph_add(s->capture->graph, act, s->tips, s->tip_edges, s->tip_count, &node);
    if (r)
        return r;
    s->tips[0] = node;
    s->tip_edges[0] = (CUgraphEdgeData){0};
    s->tip_count = 1;
    if (out)
        *out = node;
    return CUDA_SUCCESS;
}

/* ---- the way in */

static CUresult enqueue(CUstream handle, bool ptsz, struct sim_op op, struct sim_demand demand, bool wait)
{
    CUcontext ctx;
    CUstream s;
    struct sim_work *w = NULL;
    struct sim_task *t = NULL;
    bool now = false, captured = false;
    CUresult r = sim_current(&ctx);
    if (!r)
        w = sim_work_new(op);
    else if (op.drop)
        op.drop(op.arg);
    if (!r && !w)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r)
        return r;
    w->demand = demand;
    sim_take();
    r = sim_stream_find(handle, ptsz, &s);
    if (!r && s->capture) {
        captured = true;
        if (op.kind == SIM_OP_CALLBACK) { /* cuda.h, cuStreamAddCallback: not supported in captures */
            s->capture->invalid = true;
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        struct sim_act act = {.kind = op.kind, .work = w, .ctx = op.kind == CU_GRAPH_NODE_TYPE_KERNEL ? sim_launch_context(&op) : s->ctx};
        if (!r)
            r = sim_capture_add(s, act, NULL);
        if (!r)
            sim_work_ref(w); /* ours is let go below, outside the lock */
    } else if (!r) {
        if (s->legacy)
            sim_capture_implicit(s->ctx, &r);
        if (!r) {
            sim_work_ref(w);
            r = wait ? sim_submit_now(s, w, &t, &now) : sim_submit(s, w, NULL, 0, NULL);
        }
    }
    sim_give();
    sim_work_drop(w);
    if (r || captured || !wait)
        return r;
    if (now)
        sim_task_run(t);
    else
        sim_task_wait(t);
    sim_task_drop(t);
    return (CUresult)atomic_load(&ctx->sticky);
}

CUresult sim_enqueue(CUstream stream, bool ptsz, struct sim_op op)
{
    return enqueue(stream, ptsz, op, (struct sim_demand){0}, false);
}

CUresult sim_enqueue_wait(CUstream stream, bool ptsz, struct sim_op op)
{
    return enqueue(stream, ptsz, op, (struct sim_demand){0}, true);
}

CUresult sim_enqueue_timed(CUstream stream, bool ptsz, struct sim_op op, struct sim_demand demand, bool wait)
{
    return enqueue(stream, ptsz, op, demand, wait);
}

/* ---- entries */

static CUresult begin(CUstream handle, bool pt, CUstreamCaptureMode mode, CUgraph into, const CUgraphNode *needs,
                      const CUgraphEdgeData *edges, size_t count)
{
    CUcontext ctx;
    CUstream s;
    struct sim_thread *me = sim_self();
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!me || (unsigned)mode > CU_STREAM_CAPTURE_MODE_RELAXED || (count && !needs))
        return CUDA_ERROR_INVALID_VALUE;
    struct sim_capture *c = calloc(1, sizeof *c);
    if (!c)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    if (!r && s->legacy)
        r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!r && s->capture)
        r = CUDA_ERROR_ILLEGAL_STATE;
    if (!r && into && !sim_graph_of(into))
        r = CUDA_ERROR_INVALID_VALUE;
    for (struct sim_capture *o = sim_captures; !r && into && o; o = o->next)
        if (o->graph == into)
            r = CUDA_ERROR_INVALID_VALUE; /* two captures would write one graph */
    for (size_t i = 0; !r && i < count; i++) {
        CUgraphNode n = sim_node_of(needs[i]);
        if (!n || n->graph != into || (edges && !sim_edge_ok(&edges[i], n->act.kind, CU_GRAPH_NODE_TYPE_KERNEL)))
            r = CUDA_ERROR_INVALID_VALUE;
    }
    if (!r && !sim_tips_set(s, needs, edges, (unsigned)count))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && !(c->graph = into ? into : sim_graph_new())) {
        leave_capture(s);
        r = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (r) {
        free(c);
    } else {
        c->borrowed = into != NULL;
        c->origin = s;
        c->mode = mode;
        c->thread = me->id;
        c->id = sim_unique();
        c->next = sim_captures;
        sim_captures = c;
        s->capture = c;
    }
    sim_give();
    return r;
}

/* Is what every stream of the capture has reached needed by what the origin has reached? A node counts for a stream as long as
 * the stream's next one would depend on it: what cuStreamUpdateCaptureDependencies took away does not. */
static CUresult joined(const struct sim_capture *c)
{
    uint64_t mark = sim_unique();
    unsigned n = 0;
    CUgraphNode *todo = malloc((c->graph->count + 1) * sizeof *todo);
    if (!todo)
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < c->origin->tip_count; i++)
        if (c->origin->tips[i]->mark != mark) {
            c->origin->tips[i]->mark = mark;
            todo[n++] = c->origin->tips[i];
        }
    while (n) {
        CUgraphNode node = todo[--n];
        for (unsigned i = 0; i < node->needed; i++)
            if (node->needs[i]->mark != mark) {
                node->needs[i]->mark = mark;
                todo[n++] = node->needs[i];
            }
    }
    free(todo);
    for (CUstream s = c->origin->ctx->streams; s; s = s->next)
        for (unsigned i = 0; s->capture == c && i < s->tip_count; i++)
            if (s->tips[i]->mark != mark)
                return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    return CUDA_SUCCESS;
}

static CUresult end(CUstream handle, bool pt, CUgraph *out)
{
    CUcontext ctx;
    CUstream s;
    struct sim_thread *me = sim_self();
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!out || !me)
        return CUDA_ERROR_INVALID_VALUE;
    *out = NULL;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    struct sim_capture *c = r ? NULL : s->capture;
    if (!r && !c)
        r = CUDA_ERROR_ILLEGAL_STATE;
    if (!r && c->origin != s)
        r = CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (!r && c->mode != CU_STREAM_CAPTURE_MODE_RELAXED && c->thread != me->id)
        r = CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    if (!r) {
        r = c->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : joined(c);
        if (!r)
            *out = c->graph;
        else if (c->graph && !c->borrowed)
            leave(c->graph);
        capture_end(c);
    }
    sim_give();
    free_left();
    return r;
}

static CUresult info(CUstream handle, bool pt, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                     const CUgraphNode **deps, const CUgraphEdgeData **edges, size_t *count)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (!status || (edges && !deps))
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    if (!r && s->legacy) /* asking does not invalidate */
        for (CUstream o = s->ctx->streams; o; o = o->next)
            if (o->capture && !(o->flags & CU_STREAM_NON_BLOCKING))
                r = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (!r) {
        struct sim_capture *c = s->capture;
        *status = !c ? CU_STREAM_CAPTURE_STATUS_NONE
                  : c->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        bool active = c && !c->invalid;
        if (id && active)
            *id = c->id;
        if (graph)
            *graph = active ? c->graph : NULL;
        if (deps)
            *deps = active ? s->tips : NULL;
        if (edges)
            *edges = active ? s->tip_edges : NULL;
        for (unsigned i = 0; deps && !edges && active && i < s->tip_count; i++)
            if (!sim_edge_plain(&s->tip_edges[i]))
                r = CUDA_ERROR_LOSSY_QUERY;
        if (count)
            *count = active ? s->tip_count : 0;
    }
    sim_give();
    return r;
}

static CUresult update(CUstream handle, bool pt, const CUgraphNode *nodes, const CUgraphEdgeData *edges, size_t count, unsigned flags)
{
    CUcontext ctx;
    CUstream s;
    CUresult r = sim_current(&ctx);
    if (r)
        return r;
    if (flags > CU_STREAM_SET_CAPTURE_DEPENDENCIES || (count && !nodes))
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    r = sim_stream_find(handle, pt, &s);
    if (!r && !s->capture)
        r = CUDA_ERROR_ILLEGAL_STATE;
    if (!r && s->capture->invalid)
        r = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    for (size_t i = 0; !r && i < count; i++) {
        CUgraphNode n = sim_node_of(nodes[i]);
        if (!n || n->graph != s->capture->graph || (edges && !sim_edge_ok(&edges[i], n->act.kind, CU_GRAPH_NODE_TYPE_KERNEL)))
            r = CUDA_ERROR_INVALID_VALUE;
    }
    if (!r && !(flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES ? sim_tips_set : sim_tips_add)(s, nodes, edges, (unsigned)count))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    sim_give();
    return r;
}

SIM_API CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
    SIM_ENTRY();
    struct sim_thread *t = sim_self();
    if (!mode || !t || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
        return CUDA_ERROR_INVALID_VALUE;
    CUstreamCaptureMode before = t->capture_mode;
    t->capture_mode = *mode;
    *mode = before;
    return CUDA_SUCCESS;
}

/* Each entry twice: default stream of the context, and of the thread. */
#define CAPTURE_ENTRIES(suffix, pt) \
    SIM_API CUresult cuStreamBeginCapture##suffix(CUstream s) \
    { SIM_ENTRY(); return begin(s, pt, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL, NULL, NULL, 0); } \
    SIM_API CUresult cuStreamBeginCapture_v2##suffix(CUstream s, CUstreamCaptureMode mode) \
    { SIM_ENTRY(); return begin(s, pt, mode, NULL, NULL, NULL, 0); } \
    SIM_API CUresult cuStreamBeginCaptureToGraph##suffix(CUstream s, CUgraph graph, const CUgraphNode *deps, \
                                                         const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode) \
    { SIM_ENTRY(); return graph ? begin(s, pt, mode, graph, deps, edges, count) : CUDA_ERROR_INVALID_VALUE; } \
    SIM_API CUresult cuStreamEndCapture##suffix(CUstream s, CUgraph *graph) \
    { SIM_ENTRY(); return end(s, pt, graph); } \
    SIM_API CUresult cuStreamIsCapturing##suffix(CUstream s, CUstreamCaptureStatus *status) \
    { SIM_ENTRY(); return info(s, pt, status, NULL, NULL, NULL, NULL, NULL); } \
    SIM_API CUresult cuStreamGetCaptureInfo##suffix(CUstream s, CUstreamCaptureStatus *status, cuuint64_t *id) \
    { SIM_ENTRY(); return info(s, pt, status, id, NULL, NULL, NULL, NULL); } \
    SIM_API CUresult cuStreamGetCaptureInfo_v2##suffix(CUstream s, CUstreamCaptureStatus *status, cuuint64_t *id, \
                                                       CUgraph *graph, const CUgraphNode **deps, size_t *count) \
    { SIM_ENTRY(); return info(s, pt, status, id, graph, deps, NULL, count); } \
    SIM_API CUresult cuStreamGetCaptureInfo_v3##suffix(CUstream s, CUstreamCaptureStatus *status, cuuint64_t *id, \
                                                       CUgraph *graph, const CUgraphNode **deps, \
                                                       const CUgraphEdgeData **edges, size_t *count) \
    { SIM_ENTRY(); return info(s, pt, status, id, graph, deps, edges, count); } \
    SIM_API CUresult cuStreamUpdateCaptureDependencies##suffix(CUstream s, CUgraphNode *deps, size_t count, unsigned flags) \
    { SIM_ENTRY(); return update(s, pt, deps, NULL, count, flags); } \
    SIM_API CUresult cuStreamUpdateCaptureDependencies_v2##suffix(CUstream s, CUgraphNode *deps, const CUgraphEdgeData *edges, \
                                                                  size_t count, unsigned flags) \
    { SIM_ENTRY(); return update(s, pt, deps, edges, count, flags); }
CAPTURE_ENTRIES(, false)
CAPTURE_ENTRIES(_ptsz, true)
