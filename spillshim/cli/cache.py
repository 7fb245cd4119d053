# SPDX-License-Identifier: Apache-2.0
"""`spillshim cache list|clear`: what is remembered of programs that ran before (spillshim/remember.py)."""

from __future__ import annotations

import json
from datetime import datetime

import click

from spillshim import remember
from spillshim.cli.options import show
from spillshim.errors import SpillshimError
from spillshim.sizes import human


@click.group("cache")
def command() -> None:
    """Show or clear what is remembered of programs that ran before under `spillshim run`.

    For each program and model: how much VRAM came to be needed after the allocation that did not fit. The next run keeps just
    that free, so that nothing has to be moved. `run --no-remember` (or SPILLSHIM_REMEMBER=0) does without.
    """


def _warn(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"spillshim: warning: ignored: {line}", err=True)


def _table(found: list[remember.Entry]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "last used", "program"):
        table.add_column(title, no_wrap=title != "program", overflow="fold")
    table.add_column("keeps", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    told = [entry for entry in found if entry.records]
    for entry in told:
        who = entry.about.what if entry.about else "(not told)"
        cells = [entry.key, datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M"), who]
        for record in entry.records:
            kept = human(record.keep) if record.steady else f"0 ({human(record.keep)}?)"
            table.add_row(*map(Text, [*cells, kept, human(record.size)]))
            cells = ["", "", ""]
    if told:
        show(table)
    if len(told) < len(found):
        click.echo(f"{len(found) - len(told)} more ran, and left nothing to be remembered")
    if any(not record.steady for entry in found for record in entry.records):
        click.echo("0 (…?): it differed between runs, so nothing is kept until two agree")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line.")
def list_command(as_json: bool) -> None:
    """List what is remembered, what was used last first."""
    found, ignored = remember.entries()
    if as_json:
        entries = [entry.as_dict() for entry in found]
        click.echo(json.dumps({"folder": str(remember.root()), "entries": entries, "ignored": ignored}))
        return
    if found:
        _table(found)
    else:
        click.echo(f"Nothing is remembered in {remember.root()}.")
    _warn([*(line for entry in found for line in entry.ignored), *ignored])


@command.command("clear")
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Clear all that is remembered.")
def clear_command(keys: tuple[str, ...], everything: bool) -> None:
    """Forget the programs with these keys (their first digits are enough where they tell one), or --all."""
    if bool(keys) == everything:
        raise click.UsageError("give keys, as `spillshim cache list` prints them, or --all")
    found, ignored = remember.entries()
    _warn(ignored)
    if everything:
        gone = remember.clear()
    else:
        chosen = []
        for given in keys:
            fitting = [entry.key for entry in found if given and entry.key.startswith(given.lower())]
            if len(fitting) != 1:
                what = f"{len(fitting)} keys begin with {given!r}: {', '.join(fitting[:4])}" if fitting else f"no key begins with {given!r}"
                raise SpillshimError(f"{what}; nothing was cleared", "`spillshim cache list` prints them.")
            chosen += fitting
        gone = remember.clear(chosen)
    click.echo(f"cleared {len(gone)} {'entry' if len(gone) == 1 else 'entries'}")
