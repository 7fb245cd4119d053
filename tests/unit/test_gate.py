# SPDX-License-Identifier: Apache-2.0
"""The gate alone (csrc/tiering/gate.c), one process for each scenario of tests/programs/gate/gate.c."""

from __future__ import annotations

from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SCENARIOS = ["exclusion", "closers", "deadline", "parking", "nesting", "signals", "endings", "crowd", "forks"]


@pytest.fixture
def gate(c_program):
    return c_program("gate/gate.c", link_libcuda=False, flags=[f"-I{CSRC}"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(gate, run_sim, scenario):
    assert run_sim([gate, scenario], shim=False).ok().stdout.splitlines()[-1] == "ok"


@pytest.mark.no_sanitizer("their runtimes need address space all the time")
def test_no_memory(gate, run_sim):
    run_sim([gate, "no_memory"], shim=False).ok()
