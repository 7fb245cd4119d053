/* SPDX-License-Identifier: Apache-2.0 */
/* Budgets between processes. Compiled into the driver and into NVML.
 * Rules: only the owner writes its slot; everything under flock plus a process-local mutex (flock does not exclude
 * threads that share a descriptor); a slot counts only while a process with that pid *and* start time lives *and*
 * somebody holds the slot's file lock: exec keeps pid and start time but drops the lock, a forked child keeps the lock.
 */
#define _GNU_SOURCE
#include "machine.h"

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x33304d47504d4953u /* "SIMPGM03" */
#define SLOTS 256u
#define LOANS 1024u /* a machine that has more shared pieces counts the rest for their owners only */

struct slot {
    int32_t pid; /* 0: free */
    uint32_t unused;
    uint64_t start; /* field 22 of /proc/PID/stat: tells a re-used pid from the old process */
    uint64_t used[SIM_MAX_DEVICES + 1]; /* the last one is RAM */
};

struct loan {
    uint64_t key, bytes; /* key 0: free */
    int32_t tier;
    uint32_t owner; /* slot + 1; 0: has freed it or is dead */
    uint64_t users[SLOTS / 64];
};

struct machine {
    uint64_t magic;
    uint64_t vram, ram;
    uint32_t devices;
    uint32_t high; /* slots from here on were never taken: nobody looks at their pages */
    uint32_t high_loan, unused;
    struct slot slots[SLOTS];
    struct loan loans[LOANS];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int fd = -1;
static struct machine *shared;
static struct slot *mine;
/* What this process has open, and how often. */
static struct { uint64_t key; unsigned times; } *borrowed;
static unsigned borrowed_count, borrowed_room;
static pid_t owner; /* who joined: a forked child must not touch its parent's slot */

static void path_of(char *out, size_t size)
{
    snprintf(out, size, "/dev/shm/simgpu-%u-%s", (unsigned)getuid(), sim_config()->name);
}

/* 0 for a zombie, too: it holds nothing any more. */
uint64_t sim_process_start(pid_t pid)
{
    char path[40], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int f = open(path, O_RDONLY | O_CLOEXEC);
    if (f < 0)
        return 0;
    ssize_t n = read(f, text, sizeof text - 1);
    close(f);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *p = strrchr(text, ')'); /* the command name may hold anything, the last ')' ends it */
    if (!p || p[1] != ' ' || p[2] == 'Z' || p[2] == 'X')
        return 0;
    p += 2;
    for (int field = 3; field < 22; field++) {
        p = strchr(p, ' ');
        if (!p)
            return 0;
        p++;
    }
    return strtoull(p, NULL, 10);
}

static void lock_file(int f)
{
    while (flock(f, LOCK_EX) && errno == EINTR)
        ;
}

/* The lock of one slot: a byte of the file, on our open file description. */
static struct flock slot_lock(const struct machine *m, const struct slot *s, short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = s - m->slots, .l_len = 1};
}

static bool held(const struct machine *m, const struct slot *s, int f)
{
    struct flock l = slot_lock(m, s, F_WRLCK);
    return fcntl(f, F_OFD_GETLK, &l) || l.l_type != F_UNLCK;
}

/* ---- loans; all with the lock of the file held */

static struct loan *loan_of(struct machine *m, uint64_t key)
{
    for (struct loan *l = m->loans; l < m->loans + m->high_loan; l++)
        if (l->key == key)
            return l;
    return NULL;
}

static struct loan *loan_new(struct machine *m, uint64_t key, int tier, uint64_t bytes)
{
    struct loan *l = loan_of(m, key);
    if (!l && !(l = loan_of(m, 0)) && m->high_loan < LOANS)
        l = &m->loans[m->high_loan++];
    if (l && !l->key)
        *l = (struct loan){.key = key, .bytes = bytes, .tier = tier};
    return l;
}

static void loan_settle(struct loan *l)
{
    uint64_t any = l->owner;
    for (unsigned i = 0; i < SLOTS / 64; i++)
        any |= l->users[i];
    if (!any)
        memset(l, 0, sizeof *l);
}

/* A process is gone: what it lent is the borrowers' now, what it borrowed is given back. */
static void slot_free(struct machine *m, struct slot *s)
{
    unsigned n = (unsigned)(s - m->slots);
    for (struct loan *l = m->loans; l < m->loans + m->high_loan; l++) {
        if (!l->key)
            continue;
        if (l->owner == n + 1)
            l->owner = 0;
        l->users[n / 64] &= ~((uint64_t)1 << n % 64);
        loan_settle(l);
    }
    memset(s, 0, sizeof *s);
}

/* Free the slots of the dead. With the lock of the file `f` held. Returns how many slots are taken afterwards. */
static unsigned reap(struct machine *m, int f)
{
    unsigned taken = 0;
    for (struct slot *s = m->slots; s < m->slots + m->high; s++) {
        if (!s->pid)
            continue;
        if (s == mine || (sim_process_start(s->pid) == s->start && held(m, s, f)))
            taken++;
        else
            slot_free(m, s);
    }
    return taken;
}

/* Open, lock and map the file. With `create`, makes it. Returns NULL with nothing held, else *file is locked. */
static struct machine *open_locked(bool create, int *file)
{
    char path[160];
    path_of(path, sizeof path);
    for (int attempt = 0; attempt < 100; attempt++) {
        int f = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0), 0600);
        if (f < 0) {
            if (create)
                sim_complain("cannot open %s: %s", path, strerror(errno));
            return NULL;
        }
        lock_file(f);
        struct stat st;
        if (fstat(f, &st) || st.st_nlink == 0) { /* its last user removed it meanwhile */
            close(f);
            continue;
        }
        if ((size_t)st.st_size < sizeof(struct machine) && (!create || ftruncate(f, sizeof(struct machine)))) {
            close(f);
            return NULL;
        }
        void *p = mmap(NULL, sizeof(struct machine), PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
        if (p == MAP_FAILED) {
            close(f);
            return NULL;
        }
        *file = f;
        return p;
    }
    return NULL;
}

static bool same_shape(const struct machine *m, const struct sim_config *c)
{
    return m->vram == c->vram && m->ram == c->ram && m->devices == (uint32_t)c->devices;
}

static int join_locked(void)
{
    const struct sim_config *c = sim_config();
    int f;
    struct machine *m = open_locked(true, &f);
    if (!m)
        return -1;
    if (m->magic != MAGIC || reap(m, f) == 0) { /* ours to shape */
        if (m->magic) /* a new file is zero already */
            memset(m, 0, sizeof *m);
        m->magic = MAGIC;
        m->vram = c->vram;
        m->ram = c->ram;
        m->devices = (uint32_t)c->devices;
    }
    struct slot *s = m->slots;
    while (s < m->slots + SLOTS && s->pid)
        s++;
    bool full = s == m->slots + SLOTS, differs = !same_shape(m, c);
    if (full || differs) {
        if (full)
            sim_complain("machine \"%s\" already has %d processes; use another SIMGPU_NAME", c->name, SLOTS);
        else
            sim_complain("machine \"%s\" runs with %llu devices of %llu MiB VRAM and %llu MiB RAM, this process asks for "
                         "%d of %llu and %llu; set the same sizes or another SIMGPU_NAME", c->name,
                         (unsigned long long)m->devices, (unsigned long long)(m->vram >> 20),
                         (unsigned long long)(m->ram >> 20), c->devices, (unsigned long long)(c->vram >> 20),
                         (unsigned long long)(c->ram >> 20));
        flock(f, LOCK_UN);
        munmap(m, sizeof *m);
        close(f);
        return -1;
    }
    memset(s, 0, sizeof *s);
    struct flock l = slot_lock(m, s, F_WRLCK);
    fcntl(f, F_OFD_SETLK, &l); /* free: its last owner is dead */
    s->start = sim_process_start(getpid());
    s->pid = getpid();
    if (m->high <= (uint32_t)(s - m->slots))
        m->high = (uint32_t)(s - m->slots) + 1;
    flock(f, LOCK_UN);
    fd = f;
    shared = m;
    mine = s;
    owner = getpid();
    return 0;
}

int sim_machine_join(void)
{
    pthread_mutex_lock(&mutex);
    int result = shared ? 0 : join_locked();
    pthread_mutex_unlock(&mutex);
    return result;
}

void sim_machine_leave(void)
{
    if (owner != getpid())
        return;
    pthread_mutex_lock(&mutex);
    if (shared) {
        lock_file(fd);
        slot_free(shared, mine);
        mine = NULL;
        borrowed_count = 0;
        if (reap(shared, fd) == 0) {
            char path[160];
            path_of(path, sizeof path);
            unlink(path);
        }
        flock(fd, LOCK_UN);
        munmap(shared, sizeof *shared);
        close(fd);
        shared = NULL;
        fd = -1;
        owner = 0;
    }
    pthread_mutex_unlock(&mutex);
}

static unsigned column(int tier)
{
    return tier < 0 ? SIM_MAX_DEVICES : (unsigned)tier;
}

static uint64_t sum(const struct machine *m, int tier)
{
    uint64_t total = 0;
    for (const struct slot *s = m->slots; s < m->slots + m->high; s++)
        if (s->pid)
            total += s->used[column(tier)];
    for (const struct loan *l = m->loans; l < m->loans + m->high_loan; l++)
        if (l->key && !l->owner && l->tier == tier)
            total += l->bytes;
    return total;
}

bool sim_machine_charge(int tier, uint64_t bytes)
{
    bool ok = false;
    pthread_mutex_lock(&mutex);
    if (shared) {
        lock_file(fd);
        uint64_t capacity = tier < 0 ? shared->ram : shared->vram;
        uint64_t used = sum(shared, tier);
        if (used > capacity || bytes > capacity - used) { /* the dead are worth a look only when it matters */
            reap(shared, fd);
            used = sum(shared, tier);
        }
        ok = used <= capacity && bytes <= capacity - used;
        if (ok)
            mine->used[column(tier)] += bytes;
        flock(fd, LOCK_UN);
    }
    pthread_mutex_unlock(&mutex);
    return ok;
}

void sim_machine_return(int tier, uint64_t bytes)
{
    pthread_mutex_lock(&mutex);
    if (shared && owner == getpid()) {
        lock_file(fd);
        uint64_t *used = &mine->used[column(tier)];
        *used -= bytes < *used ? bytes : *used;
        flock(fd, LOCK_UN);
    }
    pthread_mutex_unlock(&mutex);
}

uint64_t sim_shared_key(int f)
{
    struct stat st;
    return fstat(f, &st) ? 1 : (uint64_t)st.st_ino | (uint64_t)1 << 63;
}

void sim_machine_lend(uint64_t key, int tier, uint64_t bytes)
{
    pthread_mutex_lock(&mutex);
    if (shared && owner == getpid()) {
        lock_file(fd);
        struct loan *l = loan_new(shared, key, tier, bytes);
        if (l)
            l->owner = (uint32_t)(mine - shared->slots) + 1;
        flock(fd, LOCK_UN);
    }
    pthread_mutex_unlock(&mutex);
}

void sim_machine_unlend(uint64_t key)
{
    pthread_mutex_lock(&mutex);
    if (shared && owner == getpid()) {
        lock_file(fd);
        struct loan *l = loan_of(shared, key);
        if (l && l->owner == (uint32_t)(mine - shared->slots) + 1) {
            l->owner = 0;
            loan_settle(l);
        }
        flock(fd, LOCK_UN);
    }
    pthread_mutex_unlock(&mutex);
}

/* [mutex] Its place among what is open; a new one is zero. NULL: out of memory. */
static unsigned *times_open(uint64_t key)
{
    unsigned i = 0;
    while (i < borrowed_count && borrowed[i].key != key)
        i++;
    if (i == borrowed_room) {
        void *more = realloc(borrowed, (borrowed_room + 16) * sizeof *borrowed);
        if (!more)
            return NULL;
        borrowed = more;
        borrowed_room += 16;
    }
    if (i == borrowed_count) {
        borrowed[borrowed_count].key = key;
        borrowed[borrowed_count++].times = 0;
    }
    return &borrowed[i].times;
}

void sim_machine_borrow(uint64_t key, int tier, uint64_t bytes)
{
    pthread_mutex_lock(&mutex);
    unsigned *times = shared && owner == getpid() ? times_open(key) : NULL;
    if (times && (*times)++ == 0) {
        lock_file(fd);
        struct loan *l = loan_new(shared, key, tier, bytes);
        unsigned n = (unsigned)(mine - shared->slots);
        if (l)
            l->users[n / 64] |= (uint64_t)1 << n % 64;
        flock(fd, LOCK_UN);
    }
    pthread_mutex_unlock(&mutex);
}

void sim_machine_unborrow(uint64_t key)
{
    pthread_mutex_lock(&mutex);
    unsigned *times = shared && owner == getpid() ? times_open(key) : NULL;
    if (times && *times && --*times == 0) {
        lock_file(fd);
        struct loan *l = loan_of(shared, key);
        unsigned n = (unsigned)(mine - shared->slots);
        if (l) {
            l->users[n / 64] &= ~((uint64_t)1 << n % 64);
            loan_settle(l);
        }
        flock(fd, LOCK_UN);
    }
    if (times && !*times) { /* the last one takes its place */
        for (unsigned i = 0; i < borrowed_count; i++)
            if (&borrowed[i].times == times) {
                borrowed[i] = borrowed[--borrowed_count];
                break;
            }
    }
    pthread_mutex_unlock(&mutex);
}

/* Run `look` on the machine with the lock held; on NULL when there is none. */
static void with_machine(void (*look)(struct machine *, void *), void *arg)
{
    pthread_mutex_lock(&mutex);
    if (shared) {
        lock_file(fd);
        reap(shared, fd);
        look(shared, arg);
        flock(fd, LOCK_UN);
    } else {
        int f;
        struct machine *m = open_locked(false, &f);
        bool live = m && m->magic == MAGIC && reap(m, f) > 0;
        look(live ? m : NULL, arg);
        if (m) {
            flock(f, LOCK_UN);
            munmap(m, sizeof *m);
            close(f);
        }
    }
    pthread_mutex_unlock(&mutex);
}

struct usage {
    int tier;
    uint64_t used, capacity;
};

static void look_usage(struct machine *m, void *arg)
{
    struct usage *u = arg;
    const struct sim_config *c = sim_config();
    u->used = m ? sum(m, u->tier) : 0;
    u->capacity = u->tier < 0 ? (m ? m->ram : c->ram) : (m ? m->vram : c->vram);
}

void sim_machine_usage(int tier, uint64_t *used, uint64_t *capacity)
{
    struct usage u = {.tier = tier};
    with_machine(look_usage, &u);
    *used = u.used;
    *capacity = u.capacity;
}

struct census {
    int device;
    pid_t *pids;
    uint64_t *bytes;
    unsigned room, found;
};

static void look_processes(struct machine *m, void *arg)
{
    struct census *c = arg;
    for (unsigned i = 0; m && i < SLOTS; i++) {
        const struct slot *s = &m->slots[i];
        if (!s->pid || !s->used[c->device])
            continue;
        if (c->found < c->room) {
            c->pids[c->found] = s->pid;
            c->bytes[c->found] = s->used[c->device];
        }
        c->found++;
    }
}

unsigned sim_machine_processes(int device, pid_t *pids, uint64_t *bytes, unsigned room)
{
    struct census c = {.device = device, .pids = pids, .bytes = bytes, .room = room};
    with_machine(look_processes, &c);
    return c.found;
}
