# SPDX-License-Identifier: Apache-2.0
"""`spillshim advise` as it is typed: what it prints for people and programs, and how it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gguf_models
import pytest
from click.testing import CliRunner, Result

from spillshim import cards
from spillshim.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE = ["--vram", "20G", "--ram", "64G", "--hbm", "800", "--link", "25", "--ddr", "60"]
MIB = 1 << 20


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return gguf_models.dense(tmp_path / "dense.gguf", 400 * MIB, 80)


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return gguf_models.mixture(tmp_path / "moe.gguf", 40 * MIB, 640 * MIB, 48)


def advise(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["advise", *map(str, words)])


def test_for_people(dense: Path) -> None:
    done = advise(dense, *MACHINE, "--ctx", "1024")
    assert done.exit_code == 0, done.output
    assert "Model arithmetic, not measured (batch 1, full context)" in done.stdout
    assert "1024 tokens: KV cache 320 KiB (f16), compute buffers about" in done.stdout and "(estimate)" in done.stdout
    for words in ("all in VRAM (were there enough)", "CPU split (-ngl ", "spill, interleaved", "CPU split and spill margin (-ngl ", "unified memory (UVM)"):
        assert words in done.stdout
    for source in ("800 GB/s", "--hbm", "3.8 GB/s of llama.cpp PR 8035"):
        assert source in done.stdout
    assert "A dense model this far past VRAM" in done.stdout
    command = shlex.split(done.stdout.strip().splitlines()[-1])
    assert command[:3] == ["spillshim", "run", "--holdback"] and command[5:8] == ["llama-server", "-m", str(dense)]


def test_the_example_of_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "README.md").read_text().partition("\n$ spillshim advise ")[2].partition("\n```")[0]
    words, *shown = text.splitlines()
    gguf_models.llama_70b(tmp_path / words.split()[0])
    done = advise(*words.split())
    assert len(shown) > 10
    assert [line for line in shown if line != "…" and line not in done.stdout.splitlines()] == []


def test_for_programs(mixture: Path) -> None:
    done = advise(mixture, *MACHINE, "--json", "--cache-type", "q8_0")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["label"] == "Model arithmetic, not measured"
    assert told["machine"]["link"] == {"value": 25e9, "source": "--link"} and told["machine"]["vram"]["value"] == 20 << 30
    assert (told["model"]["expert_count"], told["model"]["expert_used"], told["model"]["cache_type"]) == (128, 8, "q8_0")
    assert told["model"]["experts"] == 48 * 640 * MIB and told["model"]["path"] == str(mixture)
    ways = {way["way"]: way for way in told["ways"]}
    assert list(ways) == ["vram", "split", "experts", "spill", "both", "experts-both", "uvm", "uniform", "hot-0.01", "hot-0.04", "hot-0.1"]
    assert told["best"] in ("experts", "experts-both") and told["command"] == ways[told["best"]]["command"]
    for way in ways.values():
        assert way["seconds_per_token"] * way["tokens_per_second"] == pytest.approx(1)
        assert way["possible"] is bool(way["command"])
    assert all("assumed" in ways[key]["title"] for key in ("uniform", "hot-0.01"))


def test_what_fits_is_one_row(dense: Path) -> None:
    done = advise(dense, "--vram", "40G", *MACHINE[2:])
    assert done.exit_code == 0 and "It fits into VRAM: neither a split nor spillshim is needed." in done.stdout
    assert "CPU split" not in done.stdout
    assert done.stdout.strip().splitlines()[-1] == f"  llama-server -m {dense} -ngl 81 -c 4096"


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("kind", ["dense", "mixture", "none"])
def test_lines_fit_the_terminal(dense: Path, mixture: Path, columns: int, kind: str) -> None:
    machine = [*MACHINE[:2], "--ram", "1G", *MACHINE[4:]] if kind == "none" else MACHINE
    main_end, other_end = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}
    model = mixture if kind == "mixture" else dense
    code = subprocess.run([sys.executable, "-m", "spillshim", "advise", str(model), *machine], stdout=other_end, env=env, timeout=60, check=False).returncode
    os.close(other_end)
    shown = b""
    try:
        while data := os.read(main_end, 65536):
            shown += data
    except OSError:  # the other end is closed
        pass
    os.close(main_end)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert code == (1 if kind == "none" else 0)
    assert max(len(line) for line in lines if "llama-server" not in line) <= columns
    head = next(line for line in lines if "tokens/s" in line)
    assert head.split() == ["way", "tokens/s", "ms/token", "spilled", "on", "CPU"]
    if columns == 200:
        assert not any(line.startswith("  ") and len(line) > columns - 5 for line in lines)


def test_what_fits_nowhere(dense: Path) -> None:
    done = advise(dense, "--vram", "4G", "--ram", "2G", "--hbm", "800", "--link", "25", "--ddr", "60")
    assert done.exit_code == 1
    assert "It does not fit: 31.3 GiB are needed, VRAM and RAM together have 6 GiB" in done.stdout
    assert "Best:" not in done.stdout
    told = json.loads(advise(dense, "--vram", "4G", "--ram", "2G", "--hbm", "800", "--link", "25", "--ddr", "60", "--json").stdout)
    assert told["best"] is None and told["command"] is None


def test_no_card_and_no_options(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "found", list)
    done = advise(dense, "--ram", "1G", "--ddr", "60")
    assert done.exit_code == 2 and done.stdout == ""
    assert "not known: vram, hbm, link" in done.stderr and "--measured" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["--link", "0"], 2, "--link"),
        (["--link", "nan"], 2, "not a rate in GB/s"),
        (["--hbm", "inf"], 2, "--hbm"),
        (["--ddr", "-3"], 2, "--ddr"),
        (["--vram", "90%"], 2, "not a size"),
        (["--vram", "24"], 2, "did you mean 24G?"),
        (["--ctx", "0"], 2, "--ctx"),
        (["--cache-type", "q9"], 2, "--cache-type"),
        (["--measured", "none.json"], 1, "none.json: [Errno 2] No such file"),
    ],
)
def test_wrong_options(dense: Path, words: list[str], code: int, error: str) -> None:
    done = advise(dense, *MACHINE, *words)
    assert done.exit_code == code and error in done.stderr and done.stdout == ""


def test_wrong_files(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("This is not a model.")
    for path, error in ((tmp_path / "text.gguf", "not a GGUF file"), (tmp_path, "is a folder"), (tmp_path / "none.gguf", "No such file")):
        done = advise(path, *MACHINE)
        assert (done.exit_code, done.stdout) == (1, "") and error in done.stderr and str(path) in done.stderr


def test_it_is_listed_and_explained() -> None:
    assert "advise" in CliRunner().invoke(main, ["--help"]).stdout
    help_text = advise("--help").stdout
    for option in ("--vram", "--ram", "--hbm", "--link", "--ddr", "--measured", "--ctx", "--cache-type", "--json"):
        assert option in help_text
