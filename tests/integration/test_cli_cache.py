# SPDX-License-Identifier: Apache-2.0
"""`spillshim run` remembers, `spillshim cache` shows and clears: the commands as processes, on the simulated GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# argv: MiB of weights, of what comes late. What else is there is ignored.
LATE = """
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#define CHECK(call) do { CUresult r = (call); if (r) { printf("%s: %d\\n", #call, r); return 10; } } while (0)
int main(int argc, char **argv)
{
    CUdevice device;
    CUcontext context;
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    for (int i = 1; i < 3; i++) {
        CUdeviceptr p;
        CHECK(cuMemAlloc(&p, (size_t)atoi(argv[i]) << 20));
        for (int wait = 0; wait < 6; wait++)
            CHECK(cuCtxSynchronize());
    }
    return 0;
}
"""
MIB = 1 << 20


@pytest.fixture
def late(c_program) -> Path:
    return c_program(LATE, name="late")


@pytest.fixture
def run(spillshim, clean_env, tmp_path):
    """`run(PROGRAM, *ARGS, options=())` on a card of 64 MiB; what it says of itself, and its statistics under `stats`."""
    del clean_env["SPILLSHIM_REMEMBER"]
    clean_env["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def call(program: Path, *arguments: object, options: tuple[object, ...] = (), **env: str) -> Any:
        stats = tmp_path / "stats"
        stats.unlink(missing_ok=True)
        result = spillshim("run", "--sim", "vram=64M,ram=1G", "--managed-min", "2M", "--log", "error", "--stats", stats, *options,
                           "--", program, *arguments, env=env).ok()  # fmt: skip
        result.stats = [json.loads(line) for line in stats.read_text().splitlines()]
        return result

    return call


def said(result: Any) -> list[str]:
    """The lines of spillshim itself; the library's begin with its process."""
    return [line for line in result.stderr.splitlines() if line.startswith("spillshim: ")]


def entries(spillshim) -> list[dict[str, Any]]:
    return json.loads(spillshim("cache", "list", "--json").ok().stdout.splitlines()[-1])["entries"]


TOLD = "spillshim: remembered: 10 MiB of VRAM is kept for what comes after an allocation of 80 MiB"


def test_the_second_run_knows_what_the_first_one_needed(run, spillshim, late) -> None:
    assert said(run(late, 80, 10)) == []
    second = run(late, 80, 10)
    assert said(second) == [TOLD]
    (stats,) = second.stats
    assert stats["moves"]["promoted_bytes"] == stats["moves"]["demoted_bytes"] == 0
    assert stats["spilled"]["bytes_total"] == (80 + 10 - 56) * MIB  # down to the headroom, an eighth
    (entry,) = entries(spillshim)
    assert entry["about"]["what"] == "late" and [one["keep"] for one in entry["records"]] == [10 * MIB]
    table = spillshim("cache", "list").ok().stdout
    assert entry["key"] in table and "10 MiB" in table and "80 MiB" in table

    assert said(run(late, 80, 12)) == [], "other arguments"
    assert spillshim("cache", "clear", entry["key"][:8]).ok().stdout == "cleared 1 entry\n"
    assert said(run(late, 80, 10)) == []


def test_who_does_not_want_it(run, spillshim, late) -> None:
    run(late, 80, 10, options=("--no-remember",))
    run(late, 80, 10, SPILLSHIM_REMEMBER="0")
    assert entries(spillshim) == []
    run(late, 80, 10)
    quiet = run(late, 80, 10, options=("--quiet",))
    assert quiet.stderr == "" and quiet.stats[0]["spilled"]["bytes_total"] == 34 * MIB, "used, and not told"
    own = run(late, 80, 10, options=("--holdback", "20M", "--moves", "order"))
    assert said(own) == [] and own.stats[0]["spilled"]["bytes_total"] == (80 - 36) * MIB
    own = run(late, 80, 10, options=("--moves", "order"), SPILLSHIM_HOLDBACK="20M")
    assert said(own) == [] and own.stats[0]["spilled"]["bytes_total"] == (80 - 36) * MIB


def test_a_profile_says_which_argument_is_the_model(run, spillshim, late, tmp_path) -> None:
    profile = tmp_path / "late.toml"
    profile.write_text('summary = "a test"\nmodel = ["-m"]\nsizes = ["-c"]\n')
    model, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    model.write_text("weights")
    other.write_text("other weights")

    def told(path: Path, *more: str) -> list[str]:
        lines = said(run(late, 80, 10, "-m", path, *more, options=("--profile", profile)))
        return [line for line in lines if "remembered" in line]

    assert told(model, "-p", "hello") == []
    assert told(model, "-p", "another prompt") == [TOLD]
    assert told(model, "-c", "9") == []
    assert told(other) == []
    assert sorted(entry["about"]["what"] for entry in entries(spillshim)) == ["late with a.gguf"] * 2 + ["late with b.gguf"]
    profile.write_text('summary = "a test"\nmodel = ["-m"]\n[shim]\nholdback = "20M"\n')
    assert told(model) == [], "a profile's holdback goes before what is remembered"


def test_a_cache_of_somebody_else_keeps_nothing_from_running(run, spillshim, late, tmp_path) -> None:
    run(late, 80, 10)
    (tmp_path / "cache" / "spillshim" / "remembered").chmod(0o777)
    (line,) = said(run(late, 80, 10))
    assert line.startswith("spillshim: warning: nothing is remembered: ") and "0777" in line
    listed = spillshim("cache", "list").ok()
    assert "Nothing is remembered" in listed.stdout and "0777" in listed.stderr


def test_a_spoilt_file_is_told_once_and_replaced(run, spillshim, late) -> None:
    run(late, 80, 10)
    (entry,) = entries(spillshim)
    (path,) = Path(entry["folder"]).glob("*-*.json")
    path.write_text(path.read_text()[:100])
    (line,) = said(run(late, 80, 10))
    assert line.startswith(f"spillshim: warning: ignored: {path} is damaged: ")
    assert said(run(late, 80, 10)) == [TOLD]


@pytest.mark.parametrize(("arguments", "code", "error"), [
    (("clear",), 2, "give keys"),
    (("clear", "--all", "abc"), 2, "give keys"),
    (("clear", "zz"), 125, "no key begins with 'zz'; nothing was cleared"),
    (("clear", ""), 125, "no key begins with ''"),
])  # fmt: skip
def test_clearing_the_wrong_thing_is_an_error(spillshim, tmp_path, arguments, code, error) -> None:
    result = spillshim("cache", *arguments, env={"XDG_CACHE_HOME": str(tmp_path)})
    assert result.returncode == code and error in result.stderr
