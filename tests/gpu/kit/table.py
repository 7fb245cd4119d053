# SPDX-License-Identifier: Apache-2.0
"""What the kit prints while it runs: a table that grows row by row with a progress bar on a terminal, plain lines in a pipe.

Called by check.py. rich is used on a terminal when it is there; nothing else depends on it.
"""

from __future__ import annotations

import sys
from typing import Any

SIGNS = {"confirms": "confirms", "corrects": "CORRECTS", "measured": "measured", "unanswered": "no answer"}
STYLES = {"confirms": "green", "corrects": "bold magenta", "measured": "cyan", "unanswered": "bold yellow"}


def value_of(row: dict[str, Any]) -> str:
    """`25.1 GB/s`; empty where the value says no more than the text."""
    value, unit = row["value"], row["unit"]
    if value is None or isinstance(value, (bool, str)) or unit in (None, "bool"):
        return ""
    return f"{value:,.4g} {unit}" if isinstance(value, float) else f"{value:,} {unit}"


def seen_of(row: dict[str, Any]) -> str:
    """The answer in words, with the value where it says more than the words."""
    value = value_of(row)
    return f"{row['seen']} ({value})" if value and row["unit"] not in row["seen"] else row["seen"]


def belief_of(row: dict[str, Any]) -> str:
    if not row["belief"]:
        return ""
    return f"{row['verdict']} {row['belief']}" if row["verdict"] in ("confirms", "corrects") else row["belief"]


class Plain:
    """One line a row, each flushed."""

    def __init__(self) -> None:
        self.total = 0

    def _say(self, text: str) -> None:
        print(" ".join(text.split()) if "\n" in text else text, flush=True)

    def note(self, text: str) -> None:
        self._say(text)

    def begin(self, total: int) -> None:
        self.total = total

    def experiment(self, number: int, name: str, groups: str) -> None:
        self._say(f"[{number}/{self.total}] {name} ({groups})")

    def row(self, row: dict[str, Any]) -> None:
        parts = [f"  {SIGNS[row['verdict']]:<9}  {row['row']}: {row['ask']} -> {seen_of(row)}" if row["ask"]
                 else f"  {SIGNS[row['verdict']]:<9}  {row['row']}: {seen_of(row)}"]  # fmt: skip
        if belief_of(row):
            parts.append(f"belief: {belief_of(row)}")
        if row["decides"]:
            parts.append(f"decides: {row['decides']}")
        self._say(" | ".join(" ".join(part.split()) if index else part for index, part in enumerate(parts)))

    def problem(self, text: str) -> None:
        self._say(f"  problem    {text}")

    def done(self) -> None:
        pass

    def close(self) -> None:
        pass


class Rich(Plain):
    """The same as columns of fixed shares of the terminal's width."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        self.console = Console(highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self.console, transient=True
        )
        self.task = self.progress.add_task("", total=None)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _columns(self, *cells: tuple[str, str]) -> None:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2), expand=True)
        for ratio in (2, 6, 6, 4, 4):
            grid.add_column(ratio=ratio, overflow="fold")
        grid.add_row(*(Text(text, style=style) for text, style in cells))
        self.console.print(grid)

    def begin(self, total: int) -> None:
        super().begin(total)
        self.progress.update(self.task, total=total)
        self.progress.start()
        self._columns(*((word, "bold underline") for word in ("verdict", "asked", "seen", "belief", "decides")))

    def experiment(self, number: int, name: str, groups: str) -> None:
        self.progress.update(self.task, description=name)
        self.console.rule(f"[bold]{name}[/bold] [dim]{groups}[/dim]", align="left", style="dim")

    def row(self, row: dict[str, Any]) -> None:
        self._columns(
            (SIGNS[row["verdict"]], STYLES[row["verdict"]]),
            (row["ask"] or row["row"], ""),
            (seen_of(row), ""),
            (belief_of(row), STYLES[row["verdict"]] if row["verdict"] in ("confirms", "corrects") else "dim"),
            (row["decides"], "dim"),
        )

    def problem(self, text: str) -> None:
        self.console.print(f"problem: {text}", style="bold red", markup=False)

    def done(self) -> None:
        self.progress.advance(self.task)

    def close(self) -> None:
        self.progress.stop()


def make() -> Plain:
    """Columns on a terminal where rich is installed, else plain lines."""
    if sys.stdout.isatty():
        try:
            return Rich()
        except ImportError:
            pass
    return Plain()
