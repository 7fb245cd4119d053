/* SPDX-License-Identifier: Apache-2.0 */
/* The demo: an ordinary CUDA program shaped like a language-model decoder. `spillshim demo` and the tests run it; it knows
 * nothing of spillshim and uses the driver API only.
 *
 * It allocates as llama.cpp does: one cuMemAlloc for all weights, then one for the KV cache, then one for the compute
 * buffers. Weights come from a seeded generator, even layers by cuMemcpyHtoD in pieces, odd layers by a kernel. Each step
 * embeds a token; for each layer it reads all of that layer's weights, appends a KV row and reads all rows so far; the
 * activations flow through the compute buffers; the token made from them goes back in through the host.
 * The checksum is a digest of all steps: it changes when any byte of the weights or of the KV rows changes.
 *
 * Exit status: 0 done, 2 an allocation was answered with out-of-memory, 3 no driver or no device, 1 anything else.
 */
#include "decoder_kernels.h"
#include "driver_table.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_OOM = 2, EXIT_NO_DRIVER = 3 };
enum {
    KV_ROW_WORDS = 512,         /* one token's row in one layer: 4 KiB */
    UPLOAD_BYTES = 24 << 20,    /* piece of an upload; not a power of two, so pieces straddle any chunk size */
};
#define GOLDEN 0x9e3779b97f4a7c15ull
#define KV_SALT 0x5bd1e995ull

static struct {
    uint64_t weights, kv, compute, seed, flip_byte;
    unsigned layers, steps;
    bool flip, json;
} opt = {.weights = 256 << 20, .kv = 32 << 20, .compute = 16 << 20, .seed = 1, .layers = 8, .steps = 4};

static struct {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUstream stream;
    CUfunction fill, embed, read, kv_append, combine, logits;
    CUdeviceptr weights, kv, compute;
    char name[256];
    int version;
    bool any_device;
} gpu;

static const char usage[] =
    "usage: decoder [--weights SIZE] [--kv SIZE] [--compute SIZE] [--layers N] [--steps N] [--seed N]\n"
    "               [--flip-byte OFFSET] [--json]\n"
    "A decoder-like CUDA program. SIZE: bytes with an optional K, M, G or T (1024-based).\n";

static const char *error_name(CUresult r)
{
    const char *name = NULL;
    return cu.cuGetErrorName && cu.cuGetErrorName(r, &name) == CUDA_SUCCESS && name ? name : "CUDA_ERROR_UNKNOWN";
}

static void json_string(const char *s)
{
    putchar('"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            putchar('\\');
        if ((unsigned char)*s < 0x20)
            printf("\\u%04x", *s);
        else
            putchar(*s);
    }
    putchar('"');
}

/* Say what failed, on stderr and in the JSON line, and leave. `r` is CUDA_SUCCESS where no CUDA call failed. */
static _Noreturn void fail(int status, CUresult r, const char *format, ...) __attribute__((format(printf, 3, 4)));
static _Noreturn void fail(int status, CUresult r, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (r)
        fprintf(stderr, "decoder: %s: %s\n", text, error_name(r));
    else
        fprintf(stderr, "decoder: %s\n", text);
    if (opt.json) {
        printf("{\"program\": \"decoder\", \"result\": \"%s\", \"cuda_error\": ",
               status == EXIT_OOM ? "oom" : status == EXIT_NO_DRIVER ? "no-device" : "error");
        if (r)
            printf("\"%s\"", error_name(r));
        else
            printf("null");
        printf(", \"reason\": ");
        json_string(text);
        printf(", \"device\": ");
        if (gpu.any_device)
            json_string(gpu.name);
        else
            printf("null");
        printf(", \"weights\": %" PRIu64 ", \"kv\": %" PRIu64 ", \"compute\": %" PRIu64 "}\n", opt.weights, opt.kv,
               opt.compute);
    }
    fflush(stdout);
    exit(status);
}

/* A failing call ends the program; used where no failure is expected. */
#define MUST(call) do { \
        CUresult r_ = (call); \
        if (r_ != CUDA_SUCCESS) \
            fail(1, r_, "%s", #call); \
    } while (0)

/* ---- options ---------------------------------------------------------------------------------------------------- */

static uint64_t number(const char *name, const char *text, bool size, uint64_t least, uint64_t most)
{
    char *end;
    unsigned shift = 0;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 0);
    if (size && *end) {
        const char *unit = strchr("KMGT", *end & ~0x20);
        if (unit && *unit) {
            shift = 10 * (unsigned)(unit - "KMGT" + 1);
            end++;
        }
    }
    if (errno || end == text || *end || strchr(text, '-') || v > UINT64_MAX >> shift || (v << shift) < least
        || (v << shift) > most) {
        fprintf(stderr, "decoder: --%s %s: expected %s from %" PRIu64 " to %" PRIu64 "\n", name, text,
                size ? "a size" : "a number", least, most);
        exit(1);
    }
    return (uint64_t)v << shift;
}

static uint64_t round_up_16(uint64_t n)
{
    return (n + 15) & ~UINT64_C(15);
}

static void parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"weights", required_argument, NULL, 'w'}, {"kv", required_argument, NULL, 'k'},
        {"compute", required_argument, NULL, 'c'}, {"layers", required_argument, NULL, 'l'},
        {"steps", required_argument, NULL, 's'},   {"seed", required_argument, NULL, 'r'},
        {"flip-byte", required_argument, NULL, 'f'}, {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    const uint64_t most = UINT64_C(1) << 60;
    int c;

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1)
        switch (c) {
        case 'w': opt.weights = round_up_16(number("weights", optarg, true, 16, most)); break;
        case 'k': opt.kv = round_up_16(number("kv", optarg, true, 16, most)); break;
        case 'c': opt.compute = round_up_16(number("compute", optarg, true, 64, most)); break;
        case 'l': opt.layers = (unsigned)number("layers", optarg, false, 1, 4096); break;
        case 's': opt.steps = (unsigned)number("steps", optarg, false, 1, 100000); break;
        case 'r': opt.seed = number("seed", optarg, false, 0, UINT64_MAX); break;
        case 'f': opt.flip_byte = number("flip-byte", optarg, true, 0, most); opt.flip = true; break;
        case 'j': opt.json = true; break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); exit(1);
        }
    if (optind < argc) {
        fprintf(stderr, "decoder: unexpected argument %s\n%s", argv[optind], usage);
        exit(1);
    }
    if (opt.weights / 16 < opt.layers)
        fail(1, CUDA_SUCCESS, "%" PRIu64 " bytes of weights are too few for %u layers (16 bytes a layer at least)",
             opt.weights, opt.layers);
    if (opt.kv / opt.layers / (KV_ROW_WORDS * 8) < opt.steps)
        fail(1, CUDA_SUCCESS, "--kv %" PRIu64 " is too small: %u steps of %u layers need %" PRIu64 " bytes", opt.kv,
             opt.steps, opt.layers, (uint64_t)opt.steps * opt.layers * KV_ROW_WORDS * 8);
    if (opt.flip && opt.flip_byte >= opt.weights)
        fail(1, CUDA_SUCCESS, "--flip-byte %" PRIu64 " is past the last of %" PRIu64 " bytes of weights", opt.flip_byte,
             opt.weights);
}

/* ---- the parts of the run --------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The kernels' PTX, decoder.ptx beside the executable; zero-terminated, as cuModuleLoadData wants text. */
static char *read_ptx(void)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 8);
    char *slash, *text = NULL;
    FILE *f;
    long size;

    if (n <= 0)
        fail(1, CUDA_SUCCESS, "cannot read /proc/self/exe: %s", strerror(errno));
    path[n] = 0;
    slash = strrchr(path, '/');
    if (!slash || (size_t)(slash - path) + sizeof "/decoder.ptx" > sizeof path)
        fail(1, CUDA_SUCCESS, "the path of this program is too long: %s", path);
    strcpy(slash, "/decoder.ptx");
    f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < 0 || fseek(f, 0, SEEK_SET))
        fail(1, CUDA_SUCCESS, "cannot read %s: %s", path, strerror(errno));
    text = calloc(1, (size_t)size + 1);
    if (!text || fread(text, 1, (size_t)size, f) != (size_t)size)
        fail(1, CUDA_SUCCESS, "cannot read %s: %s", path, strerror(errno));
    fclose(f);
    return text;
}

static void open_device(void)
{
    CUresult r;
    char *ptx;
    const char *problem = driver_table_load();
    if (problem)
        fail(EXIT_NO_DRIVER, CUDA_SUCCESS, "%s", problem);
    if ((r = cu.cuInit(0)) != CUDA_SUCCESS)
        fail(EXIT_NO_DRIVER, r, "cuInit");
    if ((r = cu.cuDeviceGet(&gpu.device, 0)) != CUDA_SUCCESS)
        fail(EXIT_NO_DRIVER, r, "cuDeviceGet(0)");
    MUST(cu.cuDeviceGetName(gpu.name, sizeof gpu.name, gpu.device));
    gpu.any_device = true;
    MUST(cu.cuDriverGetVersion(&gpu.version));
    r = cu.cuDevicePrimaryCtxRetain(&gpu.context, gpu.device);
    if (r != CUDA_SUCCESS)
        fail(r == CUDA_ERROR_OUT_OF_MEMORY ? EXIT_OOM : 1, r, "cuDevicePrimaryCtxRetain");
    MUST(cu.cuCtxSetCurrent(gpu.context));
    ptx = read_ptx();
    MUST(cu.cuModuleLoadData(&gpu.module, ptx));
    free(ptx);
    MUST(cu.cuModuleGetFunction(&gpu.fill, gpu.module, "dec_fill"));
    MUST(cu.cuModuleGetFunction(&gpu.embed, gpu.module, "dec_embed"));
    MUST(cu.cuModuleGetFunction(&gpu.read, gpu.module, "dec_read"));
    MUST(cu.cuModuleGetFunction(&gpu.kv_append, gpu.module, "dec_kv_append"));
    MUST(cu.cuModuleGetFunction(&gpu.combine, gpu.module, "dec_combine"));
    MUST(cu.cuModuleGetFunction(&gpu.logits, gpu.module, "dec_logits"));
    MUST(cu.cuStreamCreate(&gpu.stream, CU_STREAM_NON_BLOCKING));
}

static CUdeviceptr allocate(const char *what, uint64_t bytes)
{
    CUdeviceptr p = 0;
    CUresult r = cu.cuMemAlloc(&p, bytes);
    if (r != CUDA_SUCCESS) {
        size_t free_now = 0, total = 0;
        cu.cuMemGetInfo(&free_now, &total);
        fail(r == CUDA_ERROR_OUT_OF_MEMORY ? EXIT_OOM : 1, r,
             "cuMemAlloc of %" PRIu64 " bytes for the %s (%zu of %zu bytes free)", bytes, what, free_now, total);
    }
    return p;
}

/* One block per TILE_BYTES of `bytes`. */
static void launch(CUfunction f, uint64_t bytes, void **args)
{
    uint64_t blocks = (bytes + TILE_BYTES - 1) / TILE_BYTES;
    if (blocks > INT32_MAX)
        fail(1, CUDA_SUCCESS, "%" PRIu64 " bytes are too many for one launch", bytes);
    MUST(cu.cuLaunchKernel(f, (unsigned)blocks, 1, 1, BLOCK, 1, 1, 0, gpu.stream, args, NULL));
}
#define LAUNCH(f, bytes, ...) launch(f, bytes, (void *[]){__VA_ARGS__})

/* Bytes of layer `l` in an allocation of `total` bytes: equal shares of 16-byte multiples, the last takes the rest. */
static uint64_t layer_start(uint64_t total, unsigned l)
{
    return l == opt.layers ? total : total / 16 / opt.layers * l * 16;
}

static void load_weights(void)
{
    uint64_t *piece = malloc(UPLOAD_BYTES);
    if (!piece)
        fail(1, CUDA_SUCCESS, "no memory for an upload buffer of %d bytes", UPLOAD_BYTES);
    for (unsigned l = 0; l < opt.layers; l++) {
        uint64_t from = layer_start(opt.weights, l), to = layer_start(opt.weights, l + 1);
        if (l % 2) {
            CUdeviceptr at = gpu.weights + from;
            dec_word words = (to - from) / 8, seed = opt.seed, first = from / 8;
            LAUNCH(gpu.fill, to - from, &at, &words, &seed, &first);
        } else {
            while (from < to) {
                uint64_t n = to - from < UPLOAD_BYTES ? to - from : UPLOAD_BYTES;
                for (uint64_t i = 0; i < n / 8; i++)
                    piece[i] = mix(opt.seed + (from / 8 + i + 1) * GOLDEN);
                MUST(cu.cuMemcpyHtoD(gpu.weights + from, piece, n));
                from += n;
            }
        }
    }
    free(piece);
    /* A pageable upload may return while its last DMA is under way, and our stream does not wait for the default one. */
    MUST(cu.cuCtxSynchronize());
    if (opt.flip) {
        unsigned char byte;
        MUST(cu.cuMemcpyDtoH(&byte, gpu.weights + opt.flip_byte, 1));
        byte ^= 1u << (opt.flip_byte % 8);
        MUST(cu.cuMemcpyHtoD(gpu.weights + opt.flip_byte, &byte, 1));
        MUST(cu.cuCtxSynchronize());
    }
}

/* Rows of one layer's KV, and how many of them the prompt fills before the first step. */
static uint64_t kv_rows(void)
{
    return opt.kv / 16 / opt.layers * 16 / (KV_ROW_WORDS * 8);
}

static void load_prompt(void)
{
    uint64_t rows = kv_rows() - opt.steps;
    MUST(cu.cuMemsetD8(gpu.kv, 0, opt.kv));
    MUST(cu.cuCtxSynchronize());
    for (unsigned l = 0; rows && l < opt.layers; l++) {
        CUdeviceptr at = gpu.kv + layer_start(opt.kv, l);
        dec_word words = rows * KV_ROW_WORDS, seed = opt.seed ^ KV_SALT, first = layer_start(opt.kv, l) / 8;
        LAUNCH(gpu.fill, words * 8, &at, &words, &seed, &first);
    }
    MUST(cu.cuStreamSynchronize(gpu.stream));
}

/* One step; returns the digest of the final activations. The compute buffer holds x, then y. */
static uint64_t decode(unsigned step, uint64_t token)
{
    dec_word width = opt.compute / 32 * 2, row_words = KV_ROW_WORDS, digest = 0, input = token;
    CUdeviceptr x = gpu.compute, y = x + width * 8;
    uint64_t row = kv_rows() - opt.steps + step;

    LAUNCH(gpu.embed, width * 8, &x, &y, &width, &input);
    for (unsigned l = 0; l < opt.layers; l++) {
        CUdeviceptr w = gpu.weights + layer_start(opt.weights, l), kv = gpu.kv + layer_start(opt.kv, l);
        CUdeviceptr kv_row = kv + row * KV_ROW_WORDS * 8;
        dec_word words = (layer_start(opt.weights, l + 1) - layer_start(opt.weights, l)) / 8;
        dec_word kv_words = (row + 1) * KV_ROW_WORDS, salt = mix(step * 4096ull + l + 1), kv_salt = salt ^ KV_SALT;
        LAUNCH(gpu.read, words * 8, &w, &words, &x, &y, &width, &salt);
        LAUNCH(gpu.kv_append, KV_ROW_WORDS * 8, &kv_row, &row_words, &y, &width, &salt);
        LAUNCH(gpu.read, kv_words * 8, &kv, &kv_words, &x, &y, &width, &kv_salt);
        LAUNCH(gpu.combine, width * 8, &x, &y, &width, &salt);
    }
    /* After the last combine y is all zero, so its first word serves as the digest's accumulator. */
    LAUNCH(gpu.logits, width * 8, &x, &width, &y);
    MUST(cu.cuMemcpyDtoHAsync(&digest, y, sizeof digest, gpu.stream));
    MUST(cu.cuStreamSynchronize(gpu.stream));
    return digest;
}

int main(int argc, char **argv)
{
    uint64_t checksum, token;
    CUevent before, after;
    double load_s, decode_s, start = seconds();
    float *step_ms;

    parse(argc, argv);
    step_ms = calloc(opt.steps, sizeof *step_ms);
    if (!step_ms)
        fail(1, CUDA_SUCCESS, "no memory for %u steps", opt.steps);
    open_device();
    gpu.weights = allocate("weights", opt.weights);
    load_weights();
    gpu.kv = allocate("KV cache", opt.kv);
    load_prompt();
    gpu.compute = allocate("compute buffers", opt.compute);
    load_s = seconds() - start;

    MUST(cu.cuEventCreate(&before, CU_EVENT_DEFAULT));
    MUST(cu.cuEventCreate(&after, CU_EVENT_DEFAULT));
    start = seconds();
    checksum = token = mix(opt.seed + GOLDEN);
    for (unsigned step = 0; step < opt.steps; step++) {
        MUST(cu.cuEventRecord(before, gpu.stream));
        token = decode(step, token);
        MUST(cu.cuEventRecord(after, gpu.stream));
        MUST(cu.cuStreamSynchronize(gpu.stream));
        MUST(cu.cuEventElapsedTime(&step_ms[step], before, after));
        checksum = mix(checksum * GOLDEN + token);
    }
    decode_s = seconds() - start;

    MUST(cu.cuEventDestroy(before));
    MUST(cu.cuEventDestroy(after));
    MUST(cu.cuMemFree(gpu.compute));
    MUST(cu.cuMemFree(gpu.kv));
    MUST(cu.cuMemFree(gpu.weights));
    MUST(cu.cuStreamDestroy(gpu.stream));
    MUST(cu.cuModuleUnload(gpu.module));
    MUST(cu.cuDevicePrimaryCtxRelease(gpu.device));

    if (opt.json) {
        printf("{\"program\": \"decoder\", \"result\": \"ok\", \"checksum\": \"%016" PRIx64 "\", \"seed\": %" PRIu64
               ", \"layers\": %u, \"steps\": %u, \"weights\": %" PRIu64 ", \"kv\": %" PRIu64 ", \"compute\": %" PRIu64
               ", \"device\": ", checksum, opt.seed, opt.layers, opt.steps, opt.weights, opt.kv, opt.compute);
        json_string(gpu.name);
        printf(", \"driver\": %d, \"load_s\": %.3f, \"decode_s\": %.3f, \"step_ms\": [", gpu.version, load_s, decode_s);
        for (unsigned i = 0; i < opt.steps; i++)
            printf("%s%.3f", i ? ", " : "", (double)step_ms[i]);
        printf("]}\n");
    } else {
        printf("device    %s (driver %d)\nweights   %" PRIu64 " bytes, KV %" PRIu64 ", compute %" PRIu64 "\n", gpu.name,
               gpu.version, opt.weights, opt.kv, opt.compute);
        for (unsigned i = 0; i < opt.steps; i++)
            printf("step %-4u %.3f ms\n", i, (double)step_ms[i]);
        printf("checksum  %016" PRIx64 "\n", checksum);
    }
    free(step_ms);
    return 0;
}
