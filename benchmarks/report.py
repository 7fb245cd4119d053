# SPDX-License-Identifier: Apache-2.0
"""The one shape of a benchmark's answer: a table for people and, with --json, one object as the last line.

Used by every file of benchmarks/. A row: name, value, unit, goal (text), holds (True, False or None without a goal).
"""
from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    name: str
    value: float
    unit: str
    goal: str = ""
    holds: bool | None = None


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default 1)")
    return parser


def show(benchmark: str, question: str, device: str, model: bool, rows: list[Row], anchor: str, as_json: bool) -> None:
    """Print the rows. `model`: the figures come from simgpu's clock. `anchor`: what the goal is measured against."""
    table = Table(title=question, caption=anchor, title_justify="left", caption_justify="left")
    for column in ("figure", "value", "goal", "holds"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in rows:
        table.add_row(row.name, f"{row.value:,.3f} {row.unit}", row.goal, {True: "yes", False: "NO", None: ""}[row.holds])
    Console(stderr=as_json).print(table)
    if as_json:
        print(json.dumps({"benchmark": benchmark, "device": device, "model": model, "rows": [asdict(r) for r in rows],
                          "holds": all(r.holds for r in rows if r.holds is not None)}))
