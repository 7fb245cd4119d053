/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: nodes, edges, clones. Called by applications and by capture.c; what nodes do is graph_params.c, node entries are
 * graph_nodes.c, executables graph_exec.c.
 * Rules: edges keep the order in which they were made, because updates pair graphs by it (cuda.h, cuGraphExecUpdate). A graph
 * with allocation or free nodes loses no node and no edge; one with these or conditional nodes is not cloned, and is
 * instantiated once at a time.
 */
#include "faults.h"
#include "graph.h"

#include <stdlib.h>
#include <string.h>

CUgraph sim_graph_of(CUgraph g) { return sim_object(SIM_GRAPH, (uint64_t)(uintptr_t)g); }
CUgraphNode sim_node_of(CUgraphNode n) { return sim_object(SIM_NODE, (uint64_t)(uintptr_t)n); }

const struct sim_op *sim_act_op(const struct sim_act *a)
{
    return a->work ? sim_fault_inner(&a->work->op) : NULL;
}

void sim_act_hold(const struct sim_act *a)
{
    if (a->work)
        sim_work_ref(a->work);
    if (a->alloc)
        sim_graph_alloc_hold(a->alloc);
    sim_condition_hold(a->condition);
}

void sim_act_drop(const struct sim_act *a)
{
    sim_work_drop(a->work);
    sim_graph_alloc_drop(a->alloc);
    sim_condition_drop(a->condition);
}

CUgraph sim_graph_new(void)
{
    CUgraph g = calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->id = sim_unique();
    if (!sim_object_add(SIM_GRAPH, (uint64_t)(uintptr_t)g, g)) {
        free(g);
        return NULL;
    }
    return g;
}

static bool grow(CUgraph g)
{
    if (g->count < g->room)
        return true;
    unsigned room = g->room ? 2 * g->room : 16;
    CUgraphNode *grown = realloc(g->nodes, room * sizeof *grown);
    if (!grown)
        return false;
    g->nodes = grown;
    g->room = room;
    return true;
}

CUresult sim_graph_add(CUgraph g, struct sim_act act, CUgraphNode const *needs, const CUgraphEdgeData *edges, unsigned count,
                       CUgraphNode *out)
{
    CUgraphNode n = calloc(1, sizeof *n);
    CUgraphNode *from = malloc((count ? count : 1) * sizeof *from);
    CUgraphEdgeData *data = calloc(count ? count : 1, sizeof *data);
    if (!n || !from || !data || !grow(g) || !sim_object_add(SIM_NODE, (uint64_t)(uintptr_t)n, n)) {
        free(n);
        free(from);
        free(data);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (count)
        memcpy(from, needs, count * sizeof *from);
    if (count && edges)
        memcpy(data, edges, count * sizeof *data);
    n->graph = g;
    n->act = act;
    n->needs = from;
    n->edges = data;
    n->needed = count;
    n->id = g->next_id++;
    n->unique = sim_unique();
    g->nodes[g->count++] = n;
    if (act.kind == CU_GRAPH_NODE_TYPE_MEM_ALLOC || act.kind == CU_GRAPH_NODE_TYPE_MEM_FREE)
        g->memory = true;
    *out = n;
    return CUDA_SUCCESS;
}

void sim_graph_forget(CUgraph g)
{
    sim_object_drop(SIM_GRAPH, (uint64_t)(uintptr_t)g);
    for (unsigned i = 0; i < g->count; i++) {
        sim_object_drop(SIM_NODE, (uint64_t)(uintptr_t)g->nodes[i]);
        if (g->nodes[i]->child)
            sim_graph_forget(g->nodes[i]->child);
    }
}

static void node_free(CUgraphNode n)
{
    sim_act_drop(&n->act);
    if (n->child)
        sim_graph_free(n->child);
    free(n->bodies);
    free(n->needs);
    free(n->edges);
    free(n->view);
    free(n);
}

void sim_graph_free(CUgraph g)
{
    for (unsigned i = 0; i < g->count; i++)
        node_free(g->nodes[i]);
    sim_conditions_drop(g->conditions);
    sim_user_refs_drop(g->objects);
    free(g->nodes);
    free(g);
}

CUresult sim_graph_clone(CUgraph g, CUgraph *out)
{
    CUgraph copy = sim_graph_new();
    CUresult r = copy ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && !sim_user_refs_copy(g->objects, &copy->objects))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r)
        copy->original = g->id;
    for (unsigned i = 0; !r && i < g->count; i++)
        g->nodes[i]->slot = i;
    for (unsigned i = 0; !r && i < g->count; i++) { /* first the nodes, because an edge may lead to a later one */
        CUgraphNode n = g->nodes[i], made;
        sim_act_hold(&n->act);
        r = sim_graph_add(copy, n->act, NULL, NULL, 0, &made);
        if (r) {
            sim_act_drop(&n->act); /* never the last holder: the node is another */
            break;
        }
        made->original = n->unique;
        if (n->child)
            r = sim_graph_clone(n->child, &made->child);
        if (!r && n->child)
            made->child->parent = made;
    }
    for (unsigned i = 0; !r && i < g->count; i++) {
        CUgraphNode n = g->nodes[i], made = copy->nodes[i];
        CUgraphNode *needs = realloc(made->needs, (n->needed ? n->needed : 1) * sizeof *needs);
        if (needs)
            made->needs = needs;
        CUgraphEdgeData *edges = realloc(made->edges, (n->needed ? n->needed : 1) * sizeof *edges);
        if (edges)
            made->edges = edges;
        if (!needs || !edges) {
            r = CUDA_ERROR_OUT_OF_MEMORY;
            break;
        }
        for (unsigned k = 0; k < n->needed; k++)
            made->needs[k] = copy->nodes[n->needs[k]->slot];
        if (n->needed)
            memcpy(made->edges, n->edges, n->needed * sizeof *edges);
        made->needed = n->needed;
    }
    *out = copy;
    return r;
}

bool sim_graph_order(CUgraph g, CUgraphNode *order, CUgraphNode *bad)
{
    uint64_t mark = sim_unique();
    unsigned done = 0;
    for (bool progress = true; done < g->count && progress;) {
        progress = false;
        for (unsigned i = 0; i < g->count; i++) {
            CUgraphNode n = g->nodes[i];
            bool free_to_go = n->mark != mark;
            for (unsigned k = 0; free_to_go && k < n->needed; k++)
                free_to_go = n->needs[k]->mark == mark;
            if (!free_to_go)
                continue;
            n->mark = mark;
            n->slot = done;
            order[done++] = n;
            progress = true;
        }
    }
    for (unsigned i = 0; done < g->count && i < g->count; i++)
        if (g->nodes[i]->mark != mark) { /* what still waits is on a circle or behind one */
            *bad = g->nodes[i];
            return false;
        }
    return true;
}

bool sim_edge_plain(const CUgraphEdgeData *e)
{
    static const CUgraphEdgeData plain;
    return !memcmp(e, &plain, sizeof plain);
}

/* cuda.h, CUgraphEdgeData: only kernel nodes have other ports, and only kernels understand programmatic edges. */
bool sim_edge_ok(const CUgraphEdgeData *e, CUgraphNodeType from, CUgraphNodeType to)
{
    for (unsigned i = 0; i < sizeof e->reserved; i++)
        if (e->reserved[i])
            return false;
    if (e->to_port || e->type > CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
        return false;
    if (e->from_port && (from != CU_GRAPH_NODE_TYPE_KERNEL || e->from_port > CU_GRAPH_KERNEL_NODE_PORT_LAUNCH_ORDER))
        return false;
    if (e->type == CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
        return from == CU_GRAPH_NODE_TYPE_KERNEL && to == CU_GRAPH_NODE_TYPE_KERNEL && e->from_port;
    return true;
}

SIM_API CUresult cuGraphCreate(CUgraph *phGraph, unsigned int flags)
{
    SIM_ENTRY();
    if (!phGraph || flags)
        return CUDA_ERROR_INVALID_VALUE;
    sim_take();
    *phGraph = sim_graph_new();
    sim_give();
    return *phGraph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

static bool captured_into(CUgraph g)
{
    for (struct sim_capture *c = sim_captures; c; c = c->next)
        if (c->graph == g && !c->invalid)
            return true;
    return false;
}

SIM_API CUresult cuGraphDestroy(CUgraph hGraph)
{
    SIM_ENTRY();
    sim_take();
    CUgraph g = sim_graph_of(hGraph);
    if (g && (g->parent || captured_into(g)))
        g = NULL; /* a node owns it, or a capture still writes it */
    if (g) {
        for (struct sim_capture *c = sim_captures; c; c = c->next)
            if (c->graph == g)
                c->graph = NULL; /* an invalid one that is still to be ended */
        sim_graph_forget(g);
    }
    sim_give();
    if (!g)
        return CUDA_ERROR_INVALID_VALUE;
    sim_graph_free(g);
    return CUDA_SUCCESS;
}

SIM_API CUresult cuGraphClone(CUgraph *phGraphClone, CUgraph originalGraph)
{
    SIM_ENTRY();
    CUgraph copy = NULL;
    sim_take();
    CUgraph g = phGraphClone ? sim_graph_of(originalGraph) : NULL;
    CUresult r = !g || g->memory || g->conditional ? CUDA_ERROR_INVALID_VALUE : sim_graph_clone(g, &copy);
    if (r && copy)
        sim_graph_forget(copy);
    if (!r)
        *phGraphClone = copy;
    sim_give();
    if (r && copy)
        sim_graph_free(copy);
    return r;
}

SIM_API CUresult cuGraphNodeFindInClone(CUgraphNode *phNode, CUgraphNode hOriginalNode, CUgraph hClonedGraph)
{
    SIM_ENTRY();
    CUgraphNode found = NULL;
    sim_take();
    CUgraph g = phNode ? sim_graph_of(hClonedGraph) : NULL;
    CUgraphNode n = sim_node_of(hOriginalNode);
    for (unsigned i = 0; g && n && i < g->count; i++)
        if (g->nodes[i]->original == n->unique)
            found = g->nodes[i];
    if (found)
        *phNode = found;
    sim_give();
    return found ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphDestroyNode(CUgraphNode hNode)
{
    SIM_ENTRY();
    sim_take();
    CUgraphNode n = sim_node_of(hNode);
    if (n && (n->graph->memory || captured_into(n->graph)))
        n = NULL;
    if (n) {
        CUgraph g = n->graph;
        unsigned kept = 0;
        for (unsigned i = 0; i < g->count; i++) {
            CUgraphNode o = g->nodes[i];
            if (o == n)
                continue;
            unsigned needed = 0;
            for (unsigned k = 0; k < o->needed; k++)
                if (o->needs[k] != n) {
                    o->needs[needed] = o->needs[k];
                    o->edges[needed++] = o->edges[k];
                }
            o->needed = needed;
            g->nodes[kept++] = o;
        }
        g->count = kept;
        sim_object_drop(SIM_NODE, (uint64_t)(uintptr_t)n);
        sim_condition_unuse(&n->act);
        if (n->child)
            sim_graph_forget(n->child);
    }
    sim_give();
    if (!n)
        return CUDA_ERROR_INVALID_VALUE;
    node_free(n);
    return CUDA_SUCCESS;
}

/* ---- topology: a NULL array asks for the number, else up to *count are written and the rest is NULL */

static CUresult list(CUgraph handle, CUgraphNode *nodes, size_t *count, bool roots)
{
    sim_take();
    CUgraph g = count ? sim_graph_of(handle) : NULL;
    if (g) {
        size_t n = 0;
        for (unsigned i = 0; i < g->count; i++) {
            if (roots && g->nodes[i]->needed)
                continue;
            if (nodes && n < *count)
                nodes[n] = g->nodes[i];
            n++;
        }
        for (size_t i = n; nodes && i < *count; i++)
            nodes[i] = NULL;
        *count = nodes && n > *count ? *count : n;
    }
    sim_give();
    return g ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphGetNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *numNodes)
{
    SIM_ENTRY();
    return list(hGraph, nodes, numNodes, false);
}

SIM_API CUresult cuGraphGetRootNodes(CUgraph hGraph, CUgraphNode *rootNodes, size_t *numRootNodes)
{
    SIM_ENTRY();
    return list(hGraph, rootNodes, numRootNodes, true);
}

/* Where the answers of one topology query go. Edge data that nobody asked for is lost: LOSSY_QUERY. */
struct answer {
    CUgraphNode *from, *to;
    CUgraphEdgeData *data;
    size_t room, found;
    bool lost;
};

static void tell(struct answer *a, CUgraphNode to, unsigned k)
{
    if (a->found < a->room) {
        if (a->from)
            a->from[a->found] = to->needs[k];
        if (a->to)
            a->to[a->found] = to;
        if (a->data)
            a->data[a->found] = to->edges[k];
        else if (a->from || a->to)
            a->lost |= !sim_edge_plain(&to->edges[k]);
    }
    a->found++;
}

static CUresult told(struct answer *a, size_t *count)
{
    bool writes = a->from || a->to;
    for (size_t i = a->found; writes && i < a->room; i++) {
        if (a->from)
            a->from[i] = NULL;
        if (a->to)
            a->to[i] = NULL;
        if (a->data)
            memset(&a->data[i], 0, sizeof a->data[i]);
    }
    *count = writes && a->found > a->room ? a->room : a->found;
    return a->lost ? CUDA_ERROR_LOSSY_QUERY : CUDA_SUCCESS;
}

static CUresult edges(CUgraph handle, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *data, size_t *count)
{
    CUresult r = CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgraph g = count && !from == !to && (from || !data) ? sim_graph_of(handle) : NULL;
    if (g) {
        struct answer a = {from, to, data, from ? *count : 0, 0, false};
        for (unsigned i = 0; i < g->count; i++)
            for (unsigned k = 0; k < g->nodes[i]->needed; k++)
                tell(&a, g->nodes[i], k);
        r = told(&a, count);
    }
    sim_give();
    return r;
}

SIM_API CUresult cuGraphGetEdges(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, size_t *numEdges)
{
    SIM_ENTRY();
    return edges(hGraph, from, to, NULL, numEdges);
}

SIM_API CUresult cuGraphGetEdges_v2(CUgraph hGraph, CUgraphNode *from, CUgraphNode *to, CUgraphEdgeData *edgeData, size_t *numEdges)
{
    SIM_ENTRY();
    return edges(hGraph, from, to, edgeData, numEdges);
}

/* The nodes that one depends on, or that depend on it. */
static CUresult neighbours(CUgraphNode handle, CUgraphNode *out, CUgraphEdgeData *data, size_t *count, bool dependents)
{
    CUresult r = CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgraphNode n = count && (out || !data) ? sim_node_of(handle) : NULL;
    if (n) {
        struct answer a = {dependents ? NULL : out, dependents ? out : NULL, data, out ? *count : 0, 0, false};
        for (unsigned k = 0; !dependents && k < n->needed; k++)
            tell(&a, n, k);
        for (unsigned i = 0; dependents && i < n->graph->count; i++) {
            CUgraphNode o = n->graph->nodes[i];
            for (unsigned k = 0; k < o->needed; k++)
                if (o->needs[k] == n)
                    tell(&a, o, k);
        }
        r = told(&a, count);
    }
    sim_give();
    return r;
}

SIM_API CUresult cuGraphNodeGetDependencies(CUgraphNode hNode, CUgraphNode *dependencies, size_t *numDependencies)
{
    SIM_ENTRY();
    return neighbours(hNode, dependencies, NULL, numDependencies, false);
}

SIM_API CUresult cuGraphNodeGetDependencies_v2(CUgraphNode hNode, CUgraphNode *dependencies, CUgraphEdgeData *edgeData, size_t *numDependencies)
{
    SIM_ENTRY();
    return neighbours(hNode, dependencies, edgeData, numDependencies, false);
}

SIM_API CUresult cuGraphNodeGetDependentNodes(CUgraphNode hNode, CUgraphNode *dependentNodes, size_t *numDependentNodes)
{
    SIM_ENTRY();
    return neighbours(hNode, dependentNodes, NULL, numDependentNodes, true);
}

SIM_API CUresult cuGraphNodeGetDependentNodes_v2(CUgraphNode hNode, CUgraphNode *dependentNodes, CUgraphEdgeData *edgeData, size_t *numDependentNodes)
{
    SIM_ENTRY();
    return neighbours(hNode, dependentNodes, edgeData, numDependentNodes, true);
}

/* [locked] The place of the edge from `from` among the needs of `to`, or needed. */
static unsigned edge_between(CUgraphNode from, CUgraphNode to)
{
    unsigned k = 0;
    while (k < to->needed && to->needs[k] != from)
        k++;
    return k;
}

/* [locked] May these be edges of g? `data` NULL: plain. */
static CUresult check_edges(CUgraph g, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *data, size_t count)
{
    static const CUgraphEdgeData plain;
    if (!g || (count && (!from || !to)))
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        CUgraphNode a = sim_node_of(from[i]), b = sim_node_of(to[i]);
        const CUgraphEdgeData *e = data ? &data[i] : &plain;
        if (!a || !b || a == b || a->graph != g || b->graph != g || !sim_edge_ok(e, a->act.kind, b->act.kind))
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult independ(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *data, size_t count)
{
    sim_take();
    CUgraph g = sim_graph_of(handle);
    CUresult r = check_edges(g, from, to, data, count);
    if (!r && count && g->memory)
        r = CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; !r && i < count; i++) {
        static const CUgraphEdgeData plain;
        CUgraphNode n = to[i];
        unsigned k = edge_between(from[i], n);
        if (k == n->needed || memcmp(&n->edges[k], data ? &data[i] : &plain, sizeof plain)) {
            r = CUDA_ERROR_INVALID_VALUE; /* no such edge */
            break;
        }
        n->needed--;
        memmove(n->needs + k, n->needs + k + 1, (n->needed - k) * sizeof *n->needs);
        memmove(n->edges + k, n->edges + k + 1, (n->needed - k) * sizeof *n->edges);
    }
    sim_give();
    return r;
}

SIM_API CUresult cuGraphRemoveDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies)
{
    SIM_ENTRY();
    return independ(hGraph, from, to, NULL, numDependencies);
}

SIM_API CUresult cuGraphRemoveDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                              const CUgraphEdgeData *edgeData, size_t numDependencies)
{
    SIM_ENTRY();
    return independ(hGraph, from, to, edgeData, numDependencies);
}

static CUresult depend(CUgraph handle, const CUgraphNode *from, const CUgraphNode *to, const CUgraphEdgeData *data, size_t count)
{
    sim_take();
    CUgraph g = sim_graph_of(handle);
    CUresult r = check_edges(g, from, to, data, count);
    size_t made = 0;
    while (!r && made < count) {
        CUgraphNode n = to[made];
        if (edge_between(from[made], n) < n->needed) {
            r = CUDA_ERROR_INVALID_VALUE; /* an edge exists once */
            break;
        }
        CUgraphNode *needs = realloc(n->needs, (n->needed + 1) * sizeof *needs);
        if (needs)
            n->needs = needs;
        CUgraphEdgeData *grown = realloc(n->edges, (n->needed + 1) * sizeof *grown);
        if (grown)
            n->edges = grown;
        if (!needs || !grown) {
            r = CUDA_ERROR_OUT_OF_MEMORY;
            break;
        }
        n->edges[n->needed] = data ? data[made] : (CUgraphEdgeData){0};
        n->needs[n->needed++] = from[made++];
    }
    while (r && made) /* all or none */
        to[--made]->needed--;
    sim_give();
    return r;
}

SIM_API CUresult cuGraphAddDependencies(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, size_t numDependencies)
{
    SIM_ENTRY();
    return depend(hGraph, from, to, NULL, numDependencies);
}

SIM_API CUresult cuGraphAddDependencies_v2(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to,
                                           const CUgraphEdgeData *edgeData, size_t numDependencies)
{
    SIM_ENTRY();
    return depend(hGraph, from, to, edgeData, numDependencies);
}
