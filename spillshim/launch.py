# SPDX-License-Identifier: Apache-2.0
"""The environment that puts a program under the shim. Called by run, env, doctor and demo; executes nothing.

Rules: the user's own LD_PRELOAD and LD_LIBRARY_PATH are kept; a sanitizer's runtime stays in front (it aborts otherwise);
a run inside a run keeps the outer one's settings where it has none of its own, and preloads the library once.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spillshim import native, program, simulation
from spillshim.errors import NotCatchable, ProgramNotExecutable, ProgramNotFound, SpillshimError


@dataclass
class Settings:
    """What a command's options ask for, and a profile where they say nothing: `variables` to set, `sim` SIMGPU_* (None: the
    real driver)."""

    variables: dict[str, str] = field(default_factory=dict)
    sim: dict[str, str] | None = None


def split_preload(value: str) -> list[str]:
    """The entries of an LD_PRELOAD value; ld.so separates them by spaces and colons."""
    return [entry for entry in re.split(r"[ :]+", value) if entry]


def is_shim(entry: str) -> bool:
    """True for an LD_PRELOAD entry that is a libspillshim.so (this one, another copy, or a link to one)."""
    return native.LIBRARY_NAME in (os.path.basename(entry), os.path.basename(os.path.realpath(entry)))


def preload(library: Path, current: str, sanitizers: Sequence[str] = ()) -> str:
    """An LD_PRELOAD value: sanitizer runtimes first, then `library`, then what `current` had."""
    kept = [entry for entry in split_preload(current) if not is_shim(entry) and entry != str(library)]
    first = [entry for entry in kept if program.is_sanitizer(entry)]
    present = {os.path.basename(entry) for entry in first}
    first += [name for name in sanitizers if name not in present]
    rest = [entry for entry in kept if not program.is_sanitizer(entry)]
    return ":".join([*first, str(library), *rest])


def inherited() -> dict[str, str]:
    """This process's environment as its parent made it: Python sets LC_CTYPE in a C locale, which the program must not see."""
    env = dict(os.environ)
    try:
        first = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return env
    if not any(entry.startswith(b"LC_CTYPE=") for entry in first):
        env.pop("LC_CTYPE", None)
    return env


def without_shim(env: Mapping[str, str]) -> dict[str, str]:
    """A copy of `env` in which this package's library is not preloaded: for our own helper programs."""
    made = dict(env)
    kept = [entry for entry in split_preload(made.pop("LD_PRELOAD", "")) if not is_shim(entry)]
    if kept:
        made["LD_PRELOAD"] = ":".join(kept)
    return made


def simulated(env: Mapping[str, str], sim: Mapping[str, str]) -> dict[str, str]:
    """A copy of `env` in which programs meet the simulated driver, on a machine of their own unless `sim` names one."""
    made = dict(env)
    made.update(sim)
    made["SIMGPU_NAME"] = sim.get("SIMGPU_NAME") or simulation.fresh_name(env)
    folder = str(native.loader_safe(native.sim_dir()))
    others = [entry for entry in made.get("LD_LIBRARY_PATH", "").split(":") if entry and entry != folder]
    made["LD_LIBRARY_PATH"] = ":".join([folder, *others])
    # A library with DT_RPATH, as PyTorch's, looks there first: only what is loaded already keeps NVIDIA's copies out.
    present = split_preload(made.get("LD_PRELOAD", ""))
    runtimes = [str(path) for path in native.sim_runtimes(Path(folder)) if str(path) not in present]
    if present or runtimes:
        made["LD_PRELOAD"] = ":".join([*present, *runtimes])
    # The card has no place in sysfs where the shim could read the rates of its link and memory.
    made.setdefault("SPILLSHIM_LINK_RATE", made.get("SIMGPU_LINK", simulation.keys()["link"].default))
    made.setdefault("SPILLSHIM_HBM_RATE", made.get("SIMGPU_HBM", simulation.keys()["hbm"].default))
    return made


def environment(env: Mapping[str, str], settings: Settings, sanitizers: Sequence[str] = ()) -> dict[str, str]:
    """`env` with the shim preloaded and `settings` applied; a job of its own (what shares a VRAM limit) unless it has one.

    Raises SpillshimError (125) when the library or the simulated driver is missing or unreadable.
    """
    made = dict(env)
    if settings.sim is not None:
        made = simulated(made, settings.sim)
    made["LD_PRELOAD"] = preload(native.loader_safe(native.library()), made.get("LD_PRELOAD", ""), sanitizers)
    made.update(settings.variables)
    made.setdefault("SPILLSHIM_JOB", f"{os.getpid()}-{secrets.token_hex(4)}")
    return made


def filled(settings: Settings, env: Mapping[str, str], proposed: Callable[[Mapping[str, str]], Mapping[str, str]]) -> tuple[Settings, dict[str, str]]:
    """`settings` with what a profile (or what was remembered) proposes, and that alone.

    `proposed` gets the user's environment with the command line's variables in it; what is set there is never overridden.
    """
    known = {**env, **settings.variables, **(settings.sim or {})}
    added = {name: value for name, value in proposed(known).items() if name not in known}
    return Settings({**added, **settings.variables}, settings.sim), added


def quiet(settings: Settings, env: Mapping[str, str]) -> bool:
    """Whether the user wants no lines that only inform (--quiet, SPILLSHIM_QUIET=1)."""
    return {**env, **settings.variables}.get("SPILLSHIM_QUIET", "0") in ("1", "on", "yes", "true")


def refuse_uncatchable(found: program.Program) -> None:
    """Raise SpillshimError that lists why the shim would not be loaded into `found`; nothing when it would be."""
    if found.problems:
        raise NotCatchable(
            "; ".join(sentence for _, sentence, _ in found.problems),
            " ".join(dict.fromkeys(advice for _, _, advice in found.problems))
            + " --force runs it all the same, without the shim.",
        )


def execute(found: program.Program, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Replace this process by the program (same pid, so signals and the exit code are its own). Returns only by raising."""
    path = found.file
    for name in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)  # Python ignores both, and exec would hand that on
    try:
        os.execve(path, list(argv), dict(env))
    except OSError as error:
        if error.errno == errno.ENOEXEC:  # a script without a #! line: a shell runs it, as execvp does
            os.execve("/bin/sh", ["sh", path, *argv[1:]], dict(env))
        if error.errno == errno.ENOENT:
            raise ProgramNotFound(f"cannot execute {path}: it or its interpreter does not exist") from error
        if error.errno in (errno.EACCES, errno.ENOTDIR, errno.EISDIR, errno.ELIBBAD):
            raise ProgramNotExecutable(f"cannot execute {path}: {error.strerror}") from error
        raise SpillshimError(f"cannot execute {path}: {error.strerror}") from error
