# SPDX-License-Identifier: Apache-2.0
"""RAM is asked for before it is pinned: what the machine, the cgroup and other processes leave, and nothing more. The machine
is described by files that the shim reads instead of its own (SPILLSHIM_PROC_ROOT)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from clients_common import FINE, MIB, facts, script_argv, script_env

GIB = 1 << 30

# On a card of 64 MiB: one region after another, each alone and each 8 MiB larger, until out-of-memory. One at a time,
# because the files that describe the machine stay as they are while memory is pinned.
GROW = """
    ctx = Ctx()
    size, result = 16 * MIB, 0
    while size < 512 * MIB and result == 0:
        result, p = try_alloc(size)
        if result == 0:
            free(p)
        size += 8 * MIB
    done(oom=result == 2)
"""
# Regions of 16 MiB, all held, until out-of-memory.
FILL = """
    ctx = Ctx()
    count = 0
    while count < 64 and try_alloc(16 * MIB)[0] == 0:
        count += 1
    done(oom=count < 64)
"""


def machine(root: Path, total: int, available: int, cgroup: dict[str, tuple[str, int]] | None = None, here: str = "/") -> dict[str, str]:
    """A machine's files below `root`; cgroup: {"/a/b": (memory.max, memory.current)}. Returns the environment."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {total >> 10:>15} kB\nMemFree: 1 kB\nMemAvailable: {available >> 10:>11} kB\n")
    (root / "proc/self/cgroup").write_text(f"0::{here}\n")
    for path, (limit, current) in (cgroup or {}).items():
        folder = root / "sys/fs/cgroup" / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current}\n")
    return {"SPILLSHIM_PROC_ROOT": str(root)}


@pytest.fixture
def ram_peak(run_sim, tmp_path):
    """Most bytes that the program got in RAM before its out-of-memory, under this environment."""

    def run(env: dict[str, str], program: str = GROW) -> int:
        result = run_sim(script_argv(tmp_path, program), vram="64M", ram="4G", env=script_env({**FINE, **env})).ok()
        (stats,) = result.stats
        assert facts(result.stdout)["oom"] and stats["oom"] == 1
        return stats["ram_peak"]

    return run


def test_the_reserve_is_never_pinned(ram_peak, tmp_path):
    env = machine(tmp_path / "m", total=16 * GIB, available=2 * GIB + 100 * MIB)
    assert 92 * MIB <= ram_peak(env) <= 100 * MIB  # the reserve is 2 GiB: a tenth of 16 GiB is less


def test_the_reserve_can_be_chosen(ram_peak, tmp_path):
    env = machine(tmp_path / "m", total=16 * GIB, available=4 * GIB + 50 * MIB)
    assert 42 * MIB <= ram_peak({**env, "SPILLSHIM_RAM_RESERVE": "25%"}) <= 50 * MIB


def test_nothing_available_is_the_cards_own_out_of_memory(ram_peak, tmp_path):
    assert ram_peak(machine(tmp_path / "m", total=16 * GIB, available=1 * GIB)) == 0


def test_no_meminfo_means_no_ram(ram_peak, tmp_path):
    (tmp_path / "empty").mkdir()
    assert ram_peak({"SPILLSHIM_PROC_ROOT": str(tmp_path / "empty")}) == 0


@pytest.mark.parametrize("tight", ["/a", "/a/b"])
def test_the_tightest_cgroup_above_decides(ram_peak, tmp_path, tight):
    groups = {"/a": ("max", 0), "/a/b": ("max", 0), "/a/b/c": ("max", 0)}
    groups[tight] = (str(1 * GIB), 1 * GIB - 70 * MIB)
    env = machine(tmp_path / "m", total=64 * GIB, available=60 * GIB, cgroup=groups, here="/a/b/c")
    assert 62 * MIB <= ram_peak(env) <= 70 * MIB


def test_pinned_bytes_count_against_the_cgroup_even_if_it_does_not_see_them(ram_peak, tmp_path):
    """Pages of a driver may not be charged: memory.current then stays where it is."""
    env = machine(tmp_path / "m", total=64 * GIB, available=60 * GIB, cgroup={"/a": (str(100 * MIB), 0)}, here="/a")
    assert 84 * MIB <= ram_peak(env, FILL) <= 100 * MIB


def test_host_limit_is_a_share_of_the_machine(ram_peak, tmp_path):
    env = machine(tmp_path / "m", total=1 * GIB, available=900 * MIB)
    assert 94 * MIB <= ram_peak({**env, "SPILLSHIM_RAM_RESERVE": "0", "SPILLSHIM_HOST_LIMIT": "10%"}) <= 1 * GIB // 10


@pytest.fixture
def holder(run_sim, tmp_path):
    """A process that fills what `env` allows and holds it; returned when it does."""

    def start(env: dict[str, str]):
        ready = tmp_path / "ready"
        program = FILL.replace("done(oom=count < 64)", "open(sys.argv[1], 'w').close()\n    import time\n    time.sleep(60)")
        process = run_sim.start(script_argv(tmp_path, program, ready), vram="64M", ram="4G", env=script_env(env))
        deadline = time.monotonic() + 40
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        return process

    return start


def test_what_spilled_on_one_card_does_not_count_on_another(run_sim, tmp_path, holder):
    """Processes share the ledger, cards are told apart by their UUID."""
    ask = script_argv(tmp_path, "ctx = Ctx()\ndone(free=mem_info()[0], total=mem_info()[1])")
    env = script_env(FINE)
    process = holder({**FINE, "SPILLSHIM_HOST_LIMIT": "100M"})
    here = facts(run_sim(ask, vram="64M", ram="4G", env=env).ok().stdout)
    elsewhere = facts(run_sim(ask, vram="64M", ram="4G", env={**env, "SIMGPU_NAME": run_sim.name + "-other"}).ok().stdout)
    process.kill()
    process.wait()
    assert here["free"] == 0 and elsewhere["free"] == elsewhere["total"]


def test_a_killed_process_gives_its_share_back(run_sim, holder, ram_peak):
    """The ledger's slot is freed by the kernel, however the owner ends."""
    limit = {**FINE, "SPILLSHIM_HOST_LIMIT": "100M"}
    process = holder(limit)
    while_held = ram_peak(limit, FILL)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert while_held <= 16 * MIB < 80 * MIB < ram_peak(limit, FILL) <= 100 * MIB
