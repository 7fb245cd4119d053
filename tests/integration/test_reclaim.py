# SPDX-License-Identifier: Apache-2.0
"""Out of memory inside the driver: a program whose one region holds all of VRAM loads code, makes graphs, streams, arrays and small
allocations, all of which need some. Without moves the driver's refusal reaches the program, with them some of the region goes to RAM
and the program goes on, its bytes intact. What simgpu takes no VRAM for (marked `refused`) is refused by SIMGPU_FAULTS, once."""

from __future__ import annotations

import re
from typing import Any

import pytest
from clients_common import FINE, run_script

CARD = "64M"

# What needs memory: each a function that makes ready and one that is refused. Both answer a CUresult.
PROGRAM = '''
BIG = b""".version 6.0
.target sm_60
.address_size 64
.visible .global .align 8 .b8 big[8388608];
.visible .entry nothing() { ret; }
\\0"""
ctx = Ctx()
kernels = Kernels()
s, own, graph, executable, handle, library = stream(), u64(), u64(), u64(), u64(), u64()
pool = u64()
cu("cuDeviceGetDefaultMemPool", ref(pool), ctx.device)
noted = np.zeros(64, np.uint8)

class Array(ctypes.Structure):
    _fields_ = [("width", ctypes.c_size_t), ("height", ctypes.c_size_t), ("format", ctypes.c_int), ("channels", ctypes.c_uint)]

class Volume(ctypes.Structure):
    _fields_ = [("width", ctypes.c_size_t), ("height", ctypes.c_size_t), ("depth", ctypes.c_size_t), ("format", ctypes.c_int),
                ("channels", ctypes.c_uint), ("flags", ctypes.c_uint)]

def captured(*, memory):
    "A graph: of one memset, or of one on memory that it allocates itself"
    target = u64(small)
    cu("cuStreamBeginCapture_v2", s, 2)
    if memory:
        cu("cuMemAllocAsync", ref(target), 8 * MIB, s)
    cu("cuMemsetD8Async", target.value, 7, 64, s)
    if memory:
        cu("cuMemcpyDtoDAsync_v2", small, target.value, 64, s)
        cu("cuMemFreeAsync", target.value, s)
    cu("cuStreamEndCapture", s, ref(graph))

def instantiated(*, memory):
    captured(memory=memory)
    cu("cuGraphInstantiateWithFlags", ref(executable), graph.value, 0)

def ran():
    "The graph that was made wrote what it should"
    cu("cuGraphLaunch", executable.value, s)
    cu("cuStreamSynchronize", s)
    assert (download(small, 64) == 7).all()

def log_options():
    "An option that is given and answered in one word: the size of a buffer"
    values = (ctypes.c_void_p * 2)(at(noted), noted.nbytes)
    return (ctypes.c_int * 2)(5, 6), values  # CU_JIT_ERROR_LOG_BUFFER, its size in bytes

def launch():
    result = code("cuLaunchKernel", function.value, 1, 1, 1, 256, 1, 1, 0, s, pointers, None)
    cu("cuStreamSynchronize", s)
    if not result:
        assert (download(small, 4096) == Kernels.filled(4096, 11)).all()
    return result

def parameters():
    "Of a launch that fills 4 KiB of `small`"
    values = [u64(small), u64(512), u64(11), u64(0)]
    array = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
    array.values = values
    return array

def cublas():
    out = u64()
    return ctypes.CDLL("libcublas.so.13").cublasCreate_v2(ref(out))

def load_ex():
    options, values = log_options()
    return code("cuModuleLoadDataEx", ref(handle), BIG, 2, options, values)

def load_library():
    options, values = log_options()
    return code("cuLibraryLoadData", ref(library), BIG, options, values, 2, None, None, 0) or \\
        code("cuLibraryGetGlobal", ref(u64()), ref(u64()), library.value, b"big")

def with_params():
    params = (ctypes.c_uint64 * 8)()
    return code("cuGraphInstantiateWithParams", ref(executable), graph.value, params) or (ran() or 0)

def updated():
    info = (ctypes.c_uint64 * 8)()
    return code("cuGraphExecUpdate_v2", executable.value, graph.value, info) or (ran() or 0)

def array(entry, kind, *rest):
    return lambda: code(entry, ref(own), ref(kind), *rest)

plain, volume = Array(64 * KIB, 64, 1, 1), Volume(MIB, 4, 0, 1, 1, 0)
NEEDS = {
    "cuModuleLoadData": lambda: code("cuModuleLoadData", ref(handle), BIG),
    "cuModuleLoadDataEx": load_ex,
    "cuLibraryLoadData": load_library,
    "cuGraphUpload": lambda: code("cuGraphUpload", executable.value, s) or (ran() or 0),
    "cuGraphLaunch": lambda: code("cuGraphLaunch", executable.value, s) or (ran() or 0),
    "cuMemAlloc": lambda: code("cuMemAlloc_v2", ref(own), MIB),
    "cuMemAllocPitch": lambda: code("cuMemAllocPitch_v2", ref(own), ref(u64()), 1000, 1500, 4),
    "cuMemAllocAsync": lambda: code("cuMemAllocAsync", ref(own), MIB, s),
    "cuMemAllocFromPoolAsync": lambda: code("cuMemAllocFromPoolAsync", ref(own), MIB, pool.value, s),
    "cuArrayCreate": array("cuArrayCreate_v2", plain),
    "cuArray3DCreate": array("cuArray3DCreate_v2", volume),
    "cuMipmappedArrayCreate": array("cuMipmappedArrayCreate", volume, 1),
    "cublasCreate": cublas,
    "cuModuleGetFunction": lambda: code("cuModuleGetFunction", ref(own), kernels.module.value, b"dec_fill"),
    "cuLaunchKernel": launch,
    "cuGraphInstantiateWithFlags": lambda: code("cuGraphInstantiateWithFlags", ref(executable), graph.value, 0) or (ran() or 0),
    "cuGraphInstantiateWithParams": with_params,
    "cuGraphExecUpdate": updated,
    "cuCtxSetLimit": lambda: code("cuCtxSetLimit", 0, 64 * KIB),  # of the stack
    "cuStreamCreate": lambda: code("cuStreamCreate", ref(own), 1),
    "cuStreamCreateWithPriority": lambda: code("cuStreamCreateWithPriority", ref(own), 1, 0),
    "cuEventCreate": lambda: code("cuEventCreate", ref(own), 0),
}
small, function = alloc(64 * KIB), u64()
cu("cuModuleGetFunction", ref(function), kernels.module.value, b"dec_fill")
pointers = parameters()
# A graph that allocates has one executable at a time: not where another shall be made.
instantiated(memory={"cuGraphUpload", "cuGraphLaunch"} & set(sys.argv))
room = mem_info()[0] // (2 * MIB) * 2 * MIB
everything, bytes_of_it = alloc(room), pattern(room, 5)
upload(everything, bytes_of_it)
assert mem_info()[0] < 2 * MIB
'''

GOES_ON = f"""{PROGRAM}
answers = {{need: NEEDS[need]() for need in sys.argv[1:]}}
done(answers=answers, intact=bool((download(everything, room) == bytes_of_it).all()), room=room)
"""

TAKES_VRAM = ["cuModuleLoadData", "cuModuleLoadDataEx", "cuLibraryLoadData", "cuGraphUpload", "cuGraphLaunch", "cuArrayCreate",
              "cuArray3DCreate", "cuMipmappedArrayCreate"]  # fmt: skip
# Without reclaim these become regions in RAM: no refusal reaches the program either way.
SPILL_INSTEAD = ["cuMemAlloc", "cuMemAllocPitch", "cuMemAllocAsync", "cuMemAllocFromPoolAsync"]
# The number of the call that is refused: the program has made the ones before it while there was room.
REFUSED = {"cuModuleGetFunction": 2, "cuLaunchKernel": 1, "cuGraphInstantiateWithFlags": 2, "cuGraphInstantiateWithParams": 1,
           "cuGraphExecUpdate": 1, "cuCtxSetLimit": 1, "cuStreamCreate": 2, "cuStreamCreateWithPriority": 1, "cuEventCreate": 1}  # fmt: skip


@pytest.fixture
def script(run_sim, demo_dir):
    """script(text, need, ..., moves="auto", refused=[]) -> what it hands to done(), and `displaced`: bytes, one for each reclaim."""

    def run(text: str, *needs: str, moves: str = "auto", env: dict[str, str] | None = None, **how: Any) -> dict[str, Any]:
        made = {**FINE, "SPILLSHIM_HEADROOM": "0", "SPILLSHIM_MOVES": moves, "SPILLSHIM_LOG": "info", **(env or {})}
        faults = ";".join(f"{need}=OUT_OF_MEMORY@{REFUSED[need]}" for need in needs if need in REFUSED)
        answer = run_script(run_sim, text, *needs, env=made, demo_dir=demo_dir, vram=CARD, sim={"FAULTS": faults}, **how)
        displaced = re.findall(r"out of memory in the driver: .*displaced=(\d+)", answer["stderr"])
        return {**answer, "displaced": [int(bytes_) for bytes_ in displaced]}

    return run


@pytest.mark.parametrize("need", [*TAKES_VRAM, *SPILL_INSTEAD, *REFUSED])
def test_what_needs_memory_finds_some(script, need):
    got = script(GOES_ON, need)
    assert got["answers"] == {need: 0} and got["intact"]
    assert len(got["displaced"]) == 1 and got["displaced"][0] == got["stats"][0]["spilled"]["bytes_peak"] >= 8 << 20, got["stderr"]


def test_without_moves_the_program_hears_the_driver(script):
    got = script(GOES_ON, *TAKES_VRAM, *REFUSED, moves="off")
    assert got["answers"] == dict.fromkeys([*TAKES_VRAM, *REFUSED], 2) and got["intact"]
    assert not any(got["displaced"])
    spilled = [need for need in SPILL_INSTEAD if need != "cuMemAllocPitch"]  # asks for one row first, for which there may be no room
    got = script(GOES_ON, *spilled, moves="off")
    assert got["answers"] == dict.fromkeys(spilled, 0) and got["intact"]
    assert not any(got["displaced"])


def test_the_workspace_of_cublas(script):
    """What a library allocates for itself lands in the driver's cuMemAlloc: 32 MiB, a region of its own, in VRAM."""
    got = script(GOES_ON, "cublasCreate")
    assert got["answers"] == {"cublasCreate": 0} and got["intact"]


def test_during_a_capture_the_program_hears_the_driver(script):
    """Nothing is asked of the driver then, and the capture is not broken; what is refused is found as soon as it has ended."""
    text = f"""{PROGRAM}
cu("cuStreamBeginCapture_v2", s, 2)
during = code("cuModuleLoadData", ref(handle), BIG)
cu("cuMemsetD8Async", small, 7, 64, s)
cu("cuStreamEndCapture", s, ref(graph))
after = code("cuModuleLoadData", ref(handle), BIG)
cu("cuGraphInstantiateWithFlags", ref(executable), graph.value, 0)
ran()
done(answers=[during, after], intact=bool((download(everything, room) == bytes_of_it).all()))
"""
    got = script(text)
    assert got["answers"] == [2, 0] and got["intact"]
    assert len(got["displaced"]) == 1 and all(got["displaced"])


def test_a_busy_gpu_is_not_waited_for(script):
    """The GPU waits for the program, so it cannot become idle: after its patience the refusal is passed on, nothing is lost."""
    text = f"""{PROGRAM}
flag = u64()
cu("cuMemHostAlloc", ref(flag), 4, 2)  # mapped
word = ctypes.c_uint32.from_address(flag.value)
word.value = 0
cu("cuStreamWaitValue32_v2", s, flag.value, 1, 1)
busy = [code("cuModuleLoadData", ref(handle), BIG) for _ in range(3)]
word.value = 1
cu("cuStreamSynchronize", s)
idle = code("cuModuleLoadData", ref(handle), BIG)
done(answers=[*busy, idle], intact=bool((download(everything, room) == bytes_of_it).all()))
"""
    got = script(text)
    assert got["answers"] == [2, 2, 2, 0] and got["intact"]
    assert [bool(bytes_) for bytes_ in got["displaced"]] == [False, False, False, True]


def test_frozen_programs_hear_the_driver(script):
    text = f"""{PROGRAM}
code("cuGreenCtxCreate", 0, 0, 0, 0)
answer = code("cuModuleLoadData", ref(handle), BIG)
done(answer=answer, intact=bool((download(everything, room) == bytes_of_it).all()))
"""
    got = script(text)
    assert got["answer"] == 2 and got["intact"] and got["displaced"] == [0]


# --- a hole ------------------------------------------------------------------------------------------------------------------

POISONED = f"""{PROGRAM}
result = code("cuModuleLoadData", ref(handle), BIG)
graph_launch = code("cuGraphLaunch", executable.value, s)
word = np.zeros(1, np.uint32)
box = np.zeros(16, np.uint64)  # CUDA_MEMCPY2D, from the hole to the host, 64 bytes of 1 row
box[[2, 4]], box[[9, 10]], box[[14, 15]] = [2, everything], [1, at(word)], [4, 1]
done(
    load=result,
    launch=launch(), graph=graph_launch,
    wait=code("cuStreamWriteValue32_v2", s, small, 1, 0),
    copies=[code("cuMemcpyDtoH_v2", at(bytes_of_it), everything, room), code("cuMemcpyDtoD_v2", everything, small, 64),
            code("cuMemcpyHtoDAsync_v2", everything + 4096, at(bytes_of_it), 64, s), code("cuMemsetD8_v2", everything, 0, 64),
            code("cuMemsetD2D8_v2", everything, 128, 0, 64, 2), code("cuMemcpy2D_v2", at(box))],
    others=[code("cuMemcpyDtoH_v2", at(word), small, 4), code("cuMemsetD8_v2", small, 0, 64), code("cuCtxSynchronize")],
    freed=code("cuMemFree_v2", everything),
)
"""


def test_nothing_runs_over_a_hole(script, run_sim):
    """The driver maps nothing any more from the middle of a move on: what it left open is answered, by launches and by what touches it."""
    traced = script(GOES_ON, "cuModuleLoadData", env={"SIMGPU_TRACE": str(run_sim.tmp_path / "trace")})
    assert traced["answers"] == {"cuModuleLoadData": 0}
    entries = [line.split()[4] for line in (run_sim.tmp_path / "trace").read_text().splitlines() if len(line.split()) == 5]
    maps = entries[: entries.index("cuMemUnmap")].count("cuMemMap")
    got = script(POISONED, env={"SIMGPU_FAULTS": f"cuMemMap=NOT_PERMITTED@{maps + 1}+"})
    assert "are lost" in got["stderr"], got["stderr"]
    assert [got["load"], got["launch"], got["graph"], got["wait"]] == [2, 800, 800, 800]
    assert got["copies"] == [800] * 6
    assert got["others"] == [0] * 3 and got["freed"] == 0
