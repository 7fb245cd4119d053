# SPDX-License-Identifier: Apache-2.0
"""What do moves cost: whole regions by order, and single ones while a program runs?

The tiering engine alone (tests/programs/tiering/migration.c) on the simulated GPU, with the published host times of memory management on
an A100 (SIMGPU_VMM: create 193 us, map 1.5, set access 36, unmap 26 a handle) and of pinning (2081 MiB/s). All times are the simulated
clock's. A rate counts everything from the order to its end; the raw rate is that of plain pinned copies on the same link. A pause
lasts from the proof that the GPU is idle to the opening of the gate. Driver calls are those of SIMGPU_TRACE, all of them.

RAM that was never pinned has to be first, at the machine's pace: that is no matter of moving and has no goal, but is shown. "Reused"
backings are those that an earlier move has left in the pool; an order that sends memory away gives VRAM back to the driver.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
PROGRAM = CSRC.parent / "tests" / "programs" / "tiering" / "migration.c"
WRAPPED = "-Wl,--wrap=spill_gate_open,--wrap=spill_contexts_idle,--wrap=clock_gettime,--wrap=nanosleep"
CHUNK, GIB = 32 << 20, 1 << 30
Part = dict[str, object]


def build(folder: Path, cuda_include: Path) -> Path:
    """The program, with the engine in it but for the clock."""
    flags = ["-std=gnu11", "-O1", f"-I{CSRC}", f"-isystem{cuda_include}"]
    engine = [path for path in sorted((CSRC / "tiering").glob("*.c")) if path.name != "clock.c"]
    others = [CSRC / "link" / "ledger.c", CSRC / "link" / "segment.c", CSRC / "shim" / "driver.c", PROGRAM]

    def one(source: Path) -> Path:
        made = folder / f"{source.parent.name}-{source.stem}.o"
        subprocess.run(["gcc", *flags, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, [*engine, *others]))
    program = folder / "migration"
    subprocess.run(["gcc", "-o", program, *objects, WRAPPED, "-ldl", "-lpthread"], check=True)
    return program


def cuda_include() -> Path:
    """Where cuda.h lies: the wheel of the test extra, else the toolkit."""
    try:
        import nvidia.cu13  # type: ignore[import-not-found]
    except ImportError:
        return Path("/usr/local/cuda/include")
    return Path(next(iter(nvidia.cu13.__path__))) / "include"


def calls_of(trace: Path) -> list[collections.Counter[str]]:
    """The driver's calls of each part of a run, by name; the clock's own are left out.

    A reading of the clock is an event recorded and waited for. The engine's questions whether an event has come are waits too
    (harness.h), so they are what is left of these.
    """
    parts: list[collections.Counter[str]] = []
    inside = False
    for line in trace.read_text().splitlines():
        words = line.split()
        if len(words) != 5:
            continue
        if words[4] == "cuDriverGetVersion":
            inside = not inside
            if inside:
                parts.append(collections.Counter())
        elif inside:
            parts[-1][words[4]] += 1
    for part in parts:
        part["cuEventQuery"] = part.pop("cuEventSynchronize", 0) - part.pop("cuEventRecord", 0)
        part.pop("cuEventElapsedTime", None)
    return parts


def measure(program: Path, sim: Path, *arguments: object, **settings: str) -> dict[str, Part]:
    """One run: its parts by name, each with its calls. `settings`: of the simulated GPU (LINK="50G")."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "proc").mkdir()
        (root / "state").mkdir(mode=0o700)
        (root / "proc" / "meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\n")
        env = {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(sim),
            "HARNESS_STATE": str(root / "state"),
            "SIMGPU_NAME": f"migration-{os.getpid()}",
            "SIMGPU_VRAM": "24G",
            "SIMGPU_RAM": "64G",
            "SIMGPU_TRACE": str(root / "trace"),
            **{f"SIMGPU_{name}": value for name, value in settings.items()},
        }
        command = [str(program), folder, *map(str, arguments)]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
        if ran.returncode:
            raise RuntimeError(f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
        parts: dict[str, Part] = {}
        for line, calls in zip(ran.stdout.splitlines(), calls_of(root / "trace"), strict=True):
            part = json.loads(line)
            parts[part["part"]] = {**part, "calls": calls}
        return parts


def rate(part: Part) -> float:
    """GiB/s of simulated time."""
    return part["bytes"] / GIB / (part["ns"] * 1e-9)


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def memory_calls(part: Part) -> int:
    return sum(n for name, n in part["calls"].items() if name.startswith("cuMem"))


def main() -> None:
    from report import Row, arguments, show

    from spillshim import native

    parser = arguments(__doc__)
    parser.add_argument("--mib", type=int, default=4096, help="size of the region that is moved by order (default 4096; needs twice that of RAM)")
    parser.add_argument("--moves", type=int, default=1000, help="single moves for each link (default 1000)")
    parser.add_argument("--cuda-include", type=Path, default=cuda_include(), metavar="DIR", help="where cuda.h lies (default %(default)s)")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    sim = native.loader_safe(native.sim_dir())
    rows: list[Row] = []

    def least(name: str, value: float, unit: str, goal: float) -> None:
        rows.append(Row(name, value, unit, f">= {goal:g}", value >= goal))

    def most(name: str, value: float, unit: str, goal: float) -> None:
        rows.append(Row(name, value, unit, f"<= {goal:g}", value <= goal))

    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder), options.cuda_include)
        raw = measure(program, sim, "raw", 64)
        rows += [Row(f"plain copy, {way}", rate(raw[f"raw {way}"]), "GiB/s") for way in ("in", "out")]
        for label, faults, goal in (("", "", 90), (", 1 in 5 NOT_READY after unmap", f"after-unmap=NOT_READY@0.2:{options.seed}", 80)):
            size = min(1024, options.mib) if faults else options.mib
            parts = measure(program, sim, "bulk", size, FAULTS=faults)
            share = {name: 100 * rate(part) / rate(raw["raw out" if name.startswith("demote") else "raw in"]) for name, part in parts.items()}
            if not faults:
                pinned = size / 2081 * 1e9 / parts["demote"]["ns"]
                rows.append(Row("demote by order, RAM pinned on the way", share["demote"], "% of plain"))
                rows.append(Row("  of its time: pinning", 100 * pinned, "%"))
            least(f"demote by order, RAM reused{label}", share["demote, again"], "% of plain", goal)
            least(f"promote by order, VRAM made anew{label}", share["promote"], "% of plain", goal)
            if not faults:
                chunks = size * (1 << 20) / CHUNK
                for name in ("demote, again", "promote"):
                    rows.append(Row(f"  driver calls, {name.split(',')[0]}", sum(parts[name]["calls"].values()) / chunks, "a chunk"))
                rows.append(Row("  longest pause by order", max(max(part["pauses_ns"]) for part in parts.values()) / 1e6, "ms"))
            swapped = measure(program, sim, "exchange", min(1024, size), FAULTS=faults)["exchange, again"]
            least(f"two regions change places, all reused{label}", 100 * rate(swapped) / rate(raw["raw in"]), "% of plain", goal)
            if not faults:
                most("  driver calls", sum(swapped["calls"].values()) / (swapped["bytes"] / GIB), "a GiB", 80)
        for link in ("25G", "50G"):
            part = measure(program, sim, "steady", options.moves, options.seed, LINK=link)["steady"]
            pauses = part["pauses_ns"]
            rows.append(Row(f"single moves, link {link}: size", part["bytes"] / 2**20, "MiB"))
            most(f"  pause, 99 % of {len(pauses)}", percentile(pauses, 0.99) / 1e6, "ms", 1)
            most("  pause, longest", max(pauses) / 1e6, "ms", 5)
        parts = measure(program, sim, "allocation", 1024)
        for name, goal in (("alloc", 2 * GIB // CHUNK + 4), ("alloc, again", 3), ("free", 3)):
            most(f"1 GiB, {name}: memory calls", memory_calls(parts[name]), "calls", goal)
        most("1 GiB, alloc, again: cuMemCreate", parts["alloc, again"]["calls"]["cuMemCreate"], "calls", 0)
    show("migration", "What do moves cost?", "simulated GPU", True, rows,
         "anchor: plain pinned copies over the same link, same run; a model, no GPU was measured", options.json)


if __name__ == "__main__":
    main()
