/* SPDX-License-Identifier: Apache-2.0 */
/* What freezes a process (tiering/state.c): signs that something else than CUDA's own streams works with its memory, so that
 * an idle proof is none, or that it is to be left as it is. Called by trigger.S for entries that are such a sign, by
 * process.c at the start, and through spill_settings.look at each managed allocation and before each safepoint for signs
 * that come without a call.
 * Rules: what is noticed is only noted, the call passes; a look costs some microseconds and never happens at a launch; the
 * reasons are static strings. Each reason is explained in csrc/DESIGN.md, "Process states". */
#define _GNU_SOURCE
#include "shim/freeze.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shim/config.h"
#include "shim/driver.h"
#include "tiering/tiering.h"

static void freeze(const char *why)
{
    if (!spill_config()->disable)
        spill_freeze(why);
}

/* ---- entries ---- */

static const struct trigger {
    size_t entry; /* in the door */
    const char *why;
} triggers[] = {
#define TRIGGER(symbol, name, version, flags, pfn, why) { offsetof(struct spill_driver, symbol), why },
#include "shim/hooks.def"
};

void *spill_trigger(unsigned which, const void *first, const void *second)
{
    (void)first;
    (void)second;
    freeze(triggers[which].why);
    void *entry;
    memcpy(&entry, (const char *)spill_driver() + triggers[which].entry, sizeof entry);
    return entry;
}

/* The private tables that every CUDA runtime asks for, as public reimplementations of the driver list them (ZLUDA, Wine's
 * nvcuda, GPGPU-Sim); what they do was done to many programs already. NVIDIA's runtimes since 11.3 don't come this way. */
static const unsigned char known_tables[][16] = {
    /* the runtime's interface: modules, the primary context */
    { 0x6b, 0xd5, 0xfb, 0x6c, 0x5b, 0xf4, 0xe7, 0x4a, 0x89, 0x87, 0xd9, 0x39, 0x12, 0xfd, 0x9d, 0xf9 },
    /* callbacks of tools, their thread-local storage, their view of contexts */
    { 0xa0, 0x94, 0x79, 0x8c, 0x2e, 0x74, 0x2e, 0x74, 0x93, 0xf2, 0x08, 0x00, 0x20, 0x0c, 0x0a, 0x66 },
    { 0x42, 0xd8, 0x5a, 0x81, 0x23, 0xf6, 0xcb, 0x47, 0x82, 0x98, 0xf6, 0xe7, 0x8a, 0x3a, 0xec, 0xdc },
    { 0x21, 0x31, 0x8c, 0x60, 0x97, 0x14, 0x32, 0x48, 0x8c, 0xa6, 0x41, 0xff, 0x73, 0x24, 0xc8, 0xf2 },
    /* storage that belongs to a context */
    { 0xc6, 0x93, 0x33, 0x6e, 0x11, 0x21, 0xdf, 0x11, 0xa8, 0xc3, 0x68, 0xf3, 0x55, 0xd8, 0x95, 0x93 },
    /* whether driver and context are what they should be */
    { 0xd4, 0x08, 0x20, 0x55, 0xbd, 0xe6, 0x70, 0x4b, 0x8d, 0x34, 0xba, 0x12, 0x3c, 0x66, 0xe1, 0xf2 },
    { 0x26, 0x3e, 0x88, 0x60, 0x7c, 0xd2, 0x61, 0x43, 0x92, 0xf6, 0xbb, 0xd5, 0x00, 0x6d, 0xfa, 0x7e },
    { 0xf8, 0xcf, 0xf9, 0x51, 0x21, 0x46, 0x8b, 0x4e, 0xb9, 0xe2, 0xfb, 0x46, 0x9e, 0x7c, 0x0d, 0xd9 },
    /* older runtimes' */
    { 0x6e, 0x16, 0x3f, 0xbe, 0xb9, 0x58, 0x44, 0x4d, 0x83, 0x5c, 0xe1, 0x82, 0xaf, 0xf1, 0x99, 0x1e },
};

void *spill_export_table(unsigned which, const void *table, const void *id)
{
    (void)which;
    (void)table;
    bool known = !id;
    for (size_t i = 0; i < sizeof known_tables / sizeof *known_tables && !known; i++)
        known = memcmp(known_tables[i], id, sizeof *known_tables) == 0;
    if (!known)
        freeze("a private table of the driver is used (cuGetExportTable)");
    return (void *)spill_driver()->cuGetExportTable;
}

/* ---- libraries ---- */

/* By file name: `name`, then its end, a dot or a dash, or anything where it ends in '_'. `device`: loaded is not used (PyTorch links
 * libcufile, every NCCL looks for libibverbs); it is in use once the process holds a file open whose path begins so.
 * `aside`: it moves memory itself, and must hear when there is none. */
static const struct library {
    const char *name, *device, *why;
    bool aside;
} libraries[] = {
    { "libnvoptix", NULL, "OptiX is loaded", false },
    { "libnvidia-encode", NULL, "the video encoder is loaded", false },
    { "libnvcuvid", NULL, "the video decoder is loaded", false },
    { "libibverbs", "/dev/infiniband/uverbs", "InfiniBand verbs are in use", false },
    { "libgdrapi", "/dev/gdrdrv", "gdrcopy is in use", false },
    { "libcufile", "/dev/nvidia-fs", "GPUDirect Storage is in use", false },
    { "nvshmem_bootstrap_", NULL, "NVSHMEM is in use", false },
    { "libsanitizer-collection", NULL, "Compute Sanitizer is loaded", false },
    { "libToolsInjection64", NULL, "a profiler is loaded", false },
    { "aimdo", NULL, "ComfyUI's own offloader (comfy-aimdo) is loaded", true },
};
enum { LIBRARIES = sizeof libraries / sizeof *libraries };

static atomic_uint suspects; /* bit per row: loaded, its device file not seen open yet */
static atomic_ullong loads;  /* in this process, when the list was last read */

static bool named(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    size_t length = strlen(name);
    return strncmp(file, name, length) == 0 && (name[length - 1] == '_' || !file[length] || strchr(".-", file[length]));
}

/* A library of SPILLSHIM_ASIDE. */
static bool listed(const char *path)
{
    char one[SPILL_TEXT_MAX];
    for (const char *at = spill_config()->aside; *at; at += *at == ',') {
        size_t length = strcspn(at, ",");
        memcpy(one, at, length);
        one[length] = 0;
        if (length && named(path, one))
            return true;
        at += length;
    }
    return false;
}

static void found(unsigned row)
{
    const struct library *l = &libraries[row];
    if (l->device)
        atomic_fetch_or(&suspects, 1u << row);
    else if (l->aside)
        spill_step_aside(l->why);
    else
        freeze(l->why);
}

/* Ends at the first object where nothing was loaded since the last time. */
static int visit(struct dl_phdr_info *info, size_t size, void *at)
{
    unsigned long long *now = at;
    (void)size;
    if (!*now) {
        *now = info->dlpi_adds;
        if (*now == atomic_load(&loads))
            return 1;
    }
    for (unsigned row = 0; info->dlpi_name && row < LIBRARIES; row++)
        if (named(info->dlpi_name, libraries[row].name))
            found(row);
    if (info->dlpi_name && listed(info->dlpi_name))
        spill_step_aside("a library that SPILLSHIM_ASIDE names is loaded");
    return 0;
}

static void look_at_libraries(void)
{
    unsigned long long now = 0;
    if (!dl_iterate_phdr(visit, &now))
        atomic_store(&loads, now);
}

/* Which of the suspects have their device open. */
static void look_at_files(unsigned rows)
{
    const char *root = spill_config()->proc_root;
    size_t skip = strlen(root);
    char path[512];
    DIR *folder = opendir("/proc/self/fd");
    for (struct dirent *e; folder && (e = readdir(folder));) {
        ssize_t n = readlinkat(dirfd(folder), e->d_name, path, sizeof path - 1);
        path[n > 0 ? n : 0] = 0;
        if (strncmp(path, root, skip) != 0)
            continue;
        for (unsigned row = 0; row < LIBRARIES; row++)
            if (rows >> row & 1 && strncmp(path + skip, libraries[row].device, strlen(libraries[row].device)) == 0)
                freeze(libraries[row].why);
    }
    if (folder)
        closedir(folder);
}

/* ---- who watches ---- */

static void look_at_tracer(void)
{
    static const char field[] = "\nTracerPid:\t";
    char path[512], text[1024];
    snprintf(path, sizeof path, "%s/proc/self/status", spill_config()->proc_root);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *at = strstr(text, field);
    if (at && at[sizeof field - 1] != '0')
        freeze("a debugger is attached");
}

/* Both are there from the start, or never. */
static void look_at_surroundings(void)
{
    static atomic_bool done;
    if (!spill_device_any() || atomic_exchange(&done, true))
        return;
    const char *injected = getenv("CUDA_INJECTION64_PATH");
    if (injected && *injected)
        freeze("a tool is injected into CUDA (CUDA_INJECTION64_PATH)");
    /* MPS: the driver knows; one that has no such attribute is an MPS client where the server's control pipe is. */
    int mps = 0, count = 0;
    bool asked = spill_driver()->cuDeviceGetCount(&count) == CUDA_SUCCESS;
    for (int device = 0; device < count && asked; device++) {
        int value = 0;
        asked = spill_driver()->cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_MPS_ENABLED, device) == CUDA_SUCCESS;
        mps |= value;
    }
    if (!asked) {
        const char *pipes = getenv("CUDA_MPS_PIPE_DIRECTORY");
        char path[512];
        snprintf(path, sizeof path, "%s/control", pipes && *pipes ? pipes : "/tmp/nvidia-mps");
        mps = access(path, F_OK) == 0;
    }
    if (mps)
        freeze("the GPU is shared through MPS");
}

void spill_freeze_look(void)
{
    int before = errno;
    look_at_libraries();
    if (spill_state_now() == SPILL_OPEN && atomic_load(&suspects))
        look_at_files(atomic_load(&suspects));
    if (spill_state_now() == SPILL_OPEN)
        look_at_tracer();
    look_at_surroundings();
    errno = before;
}
