/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a cubin: kernels and variables from its symbol table, parameter layout from .nv.info.<kernel>.
 * Called by code_image.c. The format is what nvcc 13.0 writes for sm_75 to sm_120 (tests/unit/test_simgpu_code_image.py builds
 * each); all offsets are checked, so corrupt input gives CUDA_ERROR_INVALID_IMAGE.
 */
#include "code.h"

#include <elf.h>
#include <stdlib.h>
#include <string.h>

#define EM_CUDA_MACHINE 190
#define STO_ENTRY 0x10   /* st_other: a kernel, not a device function */
#define MAX_EXTENT (UINT64_C(1) << 40) /* what lies beyond is nonsense, and would overflow sums */
#define STO_MANAGED 0x04 /* st_other: __managed__ */
#define STT_CUDA_OBJECT 13 /* objects of relocatable device code */

/* .nv.info attributes: u8 format, u8 attribute, u16 value or size; format 4 is followed by `size` bytes. */
#define FORMAT_SIZED 4
#define ATTR_MAX_THREADS 0x05
#define ATTR_FRAME_SIZE 0x11
#define ATTR_KPARAM_INFO 0x17
#define ATTR_REGCOUNT 0x2f
#define MAX_REGISTERS 256 /* of a thread, on every architecture so far */

struct elf {
    struct sim_bytes file;
    Elf64_Ehdr head; /* a copy: in a fatbin nothing is aligned for certain */
    const unsigned char *sections;
    struct sim_bytes names;
    struct named *by_name; /* the sections that have one: a library's image has tens of thousands, asked for by name */
    unsigned named;
    uint64_t copied; /* bytes of initial values so far */
};

struct named {
    const char *name;
    unsigned index;
};

/* n bytes at `offset`, or NULL. */
static const unsigned char *at(struct sim_bytes s, uint64_t offset, uint64_t n)
{
    return offset <= s.n && n <= s.n - offset ? s.p + offset : NULL;
}

static uint16_t u16(const unsigned char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint32_t u32(const unsigned char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static bool section(const struct elf *e, unsigned index, Elf64_Shdr *out)
{
    if (index >= e->head.e_shnum)
        return false;
    memcpy(out, e->sections + (size_t)index * sizeof *out, sizeof *out);
    return true;
}

static bool section_bytes(const struct elf *e, const Elf64_Shdr *s, struct sim_bytes *out)
{
    if (s->sh_type == SHT_NOBITS)
        return false;
    out->p = at(e->file, s->sh_offset, s->sh_size);
    out->n = s->sh_size;
    return out->p != NULL;
}

/* A NUL-terminated string inside the table, or NULL. */
static const char *string_at(struct sim_bytes table, uint64_t offset)
{
    if (offset >= table.n || !memchr(table.p + offset, 0, table.n - offset))
        return NULL;
    return (const char *)table.p + offset;
}

size_t sim_elf_extent(struct sim_bytes head)
{
    Elf64_Ehdr e;
    if (head.n < SELFMAG || memcmp(head.p, ELFMAG, SELFMAG) != 0)
        return 0;
    if (head.n < sizeof e)
        return sizeof e;
    memcpy(&e, head.p, sizeof e);
    uint64_t end = sizeof e, tables[2] = {e.e_shoff + (uint64_t)e.e_shnum * e.e_shentsize,
                                          e.e_phoff + (uint64_t)e.e_phnum * e.e_phentsize};
    for (int i = 0; i < 2; i++)
        if (tables[i] > end && tables[i] < MAX_EXTENT)
            end = tables[i];
    /* With the section table in reach, the sections too. */
    if (e.e_shentsize == sizeof(Elf64_Shdr))
        for (unsigned i = 0; i < e.e_shnum; i++) {
            const unsigned char *p = at(head, e.e_shoff + (uint64_t)i * sizeof(Elf64_Shdr), sizeof(Elf64_Shdr));
            Elf64_Shdr s;
            if (!p)
                break;
            memcpy(&s, p, sizeof s);
            if (s.sh_type != SHT_NOBITS && s.sh_type != SHT_NULL && s.sh_offset < MAX_EXTENT && s.sh_size < MAX_EXTENT &&
                s.sh_offset + s.sh_size > end)
                end = s.sh_offset + s.sh_size;
        }
    return end;
}

static CUresult open_elf(struct sim_bytes file, struct elf *e)
{
    e->file = file;
    const unsigned char *head = at(file, 0, sizeof e->head);
    if (!head)
        return CUDA_ERROR_INVALID_IMAGE;
    memcpy(&e->head, head, sizeof e->head);
    if (memcmp(e->head.e_ident, ELFMAG, SELFMAG) != 0 || e->head.e_ident[EI_CLASS] != ELFCLASS64 ||
        e->head.e_ident[EI_DATA] != ELFDATA2LSB || e->head.e_machine != EM_CUDA_MACHINE ||
        e->head.e_shentsize != sizeof(Elf64_Shdr))
        return CUDA_ERROR_INVALID_IMAGE;
    e->sections = at(file, e->head.e_shoff, (uint64_t)e->head.e_shnum * sizeof(Elf64_Shdr));
    Elf64_Shdr names;
    if (!e->sections || !section(e, e->head.e_shstrndx, &names) || !section_bytes(e, &names, &e->names))
        return CUDA_ERROR_INVALID_IMAGE;
    return CUDA_SUCCESS;
}

static int by_name(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->index > y->index) - (x->index < y->index);
}

static bool index_sections(struct elf *e)
{
    Elf64_Shdr s;
    if (!(e->by_name = malloc((e->head.e_shnum + 1u) * sizeof *e->by_name)))
        return false;
    for (unsigned i = 0; i < e->head.e_shnum; i++)
        if (section(e, i, &s) && (e->by_name[e->named].name = string_at(e->names, s.sh_name)))
            e->by_name[e->named++].index = i;
    qsort(e->by_name, e->named, sizeof *e->by_name, by_name);
    return true;
}

/* The first section called prefix + name. */
static bool find_section(const struct elf *e, const char *prefix, const char *name, Elf64_Shdr *out)
{
    size_t n = strlen(prefix), low = 0, high = e->named;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const char *s = e->by_name[middle].name;
        int order = strncmp(prefix, s, n);
        if ((order ? order : strcmp(name, s + n)) > 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < e->named && !strncmp(prefix, e->by_name[low].name, n) && !strcmp(name, e->by_name[low].name + n) &&
           section(e, e->by_name[low].index, out);
}

/* Calls back for each .nv.info record with a payload. False: the section is cut off. */
static bool each_info(struct sim_bytes info, CUresult (*record)(unsigned attribute, struct sim_bytes payload, void *arg), void *arg,
                      CUresult *result)
{
    for (size_t o = 0; o < info.n;) {
        const unsigned char *p = at(info, o, 4);
        if (!p)
            return false;
        size_t size = p[0] == FORMAT_SIZED ? u16(p + 2) : 0;
        if (!at(info, o + 4, size))
            return false;
        if (p[0] == FORMAT_SIZED) {
            *result = record(p[1], (struct sim_bytes){p + 4, size}, arg);
            if (*result)
                return true;
        }
        o += 4 + size;
    }
    return true;
}

struct params {
    struct sim_image *image;
    struct sim_code *code;
    unsigned seen;
};

static CUresult kernel_record(unsigned attribute, struct sim_bytes v, void *arg)
{
    struct params *a = arg;
    struct sim_code *c = a->code;
    if (attribute == ATTR_MAX_THREADS && v.n >= 12) {
        uint64_t threads = (uint64_t)u32(v.p) * u32(v.p + 4) * u32(v.p + 8);
        if (threads && threads < SIM_MAX_THREADS)
            c->max_threads = (int)threads;
    } else if (attribute == ATTR_KPARAM_INFO) {
        if (v.n < 12)
            return CUDA_ERROR_INVALID_IMAGE;
        unsigned ordinal = u16(v.p + 4), offset = u16(v.p + 6), size = u32(v.p + 8) >> 18;
        if (ordinal >= SIM_MAX_PARAMS || (size_t)offset + size > SIM_MAX_PARAM_SIZE)
            return CUDA_ERROR_INVALID_IMAGE;
        if (ordinal >= c->param_count) { /* records come last parameter first: this grows once */
            struct sim_param *grown = sim_image_alloc(a->image, (ordinal + 1) * sizeof *grown);
            if (!grown)
                return CUDA_ERROR_OUT_OF_MEMORY;
            if (c->param_count)
                memcpy(grown, c->params, c->param_count * sizeof *grown);
            c->params = grown;
            c->param_count = ordinal + 1;
        }
        c->params[ordinal] = (struct sim_param){offset, size};
        a->seen++;
        if ((size_t)offset + size > c->param_size)
            c->param_size = (size_t)offset + size;
    }
    return CUDA_SUCCESS;
}

struct sizes {
    struct sim_image *image;
    struct sim_bytes symbols, strings;
};

/* Per-kernel figures in the image-wide .nv.info are keyed by symbol index. */
static CUresult image_record(unsigned attribute, struct sim_bytes v, void *arg)
{
    struct sizes *a = arg;
    if ((attribute != ATTR_REGCOUNT && attribute != ATTR_FRAME_SIZE) || v.n < 8)
        return CUDA_SUCCESS;
    const unsigned char *p = at(a->symbols, (uint64_t)u32(v.p) * sizeof(Elf64_Sym), sizeof(Elf64_Sym));
    if (!p)
        return CUDA_ERROR_INVALID_IMAGE;
    Elf64_Sym symbol;
    memcpy(&symbol, p, sizeof symbol);
    const char *name = string_at(a->strings, symbol.st_name);
    struct sim_code *code = name ? sim_image_code(a->image, name) : NULL;
    uint32_t figure = u32(v.p + 4);
    if (figure > (attribute == ATTR_REGCOUNT ? MAX_REGISTERS : INT32_MAX))
        return CUDA_ERROR_INVALID_IMAGE;
    if (code && attribute == ATTR_REGCOUNT)
        code->registers = (int)figure;
    else if (code)
        code->local = (int)figure;
    return CUDA_SUCCESS;
}

static CUresult add_kernel(const struct elf *e, struct sim_image *image, const char *symbol)
{
    const char *name = sim_image_string(image, symbol, strlen(symbol));
    struct sim_code *code = name ? sim_image_add_code(image, name) : NULL;
    if (!code)
        return CUDA_ERROR_OUT_OF_MEMORY;
    Elf64_Shdr s;
    if (find_section(e, ".nv.shared.", name, &s)) {
        /* From sm_90 on, the first KiB belongs to the system. */
        uint64_t system = image->binary_version >= 90 && s.sh_size >= 1024 ? 1024 : 0;
        code->shared = (int)(s.sh_size - system > INT32_MAX ? INT32_MAX : s.sh_size - system);
    }
    if (find_section(e, ".nv.constant3", "", &s) && s.sh_size <= INT32_MAX)
        code->constant = (int)s.sh_size;
    if (find_section(e, ".text.", name, &s) && s.sh_info >> 24)
        code->registers = (int)(s.sh_info >> 24);
    struct sim_bytes info;
    if (!find_section(e, ".nv.info.", name, &s))
        return CUDA_SUCCESS; /* a kernel without parameters may lack it */
    struct params a = {image, code, 0};
    CUresult r = CUDA_SUCCESS;
    if (!section_bytes(e, &s, &info) || !each_info(info, kernel_record, &a, &r))
        return CUDA_ERROR_INVALID_IMAGE;
    if (!r && a.seen != code->param_count)
        r = CUDA_ERROR_INVALID_IMAGE; /* a hole in the parameter list */
    return r;
}

static CUresult add_variable(struct elf *e, struct sim_image *image, const char *symbol, const Elf64_Sym *sym)
{
    Elf64_Shdr s;
    const char *in;
    if (!section(e, sym->st_shndx, &s) || !(in = string_at(e->names, s.sh_name)) ||
        (strncmp(in, ".nv.global", 10) != 0 && strcmp(in, ".nv.constant3") != 0) || !sym->st_size)
        return CUDA_SUCCESS;
    if (sym->st_value > s.sh_size || sym->st_size > s.sh_size - sym->st_value || sym->st_size > SIM_MAX_VARIABLE)
        return CUDA_ERROR_INVALID_IMAGE;
    const char *name = sim_image_string(image, symbol, strlen(symbol));
    struct sim_variable *v = name ? sim_image_add_variable(image, name) : NULL;
    if (!v)
        return CUDA_ERROR_OUT_OF_MEMORY;
    v->size = sym->st_size;
    v->managed = sym->st_other & STO_MANAGED;
    if (s.sh_type != SHT_NOBITS) {
        struct sim_bytes bytes;
        unsigned char *copy;
        /* All values together are no more than the file, else many symbols share their bytes: a bomb. */
        if (!section_bytes(e, &s, &bytes) || v->size > e->file.n - e->copied)
            return CUDA_ERROR_INVALID_IMAGE;
        e->copied += v->size;
        if (!(copy = sim_image_alloc(image, v->size)))
            return CUDA_ERROR_OUT_OF_MEMORY;
        memcpy(copy, bytes.p + sym->st_value, v->size);
        v->init = copy;
    }
    return CUDA_SUCCESS;
}

static CUresult parse(struct elf *e, struct sim_image *image)
{
    CUresult r = CUDA_SUCCESS;
    /* ABI 8 moved the architecture one byte up. */
    image->binary_version = (int)(e->head.e_ident[EI_ABIVERSION] >= 8 ? e->head.e_flags >> 8 & 0xff : e->head.e_flags & 0xff);
    image->ptx_version = image->binary_version;
    Elf64_Shdr table, text;
    struct sizes sizes = {image, {0}, {0}};
    if (!find_section(e, ".symtab", "", &table) || table.sh_entsize != sizeof(Elf64_Sym) ||
        !section_bytes(e, &table, &sizes.symbols) || !section(e, table.sh_link, &text) ||
        !section_bytes(e, &text, &sizes.strings))
        return CUDA_ERROR_INVALID_IMAGE;
    for (size_t i = 0; i < sizes.symbols.n / sizeof(Elf64_Sym) && !r; i++) {
        Elf64_Sym s;
        memcpy(&s, sizes.symbols.p + i * sizeof s, sizeof s);
        const char *name = string_at(sizes.strings, s.st_name);
        unsigned type = ELF64_ST_TYPE(s.st_info);
        if (!name)
            r = CUDA_ERROR_INVALID_IMAGE;
        else if (type == STT_FUNC && (s.st_other & STO_ENTRY) && *name)
            r = add_kernel(e, image, name);
        else if ((type == STT_OBJECT || type == STT_CUDA_OBJECT) && *name)
            r = add_variable(e, image, name, &s);
    }
    sim_image_sort(image);
    struct sim_bytes info;
    if (!r && find_section(e, ".nv.info", "", &table) &&
        (!section_bytes(e, &table, &info) || !each_info(info, image_record, &sizes, &r)))
        r = CUDA_ERROR_INVALID_IMAGE;
    return r;
}

CUresult sim_elf_parse(struct sim_bytes cubin, struct sim_image *image)
{
    struct elf e = {0};
    CUresult r = open_elf(cubin, &e);
    if (!r)
        r = index_sections(&e) ? parse(&e, image) : CUDA_ERROR_OUT_OF_MEMORY;
    free(e.by_name);
    return r;
}
