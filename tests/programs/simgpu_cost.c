/* SPDX-License-Identifier: Apache-2.0 */
/* What the simulated driver costs: started by benchmarks/simgpu.py and tests/unit/test_simgpu_cost.py, which count its instructions,
 * time or memory. Linked to libcuda.so.1; brings its declarations along, so that it compiles without CUDA's headers.
 *
 *   simgpu_cost nothing          ends at once: what an empty program linked to the same libraries costs
 *   simgpu_cost start            cuInit and a primary context, then it ends
 *   simgpu_cost launch N         launches a kernel that does nothing N times, one thread, two parameters, and waits for them
 *   simgpu_cost memory HOW GIB TOUCHED   takes GIB GiB (HOW: alloc or vmm), writes TOUCHED MiB of them, prints what it is resident with
 * Exit 1: a call failed, and is named. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int CUresult;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
struct location { int type, id; };
struct prop { int type, handles; struct location location; void *win32; unsigned char flags[8]; };
struct access { struct location location; int flags; };
CUresult cuInit(unsigned flags);
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, int device);
CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuCtxSynchronize(void);
CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void **parameters, void **extra);
CUresult cuMemAlloc_v2(uint64_t *p, size_t bytes);
CUresult cuMemsetD8_v2(uint64_t p, unsigned char value, size_t bytes);
CUresult cuMemAddressReserve(uint64_t *p, size_t bytes, size_t alignment, uint64_t at, unsigned long long flags);
CUresult cuMemCreate(unsigned long long *handle, size_t bytes, const struct prop *prop, unsigned long long flags);
CUresult cuMemMap(uint64_t p, size_t bytes, size_t offset, unsigned long long handle, unsigned long long flags);
CUresult cuMemSetAccess(uint64_t p, size_t bytes, const struct access *access, size_t count);

#define MUST(call) \
    do { \
        CUresult r_ = call; \
        if (r_) { \
            fprintf(stderr, "%s: %d\n", #call, r_); \
            exit(1); \
        } \
    } while (0)

static const char image[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                            ".visible .entry nothing(.param .u64 p, .param .u32 n)\n{\n\tret;\n}\n";

static void start(void)
{
    CUcontext context;
    MUST(cuInit(0));
    MUST(cuDevicePrimaryCtxRetain(&context, 0));
    MUST(cuCtxSetCurrent(context));
}

static void launch(long count)
{
    CUmodule module;
    CUfunction f;
    uint64_t p = 0;
    uint32_t n = 0;
    void *parameters[] = {&p, &n};
    MUST(cuModuleLoadData(&module, image));
    MUST(cuModuleGetFunction(&f, module, "nothing"));
    for (long i = 0; i < count; i++)
        MUST(cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, NULL, parameters, NULL));
    MUST(cuCtxSynchronize());
}

static uint64_t map(size_t bytes)
{
    uint64_t p;
    unsigned long long handle;
    struct prop prop = {.type = 1, .location = {1, 0}};
    struct access access = {{1, 0}, 3};
    MUST(cuMemAddressReserve(&p, bytes, 0, 0, 0));
    MUST(cuMemCreate(&handle, bytes, &prop, 0));
    MUST(cuMemMap(p, bytes, 0, handle, 0));
    MUST(cuMemSetAccess(p, bytes, &access, 1));
    return p;
}

static long field(const char *name)
{
    char line[256];
    long kib = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            kib = atol(line + strlen(name));
    if (f)
        fclose(f);
    return kib;
}

static void memory(const char *how, size_t gib, size_t touched)
{
    uint64_t p;
    if (!strcmp(how, "vmm"))
        p = map(gib << 30);
    else
        MUST(cuMemAlloc_v2(&p, gib << 30));
    long before = field("VmRSS:");
    if (touched)
        MUST(cuMemsetD8_v2(p + ((gib << 30) - (touched << 20)) / 2, 1, touched << 20));
    MUST(cuCtxSynchronize());
    printf("%ld %ld\n", before, field("VmRSS:")); /* KiB, shared memory included */
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "nothing"))
        return 0;
    start();
    if (!strcmp(what, "launch") && argc == 3)
        launch(atol(argv[2]));
    else if (!strcmp(what, "memory") && argc == 5)
        memory(argv[2], (size_t)atol(argv[3]), (size_t)atol(argv[4]));
    else if (strcmp(what, "start"))
        return 2;
    return 0;
}
