/* SPDX-License-Identifier: Apache-2.0 */
/* Address space and pages of everything that is not VMM, and what recycled memory holds. Called by mem.c, host.c, pool.c,
 * vmm.c.
 * The driver has address space of its own: segments of PROT_NONE in which allocations are opened. What is freed is closed
 * again: no malloc of the program ever gets its address, so that a stale access faults until an allocation of the same size
 * takes it over, as it often does on a GPU; other sizes get fresh addresses as long as there are some.
 * Contents: a page that was never touched in this process is zero, as the kernel gives it; of every tier it is known how
 * many touched bytes were given back, and that many bytes of what is allocated next are poison. So neither old bytes nor
 * zeroes can be relied on (cuda.h: the memory is not cleared), and memory that nobody touches still costs nothing.
 * Rules: a leaf lock of its own; nothing here knows contexts or maps.
 */
#define _GNU_SOURCE
#include "doubt.h"
#include "state.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((uint64_t)4096)
#define SEGMENT ((uint64_t)64 << 30)
#define SMALL ((uint64_t)1 << 20) /* from here on at whole granules */
#define POISON 0xA5

struct range {
    uint64_t base, size;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct range *gaps; /* free, sorted by address, never adjacent */
static size_t gap_count, gap_room;
static struct range *segments;
static size_t segment_count;
static struct range unused; /* of the newest segment: small allocations take its end, others its beginning */
static uint64_t recycled[SIM_MAX_DEVICES + 1]; /* touched bytes given back and not yet handed out; the last one is RAM */

static uint64_t *recycled_of(int tier)
{
    return &recycled[tier < 0 ? SIM_MAX_DEVICES : tier];
}

/* ---- address space */

static bool gap_insert(size_t at, uint64_t base, uint64_t size)
{
    if (gap_count == gap_room) {
        size_t room = gap_room ? 2 * gap_room : 64;
        struct range *more = realloc(gaps, room * sizeof *more);
        if (!more)
            return false;
        gaps = more;
        gap_room = room;
    }
    memmove(gaps + at + 1, gaps + at, (gap_count - at) * sizeof *gaps);
    gaps[at] = (struct range){base, size};
    gap_count++;
    return true;
}

static void gap_remove(size_t at)
{
    gap_count--;
    memmove(gaps + at, gaps + at + 1, (gap_count - at) * sizeof *gaps);
}

static size_t gap_from(uint64_t p)
{
    size_t lo = 0, hi = gap_count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (gaps[mid].base >= p)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

/* A range becomes free. Out of memory loses address space, nothing else. */
static void gap_give(uint64_t base, uint64_t size)
{
    size_t at = gap_from(base);
    bool left = at && gaps[at - 1].base + gaps[at - 1].size == base;
    bool right = at < gap_count && base + size == gaps[at].base;
    if (left) {
        gaps[at - 1].size += size;
        if (right) {
            gaps[at - 1].size += gaps[at].size;
            gap_remove(at);
        }
    } else if (right) {
        gaps[at].base = base;
        gaps[at].size += size;
    } else {
        gap_insert(at, base, size);
    }
}

/* From a gap of exactly this size, or from any. 0: nothing fits. Everything in a gap begins at a multiple of a page. */
static uint64_t gap_take(uint64_t size, uint64_t align, bool exact)
{
    for (size_t i = 0; i < gap_count; i++) {
        uint64_t base = sim_round(gaps[i].base, align), end = gaps[i].base + gaps[i].size;
        if (base > end || size > end - base || (exact && size != gaps[i].size))
            continue;
        uint64_t before = base - gaps[i].base, after = end - base - size;
        if (before && after) {
            if (!gap_insert(i + 1, base + size, after))
                return 0;
            gaps[i].size = before;
        } else if (before) {
            gaps[i].size = before;
        } else if (after) {
            gaps[i] = (struct range){base + size, after};
        } else {
            gap_remove(i);
        }
        return base;
    }
    return 0;
}

/* Addresses that nobody had before. */
static uint64_t fresh_take(uint64_t size, bool small)
{
    if (size > unused.size)
        return 0;
    unused.size -= size;
    if (small)
        return unused.base + unused.size;
    unused.base += size;
    return unused.base - size;
}

static bool segment_new(uint64_t least)
{
    struct range *more = realloc(segments, (segment_count + 1) * sizeof *more);
    if (!more)
        return false;
    segments = more;
    least += 3 * SIM_GRAN; /* its beginning is rounded up, and a granule at each end keeps it apart from other mappings */
    for (uint64_t size = least > SEGMENT ? least : SEGMENT;; size = size / 2 < least ? least : size / 2) {
        void *p = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p != MAP_FAILED) {
            uint64_t base = (uint64_t)(uintptr_t)p, first = sim_round(base, SIM_GRAN) + SIM_GRAN;
            segments[segment_count++] = (struct range){base, size};
            if (unused.size)
                gap_give(unused.base, unused.size);
            unused = (struct range){first, (base + size - first) / SIM_GRAN * SIM_GRAN - SIM_GRAN};
            return true;
        }
        if (size == least)
            return false;
    }
}

/* Bytes of address space that an allocation takes. */
static uint64_t span_of(uint64_t size)
{
    return sim_round(size, size < SMALL ? PAGE : SIM_GRAN);
}

bool sim_pages_own(uint64_t p)
{
    bool own = false;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < segment_count; i++)
        own |= p - segments[i].base < segments[i].size;
    pthread_mutex_unlock(&mutex);
    return own;
}

void *sim_pages(uint64_t size)
{
    bool small = size < SMALL;
    uint64_t span = span_of(size), align = small ? PAGE : SIM_GRAN;
    pthread_mutex_lock(&mutex);
    uint64_t base = gap_take(span, align, true);
    if (!base)
        base = fresh_take(span, small);
    if (!base)
        base = gap_take(span, align, false);
    if (!base && segment_new(sim_round(span, SIM_GRAN)))
        base = fresh_take(span, small);
    pthread_mutex_unlock(&mutex);
    void *p = (void *)(uintptr_t)base;
    if (!base)
        return NULL;
    if (mprotect(p, sim_round(size, PAGE), PROT_READ | PROT_WRITE)) { /* too many mappings */
        sim_pages_free(p, size);
        return NULL;
    }
    if (size >= SIM_GRAN)
        madvise(p, size, MADV_HUGEPAGE);
    return p;
}

void sim_pages_free(void *p, uint64_t size)
{
    uint64_t span = span_of(size);
    /* A new mapping, not mprotect: it gives the pages back, and forgets what madvise said of the old one. */
    if (mmap(p, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return; /* too many mappings: the address is not used again */
    pthread_mutex_lock(&mutex);
    gap_give((uint64_t)(uintptr_t)p, span);
    pthread_mutex_unlock(&mutex);
}

/* ---- contents */

/* Call `see` for each run of pages in memory. */
static void each_touched(uint64_t base, uint64_t size, void (*see)(uint64_t base, uint64_t size, void *arg), void *arg)
{
    unsigned char in[8192];
    for (uint64_t at = base, end = base + sim_round(size, PAGE); at < end;) {
        uint64_t n = end - at < sizeof in * PAGE ? end - at : sizeof in * PAGE;
        if (mincore((void *)(uintptr_t)at, n, in))
            return;
        for (uint64_t i = 0, j; i < n / PAGE; i = j + 1) {
            for (j = i; j < n / PAGE && in[j] & 1; j++)
                ;
            if (j > i)
                see(at + i * PAGE, (j - i) * PAGE, arg);
        }
        at += n;
    }
}

static void add(uint64_t base, uint64_t size, void *arg)
{
    (void)base;
    *(uint64_t *)arg += size;
}

static void spoil(uint64_t base, uint64_t size, void *arg)
{
    (void)arg;
    memset((void *)(uintptr_t)base, POISON, size);
}

void sim_poison_touched(void *p, uint64_t size)
{
    each_touched((uint64_t)(uintptr_t)p, size, spoil, NULL);
}

void sim_recycle_pages(int tier, const void *p, uint64_t size)
{
    uint64_t bytes = 0;
    each_touched((uint64_t)(uintptr_t)p, size, add, &bytes);
    sim_recycle(tier, bytes);
}

void sim_recycle(int tier, uint64_t bytes)
{
    pthread_mutex_lock(&mutex);
    *recycled_of(tier) += bytes;
    pthread_mutex_unlock(&mutex);
}

/* How many of the first bytes of a new allocation are recycled ones. */
static uint64_t take_recycled(int tier, uint64_t size)
{
    pthread_mutex_lock(&mutex);
    uint64_t *left = recycled_of(tier), n = *left < size ? *left : size;
    *left -= n;
    pthread_mutex_unlock(&mutex);
    return sim_config()->poison ? size : n;
}

void sim_poison_new(int tier, void *p, uint64_t size)
{
    memset(p, POISON, take_recycled(tier, size));
}

static bool put(int fd, uint64_t at, uint64_t end)
{
    char block[16384];
    memset(block, POISON, sizeof block);
    for (uint64_t n; at < end; at += n) {
        n = end - at < sizeof block ? end - at : sizeof block;
        if (pwrite(fd, block, n, (off_t)at) != (ssize_t)n)
            return false;
    }
    return true;
}

bool sim_poison_file(int tier, int fd, uint64_t offset, uint64_t size)
{
    uint64_t end = offset + size, n = take_recycled(tier, size);
    bool ok = put(fd, offset, offset + n);
    /* Doubted, a page of every granule breaks whoever counts on zeroes, and costs little. */
    for (uint64_t at = offset + n; ok && at < end && sim_doubt(SIM_DOUBT_FRESH); at += SIM_GRAN)
        ok = put(fd, at, at + PAGE < end ? at + PAGE : end);
    return ok;
}
