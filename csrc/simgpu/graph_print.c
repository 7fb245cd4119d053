/* SPDX-License-Identifier: Apache-2.0 */
/* cuGraphDebugDotPrint: a graph as a file for Graphviz. Called by applications.
 * Rules: what the file says besides its nodes and edges is nobody's contract, so flags choose nothing but handles.
 */
#include "graph.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const names[] = {"KERNEL", "MEMCPY", "MEMSET", "HOST", "GRAPH", "EMPTY", "EVENT_WAIT", "EVENT_RECORD",
                                    "EXT_SEMAS_SIGNAL", "EXT_SEMAS_WAIT", "MEM_ALLOC", "MEM_FREE", "BATCH_MEM_OP", "CONDITIONAL"};

/* [locked] */
static void print(FILE *f, CUgraph g, bool handles)
{
    fprintf(f, "subgraph cluster_%llu {\nlabel=\"graph_%llu\"\n", (unsigned long long)g->id, (unsigned long long)g->id);
    for (unsigned i = 0; i < g->count; i++) {
        CUgraphNode n = g->nodes[i];
        fprintf(f, "\"graph_%llu_node_%u\" [label=\"%u %s", (unsigned long long)g->id, n->id, n->id, names[n->act.kind]);
        if (handles)
            fprintf(f, "\\n%p", (void *)n);
        fprintf(f, "\"];\n");
        for (unsigned k = 0; k < n->needed; k++)
            fprintf(f, "\"graph_%llu_node_%u\" -> \"graph_%llu_node_%u\";\n", (unsigned long long)g->id, n->needs[k]->id,
                    (unsigned long long)g->id, n->id);
        if (n->child)
            print(f, n->child, handles);
    }
    fprintf(f, "}\n");
}

SIM_API CUresult cuGraphDebugDotPrint(CUgraph hGraph, const char *path, unsigned int flags)
{
    SIM_ENTRY();
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    char *text = NULL;
    size_t size = 0;
    FILE *memory = open_memstream(&text, &size); /* nothing is written to a file while the lock is held */
    if (!memory)
        return CUDA_ERROR_OUT_OF_MEMORY;
    sim_take();
    CUgraph g = sim_graph_of(hGraph);
    fprintf(memory, "digraph dot {\n");
    if (g)
        print(memory, g, flags & CU_GRAPH_DEBUG_DOT_FLAGS_HANDLES);
    fprintf(memory, "}\n");
    sim_give();
    bool whole = !fclose(memory);
    FILE *f = g && whole ? fopen(path, "w") : NULL;
    CUresult r = !g ? CUDA_ERROR_INVALID_VALUE : !whole ? CUDA_ERROR_OUT_OF_MEMORY : f ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
    if (f) {
        bool written = fwrite(text, 1, size, f) == size;
        if (fclose(f) || !written)
            r = CUDA_ERROR_OPERATING_SYSTEM;
    }
    free(text);
    return r;
}
