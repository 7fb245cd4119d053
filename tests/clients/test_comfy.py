# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's own offloader (PyPI comfy-aimdo, as released) with PyTorch on a card that its weights do not fit on.

It patches the driver's entries in memory, reads free memory and waits for out-of-memory: under the shim it has to do what it
does without, so the shim steps aside. Its budget follows a clock of its own, so counts are compared with what must hold, not
with each other.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from spillshim import native

pytestmark = [pytest.mark.clients, pytest.mark.large]

TORCH, AIMDO = "torch==2.15.0", "comfy-aimdo==0.6.0"
PROGRAM = Path(__file__).resolve().parent / "programs" / "aimdo_work.py"
MIB = 1 << 20
VRAM = 1024  # MiB
WEIGHTS = 40  # of 32 MiB: 1280 MiB
KEPT_FREE = 256  # MiB, what aimdo leaves of VRAM
REPORTS = ["vram", "virtual"]


@pytest.fixture
def work(run_sim, packages):
    """`work(shim=..., report=..., library=None)` -> (what aimdo_work.py says, Result)."""
    path = ":".join(str(packages(one, timeout=1800)) for one in (TORCH, AIMDO))
    runtimes = [str(library) for library in native.sim_runtimes(run_sim.sim)]

    def run(*, shim: bool, report: str = "vram", library: Path | None = None, sim: dict[str, str] | None = None):
        env = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "SPILLSHIM_REPORT": report}
        env["LD_PRELOAD"] = ":".join([*([str(run_sim.library)] if shim else []), *runtimes])
        program = [sys.executable, PROGRAM, str(WEIGHTS), *([library] if library else [])]
        result = run_sim(program, vram=f"{VRAM}M", shim=shim, env=env, sim=sim, timeout=280)
        assert result.returncode == 0, f"ended with {result.returncode}\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}"
        return json.loads(result.stdout.splitlines()[-1]), result

    return run


def check_it_offloads(facts) -> None:
    """It keeps within VRAM, leaves out what does not fit, and gives weights up for tensors."""
    assert facts["loaded"] + facts["left"] == WEIGHTS and facts["left"] > 0
    assert facts["mib"][0] <= VRAM - KEPT_FREE + 32
    assert facts["mib"][1] <= facts["mib"][0] - 6 * 64 + KEPT_FREE
    free, total = facts["memory"]
    assert total == VRAM * MIB and 0 < free < total


def test_it_offloads_without_the_shim(work, calls):
    facts, _ = work(shim=False, sim=calls.sim)
    check_it_offloads(facts)
    calls.check(f"ComfyUI's offloader ({AIMDO}, {TORCH})")


@pytest.mark.parametrize("report", REPORTS)
def test_it_offloads_under_the_shim_which_steps_aside(work, report):
    """Whatever the profile says of reports. Its calls and PyTorch's reach the driver as they are; nothing is managed."""
    facts, result = work(shim=True, report=report)
    check_it_offloads(facts)
    (stats,) = result.stats
    assert stats["state_why"] == "ComfyUI's own offloader (comfy-aimdo) is loaded"
    assert stats["managed"]["count"] == stats["spilled"]["count"] == 0
    assert stats["native"]["count"] >= facts["loaded"] + 6
    called = {(one["module"], one["symbol"]): one["calls"] for one in stats["paths"]}
    assert called["aimdo.so", "cuMemCreate"] >= facts["loaded"] and called["aimdo.so", "cuMemAlloc_v2"] >= 6
    assert result.stderr.count("stepping aside") == 1


def test_what_it_would_do_if_it_were_not_given_way_to(work, run_sim, packages):
    """Under a name that the shim does not know: told of RAM it leaves nothing out, and all that should be left in the host's
    memory is spilled there instead, to be read over the link. This is what the detection prevents."""
    copy = run_sim.tmp_path / "offloader.so"
    shutil.copy(packages(AIMDO) / "comfy_aimdo" / "aimdo.so", copy)
    facts, result = work(shim=True, report="virtual", library=copy)
    (stats,) = result.stats
    assert facts["left"] == 0 and facts["mib"] == [WEIGHTS * 32, WEIGHTS * 32]
    assert stats["spilled"]["bytes_peak"] > (WEIGHTS * 32 - VRAM) * MIB and stats["state"] == "open"
