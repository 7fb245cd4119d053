# SPDX-License-Identifier: Apache-2.0
"""Application profiles as the commands apply them: what the program gets, who overrides whom, and what is said of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from spillshim import checks, cli
from spillshim.profiles import load

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A program that prints its environment, known to a profile of the user's in `config`."""
    apps = tmp_path / "config/spillshim/apps"
    apps.mkdir(parents=True)
    (apps / "app.toml").write_text(
        """
summary = "prints its environment"
[[match]]
executable = ["the-app"]
[shim]
report = "virtual"
report_limit = "3%"
oom = { value = "soft", absent = ["--hard"] }
[environment]
APP_MODE = "large"
"""
    )
    path = tmp_path / "the-app"
    path.write_text(f"#!/usr/bin/env python3\n{SHOW}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def run(spillshim, tmp_path: Path):
    """`run("run", ...)` with the user's profiles -> Result."""
    return lambda *words, env=(), **how: spillshim(*words, env={"XDG_CONFIG_HOME": str(tmp_path / "config"), **dict(env)}, **how)


def got(result) -> dict[str, str]:
    """What a profile may have set of the environment that the program printed."""
    names = ("SPILLSHIM_REPORT", "SPILLSHIM_REPORT_LIMIT", "SPILLSHIM_OOM", "APP_MODE")
    return {name: value for name, value in json.loads(result.ok().stdout).items() if name in names}


ALL = {"SPILLSHIM_REPORT": "virtual", "SPILLSHIM_REPORT_LIMIT": "3%", "SPILLSHIM_OOM": "soft", "APP_MODE": "large"}
LINE = "spillshim: profile app: report virtual (+3%), oom soft, APP_MODE=large\n"


def test_the_profile_that_recognises_the_program_is_applied_and_named_once(run, app: Path) -> None:
    result = run("run", "--", app)
    assert got(result) == ALL
    assert result.stderr == LINE


@pytest.mark.parametrize(
    ("options", "env", "changed", "line"),
    [
        (["--oom", "never"], {}, {"SPILLSHIM_OOM": "never"}, "report virtual (+3%), APP_MODE=large"),
        ([], {"SPILLSHIM_OOM": "never"}, {"SPILLSHIM_OOM": "never"}, "report virtual (+3%), APP_MODE=large"),
        (["--oom", "soft"], {"SPILLSHIM_OOM": "never"}, {}, "report virtual (+3%), APP_MODE=large"),
        ([], {"APP_MODE": ""}, {"APP_MODE": ""}, "report virtual (+3%), oom soft"),
        (["--report-limit", "1G"], {}, {"SPILLSHIM_REPORT_LIMIT": "1G"}, "report virtual, oom soft, APP_MODE=large"),
        (
            ["--report", "virtual"],
            {"SPILLSHIM_OOM": "soft", "APP_MODE": "x"},
            {"APP_MODE": "x", "SPILLSHIM_REPORT_LIMIT": None},
            "sets nothing that is not set already",
        ),
    ],
)
def test_option_before_environment_before_profile(run, app: Path, options, env, changed, line: str) -> None:
    result = run("run", *options, "--", app, env=env)
    assert got(result) == {name: value for name, value in {**ALL, **changed}.items() if value is not None}
    assert result.stderr == f"spillshim: profile app: {line}\n"


def test_conditions_see_the_programs_arguments(run, app: Path) -> None:
    assert got(run("run", "--", app, "--hard")) == {name: ALL[name] for name in ALL if name != "SPILLSHIM_OOM"}


def test_none_and_another_name_and_a_file(run, app: Path, tmp_path: Path) -> None:
    result = run("run", "--profile", "none", "--", app)
    assert got(result) == {} and result.stderr == ""
    assert got(run("run", "--", app, env={"SPILLSHIM_PROFILE": "none"})) == {}
    assert got(run("run", "--profile", "cupy", "--", app)) == {"SPILLSHIM_REPORT": "vram", "SPILLSHIM_OOM": "soft"}
    mine = tmp_path / "mine.toml"
    mine.write_text('summary = "s"\nextends = "app"\n[environment]\nAPP_MODE = "mine"\n')
    assert got(run("run", "--profile", mine, "--", app, env={"SPILLSHIM_PROFILE": "none"})) == {**ALL, "APP_MODE": "mine"}


@pytest.mark.parametrize("how", [(["--quiet"], {}), ([], {"SPILLSHIM_QUIET": "1"})])
def test_quiet_is_quiet(run, app: Path, how) -> None:
    result = run("run", *how[0], "--", app, env=how[1])
    assert got(result) == ALL and result.stderr == ""


def test_a_run_inside_a_run_keeps_the_outer_ones(run, app: Path) -> None:
    result = run("run", "--profile", "cupy", "--", sys.executable, "-m", "spillshim", "run", "--", app)
    assert got(result) == {"SPILLSHIM_REPORT": "vram", "SPILLSHIM_OOM": "soft", "APP_MODE": "large"}


def test_a_bad_file_stops_the_run_before_the_program_and_none_helps(run, app: Path, tmp_path: Path) -> None:
    bad = tmp_path / "config/spillshim/apps/bad.toml"
    bad.write_text('summary = "s"\n[shim]\nreport = "virtul"\n')
    result = run("run", "--", app)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr == (
        f"spillshim: error: the profile {bad} is wrong:\n"
        "    line 3: shim.report: expected 'vram' or 'virtual', not 'virtul'\n"
        "  Mend the file, or give --profile none (which reads no profile) or --profile NAME.\n"
    )
    assert got(run("run", "--profile", "none", "--", app)) == {}
    assert got(run("run", "--profile", "app", "--", app)) == ALL


def test_an_unknown_name_is_refused(run, app: Path) -> None:
    for options, env in ((["--profile", "ap"], {}), ([], {"SPILLSHIM_PROFILE": "ap"})):
        result = run("run", *options, "--", app, env=env)
        assert (result.returncode, result.stdout) == (125, "")
        assert "no profile is named 'ap'; did you mean 'app'?" in result.stderr


def test_a_disabled_shim_lets_children_alone_too(run, app: Path, tmp_path: Path) -> None:
    (tmp_path / "config/spillshim/apps/app.toml").write_text('summary = "s"\n[[match]]\nexecutable = ["the-app"]\n[shim]\ndisable = true\n')
    result = run("run", "--", app)
    assert json.loads(result.ok().stdout)["SPILLSHIM_DISABLE"] == "1"
    assert result.stderr == "spillshim: profile app: the shim steps aside\n"


def test_env_takes_a_named_profile_and_no_other(run, app: Path) -> None:
    named = json.loads(run("env", "--json", "--profile", "app", "--oom", "never").ok().stdout)
    assert {name: named.get(name) for name in ALL} == {**ALL, "SPILLSHIM_OOM": "never"}
    assert not ALL.keys() & json.loads(run("env", "--json").ok().stdout).keys()
    by_variable = json.loads(run("env", "--json", env={"SPILLSHIM_PROFILE": "app"}).ok().stdout)
    assert by_variable.items() >= ALL.items()


def test_doctor_runs_the_program_as_run_does(run, app: Path) -> None:
    told = run("doctor", "--json", "--", app).stdout.splitlines()
    assert json.loads(told[0]).items() >= ALL.items()
    report = json.loads(told[-1])
    assert (report["profile"], report["profile_sets"]) == ("app", ALL)
    said = run("doctor", "--", app)
    assert "\nprofile app: report virtual (+3%), oom soft, APP_MODE=large\n" in said.stderr
    assert json.loads(run("doctor", "--json", "--profile", "none", "--", app).stdout.splitlines()[-1])["profile"] is None


def test_a_program_that_runs_without_the_shim_gets_no_profile(run, app: Path, c_program) -> None:
    source = "#include <stdlib.h>\nint main(void)\n{\n    return getenv(\"APP_MODE\") ? 1 : 0;\n}\n"
    app.write_bytes(c_program(source, link_libcuda=False, flags=["-static"], name="static").read_bytes())
    result = run("run", "--force", "--", app).ok()
    assert "profile" not in result.stderr and "statically linked" in result.stderr


# --- the command that tells of them, in this process -----------------------------------------------------------------


@pytest.fixture
def told(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`told("app", "--json")` -> what `spillshim profiles app --json` prints; fails when its exit code is not 0."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def call(*words: object) -> str:
        result = CliRunner().invoke(cli.main, ["profiles", *map(str, words)])
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_doctor_looks_at_every_file(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(load, "SYSTEM", tmp_path / "nowhere")
    (good,) = checks.check_profiles()
    assert (good.status, good.detail) == (checks.OK, f"{len(list(load.PACKAGE.glob('*.toml')))} built in, 1 user")
    (tmp_path / "config/spillshim/apps/bad.toml").write_text('summary = "s"\nfoo = 1\nbar = 2\n')
    (bad,) = checks.check_profiles()
    assert bad.status == checks.FAIL and bad.fix
    assert "bad.toml is wrong: line 2: foo: unknown key" in bad.detail and "line 3: bar: unknown key" in bad.detail


def test_profiles_are_listed_with_their_origin(told, tmp_path: Path) -> None:
    (tmp_path / "config/spillshim/apps/cupy.toml").write_text('summary = "mine"\nextends = "cupy"\n')
    lines = {line.split()[0]: line for line in told().splitlines()}
    assert "built in  llama.cpp: a small overflow spills" in lines["llama.cpp"]
    assert "user      prints its environment" in lines["app"]
    listed = {one["name"]: one for one in json.loads(told("--json"))}
    assert set(listed) == set(lines) - {"profile"}
    assert (listed["cupy"]["origin"], listed["cupy"]["extends"]) == ("user", ["cupy"])
    assert {"variable": "SPILLSHIM_OOM", "value": "soft", "condition": None, "from": "cupy"} in listed["cupy"]["sets"]


def test_one_profile_is_shown_whole(told) -> None:
    shown = told("app")
    for part in ("app: prints its environment", "user, ", "executable the-app", "without --hard", "APP_MODE", "large"):
        assert part in shown
    one = json.loads(told("app", "--json"))
    assert one["match"] == [{"executable": ["the-app"]}]
    expected = {**dict.fromkeys(ALL), "SPILLSHIM_OOM": "without --hard"}
    assert {row["variable"]: row["condition"] for row in one["sets"]} == expected
    assert "llama-*" in told("llama.cpp") and "common/fit.cpp" in told("llama.cpp-gpu"), "with what its base says"


def test_it_is_told_which_profile_a_program_would_get(told, app: Path) -> None:
    assert told("--", app) == LINE.removeprefix("spillshim: ").rstrip("\n") + " (it is called the-app)\n"
    assert json.loads(told("--json", "--", app))["sets"] == ALL
    assert told("--", "true") == "no profile: none recognises true\n"


def test_the_schema_is_printed(told) -> None:
    assert "report_limit" in json.loads(told("--schema"))["$defs"]["Shim"]["properties"]


# --- on a simulated card ----------------------------------------------------------------------------------------------

TOTAL = """
#include <cuda.h>
#include <stdio.h>
int main(void)
{
    CUdevice device;
    CUcontext context;
    size_t free, total, all;
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context) ||
        cuMemGetInfo(&free, &total) || cuDeviceTotalMem(&all, device) || total != all || free > total)
        return 1;
    printf("%zu\\n", total);
    return 0;
}
"""


def test_a_server_and_what_it_starts_are_told_of_the_same_memory(run, c_program, tmp_path: Path) -> None:
    """As ollama and its runner: one environment for a tree of processes, found by the name of its root."""
    asks = tmp_path / "runner"
    asks.write_bytes(c_program(TOTAL, name="total").read_bytes())
    server = tmp_path / "ollama"
    server.write_text(f'#!/bin/sh\n"{asks}" && sh -c \'"{asks}"; exit $?\'\n')
    for path in (asks, server):
        path.chmod(0o755)
    sim = ["--sim", "vram=1G,ram=4G"]
    result = run("run", *sim, "--", server, "serve").ok()
    gib = 1 << 30
    assert result.stdout == f"{gib + gib * 3 // 100}\n" * 2
    assert result.stderr.startswith("spillshim: profile ollama: report virtual (+3%), ") and result.stderr.count("\n") == 1
    assert run("run", *sim, "--profile", "none", "--", server, "serve").ok().stdout == f"{gib}\n" * 2
    assert run("run", *sim, "--report", "vram", "--", server, "serve").ok().stdout == f"{gib}\n" * 2
