# SPDX-License-Identifier: Apache-2.0
"""Where the library's books could part from the driver's: captures, contexts that end, forks, locales, handles named twice,
the probe's surroundings. Each test is a program whose second half only works if the first half was counted right."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from clients_common import FINE, MIB, facts, run_script, script_argv, script_env, spilled_bytes

CARD, ROOMY = "64M", "4G"


@pytest.fixture
def script(run_sim, demo_dir):
    """script(text, *arguments, vram=CARD, shim=True, env={}) -> what it hands to done()."""

    def run(text: str, *arguments: object, vram: str = CARD, shim: bool = True, env: dict[str, str] | None = None, **how: Any) -> dict[str, Any]:
        return run_script(run_sim, text, *arguments, env={**(FINE if shim else {}), **(env or {})}, demo_dir=demo_dir, vram=vram, shim=shim, **how)

    return run


def executable(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# --- captures --------------------------------------------------------------------------------------------------------------------


def test_free_and_allocation_during_a_capture_with_vram_full(script):
    """Whether a call is legal during a capture is asked of the driver with a small allocation; that there is no room for
    it is not an answer."""
    text = """
        ctx = Ctx()
        s, held = stream(), [alloc(24 * MIB) for _ in range(3)]
        full = mem_info()[0]
        cu("cuStreamBeginCapture_v2", s, 2)
        during = [code("cuMemFree_v2", held.pop()), try_alloc(24 * MIB)[0]]
        end = code("cuStreamEndCapture", s, ref(u64()))
        done(during=during, end=end, full=full)
    """
    answer = script(text, env={"SPILLSHIM_HEADROOM": "0"})
    assert answer["full"] == 0
    assert (answer["during"], answer["end"]) == ([0, 0], 0)
    assert spilled_bytes(answer["stats"]) > 0


@pytest.mark.parametrize("how", ["stream destroyed", "context reset", "context destroyed"])
def test_a_capture_that_never_ends_does_not_hold_frees_back(script, how):
    """A capture is over when its stream or context is gone: frees must not wait for its end for ever."""
    text = """
        how = sys.argv[1]
        ctx, other = Ctx(), u64()
        if how == "context destroyed":
            cu("cuCtxCreate_v2", ref(other), 0, ctx.device)
        s = stream()
        cu("cuStreamBeginCapture_v2", s, 2)
        if how == "stream destroyed":
            cu("cuStreamDestroy_v2", s)
        elif how == "context reset":
            cu("cuDevicePrimaryCtxReset_v2", ctx.device)
            ctx = Ctx()
        else:
            cu("cuCtxDestroy_v2", other.value)
            ctx = Ctx()
        before = mem_info()[0]
        for _ in range(20):
            held = [alloc(24 * MIB) for _ in range(3)]
            for p in held:
                free(p)
        done(back=mem_info()[0] == before)
    """
    assert script(text, how, ram="256M")["back"]


def test_allocations_of_a_graph_are_not_the_processs(script):
    """What is allocated while capturing belongs to the graph; a job's limit must not fill up with it."""
    text = """
        ctx, s = Ctx(), stream()
        before = mem_info()[0]
        for _ in range(30):
            graph, p = u64(), u64()
            cu("cuStreamBeginCapture_v2", s, 2)
            cu("cuMemAllocAsync", ref(p), 4 * MIB, s)
            cu("cuMemsetD8Async", p.value, 1, 4 * MIB, s)
            cu("cuStreamEndCapture", s, ref(graph))
            cu("cuGraphDestroy", graph.value)
        done(before=before, after=mem_info()[0], small=try_alloc(MIB)[0])
    """
    answer = script(text, vram="1G", env={"SPILLSHIM_VRAM_LIMIT": "64M"})
    assert answer["after"] == answer["before"] and answer["small"] == 0
    assert spilled_bytes(answer["stats"]) == 0


def test_a_synchronise_does_not_wait_for_another_threads_allocation(script, tmp_path, probe_path):
    """Sweeping up after frees is optional at a synchronise; an allocation may take seconds (here: the backend probe)."""
    slow = executable(tmp_path / "slow", f"""\
        #!/bin/sh
        sleep 3
        exec "{probe_path}" "$@"
    """)
    text = """
        import threading, time
        ctx = Ctx()
        s, quiet, go = stream(), stream(), threading.Event()
        hold = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: (go.wait(30), None)[1])
        region = alloc(16 * MIB)
        cu("cuLaunchHostFunc", s, hold, None)
        cu("cuMemFreeAsync", region, s)
        def allocate():
            cu("cuCtxSetCurrent", ctx.handle)
            alloc(48 * MIB)
        other = threading.Thread(target=allocate)
        other.start()
        time.sleep(1)
        began = time.monotonic()
        cu("cuStreamSynchronize", quiet)
        took, busy = time.monotonic() - began, other.is_alive()
        go.set()
        other.join()
        done(took=took, busy=busy)
    """
    answer = script(text, env={"SPILLSHIM_PROBE": str(slow)})
    assert answer["busy"] and answer["took"] < 1, answer


# A stream whose next operation waits for a while (not for ever: the context's end may wait for it).
BUSY = """
        import threading
        hold = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: (threading.Event().wait(0.05), None)[1])
        def busy():
            s = stream()
            cu("cuLaunchHostFunc", s, hold, None)
            return s
"""


def test_a_refusal_that_is_meant_to_free_caches_is_given(script):
    """oom=soft: waiting for frees under way and trying again is one allocation, not the program's second attempt."""
    text = """
        ctx = Ctx()
        held, late = [alloc(24 * MIB), alloc(24 * MIB)], alloc(4 * MIB)
        cu("cuMemFreeAsync", late, busy())
        first = try_alloc(40 * MIB)[0]
        second = try_alloc(40 * MIB)[0]
        done(results=[first, second])
    """
    assert script(BUSY + text, env={"SPILLSHIM_OOM": "soft"})["results"] == [2, 0]


def test_a_refusal_that_the_program_never_heard_of_is_still_due(script):
    """oom=soft: what the driver grants from the headroom is no refusal; the next allocation of that size is not a second attempt."""
    text = """
        ctx = Ctx()
        free, total = u64(), u64()
        cu("cuMemGetInfo_v2", ref(free), ref(total))
        held = alloc(free.value - 26 * MIB)  # 24 MiB fit there, but not above the headroom
        done(results=[try_alloc(24 * MIB)[0] for _ in range(3)])
    """
    answer = script(text, env={"SPILLSHIM_OOM": "soft"})
    assert answer["results"] == [0, 2, 0] and spilled_bytes(answer["stats"]) >= 20 * MIB, answer


# --- contexts ---------------------------------------------------------------------------------------------------------------------


def test_native_allocations_end_with_their_context(script):
    text = """
        ctx = Ctx()
        before = mem_info()[0]
        for _ in range(12):
            other = u64()
            cu("cuCtxCreate_v2", ref(other), 0, ctx.device)
            held = [alloc(MIB) for _ in range(8)]
            cu("cuCtxDestroy_v2", other.value)
            cu("cuCtxSetCurrent", ctx.handle)
        done(before=before, after=mem_info()[0], small=try_alloc(MIB)[0])
    """
    answer = script(text, vram="1G", env={"SPILLSHIM_VRAM_LIMIT": "64M"})
    assert answer["after"] == answer["before"] and answer["small"] == 0
    assert spilled_bytes(answer["stats"]) == 0


def test_a_reset_leaves_another_contexts_allocations_counted(script):
    text = """
        ctx, other = Ctx(), u64()
        first = alloc(MIB)
        cu("cuCtxCreate_v2", ref(other), 0, ctx.device)
        empty = mem_info()[0]
        held = [alloc(2 * MIB - 4096) for _ in range(8)]
        cu("cuDevicePrimaryCtxReset_v2", ctx.device)
        after = mem_info()[0]
        for p in held:
            free(p)
        done(kept=empty - after, left=mem_info()[0] - empty)
    """
    answer = script(text, vram="1G", env={"SPILLSHIM_VRAM_LIMIT": "64M", "SPILLSHIM_MANAGED_MIN": "16M"})
    # Eight allocations are still there, the first one went with its context; in the end nothing is left but free memory.
    assert answer["kept"] == 8 * (2 * MIB - 4096) - MIB and answer["left"] == MIB, answer


def test_a_free_outlives_the_context_that_it_waited_in(script):
    """A region of one context, freed in the order of another context's stream: its event dies with that context."""
    text = """
        ctx, other = Ctx(), u64()
        before = mem_info()[0]
        region = alloc(24 * MIB)
        cu("cuCtxCreate_v2", ref(other), 0, ctx.device)
        cu("cuMemFreeAsync", region, busy())
        cu("cuCtxDestroy_v2", other.value)
        cu("cuCtxSetCurrent", ctx.handle)
        sync(), sync()
        done(back=mem_info()[0] == before)
    """
    assert script(BUSY + text)["back"]


def test_a_free_in_the_order_of_another_contexts_stream(script):
    """The stream's context need not be current."""
    text = """
        ctx, other = Ctx(), u64()
        before = mem_info()[0]
        region = alloc(24 * MIB)
        cu("cuCtxCreate_v2", ref(other), 0, ctx.device)
        s = busy()
        cu("cuCtxSetCurrent", ctx.handle)
        codes = [code("cuMemFreeAsync", region, s), code("cuStreamSynchronize", s)]
        sync(), sync()
        done(codes=codes, back=mem_info()[0] >= before - 2 * MIB)
    """
    answer, plain = script(BUSY + text), script(BUSY + text, vram=ROOMY, shim=False)
    assert answer["codes"] == plain["codes"] and answer["back"]


# --- processes --------------------------------------------------------------------------------------------------------------------


def test_a_child_of_a_process_that_only_asked_nvml_spills(script):
    """Asking NVML does not initialise CUDA: a fork may use the device afterwards (PyTorch's device count, monitors)."""
    text = """
        nvml_memory()
        pid = os.fork()
        if pid == 0:
            ctx = Ctx()
            held = [alloc(24 * MIB) for _ in range(4)]
            for i, p in enumerate(held):
                upload(p, pattern(24 * MIB, i))
            good = all(np.array_equal(download(p, 24 * MIB), pattern(24 * MIB, i)) for i, p in enumerate(held))
            sys.exit(0 if good else 3)
        done(child=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    answer = script(text)
    assert answer["child"] == 0
    assert spilled_bytes(answer["stats"]) > 0


def test_a_child_of_a_process_that_used_cuda_is_left_alone(script):
    text = """
        ctx = Ctx()
        held = [alloc(24 * MIB) for _ in range(4)]
        pid = os.fork()
        if pid == 0:
            codes = [try_alloc(24 * MIB)[0], code("cuMemFree_v2", held[0]), code("cuMemGetInfo_v2", ref(u64()), ref(u64()))]
            sys.exit(0 if all(codes) else 3)
        child = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for p in held:
            free(p)
        done(child=child)
    """
    answer = script(text)
    assert answer["child"] == 0 and len(answer["stats"]) == 1


def test_numbers_are_read_and_written_as_in_the_c_locale(script, tmp_path, need):
    """A program that sets a locale with a decimal comma must not break the sizes in the environment, nor the JSON."""
    made = subprocess.run([need("localedef"), "-i", "de_DE", "-f", "UTF-8", tmp_path / "de_DE.UTF-8"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no sources of the locale de_DE (Debian package locales): {made.stderr.strip()}")
    text = """
        import locale
        locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
        assert locale.localeconv()["decimal_point"] == ","
        ctx = Ctx()
        held = [alloc(16 * MIB) for _ in range(4)]
        done(total=mem_info()[1])
    """
    answer = script(text, vram="1G", env={"SPILLSHIM_VRAM_LIMIT": "0.03125G", "LOCPATH": str(tmp_path)})
    assert answer["total"] == 32 * MIB
    (stats,) = answer["stats"]
    assert 0 < stats["spill_share"] < 1


def test_the_ceiling_is_never_above_the_original(script):
    answer = script(SPILL, env={"SPILLSHIM_LINK_RATE": "1000G", "SPILLSHIM_HBM_RATE": "1000G"})
    (stats,) = answer["stats"]
    assert 0 < stats["spill_share"] < 1 and stats["ceiling"] == 1


# --- the app's own handles ----------------------------------------------------------------------------------------------------------

OWN = """
    ctx = Ctx()
    fill = u64()
    cu("cuMemCreate", ref(fill), 60 * MIB, ref(device_prop()), 0)     # VRAM is full: what follows lies in RAM
    base = u64()
    cu("cuMemAddressReserve", ref(base), 64 * MIB, 0, 0, 0)
    def create(size=16 * MIB):
        handle = u64()
        return code("cuMemCreate", ref(handle), size, ref(device_prop()), 0), handle.value
"""


def test_memory_named_again_after_its_release_stays_counted(script):
    text = OWN + """
    result, handle = create()
    cu("cuMemMap", base.value, 16 * MIB, 0, handle, 0)
    cu("cuMemRelease", handle)
    again = u64()
    cu("cuMemRetainAllocationHandle", ref(again), ctypes.c_void_p(base.value))
    cu("cuMemUnmap", base.value, 16 * MIB)
    held = create()[0]                      # the first is still there: a name holds it
    cu("cuMemRelease", again.value)
    result, handle = create()
    cu("cuMemRelease", handle)
    done(held=held, result=result)
    """
    answer = script(text, env={"SPILLSHIM_HOST_LIMIT": "16M"})
    assert (answer["held"], answer["result"]) == (2, 0)


def test_the_cpu_may_reach_the_apps_spilled_memory_too(script):
    """A driver may do copies between two host locations with the CPU, which needs access of its own."""
    text = OWN + """
    vram = u64()
    cu("cuMemCreate", ref(vram), 2 * MIB, ref(device_prop()), 0)
    result, handle = create()
    cu("cuMemMap", base.value, 16 * MIB, 0, handle, 0)
    cu("cuMemMap", base.value + 16 * MIB, 2 * MIB, 0, vram.value, 0)
    cu("cuMemSetAccess", base.value, 18 * MIB, ref(AccessDesc(1, 0, 3)), 1)
    class Location(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]
    flags = [u64(), u64()]
    codes = [code("cuMemGetAccess", ref(f), ref(Location(3, 0)), base.value + i * 16 * MIB) for i, f in enumerate(flags)]
    ctypes.memset(base.value + 5, 7, 4096)
    done(codes=codes, ram=flags[0].value & 0xFFFFFFFF, vram=flags[1].value & 0xFFFFFFFF, bytes=bool((download(base.value + 5, 4096) == 7).all()))
    """
    answer = script(text)
    assert answer["codes"][0] == 0 and answer["ram"] == 3 and answer["bytes"], answer
    assert answer["vram"] == 0


def test_thousands_of_mappings_are_each_found(script):
    """As expandable segments make them: copies inside, across and at the edges, unmapped one by one and out of order."""
    text = OWN + """
    room, count = u64(), 3000
    cu("cuMemAddressReserve", ref(room), count * 2 * MIB, 0, 0, 0)
    for i in range(count):
        handle = u64()
        cu("cuMemCreate", ref(handle), 2 * MIB, ref(device_prop()), 0)
        cu("cuMemMap", room.value + i * 2 * MIB, 2 * MIB, 0, handle.value, 0)
        cu("cuMemRelease", handle.value)
    cu("cuMemSetAccess", room.value, count * 2 * MIB, ref(AccessDesc(1, 0, 3)), 1)
    host = pattern(64, 1)
    for i in (0, 1, count // 2, count - 1):
        p = room.value + (i + 1) * 2 * MIB - 32
        if i == count - 1:
            p -= 32
        upload(p, host)
        assert np.array_equal(download(p, 64), host), i
    for i in range(0, count, 2):
        cu("cuMemUnmap", room.value + i * 2 * MIB, 2 * MIB)
    upload(room.value + 2 * MIB, host)
    assert np.array_equal(download(room.value + 2 * MIB, 64), host)
    cu("cuMemUnmap", room.value + 2 * MIB, 2 * MIB)
    done(free=code("cuMemcpyHtoD_v2", room.value + 2 * MIB, at(host), 64))
    """
    answer = script(text, ram="12G")
    assert answer["free"] != 0
    assert spilled_bytes(answer["stats"]) > 0


# --- copies ---------------------------------------------------------------------------------------------------------------------------

RECTANGLES = """
    class Copy2D(ctypes.Structure):
        _fields_ = [("sx", ctypes.c_size_t), ("sy", ctypes.c_size_t), ("stype", ctypes.c_int), ("shost", ctypes.c_uint64),
                    ("sdevice", ctypes.c_uint64), ("sarray", ctypes.c_uint64), ("spitch", ctypes.c_size_t),
                    ("dx", ctypes.c_size_t), ("dy", ctypes.c_size_t), ("dtype", ctypes.c_int), ("dhost", ctypes.c_uint64),
                    ("ddevice", ctypes.c_uint64), ("darray", ctypes.c_uint64), ("dpitch", ctypes.c_size_t),
                    ("width", ctypes.c_size_t), ("height", ctypes.c_size_t)]
"""


@pytest.mark.parametrize("form", ["1D", "2D"])
def test_synchronous_memory_operations_are_waited_for(script, form):
    """CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: a synchronous form returns only when the bytes are there (RDMA relies on it)."""
    text = RECTANGLES + """
    import threading, time
    ctx = Ctx()
    a, b, ran = alloc(4 * MIB), alloc(4 * MIB), []
    cu("cuPointerSetAttribute", ref(ctypes.c_uint(1)), POINTER_ATTRIBUTES["sync_memops"], a)
    late = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: (time.sleep(0.5), ran.append(1))[1])
    cu("cuLaunchHostFunc", 0, late, None)
    if sys.argv[1] == "1D":
        cu("cuMemcpyDtoD_v2", b, a, 4 * MIB)
    else:
        cu("cuMemcpy2D_v2", ref(Copy2D(stype=2, sdevice=a, spitch=4096, dtype=2, ddevice=b, dpitch=4096, width=1024, height=512)))
    done(waited=len(ran))
    """
    assert script(text, form)["waited"] == 1


def test_one_row_has_no_pitch(script):
    """cuMemsetD2D: the pitch is unused if Height is 1, and so may be anything."""
    text = """
        ctx = Ctx()
        held = [alloc(40 * MIB), alloc(40 * MIB)]
        codes = []
        for pitch in (0, 16, 40 * MIB):
            codes.append(code("cuMemsetD2D8_v2", held[1], pitch, 9, 40 * MIB, 1))
        done(codes=codes, set=bool((download(held[1], 40 * MIB) == 9).all()))
    """
    spilled, roomy = script(text), script(text, vram=ROOMY, shim=False)
    assert spilled_bytes(spilled["stats"]) > 0
    assert (spilled["codes"], spilled["set"]) == (roomy["codes"], roomy["set"])


def test_a_box_that_overflows_is_the_drivers_to_refuse(script):
    """Rows times pitch beyond 2^64: nothing may have been written when the driver says no."""
    text = RECTANGLES + """
    ctx = Ctx()
    held = [alloc(40 * MIB), alloc(40 * MIB)]
    p = held[1]
    cu("cuMemsetD8_v2", p, 1, 40 * MIB)
    host = np.full(4 * MIB, 2, np.uint8)
    codes = []
    for height in ((1 << 44) + 5, (1 << 43) + 1):
        codes.append(code("cuMemcpy2D_v2", ref(Copy2D(stype=1, shost=at(host), spitch=0, dtype=2, ddevice=p, dpitch=1 << 21, width=1 << 21, height=height))))
        codes.append(code("cuMemcpy2D_v2", ref(Copy2D(stype=2, sdevice=held[0], spitch=1 << 21, dtype=2, ddevice=p, dpitch=1 << 21, width=1 << 21, height=height))))
    done(codes=codes, untouched=bool((download(p, 40 * MIB) == 1).all()))
    """
    spilled, roomy = script(text), script(text, vram=ROOMY, shim=False)
    assert spilled_bytes(spilled["stats"]) > 0
    assert spilled["codes"] == roomy["codes"] and 0 not in spilled["codes"]
    assert spilled["untouched"]


# --- the limit --------------------------------------------------------------------------------------------------------------------------


def test_small_pitched_allocations_count_too(script):
    text = """
        ctx = Ctx()
        before, made = mem_info()[0], []
        for _ in range(40):
            p, pitch = u64(), u64()
            cu("cuMemAllocPitch_v2", ref(p), ref(pitch), 1000, 1024, 4)
            made.append((p.value, pitch.value))
        fell = before - mem_info()[0]
        for p, _ in made:
            free(p)
        done(fell=fell, left=before - mem_info()[0])
    """
    answer = script(text, vram="1G", env={"SPILLSHIM_VRAM_LIMIT": "64M"})
    assert answer["fell"] >= 40 * MIB - MIB and answer["left"] == 0, answer
    answer = script(text, vram="1G", env={"SPILLSHIM_VRAM_LIMIT": "24M"})
    assert spilled_bytes(answer["stats"]) > 0 and answer["left"] == 0


RACE = """
#include <pthread.h>
#include <stdio.h>
#include <cuda.h>
enum { ROUNDS = 150000 };
static CUcontext ctx;
static _Atomic int failed;
static void *plain(void *arg)
{
    CUdeviceptr p;
    cuCtxSetCurrent(ctx);
    for (int i = 0; i < ROUNDS; i++)
        failed |= cuMemAlloc(&p, 4096) || cuMemFree(p);
    return arg;
}
static void *mapped(void *arg)
{
    CUmemGenericAllocationHandle h;
    CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
    cuCtxSetCurrent(ctx);
    for (int i = 0; i < ROUNDS; i++)
        failed |= cuMemCreate(&h, 2 << 20, &prop, 0) || cuMemRelease(h);
    return arg;
}
int main(void)
{
    CUdevice device;
    pthread_t a, b;
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&ctx, device))
        return 2;
    pthread_create(&a, NULL, plain, NULL);
    pthread_create(&b, NULL, mapped, NULL);
    pthread_join(a, NULL);
    pthread_join(b, NULL);
    return failed;
}
"""


def test_counters_lose_nothing_between_threads(run_sim, c_program):
    result = run_sim([c_program(RACE, name="race")], vram="256M").ok()
    (stats,) = result.stats
    assert stats["native"]["count"] == 300000
    assert stats["native"]["bytes_peak"] <= 2 * MIB + 4096


# --- the probe --------------------------------------------------------------------------------------------------------------------------

SPILL = """
    ctx = Ctx()
    held = [alloc(24 * MIB) for _ in range(4)]
    for i, p in enumerate(held):
        upload(p, pattern(24 * MIB, i))
    for i, p in enumerate(held):
        assert np.array_equal(download(p, 24 * MIB), pattern(24 * MIB, i)), i
    done()
"""


def test_the_probe_gets_none_of_the_programs_descriptors(script, tmp_path, probe_path):
    spy = executable(tmp_path / "spy", f"""\
        #!/bin/sh
        for fd in /proc/self/fd/*; do echo "${{fd##*/}} $(readlink $fd)"; done > "{tmp_path}/fds"
        exec "{probe_path}" "$@"
    """)
    text = """
    read, write = os.pipe()
    os.set_inheritable(write, True)
    kept = os.readlink(f"/proc/self/fd/{write}")
    open(sys.argv[1], "w").write(kept)
    """ + SPILL
    script(text, tmp_path / "kept", env={"SPILLSHIM_PROBE": str(spy)})
    assert (tmp_path / "kept").read_text() not in (tmp_path / "fds").read_text()


def test_a_device_for_one_process_alone_is_not_without_a_backend(script, tmp_path, probe_path, c_program):
    """In compute mode EXCLUSIVE_PROCESS the probe gets no context: that says nothing about host memory."""
    library = c_program("""
        #include <cuda.h>
        CUresult cuDevicePrimaryCtxRetain(CUcontext *ctx, CUdevice device) { return CUDA_ERROR_DEVICE_UNAVAILABLE; }
    """, shared=True, name="exclusive", flags=["-Wl,--no-as-needed"])
    alone = executable(tmp_path / "alone", f"""\
        #!/bin/sh
        exec "{probe_path}" --device "$2" --library "{library}"
    """)
    (stats,) = script(SPILL, env={"SPILLSHIM_PROBE": str(alone)})["stats"]
    assert stats["backend"] == "host-numa", stats
