# SPDX-License-Identifier: Apache-2.0
"""`spillshim.allocators` and the C entries below it, by programs on the driver API: past the end of VRAM, with the library preloaded
and without, and hints that decide where memory lies."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from clients_common import FINE, MIB, PROGRAMS, run_script

import spillshim

CARD = "64M"
BOTH = pytest.mark.parametrize("preloaded", [True, False], ids=["preloaded", "alone"])

HEAD = """
import spillshim.errors
from spillshim import allocators
from spillshim.allocators import allocate, cold, in_ram, keep, prefer
"""


@pytest.fixture
def script(run_sim, libspillshim):
    """script(text, preloaded) -> what it hands to done(); the package's allocators are imported, no context is made."""

    def run(text: str, preloaded: bool, env: dict[str, str] | None = None, **how):
        made = {
            **FINE,
            "PYTHONPATH": f"{PROGRAMS}:{Path(spillshim.__file__).parents[1]}",
            "SPILLSHIM_LIBRARY": str(libspillshim),
            "SPILLSHIM_STATS": str(run_sim.stats_file),
            **(env or {}),
        }
        return run_script(run_sim, HEAD + textwrap.dedent(text), env=made, shim=preloaded, **{"vram": CARD, **how})

    return run


def state(told: dict) -> tuple[str, bool]:
    """How the process ended, and whether anything was ever moved."""
    (one,) = told["stats"]
    return one["state"], one["moves"]["safepoints"] > 0


@BOTH
def test_past_the_end_of_vram(script, preloaded):
    """Three times the card: every byte comes back, all of it is freed, and what the driver tells agrees."""
    told = script(
        """
        first = allocate(4096)  # makes a context where the thread has none
        ctx = Ctx()
        before = mem_info()[0]
        held = [(allocate(24 * MIB), pattern(24 * MIB, seed)) for seed in range(8)]
        for p, data in held:
            upload(p, data)
        copied = allocate(24 * MIB)
        cu("cuMemcpyDtoD_v2", copied, held[-1][0], 24 * MIB)
        same = [bool((download(p, 24 * MIB) == data).all()) for p, data in [*held, (copied, held[-1][1])]]
        ram = sum(in_ram(p, 24 * MIB) for p, _ in held)
        for p, _ in [*held, (copied, None)]:
            allocators.free(p)
        done(same=same, ram=ram, hooked=allocators.hooked(), before=before, after=mem_info()[0], first=in_ram(first, 4096))
        """,
        preloaded,
        env={"SPILLSHIM_MOVES": "order"},
    )
    assert all(told["same"]) and told["hooked"] is preloaded and told["first"] == 0
    assert told["before"] == told["after"]
    assert told["ram"] >= 3 * 24 * MIB - 64 * MIB
    assert state(told)[0] == ("open" if preloaded else "frozen")
    assert [path["path"] for path in told["stats"][0]["paths"] if path["symbol"] == "cuMemAlloc_v2"] == ["allocator"]


@pytest.mark.parametrize("mixed", ["refuse", "allow"])
def test_alone_a_region_lies_in_one_tier_unless_the_driver_copies_over_both(script, mixed):
    """Nobody cuts the program's copies: on a driver that refuses a copy over VRAM and RAM a region has only one of them."""
    told = script(
        """
        ctx = Ctx()
        p, data = allocate(96 * MIB), pattern(96 * MIB, 1)
        upload(p, data)
        done(ram=in_ram(p, 96 * MIB), same=bool((download(p, 96 * MIB) == data).all()))
        """,
        False,
        sim={"MIXED_COPY": mixed},
    )
    assert told["same"]
    assert (told["ram"] == 96 * MIB) if mixed == "refuse" else (0 < told["ram"] < 96 * MIB)


@BOTH
def test_hints_decide_where_memory_lies(script, preloaded):
    told = script(
        """
        ctx = Ctx()
        with prefer("ram"):
            wished = allocate(8 * MIB)
            with keep("vram"):
                kept = allocate(8 * MIB)
            again = allocate(2 * MIB)
            small = allocate(MIB)  # less than a granule: the driver's
        plain = allocate(8 * MIB)
        done(tiers=[in_ram(p, size * MIB) // MIB for p, size in ((wished, 8), (kept, 8), (again, 2), (small, 1), (plain, 8))])
        """,
        preloaded,
        env={"SPILLSHIM_MANAGED_MIN": "4M"},
    )
    assert told["tiers"] == [8, 0, 2, 0, 0]
    assert "VRAM is full" not in told["stderr"], "nobody was short of VRAM"
    assert told["stats"][0]["pins"] == {"count": 1, "bytes": 8 * MIB}


@BOTH
def test_what_is_kept_in_vram_is_never_in_ram(script, preloaded):
    """A card full of kept memory: the next is refused, not spilled; other memory spills as ever."""
    told = script(
        """
        ctx = Ctx()
        with keep("vram"):
            kept = [allocate(16 * MIB) for _ in range(3)]
            try:
                allocate(24 * MIB)
            except MemoryError as error:
                refused = str(error)
        other = allocate(24 * MIB)
        done(refused=refused, kept=sum(in_ram(p, 16 * MIB) for p in kept), other=in_ram(other, 24 * MIB))
        """,
        preloaded,
    )
    assert str(24 * MIB) in told["refused"] and told["kept"] == 0 and told["other"] > 0


def test_other_memory_pays_for_what_is_kept(script):
    """Larger or not: where it can be moved it makes room, and its bytes stay as they are."""
    told = script(
        """
        ctx = Ctx()
        data = pattern(12 * MIB, 3)
        others = [allocate(12 * MIB) for _ in range(4)]
        for p in others:
            upload(p, data)
        kept = 0
        while not kept:  # a busy machine may miss the deadline by which the GPU must be proven idle
            try:
                with keep("vram"):
                    kept = allocate(40 * MIB)
            except MemoryError:
                pass
        same = [bool((download(p, 12 * MIB) == data).all()) for p in others]
        done(kept=in_ram(kept, 40 * MIB), others=sum(in_ram(p, 12 * MIB) for p in others), same=same)
        """,
        True,
    )
    assert told["kept"] == 0 and told["others"] >= (40 + 48 - 64) * MIB and all(told["same"])


@BOTH
def test_a_wish_for_ram_is_dropped_where_there_is_none(script, preloaded):
    told = script(
        """
        ctx = Ctx()
        with prefer("ram"):
            held = [allocate(8 * MIB) for _ in range(4)]
        done(ram=[in_ram(p, 8 * MIB) // MIB for p in held])
        """,
        preloaded,
        env={"SPILLSHIM_HOST_LIMIT": "16M"},
    )
    assert told["ram"] == [8, 8, 0, 0]


@BOTH
def test_a_wish_for_ram_on_a_driver_that_maps_no_host_memory(script, preloaded):
    """Whole buffers of pinned memory then (backend hostalloc)."""
    told = script(
        """
        ctx = Ctx()
        with prefer("ram"):
            p, data = allocate(8 * MIB), pattern(8 * MIB, 5)
        upload(p, data)
        same = bool((download(p, 8 * MIB) == data).all())
        ram, moved = in_ram(p, 8 * MIB), cold(p, 8 * MIB)
        allocators.free(p)
        done(same=same, ram=ram, cold=moved)
        """,
        preloaded,
        sim={"HOST_VMM": "none"},
    )
    assert told["same"] and told["ram"] == told["cold"] == 8 * MIB


def test_a_hint_is_its_threads(script):
    told = script(
        """
        import threading
        ctx = Ctx()
        found = []
        def other():
            p = allocate(8 * MIB)  # a thread without a context
            found.append(in_ram(p, 8 * MIB))
            allocators.free(p)
        with prefer("ram"):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            found.append(in_ram(allocate(8 * MIB), 8 * MIB))
        try:
            with prefer("ram"):
                raise KeyError
        except KeyError:
            found.append(in_ram(allocate(8 * MIB), 8 * MIB))
        done(found=found)
        """,
        True,
    )
    assert told["found"] == [0, 8 * MIB, 0]


def test_cold_memory_goes_to_ram_and_stays_there(script):
    """In whole chunks (of 4 MiB here): what only touches the range stays. Afterwards the settle pass and an order to promote bring
    back other memory, and never that."""
    told = script(
        """
        ctx = Ctx()
        data = pattern(32 * MIB, 7)
        p = allocate(32 * MIB)
        upload(p, data)
        def until(wanted, start, size):
            "The GPU is idle, but this machine may be busy: a call gives up after a quarter of a second."
            while cold(start, size) < wanted:
                pass
            return in_ram(p, 32 * MIB) // MIB
        steps = [until(8 * MIB, p + 2 * MIB, 10 * MIB)]    # from the middle of a chunk, in granules, to the end of another
        steps.append(until(8 * MIB, p, 15 * MIB))          # the first granule alone is less than a chunk: it was cut off, so it goes too
        late = allocate(44 * MIB)                          # more than is left: a part of it lies in RAM
        spilled = in_ram(late, 44 * MIB) // MIB
        allocators.free(allocate(MIB))
        steps.append(until(32 * MIB, p, 32 * MIB))
        while in_ram(late, 44 * MIB):                      # placement settles at waits for the GPU
            sync()
        steps.append(in_ram(p, 32 * MIB) // MIB)
        same = bool((download(p, 32 * MIB) == data).all())
        done(steps=steps, spilled=spilled, same=same)
        """,
        True,
    )
    assert told["same"] and told["spilled"] > 0
    assert told["steps"] == [10, 12, 32, 32]


def test_alone_nothing_is_moved_and_cold_says_so(script):
    told = script(
        """
        ctx = Ctx()
        p = allocate(16 * MIB)
        answers = [cold(p, 16 * MIB), cold(p + 4, 1), cold(1 << 40, 4096), cold(p, 0)]
        done(answers=answers)
        """,
        False,
    )
    assert told["answers"] == [0, 0, 0, 0] and state(told) == ("frozen", False)
    assert "frozen: the library is not preloaded" in told["stderr"]


@BOTH
def test_cold_knows_only_memory_that_is_managed(script, preloaded):
    told = script(
        """
        ctx = Ctx()
        small, p = allocate(MIB), allocate(16 * MIB)
        freed = allocate(16 * MIB)
        allocators.free(freed)
        done(answers=[f(q, size) for f in (cold, in_ram) for q, size in
                      ((0, 1), (small, MIB), (freed, MIB), (p + 16 * MIB, MIB), (p, 0), (2**64 - 1, 2**64 - 1))])
        """,
        preloaded,
    )
    assert told["answers"] == [0] * 12


@BOTH
def test_threads_share_one_engine(script, preloaded):
    told = script(
        """
        import threading
        ctx = Ctx()
        before, wrong = mem_info()[0], []
        def work(seed):
            try:
                for round in range(6):
                    with (prefer("ram") if round % 2 else keep("vram")):
                        p = allocate(6 * MIB)
                    cu("cuCtxSetCurrent", ctx.handle)
                    data = pattern(6 * MIB, seed + round)
                    upload(p, data)
                    if (download(p, 6 * MIB) != data).any() or (in_ram(p, 6 * MIB) != 0) != bool(round % 2):
                        wrong.append((seed, round))
                    allocators.free(p)
            except Exception as error:
                wrong.append(repr(error))
        threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        done(wrong=wrong, before=before, after=mem_info()[0])
        """,
        preloaded,
    )
    assert not told["wrong"] and told["before"] == told["after"]


@BOTH
def test_while_a_stream_is_captured(script, preloaded):
    """Memory for a graph is asked for while it is captured, in the mode that forbids it to the driver's own allocator: it is no part of
    the graph, and the capture stays valid."""
    told = script(
        """
        ctx = Ctx()
        s, g = stream(), u64()
        outer = allocate(24 * MIB)
        cu("cuStreamBeginCapture_v2", s, 0)
        held = [allocate(size) for size in (MIB, 8 * MIB, 48 * MIB)]
        cu("cuMemcpyDtoDAsync_v2", held[1], outer, 8 * MIB, s)
        ended = code("cuStreamEndCapture", s, ref(g))
        launch = u64()
        cu("cuGraphInstantiateWithFlags", ref(launch), g.value, 0)
        data = pattern(8 * MIB, 4)
        upload(outer, data)
        cu("cuGraphLaunch", launch.value, s)
        cu("cuStreamSynchronize", s)
        done(ended=ended, ram=in_ram(held[2], 48 * MIB), same=bool((download(held[1], 8 * MIB) == data).all()))
        """,
        preloaded,
    )
    assert told["ended"] == 0 and told["ram"] > 0 and told["same"]


@BOTH
def test_a_second_device(script, preloaded):
    """Whatever context is current: memory is of the device that was asked for, and the context is as it was."""
    told = script(
        """
        ctx = Ctx(1)
        p, q = allocate(24 * MIB, 0), allocate(24 * MIB, 1)
        now = u64()
        cu("cuCtxGetCurrent", ref(now))
        states = []
        for p_, device in ((p, 0), (q, 1)):
            flags, active = ctypes.c_uint(), ctypes.c_int()
            cu("cuDevicePrimaryCtxGetState", device, ref(flags), ref(active))
            states.append(active.value)
        data = pattern(24 * MIB, 9)
        upload(p, data)
        cu("cuMemcpyDtoD_v2", q, p, 24 * MIB)
        same = bool((download(q, 24 * MIB) == data).all())
        devices = [attribute("device_ordinal", p), attribute("device_ordinal", q)]
        allocators.free(p, 0)
        allocators.free(q, 1)
        try:
            allocate(MIB, 7)
        except spillshim.errors.SpillshimError as error:
            refused = str(error)
        done(same=same, devices=devices, states=states, current=now.value == ctx.handle, refused=refused)
        """,
        preloaded,
        sim={"DEVICES": "2"},
    )
    assert told["same"] and told["devices"] == [0, 1] and told["states"] == [1, 1] and told["current"]
    assert "device 7: error 101" in told["refused"]


def test_bad_arguments(script):
    told = script(
        """
        ctx = Ctx()
        said = []
        p = allocate(4 * MIB)
        for call in (lambda: allocate(0), lambda: allocate(-1), lambda: allocate(2**63), lambda: allocate(2**62), lambda: allocators.free(1),
                     lambda: allocators.free(p + 4096), lambda: prefer("disk"), lambda: keep("ram")):
            try:
                call()
                said.append("nothing")
            except (ValueError, MemoryError, spillshim.errors.SpillshimError) as error:
                said.append(f"{type(error).__name__}: {error}")
        allocators.free(p)
        try:
            allocators.free(p)
        except spillshim.errors.SpillshimError as error:
            said.append(str(error))
        done(said=said)
        """,
        True,
    )
    assert [line.split(":")[0] for line in told["said"][:8]] == [*["ValueError"] * 3, "MemoryError", *["SpillshimError"] * 2, *["ValueError"] * 2]
    assert "expected prefer('ram')" in told["said"][6] and "error 1" in told["said"][8]


def test_switched_off_it_is_the_drivers_allocator(script):
    told = script(
        """
        ctx = Ctx()
        with prefer("ram"):
            p = allocate(24 * MIB)
        try:
            allocate(96 * MIB)
        except MemoryError:
            refused = True
        ram = in_ram(p, 24 * MIB)
        allocators.free(p)
        done(ram=ram, refused=refused)
        """,
        False,
        env={"SPILLSHIM_DISABLE": "1"},
    )
    assert told["ram"] == 0 and told["refused"] and not told["stats"]


def test_the_preloaded_library_is_the_one_that_is_used(script, tmp_path, libspillshim):
    """SPILLSHIM_LIBRARY names another copy, with an engine of its own: it is not loaded."""
    other = tmp_path / "other" / libspillshim.name
    other.parent.mkdir()
    other.write_bytes(libspillshim.read_bytes())
    told = script(
        """
        p = allocate(24 * MIB)
        maps = {line.split()[-1] for line in open("/proc/self/maps") if "libspillshim" in line}
        done(maps=sorted(maps), path=allocators.library_path())
        """,
        True,
        env={"SPILLSHIM_LIBRARY": str(other)},
    )
    assert told["maps"] == [str(libspillshim.resolve())] == [told["path"]]


def test_a_library_that_does_not_load(script, tmp_path, libspillshim):
    broken = tmp_path / "libspillshim.so"
    broken.write_bytes(libspillshim.read_bytes()[:5000])
    told = script(
        """
        try:
            allocate(MIB)
        except spillshim.errors.SpillshimError as error:
            done(said=str(error))
        """,
        False,
        env={"SPILLSHIM_LIBRARY": str(broken)},
    )
    assert "cut off" in told["said"] and str(broken) in told["said"]


def test_a_machine_without_a_driver(run_sim, libspillshim):
    text = "from spillshim import allocators as a, errors as e\ntry: a.allocate(4096)\nexcept e.SpillshimError as said: print(said)"
    env = {"PYTHONPATH": str(Path(spillshim.__file__).parents[1]), "SPILLSHIM_LIBRARY": str(libspillshim), "LD_LIBRARY_PATH": ""}
    told = run_sim([sys.executable, "-c", text], shim=False, env=env).ok().stdout
    assert "there is no CUDA driver" in told and "spillshim doctor" in told


def test_nothing_is_intercepted_without_the_preload(script):
    """The program's own allocations fail as ever, and its questions are the driver's."""
    told = script(
        """
        ctx = Ctx()
        p = allocate(24 * MIB)
        result, _ = try_alloc(96 * MIB)
        done(result=result, small=try_alloc(MIB)[0], type=attribute("memory_type", p))
        """,
        False,
    )
    assert told["result"] == 2 and told["small"] == 0 and told["type"] == 2


# --- the libraries' modules (the libraries themselves: tests/clients/test_allocators_released.py, tests/gpu/apps/app_allocators.py) -------------


@BOTH
def test_cupy_by_a_stand_in(script, preloaded):
    """The pool is asked once more after it has given back its cache, each hint has a pool of its own, and an array's extent is found
    whatever its strides are."""
    told = script(
        """
        import standin_cupy
        sys.modules["cupy"] = standin_cupy
        from spillshim.allocators import cupy as spill
        ctx, alloc = Ctx(), standin_cupy.cuda.alloc
        before = mem_info()[0]
        with spill.use():
            plain = alloc(8 * MIB)
            with spill.prefer("ram"):
                wished = alloc(8 * MIB)
            with spill.keep("vram"):
                kept = alloc(8 * MIB)
            tiers = [in_ram(one.ptr, one.size) for one in (plain, wished, kept)]
            first, second = alloc(24 * MIB), alloc(20 * MIB)
            spill.pool().free(first)
            limited = alloc(26 * MIB)  # no room in RAM: only what the cache gives back
            said = []
            for call in (lambda: alloc(96 * MIB), lambda: alloc(0), lambda: spill.prefer("vram"), lambda: spill.allocator("disk"),
                         lambda: spill.cold([1])):
                try:
                    call()
                except Exception as error:
                    said.append(f"{type(error).__name__}: {error}")
        p, array = wished.ptr, standin_cupy.ndarray
        arrays = [array(p, (8 * MIB,), (1,)), array(p + 2 * MIB - 1, (2 * MIB,), (-1,)), array(p + MIB, (2, 3, 5), (4096, -512, 2)), array(p, (0, 4), (4, 1))]
        found = [spill.in_ram(one) for one in arrays]
        moved = spill.cold(array(kept.ptr, (8 * MIB,), (1,)))
        asked = [spill.pool(tier).asked for tier in ("", "ram", "vram")]
        for one, tier in ((plain, ""), (wished, "ram"), (kept, "vram"), (second, ""), (limited, "")):
            spill.pool(tier).free(one)
        for tier in ("", "ram", "vram"):
            spill.pool(tier).free_all_blocks()
        done(tiers=tiers, said=said, found=found, moved=moved, asked=asked, before=before, after=mem_info()[0])
        """,
        preloaded,
        env={"SPILLSHIM_HOST_LIMIT": "10M", "SPILLSHIM_MOVES": "order"},
    )
    assert told["tiers"] == [0, 8 * MIB, 0] and told["moved"] == 0
    assert told["found"] == [8 * MIB, 2 * MIB, 4096 + 1024 + 9, 0]
    assert told["asked"] == [3 + 2 + 2 + 1, 1, 1], "asked twice for what did not fit"
    errors = [line.split(":")[0] for line in told["said"]]
    assert errors == ["CUDARuntimeError", "ValueError", "ValueError", "ValueError", "TypeError"] and told["said"][0].endswith("cudaError 2")
    assert told["before"] == told["after"]


def test_a_library_that_is_not_installed(script):
    told = script(
        """
        said = []
        for name in ("torch", "cupy", "rmm"):
            sys.modules[name] = None
        from spillshim.allocators import cupy, rmm, torch
        for call in (torch.pool, cupy.pool, rmm.resource):
            try:
                call()
            except spillshim.errors.SpillshimError as error:
                said.append(str(error))
        sys.modules["torch"] = type(sys)("torch")
        sys.modules["torch"].__version__ = "2.0"
        for cuda in (None, "12.1"):
            sys.modules["torch"].version = type(sys)("version")
            sys.modules["torch"].version.cuda = cuda
            sys.modules["torch"].cuda = None
            try:
                torch.pool()
            except spillshim.errors.SpillshimError as error:
                said.append(str(error))
        done(said=said)
        """,
        False,
    )
    said = told["said"]
    assert [f"needs {name}: " in line for name, line in zip(("PyTorch", "CuPy", "RMM"), said, strict=False)] == [True] * 3
    assert "built without it" in said[3] and "no torch.cuda.MemPool\n  Take a newer one" in said[4]
