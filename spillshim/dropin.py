# SPDX-License-Identifier: Apache-2.0
"""The drop-in that puts a systemd service under the shim: what it sets, and why it may not work. Called by `spillshim unit`.

Rules: the unit's own settings are kept and win over a profile, as the user's environment does under `run`; what would leave the
service without the shim, silently, is a problem, which the command refuses; what may be so is a warning. Nothing is written or executed.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from spillshim import install, launch, native, profiles, program
from spillshim.errors import SpillshimError
from spillshim.units import Service, assignment

_HOMES = ("/home", "/root", "/run/user")  # what ProtectHome= hides
_TEMPORARY = ("/tmp", "/var/tmp")  # what PrivateTmp= replaces, and others than the service may clean
STATE = "spillshim/%N"  # below %t, which is /run; %N is the unit's name. control.py looks there for root
_COMMENT = 98  # columns
_INSTALL = "Copy it to where it can: sudo spillshim install-system"


@dataclass
class DropIn:
    """Settings by their reasons, in the order in which they are printed; `problems` and `warnings` are (what, what to do)."""

    library: Path
    blocks: list[tuple[str, list[str]]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def add(self, reason: str, *lines: str) -> None:
        if lines:
            self.blocks.append((reason, list(lines)))


@dataclass(frozen=True)
class User:
    """Whose rights count when the service opens a file: `name` for people, `uid` None for one not known here, with everybody's rights."""

    name: str
    uid: int | None
    gids: frozenset[int] = frozenset()


def user_of(service: Service) -> User:
    """The user that the service runs as."""
    name = service.last("User")
    if not service.files:
        return User("its user", None)
    if service.yes("DynamicUser"):
        return User("its dynamic user", None)
    if not name:
        return User("user root", 0, frozenset({0}))
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        return User(f"user {name}", None)
    groups = {entry.pw_gid, *(group.gr_gid for group in grp.getgrall() if entry.pw_name in group.gr_mem)}
    return User(f"user {entry.pw_name}", entry.pw_uid, frozenset(groups))


def _may(info: os.stat_result, user: User, right: int) -> bool:
    """Whether `user` has `right` (4 read, 1 search) by the mode bits; access lists are not looked at."""
    if user.uid == 0:
        return True
    if user.uid == info.st_uid:
        return bool(info.st_mode >> 6 & right)
    if info.st_gid in user.gids:
        return bool(info.st_mode >> 3 & right)
    return bool(info.st_mode & right)


def unreachable(path: Path, user: User) -> str:
    """Why `user` cannot read the file `path`; "" where it can. Raises OSError for a path that is not there."""
    for place in reversed(path.parents):
        info = place.stat()
        if not _may(info, user, 1):
            return f"{user.name} cannot enter {place} (mode {stat.S_IMODE(info.st_mode):04o})"
    info = path.stat()
    return "" if _may(info, user, 4) else f"{user.name} cannot read it (mode {stat.S_IMODE(info.st_mode):04o})"


def changeable(path: Path, user: User) -> str:
    """Who else than root and the service's user could put something else in place of `path`; "" for nobody."""
    for place in [*reversed(path.parents), path]:
        info = place.stat()
        if info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
            return f"every user, who may write {place}"
        if info.st_uid not in (0, user.uid):
            return f"the owner of {place}, user {_name(info.st_uid)}"
    return ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# --- composing ------------------------------------------------------------------------------------------------------------


def library() -> Path:
    """The library that a service gets: SPILLSHIM_LIBRARY, else the one of `install-system`, else the package's."""
    own = native.library()
    return own if os.environ.get("SPILLSHIM_LIBRARY") else install.system_library() or own


def compose(name: str, service: Service | None, options: Mapping[str, str], profile: str | None = None) -> DropIn:
    """The drop-in for the unit `name`; `service` is what its files say (None: not on this machine), `options` SPILLSHIM_* to set,
    `profile` the name of one (None: the program decides). Raises SpillshimError for a profile that cannot be used."""
    made = DropIn(library())
    service = service or _absent(name, made)
    user = user_of(service)
    _look_at_library(made, user, service)
    found = _program(made, service)
    env = service.environment
    preloaded = launch.preload(made.library, env.get("LD_PRELOAD", ""), found.sanitizers if found else ())
    made.add(f"The shim, where {user.name} can read it.", assignment("LD_PRELOAD", preloaded))
    made.add(
        "What the service's processes share (budget, control sockets): a folder that systemd makes for its user, so that root's "
        "`spillshim status` finds them. Below the folder, because its owner and mode must be the user's own.",
        f"RuntimeDirectory={STATE}",
        f'Environment="SPILLSHIM_STATE_DIR=%t/{STATE}/state"',
    )
    made.add("What was asked for.", *(assignment(*pair) for pair in options.items()))
    known = {**_from_files(service), **env}
    applied = profiles.apply(launch.Settings(dict(options)), known, service.argv or [service.name], found, profile)
    made.add(f"By {applied.line}", *(assignment(*pair) for pair in (applied.added or {}).items()))
    made.add(
        "What spills is pinned memory. NVIDIA's open kernel modules (595.45) do not count it against this limit; under a driver that "
        "does, 8M, systemd's default, would be all that could spill.",
        "LimitMEMLOCK=infinity",
    )
    _look_at_sandbox(made, service, options)
    return made


def _absent(name: str, made: DropIn) -> Service:
    made.warnings.append(
        (f"there is no unit file of {name} on this machine, so its user, program and sandbox are not known", "Print the drop-in where the service is installed.")
    )
    return Service(name)


def _look_at_library(made: DropIn, user: User, service: Service) -> None:
    path = made.library
    real = Path(os.path.realpath(path))
    known = bool(service.files)
    problem = ""
    if native.unsafe_for_loader(path):
        problem = f"{path} holds a space, colon, semicolon or $, at which the loader splits names"
    for place in dict.fromkeys((path, real)):
        if _below(place, _HOMES) and (not known or service.last("ProtectHome").lower() == "tmpfs" or service.yes("ProtectHome")):
            problem = problem or f"{place} lies in a home folder, which ProtectHome= hides and other users mostly cannot enter"
        if _below(place, _TEMPORARY) and (not known or service.yes("PrivateTmp")):
            problem = problem or f"{place} lies in a folder for temporary files, which PrivateTmp= replaces, and which is cleaned"
        for needed in (place, place.parent / "spillshim-probe"):
            problem = problem or _unreachable(needed, user)
    if problem:
        made.problems.append((f"the library cannot be loaded by {service.name}: {problem}", _INSTALL))
    elif _below(real, (*_HOMES, *_TEMPORARY)):
        made.warnings.append((f"{path} lies in a folder that is not meant for services: a move, a cleaning or ProtectHome= takes it away", _INSTALL))
    elif who := changeable(real, user):
        made.warnings.append((f"{path} is loaded into {service.name}, and can be replaced by {who}", _INSTALL))
    if not problem and path != native.library() and path.read_bytes() != native.library().read_bytes():
        made.warnings.append((f"{path} is of another build than this spillshim", "Renew it: sudo spillshim install-system"))
    for key in ("RootDirectory", "RootImage"):
        if service.last(key):
            made.warnings.append(
                (f"{service.name} has a root of its own ({key}={service.last(key)}), in which {path.parent} must be", f"Add BindReadOnlyPaths={path.parent}")
            )


def _below(path: Path, folders: Sequence[str]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _unreachable(path: Path, user: User) -> str:
    try:
        why = unreachable(path, user)
    except OSError as error:
        why = str(error.strerror)
    return f"{path}: {why}" if why else ""


def _program(made: DropIn, service: Service) -> program.Program | None:
    """What the service runs, as far as that can be known; why the shim would not be loaded into it is a problem."""
    argv = service.argv
    if not argv:
        return None
    try:
        found = program.read(argv[0], service.environment.get("PATH", os.defpath))
    except SpillshimError as error:
        made.warnings.append((f"the program of {service.name} cannot be looked at: {error.message}", "Print the drop-in where it is installed."))
        return None
    for _, sentence, advice in found.problems:
        made.problems.append((sentence, advice))
    return found


def _look_at_sandbox(made: DropIn, service: Service, options: Mapping[str, str]) -> None:
    """Settings of the unit in which the shim would fail, undone where a drop-in can."""
    if service.last("ProcSubset") == "pid":
        made.add("The shim reads /proc/meminfo before it pins memory, and pins none where it cannot.", "ProcSubset=all")
    families = service.words("RestrictAddressFamilies")
    if families and not families[0].startswith("~") and "AF_UNIX" not in families:
        made.add("For the control socket of `spillshim status`.", "RestrictAddressFamilies=AF_UNIX")
    forbidden, allowed = service.words("NoExecPaths"), service.words("ExecPaths")
    under = made.library.is_relative_to
    if any(under(path.lstrip("-+")) for path in forbidden) and not any(path != "/" and under(path.lstrip("-+")) for path in allowed):
        made.add("The unit forbids to execute what it does not name.", f"ExecPaths={made.library.parent}")
    from_files, files = _from_files(service), ", ".join(service.words("EnvironmentFile"))
    if overridden := sorted({*options, "SPILLSHIM_STATE_DIR"} & {*from_files}):
        made.warnings.append((f"EnvironmentFile={files} sets {', '.join(overridden)}, which wins over a drop-in", "Change it there, or take it out."))
    if "LD_PRELOAD" in from_files:
        made.problems.append((f"EnvironmentFile={files} sets LD_PRELOAD, which wins over a drop-in", f"Put {made.library} into that line, or take the line out."))
    if limit := service.last("MemoryMax"):
        made.warnings.append((f"{service.name} has MemoryMax={limit}, and what spills is held against it", "Raise it with MemoryMax= in the drop-in where more is to spill."))


def _from_files(service: Service) -> dict[str, str]:
    """What the unit's EnvironmentFile= lines set, as far as they can be read; such a file wins over Environment=."""
    found: dict[str, str] = {}
    for value in service.words("EnvironmentFile"):
        with suppress(OSError):
            for line in Path(value.lstrip("-")).read_text(errors="replace").split("\n"):
                name, equals, rest = line.strip().partition("=")
                if equals and name.isidentifier():
                    found[name] = rest.strip("\"' ")
    return found


def render(made: DropIn, heading: Sequence[str]) -> str:
    """The drop-in as text, with its reasons as comments."""
    lines = [*(f"# {line}".rstrip() for line in heading), "[Service]"]
    for reason, settings in made.blocks:
        lines += [*(f"# {line}" for line in textwrap.wrap(reason, _COMMENT)), *settings]
    return "\n".join(lines) + "\n"
