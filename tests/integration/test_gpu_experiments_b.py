# SPDX-License-Identifier: Apache-2.0
"""The experiments on bandwidth, accounting, parameters, the hook's cost and applications, run on the simulated GPU.

Each must answer every row that it lists, and see what the simulator is known to do; with a belief turned round (SIMGPU_*),
it must say so. Their figures here are the simulator's model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "tests" / "gpu"
SIMK = ROOT / "csrc" / "simgpu" / "include"
KEYS = {"row", "ask", "seen", "value", "unit", "belief", "verdict", "decides", "raw"}
SMALL = ["--vram", str(512 << 20), "--ram", str(1 << 30)]


@pytest.fixture(scope="session")
def built(tmp_path_factory, cuda_include) -> Path:
    """A folder as the kit makes it: programs, their PTX and their accounting companions side by side."""
    folder = tmp_path_factory.mktemp("experiments")
    includes = [f"-I{GPU}", f"-I{SIMK}", f"-I{cuda_include}"]
    account = ["-DSIM_ACCOUNT", "-fsanitize=thread", "-nodefaultlibs"]
    commands = []
    for name in ("bw", "account", "params", "hook"):
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", *includes]
        commands.append(["cc", *flags, GPU / f"{name}.c", "-o", folder / name, "-ldl", "-lpthread", "-lm"])
    for name in ("bw", "params"):
        shutil.copy(GPU / f"{name}.ptx", folder)
        flags = ["-x", "c", "-std=gnu11", "-O2", "-fPIC", "-shared", *account, *includes]
        commands.append(["cc", *flags, GPU / f"{name}.cu", "-o", folder / f"{name}.simk.so", "-lm", "-lc"])
    for command in commands:
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture
def ask(run_sim, built, preloadable) -> Callable[..., dict[str, dict[str, Any]]]:
    """`ask("bw")` runs a program (or a script of apps/) to its end -> {row: object}; every listed row must be there once."""

    def run(name: str, *arguments: str, sim: dict[str, str] | None = None, env: dict[str, str] | None = None, timeout: float = 150):
        scripts = [path for path in (GPU / f"{name}.py", GPU / "apps" / f"{name}.py") if path.exists()]
        argv = [sys.executable, *scripts] if scripts else [built / name]
        made = {
            "GPU_CHECK_DEVICE": "sim",
            "GPU_CHECK_LIBRARY": str(preloadable),
            "GPU_CHECK_SCRATCH": str(run_sim.tmp_path),
            "GPU_CHECK_KERNELS": str(built),
            "GPU_CHECK_SOURCE": str(ROOT),
            "PYTHONPATH": str(ROOT),
            **(env or {}),
        }
        kernels = ":".join(str(path) for path in sorted(built.glob("*.simk.so")))
        settings = {"KERNELS": kernels, **(sim or {})}
        listed = run_sim([*argv, "--list"], shim=False, env=made, sim=settings).ok().stdout.split()
        assert listed and len(set(listed)) == len(listed)
        result = run_sim([*argv, *SMALL, *arguments], shim=False, vram="4G", ram="8G", env=made, sim=settings, timeout=timeout).ok()
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert all(set(row) == KEYS for row in rows)
        assert sorted(row["row"] for row in rows) == sorted(listed), str(result)
        return {row["row"]: row for row in rows}

    return run


def verdicts(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: row["verdict"] for name, row in rows.items()}


@pytest.mark.slow
def test_bandwidth(ask):
    rows = ask("bw", sim={"HBM": "1000000000000", "LINK": "20000000000", "LAUNCH": "0"})
    assert "unanswered" not in verdicts(rows).values(), [row["seen"] for row in rows.values() if row["verdict"] == "unanswered"]
    assert "corrects" not in verdicts(rows).values()
    value = {name.removeprefix("bandwidth."): row["value"] for name, row in rows.items()}
    near = {
        "hbm_read": 1000, "hbm_write": 1000, "hbm_copy": 500, "link_h2d": 20, "link_d2h": 20, "link_both": 40, "link_h2d_vmm": 20,
        "zero_copy_4": 20, "zero_copy_8": 20, "zero_copy_16": 20, "zero_write": 20, "zero_copy_hostalloc_16": 20, "overlap": 1,
        "reuse_ram": 1, "uvm_fault_in": 20, "uvm_evict": 20, "uvm_cycle": 10, "uvm_against_zero_copy": 2, "zero_copy_against_copy": 1,
    }  # fmt: skip
    for name, expected in near.items():
        assert value[name] == pytest.approx(expected, rel=0.01), name
    for layout in ("tail", "chunk", "granule"):
        for percent in (100, 99, 97, 95, 90, 75, 50, 25, 0):
            row = rows[f"bandwidth.mix_{layout}_{percent}"]
            share = row["raw"]["bytes_in_ram"] / row["raw"]["bytes"]
            assert share == pytest.approx(1 - percent / 100, abs=1 / 16)  # to the granule of a small region
            assert row["value"] == pytest.approx(1 / max(share / 20, (1 - share) / 1000), rel=0.01)
            assert row["raw"]["GB/s"]["n"] >= 5
    assert rows["bandwidth.mix_granule_50"]["raw"]["pieces"] > rows["bandwidth.mix_chunk_50"]["raw"]["pieces"]


@pytest.mark.slow
def test_bandwidth_sees_a_device_without_overlap(ask):
    rows = ask("bw", sim={"OVERLAP": "no"})
    row = rows["bandwidth.overlap"]
    assert row["verdict"] == "corrects" and row["value"] == pytest.approx(0, abs=0.05), row


@pytest.mark.slow
def test_bandwidth_says_wrong_bytes(ask, built, tmp_path):
    """Kernels that read something else than was written: no rate is given for them."""
    source = (GPU / "bw.cu").read_text().replace("(u64)(v).x + (v).y + (v).z + (v).w", "(u64)(v).x + (v).y + (v).z")
    (tmp_path / "bad.cu").write_text(source)
    subprocess.run(
        ["cc", "-x", "c", "-std=gnu11", "-O2", "-fPIC", "-shared", f"-I{GPU}", f"-I{SIMK}", "bad.cu", "-o", "bad.so"], cwd=tmp_path, check=True
    )
    rows = ask("bw", sim={"KERNELS": str(tmp_path / "bad.so")})
    read = rows["bandwidth.hbm_read"]
    assert read["verdict"] == "unanswered" and read["value"] is None, read
    assert "WRONG BYTES" in read["seen"] or "no time" in read["seen"], read


@pytest.mark.slow
def test_bandwidth_without_ram_from_cu_mem_create(ask):
    rows = ask("bw", sim={"HOST_VMM": "none"})
    assert rows["bandwidth.mix_tail_50"]["verdict"] == "unanswered"
    assert rows["bandwidth.zero_copy_hostalloc_16"]["verdict"] == "measured"
    assert rows["bandwidth.zero_copy_host_16"]["seen"].startswith("this driver refuses cuMemCreate at HOST")


@pytest.mark.slow
def test_accounting(ask):
    rows = ask("account")
    missing = {name for name, row in rows.items() if row["verdict"] != "measured"}
    assert all(name.endswith(".cgroup") for name in missing), missing  # where no memory cgroup can be seen
    # The simulator's RAM is the process's own memory, so every byte is booked on it.
    for backend in ("host_numa", "hostalloc"):
        assert rows[f"account.{backend}.status"]["value"] == pytest.approx(1, abs=0.1), rows[f"account.{backend}.status"]
        assert rows[f"account.{backend}.smaps"]["value"] == pytest.approx(1, abs=0.1)
        assert rows[f"account.{backend}.memlock"]["value"] == 1
    assert rows["account.host.meminfo"]["raw"] == {"refused": True}
    rows = ask("account", sim={"HOST_VMM": "host"})
    assert rows["account.host.status"]["value"] == pytest.approx(1, abs=0.1)
    assert rows["account.host_numa.status"]["raw"] == {"refused": True}


def test_parameters(ask):
    rows = ask("params")
    assert "unanswered" not in verdicts(rows).values() and "corrects" not in verdicts(rows).values(), rows
    assert rows["params.function"]["seen"] == rows["params.kernel"]["seen"] == "0+1 8+24 32+2 40+8 48+4"
    assert rows["params.past_the_end"]["value"] == 1  # CUDA_ERROR_INVALID_VALUE
    assert rows["params.launch_extra"]["value"] == 1


def test_parameters_see_a_kernel_that_computes_something_else(ask, tmp_path):
    (tmp_path / "bad.cu").write_text((GPU / "params.cu").read_text().replace("*two.first + *two.second", "*two.first - *two.second"))
    subprocess.run(
        ["cc", "-x", "c", "-std=gnu11", "-O2", "-fPIC", "-shared", f"-I{GPU}", f"-I{SIMK}", "bad.cu", "-o", "bad.so"], cwd=tmp_path, check=True
    )
    rows = ask("params", sim={"KERNELS": str(tmp_path / "bad.so")})
    assert rows["params.launch_array"]["verdict"] == rows["params.launch_extra"]["verdict"] == "corrects", rows


@pytest.mark.slow
def test_the_hook_s_cost(ask):
    rows = ask("hook")
    assert set(verdicts(rows).values()) == {"measured"}, rows
    for name, row in rows.items():
        assert row["raw"]["ratio"]["n"] >= 5 and row["raw"]["without_ns"]["median"] > 0, name
        assert row["value"] == pytest.approx(row["raw"]["ratio"]["median"])
        assert 0.02 < row["value"] < 50, row


@pytest.mark.parametrize("library", ["", "/nowhere/libspillshim.so"])
def test_the_hook_without_a_library(ask, library):
    rows = ask("hook", env={"GPU_CHECK_LIBRARY": library})
    assert set(verdicts(rows).values()) == {"unanswered"}
    assert "is not built" in rows["hook.launch_0"]["seen"]


@pytest.mark.no_sanitizer("the experiment sets LD_PRELOAD itself")
def test_the_hook_with_a_library_that_is_not_loaded(ask, tmp_path):
    """A file that the loader refuses: both workers would be the same, which must not pass for a free hook."""
    (tmp_path / "libspillshim.so").write_bytes(b"no ELF")
    rows = ask("hook", env={"GPU_CHECK_LIBRARY": str(tmp_path / "libspillshim.so")})
    assert set(verdicts(rows).values()) == {"unanswered"}
    assert "was not loaded" in rows["hook.launch_0"]["seen"], rows["hook.launch_0"]


@pytest.mark.slow
@pytest.mark.no_sanitizer("the experiment builds what it runs")
def test_moves(ask, native_dir, tmp_path):
    env = {"GPU_CHECK_BUILD": str(tmp_path), "GPU_CHECK_NATIVE": str(native_dir)}
    rows = ask("moves", "--vram", str(128 << 20), "--seconds", "18", env=env)
    assert set(verdicts(rows).values()) == {"measured"}, rows
    assert rows["moves.race_right"]["value"] is True, rows["moves.race_right"]
    assert rows["moves.race_demotions"]["value"] and rows["moves.race_promotions"]["value"]
    assert rows["moves.single_mib"]["value"] >= 2


def test_moves_that_cannot_be_built_say_so(ask, tmp_path):
    rows = ask("moves", env={"GPU_CHECK_BUILD": str(tmp_path), "CC": "false"})
    assert set(verdicts(rows).values()) == {"unanswered"} and "false" in rows["moves.race_right"]["seen"], rows


def test_cuda_bindings_over_a_cap(ask):
    pytest.importorskip("cuda.bindings")
    rows = ask("app_bindings")
    assert rows["bindings.regions"]["value"] is True, rows["bindings.regions"]
    assert rows["bindings.regions"]["raw"]["stats"][0]["spilled"]["bytes_total"] > 0
    table = rows["bindings.regions_paths"]["raw"]
    assert any("cuMemAlloc_v2" in symbols for modules in table.values() for symbols in modules.values()), table


@pytest.mark.no_sanitizer("the experiment runs nvcc, which does not stand a preloaded runtime")
def test_an_nvcc_program_over_a_cap(ask):
    from nvcc import need_nvcc

    nvcc = need_nvcc()
    rows = ask("app_nvcc", env={"GPU_CHECK_NVCC": str(nvcc)})
    assert rows["nvcc.static"]["verdict"] == "unanswered" and "validity check" in rows["nvcc.static"]["seen"]
    assert rows["nvcc.shared"]["value"] is True, rows["nvcc.shared"]


@pytest.mark.parametrize("name", ["app_torch", "app_cupy", "app_jax", "app_numba", "llama"])
def test_apps_that_cannot_run_here_say_so(ask, name):
    rows = ask(name)
    assert set(verdicts(rows).values()) == {"unanswered"}
    assert all(row["seen"].startswith(("not installed: ", "not on the simulated device: ")) for row in rows.values())


APP = """
import json, os, sys
from common import App, Load, MIB
WORK = '''{work}'''
def command(limits):
    return [sys.executable, "-c", WORK]
sys.exit(App("made", [Load("up", "a made-up program", command)]).main())
"""
RESULT = "import json; print(json.dumps(dict(checksum=1, peak=256 << 20)))"
CAPPED = "import os; capped = 'SPILLSHIM_VRAM_LIMIT' in os.environ\n"


@pytest.mark.parametrize(
    ("work", "verdict", "value", "seen"),
    [
        (RESULT, "unanswered", None, "nothing was spilled"),
        ("print('no result')", "unanswered", None, "without the shim it ended with 0"),
        (CAPPED + "assert not capped, 'out of memory'\n" + RESULT, "measured", False, "IT DIED over a cap of 153 MiB"),
        (CAPPED + RESULT.replace("checksum=1", "checksum=capped"), "measured", False, "ANOTHER RESULT"),
        ("import time; time.sleep(100)", "unanswered", None, "no result within"),
    ],
)
def test_how_applications_fail(run_sim, preloadable, tmp_path, work, verdict, value, seen):
    (tmp_path / "app_made.py").write_text(APP.format(work=work))
    env = {"PYTHONPATH": f"{GPU / 'apps'}:{ROOT}", "GPU_CHECK_LIBRARY": str(preloadable), "GPU_CHECK_SCRATCH": str(tmp_path), "GPU_CHECK_DEVICE": "sim"}
    result = run_sim([sys.executable, tmp_path / "app_made.py", "--seconds", "6"], shim=False, env=env).ok()
    row = json.loads(result.stdout.splitlines()[0])
    assert (row["row"], row["verdict"], row["value"]) == ("made.up", verdict, value), row
    assert seen in row["seen"], row
    assert len(result.stdout.splitlines()) == 3
