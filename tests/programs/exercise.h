/* SPDX-License-Identifier: Apache-2.0 */
/* What the C clients do on a GPU, whatever way they reach the driver: allocate regions up to a total, fill one half of
 * each from the host and one half by a kernel, transform them by another kernel that reads two regions at a time, read
 * everything back and compare with the host's own figures, free. Included by client_*.c.
 * The kernels are the demo decoder's (DECODER_PTX names the file).
 */
#ifndef EXERCISE_H
#define EXERCISE_H

#include <cuda.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXERCISE_OK = 0, EXERCISE_WRONG = 1, EXERCISE_OOM = 2 };
#define EXERCISE_GOLDEN 0x9e3779b97f4a7c15ull

static uint64_t exercise_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

#define EXERCISE_MUST(call) do { \
        CUresult r_ = (call); \
        if (r_ != CUDA_SUCCESS) { \
            const char *name_ = "?"; \
            cuGetErrorName(r_, &name_); \
            fprintf(stderr, "%s: %s\n", #call, name_); \
            return r_ == CUDA_ERROR_OUT_OF_MEMORY ? EXERCISE_OOM : EXERCISE_WRONG; \
        } \
    } while (0)

static CUresult exercise_launch(CUfunction f, uint64_t bytes, void **args)
{
    return cuLaunchKernel(f, (unsigned)((bytes + 65535) / 65536), 1, 1, 256, 1, 1, 0, NULL, args, NULL);
}

/* Word i of region r before the transformation. */
static uint64_t exercise_word(uint64_t seed, unsigned r, uint64_t i)
{
    return exercise_mix(seed + r + (i + 1) * EXERCISE_GOLDEN);
}

/* Runs on the current context. `count` regions of `bytes` bytes (a multiple of 32). EXERCISE_OK / _WRONG / _OOM. */
static int exercise(unsigned count, uint64_t bytes, uint64_t seed)
{
    CUdeviceptr *region = calloc(count, sizeof *region);
    uint64_t *host = malloc(bytes), words = bytes / 8, half = words / 2, salt = seed ^ 0x5a;
    const char *path = getenv("DECODER_PTX");
    FILE *f = path ? fopen(path, "rb") : NULL;
    char *ptx = calloc(1, 1 << 20);
    CUmodule module;
    CUfunction fill, combine;

    if (!region || !host || !ptx || !f || !fread(ptx, 1, (1 << 20) - 1, f)) {
        fprintf(stderr, "cannot read DECODER_PTX=%s\n", path ? path : "(not set)");
        return EXERCISE_WRONG;
    }
    fclose(f);
    EXERCISE_MUST(cuModuleLoadData(&module, ptx));
    EXERCISE_MUST(cuModuleGetFunction(&fill, module, "dec_fill"));
    EXERCISE_MUST(cuModuleGetFunction(&combine, module, "dec_combine"));
    for (unsigned r = 0; r < count; r++) {
        uint64_t s = seed + r;
        EXERCISE_MUST(cuMemAlloc(&region[r], bytes));
        for (uint64_t i = 0; i < half; i++)
            host[i] = exercise_word(seed, r, i);
        EXERCISE_MUST(cuMemcpyHtoD(region[r], host, half * 8));
        CUdeviceptr rest = region[r] + half * 8;
        uint64_t n = words - half;
        EXERCISE_MUST(exercise_launch(fill, n * 8, (void *[]){&rest, &n, &s, &half}));
    }
    /* Region r absorbs region r+1, which becomes zero: x = mix(x * GOLDEN + y + salt), y = 0. */
    for (unsigned r = 0; r + 1 < count; r += 2)
        EXERCISE_MUST(exercise_launch(combine, bytes, (void *[]){&region[r], &region[r + 1], &words, &salt}));
    EXERCISE_MUST(cuCtxSynchronize());
    for (unsigned r = 0; r < count; r++) {
        memset(host, 0xee, bytes);
        EXERCISE_MUST(cuMemcpyDtoH(host, region[r], bytes));
        for (uint64_t i = 0; i < words; i++) {
            uint64_t want = exercise_word(seed, r, i);
            if (r % 2)
                want = 0;
            else if (r + 1 < count)
                want = exercise_mix(want * EXERCISE_GOLDEN + exercise_word(seed, r + 1, i) + salt);
            if (host[i] != want) {
                fprintf(stderr, "region %u word %" PRIu64 ": %016" PRIx64 ", expected %016" PRIx64 "\n", r, i, host[i], want);
                return EXERCISE_WRONG;
            }
        }
    }
    for (unsigned r = 0; r < count; r++)
        EXERCISE_MUST(cuMemFree(region[r]));
    EXERCISE_MUST(cuModuleUnload(module));
    free(ptx);
    free(host);
    free(region);
    return EXERCISE_OK;
}

/* Open device 0 as NVIDIA's runtime does, exercise it, close it. */
static int exercise_device(unsigned count, uint64_t bytes, uint64_t seed)
{
    CUdevice device;
    CUcontext context;
    int result;
    EXERCISE_MUST(cuInit(0));
    EXERCISE_MUST(cuDeviceGet(&device, 0));
    EXERCISE_MUST(cuDevicePrimaryCtxRetain(&context, device));
    EXERCISE_MUST(cuCtxSetCurrent(context));
    result = exercise(count, bytes, seed);
    cuDevicePrimaryCtxRelease(device);
    return result;
}

/* Common end of the clients: "ok" or "oom" or "wrong" on stdout. */
static int exercise_say(int result)
{
    puts(result == EXERCISE_OK ? "ok" : result == EXERCISE_OOM ? "oom" : "wrong");
    fflush(stdout);
    return result;
}

#endif
