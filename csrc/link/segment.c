/* SPDX-License-Identifier: Apache-2.0 */
/* The segment, as segment.h says: both sides of its sequence lock. */
#define _GNU_SOURCE /* memfd_create, F_ADD_SEALS */
#include "link/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1: nobody else gets a mapping to write to */
#endif

enum { SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, TRIES = 10000 };

/* Strings lie between numbers: all of it is copied by words. */
typedef uint64_t __attribute__((may_alias)) word;

static struct spill_segment_file unshared;
static struct spill_segment_file *segment = &unshared;
static size_t segment_bytes;
static int segment_fd = -1;

struct spill_segment_file *spill_segment(void) { return __atomic_load_n(&segment, __ATOMIC_ACQUIRE); }
int spill_segment_fd(void) { return __atomic_load_n(&segment_fd, __ATOMIC_ACQUIRE); }

void spill_segment_begin(void)
{
    uint64_t *sequence = &spill_segment()->sequence;
    uint64_t now = __atomic_load_n(sequence, __ATOMIC_RELAXED);
    while (now & 1 || !__atomic_compare_exchange_n(sequence, &now, now + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        sched_yield();
        now = __atomic_load_n(sequence, __ATOMIC_RELAXED);
    }
}

void spill_segment_end(void)
{
    __atomic_fetch_add(&spill_segment()->sequence, 1, __ATOMIC_RELEASE);
}

/* Field 22 of /proc/self/stat; the command in field 2 may hold spaces and brackets. 0: unknown. */
static uint64_t start_time(void)
{
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at, NULL, 10) : 0;
}

/* The descriptor of `bytes` bytes of shared memory that will keep this size, mapped at *at; or -1 and errno. */
static int shared_memory(size_t bytes, void **at)
{
    int fd = memfd_create("spillshim", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -1;
    /* Allocated now: a page that is missing later would be a SIGBUS in the middle of somebody's program. */
    int err = posix_fallocate(fd, 0, (off_t)bytes);
    *at = err ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!err && *at == MAP_FAILED)
        err = errno;
    /* After our own mapping; kernels that do not know it refuse it alone. */
    if (!err)
        fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
    if (!err && fcntl(fd, F_ADD_SEALS, SEALS) < 0)
        err = errno;
    if (!err)
        return fd;
    if (*at != MAP_FAILED)
        munmap(*at, bytes);
    close(fd);
    errno = err;
    return -1;
}

int spill_segment_make(uint64_t job)
{
    void *at;
    long page = sysconf(_SC_PAGESIZE);
    size_t bytes = (sizeof unshared + (size_t)page - 1) / (size_t)page * (size_t)page;
    if (spill_segment_fd() >= 0)
        return 0;
    int fd = shared_memory(bytes, &at);
    if (fd < 0)
        return errno;
    struct spill_segment_file *made = at;
    *made = (struct spill_segment_file){ .magic = SPILL_SEGMENT_MAGIC, .version = SPILL_SEGMENT_VERSION, .bytes = bytes,
                                         .pid = (uint64_t)getpid(), .started = start_time(), .job = job,
                                         .moves = unshared.moves };
    segment_bytes = bytes;
    __atomic_store_n(&segment_fd, fd, __ATOMIC_RELEASE);
    __atomic_store_n(&segment, made, __ATOMIC_RELEASE);
    return 0;
}

void spill_segment_abandon(void)
{
    struct spill_segment_file *was = spill_segment();
    int fd = spill_segment_fd();
    /* A thread that the child does not have may have been in the middle of a change. */
    memset(&unshared, 0, sizeof unshared);
    __atomic_store_n(&segment, &unshared, __ATOMIC_RELEASE);
    __atomic_store_n(&segment_fd, -1, __ATOMIC_RELEASE);
    if (fd >= 0) {
        munmap(was, segment_bytes);
        close(fd);
    }
}

void spill_segment_publish(enum spill_state state, const char *why, uint64_t vram, uint64_t ram, uint64_t managed,
                           uint64_t regions)
{
    struct spill_segment_file *to = spill_segment();
    union {
        char text[SPILL_SEGMENT_WHY];
        uint64_t words[SPILL_SEGMENT_WHY / sizeof(uint64_t)];
    } reason = { "" };
    snprintf(reason.text, sizeof reason.text, "%s", why);
    spill_segment_begin();
    __atomic_store_n(&to->state, state, __ATOMIC_RELAXED);
    for (size_t i = 0; i < sizeof reason.words / sizeof reason.words[0]; i++)
        __atomic_store_n((word *)to->why + i, reason.words[i], __ATOMIC_RELAXED);
    __atomic_store_n(&to->vram, vram, __ATOMIC_RELAXED);
    __atomic_store_n(&to->ram, ram, __ATOMIC_RELAXED);
    __atomic_store_n(&to->managed, managed, __ATOMIC_RELAXED);
    __atomic_store_n(&to->regions, regions, __ATOMIC_RELAXED);
    spill_segment_end();
}

/* ---- the reader ---- */

/* One attempt at a copy of one moment. A reader's loads are acquiring, so that the second look at the number comes last; stores
 * are not reordered on the processors that this is built for. */
static bool copy(const struct spill_segment_file *from, struct spill_segment_file *to)
{
    const word *source = (const word *)from;
    word *target = (word *)to;
    uint64_t before = __atomic_load_n(&from->sequence, __ATOMIC_ACQUIRE);
    for (size_t i = 0; i < sizeof *to / sizeof(word); i++)
        target[i] = __atomic_load_n(&source[i], __ATOMIC_ACQUIRE);
    return !(before & 1) && __atomic_load_n(&from->sequence, __ATOMIC_RELAXED) == before;
}

int spill_segment_read(int fd, struct spill_segment_file *out)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS), err = EAGAIN;
    if (seals < 0 || fstat(fd, &st) < 0)
        return errno == EINVAL ? -EPERM : -errno; /* EINVAL: no file that could be sealed */
    if ((seals & SEALS) != SEALS)
        return -EPERM;
    if (st.st_size < (off_t)sizeof *out)
        return -EPROTO;
    const struct spill_segment_file *file = mmap(NULL, sizeof *out, PROT_READ, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED)
        return -errno;
    for (int i = 0; i < TRIES && err; i++) {
        if (copy(file, out))
            err = 0;
        else
            sched_yield();
    }
    munmap((void *)file, sizeof *out);
    if (!err && (out->magic != SPILL_SEGMENT_MAGIC || out->version != SPILL_SEGMENT_VERSION ||
                 out->bytes != (uint64_t)st.st_size))
        err = EPROTO;
    out->why[SPILL_SEGMENT_WHY - 1] = 0;
    return -err;
}
