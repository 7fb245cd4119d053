# SPDX-License-Identifier: Apache-2.0
"""What an experiment is and what it may say. Used by check.py; the tests hold every file of tests/gpu to it.

An experiment is `tests/gpu/NAME.c` or a Python file there or in tests/gpu/apps, with one line in its opening comment:
    gpu-check: groups=facts order=20 expect=5 limit=60
groups: those of GROUPS it belongs to; order: lower runs first; expect: the seconds it usually takes on a GPU (it is skipped
when less of the budget is left); limit: the seconds after which it is killed. With sim_lacks=NAME,...: entries that it asks for
and that the simulated driver has as stubs only (any other that it reaches is a problem).
`NAME --list` prints the names of its rows, one a line; `NAME --vram BYTES --ram BYTES --seconds S --seed N` prints each row as
one JSON object a line, flushed at once. A row that was listed and not said is unanswered: nothing passes by default.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In the order in which they are shown; the last three run only when they are named.
GROUPS = {
    "facts": "what the driver does",
    "bandwidth": "how fast VRAM and RAM are read",
    "hook": "what a hooked call costs",
    "apps": "unmodified programs over a VRAM cap",
    "moves": "the engine moves memory of a running program",
    "llama": "llama.cpp, built here",
    "conformance": "the conformance suite on this driver",
}
DEFAULT_GROUPS = ("facts", "bandwidth", "hook", "apps")

CONFIRMS, CORRECTS, MEASURED, UNANSWERED = "confirms", "corrects", "measured", "unanswered"
VERDICTS = (CONFIRMS, CORRECTS, MEASURED, UNANSWERED)
KEYS = ("row", "ask", "seen", "value", "unit", "belief", "verdict", "decides", "raw")
ROW_NAME = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_.,:;+=>/@-]+")
MARKER = re.compile(r"gpu-check:\s*(\S.*)")
MARKER_WITHIN = 40  # lines


@dataclass(frozen=True)
class Experiment:
    name: str
    source: Path
    groups: tuple[str, ...]
    order: int
    expect: float
    limit: float
    sim_lacks: tuple[str, ...] = ()


def _marker(path: Path) -> str | None:
    with path.open(encoding="utf-8", errors="replace") as file:
        for _, line in zip(range(MARKER_WITHIN), file):
            found = MARKER.search(line)
            if found:
                return found[1].removesuffix("*/").strip()
    return None


def declared(path: Path) -> Experiment | None:
    """The experiment in `path`, None when the file has no marker. Raises ValueError when the marker is wrong."""
    text = _marker(path)
    if text is None:
        return None
    values: dict[str, str] = {}
    for part in text.split():
        key, equals, value = part.partition("=")
        if not equals or key in values or key not in ("groups", "order", "expect", "limit", "sim_lacks"):
            raise ValueError(f"{path.name}: gpu-check: {part!r} is not one of groups=, order=, expect=, limit=, sim_lacks=")
        values[key] = value
    missing = {"groups", "order", "expect", "limit"} - set(values)
    if missing:
        raise ValueError(f"{path.name}: gpu-check: {', '.join(sorted(missing))} missing")
    groups = tuple(values["groups"].split(","))
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        raise ValueError(f"{path.name}: gpu-check: no such group: {', '.join(unknown)}")
    try:
        lacks = tuple(filter(None, values.get("sim_lacks", "").split(",")))
        made = Experiment(path.stem, path, groups, int(values["order"]), float(values["expect"]), float(values["limit"]), lacks)
    except ValueError as error:
        raise ValueError(f"{path.name}: gpu-check: {error}") from None
    if not 0 < made.expect <= made.limit:
        raise ValueError(f"{path.name}: gpu-check: expect={made.expect:g} must be above 0 and at most limit={made.limit:g}")
    return made


def discover(folder: Path) -> list[Experiment]:
    """All experiments in `folder` and `folder`/apps in the order in which they run. ValueError: a wrong marker, a name twice."""
    found: dict[str, Experiment] = {}
    for place in (folder, folder / "apps"):
        for path in sorted([*place.glob("*.c"), *place.glob("*.py")]):
            experiment = declared(path)
            if experiment is None:
                continue
            if experiment.name in found:
                raise ValueError(f"two experiments are named {experiment.name}: {found[experiment.name].source}, {path}")
            found[experiment.name] = experiment
    return sorted(found.values(), key=lambda e: (e.order, e.name))


class NotARow(ValueError):
    """A line of an experiment's stdout that is no row; says why."""


def _no_constant(text: str) -> float:
    raise NotARow(f"{text} is not JSON")


def parse_row(line: str) -> dict[str, Any]:
    """One line of stdout as a row. Raises NotARow."""
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise NotARow(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise NotARow("nested too deeply") from None
    if not isinstance(row, dict):
        raise NotARow("not a JSON object")
    missing = [key for key in KEYS if key not in row]
    extra = [key for key in row if key not in KEYS]
    if missing or extra:
        raise NotARow(f"keys missing: {missing}, unknown: {extra}")
    for key in ("row", "ask", "seen", "verdict", "decides"):
        if not isinstance(row[key], str) or not row[key].strip():
            raise NotARow(f"{key} is not a text")
    if not ROW_NAME.fullmatch(row["row"]):
        raise NotARow(f"row {row['row']!r} is not EXPERIMENT.NAME")
    if row["verdict"] not in VERDICTS:
        raise NotARow(f"verdict {row['verdict']!r} is not one of {', '.join(VERDICTS)}")
    value = row["value"]
    if not (value is None or isinstance(value, (bool, int, float, str))) or (isinstance(value, float) and not math.isfinite(value)):
        raise NotARow("value is not a number, text, bool or null")
    if row["unit"] is not None and not isinstance(row["unit"], str):
        raise NotARow("unit is neither a text nor null")
    if row["belief"] is not None and not isinstance(row["belief"], str):
        raise NotARow("belief is neither a text nor null")
    if row["verdict"] in (CONFIRMS, CORRECTS) and not row["belief"]:
        raise NotARow(f"it {row['verdict']} a belief and names none")
    return row


def unanswered(name: str, why: str) -> dict[str, Any]:
    """The row of a question that nothing answered."""
    return {
        "row": name, "ask": "", "seen": why, "value": None, "unit": None, "belief": None, "verdict": UNANSWERED,
        "decides": "", "raw": None,
    }  # fmt: skip
