/* SPDX-License-Identifier: Apache-2.0 */
/* Loads an image: finds out what it is and how long, copies it to where a bad length cannot hurt, and has it parsed.
 * Called by code_module.c and code_library.c.
 * Rules: the app passes a bare pointer, so nothing says how much may be read; bytes are therefore fetched through the kernel,
 * which answers EFAULT where we would fault.
 */
#define _GNU_SOURCE
#include "code.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_IMAGE ((size_t)4 << 30)

/* What nvcc puts in front of an embedded fatbin, and cuModuleLoadFatBinary's and the runtime's argument. */
struct wrapper {
    uint32_t magic, version;
    const void *data;
    void *more;
};

struct sim_block {
    struct sim_block *next;
    max_align_t bytes[];
};

void *sim_image_alloc(struct sim_image *image, size_t bytes)
{
    struct sim_block *b = calloc(1, sizeof *b + bytes);
    if (!b)
        return NULL;
    b->next = image->memory;
    image->memory = b;
    return b->bytes;
}

char *sim_image_string(struct sim_image *image, const void *text, size_t n)
{
    char *s = sim_image_alloc(image, n + 1);
    if (s)
        memcpy(s, text, n);
    return s;
}

/* Room for one more element of `size` bytes. False: out of memory. */
static bool grow(struct sim_image *image, void *array, unsigned count, unsigned *room, size_t size)
{
    void *old, *fresh;
    if (count < *room)
        return true;
    unsigned more = *room ? 2 * *room : 16;
    if (!(fresh = sim_image_alloc(image, more * size)))
        return false;
    memcpy(&old, array, sizeof old);
    if (old)
        memcpy(fresh, old, count * size);
    memcpy(array, &fresh, sizeof fresh);
    *room = more;
    return true;
}

struct sim_code *sim_image_add_code(struct sim_image *image, const char *name)
{
    if (!grow(image, &image->codes, image->code_count, &image->code_room, sizeof *image->codes))
        return NULL;
    struct sim_code *c = &image->codes[image->code_count++];
    *c = (struct sim_code){.name = name, .max_threads = SIM_MAX_THREADS, .registers = 32};
    image->sorted = false;
    return c;
}

struct sim_variable *sim_image_add_variable(struct sim_image *image, const char *name)
{
    if (!grow(image, &image->variables, image->variable_count, &image->variable_room, sizeof *image->variables))
        return NULL;
    struct sim_variable *v = &image->variables[image->variable_count++];
    *v = (struct sim_variable){.name = name};
    return v;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct sim_code *)a)->name, ((const struct sim_code *)b)->name);
}

void sim_image_sort(struct sim_image *image)
{
    if (image->code_count)
        qsort(image->codes, image->code_count, sizeof *image->codes, by_name);
    image->sorted = true;
}

struct sim_code *sim_image_code(const struct sim_image *image, const char *name)
{
    struct sim_code key = {.name = name};
    return image->code_count ? bsearch(&key, image->codes, image->code_count, sizeof key, by_name) : NULL;
}

struct sim_variable *sim_image_variable(const struct sim_image *image, const char *name)
{
    for (unsigned i = 0; i < image->variable_count; i++)
        if (!strcmp(image->variables[i].name, name))
            return &image->variables[i];
    return NULL;
}

void sim_image_hold(struct sim_image *image)
{
    image->refs++;
}

void sim_image_drop(struct sim_image *image)
{
    if (!image || --image->refs)
        return;
    for (struct sim_block *b = image->memory, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(image);
}

/* A copy of app memory, fetched without touching it: in a file, mapped. */
struct copy {
    int fd;
    size_t n;
    struct sim_bytes bytes; /* mapped: bytes.n of them */
};

static bool copy_open(struct copy *c)
{
    *c = (struct copy){.fd = memfd_create("simgpu-image", MFD_CLOEXEC)};
    return c->fd >= 0;
}

/* Copies n bytes to offset `at` of the file: fewer, or -1, where memory ends. The bare system call: a sanitizer would look
 * at the bytes first. */
static ssize_t readable(struct copy *c, const void *start, size_t n, size_t at)
{
    return syscall(SYS_pwrite64, c->fd, start, n, at);
}

/* Fetch up to `n` bytes in all from start; fewer where memory ends. */
static void copy_fetch(struct copy *c, const void *start, size_t n)
{
    while (c->n < n) {
        size_t want = n - c->n < (1u << 20) ? n - c->n : 1u << 20;
        ssize_t got = readable(c, (const char *)start + c->n, want, c->n);
        if (got <= 0 && !(got < 0 && errno == EINTR))
            break;
        if (got > 0)
            c->n += (size_t)got;
    }
}

static bool copy_map(struct copy *c)
{
    if (c->bytes.n)
        munmap((void *)c->bytes.p, c->bytes.n);
    c->bytes = (struct sim_bytes){0};
    void *p = c->n ? mmap(NULL, c->n, PROT_READ, MAP_PRIVATE, c->fd, 0) : MAP_FAILED;
    if (p == MAP_FAILED)
        return false;
    c->bytes = (struct sim_bytes){p, c->n};
    return true;
}

static void copy_close(struct copy *c)
{
    if (c->bytes.n)
        munmap((void *)c->bytes.p, c->bytes.n);
    close(c->fd);
}

static int capability(void)
{
    return 10 * sim_device_attribute(0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
           sim_device_attribute(0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
}

CUresult sim_image_parse(struct sim_bytes all, int capability, struct sim_image *image)
{
    struct sim_bytes entry = all;
    bool is_ptx = true;
    void *owned = NULL;
    CUresult r = CUDA_SUCCESS;
    if (sim_fatbin_extent(all))
        r = sim_fatbin_pick(all, capability, &entry, &is_ptx, &owned);
    if (!r && sim_elf_extent(entry))
        r = sim_elf_parse(entry, image);
    else if (!r)
        r = is_ptx ? sim_ptx_parse(entry, image) : CUDA_ERROR_INVALID_IMAGE;
    free(owned);
    return r;
}

CUresult sim_image_new(struct sim_bytes all, const char *file, struct sim_image **out)
{
    struct sim_image *image = calloc(1, sizeof *image);
    if (!image)
        return CUDA_ERROR_OUT_OF_MEMORY;
    image->refs = 1;
    CUresult r = sim_image_parse(all, capability(), image);
    if (!r && file && !(image->file = sim_image_string(image, file, strlen(file))))
        r = CUDA_ERROR_OUT_OF_MEMORY;
    if (r)
        sim_image_drop(image);
    else
        *out = image;
    return r;
}

/* Length of the text at start with its NUL; 0: no NUL in readable memory. Each page is tried before it is read. */
static size_t text_length(struct copy *c, const char *start)
{
    for (size_t n = 0; n < MAX_IMAGE;) {
        size_t to_edge = 4096 - ((uintptr_t)start + n) % 4096;
        if (readable(c, start + n, 1, c->n) != 1) /* behind what was fetched */
            return 0;
        size_t part = strnlen(start + n, to_edge);
        n += part;
        if (part < to_edge)
            return n + 1;
    }
    return 0;
}

/* Fetch the whole image. Never more than it says it has, as far as that is known: what lies behind it is not ours. */
static bool fetch_all(struct copy *c, const void *start)
{
    size_t n = sizeof(uint32_t);
    copy_fetch(c, start, n); /* a magic number, or the beginning of a text that may be shorter than this */
    if (!copy_map(c))
        return false;
    if (!sim_elf_extent(c->bytes) && !sim_fatbin_extent(c->bytes)) {
        n = text_length(c, start);
        copy_fetch(c, start, n);
        return n && c->n == n && copy_map(c);
    }
    for (;;) {
        n = sim_elf_extent(c->bytes);
        n = n ? n : sim_fatbin_extent(c->bytes);
        if (!n || n > MAX_IMAGE)
            return false;
        if (n <= c->n)
            return true;
        copy_fetch(c, start, n);
        if (c->n < n || !copy_map(c))
            return false;
    }
}

CUresult sim_image_load(const void *start, struct sim_image **out)
{
    struct copy c;
    struct wrapper w;
    if (!start)
        return CUDA_ERROR_INVALID_VALUE;
    if (!copy_open(&c))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (readable(&c, start, sizeof w.magic, 0) == sizeof w.magic && pread(c.fd, &w, sizeof w.magic, 0) == sizeof w.magic &&
        w.magic == SIM_WRAPPER_MAGIC && readable(&c, start, sizeof w, 0) == sizeof w && pread(c.fd, &w, sizeof w, 0) == sizeof w)
        start = w.data;
    Dl_info where;
    const char *file = dladdr(start, &where) ? where.dli_fname : NULL;
    CUresult r = fetch_all(&c, start) ? sim_image_new(c.bytes, file, out) : CUDA_ERROR_INVALID_IMAGE;
    copy_close(&c);
    return r;
}

CUresult sim_image_load_file(const char *path, struct sim_image **out)
{
    struct stat st;
    if (!path)
        return CUDA_ERROR_INVALID_VALUE;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return CUDA_ERROR_FILE_NOT_FOUND;
    void *p = MAP_FAILED;
    CUresult r = CUDA_ERROR_INVALID_IMAGE;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 0 && (size_t)st.st_size <= MAX_IMAGE)
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (p != MAP_FAILED) {
        r = sim_image_new((struct sim_bytes){p, (size_t)st.st_size}, path, out);
        munmap(p, (size_t)st.st_size);
    }
    return r;
}
