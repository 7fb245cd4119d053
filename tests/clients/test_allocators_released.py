# SPDX-License-Identifier: Apache-2.0
"""`spillshim.allocators` in the libraries that they are for, with the library preloaded and without: PyTorch's and RMM's releases.

(CuPy's runtime accepts no simulated driver: tests/gpu/apps/app_allocators.py asks a GPU.)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import spillshim
from spillshim import native

pytestmark = [pytest.mark.clients, pytest.mark.large]

TORCH, RMM = "torch==2.15.0", ("rmm-cu13==26.10.0", "cuda-bindings>=13,<14")
HERE = Path(__file__).resolve()
MIB = 1 << 20
BOTH = pytest.mark.parametrize("preloaded", [True, False], ids=["preloaded", "alone"])


@pytest.fixture
def client(run_sim, packages, libspillshim):
    """client(program, *arguments, packages=..., preloaded=...) -> what it printed, and its stats under "stats"."""

    def run(program: str, *arguments: str, needs: tuple[str, ...], preloaded: bool, vram: str, **env: str):
        places = [packages(*needs, timeout=1800), Path(spillshim.__file__).parents[1], HERE.parents[1] / "programs"]
        runtimes = [str(library) for library in native.sim_runtimes(run_sim.sim)]
        made = {
            "PYTHONPATH": ":".join(map(str, places)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "LD_PRELOAD": ":".join([*([str(run_sim.library)] if preloaded else []), *runtimes]),
            "SPILLSHIM_LIBRARY": str(libspillshim),
            "SPILLSHIM_STATS": str(run_sim.stats_file),
            **env,
        }
        result = run_sim([sys.executable, HERE.parent / "programs" / program, *arguments], vram=vram, shim=preloaded, env=made, timeout=280)
        assert result.returncode == 0, f"ended with {result.returncode}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"
        return {**json.loads(result.stdout.splitlines()[-1]), "stats": result.stats}

    return run


@pytest.fixture
def torch(client):
    def run(case: str, preloaded: bool):
        told = client("torch_allocators.py", case, needs=(TORCH,), preloaded=preloaded, vram="192M")
        assert told["hooked"] is preloaded and told["same"]
        (stats,) = told["stats"]
        assert stats["state"] == ("open" if preloaded else "frozen")
        assert any(path["path"] == "allocator" and path["calls"] for path in stats["paths"])
        return told

    return run


@BOTH
def test_torch_by_the_pluggable_allocator(torch, preloaded):
    """The out-of-memory that PyTorch overlooks there is why the pool is what we recommend: the tensor has no address."""
    told = torch("plain", preloaded)
    assert told["ram"] > 64 * MIB and told["free"][0] == told["free"][1] and told["address"] == 0


@BOTH
def test_torch_by_a_pool(torch, preloaded):
    told = torch("pool", preloaded)
    assert told["ram"] > 64 * MIB and told["free"][0] == told["free"][1] and told["refused"] and told["last"]
    assert told["outside"] == ("granted" if preloaded else "out of memory"), "without the preload nothing else spills"


@BOTH
def test_torch_with_hints(torch, preloaded):
    told = torch("hints", preloaded)
    wished, kept, usual, strided, other_thread = told["ram"]
    assert (wished, kept, usual, other_thread) == (24, 0, 0, 0) and strided > 0
    assert told["refused"] and told["kept cold"] == 0 and told["cold"] == (24 if preloaded else 0)
    assert told["wrong"] == ["expected a CUDA tensor, got cpu", "expected a CUDA tensor, got str"]


@BOTH
def test_torch_captures_a_graph_into_the_pool(torch, preloaded):
    assert torch("graph", preloaded)["ram"] == 24 * MIB


@BOTH
def test_rmm(client, preloaded):
    fine = {"SPILLSHIM_CHUNK": "4M", "SPILLSHIM_SPILL_CHUNK": "2M", "SPILLSHIM_HEADROOM": "4M", "SPILLSHIM_MANAGED_MIN": "2M"}
    told = client("rmm_allocators.py", needs=RMM, preloaded=preloaded, vram="64M", **fine)
    assert told["same"] and told["ram"] >= 36 * MIB and told["tiers"] == [8 * MIB, 0]
    assert told["refused"].endswith(f"neither VRAM nor the RAM budget has {1 << 40} bytes left for device 0")
    assert told["apart"] == 12 * MIB and told["free"][0] == told["free"][1]
