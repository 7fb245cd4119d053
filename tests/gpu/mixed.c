/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment mixed: VRAM and RAM chunks side by side under one range of addresses, D,H,D,H. Does a kernel use all of it as
 * one array, may access be granted by one call, what sees the CPU, and which of the rules for mappings hold?
 * The go or no-go of the design: everything else assumes that these rows say yes.
 * gpu-check: groups=facts order=20 expect=6 limit=80 */
#include "gpu.h"

#include <setjmp.h>

static void declare(void)
{
    const char *go = "the design: a region's chunks may lie in either tier", *rules = "how the arena maps, opens and closes chunks";
    xp_row("kernel", "mixed.one_set_access", "one cuMemSetAccess for the GPU over D,H,D,H", "bool", "vmm.set_access_over_tiers", go);
    xp_row("kernel", "mixed.kernel_writes_all", "a kernel writes and reads D,H,D,H as one array", "bool", "vmm.mixed_access", go);
    xp_row("kernel", "mixed.kernel_rewrites_all", "the same read, changed and written ten times over", "bool", "vmm.mixed_access", go);
    xp_row("kernel", "mixed.atomics_on_ram", "a kernel's atomics on a word in RAM count exactly", "bool", "vmm.ram_atomics",
           "whether counters and split-k sums may be spilled");
    xp_row("cpu", "mixed.cpu_access_on_ram", "cuMemSetAccess for the CPU on each RAM chunk", "bool", "vmm.access_descriptors", "always grant CPU access?");
    xp_row("cpu", "mixed.cpu_access_on_vram", "cuMemSetAccess for the CPU on a VRAM chunk is refused", "bool", "vmm.access_descriptors", rules);
    xp_row("cpu", "mixed.cpu_access_over_all", "cuMemSetAccess for the CPU over D,H,D,H is refused", "bool", "vmm.access_descriptors", rules);
    xp_row("cpu", "mixed.cpu_reads_ram", "the CPU reads, at the same address, what a kernel wrote to an opened RAM chunk", "bool",
           "vmm.cpu_reads_at_same_address", "always grant CPU access?");
    xp_row_may_die(XP_CORRECTS);
    xp_row("cpu", "mixed.kernel_reads_cpu_writes", "a kernel reads what the CPU wrote there", "bool", "vmm.cpu_reads_at_same_address", "always grant CPU access?");
    xp_row_may_die(XP_CORRECTS);
    xp_row("closed", "mixed.cpu_without_access", "the CPU faults on a RAM chunk that only the GPU may use", "bool", NULL,
           "always grant CPU access? (drivers that copy by CPU would fault too)");
    xp_row_may_die(XP_MEASURED);
    xp_row("rules", "mixed.map_part_of_handle", "cuMemMap of half a handle, and at an offset, is refused", "bool", "vmm.map_whole_handle", rules);
    xp_row("rules", "mixed.map_over_mapping", "cuMemMap where something is mapped is refused", "bool", "vmm.map_whole_handle", rules);
    xp_row("rules", "mixed.access_part", "cuMemSetAccess on part of a mapping is refused", "bool", "vmm.range_of_whole_mappings", "chunk size is fixed at creation");
    xp_row("rules", "mixed.unmap_part", "cuMemUnmap of part of a mapping is refused", "bool", "vmm.range_of_whole_mappings", "chunk size is fixed at creation");
    xp_row("rules", "mixed.unmap_gap", "cuMemUnmap over a gap is refused", "bool", "vmm.unmap_gap_refused", "one unmap call for a run of chunks");
    xp_row("rules", "mixed.unmap_many", "one cuMemUnmap over D,H,D,H", "bool", "vmm.range_of_whole_mappings", "one unmap call for a run of chunks");
    xp_row("memory", "mixed.freed_when", "VRAM comes back when it is released and unmapped, not before", "bool", "vmm.freed_when_released_and_unmapped",
           "the pool's accounting");
    xp_row("noaccess", "mixed.new_map_is_closed", "a kernel on a mapping that was never opened is an illegal address, sticky", "bool",
           "vmm.no_access_after_map", "access is granted before the gate opens");
    xp_row("again", "mixed.remap_is_closed", "after unmap and map again, without access, a kernel there is an illegal address", "bool",
           "vmm.no_access_after_map", "access is granted before the gate opens");
}

static size_t chunk_size(void)
{
    size_t n = 32 * XP_MIB;
    while (n > gpu.unit && (2 * n > xp.vram / 2 || 2 * n > xp.ram / 2))
        n /= 2;
    return n;
}

static bool start(void)
{
    if (xp_kernels() && xp_find_host())
        return true;
    xp_rest_unanswered("%s", xp_failure);
    return false;
}

/* Say the row, and leave this process when its context died. */
static void unanswered(const char *row)
{
    xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    if (!xp_alive())
        xp_again();
}

static void words_row(const char *row, bool ok, uint64_t bad, size_t bytes)
{
    if (!ok && xp_alive())
        unanswered(row);
    else if (!ok) { /* the memory is there: an error of the kernel is an answer */
        xp_say(row, xp_verdict(row, false), 0, NULL, "%s", xp_failure);
        xp_again();
    } else if (bad)
        xp_say(row, xp_verdict(row, false), 0, NULL, "%llu of %zu words are wrong", (unsigned long long)bad, bytes / 8);
    else
        xp_say(row, xp_verdict(row, true), 1, NULL, "all %zu MiB right", bytes / XP_MIB);
}

static void kernel(void)
{
    struct xp_span s;
    uint64_t bad = 0;
    if (!start())
        return;
    if (!xp_span_map(&s, "DHDH", chunk_size())) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    bool one = xp_grant(&s, false);
    if (one)
        xp_say("mixed.one_set_access", XP_CONFIRMS, 1, NULL, "accepted");
    else
        xp_say("mixed.one_set_access", XP_CORRECTS, 0, NULL, "%s", xp_failure);
    for (int i = 0; !one && i < s.n; i++) { /* then one by one, so that the rest can be asked */
        CUmemAccessDesc g = xp_for_gpu();
        if (!XP(cuMemSetAccess(s.base + (size_t)i * s.chunk, s.chunk, &g, 1))) {
            xp_rest_unanswered("%s", xp_failure);
            return;
        }
    }
    if (xp_begin("mixed.kernel_writes_all", 20)) {
        bool ok = xp_fill(s.base, s.bytes, xp.seed) && xp_check(s.base, s.bytes, xp.seed, 0, &bad);
        words_row("mixed.kernel_writes_all", ok, bad, s.bytes);
    }
    if (xp_begin("mixed.kernel_rewrites_all", 20)) {
        uint64_t words = s.bytes / 8, three = 3;
        void *args[] = { &s.base, &words, &three };
        bool ok = xp_fill(s.base, s.bytes, xp.seed + 1);
        for (int i = 0; ok && i < 10; i++)
            ok = xp_ok(xp_launch(gpu.add, xp_blocks(words), 256, NULL, args), "launch of xp_add");
        ok = ok && XP(cuCtxSynchronize()) && xp_check(s.base, s.bytes, xp.seed + 1, 30, &bad);
        words_row("mixed.kernel_rewrites_all", ok, bad, s.bytes);
    }
    if (xp_begin("mixed.atomics_on_ram", 20)) {
        /* Many threads add to one word of the RAM chunk: as many as there are words that differ. Kernels alone touch it:
         * copies there are another experiment's question. */
        const uint64_t words = 1 << 16;
        CUdeviceptr vram = s.base, word = s.base + s.chunk + 4096, other = gpu.counters + 8;
        uint64_t zero = 0, wrong = 1, any = 0;
        void *args[] = { &vram, (void *)&words, &zero, &word, &other };
        bool ok = xp_fill(vram, words * 8, xp.seed) && xp_fill(word, 8, xp.seed) &&
                  xp_ok(xp_launch(gpu.differs, 64, 256, NULL, args), "launch of xp_differs") && XP(cuCtxSynchronize()) &&
                  xp_differs(word, 8, xp_mix(xp.seed) + words, &wrong, &any);
        if (!ok)
            unanswered("mixed.atomics_on_ram");
        else if (wrong)
            xp_say("mixed.atomics_on_ram", xp_verdict("mixed.atomics_on_ram", false), 0, NULL, "%lld additions arrived instead of %llu",
                   (long long)(any - xp_mix(xp.seed)), (unsigned long long)words);
        else
            xp_say("mixed.atomics_on_ram", xp_verdict("mixed.atomics_on_ram", true), 1, NULL, "all %llu additions of 16384 threads arrived",
                   (unsigned long long)words);
    }
    xp_span_drop(&s);
}

/* ---- the CPU's side ---- */

static sigjmp_buf fault;

static void on_fault(int signal_number)
{
    siglongjmp(fault, signal_number);
}

/* Refused as believed? Undoes nothing: a call that is accepted by mistake changes only rights. */
static void refused(const char *row, CUresult r)
{
    if (r == CUDA_SUCCESS)
        xp_say(row, xp_verdict(row, false), 0, NULL, "accepted");
    else
        xp_say(row, xp_verdict(row, true), 1, NULL, "%s", xp_error(r));
}

static void cpu(void)
{
    struct xp_span s;
    if (!start())
        return;
    CUmemAccessDesc c = xp_for_cpu();
    if (!xp_span_make(&s, "DHDH", gpu.unit, false)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    CUresult r = CUDA_SUCCESS;
    for (int i = 1; r == CUDA_SUCCESS && i < s.n; i += 2)
        r = cu.cuMemSetAccess(s.base + (size_t)i * s.chunk, s.chunk, &c, 1);
    bool opened = r == CUDA_SUCCESS;
    if (opened)
        xp_say("mixed.cpu_access_on_ram", XP_CONFIRMS, 1, NULL, "accepted, beside the GPU's access");
    else
        xp_say("mixed.cpu_access_on_ram", XP_CORRECTS, 0, NULL, "%s", xp_error(r));
    if (xp_begin("mixed.cpu_access_on_vram", 10))
        refused("mixed.cpu_access_on_vram", cu.cuMemSetAccess(s.base, s.chunk, &c, 1));
    if (xp_begin("mixed.cpu_access_over_all", 10))
        refused("mixed.cpu_access_over_all", cu.cuMemSetAccess(s.base, s.bytes, &c, 1));
    if (!opened) {
        xp_rest_unanswered("the CPU was not given access");
        return;
    }
    volatile uint64_t *word = (volatile uint64_t *)(uintptr_t)(s.base + s.chunk);
    size_t words = s.chunk / 8, wrong = 0;
    uint64_t bad;
    if (xp_begin("mixed.cpu_reads_ram", 20)) {
        if (!xp_fill(s.base + s.chunk, s.chunk, xp.seed))
            unanswered("mixed.cpu_reads_ram");
        for (size_t i = 0; i < words; i++)
            wrong += word[i] != xp_mix(xp.seed + i);
        xp_say("mixed.cpu_reads_ram", xp_verdict("mixed.cpu_reads_ram", !wrong), !wrong, NULL, "%zu of %zu words are wrong", wrong, words);
    }
    if (xp_begin("mixed.kernel_reads_cpu_writes", 20)) {
        for (size_t i = 0; i < words; i++)
            word[i] = xp_mix(xp.seed + 99 + i);
        __sync_synchronize();
        bool ok = xp_check(s.base + s.chunk, s.chunk, xp.seed + 99, 0, &bad);
        words_row("mixed.kernel_reads_cpu_writes", ok, bad, s.chunk);
    }
}

static void closed(void)
{
    const char *row = "mixed.cpu_without_access";
    struct xp_span s;
    if (!start() || !xp_begin(row, 20))
        return;
    if (!xp_span_make(&s, "H", gpu.unit, false) || !xp_fill(s.base, s.chunk, xp.seed)) {
        unanswered(row);
        return;
    }
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    int caught = sigsetjmp(fault, 1);
    uint64_t first = 0;
    if (!caught)
        first = *(volatile uint64_t *)(uintptr_t)s.base;
    signal(SIGSEGV, SIG_DFL);
    signal(SIGBUS, SIG_DFL);
    if (caught)
        xp_say(row, XP_MEASURED, 1, NULL, "%s", strsignal(caught));
    else
        xp_say(row, XP_MEASURED, 0, NULL, "it reads %s", first == xp_mix(xp.seed) ? "the right bytes" : "other bytes");
}

/* ---- rules ---- */

static void rules(void)
{
    struct xp_span s;
    CUdeviceptr other;
    CUmemGenericAllocationHandle h;
    CUmemAllocationProp p = xp_tier('D');
    CUmemAccessDesc g = xp_for_gpu();
    if (!start())
        return;
    const size_t unit = gpu.unit;
    if (!XP(cuMemAddressReserve(&other, 4 * unit, 0, 0, 0)) || !XP(cuMemCreate(&h, 2 * unit, &p, 0)) ||
        !xp_span_make(&s, "DHDH", 2 * unit, false)) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    if (xp_begin("mixed.map_part_of_handle", 10)) {
        CUresult half = cu.cuMemMap(other, unit, 0, h, 0);
        if (half == CUDA_SUCCESS)
            cu.cuMemUnmap(other, unit);
        CUresult offset = cu.cuMemMap(other, unit, unit, h, 0);
        if (offset == CUDA_SUCCESS)
            cu.cuMemUnmap(other, unit);
        bool both = half != CUDA_SUCCESS && offset != CUDA_SUCCESS;
        xp_say("mixed.map_part_of_handle", xp_verdict("mixed.map_part_of_handle", both), both, NULL, "first half: %s; at an offset: %s",
               xp_error(half), xp_error(offset));
    }
    if (xp_begin("mixed.map_over_mapping", 10))
        refused("mixed.map_over_mapping", cu.cuMemMap(s.base, 2 * unit, 0, h, 0));
    if (xp_begin("mixed.access_part", 10))
        refused("mixed.access_part", cu.cuMemSetAccess(s.base, unit, &g, 1));
    if (xp_begin("mixed.unmap_gap", 10)) {
        if (!XP(cuMemUnmap(s.base + 2 * unit, 2 * unit)))
            unanswered("mixed.unmap_gap");
        else {
            CUresult r = cu.cuMemUnmap(s.base, 6 * unit);
            refused("mixed.unmap_gap", r);
            if (r == CUDA_SUCCESS || !XP(cuMemMap(s.base + 2 * unit, 2 * unit, 0, s.handles[1], 0)))
                xp_again(); /* the span is not whole any more */
        }
    }
    if (xp_begin("mixed.unmap_part", 10)) {
        CUresult r = cu.cuMemUnmap(s.base, unit);
        refused("mixed.unmap_part", r);
        if (r == CUDA_SUCCESS)
            xp_again();
    }
    if (xp_begin("mixed.unmap_many", 10)) {
        CUresult r = cu.cuMemUnmap(s.base, s.bytes);
        xp_say("mixed.unmap_many", xp_verdict("mixed.unmap_many", r == CUDA_SUCCESS), r == CUDA_SUCCESS, NULL, "%s", xp_error(r));
    }
}

/* Free VRAM in bytes; a shared card's other programs move it too, hence large amounts and half of them as limit. */
static double free_vram(void)
{
    size_t free_bytes = 0, total;
    return cu.cuMemGetInfo_v2(&free_bytes, &total) == CUDA_SUCCESS ? (double)free_bytes : NAN;
}

static void memory(void)
{
    const char *row = "mixed.freed_when";
    CUmemAllocationProp p = xp_tier('D');
    CUmemGenericAllocationHandle h;
    CUdeviceptr at;
    if (!start() || !xp_begin(row, 20))
        return;
    size_t n = xp.vram / 4 < 512 * XP_MIB ? xp.vram / 4 / gpu.unit * gpu.unit : 512 * XP_MIB;
    double before = free_vram();
    if (!XP(cuMemAddressReserve(&at, n, 0, 0, 0)) || !XP(cuMemCreate(&h, n, &p, 0)) || !XP(cuMemMap(at, n, 0, h, 0))) {
        unanswered(row);
        return;
    }
    double held = free_vram();
    bool ok = XP(cuMemRelease(h));
    double released = free_vram();
    ok = ok && XP(cuMemUnmap(at, n));
    double unmapped = free_vram();
    /* The other way round. */
    ok = ok && XP(cuMemCreate(&h, n, &p, 0)) && XP(cuMemMap(at, n, 0, h, 0)) && XP(cuMemUnmap(at, n));
    double unmapped_first = free_vram();
    ok = ok && XP(cuMemRelease(h));
    double end = free_vram();
    char raw[256];
    snprintf(raw, sizeof raw, "\"bytes\": %zu, \"before\": %.0f, \"held\": %.0f, \"released\": %.0f, \"unmapped\": %.0f, \"unmapped_first\": %.0f, \"end\": %.0f",
             n, before, held, released, unmapped, unmapped_first, end);
    double half = (double)n / 2;
    bool as_believed = before - held > half && before - released > half && before - unmapped < half && before - unmapped_first > half &&
                       before - end < half;
    if (!ok)
        unanswered(row);
    else
        xp_say(row, xp_verdict(row, as_believed), as_believed, raw, "%.0f MiB held; after release %.0f, after unmap too %.0f; unmapped first %.0f, then released %.0f",
               (before - held) / XP_MIB, (before - released) / XP_MIB, (before - unmapped) / XP_MIB, (before - unmapped_first) / XP_MIB,
               (before - end) / XP_MIB);
}

/* ---- what kills a context: each in a child of its own ---- */

static void closed_to_gpu(const char *row, bool remap)
{
    struct xp_span s;
    uint64_t words = 512, seed = xp.seed;
    if (!start() || !xp_begin(row, 30))
        return;
    bool ok = remap ? xp_span_make(&s, "D", gpu.unit, false) && xp_fill(s.base, s.bytes, 1) && XP(cuMemUnmap(s.base, s.bytes)) &&
                          XP(cuMemMap(s.base, s.bytes, 0, s.handles[0], 0))
                    : xp_span_map(&s, "D", gpu.unit);
    if (!ok) {
        unanswered(row);
        return;
    }
    void *args[] = { &s.base, &words, &seed };
    CUresult launched = xp_launch(gpu.fill, 1, 256, NULL, args), r = launched == CUDA_SUCCESS ? cu.cuCtxSynchronize() : launched;
    CUresult after = cu.cuCtxSynchronize();
    if (r == CUDA_SUCCESS)
        xp_say(row, xp_verdict(row, false), 0, NULL, "the kernel ran without error");
    else {
        bool sticky = after == r;
        xp_say(row, xp_verdict(row, r == CUDA_ERROR_ILLEGAL_ADDRESS && sticky), 1, NULL, "%s, %s", xp_error(r), sticky ? "sticky" : "not sticky");
    }
}

static void noaccess(void)
{
    closed_to_gpu("mixed.new_map_is_closed", false);
}

static void again(void)
{
    closed_to_gpu("mixed.remap_is_closed", true);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "kernel", kernel, 40 }, { "cpu", cpu, 30 },           { "closed", closed, 20 }, { "rules", rules, 20 },
                                            { "memory", memory, 20 }, { "noaccess", noaccess, 30 }, { "again", again, 30 } };
    return xp_main(argc, argv, declare, cases, 7);
}
