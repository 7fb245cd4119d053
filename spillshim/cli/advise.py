# SPDX-License-Identifier: Apache-2.0
"""`spillshim advise MODEL.gguf`: by arithmetic, how fast a model would run here in each way, and the command line of the best."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from spillshim.advise import header, model, plan, rates
from spillshim.advise.arithmetic import GB
from spillshim.cli.options import SizeType, show
from spillshim.errors import EXIT_CHECK_FAILED
from spillshim.sizes import MIB, human

LABEL = "Model arithmetic, not measured"
_RATE_NAMES = ("hbm", "link", "ddr", "uvm")
_WHAT = {
    "vram": "VRAM for the model",
    "ram": "RAM for the model",
    "hbm": "kernels read VRAM",
    "link": "kernels read RAM",
    "ddr": "the CPU reads RAM",
    "uvm": "unified memory",
    "overlap": "VRAM and link at once",
}


class _Rate(click.FloatRange):
    """GB/s (1e9 bytes), above 0; kept in bytes/s."""

    name = "rate"

    def __init__(self) -> None:
        super().__init__(min=0, max=1e5, min_open=True)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "GB/s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a rate in GB/s", param, ctx)
        return number * GB


@click.command("advise")
@click.argument("file", metavar="MODEL.gguf", type=click.Path(path_type=Path))
@click.option("--vram", type=SizeType(percent=False, minimum=MIB), help="VRAM that the model may use. [default: what is free on the first card, less headroom]")
@click.option("--ram", type=SizeType(percent=False), help="RAM that it may use. [default: what is available, less 10 %]")
@click.option("--hbm", type=_Rate(), help="How fast kernels read VRAM. [default: 80 % of the first card's peak]")
@click.option("--link", type=_Rate(), help="How fast kernels read pinned RAM. [default: 80 % of its PCIe link's peak]")
@click.option("--ddr", type=_Rate(), help="How fast the CPU reads RAM. [default: a quick measure]")
@click.option("--measured", type=click.Path(path_type=Path), metavar="FILE", help="Take sizes and rates from a result of scripts/gpu-check.")
@click.option("--ctx", "tokens", type=click.IntRange(1, 1 << 30), metavar="TOKENS", help=f"Length of the context. [default: {model.DEFAULT_CONTEXT}, or the model's if less]")
@click.option("--cache-type", type=click.Choice(model.CACHE_TYPES), default="f16", show_default=True, help="Type of the KV cache (llama.cpp's -ctk, -ctv).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line.")
@click.pass_context
def command(
    context: click.Context, file: Path, measured: Path | None, tokens: int | None, cache_type: str, as_json: bool, **given: Any
) -> None:
    """Tell how fast MODEL.gguf would run: all in VRAM, with llama.cpp's CPU split, spilled, or both; and the best command.

    Only the file's header is read (of a split model: of all its parts). Times are arithmetic: the bytes that one token
    reads, divided by how fast they are read where they lie; batch 1, a full context, one card. Exit code 1 if nothing fits.
    """
    loaded = model.build(header.read(file), tokens, cache_type)
    known = rates.collect(_options(given), measured)
    advice = plan.advise(loaded, known.machine)
    if as_json:
        click.echo(json.dumps(_as_dict(loaded, known, advice)))
    else:
        _print(loaded, known, advice)
    if advice.best is None:
        context.exit(EXIT_CHECK_FAILED)


def _options(given: dict[str, Any]) -> dict[str, float]:
    """What was given, in bytes and bytes/s."""
    return {name: value.size if name in ("vram", "ram") else value for name, value in given.items() if value is not None}


def _as_dict(loaded: model.Model, known: rates.Known, advice: plan.Advice) -> dict[str, Any]:
    """Sizes in bytes, rates in bytes/s, times in seconds."""
    return {
        "label": LABEL,
        "model": {
            "path": str(loaded.path),
            "name": loaded.name,
            "architecture": loaded.architecture,
            "layers": len(loaded.layers),
            "weights": loaded.weights,
            "experts": loaded.experts,
            "expert_count": loaded.expert_count,
            "expert_used": loaded.expert_used,
            "embedding": loaded.embedding,
            "context": loaded.context,
            "cache_type": loaded.cache_type,
            "cache": loaded.cache,
            "compute_estimate": loaded.compute,
            "needs": loaded.needs,
            "read_per_token": round(loaded.mixture.read),
            "notes": list(loaded.notes),
        },
        "machine": {name: {"value": one.value, "source": one.source} for name, one in known.told.items()},
        "ways": [
            {
                "way": way.key,
                "title": way.title,
                "seconds_per_token": way.seconds,
                "tokens_per_second": way.rate,
                "vram": way.vram,
                "spilled": way.spilled,
                "cpu": way.cpu,
                "ram": way.ram,
                "possible": way.real,
                "why": way.why or None,
                "command": way.command or None,
            }
            for way in advice.ways
        ],
        "best": advice.best.key if advice.best else None,
        "command": advice.best.command if advice.best else None,
        "sentences": list(advice.sentences),
    }


# --- for people --------------------------------------------------------------------------------------------------------------------


def _figure(name: str, value: float) -> str:
    if name in _RATE_NAMES:
        return f"{value / GB:.4g} GB/s"
    return f"{value * 100:.0f} %" if name == "overlap" else human(value)


def _facts(loaded: model.Model) -> list[tuple[str, str]]:
    kinds = ", ".join(name for name, _ in loaded.types[:2])
    parts = f"{len(loaded.layers)} layers, {human(loaded.weights + loaded.embedding)} ({kinds})"
    if loaded.experts:
        parts += f", {human(loaded.experts)} of it experts, {loaded.expert_used} of {loaded.expert_count} used by a token"
    cache = f"{loaded.context} tokens: KV cache {human(loaded.cache)} ({loaded.cache_type}), compute buffers about {human(loaded.compute)} (estimate)"
    return [("model", f"{loaded.name}: {loaded.architecture}, {parts}"), ("context", cache), ("needs", f"{human(loaded.needs)} of VRAM, to have all of it there")]


def _grid(rows: Sequence[tuple[str, ...]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in rows[0][:-1]:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(Text(row[0], style="bold"), *map(Text, row[1:]))
    return table


def _print(loaded: model.Model, known: rates.Known, advice: plan.Advice) -> None:
    from rich.table import Table
    from rich.text import Text

    show(_grid(_facts(loaded)))
    click.echo("")
    show(_grid([(_WHAT[name], _figure(name, one.value), one.source) for name, one in known.told.items()]))
    click.echo("")
    click.echo(click.style(f"{LABEL} (batch 1, full context)", bold=True))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("way", overflow="fold")
    for title in ("tokens/s", "ms/token", "spilled", "on CPU"):
        table.add_column(title, justify="right", no_wrap=True)
    fits = advice.best is not None and advice.best.key == "vram"
    for way in advice.ways[:1] if fits else advice.ways:
        name = Text(way.title, style="bold green" if way is advice.best else "" if way.real else "dim")
        if way.why and way.why not in way.title:
            name.append(f"\n  {way.why}", style="dim")
        table.add_row(name, *_cells(way))
    show(table)
    click.echo("")
    for sentence in (*advice.sentences, *loaded.notes):
        show(Text(sentence))
    if advice.best:
        click.echo(click.style("\nBest: ", bold=True) + advice.best.title)
        click.echo(f"  {advice.best.command}")


def _cells(way: plan.Way) -> list[str]:
    if way.seconds is None:
        return ["-"] * 4
    rate, took = 1 / way.seconds, way.seconds * 1e3
    sizes = [human(size) if size else "-" for size in (way.spilled, way.cpu)]
    return [f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}", f"{took:.3g}" if took < 1000 else f"{took:.0f}", *sizes]
