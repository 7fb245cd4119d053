# SPDX-License-Identifier: Apache-2.0
"""Talks to the shim inside running processes: who can be spoken to, what they tell, orders. Called by status, demote, promote.

The other side is csrc/shim/control.c; messages and the segment are those of spillshim_abi.h, read through cffi. Rules: a socket
is believed only when the kernel says that the process it is named after listens there; whoever doesn't answer is not waited for
longer than the given time; every error says what to do.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from spillshim import native
from spillshim.errors import EXIT_CHECK_FAILED, SpillshimError

ALL = 2**64 - 1  # bytes of an order: whatever there is
STATES = ("open", "frozen", "dead")
_ANSWER = 5.0  # seconds for an answer that takes no work
_SUFFIX = ".sock"
_OTHERS = (("/run/spillshim", "*/state"), ("/run/user", "*/spillshim"), ("/dev/shm", "spillshim-*"))


class NoAnswer(SpillshimError):
    """The process can't be spoken to, or does not do what it was asked for."""

    exit_code = EXIT_CHECK_FAILED


@dataclass
class Pauses:
    """How long the gate was closed. `bucket[i]` counts pauses of 2^i up to 2^(i+1) ns."""

    count: int
    total_ns: int
    longest_ns: int
    bucket: list[int]

    def quantile(self, share: float) -> int | None:
        """Nanoseconds that this share of pauses did not exceed: the end of its bucket, so at most twice too much."""
        seen = sum(self.bucket)
        reached = 0
        for index, count in enumerate(self.bucket):
            reached += count
            if count and reached >= share * seen:
                return min(2 ** (index + 1), self.longest_ns)
        return None

    def __add__(self, other: Pauses) -> Pauses:
        bucket = [a + b for a, b in zip(self.bucket, other.bucket, strict=True)]
        return Pauses(self.count + other.count, self.total_ns + other.total_ns, max(self.longest_ns, other.longest_ns), bucket)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "p50_ns": self.quantile(0.5), "p99_ns": self.quantile(0.99)}


@dataclass
class Status:
    """What a process tells of itself. Sizes in bytes; `moves` as struct spill_move_stats has them."""

    pid: int
    command: str
    state: str
    why: str
    vram: int
    ram: int
    managed: int
    regions: int
    moves: dict[str, int] = field(default_factory=dict)
    steady: Pauses = field(default_factory=lambda: Pauses(0, 0, 0, []))
    bulk: Pauses = field(default_factory=lambda: Pauses(0, 0, 0, []))

    @property
    def given_up(self) -> int:
        return sum(count for name, count in self.moves.items() if name.startswith("refused_"))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "steady": self.steady.as_dict(), "bulk": self.bulk.as_dict()}


@dataclass
class Outcome:
    """What became of an order. Bytes; `reason` is the word of enum spill_reason, "none" where all was moved."""

    moved: int
    left: int
    reason: str


def _abi() -> ModuleType:
    module = native.abi()
    if module is None:
        raise SpillshimError(
            "running processes cannot be read: the module spillshim._abi does not load",
            "Reinstall spillshim with the Python that runs it (pip install .).",
        )
    return module


# --- where the sockets are --------------------------------------------------------------------------------------------------


def _folders(env: Mapping[str, str], uid: int) -> list[Path]:
    """Where a process of user `uid` with this environment puts its socket: as folder() in control.c."""
    state, runtime = env.get("SPILLSHIM_STATE_DIR"), env.get("XDG_RUNTIME_DIR", "")
    if state:
        return [Path(state)]
    made = [Path(runtime) / "spillshim"] if runtime.startswith("/") else []
    return [*made, Path(f"/dev/shm/spillshim-{uid}")]


def _environment_of(pid: int) -> dict[str, str]:
    """The environment with which a process began; {} where it may not be read."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in entries)
    return {os.fsdecode(name): os.fsdecode(value) for name, equals, value in pairs if equals}


def _folders_of_others() -> list[Path]:
    """Where other users' processes have their sockets: services (STATE in dropin.py), logins, and who is neither."""
    return [path for base, form in _OTHERS for path in sorted(Path(base).glob(form))]


def running() -> list[int]:
    """Processes of this user, for root of all users, that can be spoken to, in ascending order; with SPILLSHIM_STATE_DIR those
    that share it. What dead ones of this user left is taken away."""
    own = _folders(os.environ, os.getuid())
    pids = {pid for folder in own for pid in _named_in(folder, tidy=True)}
    if os.getuid() == 0 and not os.environ.get("SPILLSHIM_STATE_DIR"):
        for folder in _folders_of_others():
            with suppress(OSError):
                # Of a name there only that user's own processes are believed, and nothing is removed: the folder is not ours.
                owner = folder.lstat().st_uid
                pids.update(pid for pid in _named_in(folder, tidy=False) if _owner_of(pid) == owner)
    return sorted(pids)


def _owner_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _named_in(folder: Path, tidy: bool) -> list[int]:
    """Processes that are there and have a socket in `folder`; `tidy`: sockets of those that are not are removed."""
    pids = []
    with suppress(OSError):
        for path in folder.glob(f"*{_SUFFIX}"):
            if not path.name.removesuffix(_SUFFIX).isdecimal():
                continue
            pid = int(path.name.removesuffix(_SUFFIX))
            if os.path.exists(f"/proc/{pid}"):
                pids.append(pid)
            elif tidy and not _listens(path):
                path.unlink(missing_ok=True)
    return pids


def _listens(path: Path) -> bool:
    """Whether anybody does: a process that we don't see (in another namespace of pids) may."""
    try:
        _connect(path, _ANSWER).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


# --- one process ------------------------------------------------------------------------------------------------------------


def _connect(path: Path, timeout: float) -> socket.socket:
    """Raises OSError. By way of the folder's descriptor, because a socket's address is short."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Not settimeout: without waiting, a queue of callers that is full for a moment is an error.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6)))
    folder = -1
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        made.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        made.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return made


def command_of(pid: int) -> str:
    """The program's name and arguments; "?" for a process that has gone."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
        return os.fsdecode(line.replace(b"\0", b" ")) or Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


class Process:
    """A connection to one process. Close it, or use it in `with`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.command = command_of(pid)
        self._ids = 0
        self._segment = -1
        self._socket = self._open()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        if self._segment >= 0:
            os.close(self._segment)
            self._segment = -1

    def _open(self) -> socket.socket:
        owner = _owner_of(self.pid)
        if owner is None:
            raise NoAnswer(f"there is no process {self.pid}", "`spillshim status` lists those that can be spoken to.")
        if os.getuid() not in (owner, 0):
            raise NoAnswer(
                f"process {self.pid} ({short(self.command)}) belongs to {_user(owner)}, and listens to that user and to root only",
                f"Be one of the two: sudo -u {_user(owner)} spillshim …",
            )
        told = _environment_of(self.pid)
        refused = False
        for folder in dict.fromkeys([*_folders(told, owner), *_folders({"XDG_RUNTIME_DIR": f"/run/user/{owner}"}, owner)]):
            try:
                made = _connect(folder / f"{self.pid}{_SUFFIX}", _ANSWER)
            except ConnectionRefusedError:
                continue  # left behind by another process of this number
            except (TimeoutError, BlockingIOError):
                refused = True
                continue
            except OSError:
                continue
            pid, uid, _ = struct.unpack("3i", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid == self.pid and uid == owner:
                return made
            made.close()
        raise self._silent() if refused else self._without_socket(told)

    def _silent(self) -> NoAnswer:
        stopped = "stopped" if _state_letter(self.pid) in "Tt" else ""
        why = "it is stopped (SIGSTOP, or a debugger)" if stopped else "it is busy with another order, or stopped"
        fix = f"kill -CONT {self.pid}" if stopped else "Try again; `--json` of `spillshim status` shows whether it moves anything."
        return NoAnswer(f"process {self.pid} ({short(self.command)}) does not answer: {why}", fix)

    def _without_socket(self, env: Mapping[str, str]) -> NoAnswer:
        who = f"process {self.pid} ({short(self.command)})"
        try:
            loaded = native.LIBRARY_NAME in Path(f"/proc/{self.pid}/maps").read_text(errors="replace")
        except OSError:
            loaded = False
        if not loaded:
            return NoAnswer(f"{who} runs without the shim", f"Start it with `spillshim run -- {short(self.command)}`.")
        if env.get("SPILLSHIM_CONTROL", "1") in ("0", "off", "no"):
            return NoAnswer(f"{who} was started with SPILLSHIM_CONTROL=0, so it takes no orders", "Start it without that variable.")
        return NoAnswer(
            f"{who} has the shim, but no control socket: it has no managed memory (yet), or nowhere to put the socket",
            "It gets one with its first allocation of 16 MiB and more (SPILLSHIM_MANAGED_MIN); SPILLSHIM_LOG=debug says what failed.",
        )

    def _ask(self, command: int, size: int, patience: float, meanwhile: Callable[[], None] | None = None) -> tuple[Any, list[int]]:
        """Send a request and wait for its reply: (struct spill_reply, descriptors that came along)."""
        module = _abi()
        ffi, lib = module.ffi, module.lib
        self._ids += 1
        request = ffi.new(
            "struct spill_request *",
            {"magic": lib.SPILL_CONTROL_MAGIC, "version": lib.SPILL_CONTROL_VERSION, "id": self._ids, "command": command, "bytes": size},
        )
        reply = ffi.new("struct spill_reply *")
        length = ffi.sizeof("struct spill_reply")
        deadline = time.monotonic() + patience
        try:
            self._socket.settimeout(_ANSWER)
            self._socket.send(ffi.buffer(request)[:])
            while True:
                self._socket.settimeout(0.1 if meanwhile else patience)
                try:
                    data, descriptors, _, _ = socket.recv_fds(self._socket, length, 4)
                    break
                except TimeoutError:
                    if meanwhile:
                        meanwhile()
                    if time.monotonic() >= deadline:
                        raise self._silent() from None
        except ConnectionError:
            data, descriptors = b"", []
        if len(data) != length:
            raise NoAnswer(f"process {self.pid} ({short(self.command)}) hung up: it ended, or another version of spillshim runs in it")
        ffi.memmove(reply, data, length)
        if (reply.magic, reply.version, reply.id) != (lib.SPILL_CONTROL_MAGIC, lib.SPILL_CONTROL_VERSION, self._ids):
            for descriptor in descriptors:
                os.close(descriptor)
            raise NoAnswer(f"process {self.pid} ({short(self.command)}) answers in another version of the protocol", "Use the spillshim that started it.")
        return reply, descriptors

    def status(self) -> Status:
        """What the process tells now."""
        _, descriptors = self._ask(_abi().lib.SPILL_COMMAND_STATUS, 0, _ANSWER)
        if self._segment >= 0:
            os.close(self._segment)
        self._segment = descriptors[0] if descriptors else -1
        for more in descriptors[1:]:
            os.close(more)
        if self._segment < 0:
            raise NoAnswer(f"process {self.pid} ({short(self.command)}) has no memory for statistics", "It takes orders all the same.")
        return self.read()

    def read(self) -> Status:
        """The segment that the last status() brought, as it is now: asks the process nothing."""
        module = _abi()
        out = module.ffi.new("struct spill_segment_file *")
        error = -module.lib.spill_segment_read(self._segment, out)
        if error:
            raise NoAnswer(f"the statistics of process {self.pid} cannot be read: {os.strerror(error)}", "Use the spillshim that started it.")
        counters = [name for name, kind in module.ffi.typeof("struct spill_move_stats").fields if kind.type.kind == "primitive"]
        return Status(
            self.pid,
            self.command,
            STATES[out.state] if out.state < len(STATES) else str(out.state),
            module.ffi.string(out.why).decode(errors="replace"),
            out.vram,
            out.ram,
            out.managed,
            out.regions,
            {name: getattr(out.moves, name) for name in counters},
            _pauses(out.moves.pause[0]),
            _pauses(out.moves.pause[1]),
        )

    def order(self, demote: bool, size: int, patience: float, meanwhile: Callable[[], None] | None = None) -> Outcome:
        """Have at most `size` bytes moved (ALL: what there is); `meanwhile` is called now and then until the answer comes."""
        lib = _abi().lib
        reply, descriptors = self._ask(lib.SPILL_COMMAND_DEMOTE if demote else lib.SPILL_COMMAND_PROMOTE, size, patience, meanwhile)
        for descriptor in descriptors:
            os.close(descriptor)
        return Outcome(reply.moved, reply.left, _reason(reply.reason))


def _pauses(told: Any) -> Pauses:
    return Pauses(told.count, told.total_ns, told.longest_ns, list(told.bucket))


def _reason(number: int) -> str:
    """SPILL_REASON_BUSY -> "busy"."""
    words = {value: name.removeprefix("SPILL_REASON_").lower() for value, name in _abi().ffi.typeof("enum spill_reason").elements.items()}
    return words.get(number, str(number))


def _state_letter(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "?"


def short(command: str) -> str:
    """A command line for a sentence."""
    return command if len(command) <= 40 else command[:39] + "…"


def processes() -> Iterator[Status | NoAnswer]:
    """The status of each process of running(); or why there is none."""
    for pid in running():
        try:
            with Process(pid) as process:
                yield process.status()
        except NoAnswer as error:
            yield error
