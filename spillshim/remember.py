# SPDX-License-Identifier: Apache-2.0
"""What programs needed when they ran before: a small cache of this user's, one folder for each program and model.

Called by run (which names the folder to the shim) and by `spillshim cache`. The shim writes what a program needed into that folder
and finds it there when it runs again, allocation by allocation (csrc/shim/remember.h): so nothing here decides anything, and what is
remembered of sizes that have changed is not used. A folder holds

  about.json              whose it is, for people
  LIMIT-INDEX-SIZE.json   one allocation that something had to be taken from (`Record`), written by the shim

Rules: what isn't whole, of another version, not this user's alone or a link is left alone and ignored with one line; nothing that is
wrong here keeps a program from running; of a program's arguments no more is written down than the model's name or a file's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from spillshim import program, sizes

VERSION = 1
VARIABLE = "SPILLSHIM_REMEMBER"
MOST_ENTRIES = 256
MOST_RECORDS = 32  # of an entry; the shim adds none beyond twice as many
_MOST_BYTES = 16384  # of a file
_PATH_MAX = 255  # bytes: the shim's limit for a variable of its own
_ABOUT = "about.json"
_KEY_DIGITS = 16


class Untrusted(Exception):
    """A folder or file that is ignored; the message says which and why."""


@dataclass(frozen=True)
class Record:
    """What a process needed beside one allocation. Bytes; see struct spill_late (csrc/tiering/tiering.h)."""

    version: int
    keep: int  # VRAM that came to be needed after it
    after: int  # allocations that came until then
    waits: int  # times that the program had waited for the GPU until the last of them
    rest: int  # and from there on
    steady: bool  # it was so each time
    when: str  # it was written down: at "rest", at "exit", in "doubt"
    pid: int
    exe: str
    limit: int  # VRAM of the device that might be used
    index: int  # its place among the allocations of its device, from 0
    size: int
    kept: int  # VRAM that was kept for the others because of what was remembered then
    vram_peak: int
    ram_peak: int
    native_peak: int
    promoted_bytes: int  # moved while it ran
    demoted_bytes: int
    regions: int  # made in all
    allocations: list[list[int]]  # size, bytes in RAM, whether it was there when placement last came to rest


@dataclass(frozen=True)
class About:
    """Whose an entry is."""

    version: int
    what: str
    program: str
    model: str | None
    profile: str | None


_Content = TypeVar("_Content", Record, About)
_IS: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int and 0 <= value < 1 << 64,
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str,
    "str | None": lambda value: value is None or type(value) is str,
    "list[list[int]]": lambda value: type(value) is list
    and all(type(one) is list and len(one) == 3 and all(map(_IS["int"], one)) for one in value),
}


@dataclass
class Entry:
    """One program with one model. `used`: when it last ran, seconds since the epoch; `ignored`: files that are not trusted, and why."""

    key: str
    folder: Path
    about: About | None
    used: float
    records: list[Record] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "folder": str(self.folder),
            "used": datetime.fromtimestamp(self.used).astimezone().isoformat(timespec="seconds"),
            "about": asdict(self.about) if self.about else None,
            "records": [asdict(record) for record in self.records],
            "ignored": self.ignored,
        }


def root() -> Path:
    """The folder of all entries, whether or not it is there."""
    return Path(platformdirs.user_cache_dir("spillshim")) / "remembered"


# --- whose is it ----------------------------------------------------------------------------------------------------------------


def _identity(path: Path) -> list[Any]:
    """What changes when a file is replaced; of a folder, when something in it is."""
    try:
        real = path.resolve(strict=True)
        info = real.stat()
    except (OSError, RuntimeError):
        return [str(path)]
    return [str(real), info.st_size, info.st_mtime_ns]


def _word(word: str) -> str:
    return os.path.realpath(word) if os.path.exists(word) else word


def key(found: program.Program, argv: Sequence[str], model: str | None = None, sizes_given: Sequence[str] = ()) -> str:
    """The name of a program's entry: by its files, by the model that it was given, or else by all of its arguments, and by what else its
    profile says that allocations depend on."""
    what = [_identity(path) for path in found.chain or [found.path]]
    given = [_identity(Path(model))] if model is not None else [_word(word) for word in argv[1:]]
    text = json.dumps([VERSION, what, model is not None, given, list(sizes_given)])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_KEY_DIGITS]


# --- reading ----------------------------------------------------------------------------------------------------------------------


def _check(info: os.stat_result, path: Path, folder: bool) -> None:
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(info.st_mode):
        raise Untrusted(f"{path} is not a {'folder' if folder else 'regular file'}")
    if info.st_uid != os.geteuid():
        raise Untrusted(f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}")
    if info.st_mode & 0o022:
        raise Untrusted(f"{path} can be written by others (mode {stat.S_IMODE(info.st_mode):04o})")


def _check_folder(path: Path) -> None:
    _check(path.lstat(), path, folder=True)


def _read(path: Path, what: type[_Content]) -> _Content:
    """A file's content. Raises Untrusted, FileNotFoundError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            _check(os.fstat(file.fileno()), path, folder=False)
            text = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Untrusted(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > _MOST_BYTES:
        raise Untrusted(f"{path} is longer than {_MOST_BYTES} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Untrusted(f"{path} is damaged: {error}") from error
    known = {one.name: str(one.type) for one in fields(what)}
    if type(data) is not dict or data.get("version") != VERSION or data.keys() != known.keys():
        raise Untrusted(f"{path} is damaged or of another version: it is none of version {VERSION}")
    for name, kind in known.items():
        if not _IS[kind](data[name]):
            raise Untrusted(f"{path} is damaged: {name} is {str(data[name])[:40]!r}, not {kind}")
    return what(**data)


def _record(path: Path) -> Record:
    record = _read(path, Record)
    name = f"{record.limit}-{record.index}-{record.size}.json"
    if name != path.name:
        raise Untrusted(f"{path} is about another allocation ({name})")
    return record


def _entry(folder: Path) -> Entry:
    """Raises Untrusted, FileNotFoundError."""
    _check_folder(folder)
    entry = Entry(folder.name, folder, None, folder.stat().st_mtime)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue  # being written
        try:
            if path.name == _ABOUT:
                entry.about = _read(path, About)
                entry.used = path.stat().st_mtime
            else:
                entry.records.append(_record(path))
        except FileNotFoundError:
            continue  # cleared meanwhile
        except Untrusted as error:
            entry.ignored.append(str(error))
    entry.records.sort(key=lambda record: -record.size)
    return entry


def _folders() -> Iterator[Path]:
    try:
        _check_folder(root())
        names = sorted(root().iterdir())
    except FileNotFoundError:
        return
    for path in names:
        if len(path.name) == _KEY_DIGITS and not set(path.name) - set("0123456789abcdef"):
            yield path


def entries() -> tuple[list[Entry], list[str]]:
    """All entries, the one used last first, and why others are ignored."""
    found, ignored = [], []
    try:
        for folder in _folders():
            try:
                found.append(_entry(folder))
            except FileNotFoundError:
                continue
            except (Untrusted, OSError) as error:
                ignored.append(str(error))
    except (Untrusted, OSError) as error:
        ignored.append(str(error))
    return sorted(found, key=lambda entry: -entry.used), ignored


# --- changing ---------------------------------------------------------------------------------------------------------------------


def clear(keys: Sequence[str] | None = None) -> list[str]:
    """Remove these entries (None: all), never through a link. Returns the keys of those that were there and are gone."""
    gone = []
    try:
        for folder in _folders():
            if (keys is None or folder.name in keys) and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it, too
                if not folder.exists():
                    gone.append(folder.name)
    except (Untrusted, OSError):
        pass
    return gone


def _prune(keep: str) -> None:
    """Drop what was used longest ago: entries beyond MOST_ENTRIES, records of `keep` beyond MOST_RECORDS, drafts of killed writers."""

    def age(path: Path) -> float:
        try:
            return (path / _ABOUT if path.is_dir() else path).lstat().st_mtime
        except OSError:
            return 0.0

    others = sorted((folder for folder in _folders() if folder.name != keep), key=age, reverse=True)
    clear([folder.name for folder in others[MOST_ENTRIES - 1 :]])
    here = [path for path in (root() / keep).iterdir() if path.name != _ABOUT]
    drafts = [path for path in here if path.name.startswith(".") and not os.path.exists(f"/proc/{path.name.split('.')[1]}")]
    records = sorted((path for path in here if not path.name.startswith(".")), key=age, reverse=True)
    for path in [*drafts, *records[MOST_RECORDS:]]:
        path.unlink(missing_ok=True)


def _prepare(folder: Path, about: About) -> Entry:
    """Make the entry, or find it. Raises Untrusted, OSError."""
    root().parent.mkdir(parents=True, exist_ok=True)
    for path in (root(), folder):
        path.mkdir(mode=0o700, exist_ok=True)
        _check_folder(path)
    entry = _entry(folder)
    if entry.about != about:
        draft = folder / f".{os.getpid()}.about"
        draft.write_text(json.dumps(asdict(about), indent=1) + "\n")
        draft.chmod(0o600)
        os.replace(draft, folder / _ABOUT)  # whole or not at all; a link is replaced, never followed
    else:
        os.utime(folder / _ABOUT)
    _prune(folder.name)
    return entry


# --- what `run` asks --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remembered:
    """What `run` does with it: `variables` to set, and `lines` to say."""

    variables: dict[str, str]
    lines: list[str]


_NOTHING = Remembered({}, [])


def wanted(env: Mapping[str, str]) -> bool:
    """False where the user has said where to, or not to remember, or where nothing can spill."""
    off = ("1", "on", "yes", "true")
    return (
        not env.get(VARIABLE)
        and env.get("SPILLSHIM_DISABLE", "0") not in off
        and env.get("SPILLSHIM_SPILL", "1") not in ("0", "off", "no", "false")
    )


def _what(found: program.Program, argv: Sequence[str], model: str | None) -> str:
    """`llama-server with model.gguf`, `python train.py`: of the arguments a file's name at most, for others may be secret."""
    if model is not None:
        return f"{found.path.name} with {os.path.basename(model)}"
    script = next((os.path.basename(word) for word in argv[1:] if os.path.isfile(word)), None)
    return f"{found.path.name} {script}" if script else found.path.name


def recall(
    found: program.Program,
    argv: Sequence[str],
    env: Mapping[str, str],
    profile: str | None = None,
    model: str | None = None,
    sizes_given: Sequence[str] = (),
) -> Remembered:
    """What is remembered of `argv`, for which an entry is made. `env`: the user's, with all that is set already; `profile`, `model` and
    `sizes_given`: the profile's name, and what it found among the arguments. Never raises for what the cache is like."""
    if not wanted(env):
        return _NOTHING
    folder = root() / key(found, argv, model, sizes_given)
    if len(os.fsencode(folder)) > _PATH_MAX:
        return Remembered({}, [f"warning: nothing is remembered: the path {folder} is longer than {_PATH_MAX} bytes"])
    about = About(version=VERSION, what=_what(found, argv, model), program=str(found.path), model=model, profile=profile)
    try:
        entry = _prepare(folder, about)
    except Untrusted as error:
        return Remembered({}, [f"warning: nothing is remembered: {error}"])
    except OSError as error:
        return Remembered({}, [f"warning: nothing is remembered: {error.filename or folder}: {error.strerror}"])
    lines = [f"warning: ignored: {line}" for line in entry.ignored[:1]]
    if "SPILLSHIM_HOLDBACK" not in env and (told := told_of(entry.records)):
        lines.append(told)
    return Remembered({VARIABLE: str(folder)}, lines)


def told_of(records: Sequence[Record]) -> str:
    """One line of what the shim will keep free; "" where it will nothing."""
    used = sorted((record for record in records if record.steady and record.keep), key=lambda record: -record.keep)
    if not used:
        return ""
    more = f" (and so for {len(used) - 1} more)" if len(used) > 1 else ""
    return f"remembered: {sizes.human(used[0].keep)} of VRAM is kept for what comes after an allocation of {sizes.human(used[0].size)}{more}"
