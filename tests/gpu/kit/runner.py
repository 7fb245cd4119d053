# SPDX-License-Identifier: Apache-2.0
"""Runs one child to its end, its time limit or an interruption, and leaves nothing of it behind.

Called by check.py. Rules: the child leads a session of its own, so a kill reaches its whole group; this process is a subreaper
(become_subreaper), so that what left the group is found as well. Output is read while it comes, and bounded.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STDERR_KEPT = 8192  # bytes
LINE_MOST = 4 << 20  # bytes of one line of stdout
STDOUT_MOST = 64 << 20  # bytes in all: more is a program gone wild
STEP = 0.05  # seconds between two looks at the child
EXIT_GRACE = 0.3  # seconds for a child's own helpers to end after it
KILL_WAIT = 10.0  # seconds after which a killed process counts as stuck in the kernel


@dataclass
class Outcome:
    """How a child ended. `exit` is None when it never ended by itself or could not be started (then `error` says why)."""

    exit: int | None = None
    signal: str | None = None
    seconds: float = 0.0
    timed_out: bool = False
    interrupted: bool = False
    flooded: bool = False
    stuck: bool = False
    left_behind: int = 0
    stderr: str = ""
    error: str | None = None

    def end(self) -> str:
        """In words, for a row that did not come."""
        if self.error:
            return self.error
        if self.interrupted:
            return f"interrupted after {self.seconds:.1f} s"
        if self.timed_out:
            return f"killed at its time limit of {self.seconds:.1f} s"
        if self.flooded:
            return "killed: it wrote without end"
        if self.signal:
            return f"died of {self.signal}"
        return f"ended with exit code {self.exit}"


@dataclass
class _Stream:
    """One pipe of the child: stdout cut into lines, stderr kept as a tail."""

    take_line: Callable[[str], None] | None
    pending: bytearray = field(default_factory=bytearray)
    total: int = 0

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        self.pending += data
        if self.take_line is None:
            del self.pending[:-STDERR_KEPT]
            return
        while (end := self.pending.find(b"\n")) >= 0:
            line = bytes(self.pending[:end])
            del self.pending[: end + 1]
            self.take_line(line.decode("utf-8", "replace"))

    def finish(self) -> None:
        if self.take_line is not None and self.pending:
            self.take_line(self.pending.decode("utf-8", "replace"))
            self.pending.clear()


def become_subreaper() -> None:
    """Orphans of our children become our children. Where the kernel has no such thing, only groups are cleaned up."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _children() -> list[int]:
    """Process ids whose parent is this process; zombies too."""
    mine = os.getpid()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == mine:
            found.append(int(entry))
    return found


def _signal_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _reap_orphans() -> list[int]:
    """Reaps what has ended and returns the ids of the children that still run."""
    running = []
    for pid in _children():
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                running.append(pid)
        except ChildProcessError:
            pass
    return running


def _sweep(group: int) -> int:
    """Ends everything that the finished child `group` left. Returns how many processes of it were still running."""
    deadline = time.monotonic() + EXIT_GRACE
    while (running := _reap_orphans()) and time.monotonic() < deadline:
        time.sleep(0.01)
    seen = set(running)
    _signal_group(group)
    deadline = time.monotonic() + KILL_WAIT
    while running and time.monotonic() < deadline:
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
        running = _reap_orphans()  # the children of what was just killed come to us
        seen |= set(running)
    return len(seen)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path,
    limit: float,
    take_line: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run argv for at most `limit` seconds; every line of its stdout goes to take_line as it comes. Ends early when stop()."""
    outcome = Outcome()
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            [str(part) for part in argv],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        outcome.error = f"could not be started: {error.strerror}: {argv[0]}"
        return outcome
    assert process.stdout and process.stderr
    out, err = _Stream(take_line), _Stream(None)
    with selectors.DefaultSelector() as selector:
        for pipe, stream in ((process.stdout, out), (process.stderr, err)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, stream)

        def drain(timeout: float) -> bool:
            """Reads what is there; whether there was anything."""
            any_data = False
            for key, _ in selector.select(timeout) if selector.get_map() else ():
                try:
                    data = os.read(key.fd, 1 << 16)
                except BlockingIOError:
                    continue
                if data:
                    key.data.feed(data)
                    any_data = True
                else:
                    selector.unregister(key.fileobj)
            if not selector.get_map() and timeout:
                time.sleep(min(timeout, STEP))
            return any_data

        while process.poll() is None:
            outcome.interrupted = stop()
            outcome.timed_out = not outcome.interrupted and time.monotonic() - started >= limit
            outcome.flooded = out.total > STDOUT_MOST or len(out.pending) > LINE_MOST
            if outcome.interrupted or outcome.timed_out or outcome.flooded:
                _signal_group(process.pid)
                try:
                    process.wait(KILL_WAIT)
                except subprocess.TimeoutExpired:
                    outcome.stuck = True
                break
            drain(STEP)
        outcome.seconds = time.monotonic() - started
        # A process left behind may hold the pipes open: sweep first, then read what is still in them, never wait for their end.
        outcome.left_behind = _sweep(process.pid)
        until = time.monotonic() + 2.0
        while out.total <= STDOUT_MOST and time.monotonic() < until and drain(0):
            pass
    out.finish()
    process.stdout.close()
    process.stderr.close()
    outcome.stderr = err.pending.decode("utf-8", "replace")
    killed = outcome.timed_out or outcome.interrupted or outcome.flooded
    if process.returncode is not None and process.returncode < 0:
        outcome.signal = _signal_name(-process.returncode)
    elif not killed:
        outcome.exit = process.returncode
    return outcome
