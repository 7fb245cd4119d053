# SPDX-License-Identifier: Apache-2.0
"""Reads systemd units as systemd.unit(5) and systemd.service(5) describe them, and writes values for them. Called by dropin.py.

Only files are read: a unit can be asked about without systemd running (an image, another root). What is not needed to put
a service under the shim is passed over, so nothing here says whether a unit is valid: `systemd-analyze verify` does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from spillshim.errors import EXIT_USAGE, SpillshimError

# As `systemd-analyze --system unit-paths` prints them, less those of generators and transient units; the first wins.
_FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SUFFIX = ".service"
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\-]*)?", re.ASCII)
_NAME_MAX = 255
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'", "s": " "}
_CODED = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")
MARK = "under the shim, by spillshim"  # in the first line of a drop-in of ours
_PREFIXES = "@-:+!|"  # of an ExecStart= command


class BadUnit(SpillshimError):
    """The unit's name is none, or what it says cannot be read."""

    exit_code = EXIT_USAGE


def service_name(text: str) -> str:
    """`ollama` or `ollama.service` -> `ollama.service`. Raises BadUnit for what systemd takes for no service's name."""
    name = text if "." in text and not text.endswith(".") else text + _SUFFIX
    stem = name.removesuffix(_SUFFIX)
    if not name.endswith(_SUFFIX):
        raise BadUnit(f"{text!r} is no service: its name ends in .{name.rpartition('.')[2]}", "Give the service that runs the program: ollama.service")
    if not _NAME.fullmatch(stem) or len(name) > _NAME_MAX:
        raise BadUnit(f"{text!r} is no name of a unit", "Letters, digits and any of : - _ . \\ @ make one; `systemd-escape` turns other text into such.")
    return name


@dataclass
class Service:
    """The [Service] section of a unit with its drop-ins; a setting's values in their order, after what an empty one took back."""

    name: str
    files: list[Path] = field(default_factory=list)
    settings: dict[str, list[str]] = field(default_factory=dict)

    def last(self, key: str) -> str:
        """The value that counts for a setting that has one; "" for none."""
        return (self.settings.get(key) or [""])[-1]

    def words(self, key: str) -> list[str]:
        """All words of all lines of a list setting."""
        return [word for value in self.settings.get(key, []) for word in split(value)]

    @property
    def environment(self) -> dict[str, str]:
        """What its Environment= lines set; specifiers other than %% are left as they are."""
        pairs = (word.partition("=") for word in self.words("Environment"))
        return {name: value.replace("%%", "%") for name, equals, value in pairs if equals}

    @property
    def argv(self) -> list[str]:
        """Its ExecStart= command, the program's path first; [] for none. Variables and specifiers are left as they are."""
        words = split(self.last("ExecStart"))
        if not words:
            return []
        prefix = words[0][: len(words[0]) - len(words[0].lstrip(_PREFIXES))]
        path, rest = words[0][len(prefix) :], words[1:]
        if "@" in prefix:
            rest = rest[1:]  # the name that the program is called by
        return [word.replace("%%", "%").replace("$$", "$") for word in [path, *rest]]

    def yes(self, key: str) -> bool:
        """True for a setting that is on."""
        return self.last(key).lower() in ("1", "yes", "true", "on", "y", "t")


def split(text: str) -> list[str]:
    """The words of a value, unquoted: systemd's rules, which are not the shell's. Raises BadUnit for an open quote."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "\\" and at < len(text):
            taken, at = _escape(text, at)
            word = (word or "") + taken
        elif quote:
            if char == quote:
                quote = ""
            else:
                word = (word or "") + char
        elif char in "\"'":
            quote = char
            word = word or ""
        elif char in " \t\n\r":
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + char
    if quote:
        raise BadUnit(f"{text!r} opens a quote ({quote}) that it does not close", "See systemd.syntax(7), or ask systemd-analyze verify.")
    return words if word is None else [*words, word]


def _escape(text: str, at: int) -> tuple[str, int]:
    """What the escape after a backslash stands for, and where it ends. One that systemd does not know stands for itself."""
    coded = _CODED.match(text, at)
    if coded:
        digits, base = next((group, 8 if index == 3 else 16) for index, group in enumerate(coded.groups()) if group)
        if 0 < int(digits, base) <= 0x10FFFF:
            return chr(int(digits, base)), coded.end()
    if text[at] in _ESCAPES:
        return _ESCAPES[text[at]], at + 1
    return "\\" + text[at], at + 1


def assignment(name: str, value: str) -> str:
    """`Environment="NAME=value"`, quoted so that systemd reads exactly `value`. Raises BadUnit for what it would not take."""
    try:
        value.encode()
        bad = any((ord(char) < 32 and char not in "\t\n") or ord(char) == 127 for char in value)
    except UnicodeEncodeError:
        bad = True
    if bad:
        raise BadUnit(f"{name} has a value that systemd does not take: {value!r}", "Control characters and bytes that are no UTF-8 cannot be given to a service.")
    escaped = "".join({"\\": "\\\\", '"': '\\"', "%": "%%", "\n": "\\n", "\t": "\\t"}.get(char, char) for char in value)
    return f'Environment="{name}={escaped}"'


# --- where units are ------------------------------------------------------------------------------------------------------


def read(name: str, root: Path = Path("/")) -> Service | None:
    """The unit `name` (with .service) below `root`, with its drop-ins; None where there is no such file.

    What a drop-in of ours says is no wish of the user's: of a file with MARK only what stands before it counts, so that a drop-in
    can be made again over the one that is in place. Raises BadUnit when one of the files cannot be read.
    """
    folders = [root / folder.lstrip("/") for folder in _FOLDERS]
    prefix, at, instance = name.removesuffix(_SUFFIX).partition("@")
    template = f"{prefix}@{_SUFFIX}" if at and instance else ""
    main = next((folder / file for file in filter(None, (name, template)) for folder in folders if (folder / file).is_file()), None)
    if main is None:
        return None
    service = Service(name)
    for path in [main, *_drop_ins([*filter(None, (template, name))], prefix, folders)]:
        service.files.append(path)
        try:
            text = path.read_text()
            _parse(text[: text.rfind("\n", 0, text.index(MARK)) + 1] if MARK in text else text, service.settings)
        except (OSError, UnicodeDecodeError) as error:
            raise BadUnit(f"the unit file {path} cannot be read: {error}", "Be a user who may read it.") from error
    return service


def _drop_ins(names: list[str], prefix: str, folders: list[Path]) -> list[Path]:
    """In the order in which they are applied: by file name; of equal ones the more particular folder's, then the earlier path's."""
    dashes = [f"{prefix[: match.end()]}{_SUFFIX}" for match in re.finditer("-", prefix)]
    chosen: dict[str, Path] = {}
    for unit in ["service", *dashes, *names]:  # the later ones replace
        for folder in reversed(folders):
            for path in sorted((folder / f"{unit}.d").glob("*.conf")):
                chosen[path.name] = path
    return [chosen[name] for name in sorted(chosen) if os.path.realpath(chosen[name]) != os.devnull]


def _parse(text: str, settings: dict[str, list[str]]) -> None:
    """Add the [Service] section of a file to `settings`."""
    section, pending = "", ""
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue  # also between the lines of a continued one
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, pending = (pending + line).strip(), ""
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == "Service" and "=" in line:
            key, _, value = (part.strip() for part in line.partition("="))
            if value:
                settings.setdefault(key, []).append(value)
            else:
                settings.pop(key, None)
