# SPDX-License-Identifier: Apache-2.0
"""`spillshim status [PID]`: what the shim does in running programs, as they tell it themselves."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

import click

from spillshim import control
from spillshim.cli.options import show
from spillshim.errors import EXIT_CHECK_FAILED
from spillshim.sizes import human

_COLOURS = {"open": "green", "frozen": "yellow", "dead": "red"}
_STATE = 1  # column of the state
_ROOM = 20  # columns for a command that say something of it
# counter -> what `status PID` says of it
_GAVE_UP = {
    "refused_busy": "the GPU was not idle in time",
    "refused_capture": "a stream was being captured",
    "refused_state": "frozen or dead",
}


def duration(ns: float | None) -> str:
    """`850 us`, `1.4 ms`, `2.1 s`; "-" for none."""
    if ns is None:
        return "-"
    for unit, step in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= step:
            return f"{ns / step:.3g} {unit}"
    return f"{ns:.0f} ns"


def _longest(pauses: control.Pauses) -> int | None:
    return pauses.longest_ns if pauses.count else None


def _table(found: list[control.Status], width: int) -> None:
    """A line a process, in columns; the command goes last, or below where fewer than _ROOM of `width` columns are left for it."""
    rows = [("pid", "state", "VRAM", "RAM", "regions", "moves", "p50", "p99", "max", "gave up")]
    for one in found:
        pauses = one.steady + one.bulk
        longest = (pauses.quantile(0.5), pauses.quantile(0.99), _longest(pauses))
        moved = one.moves["promoted"] + one.moves["demoted"]
        rows.append(
            (str(one.pid), one.state, human(one.vram), human(one.ram), str(one.regions), str(moved))
            + tuple(map(duration, longest))
            + (str(one.given_up),)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - sum(widths) - 2 * len(widths)
    beside = room >= _ROOM
    gap = "  " if room >= 0 else " "
    for row, one in zip(rows, [None, *found], strict=True):
        cells = [cell.ljust(space) if index == _STATE else cell.rjust(space) for index, (cell, space) in enumerate(zip(row, widths, strict=True))]
        if one:
            cells[_STATE] = click.style(cells[_STATE], fg=_COLOURS.get(one.state))
        line = gap.join([*cells, _cut(one.command if one else "command", room)] if beside else cells)
        click.echo(line if one else click.style(line, bold=True))
        if one and not beside:
            click.echo(f"  {_cut(one.command, width - 2)}")
        if one and one.why:
            click.echo(f"  {one.state}: {one.why}")


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _details(one: control.Status) -> None:
    """One process, a line a fact."""
    moves = one.moves
    rows = [
        ("command", one.command),
        ("state", f"{one.state}: {one.why}" if one.why else one.state),
        ("memory", f"{human(one.vram)} in VRAM, {human(one.ram)} in RAM; {one.regions} managed regions of {human(one.managed)} in all"),
        ("promoted", f"{human(moves['promoted_bytes'])} in {moves['promoted']} moves"),
        ("demoted", f"{human(moves['demoted_bytes'])} in {moves['demoted']} moves"),
        ("failed", f"{moves['rolled_back']} moves rolled back, {moves['poisoned']} regions poisoned"),
        ("safepoints", f"{moves['safepoints']} reached, {one.given_up} given up" + _reasons(one) + _drain(one)),
    ]
    for name, pauses in (("pauses", one.steady), ("bulk pauses", one.bulk)):
        figures = f", p50 {duration(pauses.quantile(0.5))}, p99 {duration(pauses.quantile(0.99))}, longest {duration(_longest(pauses))}"
        rows.append((name, f"{pauses.count}{figures if pauses.count else ''}"))
    rows.append(("parked", f"{moves['parked']} times a thread waited at the gate"))
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for title, fact in rows:
        table.add_row(title, Text(fact))
    show(table)


def _reasons(one: control.Status) -> str:
    told = [f"{one.moves[name]} {why}" for name, why in _GAVE_UP.items() if one.moves[name]]
    return f" ({', '.join(told)})" if told else ""


def _drain(one: control.Status) -> str:
    reached = one.moves["safepoints"]
    return f"; {duration(one.moves['drain_ns'] / reached)} each until the GPU was idle" if reached else ""


def _one(pid: int, as_json: bool) -> None:
    with control.Process(pid) as process:
        one = process.status()
    if as_json:
        click.echo(json.dumps(one.as_dict()))
    else:
        _details(one)


def _all(as_json: bool) -> bool:
    """Print all; false where one of them did not answer."""
    found: list[control.Status] = []
    silent: list[control.NoAnswer] = []
    for told in control.processes():
        if isinstance(told, control.Status):
            found.append(told)
        else:
            silent.append(told)
    if as_json:
        answer: dict[str, Any] = {"processes": [one.as_dict() for one in found], "silent": [error.message for error in silent]}
        click.echo(json.dumps(answer))
        return not silent
    if found:
        _table(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000)
    elif not silent:
        click.echo("No program of yours has managed memory under the shim now.")
    for error in silent:
        click.echo(f"spillshim: warning: {error}", err=True)
    return not silent


@click.command("status")
@click.argument("pid", required=False, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line.")
@click.option("--watch", type=click.FloatRange(0.05), metavar="SECONDS", help="Again and again, until Ctrl-C or the end of PID.")
@click.pass_context
def command(ctx: click.Context, pid: int | None, as_json: bool, watch: float | None) -> None:
    """List this user's programs (root: all users') under the shim that manage memory, or tell all about one of them.

    Pauses are what the program waited while memory was moved; p50 and p99 are at most twice too large (they are counted in
    powers of two), the longest is exact. "gave up" counts attempts to move for which the GPU was not idle, or could not be asked.
    """
    try:
        while True:
            if watch and sys.stdout.isatty():
                click.clear()
            answered = True
            if pid is not None:
                _one(pid, as_json)
            else:
                answered = _all(as_json)
            if not watch:
                ctx.exit(0 if answered else EXIT_CHECK_FAILED)
            sys.stdout.flush()
            time.sleep(watch)
    except KeyboardInterrupt:
        ctx.exit(0)
