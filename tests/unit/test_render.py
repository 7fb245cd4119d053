# SPDX-License-Identifier: Apache-2.0
"""benchmarks/render.py: figures and page come from the results alone, and nothing simulated passes for a GPU.

Also holds benchmarks/results to its rule: results of real devices, and a page exactly when there are any.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RENDER = REPOSITORY / "benchmarks" / "render.py"
RESULTS = REPOSITORY / "benchmarks" / "results"

_spec = importlib.util.spec_from_file_location("render", RENDER)
assert _spec and _spec.loader
render = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(render)


def row(name: str, value=None, unit="GB/s", verdict="measured", seen="seen", belief=None, raw=None) -> dict:
    return {
        "row": name, "ask": f"what {name} is", "seen": seen, "value": value, "unit": unit, "belief": belief, "verdict": verdict,
        "decides": "the design", "raw": raw or {}, "at": 0.1,
    }  # fmt: skip


@pytest.fixture
def result() -> dict:
    """A run on an imaginary device that reads VRAM at 1000 and RAM at 50 GB/s."""
    rows = [row("bandwidth.hbm_read", 1000.0), row("bandwidth.zero_copy_16", 50.0), row("bandwidth.hbm_q4", 800.0)]
    for percent in (100, 90, 50, 0):
        share = 1 - percent / 100
        rows.append(row(f"bandwidth.mix_tail_{percent}", render.in_turn(share, 1000, 50)))
        rows.append(row(f"bandwidth.mix_chunk_{percent}", render.overlapped(share, 1000, 50)))
    rows.append(row("bandwidth.mix_granule_90", 400.0, raw={"bytes": 1000, "bytes_in_ram": 125}))
    rows.append(row("bandwidth.mix_granule_50", None, verdict="unanswered", seen="never said: the experiment died of SIGSEGV"))
    facts = [
        row("mixed.works", True, "bool", "confirms", "a | b <c>", "vmm.mixed_access"),
        row("race.drains", False, "bool", "corrects", "it waits", "vmm.unmap_no_drain"),
    ]
    return {
        "schema": 1, "model": False, "complete": True, "interrupted": None,
        "device": {"name": "Imaginary 9000", "vram": 80 << 30, "compute_capability": "9.0", "cuda": "13.0", "driver": "580.1",
                   "pcie_generation": 1, "pcie_width": 16, "pcie_generation_most": 5, "pcie_width_most": 16},
        "machine": {"numa": {"node0": "0-7"}, "cpu": "CPU", "cpus": 8, "ram": 128 << 30, "kernel": "6.1"},
        "command": ["scripts/gpu-check"], "revision": "abc", "sources": "def", "started": "2026-01-02T03:04:05+00:00",
        "seconds": 100.0, "seed": 1, "bounds": {}, "totals": {"asked": 16, "answered": 15, "unanswered": 1},
        "beliefs": {"confirmed": ["vmm.mixed_access"], "corrected": ["vmm.unmap_no_drain"]},
        "experiments": [
            {"name": "mixed", "groups": ["facts"], "seconds": 1.0, "rows": facts, "problems": []},
            {"name": "bw", "groups": ["bandwidth"], "seconds": 2.0, "rows": rows, "problems": ["it left 1 running process(es) behind"]},
        ],
    }  # fmt: skip


def write(folder: Path, result: dict, name: str = "imaginary-2026-01-02.json") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(result))
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RENDER), *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


def test_page_and_figures(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, out = write(tmp_path / "in", result), tmp_path / "out"
    ran = run(path, "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "imaginary-2026-01-02-layouts.svg", "imaginary-2026-01-02-roofline.svg",
    ]  # fmt: skip
    page = (out / "README.md").read_text()
    assert "## Imaginary 9000, 2026-01-02\n" in page and "**15 of 16 questions answered**" in page
    assert "PCIe 5 x16 (at the start 1 x16)" in page
    assert "| what mixed.works is | a \\| b &lt;c&gt; | confirms `vmm.mixed_access` | the design |" in page
    assert "| what race.drains is | it waits | **corrects** `vmm.unmap_no_drain` | the design |" in page
    assert "never said: the experiment died of SIGSEGV | **not answered** |" in page
    assert "- problem: it left 1 running" in page and "model" not in page
    for kind in ("layouts", "roofline"):
        assert f"(imaginary-2026-01-02-{kind}.svg)" in page
        figure = (out / f"imaginary-2026-01-02-{kind}.svg").read_text()
        assert "Imaginary 9000" in figure and "spread by chunk" in figure and "model" not in figure
    # The same input gives the same bytes.
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run(path, "--out", out).returncode == 0
    assert before == {p.name: p.read_bytes() for p in out.iterdir()}


def test_mixtures_use_the_real_share_and_answered_rows_only(result: dict) -> None:
    found = render.mixes(result)
    assert found["granule"] == [(0.125, 400.0)]
    assert [share for share, _ in found["tail"]] == pytest.approx([0, 0.1, 0.5, 1])
    assert dict(found["chunk"])[0.5] == pytest.approx(100)  # half of it over a link of 50 GB/s
    assert dict(found["tail"])[0.5] == pytest.approx(1 / (0.5 / 1000 + 0.5 / 50))


def test_figure_without_its_rows_is_left_out(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bare = copy.deepcopy(result)
    bare["experiments"] = bare["experiments"][:1]
    out = tmp_path / "out"
    assert run(write(tmp_path / "in", bare), "--out", out).returncode == 0
    assert [p.name for p in out.iterdir()] == ["README.md"] and "![" not in (out / "README.md").read_text()


def test_simulated_results_are_refused_or_labelled(result: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result["model"] = True
    path, out = write(tmp_path / "in", result), tmp_path / "out"
    ran = run(path, "--out", out)
    assert ran.returncode == 1 and "simulated device" in ran.stderr and not out.exists()
    ran = run(path, "--model")
    assert ran.returncode == 2 and "real devices only" in ran.stderr
    assert run(path, "--out", out, "--model").returncode == 0
    for made in out.iterdir():
        assert render.MODEL in made.read_text(), made.name


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99, "model": false}', '{"model": false}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    ran = run(path, "--out", tmp_path / "out")
    assert ran.returncode == 1 and "other.json" in ran.stderr and "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


def test_result_outside_the_folder_is_not_linked_from_it(result: dict, tmp_path: Path) -> None:
    ran = run(write(tmp_path, result))
    assert ran.returncode == 2 and "copy it there first" in ran.stderr


def test_committed_results_are_of_real_devices_and_rendered() -> None:
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        # Without a result there is nothing to claim: no page, no figure.
        assert not RESULTS.exists() or list(RESULTS.iterdir()) == []
        return
    for path in files:
        render.load(path, model_allowed=False)
    expected = render.render(files, RESULTS, model_allowed=False, figures=False)
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == expected
    named = {path.stem for path in files}
    assert {p.name.rpartition("-")[0] for p in RESULTS.glob("*.svg")} <= named
