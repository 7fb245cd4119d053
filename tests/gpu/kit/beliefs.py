# SPDX-License-Identifier: Apache-2.0
"""The beliefs that experiments can confirm or correct: the rows of csrc/simgpu/BELIEFS.md, which is the only list of them.

Called by check.py and by the tests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BELIEFS = Path(__file__).resolve().parents[3] / "csrc" / "simgpu" / "BELIEFS.md"
IDENTIFIER = re.compile(r"[a-z]+\.[a-z0-9_]+")
NOT_YET = "not yet"
BRANCH, DOCUMENTED = "branch", "documented"


@dataclass(frozen=True)
class Belief:
    """`confirmed` is the table's last column: NOT_YET, or device, driver, date and command. `doubt`: BRANCH, DOCUMENTED, or why
    the simulator holds it no other way."""

    id: str
    text: str
    source: str
    doubt: str
    confirmed: str


def read(path: Path = BELIEFS) -> dict[str, Belief]:
    """Every belief by id. Raises ValueError for a row that is not `id | belief | source | doubt | confirmed`, or an id twice."""
    found: dict[str, Belief] = {}
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0] == "id":
            inside = True
            continue
        if not inside or set(line) <= set("|-: "):
            continue
        name = cells[0].strip("`")
        if len(cells) != 5 or not IDENTIFIER.fullmatch(name) or not all(cells):
            raise ValueError(f"{path.name}:{number}: not a row of id, belief, source, doubt, confirmed: {line}")
        if name in found:
            raise ValueError(f"{path.name}:{number}: the id {name} is there twice")
        found[name] = Belief(name, *cells[1:])
    if not found:
        raise ValueError(f"{path}: no table with an id column")
    return found
