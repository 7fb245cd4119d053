# SPDX-License-Identifier: Apache-2.0
"""The gate's protocol, checked by spin over every interleaving; and each of the mistakes it must find (gate.pml)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parent / "gate.pml"


def verify(need, folder: Path, *defines: str) -> tuple[int, str]:
    """Errors that spin finds, and its report."""
    subprocess.run([need("spin"), "-a", *(f"-D{name}" for name in defines), MODEL], cwd=folder, check=True, capture_output=True)
    subprocess.run(["gcc", "-O2", "-DSAFETY", "-w", "-o", "pan", "pan.c"], cwd=folder, check=True)
    report = subprocess.run(["./pan", "-m1000000"], cwd=folder, check=True, capture_output=True, text=True).stdout
    found = re.search(r"errors: (\d+)", report)
    assert found and "max search depth too small" not in report, report
    return int(found[1]), report


@pytest.mark.parametrize("threads", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_nothing_is_submitted_or_run_while_memory_moves(need, tmp_path: Path, threads: int) -> None:
    errors, report = verify(need, tmp_path, f"THREADS={threads}")
    assert errors == 0, report


@pytest.mark.parametrize(
    ("mistake", "shown"),
    [
        ("CHECK_FIRST", "assertion violated"),
        ("NO_BARRIER", "assertion violated"),
        ("PROOF_FIRST", "assertion violated"),
        ("NO_PROOF", "assertion violated"),
        ("BLOCK", "invalid end state"),
    ],
)
def test_each_mistake_is_found(need, tmp_path: Path, mistake: str, shown: str) -> None:
    errors, report = verify(need, tmp_path, mistake)
    assert errors and shown in report, report
