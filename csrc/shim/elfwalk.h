/* SPDX-License-Identifier: Apache-2.0 */
/* Reading the loaded ELF objects without asking the dynamic linker: find an object, a symbol in one object, the object
 * that holds an address. Called from resolve*.c.
 * Rules: no dl* call, no lock, no malloc, no libc string function (under libasan these crash until its constructor has
 * run), no access outside the object that is read; usable before constructors have run. A caller must not race with a
 * dlclose of the object that it asks about: the pinned driver and the caller of a running function can't be unloaded. */
#ifndef SPILL_ELFWALK_H
#define SPILL_ELFWALK_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>

/* Code that may run before a sanitizer's runtime is ready must not be instrumented by it. */
#define SPILL_EARLY __attribute__((no_sanitize("address", "thread", "undefined")))

/* The reads are volatile so that the compiler doesn't turn these loops into calls of strcmp and strlen. */
SPILL_EARLY static inline bool spill_str_equal(const char *a, const char *b)
{
    const volatile char *x = a, *y = b;
    while (*x && *x == *y)
        x++, y++;
    return *x == *y;
}

/* What follows `prefix` in `text`, or NULL where `text` doesn't begin with it. */
SPILL_EARLY static inline const char *spill_str_after(const char *text, const char *prefix)
{
    const volatile char *x = text, *y = prefix;
    while (*y)
        if (*x++ != *y++)
            return NULL;
    return (const char *)x;
}

/* Head of the base namespace's list of objects: the program itself. Its address is also the handle dlopen(NULL) gives. */
struct link_map *spill_elf_program(void);

/* The object's file name without folders (the program's own for the head of the list). Valid while it is loaded. */
const char *spill_elf_name(const struct link_map *object);

/* Whether the object is the library `name`: its SONAME, or where it has none its file name, is `name` or begins with `name`
 * and a dot ("libcuda.so" is libcuda.so.1 and libcuda.so.580.65.06). A program's link or copy can have any file name. */
bool spill_elf_is(const struct link_map *object, const char *name);

/* The first object of the base namespace, then of the others, that is the library `name`, other than `not_this`; or NULL. */
struct link_map *spill_elf_find(const char *name, const struct link_map *not_this);

/* Address of `symbol` as defined by this one object (any version of it), or NULL. */
void *spill_elf_symbol(const struct link_map *object, const char *symbol);

/* The object that holds this address, in any namespace, or NULL. */
struct link_map *spill_elf_containing(const void *address);

/* Whether the object refers to `symbol` as something another object defines: it was linked against it. */
bool spill_elf_refers(const struct link_map *object, const char *symbol);

#endif
