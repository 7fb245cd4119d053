/* SPDX-License-Identifier: Apache-2.0 */
/* How much RAM may be pinned. Pinned RAM can't be swapped or reclaimed: too much of it tips the machine over, so it is
 * asked for here before a byte of it is pinned. Called by engine.c, hook_vmm.c and the report hooks.
 * Rules: what is granted but not yet pinned counts as gone for everybody (the ledger); no answer is remembered, memory
 * that was there a second ago may be somebody else's now. */
#include "tiering/tiering.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "link/ledger.h"
#include "shim/log.h"

static struct spill_ledger ledger = { .fd = -1 };
static bool tried;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t own_asked, own_pinned;
static uint64_t host_limit, ram_reserve; /* of this machine's RAM */
static bool limits_known;

static size_t read_file(const char *path, char *text, size_t size)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", spill_settings()->proc_root, path);
    int fd = open(full, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n > 0 ? (size_t)n : 0;
}

/* A field of /proc/meminfo in bytes, 0 if it isn't there. */
static uint64_t meminfo(const char *field)
{
    char text[4096];
    if (!read_file("/proc/meminfo", text, sizeof text))
        return 0;
    for (char *line = text; line; line = strchr(line, '\n'), line += line != NULL)
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':')
            return strtoull(line + strlen(field) + 1, NULL, 10) * 1024;
    return 0;
}

/* Without a lock, because memory reports ask too: threads that race here store the same. */
static void limits(void)
{
    if (__atomic_load_n(&limits_known, __ATOMIC_ACQUIRE))
        return;
    uint64_t total = meminfo("MemTotal");
    __atomic_store_n(&ram_reserve, spill_settings()->ram_reserve(total), __ATOMIC_RELAXED);
    __atomic_store_n(&host_limit, spill_settings()->host_limit(total), __ATOMIC_RELAXED);
    __atomic_store_n(&limits_known, true, __ATOMIC_RELEASE);
}

static uint64_t number_in(const char *dir, const char *file)
{
    char path[600], text[64];
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", dir, file);
    if (!read_file(path, text, sizeof text) || text[0] == 'm' /* "max" */)
        return UINT64_MAX;
    return strtoull(text, NULL, 10);
}

/* The tightest memory.max above this process (cgroup v2), and what is left under it; UINT64_MAX: none. Pages of a driver may
 * not be charged to the cgroup: so what is pinned is held against memory.max as well as against what is left. */
static uint64_t cgroup_limit(uint64_t *left)
{
    char text[1024], dir[512];
    uint64_t limit = UINT64_MAX;
    *left = UINT64_MAX;
    if (!read_file("/proc/self/cgroup", text, sizeof text))
        return limit;
    char *path = strstr(text, "0::/");
    if (!path)
        return limit;
    path += 3;
    path[strcspn(path, "\n")] = 0;
    snprintf(dir, sizeof dir, "%s", path);
    for (;;) {
        uint64_t max = number_in(dir, "memory.max"), current = number_in(dir, "memory.current");
        if (max != UINT64_MAX && current != UINT64_MAX) {
            uint64_t here = current < max ? max - current : 0;
            if (here < *left)
                *left = here;
            if (max < limit)
                limit = max;
        }
        char *slash = strrchr(dir, '/');
        if (!slash || !dir[0])
            return limit;
        *slash = 0;
    }
}

struct spill_ledger *spill_budget_ledger(void)
{
    if (!__atomic_load_n(&tried, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&lock);
        if (!tried) {
            int err = spill_ledger_join(&ledger, spill_settings()->state_dir, spill_settings()->job);
            if (err)
                spill_log(SPILL_LOG_WARN, "cannot share budgets with other processes of this user: %s (folder %s); "
                          "this process goes by its own count", strerror(err),
                          spill_settings()->state_dir[0] ? spill_settings()->state_dir : "/dev/shm/spillshim-UID");
            __atomic_store_n(&tried, true, __ATOMIC_RELEASE);
        }
        pthread_mutex_unlock(&lock);
    }
    return &ledger;
}

bool spill_budget_joined(void)
{
    return __atomic_load_n(&tried, __ATOMIC_ACQUIRE) && ledger.own;
}

void spill_budget_abandon(void)
{
    if (tried)
        spill_ledger_abandon(&ledger);
}

static void publish(void)
{
    if (!ledger.own)
        return;
    __atomic_store_n(&ledger.own->ram_asked, own_asked, __ATOMIC_RELAXED);
    __atomic_store_n(&ledger.own->ram_pinned, own_pinned, __ATOMIC_RELAXED);
}

static bool ask(uint64_t bytes, char why[160])
{
    struct spill_ledger *l = spill_budget_ledger();
    struct spill_ledger_sum sum = { 0 };
    char want[16], a[16], b[16];
    uint64_t cgroup_left, cgroup_most;
    bool granted = false;

    /* In this order: to the kernel all threads of the process are one owner of the flock. */
    pthread_mutex_lock(&lock);
    spill_ledger_lock(l);
    limits();
    if (l->own)
        spill_ledger_sum(l, spill_settings()->job, 0, &sum);
    else
        sum.ram_asked = own_asked, sum.ram_pinned = own_pinned;
    uint64_t pending = sum.ram_asked > sum.ram_pinned ? sum.ram_asked - sum.ram_pinned : 0;
    uint64_t available = meminfo("MemAvailable");
    uint64_t taken = ram_reserve + pending;
    uint64_t room = available > taken ? available - taken : 0;
    cgroup_most = cgroup_limit(&cgroup_left);
    spill_size_text(bytes, want);
    if (sum.ram_asked > host_limit || bytes > host_limit - sum.ram_asked)
        snprintf(why, 160, "%s wanted, %s of the host limit of %s in use (SPILLSHIM_HOST_LIMIT)", want,
                 spill_size_text(sum.ram_asked, a), spill_size_text(host_limit, b));
    else if (bytes > room)
        snprintf(why, 160, "%s wanted, %s of RAM may be pinned: MemAvailable less a reserve (SPILLSHIM_RAM_RESERVE)", want,
                 spill_size_text(room, a));
    else if (pending > cgroup_left || bytes > cgroup_left - pending)
        snprintf(why, 160, "%s wanted, the cgroup has %s left (memory.max)", want, spill_size_text(cgroup_left, a));
    else if (sum.ram_asked > cgroup_most || bytes > cgroup_most - sum.ram_asked)
        snprintf(why, 160, "%s wanted, %s pinned already, memory.max of the cgroup is %s", want, spill_size_text(sum.ram_asked, a),
                 spill_size_text(cgroup_most, b));
    else
        granted = true;
    if (granted) {
        own_asked += bytes;
        publish();
    }
    spill_ledger_unlock(l);
    pthread_mutex_unlock(&lock);
    return granted;
}

bool spill_budget_ask(uint64_t bytes, char why[160])
{
    return ask(bytes, why) || (spill_pool_trim_ram(UINT64_MAX) && ask(bytes, why));
}

void spill_budget_pinned(uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    own_pinned += bytes;
    publish();
    pthread_mutex_unlock(&lock);
}

void spill_budget_give(uint64_t asked, uint64_t pinned)
{
    pthread_mutex_lock(&lock);
    own_asked -= asked;
    own_pinned -= pinned;
    publish();
    pthread_mutex_unlock(&lock);
}

static bool holds(void) { return meminfo("MemAvailable") >= ram_reserve / 2; }

bool spill_budget_holds(void)
{
    return holds() || (spill_pool_trim_ram(UINT64_MAX) && holds());
}

uint64_t spill_budget_ceiling(void)
{
    uint64_t left, total = meminfo("MemTotal"), limit = cgroup_limit(&left);
    limits();
    uint64_t most = total > ram_reserve ? total - ram_reserve : 0;
    if (limit < most)
        most = limit;
    return host_limit < most ? host_limit : most;
}
