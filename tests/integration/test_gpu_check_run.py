# SPDX-License-Identifier: Apache-2.0
"""The proof kit with its real experiments on the simulated device: every question gets an answer before a GPU is asked.

What the simulated device says here is its own beliefs, so none may be corrected; its figures are a model's and are not looked at.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Answered on the simulated device without exception; unmodified programs run there as far as their runtimes do.
COMPLETE = ("facts", "bandwidth", "hook")
REASONS = ("not installed: ", "not on the simulated device: ", "skipped: ")


def gpu_check(native: Path, env: dict[str, str], folder: Path, *words: str, timeout: float) -> dict:
    """The JSON of a run on the simulated device."""
    argv = [str(REPOSITORY / "scripts" / "gpu-check"), "--device", "sim", "--out", str(folder / "out"), "--build", str(folder / "build"), *words]
    ran = subprocess.run(
        argv, env=dict(env, PYTHON=sys.executable, GPU_CHECK_NATIVE=str(native)), capture_output=True, text=True, timeout=timeout, check=False
    )  # fmt: skip
    assert ran.returncode in (0, 1) and "Traceback" not in ran.stderr, ran.stdout + ran.stderr
    (path,) = (folder / "out").glob("*.json")
    result = json.loads(path.read_text())
    assert result["model"] is True and result["complete"] is True
    totals = result["totals"]
    assert totals["asked"] == totals["answered"] + totals["unanswered"] == sum(len(e["rows"]) for e in result["experiments"])
    assert (ran.returncode == 0) == (totals["unanswered"] == 0)
    return result


def assert_answered(asked: list[dict], but: set[str] = frozenset()) -> None:
    """Every row of these experiments was answered, by the contract, and agrees with what the simulated device was written from.

    `but`: rows that the simulated device cannot answer."""
    assert asked
    silent = {row["row"]: row["seen"] for e in asked for row in e["rows"] if row["verdict"] == "unanswered"}
    assert set(silent) == set(but), silent
    assert [f"{e['name']}: {problem}" for e in asked for problem in e["problems"]] == []
    assert [f"{row['row']}: {row['seen']}" for e in asked for row in e["rows"] if row["verdict"] == "corrects"] == []


def test_most_decisive_facts_are_answered(native_dir: Path, clean_env: dict[str, str], tmp_path: Path) -> None:
    result = gpu_check(native_dir, clean_env, tmp_path, "--only", "probe,mixed", "--minutes", "2", timeout=150)
    assert [e["name"] for e in result["experiments"]] == ["probe", "mixed"]
    assert_answered(result["experiments"])
    assert "vmm.mixed_access" in result["beliefs"]["confirmed"]


@pytest.mark.slow
def test_the_conformance_suite_answers_for_each_belief(native_dir: Path, clean_env: dict[str, str], tmp_path: Path) -> None:
    result = gpu_check(native_dir, clean_env, tmp_path, "--only", "conformance", "--minutes", "4", timeout=280)
    assert_answered(result["experiments"], but={"conformance.peer.kernels_need_access"})  # its companions do not account
    assert len(result["beliefs"]["confirmed"]) > 60 and "vmm.unmap_no_drain" in result["beliefs"]["confirmed"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whole_kit_within_its_budget(native_dir: Path, clean_env: dict[str, str], tmp_path: Path) -> None:
    result = gpu_check(native_dir, clean_env, tmp_path, "--minutes", "3", timeout=300)
    assert result["seconds"] < 200
    assert {group for e in result["experiments"] for group in e["groups"]} >= {"facts", "bandwidth", "hook", "apps"}
    apps = [e for e in result["experiments"] if "apps" in e["groups"]]
    assert_answered([e for e in result["experiments"] if e not in apps])
    for group in COMPLETE:
        assert any(group in e["groups"] for e in result["experiments"] if e not in apps), group
    # Programs: what runs here agrees, what does not says why; a crash or a wrong result is no reason.
    open_rows = {row["row"]: row["seen"] for e in apps for row in e["rows"] if row["verdict"] == "unanswered"}
    assert {name: seen for name, seen in open_rows.items() if not seen.startswith(REASONS)} == {}
    assert [f"{row['row']}: {row['seen']}" for e in apps for row in e["rows"] if row["verdict"] == "corrects"] == []
    assert [f"{e['name']}: {problem}" for e in apps for problem in e["problems"]] == []
    if importlib.util.find_spec("cuda.bindings"):
        assert not [name for name in open_rows if name.startswith("bindings.")]
    assert len(list((tmp_path / "out").iterdir())) == 1  # one file, nothing half-written beside it
