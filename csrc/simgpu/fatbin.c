/* SPDX-License-Identifier: Apache-2.0 */
/* Picks an entry of a fatbin (what nvcc embeds in a program: cubins and PTX for several architectures).
 * Called by code_image.c. Compressed entries are unpacked by compress.c, the chosen one alone.
 */
#include "code.h"

#include <string.h>

#define FATBIN_MAGIC 0xba55ed50u
#define KIND_PTX 1
#define KIND_CUBIN 2
#define FLAG_OLD 0x1000u /* a scheme that is documented nowhere */
#define FLAG_LZ4 0x2000u
#define FLAG_ZSTD 0x8000u

struct header {
    uint32_t magic;
    uint16_t version, header_size;
    uint64_t size; /* of all entries */
};

struct entry {
    uint16_t kind, version;
    uint32_t header_size;
    uint64_t size;
    uint32_t compressed_size, options;
    uint16_t minor, major;
    uint32_t arch; /* 10 * major + minor of the compute capability */
    uint32_t name_offset, name_size;
    uint64_t flags, reserved, plain_size;
};
_Static_assert(sizeof(struct header) == 16 && sizeof(struct entry) == 64, "fatbin layout");

size_t sim_fatbin_extent(struct sim_bytes head)
{
    struct header h;
    if (head.n < sizeof h.magic || memcmp(head.p, &(uint32_t){FATBIN_MAGIC}, sizeof h.magic) != 0)
        return 0;
    if (head.n < sizeof h)
        return sizeof h;
    memcpy(&h, head.p, sizeof h);
    if (h.header_size < sizeof h || h.size > SIZE_MAX - h.header_size)
        return 0;
    return h.header_size + h.size;
}

/* How well an entry suits: the device's own cubin, then an older one of the same major version, then PTX of that capability or
 * below; then any cubin at all, because kernels are run by their companion and only names and layouts are read. 0: not usable. */
static unsigned rank(const struct entry *e, int capability)
{
    int arch = (int)e->arch;
    bool runs = arch / 10 == capability / 10 && arch <= capability;
    if (e->kind == KIND_CUBIN)
        return runs ? 3000u + (unsigned)arch : 1000u - (e->arch < 900 ? e->arch : 900);
    return e->kind == KIND_PTX && arch <= capability ? 2000u + (unsigned)(arch < 0 ? 0 : arch) : 0;
}

/* The bytes of an entry whose payload is at p. */
static CUresult extract(const struct entry *e, const unsigned char *p, struct sim_bytes *out, void **owned)
{
    if (e->flags & FLAG_OLD) {
        sim_complain("a fatbin's only usable entry is compressed in a way that simgpu cannot read; build with a CUDA toolkit of "
                     "12.4 or later, or with nvcc --no-compress");
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    if (!(e->flags & (FLAG_LZ4 | FLAG_ZSTD))) {
        *out = (struct sim_bytes){p, e->size};
        return CUDA_SUCCESS;
    }
    if (e->compressed_size > e->size)
        return CUDA_ERROR_INVALID_IMAGE;
    CUresult r = sim_unpack(e->flags & FLAG_ZSTD ? SIM_PACKED_ZSTD : SIM_PACKED_LZ4, (struct sim_bytes){p, e->compressed_size},
                            e->plain_size, out);
    if (!r)
        *owned = (void *)out->p;
    return r;
}

CUresult sim_fatbin_pick(struct sim_bytes fatbin, int capability, struct sim_bytes *out, bool *is_ptx, void **owned)
{
    size_t end = sim_fatbin_extent(fatbin);
    struct header h;
    struct entry chosen = {0};
    const unsigned char *payload = NULL;
    unsigned best = 0;
    *owned = NULL;
    if (fatbin.n < sizeof h || !end || end > fatbin.n)
        return CUDA_ERROR_INVALID_IMAGE;
    memcpy(&h, fatbin.p, sizeof h);
    for (size_t o = h.header_size; o < end;) {
        struct entry e;
        if (end - o < sizeof e)
            return CUDA_ERROR_INVALID_IMAGE;
        memcpy(&e, fatbin.p + o, sizeof e);
        if (e.header_size < sizeof e || e.header_size > end - o || e.size > end - o - e.header_size)
            return CUDA_ERROR_INVALID_IMAGE;
        unsigned r = rank(&e, capability);
        if (r && (e.flags & FLAG_OLD))
            r = 1; /* when there is nothing else, to be refused by name */
        if (r > best) {
            best = r;
            chosen = e;
            payload = fatbin.p + o + e.header_size;
        }
        o += e.header_size + e.size;
    }
    *is_ptx = chosen.kind == KIND_PTX;
    return best ? extract(&chosen, payload, out, owned) : CUDA_ERROR_NO_BINARY_FOR_GPU;
}
