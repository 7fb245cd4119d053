/* SPDX-License-Identifier: Apache-2.0 */
/* User objects: things of the application that graphs keep alive. Called by applications, graph.c and graph_program.c.
 * Rules (cuda.h, cuUserObjectCreate; Programming Guide, CUDA user objects): a graph's references are its own; clones and
 * executables get references like them, a launch under way holds its program and so these. The destructor is called on a thread
 * of the driver once the last reference is gone, never on one that is inside a call of the application.
 */
#define _GNU_SOURCE
#include "graph.h"

#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>

struct CUuserObject_st {
    CUhostFn destroy;
    void *ptr;
    unsigned long long refs; /* of the application and of graphs; [locked] */
    unsigned long long mine; /* of the application */
};

static CUuserObject object_of(CUuserObject o) { return sim_object(SIM_USER_OBJECT, (uint64_t)(uintptr_t)o); }

static void *destroy(void *arg)
{
    CUuserObject o = arg;
    prctl(PR_SET_NAME, "simgpu-object");
    o->destroy(o->ptr);
    free(o);
    return NULL;
}

/* No lock held; nobody can name it any more. */
static void bury(CUuserObject o)
{
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t every, old;
    sigfillset(&every); /* the app's signals belong to the app's threads */
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &every, &old);
    int r = pthread_create(&thread, &attr, destroy, o);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (r)
        destroy(o);
}

/* [locked] True: that was the last one, and the object is the caller's to bury. */
static bool let_go(CUuserObject o, unsigned long long count)
{
    o->refs -= count;
    if (o->refs)
        return false;
    sim_object_drop(SIM_USER_OBJECT, (uint64_t)(uintptr_t)o);
    return true;
}

bool sim_user_refs_copy(const struct sim_user_ref *from, struct sim_user_ref **to)
{
    for (; from; from = from->next) {
        struct sim_user_ref *r = malloc(sizeof *r);
        if (!r)
            return false;
        *r = (struct sim_user_ref){*to, from->object, from->count};
        from->object->refs += from->count;
        *to = r;
    }
    return true;
}

void sim_user_refs_drop(struct sim_user_ref *refs)
{
    while (refs) {
        struct sim_user_ref *next = refs->next;
        sim_take();
        bool last = let_go(refs->object, refs->count);
        sim_give();
        if (last)
            bury(refs->object);
        free(refs);
        refs = next;
    }
}

SIM_API CUresult cuUserObjectCreate(CUuserObject *object_out, void *ptr, CUhostFn fn, unsigned int initialRefcount, unsigned int flags)
{
    SIM_ENTRY();
    if (!object_out || !fn || !initialRefcount || initialRefcount > INT_MAX || flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
        return CUDA_ERROR_INVALID_VALUE;
    CUuserObject o = malloc(sizeof *o);
    if (!o)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *o = (struct CUuserObject_st){fn, ptr, initialRefcount, initialRefcount};
    sim_take();
    bool ok = sim_object_add(SIM_USER_OBJECT, (uint64_t)(uintptr_t)o, o);
    sim_give();
    if (!ok) {
        free(o);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *object_out = o;
    return CUDA_SUCCESS;
}

SIM_API CUresult cuUserObjectRetain(CUuserObject object, unsigned int count)
{
    SIM_ENTRY();
    sim_take();
    CUuserObject o = count && count <= INT_MAX ? object_of(object) : NULL;
    if (o) {
        o->refs += count;
        o->mine += count;
    }
    sim_give();
    return o ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuUserObjectRelease(CUuserObject object, unsigned int count)
{
    SIM_ENTRY();
    bool last = false;
    sim_take();
    CUuserObject o = count && count <= INT_MAX ? object_of(object) : NULL;
    if (o && o->mine < count)
        o = NULL; /* undefined there; refused here */
    if (o) {
        o->mine -= count;
        last = let_go(o, count);
    }
    sim_give();
    if (last)
        bury(o);
    return o ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

SIM_API CUresult cuGraphRetainUserObject(CUgraph graph, CUuserObject object, unsigned int count, unsigned int flags)
{
    SIM_ENTRY();
    if (!count || count > INT_MAX || flags & ~(unsigned)CU_GRAPH_USER_OBJECT_MOVE)
        return CUDA_ERROR_INVALID_VALUE;
    CUresult r = CUDA_SUCCESS;
    sim_take();
    CUgraph g = sim_graph_of(graph);
    CUuserObject o = object_of(object);
    bool move = flags & CU_GRAPH_USER_OBJECT_MOVE;
    struct sim_user_ref *ref = g ? g->objects : NULL;
    if (!g || !o || (move && o->mine < count)) {
        r = CUDA_ERROR_INVALID_VALUE;
    } else {
        while (ref && ref->object != o)
            ref = ref->next;
        if (!ref && (ref = calloc(1, sizeof *ref))) {
            *ref = (struct sim_user_ref){g->objects, o, 0};
            g->objects = ref;
        }
        if (!ref)
            r = CUDA_ERROR_OUT_OF_MEMORY;
        else if (ref->count > UINT_MAX - count)
            r = CUDA_ERROR_INVALID_VALUE;
        else {
            ref->count += count;
            *(move ? &o->mine : &o->refs) += move ? -(unsigned long long)count : count;
        }
    }
    sim_give();
    return r;
}

SIM_API CUresult cuGraphReleaseUserObject(CUgraph graph, CUuserObject object, unsigned int count)
{
    SIM_ENTRY();
    bool last = false;
    CUresult r = CUDA_ERROR_INVALID_VALUE;
    sim_take();
    CUgraph g = count && count <= INT_MAX ? sim_graph_of(graph) : NULL;
    CUuserObject o = object_of(object);
    for (struct sim_user_ref **p = g ? &g->objects : NULL; p && *p; p = &(*p)->next)
        if ((*p)->object == o && (*p)->count >= count) {
            struct sim_user_ref *ref = *p;
            r = CUDA_SUCCESS;
            if (!(ref->count -= count)) {
                *p = ref->next;
                free(ref);
            }
            last = let_go(o, count);
            break;
        }
    sim_give();
    if (last)
        bury(o);
    return r;
}
