# SPDX-License-Identifier: Apache-2.0
"""Finds and reads profile files: the package's, then /etc/spillshim/apps, then the user's own; a later one overrides by name.

Called through spillshim.profiles. Rules: a file that cannot be used is an error that names file, line and key, never skipped:
a program that ran with other settings than its owner wrote down would be the worse surprise (`--profile none` reads no file).
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ValidationError

from spillshim.errors import SpillshimError
from spillshim.profiles.model import PLAIN, WHEN, Match, Profile, Settings, Shim, When

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).resolve().parents[1] / "apps"
SYSTEM = Path("/etc/spillshim/apps")
LARGEST_FILE = 256 << 10  # bytes; a profile has some lines
_ADVICE = "Mend the file, or give --profile none (which reads no profile) or --profile NAME."


@dataclass(frozen=True)
class Loaded:
    """One profile that can be chosen: `level` is 0 for the package's, 1 the system's, 2 the user's, 3 a path given."""

    profile: Profile
    level: int

    @property
    def origin(self) -> str:
        return ("built in", "system", "user", "given")[self.level]


def folders() -> list[Path]:
    """Where profiles lie, the last one overriding."""
    return [PACKAGE, SYSTEM, platformdirs.user_config_path("spillshim") / "apps"]


def _line_of(text: str, place: Sequence[str | int]) -> int | None:
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
    said = said.replace("a valid dictionary", "a table").replace("a valid list", "a list").replace("a valid integer", "an integer").replace("a valid ", "a ")
    if kind == "value_error":
        return said
    return f"{said}, not {given!r}"


def _problems(error: ValidationError, text: str) -> list[str]:
    made: dict[str, tuple[int, str]] = {}
    for one in error.errors():
        place = [part for part in one["loc"] if part not in (PLAIN, WHEN)]
        line = _line_of(text, place) if place else None
        path = _key_path(place)
        sentence = (f"{path}: " if path else "") + _sentence(one, place)
        made.setdefault(path, (line or 0, (f"line {line}: " if line else "") + sentence))
    return [said for _, said in sorted(made.values())]


def read(path: Path) -> Settings:
    """One file, checked. Raises SpillshimError that names the file, the line where it shows, and the key."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise SpillshimError(f"cannot read the profile {path}: {error.strerror}", _ADVICE) from error
    if len(raw) > LARGEST_FILE:
        raise SpillshimError(f"{path} is larger than {LARGEST_FILE >> 10} KiB: no profile", _ADVICE)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpillshimError(f"the profile {path}: line {line}: not UTF-8 text ({error.reason})", _ADVICE) from error
    try:
        return Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpillshimError(f"the profile {path} is not TOML: {error}", _ADVICE) from error
    except ValidationError as error:
        listed = _problems(error, text)
        joined = "".join(f"\n    {one}" for one in listed)
        raise SpillshimError(f"the profile {path} is wrong:{joined}", _ADVICE) from error


def _files(folder: Path) -> dict[str, Path]:
    try:
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".toml"}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SpillshimError(f"cannot read the folder of profiles {folder}: {error.strerror}", _ADVICE) from error


class _Reader:
    """All files of one look, each read once."""

    def __init__(self) -> None:
        self.levels = [_files(folder) for folder in folders()]
        self.made: dict[Path, Profile] = {}

    def find(self, name: str, below: int) -> tuple[int, Path] | None:
        """The file of `name` that counts among the levels under `below`."""
        for level in range(min(below, len(self.levels)) - 1, -1, -1):
            if name in self.levels[level]:
                return level, self.levels[level][name]
        return None

    def profile(self, name: str, path: Path, level: int, chain: tuple[Path, ...] = ()) -> Profile:
        if path in self.made:
            return self.made[path]
        if path in chain:
            cycle = [*chain[chain.index(path) :], path]
            raise SpillshimError(
                "profiles extend each other in a circle: " + " -> ".join(str(one) for one in cycle),
                "Remove 'extends' from one of them.",
            )
        settings, base = read(path), None
        if settings.extends is not None:
            # Its own name means what it overrides; another name whatever counts under that name.
            found = self.find(settings.extends, level if settings.extends == name else len(self.levels))
            if found is None and settings.extends == name and level < len(self.levels):
                found = level, path  # nothing below: a circle of one
            if found is None:
                line = _line_of(path.read_text(), ["extends"])
                known = sorted({one for files in self.levels for one in files})
                near = difflib.get_close_matches(settings.extends, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known ones: {', '.join(known)}"
                raise SpillshimError(
                    f"the profile {path} is wrong:\n    line {line}: extends: no profile is named {settings.extends!r}{hint}",
                    _ADVICE,
                )
            base = self.profile(settings.extends, found[1], found[0], (*chain, path))
        self.made[path] = Profile(name, str(path), settings, base)
        return self.made[path]


def load_all() -> dict[str, Loaded]:
    """Every profile that counts, by name. Raises SpillshimError for a file that cannot be used."""
    reader = _Reader()
    made: dict[str, Loaded] = {}
    for name in sorted({name for files in reader.levels for name in files}):
        found = reader.find(name, len(reader.levels))
        assert found is not None
        level, path = found
        made[name] = Loaded(reader.profile(name, path, level), level)
    return made


def named(wanted: str) -> Loaded:
    """The profile of that name, or of that file where it holds a '/' or ends in .toml. Raises SpillshimError."""
    reader = _Reader()
    if "/" in wanted or wanted.endswith(".toml"):
        path = Path(wanted).absolute()
        return Loaded(reader.profile(path.stem, path, len(reader.levels)), len(reader.levels))
    found = reader.find(wanted, len(reader.levels))
    if found is None:
        known = sorted({one for files in reader.levels for one in files})
        near = difflib.get_close_matches(wanted, known, n=1)
        raise SpillshimError(
            f"no profile is named {wanted!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            f"Known ones: {', '.join(known)}, none; or give the path of a file.",
        )
    return Loaded(reader.profile(wanted, found[1], found[0]), found[0])
