/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment attrs: what the driver says about pointers: every CU_POINTER_ATTRIBUTE, cuMemGetAddressRange, IPC and export
 * handles, for memory of cuMemAlloc, cuMemHostAlloc, VRAM and RAM mappings (opened for the GPU alone, and for the CPU too), the
 * second mapping of a reservation D,H, a hole in it, and memory that the driver does not know.
 * Decides: the table from which spillshim answers such questions for spilled memory (as if it were cuMemAlloc's).
 * gpu-check: groups=facts order=70 expect=3 limit=60 */
#include "gpu.h"

enum kind { ALLOC, HOSTALLOC, VRAM, RAM, RAM_CPU, SECOND, HOLE, UNKNOWN, KINDS };
static const char *const KIND[KINDS] = { "cuMemAlloc", "cuMemHostAlloc", "vram", "ram", "ram+cpu", "second of D,H", "hole", "unknown" };

/* All that cuda.h 13 knows; the numbers are the ABI, the sizes those of the values. */
static const struct {
    int id, size;
    const char *name;
} ATTRIBUTE[] = {
    { 1, 8, "context" },         { 2, 4, "memory_type" },     { 3, 8, "device_pointer" }, { 4, 8, "host_pointer" },
    { 5, 16, "p2p_tokens" },     { 6, 4, "sync_memops" },     { 7, 8, "buffer_id" },      { 8, 4, "is_managed" },
    { 9, 4, "device_ordinal" },  { 10, 4, "legacy_ipc" },     { 11, 8, "range_start" },   { 12, 8, "range_size" },
    { 13, 4, "mapped" },         { 14, 8, "handle_types" },   { 15, 4, "gpudirect_rdma" }, { 16, 4, "access_flags" },
    { 17, 8, "mempool" },        { 18, 8, "mapping_size" },   { 19, 8, "mapping_base" },  { 20, 8, "memory_block_id" },
    { 21, 4, "hw_decompress" },
};
enum { ATTRIBUTES = sizeof ATTRIBUTE / sizeof ATTRIBUTE[0] };
enum { CONTEXT = 0, MEMORY_TYPE = 1, ORDINAL = 8, LEGACY_IPC = 9, RANGE_START = 10, RANGE_SIZE = 11, MAPPING_SIZE = 17, MAPPING_BASE = 18 };

static const char *belief_of(int i)
{
    switch (i) {
    case CONTEXT:
    case LEGACY_IPC: return "pointer.vmm_attributes";
    case MEMORY_TYPE:
    case ORDINAL: return "pointer.host_vmm_type";
    case RANGE_START:
    case RANGE_SIZE:
    case MAPPING_SIZE:
    case MAPPING_BASE: return "pointer.range_is_reservation";
    default: return NULL;
    }
}

static void declare(void)
{
    const char *table = "the answers for spilled memory, which must look like cuMemAlloc's";
    char row[96], ask[160];
    for (int i = 0; i < ATTRIBUTES; i++) {
        snprintf(row, sizeof row, "attrs.%s", ATTRIBUTE[i].name);
        snprintf(ask, sizeof ask, "pointer attribute %d for each kind of memory", ATTRIBUTE[i].id);
        xp_row("ask", row, ask, "text", belief_of(i), table);
    }
    xp_row("ask", "attrs.plural_unknown", "cuPointerGetAttributes of memory that the driver does not know", "bool", "pointer.plural_answers_zeroes", table);
    xp_row("ask", "attrs.address_range", "cuMemGetAddressRange for each kind, from 4096 bytes inside", "text", "pointer.range_is_reservation", table);
    xp_row("ask", "attrs.address_range_unknown", "cuMemGetAddressRange of memory that the driver does not know", "bool", "pointer.unknown_is_not_found", table);
    xp_row("ask", "attrs.set_sync_memops", "cuPointerSetAttribute(SYNC_MEMOPS) for each kind", "text", "pointer.vmm_attributes", "which regions such a call pins");
    xp_row("ask", "attrs.ipc_handle", "cuIpcGetMemHandle for each kind", "text", "pointer.vmm_attributes", "which regions must stay native");
    xp_row_may_die(XP_CORRECTS);
    xp_row("ask", "attrs.retain_handle", "cuMemRetainAllocationHandle for each kind", "text", NULL, "what UCX and NCCL may see of a region");
    xp_row_may_die(XP_MEASURED);
    xp_row("ask", "attrs.dmabuf", "cuMemGetHandleForAddressRange(dma-buf) for each kind", "text", NULL, "GPUDirect over spilled memory");
    xp_row_may_die(XP_MEASURED);
    xp_row("free", "attrs.free_vmm", "cuMemFree of a VMM address, of an inner and of a freed one: refused, and nothing breaks", "bool", "alloc.bad_free", "cuMemFree is answered from our table");
    xp_row_may_die(XP_CORRECTS);
}

static CUdeviceptr at[KINDS];
static struct xp_span vram, ram, ram_cpu, both;
static size_t plain = 8 << 20;

/* The RAM kinds are left 0 where there is none. */
static bool make(void)
{
    void *host;
    bool with_ram = xp_find_host();
    if (!XP(cuMemAlloc_v2(&at[ALLOC], plain)) || !XP(cuMemHostAlloc(&host, plain, CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE)) ||
        !XP(cuMemHostGetDevicePointer_v2(&at[HOSTALLOC], host, 0)) || !xp_span_make(&vram, "DD", gpu.unit, false))
        return false;
    at[VRAM] = vram.base;
    if (with_ram && xp_span_make(&ram, "HH", gpu.unit, false))
        at[RAM] = ram.base;
    if (with_ram && xp_span_make(&ram_cpu, "HH", gpu.unit, true))
        at[RAM_CPU] = ram_cpu.base;
    if (with_ram && xp_span_make(&both, "DHD", gpu.unit, false)) {
        at[SECOND] = both.base + both.chunk;
        if (XP(cuMemUnmap(both.base + 2 * both.chunk, both.chunk)))
            at[HOLE] = both.base + 2 * both.chunk;
    }
    at[UNKNOWN] = (CUdeviceptr)(uintptr_t)aligned_alloc(4096, 1 << 20);
    return at[UNKNOWN] != 0;
}

/* A value as text; addresses as offsets from what they are about, so that runs compare. */
static void show(struct xp_text *t, int i, enum kind k, const uint64_t *v)
{
    if (ATTRIBUTE[i].size == 4)
        xp_add(t, "%d", (int)(uint32_t)*v);
    else if (i == CONTEXT)
        xp_add(t, "%s", !*v ? "NULL" : (CUcontext)(uintptr_t)*v == gpu.ctx ? "ours" : "another");
    else if ((ATTRIBUTE[i].id == 3 || ATTRIBUTE[i].id == 4 || i == RANGE_START || i == MAPPING_BASE) && *v)
        xp_add(t, "%+lld", (long long)(*v - at[k]));
    else
        xp_add(t, "%llu", (unsigned long long)*v);
}

static void attributes(void)
{
    for (int i = 0; i < ATTRIBUTES; i++) {
        struct xp_text *t = calloc(2, sizeof *t), *raw = t + 1;
        uint64_t value[KINDS];
        CUresult answer[KINDS];
        char row[96];
        snprintf(row, sizeof row, "attrs.%s", ATTRIBUTE[i].name);
        if (xp_begin(row, 10)) {
            for (int k = 0; k < KINDS; k++) {
                uint64_t room[4] = { 0 };
                answer[k] = CUDA_ERROR_NOT_FOUND;
                value[k] = 0;
                if (!at[k])
                    continue;
                answer[k] = cu.cuPointerGetAttribute(room, (CUpointer_attribute)ATTRIBUTE[i].id, at[k] + 4096);
                value[k] = ATTRIBUTE[i].size == 4 ? (uint32_t)room[0] : room[0];
                xp_add(t, "%s%s: ", t->n ? "; " : "", KIND[k]);
                if (answer[k] == CUDA_SUCCESS)
                    show(t, i, (enum kind)k, &value[k]);
                else
                    xp_add(t, "%s", xp_error(answer[k]));
                xp_add(raw, "%s\"%s\": [%d, %llu]", raw->n ? ", " : "", KIND[k], (int)answer[k], (unsigned long long)value[k]);
            }
            bool ok = true, asked = at[RAM] != 0;
            switch (i) {
            case CONTEXT: ok = answer[VRAM] == CUDA_SUCCESS && !value[VRAM] && answer[RAM] == CUDA_SUCCESS && !value[RAM] && value[ALLOC]; break;
            case LEGACY_IPC: ok = !value[VRAM] && !value[RAM]; break;
            case MEMORY_TYPE: ok = value[RAM] == CU_MEMORYTYPE_HOST && value[RAM_CPU] == CU_MEMORYTYPE_HOST && value[VRAM] == CU_MEMORYTYPE_DEVICE; break;
            case ORDINAL: ok = answer[RAM] == CUDA_SUCCESS && (int)value[RAM] == -1; break;
            case RANGE_START: ok = value[VRAM] == vram.base && value[SECOND] == both.base; break;
            case RANGE_SIZE: ok = value[VRAM] == vram.bytes && value[SECOND] == both.bytes; break;
            case MAPPING_SIZE: ok = value[VRAM] == vram.chunk && value[SECOND] == both.chunk; break;
            case MAPPING_BASE: ok = value[VRAM] == vram.base && value[SECOND] == both.base + both.chunk; break;
            default: break;
            }
            /* Without RAM the beliefs about it stay open; what was seen is said all the same. */
            xp_say(row, asked ? xp_verdict(row, ok) : XP_MEASURED, XP_NAN, raw->s, "%s", t->s);
        }
        free(t);
    }
}

static void plural(void)
{
    const char *row = "attrs.plural_unknown";
    CUpointer_attribute asked[] = { CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL };
    unsigned type = 77;
    CUcontext ctx = (CUcontext)1;
    int ordinal = 77;
    void *values[] = { &type, &ctx, &ordinal };
    if (!xp_begin(row, 10))
        return;
    CUresult r = cu.cuPointerGetAttributes(3, asked, values, at[UNKNOWN] + 4096);
    bool ok = r == CUDA_SUCCESS && !type && !ctx && ordinal == -2;
    xp_say(row, xp_verdict(row, ok), ok, NULL, "%s; type %u, context %s, ordinal %d", xp_error(r), type, ctx ? "kept" : "NULL", ordinal);
}

static void ranges(void)
{
    const char *row = "attrs.address_range";
    struct xp_text *t = calloc(1, sizeof *t);
    CUresult unknown = CUDA_SUCCESS;
    bool ok = true;
    if (xp_begin(row, 10)) {
        for (int k = 0; k < KINDS; k++) {
            CUdeviceptr base = 0;
            size_t size = 0;
            if (!at[k])
                continue;
            CUresult r = cu.cuMemGetAddressRange_v2(&base, &size, at[k] + 4096);
            if (k == UNKNOWN)
                unknown = r;
            xp_add(t, "%s%s: ", t->n ? "; " : "", KIND[k]);
            if (r == CUDA_SUCCESS)
                xp_add(t, base ? "%+lld, %zu bytes" : "base 0 (%+lld), %zu bytes", (long long)(base - at[k]), size);
            else
                xp_add(t, "%s", xp_error(r));
            if (k == ALLOC)
                ok = ok && r == CUDA_SUCCESS && base == at[k] && size == plain;
            if (k == VRAM || k == RAM || k == SECOND)
                ok = ok && r == CUDA_SUCCESS && base == at[k] && size == gpu.unit;
        }
        xp_say(row, at[RAM] ? xp_verdict(row, ok) : XP_MEASURED, XP_NAN, NULL, "%s", t->s);
        xp_say("attrs.address_range_unknown", xp_verdict("attrs.address_range_unknown", unknown == CUDA_ERROR_NOT_FOUND), unknown == CUDA_ERROR_NOT_FOUND, NULL,
               "%s", xp_error(unknown));
    }
    free(t);
}

/* One call for each kind: which answer, and is it as believed (VMM kinds refused, cuMemAlloc served)? */
static void each(const char *row, CUresult (*call)(enum kind))
{
    struct xp_text *t = calloc(2, sizeof *t), *raw = t + 1;
    bool refused = true, served = true;
    if (xp_begin(row, 20)) {
        for (int k = 0; k < KINDS; k++) {
            if (!at[k] || k == HOLE)
                continue;
            CUresult r = call((enum kind)k);
            if (k == ALLOC)
                served = r == CUDA_SUCCESS;
            if (k == VRAM || k == RAM || k == RAM_CPU || k == SECOND)
                refused = refused && r != CUDA_SUCCESS;
            xp_add(t, "%s%s: %s", t->n ? "; " : "", KIND[k], xp_error(r));
            xp_add(raw, "%s\"%s\": %d", raw->n ? ", " : "", KIND[k], (int)r);
        }
        xp_say(row, xp_verdict(row, refused && served), XP_NAN, raw->s, "%s", t->s);
    }
    free(t);
}

static CUresult set_sync_memops(enum kind k)
{
    unsigned one = 1;
    return cu.cuPointerSetAttribute(&one, CU_POINTER_ATTRIBUTE_SYNC_MEMOPS, at[k]);
}

static CUresult ipc_handle(enum kind k)
{
    CUipcMemHandle h;
    return cu.cuIpcGetMemHandle(&h, at[k]);
}

static CUresult retain_handle(enum kind k)
{
    CUmemGenericAllocationHandle h;
    CUresult r = cu.cuMemRetainAllocationHandle(&h, (void *)(uintptr_t)at[k]);
    if (r == CUDA_SUCCESS)
        cu.cuMemRelease(h);
    return r;
}

static CUresult dmabuf(enum kind k)
{
    int fd = -1;
    size_t size = k == VRAM || k == RAM || k == RAM_CPU || k == SECOND ? gpu.unit : 1 << 20;
    CUresult r = cu.cuMemGetHandleForAddressRange(&fd, at[k], size, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0);
    if (r == CUDA_SUCCESS && fd >= 0)
        close(fd);
    return r;
}

static void ask(void)
{
    if (!xp_context() || !make()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    attributes();
    plural();
    ranges();
    /* After all the questions: setting changes what memory operations do. */
    each("attrs.ipc_handle", ipc_handle);
    each("attrs.retain_handle", retain_handle);
    each("attrs.dmabuf", dmabuf);
    each("attrs.set_sync_memops", set_sync_memops);
}

static void free_(void)
{
    const char *row = "attrs.free_vmm";
    if (!xp_begin(row, 20))
        return;
    if (!xp_context() || !make()) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        return;
    }
    CUresult vmm = cu.cuMemFree_v2(at[VRAM]), inner = cu.cuMemFree_v2(at[ALLOC] + (1 << 20)), good = cu.cuMemFree_v2(at[ALLOC]),
             again = cu.cuMemFree_v2(at[ALLOC]), null = cu.cuMemFree_v2(0);
    bool alive = xp_alive();
    bool ok = vmm == CUDA_ERROR_INVALID_VALUE && inner == CUDA_ERROR_INVALID_VALUE && good == CUDA_SUCCESS && again == CUDA_ERROR_INVALID_VALUE && null == CUDA_SUCCESS && alive;
    xp_say(row, xp_verdict(row, ok), ok, NULL, "VMM: %s; inner: %s; freed: %s; 0: %s; the context %s", xp_error(vmm), xp_error(inner), xp_error(again), xp_error(null),
           alive ? "lives" : "is dead");
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "ask", ask, 30 }, { "free", free_, 20 } };
    return xp_main(argc, argv, declare, cases, 2);
}
