# SPDX-License-Identifier: Apache-2.0
"""What a program needed is known when it runs again: the shim writes it down and keeps just so much VRAM free, allocation by
allocation; where anything differs the start is as it was the first time. Counts of bytes, never times."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from clients_common import MIB, script_argv, script_env

# No holdback here: who sets one does without memory.
FINE = {"SPILLSHIM_MANAGED_MIN": "2M", "SPILLSHIM_CHUNK": "4M", "SPILLSHIM_SPILL_CHUNK": "2M", "SPILLSHIM_HEADROOM": "4M"}
VRAM, ROOM = 64, 60  # MiB: of the card, and down to the headroom

# Weights, loaded with many waits; then the cache and the work space; then steps. Sizes in MiB.
PROGRAM = """
weights, loads, cache, work, steps = map(int, sys.argv[1:6])
ctx = Ctx()
def region(size, value):
    result, p = try_alloc(size * MIB)
    if result == OUT_OF_MEMORY:  # as a caching allocator, which has freed its cache
        p = alloc(size * MIB)
    cu("cuMemsetD8_v2", p, value, size * MIB)
    return p, size * MIB, value
held = [region(weights, 1)]
for _ in range(loads):
    sync()
held += [region(cache, 2)] if cache else []
sync()
held += [region(work, 3)] if work else []
for _ in range(steps):
    sync()
for p, size, value in held:
    for at_byte in (0, size // 2, size - 1):
        assert download(p + at_byte, 1)[0] == value
"""
LATER = (80, 6, 10, 6, 8)  # the weights alone are too large
FITS = (50, 6, 10, 6, 8)  # they fit, what comes later does not


class Program:
    """Runs PROGRAM in one folder of memory; each call is a start."""

    def __init__(self, run_sim: Any, tmp_path: Path) -> None:
        self.run_sim, self.folder = run_sim, tmp_path / "memory"
        self.folder.mkdir(mode=0o700)
        self.argv = script_argv(tmp_path, PROGRAM)

    def env(self, **more: str) -> dict[str, str]:
        return script_env({**FINE, "SPILLSHIM_REMEMBER": str(self.folder), "SPILLSHIM_LOG": "info", **more})

    def __call__(self, *sizes: int, **env: str) -> dict[str, Any]:
        """Its statistics, with what was said under "stderr" and bytes that were moved under "moved"."""
        ran = self.run_sim([*self.argv, *map(str, sizes)], vram=f"{VRAM}M", ram="4G", env=self.env(**env)).ok()
        (stats,) = ran.stats
        return {**stats, "stderr": ran.stderr, "moved": stats["moves"]["promoted_bytes"] + stats["moves"]["demoted_bytes"]}

    def placed(self, *sizes: int, **env: str) -> tuple[int, ...]:
        """How much of how many regions went to RAM where nothing is moved, so that it doesn't matter when the GPU is idle."""
        stats = self(*sizes, SPILLSHIM_MOVES="order", **env)
        return stats["spilled"]["bytes_total"], stats["spilled"]["count"], "remembered:" in stats["stderr"]

    def file(self, size: int, index: int = 0) -> Path:
        return self.folder / f"{VRAM * MIB}-{index}-{size * MIB}.json"

    def record(self, size: int) -> dict[str, Any]:
        return json.loads(self.file(size).read_text())

    def forget(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir(mode=0o700)


@pytest.fixture
def program(run_sim, tmp_path) -> Program:
    return Program(run_sim, tmp_path)


@pytest.mark.parametrize(("sizes", "oom"), [(LATER, "never"), (FITS, "never"), (FITS, "soft")], ids=["weights too large", "weights fit", "soft"])
def test_the_second_start_moves_nothing_and_leaves_nothing_free(program, sizes, oom):
    weights, _, cache, work, _ = sizes
    first = program(*sizes, SPILLSHIM_OOM=oom)
    written = program.record(weights)
    # Either something was moved, or what came late stayed in RAM: the GPU may not have been found idle in time.
    assert first["moved"] > 0 or sum(ram for _, ram, _ in written["allocations"][1:]) > 0
    assert written["keep"] == (cache + work) * MIB and written["steady"] and written["kept"] == 0

    second = program(*sizes, SPILLSHIM_OOM=oom)
    assert second["moved"] == 0 and "remembered:" in second["stderr"]
    assert second["native"]["bytes_peak"] == 0, "the driver gave nothing that has to be kept for others"
    again = program.record(weights)
    assert [ram for _, ram, _ in again["allocations"]] == [(weights + cache + work - ROOM) * MIB, 0, 0]
    assert second["vram_peak"] == ROOM * MIB, "no less, and never more"
    assert again["kept"] == written["keep"] == again["keep"]


def test_what_is_kept_is_not_filled_while_the_program_loads(program):
    """A loader waits for each of its tensors: the settle pass may not take that for the end of allocating. When what was known of
    does not come, it may, after some more waits."""
    program(*LATER)
    weights, loads, cache, work, _ = LATER
    written = program.record(weights)
    waits = written["waits"]
    assert (written["after"], waits, written["rest"]) == (2, loads + 1, 0)
    held = program(weights, 2 * waits, cache, work, 8)
    assert held["moved"] == 0 and held["vram_peak"] == ROOM * MIB
    # Twice as many waits and sixteen are granted, then the pass takes a few to be sure.
    gave_up = program(weights, 2 * program.record(weights)["waits"] + 16 + 8, 0, 0, 8)
    assert gave_up["moves"]["refused_busy"] > 0 or gave_up["moves"]["promoted_bytes"] == (cache + work) * MIB


def test_other_sizes_start_as_the_first_time(program):
    other = (84, 6, 10, 6, 8)
    cold = program.placed(*other), program.placed(*LATER)
    program(*LATER)
    assert program.placed(*other) == cold[0]
    assert program.placed(*LATER) == ((80 + 16 - ROOM) * MIB, 1, True) != cold[1]


def test_another_card_starts_as_the_first_time(program):
    program(*LATER)
    limited = program(*LATER, SPILLSHIM_VRAM_LIMIT="60M")
    assert "remembered:" not in limited["stderr"]


def test_who_needs_less_than_last_time_is_not_trusted_until_two_agree(program):
    """The sizes that decide are as they were, what comes later isn't: one start keeps too much, for some waits, and no more."""
    program(*LATER)
    weights, loads, _, _, steps = LATER
    less = (weights, loads, 2, 2, steps)
    first = program(*less)
    assert first["moved"] == 0  # it ended before the wait for the rest did: in doubt
    assert (program.record(weights)["when"], program.record(weights)["steady"]) == ("doubt", False)
    second = program(*less)
    assert "not used" in second["stderr"]
    assert (program.record(weights)["keep"], program.record(weights)["steady"]) == (4 * MIB, False)
    program(*less)
    assert program.record(weights)["steady"]
    fourth = program(*less)
    assert fourth["moved"] == 0 and fourth["vram_peak"] == ROOM * MIB


def test_once_all_have_come_nothing_more_is_waited_for(program):
    """Another context length: as many allocations, smaller ones. What was kept too much is filled a little later, not after a loader's
    many waits."""
    weights, loads, cache, work, _ = LATER
    program(weights, 400, cache, work, 8)
    assert program.record(weights)["waits"] == 401
    less = program(weights, 400, 2, 2, 16 + 8)
    assert less["moves"]["refused_busy"] > 0 or less["moves"]["promoted_bytes"] == 12 * MIB
    assert (program.record(weights)["keep"], program.record(weights)["steady"]) == (4 * MIB, False)


def test_who_needs_more_than_last_time_is_remembered_so(program):
    weights, loads, cache, work, steps = LATER
    program(weights, loads, cache, 0, steps)
    assert program.record(weights)["keep"] == cache * MIB
    program(*LATER)
    assert (program.record(weights)["keep"], program.record(weights)["steady"]) == ((cache + work) * MIB, False)


def kill(program, run_sim, *sizes: int) -> None:
    """Start it, and kill it at its end."""
    waiting = Path(f"{program.argv[1]}.ready")
    waiting.unlink(missing_ok=True)
    script = Path(f"{program.argv[1]}.killed")
    script.write_text(Path(program.argv[1]).read_text() + f"open({str(waiting)!r}, 'w').close()\nimport time\ntime.sleep(60)\n")
    process = run_sim.start([program.argv[0], script, *map(str, sizes)], vram=f"{VRAM}M", ram="4G", env=program.env())
    deadline = time.monotonic() + 40
    while not waiting.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_program_is_remembered(program, run_sim):
    kill(program, run_sim, *LATER)
    assert (program.record(LATER[0])["when"], program.record(LATER[0])["keep"]) == ("rest", 16 * MIB)
    assert program(*LATER)["moved"] == 0


def test_a_program_that_is_always_killed_is_not_trusted_for_long_either(program, run_sim):
    """It needs less than it did: in doubt, then seen anew, then trusted."""
    kill(program, run_sim, *LATER)
    less = (*LATER[:2], 2, 2, 16 + 8)
    for told in (("doubt", 16, False), ("rest", 4, False), ("rest", 4, True)):
        kill(program, run_sim, *less)
        written = program.record(LATER[0])
        assert (written["when"], written["keep"] // MIB, written["steady"]) == told


def test_a_start_that_failed_while_loading_forgets_nothing_for_long(program):
    program(*LATER)
    before = program.record(LATER[0])
    program(LATER[0], 3, 0, 0, 0)
    assert program.record(LATER[0])["keep"] == before["keep"] and not program.record(LATER[0])["steady"]
    program(*LATER)
    assert program.record(LATER[0])["steady"]
    assert program(*LATER)["moved"] == 0


def test_two_models_of_one_server_are_both_remembered(program, run_sim, tmp_path):
    """A server runs a process for each model: one folder, and each finds its own."""
    other = (90, 6, 8, 4, 8)
    server = script_argv(tmp_path, """
    import subprocess
    for sizes in sys.argv[2].split("/"):
        subprocess.run([sys.executable, sys.argv[1], *sizes.split()], check=True)
    """)
    models = "/".join(" ".join(map(str, sizes)) for sizes in (LATER, other, LATER, other))
    ran = run_sim([*server, program.argv[1], models], vram=f"{VRAM}M", ram="4G", env=program.env()).ok()
    moved = [one["moves"]["promoted_bytes"] + one["moves"]["demoted_bytes"] for one in ran.stats]
    assert len(moved) == 4 and moved[2:] == [0, 0]
    assert program.record(LATER[0])["keep"] == 16 * MIB and program.record(other[0])["keep"] == 12 * MIB


def test_processes_at_the_same_time_leave_whole_files(program, run_sim):
    started = [run_sim.start([*program.argv, *map(str, LATER)], vram=f"{VRAM}M", ram="4G",
                             env=program.env(), sim={"NAME": f"{run_sim.name}-{n}"}) for n in range(4)]
    for process in started:
        run_sim.finish(process).ok()
    assert program.record(LATER[0])["keep"] == 16 * MIB
    assert [path.name for path in program.folder.iterdir()] == [program.file(LATER[0]).name], "no drafts"


def test_a_holdback_of_the_user_wins(program):
    program(*LATER)
    own = program(*LATER, SPILLSHIM_HOLDBACK="30M", SPILLSHIM_MOVES="order")
    assert own["spilled"]["bytes_total"] == (LATER[0] - ROOM + 30) * MIB
    assert "remembered:" not in own["stderr"]


def test_nothing_is_written_for_who_fits(program):
    program(20, 6, 10, 6, 8)
    assert not list(program.folder.iterdir())


def test_the_child_of_a_fork_writes_nothing(program, run_sim):
    script = Path(program.argv[1])
    script.write_text(script.read_text() + "if os.fork() == 0:\n    sys.exit(0)\nos.wait()\n")
    program(*LATER)
    assert len(list(program.folder.iterdir())) == 1 and program.record(LATER[0])["keep"] == 16 * MIB


def spoil(how: str, path: Path) -> None:
    text = path.read_text()
    path.unlink()
    if how == "cut off":
        path.write_text(text[: len(text) // 2])
    elif how == "empty":
        path.write_text("")
    elif how == "another version":
        path.write_text(text.replace('"version": 1', '"version": 2'))
    elif how == "absurd":
        path.write_text(text.replace('"keep": 16777216', '"keep": 18446744073709551615'))
    elif how == "not numbers":
        path.write_text(text.replace('"keep": 16777216', '"keep": "much"'))
    elif how == "a link":
        path.with_name("elsewhere").write_text(text)
        path.symlink_to("elsewhere")
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a folder":
        path.mkdir(mode=0o700)
    else:
        path.write_text(text)
        path.chmod(0o666)


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("empty", "absurd", "not numbers", "a pipe", "a folder")]


@pytest.mark.parametrize("how", ["cut off", "another version", "a link", "anybody's", *SLOW])
def test_a_spoilt_file_is_as_good_as_none(program, how):
    cold = program.placed(*LATER)
    program(*LATER)
    spoil(how, program.file(LATER[0]))
    assert program.placed(*LATER) == cold
    program(*LATER)
    if how == "a folder":
        assert program.file(LATER[0]).is_dir()
        return
    assert program.record(LATER[0])["keep"] == 16 * MIB and not program.file(LATER[0]).is_symlink(), "replaced by what was seen"
    assert program(*LATER)["moved"] == 0


@pytest.mark.parametrize("how", ["anybody's", "a link", *(pytest.param(how, marks=pytest.mark.slow) for how in ("gone", "relative"))])
def test_a_folder_that_is_not_ours_alone_is_not_used(program, how, tmp_path):
    cold = program.placed(*LATER)
    program(*LATER)
    where = program.folder
    if how == "anybody's":
        where.chmod(0o777)
    elif how == "a link":
        where = tmp_path / "link"
        where.symlink_to(program.folder)
    elif how == "gone":
        where = tmp_path / "gone"
    before = program.file(LATER[0]).stat().st_mtime_ns
    elsewhere = {"SPILLSHIM_REMEMBER": "memory" if how == "relative" else str(where)}
    assert program.placed(*LATER, **elsewhere) == cold
    program(*LATER, **elsewhere)
    assert program.file(LATER[0]).stat().st_mtime_ns == before, "nor is anything written there"


def test_a_full_folder_takes_no_more(program):
    for n in range(64):
        (program.folder / f"1-{n}-1.json").write_text("{}")
    program(*LATER)
    assert not program.file(LATER[0]).exists()


def test_two_devices_are_told_apart_by_what_they_hold(program, run_sim, tmp_path):
    """Each device counts its own regions; what one of them needs is not kept on the other."""
    argv = script_argv(tmp_path, """
    for device, (weights, cache) in enumerate([(80, 10), (70, 4)]):
        ctx = Ctx(device)
        alloc(weights * MIB)
        for _ in range(4):
            sync()
        alloc(cache * MIB)
        for _ in range(8):
            sync()
    """)
    how = {"vram": f"{VRAM}M", "ram": "4G", "env": program.env(), "sim": {"DEVICES": "2"}}
    run_sim(argv, **how).ok()
    assert [program.record(size)["keep"] for size in (80, 70)] == [10 * MIB, 4 * MIB]
    (second,) = run_sim(argv, **how).ok().stats
    assert second["moves"]["promoted_bytes"] + second["moves"]["demoted_bytes"] == 0
    assert [program.record(size)["allocations"][1][1] for size in (80, 70)] == [0, 0]
