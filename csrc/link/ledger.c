/* SPDX-License-Identifier: Apache-2.0 */
/* The ledger, as ledger.h says. */
#define _GNU_SOURCE /* F_OFD_SETLK */
#include "link/ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "link/own.h"

void spill_ledger_default_dir(char *out, size_t size)
{
    snprintf(out, size, "/dev/shm/spillshim-%u", (unsigned)getuid());
}

/* A slot is live while its owner holds the write lock on the slot's own bytes of the file. The kernel drops that lock when
 * the last copy of the owner's descriptor goes, however the process ends, so no pid is ever compared: pids recycle, and
 * differ between containers that share /dev/shm. */
static struct flock slot_range(int index)
{
    return (struct flock){
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = (off_t)(offsetof(struct spill_ledger_file, slot) + (size_t)index * sizeof(struct spill_ledger_slot)),
        .l_len = sizeof(struct spill_ledger_slot),
    };
}

static bool alive(int fd, const struct spill_ledger_file *file, int index)
{
    struct flock range = slot_range(index);
    if (!__atomic_load_n(&file->slot[index].pid, __ATOMIC_ACQUIRE))
        return false;
    return fcntl(fd, F_OFD_GETLK, &range) < 0 || range.l_type != F_UNLCK;
}

static int open_file(const char *dir, bool create, int *out)
{
    char fallback[64];
    if (!dir || !*dir) {
        spill_ledger_default_dir(fallback, sizeof fallback);
        dir = fallback;
    }
    if (create && mkdir(dir, 0700) < 0 && errno != EEXIST)
        return errno;
    int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dirfd < 0)
        return errno;
    int err = spill_own_check(dirfd, S_IFDIR);
    int fd = -1;
    if (!err) {
        fd = openat(dirfd, "ledger", (create ? O_RDWR | O_CREAT : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC, 0600);
        err = fd < 0 ? errno : spill_own_check(fd, S_IFREG);
    }
    close(dirfd);
    if (err && fd >= 0)
        close(fd);
    *out = err ? -1 : fd;
    return err;
}

static int lock_file(int fd, int operation)
{
    while (flock(fd, operation) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

static void free_dead_slots(struct spill_ledger *l)
{
    for (int i = 0; i < SPILL_LEDGER_SLOTS; i++)
        if (l->file->slot[i].pid && &l->file->slot[i] != l->own && !alive(l->fd, l->file, i))
            memset(&l->file->slot[i], 0, sizeof l->file->slot[i]);
}

/* Under the lock: size and header of a new file, or the check of an old one. A file of another version is refused with
 * EPROTO (its processes may still be running); this process then shares nothing. */
static int prepare(int fd)
{
    struct spill_ledger_file head;
    struct stat st;
    if (fstat(fd, &st) < 0)
        return errno;
    if (st.st_size == 0) {
        if (ftruncate(fd, sizeof(struct spill_ledger_file)) < 0)
            return errno;
        uint32_t header[2] = { SPILL_LEDGER_MAGIC, SPILL_ABI_VERSION };
        return pwrite(fd, header, sizeof header, 0) == (ssize_t)sizeof header ? 0 : EIO;
    }
    if (st.st_size != (off_t)sizeof(struct spill_ledger_file) || pread(fd, &head, 8, 0) != 8 ||
        head.magic != SPILL_LEDGER_MAGIC || head.version != SPILL_ABI_VERSION)
        return EPROTO;
    return 0;
}

static int claim(struct spill_ledger *l, uint64_t job)
{
    free_dead_slots(l);
    for (int i = 0; i < SPILL_LEDGER_SLOTS; i++) {
        struct spill_ledger_slot *slot = &l->file->slot[i];
        struct flock range = slot_range(i);
        if (slot->pid || fcntl(l->fd, F_OFD_SETLK, &range) < 0)
            continue;
        memset(slot, 0, sizeof *slot);
        slot->job = job;
        __atomic_store_n(&slot->pid, (uint32_t)getpid(), __ATOMIC_RELEASE);
        l->own = slot;
        return 0;
    }
    return ENOSPC;
}

int spill_ledger_join(struct spill_ledger *l, const char *dir, uint64_t job)
{
    *l = (struct spill_ledger){ .fd = -1 };
    int err = open_file(dir, true, &l->fd);
    if (err)
        return err;
    err = lock_file(l->fd, LOCK_EX);
    if (!err)
        err = prepare(l->fd);
    if (!err) {
        l->file = mmap(NULL, sizeof *l->file, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
        if (l->file == MAP_FAILED) {
            l->file = NULL;
            err = errno;
        } else {
            err = claim(l, job);
        }
    }
    lock_file(l->fd, LOCK_UN);
    if (err) {
        if (l->file)
            munmap(l->file, sizeof *l->file);
        close(l->fd);
        *l = (struct spill_ledger){ .fd = -1 };
    }
    return err;
}

void spill_ledger_abandon(struct spill_ledger *l)
{
    if (!l->file)
        return;
    munmap(l->file, sizeof *l->file);
    close(l->fd);
    *l = (struct spill_ledger){ .fd = -1 };
}

void spill_ledger_lock(struct spill_ledger *l)
{
    if (!l->file)
        return;
    lock_file(l->fd, LOCK_EX);
    free_dead_slots(l);
}

void spill_ledger_unlock(struct spill_ledger *l)
{
    if (l->file)
        lock_file(l->fd, LOCK_UN);
}

void spill_ledger_sum(const struct spill_ledger *l, uint64_t job, uint64_t key, struct spill_ledger_sum *out)
{
    *out = (struct spill_ledger_sum){ 0 };
    for (int i = 0; l->file && i < SPILL_LEDGER_SLOTS; i++) {
        const struct spill_ledger_slot *slot = &l->file->slot[i];
        if (!__atomic_load_n(&slot->pid, __ATOMIC_ACQUIRE) || (slot != l->own && !alive(l->fd, l->file, i)))
            continue;
        out->processes++;
        out->ram_asked += __atomic_load_n(&slot->ram_asked, __ATOMIC_RELAXED);
        out->ram_pinned += __atomic_load_n(&slot->ram_pinned, __ATOMIC_RELAXED);
        for (int d = 0; d < SPILL_LEDGER_DEVICES; d++) {
            if (__atomic_load_n(&slot->device[d].key, __ATOMIC_ACQUIRE) != key)
                continue;
            out->ram_on_device += __atomic_load_n(&slot->device[d].ram, __ATOMIC_RELAXED);
            if (slot->job == job)
                out->vram_of_job += __atomic_load_n(&slot->device[d].vram, __ATOMIC_RELAXED);
        }
    }
}

/* Open the file in `dir` for reading into `l` (no slot of its own): 0 or an errno. */
static int open_view(const char *dir, struct spill_ledger *l)
{
    struct stat st;
    *l = (struct spill_ledger){ .fd = -1 };
    int err = open_file(dir, false, &l->fd);
    if (err)
        return err;
    if (fstat(l->fd, &st) < 0 || st.st_size != (off_t)sizeof *l->file) {
        close(l->fd);
        return EPROTO;
    }
    l->file = mmap(NULL, sizeof *l->file, PROT_READ, MAP_SHARED, l->fd, 0);
    if (l->file == MAP_FAILED) {
        err = errno;
        close(l->fd);
        return err;
    }
    if (l->file->magic != SPILL_LEDGER_MAGIC || l->file->version != SPILL_ABI_VERSION) {
        spill_ledger_abandon(l);
        return EPROTO;
    }
    return 0;
}

int spill_ledger_read(const char *dir, struct spill_ledger_slot *slots)
{
    struct spill_ledger view;
    int count = 0, err = open_view(dir, &view);
    if (err)
        return -err;
    for (int i = 0; i < SPILL_LEDGER_SLOTS; i++)
        if (alive(view.fd, view.file, i))
            slots[count++] = view.file->slot[i];
    spill_ledger_abandon(&view);
    return count;
}

void spill_ledger_peek(const char *dir, uint64_t job, uint64_t key, struct spill_ledger_sum *out)
{
    struct spill_ledger view;
    *out = (struct spill_ledger_sum){ 0 };
    if (open_view(dir, &view) == 0) {
        spill_ledger_sum(&view, job, key, out);
        spill_ledger_abandon(&view);
    }
}
