# SPDX-License-Identifier: Apache-2.0
"""Reads a program from outside: where a command name leads, and whether the dynamic loader will preload anything into it.

Called by `run` and `doctor` before anything is executed, because a static, setuid, musl or 32-bit program ignores
LD_PRELOAD without a word and would then run, and fail, without the shim. Only files are read here; nothing is executed.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from spillshim.errors import ProgramNotExecutable, ProgramNotFound

_MAX_INTERPRETERS = 5  # the kernel follows no more `#!` either
SANITIZERS = (
    "libasan.so",
    "libtsan.so",
    "liblsan.so",
    "libhwasan.so",
    "libubsan.so",
    "libclang_rt.asan",
    "libclang_rt.tsan",
)
# libubsan needs no place in front; it is in the list of names only so that it keeps its place among them.
_MUST_BE_FIRST = tuple(name for name in SANITIZERS if "ubsan" not in name)


@dataclass
class Program:
    """What `command` leads to.

    `path` is its file, `elf` the ELF file that the kernel will load at the end (the interpreter of a script; None
    where the file could not be read), `needed` its DT_NEEDED, `problems` why a preloaded library would not reach it,
    as (short name, sentence, what to do).
    """

    command: str
    path: Path
    chain: list[Path] = field(default_factory=list)
    elf: Path | None = None
    loader: str = ""
    needed: list[str] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    unreadable: str = ""

    @property
    def file(self) -> str:
        """What exec gets: the path as it was written, and with a slash always, else exec would search PATH once more."""
        return self.command if "/" in self.command else os.path.join(os.curdir, self.path)

    @property
    def sanitizers(self) -> list[str]:
        """Sanitizer runtimes that the program links and that insist on being loaded first."""
        return [name for name in self.needed if name.startswith(_MUST_BE_FIRST)]


def is_sanitizer(entry: str) -> bool:
    """True for an LD_PRELOAD entry that is a sanitizer runtime which must come before every other library."""
    return os.path.basename(entry).startswith(_MUST_BE_FIRST)


def find(command: str, search: str | None = None) -> Path:
    """The file that execvp would run for `command`. `search` is a PATH value (default: this process's).

    Raises ProgramNotFound or ProgramNotExecutable.
    """
    if not command:
        raise ProgramNotFound("the program's name is empty", "Give a program after --: spillshim run -- PROGRAM [ARGS]")
    if "/" in command:
        path = Path(command)
        try:
            info = path.stat()
        except PermissionError as error:
            raise ProgramNotExecutable(f"cannot reach {command}: {error.strerror}") from error
        except OSError as error:
            raise ProgramNotFound(f"no such program: {command} ({os.strerror(error.errno or errno.ENOENT)})") from error
        _check_executable(path, info)
        return path
    refused: ProgramNotExecutable | None = None
    search = os.environ.get("PATH", os.defpath) if search is None else search
    for folder in search.split(os.pathsep):
        path = Path(folder or ".") / command
        try:
            info = path.stat()
            _check_executable(path, info)
        except ProgramNotExecutable as error:
            if stat.S_ISREG(info.st_mode):
                refused = refused or error
            continue
        except OSError:
            continue
        return path
    if refused:
        raise refused
    here = f"There is one in this folder: ./{command}" if os.path.isfile(command) else f"PATH is {search}"
    raise ProgramNotFound(f"no program named {command} on PATH", here)


def _check_executable(path: Path, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise ProgramNotExecutable(f"{path} is a folder, not a program")
    if not stat.S_ISREG(info.st_mode):
        raise ProgramNotExecutable(f"{path} is not a regular file, so it cannot be executed")
    if not os.access(path, os.X_OK):
        raise ProgramNotExecutable(
            f"{path} is not executable (mode {stat.S_IMODE(info.st_mode):04o})", f"chmod +x '{path}'"
        )


def read(command: str, search: str | None = None) -> Program:
    """Find `command` and read it, through `#!` lines down to the ELF file. Raises as find()."""
    program = Program(command, find(command, search))
    path = program.path
    for _ in range(_MAX_INTERPRETERS):
        program.chain.append(path)
        try:
            with path.open("rb") as file:
                head = file.read(256)
                if head.startswith(b"\x7fELF"):
                    program.elf = path
                    _read_elf(program, file)
                    _read_privileges(program, path)
                    return program
        except OSError as error:
            # An execute-only file: the kernel can run it, we can't read it.
            program.unreadable = f"{path} cannot be read ({error.strerror})"
            _read_privileges(program, path)
            return program
        path = _interpreter(head, path, search)
    program.unreadable = f"{program.path} goes through more than {_MAX_INTERPRETERS} interpreters"
    return program


def _interpreter(head: bytes, script: Path, search: str | None) -> Path:
    """What runs `script`: its `#!` interpreter (looking through `env NAME`), or /bin/sh as execvp does without one."""
    if not head.startswith(b"#!"):
        if b"\0" in head:
            raise ProgramNotExecutable(f"{script} is neither an ELF program nor a script with a #! line")
        return find("/bin/sh")
    words = shlex.split(os.fsdecode(head[2:].split(b"\n", 1)[0]), posix=True)
    if not words:
        return find("/bin/sh")
    try:
        interpreter = find(words[0])
        if interpreter.name == "env":
            names = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            if names:
                return find(names[0], search)
        return interpreter
    except ProgramNotFound as error:
        raise ProgramNotFound(f"the interpreter of {script} was not found: {' '.join(words)}") from error


def _read_elf(program: Program, file: IO[bytes]) -> None:
    path = program.elf
    try:
        elf = ELFFile(file)
        machine = elf.get_machine_arch()
        if elf.elfclass != 64 or elf["e_machine"] != "EM_X86_64":
            bits = f"{elf.elfclass}-bit {machine}"
            program.problems.append(
                (
                    "machine",
                    f"{path} is a {bits} program, and libspillshim.so is for 64-bit x86",
                    "Use a 64-bit x86 build of the program.",
                )
            )
            return
        for segment in elf.iter_segments():
            if segment["p_type"] == "PT_INTERP":
                program.loader = segment.get_interp_name()
            elif segment["p_type"] == "PT_DYNAMIC":
                program.needed = [tag.needed for tag in segment.iter_tags("DT_NEEDED")]
    except (ELFError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise ProgramNotExecutable(f"{path} is a damaged ELF file ({error})") from error
    if not program.loader:
        program.problems.append(
            (
                "static",
                f"{path} is statically linked: no dynamic loader runs in it, so nothing can be preloaded",
                "Use a dynamically linked build (for Go: CGO_ENABLED=1; for gcc: without -static).",
            )
        )
    elif "ld-musl" in program.loader:
        program.problems.append(
            (
                "musl",
                f"{path} is built for musl (its loader is {program.loader}), and libspillshim.so needs glibc",
                "Use a glibc build of the program (NVIDIA's driver libraries need glibc too).",
            )
        )
    elif not os.path.exists(program.loader):
        raise ProgramNotFound(
            f"{path} needs the loader {program.loader}, which is not on this machine",
            "The program was built for another system; install its C library or use another build.",
        )


def _read_privileges(program: Program, path: Path) -> None:
    """setuid, setgid and file capabilities make the loader ignore LD_PRELOAD entries (AT_SECURE)."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    advice = f"Run it without that privilege (cp '{path}' elsewhere), or start the shim inside: have it run `spillshim run -- ...`."
    for bit, word in ((stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid")):
        if mode & bit:
            program.problems.append(
                (
                    word,
                    f"{path} is {word} (mode {stat.S_IMODE(mode):04o}): the loader ignores LD_PRELOAD in such programs",
                    advice,
                )
            )
    try:
        capable = bool(os.getxattr(path, "security.capability"))
    except OSError:
        capable = False
    if capable:
        program.problems.append(
            (
                "capabilities",
                f"{path} has file capabilities (getcap shows them): the loader ignores LD_PRELOAD in such programs",
                advice,
            )
        )
