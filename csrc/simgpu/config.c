/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the SIMGPU_* variables. Called through sim_config() by every part of the driver and by NVML.
 * Rules: a malformed value is said once, with the variable, and makes initialisation fail; an unknown name only warns.
 */
#include "config.h"

#include "doubt.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static struct sim_config config;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void sim_complain(const char *format, ...)
{
    char line[512] = "simgpu: ";
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line + 8, sizeof line - 9, format, args);
    va_end(args);
    size_t len = 8 + (n < 0 ? 0 : (size_t)n);
    if (len > sizeof line - 2)
        len = sizeof line - 2;
    line[len++] = '\n';
    ssize_t done = write(2, line, len);
    (void)done; /* nobody to tell */
}

double sim_decimal(const char *text, char **end)
{
    double value = 0, unit = 1;
    while (*text >= '0' && *text <= '9')
        value = 10 * value + (*text++ - '0');
    if (*text == '.')
        for (text++; *text >= '0' && *text <= '9'; text++)
            value += (unit /= 10) * (*text - '0');
    *end = (char *)(uintptr_t)text;
    return value;
}

static void bad(const char *var, const char *text, const char *want)
{
    sim_complain("%s=%s is not valid: expected %s; initialisation fails", var, text, want);
    config.bad = true;
}

static uint64_t parse_size(const char *var, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    unsigned shift = 0;
    switch (*end) {
    case 'K': case 'k': shift = 10; break;
    case 'M': case 'm': shift = 20; break;
    case 'G': case 'g': shift = 30; break;
    case 'T': case 't': shift = 40; break;
    default: break;
    }
    if (shift)
        end++;
    if (text[0] < '0' || text[0] > '9' || *end || errno || value == 0 || value > (UINT64_MAX >> 8 >> shift)) {
        bad(var, text, "a positive size such as 8G (K, M, G, T)");
        return 0;
    }
    return (uint64_t)value << shift;
}

static int parse_count(const char *var, const char *text, long lo, long hi)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    char first = text[*text == '-']; /* strtol takes blanks and a plus, too */
    if (first < '0' || first > '9' || *end || errno || value < lo || value > hi) {
        char want[64];
        snprintf(want, sizeof want, "a whole number from %ld to %ld", lo, hi);
        bad(var, text, want);
        return (int)lo;
    }
    return (int)value;
}

static int parse_choice(const char *var, const char *text, const char *words)
{
    size_t len = strlen(text);
    int index = 0;
    for (const char *w = words;; index++) {
        size_t n = strcspn(w, "|");
        if (n == len && !memcmp(w, text, n))
            return index;
        if (!w[n])
            break;
        w += n + 1;
    }
    bad(var, text, words);
    return 0;
}

/* Five figures in microseconds, with or without decimals. */
static void parse_vmm(void)
{
    const char *at = config.vmm;
    for (int i = 0; i < SIM_VMM_COSTS; i++) {
        char *end = NULL;
        double us = *at >= '0' && *at <= '9' ? sim_decimal(at, &end) : -1;
        if (us < 0 || us > 1e9 || *end != (i == SIM_VMM_COSTS - 1 ? 0 : '/')) {
            bad("SIMGPU_VMM", config.vmm, "five times in microseconds: create/map/access/unmap/reserve");
            return;
        }
        config.vmm_ns[i] = (uint64_t)(us * 1000 + 0.5);
        at = end + 1;
    }
}

/* The name becomes part of a file name. */
static void check_name(void)
{
    size_t n = strspn(config.name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    if (n == 0 || config.name[n] || n > 100)
        bad("SIMGPU_NAME", config.name, "1 to 100 letters, digits, '.', '_' or '-'");
}

static void warn_unknown(void)
{
    static const char *const known[] = {
#define SIM_SIZE(field, var, def, doc) var,
#define SIM_COUNT(field, var, def, lo, hi, doc) var,
#define SIM_CHOICE(field, var, def, words, doc) var,
#define SIM_TEXT(field, var, def, doc) var,
#include "config.def"
#undef SIM_SIZE
#undef SIM_COUNT
#undef SIM_CHOICE
#undef SIM_TEXT
    };
    for (char **e = environ; e && *e; e++) {
        if (strncmp(*e, "SIMGPU_", 7))
            continue;
        size_t n = strcspn(*e, "=");
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            found |= strlen(known[i]) == n && !memcmp(known[i], *e, n);
        if (!found)
            sim_complain("unknown variable %.*s is ignored", (int)n, *e);
    }
}

static const char *text_of(const char *var, const char *def)
{
    const char *text = getenv(var);
    return text && *text ? text : def;
}

static void parse(void)
{
#define SIM_SIZE(field, var, def, doc) config.field = parse_size(var, text_of(var, def));
#define SIM_COUNT(field, var, def, lo, hi, doc) config.field = parse_count(var, text_of(var, def), lo, hi);
#define SIM_CHOICE(field, var, def, words, doc) config.field = parse_choice(var, text_of(var, def), words);
    /* Copied: the app may change its environment later. */
#define SIM_TEXT(field, var, def, doc) config.field = strdup(text_of(var, def)); if (!config.field) config.field = def;
#include "config.def"
#undef SIM_SIZE
#undef SIM_COUNT
#undef SIM_CHOICE
#undef SIM_TEXT
    check_name();
    parse_vmm();
    config.bad |= !sim_doubt_parse(config.doubt);
    if (config.mixed_copy == SIM_MIXED_AUTO)
        config.mixed_copy = sim_doubt(SIM_DOUBT_OVER_TIERS) ? SIM_MIXED_ALLOW : SIM_MIXED_REFUSE;
    if (config.overlap == SIM_OVERLAP_AUTO)
        config.overlap = sim_doubt(SIM_DOUBT_OVERLAP) ? SIM_OVERLAP_NO : SIM_OVERLAP_YES;
    warn_unknown();
}

const struct sim_config *sim_config(void)
{
    static atomic_bool parsed; /* spares every call of an entry what pthread_once costs */
    if (!atomic_load_explicit(&parsed, memory_order_acquire)) {
        pthread_once(&once, parse);
        atomic_store_explicit(&parsed, true, memory_order_release);
    }
    return &config;
}
