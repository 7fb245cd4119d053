/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines, as log.h says. */
#include "shim/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shim/config.h"

enum { LINE = 512, BURST = 32, PER_SECOND = 8 };

/* A token bucket: a burst of 32 lines, then 8 a second. A program that fails in a loop must not flood a terminal, and
 * the one line that explains it must still get out. */
static atomic_long tokens = BURST;
static atomic_long refilled_at;
static atomic_ulong suppressed;

static bool take_token(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    long last = atomic_load(&refilled_at);
    if (now.tv_sec != last && atomic_compare_exchange_strong(&refilled_at, &last, now.tv_sec)) {
        long add = last ? (now.tv_sec - last) * PER_SECOND : 0;
        long have = atomic_load(&tokens);
        long want = have + add > BURST ? BURST : have + add;
        atomic_store(&tokens, want);
    }
    if (atomic_fetch_sub(&tokens, 1) > 0)
        return true;
    atomic_fetch_add(&tokens, 1);
    atomic_fetch_add(&suppressed, 1);
    return false;
}

static void expand(const char *pattern, char *out, size_t size)
{
    size_t n = 0;
    for (const char *p = pattern; *p && n + 1 < size; p++) {
        if (p[0] == '%' && p[1] == 'p') {
            n += (size_t)snprintf(out + n, size - n, "%d", (int)getpid());
            p++;
        } else if (p[0] == '%' && p[1] == 'h') {
            if (gethostname(out + n, size - n) == 0)
                n += strnlen(out + n, size - n);
            p++;
        } else {
            out[n++] = *p;
        }
        if (n >= size)
            n = size - 1;
    }
    out[n] = 0;
}

int spill_append_line(const char *pattern, const char *line, unsigned long length)
{
    char path[1024];
    expand(pattern, path, sizeof path);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0644);
    if (fd < 0)
        return errno;
    /* One write, so that lines of several processes do not mix. */
    ssize_t done = write(fd, line, length);
    int err = done == (ssize_t)length ? 0 : done < 0 ? errno : ENOSPC;
    close(fd);
    return err;
}

static void emit(const char *line, size_t length, bool to_file)
{
    const char *file = spill_config()->log_file;
    if (to_file && file[0] && spill_append_line(file, line, length) == 0)
        return;
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
}

static size_t compose(char line[LINE], const char *label, const char *fmt, va_list args)
{
    int n = snprintf(line, LINE, "spillshim[%d]: %s", (int)getpid(), label);
    int m = vsnprintf(line + n, (size_t)(LINE - n), fmt, args);
    size_t length = (size_t)(n + (m < 0 ? 0 : m));
    if (length > LINE - 1)
        length = LINE - 1;
    if (length == LINE - 1)
        memcpy(line + LINE - 4, "...", 3), length = LINE - 1;
    line[length < LINE ? length : LINE - 1] = '\n';
    return length < LINE ? length + 1 : LINE;
}

void spill_log(enum spill_log_level level, const char *fmt, ...)
{
    static const char *const label[] = { "", "error: ", "warn: ", "info: ", "debug: " };
    int saved = errno;
    if ((int)level > spill_config()->log || (level < SPILL_LOG_DEBUG && !take_token())) {
        errno = saved;
        return;
    }
    char line[LINE];
    va_list args;
    unsigned long lost = atomic_exchange(&suppressed, 0);
    if (lost) {
        int n = snprintf(line, LINE, "spillshim[%d]: warn: %lu lines suppressed\n", (int)getpid(), lost);
        emit(line, (size_t)n, true);
    }
    va_start(args, fmt);
    size_t length = compose(line, label[level], fmt, args);
    va_end(args);
    emit(line, length, true);
    errno = saved;
}

void spill_say(const char *fmt, ...)
{
    char line[LINE];
    va_list args;
    va_start(args, fmt);
    size_t length = compose(line, "", fmt, args);
    va_end(args);
    emit(line, length, false);
}

const char *spill_size_text(unsigned long long bytes, char buf[16])
{
    if (bytes >= 1ull << 30)
        snprintf(buf, 16, "%.2f GiB", (double)bytes / (double)(1ull << 30));
    else if (bytes >= 1ull << 20)
        snprintf(buf, 16, "%.1f MiB", (double)bytes / (double)(1ull << 20));
    else if (bytes >= 1024)
        snprintf(buf, 16, "%.1f KiB", (double)bytes / 1024.0);
    else
        snprintf(buf, 16, "%llu B", bytes);
    return buf;
}
