# SPDX-License-Identifier: Apache-2.0
"""Checks a profile file against the model, and says in the file's own words what is wrong and where. Called by load.py.

Rules: everything that is wrong is said at once, each with its line where that shows, and the path of its key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from spillshim.errors import SpillshimError
from spillshim.profiles.load import ADVICE
from spillshim.profiles.model import PLAIN, WHEN, Match, Settings, Shim, When


def line_of(text: str, place: Sequence[str | int]) -> int | None:
    """The line of the key at `place`, or of the innermost table around it that has one; the parser keeps no positions."""
    table: tuple[str | int, ...] = ()
    counted: dict[tuple[str, ...], int] = {}
    found, depth = None, 0
    for number, line in enumerate(text.splitlines(), 1):
        opened = re.match(r"\s*(\[\[?)\s*([^\]]+?)\s*\]", line)
        key = re.match(r"\s*([\w.\"' -]+?)\s*=", line)
        if opened:
            names = _dotted(opened[2])
            table = names
            if opened[1] == "[[":
                counted[names] = counted.get(names, -1) + 1
                table = (*names, counted[names])
        elif not key:
            continue
        here = table if opened or not key else (*table, *_dotted(key[1]))
        if depth < len(here) and here == tuple(place[: len(here)]):
            found, depth = number, len(here)
    return found


def _dotted(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _key_path(place: Sequence[str | int]) -> str:
    shown = ""
    for part in place:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


_KEYS: dict[tuple[str, ...], type[BaseModel]] = {(): Settings, ("match",): Match, ("shim",): Shim}


def _sentence(error: Mapping[str, Any], place: Sequence[str | int]) -> str:
    """What pydantic says, in the words of a TOML file."""
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        table = _KEYS.get(tuple(part for part in place[:-1] if isinstance(part, str)))
        known = list(table.model_fields) if table else list(When.model_fields)
        near = difflib.get_close_matches(str(place[-1]), known, n=1)
        return "unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known ones: {', '.join(known)}")
    if kind == "missing":
        return "is missing"
    said = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    for theirs, ours in (("valid dictionary", "table"), ("a valid integer", "an integer"), ("a valid ", "a ")):
        said = said.replace(theirs, ours)
    if kind == "value_error":
        return said
    return f"{said}, not {given!r}"


def _problems(error: ValidationError, text: str) -> list[str]:
    made: dict[str, tuple[int, str]] = {}
    for one in error.errors():
        place = [part for part in one["loc"] if part not in (PLAIN, WHEN)]
        line = line_of(text, place) if place else None
        path = _key_path(place)
        sentence = (f"{path}: " if path else "") + _sentence(one, place)
        made.setdefault(path, (line or 0, (f"line {line}: " if line else "") + sentence))
    return [said for _, said in sorted(made.values())]


def checked(path: Path, text: str, data: Mapping[str, Any]) -> Settings:
    """The settings in `data`, parsed from `text`, the content of `path`. Raises SpillshimError."""
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        listed = "".join(f"\n    {one}" for one in _problems(error, text))
        raise SpillshimError(f"the profile {path} is wrong:{listed}", ADVICE) from error
