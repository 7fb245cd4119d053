/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines of the preloaded library. Called from every file of shim/ and tiering/.
 * Rules: never stdout; one write(2) a line, to stderr or SPILLSHIM_LOG_FILE; below 512 bytes; rate-limited (what is
 * suppressed is counted and said); no malloc, no stdio streams; safe under any lock. */
#ifndef SPILL_LOG_H
#define SPILL_LOG_H

enum spill_log_level { SPILL_LOG_OFF, SPILL_LOG_ERROR, SPILL_LOG_WARN, SPILL_LOG_INFO, SPILL_LOG_DEBUG };

/* Text first, then key=value pairs: "kept back for late allocations bytes=%zu". No newline at the end. */
__attribute__((format(printf, 2, 3)))
void spill_log(enum spill_log_level level, const char *fmt, ...);

/* The user's own summary: no rate limit and no level, always to stderr. */
__attribute__((format(printf, 1, 2)))
void spill_say(const char *fmt, ...);

/* Append one line to `path` (%h and %p replaced), made with mode 0644; 0 or an errno. */
int spill_append_line(const char *path, const char *line, unsigned long length);

/* "1.5 GiB" into `buf`; returns buf. */
const char *spill_size_text(unsigned long long bytes, char buf[16]);

#endif
