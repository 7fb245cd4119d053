# SPDX-License-Identifier: Apache-2.0
"""Moves by the engine alone: orders, re-cutting, refusals, and every driver call of a move failing, alone and in pairs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = [*sorted((ROOT / "csrc" / "tiering").glob("*.c")), ROOT / "csrc/link/ledger.c", ROOT / "csrc/link/segment.c", ROOT / "csrc/shim/driver.c"]


@pytest.fixture(scope="session")
def moves(tmp_path_factory, cuda_include):
    program = tmp_path_factory.mktemp("moves") / "moves"
    subprocess.run(["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-I{ROOT / 'csrc'}", f"-isystem{cuda_include}",
                    "-o", program, ROOT / "tests/programs/tiering/moves.c", *ENGINE, "-ldl", "-lpthread"], check=True)
    return program


@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_moves(moves, tmp_path, run_sim, pairs):
    (tmp_path / "root" / "proc").mkdir(parents=True)
    result = run_sim([moves, tmp_path / "root", *(["pairs"] if pairs else [])], vram="64M", ram="1G", shim=False,
                     env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
    assert result.stdout.splitlines()[-1] == "ok", result.stdout
    swept = [(int(n), int(m)) for n, m in re.findall(r": (\d+) driver calls, (\d+) pairs", result.stdout)]
    assert len(swept) == 3 and min(n for n, _ in swept) >= 15, result.stdout
    assert not pairs or min(m for _, m in swept) >= 40, result.stdout
