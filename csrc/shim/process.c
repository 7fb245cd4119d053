/* SPDX-License-Identifier: Apache-2.0 */
/* The shim's life in a process, as process.h says; and the settings of the engine out of the environment. */
#include "shim/process.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "link/ledger.h"
#include "link/segment.h"
#include "shim/config.h"
#include "shim/freeze.h"
#include "shim/log.h"
#include "shim/remember.h"
#include "shim/resolve.h"
#include "shim/worker.h"

static struct spill_settings settings;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool started;
static pid_t owner;

static uint64_t vram_limit(uint64_t total)
{
    return spill_amount_bytes(&spill_config()->vram_limit, total, total);
}

/* The driver allocates behind our back (module code, local memory, graphs): 512 MiB and 3 % is what public users of
 * large cards leave; a small card keeps at most an eighth. */
static uint64_t headroom(uint64_t total)
{
    uint64_t fixed = 512ull << 20, share = total / 100 * 3;
    if (fixed > total / 8)
        fixed = total / 8;
    return spill_amount_bytes(&spill_config()->headroom, total, share > fixed ? share : fixed);
}

static uint64_t holdback(uint64_t total)
{
    return spill_amount_bytes(&spill_config()->holdback, total, total / 100 * 15);
}

static uint64_t host_limit(uint64_t total)
{
    return spill_amount_bytes(&spill_config()->host_limit, total, UINT64_MAX);
}

static uint64_t ram_reserve(uint64_t total)
{
    uint64_t least = 2ull << 30, share = total / 10;
    return spill_amount_bytes(&spill_config()->ram_reserve, total, share > least ? share : least);
}

/* Job of processes that were not started by `spillshim run`: all of them. */
static uint64_t job_id(const char *text)
{
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3ull;
    return h;
}

static uint64_t chunk_size(const struct spill_amount *a, uint64_t fallback)
{
    uint64_t bytes = a->set && !a->percent ? (uint64_t)a->value / SPILL_GRANULE * SPILL_GRANULE : fallback;
    return bytes < SPILL_GRANULE ? SPILL_GRANULE : bytes;
}

/* CUDA is unusable in the child of a process that initialised it, and the parent's state is not the child's. Where nobody
 * got as far (NVML was asked, no more), the child is a process like any other. */
static void in_child(void)
{
    if (spill_device_any()) {
        spill_worker_abandon();
        spill_segment_abandon();
        spill_after_fork();
        return;
    }
    started = false;
    once = (pthread_once_t)PTHREAD_ONCE_INIT;
}

/* Registered after the driver has registered its own handlers, so it runs before these: no move may be under way when the
 * driver shuts down. The program's remaining handlers free what they like; the driver says when that is over. */
static void exit_begins(void)
{
    if (owner != getpid())
        return;
    spill_exit_begins();
    spill_worker_stop();
    spill_remember_exit();
}

/* Something of ours is in VRAM or in RAM now: from here on there is something to say, and to do. */
static void managed(void)
{
    if (!spill_config()->control)
        return;
    spill_lock();
    int err = spill_segment_make(settings.job);
    spill_unlock();
    if (err)
        spill_log(SPILL_LOG_DEBUG, "no shared memory for statistics: %s", strerror(err));
    spill_worker_start();
}

static void start(void)
{
    const struct spill_config *c = spill_config();
    settings = (struct spill_settings){
        .spill = c->spill && c->backend != SPILL_BACKEND_NONE,
        .soft_oom = c->oom == SPILL_OOM_SOFT,
        .moves = c->moves == SPILL_MOVES_AUTO,
        .insist_on_holdback = c->holdback.set,
        .exportable = c->exportable,
        .keep = c->control, /* the worker gives it up */
        .kept = spill_worker_wake,
        .managed_min = spill_amount_bytes(&c->managed_min, 0, 16 << 20),
        .chunk = chunk_size(&c->chunk, 32 << 20),
        .spill_chunk = chunk_size(&c->spill_chunk, 4 << 20),
        .job = job_id(c->job),
        .blind = !spill_interposed(),
        .state_dir = c->state_dir,
        .proc_root = c->proc_root,
        .vram_limit = vram_limit,
        .headroom = headroom,
        .holdback = holdback,
        .host_limit = host_limit,
        .ram_reserve = ram_reserve,
        .probe = spill_probe_run,
        .managed = managed,
        .look = spill_freeze_look,
        .recall = spill_remember_wanted() ? spill_remember_recall : NULL,
        .rest = spill_remember_wanted() ? spill_remember_rest : NULL,
    };
    spill_config_complain();
    spill_engine_start(&settings);
    if (settings.blind)
        spill_freeze("the library is not preloaded, so that launches and copies of the program are not seen");
    if (c->moves == SPILL_MOVES_OFF)
        spill_freeze("SPILLSHIM_MOVES=off");
    pthread_atfork(NULL, NULL, in_child);
    owner = getpid();
    atexit(exit_begins);
    __atomic_store_n(&started, true, __ATOMIC_RELEASE);
}

bool spill_started(void)
{
    return __atomic_load_n(&started, __ATOMIC_ACQUIRE);
}

bool spill_on(void)
{
    if (spill_config()->disable)
        return false;
    pthread_once(&once, start);
    return !spill_dead();
}

CUresult spill_answer_oom(void)
{
    __atomic_fetch_add(&spill_stats()->oom_count, 1, __ATOMIC_RELAXED);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* A library's destructor runs after the program's own exit handlers: its frees have been counted by then. The driver is
 * not called any more. */
__attribute__((destructor)) static void at_exit(void)
{
    bool mine = started && owner == getpid();
    /* A program that never used CUDA must not even pay for reading the environment table. */
    if (!mine && (started || !getenv("SPILLSHIM_OBSERVE")))
        return;
    if (!spill_config()->disable)
        spill_stats_report(mine);
    /* The ledger is not left: other threads may be using it, and the kernel gives the slot back, after the memory. */
    if (mine)
        spill_exit_ends();
}
