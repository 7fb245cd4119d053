/* SPDX-License-Identifier: Apache-2.0 */
/* SIMGPU_FAULTS=RULE[;RULE...]: faults of the driver, to order. Called by call.c (before each call), and at the sites below.
 *
 *   RULE   = ENTRY[/SITE]=FAULT[@WHEN]  or  after-unmap=RESULT[@WHEN]
 *   ENTRY  = an entry's name, which stands for all its ABIs (cuMemAlloc: cuMemAlloc_v2 too), or a beginning of names and *
 *   FAULT  = RESULT          the call is refused before it does anything
 *            after:RESULT    it is done, but its answer is lost
 *            queued:RESULT   it succeeds; the operation that it queues ends with RESULT instead of running (sticky)
 *            sticky:RESULT   it is refused, and its thread's context is broken from here
 *            delay:TIME      it begins after TIME (50us, 2ms, 1s) of real time
 *            kill            the process gets SIGKILL
 *   SITE   = vram, ram or heap: not the call fails but, inside it, the taking of device memory, of pinned memory, or of the
 *            driver's own heap; the only FAULT is OUT_OF_MEMORY
 *   RESULT = a CUresult by name, with or without CUDA_ERROR_, or by number
 *   WHEN   = N (the n-th call that the rule names, counted over the process), N+ (from there on), %N (each n-th), or P:SEED
 *            (each with probability P, 0 to 1; the same SEED strikes the same calls); without it: each
 *
 * after-unmap: the first cuMemMap and the first cuMemSetAccess over a range after a cuMemUnmap of it; the retry succeeds.
 * ',' separates rules too. Rules: a malformed value fails cuInit, with a line that says why; the first strike of each rule is
 * said on stderr, every strike in the trace; with several rules for a call all strike, and the first refusal is the answer.
 */
#define _GNU_SOURCE
#include "faults.h"

#include "state.h"

#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum fault { REFUSE, AFTER, QUEUED, STICKY, DELAY, KILL };
enum when { FROM, ONLY, EACH, DRAWN };

struct rule {
    struct rule *next;
    char *text;
    enum sim_site site;
    enum fault fault;
    CUresult result;
    struct timespec delay;
    enum when when;
    uint64_t n, seed;
    double share;
    atomic_uint_fast64_t calls;
    atomic_bool said;
    bool names[]; /* of sim_entry_names */
};

static struct rule *rules, **last = &rules;
static bool malformed, any_site[SIM_SITE_UNMAP + 1];

bool sim_faults_ok(void)
{
    return !malformed;
}

bool sim_faults_any(void)
{
    return rules != NULL;
}

/* ---- reading */

/* ABIs of one entry differ in what follows the name: _v2, _ptsz, _ptds. */
static bool is_abi(const char *rest)
{
    if (rest[0] == '_' && rest[1] == 'v' && isdigit((unsigned char)rest[2]))
        for (rest += 2; isdigit((unsigned char)*rest);)
            rest++;
    return !*rest || !strcmp(rest, "_ptsz") || !strcmp(rest, "_ptds");
}

static bool read_entry(struct rule *r, const char *name, size_t n)
{
    bool star = n && name[n - 1] == '*', found = false;
    n -= star;
    for (unsigned i = 0; i < sim_entry_count; i++) {
        const char *symbol = sim_entry_names[i];
        r->names[i] = !strncmp(symbol, name, n) && (star || is_abi(symbol + n));
        found |= r->names[i];
    }
    return found;
}

static bool read_site(struct rule *r, const char *word)
{
    static const char *const sites[] = {[SIM_SITE_VRAM] = "vram", [SIM_SITE_RAM] = "ram", [SIM_SITE_HEAP] = "heap"};
    for (enum sim_site s = SIM_SITE_VRAM; s <= SIM_SITE_HEAP; s++)
        if (!strcmp(word, sites[s])) {
            r->site = s;
            return true;
        }
    return false;
}

static bool read_delay(struct rule *r, const char *text)
{
    static const struct { const char *unit; uint64_t ns; } units[] = {{"us", 1000}, {"ms", 1000000}, {"s", 1000000000}};
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    for (size_t i = 0; i < 3; i++)
        if (isdigit((unsigned char)text[0]) && !errno && value <= UINT32_MAX && !strcmp(end, units[i].unit)) {
            uint64_t ns = value * units[i].ns;
            r->delay = (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
            return true;
        }
    return false;
}

static bool read_fault(struct rule *r, const char *text)
{
    static const char *const ways[] = {[AFTER] = "after:", [QUEUED] = "queued:", [STICKY] = "sticky:", [DELAY] = "delay:"};
    if (!strcmp(text, "kill")) {
        r->fault = KILL;
        return true;
    }
    for (enum fault f = AFTER; f <= DELAY; f++)
        if (!strncmp(text, ways[f], strlen(ways[f]))) {
            r->fault = f;
            text += strlen(ways[f]);
            break;
        }
    if (r->fault == DELAY)
        return read_delay(r, text);
    r->result = sim_error_named(text, strlen(text));
    return r->result != CUDA_SUCCESS;
}

static bool read_when(struct rule *r, const char *text)
{
    char *end;
    bool each = *text == '%', drawn = strchr(text, ':') != NULL;
    text += each;
    errno = 0;
    if (!isdigit((unsigned char)*text))
        return false;
    if (drawn) {
        r->when = DRAWN;
        r->share = sim_decimal(text, &end);
        if (*end != ':' || !isdigit((unsigned char)end[1]) || !(r->share >= 0 && r->share <= 1) || each)
            return false;
        r->seed = strtoull(end + 1, &end, 10);
        return !*end && !errno;
    }
    r->n = strtoull(text, &end, 10);
    r->when = each ? EACH : *end == '+' ? FROM : ONLY;
    return r->n > 0 && !errno && !end[!each && *end == '+'];
}

/* NULL, or what is wrong with the rule. Splits its text. */
static const char *read_rule(struct rule *r, char *text)
{
    char *fault = strchr(text, '='), *when, *site;
    if (!fault)
        return "expected ENTRY=FAULT[@WHEN]";
    *fault++ = 0;
    if ((when = strchr(fault, '@')))
        *when++ = 0;
    if ((site = strchr(text, '/')))
        *site++ = 0;
    if (!strcmp(text, "after-unmap")) {
        r->site = SIM_SITE_UNMAP;
        if (site)
            return "after-unmap has no site";
    } else if (!read_entry(r, text, strlen(text))) {
        return "no entry of the driver has this name";
    } else if (site && !read_site(r, site)) {
        return "a site is vram, ram or heap";
    }
    if (!read_fault(r, fault))
        return "expected a CUresult by name or number, after:RESULT, queued:RESULT, sticky:RESULT, delay:TIME (us, ms, s) or kill";
    if (r->site != SIM_SITE_ENTRY && (r->fault != REFUSE || (r->site != SIM_SITE_UNMAP && r->result != CUDA_ERROR_OUT_OF_MEMORY)))
        return "what fails inside a call is OUT_OF_MEMORY, and after an unmap a CUresult";
    if (when && !read_when(r, when))
        return "after @ comes N, N+, %N (N above 0) or PROBABILITY:SEED";
    return NULL;
}

void sim_faults_read(void)
{
    for (const char *item = sim_config()->faults; *item;) {
        size_t n = strcspn(item, ";,");
        struct rule *r = n ? calloc(1, sizeof *r + sim_entry_count * sizeof *r->names) : NULL;
        char *scratch = r ? strndup(item, n) : NULL;
        const char *wrong = "out of memory";
        if (scratch && (r->text = strndup(item, n))) {
            r->n = 1; /* FROM the first */
            wrong = read_rule(r, scratch);
        }
        free(scratch);
        if (n && wrong) {
            sim_complain("SIMGPU_FAULTS: %.*s is not valid: %s; initialisation fails", (int)n, item, wrong);
            malformed = true;
            free(r ? r->text : NULL);
            free(r);
        } else if (n) {
            any_site[r->site] = true;
            *last = r;
            last = &r->next;
        }
        item += n + (item[n] != 0);
    }
}

/* ---- striking */

/* Uniform in [0, 1), from seed and number alone (SplitMix64's finaliser). */
static double drawn(uint64_t seed, uint64_t number)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15u + number * 0xd1342543de82ef95u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* One more call that the rule names: does it strike? `c`: NULL outside of a watched call. */
static bool strikes(struct rule *r, const struct sim_call *c)
{
    uint64_t number = atomic_fetch_add(&r->calls, 1) + 1;
    bool now = false;
    switch (r->when) {
    case FROM: now = number >= r->n; break;
    case ONLY: now = number == r->n; break;
    case EACH: now = number % r->n == 0; break;
    case DRAWN: now = drawn(r->seed, number) < r->share; break;
    }
    if (!now)
        return false;
    const char *entry = c ? sim_entry_names[c->entry] : "";
    char what[200];
    snprintf(what, sizeof what, "%s (number %llu)", r->text, (unsigned long long)number);
    if (c)
        sim_trace_fault(c, what);
    if (!atomic_exchange(&r->said, true))
        sim_complain("fault: %s strikes in %s", what, entry);
    return true;
}

static void break_context(CUresult result)
{
    const struct sim_thread *t = sim_self();
    int none = 0;
    CUcontext c = t && t->depth ? t->stack[t->depth - 1] : NULL;
    if (c)
        atomic_compare_exchange_strong(&(c->base ? c->base : c)->sticky, &none, (int)result);
}

static void strike(const struct rule *r, struct sim_call *c)
{
    switch (r->fault) {
    case STICKY:
        break_context(r->result);
        if (!c->answer)
            c->answer = r->result;
        break;
    case REFUSE:
        if (!c->answer)
            c->answer = r->result;
        break;
    case AFTER: c->lost = r->result; break;
    case QUEUED: c->queued = r->result; break;
    case DELAY: {
        struct timespec left = r->delay;
        while (nanosleep(&left, &left) && errno == EINTR)
            ;
        break;
    }
    case KILL:
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
}

void sim_fault_call(struct sim_call *c)
{
    for (struct rule *r = rules; r; r = r->next)
        if (r->site == SIM_SITE_ENTRY && r->names[c->entry] && strikes(r, c))
            strike(r, c);
}

bool sim_fault_site(enum sim_site site)
{
    const struct sim_call *c = any_site[site] ? sim_call_now() : NULL;
    for (struct rule *r = rules; c && r; r = r->next)
        if (r->site == site && r->names[c->entry] && strikes(r, c))
            return true;
    return false;
}

/* ---- operations that fail when they run */

struct broken {
    struct sim_op op;
    CUresult result;
};

static CUresult run_broken(void *arg)
{
    return ((const struct broken *)arg)->result;
}

static void drop_broken(void *arg)
{
    struct broken *b = arg;
    if (b->op.drop)
        b->op.drop(b->op.arg);
    free(b);
}

struct sim_op sim_fault_op(struct sim_op op)
{
    const struct sim_call *c = sim_call_now();
    struct broken *b = c && c->queued ? malloc(sizeof *b) : NULL;
    if (!b)
        return op;
    *b = (struct broken){op, c->queued};
    return (struct sim_op){run_broken, drop_broken, b, op.kind, op.room};
}

const struct sim_op *sim_fault_inner(const struct sim_op *op)
{
    return op->run == run_broken ? &((const struct broken *)op->arg)->op : op;
}

/* ---- after an unmap */

static struct { uint64_t base, size; bool map, grant; } unmapped[256]; /* a ring; what was overwritten is forgiven */
static unsigned newest;
static pthread_mutex_t unmapped_lock = PTHREAD_MUTEX_INITIALIZER;

void sim_fault_unmapped(uint64_t base, uint64_t size)
{
    if (!any_site[SIM_SITE_UNMAP])
        return;
    pthread_mutex_lock(&unmapped_lock);
    newest = (newest + 1) % (sizeof unmapped / sizeof *unmapped);
    unmapped[newest].base = base;
    unmapped[newest].size = size;
    unmapped[newest].map = unmapped[newest].grant = true;
    pthread_mutex_unlock(&unmapped_lock);
}

CUresult sim_fault_after_unmap(bool grant, uint64_t base, uint64_t size)
{
    bool fresh = false;
    if (!any_site[SIM_SITE_UNMAP])
        return CUDA_SUCCESS;
    pthread_mutex_lock(&unmapped_lock);
    for (size_t i = 0; i < sizeof unmapped / sizeof *unmapped; i++)
        if (base < unmapped[i].base + unmapped[i].size && unmapped[i].base < base + size) {
            bool *mark = grant ? &unmapped[i].grant : &unmapped[i].map;
            fresh |= *mark;
            *mark = false;
        }
    pthread_mutex_unlock(&unmapped_lock);
    for (struct rule *r = rules; fresh && r; r = r->next)
        if (r->site == SIM_SITE_UNMAP && strikes(r, sim_call_now()))
            return r->result;
    return CUDA_SUCCESS;
}
