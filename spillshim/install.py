# SPDX-License-Identifier: Apache-2.0
"""Puts the library and its probe where every user's programs can load them, and takes them away again. Called by
`install-system`; `unit` and `cdi` ask it where that place is.

The place is a folder of ours, PREFIX/lib/spillshim, named to the loader by a file in /etc/ld.so.conf.d: every glibc
distribution includes that folder, whereas /usr/local/lib is on the loader's path on Debian but not on Fedora or Arch, and
the folders that need no cache (/usr/lib, /lib64) are the package manager's. No setuid bit is set, so programs that run
with privileges of their own go on ignoring a bare name in LD_PRELOAD.

Rules: a file is only replaced or removed when it is what a manifest of ours says it is, and all are looked at before the first
is touched; files are replaced by rename (overwriting a library in place kills the programs that have it mapped); what was
not there before is not there afterwards. `root` stands for / (packaging, tests): paths below it are written, and the loader's
cache, which is the machine's, is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spillshim import __version__, launch, native
from spillshim.errors import EXIT_CHECK_FAILED, SpillshimError
from spillshim.sizes import human

PREFIX = Path("/usr/local")
LOADER_CONF = Path("/etc/ld.so.conf.d/spillshim.conf")
_FORMAT = 1  # of the manifest
_MODE = 0o755
_CONF_MODE = 0o644


class Refused(SpillshimError):
    """The system is not as the manifest says; nothing was changed."""

    exit_code = EXIT_CHECK_FAILED


@dataclass(frozen=True)
class Entry:
    """A file to be installed: its path on the installed system."""

    path: Path
    content: bytes
    mode: int

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Step:
    """Something that was done, or would be: `verb` is make, write, remove or run."""

    verb: str
    what: str
    detail: str = ""


@dataclass
class Manifest:
    """What an installation put there: SHA-256 by path, and the folders it made, outermost first."""

    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    def text(self) -> str:
        told = {"format": _FORMAT, "spillshim": __version__, "files": self.files, "folders": self.folders}
        return json.dumps(told, indent=2) + "\n"


def folder(prefix: Path) -> Path:
    """Where library, probe and manifest lie under `prefix`."""
    return prefix / "lib" / "spillshim"


def system_library() -> Path | None:
    """The library that `install-system` put there, under whichever prefix; None when there is none."""
    try:
        named = [Path(line) for line in LOADER_CONF.read_text().split("\n") if line.startswith("/")]
    except (OSError, UnicodeDecodeError):
        named = []
    for place in (*named, folder(PREFIX)):
        if (place / native.LIBRARY_NAME).is_file():
            return place / native.LIBRARY_NAME
    return None


class Installation:
    """The installation under `prefix`; `cache` says whether the loader is to find the library by its bare name."""

    def __init__(self, prefix: Path = PREFIX, root: Path = Path("/"), cache: bool = True) -> None:
        if not prefix.is_absolute() or prefix != Path(os.path.normpath(prefix)):
            raise SpillshimError(f"the prefix {str(prefix)!r} is not an absolute path without '..'", "Give one such as /usr/local.")
        if native.unsafe_for_loader(prefix):
            raise SpillshimError(
                f"the prefix {str(prefix)!r} holds a space, colon, semicolon or $, at which the loader splits names",
                "Choose a prefix without them, such as /usr/local.",
            )
        self.prefix, self.root, self.cache = prefix, root, cache
        self.manifest_path = folder(prefix) / "manifest.json"

    def real(self, path: Path | str) -> Path:
        """Where `path` of the installed system lies now."""
        return self.root / str(path).lstrip("/")

    @property
    def touches_machine(self) -> bool:
        return self.root.resolve() == Path("/")

    def entries(self) -> list[Entry]:
        """What is to be installed. Raises SpillshimError when the native parts are not there."""
        place = folder(self.prefix)
        made = []
        for source in (native.library(), native.probe()):
            name = native.LIBRARY_NAME if source == native.library() else source.name
            made.append(Entry(place / name, source.read_bytes(), _MODE))
        if self.cache:
            made.append(Entry(LOADER_CONF, f"{place}\n".encode(), _CONF_MODE))
        return made

    # --- the manifest ---------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """What an earlier installation wrote down; None where there was none. Raises Refused when it makes no sense."""
        path = self.real(self.manifest_path)
        try:
            told: Any = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Refused(f"the manifest {path} cannot be read: {error}", _BY_HAND) from error
        known = isinstance(told, dict) and told.get("format") == _FORMAT
        files, folders = (told.get("files"), told.get("folders")) if known else (None, None)
        if not isinstance(files, dict) or not isinstance(folders, list):
            raise Refused(f"the manifest {path} is none of format {_FORMAT}", _BY_HAND)
        for name in (*files, *folders):
            if not isinstance(name, str) or not name.startswith("/") or os.path.normpath(name) != name:
                raise Refused(f"the manifest {path} names {name!r}, which is no plain absolute path", _BY_HAND)
        return Manifest({name: str(digest) for name, digest in files.items()}, list(folders))

    def _changed(self, files: Mapping[str, str]) -> list[str]:
        """Those of `files` that are there and are not what was installed."""
        return [name for name, digest in files.items() if (now := self._digest(name)) is not None and now != digest]

    def _digest(self, name: Path | str) -> str | None:
        """SHA-256 of an installed file, None where there is none; "" for what is no plain file."""
        path = self.real(name)
        try:
            info = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(info.st_mode) else ""

    # --- installing -----------------------------------------------------------------------------------------------------

    def install(self, dry: bool = False) -> list[Step]:
        """Install, or replace what an earlier version installed. Returns what was done, or with `dry` would be.

        Raises Refused when something of somebody else's is in the way, SpillshimError when a file cannot be written.
        """
        before, entries = self.manifest() or Manifest(), self.entries()
        foreign = [
            str(one.path)
            for one in entries
            if (now := self._digest(one.path)) is not None and now not in (one.digest, before.files.get(str(one.path)))
        ]
        if foreign:
            raise Refused(
                f"{', '.join(foreign)}: there already, and not as spillshim installed {'it' if len(foreign) == 1 else 'them'}",
                "Move it away if it may go, then install again.",
            )
        self._check_places(entries)
        ldconfig = self._ldconfig() if self.cache and self.touches_machine else ""
        folders = self._missing_folders([one.path for one in entries])
        after = Manifest({str(one.path): one.digest for one in entries}, [*before.folders, *folders])
        gone = [name for name in before.files if name not in after.files]
        steps = [Step("make", name + "/") for name in folders]
        steps += [Step("write", str(one.path), f"{human(len(one.content))}, mode {one.mode:04o}") for one in entries]
        steps += [Step("remove", name, "of an earlier installation") for name in gone if self._digest(name) is not None]
        steps.append(Step("write", str(self.manifest_path), "for --uninstall"))
        if ldconfig:
            steps.append(Step("run", ldconfig, "the loader's cache"))
        if changed := self._changed({name: before.files[name] for name in gone}):
            raise Refused(f"{', '.join(changed)}: changed since it was installed", _BY_HAND)
        if dry:
            return steps
        manifest = Entry(self.manifest_path, after.text().encode(), _CONF_MODE)
        self._write([*entries, manifest], folders)
        for name in gone:
            self.real(name).unlink(missing_ok=True)
        if ldconfig:
            self._refresh(ldconfig)
            self._prove(ldconfig)
        return steps

    def _check_places(self, entries: list[Entry]) -> None:
        """Whoever can write a folder on the way could put another library into every program; whoever cannot pass it has none."""
        looked_at: set[Path] = set()
        for one in entries:
            for place in map(self.real, one.path.parents):
                if place in looked_at or not place.exists():
                    continue
                looked_at.add(place)
                info = place.stat()
                if not stat.S_ISDIR(info.st_mode):
                    raise Refused(f"{place} is not a folder, and {one.path} would lie below it", "Move it away, or choose another --prefix.")
                if not self.touches_machine:
                    continue
                if info.st_uid != 0 or info.st_mode & stat.S_IWOTH:
                    raise Refused(
                        f"{place} belongs to user {info.st_uid} and has mode {stat.S_IMODE(info.st_mode):04o}: others than root could "
                        "put another library there, which would be loaded into programs of every user",
                        "Choose a --prefix below folders that only root can write, such as /usr/local.",
                    )
                if not info.st_mode & stat.S_IXOTH:
                    raise Refused(
                        f"{place} has mode {stat.S_IMODE(info.st_mode):04o}: other users cannot reach what lies below it",
                        "Choose a --prefix that every user can reach, such as /usr/local.",
                    )

    def _missing_folders(self, paths: list[Path]) -> list[str]:
        missing = {str(place) for path in paths for place in path.parents[:-1] if not self.real(place).exists()}
        return sorted(missing, key=lambda name: (name.count("/"), name))

    def _write(self, entries: list[Entry], folders: list[str]) -> None:
        """All of `entries` beside their places first, so that a full disk is met before anything is replaced."""
        drafts: list[tuple[Path, Path]] = []
        made: list[Path] = []
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for name in folders:
                self.real(name).mkdir(exist_ok=True)
                made.append(self.real(name))
                self.real(name).chmod(0o755)  # whatever the umask
            for one in entries:
                path = self.real(one.path)
                draft = path.with_name(f".{path.name}.{os.getpid()}")
                drafts.append((draft, path))
                _create(draft, one)
            for draft, path in drafts:
                os.replace(draft, path)
        except OSError as error:
            for draft, _ in drafts:
                with suppress(OSError):
                    draft.unlink(missing_ok=True)
            for place in reversed(made):
                with suppress(OSError):
                    place.rmdir()
            raise SpillshimError(f"cannot write {error.filename or self.real(self.prefix)}: {error.strerror}", _advice(error)) from error

    # --- removing -------------------------------------------------------------------------------------------------------

    def uninstall(self, dry: bool = False) -> list[Step]:
        """Remove what the manifest names, exactly. Raises Refused when there is no manifest or a file is not what was installed."""
        before = self.manifest()
        if before is None:
            raise Refused(
                f"nothing is installed under {self.prefix}: there is no {self.real(self.manifest_path)}",
                "Give the --prefix (and --root) that it was installed with.",
            )
        if changed := self._changed(before.files):
            raise Refused(f"{', '.join(changed)}: changed since {'it was' if len(changed) == 1 else 'they were'} installed; nothing was removed", _BY_HAND)
        there = [name for name in before.files if self._digest(name) is not None]
        empty = self._emptied(before)
        ldconfig = self._ldconfig() if self.touches_machine and str(LOADER_CONF) in before.files else ""
        steps = [Step("remove", name) for name in [*there, str(self.manifest_path), *(name + "/" for name in empty)]]
        if ldconfig:
            steps.append(Step("run", ldconfig, "the loader's cache"))
        if dry:
            return steps
        try:
            for name in [*there, str(self.manifest_path)]:  # the manifest last: until then it can be tried again
                self.real(name).unlink(missing_ok=True)
            for name in empty:
                self.real(name).rmdir()
        except OSError as error:
            raise SpillshimError(f"cannot remove {error.filename}: {error.strerror}", _advice(error)) from error
        if ldconfig:
            self._refresh(ldconfig)
        return steps

    def _emptied(self, before: Manifest) -> list[str]:
        """The folders of an installation in which nothing is left without its files, innermost first."""
        gone = {self.real(path) for path in [*map(Path, before.files), self.manifest_path]}
        emptied = []
        for name in reversed(before.folders):
            place = self.real(name)
            if place.is_dir() and not place.is_symlink() and gone.issuperset(place.iterdir()):
                emptied.append(name)
                gone.add(place)
        return emptied

    # --- the loader's cache ---------------------------------------------------------------------------------------------

    def _ldconfig(self) -> str:
        found = shutil.which("ldconfig", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/sbin", "/usr/sbin"]))
        if not found:
            raise SpillshimError(
                "there is no ldconfig on this system, so a bare name in LD_PRELOAD cannot be made to work",
                "Use the full path: --files-only installs library and probe without the loader's cache.",
            )
        return found

    def _refresh(self, ldconfig: str) -> None:
        ran = subprocess.run([ldconfig], capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SpillshimError(f"{ldconfig} ended with {ran.returncode}: {ran.stderr.strip()}", "Run it by hand, as root.")

    def _prove(self, ldconfig: str) -> None:
        """The bare name leads to what was installed, and a program starts with it."""
        expected = folder(self.prefix) / native.LIBRARY_NAME
        listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
        found = [line.rpartition("=> ")[2].strip() for line in listed.splitlines() if line.split()[:1] == [native.LIBRARY_NAME]]
        if not found or os.path.realpath(found[0]) != os.path.realpath(expected):
            raise SpillshimError(
                f"installed, but the loader takes {found[0] if found else 'nothing'} for {native.LIBRARY_NAME}, not {expected}",
                "Remove that copy, or have /etc/ld.so.conf include /etc/ld.so.conf.d/*.conf; then run ldconfig.",
            )
        clean = launch.without_shim(os.environ)
        clean["LD_PRELOAD"] = launch.preload(Path(native.LIBRARY_NAME), clean.get("LD_PRELOAD", ""))
        clean.pop("LD_LIBRARY_PATH", None)
        test = shutil.which("true") or "/bin/true"
        ran = subprocess.run([test], env=clean, capture_output=True, text=True, check=False)
        if ran.returncode or ran.stderr:
            raise SpillshimError(
                f"installed, but {test} with LD_PRELOAD={native.LIBRARY_NAME} ended with {ran.returncode} and said: {ran.stderr.strip()}",
                "Take it away again: spillshim install-system --uninstall",
            )


_BY_HAND = "Look at it; what may go, remove by hand, then try again."


def _advice(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "Be root (sudo), or give --root with a folder that you can write."
    return "Choose a --prefix that can be written (on a read-only system: one below /opt or /var)."


def _create(path: Path, one: Entry) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(one.content)
        file.flush()
        if os.geteuid() == 0:
            os.fchown(file.fileno(), 0, 0)
        os.fchmod(file.fileno(), one.mode)
        os.fsync(file.fileno())
