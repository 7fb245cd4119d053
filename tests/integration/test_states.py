# SPDX-License-Identifier: Apache-2.0
"""When a process is frozen (nothing is moved any more), and that it goes on spilling; when it is dead (nothing is touched any
more), and what it then answers. Each sign is given by a program of its own and read from the statistics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clients_common import FINE, MIB, run_script, spilled_bytes

CARD = "64M"
SCRIPT_SPILLS = "held = [alloc(24 * MIB) for _ in range(4)]\n"


@pytest.fixture
def script(run_sim, demo_dir):
    """script(text, *arguments, vram=CARD, env={}) -> what it hands to done()."""

    def run(text: str, *arguments: object, vram: str = CARD, env: dict[str, str] | None = None, **how: Any) -> dict[str, Any]:
        return run_script(run_sim, text, *arguments, env={**FINE, **(env or {})}, demo_dir=demo_dir, vram=vram, **how)

    return run


def state(answer: dict[str, Any]) -> tuple[str, str]:
    (one,) = answer["stats"]
    return one["state"], one["state_why"]


# --- frozen ----------------------------------------------------------------------------------------------------------------


def test_open_is_the_rule(script):
    answer = script(f"ctx = Ctx()\n{SCRIPT_SPILLS}done()")
    assert state(answer) == ("open", "")
    assert "frozen" not in answer["stderr"]


GRAPHICS = "the program shares memory with a graphics library"
EXTERNAL = "the program imports another API's memory or semaphores"
PEERS = "the program opens contexts to peer devices"
MULTICAST = "the program makes multicast memory of several devices"
RDMA = "the program uses GPUDirect RDMA"
CHECKPOINT = "the program checkpoints processes"
ENTRIES = {
    "cuGLCtxCreate_v2": GRAPHICS,
    "cuGraphicsGLRegisterBuffer": GRAPHICS,
    "cuGraphicsGLRegisterImage": GRAPHICS,
    "cuGraphicsEGLRegisterImage": GRAPHICS,
    "cuEGLStreamConsumerConnect": GRAPHICS,
    "cuEGLStreamConsumerConnectWithFlags": GRAPHICS,
    "cuEGLStreamProducerConnect": GRAPHICS,
    "cuEventCreateFromEGLSync": GRAPHICS,
    "cuVDPAUCtxCreate_v2": GRAPHICS,
    "cuGraphicsVDPAURegisterVideoSurface": GRAPHICS,
    "cuGraphicsVDPAURegisterOutputSurface": GRAPHICS,
    "cuGraphicsMapResources": GRAPHICS,
    "cuGraphicsMapResources_ptsz": GRAPHICS,
    "cuStreamBeginCaptureToCig": GRAPHICS,
    "cuStreamBeginCaptureToCig_ptsz": GRAPHICS,
    "cuImportExternalMemory": EXTERNAL,
    "cuImportExternalSemaphore": EXTERNAL,
    "cuCtxEnablePeerAccess": PEERS,
    "cuMulticastCreate": MULTICAST,
    "cuMulticastBindMem": MULTICAST,
    "cuMulticastBindMem_v2": MULTICAST,
    "cuMulticastBindAddr": MULTICAST,
    "cuMulticastBindAddr_v2": MULTICAST,
    "cuGreenCtxCreate": "the program uses green contexts",
    "cuCtxDetach": "the program ends contexts by counting their users (cuCtxDetach)",
    "cuFlushGPUDirectRDMAWrites": RDMA,
    "cuCheckpointProcessLock": CHECKPOINT,
    "cuCheckpointProcessCheckpoint": CHECKPOINT,
    "cuCheckpointProcessRestore": CHECKPOINT,
    "cuCheckpointProcessUnlock": CHECKPOINT,
}


# Of these the simulated driver has a body.
HAS_BODY = {"cuCtxEnablePeerAccess", "cuGreenCtxCreate", "cuFlushGPUDirectRDMAWrites", *(name for name in ENTRIES if "Multicast" in name)}


@pytest.mark.parametrize("entry", [pytest.param(name, marks=[] if name in HAS_BODY else [pytest.mark.stubs(name)]) for name in ENTRIES])
def test_an_entry_freezes_and_passes(script, run_sim, entry):
    """The driver's own answer comes back, and what is allocated afterwards spills as ever."""
    text = f"ctx = Ctx()\nanswer = code(sys.argv[1], *[0] * 10)\n{SCRIPT_SPILLS}done(answer=answer)"
    answer = script(text, entry)
    alone = run_script(run_sim, "ctx = Ctx()\ndone(answer=code(sys.argv[1], *[0] * 10))", entry, shim=False)
    assert answer["answer"] == alone["answer"] != 0
    assert state(answer) == ("frozen", ENTRIES[entry])
    assert spilled_bytes(answer["stats"]) > 0
    assert answer["stderr"].count(f"frozen: {ENTRIES[entry]}; placement stays as it is, spilling goes on") == 1


def test_every_entry_that_freezes_is_tried(cuda_include, tmp_path):
    """ENTRIES is the list of hooks.def."""
    source = tmp_path / "rows.c"
    source.write_text('#define TRIGGER(symbol, name, version, flags, pfn, why) row symbol;\n#include "shim/hooks.def"\n')
    csrc = Path(__file__).resolve().parents[2] / "csrc"
    text = subprocess.run(["gcc", "-E", "-P", f"-I{csrc}", str(source)], capture_output=True, text=True, check=True).stdout
    rows = {line.split()[1].rstrip(";") for line in text.splitlines() if line.startswith("row ")}
    assert rows == set(ENTRIES)


def test_the_first_reason_is_kept(script):
    answer = script(f"ctx = Ctx()\ncode('cuGreenCtxCreate', 0, 0, 0, 0)\ncode('cuMulticastCreate', 0, 0)\n{SCRIPT_SPILLS}done()")
    assert state(answer) == ("frozen", ENTRIES["cuGreenCtxCreate"])
    assert answer["stderr"].count("frozen:") == 1


def test_a_program_that_manages_nothing_hears_nothing(run_sim):
    answer = run_script(run_sim, "ctx = Ctx()\ncode('cuGreenCtxCreate', 0, 0, 0, 0)\ndone()")
    assert answer["stderr"] == ""


def test_switched_off_nothing_is_noticed(script):
    answer = script(f"ctx = Ctx()\ncode('cuGreenCtxCreate', 0, 0, 0, 0)\nheld = alloc(24 * MIB)\ndone()", env={"SPILLSHIM_DISABLE": "1"})
    assert answer["stderr"] == ""


@pytest.mark.parametrize("uuid", ["6bd5fb6c5bf4e74a8987d93912fd9df9", "000102030405060708090a0b0c0d0e0f"])
def test_private_tables_are_the_drivers(run_sim, c_program, tmp_path, uuid):
    """The driver's very table comes back, and the driver sees the program ask, not us."""
    driver = c_program("states/table_driver.c", shared=True, link_libcuda=False, flags=["-Wl,-soname,libcuda.so.1"])
    shutil.copy(driver, tmp_path / "libcuda.so.1")
    client = c_program("states/table_client.c", link_libcuda=False)
    where = {"LD_LIBRARY_PATH": str(tmp_path)}
    assert run_sim([client, uuid], env=where).ok().stdout == "own seen\n"
    assert run_sim([client, uuid], env=where, shim=False).ok().stdout == "own seen\n"


@pytest.mark.parametrize(
    ("uuid", "expected"),
    [
        ("6bd5fb6c5bf4e74a8987d93912fd9df9", ("open", "")),
        ("c693336e1121df11a8c368f355d89593", ("open", "")),
        ("000102030405060708090a0b0c0d0e0f", ("frozen", "a private table of the driver is used (cuGetExportTable)")),
    ],
)
def test_a_private_table_that_no_runtime_asks_for_freezes(script, uuid, expected):
    text = f"""
        ctx = Ctx()
        uuid, table = (ctypes.c_uint8 * 16)(*bytes.fromhex(sys.argv[1])), u64()
        answers = [code("cuGetExportTable", ref(table), ref(uuid)), code("cuGetExportTable", ref(table), 0)]
        held = alloc(24 * MIB)
        done(answers=answers)
    """
    answer = script(text, uuid)
    assert answer["answers"] == [500, 1]  # simgpu has no private tables
    assert state(answer) == expected


EMPTY = "int nothing_to_see;\n"


@pytest.fixture
def library(c_program, tmp_path):
    """A library without content under the name of a known one."""

    def build(name: str) -> Path:
        shutil.copy(c_program(EMPTY, link_libcuda=False, shared=True, name="empty"), tmp_path / name)
        return tmp_path / name

    return build


LOADS = f"""
ctx = Ctx()
first = alloc(24 * MIB)
ctypes.CDLL(sys.argv[1])
{SCRIPT_SPILLS}done()
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("libnvoptix.so.1", "OptiX is loaded"),
        ("libnvidia-encode.so.580.65.06", "the video encoder is loaded"),
        ("libnvcuvid.so.1", "the video decoder is loaded"),
        ("nvshmem_bootstrap_uid.so.3", "NVSHMEM is in use"),
        ("libsanitizer-collection.so", "Compute Sanitizer is loaded"),
        ("libToolsInjection64.so", "a profiler is loaded"),
    ],
)
def test_a_library_freezes(script, library, name, why):
    """It is noticed at the next allocation, wherever it came from."""
    answer = script(LOADS, library(name))
    assert state(answer) == ("frozen", why)
    assert spilled_bytes(answer["stats"]) > 0


@pytest.mark.parametrize("name", ["libnvoptixyz.so.1", "libnvidia-encoder.so.1", "libsomething.so", "libnvshmem_host.so.3"])
def test_other_libraries_do_not(script, library, name):
    assert state(script(LOADS, library(name))) == ("open", "")


@pytest.mark.parametrize(
    ("name", "device", "why"),
    [
        ("libibverbs.so.1", "infiniband/uverbs0", "InfiniBand verbs are in use"),
        ("libgdrapi.so.2", "gdrdrv", "gdrcopy is in use"),
        ("libcufile.so.0", "nvidia-fs3", "GPUDirect Storage is in use"),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_a_library_that_many_link_for_nothing_freezes_once_its_device_is_open(script, library, tmp_path, name, device, why, used):
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(Path("/proc/meminfo").read_text())
    node = root / "dev" / device
    node.parent.mkdir(parents=True)
    node.touch()
    text = f"""
        ctx = Ctx()
        ctypes.CDLL(sys.argv[1])
        loaded = alloc(24 * MIB)
        used = open(sys.argv[2]) if sys.argv[3] == "True" else None
        opened = alloc(24 * MIB)
        done()
    """
    answer = script(text, library(name), node, used, env={"SPILLSHIM_PROC_ROOT": str(root)})
    assert state(answer) == (("frozen", why) if used else ("open", ""))


def test_a_debugger_freezes(script, tmp_path):
    """Who traces the process is asked of the kernel; here of a description of it, because not every machine lets tests trace."""
    root = tmp_path / "root"
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(Path("/proc/meminfo").read_text())
    status = root / "proc" / "self" / "status"
    status.write_text("Name:\tpython\nTracerPid:\t0\nUid:\t0\n")
    text = """
        ctx = Ctx()
        before = alloc(24 * MIB)
        with open(sys.argv[1], "w") as file:
            file.write("Name:\\tpython\\nTracerPid:\\t4711\\nUid:\\t0\\n")
        after = alloc(24 * MIB) if sys.argv[2] == "True" else None
        done()
    """
    where = {"SPILLSHIM_PROC_ROOT": str(root)}
    assert state(script(text, status, False, env=where)) == ("open", "")
    status.write_text("Name:\tpython\nTracerPid:\t0\nUid:\t0\n")
    assert state(script(text, status, True, env=where)) == ("frozen", "a debugger is attached")


def test_an_injected_tool_freezes(script):
    answer = script(f"ctx = Ctx()\n{SCRIPT_SPILLS}done()", env={"CUDA_INJECTION64_PATH": "/opt/tool.so"})
    assert state(answer) == ("frozen", "a tool is injected into CUDA (CUDA_INJECTION64_PATH)")


@pytest.mark.parametrize(
    ("driver", "says", "pipe", "frozen"),
    [
        ("13000", "no", True, False),
        ("13000", "yes", False, True),
        ("12010", "no", False, False),
        ("12010", "no", True, True),
    ],
)
def test_mps(script, tmp_path, driver, says, pipe, frozen):
    """The driver says so; one from before 12.2 cannot, and a server's control pipe is the sign."""
    if pipe:
        (tmp_path / "control").touch()
    answer = script("ctx = Ctx()\nheld = alloc(24 * MIB)\ndone()", env={"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}, sim={"DRIVER": driver, "MPS": says})
    assert state(answer) == (("frozen", "the GPU is shared through MPS") if frozen else ("open", ""))


def test_comfyuis_offloader_is_given_way_to(script, library):
    """It frees memory when the driver has none: it must hear so, in its own cuMemCreate too, and what there is stays put."""
    text = """
        ctx = Ctx()
        before = [alloc(24 * MIB) for _ in range(4)]
        free(before.pop())
        ctypes.CDLL(sys.argv[1])
        handle, prop = u64(), device_prop()
        after = [try_alloc(40 * MIB)[0], code("cuMemCreate", ref(handle), 40 * MIB, ref(prop), 0)]
        upload(before[-1], pattern(24 * MIB, 1))
        same = bool((download(before[-1], 24 * MIB) == pattern(24 * MIB, 1)).all())
        for p in before:
            free(p)
        fits = try_alloc(24 * MIB)[0]
        done(after=after, same=same, fits=fits)
    """
    answer = script(text, library("aimdo.so"))
    assert answer["after"] == [2, 2]
    assert answer["same"] and answer["fits"] == 0
    assert state(answer) == ("frozen", "ComfyUI's own offloader (comfy-aimdo) is loaded")
    assert "stepping aside: ComfyUI's own offloader (comfy-aimdo) is loaded; nothing is spilled or moved from now on" in answer["stderr"]


def test_what_is_given_way_to_is_told_of_vram_alone(script, library):
    """It plans by free memory before it allocates anything: RAM that it won't get must not be in there, by whatever it asks."""
    text = """
        ctx = Ctx()
        def told():
            free_bytes, total = mem_info()
            nvml = nvml_memory()[0]
            return [free_bytes, nvml.free], [total, total_mem(), nvml.total]
        before = told()
        ctypes.CDLL(sys.argv[1])
        done(before=before, after=told())
    """
    answer = script(text, library("aimdo.so"), env={"SPILLSHIM_REPORT": "virtual"})
    before, after = answer["before"], answer["after"]
    assert min(before[0]) > 64 * MIB and len(set(before[1])) == 1 and before[1][0] > 64 * MIB
    assert set(after[1]) == {64 * MIB} and len(set(after[0])) == 1 and after[0][0] <= 64 * MIB


# --- dead ------------------------------------------------------------------------------------------------------------------

STICKY = {
    226: "CONTAINED",
    700: "ILLEGAL_ADDRESS",
    702: "LAUNCH_TIMEOUT",
    714: "HARDWARE_STACK_ERROR",
    715: "ILLEGAL_INSTRUCTION",
    716: "MISALIGNED_ADDRESS",
    717: "INVALID_ADDRESS_SPACE",
    718: "INVALID_PC",
    719: "LAUNCH_FAILED",
    721: "TENSOR_MEMORY_LEAK",
    810: "MPS_CLIENT_TERMINATED",
}


@pytest.mark.parametrize("error", STICKY)
def test_an_error_that_ends_a_process_is_seen_wherever_it_comes_from(script, error):
    """In the answer of a synchronise; then nothing of ours is done any more, and each call gets the driver's answer."""
    text = f"""
        ctx = Ctx()
        {SCRIPT_SPILLS.strip()}
        before = [attribute("memory_type", held[0]), address_range(held[0])[1]]
        answers = [code("cuCtxSynchronize"), code("cuMemFree_v2", held[0]), try_alloc(24 * MIB)[0]]
        table = [attribute("memory_type", held[1]), address_range(held[1])[1]]
        done(answers=answers, before=before, table=table)
    """
    answer = script(text, sim={"FAULTS": f"cuCtxSynchronize=sticky:{error}@1"})
    assert answer["answers"] == [error, error, error]
    assert answer["before"] == answer["table"] == [2, 24 * MIB], "of a region our table goes on to tell"
    assert state(answer) == ("dead", f"the driver answered CUDA_ERROR_{STICKY[error]} ({error})")
    assert answer["stderr"].count("dead: ") == 1


@pytest.mark.parametrize(
    "entry",
    ["cuMemAlloc", "cuMemFree", "cuMemFreeAsync", "cuStreamSynchronize", "cuMemcpyHtoD", "cuMemsetD8", "cuLaunchKernel", "cuCtxCreate"],
)
def test_a_sticky_error_in_any_answer(script, entry):
    text = """
        ctx = Ctx()
        kernels, s, other = Kernels(), stream(), u64()
        held, small, pool = alloc(24 * MIB), alloc(4096), u64()
        cu("cuMemAllocAsync", ref(pool), 4096, s)
        answers = {}
        for name, args in {
            "cuMemAlloc": ("cuMemAlloc_v2", ref(u64()), 4096), "cuMemFree": ("cuMemFree_v2", small), "cuMemFreeAsync": ("cuMemFreeAsync", pool.value, s),
            "cuStreamSynchronize": ("cuStreamSynchronize", s), "cuMemcpyHtoD": ("cuMemcpyHtoD_v2", small, at(np.zeros(64, np.uint8)), 64),
            "cuMemsetD8": ("cuMemsetD8_v2", small, 0, 64), "cuCtxCreate": ("cuCtxCreate_v2", ref(other), 0, 0),
        }.items():
            if name == sys.argv[1]:
                answer = code(*args)
        if sys.argv[1] == "cuLaunchKernel":
            try:
                kernels.fill(small, 4096, 1)
                answer = 0
            except DriverError as e:
                answer = e.result
        done(answer=answer)
    """
    # On a card with room for all: the probe's process would meet the fault.
    answer = script(text, entry, vram="1G", sim={"FAULTS": f"{entry}=700@{dict(cuMemAlloc=2).get(entry, 1)}"})
    assert answer["answer"] == 700
    assert state(answer) == ("dead", "the driver answered CUDA_ERROR_ILLEGAL_ADDRESS (700)")


def test_the_drivers_own_end(script):
    """Error 4: the driver shuts down before the program has."""
    text = f"""
        ctx = Ctx()
        {SCRIPT_SPILLS.strip()}
        done(answers=[code("cuCtxSynchronize"), code("cuMemFree_v2", held[0])])
    """
    answer = script(text, sim={"FAULTS": "cuCtxSynchronize=4@1"})
    assert answer["answers"] == [4, 4]
    assert state(answer) == ("dead", "the driver is shutting down (error 4)")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (710, "a device-side assert has ended a context (error 710)"),
        (214, "the driver answered CUDA_ERROR_ECC_UNCORRECTABLE (214)"),
        (220, "the driver answered CUDA_ERROR_NVLINK_UNCORRECTABLE (220)"),
    ],
)
def test_an_error_that_leaves_a_process_usable_freezes(script, error, why):
    """cuda.h says of an assert that the context must be destroyed, not the process; another context goes on spilling."""
    text = f"""
        ctx = Ctx()
        own, current = u64(), u64()
        cu("cuCtxCreate_v2", ref(own), 0, 0)
        first = alloc(24 * MIB)
        lost = [code("cuCtxSynchronize"), code("cuCtxDestroy_v2", own.value)]
        cu("cuCtxSetCurrent", ctx.handle)
        {SCRIPT_SPILLS.strip()}
        for p in held:
            free(p)
        done(lost=lost)
    """
    answer = script(text, sim={"FAULTS": f"cuCtxSynchronize=sticky:{error}@1"})
    assert answer["lost"] == [error, 0]
    assert state(answer) == ("frozen", why)
    assert spilled_bytes(answer["stats"]) > 0


@pytest.mark.parametrize("error", [1, 2, 201, 400, 401, 600, 701, 709, 720, 900])
def test_ordinary_errors_change_nothing(script, error):
    text = f"ctx = Ctx()\n{SCRIPT_SPILLS}answer = code('cuCtxSynchronize')\nfor p in held:\n    free(p)\ndone(answer=answer)"
    answer = script(text, sim={"FAULTS": f"cuCtxSynchronize={error}@1"})
    assert answer["answer"] == error
    assert state(answer) == ("open", "")


# --- the ends of contexts and processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [[], ["threads"]], ids=["alone", "threads"])
def test_frees_while_the_process_ends(run_sim, c_program, threads):
    """In exit handlers that run before and after ours, and in a destructor: the driver is there, so they work as ever. Threads
    that nobody stops neither crash nor hang it."""
    result = run_sim([c_program("states/exits.c"), *threads], env=FINE, vram=CARD).ok()
    assert result.stdout == "late 0\nearly 0\ndestructor 0\n"
    assert [one["state"] for one in result.stats] == ["open"]


@pytest.mark.parametrize("how", ["destroy", "reset", "release"])
def test_the_end_of_a_context_ends_its_regions_only(script, how):
    """Freed or not, pinned by a captured copy or in limbo: what the context held is given back, and another context's stays."""
    text = """
        how = sys.argv[1]
        ctx, own = Ctx(), u64()
        kept_by = ctx.handle
        if how == "destroy":
            cu("cuCtxCreate_v2", ref(own), 0, ctx.device)
        else:
            cu("cuCtxCreate_v2", ref(own), 0, ctx.device)
            kept_by = own.value
        keep = alloc(8 * MIB) if kept_by == own.value else None
        if how == "destroy":
            cu("cuCtxSetCurrent", kept_by)
            keep = alloc(8 * MIB)
            cu("cuCtxSetCurrent", own.value)
        else:
            cu("cuCtxSetCurrent", ctx.handle)
        upload(keep, pattern(8 * MIB, 7))
        before = mem_info()[0]
        s = stream()
        held = [alloc(24 * MIB) for _ in range(4)]
        cu("cuStreamBeginCapture_v2", s, 2)
        cu("cuMemcpyDtoDAsync_v2", held[0], held[1], MIB, s)
        graph = u64()
        cu("cuStreamEndCapture", s, ref(graph))
        cu("cuMemFreeAsync", held.pop(), s)
        if how == "destroy":
            cu("cuCtxDestroy_v2", own.value)
        else:
            cu({"reset": "cuDevicePrimaryCtxReset_v2", "release": "cuDevicePrimaryCtxRelease_v2"}[how], ctx.device)
        cu("cuCtxSetCurrent", kept_by)
        gone = [code("cuMemFree_v2", p) for p in held]
        done(gone=gone, back=mem_info()[0] >= before, same=bool((download(keep, 8 * MIB) == pattern(8 * MIB, 7)).all()))
    """
    answer = script(text, how)
    assert answer["gone"] == [1, 1, 1]
    assert answer["back"] and answer["same"]
    assert state(answer) == ("open", "")


@pytest.mark.parametrize("how", ["twice", "inside", "foreign", "both ways"])
def test_frees_of_what_is_no_allocation(script, how):
    """Each gets the driver's INVALID_VALUE, and harms nothing."""
    text = """
        ctx, s = Ctx(), stream()
        held = [alloc(24 * MIB) for _ in range(4)]
        for i, p in enumerate(held):
            upload(p, pattern(24 * MIB, i))
        victim = held.pop()
        how = sys.argv[1]
        if how == "twice":
            answers = [code("cuMemFree_v2", victim), code("cuMemFree_v2", victim), code("cuMemFreeAsync", victim, s)]
        elif how == "inside":
            answers = [code("cuMemFree_v2", victim + MIB), code("cuMemFreeAsync", victim + 2 * MIB, s)]
        elif how == "foreign":
            answers = [code("cuMemFree_v2", 1 << 40), code("cuMemFree_v2", at(np.zeros(1)))]
        else:
            answers = [code("cuMemFreeAsync", victim, s), code("cuMemFree_v2", victim), code("cuMemFreeAsync", victim, s)]
        same = all(bool((download(p, 24 * MIB) == pattern(24 * MIB, i)).all()) for i, p in enumerate(held))
        again = [code("cuMemFree_v2", p) for p in held]
        done(answers=answers, same=same, again=again)
    """
    answer = script(text, how)
    assert answer["answers"] == {"twice": [0, 1, 1], "inside": [1, 1], "foreign": [1, 1], "both ways": [0, 1, 1]}[how]
    assert answer["same"] and answer["again"] == [0, 0, 0]


def test_contexts_that_come_and_go_beside_sweeps(script):
    """One thread creates and destroys contexts with regions and limbo of their own, others allocate, free and synchronise, which
    sweeps limbo: nobody asks the driver about a context that is being destroyed (simgpu refuses a stale handle; strict mode of
    a real driver would crash), nobody waits for ever, all memory comes back."""
    text = """
        import threading
        ctx = Ctx()
        first = alloc(8 * MIB)
        free(first)
        start, wrong, stop = mem_info()[0], [], threading.Event()
        def guarded(work):
            try:
                work()
            except Exception as e:
                wrong.append(repr(e))
        def contexts():
            for _ in range(60):
                own = u64()
                cu("cuCtxCreate_v2", ref(own), 0, ctx.device)
                s = stream()
                held = [alloc(2 * MIB) for _ in range(3)]
                cu("cuMemsetD8Async", held[0], 1, 2 * MIB, s)
                cu("cuMemFreeAsync", held[0], s)
                cu("cuCtxDestroy_v2", own.value)
            stop.set()
        def others():
            cu("cuCtxSetCurrent", ctx.handle)
            s = stream()
            while not stop.is_set():
                p = alloc(2 * MIB)
                cu("cuMemsetD8Async", p, 2, 2 * MIB, s)
                cu("cuMemFreeAsync", p, s)
                cu("cuStreamSynchronize", s)
        threads = [threading.Thread(target=guarded, args=(w,)) for w in (contexts, others, others)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        sync()
        free(alloc(2 * MIB))
        done(wrong=wrong, back=mem_info()[0] == start)
    """
    answer = script(text, vram="1G")
    assert answer["wrong"] == []
    assert answer["back"]
