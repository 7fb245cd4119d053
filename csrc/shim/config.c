/* SPDX-License-Identifier: Apache-2.0 */
/* The environment table, as config.h says. */
#include "shim/config.h"

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "shim/log.h"

extern char **environ;

static struct spill_config config;
static atomic_int state; /* 0 unread, 1 being read, 2 read */
static atomic_int complained;

/* Malformed values found while reading; named later, when there is something to say them to. */
enum { MAX_BAD = 8 };
static const char *bad_name[MAX_BAD];
static const char *bad_why[MAX_BAD];
static int bad_count;

/* Digits with at most one point among them; not strtod, whose point is the locale's, and which knows hexadecimal too. */
static double decimal(const char *text, const char **end)
{
    double value = 0, unit = 1;
    bool point = false, digit = false;
    for (; (*text >= '0' && *text <= '9') || (*text == '.' && !point); text++) {
        if (*text == '.') {
            point = true;
            continue;
        }
        digit = true;
        value = value * 10 + (*text - '0');
        unit *= point ? 10 : 1;
    }
    *end = text;
    return digit ? value / unit : NAN;
}

/* "8G", "90%", "1.5T", "4096"; false (and *why) where it is none of these. */
static bool parse_amount(const char *text, struct spill_amount *out, const char **why)
{
    const char *end;
    *why = "expected a size such as 8G, 512M, 4096 or a percentage such as 90%";
    double value = decimal(text, &end);
    if (!isfinite(value))
        return false;
    bool percent = false;
    switch (*end) {
    case 'k': case 'K': value *= 0x1p10; end++; break;
    case 'm': case 'M': value *= 0x1p20; end++; break;
    case 'g': case 'G': value *= 0x1p30; end++; break;
    case 't': case 'T': value *= 0x1p40; end++; break;
    case '%': percent = true; end++; break;
    }
    if (!percent && (end[0] == 'i' || end[0] == 'I') && (end[1] == 'B' || end[1] == 'b'))
        end += 2;
    else if (!percent && (*end == 'B' || *end == 'b'))
        end++;
    if (*end)
        return false;
    if (percent && value > 100) {
        *why = "a percentage lies between 0% and 100%";
        return false;
    }
    if (value >= 0x1p60) {
        *why = "larger than any memory (1024P and more)";
        return false;
    }
    *out = (struct spill_amount){ .set = true, .percent = percent, .value = value };
    return true;
}

uint64_t spill_amount_bytes(const struct spill_amount *a, uint64_t whole, uint64_t fallback)
{
    if (!a->set)
        return fallback;
    return a->percent ? (uint64_t)((double)whole * a->value / 100.0) : (uint64_t)a->value;
}

static bool read_BOOL(const char *text, const char *help, bool *out, const char **why)
{
    static const char *const no[] = { "0", "off", "no", "false" }, *const yes[] = { "1", "on", "yes", "true" };
    (void)help;
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, no[i]) == 0)
            return *out = false, true;
        if (strcmp(text, yes[i]) == 0)
            return *out = true, true;
    }
    *why = "expected 0 or 1";
    return false;
}

static bool read_AMOUNT(const char *text, const char *help, struct spill_amount *out, const char **why)
{
    (void)help;
    if (!*text)
        return memset(out, 0, sizeof *out), true;
    return parse_amount(text, out, why);
}

static bool read_CHOICE(const char *text, const char *help, int *out, const char **why)
{
    size_t length = strlen(text);
    int index = 0;
    *why = help;
    for (const char *p = strchr(help, '[') + 1;; index++) {
        size_t word = strcspn(p, "|]");
        if (word == length && memcmp(p, text, word) == 0)
            return *out = index, true;
        p += word;
        if (*p++ == ']')
            return false;
    }
}

static bool read_TEXT(const char *text, const char *help, char out[SPILL_TEXT_MAX], const char **why)
{
    (void)help;
    if (strlen(text) >= SPILL_TEXT_MAX) {
        *why = "longer than 255 bytes";
        return false;
    }
    strcpy(out, text);
    return true;
}

#define OUT_BOOL &
#define OUT_AMOUNT &
#define OUT_CHOICE &
#define OUT_TEXT

static void read_all(void)
{
    const char *text, *why = "";
#define ENV(name, type, field, def, help)                                                \
    text = getenv("SPILLSHIM_" #name);                                                   \
    if (!text || !read_##type(text, help, OUT_##type config.field, &why)) {              \
        if (text && bad_count < MAX_BAD)                                                 \
            bad_name[bad_count] = "SPILLSHIM_" #name, bad_why[bad_count++] = why;        \
        read_##type(def, help, OUT_##type config.field, &why);                           \
    }
#include "shim/config.def"
#undef ENV
}

const struct spill_config *spill_config(void)
{
    int expected = 0;
    if (__builtin_expect(atomic_load_explicit(&state, memory_order_acquire) == 2, 1))
        return &config;
    if (atomic_compare_exchange_strong(&state, &expected, 1)) {
        read_all();
        atomic_store_explicit(&state, 2, memory_order_release);
    } else {
        while (atomic_load_explicit(&state, memory_order_acquire) != 2)
            sched_yield();
    }
    return &config;
}

static bool known(const char *entry)
{
#define ENV(name, type, field, def, help)                                      \
    if (strncmp(entry, "SPILLSHIM_" #name "=", sizeof("SPILLSHIM_" #name)) == 0) \
        return true;
#include "shim/config.def"
#undef ENV
    return false;
}

void spill_config_complain(void)
{
    spill_config();
    if (atomic_exchange(&complained, 1))
        return;
    for (int i = 0; i < bad_count; i++)
        spill_log(SPILL_LOG_WARN, "%s=%s ignored: %s", bad_name[i], getenv(bad_name[i]), bad_why[i]);
    for (char **e = environ; e && *e; e++)
        if (strncmp(*e, "SPILLSHIM_", 10) == 0 && !known(*e))
            spill_log(SPILL_LOG_WARN, "unknown variable %.*s ignored (known ones: spillshim env --help-vars)",
                      (int)strcspn(*e, "="), *e);
}
