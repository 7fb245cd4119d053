# SPDX-License-Identifier: Apache-2.0
"""No belief is held without somebody who can see it fall: a conformance test, an experiment on GPUs, or a reason in writing."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFORMANCE = ROOT / "tests" / "conformance"
EXPERIMENTS = ROOT / "tests" / "gpu"
DOUBTS = ROOT / "csrc" / "simgpu" / "doubt.def"
sys.path.append(str(EXPERIMENTS))

from kit import beliefs  # noqa: E402

# Beliefs that nothing here can decide, with the reason.
UNDECIDED = {
    "alloc.contents_undefined": "no program may rely on any contents: simgpu shows 0xA5 so that none does",
    "graph.branches_overlap": "it decides about time only",
    "graph.launch_out_of_memory": "would need all VRAM of a card that others may share",
    "launch.too_many_registers": "the kernels here use few",
    "clock.launch": "a figure of the model", "clock.link_shared": "a figure of the model",
    "clock.pin_rate": "a figure of the model", "clock.vmm_costs": "a figure of the model",
    "vmm.create_may_crash": "whether some driver crashes is for the probe in a process of its own to find out",
    "code.nv_info_layout": "read off nvcc's output: no driver is asked",
}


@functools.cache
def named_in_tests() -> dict[str, set[str]]:
    """Belief: the conformance tests that are marked with it."""
    found: dict[str, set[str]] = {}
    for path in sorted(CONFORMANCE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "belief":
                        for argument in mark.args:
                            found.setdefault(ast.literal_eval(argument), set()).add(node.name)
    return found


def named_in_experiments() -> set[str]:
    text = "".join(path.read_text() for path in [*EXPERIMENTS.glob("*.c"), *EXPERIMENTS.glob("apps/*.py")])
    return set(re.findall(r'"([a-z]+\.[a-z0-9_]+)"', text))


def doubts() -> list[str]:
    return re.findall(r'^SIM_DOUBT\(\w+,\s*"([\w.]+)"', DOUBTS.read_text(), re.MULTILINE)


def test_tests_name_beliefs_that_are_held():
    unknown = set(named_in_tests()) - set(beliefs.read())
    assert not unknown


def test_each_belief_is_decided_somewhere():
    left = set(beliefs.read()) - set(named_in_tests()) - named_in_experiments() - set(UNDECIDED)
    assert not left, f"no conformance test and no experiment decides {sorted(left)}"


def test_reasons_are_still_needed():
    assert set(UNDECIDED) <= set(beliefs.read())
    assert not set(UNDECIDED) & set(named_in_tests())


@pytest.mark.parametrize("name", [name for name in doubts() if not name.startswith("clock.")])
def test_each_doubt_is_seen_by_a_conformance_test(name):
    """The clock's are seen by the bandwidth experiments alone, and by the simulator's own tests."""
    assert named_in_tests().get(name), f"nothing in tests/conformance is marked with {name}"
