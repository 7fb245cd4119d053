/* SPDX-License-Identifier: Apache-2.0 */
/* The move: runs of chunks get other backings under the same addresses. Called by order.c, settle.c and displace.c.
 *
 * A move goes through four steps: *prepare* (backings, and the window through which they are written), *copy* (started, later
 * waited for), *switch over* (unmap, map, open), *finish* (window closed, old backings given back). All but the first and the giving back
 * need a safepoint: whether cuMemUnmap waits for the GPU is not known of every driver, and the GPU may wait for what this thread
 * would do next. In a series the next move is prepared and the last one finished while the copy between them runs.
 *
 * Rules: see moving.h. A step that fails leaves the region as it was: before the switch-over nothing of it has been touched, in it
 * the old mapping is put back, in a bounded number of attempts. No memory is allocated in the switch-over. */
#include "tiering/moving.h"

#include <stdlib.h>
#include <string.h>

#include "shim/log.h"

enum { ATTEMPTS = 4, RECHECK = 256 << 20, PIN_IN_PAUSE = 64 << 20 };

_Atomic int spill_poison;

struct move {
    struct spill_region *region;
    uint64_t offset, bytes;
    enum spill_tier to;
    uint64_t into_ram; /* bytes of the new chunks that lie in RAM */
    struct spill_chunk *fresh; /* the new chunks, in order */
    uint32_t count;
    struct spill_chunk *old; /* what they replaced */
    uint32_t old_count;
    struct spill_chunk *list; /* memory for the region's new list */
    CUdeviceptr window;       /* 0: none */
    CUstream stream;
    int device;
    bool copying;
};

/* A move that was prepared and found the GPU busy: its window is closed in the next safepoint. One at most; under the engine lock. */
static struct move leftover;

bool spill_movable(const struct spill_region *region)
{
    return region->live && !region->fixed && !region->limbo && !region->poisoned && !spill_region_pinned(region) &&
           !spill_context_dying(region->ctx);
}

static void give_back(const struct move *m, const struct spill_chunk *chunks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        spill_backing_recycle(m->device, (enum spill_tier)chunks[i].tier, spill_chunk_bytes(&chunks[i]), chunks[i].handle);
}

/* ---- prepare ---- */

/* Cut the span: `want->stay` bytes that keep their tier, then chunks of at most `want->piece` bytes in the other one. */
static void cut(struct move *m, const struct spill_want *want)
{
    enum spill_tier from = want->to == SPILL_RAM ? SPILL_VRAM : SPILL_RAM;
    for (uint64_t done = 0; done < m->bytes; m->count++) {
        bool stays = done < want->stay;
        uint64_t bytes = stays ? want->stay : m->bytes - done < want->piece ? m->bytes - done : want->piece;
        m->fresh[m->count] = (struct spill_chunk){ .start = (uint32_t)((m->offset + done) >> SPILL_GRANULE_SHIFT),
                                                   .length = (uint32_t)(bytes >> SPILL_GRANULE_SHIFT),
                                                   .tier = (uint8_t)(stays ? from : want->to),
                                                   .cold = want->cold && !stays };
        m->into_ram += m->fresh[m->count].tier == SPILL_RAM ? bytes : 0;
        done += bytes;
    }
}

static enum spill_reason take_backings(struct move *m)
{
    uint64_t granted = m->into_ram, since_check = 0;
    char why[160];
    /* Where everything fitted, nothing has asked yet how RAM reaches the GPU. */
    if (granted && (!spill_settings()->spill || spill_backend(m->region->device)->backend > SPILL_BACKEND_HOST))
        return SPILL_REASON_BACKEND;
    if (granted && !spill_budget_ask(granted, why)) {
        spill_log(SPILL_LOG_DEBUG, "demotion of %llu bytes: %s", (unsigned long long)granted, why);
        return SPILL_REASON_RAM;
    }
    for (uint32_t i = 0; i < m->count; i++) {
        struct spill_chunk *c = &m->fresh[i];
        CUresult r = spill_backing_take(m->region->device, (enum spill_tier)c->tier, spill_chunk_bytes(c), &c->handle);
        bool tips = false;
        if (r == CUDA_SUCCESS && c->tier == SPILL_RAM) {
            granted -= spill_chunk_bytes(c);
            since_check += spill_chunk_bytes(c);
            tips = since_check >= RECHECK && !spill_budget_holds();
            since_check = since_check >= RECHECK ? 0 : since_check;
        }
        if (r == CUDA_SUCCESS && !tips)
            continue;
        give_back(m, m->fresh, i + tips);
        spill_budget_give(granted, 0);
        if (r != CUDA_SUCCESS && r != CUDA_ERROR_OUT_OF_MEMORY)
            return SPILL_REASON_DRIVER;
        return c->tier == SPILL_RAM ? SPILL_REASON_RAM : SPILL_REASON_VRAM;
    }
    return SPILL_REASON_NONE;
}

static CUresult open_window(struct move *m)
{
    uint64_t done = 0;
    CUresult r = spill_arena_take(m->bytes, &m->window);
    if (r != CUDA_SUCCESS)
        return m->window = 0, r;
    for (uint32_t i = 0; i < m->count && r == CUDA_SUCCESS; i++) {
        r = spill_map(m->window + done, spill_chunk_bytes(&m->fresh[i]), m->fresh[i].handle);
        if (r == CUDA_SUCCESS)
            done += spill_chunk_bytes(&m->fresh[i]);
    }
    if (r == CUDA_SUCCESS)
        r = spill_open(m->window, m->bytes, m->region->device, m->fresh, m->count); /* some drivers copy to RAM with the CPU */
    if (r != CUDA_SUCCESS) {
        if (!done || spill_unmap_surely(m->window, done) == CUDA_SUCCESS)
            spill_arena_give(m->window, m->bytes);
        m->window = 0;
    }
    return r;
}

/* The window is not needed any more. Where the driver doesn't close it, its addresses are given up; the memory behind them has
 * another mapping and stays counted. */
static void close_window(struct move *m)
{
    if (!m->window)
        return;
    CUresult r = spill_unmap_surely(m->window, m->bytes);
    if (r == CUDA_SUCCESS)
        spill_arena_give(m->window, m->bytes);
    else
        spill_log(SPILL_LOG_ERROR, "cuMemUnmap of a window failed error=%d bytes=%llu; its addresses are given up", (int)r,
                  (unsigned long long)m->bytes);
    m->window = 0;
}

static void drop(struct move *m)
{
    free(m->fresh);
    free(m->old);
    free(m->list);
    *m = (struct move){ 0 };
}

/* `before`: a move of the same region that is under way and will have changed its list first; or NULL. */
static enum spill_reason prepare(struct move *m, const struct spill_want *want, const struct move *before)
{
    struct spill_region *region = want->region;
    uint64_t pieces = (want->bytes - want->stay + want->piece - 1) / want->piece + (want->stay > 0);
    uint32_t first = spill_chunk_at(region, want->offset), last = spill_chunk_at(region, want->offset + want->bytes - 1);
    uint64_t room = region->chunk_count + pieces + (before ? before->count : 0);
    *m = (struct move){ .region = region, .offset = want->offset, .bytes = want->bytes, .to = want->to, .device = region->device,
                        .old_count = last - first + 1 };
    m->fresh = calloc(pieces, sizeof *m->fresh);
    m->old = calloc(m->old_count, sizeof *m->old);
    m->list = calloc(room, sizeof *m->list);
    m->stream = spill_context_stream(region->ctx);
    enum spill_reason why = SPILL_REASON_DRIVER;
    if (m->fresh && m->old && m->list && m->stream) {
        cut(m, want);
        why = take_backings(m);
    }
    if (why == SPILL_REASON_NONE && open_window(m) != CUDA_SUCCESS) {
        give_back(m, m->fresh, m->count);
        why = SPILL_REASON_DRIVER;
    }
    if (why != SPILL_REASON_NONE)
        drop(m);
    return why;
}

static CUresult copy_wait(struct move *m)
{
    CUresult r = spill_driver()->cuStreamSynchronize(m->stream);
    m->copying = r != CUDA_SUCCESS;
    return r;
}

/* A move that was prepared and will not be made, or that failed before its switch-over. */
static void abandon(struct move *m)
{
    if (!m->region)
        return;
    for (int i = 0; m->copying && i < ATTEMPTS; i++)
        copy_wait(m);
    if (m->copying) {
        /* Something may still write through the window: neither it nor what is behind it is used again. */
        spill_log(SPILL_LOG_ERROR, "a copy of %llu bytes did not end; its backings are given up", (unsigned long long)m->bytes);
    } else {
        close_window(m);
        give_back(m, m->fresh, m->count);
    }
    drop(m);
}

void spill_move_tidy(void)
{
    abandon(&leftover);
}

/* Needs a safepoint of its own, because nothing else may be prepared before. */
static enum spill_reason tidy_first(const struct spill_series *series)
{
    if (!leftover.region)
        return SPILL_REASON_NONE;
    enum spill_reason why = spill_safepoint_enter(series->deadline_ns);
    if (why == SPILL_REASON_NONE) {
        spill_move_tidy();
        spill_safepoint_leave(series->bulk);
    }
    return why;
}

/* ---- in the safepoint ---- */

static CUresult copy_start(struct move *m)
{
    CUdeviceptr from = m->region->base + m->offset;
    CUresult r = CUDA_SUCCESS;
    m->copying = true;
    /* One for each tier, because not every driver takes ranges that cross them. */
    for (uint32_t i = 0; i < m->count && r == CUDA_SUCCESS;) {
        uint64_t at = (uint64_t)(m->fresh[i].start - m->fresh[0].start) << SPILL_GRANULE_SHIFT, bytes = 0;
        for (uint8_t tier = m->fresh[i].tier; i < m->count && m->fresh[i].tier == tier; i++)
            bytes += spill_chunk_bytes(&m->fresh[i]);
        r = spill_driver()->cuMemcpyDtoDAsync_v2(m->window + at, from + at, bytes, m->stream);
    }
    return r;
}

/* Put the old mapping back over the span, of which the first `mapped` bytes have new chunks. False: it is a hole now. */
static bool restore(struct move *m, uint64_t mapped)
{
    CUdeviceptr at = m->region->base + m->offset;
    CUresult r = CUDA_SUCCESS;
    uint64_t done = 0;
    if (mapped && spill_unmap_surely(at, mapped) != CUDA_SUCCESS)
        return false;
    for (uint32_t c = 0; c < m->old_count; c++) {
        uint64_t bytes = spill_chunk_bytes(&m->old[c]);
        for (int i = 0; i < ATTEMPTS; i++)
            if ((r = spill_map(at + done, bytes, m->old[c].handle)) == CUDA_SUCCESS)
                break;
        if (r != CUDA_SUCCESS)
            return false;
        done += bytes;
    }
    for (int i = 0; i < ATTEMPTS; i++)
        if ((r = spill_open(at, m->bytes, m->region->device, m->old, m->old_count)) == CUDA_SUCCESS)
            return true;
    return false;
}

static void poison(struct move *m, uint32_t first, CUresult error)
{
    struct spill_region *region = m->region;
    for (uint32_t i = first; i < first + m->old_count; i++)
        region->chunks[i].hole = true;
    region->poisoned = true;
    atomic_store_explicit(&spill_poison, (int)error, memory_order_relaxed);
    spill_count(&spill_move_stats()->poisoned, 1);
    spill_log(SPILL_LOG_ERROR, "a move failed with error=%d, and so did putting the old mapping back: %llu bytes at 0x%llx are lost. "
              "Launches and whatever touches them answer that error from now on; restart the program", (int)error,
              (unsigned long long)m->bytes, region->base + m->offset);
}

/* Bytes that changed their tier. */
static uint64_t moved_bytes(const struct move *m)
{
    uint64_t was = 0;
    for (uint32_t i = 0; i < m->old_count; i++)
        was += m->old[i].tier == SPILL_RAM ? spill_chunk_bytes(&m->old[i]) : 0;
    return m->into_ram > was ? m->into_ram - was : was - m->into_ram;
}

/* The new chunks in the place of the old ones. */
static void install(struct move *m, uint32_t first)
{
    struct spill_region *region = m->region;
    int64_t into_ram = (int64_t)moved_bytes(m) * (m->to == SPILL_RAM ? 1 : -1);
    region->ram_bytes += (uint64_t)into_ram;
    spill_count(&spill_stats()->spilled_bytes, into_ram);
    struct spill_chunk *list = m->list, *was = region->chunks;
    uint32_t after = region->chunk_count - first - m->old_count;
    memcpy(list, was, first * sizeof *list);
    memcpy(list + first, m->fresh, m->count * sizeof *list);
    memcpy(list + first + m->count, was + first + m->old_count, after * sizeof *list);
    region->chunks = list;
    region->chunk_count = first + m->count + after;
    m->list = was; /* freed with the move */
}

static CUresult switch_over(struct move *m)
{
    struct spill_region *region = m->region;
    CUdeviceptr at = region->base + m->offset;
    uint32_t first = spill_chunk_at(region, m->offset);
    uint64_t done = 0;
    memcpy(m->old, region->chunks + first, m->old_count * sizeof *m->old);
    CUresult r = spill_unmap(at, m->bytes);
    if (r != CUDA_SUCCESS)
        return r;
    for (uint32_t i = 0; i < m->count && r == CUDA_SUCCESS; i++) {
        r = spill_map(at + done, spill_chunk_bytes(&m->fresh[i]), m->fresh[i].handle);
        if (r == CUDA_SUCCESS)
            done += spill_chunk_bytes(&m->fresh[i]);
    }
    if (r == CUDA_SUCCESS)
        r = spill_open(at, m->bytes, region->device, m->fresh, m->count);
    if (r == CUDA_SUCCESS)
        install(m, first);
    else if (!restore(m, done))
        poison(m, first, r);
    return r;
}

/* ---- after it ---- */

static void finish(struct move *m)
{
    if (!m->region)
        return;
    close_window(m);
    give_back(m, m->old, m->old_count);
    spill_account(m->region->device, 0, 0); /* the peaks */
    spill_move_add(m->to, moved_bytes(m));
    drop(m);
}

/* Pinning lasts ten times as long as copying. In a pause so little of it is done that the pause stays one; where a move as long as `m`
 * would pin more, the series ends, and the next one is prepared with the gate open. */
static bool pins_slowly(const struct move *m)
{
    return m->into_ram > PIN_IN_PAUSE && !spill_pool_has_ram(m->into_ram);
}

/* Copy and switch over `m`; meanwhile prepare `*then`, if the series goes on, and finish the move `last`. True if it was made, also
 * where the series ends with it: *why tells. */
static bool make(struct move *m, struct move *last, struct spill_series *series, struct move *then, enum spill_reason *why)
{
    uint64_t began = spill_now_ns();
    CUresult r = copy_start(m);
    struct spill_want want;
    bool alone = !last->region && (!m->into_ram || m->into_ram == m->bytes);
    finish(last);
    if (r == CUDA_SUCCESS && spill_now_ns() < series->pause_until_ns && !pins_slowly(m) && series->next(series->arg, &want))
        *why = prepare(then, &want, m->region == want.region ? m : NULL);
    if (r == CUDA_SUCCESS)
        r = copy_wait(m);
    if (r == CUDA_SUCCESS && alone && !then->region)
        spill_steady_seen(m->region->device, m->bytes, spill_now_ns() - began);
    if (r == CUDA_SUCCESS)
        r = switch_over(m);
    if (r != CUDA_SUCCESS) {
        spill_count(&spill_move_stats()->rolled_back, 1);
        spill_log(SPILL_LOG_INFO, "a move of %llu bytes failed error=%d; nothing was moved", (unsigned long long)m->bytes, (int)r);
        *why = SPILL_REASON_DRIVER;
        return false;
    }
    series->moved += moved_bytes(m);
    return true;
}

static enum spill_reason run_series(struct spill_series *series, struct spill_want *want)
{
    struct move now = { 0 }, then = { 0 }, last = { 0 };
    enum spill_reason why = prepare(&now, want, NULL);
    if (why != SPILL_REASON_NONE)
        return why;
    why = spill_safepoint_enter(series->deadline_ns);
    if (why != SPILL_REASON_NONE) {
        leftover = now;
        return why;
    }
    /* It may have been pinned until the gate was closed, by a hook that was inside. */
    if (!spill_movable(now.region))
        why = SPILL_REASON_PINNED;
    series->pause_until_ns = spill_now_ns() + series->pause_ns;
    while (now.region && why == SPILL_REASON_NONE) {
        if (!make(&now, &last, series, &then, &why))
            break;
        last = now;
        now = then;
        then = (struct move){ 0 };
    }
    close_window(&last);
    if (now.region && now.region->poisoned)
        drop(&now); /* its backings are part of the hole */
    else
        abandon(&now);
    abandon(&then);
    spill_safepoint_leave(series->bulk);
    finish(&last);
    return why;
}

enum spill_reason spill_move_series(struct spill_series *series)
{
    struct spill_want want;
    CUcontext popped;
    enum spill_reason why;
    series->moved = 0;
    /* Before anything is prepared: in a dead process the driver isn't even asked for memory. */
    if (!spill_may_move())
        return spill_count(&spill_move_stats()->refused_state, 1), SPILL_REASON_STATE;
    if (spill_capturing())
        return spill_count(&spill_move_stats()->refused_capture, 1), SPILL_REASON_CAPTURE;
    if (!series->next(series->arg, &want))
        return SPILL_REASON_NOTHING;
    if ((why = tidy_first(series)) != SPILL_REASON_NONE)
        return why;
    if (spill_driver()->cuCtxPushCurrent_v2(want.region->ctx) != CUDA_SUCCESS)
        return SPILL_REASON_DRIVER;
    CUstreamCaptureMode mode = spill_capture_enter();
    why = run_series(series, &want);
    spill_capture_leave(mode);
    spill_driver()->cuCtxPopCurrent_v2(&popped);
    return why;
}
