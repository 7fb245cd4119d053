/* SPDX-License-Identifier: Apache-2.0 */
/* Programs: graphs as they were when they were instantiated or updated. Called by graph_exec.c, graph_update.c, capture.c.
 * Rules: a program is never changed once an executable or a launch has it; a change makes another one, which shares the
 * acts. Slots stand in an order that respects the edges and keeps the edges' own order. Programs are dropped with no lock
 * held: that may end a module, which takes it.
 */
#include "graph.h"

#include <stdlib.h>
#include <string.h>

void sim_program_hold(struct sim_program *p)
{
    atomic_fetch_add(&p->refs, 1);
}

void sim_program_drop(struct sim_program *p)
{
    if (!p || atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < p->count; i++) {
        struct sim_slot *s = &p->slots[i];
        sim_act_drop(&s->act);
        sim_program_drop(s->child);
        free(s->needs);
        free(s->edges);
    }
    sim_user_refs_drop(p->objects);
    free(p->slots);
    free(p);
}

static struct sim_program *program_make(unsigned room)
{
    struct sim_program *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    atomic_init(&p->refs, 1);
    if (!(p->slots = calloc(room ? room : 1, sizeof *p->slots))) {
        free(p);
        return NULL;
    }
    return p;
}

static bool needs_room(struct sim_slot *s, unsigned needed)
{
    s->needed = needed;
    s->needs = malloc((needed ? needed : 1) * sizeof *s->needs);
    s->edges = calloc(needed ? needed : 1, sizeof *s->edges);
    return s->needs && s->edges;
}

/* Fill the next slot from a node whose needs have theirs. */
static CUresult fill(struct sim_program *p, CUgraphNode n, CUgraphNode *bad)
{
    struct sim_slot *s = &p->slots[p->count++];
    s->node = n;
    s->unique = n->unique;
    s->act = n->act;
    s->sink = true;
    sim_act_hold(&s->act);
    s->operand_count = sim_act_operands(&s->act, s->operands);
    p->total++;
    if (!needs_room(s, n->needed))
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned k = 0; k < n->needed; k++) {
        s->needs[k] = n->needs[k]->slot;
        s->edges[k] = n->edges[k];
        p->slots[s->needs[k]].sink = false;
    }
    CUresult r = n->child ? sim_program_new(n->child, &s->child, bad) : CUDA_SUCCESS;
    if (!r && s->child)
        p->total += s->child->total;
    return r;
}

CUresult sim_program_new(CUgraph g, struct sim_program **out, CUgraphNode *bad)
{
    struct sim_program *p = program_make(g->count);
    CUgraphNode *order = malloc((g->count ? g->count : 1) * sizeof *order);
    CUresult r = p && order ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && !sim_user_refs_copy(g->objects, &p->objects))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (!r && !sim_graph_order(g, order, bad))
        r = CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; !r && i < g->count; i++)
        r = fill(p, order[i], bad);
    for (unsigned i = 0; !r && i < g->count; i++)
        p->slots[g->nodes[i]->slot].rank = i;
    free(order);
    *out = p; /* also on failure: it has to be dropped where no lock is held */
    return r;
}

struct sim_program *sim_program_copy(const struct sim_program *p)
{
    struct sim_program *copy = program_make(p->count);
    bool ok = copy && sim_user_refs_copy(p->objects, &copy->objects);
    for (unsigned i = 0; ok && i < p->count; i++) {
        const struct sim_slot *from = &p->slots[i];
        struct sim_slot *to = &copy->slots[copy->count++];
        *to = *from;
        sim_act_hold(&to->act);
        if (to->child)
            sim_program_hold(to->child);
        ok = needs_room(to, from->needed);
        if (ok && from->needed) {
            memcpy(to->needs, from->needs, from->needed * sizeof *to->needs);
            memcpy(to->edges, from->edges, from->needed * sizeof *to->edges);
        }
    }
    if (ok)
        copy->total = p->total;
    else if (copy) { /* every act has another holder: nothing ends here */
        sim_program_drop(copy);
        copy = NULL;
    }
    return copy;
}

void sim_program_each(struct sim_program *p, void (*visit)(struct sim_slot *s, void *arg), void *arg)
{
    for (unsigned i = 0; i < p->count; i++) {
        if (p->slots[i].child)
            sim_program_each(p->slots[i].child, visit, arg);
        visit(&p->slots[i], arg);
    }
}

CUresult sim_program_graph(const struct sim_program *p, CUgraph *out)
{
    CUgraph g = sim_graph_new();
    *out = g;
    if (!g)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!sim_user_refs_copy(p->objects, &g->objects))
        return CUDA_ERROR_OUT_OF_MEMORY;
    for (unsigned i = 0; i < p->count; i++) {
        const struct sim_slot *s = &p->slots[i];
        CUgraphNode *needs = malloc((s->needed ? s->needed : 1) * sizeof *needs), n;
        for (unsigned k = 0; needs && k < s->needed; k++)
            needs[k] = g->nodes[s->needs[k]];
        struct sim_act act = s->disabled ? (struct sim_act){.kind = CU_GRAPH_NODE_TYPE_EMPTY} : s->act;
        sim_act_hold(&act);
        CUresult r = needs ? sim_graph_add(g, act, needs, s->edges, s->needed, &n) : CUDA_ERROR_OUT_OF_MEMORY;
        free(needs);
        if (r) {
            sim_act_drop(&act); /* the program still holds it */
            return r;
        }
        if (s->child && (r = sim_program_graph(s->child, &n->child)))
            return r;
        if (n->child)
            n->child->parent = n;
    }
    return CUDA_SUCCESS;
}
