# SPDX-License-Identifier: Apache-2.0
"""The simulated driver's clock: what a kernel touches, in which tier, is what its launch lasts; nothing else is."""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest
from simcode import run_script

KERNELS = Path(__file__).resolve().parent.parent / "gpu"
INCLUDE = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "include"
MIB = 1 << 20
# Bytes per nanosecond that are powers of two, so that every expected time is exact.
RATES = {"HBM": "64000000000", "LINK": "1000000000", "LAUNCH": "0"}
HBM, LINK = 64, 1

# Milliseconds of one launch of bw_read16 or bw_fill over BYTES of memory made as KIND says.
SCRIPT = """
ctx = Ctx()
kernel_name, kind, size, passes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
module, f, p, total = handle(), handle(), u64(), device(8)
cu("cuModuleLoadData", ref(module), open(os.environ["PTX"], "rb").read() + b"\\0")
cu("cuModuleGetFunction", ref(f), module, kernel_name.encode())
if kind == "host":
    host = handle()
    cu("cuMemHostAlloc", ref(host), size, 2)
    p = u64(host.value)
elif kind == "managed":
    cu("cuMemAllocManaged", ref(p), size, 1)
else:
    cu("cuMemAlloc_v2", ref(p), size)
marks = [handle(), handle()]
for m in marks:
    cu("cuEventCreate", ref(m), 0)

def timed(work):
    ms = ctypes.c_float()
    cu("cuEventRecord", marks[0], None)
    work()
    cu("cuEventRecord", marks[1], None)
    cu("cuEventSynchronize", marks[1])
    cu("cuEventElapsedTime", ref(ms), *marks)
    return ms.value

def sweep():
    last = (u64(passes), total) if kernel_name != "bw_fill" else (u64(1),)
    assert launch(f, (4,), (256,), p, u64(size), *last) == 0

def prefetch(device):
    cu("cuMemPrefetchAsync", p, size, device, None)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[bool, Path]:
    """The kernels of the bandwidth experiment as companions: {accounting: path}."""
    folder = tmp_path_factory.mktemp("clock")
    made = {}
    for accounting in (True, False):
        made[accounting] = folder / f"{accounting}.so"
        flags = ["-DSIM_ACCOUNT", "-fsanitize=thread", "-nodefaultlibs"] if accounting else []
        source = ["-x", "c", "-std=gnu11", "-O2", "-fPIC", "-shared", f"-I{INCLUDE}", KERNELS / "bw.cu"]
        subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", *flags, *source, "-o", made[accounting], "-lm", "-lc"], check=True)
    return made


@pytest.fixture
def clock(run_sim, built):
    def run(text, kernel="bw_read16", kind="vram", size=4 * MIB, passes=1, accounting=True, **sim):
        settings = {**RATES, **sim}
        return run_script(
            run_sim, SCRIPT + textwrap.dedent(text), kernel, kind, size, passes,
            kernels=built[accounting], sim=settings, env={"PTX": str(KERNELS / "bw.ptx")},
        )[0]  # fmt: skip

    return run


SWEEP = "answer(ms=timed(sweep))"
# What each of the launch's 1024 threads adds to the one sum: a word read and written in VRAM.
SUMS = 1024 * 16


@pytest.mark.parametrize("kernel", ["bw_read4", "bw_read8", "bw_read16"])
@pytest.mark.parametrize("kind", ["vram", "host"])
def test_reads_cost_their_bytes_at_the_tier_s_rate(clock, kernel, kind):
    ns = (4 * MIB + SUMS) / HBM if kind == "vram" else 4 * MIB / LINK  # the sums are hidden behind the link
    assert clock(SWEEP, kernel, kind)["ms"] == pytest.approx(ns / 1e6, rel=1e-4)


def test_writes_cost_the_same(clock):
    assert clock(SWEEP, "bw_fill", "vram")["ms"] == pytest.approx(4 * MIB / HBM / 1e6, rel=1e-4)
    assert clock(SWEEP, "bw_fill", "host")["ms"] == pytest.approx(4 * MIB / LINK / 1e6, rel=1e-4)


def test_nothing_is_cached(clock):
    assert clock(SWEEP, kind="host", passes=3)["ms"] == pytest.approx(3 * 4 * MIB / LINK / 1e6, rel=1e-4)


def test_tiers_one_after_the_other_when_asked_for(clock):
    ns = 4 * MIB / LINK + SUMS / HBM
    assert clock(SWEEP, kind="host", OVERLAP="no")["ms"] == pytest.approx(ns / 1e6, rel=1e-5)


def test_the_figure_is_repeatable(clock):
    text = "times = [timed(sweep) for i in range(5)]\nanswer(times=times)"
    assert len(set(clock(text, kind="host")["times"])) == 1


def test_a_companion_that_does_not_account_costs_no_time(clock):
    assert clock(SWEEP, accounting=False)["ms"] == 0


def test_managed_memory_comes_over_the_link_once(clock):
    text = """
    first = timed(sweep)
    away, again = timed(lambda: prefetch(-1)), timed(lambda: prefetch(-1))
    back, then = timed(sweep), timed(sweep)
    answer(first=first, away=away, again=again, back=back, then=then)
    """
    facts = clock(text, kind="managed")
    vram, link = (4 * MIB + SUMS) / HBM / 1e6, 4 * MIB / LINK / 1e6
    assert facts["first"] == pytest.approx(vram, rel=1e-4)
    assert facts["away"] == pytest.approx(link, rel=1e-4) and facts["again"] == 0
    assert facts["back"] == pytest.approx(link, rel=1e-4)
    assert facts["then"] == pytest.approx(vram, rel=1e-4)


def test_an_unknown_kernel_that_is_probed_costs_what_it_is_given(clock, run_sim):
    facts = run_script(
        run_sim, SCRIPT + SWEEP, "bw_read16", "host", 4 * MIB, 1,
        sim={**RATES, "UNKNOWN_KERNEL": "probe"}, env={"PTX": str(KERNELS / "bw.ptx")},
    )[0]  # fmt: skip
    assert facts["ms"] == pytest.approx(4 * MIB / LINK / 1e6, rel=1e-4)


def test_a_stray_access_leaves_no_account_behind(clock):
    text = """
    good, p = p, u64(4096)  # never mapped, and nothing that a sanitizer keeps lies there
    bad = launch(f, (1,), (256,), p, u64(size), u64(1), total)
    answer(bad=bad, sync=code("cuCtxSynchronize"))
    """
    assert clock(text) == {"bad": 0, "sync": 700}
