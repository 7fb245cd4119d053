/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the loaded ELF objects, as elfwalk.h says. Sources: the gABI's chapter 5, the GNU hash section's layout as
 * binutils writes it, <link.h>. */
#define _GNU_SOURCE
#include "shim/elfwalk.h"

#include <elf.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/auxv.h>

#include "shim/testbreak.h"

/* Where an object lies. */
struct extent {
    uintptr_t start, end;
    struct link_map *object;
};

/* The parts of an object's dynamic section that are read here. */
struct dynamic {
    struct extent extent;
    const char *strings;
    size_t strings_size;
    const ElfW(Sym) *symbols;
    const uint32_t *gnu_hash, *hash;
    const ElfW(Rela) *rela, *jump;
    size_t rela_count, jump_count;
    size_t soname; /* offset in strings, 0: none */
};

/* glibc 2.35's answer of _dl_find_object (<dlfcn.h> of an older glibc hasn't got it). */
struct find_object_result {
    unsigned long long flags;
    void *start, *end;
    struct link_map *object;
    void *eh_frame;
    unsigned long long reserved[7];
};
typedef int find_object(void *address, struct find_object_result *result);

/* r_debug as it is since glibc 2.35, r_version >= 2: one for each namespace. */
struct debug_extended {
    struct r_debug base;
    struct debug_extended *next;
};

static const find_object *const no_find_object = (const find_object *)-1;
static _Atomic(const find_object *) found_find_object; /* NULL: not looked up yet */

SPILL_EARLY struct link_map *spill_elf_program(void)
{
    return _r_debug.r_map;
}

SPILL_EARLY static bool inside(const struct extent *e, const void *p, size_t size)
{
    uintptr_t at = (uintptr_t)p;
    return at >= e->start && at <= e->end && size <= e->end - at;
}

SPILL_EARLY static const char *after_last_slash(const char *path)
{
    const char *name = path;
    for (const volatile char *p = path; *p; p++)
        if (*p == '/')
            name = (const char *)p + 1;
    return name;
}

/* The dynamic section's addresses are relocated in place by glibc, except where the section is read-only (the vDSO). */
SPILL_EARLY static const void *address_of(const struct dynamic *d, ElfW(Addr) value)
{
    if (value < d->extent.start)
        value += d->extent.object->l_addr;
    return (const void *)value;
}

/* Reads the dynamic section; false where the object can't be looked into. */
SPILL_EARLY static bool read_dynamic(struct dynamic *d, const struct extent *extent)
{
    const ElfW(Dyn) *dyn = extent->object->l_ld;
    d->extent = (struct extent){ extent->start, extent->end, extent->object };
    d->strings = NULL, d->strings_size = 0, d->symbols = NULL, d->gnu_hash = NULL, d->hash = NULL;
    d->rela = NULL, d->jump = NULL, d->rela_count = 0, d->jump_count = 0, d->soname = 0;
    for (; dyn && inside(extent, dyn, sizeof *dyn) && dyn->d_tag != DT_NULL; dyn++) {
        switch (dyn->d_tag) {
        case DT_STRTAB: d->strings = address_of(d, dyn->d_un.d_ptr); break;
        case DT_STRSZ: d->strings_size = dyn->d_un.d_val; break;
        case DT_SYMTAB: d->symbols = address_of(d, dyn->d_un.d_ptr); break;
        case DT_GNU_HASH: d->gnu_hash = address_of(d, dyn->d_un.d_ptr); break;
        case DT_HASH: d->hash = address_of(d, dyn->d_un.d_ptr); break;
        case DT_RELA: d->rela = address_of(d, dyn->d_un.d_ptr); break;
        case DT_RELASZ: d->rela_count = dyn->d_un.d_val / sizeof *d->rela; break;
        case DT_JMPREL: d->jump = address_of(d, dyn->d_un.d_ptr); break;
        case DT_PLTRELSZ: d->jump_count = dyn->d_un.d_val / sizeof *d->jump; break;
        case DT_SONAME: d->soname = dyn->d_un.d_val; break;
        }
    }
    return d->symbols && d->strings && inside(extent, d->strings, d->strings_size);
}

/* The string at this offset of the string table, or "" where it doesn't end inside the table. */
SPILL_EARLY static const char *string_at(const struct dynamic *d, size_t offset)
{
    for (size_t i = offset; i < d->strings_size; i++)
        if (((const volatile char *)d->strings)[i] == 0)
            return d->strings + offset;
    return "";
}

SPILL_EARLY static const ElfW(Sym) *symbol_at(const struct dynamic *d, size_t index)
{
    if (index >= (d->extent.end - d->extent.start) / sizeof *d->symbols)
        return NULL;
    return inside(&d->extent, d->symbols + index, sizeof *d->symbols) ? d->symbols + index : NULL;
}

/* `symbol` at this index, when it is defined there under this name. */
SPILL_EARLY static const ElfW(Sym) *defined_at(const struct dynamic *d, size_t index, const char *name)
{
    const ElfW(Sym) *s = symbol_at(d, index);
    if (!s || s->st_shndx == SHN_UNDEF || ELF64_ST_BIND(s->st_info) == STB_LOCAL)
        return NULL;
    int type = ELF64_ST_TYPE(s->st_info);
    if (type != STT_FUNC && type != STT_NOTYPE && type != STT_OBJECT && type != STT_GNU_IFUNC)
        return NULL;
    return spill_str_equal(string_at(d, s->st_name), name) ? s : NULL;
}

SPILL_EARLY static const ElfW(Sym) *find_by_gnu_hash(const struct dynamic *d, const char *name)
{
    const uint32_t *h = d->gnu_hash;
    if (!inside(&d->extent, h, 16) || h[0] == 0)
        return NULL;
    uint32_t hash = 5381, bucket_count = h[0], first = h[1];
    for (const volatile unsigned char *p = (const volatile unsigned char *)name; *p; p++)
        hash = hash * 33 + *p;
    const uint32_t *buckets = h + 4 + 2 * (size_t)h[2], *chain = buckets + bucket_count;
    if (!inside(&d->extent, buckets, 4 * (size_t)bucket_count))
        return NULL;
    uint32_t index = buckets[hash % bucket_count];
    if (index < first)
        return NULL;
    for (;; index++) {
        const uint32_t *link = chain + (index - first);
        if (!inside(&d->extent, link, 4))
            return NULL;
        if ((*link | 1) == (hash | 1)) {
            const ElfW(Sym) *s = defined_at(d, index, name);
            if (s)
                return s;
        }
        if (*link & 1)
            return NULL;
    }
}

SPILL_EARLY static const ElfW(Sym) *find_by_hash(const struct dynamic *d, const char *name)
{
    const uint32_t *h = d->hash;
    if (!inside(&d->extent, h, 8) || h[0] == 0)
        return NULL;
    uint32_t hash = 0, bucket_count = h[0], count = h[1];
    for (const volatile unsigned char *p = (const volatile unsigned char *)name; *p; p++) {
        hash = (hash << 4) + *p;
        uint32_t high = hash & 0xf0000000u;
        hash = (hash ^ (high >> 24)) & ~high;
    }
    const uint32_t *buckets = h + 2, *chain = buckets + bucket_count;
    if (!inside(&d->extent, buckets, 4 * ((size_t)bucket_count + count)))
        return NULL;
    uint32_t steps = 0;
    for (uint32_t i = buckets[hash % bucket_count]; i && i < count && steps++ < count; i = chain[i]) {
        const ElfW(Sym) *s = defined_at(d, i, name);
        if (s)
            return s;
    }
    return NULL;
}

SPILL_EARLY static void *symbol_in(const struct extent *extent, const char *name)
{
    struct dynamic d;
    const ElfW(Sym) *s = NULL;
    if (!read_dynamic(&d, extent))
        return NULL;
    if (d.gnu_hash)
        s = find_by_gnu_hash(&d, name);
    else if (d.hash)
        s = find_by_hash(&d, name);
    if (!s)
        return NULL;
    uintptr_t at = s->st_value + (s->st_shndx == SHN_ABS ? 0 : extent->object->l_addr);
    if (ELF64_ST_TYPE(s->st_info) == STT_GNU_IFUNC)
        return ((void *(*)(void))at)();
    return (void *)at;
}

/* glibc's own lock-free look-up of an address (2.35), taken out of libc by hand so that we don't need that version. */
SPILL_EARLY static const find_object *libc_find_object(void)
{
    const find_object *f = atomic_load_explicit(&found_find_object, memory_order_acquire);
    if (f)
        return f == no_find_object ? NULL : f;
    f = NULL;
    for (struct link_map *m = spill_elf_program(); m && !f; m = m->l_next) {
        if (!spill_str_equal(after_last_slash(m->l_name), "libc.so.6"))
            continue;
        /* The extent of libc is what this function is needed for; libc itself can be trusted. */
        struct extent everything = { m->l_addr, UINTPTR_MAX, m };
        f = (const find_object *)symbol_in(&everything, "_dl_find_object");
    }
    atomic_store_explicit(&found_find_object, f ? f : no_find_object, memory_order_release);
    return f;
}

struct wanted {
    uintptr_t address;
    struct extent extent;
    const ElfW(Dyn) *dynamic;
};

SPILL_EARLY static int match_headers(struct dl_phdr_info *info, size_t size, void *context)
{
    struct wanted *w = context;
    uintptr_t start = UINTPTR_MAX, end = 0;
    const ElfW(Dyn) *dynamic = NULL;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t low = info->dlpi_addr + p->p_vaddr, high = low + p->p_memsz;
        if (p->p_type == PT_LOAD) {
            start = low < start ? low : start;
            end = high > end ? high : end;
        } else if (p->p_type == PT_DYNAMIC) {
            dynamic = (const ElfW(Dyn) *)low;
        }
    }
    if (w->address < start || w->address >= end)
        return 0;
    w->extent = (struct extent){ start, end, NULL };
    w->dynamic = dynamic;
    return 1;
}

/* Before glibc 2.35: the program headers (takes the loader's lock, but allocates nothing). */
SPILL_EARLY static bool extent_by_headers(uintptr_t address, struct extent *out)
{
    struct wanted w = { .address = address };
    if (!dl_iterate_phdr(match_headers, &w))
        return false;
    for (struct link_map *m = spill_elf_program(); m; m = m->l_next)
        if (m->l_ld == w.dynamic) {
            *out = (struct extent){ w.extent.start, w.extent.end, m };
            return true;
        }
    return false;
}

SPILL_EARLY static bool extent_of_address(uintptr_t address, struct extent *out)
{
    struct find_object_result r;
    const find_object *f = libc_find_object();
    if (!f || !SPILL_FIX(find_object))
        return extent_by_headers(address, out);
    if (f((void *)address, &r) != 0)
        return false;
    *out = (struct extent){ (uintptr_t)r.start, (uintptr_t)r.end, r.object };
    return true;
}

SPILL_EARLY static bool extent_of(const struct link_map *object, struct extent *out)
{
    return object && extent_of_address((uintptr_t)object->l_ld, out) && out->object == object;
}

SPILL_EARLY struct link_map *spill_elf_containing(const void *address)
{
    struct extent e;
    return extent_of_address((uintptr_t)address, &e) ? e.object : NULL;
}

SPILL_EARLY void *spill_elf_symbol(const struct link_map *object, const char *symbol)
{
    struct extent e;
    return extent_of(object, &e) ? symbol_in(&e, symbol) : NULL;
}

SPILL_EARLY const char *spill_elf_name(const struct link_map *object)
{
    if (object == spill_elf_program()) {
        const char *path = (const char *)getauxval(AT_EXECFN);
        return path ? after_last_slash(path) : "";
    }
    return after_last_slash(object->l_name);
}

SPILL_EARLY static bool names_library(const char *text, const char *name)
{
    const char *rest = spill_str_after(text, name);
    return rest && (*rest == 0 || *rest == '.');
}

SPILL_EARLY bool spill_elf_is(const struct link_map *object, const char *name)
{
    struct extent e;
    struct dynamic d;
    if (SPILL_FIX(soname) && extent_of(object, &e) && read_dynamic(&d, &e) && d.soname)
        return names_library(string_at(&d, d.soname), name);
    return names_library(after_last_slash(object->l_name), name);
}

SPILL_EARLY struct link_map *spill_elf_find(const char *name, const struct link_map *not_this)
{
    for (const struct debug_extended *space = (const struct debug_extended *)&_r_debug; space;
         space = _r_debug.r_version >= 2 ? space->next : NULL)
        for (struct link_map *m = space->base.r_map; m; m = m->l_next)
            if (m != not_this && spill_elf_is(m, name))
                return m;
    return NULL;
}

SPILL_EARLY static bool any_names(const struct dynamic *d, const ElfW(Rela) *rela, size_t count, const char *name)
{
    if (!rela || count > (d->extent.end - d->extent.start) / sizeof *rela || !inside(&d->extent, rela, count * sizeof *rela))
        return false;
    for (size_t i = 0; i < count; i++) {
        size_t index = ELF64_R_SYM(rela[i].r_info);
        const ElfW(Sym) *s = index ? symbol_at(d, index) : NULL;
        if (s && s->st_shndx == SHN_UNDEF && spill_str_equal(string_at(d, s->st_name), name))
            return true;
    }
    return false;
}

SPILL_EARLY bool spill_elf_refers(const struct link_map *object, const char *symbol)
{
    /* By the relocations: the hash sections hold only what an object defines. */
    struct extent e;
    struct dynamic d;
    return extent_of(object, &e) && read_dynamic(&d, &e)
        && (any_names(&d, d.jump, d.jump_count, symbol) || any_names(&d, d.rela, d.rela_count, symbol));
}
