/* SPDX-License-Identifier: Apache-2.0 */
/* Which hooks are inside the gate when they call the driver, and which don't call it any more when a move has left a hole? Calls the
 * hooks that it is linked with, each with arguments that are all zero, on a driver whose entries only note how deep in the gate
 * the calling thread is. Built and run by tests/unit/test_gate_entries.py.
 *
 *   entries           prints "SYMBOL DEPTH LEFT ANSWER" for every row of hooks.def whose hook is linked in: the depth at which the
 *                     driver's entry of that name was called (-1: never), the depth afterwards, and what the hook answered
 *   entries poisoned  the same while a region has a hole; then "copies ok" if what touches that region, and no other, is refused */
#include <stdio.h>
#include <string.h>

#include "shim/hook.h"
#include "shim/resolve.h"
#include "tiering/moving.h"

/* ---- what the hooks need from outside ---- */

void *spill_real_symbol(enum spill_lib lib, const char *symbol) { return (void)lib, (void)symbol, NULL; }
/* The hooks take their long way. */
bool spill_started(void) { return true; }
bool spill_on(void) { return true; }

/* ---- the driver ---- */

static const char *called; /* the hook's own symbol */
static int depth_then;

static int depth(void)
{
    return spill_gate_mine ? (int)atomic_load(&spill_gate_mine->inside) : 0;
}

static CUresult note(const char *symbol)
{
    if (!strcmp(symbol, called))
        depth_then = depth();
    return CUDA_ERROR_INVALID_VALUE; /* so that no hook looks for what a success would have left behind */
}

#define HOOK(symbol, name, version, flags, pfn) \
    static CUresult driver_##symbol(void) { return note(#symbol); }
#include "shim/hooks.def"
#define DRIVER(symbol, pfn) \
    static CUresult driver_##symbol(void) { return note(#symbol); }
#include "shim/driver.def"

static void *look_up(const char *symbol, bool nvml)
{
    if (nvml)
        return NULL;
#define HOOK(name, base, version, flags, pfn) \
    if (!strcmp(symbol, #name))               \
        return (void *)driver_##name;
#include "shim/hooks.def"
#define DRIVER(name, pfn)       \
    if (!strcmp(symbol, #name)) \
        return (void *)driver_##name;
#include "shim/driver.def"
    return NULL;
}

#define HOOK(symbol, name, version, flags, pfn) extern __typeof__(*(pfn)0) symbol __attribute__((weak));
#include "shim/hooks.def"

static const struct {
    const char *symbol;
    void *hook; /* NULL: not linked in */
} hooks[] = {
#define HOOK(symbol, name, version, flags, pfn) { #symbol, (void *)symbol },
#include "shim/hooks.def"
};

typedef CUresult (*any_hook)(long, long, long, long, long, long, long, long, long, long, long, long);

/* As a move leaves it whose driver calls answered NOT_READY (600) again and again. */
static void make_a_hole(CUdeviceptr at, uint64_t bytes)
{
    struct spill_region *region = spill_region_new(0);
    region->fixed = true; /* found without an arena */
    region->base = at;
    region->size = region->mapped = bytes;
    region->poisoned = true;
    spill_region_publish(region);
    atomic_store(&spill_poison, CUDA_ERROR_NOT_READY);
}

#define IS(expected, hook, ...)                                                                           \
    do {                                                                                                  \
        called = #hook;                                                                                   \
        depth_then = -1;                                                                                  \
        CUresult r = hook(__VA_ARGS__);                                                                   \
        bool refused = r == CUDA_ERROR_NOT_READY && depth_then == -1;                                 \
        bool passed = r == CUDA_ERROR_INVALID_VALUE && depth_then == 1;                                   \
        if (!(expected ? refused : passed)) {                                                             \
            printf("%s, line %d: answered %d, the driver called at depth %d\n", called, __LINE__, r, depth_then); \
            return;                                                                                       \
        }                                                                                                 \
    } while (0)

static void copies(CUdeviceptr lost, CUdeviceptr sound)
{
    CUdeviceptr from[] = { sound, sound }, to[] = { sound, lost + 64 };
    size_t sizes[] = { 64, 64 };
    char host[64];
    CUDA_MEMCPY2D two = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = lost, .dstMemoryType = CU_MEMORYTYPE_HOST,
                          .dstHost = host, .WidthInBytes = 64, .Height = 1 };
    CUDA_MEMCPY3D three = { .srcMemoryType = CU_MEMORYTYPE_DEVICE, .srcDevice = sound, .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                            .dstDevice = lost, .WidthInBytes = 64, .Height = 1, .Depth = 1 };
    IS(true, cuMemcpyDtoH_v2, host, lost, 64);
    IS(true, cuMemcpyHtoDAsync_v2, lost + 4096, host, 64, NULL);
    IS(true, cuMemcpyDtoD_v2, sound, lost, 64);
    IS(true, cuMemcpyDtoD_v2, lost, sound, 64);
    IS(true, cuMemsetD8_v2, lost, 0, 64);
    IS(true, cuMemsetD2D32Async, lost, 256, 0, 16, 4, NULL);
    IS(true, cuMemcpy2D_v2, &two);
    IS(true, cuMemcpy3DAsync_v2, &three, NULL);
    IS(true, cuMemcpyBatchAsync_v2, to, from, sizes, 2, NULL, NULL, 0, NULL);
    IS(false, cuMemcpyBatchAsync_v2, to, from, sizes, 1, NULL, NULL, 0, NULL);
    IS(false, cuMemcpyDtoH_v2, host, sound, 64);
    IS(false, cuMemsetD8_v2, sound, 0, 64);
    IS(false, cuMemsetD2D32Async, sound, 256, 0, 16, 4, NULL);
    printf("copies ok\n");
}

int main(int argc, char **argv)
{
    static const struct spill_settings nothing_moves;
    const CUdeviceptr lost = 0x700000000000, sound = 0x710000000000;
    bool poisoned = argc == 2 && !strcmp(argv[1], "poisoned");
    spill_driver_fill(look_up);
    spill_engine_start(&nothing_moves);
    if (poisoned)
        make_a_hole(lost, 20 << 20);
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++) {
        if (!hooks[i].hook)
            continue;
        called = hooks[i].symbol;
        depth_then = -1;
        CUresult r = ((any_hook)hooks[i].hook)(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        printf("%s %d %d %d\n", called, depth_then, depth(), r);
    }
    if (poisoned)
        copies(lost, sound);
    return 0;
}
