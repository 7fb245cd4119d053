# SPDX-License-Identifier: Apache-2.0
"""What the client tests share: small machines, and scripts that run in a process of their own under the shim."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"
MIB = 1 << 20

# Small chunks and no slack, so that regions of some MiB meet both tiers on a card of some tens of MiB.
FINE = {
    "SPILLSHIM_MANAGED_MIN": "2M",
    "SPILLSHIM_CHUNK": "4M",
    "SPILLSHIM_SPILL_CHUNK": "2M",
    "SPILLSHIM_HEADROOM": "4M",
    "SPILLSHIM_HOLDBACK": "0",
}


def kernel_env(demo_dir: Path) -> dict[str, str]:
    """Where programs find the kernels that they launch: the demo's."""
    return {"DECODER_PTX": str(demo_dir / "decoder.ptx"), "SIMGPU_KERNELS": str(demo_dir / "decoder.simk.so")}


def script_argv(tmp_path: Path, text: str, *arguments: object) -> list[str]:
    """A command line that runs `text` after `from shell import *` (tests/programs/shell.py)."""
    number = sum(1 for _ in tmp_path.glob("script*.py"))
    path = tmp_path / f"script{number}.py"
    path.write_text("from shell import *\n" + textwrap.dedent(text))
    return [sys.executable, str(path), *map(str, arguments)]


def script_env(env: Mapping[str, str] | None = None, demo_dir: Path | None = None) -> dict[str, str]:
    made = {"PYTHONPATH": str(PROGRAMS), "PYTHONDONTWRITEBYTECODE": "1"}
    if demo_dir:
        made.update(kernel_env(demo_dir))
    made.update(env or {})
    return made


def facts(stdout: str) -> dict[str, Any]:
    """The object that done() printed."""
    return json.loads(stdout.strip().splitlines()[-1])


def run_script(run_sim: Any, text: str, *arguments: object, env: Mapping[str, str] | None = None, demo_dir: Path | None = None, **how: Any) -> dict[str, Any]:
    """Run a script to its end and return what it hands to done(), plus its stats under "stats" (list)."""
    argv = script_argv(run_sim.tmp_path, text, *arguments)
    result = run_sim(argv, env=script_env(env, demo_dir), **how).ok()
    return {**facts(result.stdout), "stats": result.stats, "stderr": result.stderr}


def spilled_bytes(stats: list[dict[str, Any]]) -> int:
    return sum(one["spilled"]["bytes_peak"] for one in stats)
