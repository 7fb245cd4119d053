# SPDX-License-Identifier: Apache-2.0
"""What does the simulated driver cost: a launch, the start of a program, memory that nobody touches?

A launch: callgrind's instructions of a whole process (all its threads, the C library, and the companion's kernel, which does nothing
with its two parameters in one thread), the difference between N and 2N launches divided by N. Start-up: a program that makes a primary
context and ends, against one that is linked to the same libraries and ends; by instructions, and by time over many spawns in
random order. Memory: what the process is resident with after it took 24 GiB of VRAM, and after it wrote 64 MiB of them.

Memory needs no more than its touched pages where the system overcommits (vm.overcommit_memory 0 or 1). With 2, what cuMemAlloc
takes counts against the system's commit limit, and OUT_OF_MEMORY is the answer beyond it; what cuMemCreate takes does not count.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / "tests" / "programs"
MOST_PER_LAUNCH, MOST_START = 3000, 1.5
GIB, TOUCHED = 24, 64


def build(folder: Path, sim: Path) -> tuple[Path, dict[str, str]]:
    """The program that is measured, and the variables that it runs with. `sim`: the folder of the simulated libcuda.so.1."""
    program, companion = folder / "simgpu_cost", folder / "simgpu_cost.simk.so"
    subprocess.run(["cc", "-O1", PROGRAMS / "simgpu_cost.c", "-o", program, f"-L{sim}", "-l:libcuda.so.1"], check=True)
    compiled = ["c++", "-O2", "-std=c++17", "-fPIC", "-shared", f"-I{sim / 'include'}"]
    subprocess.run([*compiled, PROGRAMS / "simgpu_cost_kernels.cc", "-o", companion], check=True)
    return program, {
        "PATH": os.environ["PATH"],
        "LD_LIBRARY_PATH": str(sim),
        "SIMGPU_VRAM": f"{GIB + 1}G",
        "SIMGPU_NAME": f"cost-{os.getpid()}",
    }


def instructions(valgrind: str, program: Path, env: Mapping[str, str], *arguments: object) -> int:
    """Instructions of a whole run, all threads."""
    command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program), *map(str, arguments)]
    ran = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=True, timeout=300)
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if not found or "simgpu:" in ran.stderr:
        raise RuntimeError(f"{command}:\n{ran.stderr}")
    return int(found[1])


def per_launch(valgrind: str, program: Path, env: Mapping[str, str], launches: int = 2000) -> float:
    """Instructions of one launch of a kernel that does nothing."""
    once, twice = (instructions(valgrind, program, env, "launch", n * launches) for n in (1, 2))
    return (twice - once) / launches


def resident(program: Path, env: Mapping[str, str], how: str) -> tuple[int, int]:
    """Bytes that the process is resident with after taking GIB GiB (`how`: alloc or vmm), and after writing TOUCHED MiB."""
    command = [program, "memory", how, str(GIB), str(TOUCHED)]
    ran = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=True, timeout=300)
    before, after = (1024 * int(word) for word in ran.stdout.split())
    return before, after


def spawns(program: Path, env: Mapping[str, str], count: int, seed: int) -> dict[str, float]:
    """Median seconds of `nothing` and of `start`, in one random order."""
    order = [what for what in ("nothing", "start") for _ in range(count)]
    random.Random(seed).shuffle(order)
    seconds: dict[str, list[float]] = {"nothing": [], "start": []}
    for what in order:
        begin = time.perf_counter()
        pid = os.posix_spawn(program, [str(program), what], dict(env))
        _, status = os.waitpid(pid, 0)
        seconds[what].append(time.perf_counter() - begin)
        if status:
            raise RuntimeError(f"{program} {what} ended with {status}")
    return {what: statistics.median(values) for what, values in seconds.items()}


def main() -> None:
    import shutil

    from report import Row, arguments, show

    from spillshim import native

    parser = arguments(__doc__)
    parser.add_argument("--spawns", type=int, default=300, help="of each kind (default 300)")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program, env = build(Path(folder), native.loader_safe(native.sim_dir()))
        valgrind = shutil.which("valgrind")
        if valgrind:
            launch = per_launch(valgrind, program, env)
            rows.append(Row("launch", launch, "instructions", f"<= {MOST_PER_LAUNCH:,}", launch <= MOST_PER_LAUNCH))
            ratio = instructions(valgrind, program, env, "start") / instructions(valgrind, program, env, "nothing")
            rows.append(Row("start / empty program, instructions", ratio, "x", f"<= {MOST_START}", ratio <= MOST_START))
        else:
            print("valgrind is not installed: no instructions counted")
        medians = spawns(program, env, options.spawns, options.seed)
        ratio = medians["start"] / medians["nothing"]
        rows += [Row(f"spawn, {what}", 1e6 * value, "us") for what, value in medians.items()]
        rows.append(Row("start / empty program, time", ratio, "x", f"<= {MOST_START}", ratio <= MOST_START))
        for how in ("alloc", "vmm"):
            before, after = resident(program, env, how)
            rows.append(Row(f"resident with {GIB} GiB, {how}", before / 2**20, "MiB", "<= 16", before <= 16 << 20))
            more = (after - before) / 2**20
            rows.append(Row(f"more after writing {TOUCHED} MiB", more, "MiB", f"<= {TOUCHED + 8}", more <= TOUCHED + 8))
    show("simgpu", "What does the simulated driver cost?", "CPU", False, rows,
         "anchor: an empty program linked to the same libraries, same run", options.json)


if __name__ == "__main__":
    main()
