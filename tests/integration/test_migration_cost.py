# SPDX-License-Identifier: Apache-2.0
"""What moves and allocations cost in driver calls and simulated time, in small; benchmarks/migration.py prints the same at full size.
And what memory that is kept for reuse may not do: stand in anybody's way."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import migration  # noqa: E402

pytestmark = pytest.mark.no_sanitizer("it measures what is shipped: simulated time and the number of calls")


@pytest.fixture(scope="module")
def program(tmp_path_factory, cuda_include):
    return migration.build(tmp_path_factory.mktemp("migration"), cuda_include)


def test_steady_moves_are_sized_for_the_link(program, sim_dir):
    for link, size in (("25G", 16), ("50G", 34)):
        part = migration.measure(program, sim_dir, "steady", 12, 1, LINK=link)["steady"]
        assert part["bytes"] == size << 20, part
        assert len(part["pauses_ns"]) == 12 and max(part["pauses_ns"]) <= 1_000_000, part["pauses_ns"]
        assert part["calls"]["cuMemCreate"] <= 12, "each move finds what an earlier one left"


@pytest.mark.parametrize("faults", ["", "after-unmap=NOT_READY@0.2:5"])
def test_reused_backings(program, sim_dir, faults):
    part = migration.measure(program, sim_dir, "exchange", 256, FAULTS=faults)["exchange, again"]
    assert part["calls"]["cuMemCreate"] == part["calls"]["cuMemRelease"] == 0
    chunks = part["bytes"] // migration.CHUNK
    assert faults or sum(part["calls"].values()) <= 2 * chunks + 8 * 2 + 12, part["calls"]
    assert migration.rate(part) >= 0.9 * 24.975, part


def test_an_order_gives_vram_back_and_keeps_ram(program, sim_dir):
    parts = migration.measure(program, sim_dir, "bulk", 128)
    assert parts["demote"]["calls"]["cuMemCreate"] == 4
    assert parts["demote, again"]["calls"]["cuMemCreate"] == 0, "its RAM was kept when it came back"
    assert parts["demote, again"]["calls"]["cuMemRelease"] == 4, "its VRAM was not"


def test_an_allocation_and_its_free(program, sim_dir):
    parts = migration.measure(program, sim_dir, "allocation", 1024)
    assert migration.memory_calls(parts["alloc"]) <= 2 * 32 + 4
    assert parts["alloc, again"]["calls"]["cuMemCreate"] == 0
    assert migration.memory_calls(parts["alloc, again"]) <= 3 and migration.memory_calls(parts["free"]) <= 3


KEEPS = """
#include <cuda.h>
#include <stdio.h>
int main(void)
{
    CUcontext ctx;
    CUdeviceptr p, again;
    CUmemGenericAllocationHandle h;
    CUmemAllocationProp prop = { .type = CU_MEM_ALLOCATION_TYPE_PINNED, .location = { CU_MEM_LOCATION_TYPE_DEVICE, 0 } };
    size_t before, after, last, total, size = (size_t)1 << 30;
    if (cuInit(0) || cuDevicePrimaryCtxRetain(&ctx, 0) || cuCtxSetCurrent(ctx) || cuMemGetInfo(&before, &total))
        return 1;
    if (cuMemAlloc(&p, size) || cuMemFree(p) || cuMemGetInfo(&after, &total))
        return 2;
    if (cuMemAlloc(&again, size) || cuMemFree(again))
        return 3;
    /* All that is said to be free is to be had. */
    if (cuMemCreate(&h, after / size * size, &prop, 0) || cuMemGetInfo(&last, &total))
        return 4;
    printf("%d %d %d\\n", before == after, p == again, last == after - after / size * size);
    return 0;
}
"""


def test_what_is_kept_is_free_to_the_program(c_program, run_sim, tmp_path):
    result = run_sim([c_program(KEEPS, name="keeps")], vram="24G", ram="4G", sim={"TRACE": str(tmp_path / "trace")}).ok()
    assert result.stdout.split() == ["1", "1", "1"], result
    lines = [line.split() for line in (tmp_path / "trace").read_text().splitlines()]
    created = [words for words in lines if words[4:] == ["cuMemCreate"] and words[0] == lines[0][0]]  # the probe is another process
    assert len(created) == 32 + 2, "one region, and a handle that was refused until the region was given up"
    assert result.stats[0]["spilled"]["count"] == 0


LETS_GO = """
#include <cuda.h>
#include <stdio.h>
int main(void)
{
    CUcontext ctx;
    CUdeviceptr p;
    if (cuInit(0) || cuDevicePrimaryCtxRetain(&ctx, 0) || cuCtxSetCurrent(ctx) || cuMemAlloc(&p, (size_t)256 << 20) || cuMemFree(p))
        return 1;
    puts("freed");
    fflush(stdout);
    return getchar() == EOF ? 0 : 2;
}
"""


def test_what_nobody_asks_for_any_more_goes_back_to_the_driver(c_program, run_sim, tmp_path):
    """Without any further call of the program: its thread in the background sees that nothing is used again."""
    trace = tmp_path / "trace"

    def released() -> int:
        return sum(line.split()[4:] == ["cuMemRelease"] for line in trace.read_text().splitlines())

    program = c_program(LETS_GO, name="lets_go")
    process = run_sim.start([program], stdin=subprocess.PIPE, vram="24G", ram="4G", sim={"TRACE": str(trace)})
    assert process.stdout.readline() == "freed\n"
    before, patience = released(), time.monotonic() + 60
    while released() < before + 8 and time.monotonic() < patience:
        time.sleep(0.1)
    assert released() == before + 8, "256 MiB in chunks of 32"
    run_sim.finish(process, input="").ok()
