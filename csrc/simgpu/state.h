/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's own state: objects, the memory map, the task engine. Included by the driver's files except those that
 * only load and launch code (they need no more than sim.h).
 * Rules: one lock (sim_lock) guards all bookkeeping, and the task engine's own lock (sched.c) is taken inside it, never
 * the other way round; neither is held while an operation runs. Functions marked [locked] want sim_lock held.
 */
#ifndef SIM_STATE_H
#define SIM_STATE_H

#include "config.h"
#include "machine.h"
#include "sim.h"

#include <pthread.h>
#include <stdatomic.h>

extern pthread_mutex_t sim_lock;
static inline void sim_take(void) { pthread_mutex_lock(&sim_lock); }
static inline void sim_give(void) { pthread_mutex_unlock(&sim_lock); }

#define SIM_GRAN ((uint64_t)2 << 20) /* granularity of device memory, bytes */
static inline uint64_t sim_round(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* ---- live objects (object.c): a handle is valid while it is registered, so that a stale one is an error, not a crash */
enum sim_kind {
    SIM_CONTEXT = 1, SIM_STREAM, SIM_EVENT, SIM_GRAPH, SIM_EXEC, SIM_NODE, SIM_POOL, SIM_ARRAY, SIM_MIPMAP, SIM_HANDLE, SIM_USER_OBJECT,
    SIM_MODULE, SIM_FUNCTION, SIM_LIBRARY, SIM_KERNEL_HANDLE, SIM_LINK,
    SIM_CONDITION
};
bool sim_object_add(enum sim_kind kind, uint64_t key, void *object); /* [locked] false: out of memory */
void *sim_object(enum sim_kind kind, uint64_t key);                  /* [locked] NULL: not a live object of that kind */
void sim_object_drop(enum sim_kind kind, uint64_t key);              /* [locked] */
void sim_object_each(enum sim_kind kind, void (*visit)(void *object, void *arg), void *arg); /* [locked] */
uint64_t sim_unique(void); /* a number never given before in this process */

/* What bytes take at so many a second, in nanoseconds: with absurd rates three months at the most, which the clock can hold. */
static inline uint64_t sim_ns_at(uint64_t bytes, uint64_t rate)
{
    double ns = (double)bytes * 1e9 / (double)rate;
    return ns < 0x1p53 ? (uint64_t)ns : (uint64_t)1 << 53;
}

/* ---- host time (hosttime.c), simulated nanoseconds of the calling thread */
uint64_t sim_host_now(void);
/* This call, which changed mappings or pinned memory, costs so much. No lock held: SIMGPU_CLOCK=real sleeps here. */
void sim_host_spend(uint64_t ns);
void sim_host_meet_memory(void); /* not earlier than the end of the last such call, whichever thread made it */
void sim_host_reach(uint64_t ns); /* it is at least as late as that: something of that time was waited for or met */
uint64_t sim_real_ns(void);         /* the machine's clock, for SIMGPU_CLOCK=real */
void sim_real_until(uint64_t ns);   /* return then, or at once when that is over */

/* ---- tasks (sched.c) */
enum { SIM_WAY_IN = 1, SIM_WAY_OUT = 2 }; /* over the link: to the device, from it */
struct sim_demand { /* what an operation will last, where that is known when it is queued */
    bool known;
    unsigned way; /* SIM_WAY_*, or 0: not over the link */
    uint64_t ns;
};
struct sim_work { /* an operation shared by tasks and graph nodes; op.drop is called when the last holder lets go */
    atomic_int refs;
    struct sim_op op;
    struct sim_demand demand;
};
struct sim_work *sim_work_new(struct sim_op op); /* takes over op; NULL (op dropped): out of memory */
void sim_work_ref(struct sim_work *w);
void sim_work_drop(struct sim_work *w);

struct sim_edge { /* `task` waits for the task in whose list this is */
    struct sim_task *task;
    struct sim_edge *next;
};
struct sim_task {
    atomic_int refs;
    atomic_bool done;
    struct sim_work *work; /* NULL: only an order mark */
    CUstream stream;
    uint64_t submit_ns;    /* host time of its submission */
    uint64_t order;        /* of submission, over all streams */
    uint64_t end_ns;       /* simulated completion time, valid when done */
    /* under the engine's lock */
    bool known;                 /* end_ns is: since its submission, or because a host thread has waited for it */
    bool fixed;                 /* since its submission */
    struct sim_task *next;      /* of the stream's queue */
    struct sim_edge *followers; /* what waits for this one */
    struct sim_waiter *waiters; /* host threads that do */
    uint64_t start_ns;          /* not before: its submission, the ends of what it waited for */
    unsigned pending;           /* unfinished tasks that it waits for */
    struct sim_edge *edges, few[2]; /* its own places in their lists */
};
void sim_task_drop(struct sim_task *t);

struct CUstream_st {
    CUcontext ctx;
    unsigned flags;
    int priority;
    uint64_t id;
    bool legacy;      /* the context's legacy default stream */
    bool per_thread;  /* a thread's default stream */
    CUstream next;    /* of the same context */
    struct sim_capture *capture; /* [sim_lock] not NULL while capturing */
    CUgraphNode *tips;           /* [sim_lock] nodes that the next captured one depends on */
    CUgraphEdgeData *tip_edges;  /* [sim_lock] how */
    unsigned tip_count;
    bool retired;                /* [sim_lock] destroyed by the app, its work not known to be done */
    CUgreenCtx green;            /* [sim_lock] that it was made in; NULL: none */
    bool detached;               /* [sim_lock] that was destroyed: STREAM_DETACHED */
    CUstreamAttrValue *attributes; /* [sim_lock] stream_attr.c; NULL: all as at first */
    uint64_t reached_ns;         /* [sim_lock] host time of the newest submission; its making, before the first */
    /* under the engine's lock */
    struct sim_task *head, *tail; /* waiting */
    struct sim_task *last;        /* newest submitted, finished or not */
    uint64_t clock_ns;            /* end of the newest finished */
    bool busy, worker, asleep, closed;
    pthread_cond_t wake;
};

CUstream sim_stream_new(CUcontext ctx, unsigned flags, int priority); /* [locked] joins ctx's list; NULL: no memory */
#define SIM_GREATEST_PRIORITY (-5) /* the least is 0 */
int sim_priority(int asked); /* the nearest that there is (cuda.h, cuStreamCreateWithPriority) */
/* [locked] The app is done with it; its work goes on, and whoever waits for the whole context waits for that too. */
void sim_stream_retire(CUstream s);
void sim_stream_close(CUstream s); /* [locked] freed when its work is finished; not in the list any more */
/* [locked] Queue work (taken over, may be NULL) on a real stream, after the tasks `after` too. *out, when asked for, is
 * a reference. */
CUresult sim_submit(CUstream s, struct sim_work *work, struct sim_task *const *after, unsigned count, struct sim_task **out);
/* [locked] The same for a caller that will wait: on an idle stream *now becomes true and the caller, after letting the
 * lock go, runs the task itself with sim_task_run. */
CUresult sim_submit_now(CUstream s, struct sim_work *work, struct sim_task **out, bool *now);
void sim_task_run(struct sim_task *t); /* moves the caller's clock to its end, as sim_task_wait does */
/* [locked] A task that is finished when everything submitted to the context so far is. */
CUresult sim_submit_fence(CUcontext ctx, CUstream s, struct sim_task **out);
void sim_task_wait(struct sim_task *t);
bool sim_task_seen(struct sim_task *t); /* has it finished? then the caller's clock moves to its end */
void sim_saw_blocking(CUcontext ctx);   /* [locked] a wait for the legacy stream has ended: these were waited for too */
struct sim_task *sim_stream_last(CUstream s); /* a reference, or NULL when nothing was ever submitted */
void sim_drain(CUcontext ctx);                /* wait for everything submitted to the context so far */
/* Add simulated time to the operation that this thread runs. */
void sim_charge_ns(uint64_t ns);
/* Where that operation has got to, in nanoseconds of simulated time; and put it elsewhere, never before its start: the
 * branches of a graph run one after the other, but start at the same time. */
uint64_t sim_task_clock(void);
void sim_task_set_clock(uint64_t ns);
/* A task that no queue holds: what waits for it goes on once somebody keeps it, at simulated time ns. NULL: out of memory. */
struct sim_task *sim_promise_new(void);
void sim_promise_keep(struct sim_task *t, uint64_t ns);
/* The same for time over the link, which others may hold; `kernel`: by its loads and stores, not by a copy engine. */
void sim_charge_link(uint64_t ns, unsigned way, bool kernel);
uint64_t sim_link_time(uint64_t ns, unsigned way, bool kernel); /* what that would charge */

/* ---- the link (link.c); times in simulated nanoseconds */
/* A copy of ns, ready at start, gets the engines of its ways; returns its end. order: later users go by it. */
uint64_t sim_link_reserve(int device, unsigned way, uint64_t order, uint64_t start, uint64_t ns);
/* What ns of traffic last that start then, beside the copies of lower order. */
uint64_t sim_link_ns(int device, unsigned way, uint64_t order, uint64_t start, uint64_t ns, bool kernel);

/* ---- contexts (ctx.c) */
#define SIM_MAX_PEERS 64 /* contexts; a system-wide limit is 8 devices, and there are no more */
struct CUctx_st {
    int device;
    bool primary;
    atomic_bool dead; /* set under sim_lock, before its end is waited for; other threads may still have it current */
    struct CUctx_st *buried; /* the next dead one */
    unsigned flags, retained, api;
    uint64_t id;
    atomic_int sticky; /* first CUresult of a failed operation */
    CUstream legacy, streams;
    struct sim_task *gate; /* [sim_lock] what cuCtxWaitEvent made all later work wait for; a new stream begins with it */
    size_t limits[CU_LIMIT_MAX];
    int cache, banks;
    CUcontext peers[SIM_MAX_PEERS]; /* [sim_lock] whose allocations its kernels reach */
    unsigned peer_count;
    CUgreenCtx green; /* of a view (green.h): what it stands for; */
    CUcontext base;   /* and the primary context behind it. NULL: an ordinary context */
};
CUcontext sim_ctx_view(CUcontext base, CUgreenCtx green); /* NULL: out of memory */
void sim_ctx_view_end(CUcontext view); /* [locked] threads that have it current are told */
/* peer.c */
bool sim_peer_possible(int device, int peer); /* may kernels of one device ever reach the other's memory? */
bool sim_peer_enabled(const struct CUctx_st *c, const struct CUctx_st *peer); /* [locked] */
CUresult sim_peer_enable(CUcontext c, CUcontext peer); /* [locked] PEER_ACCESS_UNSUPPORTED, _ALREADY_ENABLED, TOO_MANY_PEERS */
struct sim_thread {
    CUcontext stack[64];
    unsigned depth;
    CUstreamCaptureMode capture_mode;
    uint64_t id;
    struct { CUcontext ctx; CUstream stream; } *own; /* per-thread default streams */
    unsigned owned;
};
struct sim_thread *sim_self(void); /* NULL: out of memory */
/* Call the program's function from a stream: CUDA calls that it makes are CUDA_ERROR_NOT_PERMITTED (thread.c). The second:
 * whatever is believed of host functions (cuStreamAddCallback). */
void sim_call_host(CUhostFn fn, void *data);
void sim_call_back(CUhostFn fn, void *data);
bool sim_in_host_call(void);
/* Queue an operation and wait for it (a captured one is only recorded): the synchronous copies. In capture.c. */
CUresult sim_enqueue_wait(CUstream stream, bool ptsz, struct sim_op op);
/* Either of both for an operation whose time is known now. */
CUresult sim_enqueue_timed(CUstream stream, bool ptsz, struct sim_op op, struct sim_demand demand, bool wait);
CUresult sim_stream_find(CUstream handle, bool ptsz, CUstream *out); /* [locked] */
/* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, with captures invalidated, where a call is "potentially unsafe" now. Also in capture.c */
CUresult sim_capture_unsafe(void);               /* [locked] cuMemAlloc and its like */
CUresult sim_capture_unsafe_vmm(bool unmap);     /* [locked] cuMemUnmap; false: cuMemCreate, cuMemMap, cuMemSetAccess */
CUresult sim_capture_unsafe_event(void);         /* [locked] cuEventQuery */
CUresult sim_capture_sync(CUcontext ctx);        /* [locked] what waits for a whole context */
CUresult sim_capture_stream_sync(CUstream s);    /* [locked] what waits for or asks a stream */
void sim_capture_implicit(CUcontext ctx, CUresult *r); /* [locked] legacy stream while a blocking stream captures */
void sim_capture_forget(CUstream s);             /* [locked] the stream goes away */
void sim_events_forget(CUcontext ctx); /* [locked] its events are gone with it (event.c) */
void sim_ctx_wipe(CUcontext ctx); /* give back all memory of a context (mem.c); no lock held, work finished */

/* ---- the memory map (map.c) */
enum sim_map_kind { SIM_MAP_DEVICE, SIM_MAP_POOLED, SIM_MAP_MANAGED, SIM_MAP_HOST, SIM_MAP_REGISTERED, SIM_MAP_VMM, SIM_MAP_IPC };
struct sim_map {
    uint64_t base, size;
    enum sim_map_kind kind;
    bool in_ram;      /* bytes live in host memory */
    bool host_access, host_writes; /* VMM: what a host descriptor granted */
    bool sync_memops;
    uint64_t away; /* managed: 0 in VRAM, 1 on the host, else the launch (sim_account.id) that brings it in */
    unsigned devices, writers; /* VMM: a bit per device that was granted access, and access to write */
    int device;
    CUcontext ctx;
    uint64_t id, charged, real_size; /* charged: bytes of the tier's budget; real_size: what munmap takes */
    unsigned flags;                  /* host allocations: CU_MEMHOSTALLOC_* */
    struct sim_handle *handle;
    struct sim_reservation *reservation;
    CUmemoryPool pool;
    struct sim_note *notes; /* managed: advice (managed.c) */
    struct sim_graph_alloc *graph; /* a graph's allocation (SIM_MAP_POOLED without a pool) */
    int fd; /* shared with other processes, else -1 */
    uint64_t shared; /* sim_shared_key of what other processes have too; 0: none have */
    unsigned opened; /* SIM_MAP_IPC: times that its context has it open */
};
struct sim_reservation {
    uint64_t base, size;
    unsigned mapped; /* mappings inside */
    uint64_t id;
};
struct sim_map *sim_map_new(void);
bool sim_map_add(struct sim_map *m);                /* [locked] false: out of memory */
void sim_map_remove(struct sim_map *m);             /* [locked] does not free m */
struct sim_map *sim_map_find(uint64_t p);           /* [locked] the map that holds the address */
size_t sim_map_from(uint64_t p);                    /* [locked] index of the first map that ends after p */
struct sim_map *sim_map_at(size_t index);           /* [locked] NULL past the end */
bool sim_reservation_add(struct sim_reservation *r);
void sim_reservation_remove(struct sim_reservation *r);
struct sim_reservation *sim_reservation_find(uint64_t p);

/* What pointer queries ask of a VMM handle (vmm.c). */
bool sim_handle_exportable(const struct sim_handle *h);
bool sim_handle_rdma(const struct sim_handle *h);
uint64_t sim_handle_id(const struct sim_handle *h);

/* What one operand of a copy or memset lies in. */
struct sim_span {
    bool known;    /* in the driver's memory; false: pageable host memory */
    bool vram, ram;
    bool pinned;   /* host allocation or registration */
    bool managed;
};
/* [locked] CUDA_ERROR_INVALID_VALUE: a hole, freed memory, no access of the wanted kind, past the end of an allocation, or a
 * mixture of tiers. */
CUresult sim_span(CUcontext ctx, uint64_t p, uint64_t n, bool write, struct sim_span *out);

/* ---- pages (pages.c) */
void *sim_pages(uint64_t size); /* private pages at an address of the driver's own; NULL: no address space */
void sim_pages_free(void *p, uint64_t size);    /* closed, given back; the address may be handed out again */
bool sim_pages_own(uint64_t p);                 /* is the address the driver's, in use or not? */
/* What was handed out before holds poison. `tier`: a device, or SIM_RAM. */
void sim_recycle_pages(int tier, const void *p, uint64_t size); /* before it is freed: counts what was touched */
void sim_recycle(int tier, uint64_t bytes);                     /* the same, counted by the caller */
void sim_poison_new(int tier, void *p, uint64_t size);          /* as much of a new allocation as is recycled */
bool sim_poison_file(int tier, int fd, uint64_t offset, uint64_t size); /* the same of a handle's bytes; false: no memory */
void sim_poison_touched(void *p, uint64_t size);                /* memory that stays with us, but not with its user */

/* ---- tiers (mem.c): small allocations share 2 MiB blocks, others are rounded up, as on a GPU */
bool sim_charge(int tier, uint64_t bytes); /* sim_machine_charge, unless SIMGPU_FAULTS lets it fail */
bool sim_vram_take(int device, uint64_t bytes, uint64_t *charged); /* [locked] */
void sim_vram_return(int device, uint64_t bytes, uint64_t charged); /* [locked] */
uint64_t sim_pin_ns(uint64_t bytes); /* what pinning host memory costs the caller (host.c) */
CUresult sim_device_alloc(CUcontext ctx, uint64_t bytes, CUdeviceptr *out); /* budgeted; no capture check; takes the lock */
void sim_notes_drop(struct sim_map *m); /* managed.c */
CUresult sim_map_release(struct sim_map *m); /* unmap and uncharge a map already removed from the table; takes the lock */

/* ---- pools (pool.c) */
void sim_pools_sync(int device); /* after a host-side wait: release above the threshold; no lock held */
CUresult sim_pool_free_now(CUdeviceptr p); /* cuMemFree of a pool's allocation, after draining */

bool sim_pool_open_to(CUmemoryPool p, int device); /* [locked] may its kernels reach the pool's memory? */

/* ---- copies (copy.c) */
uint64_t sim_cost_ns(bool over_link, uint64_t bytes);

bool sim_device_ok(CUdevice dev);
int sim_device_attribute(CUdevice dev, CUdevice_attribute attribute); /* 0 for one that it has no answer for */

#endif
