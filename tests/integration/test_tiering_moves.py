# SPDX-License-Identifier: Apache-2.0
"""Moves by the engine alone: orders, re-cutting, refusals, reclaim, hints, and every driver call of these failing, alone and in pairs."""

import re

import pytest
from engine import engine_program, objects  # noqa: F401  (fixtures)


@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("source", "sweeps"), [("moves.c", 4), ("hints.c", 2)])
def test_moves(engine_program, tmp_path, run_sim, source, sweeps, pairs):  # noqa: F811
    (tmp_path / "root" / "proc").mkdir(parents=True)
    result = run_sim([engine_program(source), tmp_path / "root", *(["pairs"] if pairs else [])], vram="64M", ram="1G", shim=False,
                     timeout=480, env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
    assert result.stdout.splitlines()[-1] == "ok", result.stdout
    swept = [(int(n), int(m)) for n, m in re.findall(r": (\d+) driver calls, (\d+) pairs", result.stdout)]
    assert len(swept) == sweeps and min(n for n, _ in swept) >= 15, result.stdout
    assert not pairs or min(m for _, m in swept) >= 40, result.stdout
