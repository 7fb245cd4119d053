/* SPDX-License-Identifier: Apache-2.0 */
/* Stream capture, and sim_enqueue, where an operation becomes either a task or a graph node.
 * Called by every stream-ordered entry. Source of the rules: cuda.h at cuStreamBeginCapture,
 * cuThreadExchangeStreamCaptureMode and the CUDA_ERROR_STREAM_CAPTURE_* codes.
 */
#include "graph.h"

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

static void leave_capture(CUstream s)
{
    s->capture = NULL;
    free(s->tips);
    s->tips = NULL;
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
    if (c->origin == s)
        capture_end(c);
    else
        leave_capture(s);
}

/* ---- the nodes that the next operation of a stream depends on */

bool sim_tips_set(CUstream s, CUgraphNode const *nodes, unsigned count)
{
    CUgraphNode *copy = malloc((count ? count : 1) * sizeof *copy);
    if (!copy)
        return false;
    if (count)
        memcpy(copy, nodes, count * sizeof *copy);
    free(s->tips);
    s->tips = copy;
    s->tip_count = count;
    return true;
}

bool sim_tips_add(CUstream s, CUgraphNode const *nodes, unsigned count)
{
    CUgraphNode *all = realloc(s->tips, (s->tip_count + count + 1) * sizeof *all);
    if (!all)
        return false;
    s->tips = all;
    for (unsigned i = 0; i < count; i++) {
        bool have = false;
        for (unsigned k = 0; k < s->tip_count; k++)
            have |= all[k] == nodes[i];
        if (!have)
            all[s->tip_count++] = nodes[i];
    }
    return true;
}

CUresult sim_capture_empty(CUstream s, CUgraphNodeType kind)
{
    CUgraphNode node;
    if (s->capture->invalid)
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    CUresult r = sim_graph_add(s->capture->graph, kind, NULL, s->tips, s->tip_count, &node);
    return !r && !sim_tips_set(s, &node, 1) ? CUDA_ERROR_OUT_OF_MEMORY : r;
}

/* ---- the way in */

static CUresult enqueue(CUstream handle, bool ptsz, struct sim_op op, bool wait)
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
    sim_take();
    r = sim_stream_find(handle, ptsz, &s);
    if (!r && s->capture) {
        captured = true;
        CUgraphNode node;
        r = s->capture->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
        if (!r && op.kind == SIM_OP_CALLBACK) { /* cuda.h, cuStreamAddCallback: not supported in captures */
            s->capture->invalid = true;
            r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        if (!r) {
            sim_work_ref(w); /* ours is let go below, outside the lock */
            r = sim_graph_add(s->capture->graph, op.kind, w, s->tips, s->tip_count, &node);
        }
        if (!r && !sim_tips_set(s, &node, 1))
            r = CUDA_ERROR_OUT_OF_MEMORY;
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
    return enqueue(stream, ptsz, op, false);
}

CUresult sim_enqueue_wait(CUstream stream, bool ptsz, struct sim_op op)
{
    return enqueue(stream, ptsz, op, true);
}

/* ---- entries */

static CUresult begin(CUstream handle, bool pt, CUstreamCaptureMode mode, CUgraph into, const CUgraphNode *needs, size_t count)
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
    if (!r && into && !sim_object(SIM_GRAPH, (uint64_t)(uintptr_t)into))
        r = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < count; i++) {
        CUgraphNode n = sim_object(SIM_NODE, (uint64_t)(uintptr_t)needs[i]);
        if (!n || n->graph != into)
            r = CUDA_ERROR_INVALID_VALUE;
    }
    if (!r) {
        c->graph = into ? into : sim_graph_new();
        if (!c->graph || !sim_tips_set(s, needs, (unsigned)count))
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

/* Is every tip of `s` an ancestor of (or among) the tips of the origin? */
static void mark_ancestors(CUgraphNode n, unsigned mark)
{
    if (n->mark == mark)
        return;
    n->mark = mark;
    for (unsigned i = 0; i < n->needed; i++)
        mark_ancestors(n->needs[i], mark);
}

static bool joined(const struct sim_capture *c)
{
    static unsigned mark;
    mark++;
    for (unsigned i = 0; i < c->origin->tip_count; i++)
        mark_ancestors(c->origin->tips[i], mark);
    for (CUstream s = c->origin->ctx->streams; s; s = s->next)
        for (unsigned i = 0; s->capture == c && i < s->tip_count; i++)
            if (s->tips[i]->mark != mark)
                return false;
    return true;
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
    CUgraph waste = NULL;
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
        if (c->invalid)
            r = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        else if (!joined(c))
            r = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
        if (!r)
            *out = c->graph;
        else if (!c->borrowed)
            waste = c->graph;
        capture_end(c);
    }
    sim_give();
    if (waste)
        cuGraphDestroy(waste);
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
    if (!status)
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
            *edges = NULL; /* all edges are plain */
        if (count)
            *count = active ? s->tip_count : 0;
    }
    sim_give();
    return r;
}

static CUresult update(CUstream handle, bool pt, const CUgraphNode *nodes, size_t count, unsigned flags)
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
    for (size_t i = 0; !r && i < count; i++) {
        CUgraphNode n = sim_object(SIM_NODE, (uint64_t)(uintptr_t)nodes[i]);
        if (!n || n->graph != s->capture->graph)
            r = CUDA_ERROR_INVALID_VALUE;
    }
    if (!r && !(flags == CU_STREAM_SET_CAPTURE_DEPENDENCIES ? sim_tips_set : sim_tips_add)(s, nodes, (unsigned)count))
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
    { SIM_ENTRY(); return begin(s, pt, CU_STREAM_CAPTURE_MODE_GLOBAL, NULL, NULL, 0); } \
    SIM_API CUresult cuStreamBeginCapture_v2##suffix(CUstream s, CUstreamCaptureMode mode) \
    { SIM_ENTRY(); return begin(s, pt, mode, NULL, NULL, 0); } \
    SIM_API CUresult cuStreamBeginCaptureToGraph##suffix(CUstream s, CUgraph graph, const CUgraphNode *deps, \
                                                         const CUgraphEdgeData *edges, size_t count, CUstreamCaptureMode mode) \
    { SIM_ENTRY(); (void)edges; return graph ? begin(s, pt, mode, graph, deps, count) : CUDA_ERROR_INVALID_VALUE; } \
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
    { SIM_ENTRY(); return update(s, pt, deps, count, flags); } \
    SIM_API CUresult cuStreamUpdateCaptureDependencies_v2##suffix(CUstream s, CUgraphNode *deps, const CUgraphEdgeData *edges, \
                                                                  size_t count, unsigned flags) \
    { SIM_ENTRY(); (void)edges; return update(s, pt, deps, count, flags); }
CAPTURE_ENTRIES(, false)
CAPTURE_ENTRIES(_ptsz, true)
