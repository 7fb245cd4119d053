/* SPDX-License-Identifier: Apache-2.0 */
/* Who gets which function: the real libraries' symbols for us, our hooks for the program, and the record of what was handed
 * to whom. Called from driver.c (real symbols), dl_x86_64.S (the filters), getproc.c, hook_*.c and stats (the record).
 * Rules: safe before constructors have run; no malloc; nothing here runs at a launch. The real dlsym, dlvsym and dlopen
 * are read out of libc by hand (elfwalk.c), because any look-up by name would find our own. */
#ifndef SPILL_RESOLVE_H
#define SPILL_RESOLVE_H

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum spill_lib { SPILL_LIB_CUDA, SPILL_LIB_NVML, SPILL_LIB_COUNT };

/* --- real symbols (resolve.c) --- */

/* The real library's `symbol`, or NULL where the library can't be loaded or hasn't got it; never one of ours. Loads the
 * library where the program hasn't. From the first success on it stays loaded until the process ends, because callers
 * keep the address. */
void *spill_real_symbol(enum spill_lib lib, const char *symbol);

/* Path of the loaded real library, or NULL. Loads nothing. */
const char *spill_real_path(enum spill_lib lib);

/* libc's own functions, never ours; NULL only where libc has none (before glibc 2.34 without libdl). */
struct spill_real_dl {
    void *(*sym)(void *handle, const char *name);
    void *(*vsym)(void *handle, const char *name, const char *version);
    void *(*open)(const char *file, int flags);
    int (*close)(void *handle);
    struct link_map *object; /* that holds them */
};
const struct spill_real_dl *spill_real_dl(void);

/* The object that holds libspillshim's own code. */
struct link_map *spill_own_object(void);

/* Whether `a` comes before `b` in the base namespace's list, which is the order of the global scope. */
bool spill_comes_before(const struct link_map *a, const struct link_map *b);

/* Whether the program's calls meet our hooks: the library was loaded before what it stands in front of (LD_PRELOAD). One that a
 * program has opened later is nobody's first choice. */
bool spill_interposed(void);

/* --- the hooks as data (resolve_table.c) --- */

struct spill_hook {
    const char *symbol; /* the exported ELF symbol, which is also our function's */
    const char *name;   /* what cuGetProcAddress is asked for; NULL: not handed out by it */
    int version;        /* CUDA version that introduced this ABI */
    int flags;          /* 0: legacy default stream, 2: per-thread default stream */
    enum spill_lib lib;
    void *function;
};

/* Rows in the order of hooks.def; spill_hook_rows of them. */
extern const struct spill_hook spill_hooks[];
extern const unsigned spill_hook_rows;

/* The row of an exported symbol, by its exact name (cuMemAlloc is not cuMemAlloc_v2), or NULL. */
const struct spill_hook *spill_hook_of_symbol(const char *symbol);

/* --- the record of what was handed to whom (resolve_path.c) --- */

enum spill_path {
    SPILL_PATH_UNKNOWN,
    SPILL_PATH_LINK,
    SPILL_PATH_DLSYM,
    SPILL_PATH_DLVSYM,
    SPILL_PATH_GETPROC,
    SPILL_PATH_ALLOCATOR, /* it called our allocator (allocator.h): not handed out by anything */
    SPILL_PATH_COUNT
};

/* "unknown", "link", "dlsym", "dlvsym", "cuGetProcAddress", "allocator". */
const char *spill_path_name(enum spill_path path);

/* Note that the object holding `caller` was given `hook`. */
void spill_path_handed(const struct spill_hook *hook, enum spill_path path, const void *caller);

/* Count one call of `symbol` under its {module, path}. The path: by which the caller's object was handed the hook; else "link"
 * where that object was linked against the symbol; else by which the hook was last handed to anybody (ctypes looks up in one
 * object and calls from another); else "unknown". For allocations only: it costs about a microsecond. */
void spill_path_count(const void *return_address, const char *symbol);
/* The same where the caller itself knows the path. */
void spill_path_count_by(enum spill_path path, const void *return_address, const char *symbol);

struct spill_path_entry {
    const char *module, *path, *symbol;
    uint64_t calls;
};

/* The index-th count, from 0; false past the last. */
bool spill_path_each(unsigned index, struct spill_path_entry *out);

/* --- the filters behind dl_x86_64.S (resolve_filter.c) --- */

/* `target`: jump there with the caller's registers; NULL: return `answer`. For dlopen `answer` holds the flags to use. */
struct spill_jump {
    void *target;
    void *answer;
};

#endif
