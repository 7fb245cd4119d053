/* SPDX-License-Identifier: Apache-2.0 */
/* Allocation and release of regions. Called by the allocation hooks.
 * Rules: the engine lock is held over a whole allocation or release, never while waiting for the GPU without a deadline;
 * every failure unwinds what was done; headroom and holdback are wishes: an allocation that VRAM can hold is never
 * refused for their sake, because without us it would have succeeded. */
#include "tiering/moving.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shim/log.h"

enum { RECHECK = 256 << 20, PATIENCE_MS = 100, DRAIN_MS = 2, DISPLACE_MS = 100, LONGEST_SKIP = 64 };

static const struct spill_settings *settings;
static struct spill_stats stats;
static bool told; /* settings->managed was called */
static pthread_mutex_t engine = PTHREAD_MUTEX_INITIALIZER;


void spill_engine_start(const struct spill_settings *s)
{
    settings = s;
    spill_state_tell();
}

const struct spill_settings *spill_settings(void) { return settings; }
struct spill_stats *spill_stats(void) { return &stats; }
void spill_lock(void) { pthread_mutex_lock(&engine); }
bool spill_trylock(void) { return pthread_mutex_trylock(&engine) == 0; }

bool spill_lock_within(unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + ms * 1000000ull;
    until.tv_sec += (time_t)(ns / 1000000000u);
    until.tv_nsec = (long)(ns % 1000000000u);
    return pthread_mutex_timedlock(&engine, &until) == 0;
}

void spill_unlock(void) { pthread_mutex_unlock(&engine); }

CUstreamCaptureMode spill_capture_enter(void)
{
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    if (!spill_driver()->cuThreadExchangeStreamCaptureMode ||
        spill_driver()->cuThreadExchangeStreamCaptureMode(&mode) != CUDA_SUCCESS)
        return CU_STREAM_CAPTURE_MODE_RELAXED;
    return mode;
}

void spill_capture_leave(CUstreamCaptureMode mode)
{
    if (spill_driver()->cuThreadExchangeStreamCaptureMode)
        spill_driver()->cuThreadExchangeStreamCaptureMode(&mode);
}

/* An episode is one size asked for again and again by one thread: caching allocators free their cache on the first
 * refusal and ask again. */
static __thread size_t refused;

bool spill_soft_oom(size_t size)
{
    if (!settings->soft_oom || refused == size)
        return refused = 0, false;
    refused = size;
    return true;
}

bool spill_soft_heard(size_t size)
{
    return !settings->soft_oom || refused == size;
}

void spill_soft_unheard(void)
{
    refused = 0;
}

/* ---- building a region ---- */

/* Undo the first `chunks` chunks of `region`, in rows of what is mapped. */
static void unbuild(struct spill_region *region, uint32_t chunks)
{
    spill_move_tidy();
    for (uint32_t i = 0; i < chunks;) {
        uint32_t first = i;
        uint64_t bytes = 0;
        for (; i < chunks && !region->chunks[i].hole; i++)
            bytes += spill_chunk_bytes(&region->chunks[i]);
        if (!bytes) {
            i++;
            continue;
        }
        CUresult r = spill_unmap_surely(region->base + ((uint64_t)region->chunks[first].start << SPILL_GRANULE_SHIFT), bytes);
        if (r != CUDA_SUCCESS) {
            spill_log(SPILL_LOG_ERROR, "cuMemUnmap failed error=%d bytes=%llu; address and memory are given up, not reused",
                      (int)r, (unsigned long long)bytes);
            return;
        }
    }
    for (uint32_t i = 0; i < chunks; i++)
        spill_backing_give(region->device, (enum spill_tier)region->chunks[i].tier, spill_chunk_bytes(&region->chunks[i]),
                           region->chunks[i].handle);
    if (!region->poisoned) /* something may still be mapped there */
        spill_arena_give(region->base, region->mapped);
}

static bool ask(uint64_t bytes)
{
    char why[160], want[16];
    if (spill_budget_ask(bytes, why))
        return true;
    spill_log(SPILL_LOG_WARN, "%s of RAM not granted: %s", spill_size_text(bytes, want), why);
    return false;
}

/* Whether chunks may be in RAM. */
static bool may_chunk(int device) { return settings->spill && spill_backend(device)->backend <= SPILL_BACKEND_HOST; }

/* Whether a region may lie in both tiers. */
static bool may_mix(void) { return !settings->blind || spill_mixed_copy(); }

/* Back, map and open every chunk. `granted` bytes of RAM have been asked for; what is left of them is given back. */
static CUresult build(struct spill_region *region, const struct spill_layout_step *steps, uint64_t granted, bool cold)
{
    CUresult r = CUDA_SUCCESS;
    uint64_t since_check = 0;
    bool vram_full = false, reclaimed = false;
    uint32_t done = 0;

    for (; done < region->chunk_count; done++) {
        const struct spill_layout_step *step = &steps[done];
        struct spill_chunk *chunk = &region->chunks[done];
        *chunk = (struct spill_chunk){ .start = (uint32_t)(step->offset >> SPILL_GRANULE_SHIFT),
                                       .length = (uint32_t)(step->size >> SPILL_GRANULE_SHIFT),
                                       .tier = (uint8_t)(vram_full ? SPILL_RAM : step->tier) };
        if (chunk->tier == SPILL_VRAM) {
            r = spill_backing_take(region->device, SPILL_VRAM, step->size, &chunk->handle);
            if (r == CUDA_ERROR_OUT_OF_MEMORY && !reclaimed) {
                spill_driver_pool_trim(region->device);
                reclaimed = true;
                r = spill_backing_take(region->device, SPILL_VRAM, step->size, &chunk->handle);
            }
            if (r == CUDA_ERROR_OUT_OF_MEMORY && !region->keep && may_chunk(region->device) && may_mix()) {
                /* Somebody took the VRAM since it was counted: the rest of the region spills. */
                vram_full = true;
                chunk->tier = SPILL_RAM;
            }
        }
        if (chunk->tier == SPILL_RAM) {
            if (granted < step->size) {
                if (!ask(step->size - granted)) {
                    r = CUDA_ERROR_OUT_OF_MEMORY;
                    break;
                }
                granted = step->size;
            }
            r = spill_backing_take(region->device, SPILL_RAM, step->size, &chunk->handle);
            if (r == CUDA_SUCCESS)
                granted -= step->size;
            since_check += step->size;
            if (r == CUDA_SUCCESS && since_check >= RECHECK && !spill_budget_holds()) {
                spill_log(SPILL_LOG_WARN, "MemAvailable fell below half of the reserve while %llu MiB were being pinned: "
                          "unwound, the program gets out-of-memory", (unsigned long long)(region->mapped >> 20));
                spill_backing_give(region->device, SPILL_RAM, step->size, chunk->handle);
                r = CUDA_ERROR_OUT_OF_MEMORY;
            } else if (since_check >= RECHECK) {
                since_check = 0;
            }
        }
        if (r != CUDA_SUCCESS)
            break;
        r = spill_map(region->base + step->offset, step->size, chunk->handle);
        if (r != CUDA_SUCCESS) {
            spill_backing_give(region->device, (enum spill_tier)chunk->tier, step->size, chunk->handle);
            break;
        }
        if (chunk->tier == SPILL_RAM)
            region->ram_bytes += step->size;
        chunk->cold = cold;
    }
    spill_budget_give(granted, 0);
    if (r == CUDA_SUCCESS)
        r = spill_open(region->base, region->mapped, region->device, region->chunks, region->chunk_count);
    if (r != CUDA_SUCCESS)
        unbuild(region, done);
    return r;
}

static CUresult build_in_arena(struct spill_region *region, const struct spill_place_in *in,
                               const struct spill_place_out *out, const struct spill_layout_step *steps, bool cold)
{
    if (out->ram && !ask(out->ram))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = spill_arena_take(in->size, &region->base);
    if (r != CUDA_SUCCESS) {
        spill_budget_give(out->ram, 0);
        return r;
    }
    region->mapped = in->size;
    return build(region, steps, out->ram, cold);
}

static CUresult build_fixed(struct spill_region *region, uint64_t bytes)
{
    if (!ask(bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    CUresult r = spill_fixed_take(region->device, bytes, &region->base);
    if (r != CUDA_SUCCESS) {
        spill_budget_give(bytes, 0);
        return r;
    }
    region->fixed = true;
    region->mapped = region->ram_bytes = bytes;
    return CUDA_SUCCESS;
}

/* ---- allocation ---- */

static void say_first_spill(const struct spill_region *region)
{
    static bool said;
    char ram[16], all[16];
    if (said)
        return;
    said = true;
    spill_log(SPILL_LOG_WARN, "%s: %s of an allocation of %s now live in RAM and are read over the link "
              "(backend %s; silence with SPILLSHIM_LOG=error)",
              may_mix() ? "VRAM is full" : "VRAM cannot hold all of it", spill_size_text(region->ram_bytes, ram),
              spill_size_text(region->size, all), spill_backend_name(spill_backend_known()));
}

/* The driver refused something that it should take; the program gets what the driver alone can give. */
static void say_first_failure(CUresult r, size_t size)
{
    static bool said;
    if (!said)
        spill_log(SPILL_LOG_WARN, "an allocation of %zu bytes could not be managed, error=%d: left to the driver, without RAM",
                  size, (int)r);
    said = true;
}

static void count_new(struct spill_region *region, enum spill_hint hint, const struct spill_recall *known)
{
    spill_unsettled();
    if (hint != SPILL_HINT_RAM)
        spill_late_new(region, known);
    spill_count(&stats.managed_count, 1);
    spill_count(&stats.regions, 1);
    spill_count(&stats.managed_bytes, (int64_t)region->mapped);
    if (region->ram_bytes) {
        spill_count(&stats.spilled_count, 1);
        spill_count(&stats.spilled_total, (int64_t)region->ram_bytes);
        spill_count(&stats.spilled_bytes, (int64_t)region->ram_bytes);
        if (hint != SPILL_HINT_RAM)
            say_first_spill(region);
    }
    spill_account(region->device, 0, 0); /* the peaks */
    spill_region_tell(region);
}

/* Decide where `in->size` bytes go. CUDA_ERROR_OUT_OF_MEMORY where nothing can hold them, or (`soft`: once decided, it
 * holds for the retry of the same allocation) where the program shall give back its caches first. */
static CUresult decide(const struct spill_device *d, int device, size_t size, const struct spill_place_in *in, enum spill_hint hint,
                       struct spill_place_out *out, bool *fixed, bool *soft)
{
    bool fits = d->vmm && in->size <= in->vram_free;
    struct spill_place_in plain = *in;
    plain.headroom = plain.holdback = 0;
    spill_place(in, out);
    spill_hint_place(hint, in, out);
    if (d->vmm && !out->ram)
        return CUDA_SUCCESS;
    if (hint == SPILL_HINT_VRAM) /* what lacks may be displaced for it */
        return d->vmm ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    enum spill_backend backend = settings->spill ? spill_backend(device)->backend : SPILL_BACKEND_NONE;
    bool chunked = d->vmm && backend <= SPILL_BACKEND_HOST;
    if (!chunked && fits && hint != SPILL_HINT_RAM) {
        /* Without chunks in RAM the choice is all or nothing: all in VRAM is what the driver would have done. */
        spill_place(&plain, out);
        return CUDA_SUCCESS;
    }
    if (chunked && !may_mix() && hint != SPILL_HINT_RAM) {
        /* All or nothing too, but what else the program allocates can't spill: it keeps the headroom. */
        plain.headroom = in->headroom;
        spill_place(&plain, out);
        if (!out->ram)
            return CUDA_SUCCESS;
    }
    if (backend == SPILL_BACKEND_NONE)
        return CUDA_ERROR_OUT_OF_MEMORY;
    /* Who asks for RAM is short of nothing, nor is who fits but for what is kept for others: the driver alone would give him all of it. */
    bool lacks = hint != SPILL_HINT_RAM && !(d->vmm && in->size + d->headroom <= in->vram_free);
    *soft = *soft || (lacks && spill_soft_oom(size));
    if (*soft)
        return CUDA_ERROR_OUT_OF_MEMORY;
    *fixed = !chunked;
    if (!may_mix())
        spill_hint_place(SPILL_HINT_RAM, in, out);
    return CUDA_SUCCESS;
}

/* `lacks` bytes of a new region would go to RAM: have those larger than `than` give theirs up instead. A GPU that was busy is asked
 * again ever more rarely: the answer costs the allocation up to DRAIN_MS. True if anything was gained. */
static bool displace(int device, uint64_t lacks, uint64_t than)
{
    static unsigned skip, skipped;
    enum spill_reason why;
    if (!settings->moves || skipped < skip)
        return skipped++, false;
    skipped = 0;
    uint64_t freed = spill_displace(device, lacks, than, spill_now_ns() + spill_ms(DRAIN_MS), spill_ms(DISPLACE_MS), &why);
    if (why == SPILL_REASON_BUSY && !freed)
        skip = skip ? skip < LONGEST_SKIP ? skip * 2 : skip : 1;
    else
        skip = 0;
    return freed;
}

static CUresult allocate(int device, size_t size, CUdeviceptr *result, enum spill_hint hint, bool *soft)
{
    const struct spill_device *d = spill_device(device);
    struct spill_place_in in = { .size = (size + SPILL_GRANULE - 1) & ~(SPILL_GRANULE - 1), .vram_total = d->limit,
                                 .headroom = d->headroom, .holdback = d->holdback, .insist = settings->insist_on_holdback, .chunk = settings->chunk,
                                 .spill_chunk = settings->spill_chunk, .granularity = SPILL_GRANULE };
    struct spill_place_out out;
    struct spill_recall known;
    uint64_t device_free, count = 0;
    bool fixed = false;
    /* What will come is known from the last time: no more and no less is kept back, whatever the size of the region. Not where all of it
     * would have to go to RAM for that. */
    if (spill_late_recall(device, size, hint, &known) && (known.trusted = known.trusted && may_mix())) {
        in.headroom += known.keep;
        in.holdback = 0;
    }
    CUresult r = spill_vram_free(device, &in.vram_free, &device_free);
    if (r == CUDA_SUCCESS)
        spill_backend_foresee(device, device_free > in.size ? device_free - in.size : 0);
    if (r == CUDA_SUCCESS)
        r = decide(d, device, size, &in, hint, &out, &fixed, soft);
    /* Much larger regions pay for one that comes late, all others for one that the program wants in VRAM. */
    uint64_t than = hint == SPILL_HINT_VRAM ? 0 : 2 * in.size;
    if (r == CUDA_SUCCESS && !fixed && out.ram && hint != SPILL_HINT_RAM && displace(device, out.ram, than)) {
        r = spill_vram_free(device, &in.vram_free, &device_free);
        spill_place(&in, &out);
        spill_hint_place(hint, &in, &out);
    }
    if (r == CUDA_SUCCESS && hint == SPILL_HINT_VRAM && out.ram)
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r != CUDA_SUCCESS)
        return r;

    struct spill_layout_step *steps = NULL;
    if (!fixed) {
        count = spill_layout(&in, &out, NULL, 0);
        steps = calloc(count, sizeof *steps);
    }
    struct spill_region *region = spill_region_new((uint32_t)count);
    if ((!steps && !fixed) || !region) {
        free(steps);
        if (region)
            spill_region_recycle(region);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    region->size = size;
    region->device = device;
    region->keep = hint == SPILL_HINT_VRAM;
    spill_driver()->cuCtxGetCurrent(&region->ctx);
    spill_context_known(region->ctx);
    if (fixed) {
        r = build_fixed(region, in.size);
    } else if (out.ram || !spill_pool_take_run(region, in.size)) {
        spill_layout(&in, &out, steps, count);
        r = build_in_arena(region, &in, &out, steps, hint == SPILL_HINT_RAM);
        bool again = false;
        if (r == CUDA_ERROR_OUT_OF_MEMORY && out.ram && in.size <= in.vram_free) {
            /* RAM was refused, VRAM has room if headroom and holdback are given up. One chunk size, so fewer chunks. */
            in.headroom = in.holdback = 0;
            spill_place(&in, &out);
            again = true;
        } else if (r == CUDA_ERROR_OUT_OF_MEMORY && !out.ram && !region->keep && !may_mix() && may_chunk(device)) {
            /* Somebody took the VRAM since it was counted, and what it got of it can't be half of the region. */
            spill_hint_place(SPILL_HINT_RAM, &in, &out);
            again = true;
        }
        if (again) {
            region->chunk_count = (uint32_t)spill_layout(&in, &out, steps, count);
            region->ram_bytes = 0;
            r = region->chunk_count <= count ? build_in_arena(region, &in, &out, steps, false) : CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    free(steps);
    if (r == CUDA_SUCCESS && !spill_region_publish(region)) {
        spill_fixed_give(device, region->mapped, region->base, false);
        r = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (r != CUDA_SUCCESS) {
        spill_region_recycle(region);
        if (r != CUDA_ERROR_OUT_OF_MEMORY)
            say_first_failure(r, size);
        return r;
    }
    count_new(region, hint, &known);
    if (region->keep)
        spill_region_pin(region, "the program keeps it in VRAM");
    *result = region->base;
    return CUDA_SUCCESS;
}

void spill_managed(void)
{
    if (settings->managed && !__atomic_exchange_n(&told, true, __ATOMIC_RELAXED))
        settings->managed();
}

/* A wish for RAM is dropped where there is none. */
static CUresult allocate_as_wished(int device, size_t size, CUdeviceptr *out, bool *soft)
{
    enum spill_hint hint = spill_hint_now();
    CUresult r = allocate(device, size, out, hint, soft);
    if (r == CUDA_ERROR_OUT_OF_MEMORY && hint == SPILL_HINT_RAM)
        r = allocate(device, size, out, SPILL_HINT_NONE, soft);
    return r;
}

CUresult spill_alloc(size_t size, CUdeviceptr *out)
{
    int device;
    CUresult r = spill_current_device(&device);
    if (r != CUDA_SUCCESS)
        return r;
    /* More than an address space holds: refused before any sum can overflow. */
    if (size > (size_t)1 << 46)
        return CUDA_ERROR_OUT_OF_MEMORY;
    spill_look();
    if (spill_aside())
        return CUDA_ERROR_OUT_OF_MEMORY; /* the caller asks the driver */
    spill_lock();
    CUstreamCaptureMode mode = spill_capture_enter();
    spill_limbo_sweep(0);
    bool soft = false;
    r = allocate_as_wished(device, size, out, &soft);
    if (r == CUDA_ERROR_OUT_OF_MEMORY && spill_limbo_sweep(PATIENCE_MS))
        r = allocate_as_wished(device, size, out, &soft);
    spill_capture_leave(mode);
    spill_unlock();
    if (r == CUDA_SUCCESS)
        spill_managed();
    return r;
}

/* ---- release ---- */

static void forget(struct spill_region *region)
{
    spill_unsettled();
    spill_late_gone(region);
    spill_count(&stats.regions, -1);
    spill_count(&stats.managed_bytes, -(int64_t)region->mapped);
    spill_count(&stats.spilled_bytes, -(int64_t)region->ram_bytes);
    spill_region_recycle(region);
}

void spill_region_release(struct spill_region *region)
{
    spill_region_withdraw(region);
    if (region->fixed)
        spill_fixed_give(region->device, region->mapped, region->base, false);
    else if (!spill_pool_keep_run(region))
        unbuild(region, region->chunk_count);
    forget(region);
}

struct spill_region *spill_claim(CUdeviceptr p)
{
    struct spill_region *region = spill_region_find(p);
    if (!region || !region->live || region->base != p || region->limbo)
        return NULL;
    region->limbo = true;
    return region;
}

/* Wait for all work of the current context. Not by cuCtxSynchronize where there is another way: a capture that another thread begins
 * meanwhile would be broken by it, though the driver's own cuMemFree leaves it alone. */
static CUresult wait_for(CUcontext ctx)
{
    const struct spill_driver *d = spill_driver();
    CUevent event;
    if (!d->cuCtxRecordEvent)
        return d->cuCtxSynchronize();
    CUresult r = d->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING);
    if (r != CUDA_SUCCESS)
        return r;
    if (!spill_capture_hold_off()) {
        r = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    } else {
        r = d->cuCtxRecordEvent(ctx, event);
        spill_capture_let_in();
    }
    if (r == CUDA_SUCCESS)
        r = d->cuEventSynchronize(event);
    d->cuEventDestroy_v2(event);
    return r;
}

CUresult spill_free(CUdeviceptr p)
{
    const struct spill_driver *d = spill_driver();
    CUcontext popped;
    spill_lock();
    struct spill_region *region = spill_claim(p);
    uint32_t generation = region ? region->generation : 0;
    CUcontext ctx = region ? region->ctx : NULL;
    if (region && spill_capturing()) {
        spill_limbo_defer(region);
        spill_unlock();
        return CUDA_SUCCESS;
    }
    spill_unlock();
    if (!region)
        return CUDA_ERROR_INVALID_VALUE;
    /* Without the lock: a kernel may wait for something that another thread does after an allocation. */
    CUstreamCaptureMode mode = spill_capture_enter();
    CUresult r = d->cuCtxPushCurrent_v2(ctx);
    if (r == CUDA_SUCCESS) {
        r = wait_for(ctx);
        d->cuCtxPopCurrent_v2(&popped);
    }
    spill_lock();
    if (!region->live || region->generation != generation) {
        /* Its context was destroyed meanwhile, and the region with it. */
    } else if (r == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) {
        /* A capture began since we looked: not the affair of this free, which as the driver's would have waited all the same. */
        spill_limbo_defer(region);
        r = CUDA_SUCCESS;
    } else if (r == CUDA_SUCCESS) {
        spill_region_release(region);
        spill_limbo_sweep(0);
    } else {
        region->limbo = false;
    }
    spill_unlock();
    spill_capture_leave(mode);
    return r;
}

static void discard(struct spill_region *region, void *ctx)
{
    if (region->ctx != (CUcontext)ctx)
        return;
    spill_limbo_forget(region);
    spill_region_withdraw(region);
    if (region->fixed)
        spill_fixed_give(region->device, region->mapped, region->base, true);
    else
        unbuild(region, region->chunk_count);
    forget(region);
}

void spill_discard_context(CUcontext ctx)
{
    spill_lock();
    CUstreamCaptureMode mode = spill_capture_enter();
    spill_limbo_context_gone(ctx);
    spill_region_each(discard, ctx);
    spill_pool_trim(-1, UINT64_MAX); /* a context's end gives memory back */
    spill_capture_leave(mode);
    spill_unlock();
}
