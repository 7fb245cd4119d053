/* SPDX-License-Identifier: Apache-2.0 */
/* Unpacks the compressed entries of fatbins. Called by fatbin.c.
 * nvcc's default for PTX, and -compress-mode=balance, size: zstd, as RFC 8878 has it; -compress-mode=speed and older
 * toolkits: LZ4 blocks (lz4_Block_format.md). Both are left to the system's libraries, opened at the first such entry, so
 * that a program which has none needs neither.
 * Rules: sizes are the file's word and not trusted: bounded before anything is allocated, and the result must fill them.
 */
#include "code.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>

/* No cubin comes near it (cuBLASLt's largest is a tenth), and a crafted one can't ask for more memory than this. */
#define MAX_PLAIN (UINT64_C(1) << 30)

static pthread_once_t once[SIM_PACKINGS] = {PTHREAD_ONCE_INIT, PTHREAD_ONCE_INIT};
static size_t (*zstd_decompress)(void *to, size_t room, const void *from, size_t n);
static unsigned (*zstd_is_error)(size_t result);
static int (*lz4_decompress)(const char *from, char *to, int n, int room);

/* The library stays open: what was fetched from it is used until the process ends. */
static void *open_library(const char *name, const char *package)
{
    void *lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        sim_complain("compressed device code needs %s (Debian package %s), which is not there: %s", name, package, dlerror());
    return lib;
}

static void open_zstd(void)
{
    void *lib = open_library("libzstd.so.1", "libzstd1");
    if (lib) {
        *(void **)&zstd_is_error = dlsym(lib, "ZSTD_isError");
        *(void **)&zstd_decompress = zstd_is_error ? dlsym(lib, "ZSTD_decompress") : NULL;
    }
}

static void open_lz4(void)
{
    void *lib = open_library("liblz4.so.1", "liblz4-1");
    if (lib)
        *(void **)&lz4_decompress = dlsym(lib, "LZ4_decompress_safe");
}

static bool unpack(enum sim_packing how, struct sim_bytes from, unsigned char *to, size_t n)
{
    if (how == SIM_PACKED_ZSTD) {
        size_t got = zstd_decompress(to, n, from.p, from.n);
        return !zstd_is_error(got) && got == n;
    }
    return from.n <= INT_MAX && lz4_decompress((const char *)from.p, (char *)to, (int)from.n, (int)n) == (int)n;
}

CUresult sim_unpack(enum sim_packing how, struct sim_bytes packed, uint64_t plain_size, struct sim_bytes *out)
{
    if (!plain_size || plain_size > MAX_PLAIN || !packed.n)
        return CUDA_ERROR_INVALID_IMAGE;
    pthread_once(&once[how], how == SIM_PACKED_ZSTD ? open_zstd : open_lz4);
    if (how == SIM_PACKED_ZSTD ? !zstd_decompress : !lz4_decompress)
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    unsigned char *to = malloc(plain_size);
    if (!to)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!unpack(how, packed, to, plain_size)) {
        free(to);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *out = (struct sim_bytes){to, plain_size};
    return CUDA_SUCCESS;
}
