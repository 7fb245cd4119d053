# SPDX-License-Identifier: Apache-2.0
"""What the simulated driver costs, as far as it can be counted instead of timed: benchmarks/simgpu.py prints the same and more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import simgpu as cost  # noqa: E402

MIB = 1 << 20


@pytest.fixture(scope="module")
def measured(sim_dir, tmp_path_factory):
    """The program, and its environment."""
    return cost.build(tmp_path_factory.mktemp("cost"), sim_dir)


def test_a_launch(measured, need):
    program, env = measured
    assert cost.per_launch(need("valgrind"), program, env) <= cost.MOST_PER_LAUNCH


def test_a_start(measured, need):
    program, env = measured
    nothing, start = (cost.instructions(need("valgrind"), program, env, what) for what in ("nothing", "start"))
    assert nothing < start <= cost.MOST_START * nothing


@pytest.mark.parametrize("how", ["alloc", "vmm"])
def test_untouched_memory_costs_nothing(measured, how):
    before, after = cost.resident(*measured, how)
    assert before <= 16 * MIB
    assert cost.TOUCHED * MIB <= after - before + MIB and after - before <= (cost.TOUCHED + 8) * MIB
