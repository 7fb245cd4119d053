# SPDX-License-Identifier: Apache-2.0
"""The ways to place a model on a machine, the time of each, and the one to take with its command line. Pure.

Called by spillshim.cli.advise. A way is what llama.cpp and spillshim can do today; what needs an assumption about which
experts are in use, or about where they lie, is a row of its own kind and is never recommended.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from spillshim.advise import arithmetic
from spillshim.advise.arithmetic import Rates
from spillshim.advise.model import Model
from spillshim.sizes import MIB, human

MISSES = (0.01, 0.04, 0.10)  # assumed shares of expert reads that meet RAM under hot placement
NEAR = 0.02  # a simpler way is taken when it is at most so much slower: the arithmetic is no better than that
FAR = 0.05  # share of the weights beyond VRAM that counts as far past it
_STEP = 64 * MIB  # of the holdback in a command line


@dataclass(frozen=True)
class Machine:
    """Bytes of VRAM and RAM that the model may use, and the rates."""

    vram: int
    ram: int
    rates: Rates


@dataclass(frozen=True)
class Way:
    """One row of the answer. `seconds` per token, None where it cannot be done or does not apply, with `why`.

    `vram`, `spilled`, `cpu`: bytes of VRAM used, of RAM that the GPU reads, of RAM that the CPU computes on; `ram`: all RAM,
    with the input embedding. `real`: it can be done today on this machine; else it is a bound or an assumption.
    """

    key: str
    title: str
    seconds: float | None
    vram: int = 0
    spilled: int = 0
    cpu: int = 0
    ram: int = 0
    real: bool = True
    why: str = ""
    command: str = ""

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return 1 / self.seconds if self.seconds else None


@dataclass(frozen=True)
class _Placed:
    """llama.cpp's -ngl and -ncmoe, and what follows from them."""

    layers: int
    experts_on_cpu: int
    seconds: float
    vram: int
    spilled: int
    cpu: int
    ram: int


@dataclass(frozen=True)
class Advice:
    """`best` is None where nothing can be done, and `sentences` say why."""

    ways: tuple[Way, ...]
    best: Way | None
    sentences: tuple[str, ...]


def place(model: Model, machine: Machine, layers: int, experts_on_cpu: int = 0) -> _Placed | None:
    """The time with `-ngl layers -ncmoe experts_on_cpu`; what is too much for VRAM is spilled, evenly over the GPU's weights.

    None where KV cache and compute buffers alone are more than VRAM: spilling those costs over ten times more than weights.
    """
    first = max(len(model.layers) + 1 - layers, 0)
    weights = cache = cache_read = cpu = 0
    read = cpu_read = 0.0
    for index, layer in enumerate(model.layers):
        experts_read = layer.experts * model.used
        if index < first:
            cpu += layer.always + layer.experts + layer.cache
            cpu_read += layer.always + experts_read + layer.cache_read
            continue
        cache += layer.cache
        cache_read += layer.cache_read
        weights += layer.always
        read += layer.always
        if index < experts_on_cpu:
            cpu += layer.experts
            cpu_read += experts_read
        else:
            weights += layer.experts
            read += experts_read
    if layers > 0:
        weights += model.output
        read += model.output
    else:
        cpu += model.output
        cpu_read += model.output
    need = weights + cache + (model.compute if layers > 0 else 0)
    spilled = max(0, need - machine.vram)
    if spilled > weights:
        return None
    share = spilled / weights if weights else 0.0
    seconds = arithmetic.combined((1 - share) * read + cache_read, share * read, cpu_read, machine.rates)
    return _Placed(layers, experts_on_cpu, seconds, need - spilled, spilled, cpu, cpu + spilled + model.embedding)


def _fastest(candidates: Iterable[_Placed | None], machine: Machine, spills: bool) -> _Placed | None:
    """The fastest that RAM can hold; with `spills` false only those that VRAM holds. Of equals the one with more on the GPU."""
    fit = [one for one in candidates if one and one.ram <= machine.ram and (spills or not one.spilled)]
    return min(fit, key=lambda one: (one.seconds, one.cpu), default=None)


class _Commands:
    def __init__(self, model: Model) -> None:
        self.model = model

    def server(self, placed: _Placed) -> str:
        words = ["llama-server", "-m", str(self.model.path), "-ngl", str(placed.layers)]
        if placed.experts_on_cpu:
            words += ["-ncmoe", str(placed.experts_on_cpu)]
        words += ["-c", str(self.model.context)]
        if self.model.cache_type != "f16":
            words += ["-ctk", self.model.cache_type, "-ctv", self.model.cache_type]
        if not placed.spilled:
            return shlex.join(words)
        first = max(len(self.model.layers) + 1 - placed.layers, 0)
        late = self.model.compute + sum(layer.cache for layer in self.model.layers[first:])
        holdback = f"{-(-late // _STEP) * _STEP // MIB}M"
        return shlex.join(["spillshim", "run", "--holdback", holdback, "--", *words])


def _way(key: str, title: str, placed: _Placed | None, commands: _Commands, why: str) -> Way:
    if placed is None:
        return Way(key, title, None, real=False, why=why)
    return Way(key, title, placed.seconds, placed.vram, placed.spilled, placed.cpu, placed.ram, command=commands.server(placed))


def _why_not(model: Model, machine: Machine, placed: _Placed | None) -> str:
    if placed is None:
        return f"KV cache and compute buffers alone need {human(model.cache + model.compute)} of VRAM"
    return f"needs {human(placed.ram)} of RAM, {human(machine.ram)} are there"


def advise(model: Model, machine: Machine) -> Advice:
    """Every way, and the one to take: the fastest that can be done, or a simpler one at most 2 % slower."""
    commands = _Commands(model)
    everything = len(model.layers) + 1
    whole = place(model, machine, everything)
    fits = whole is not None and not whole.spilled
    by_layers = [place(model, machine, layers) for layers in range(everything + 1)]
    resident = arithmetic.resident(model.mixture.read, machine.rates)
    if fits and whole:
        way = _way("vram", "all in VRAM", whole, commands, "")
        short = _short(way, machine)
        ways = [way] if not short else [Way("vram", way.title, None, real=False, why=short)]
        best = None if short else way
        return Advice(tuple(ways + [_not_needed(*one) for one in _titles(model)]), best, _sentences(model, machine, best, tuple(ways)))
    ways = [Way("vram", "all in VRAM (were there enough)", resident, model.needs, real=False, why=f"needs {human(model.needs)} of VRAM")]
    split = _fastest(by_layers, machine, spills=False)
    nothing = f"needs more RAM than the {human(machine.ram)} that are there"
    ways.append(_way("split", _named("CPU split", split, "-ngl"), split, commands, nothing))
    if model.experts:
        ways.append(_experts_way(model, machine, commands, nothing))
    spill = whole if whole and whole.ram <= machine.ram else None
    ways.append(_way("spill", "spill, interleaved", spill, commands, _why_not(model, machine, whole)))
    both = _fastest(by_layers, machine, spills=True)
    ways.append(_way("both", _named("CPU split and spill margin", both, "-ngl"), both, commands, nothing))
    if model.experts:
        experts_both = _fastest((place(model, machine, everything, count) for count in range(everything)), machine, spills=True)
        ways.append(_way("experts-both", _named("CPU experts and spill margin", experts_both, "-ncmoe"), experts_both, commands, nothing))
    ways.append(Way("uvm", "unified memory (UVM)", arithmetic.unified(model.mixture.read, machine.rates), machine.vram, real=False))
    ways += _assumptions(model, machine)
    best = _best(ways)
    return Advice(tuple(ways), best, _sentences(model, machine, best, tuple(ways)))


def _named(title: str, placed: _Placed | None, option: str) -> str:
    if placed is None:
        return title
    return f"{title} ({option} {placed.layers if option == '-ngl' else placed.experts_on_cpu})"


def _experts_way(model: Model, machine: Machine, commands: _Commands, nothing: str) -> Way:
    """-ncmoe, and, where all experts in RAM are not enough, -ngl with it."""
    everything = len(model.layers) + 1
    placed = _fastest((place(model, machine, everything, count) for count in range(1, everything)), machine, spills=False)
    if placed is None:
        placed = _fastest((place(model, machine, layers, everything - 1) for layers in range(everything + 1)), machine, spills=False)
    return _way("experts", _named("CPU experts", placed, "-ncmoe"), placed, commands, nothing)


def _titles(model: Model) -> list[tuple[str, str]]:
    titles = [("split", "CPU split"), ("spill", "spill, interleaved"), ("both", "CPU split and spill margin"), ("uvm", "unified memory (UVM)")]
    return titles[:1] + [("experts", "CPU experts")] + titles[1:] if model.experts else titles


def _not_needed(key: str, title: str) -> Way:
    return Way(key, title, None, real=False, why="not needed: it fits")


def _assumptions(model: Model, machine: Machine) -> list[Way]:
    """Rows for a mixture of experts that no program does by itself: where experts lie, or how often they are missed, is assumed."""
    overflow = model.needs - machine.vram
    if not model.experts or overflow > model.experts:
        return []
    mixture, rates = model.mixture, machine.rates
    times = [("uniform", "only experts are spilled", mixture.uniform(overflow, rates))]
    times += [(f"hot-{miss:g}", f"hot experts in VRAM, miss {miss * 100:g} %", mixture.hot_placed(miss, rates)) for miss in MISSES]
    return [
        Way(key, f"assumed: {title}", seconds, machine.vram, spilled=overflow, ram=overflow + model.embedding, real=False)
        for key, title, seconds in times
    ]


_SIMPLEST_FIRST = ("vram", "split", "experts", "spill", "both", "experts-both")


def _best(ways: Iterable[Way]) -> Way | None:
    real = [way for way in ways if way.real and way.seconds is not None]
    if not real:
        return None
    least = min(way.seconds or math.inf for way in real)
    near = [way for way in real if (way.seconds or math.inf) <= least * (1 + NEAR)]
    return min(near, key=lambda way: _SIMPLEST_FIRST.index(way.key))


def _short(way: Way, machine: Machine) -> str:
    return f"needs {human(way.ram)} of RAM, {human(machine.ram)} are there" if way.ram > machine.ram else ""


def _sentences(model: Model, machine: Machine, best: Way | None, ways: tuple[Way, ...]) -> tuple[str, ...]:
    """What a person should know besides the table."""
    over = max(0, model.needs - machine.vram)
    told = []
    if best is None:
        total = model.needs + model.embedding
        told.append(
            f"It does not fit: {human(total)} are needed, VRAM and RAM together have {human(machine.vram + machine.ram)}. What llama.cpp would "
            "read from disk for every token (mmap) is not counted here. A smaller quantisation, a shorter context or --cache-type q8_0 needs less."
            if total > machine.vram + machine.ram
            else f"Nothing fits: {next((way.why for way in ways if way.why), '')}. A shorter context or --cache-type q8_0 needs less."
        )
        return tuple(told)
    if best.key == "vram":
        return ("It fits into VRAM: neither a split nor spillshim is needed.",)
    share = over / model.weights
    if best.key in ("split", "both") and not model.experts and share > FAR:
        margin = f", plus a spill margin of {human(best.spilled)} that is read while VRAM is read" if best.spilled else ""
        told.append(
            f"A dense model this far past VRAM ({share * 100:.0f} % of its weights) is served best by llama.cpp's CPU split{margin}: "
            "the CPU computes on its part, instead of every byte crossing the link for every token."
        )
    elif best.key == "spill":
        told.append(
            f"{human(over)} ({share * 100:.1f} % of the weights) are beyond VRAM: reading them over the link costs less than having the CPU compute on them."
        )
    elif best.key in ("experts", "experts-both"):
        told.append(
            f"A token uses {model.expert_used} of {model.expert_count} experts: left to the CPU, experts cost less than whole layers do."
        )
    split = next((way for way in ways if way.key == "split"), None)
    if best.key != "split" and split and split.seconds and best.seconds:
        told.append(f"{(split.seconds / best.seconds - 1) * 100:+.0f} % tokens per second against the CPU split alone.")
    return tuple(told)
