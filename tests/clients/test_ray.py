# SPDX-License-Identifier: Apache-2.0
"""How a Ray worker gets the shim: the table of spillshim/pages/ray.md, row by row."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RAY = "ray==2.60.0"
PROGRAM = Path(__file__).resolve().parent / "programs" / "ray_worker.py"
NO_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

pytestmark = [pytest.mark.clients, pytest.mark.large]


@pytest.fixture
def short() -> Iterator[str]:
    """Ray puts sockets into it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.parametrize(
    ("by_runtime_env", "inherited", "switch", "worker", "server"),
    [
        (True, False, None, True, False),
        (False, True, None, True, True),
        (False, True, "0", False, True),
        (False, True, "1", True, True),
        (True, False, "0", True, False),
    ],
    ids=["runtime_env", "inherited", "inherited-0", "inherited-1", "runtime_env-0"],
)
def test_which_of_rays_processes_load_it(
    run_sim, packages: Callable[..., Path], preloadable: Path, short: str, tmp_path: Path, by_runtime_env: bool, inherited: bool, switch: str | None, worker: bool, server: bool,
) -> None:  # fmt: skip
    env = {"PYTHONPATH": str(packages(RAY)), "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    if inherited:
        env["LD_PRELOAD"] = str(preloadable)
    if switch is not None:
        env["RAY_LD_PRELOAD_ON_WORKERS"] = switch
    variables = {"LD_PRELOAD": str(preloadable)} if by_runtime_env else {}
    ran = run_sim([sys.executable, PROGRAM, json.dumps(variables), short], shim=False, vram="1G", env=env, timeout=120).ok()
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["loaded"] == worker
    assert told["answer"] == (0 if worker else NO_MEMORY)
    assert (told["preload"] == str(preloadable)) == worker
    assert told["raylet"] == told["gcs_server"] == server
