# SPDX-License-Identifier: Apache-2.0
"""SPILLSHIM_REPORT_LIMIT: with report=virtual no more than so much is told beyond VRAM, by whatever question, in every process.

And SPILLSHIM_ASIDE: libraries that manage memory themselves. Both are what application profiles set.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clients_common import FINE, MIB, PROGRAMS, run_script, script_env

UNIT = PROGRAMS.parent / "unit"
ANSWERS = PROGRAMS.parent / "clients/programs"
CARD = 64 * MIB
BUDGET = 256 * MIB  # of RAM

# Asks everything after each step; `ask` makes the primary context current.
STEPS = """
    import memory_answers
    ask = memory_answers.ask
    seen, held = [ask()], []
    for size in [16, 24, 16, 20, 1, 16, 40]:
        held.append(alloc(size * MIB))
        seen.append(ask())
    for p in held:
        free(p)
        seen.append(ask())
    done(seen=seen)
"""
SIZES = [16, 24, 16, 20, 1, 16, 40]


@pytest.fixture
def reports(run_sim, demo_dir):
    """reports(**variables) -> the answers before, after each allocation and after each free, as (free, total)."""

    def run(**variables: str) -> list[tuple[int, int]]:
        env = {**FINE, "SPILLSHIM_HOST_LIMIT": "256M", "PYTHONPATH": f"{PROGRAMS}:{ANSWERS}"}
        env.update({f"SPILLSHIM_{name}": value for name, value in variables.items()})
        seen = run_script(run_sim, STEPS, env=env, demo_dir=demo_dir, vram="64M", ram="1G")["seen"]
        return [agreed(one) for one in seen]

    return run


def agreed(answers: dict[str, list[int | None]]) -> tuple[int, int]:
    """The one (free, total) that all questions answered."""
    free = {one[0] for one in answers.values() if one[0] is not None}
    total = {one[1] for one in answers.values()}
    assert len(answers) == 5 and len(free) == 1 and len(total) == 1, answers
    return free.pop(), total.pop()


@pytest.mark.parametrize("vram_limit", ["", "48M"])
@pytest.mark.parametrize(("limit", "share"), [("0", 0.0), ("8M", None), ("25%", 0.25), ("100%", 1.0), ("1T", None), ("", None)])
def test_every_answer_keeps_to_the_limit(reports, limit: str, share: float | None, vram_limit: str) -> None:
    vram = 48 * MIB if vram_limit else CARD
    beyond = int(vram * share) if share is not None else 8 * MIB if limit == "8M" else BUDGET
    seen = reports(REPORT="virtual", REPORT_LIMIT=limit, **({"VRAM_LIMIT": vram_limit} if vram_limit else {}))
    assert {total for _, total in seen} == {vram + beyond}
    held = [sum(SIZES[:count]) for count in range(len(SIZES) + 1)] + [sum(SIZES[count:]) for count in range(1, len(SIZES) + 1)]
    for (free, total), there in zip(seen, held, strict=True):
        assert 0 <= free <= max(0, total - (there // 16 * 16 - 16) * MIB), "what is held is not free"
    middle = len(SIZES)
    for before, after, size in zip(seen, seen[1 : middle + 1], SIZES):
        assert after[0] < before[0] or after[0] == before[0] == 0 or size < 16
    assert all(after[0] >= before[0] for before, after in zip(seen[middle:], seen[middle + 1 :]))
    # 133 MiB are held: with less than that in all nothing is free, and otherwise what is left.
    assert (seen[middle][0] == 0) == (vram + beyond < sum(SIZES) * MIB)
    assert seen[-1] == seen[0]


def test_a_limit_of_nothing_is_the_honest_report(reports) -> None:
    assert reports(REPORT="virtual", REPORT_LIMIT="0") == reports(REPORT="vram", REPORT_LIMIT="50%")


def test_a_limit_beyond_the_ram_budget_changes_nothing(reports) -> None:
    assert reports(REPORT="virtual", REPORT_LIMIT="4G") == reports(REPORT="virtual")


def test_all_processes_are_told_the_same(run_sim) -> None:
    """One holds memory, also beyond the limit; another, that holds nothing, and one that never used CUDA before hear the same."""
    env = script_env({**FINE, "SPILLSHIM_REPORT": "virtual", "SPILLSHIM_REPORT_LIMIT": "25%", "PYTHONPATH": f"{PROGRAMS}:{ANSWERS}"})
    holder = run_sim.tmp_path / "holder.py"
    holder.write_text(
        "from shell import *\nimport memory_answers\nmemory_answers.ask()\nheld = []\nfor line in sys.stdin:\n"
        "    free(held.pop()) if line == 'free\\n' else held.append(alloc(int(line) * MIB))\n"
        "    print(json.dumps(memory_answers.ask()), flush=True)\n"
    )
    how: dict[str, Any] = {"env": env, "vram": "64M", "ram": "1G"}

    def start(path: Path) -> subprocess.Popen[str]:
        return run_sim.start([sys.executable, path], stdin=subprocess.PIPE, **how)

    def ask(process: subprocess.Popen[str], line: str) -> tuple[int, int]:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return agreed(json.loads(process.stdout.readline()))

    holding, watching = start(holder), start(ANSWERS / "memory_answers.py")
    told = []
    for line in ["24", "24", "24", "32", "free", "free", "free", "free"]:
        said = ask(holding, line)
        assert said == ask(watching, "?")
        told.append(said)
    assert {total for _, total in told} == {80 * MIB}
    assert told[3][0] == 0, "104 of 80 MiB are held"
    assert [free for free, _ in told[4:]] == sorted(free for free, _ in told[4:]) and told[-1][0] > 60 * MIB
    third = start(ANSWERS / "memory_answers.py")
    assert ask(third, "?") == told[-1]
    for process in (holding, watching, third):
        run_sim.finish(process).ok()


def test_ram_that_another_device_has_taken_is_not_told_again(run_sim) -> None:
    """The limit is a device's, the RAM everybody's: 96 MiB in all, of which device 1 comes to hold 64."""
    script = run_sim.tmp_path / "two.py"
    script.write_text(
        "import json\nfrom simgpu_client import *\nc0, c1 = start(0), start(1)\n"
        "def look():\n    call('cuCtxSetCurrent', c0)\n    free_now, total = C.c_size_t(), C.c_size_t()\n"
        "    call('cuMemGetInfo_v2', C.byref(free_now), C.byref(total))\n    return [free_now.value, total.value]\n"
        "before = look()\ncall('cuCtxSetCurrent', c1)\nheld = [alloc(32 * MIB) for _ in range(3)]\n"
        "print(json.dumps([before, look()]))\n"
    )
    variables = {"REPORT": "virtual", "REPORT_LIMIT": "64M", "HOST_LIMIT": "96M", "HEADROOM": "0"}
    env = {**FINE, **{f"SPILLSHIM_{name}": value for name, value in variables.items()}, "PYTHONPATH": str(UNIT)}
    result = run_sim([sys.executable, script], vram="32M", ram="1G", env=env, sim={"DEVICES": "2"}).ok()
    (before, total), (after, total_then) = json.loads(result.stdout)
    assert total == total_then == (32 + 64) * MIB
    assert (result.stats[0]["spilled"]["bytes_peak"], before - after) == (64 * MIB, 32 * MIB), "64 of the 96 MiB are left, then 32"


# --- stepping aside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "aside"),
    [
        ("own_pager", True),
        ("other,own_pager", True),
        (",,own_pager.so,", True),
        ("own_pager.so.1", False),
        ("own_page", False),
        ("pager", False),
        ("", False),
    ],
)
def test_a_named_library_is_given_way_to(run_sim, c_program, names: str, aside: bool) -> None:
    """From the moment it is loaded nothing spills, and what has spilled keeps its bytes."""
    built = c_program("int spill_nothing_here;\n", link_libcuda=False, shared=True, name="empty")
    library = run_sim.tmp_path / "own_pager.so"
    shutil.copy(built, library)
    text = """
        ctx = Ctx()
        held = [alloc(24 * MIB) for _ in range(3)]
        upload(held[-1], pattern(24 * MIB, 1))
        ctypes.CDLL(sys.argv[1])
        result = try_alloc(24 * MIB)[0]
        done(result=result, same=bool((download(held[-1], 24 * MIB) == pattern(24 * MIB, 1)).all()))
    """
    answer = run_script(run_sim, text, library, env={**FINE, "SPILLSHIM_ASIDE": names}, vram="64M", ram="1G")
    assert answer["result"] == (2 if aside else 0)
    assert answer["same"]
    assert ("stepping aside: a library that SPILLSHIM_ASIDE names is loaded" in answer["stderr"]) == aside
