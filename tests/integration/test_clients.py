# SPDX-License-Identifier: Apache-2.0
"""Kinds of unmodified clients on a card smaller than what they ask for: each dies of out-of-memory without the shim and
finishes with it, with its data and kernel results checked by the program itself (tests/programs/client_*)."""

from __future__ import annotations

import re
import sys

import pytest
from clients_common import FINE, MIB, PROGRAMS, facts, kernel_env, script_argv, script_env, spilled_bytes

SEED = 20240607
# 4 regions of 24 MiB on a card of 64 MiB
SHAPE = ["4", "24", str(SEED)]
CARD = "64M"


@pytest.fixture
def both_ways(run_sim, demo_dir):
    """Run a client without and with the shim; returns the Result of the second."""

    def run(argv, env=None, card=CARD):
        print(f"seed {SEED}")
        made = {**FINE, **kernel_env(demo_dir), **(env or {})}
        plain = run_sim(argv, vram=card, shim=False, env=made)
        assert plain.returncode == 2 and plain.stdout.split()[-1] == "oom", str(plain)
        spilled = run_sim(argv, vram=card, env=made).ok()
        assert set(spilled.stdout.split()) == {"ok"}, str(spilled)
        assert spilled_bytes(spilled.stats) > 0, spilled.stats
        return spilled

    return run


def paths_of(stats) -> dict[str, set[str]]:
    """Path (link, dlsym, ...) -> symbols that were reached by it, over all processes."""
    found: dict[str, set[str]] = {}
    for one in stats:
        for row in one["paths"]:
            found.setdefault(row["path"], set()).add(row["symbol"])
    return found


def test_c_program_linked_to_libcuda(both_ways, c_program):
    result = both_ways([c_program("client_linked.c"), *SHAPE])
    assert "cuMemAlloc_v2" in paths_of(result.stats).get("link", set()), result.stats


def test_reference_with_enough_vram(run_sim, c_program, demo_dir):
    """The client's own check is not fooled by the machine: it passes without the shim where VRAM suffices."""
    run_sim([c_program("client_linked.c"), *SHAPE], vram="1G", shim=False, env=kernel_env(demo_dir)).ok()


def test_cuda_bindings_program(both_ways):
    pytest.importorskip("cuda.bindings.driver")
    result = both_ways([sys.executable, PROGRAMS / "client_bindings.py", *SHAPE])
    assert paths_of(result.stats).keys() & {"cuGetProcAddress", "dlsym"}, result.stats


@pytest.mark.parametrize("how", ["local", pytest.param("deepbind", marks=pytest.mark.no_sanitizer("its runtime refuses RTLD_DEEPBIND before we see it"))])
def test_plugin_opened_privately(both_ways, c_program, how):
    plugin = c_program("client_plugin.c", shared=True)
    result = both_ways([c_program("client_dlopen.c", link_libcuda=False), plugin, how, *SHAPE])
    assert "cuMemAlloc_v2" in paths_of(result.stats).get("link", set()), result.stats


@pytest.mark.parametrize("how", ["local", pytest.param("deepbind", marks=pytest.mark.no_sanitizer("its runtime refuses RTLD_DEEPBIND before we see it"))])
def test_plugin_on_the_runtime_opened_privately(both_ways, c_program, sim_dir, how):
    plugin = c_program("client_plugin_runtime.c", shared=True, link_libcuda=False, flags=[f"-L{sim_dir}", "-l:libcudart.so.13"])
    result = both_ways([c_program("client_dlopen.c", link_libcuda=False), plugin, how, *SHAPE])
    reached = paths_of(result.stats)
    assert "cuMemAlloc_v2" in reached.get("cuGetProcAddress", set()) | reached.get("dlsym", set()), result.stats


def test_fork_and_exec_tree(both_ways, c_program):
    result = both_ways([c_program("client_fork.c"), "2", *SHAPE])
    # One object (and one summary line) for the parent and each exec'd child; none for the child that only exits.
    assert len(result.stats) == 3 and len({one["pid"] for one in result.stats}) == 3, result.stats
    assert all(one["spilled"]["bytes_peak"] > 0 for one in result.stats)
    summaries = re.findall(r"^spillshim\[(\d+)\]: .* spilled into RAM.* \(peak", result.stderr, re.MULTILINE)
    assert sorted(map(int, summaries)) == sorted(one["pid"] for one in result.stats), result.stderr


@pytest.mark.parametrize("report", ["vram", "virtual"])
def test_two_processes_share_one_card(run_sim, demo_dir, report):
    """Together they hold more than the card; budgets hold, free is consistent, data survive."""
    script = """
        import time
        ctx = Ctx()
        me, mine, other = sys.argv[1], sys.argv[2], sys.argv[3]
        seed = int(sys.argv[4])
        before = mem_info()
        regions = [(alloc(16 * MIB), seed + i) for i in range(3)]
        for p, s in regions:
            upload(p, pattern(16 * MIB, s))
        held = mem_info()
        open(mine, "w").close()
        deadline = time.monotonic() + 40
        while not os.path.exists(other):
            assert time.monotonic() < deadline, "the other process never got its memory"
            time.sleep(0.01)
        both = mem_info()
        for p, s in regions:
            assert np.array_equal(download(p, 16 * MIB), pattern(16 * MIB, s)), "data changed"
        open(mine + ".read", "w").close()
        while not os.path.exists(other + ".read"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for p, s in regions:
            free(p)
        done(before=before, held=held, both=both)
    """
    tmp = run_sim.tmp_path
    env = script_env({**FINE, "SPILLSHIM_REPORT": report, "SPILLSHIM_HOST_LIMIT": "1G"})
    started = []
    for i in range(2):
        argv = script_argv(tmp, script, i, tmp / f"ready{i}", tmp / f"ready{1 - i}", SEED + 100 * i)
        started.append(run_sim.start(argv, vram=CARD, env=env))
    results = [run_sim.finish(process).ok() for process in started]
    said = [facts(result.stdout) for result in results]
    for one in said:
        for free, total in (one["before"], one["held"], one["both"]):
            assert 0 <= free <= total
        assert one["held"][0] <= one["before"][0]
    assert said[0]["both"] == said[1]["both"], "two processes on one card saw different free memory at one time"
    stats = results[1].stats
    assert len(stats) == 2
    assert sum(one["vram_peak"] for one in stats) <= 64 * MIB
    assert spilled_bytes(stats) >= 96 * MIB - 64 * MIB


@pytest.mark.no_sanitizer("shadow memory is address space")
def test_under_an_address_space_limit(both_ways, c_program):
    """`ulimit -v` (batch systems set it) leaves less address space than the arena would like."""
    both_ways(["/bin/sh", "-c", f"ulimit -v {16 << 20}; exec \"$@\"", "sh", c_program("client_linked.c"), *SHAPE])


def test_cuda_never_used_leaves_no_stats(run_sim):
    result = run_sim(["/bin/true"], vram=CARD).ok()
    assert (result.stats, result.stdout, result.stderr) == ([], "", "")
