/* SPDX-License-Identifier: Apache-2.0 */
/* Reads PTX text: kernels with their parameter layout, static shared memory and launch bounds, and module variables.
 * Called by code_image.c. Instructions are skipped: a kernel is run by its companion. Grammar: PTX ISA, chapters 4, 5 and 11.
 * Text that is cut off, has unbalanced braces or lacks .version and .target is CUDA_ERROR_INVALID_PTX.
 */
#include "code.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct scanner {
    const char *p, *end; /* *end is NUL */
    const char *token;
    size_t n;   /* 0: the end of the text */
    bool broken; /* an unterminated comment or string */
    struct sim_image *image;
};

static bool word_char(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '.' || c == '%';
}

/* The next token: a word (with its dots: ".entry", ".b8", "name", "16", "-" is a token of its own) or one character. */
static bool next(struct scanner *s)
{
    s->n = 0;
    for (;;) {
        while (s->p < s->end && isspace((unsigned char)*s->p))
            s->p++;
        if (s->end - s->p >= 2 && s->p[0] == '/' && s->p[1] == '/') {
            while (s->p < s->end && *s->p != '\n')
                s->p++;
        } else if (s->end - s->p >= 2 && s->p[0] == '/' && s->p[1] == '*') {
            const char *close = strstr(s->p + 2, "*/");
            if (!close) {
                s->broken = true;
                s->p = s->end;
            } else {
                s->p = close + 2;
            }
        } else {
            break;
        }
    }
    if (s->p >= s->end)
        return false;
    s->token = s->p;
    if (*s->p == '"') {
        const char *close = memchr(s->p + 1, '"', (size_t)(s->end - s->p - 1));
        s->broken |= !close;
        s->p = close ? close + 1 : s->end;
    } else if (word_char(*s->p)) {
        while (s->p < s->end && word_char(*s->p) && !(*s->p == '.' && s->p > s->token && *s->token == '.'))
            s->p++;
    } else {
        s->p++;
    }
    s->n = (size_t)(s->p - s->token);
    return true;
}

static bool is(const struct scanner *s, const char *text)
{
    return s->n == strlen(text) && !memcmp(s->token, text, s->n);
}

static bool number(const struct scanner *s, uint64_t *out)
{
    char text[32], *end;
    if (!s->n || s->n >= sizeof text || !isdigit((unsigned char)*s->token))
        return false;
    memcpy(text, s->token, s->n);
    text[s->n] = 0;
    if (text[0] == '0' && (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D')) {
        *out = strtoull(text + 2, &end, 16); /* a float by its bits */
        return *end == 0;
    }
    *out = strtoull(text, &end, 0);
    return *end == 0 || ((*end == 'U' || *end == 'u') && end[1] == 0);
}

/* Bytes of a type such as .u32; 0: not a type. */
static unsigned type_size(const struct scanner *s)
{
    static const struct {
        const char *name;
        unsigned size;
    } types[] = {{".b8", 1}, {".u8", 1}, {".s8", 1}, {".b16", 2}, {".u16", 2}, {".s16", 2}, {".f16", 2}, {".bf16", 2},
                 {".b32", 4}, {".u32", 4}, {".s32", 4}, {".f32", 4}, {".f16x2", 4}, {".bf16x2", 4}, {".b64", 8}, {".u64", 8},
                 {".s64", 8}, {".f64", 8}, {".b128", 16}, {".texref", 8}, {".samplerref", 8}, {".surfref", 8}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (is(s, types[i].name))
            return types[i].size;
    return 0;
}

struct declaration {
    const char *name;
    size_t name_length;
    uint64_t element, size, align; /* bytes */
    bool managed;
};

/* The rest of a variable declaration after its state space, up to and including the name and its array suffix; the token
 * after it is current on return. False: not one. */
static bool declare(struct scanner *s, struct declaration *d)
{
    uint64_t n, lanes = 1;
    memset(d, 0, sizeof *d);
    while (next(s) && *s->token == '.') {
        unsigned size = type_size(s);
        if (size)
            d->element = size;
        else if (is(s, ".align")) {
            if (!next(s) || !number(s, &n) || !n || n > 4096 || (n & (n - 1)))
                return false;
            d->align = n;
        } else if (is(s, ".v2"))
            lanes = 2;
        else if (is(s, ".v4"))
            lanes = 4;
        else if (is(s, ".attribute")) {
            while (next(s) && !is(s, ")"))
                d->managed |= is(s, ".managed");
        }
        /* .ptr, .global, .const, .shared, .local, .generic: what a pointer parameter points to */
    }
    if (!s->n || !word_char(*s->token) || !d->element)
        return false;
    d->name = s->token;
    d->name_length = s->n;
    d->element *= lanes;
    d->size = d->element;
    if (d->align < d->element && !d->align)
        d->align = d->element;
    next(s);
    while (is(s, "[")) {
        if (!next(s))
            return false;
        if (is(s, "]")) /* an open array: extern shared memory */
            n = 0;
        else if (!number(s, &n) || (n && d->size > (UINT64_C(1) << 40) / n) || !next(s) || !is(s, "]"))
            return false;
        d->size *= n;
        next(s);
    }
    return true;
}

static bool kernel_params(struct scanner *s, struct sim_code *code)
{
    struct sim_param params[256], *all = params;
    unsigned n = 0, room = sizeof params / sizeof params[0];
    uint64_t at = 0;
    bool good = false;
    next(s);
    while (is(s, ".param")) {
        struct declaration d;
        if (!declare(s, &d) || !d.size)
            goto out;
        at = sim_round(at, d.align);
        if (at + d.size > SIM_MAX_PARAM_SIZE || n >= SIM_MAX_PARAMS)
            goto out;
        if (n == room) {
            struct sim_param *grown = malloc(2 * room * sizeof *grown);
            if (!grown)
                goto out;
            memcpy(grown, all, n * sizeof *grown);
            if (all != params)
                free(all);
            all = grown;
            room *= 2;
        }
        all[n++] = (struct sim_param){(uint32_t)at, (uint32_t)d.size};
        at += d.size;
        if (is(s, ","))
            next(s);
    }
    if (!is(s, ")"))
        goto out;
    code->params = sim_image_alloc(s->image, n * sizeof *all + 1);
    if (!code->params)
        goto out;
    memcpy(code->params, all, n * sizeof *all);
    code->param_count = n;
    code->param_size = at;
    next(s);
    good = true;
out:
    if (all != params)
        free(all);
    return good;
}

/* From '{' to its '}'. Static shared memory is declared inside. */
static bool body(struct scanner *s, struct sim_code *code)
{
    unsigned depth = 1;
    next(s);
    while (s->n) {
        if (is(s, ".shared") && code) {
            struct declaration d;
            const char *before = s->p;
            if (declare(s, &d)) {
                uint64_t end = sim_round((uint64_t)code->shared, d.align) + d.size;
                code->shared = end > INT32_MAX ? INT32_MAX : (int)end;
                continue;
            }
            s->p = before;
        }
        depth += is(s, "{");
        if (is(s, "}") && --depth == 0) {
            next(s);
            return true;
        }
        next(s);
    }
    return false;
}

static bool entry(struct scanner *s)
{
    if (!next(s) || !word_char(*s->token))
        return false;
    const char *name = sim_image_string(s->image, s->token, s->n);
    struct sim_code *code = name ? sim_image_add_code(s->image, name) : NULL;
    if (!code || !next(s))
        return false;
    if (is(s, "(") && !kernel_params(s, code))
        return false;
    while (s->n && !is(s, "{") && !is(s, ";")) { /* performance directives */
        if (is(s, ".maxntid") || is(s, ".reqntid")) {
            uint64_t n, threads = 1;
            do {
                if (!next(s) || !number(s, &n) || !n || n > SIM_MAX_THREADS)
                    return false;
                threads *= n;
            } while (next(s) && is(s, ","));
            if (threads < (uint64_t)code->max_threads)
                code->max_threads = (int)threads;
        } else {
            next(s);
        }
    }
    if (is(s, ";")) { /* a declaration only */
        s->image->code_count--;
        next(s);
        return true;
    }
    return s->n && body(s, code);
}

/* A .global or .const variable, with its initialiser if there is one. */
static bool variable(struct scanner *s, bool external)
{
    struct declaration d;
    if (!declare(s, &d))
        return false;
    struct sim_variable *v = NULL;
    unsigned char *bytes = NULL;
    if (!external && d.size) {
        if (d.size > SIM_MAX_VARIABLE)
            return false;
        const char *name = sim_image_string(s->image, d.name, d.name_length);
        v = name ? sim_image_add_variable(s->image, name) : NULL;
        if (!v)
            return false;
        v->size = d.size;
        v->managed = d.managed;
    }
    if (is(s, "=") && v) {
        if (!(bytes = sim_image_alloc(s->image, v->size)))
            return false;
        v->init = bytes;
    }
    uint64_t at = 0, n;
    bool negative = false;
    while (s->n && !is(s, ";")) {
        if (bytes && number(s, &n)) {
            if (negative)
                n = 0 - n;
            if (at + d.element <= v->size && d.element <= sizeof n)
                memcpy(bytes + at, &n, d.element);
            at += d.element;
        }
        negative = is(s, "-");
        next(s);
    }
    if (!s->n)
        return false;
    next(s);
    return true;
}

CUresult sim_ptx_parse(struct sim_bytes text, struct sim_image *image)
{
    struct scanner s = {.p = (const char *)text.p, .image = image};
    size_t n = strnlen(s.p, text.n);
    char *copy = malloc(n + 1); /* so that it ends with a NUL */
    if (!copy)
        return CUDA_ERROR_OUT_OF_MEMORY;
    memcpy(copy, text.p, n);
    copy[n] = 0;
    s.p = copy;
    s.end = copy + n;
    bool good = true, version = false, target = false, external = false;
    next(&s);
    while (s.n && good) {
        if (is(&s, ".version")) {
            version = true;
            next(&s);
        } else if (is(&s, ".target")) {
            if (next(&s) && s.n > 3 && !memcmp(s.token, "sm_", 3)) {
                image->ptx_version = image->binary_version = atoi(s.token + 3);
                target = image->ptx_version > 0;
            }
        } else if (is(&s, ".extern")) {
            external = true;
            next(&s);
            continue;
        } else if (is(&s, ".entry")) {
            good = version && target && entry(&s);
            external = false;
            continue;
        } else if (is(&s, ".global") || is(&s, ".const")) {
            good = version && target && variable(&s, external);
            external = false;
            continue;
        } else if (is(&s, "{")) { /* a .func */
            good = body(&s, NULL);
            external = false;
            continue;
        } else if (is(&s, "}")) {
            good = false;
        } else if (is(&s, ";")) {
            external = false;
        }
        next(&s);
    }
    free(copy);
    sim_image_sort(image);
    return good && version && target && !s.broken ? CUDA_SUCCESS : CUDA_ERROR_INVALID_PTX;
}
