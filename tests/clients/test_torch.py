# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CUDA build, unmodified, asks for more than the card has: with each of its allocators, in a captured graph, on two
devices.

Its kernels do nothing on the simulated GPU: what is compared was copied there and back, by copies of its own.
Its libraries have DT_RPATH to NVIDIA's runtime and cuBLAS, so ours are preloaded, as `spillshim run --sim` does it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from spillshim import native

pytestmark = [pytest.mark.clients, pytest.mark.large]

TORCH = "torch==2.15.0"
PROGRAM = Path(__file__).resolve().parent / "programs" / "torch_work.py"
MIB = 320
ENOUGH, SMALL = "2G", "192M"
OUT_OF_MEMORY = 3  # the program's exit code for torch.cuda.OutOfMemoryError

CASES = {
    "optimizer step": ("optimizer", ""),
    "allocator stress": ("stress", ""),
    "allocator stress, expandable_segments": ("stress", "expandable_segments:True"),
    "allocator stress, cudaMallocAsync": ("stress", "backend:cudaMallocAsync"),
    "captured graph": ("graph", ""),
    "captured graph, expandable_segments": ("graph", "expandable_segments:True"),
    "two devices": ("peers", ""),
    "two devices, expandable_segments": ("peers", "expandable_segments:True"),
    "two processes, expandable_segments": ("share", "expandable_segments:True"),
}
HOARDS = {
    "cache": ("cache", ""),
    "hoard": ("hoard", ""),
    "cache, cudaMallocAsync": ("cache", "backend:cudaMallocAsync"),
    "hoard, cudaMallocAsync": ("hoard", "backend:cudaMallocAsync"),
}
SHOWN = list(CASES)


@pytest.fixture
def work(run_sim, packages):
    """`work(case, vram=..., shim=...)` -> Result of torch_work.py."""
    path = str(packages(TORCH, timeout=1800))
    runtimes = [str(library) for library in native.sim_runtimes(run_sim.sim)]

    def run(case: str, *, shim: bool, env: dict[str, str] | None = None, sim: dict[str, str] | None = None, **how):
        what, allocator = {**CASES, **HOARDS}[case]
        preload = ":".join([*([str(run_sim.library)] if shim else []), *runtimes])
        made = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "LD_PRELOAD": preload, "OMP_NUM_THREADS": "1"}
        if allocator:
            made["PYTORCH_ALLOC_CONF"] = allocator
        how["sim"] = {"DEVICES": "2" if what == "peers" else "1", **(sim or {})}
        return run_sim([sys.executable, PROGRAM, what, MIB], shim=shim, env={**made, **(env or {})}, timeout=280, **how)

    return run


def check(result) -> None:
    assert result.returncode == 0, f"ended with {result.returncode}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["compared"] > 64 << 20, facts
    before, after = facts["free"]
    assert before == after, "memory did not come back"


def spilled(result) -> int:
    return sum(one["spilled"]["bytes_peak"] for one in result.stats)


@pytest.mark.parametrize("case", SHOWN)
def test_it_works_where_there_is_enough(work, calls, case):
    check(work(case, vram=ENOUGH, shim=False, sim=calls.sim))
    calls.check(f"PyTorch ({TORCH}), {case}")


@pytest.mark.parametrize("case", SHOWN)
def test_it_fails_on_a_small_card_without_the_shim(work, case):
    result = work(case, vram=SMALL, shim=False)
    assert result.returncode == OUT_OF_MEMORY, f"ended with {result.returncode}\n{result.stderr[-3000:]}"


@pytest.mark.parametrize("case", SHOWN)
def test_it_works_past_the_end_of_vram(work, calls, case):
    result = work(case, vram=SMALL, shim=True, sim=calls.sim)
    check(result)
    assert spilled(result) > 64 << 20, result.stats
    calls.no_stub()


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("case", ["allocator stress, expandable_segments", "allocator stress, cudaMallocAsync", "captured graph"])
def test_it_works_whatever_the_driver_turns_out_to_do(work, calls, case, seed):
    """Beliefs that no GPU has confirmed, held otherwise. A driver may have no exportable memory in RAM, which expandable
    segments ask for: there the shim has to be told that nobody will export it."""
    check(work(case, vram=SMALL, shim=True, sim={**calls.sim, "DOUBT": seed}, env={"SPILLSHIM_EXPORTABLE": "1"}))
    calls.no_stub()


def allocator(result) -> dict[str, list[int]]:
    """What PyTorch's allocator counted at each moment: retries, bytes reserved, bytes allocated."""
    check(result)
    return json.loads(result.stdout.splitlines()[-1])["allocator"]


def test_its_cache_is_given_back_before_anything_spills(work, profiled):
    """What SPILLSHIM_OOM=soft is for: PyTorch frees its cache only when an allocation fails."""
    soft = profiled("pytorch", ["python"], {})
    assert soft == {"SPILLSHIM_REPORT": "vram", "SPILLSHIM_OOM": "soft"}
    without, gave, kept = (work("cache", vram=SMALL, shim=shim, env=env) for shim, env in (
        (False, {}), (True, soft), (True, {"SPILLSHIM_OOM": "never"})))  # fmt: skip
    for result in (without, gave):
        before, after = allocator(result)["freed"], allocator(result)["larger"]
        assert before[1] > 128 << 20 and before[2] < 1 << 20, "144 MiB are cached, nothing is in use"
        assert after[0] == before[0] + 1 and after[1] < before[1] + (32 << 20), "it failed once, and the cache was given back"
    assert spilled(gave) == 0
    before, after = allocator(kept)["freed"], allocator(kept)["larger"]
    assert after[0] == before[0] and after[1] == before[1] + after[2] - before[2], "nothing failed, nothing was given back"
    assert spilled(kept) > 64 << 20


def test_what_spills_past_vram_is_live_and_not_its_cache(work, profiled):
    """Where the live tensors alone are more than VRAM both spill: under the profile what does not fit, without it as much more
    as lies in the cache."""
    gave = work("hoard", vram=SMALL, shim=True, env=profiled("pytorch", ["python"], {}))
    kept = work("hoard", vram=SMALL, shim=True)
    before, after = allocator(gave)["freed"], allocator(gave)["larger"]
    assert after[0] > before[0] and after[1] < after[2] + (32 << 20)
    hoarded = allocator(kept)["freed"][1]
    assert allocator(kept)["larger"][0] == 0 and allocator(kept)["larger"][1] > after[1] + hoarded - (32 << 20)
    assert spilled(gave) > 64 << 20 and spilled(kept) >= spilled(gave) + hoarded - (32 << 20)


def test_with_cudamallocasync_soft_out_of_memory_gains_nothing(work, profiled):
    """Its cache is the driver's pool, which is trimmed before anything spills in any case. This PyTorch tries again after a
    failure, older ones do not: so the profile leaves soft out."""
    env = {"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}
    assert "SPILLSHIM_OOM" not in profiled("pytorch", ["python"], env)
    soft, never = (work("hoard, cudaMallocAsync", vram=SMALL, shim=True, env={"SPILLSHIM_OOM": oom}) for oom in ("soft", "never"))
    check(soft)
    check(never)
    assert "recovered from an allocation failure" in soft.stderr and "allocation failure" not in never.stderr
    assert spilled(soft) == spilled(never) < (320 - 192 + 32) << 20, "320 MiB are live, 192 MiB are there, less the headroom"
