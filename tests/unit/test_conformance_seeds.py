# SPDX-License-Identifier: Apache-2.0
"""The conformance suite holds on every driver that may be: on simgpu with its unconfirmed beliefs drawn otherwise, for 20 seeds.
One of them always, all with `--slow` (scripts/test --ci)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 21))])
def test_conformance_with_beliefs_drawn_otherwise(seed, sim_dir):  # sim_dir: the parts are built
    env = {**os.environ, "SIMGPU_DOUBT": str(seed)}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "tests/conformance"]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0 and " passed" in ran.stdout, f"SIMGPU_DOUBT={seed}\n{ran.stdout[-4000:]}\n{ran.stderr[-2000:]}"
