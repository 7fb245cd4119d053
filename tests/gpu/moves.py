# SPDX-License-Identifier: Apache-2.0
"""Experiment: the real engine moves memory of a running program. Ten threads work on memory whose every word they know while moves are
ordered all the time (tests/programs/tiering/race.c); then what moves cost, by the machine's clock (migration.c there).
gpu-check: groups=moves order=400 expect=110 limit=300

Both are built here from csrc/ with the compiler that the kit has found. The race runs behind the shim with all its functions visible,
under a cap of 48 MiB, so that each region lies in both tiers; the rates are those of the engine alone, in chunks of 32 MiB.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("GPU_CHECK_SOURCE") or Path(__file__).resolve().parents[2])
sys.path.append(str(ROOT / "tests" / "gpu"))

from kit import contract  # noqa: E402
from kit.build import COMPILE_LIMIT, CannotBuild, Toolbox, run_tool  # noqa: E402

CSRC, PROGRAMS = ROOT / "csrc", ROOT / "tests" / "programs" / "tiering"
REAL = os.environ.get("GPU_CHECK_DEVICE", "real") != "sim"
MIB, GIB = 1 << 20, 1 << 30
SMALL = {"MANAGED_MIN": "2M", "CHUNK": "4M", "SPILL_CHUNK": "2M", "HEADROOM": "2M", "HOLDBACK": "0", "VRAM_LIMIT": "48M"}

RACE = {
    "race_right": ("every word is as its thread knows it after moves under ten threads, and nothing is left over", "bool"),
    "race_demotions": ("moves to RAM meanwhile", "count"),
    "race_promotions": ("moves to VRAM meanwhile", "count"),
    "race_cut_anew": ("moves that cut chunks anew meanwhile", "count"),
    "race_closed_ms": ("the gate was closed for at most", "ms"),
}
RATES = {
    "plain_in": ("a plain copy from pinned RAM", "GB/s"),
    "plain_out": ("a plain copy to pinned RAM", "GB/s"),
    "demote": ("a region goes to RAM by order, its RAM pinned on the way, against the plain copy", "ratio"),
    "demote_again": ("the same, RAM reused", "ratio"),
    "promote": ("it comes back, VRAM made anew", "ratio"),
    "exchange": ("two regions change places, all reused", "ratio"),
    "order_pause_ms": ("the longest pause of these orders", "ms"),
    "single_mib": ("what a single move is sized to on this link", "MiB"),
    "single_pause_p99_ms": ("the pause of a single move, the copy included, 99 % of them", "ms"),
    "single_pause_max_ms": ("the longest of them", "ms"),
    "alloc_fresh_us": ("an allocation, all made anew", "us/GiB"),
    "alloc_again_us": ("the same from kept backings", "us/GiB"),
}
DECIDES = {"race": "whether anything may be moved at all", "rate": "how much is moved in a pause, and when a move pays"}


def say(name: str, value: Any, seen: str, verdict: str = contract.MEASURED, raw: Any = None) -> None:
    table, kind = (RACE, "race") if name in RACE else (RATES, "rate")
    ask, unit = table[name]
    row = {"row": f"moves.{name}", "ask": ask, "seen": seen[:600], "value": value, "unit": unit, "belief": None, "verdict": verdict,
           "decides": DECIDES[kind], "raw": raw}  # fmt: skip
    print(json.dumps(row), flush=True)


def unanswered(names: Any, why: str) -> None:
    for name in names:
        say(name, None, why, contract.UNANSWERED)


def compile_engine(folder: Path, tools: Toolbox, include: str, *defined: str) -> dict[str, Path]:
    """Objects of all that the shim consists of, by "folder/name.c"."""
    sources = [path for part in ("tiering", "link", "shim") for kind in ("*.c", "*.S") for path in sorted((CSRC / part).glob(kind))]
    flags = ["-std=gnu11", "-g", "-O2", "-fPIC", "-ftls-model=initial-exec", f"-I{CSRC}", f"-isystem{include}", *defined]

    def one(path: Path) -> Path:
        made = folder / f"{path.parent.name}-{path.name}.o"
        run_tool([tools.compiler, *flags, "-c", path, "-o", made], COMPILE_LIMIT)
        return made

    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        return dict(zip((f"{path.parent.name}/{path.name}" for path in sources), pool.map(one, sources), strict=True))


def driver() -> Path:
    """The libcuda.so.1 that a program gets here."""
    ctypes.CDLL("libcuda.so.1")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libcuda.so" in line:
            return Path(line.split(maxsplit=5)[5])
    raise CannotBuild("libcuda.so.1 was loaded and is not mapped")


def build(folder: Path) -> tuple[Path, Path, Path]:
    """race, the library that it runs behind, migration. Raises CannotBuild."""
    tools = Toolbox(Path(os.environ["GPU_CHECK_BUILD"]), ROOT / "tests" / "gpu")
    include = str(tools.headers())
    objects = compile_engine(folder, tools, include)
    common = [tools.compiler, "-std=gnu11", "-g", "-O2", f"-I{CSRC}", f"-isystem{include}"]
    library, race, migration = folder / "libspillshim-open.so", folder / "race", folder / "migration"
    linked = ["-Wl,-z,nodelete", "-Wl,-Bsymbolic-functions", "-Wl,-soname,libspillshim-open.so", "-ldl", "-lpthread"]
    run_tool([*common, "-shared", *objects.values(), *linked, "-o", library], COMPILE_LIMIT)
    kernels = f'-DOPEN_KERNELS="{PROGRAMS / "soak_kernels.ptx"}"'
    run_tool([*common, kernels, PROGRAMS / "race.c", library, driver(), "-Wl,--allow-shlib-undefined", "-ldl", "-lpthread", "-o", race], COMPILE_LIMIT)
    parts = [made for name, made in objects.items() if name.startswith("tiering/") or name in ("link/ledger.c", "link/segment.c", "shim/driver.c")]
    wrapped = "-Wl,--wrap=spill_gate_open,--wrap=spill_contexts_idle"
    run_tool([*common, "-DHARNESS_GPU", PROGRAMS / "migration.c", *parts, wrapped, "-ldl", "-lpthread", "-o", migration], COMPILE_LIMIT)
    return race, library, migration


def ended(command: list[object], env: dict[str, str], options: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    limit = max(120, options.seconds)
    try:
        return subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, errors="replace", timeout=limit, check=False)
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        return subprocess.CompletedProcess(command, -9, said, f"still running after {limit:.0f} s")


def ask_race(race: Path, library: Path, options: argparse.Namespace, folder: Path) -> None:
    seconds = int(min(60, max(2, options.seconds / 3)))
    env = {**os.environ, **{f"SPILLSHIM_{name}": value for name, value in SMALL.items()}}
    env |= {"LD_PRELOAD": str(library), "SPILLSHIM_PROBE": str(Path(os.environ["GPU_CHECK_NATIVE"]) / "spillshim-probe"),
            "SPILLSHIM_STATE_DIR": str(folder), "SPILLSHIM_JOB": "moves", "SPILLSHIM_LOG": "warn"}  # fmt: skip
    companion = folder / "soak.simk.so"
    if not REAL:
        simk = [f"-I{CSRC / 'simgpu' / 'include'}", "-x", "c", PROGRAMS / "soak_kernels.cu"]
        run_tool(["cc", "-std=gnu11", "-O2", "-fPIC", "-shared", *simk, "-o", companion], COMPILE_LIMIT)
        env["SIMGPU_KERNELS"] = str(companion)
    ran = ended([race, options.seed, 1, 40, seconds, 512 if REAL else 0], env, options)
    told = re.search(r"(\d+) demotions, (\d+) promotions, (\d+) moves cut anew .* closed for at most ([\d.]+) ms", ran.stdout)
    last = (ran.stdout.strip().splitlines() or ["nothing printed"])[-1]
    if not told:
        say("race_right", False, f"ended with {ran.returncode}: {last} | {ran.stderr.strip()[-300:]}")
        return unanswered(list(RACE)[1:], "the race did not end")
    right = ran.returncode == 0 and last == "ok"
    say("race_right", right, last if not right else f"{seconds} s and more", raw={"said": ran.stdout.strip()[-1500:]})
    for name, value in zip(list(RACE)[1:], told.groups(), strict=True):
        say(name, float(value) if "." in value else int(value), f"in {seconds} s and more")


def parts_of(migration: Path, folder: Path, options: argparse.Namespace, *arguments: object) -> dict[str, dict[str, Any]]:
    """One run of migration: its parts by name. Raises CannotBuild with what it said when it fails."""
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    ran = ended([migration, "", *arguments], {**os.environ, "HARNESS_STATE": str(state), "HARNESS_VERBOSE": "1"}, options)
    if ran.returncode:
        raise CannotBuild(f"migration {' '.join(map(str, arguments))} ended with {ran.returncode}: {(ran.stdout + ran.stderr).strip()[-400:]}")
    return {part["part"]: part for part in map(json.loads, ran.stdout.splitlines())}


def rate(part: dict[str, Any]) -> float:
    """GB/s."""
    return part["bytes"] / part["ns"]


def ask_rates(migration: Path, folder: Path, options: argparse.Namespace) -> None:
    left = set(RATES)

    def tell(name: str, value: float, raw: Any = None) -> None:
        left.discard(name)
        say(name, round(value, 4), f"{value:.4g} {RATES[name][1]}", raw=raw)

    try:
        # Each run holds twice its region in RAM and in VRAM at most.
        mib = max(64, min(4096, options.vram // 2 // MIB, options.ram // 2 // MIB)) // 64 * 64
        plain = parts_of(migration, folder, options, "raw", min(1024, mib))
        tell("plain_in", rate(plain["raw in"]))
        tell("plain_out", rate(plain["raw out"]))
        bulk = parts_of(migration, folder, options, "bulk", mib)
        for name, part in (("demote", "demote"), ("demote_again", "demote, again"), ("promote", "promote")):
            tell(name, rate(bulk[part]) / rate(plain["raw in" if name == "promote" else "raw out"]), raw={"MiB": mib, "ns": bulk[part]["ns"]})
        tell("order_pause_ms", max(max(part["pauses_ns"]) for part in bulk.values()) / 1e6)
        swapped = parts_of(migration, folder, options, "exchange", min(1024, mib))["exchange, again"]
        tell("exchange", rate(swapped) / rate(plain["raw in"]), raw={"bytes": swapped["bytes"], "ns": swapped["ns"]})
        single = parts_of(migration, folder, options, "steady", 300, options.seed)["steady"]
        pauses = sorted(single["pauses_ns"])
        tell("single_mib", single["bytes"] / MIB)
        tell("single_pause_p99_ms", pauses[max(0, len(pauses) * 99 // 100 - 1)] / 1e6, raw={"pauses_ns": pauses})
        tell("single_pause_max_ms", pauses[-1] / 1e6)
        again = parts_of(migration, folder, options, "allocation", min(1024, mib))
        for name, part in (("alloc_fresh_us", "alloc"), ("alloc_again_us", "alloc, again")):
            tell(name, again[part]["ns"] / 1e3 * GIB / again[part]["bytes"])
    except CannotBuild as error:
        unanswered([name for name in RATES if name in left], str(error))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    for name, kind, default in (("vram", int, 12 * GIB), ("ram", int, 24 * GIB), ("seconds", float, 240.0), ("seed", int, 1)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"moves.{name}" for name in (*RACE, *RATES)))
        return 0
    folder = Path(os.environ.get("GPU_CHECK_SCRATCH") or os.getcwd())
    try:
        race, library, migration = build(folder)
    except (CannotBuild, OSError) as error:
        unanswered((*RACE, *RATES), str(error))
        return 0
    ask_race(race, library, options, folder)
    ask_rates(migration, folder, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
