/* SPDX-License-Identifier: Apache-2.0 */
/* JSON, as json.h says. */
#include "shim/json.h"

#include <stdarg.h>
#include <stdio.h>

void spill_json(struct spill_json *t, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(t->at, (size_t)(t->end - t->at), fmt, args);
    va_end(args);
    t->at += n > 0 && n < t->end - t->at ? n : n > 0 ? t->end - t->at - 1 : 0;
}

/* Not by printf, whose decimal point is the program's locale's. */
void spill_json_fraction(struct spill_json *t, double value)
{
    unsigned millionths = (unsigned)(value * 1e6 + 0.5);
    spill_json(t, "%u.%06u", millionths / 1000000, millionths % 1000000);
}

void spill_json_string(struct spill_json *t, const char *s)
{
    if (!s) {
        spill_json(t, "null");
        return;
    }
    spill_json(t, "\"");
    for (; *s; s++)
        if (*s == '"' || *s == '\\')
            spill_json(t, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            spill_json(t, "\\u%04x", *s);
        else
            spill_json(t, "%c", *s);
    spill_json(t, "\"");
}
