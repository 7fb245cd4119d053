# SPDX-License-Identifier: Apache-2.0
"""The command line's own judgement: sizes, bad options, the place of `--`. Nothing is executed here."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from spillshim import cards, launch, simulation, sizes
from spillshim.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "vram_sizes", lambda: [])


@pytest.fixture
def executed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, libspillshim: Path
) -> list[tuple[list[str], dict[str, str]]]:
    """Collects what `run` would have executed, with a copy of the library."""
    for name in [name for name in os.environ if name.startswith(("SPILLSHIM_", "SIMGPU_"))]:
        monkeypatch.delenv(name)
    library = shutil.copy(libspillshim, tmp_path)
    monkeypatch.setenv("SPILLSHIM_LIBRARY", str(library))
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(launch, "execute", lambda found, argv, env: calls.append((list(argv), dict(env))))
    return calls


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("512M", 512 << 20),
        ("1.5T", 3 << 39),
        ("4096", 4096),
        ("8GiB", 8 << 30),
        ("16KB", 16384),
        (" 2M ", 2 << 20),
        (".5G", 1 << 29),
    ],
)
def test_sizes_are_1024_based(text: str, size: int) -> None:
    assert sizes.parse(text).size == size


def test_percentages() -> None:
    amount = sizes.parse("90%")
    assert amount.size is None
    assert amount.percent == 90
    assert amount.bytes_of(1000) == 900


@pytest.mark.parametrize(
    "text",
    ["", "G", "8X", "8GG", "eight", "1e9", "nan", "inf", "0x10", "8 G B", "٨G", "%", "101%", "8%G", "+-1", "8,5G"],
)
def test_nonsense_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError) as error:
        sizes.parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("-5G", "negative"),
        ("-1", "negative"),
        ("1024T", "more memory than any machine"),
        ("9999999999999999999999G", "more memory"),
    ],
)
def test_negative_and_absurd_sizes_say_so(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sizes.parse(text)


def test_a_bare_number_below_the_minimum_suggests_a_unit() -> None:
    with pytest.raises(ValueError, match="did you mean 8G"):
        sizes.parse("8", minimum=2 << 20)


@given(st.integers(min_value=0, max_value=1023), st.sampled_from("KMGT"))
def test_whole_numbers_with_a_unit_are_exact(number: int, unit: str) -> None:
    assert sizes.parse(f"{number}{unit}").size == number << {"K": 10, "M": 20, "G": 30, "T": 40}[unit]


@given(st.integers(min_value=0, max_value=(1 << 50) - 1))
def test_human_sizes_are_within_five_percent(size: int) -> None:
    number, unit = sizes.human(size).split()
    back = float(number) * {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
    assert math.isclose(back, size, rel_tol=0.051)


# --- options that are refused, all with exit code 2 and the value or option in the message -----------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus", "--", "true"], "--bogus"),
        (["--vram-limit", "8X", "--", "true"], "'8X' is not a size"),
        (["--vram-limit", "-5G", "--", "true"], "'-5G' is negative"),
        (["--vram-limit=-5G", "--", "true"], "'-5G' is negative"),
        (["--vram-limit", "0", "--", "true"], "less than the least sensible value"),
        (["--vram-limit", "0%", "--", "true"], "out of range"),
        (["--vram-limit", "8", "--", "true"], "did you mean 8G"),
        (["--vram-limit", "120%", "--", "true"], "between 1% and 100%"),
        (["--vram-limit", "99999T", "--", "true"], "more memory than any machine"),
        (["--vram-limit"], "requires an argument"),
        (["--host-limit", "-1%", "--", "true"], "negative"),
        (["--headroom", "lots", "--", "true"], "'lots' is not a size"),
        (["--holdback", "15 percent", "--", "true"], "'15 percent' is not a size"),
        (["--managed-min", "10%", "--", "true"], "'10%' is not a size"),
        (["--report", "honest", "--", "true"], "'honest'"),
        (["--oom", "always", "--", "true"], "'always'"),
        (["--backend", "cuda", "--", "true"], "'cuda'"),
        (["--log", "loud", "--", "true"], "'loud'"),
        (["--stats", "/no/such/folder/f", "--", "true"], "does not exist"),
        (["--stats", "/", "--", "true"], "is a folder"),
        (["--log-file", "/tmp/" + "x" * 300, "--", "true"], "longer than 255 bytes"),
        (["--sim", "vram", "--", "true"], "'vram' is not KEY=VALUE"),
        (["--sim", "speed=1G", "--", "true"], "'speed=1G' is not KEY=VALUE"),
        (["--sim", "vram=lots", "--", "true"], "vram: 'lots' is not a size"),
        (["--sim", "vram=-8G", "--", "true"], "negative"),
        (["--sim", "devices=0", "--", "true"], "devices: '0'"),
        (["--sim", "host_vmm=maybe", "--", "true"], "expected one of numa"),
        (["--sim", "name=a/b", "--", "true"], "machine's name"),
        (["true"], "'--' is missing before the program"),
        (
            ["--vram-limit", "8G", "llama-cli", "-m", "x"],
            "'--' is missing before the program: spillshim run [OPTIONS] -- llama-cli -m x",
        ),
        (["stray", "--", "true"], "unexpected 'stray' before '--'"),
        ([], "no program given"),
        (["--quiet"], "no program given"),
        (["--"], "no program after '--'"),
    ],
)
def test_wrong_usage_of_run(arguments: list[str], message: str, executed: list, no_card: None) -> None:
    result = CliRunner().invoke(main, ["run", *arguments], prog_name="spillshim")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert not executed


def test_a_vram_limit_above_the_card_is_refused(executed: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "vram_sizes", lambda: [8 << 30, 24 << 30])
    result = CliRunner().invoke(main, ["run", "--vram-limit", "25G", "--", "true"])
    assert result.exit_code == 2
    assert "25 GiB, more than the 24 GiB of VRAM" in result.stderr
    assert CliRunner().invoke(main, ["run", "--vram-limit", "24G", "--", "true"]).exit_code == 0
    assert len(executed) == 1


def test_a_vram_limit_above_the_simulated_card_is_refused(executed: list) -> None:
    result = CliRunner().invoke(main, ["run", "--sim", "vram=1G", "--vram-limit", "2G", "--", "true"])
    assert result.exit_code == 2
    assert "the simulated card" in result.stderr


def test_everything_after_the_dashes_is_the_programs(executed: list, no_card: None) -> None:
    result = CliRunner().invoke(main, ["run", "--quiet", "--", "true", "--vram-limit", "x", "--", "--help"])
    assert result.exit_code == 0, result.output
    assert executed[0][0] == ["true", "--vram-limit", "x", "--", "--help"]


_NOT_OPTIONS = ("SPILLSHIM_LIBRARY", "SPILLSHIM_JOB")


def test_options_become_variables(executed: list, no_card: None, tmp_path: Path) -> None:
    stats = tmp_path / "stats file"
    options = "--vram-limit 90% --host-limit 10G --headroom 1G --holdback 0 --managed-min 4M --report virtual --oom soft --no-spill --backend host --log debug --quiet"
    result = CliRunner().invoke(main, ["run", *options.split(), "--stats", str(stats), "--", "true"])
    assert result.exit_code == 0, result.output
    env = executed[0][1]
    assert {
        name.removeprefix("SPILLSHIM_"): value
        for name, value in env.items()
        if name.startswith("SPILLSHIM_") and name not in _NOT_OPTIONS
    } == {
        "VRAM_LIMIT": "90%",
        "HOST_LIMIT": "10G",
        "HEADROOM": "1G",
        "HOLDBACK": "0",
        "MANAGED_MIN": "4M",
        "REPORT": "virtual",
        "OOM": "soft",
        "SPILL": "0",
        "BACKEND": "host",
        "LOG": "debug",
        "QUIET": "1",
        "STATS": str(stats),
    }


def test_the_job_is_kept_when_there_is_one(executed: list, no_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    CliRunner().invoke(main, ["run", "--", "true"])
    CliRunner().invoke(main, ["run", "--", "true"])
    assert executed[0][1]["SPILLSHIM_JOB"] != executed[1][1]["SPILLSHIM_JOB"]
    monkeypatch.setenv("SPILLSHIM_JOB", "mine")
    CliRunner().invoke(main, ["run", "--", "true"])
    assert executed[2][1]["SPILLSHIM_JOB"] == "mine"


def test_relative_output_files_are_made_absolute(
    executed: list, no_card: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(main, ["run", "--stats", "s.json", "--log-file", "%p.log", "--", "true"])
    assert executed[0][1]["SPILLSHIM_STATS"] == str(tmp_path / "s.json")
    assert executed[0][1]["SPILLSHIM_LOG_FILE"] == str(tmp_path / "%p.log")


# --- the simulated machine ----------------------------------------------------------------------------------------------------


def test_sim_keys_become_variables() -> None:
    assert simulation.parse("vram=8G, ram=16G,link=25G/s,host-vmm=none") == {
        "SIMGPU_VRAM": "8G",
        "SIMGPU_RAM": "16G",
        "SIMGPU_LINK": "25G",
        "SIMGPU_HOST_VMM": "none",
    }
    assert simulation.parse("") == {}


def test_sim_keys_are_the_simulated_drivers_table() -> None:
    table = (REPOSITORY / "csrc/simgpu/config.def").read_text()
    assert [name.lower() for name in re.findall(r'^SIM_\w+\(\w+, "SIMGPU_(\w+)"', table, re.M)] == list(simulation.keys())
    for name, key in simulation.keys().items():
        assert key.help, name
        if key.kind != "text":  # the driver's default is what --sim accepts
            assert simulation.parse(f"{name}={key.default}") == {f"SIMGPU_{name.upper()}": key.default}


@pytest.mark.parametrize(
    ("text", "says"),
    [("host_vmm=usb", "numa, host, none, crash"), ("devices=9", "from 1 to 8"), ("vram=0", "vram"), ("name=a b", "name"), ("vrom=1G", "keys vram")],
)
def test_a_wrong_sim_value_names_what_is_expected(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        simulation.parse(text)


def test_each_simulated_run_has_a_machine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMGPU_NAME", raising=False)
    assert simulation.fresh_name({}) != simulation.fresh_name({})
    assert simulation.fresh_name({"SIMGPU_NAME": "shared"}) == "shared"


# --- the rest of the command ----------------------------------------------------------------------------------------------


def test_help_names_every_verb_and_imports_none() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for verb in ("run", "path", "env", "doctor", "demo"):
        assert re.search(rf"^  {verb}\s", result.output, re.MULTILINE)


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert re.fullmatch(r"spillshim, version \d+\.\d+\.\d+\n", result.output)


def test_an_unknown_verb_is_wrong_usage() -> None:
    result = CliRunner().invoke(main, ["fly"])
    assert result.exit_code == 2
    assert "fly" in result.stderr


@pytest.mark.parametrize("verb", ["run", "path", "env", "doctor", "demo"])
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(main, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
