# SPDX-License-Identifier: Apache-2.0
"""Finds and reads profile files: the package's, then /etc/spillshim/apps, then the user's own; a later one overrides by name.

Called through spillshim.profiles. Rules: what checks a file (pydantic) is imported when a file is checked; a file that cannot
be used is an error that names file, line and key, never skipped: a program that ran with other settings than its owner wrote
down would be the worse surprise (`--profile none` reads no file).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from spillshim.errors import SpillshimError

if TYPE_CHECKING:
    from spillshim.profiles.model import Profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).resolve().parents[1] / "apps"
SYSTEM = Path("/etc/spillshim/apps")
ORIGINS = ("built in", "system", "user", "given")
LARGEST_FILE = 256 << 10  # bytes; a profile has some lines
ADVICE = "Mend the file, or give --profile none (which reads no profile) or --profile NAME."


@dataclass(frozen=True)
class Loaded:
    """One profile that can be chosen: `level` is 0 for the package's, 1 the system's, 2 the user's, 3 a path given."""

    profile: Profile
    level: int

    @property
    def origin(self) -> str:
        return ORIGINS[self.level]


def folders() -> list[Path]:
    """Where profiles lie, the last one overriding."""
    return [PACKAGE, SYSTEM, platformdirs.user_config_path("spillshim") / "apps"]


def _parsed(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of one file, and what TOML makes of it. Raises SpillshimError that names the file, and the line if it can."""
    try:
        if not path.is_file() and not path.is_dir() and path.exists():
            raise SpillshimError(f"the profile {path} is not a regular file", ADVICE)
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise SpillshimError(f"cannot read the profile {path}: {error.strerror}", ADVICE) from error
    if len(raw) > LARGEST_FILE:
        raise SpillshimError(f"{path} is larger than {LARGEST_FILE >> 10} KiB: no profile", ADVICE)
    try:
        text = raw.decode()
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpillshimError(f"the profile {path}: line {line}: not UTF-8 text ({error.reason})", ADVICE) from error
    except tomllib.TOMLDecodeError as error:
        raise SpillshimError(f"the profile {path} is not TOML: {error}", ADVICE) from error


def _files(folder: Path) -> dict[str, Path]:
    try:
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".toml"}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SpillshimError(f"cannot read the folder of profiles {folder}: {error.strerror}", ADVICE) from error


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

    def counting(self) -> dict[str, tuple[int, Path]]:
        """Level and file of each name, in the order of the names."""
        found = {name: (level, path) for level, files in enumerate(self.levels) for name, path in files.items()}
        return dict(sorted(found.items()))

    def profile(self, name: str, path: Path, level: int, chain: tuple[Path, ...] = ()) -> Profile:
        if path in self.made:
            return self.made[path]
        if path in chain:
            cycle = [*chain[chain.index(path) :], path]
            raise SpillshimError(
                "profiles extend each other in a circle: " + " -> ".join(str(one) for one in cycle),
                "Remove 'extends' from one of them.",
            )
        from spillshim.profiles import check, model

        text, data = _parsed(path)
        settings, base = check.checked(path, text, data), None
        if settings.extends is not None:
            # Its own name means what it overrides; another name whatever counts under that name.
            found = self.find(settings.extends, level if settings.extends == name else len(self.levels))
            if found is None and settings.extends == name and level < len(self.levels):
                found = level, path  # nothing below: a circle of one
            if found is None:
                line = check.line_of(text, ["extends"])
                known = sorted({one for files in self.levels for one in files})
                near = difflib.get_close_matches(settings.extends, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known ones: {', '.join(known)}"
                raise SpillshimError(
                    f"the profile {path} is wrong:\n    line {line}: extends: no profile is named {settings.extends!r}{hint}",
                    ADVICE,
                )
            base = self.profile(settings.extends, found[1], found[0], (*chain, path))
        self.made[path] = model.Profile(name, str(path), settings, base)
        return self.made[path]


@dataclass(frozen=True)
class Rules:
    """What recognises a program: `priority` and the tables of [[match]], and `profile()` to have the rest."""

    level: int
    priority: int
    tables: Sequence[Mapping[str, Sequence[str]]]
    profile: Callable[[], Profile]


def all_rules() -> Iterator[Rules]:
    """The rules of every profile that counts, in the order of their names. Raises SpillshimError as load_all().

    The package's own files are taken as they are (its tests check them): most programs have no profile, and need not wait for
    the machinery that checks one.
    """
    reader = _Reader()
    for name, (level, path) in reader.counting().items():
        get = partial(reader.profile, name, path, level)
        if level == 0:
            _, data = _parsed(path)
            yield Rules(level, data.get("priority", 0), data.get("match", []), get)
        else:
            settings = get().settings
            yield Rules(level, settings.priority, [rule.model_dump() for rule in settings.match], get)


def load_all() -> dict[str, Loaded]:
    """Every profile that counts, by name. Raises SpillshimError for a file that cannot be used."""
    reader = _Reader()
    return {name: Loaded(reader.profile(name, path, level), level) for name, (level, path) in reader.counting().items()}


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
