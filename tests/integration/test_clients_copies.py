# SPDX-License-Identifier: Apache-2.0
"""Every memcpy and memset form over ranges that cross tiers, against a numpy model (tests/programs/copy_forms.py), on a
driver that takes one copy over both kinds of memory and on one that refuses it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from clients_common import FINE, MIB, PROGRAMS, facts, script_env

HOOKS = Path(__file__).resolve().parents[2] / "csrc" / "shim" / "hooks.def"
SEED = 77
COUNT = 20
FAMILIES = {
    "linear": r"cuMemcpy(Async)?(_pt..)?$|cuMemcpy(HtoD|DtoH|DtoD)(Async)?_v2",
    "peer": r"cuMemcpyPeer(Async)?",
    "2d": r"cuMemcpy2D",
    "3d": r"cuMemcpy3D(Async)?_v2",
    "3d-peer": r"cuMemcpy3DPeer",
    "array": r"cuMemcpyDtoA",
    "batch": r"cuMemcpyBatch",
    "3d-batch": r"cuMemcpy3DBatch",
    "attributes": r"cuMemcpy(3D)?WithAttributes",
    "memset": r"cuMemsetD(8|16|32)",
    "memset-2d": r"cuMemsetD2D",
}


def forms() -> list[str]:
    """Names in copy_forms.py, read without loading it (it opens the driver)."""
    ran = subprocess.run(
        [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL = lambda *a: None; import copy_forms; print(*copy_forms.FORMS)"],
        env={"PYTHONPATH": str(PROGRAMS), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stdout.split()


def test_every_hooked_copy_is_among_the_forms():
    """A hook added to the table without a form here fails this test."""
    text = HOOKS.read_text()
    hooked: set[str] = set()
    for macro, symbol, rest in re.findall(r"^(HOOK\w*)\((cuMem(?:cpy|set)\w*), ([^)]*)\)", text, re.MULTILINE):
        hooked.add(symbol)
        if macro == "HOOK_DS":
            hooked.add(symbol + "_ptds")
        elif macro == "HOOK_SZ":
            hooked.add(symbol + "_ptsz")
        elif macro == "HOOK_SAME":
            hooked.add(f"{symbol}_{rest.split(',')[-1].strip()}")
    have = {part for form in forms() for part in form.split("+")}
    assert hooked and hooked - have == set()


def test_families_cover_all_forms():
    for form in forms():
        assert [name for name, expression in FAMILIES.items() if re.match(expression, form)], form


@pytest.mark.parametrize("mixed", ["refuse", "allow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_across_tiers(run_sim, family, mixed):
    chosen = [form for form in forms() if re.match(FAMILIES[family], form)]
    print(f"seed {SEED}")
    argv = [sys.executable, PROGRAMS / "copy_forms.py", ",".join(chosen), COUNT, SEED]
    result = run_sim(argv, vram="36M", env=script_env(FINE), sim={"MIXED_COPY": mixed}, timeout=120).ok()
    said = facts(result.stdout)
    assert said["past_end"] == said["past_end_expected"]
    (stats,) = result.stats
    # Both tiers hold a good part of the two regions of 20 MiB, so random ranges cross from one to the other.
    assert stats["spilled"]["bytes_peak"] >= 4 * MIB and stats["vram_peak"] >= 8 * MIB, stats


def test_copies_between_regions_of_different_backing(run_sim):
    """Where cuMemCreate takes no host memory a region lies wholly in one tier: pinned host memory under another pointer rule."""
    print(f"seed {SEED}")
    argv = [sys.executable, PROGRAMS / "copy_forms.py", ",".join(forms()), 5, SEED]
    (stats,) = run_sim(argv, vram="36M", env=script_env(FINE), sim={"HOST_VMM": "none"}, timeout=120).ok().stats
    assert stats["backend"] == "hostalloc" and stats["spilled"]["bytes_peak"] >= 4 * MIB, stats


def test_copies_are_split_where_the_driver_needs_it(run_sim):
    """The ranges above do cross tiers: a driver that refuses mixed ranges gets more copies than the program made."""
    counts = {}
    for mixed in ("refuse", "allow"):
        trace = run_sim.tmp_path / f"trace-{mixed}"
        argv = [sys.executable, PROGRAMS / "copy_forms.py", "cuMemcpyDtoD_v2", COUNT, SEED]
        run_sim(argv, vram="36M", env=script_env(FINE), sim={"MIXED_COPY": mixed, "TRACE": str(trace)}, timeout=120).ok()
        counts[mixed] = len(re.findall(r"\bcuMemcpyDtoD", trace.read_text()))
    assert counts["refuse"] > COUNT, counts


def test_the_forms_are_right_without_the_shim(run_sim):
    """The model agrees with the driver on plain device memory: a difference above is the shim's."""
    argv = [sys.executable, PROGRAMS / "copy_forms.py", ",".join(forms()), 3, SEED]
    run_sim(argv, vram="1G", shim=False, env=script_env(), timeout=120).ok()
