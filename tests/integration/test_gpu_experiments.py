# SPDX-License-Identifier: Apache-2.0
"""The driver experiments of tests/gpu on the simulated driver: every row is answered, and each can see either answer.

What simgpu believes is confirmed on simgpu; where simgpu is told to do otherwise (SIMGPU_MIXED_COPY, SIMGPU_POISON,
SIMGPU_HOST_VMM), or where a driver stands before it that does otherwise (programs/contrary_driver.c), the rows that ask about it
must say so, and only those.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nvcc import Builder, cuda_program  # noqa: F401  (a fixture)

# Host and kernel talk through volatile words, as CUDA programs do: to C that is a race.
pytestmark = pytest.mark.no_sanitizer("the experiments' flags are volatile, not atomic", only="thread")

GPU = Path(__file__).resolve().parents[1] / "gpu"
EXPERIMENTS = [
    "probe",
    "mixed",
    "copymatrix",
    "unmaprace",
    "remapcost",
    "attrs",
    "graph",
    "migrate",
    "zero",
    "hibernate",
]
STUBS = {"hibernate": "cuCheckpointProcessLock"}  # what simgpu has in name only, and they ask for
FIELDS = {"row", "ask", "seen", "value", "unit", "belief", "verdict", "decides", "raw"}


def over_tiers(row: str) -> bool:
    """Is an operand of this row of copymatrix a range over VRAM and RAM?"""
    return bool({"vram+ram", "ram+vram"} & set(row.rpartition(".")[2].split(">")))


@dataclass
class Run:
    rows: dict[str, dict[str, Any]]
    listed: list[str]
    returncode: int
    stderr: str

    def verdicts(self, *wanted: str) -> dict[str, str]:
        """name -> seen, of the rows with these verdicts."""
        return {
            name: row["seen"]
            for name, row in self.rows.items()
            if row["verdict"] in wanted
        }


@pytest.fixture
def experiment(c_program, cuda_program: Builder, run_sim) -> Callable[..., Run]:  # noqa: F811
    """`experiment("mixed", sim={"POISON": "1"}, contrary="unmap-drains", arguments=[])` -> its rows."""

    def run(
        name: str,
        *,
        sim: dict[str, str] | None = None,
        contrary: str = "",
        arguments: tuple[str, ...] = (),
        timeout: float = 200,
    ) -> Run:
        program = c_program(
            GPU / f"{name}.c",
            link_libcuda=False,
            flags=["-std=gnu11", "-Wextra", "-Werror", "-lm"],
        )
        companion = cuda_program.companion(
            GPU / "facts.cu", "facts.simk.so", language="c"
        )
        env = {}
        if contrary:
            if platform.machine() != "x86_64":
                pytest.skip("the contrary driver is written for x86-64")
            built = c_program(
                "contrary_driver.c",
                link_libcuda=False,
                shared=True,
                flags=["-std=gnu11", f"-I{GPU}", "-lm"],
            )
            folder = run_sim.tmp_path / "contrary"
            folder.mkdir(exist_ok=True)
            if not (folder / "libcuda.so.1").exists():
                os.link(
                    built, folder / "libcuda.so.1"
                ) if built.stat().st_dev == folder.stat().st_dev else (
                    folder / "libcuda.so.1"
                ).write_bytes(built.read_bytes())
            env = {
                "LD_LIBRARY_PATH": str(folder),
                "CONTRARY": contrary,
                "CONTRARY_REAL": f"{run_sim.sim}/libcuda.so.1",
            }
        how = {
            "shim": False,
            "vram": "1G",
            "ram": "1G",
            "env": env,
            "sim": {"KERNELS": companion, **(sim or {})},
        }
        listed = run_sim([program, "--list"], **how).ok().stdout.split()
        ran = run_sim(
            [
                program,
                "--vram",
                "256M",
                "--ram",
                "256M",
                "--seconds",
                "180",
                *arguments,
            ],
            timeout=timeout,
            **how,
        )
        rows: dict[str, dict[str, Any]] = {}
        for line in ran.stdout.splitlines():
            row = json.loads(line)
            assert set(row) == FIELDS
            assert row["row"] not in rows, f"{row['row']} said twice"
            assert row["verdict"] in ("confirms", "corrects", "measured", "unanswered")
            assert row["belief"] or row["verdict"] not in ("confirms", "corrects"), row
            assert row["seen"], row
            rows[row["row"]] = row
        return Run(rows, listed, ran.returncode, ran.stderr)

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.stubs(STUBS[name])) if name in STUBS else name for name in EXPERIMENTS]
)
def test_every_row_is_answered_and_simgpu_confirms_itself(
    experiment, name: str
) -> None:
    run = experiment(name)
    assert run.returncode == 0, run.stderr
    assert sorted(run.rows) == sorted(run.listed)
    assert len(set(run.listed)) == len(run.listed)
    assert run.verdicts("unanswered", "corrects") == {}
    assert all(row.startswith(f"{name}.") for row in run.rows)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_driver_leaves_every_row_unanswered(experiment, name: str) -> None:
    run = experiment(name, contrary="none", sim={"DRIVER": "nonsense"})
    assert run.returncode == 0, run.stderr
    assert sorted(run.rows) == sorted(run.listed)
    assert set(run.verdicts("unanswered")) == set(run.listed)
    assert all("cuInit" in row["seen"] for row in run.rows.values()), run.verdicts(
        "unanswered"
    )


@pytest.mark.slow
def test_copies_over_tiers_are_seen_either_way(experiment) -> None:
    refused, allowed = (
        experiment("copymatrix"),
        experiment("copymatrix", sim={"MIXED_COPY": "allow"}),
    )
    about = {
        name
        for name, row in refused.rows.items()
        if row["belief"] == "copy.over_tiers_refused"
    }
    assert about == {
        name for name in refused.listed if over_tiers(name) and ".blocks." not in name
    }
    assert len(about) > 60
    for name in about:
        assert (
            refused.rows[name]["verdict"] == "confirms"
            and refused.rows[name]["value"] == 0
        )
        assert "INVALID_VALUE" in refused.rows[name]["seen"]
        assert (
            allowed.rows[name]["verdict"] == "corrects"
            and allowed.rows[name]["value"] == 1
        )
        assert "right" in allowed.rows[name]["seen"]
    assert set(allowed.verdicts("corrects")) == about
    # A refused call has no time; an accepted one is timed, and does as the form believes.
    for name in refused.listed:
        if ".blocks." in name and over_tiers(name):
            assert (
                refused.rows[name]["verdict"] == "measured"
                and refused.rows[name]["value"] is None
            )
            assert allowed.rows[name]["value"] is not None
    waits, returns = (
        refused.rows[f"copymatrix.blocks.{form}.ram>ram"]
        for form in ("DtoD", "DtoDAsync")
    )
    assert waits["value"] > 45 and returns["value"] < 30
    assert "waits" in waits["seen"] and "returns at once" in returns["seen"]


@pytest.mark.slow
def test_an_asynchronous_copy_that_waits_is_seen(experiment) -> None:
    run = experiment("copymatrix", contrary="async-waits")
    corrected = run.verdicts("corrects")
    assert corrected and all(
        name.startswith("copymatrix.blocks.DtoDAsync.") for name in corrected
    )
    assert all("waits" in seen for seen in corrected.values())
    assert run.verdicts("unanswered") == {}


@pytest.mark.slow
def test_a_crashing_copy_costs_its_own_rows(experiment) -> None:
    run = experiment("copymatrix", contrary="memset-crashes")
    crashed = {name for name in run.listed if ".MemsetD8Async." in name}
    assert {
        name for name, row in run.rows.items() if "crashed the process" in row["seen"]
    } == crashed
    assert all(
        row["verdict"] in ("corrects", "measured")
        for name, row in run.rows.items()
        if name in crashed
    )
    assert run.verdicts("unanswered") == {}
    assert set(run.verdicts("corrects")) <= crashed


@pytest.mark.slow
def test_a_dead_context_costs_its_own_rows(experiment) -> None:
    run = experiment("copymatrix", sim={"FAULTS": "cuMemcpyPeerAsync=sticky:ILLEGAL_ADDRESS"})
    dead = {name for name in run.listed if ".PeerAsync." in name}
    assert {
        name
        for name, row in run.rows.items()
        if "dead" in row["seen"] or "died" in row["seen"]
    } == dead
    assert run.verdicts("unanswered") == {}
    assert set(run.verdicts("corrects")) <= dead


@pytest.mark.slow
def test_a_hanging_copy_costs_its_own_rows(experiment) -> None:
    started = time.monotonic()
    run = experiment("copymatrix", sim={"FAULTS": "cuMemcpyPeer=delay:1000s"}, timeout=400)
    hung = {name for name in run.listed if ".Peer." in name}
    assert hung <= set(run.verdicts("unanswered"))
    assert any("no answer within" in run.rows[name]["seen"] for name in hung)
    # Six rows of 6 s each: the case's own limit is over before the last of them, and says so.
    others = {
        name: seen
        for name, seen in run.verdicts("unanswered").items()
        if name not in hung
    }
    assert all("were over" in seen for seen in others.values()), others
    assert run.returncode == 0
    assert time.monotonic() - started < 200


def test_poisoned_memory_is_seen(experiment) -> None:
    run = experiment("zero", sim={"POISON": "1"})
    assert set(run.verdicts("corrects")) == {"zero.vram_first", "zero.ram_first"}
    for row in ("zero.vram_first", "zero.vram_again"):
        assert run.rows[row]["raw"]["or_of_words"] == "a5" * 8


def test_recycled_memory_is_measured_not_believed(experiment) -> None:
    run = experiment("zero")
    assert {"zero.vram_first", "zero.ram_first"} <= set(run.verdicts("confirms"))
    assert {"zero.vram_again", "zero.ram_again"} <= set(run.verdicts("measured"))
    assert run.rows["zero.vram_again"]["raw"]["or_of_words"] == "a5" * 8


@pytest.mark.parametrize(
    ("kind", "works", "refused"),
    [("numa", "host_numa", "host"), ("host", "host", "host_numa")],
)
def test_the_probe_sees_which_location_works(
    experiment, kind: str, works: str, refused: str
) -> None:
    run = experiment("probe", sim={"HOST_VMM": kind})
    assert run.rows[f"probe.create_{works}"]["value"] == 1
    assert run.rows[f"probe.create_{refused}"]["value"] == 0
    assert run.rows[f"probe.confined_{works}"]["value"] == 1
    assert run.rows["probe.create_host_numa"]["verdict"] == (
        "confirms" if kind == "numa" else "corrects"
    )


def test_the_probe_survives_a_crashing_driver(experiment) -> None:
    run = experiment("probe", sim={"HOST_VMM": "crash"})
    assert run.returncode == 0
    for name in ("create_host_numa", "create_host", "confined_host_numa"):
        row = run.rows[f"probe.{name}"]
        assert (
            "Segmentation fault" in row["seen"]
            and row["verdict"] == "measured"
            and row["value"] == -1
        )
    assert run.rows["probe.hostalloc"]["value"] == 1
    assert run.verdicts("unanswered") == {}


@pytest.mark.parametrize("kind", ["none", "crash"])
def test_without_ram_mappings_nothing_about_them_is_answered(
    experiment, kind: str
) -> None:
    run = experiment("mixed", sim={"HOST_VMM": kind})
    assert run.returncode == 0
    assert set(run.verdicts("unanswered")) == set(run.listed) - set(
        run.verdicts("measured")
    )
    reason = "gives no RAM" if kind == "none" else "Segmentation fault"
    assert (
        reason in run.rows["mixed.kernel_writes_all"]["seen"]
        or "without answering" in run.rows["mixed.kernel_writes_all"]["seen"]
    )


def test_the_other_location_serves_as_well(experiment) -> None:
    run = experiment("mixed", sim={"HOST_VMM": "host"})
    assert run.verdicts("unanswered", "corrects") == {}


@pytest.mark.slow
def test_an_unmap_that_drains_is_seen(experiment) -> None:
    run = experiment("unmaprace", sim={"DOUBT": "vmm.unmap_no_drain"})
    corrected = run.verdicts("corrects")
    assert {
        "unmaprace.unmap_own",
        "unmaprace.unmap_queued",
        "unmaprace.swap_own",
        "unmaprace.unmap_beside_vram",
    } <= set(corrected)
    assert "waits for the kernel" in corrected["unmaprace.unmap_own"]
    assert run.rows["unmaprace.map_beside_vram"]["verdict"] == "confirms"


def test_a_mapping_that_outlives_its_unmap_is_seen(experiment) -> None:
    row = experiment("unmaprace", contrary="unmap-lazy").rows["unmaprace.unmap_own"]
    assert row["verdict"] == "corrects"
    assert "without error" in row["seen"]


@pytest.mark.parametrize(
    ("name", "contrary", "rows"),
    [
        ("unmaprace", "free-at-once", {"unmaprace.free_waits"}),
        ("unmaprace", "always-ready", {"unmaprace.ctx_record_busy"}),
        ("mixed", "access-single", {"mixed.one_set_access"}),
        ("migrate", "copy-loses", {"migrate.bytes_right"}),
        ("attrs", "type-is-device", {"attrs.memory_type"}),
        (
            "graph",
            "params-taken",
            {
                f"graph.memcpy_{way}_setparams_in_{where}"
                for way in ("to", "from")
                for where in ("ram", "vram")
            },
        ),
    ],
)
def test_the_opposite_of_a_belief_is_seen(
    experiment, name: str, contrary: str, rows: set[str]
) -> None:
    run = experiment(name, contrary=contrary)
    assert set(run.verdicts("corrects")) == rows


def test_time_that_is_over_is_said(experiment) -> None:
    run = experiment("copymatrix", arguments=("--seconds", "1.5"))
    assert run.returncode == 0
    assert sorted(run.rows) == sorted(run.listed)
    late = run.verdicts("unanswered")
    assert late and all("over" in seen for seen in late.values())


def test_nothing_is_left_running(experiment, run_sim) -> None:
    experiment("copymatrix", arguments=("--seconds", "1.5"))
    left = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SIMGPU_NAME={run_sim.name}".encode() in environment.read_bytes():
                left.append((environment.parent / "cmdline").read_bytes())
        except OSError:
            continue
    assert left == []


def test_the_kernels_text_is_that_of_their_source(cuda_program: Builder) -> None:  # noqa: F811
    made = cuda_program.nvcc(
        GPU / "facts.cu", "facts.ptx", "-arch=compute_75", "-ptx"
    ).read_text()
    kept = (GPU / "facts.ptx").read_text()

    def code(text: str) -> list[str]:
        lines = [
            line for line in text.splitlines() if line and not line.startswith("//")
        ]
        return [line for line in lines if not line.startswith((".version", ".target"))]

    assert code(kept) == code(made)
