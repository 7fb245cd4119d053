# SPDX-License-Identifier: Apache-2.0
"""`spillshim demote PID`: send a running program's memory from VRAM to RAM. `promote.py` is the same the other way round."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import click

from spillshim import control, sizes
from spillshim.cli.options import SizeType, console
from spillshim.errors import EXIT_CHECK_FAILED
from spillshim.sizes import MIB, human

_PATIENCE = 600.0  # seconds for an order: a large one pins RAM page by page

# enum spill_reason -> (why less was moved than was wanted, what to do). Of a state the process itself tells why.
_REASONS = {
    "capture": ("the program is capturing a CUDA graph", "Try again when it has ended."),
    "busy": ("the GPU was not idle within the time that moving may take", "Try again, or when the program has less to do: nothing is moved under running work."),
    "vram": ("there is no more room in VRAM", "Demote another program, or end it; `spillshim status` shows who holds how much."),
    "ram": ("the RAM budget grants no more", "Raise SPILLSHIM_HOST_LIMIT or lower SPILLSHIM_RAM_RESERVE for the program, or free RAM."),
    "backend": ("its chunks cannot lie in RAM: it was started with --no-spill, or the driver maps no host memory (backend hostalloc or none)", "`spillshim doctor` names the backend, and what it takes to have a better one."),
    "driver": ("the driver refused a step of a move; everything is where it was", "SPILLSHIM_LOG=info in the program's environment shows its error."),
    "pinned": ("what is left must not be moved: it is shared, registered, part of a CUDA graph, or fixed in RAM", ""),
}


@contextmanager
def _progress(process: control.Process, demote: bool, total: int) -> Iterator[Callable[[], None] | None]:
    """A bar on a terminal, fed from the program's own counters while it works; yields what to call now and then."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    name = "demoted_bytes" if demote else "promoted_bytes"
    before = process.read().moves[name]
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("demoting" if demote else "promoting", total=total)

        def look() -> None:
            with suppress(control.NoAnswer):  # caught in the middle of a change: the next look will do
                bar.update(task, completed=process.read().moves[name] - before)

        yield look


def _refusal(one: control.Status) -> control.NoAnswer:
    if one.state == "open":  # it forbids moves before it says anything of itself
        return control.NoAnswer(f"process {one.pid} ({control.short(one.command)}) is ending: nothing is moved any more")
    what = {
        "frozen": "Nothing is moved in it any more, what has spilled stays where it is. Start it again without what freezes it.",
        "dead": "Its memory is left as it is. Start it again.",
    }
    return control.NoAnswer(f"process {one.pid} ({control.short(one.command)}) is {one.state}: {one.why}", what.get(one.state, ""))


def order(demote: bool, pid: int, size: sizes.Amount | None, as_json: bool) -> int:
    """Give the order and print what became of it. The exit code: 0, or 1 where less was moved than was asked for."""
    with control.Process(pid) as process:
        before = process.status()
        if before.state != "open":
            raise _refusal(before)
        there = before.vram if demote else before.ram
        wanted = size.bytes_of(there) if size else control.ALL
        started = time.monotonic()
        with _progress(process, demote, min(wanted, there, before.managed)) as meanwhile:
            outcome = process.order(demote, wanted, _PATIENCE, meanwhile)
        seconds = time.monotonic() - started
        after = process.status()
    if outcome.reason == "state":
        raise _refusal(after)
    if as_json:
        answer: dict[str, Any] = {"pid": pid, **asdict(outcome), "seconds": seconds, "vram": after.vram, "ram": after.ram}
        click.echo(json.dumps(answer))
    else:
        _say(demote, after, outcome, seconds)
    # Without --bytes the program is to have as much VRAM as there is.
    short = outcome.reason in _REASONS and not (outcome.reason == "vram" and outcome.moved and not size)
    return EXIT_CHECK_FAILED if short else 0


def _say(demote: bool, after: control.Status, outcome: control.Outcome, seconds: float) -> None:
    done, source = ("demoted to RAM", "VRAM") if demote else ("promoted to VRAM", "RAM")
    if outcome.reason == "nothing":
        click.echo(f"Nothing to move: process {after.pid} ({control.short(after.command)}) has no managed memory in {source}.")
    elif outcome.moved:
        now = f"it has {human(after.vram)} in VRAM and {human(after.ram)} in RAM now"
        click.echo(f"{human(outcome.moved)} {done} in {seconds:.1f} s; {now}.")
    if outcome.reason in _REASONS:
        why, fix = _REASONS[outcome.reason]
        stayed = f"{human(outcome.left)} stayed in {source}: {why}"
        click.echo(f"spillshim: warning: {stayed}" + (f"\n  {fix}" if fix else ""), err=True)


def bytes_option(function: Any) -> Any:
    """The options that both verbs have."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line.")(function)
    function = click.option("--bytes", "size", type=SizeType(minimum=2 * MIB), help="Move so much (512M, or a percentage such as 50%). [default: all that can be]")(function)
    return click.argument("pid", type=click.IntRange(1))(function)


@click.command("demote")
@bytes_option
@click.pass_context
def command(ctx: click.Context, pid: int, size: sizes.Amount | None, as_json: bool) -> None:
    """Move the memory of program PID to RAM, so that others can have the VRAM; its pointers stay the same and it runs on.

    With --bytes as much as that, rounded up to whole chunks (32 MiB). The program waits while memory is being moved. It keeps
    its memory in RAM until `spillshim promote`, or until it allocates again.
    """
    ctx.exit(order(True, pid, size, as_json))
