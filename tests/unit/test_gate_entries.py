# SPDX-License-Identifier: Apache-2.0
"""Which driver entries pass the gate: every hook is called on a driver that notes whether the gate has been entered, and no entry
that ought to is forgotten, whatever version of CUDA's headers this is built with. And which of them answer an error
without asking the driver once a move has left a hole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HOOKS = ["launch", "copy", "copy_rect", "memset", "graph", "lifecycle", "identity", "reclaim"]
# What they need beside the engine.
LINKED = ["split", "driver", "config", "log"]
# Beside the launches and memory operations, work that names its memory in ways that nobody reads here.
OTHERS = ["cuMemBatchDecompressAsync", "cuFabricCpyBatchAsync"]

WAITS = "waits or asks: held back, it would keep a program waiting for what a move doesn't change"
LIFE = "makes or ends a context or stream: what it takes along is drained first, under the engine lock"
ASKS = "asks about a pointer: answered from our table, which a move doesn't change"
UVM = "concerns cudaMallocManaged memory, which is never in a region"
ARRAYS = "copies between arrays and the program's own host memory"
ORDER = "orders or marks work, and touches no memory of the program"
STREAM = "makes, describes or changes a stream"
POOL = "concerns the driver's pools, which hold no region; what they refuse becomes a region under the engine lock"
OWN = "takes memory of the driver's own, which a move doesn't touch: where there is none, some is reclaimed outside the gate"
FOREIGN = "works with other APIs: that freezes the process"

# Entries by base name, where a hook or a stream could let one expect the gate.
NOT_GATED = {
    WAITS: "cuCtxSynchronize cuStreamSynchronize cuStreamQuery cuStreamEndCapture cuStreamEndCaptureToCig",
    LIFE: "cuCtxCreate cuStreamDestroy cuCtxDestroy cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease cuDevicePrimaryCtxReset",
    ASKS: "cuPointerGetAttribute cuPointerGetAttributes cuMemGetAddressRange cuIpcGetMemHandle cuMemGetHandleForAddressRange",
    UVM: "cuMemPrefetchAsync cuMemPrefetchBatchAsync cuMemDiscardBatchAsync cuMemDiscardAndPrefetchBatchAsync cuStreamAttachMemAsync",
    ARRAYS: "cuMemcpyHtoA cuMemcpyHtoAAsync cuMemcpyAtoH cuMemcpyAtoHAsync cuMemcpyAtoA cuMemMapArrayAsync",
    ORDER: "cuEventRecord cuEventRecordWithFlags cuStreamWaitEvent",
    STREAM: "cuStreamCopyAttributes cuStreamCreate cuStreamCreateWithPriority cuGreenCtxStreamCreate cuStreamGetAttribute cuStreamSetAttribute "
    "cuStreamGetCaptureInfo cuStreamIsCapturing cuStreamUpdateCaptureDependencies cuStreamGetCtx cuStreamGetDevice cuStreamGetFlags "
    "cuStreamGetGreenCtx cuStreamGetId cuStreamGetPriority cuStreamGetDevResource cuOccupancyMaxActiveClusters "
    "cuOccupancyMaxPotentialClusterSize",
    OWN: "cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary cuModuleGetFunction cuModuleGetGlobal cuLibraryLoadData "
    "cuLibraryLoadFromFile cuLibraryGetKernel cuLibraryGetModule cuLibraryGetGlobal cuLibraryGetManaged cuKernelGetFunction "
    "cuKernelGetAttribute cuKernelSetAttribute cuKernelSetCacheConfig cuFuncGetAttribute cuFuncSetAttribute cuFuncLoad "
    "cuGraphInstantiate cuGraphInstantiateWithFlags cuGraphInstantiateWithParams cuGraphExecUpdate cuCtxSetLimit cuEventCreate "
    "cuArrayCreate cuArray3DCreate cuMipmappedArrayCreate",
    POOL: "cuMemAllocAsync cuMemAllocFromPoolAsync cuMemFreeAsync",
    FOREIGN: "cuSignalExternalSemaphoresAsync cuWaitExternalSemaphoresAsync cuGraphicsMapResources cuGraphicsUnmapResources "
    "cuStreamBeginCaptureToCig",
}  # fmt: skip
EXEMPT = {name for names in NOT_GATED.values() for name in names.split()}


def rows() -> list[tuple[str, str, int, int]]:
    """(symbol, name, version, flags) of hooks.def."""
    source = '#define HOOK(symbol, name, version, flags, pfn) row symbol name version flags;\n#include "shim/hooks.def"\n'
    text = subprocess.run(["gcc", "-E", "-P", f"-I{CSRC}", "-xc", "-"], input=source, capture_output=True, text=True, check=True).stdout
    return [(s, n, int(v), int(f)) for s, n, v, f in re.findall(r'row (\w+) "(\w+)" (\d+) (\d+);', text)]


@pytest.fixture(scope="module")
def program(cuda_include, tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("gate") / "entries"
    parts = [CSRC / "shim" / f"hook_{name}.c" for name in HOOKS]
    parts += [CSRC / "shim" / f"{name}.c" for name in LINKED]
    parts += [CSRC / "link" / f"{name}.c" for name in ("ledger", "segment")]
    parts += sorted((CSRC / "tiering").glob("*.c"))
    subprocess.run(
        ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-I{CSRC}", f"-isystem{cuda_include}", "-o", built,
         ROOT / "tests/programs/gate/entries.c", *parts, "-ldl", "-lpthread"],
        check=True,
    )  # fmt: skip
    return built


def run(program: Path, *arguments: str) -> list[list[str]]:
    """The words of each line that it prints."""
    printed = subprocess.run([program, *arguments], capture_output=True, text=True, check=True, timeout=60).stdout
    return [line.split() for line in printed.splitlines()]


@pytest.fixture(scope="module")
def depths(program) -> dict[str, tuple[int, int]]:
    """By symbol: how deep in the gate the driver was called, and how deep the thread is afterwards."""
    return {symbol: (int(then), int(left)) for symbol, then, left, _ in run(program)}


def test_hooks_of_submitting_entries_are_inside_the_gate_and_leave_it(depths):
    name_of = {symbol: name for symbol, name, _, _ in rows()}
    expected = {symbol: (0 if name_of[symbol] in EXEMPT else 1, 0) for symbol in depths}
    assert depths == expected
    assert sum(then for then, _ in depths.values()) > 100


# Entries that give the GPU work, or that put an address into a graph.
SUBMITS = re.compile(r"cuLaunch|cuMem(cpy|set)|cuGraphLaunch")
TAKES = re.compile(r"\bCUstream \w|CUlaunchConfig|(const CUDA_(MEMCPY3D|MEMSET_NODE|BATCH_MEM_OP_NODE)\w*|CUgraphNodeParams) \*")


def test_no_entry_is_forgotten(cuda_include, depths):
    typed = re.findall(r"PFN_(cu\w+?)_v(\d+)(_ptsz|_ptds)?\)\s*\(([^;]*)\);", (cuda_include / "cudaTypedefs.h").read_text())
    assert len(typed) > 500
    concerned = {name for name, _, _, taken in typed if SUBMITS.match(name) or (TAKES.search(taken) and "GetParams" not in name)}
    gated = {name for symbol, name, _, _ in rows() if symbol in depths and name not in EXEMPT}
    assert concerned - gated - EXEMPT == set(), "gate it, or say why not"
    hooked = {(name, version, flags) for _, name, version, flags in rows()}
    # Of what is gated, every ABI; but 32-bit device addresses can't name managed memory.
    wide = {
        (name, int(version), 2 if suffix else 0) for name, version, suffix, taken in typed
        if name in gated and not re.search(r"CUdeviceptr_v1|CUDA_MEMCPY[23]D_v1", taken)
    }  # fmt: skip
    assert wide - hooked == set()


def test_nothing_runs_into_a_hole(program, depths):
    *lines, verdict = run(program, "poisoned")
    assert verdict == ["copies", "ok"]
    refused = {symbol for symbol, then, left, answer in lines if (then, left, answer) == ("-1", "0", "600")}
    launches = {symbol for symbol in depths if re.match(r"cu(Launch(?!HostFunc)|GraphLaunch|GraphUpload|Stream(Wait|Write)Value|StreamBatchMemOp)", symbol)}
    assert refused == launches | {f"{name}{twin}" for name in OTHERS for twin in ("", "_ptsz")}
