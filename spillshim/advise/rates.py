# SPDX-License-Identifier: Apache-2.0
"""The machine's sizes and rates, each with where it came from: an option, a result of scripts/gpu-check, or this machine.

Called by spillshim.cli.advise. An option wins over the file, the file over the machine. What nothing tells is an error that
names the option; nothing is guessed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spillshim import cards
from spillshim.advise.arithmetic import GB, PCIE4_PEAK, REACHED_OF_PEAK, UVM_RATE, Rates, assumed_uvm
from spillshim.advise.plan import Machine
from spillshim.checks import cgroup_limit
from spillshim.errors import EXIT_CHECK_FAILED, EXIT_USAGE, SpillshimError
from spillshim.sizes import GIB, MIB, human

SCHEMA = 1  # of results
_ROUNDS = 5
_BUFFER = 128 * MIB  # a thread: far more than its share of any cache
# What a row of a result is good for, best first: the rate of a product as models make it, else of a plain read.
_ROWS = {
    "hbm": ("bandwidth.hbm_q4", "bandwidth.hbm_read"),
    "link": ("bandwidth.zero_copy_q4", "bandwidth.zero_copy_16"),
    "uvm": ("bandwidth.uvm_cycle",),
}
_OVERLAP = "bandwidth.overlap"


class NotAResult(SpillshimError):
    """The file of --measured cannot be used."""

    exit_code = EXIT_CHECK_FAILED


class NoRate(SpillshimError):
    """Neither an option nor a file nor this machine tells a rate or a size."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Told:
    """A size in whole bytes, a rate in bytes/s or a share, and its source in words."""

    value: float
    source: str


@dataclass(frozen=True)
class Known:
    """The machine, and by name (vram, ram, hbm, link, ddr, uvm, overlap) what each figure is and where it comes from."""

    machine: Machine
    told: Mapping[str, Told]


# --- a result of scripts/gpu-check ----------------------------------------------------------------------------------------------


def measured(path: Path) -> dict[str, Told]:
    """What a result file says. Raises NotAResult with the place."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NotAResult(f"{path}: {error}", "Name a file of benchmarks/results, as scripts/gpu-check writes it.") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise NotAResult(f"{path}: no result of scripts/gpu-check with schema {SCHEMA}", "Name a file of benchmarks/results.")
    if result.get("model"):
        raise NotAResult(f"{path}: its figures are those of a simulated device, not measurements", "Give the rates by hand: --hbm, --link.")
    try:
        return _from_result(result, path.name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAResult(f"{path}: damaged: {type(error).__name__} {error}", "Run scripts/gpu-check again.") from None


def _from_result(result: Mapping[str, Any], file: str) -> dict[str, Told]:
    values: dict[str, float] = {}
    for experiment in result["experiments"]:
        for row in experiment["rows"]:
            value = row["value"]
            if row["verdict"] != "unanswered" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                values[row["row"]] = float(value)
    told: dict[str, Told] = {}
    for name, rows in _ROWS.items():
        row = next((row for row in rows if values.get(row, 0) > 0), None)
        if row:
            told[name] = Told(values[row] * GB, f"measured: {row} of {file}")
    if _OVERLAP in values:
        told["overlap"] = Told(min(1.0, max(0.0, values[_OVERLAP])), f"measured: {_OVERLAP} of {file}")
    device, machine = result["device"], result["machine"]
    if int(device["vram"]) <= 0:
        raise ValueError(f"{device['vram']} bytes of VRAM")
    told["vram"] = Told(int(device["vram"]) - _headroom(int(device["vram"])), f"{device['name']} of {file}, less headroom")
    if machine.get("ram"):
        told["ram"] = Told(int(machine["ram"]) - _reserve(int(machine["ram"])), f"all RAM of that machine, less 10 % ({file})")
    return told


# --- this machine -----------------------------------------------------------------------------------------------------------------


def _headroom(vram: int) -> int:
    """The shim's own default: 3 %, at least 512 MiB, at most an eighth."""
    return min(max(vram * 3 // 100, 512 * MIB), vram // 8)


def _reserve(ram: int) -> int:
    """The shim's own default: RAM that is never pinned."""
    return max(ram // 10, 2 * GIB)


def available_ram() -> Told:
    """RAM that a model may use here: what is available now (to the machine, or in this cgroup), less the shim's reserve."""
    import psutil

    memory = psutil.virtual_memory()
    room, what = memory.available, "available now"
    limit = cgroup_limit()
    if limit and limit[0] - limit[1] < room:
        room, what = max(limit[0] - limit[1], 0), "left in this cgroup"
    return Told(max(room - _reserve(memory.total), 0), f"{human(room)} {what}, less a reserve of 10 %")


def quick_ddr(clock: Callable[[], float] = time.perf_counter) -> Told | None:
    """Bytes/s at which all CPUs together read RAM, best of five sweeps over 128 MiB each; None without numpy or without the RAM."""
    try:
        import numpy
    except ImportError:
        return None
    cpus = len(os.sched_getaffinity(0))
    room = int(available_ram().value)
    size = min(_BUFFER, room // 2 // cpus // MIB * MIB)
    if size < 16 * MIB:
        return None
    buffers = [numpy.ones(size // 8, numpy.float64) for _ in range(cpus)]  # written: fresh zeroes would all be one page
    best = float("inf")
    with ThreadPoolExecutor(cpus) as pool:
        for _ in range(_ROUNDS):
            start = clock()
            list(pool.map(numpy.add.reduce, buffers))  # without the interpreter's lock
            best = min(best, clock() - start)
    return Told(cpus * size / best, f"quick measure here: {cpus} threads, best of {_ROUNDS}") if best > 0 else None


def _from_card() -> dict[str, Told]:
    """Of the first card, as NVML tells it."""
    found = cards.found()
    if not found:
        return {}
    card = found[0]
    told = {"vram": Told(max(card.free - _headroom(card.vram), 0), f"{card.name}: {human(card.free)} free now, less headroom")}
    share = f"{REACHED_OF_PEAK:.0%}"
    if card.hbm_peak:
        told["hbm"] = Told(card.hbm_peak * REACHED_OF_PEAK, f"{share} of the card's {card.hbm_peak / GB:.0f} GB/s (clock and width by NVML)")
    if card.link_peak:
        told["link"] = Told(card.link_peak * REACHED_OF_PEAK, f"{share} of {card.link}'s {card.link_peak / GB:.1f} GB/s")
    return told


_NEEDS = {
    "vram": "--vram SIZE (what the model may use of it)",
    "hbm": "--hbm GB/s (80 % of the data sheet's figure)",
    "link": "--link GB/s (PCIe 4.0 x16: 25, 5.0 x16: 50)",
    "ddr": "--ddr GB/s",
}


def collect(options: Mapping[str, float], file: Path | None) -> Known:
    """The machine of these options (bytes, bytes/s; keys as in Known.told), of this result file and of this computer.

    Raises NotAResult, or NoRate that names every option that is missing.
    """
    told: dict[str, Told] = {}
    from_file = measured(file) if file else {}
    if not file and not {"vram", "hbm", "link"} <= options.keys():
        told.update(_from_card())
    told.update(from_file)
    told.update({name: Told(value, f"--{name}") for name, value in options.items()})
    if "ram" not in told:
        told["ram"] = available_ram()
    missing = [name for name in _NEEDS if name not in told and name != "ddr"]
    why = f"{file} has no answered row for it" if file else "There is no NVIDIA card here that tells it"
    if not missing and "ddr" not in told:
        quick = quick_ddr()
        if quick:
            told["ddr"] = quick
        else:
            missing, why = ["ddr"], "It could not be measured here: numpy is not installed, or too little RAM is available"
    if missing:
        raise NoRate(
            f"not known: {', '.join(missing)}. {why}",
            "Give " + ", ".join(_NEEDS[name] for name in missing) + (", or --measured with a result of scripts/gpu-check." if not file and missing != ["ddr"] else "."),
        )
    if "uvm" not in told:
        told["uvm"] = _uvm(told["link"].value)
    if "overlap" not in told:
        told["overlap"] = Told(1.0, "assumed: a kernel reads VRAM and RAM at the same time")
    rates = Rates(told["hbm"].value, told["link"].value, told["ddr"].value, told["uvm"].value, told["overlap"].value)
    order = ("vram", "ram", "hbm", "link", "ddr", "uvm", "overlap")
    return Known(Machine(int(told["vram"].value), int(told["ram"].value), rates), {name: told[name] for name in order})


def _uvm(link: float) -> Told:
    rate = assumed_uvm(link)
    words = f"{UVM_RATE / GB:g} GB/s of llama.cpp PR 8035"
    if link > PCIE4_PEAK:
        words += ", doubled for PCIe 5 (assumed)"
    return Told(rate, words if rate < link else "no more than the link")
