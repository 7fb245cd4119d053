/* SPDX-License-Identifier: Apache-2.0 */
/* Experiment zero: what do fresh chunks hold? Asks for chunks, looks at them, fills them with a pattern, gives them back,
 * asks again. Decides whether a fresh backing has to be cleared before another process's bytes can show (they must not), and
 * whether programs that rely on zeroes see a difference.
 * Also asks what address reuse does: a handle that is mapped at another address must hold its bytes.
 * gpu-check: groups=facts order=110 expect=4 limit=60 */
#include "gpu.h"

enum { CHUNKS = 8 };

static void declare(void)
{
    /* No belief about the second time: documentation leaves it open (alloc.contents_undefined). */
    const char *clears = "whether the pool clears backings that it hands to a new region";
    xp_row("fresh", "zero.vram_first", "what the first VRAM from cuMemCreate holds", "bool", "vmm.fresh_is_zero", clears);
    xp_row("fresh", "zero.vram_again", "what VRAM holds that was filled, unmapped, released and created again", "bool", NULL, clears);
    xp_row("fresh", "zero.ram_first", "what the first RAM from cuMemCreate holds", "bool", "vmm.fresh_is_zero", clears);
    xp_row("fresh", "zero.ram_again", "what RAM holds that was filled, unmapped, released and created again", "bool", NULL, clears);
    xp_row("pooled", "zero.remapped_vram", "a filled VRAM handle, unmapped and mapped at another address, holds its bytes", "bool",
           "vmm.alias_same_bytes", "moves copy through an alias mapping, then swap");
    xp_row("pooled", "zero.remapped_ram", "the same for a RAM handle", "bool", "vmm.alias_same_bytes", "moves copy through an alias mapping, then swap");
    xp_row("pooled", "zero.alias_coherent", "a kernel writes through one mapping of a handle, the next kernel reads through a second one", "bool",
           "vmm.alias_same_bytes", "copying into a staging alias while the old mapping is in use");
}

/* Make, look, fill, drop. */
static void look(const char *row, char tier, size_t chunk)
{
    char tiers[CHUNKS + 1];
    struct xp_span s;
    uint64_t bad, any;
    memset(tiers, tier, CHUNKS);
    tiers[CHUNKS] = 0;
    if (!xp_begin(row, 30))
        return;
    if (!xp_span_make(&s, tiers, chunk, false) || !xp_differs(s.base, s.bytes, 0, &bad, &any) ||
        !xp_fill(s.base, s.bytes, xp.seed)) {
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
        if (!xp_alive())
            xp_again();
        return;
    }
    char raw[160];
    snprintf(raw, sizeof raw, "\"bytes\": %zu, \"words_not_zero\": %llu, \"or_of_words\": \"%016llx\"", s.bytes, (unsigned long long)bad,
             (unsigned long long)any);
    if (bad)
        xp_say(row, xp_verdict(row, false), 0, raw, "%llu of %zu words are not zero", (unsigned long long)bad, s.bytes / 8);
    else
        xp_say(row, xp_verdict(row, true), 1, raw, "all %zu MiB are zero", s.bytes / XP_MIB);
    xp_span_drop(&s);
}

static void fresh(void)
{
    if (!xp_kernels()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    bool ram = xp_find_host();
    char why[256];
    snprintf(why, sizeof why, "%s", xp_failure);
    size_t chunk = 32 * XP_MIB;
    while (chunk > gpu.unit && chunk * CHUNKS > (xp.vram < xp.ram ? xp.vram : xp.ram) / 2)
        chunk /= 2;
    look("zero.vram_first", 'D', chunk);
    look("zero.vram_again", 'D', chunk);
    if (ram) {
        look("zero.ram_first", 'H', chunk);
        look("zero.ram_again", 'H', chunk);
    }
    xp_rest_unanswered("%s", why);
}

static void remapped(const char *row, char tier)
{
    char tiers[2] = { tier, 0 };
    struct xp_span a = { 0 };
    CUdeviceptr other = 0;
    CUmemAccessDesc g = xp_for_gpu();
    uint64_t bad = 0;
    if (!xp_begin(row, 20))
        return;
    bool ok = xp_span_make(&a, tiers, gpu.unit, false) && XP(cuMemAddressReserve(&other, gpu.unit, 0, 0, 0)) &&
              xp_fill(a.base, gpu.unit, xp.seed) && XP(cuMemUnmap(a.base, gpu.unit)) && XP(cuMemMap(other, gpu.unit, 0, a.handles[0], 0)) &&
              XP(cuMemSetAccess(other, gpu.unit, &g, 1)) && xp_check(other, gpu.unit, xp.seed, 0, &bad);
    if (!ok)
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    else
        xp_say(row, xp_verdict(row, !bad), !bad, NULL, bad ? "%llu words are wrong" : "its bytes are there (%llu wrong)", (unsigned long long)bad);
    if (!xp_alive())
        xp_again();
    if (other) {
        cu.cuMemUnmap(other, gpu.unit);
        cu.cuMemAddressFree(other, gpu.unit);
    }
    xp_span_drop(&a);
}

static void alias(void)
{
    const char *row = "zero.alias_coherent";
    struct xp_span a = { 0 };
    CUdeviceptr other = 0;
    CUmemAccessDesc g = xp_for_gpu();
    uint64_t bad = 0, wrong = 0;
    if (!xp_begin(row, 20))
        return;
    bool ok = xp_span_make(&a, "D", gpu.unit, false) && XP(cuMemAddressReserve(&other, gpu.unit, 0, 0, 0)) &&
              XP(cuMemMap(other, gpu.unit, 0, a.handles[0], 0)) && XP(cuMemSetAccess(other, gpu.unit, &g, 1));
    for (unsigned turn = 0; ok && turn < 32; turn++) { /* both directions, so that a stale cache line would show */
        ok = xp_fill(turn % 2 ? other : a.base, gpu.unit, xp.seed + turn) &&
             xp_check(turn % 2 ? a.base : other, gpu.unit, xp.seed + turn, 0, &bad);
        wrong += bad;
    }
    if (!ok)
        xp_say(row, XP_UNANSWERED, XP_NAN, NULL, "%s", xp_failure);
    else
        xp_say(row, xp_verdict(row, !wrong), !wrong, NULL, "32 turns, %llu wrong words", (unsigned long long)wrong);
}

static void pooled(void)
{
    if (!xp_kernels()) {
        xp_rest_unanswered("%s", xp_failure);
        return;
    }
    bool ram = xp_find_host();
    char why[256];
    snprintf(why, sizeof why, "%s", xp_failure);
    remapped("zero.remapped_vram", 'D');
    if (ram)
        remapped("zero.remapped_ram", 'H');
    alias();
    xp_rest_unanswered("%s", why);
}

int main(int argc, char **argv)
{
    static const struct xp_case cases[] = { { "fresh", fresh, 40 }, { "pooled", pooled, 30 } };
    return xp_main(argc, argv, declare, cases, 2);
}
