# SPDX-License-Identifier: Apache-2.0
"""What the launch hook costs, counted: benchmarks/gate.py prints the same."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gate  # noqa: E402
import simgpu  # noqa: E402


def test_a_launch(sim_dir, preloadable, need, tmp_path):
    valgrind = need("valgrind")
    program, env = simgpu.build(tmp_path, sim_dir)
    in_the_gate, in_all = gate.per_launch(valgrind, program, env, preloadable)
    assert 0 < in_the_gate <= gate.MOST_GATE
    assert in_the_gate < in_all <= gate.MOST_HOOK
