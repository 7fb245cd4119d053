# SPDX-License-Identifier: Apache-2.0
"""Allocation under the shim, entry by entry, on a simulated card smaller than what is asked for: pitched, stream-ordered and
virtual memory, pointer queries, host backends, the RAM budget, capture. What a program sees must be what it sees on a
card that is large enough, so most scripts run both ways and the answers are compared."""

from __future__ import annotations

from typing import Any

import pytest
from clients_common import FINE, MIB, run_script, spilled_bytes

CARD, ROOMY = "64M", "4G"


@pytest.fixture
def script(run_sim, demo_dir):
    """script(text, *arguments, vram=CARD, shim=True, env={}) -> what it hands to done()."""

    def run(text: str, *arguments: object, vram: str = CARD, shim: bool = True, env: dict[str, str] | None = None, **how: Any) -> dict[str, Any]:
        return run_script(run_sim, text, *arguments, env={**(FINE if shim else {}), **(env or {})}, demo_dir=demo_dir, vram=vram, shim=shim, **how)

    return run


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two answers, leaving out what run_script adds."""
    names = (set(one) | set(other)) - {"stats", "stderr"}
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


# --- reporting ---------------------------------------------------------------------------------------------------------------

REPORTING = """
    ctx = Ctx()
    seen = []
    def look():
        free_bytes, total = mem_info()
        v1, v2 = nvml_memory()
        seen.append(dict(free=free_bytes, total=total, device_total=total_mem(), nvml=[v1.total, v1.free, v1.used],
                         nvml2=[v2.total, v2.free, v2.used, v2.reserved]))
    look()
    held = []
    for size in [16 * MIB, 4096, 24 * MIB, 16 * MIB, 20 * MIB, 1 * MIB, 16 * MIB]:
        held.append(alloc(size))
        look()
    for p in held:
        free(p)
        look()
    assert code("cuMemGetInfo_v2", None, None) in (0, 1)
    only = u64()
    null_total = code("cuMemGetInfo_v2", ref(only), None)
    done(seen=seen, null_total=null_total, only_free=only.value)
"""


@pytest.mark.parametrize("limit", ["", "48M"])
@pytest.mark.parametrize("report", ["vram", "virtual"])
def test_reported_memory_is_one_consistent_model(script, report, limit):
    env = {"SPILLSHIM_REPORT": report, "SPILLSHIM_HOST_LIMIT": "256M"}
    if limit:
        env["SPILLSHIM_VRAM_LIMIT"] = limit
    answer = script(REPORTING, env=env, ram="1G")
    seen = answer["seen"]
    for one in seen:
        assert 0 <= one["free"] <= one["total"], one
        assert one["device_total"] == one["total"], one
        total, free, used = one["nvml"]
        assert (total, free) == (one["total"], one["free"]) and used <= total, one
        total, free, used, reserved = one["nvml2"]
        assert (total, free) == (one["total"], one["free"]) and free + used + reserved == total, one
    assert len({one["total"] for one in seen}) == 1
    vram = 48 * MIB if limit else 64 * MIB
    if report == "vram":
        assert seen[0]["total"] == vram
    else:
        assert vram < seen[0]["total"] <= vram + 256 * MIB
    allocations, sizes = 7, [16, 0, 24, 16, 20, 1, 16]
    for before, after, size in zip(seen, seen[1 : allocations + 1], sizes):
        if size >= 16:  # smaller ones may come out of memory that the driver already holds
            assert after["free"] < before["free"] or after["free"] == 0 == before["free"], (before, after)
        assert after["free"] <= before["free"]
    for before, after in zip(seen[allocations:], seen[allocations + 1 :]):
        assert after["free"] >= before["free"], (before, after)
    assert seen[-1]["free"] > seen[allocations]["free"]
    assert answer["null_total"] in (0, 1)


def test_free_memory_agrees_with_no_shim_while_nothing_spills(script):
    """Honest by default: below the edge the figures are the card's."""
    text = """
        ctx = Ctx()
        first = mem_info()
        p = alloc(32 * MIB)
        second = mem_info()
        done(first=first, second=second)
    """
    with_shim, without = script(text, vram="1G"), script(text, vram="1G", shim=False)
    assert differences(with_shim, without) == {}


# --- pitched -------------------------------------------------------------------------------------------------------------------


def test_pitched_allocations_spill(script):
    text = """
        ctx = Ctx()
        made = []
        for width, height, element in [(5000, 4000, 4), (300, 70000, 16), (1, 40000, 8)]:
            p, pitch = u64(), u64()
            cu("cuMemAllocPitch_v2", ref(p), ref(pitch), width, height, element)
            assert pitch.value >= width and pitch.value % 512 == 0 and p.value % 512 == 0, pitch.value
            made.append((p.value, pitch.value, width, height))
        for i, (p, pitch, width, height) in enumerate(made):
            cu("cuMemsetD2D8_v2", p, pitch, 17 + i, width, height)
        for i, (p, pitch, width, height) in enumerate(made):
            rows = download(p, pitch * (height - 1) + width)
            rows = np.concatenate([rows, np.zeros(pitch - width, np.uint8)]).reshape(height, pitch)
            assert (rows[:, :width] == 17 + i).all(), i
        bad = [code("cuMemAllocPitch_v2", ref(u64()), ref(u64()), w, h, e)
               for w, h, e in [(0, 10, 4), (10, 0, 4), (10, 10, 3), (1 << 62, 1 << 62, 4), (1 << 63, 2, 4), (MIB, MIB, 4)]]
        bad += [code("cuMemAllocPitch_v2", None, ref(u64()), 10, 10, 4), code("cuMemAllocPitch_v2", ref(u64()), None, 10, 10, 4)]
        pitches = [pitch for _, pitch, _, _ in made]
        for p, *_ in made:
            free(p)
        done(bad=bad, pitches=pitches)
    """
    spilled, roomy = script(text), script(text, vram=ROOMY, shim=False)
    assert spilled_bytes(spilled["stats"]) > 0
    assert differences(spilled, roomy) == {}


# --- stream-ordered --------------------------------------------------------------------------------------------------------------


def test_stream_ordered_allocations_spill_in_order(script):
    """Each stream allocates, writes by a kernel, copies, frees; a freed address may be given again only to later work."""
    text = """
        ctx, kernels = Ctx(), Kernels()
        rng = np.random.default_rng(int(sys.argv[1]))
        streams = [stream() for _ in range(3)]
        size, live = 16 * MIB, []
        for round in range(12):
            s = streams[int(rng.integers(3))]
            p = u64()
            cu("cuMemAllocAsync", ref(p), size, s)
            kernels.fill(p.value, size, 1000 + round, on=s)
            live.append((p.value, 1000 + round, s))
            assert len({q for q, *_ in live}) == len(live), "an address in use was given again"
            while len(live) > 5 or (live and rng.random() < 0.3):
                q, seed, on = live.pop(int(rng.integers(len(live))))
                host = np.empty(size, np.uint8)
                cu("cuMemcpyDtoHAsync_v2", at(host), q, size, on)
                cu("cuMemFreeAsync", q, on)
                cu("cuStreamSynchronize", on)
                assert np.array_equal(host, Kernels.filled(size, seed)), f"round {round}: the block of seed {seed} changed"
        for q, seed, on in live:
            cu("cuStreamSynchronize", on)
            assert np.array_equal(download(q, size), Kernels.filled(size, seed)), seed
            cu("cuMemFreeAsync", q, on)
        sync()
        done(free=mem_info()[0] > 0)
    """
    print("seed 5")
    answer = script(text, 5)
    assert spilled_bytes(answer["stats"]) > 0 and answer["free"]


def test_stream_ordered_and_plain_entries_mix(script):
    text = """
        ctx = Ctx()
        s = stream()
        a, b = u64(), alloc(40 * MIB)
        cu("cuMemAllocAsync", ref(a), 40 * MIB, s)
        cu("cuMemsetD8Async", a.value, 7, 40 * MIB, s)
        cu("cuMemsetD8_v2", b, 9, 40 * MIB)
        cu("cuStreamSynchronize", s)
        sync()
        assert (download(a.value, 40 * MIB) == 7).all() and (download(b, 40 * MIB) == 9).all()
        codes = [code("cuMemFree_v2", a.value), code("cuMemFreeAsync", b, s), code("cuStreamSynchronize", s)]
        codes += [code("cuMemAllocAsync", ref(u64()), 0, s), code("cuMemAllocAsync", None, 4096, s)]
        done(codes=codes)
    """
    spilled, roomy = script(text), script(text, vram=ROOMY, shim=False)
    assert spilled_bytes(spilled["stats"]) > 0
    assert differences(spilled, roomy) == {}


def test_allocations_from_the_apps_own_pool_spill(script):
    text = """
        ctx, kernels = Ctx(), Kernels()
        s, pool = stream(), u64()
        cu("cuMemPoolCreate", ref(pool), ref(PoolProps(alloc_type=1, location_type=1, location_id=0)))
        held = []
        for i in range(4):
            p = u64()
            cu("cuMemAllocFromPoolAsync", ref(p), 24 * MIB, pool.value, s)
            kernels.fill(p.value, 24 * MIB, i, on=s)
            held.append(p.value)
        cu("cuStreamSynchronize", s)
        for i, p in enumerate(held):
            assert np.array_equal(download(p, 24 * MIB), Kernels.filled(24 * MIB, i)), i
            cu("cuMemFreeAsync", p, s)
        cu("cuStreamSynchronize", s)
        cu("cuMemPoolDestroy", pool.value)
        done()
    """
    assert spilled_bytes(script(text)["stats"]) > 0


# --- the app's own virtual memory management ----------------------------------------------------------------------------------------

OWN_VMM = """
    ctx, kernels = Ctx(), Kernels()
    size, count = 16 * MIB, 6
    base = u64()
    cu("cuMemAddressReserve", ref(base), size * count, 0, 0, 0)
    for i in range(count):
        handle = u64()
        cu("cuMemCreate", ref(handle), size, ref(device_prop()), 0)
        cu("cuMemMap", base.value + i * size, size, 0, handle.value, 0)
        cu("cuMemRelease", handle.value)          # at once, as ggml's pool does
    cu("cuMemSetAccess", base.value, size * count, ref(AccessDesc(1, 0, 3)), 1)
    for i in range(count):
        kernels.fill(base.value + i * size, size, 50 + i)
    sync()
    whole = download(base.value, size * count)
    for i in range(count):
        assert np.array_equal(whole[i * size : (i + 1) * size], Kernels.filled(size, 50 + i)), i
    back = pattern(size * count, 3)
    upload(base.value, back)
    cu("cuMemsetD8_v2", base.value + 5 * MIB, 0xAB, 60 * MIB)
    back[5 * MIB : 65 * MIB] = 0xAB
    assert np.array_equal(download(base.value, size * count), back)
    cu("cuMemUnmap", base.value, size * count)
    cu("cuMemAddressFree", base.value, size * count)
    again = u64()
    cu("cuMemCreate", ref(again), 32 * MIB, ref(device_prop()), 0)   # what was released is available again
    cu("cuMemRelease", again.value)
    done()
"""


@pytest.mark.parametrize("mixed", ["refuse", "allow"])
def test_own_vmm_spills(script, mixed):
    answer = script(OWN_VMM, sim={"MIXED_COPY": mixed})
    assert spilled_bytes(answer["stats"]) >= 32 * MIB


FOR_EXPORT = """
    ctx = Ctx()
    results, exports, held = [], [], []
    for i in range(6):
        handle = u64()
        results.append(code("cuMemCreate", ref(handle), 16 * MIB, ref(device_prop(handle_types=1)), 0))
        if results[-1] == 0:
            held.append(handle.value)
    for handle in held:
        fd, back, base = ctypes.c_int(), u64(), u64()
        exports.append(code("cuMemExportToShareableHandle", ref(fd), handle, 1, 0))
        if exports[-1] == 0:
            cu("cuMemImportFromShareableHandle", ref(back), ctypes.c_void_p(fd.value), 1)
            cu("cuMemAddressReserve", ref(base), 16 * MIB, 0, 0, 0)
            cu("cuMemMap", base.value, 16 * MIB, 0, back.value, 0)
            cu("cuMemUnmap", base.value, 16 * MIB)
            cu("cuMemRelease", back.value)
    for handle in held:
        cu("cuMemRelease", handle)
    done(results=results, exports=exports)
"""


def test_own_vmm_for_export_spills_and_is_exported(script):
    """As PyTorch's expandable segments ask for it."""
    answer = script(FOR_EXPORT, sim={"DOUBT": "vmm.host_numa_exportable=0"})
    assert answer["results"] == answer["exports"] == [0] * 6
    assert spilled_bytes(answer["stats"]) >= 32 * MIB


@pytest.mark.parametrize("sim", [{"DOUBT": "vmm.host_numa_exportable=1"}, {"DOUBT": "vmm.host_numa_exportable=2"}, {"HOST_VMM": "host", "DRIVER": "13000"}])
def test_own_vmm_for_export_where_ram_has_none(script, sim):
    """An export that fails would be far from the cause: out-of-memory is the honest answer, but for who knows better."""
    with_shim, without = script(FOR_EXPORT, sim=sim), script(FOR_EXPORT, sim=sim, shim=False)
    assert with_shim["results"] == without["results"] and 2 in with_shim["results"] and 0 in with_shim["results"]
    assert spilled_bytes(with_shim["stats"]) == 0 and "SPILLSHIM_EXPORTABLE" in with_shim["stderr"]
    told = script(FOR_EXPORT, sim=sim, env={"SPILLSHIM_EXPORTABLE": "1"})
    assert told["results"] == [0] * 6 and set(told["exports"]) == {0, 1}


# --- what pointers say about themselves ---------------------------------------------------------------------------------------------


def test_pointer_queries_answer_as_for_plain_memory(script):
    text = """
        ctx = Ctx()
        sizes = [24 * MIB, 24 * MIB + 512, 30 * MIB, 16 * MIB]
        regions = [alloc(n) for n in sizes]
        said = []
        for p, n in zip(regions, sizes):
            for at_offset in (0, 1, n // 2 + 12345, n - 1):
                one = {name: attribute(name, p + at_offset) for name in POINTER_ATTRIBUTES}
                assert one["context"] == ctx.handle, one
                assert one["device_pointer"] == p + at_offset, one
                assert one["range_start"] == p, (hex(p), one)
                base, size = address_range(p + at_offset)
                assert base == p, (hex(base), hex(p))
                one.update(context="ours", device_pointer="same", range_start="base", buffer_id="some", address_range=size)
                said.append(one)
            names = ["memory_type", "device_ordinal", "range_size", "is_managed"]
            kinds = (ctypes.c_int * len(names))(*[POINTER_ATTRIBUTES[n] for n in names])
            values = [u64() for _ in names]
            data = (ctypes.c_void_p * len(names))(*[ctypes.addressof(v) for v in values])
            cu("cuPointerGetAttributes", len(names), kinds, data, p + 4097)
            said.append([v.value for v in values])
            said.append([code("cuMemGetAddressRange_v2", None, ref(u64()), p), code("cuMemGetAddressRange_v2", ref(u64()), None, p)])
        ids = [attribute("buffer_id", p) for p in regions]
        assert len(set(ids)) == len(ids), "buffer ids must differ"
        outside = [attribute("memory_type", regions[0] + (1 << 46)), code("cuMemGetAddressRange_v2", ref(u64()), ref(u64()), 4096)]
        handle = u64()
        retain = code("cuMemRetainAllocationHandle", ref(handle), ctypes.c_void_p(regions[0]))
        for p in regions:
            free(p)
        done(said=said, outside=outside, freed=attribute("memory_type", regions[0]), retain=retain)
    """
    spilled, roomy = script(text), script(text, vram=ROOMY, shim=False)
    assert spilled_bytes(spilled["stats"]) > 0
    assert differences(spilled, roomy) == {}


# --- backends ----------------------------------------------------------------------------------------------------------------------

BASIC = """
    ctx, kernels = Ctx(), Kernels()
    size = 24 * MIB
    regions = [alloc(size) for _ in range(4)]
    for i, p in enumerate(regions):
        kernels.fill(p, size // 2, i)
        upload(p + size // 2, pattern(size // 2, i))
    sync()
    for i, p in enumerate(regions):
        got = download(p, size)
        assert np.array_equal(got[: size // 2], Kernels.filled(size // 2, i)), i
        assert np.array_equal(got[size // 2 :], pattern(size // 2, i)), i
    kinds = [attribute("memory_type", p) for p in regions]
    for p in regions:
        free(p)
    back = [alloc(size) for _ in range(4)]      # what was freed can be had again, in both tiers
    for p in back:
        free(p)
    done(kinds=kinds)
"""


@pytest.mark.parametrize("host_vmm, backend", [("numa", "host-numa"), ("host", "host"), ("none", "hostalloc"), ("crash", "hostalloc")])
def test_backend_follows_what_the_driver_accepts(script, host_vmm, backend):
    answer = script(BASIC, sim={"HOST_VMM": host_vmm})
    (stats,) = answer["stats"]
    assert stats["backend"] == backend and stats["spilled"]["bytes_peak"] > 0, stats
    assert answer["kinds"] == [2] * 4  # CU_MEMORYTYPE_DEVICE, wherever the bytes lie


@pytest.mark.parametrize("backend", ["host-numa", "host", "hostalloc"])
def test_backend_can_be_chosen(script, backend):
    env = {"SPILLSHIM_BACKEND": backend}
    sim = {"HOST_VMM": "host"} if backend == "host" else {}
    (stats,) = script(BASIC, env=env, sim=sim)["stats"]
    assert stats["backend"] == backend


def test_without_a_backend_the_driver_answers(script):
    text = """
        ctx = Ctx()
        results = [try_alloc(24 * MIB)[0] for _ in range(4)]
        done(results=results)
    """
    answer = script(text, env={"SPILLSHIM_BACKEND": "none"})
    assert answer["results"] == script(text, shim=False)["results"] and answer["results"][-1] == 2


def test_spilling_off_is_the_driver(script):
    text = """
        ctx = Ctx()
        results = [try_alloc(24 * MIB)[0] for _ in range(4)]
        done(results=results)
    """
    answer = script(text, env={"SPILLSHIM_SPILL": "off"})
    assert 2 in answer["results"] and spilled_bytes(answer["stats"]) == 0


# --- the RAM budget --------------------------------------------------------------------------------------------------------------------

BUDGET = """
    ctx = Ctx()
    held, results = [], []
    for i in range(12):
        result, p = try_alloc(16 * MIB)
        results.append(result)
        if result:
            left = p
            break
        upload(p, pattern(16 * MIB, i))
        held.append(p)
    for i, p in enumerate(held):
        assert np.array_equal(download(p, 16 * MIB), pattern(16 * MIB, i)), i
    free(held.pop())
    again, p = try_alloc(16 * MIB)
    assert code("cuMemGetInfo_v2", ref(u64()), ref(u64())) == 0
    done(count=len(results), last=results[-1], left=left, again=again)
"""


def test_over_the_ram_budget_it_is_out_of_memory_as_the_drivers(script):
    plain = script(BUDGET, shim=False)
    assert plain["last"] == 2
    answer = script(BUDGET, env={"SPILLSHIM_HOST_LIMIT": "40M"})
    assert (answer["last"], answer["again"], answer["left"]) == (2, 0, plain["left"])
    (stats,) = answer["stats"]
    assert 0 < stats["ram_peak"] <= 40 * MIB, stats
    assert stats["oom"] >= 1
    # All of VRAM but the headroom, and the budget: 60 + 40 MiB hold six regions of 16 MiB.
    assert answer["count"] - 1 == 6, answer


def test_ram_that_the_driver_refuses_is_out_of_memory(script):
    """The machine's own limit on pinned memory is met after the budget said yes: everything unwinds."""
    answer = script(BUDGET, ram="24M")
    assert (answer["last"], answer["again"]) == (2, 0)
    assert "the driver did not pin" in answer["stderr"] and "that the budget had granted" in answer["stderr"]
    (stats,) = answer["stats"]
    assert stats["ram_peak"] <= 24 * MIB


def test_two_processes_share_the_ram_budget(run_sim, demo_dir):
    from clients_common import facts, script_argv, script_env

    text = """
        import time
        ctx = Ctx()
        mine, other = sys.argv[1], sys.argv[2]
        results = [try_alloc(16 * MIB)[0] for _ in range(10)]
        open(mine, "w").close()
        deadline = time.monotonic() + 40
        while not os.path.exists(other):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        done(held=results.count(0), oom=results.count(2))
    """
    tmp = run_sim.tmp_path
    env = script_env({**FINE, "SPILLSHIM_HOST_LIMIT": "64M"})
    started = [run_sim.start(script_argv(tmp, text, tmp / f"m{i}", tmp / f"m{1 - i}"), vram=CARD, env=env) for i in range(2)]
    results = [run_sim.finish(process).ok() for process in started]
    said = [facts(result.stdout) for result in results]
    assert all(one["held"] + one["oom"] == 10 for one in said)
    assert sum(one["held"] for one in said) * 16 * MIB <= 128 * MIB
    assert sum(one["ram_peak"] for one in results[1].stats) <= 64 * MIB
    assert sum(one["held"] for one in said) >= 6


# --- capture ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["global", "thread-local", "relaxed"])
@pytest.mark.parametrize("what", ["alloc", "free"])
def test_plain_allocation_during_capture_is_as_the_drivers(script, mode, what):
    """cuMemAlloc and cuMemFree are unsafe during a global capture; the shim must neither hide that nor break more than that."""
    text = """
        ctx = Ctx()
        s, mode, what = stream(), int(sys.argv[1]), sys.argv[2]
        warm = [alloc(24 * MIB), alloc(24 * MIB)]
        region = alloc(24 * MIB)
        cu("cuStreamBeginCapture_v2", s, mode)
        if what == "alloc":
            during, p = try_alloc(40 * MIB)
        else:
            during, p = code("cuMemFree_v2", warm.pop()), 0
        write = code("cuMemsetD8Async", region, 5, 24 * MIB, s)
        graph = u64()
        end = code("cuStreamEndCapture", s, ref(graph))
        launched = None
        if end == 0 and graph.value:
            executable = u64()
            cu("cuGraphInstantiateWithFlags", ref(executable), graph.value, 0)
            cu("cuGraphLaunch", executable.value, s)
            cu("cuStreamSynchronize", s)
            launched = bool((download(region, 24 * MIB) == 5).all())
        after, q = try_alloc(8 * MIB)
        done(during=during, write=write, end=end, launched=launched, after=after)
    """
    spilled, roomy = script(text, mode, what), script(text, mode, what, vram=ROOMY, shim=False)
    assert spilled_bytes(spilled["stats"]) > 0
    assert differences(spilled, roomy) == {}


@pytest.mark.parametrize("mixed", ["refuse", "allow"])
def test_captured_copies_over_both_tiers_replay(script, mixed):
    text = """
        ctx = Ctx()
        s, size = stream(), 40 * MIB
        a, b = alloc(size), alloc(size)
        host = np.full(size, 1, np.uint8)
        cu("cuStreamBeginCapture_v2", s, 2)
        cu("cuMemcpyHtoDAsync_v2", a, at(host), size, s)
        cu("cuMemcpyDtoDAsync_v2", b, a, size, s)
        cu("cuMemsetD32Async", b + 4 * MIB, 0x01020304, 8 * MIB // 4, s)
        out = np.zeros(size, np.uint8)
        cu("cuMemcpyDtoHAsync_v2", at(out), b, size, s)
        graph, executable = u64(), u64()
        cu("cuStreamEndCapture", s, ref(graph))
        cu("cuGraphInstantiateWithFlags", ref(executable), graph.value, 0)
        for round in range(3):
            host[:] = pattern(size, round)
            cu("cuGraphLaunch", executable.value, s)
            cu("cuStreamSynchronize", s)
            want = host.copy()
            want[4 * MIB : 12 * MIB].view(np.uint32)[:] = 0x01020304
            assert np.array_equal(out, want), round
        done()
    """
    assert spilled_bytes(script(text, sim={"MIXED_COPY": mixed})["stats"]) > 0


# --- bad input -------------------------------------------------------------------------------------------------------------------------

BAD = """
    ctx = Ctx()
    said = {}
    held = [alloc(24 * MIB), alloc(24 * MIB), alloc(24 * MIB)]      # with a small card: in both tiers
    host = np.zeros(4096, np.uint8)
    def note(name, value):
        said[name] = value
    note("free null", code("cuMemFree_v2", 0))
    note("free host", code("cuMemFree_v2", at(host)))
    note("free nonsense", code("cuMemFree_v2", 0x1234567))
    note("free high", code("cuMemFree_v2", (1 << 64) - 4096))
    for i, p in enumerate(held):
        note(f"free interior {i}", code("cuMemFree_v2", p + 4096))
        note(f"free last byte {i}", code("cuMemFree_v2", p + 24 * MIB - 1))
    note("free async foreign", code("cuMemFreeAsync", at(host), stream()))
    note("alloc 0", try_alloc(0))
    note("alloc to null", code("cuMemAlloc_v2", None, 16 * MIB))
    for size in [(1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096, (1 << 64) - (2 * MIB), (1 << 62), 1 << 50]:
        note(f"alloc {size:#x}", try_alloc(size))
        note(f"alloc async {size:#x}", code("cuMemAllocAsync", ref(u64()), size, stream()))
    note("copy past the end", code("cuMemcpyHtoD_v2", held[2] + 24 * MIB - 8, at(host), 4096))
    note("copy huge", code("cuMemcpyDtoD_v2", held[0], held[1], (1 << 63) + 5))
    note("memset past the end", code("cuMemsetD8_v2", held[2] + 24 * MIB - 8, 0, 4096))
    note("memset huge", code("cuMemsetD32_v2", held[2], 0, 1 << 62))
    note("copy 0 bytes", code("cuMemcpyHtoD_v2", held[0], at(host), 0))
    note("copy to null", code("cuMemcpyHtoD_v2", 0, at(host), 16))
    note("range null", code("cuMemGetAddressRange_v2", None, None, held[0]))
    note("attribute nonsense", code("cuPointerGetAttribute", ref(u64()), 9999, held[0]))
    note("attribute null", code("cuPointerGetAttribute", None, 2, held[0]))
    free(held[1])
    note("double free", code("cuMemFree_v2", held[1]))
    note("free async after free", code("cuMemFreeAsync", held[1], stream()))
    note("copy to freed", code("cuMemcpyHtoD_v2", held[1] + 8, at(host), 4096))
    note("attribute of freed", code("cuPointerGetAttribute", ref(u64()), 2, held[1]))
    note("range of freed", code("cuMemGetAddressRange_v2", ref(u64()), ref(u64()), held[1]))
    free(held[0]), free(held[2])
    note("all free again", code("cuMemFree_v2", held[2]))
    p = alloc(16 * MIB)
    upload(p, pattern(16 * MIB, 1))
    assert np.array_equal(download(p, 16 * MIB), pattern(16 * MIB, 1))
    free(p)
    done(**said)
"""


@pytest.mark.parametrize("doubt", ["", "copy.checked_at_call"])
def test_bad_input_gets_the_drivers_own_answer(script, doubt):
    with_shim = script(BAD, sim={"DOUBT": doubt})
    assert spilled_bytes(with_shim["stats"]) > 0
    assert differences(with_shim, script(BAD, vram=ROOMY, shim=False, sim={"DOUBT": doubt})) == {}
    assert with_shim["double free"] != 0 and with_shim["alloc 0"][0] == 1


def test_before_init_and_without_context(script):
    text = """
        early = [code("cuMemAlloc_v2", ref(u64()), 24 * MIB), code("cuMemFree_v2", 4096), code("cuMemGetInfo_v2", ref(u64()), ref(u64()))]
        cu("cuInit", 0)
        bare = [code("cuMemAlloc_v2", ref(u64()), 24 * MIB), code("cuMemFree_v2", 4096), code("cuMemGetInfo_v2", ref(u64()), ref(u64()))]
        done(early=early, bare=bare)
    """
    assert differences(script(text), script(text, vram=ROOMY, shim=False)) == {}


def test_context_loss_discards_its_regions(script):
    """After a reset of the primary context the addresses mean nothing and the memory is there again."""
    text = """
        ctx = Ctx()
        before = mem_info()
        held = [alloc(24 * MIB) for _ in range(4)]
        cu("cuDevicePrimaryCtxReset_v2", ctx.device)
        ctx = Ctx()
        freed = code("cuMemFree_v2", held[0])
        after = mem_info()
        held = [alloc(24 * MIB) for _ in range(4)]
        for i, p in enumerate(held):
            upload(p, pattern(24 * MIB, i))
        for i, p in enumerate(held):
            assert np.array_equal(download(p, 24 * MIB), pattern(24 * MIB, i))
        done(freed=freed, recovered=after[0] == before[0])
    """
    answer = script(text)
    assert answer["recovered"] and answer["freed"] == script(text, vram=ROOMY, shim=False)["freed"]


def test_exit_without_freeing(script):
    """A program that leaves its memory and streams behind ends as it would without the shim."""
    text = """
        ctx = Ctx()
        held = [alloc(24 * MIB) for _ in range(4)]
        s = stream()
        for p in held:
            cu("cuMemsetD8Async", p, 3, 24 * MIB, s)
        done(held=len(held))
    """
    answer = script(text)
    assert answer["held"] == 4 and spilled_bytes(answer["stats"]) > 0


def test_small_allocations_pass_the_edge_too(script):
    """Below the size that is managed the driver serves while it has room; then these spill as well."""
    text = """
        ctx = Ctx()
        held = [alloc(MIB) for _ in range(100)]
        for i, p in enumerate(held):
            upload(p, pattern(MIB, i))
        for i, p in enumerate(held):
            assert np.array_equal(download(p, MIB), pattern(MIB, i)), i
            free(p)
        done()
    """
    assert spilled_bytes(script(text)["stats"]) >= 36 * MIB
