# SPDX-License-Identifier: Apache-2.0
"""Random programs, run twice by the engine alone: what one run needed makes the next one's placement, and nothing is left to be moved."""

import re

import pytest
from engine import engine_program, objects  # noqa: F401  (fixtures)


@pytest.mark.parametrize(("seed", "programs"), [(1, 6), pytest.param(1000, 40, marks=pytest.mark.slow)])
def test_a_second_run_moves_nothing(engine_program, tmp_path, run_sim, seed, programs):  # noqa: F811
    print("seed", seed)
    (tmp_path / "root" / "proc").mkdir(parents=True)
    result = run_sim([engine_program("remembered.c"), tmp_path / "root", seed, programs], vram="64M", ram="1G", shim=False, timeout=280,
                     env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
    assert result.stdout.splitlines()[-1] == "ok", result.stdout
    first, second = map(int, re.findall(r"(\d+) (?:bytes|the second)", result.stdout))
    assert first > 10 * second, "only programs that free something on their way may have something moved"
