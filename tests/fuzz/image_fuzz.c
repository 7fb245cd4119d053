/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the readers of device code (csrc/simgpu: code_image.c, fatbin.c, elf.c, ptx.c): images come from applications and
 * from files, and a broken one must be an error, never a crash. Built and run by tests/unit/test_simgpu_fuzz_corpus.py:
 *   replay   cc -fsanitize=address,undefined image_fuzz.c ... ; ./image_fuzz corpus/...      every file once
 *            ./image_fuzz --mutate SEED COUNT corpus/...       then COUNT inputs made from them; SEED repeats them exactly
 *   search   clang -fsanitize=fuzzer,address,undefined -DLIBFUZZER image_fuzz.c ... ; ./image_fuzz -max_len=65536 NEW corpus
 *            and what it learnt, made small again: ./image_fuzz -merge=1 SMALL NEW corpus
 * Corpus: nvcc's own output for tests/programs/kernels.cu and others, cut down, and what libFuzzer made of it. A find goes
 * into the corpus as find-<what>, so that it is replayed for ever. Searched so far: 13 minutes (2.8 million inputs, one find), then
 * 11 minutes on the readers as mended (1.7 million, none).
 * Rules: each input is read twice. Once by the parser that it looks meant for, from a heap block of exactly its size (the
 * sanitizer sees one byte too many); once by sim_image_load, from memory that ends where a page does and nothing follows.
 */
#define _GNU_SOURCE
#include "code.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* What the readers need of the rest of the driver. */
int sim_device_attribute(CUdevice device, CUdevice_attribute attribute)
{
    (void)device;
    return attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9 : 0;
}

void sim_complain(const char *format, ...)
{
    (void)format; /* thousands of lines a second help nobody */
}

static void require(bool holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "image_fuzz: %s\n", what);
        abort();
    }
}

static volatile unsigned char sink;

static void read_all(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sink ^= ((const unsigned char *)p)[i];
}

/* Everything that the rest of the driver takes on trust about an image that was accepted. */
static void walk(const struct sim_image *image)
{
    for (unsigned i = 0; i < image->code_count; i++) {
        const struct sim_code *c = &image->codes[i];
        require(c->name && *c->name && strlen(c->name) < SIZE_MAX, "a kernel without a name");
        require(!i || strcmp(image->codes[i - 1].name, c->name) <= 0, "kernels out of order");
        require(sim_image_code(image, c->name) != NULL, "a kernel that cannot be found");
        require(c->max_threads > 0 && c->max_threads <= SIM_MAX_THREADS, "launch bounds");
        require(c->shared >= 0 && c->local >= 0 && c->constant >= 0 && c->registers >= 0, "a negative figure");
        require(c->param_size <= SIM_MAX_PARAM_SIZE && c->param_count <= SIM_MAX_PARAMS, "too many parameters");
        for (unsigned k = 0; k < c->param_count; k++)
            require((size_t)c->params[k].offset + c->params[k].size <= c->param_size, "a parameter outside the buffer");
    }
    for (unsigned i = 0; i < image->variable_count; i++) {
        const struct sim_variable *v = &image->variables[i];
        require(v->name && v->size && v->size <= SIM_MAX_VARIABLE, "the size of a variable");
        if (v->init)
            read_all(v->init, v->size);
    }
}

static void finish(CUresult r, struct sim_image *image)
{
    require(r == CUDA_SUCCESS || r == CUDA_ERROR_INVALID_IMAGE || r == CUDA_ERROR_INVALID_PTX || r == CUDA_ERROR_NO_BINARY_FOR_GPU ||
                r == CUDA_ERROR_OUT_OF_MEMORY || r == CUDA_ERROR_NOT_SUPPORTED,
            "an error that a load does not have");
    if (!r)
        walk(image);
}

static void parse_exactly(const unsigned char *data, size_t n)
{
    unsigned char *block = malloc(n ? n : 1);
    require(block != NULL, "no memory");
    memcpy(block, data, n);
    struct sim_bytes all = {block, n};
    struct sim_image *image = calloc(1, sizeof *image);
    require(image != NULL, "no memory");
    image->refs = 1;
    finish(sim_image_parse(all, 90, image), image);
    sim_image_drop(image);
    free(block);
}

static void load_at_the_edge(const unsigned char *data, size_t n)
{
    static char *edge; /* nothing is mapped from here on */
    const size_t room = 1u << 20;
    if (!edge) {
        char *p = mmap(NULL, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        require(p != MAP_FAILED && !munmap(p + room, 4096), "no memory");
        edge = p + room;
    }
    if (!n || n > room)
        return;
    memcpy(edge - n, data, n);
    struct sim_image *image;
    CUresult r = sim_image_load(edge - n, &image);
    finish(r, image);
    if (!r)
        sim_image_drop(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* A wrapper would be followed to wherever it points: that is between the application and its pointer. */
    uint32_t magic = 0;
    if (size >= sizeof magic)
        memcpy(&magic, data, sizeof magic);
    parse_exactly(data, size);
    if (magic != SIM_WRAPPER_MAGIC)
        load_at_the_edge(data, size);
    return 0;
}

#ifndef LIBFUZZER
struct input {
    unsigned char *p;
    size_t n;
};

static struct input read_file(const char *path)
{
    struct input in = {NULL, 0};
    FILE *f = fopen(path, "rb");
    long n = -1;
    if (f && !fseek(f, 0, SEEK_END))
        n = ftell(f);
    if (n < 0 || fseek(f, 0, SEEK_SET) || !(in.p = malloc((size_t)n + 1)) || fread(in.p, 1, (size_t)n, f) != (size_t)n) {
        perror(path);
        exit(2);
    }
    fclose(f);
    in.n = (size_t)n;
    return in;
}

static uint64_t state;

static uint64_t draw(uint64_t below) /* splitmix64 */
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % below;
}

/* A few small changes: bits, extreme words, copies of another place, a cut. */
static size_t mutate(unsigned char *p, size_t n)
{
    static const uint64_t extreme[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, UINT64_MAX, INT64_MAX, UINT64_C(1) << 40};
    for (uint64_t times = 1 + draw(4); times && n; times--) {
        size_t at = draw(2) ? draw(n) : draw(n < 256 ? n : 256), width = (size_t)1 << draw(4);
        if (width > n - at)
            width = n - at;
        switch (draw(4)) {
        case 0: p[at] ^= (unsigned char)(1u << draw(8)); break;
        case 1: memcpy(p + at, &extreme[draw(8)], width); break;
        case 2: memmove(p + at, p + draw(n - width + 1), width); break;
        default: n = draw(8) ? n : draw(n) + 1; break;
        }
    }
    return n;
}

int main(int argc, char **argv)
{
    uint64_t rounds = 0;
    int first = 1;
    if (argc > 3 && !strcmp(argv[1], "--mutate")) {
        state = strtoull(argv[2], NULL, 0);
        rounds = strtoull(argv[3], NULL, 0);
        first = 4;
    }
    if (first >= argc) {
        fprintf(stderr, "usage: %s [--mutate SEED COUNT] FILE...\n", argv[0]);
        return 2;
    }
    struct input *inputs = calloc((size_t)argc, sizeof *inputs);
    unsigned count = 0;
    for (int i = first; i < argc && inputs; i++) {
        inputs[count] = read_file(argv[i]);
        fprintf(stderr, "%s\n", argv[i]); /* the last line names the culprit */
        LLVMFuzzerTestOneInput(inputs[count].p, inputs[count].n);
        count++;
    }
    for (uint64_t k = 0; k < rounds; k++) {
        const struct input *of = &inputs[draw(count)];
        unsigned char *copy = malloc(of->n + 1);
        require(copy != NULL, "no memory");
        memcpy(copy, of->p, of->n);
        LLVMFuzzerTestOneInput(copy, mutate(copy, of->n));
        free(copy);
    }
    for (unsigned i = 0; i < count; i++)
        free(inputs[i].p);
    free(inputs);
    printf("%u files, %llu mutations\n", count, (unsigned long long)rounds);
    return 0;
}
#endif
