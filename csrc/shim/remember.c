/* SPDX-License-Identifier: Apache-2.0 */
/* Remembering, as remember.h says. */
#include "shim/remember.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "link/own.h"
#include "shim/config.h"
#include "shim/json.h"
#include "shim/log.h"
#include "tiering/moving.h"

enum { FILE_MAX = 16384, NAME = 80, MAX_FILES = 64 };
#define DOUBTED UINT64_MAX

/* How each file begins. Python knows it too. */
#define HEAD "{\"version\": 1, \"keep\": "

/* One writer at a time, and no large arrays on the stacks of the program's threads. */
static atomic_flag writing = ATOMIC_FLAG_INIT;
static struct spill_late list[SPILL_LATE_MAX];
static uint64_t written[SPILL_LATE_MAX]; /* by place in the list: `need` as it was written down, and 1; 0: nothing was; or DOUBTED */
static char text[FILE_MAX];
static atomic_bool rested;

bool spill_remember_wanted(void) { return spill_config()->remember[0] == '/'; }

/* The folder, or -1 and errno. */
static int open_folder(void)
{
    int fd = open(spill_config()->remember, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int err = fd < 0 ? 0 : spill_own_check(fd, S_IFDIR);
    if (!err)
        return fd;
    close(fd);
    errno = err;
    return -1;
}

static void name_of(uint64_t limit, uint32_t index, uint64_t size, char out[NAME])
{
    snprintf(out, NAME, "%" PRIu64 "-%" PRIu32 "-%" PRIu64 ".json", limit, index, size);
}

/* ---- reading ---- */

/* The file's text, which ends as a whole one does; 0 or an errno. */
static int read_file(const char *name, char *out, size_t room)
{
    int folder = open_folder(), err = folder < 0 ? errno : 0;
    ssize_t length = 0;
    /* NONBLOCK: should it be a pipe, nobody waits for its other end. */
    int fd = err ? -1 : openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (!err)
        err = fd < 0 ? errno : spill_own_check(fd, S_IFREG);
    if (!err && (length = read(fd, out, room - 1)) < 0)
        err = errno;
    if (fd >= 0)
        close(fd);
    if (folder >= 0)
        close(folder);
    if (err)
        return err;
    out[length] = 0;
    return strncmp(out, HEAD, sizeof HEAD - 1) == 0 && length > 2 && strcmp(out + length - 2, "}\n") == 0 ? 0 : EPROTO;
}

bool spill_remember_recall(uint64_t limit, uint32_t index, uint64_t size, struct spill_recall *out)
{
    static char content[FILE_MAX]; /* under the engine lock */
    char name[NAME], steady[6];
    if (spill_config()->holdback.set)
        return false; /* somebody knows better */
    name_of(limit, index, size, name);
    int err = read_file(name, content, sizeof content);
    if (err) {
        if (err != ENOENT) /* `spillshim run` has told it, too */
            spill_log(SPILL_LOG_INFO, "what is remembered of an allocation is ignored: %s (%s/%s)",
                      err == EPROTO ? "it is damaged or of another version" : strerror(err), spill_config()->remember, name);
        return false;
    }
    struct spill_recall r;
    if (sscanf(content, HEAD "%" SCNu64 ", \"after\": %" SCNu32 ", \"waits\": %" SCNu64 ", \"rest\": %" SCNu64 ", \"steady\": %5[a-z]", &r.keep,
               &r.after, &r.waits, &r.rest, steady) != 5 || r.keep > limit || r.waits > UINT32_MAX || r.rest > UINT32_MAX)
        return false;
    r.trusted = strcmp(steady, "true") == 0;
    *out = r;
    char kept[16], of[16];
    spill_log(SPILL_LOG_INFO, "remembered: %s of VRAM came to be needed after an allocation of %s%s", spill_size_text(out->keep, kept),
              spill_size_text(size, of), out->trusted ? "" : ", differently each time: not used");
    return true;
}

/* ---- writing ---- */

/* Whether one more file may be made: a program that never allocates the same twice must not fill the disk. */
static bool may_add(int folder, const char *name)
{
    int count = 0, copy;
    if (faccessat(folder, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return true;
    copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *all = copy < 0 ? NULL : fdopendir(copy);
    if (!all) {
        if (copy >= 0)
            close(copy);
        return false;
    }
    while (count <= MAX_FILES && readdir(all))
        count++;
    closedir(all);
    return count <= MAX_FILES;
}

/* Replace the file as a whole: whoever reads it meanwhile reads the old one or the new one. */
static int replace(int folder, const char *name, const char *bytes, size_t length)
{
    char draft[32];
    snprintf(draft, sizeof draft, ".%d", (int)getpid());
    unlinkat(folder, draft, 0);
    int fd = openat(folder, draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    ssize_t done = write(fd, bytes, length);
    int err = done == (ssize_t)length ? 0 : done < 0 ? errno : ENOSPC;
    if (close(fd) < 0 && !err)
        err = errno;
    if (!err && renameat(folder, draft, folder, name) < 0)
        err = errno;
    if (err)
        unlinkat(folder, draft, 0);
    return err;
}

/* Needs that differ by an eighth at most are the same: drivers and small allocations differ a little. */
static bool agrees(const struct spill_late *e)
{
    uint64_t was = e->was.keep, more = was > e->need ? was : e->need, less = was > e->need ? e->need : was;
    return !was || more - less <= more / 8;
}

/* When something is written down. */
enum when {
    NOT_NOW,
    AT_REST,
    AT_EXIT,
    IN_DOUBT, /* less came than was kept, so far: what was known stays, and is not trusted */
};

static size_t compose(const struct spill_late *e, uint32_t count, enum when when)
{
    static const char *const name[] = { "", "rest", "exit", "doubt" };
    const struct spill_recall seen = { e->need, e->after, e->waits, e->rest, agrees(e) }, r = when == IN_DOUBT ? e->was : seen;
    const struct spill_stats *s = spill_stats();
    const struct spill_move_stats *m = spill_move_stats();
    char exe[1024];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = 0;
    struct spill_json t = { text, text + sizeof text };
    spill_json(&t, HEAD "%" PRIu64 ", \"after\": %" PRIu32 ", \"waits\": %" PRIu64 ", \"rest\": %" PRIu64 ", \"steady\": %s", r.keep, r.after,
               r.waits, r.rest, when != IN_DOUBT && r.trusted ? "true" : "false");
    spill_json(&t, ", \"when\": \"%s\", \"pid\": %d, \"exe\": ", name[when], (int)getpid());
    spill_json_string(&t, exe);
    spill_json(&t, ", \"limit\": %" PRIu64 ", \"index\": %" PRIu32 ", \"size\": %" PRIu64 ", \"kept\": %" PRIu64, e->limit, e->index,
               e->size, e->kept);
    spill_json(&t, ", \"vram_peak\": %" PRIu64 ", \"ram_peak\": %" PRIu64 ", \"native_peak\": %" PRIu64, s->vram_peak, s->spilled_peak,
               s->native_peak);
    spill_json(&t, ", \"promoted_bytes\": %" PRIu64 ", \"demoted_bytes\": %" PRIu64 ", \"regions\": %" PRIu64 ", \"allocations\": [",
               m->promoted_bytes, m->demoted_bytes, s->managed_count);
    const char *gap = "";
    for (uint32_t i = 0; i < count && t.end - t.at > 256; i++) {
        if (list[i].device != e->device)
            continue;
        spill_json(&t, "%s[%" PRIu64 ", %" PRIu64 ", %d]", gap, list[i].size, list[i].ram, list[i].rested);
        gap = ", ";
    }
    spill_json(&t, "]}\n");
    return (size_t)(t.at - text);
}

/* How `e` is to be written down, if at all; `last`: its entry in `written`. */
static enum when due(const struct spill_late *e, uint64_t last, enum when when)
{
    bool in_vain = e->kept && e->need < e->kept - e->kept / 8;
    if (when == AT_REST && e->was.trusted && e->need < e->was.keep)
        when = in_vain ? IN_DOUBT : NOT_NOW; /* not kept: what lacks may still come */
    if (when == IN_DOUBT)
        return in_vain && last != DOUBTED ? IN_DOUBT : NOT_NOW;
    return (e->was.keep || (e->payer && e->need)) && e->need + 1 != last ? when : NOT_NOW;
}

static void write_down(enum when when)
{
    int folder = -1, err = 0;
    if (atomic_flag_test_and_set(&writing))
        return;
    uint32_t count = 0;
    if (spill_trylock()) {
        count = spill_late_copy(list);
        spill_unlock();
    }
    for (uint32_t i = 0; i < count && !err; i++) {
        const struct spill_late *e = &list[i];
        char name[NAME];
        enum when how = due(e, written[i], when);
        if (how == NOT_NOW)
            continue;
        name_of(e->limit, e->index, e->size, name);
        if (folder < 0 && (folder = open_folder()) < 0)
            err = errno;
        else if (may_add(folder, name) && !(err = replace(folder, name, text, compose(e, count, how))))
            written[i] = how == IN_DOUBT ? DOUBTED : e->need + 1;
    }
    if (folder >= 0)
        close(folder);
    if (err)
        spill_log(SPILL_LOG_DEBUG, "nothing remembered: %s (%s)", strerror(err), spill_config()->remember);
    atomic_flag_clear(&writing);
}

void spill_remember_rest(void)
{
    rested = true;
    write_down(AT_REST);
}

/* Of a program that never came to rest it isn't known what it would have needed. */
void spill_remember_exit(void)
{
    if (spill_remember_wanted())
        write_down(rested ? AT_EXIT : IN_DOUBT);
}
