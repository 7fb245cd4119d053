/* SPDX-License-Identifier: Apache-2.0 */
/* Backings kept for reuse: making one costs the driver some 200 us, pinning its RAM half a second a GiB. Called by engine.c (whole
 * regions), backing.c (single handles), budget.c and whoever hears that memory is short.
 *
 * Two kinds are kept: *runs*, freed regions that lie in VRAM whole, still mapped and open under addresses of the arena, for
 * allocations of the same size; and single handles that a move has emptied, of either tier, for moves and allocations that want
 * one of that size.
 *
 * Rules
 *   - what is kept is nobody's: memory in VRAM is reported as free and counts for no one, because it is given up before an
 *     allocation fails for lack of it; RAM stays asked and pinned in the budget, and is given up before the budget says no;
 *   - it is bounded (most_vram, most_ram), nothing under a VRAM limit, and nothing of it outlives two ticks without use: other programs
 *     cannot ask for it;
 *   - runs are touched under the engine lock only (they own addresses); the pool's own lock guards the rest, and is held over the
 *     driver's releases. Nothing that was pinned, poisoned or freed by a context's end is kept. */
#include "tiering/moving.h"

#include <pthread.h>
#include <stdlib.h>

#include "shim/log.h"

#define GIB ((uint64_t)1 << 30)

struct spare {
    struct spare *next;
    CUmemGenericAllocationHandle handle;
    uint64_t bytes;
    int device;
    enum spill_tier tier;
};

struct run {
    struct run *next;
    CUdeviceptr base;
    uint64_t bytes;
    struct spill_chunk *chunks;
    uint32_t count;
    int device;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct spare *spares; /* newest first, as the runs */
static struct run *runs;
static uint64_t kept_vram[SPILL_MAX_DEVICES], kept_ram; /* bytes; read without the lock */
static uint64_t uses, uses_at_tick;

static uint64_t read(const uint64_t *counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }

/* An eighth of what a card has beyond 8 GiB, at most 4 GiB: enough for the largest buffers that programs free and allocate again and
 * again. On smaller cards nothing: what one program keeps there is what the next one lacks. */
static uint64_t most_vram(const struct spill_device *d)
{
    uint64_t most = d->total > 8 * GIB ? (d->total - 8 * GIB) / 8 : 0;
    if (d->limit < d->total)
        return 0; /* the limit's other processes could not tell it from memory in use */
    return most < 4 * GIB ? most : 4 * GIB;
}

/* The same of the RAM that may ever be pinned, beyond 16 GiB, without a most: what comes back from RAM by order goes there again. */
static uint64_t most_ram(void)
{
    static uint64_t most = UINT64_MAX;
    if (most == UINT64_MAX) {
        uint64_t ceiling = spill_budget_ceiling();
        most = ceiling > 16 * GIB ? (ceiling - 16 * GIB) / 8 : 0;
    }
    return most;
}

static bool may_keep(void) { return spill_settings()->keep && spill_state_now() == SPILL_OPEN; }

static void wake(void)
{
    if (spill_settings()->kept)
        spill_settings()->kept();
}

/* ---- single handles ---- */

static void count(int device, enum spill_tier tier, int64_t change)
{
    spill_count(tier == SPILL_RAM ? &kept_ram : &kept_vram[device], change);
}

bool spill_pool_take(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle *out)
{
    struct spare *found = NULL;
    if (!read(tier == SPILL_RAM ? &kept_ram : &kept_vram[device]))
        return false;
    pthread_mutex_lock(&lock);
    for (struct spare **at = &spares; *at && !found; at = found ? at : &(*at)->next)
        /* RAM is made at the node of one device, and counted as standing in for its VRAM. */
        if ((*at)->bytes == bytes && (*at)->tier == tier && (*at)->device == device) {
            found = *at;
            *at = found->next;
        }
    if (found) {
        *out = found->handle;
        count(device, tier, -(int64_t)bytes);
        uses++;
    }
    pthread_mutex_unlock(&lock);
    free(found);
    return found != NULL;
}

bool spill_pool_give(int device, enum spill_tier tier, uint64_t bytes, CUmemGenericAllocationHandle handle)
{
    uint64_t most = tier == SPILL_RAM ? most_ram() : most_vram(spill_device(device));
    bool first = false, kept = false;
    if (bytes > most || !may_keep())
        return false;
    pthread_mutex_lock(&lock);
    uint64_t now = tier == SPILL_RAM ? kept_ram : kept_vram[device];
    struct spare *s = now + bytes <= most ? malloc(sizeof *s) : NULL;
    if (s) {
        *s = (struct spare){ spares, handle, bytes, device, tier };
        spares = s;
        first = !now;
        kept = true;
        count(device, tier, (int64_t)bytes);
        uses++;
    }
    pthread_mutex_unlock(&lock);
    if (first)
        wake();
    return kept;
}

/* Give single handles of `tier` back to the driver until `bytes` are free; of every device where `device` is -1. */
static uint64_t drop_spares(int device, enum spill_tier tier, uint64_t bytes)
{
    uint64_t given = 0;
    pthread_mutex_lock(&lock);
    for (struct spare **at = &spares; *at && given < bytes;) {
        struct spare *s = *at;
        if (s->tier != tier || (device >= 0 && s->device != device)) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        count(s->device, tier, -(int64_t)s->bytes);
        CUresult r = spill_driver()->cuMemRelease(s->handle);
        if (r != CUDA_SUCCESS) {
            spill_log(SPILL_LOG_ERROR, "cuMemRelease failed error=%d bytes=%llu; they stay counted", (int)r, (unsigned long long)s->bytes);
            spill_account(s->device, tier == SPILL_VRAM ? (int64_t)s->bytes : 0, tier == SPILL_RAM ? (int64_t)s->bytes : 0);
        } else {
            given += s->bytes;
            if (tier == SPILL_RAM)
                spill_budget_give(s->bytes, s->bytes);
        }
        free(s);
    }
    pthread_mutex_unlock(&lock);
    return given;
}

/* ---- runs ---- */

bool spill_pool_keep_run(struct spill_region *region)
{
    uint64_t most = most_vram(spill_device(region->device));
    struct run *r;
    if (region->fixed || region->ram_bytes || region->poisoned || region->sync_memops || spill_region_pinned(region) ||
        region->mapped > most || !may_keep() || !(r = malloc(sizeof *r)))
        return false;
    if (read(&kept_vram[region->device]) + region->mapped > most)
        spill_pool_trim(region->device, read(&kept_vram[region->device]) + region->mapped - most);
    *r = (struct run){ runs, region->base, region->mapped, region->chunks, region->chunk_count, region->device };
    runs = r;
    region->chunks = NULL;
    region->chunk_count = 0;
    uses++;
    bool first = !read(&kept_vram[r->device]);
    count(r->device, SPILL_VRAM, (int64_t)r->bytes);
    spill_account(r->device, -(int64_t)r->bytes, 0);
    if (first)
        wake();
    return true;
}

bool spill_pool_take_run(struct spill_region *region, uint64_t bytes)
{
    for (struct run **at = &runs; *at; at = &(*at)->next) {
        struct run *r = *at;
        if (r->bytes != bytes || r->device != region->device)
            continue;
        *at = r->next;
        free(region->chunks);
        region->base = r->base;
        region->mapped = r->bytes;
        region->chunks = r->chunks;
        region->chunk_count = r->count;
        uses++;
        count(r->device, SPILL_VRAM, -(int64_t)bytes);
        spill_account(r->device, (int64_t)bytes, 0);
        free(r);
        return true;
    }
    return false;
}

static uint64_t drop_run(struct run *r)
{
    uint64_t given = 0, lost = r->bytes;
    count(r->device, SPILL_VRAM, -(int64_t)r->bytes);
    CUresult u = spill_unmap_surely(r->base, r->bytes);
    if (u == CUDA_SUCCESS) {
        spill_arena_give(r->base, r->bytes);
        for (uint32_t i = 0; i < r->count; i++)
            if (spill_driver()->cuMemRelease(r->chunks[i].handle) == CUDA_SUCCESS)
                given += spill_chunk_bytes(&r->chunks[i]);
        lost -= given;
    }
    if (lost) {
        spill_log(SPILL_LOG_ERROR, "%llu bytes that were kept for reuse could not be given back, error=%d; they stay counted",
                  (unsigned long long)lost, (int)u);
        spill_account(r->device, (int64_t)lost, 0);
    }
    free(r->chunks);
    free(r);
    return given;
}

/* The oldest run of `device` (-1: of any), unlinked; NULL: none. */
static struct run *oldest(int device)
{
    struct run **last = NULL;
    for (struct run **at = &runs; *at; at = &(*at)->next)
        if (device < 0 || (*at)->device == device)
            last = at;
    struct run *r = last ? *last : NULL;
    if (r)
        *last = r->next;
    return r;
}

/* ---- giving up ---- */

uint64_t spill_pool_trim(int device, uint64_t bytes)
{
    uint64_t given = 0;
    if (device >= 0 && !read(&kept_vram[device]))
        return 0;
    CUstreamCaptureMode mode = spill_capture_enter();
    given = drop_spares(device, SPILL_VRAM, bytes);
    for (struct run *r; given < bytes && (r = oldest(device));)
        given += drop_run(r);
    spill_capture_leave(mode);
    return given;
}

uint64_t spill_pool_trim_ram(uint64_t bytes)
{
    if (!read(&kept_ram))
        return 0;
    CUstreamCaptureMode mode = spill_capture_enter();
    uint64_t given = drop_spares(-1, SPILL_RAM, bytes);
    spill_capture_leave(mode);
    return given;
}

bool spill_pool_yield(int device)
{
    if (!read(&kept_vram[device]) || spill_capturing())
        return false;
    spill_lock();
    uint64_t given = spill_pool_trim(device, UINT64_MAX);
    spill_unlock();
    return given != 0;
}

bool spill_pool_any(void)
{
    uint64_t kept = read(&kept_ram);
    for (int i = 0; i < SPILL_MAX_DEVICES; i++)
        kept |= read(&kept_vram[i]);
    return kept != 0;
}

bool spill_pool_has_ram(uint64_t bytes) { return read(&kept_ram) >= bytes; }

void spill_pool_tick(void)
{
    if (!spill_pool_any() || spill_dead() || spill_capturing() || !spill_trylock())
        return;
    if (uses == uses_at_tick) {
        spill_pool_trim(-1, UINT64_MAX);
        spill_pool_trim_ram(UINT64_MAX);
    }
    uses_at_tick = uses;
    spill_unlock();
}

uint64_t spill_pool_vram(uint64_t key)
{
    uint64_t bytes = 0;
    for (int i = 0; i < SPILL_MAX_DEVICES; i++)
        if (read(&kept_vram[i]) && spill_device(i)->key == key)
            bytes += read(&kept_vram[i]);
    return bytes;
}
