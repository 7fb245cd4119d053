/* SPDX-License-Identifier: Apache-2.0 */
/* SIMGPU_DOUBT: see doubt.h. Called by config.c, and by the code of each belief through sim_doubt.
 * Rule: a branch depends on the seed and on the belief's id alone, so that a new row changes no old one.
 */
#include "doubt.h"

#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct belief {
    const char *id;
    unsigned branches;
};

static const struct belief beliefs[] = {
#define SIM_DOUBT(name, id, branches, text) {id, branches},
#include "doubt.def"
#undef SIM_DOUBT
};
static int branch[SIM_DOUBTS];

int sim_doubt(enum sim_doubt belief)
{
    return branch[belief];
}

static unsigned draw(uint64_t seed, const char *id)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a of the id, then a finaliser over both */
    for (; *id; id++)
        h = (h ^ (unsigned char)*id) * 0x100000001b3u;
    h ^= seed * 0x9e3779b97f4a7c15u;
    h = (h ^ h >> 33) * 0xff51afd7ed558ccdu;
    h = (h ^ h >> 33) * 0xc4ceb9fe1a85ec53u;
    return (unsigned)(h >> 33);
}

static bool parse_name(const char *item, size_t n)
{
    const char *equals = memchr(item, '=', n);
    size_t length = equals ? (size_t)(equals - item) : n;
    for (int i = 0; i < SIM_DOUBTS; i++) {
        if (strlen(beliefs[i].id) != length || memcmp(beliefs[i].id, item, length))
            continue;
        unsigned want = 1;
        if (equals) { /* one digit: no belief has more branches */
            if (item + n != equals + 2 || equals[1] < '0' || (want = (unsigned)(equals[1] - '0')) >= beliefs[i].branches) {
                sim_complain("SIMGPU_DOUBT: %.*s: %s has the branches 0 to %u; initialisation fails", (int)n, item,
                             beliefs[i].id, beliefs[i].branches - 1);
                return false;
            }
        }
        branch[i] = (int)want;
        return true;
    }
    sim_complain("SIMGPU_DOUBT: no belief %.*s can be doubted (a seed, or ids of BELIEFS.md); initialisation fails",
                 (int)length, item);
    return false;
}

void sim_doubt_say(void)
{
    char list[400];
    size_t at = 0;
    for (int i = 0; i <= SIM_DOUBTS; i++) {
        size_t n = i < SIM_DOUBTS ? strlen(beliefs[i].id) : 0;
        if (at && (i == SIM_DOUBTS || at + n + 4 > sizeof list)) {
            sim_complain("doubted:%s", list);
            at = 0;
        }
        if (i < SIM_DOUBTS && branch[i])
            at += (size_t)snprintf(list + at, sizeof list - at, " %s=%d", beliefs[i].id, branch[i]);
    }
}

bool sim_doubt_parse(const char *text)
{
    if (!*text)
        return true;
    if (*text >= '0' && *text <= '9') {
        char *end;
        errno = 0;
        unsigned long long seed = strtoull(text, &end, 10);
        if (*end || errno) {
            sim_complain("SIMGPU_DOUBT=%s is not valid: expected a seed (a whole number) or ids of BELIEFS.md; initialisation fails", text);
            return false;
        }
        for (int i = 0; i < SIM_DOUBTS; i++)
            branch[i] = (int)(draw(seed, beliefs[i].id) % beliefs[i].branches);
    } else {
        for (const char *item = text; *item;) {
            size_t n = strcspn(item, ",;"); /* ";" for --sim, where "," separates keys */
            if (!parse_name(item, n))
                return false;
            item += n + (item[n] != 0);
        }
    }
    return true;
}
