# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CUDA build, unmodified, asks for more than the card has: with each of its allocators, and a captured graph.

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

# What the shim needs to be told, by allocator: expandable segments ask for handles that could be exported, and reserve
# address space for 9/8 of the VRAM that is reported.
SETTINGS = {"expandable_segments:True": {"SPILLSHIM_EXPORTABLE": "1", "SPILLSHIM_REPORT": "virtual"}}

CASES = {
    "optimizer step": ("optimizer", ""),
    "allocator stress": ("stress", ""),
    "expandable_segments": ("stress", "expandable_segments:True"),
    "cudaMallocAsync": ("stress", "backend:cudaMallocAsync"),
    "captured graph": ("graph", ""),
}


@pytest.fixture
def work(run_sim, packages):
    """`work(case, vram=..., shim=...)` -> Result of torch_work.py."""
    path = str(packages(TORCH, timeout=1800))
    runtimes = [str(library) for library in native.sim_runtimes(run_sim.sim)]

    def run(case: str, *, shim: bool, **how):
        what, allocator = CASES[case]
        preload = ":".join([*([str(run_sim.library)] if shim else []), *runtimes])
        env = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "LD_PRELOAD": preload, "OMP_NUM_THREADS": "1"}
        if allocator:
            env |= {"PYTORCH_ALLOC_CONF": allocator, **(SETTINGS.get(allocator, {}) if shim else {})}
        return run_sim([sys.executable, PROGRAM, what, MIB], shim=shim, env=env, timeout=280, **how)

    return run


def check(result) -> None:
    assert result.returncode == 0, f"ended with {result.returncode}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["compared"] > 64 << 20, facts


@pytest.mark.parametrize("case", CASES)
def test_it_works_where_there_is_enough(work, calls, case):
    check(work(case, vram=ENOUGH, shim=False, sim=calls.sim))
    calls.check(f"PyTorch ({TORCH}), {case}")


@pytest.mark.parametrize("case", CASES)
def test_it_fails_on_a_small_card_without_the_shim(work, case):
    result = work(case, vram=SMALL, shim=False)
    assert result.returncode == 3, f"ended with {result.returncode}\n{result.stderr[-3000:]}"


@pytest.mark.parametrize("case", CASES)
def test_it_works_past_the_end_of_vram(work, calls, case):
    result = work(case, vram=SMALL, shim=True, sim=calls.sim)
    check(result)
    assert sum(one["spilled"]["bytes_peak"] for one in result.stats) > 64 << 20, result.stats
    calls.no_stub()


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("case", ["expandable_segments", "cudaMallocAsync", "captured graph"])
def test_it_works_whatever_the_driver_turns_out_to_do(work, calls, case, seed):
    """Beliefs that no GPU has confirmed, held otherwise."""
    check(work(case, vram=SMALL, shim=True, sim={**calls.sim, "DOUBT": seed}))
    calls.no_stub()
