# SPDX-License-Identifier: Apache-2.0
"""The frame of the application experiments: an unmodified program runs uncapped and without the shim, then over a VRAM cap
through `spillshim run`, and must print the same checksum. Imported by app_*.py and llama.py; it is not an experiment itself.

A program under test is any command whose last line of stdout is a JSON object with "checksum" (anything), and, if it knows
them, "peak" (most bytes of VRAM it asked for at a time) and "seconds" (of its work). The cap is a share of what it needs.
Rows: APP.LOAD (same result, and something was spilled), APP.LOAD_time (how many times slower), APP.LOAD_paths (by which path
each entry of the driver was reached). What cannot run here is unanswered with its reason; nothing passes by default.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
REAL = os.environ.get("GPU_CHECK_DEVICE", "real") != "sim"
PAST_STATIC = "NVIDIA's runtime accepts no simulated driver (its validity check is not imitated)"


class NotHere(Exception):
    """Why a program cannot run on this machine."""


class Died(Exception):
    """How a program that ran ended without a result."""


@dataclass
class Limits:
    """What the kit allows: bytes, bytes, seconds, seed."""

    vram: int = 12 * GIB
    ram: int = 24 * GIB
    seconds: float = 120.0
    seed: int = 1


@dataclass
class Load:
    """One program of an application: `command(limits)` gives its argv or raises NotHere."""

    name: str
    ask: str
    command: Callable[[Limits], Sequence[str]]
    cap: float = 0.6  # of the bytes that it says it needs
    env: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()  # of `spillshim run`
    preload: bool = True  # False: it uses the allocators itself when it sees SPILLSHIM_VRAM_LIMIT


@dataclass
class Ran:
    """How one run ended."""

    result: dict[str, Any]
    stats: list[dict[str, Any]]
    wall: float


def need(*modules: str) -> None:
    """Raise NotHere unless each of these Python packages is installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise NotHere(f"not installed: {module}")


def need_gpu(why: str = PAST_STATIC) -> None:
    """Raise NotHere on the simulated device."""
    if not REAL:
        raise NotHere(f"not on the simulated device: {why}")


def say(row: str, ask: str, seen: str, verdict: str, value: Any = None, unit: str | None = None, decides: str = "", raw: Any = None) -> None:
    """One row on stdout, at once. Application rows stand for no belief of the simulator."""
    made = {
        "row": row, "ask": ask, "seen": seen, "value": value, "unit": unit, "belief": None, "verdict": verdict, "decides": decides,
        "raw": raw,
    }  # fmt: skip
    print(json.dumps(made), flush=True)


def _tail(text: str, lines: int = 4) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])[-500:]


def run(argv: Sequence[str], env: Mapping[str, str], seconds: float, stats: Path | None = None) -> Ran:
    """Run a program to its end. Raises Died when it ends without a result, NotHere when it cannot run or finish in time."""
    started = time.monotonic()
    try:
        ran = subprocess.run(
            list(argv), env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=max(1.0, seconds),
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotHere(f"no result within {seconds:.0f} s") from None
    wall = time.monotonic() - started
    lines = ran.stdout.strip().splitlines()
    try:
        result = json.loads(lines[-1]) if lines else None
    except ValueError:
        result = None
    if isinstance(result, dict) and "unanswered" in result:
        raise NotHere(result["unanswered"])
    if ran.returncode or not isinstance(result, dict) or "checksum" not in result:
        raise Died(f"ended with {ran.returncode}: {_tail(ran.stderr or ran.stdout) or 'no output'}")
    told = [json.loads(line) for line in stats.read_text().splitlines()] if stats and stats.exists() else []
    return Ran(result, told, wall)


def paths_of(stats: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """In words, and in full: {path: {module: {symbol: calls}}} over all processes."""
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for process in stats:
        for entry in process.get("paths", []):
            found[entry["path"]][entry["module"]][entry["symbol"]] += entry["calls"]
    words = []
    for path, modules in sorted(found.items()):
        for module, symbols in sorted(modules.items()):
            used = sorted((s for s, calls in symbols.items() if calls), key=lambda s: -symbols[s])
            more = f", {len(used) - 5} more" if len(used) > 5 else ""
            words.append(f"{module} by {path}: {', '.join(used[:5]) or f'{len(symbols)} looked up, none called'}{more}")
    return "; ".join(words), json.loads(json.dumps(found))


def _spilled(stats: Sequence[Mapping[str, Any]]) -> int:
    return sum(process["spilled"]["bytes_total"] for process in stats)


class App:
    """An application's loads as an experiment: `App("torch", loads).main()`."""

    def __init__(self, name: str, loads: Sequence[Load]) -> None:
        self.name = name
        self.loads = loads

    def rows(self, load: Load) -> dict[str, tuple[str, str | None, str]]:
        """{row: (what is asked, unit, what it decides)}"""
        base = f"{self.name}.{load.name}"
        return {
            base: (f"{load.ask}: same result over a VRAM cap", "bool", "whether an unmodified program survives a full card"),
            f"{base}_time": (f"{load.ask}: times slower over the cap", "ratio", "what survival costs"),
            f"{base}_paths": (f"{load.ask}: by which path it reached each hook", "count", "which paths must be hooked"),
        }

    def _unanswered(self, load: Load, why: str, said: Sequence[str] = ()) -> None:
        for row, (ask, unit, decides) in self.rows(load).items():
            if row not in said:
                say(row, ask, why, "unanswered", None, unit, decides)

    def ask(self, load: Load, limits: Limits, deadline: float) -> None:
        """Run one load twice and say its rows."""
        rows = self.rows(load)
        base, slower, paths = rows
        library = os.environ.get("GPU_CHECK_LIBRARY") or os.environ.get("SPILLSHIM_LIBRARY")
        folder = Path(os.environ.get("GPU_CHECK_SCRATCH") or os.getcwd())
        stats = folder / f"{self.name}-{load.name}.stats"
        needed = cap = 0
        plain = None
        try:
            if not library:
                raise NotHere("libspillshim.so is not built: GPU_CHECK_LIBRARY is not set")
            argv = [str(part) for part in load.command(limits)]
            env = {**os.environ, **load.env}
            plain = run(argv, env, deadline - time.monotonic())
            needed = int(plain.result.get("peak") or limits.vram // 4)
            cap = int(needed * load.cap) // MIB * MIB
            stats.unlink(missing_ok=True)
            env.update(SPILLSHIM_LIBRARY=library, SPILLSHIM_OBSERVE=str(stats))
            if not REAL:  # a machine of its own: others' books are about other simulated cards
                state = folder / "state"
                state.mkdir(mode=0o700, exist_ok=True)
                env["SPILLSHIM_STATE_DIR"] = str(state)
            shim = [sys.executable, "-m", "spillshim", "run", "--quiet", "--vram-limit", f"{cap // MIB}M", *load.options, "--"]
            if not load.preload:
                shim = []
                env.update(SPILLSHIM_VRAM_LIMIT=f"{cap // MIB}M", SPILLSHIM_QUIET="1")
            capped = run([*shim, *argv], env, deadline - time.monotonic(), stats)
        except NotHere as why:
            self._unanswered(load, str(why))
            return
        except Died as how:
            if plain is None:
                self._unanswered(load, f"without the shim it {how}")
                return
            ask, unit, decides = rows[base]
            seen = f"IT DIED over a cap of {cap // MIB} MiB of {needed // MIB} MiB needed: {how}"
            say(base, ask, seen, "measured", False, unit, decides, {"plain": plain.result, "cap": cap})
            self._unanswered(load, "it died over the cap", [base])
            return
        same = plain.result["checksum"] == capped.result["checksum"]
        spilled, raw = _spilled(capped.stats), {"plain": plain.result, "capped": capped.result, "cap": cap, "wall": [plain.wall, capped.wall]}
        raw["stats"] = [{k: v for k, v in process.items() if k != "paths"} for process in capped.stats]
        words, table = paths_of(capped.stats)
        ask, unit, decides = rows[base]
        what = f"cap {cap // MIB} MiB of {needed // MIB} MiB needed, {spilled // MIB} MiB spilled"
        if same and not spilled:
            say(base, ask, f"the same result, but nothing was spilled: it was not over the cap ({what})", "unanswered", None, unit, decides, raw)
        else:
            seen = f"{'the same result' if same else 'ANOTHER RESULT: ' + str((plain.result['checksum'], capped.result['checksum']))}; {what}"
            say(base, ask, seen, "measured", same, unit, decides, raw)
        ask, unit, decides = rows[slower]
        before, after = (float(r.result.get("seconds") or r.wall) for r in (plain, capped))
        say(slower, ask, f"{before:.3f} s in VRAM, {after:.3f} s over the cap", "measured", after / before, unit, decides, raw=None)
        ask, unit, decides = rows[paths]
        if words:
            count = sum(len(modules) for modules in table.values())
            say(paths, ask, words, "measured", count, unit, decides, table)
        else:
            say(paths, ask, "no process of it looked up an entry through the shim", "unanswered", None, unit, decides)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """The experiment's command line. Returns 0 when every row was said."""
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--list", action="store_true")
        parser.add_argument("--vram", type=int, default=Limits.vram)
        parser.add_argument("--ram", type=int, default=Limits.ram)
        parser.add_argument("--seconds", type=float, default=Limits.seconds)
        parser.add_argument("--seed", type=int, default=Limits.seed)
        given = parser.parse_args(argv)
        if given.list:
            for load in self.loads:
                print("\n".join(self.rows(load)))
            return 0
        deadline = time.monotonic() + given.seconds
        limits = Limits(given.vram, given.ram, given.seconds, given.seed)
        for load in self.loads:
            if deadline - time.monotonic() < 2:
                self._unanswered(load, "skipped: the time given by --seconds was over")
            else:
                self.ask(load, limits, deadline)
        return 0


def itself(work: str) -> Callable[[Limits], list[str]]:
    """A command that runs the calling script again as the program under test: `--work WORK BYTES SEED`."""

    def command(limits: Limits) -> list[str]:
        size = min(limits.vram // 3, limits.ram // 3, 4 * GIB)
        return [sys.executable, sys.argv[0], "--work", work, str(size), str(limits.seed)]

    return command


def work(loads: Mapping[str, Callable[[int, int], dict[str, Any]]]) -> bool:
    """Called first by a script that is its own program: True when it was one (and has printed its result)."""
    if len(sys.argv) != 5 or sys.argv[1] != "--work":
        return False
    started = time.monotonic()
    result = loads[sys.argv[2]](int(sys.argv[3]), int(sys.argv[4]))
    result.setdefault("seconds", time.monotonic() - started)
    print(json.dumps(result), flush=True)
    return True
