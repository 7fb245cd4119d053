# SPDX-License-Identifier: Apache-2.0
"""The processes that run the bodies of the tests, so that a dead context or a crash costs its test alone. Called by conftest.py.

pytest itself never opens the driver. A worker is forked from it (so it has every test module already), opens the driver and
runs tests one after the other, sharing one primary context. Rules: a test that leaves the context broken, crashes or hangs
ends its worker; tests marked own_process get a worker to themselves, in which cuInit has not been called.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import conform
import cudaclient
import pytest
from leftovers import Leftovers

LIMIT = 60.0  # seconds for one test


@dataclass
class Outcome:
    """How a body ended: neither `failed` nor `skipped` set means that it passed."""

    failed: str | None = None
    skipped: str | None = None
    saw: list[tuple[str, int | None, str]] = field(default_factory=list)
    broken: bool = False  # the context is of no use any more
    stderr: str = ""


def _run(body: Callable[[], None], left: Leftovers | None, context: object) -> Outcome:
    """In the worker."""
    conform.observations.clear()
    outcome = Outcome()
    try:
        body()
    except pytest.skip.Exception as skip:
        outcome.skipped = str(skip)
    except (Exception, pytest.fail.Exception) as error:
        outcome.failed = str(pytest.ExceptionInfo.from_exception(error).getrepr(style="short"))
    outcome.saw = list(conform.observations)
    if left is not None:
        result = left.clear(context)
        if result:
            outcome.broken = True
            outcome.failed = outcome.failed or f"the test passed, but left its context broken: cuCtxSynchronize is {result}"
    return outcome


class Worker:
    """A forked process. `bodies`: what it can run, by name; `library`: the driver's file, None for the one the loader finds."""

    def __init__(self, bodies: Mapping[str, Callable[[], None]], env: Mapping[str, str], library: Path | None, shared: bool) -> None:
        asked, self._ask = os.pipe()
        self._answers, said = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid: int | None = os.fork()
        if self.pid == 0:
            os.close(self._ask)
            os.close(self._answers)
            status = 1
            try:
                os.setsid()
                os.environ.update(env)
                if library:
                    cudaclient.cu.library = str(library)
                self._serve(bodies, os.fdopen(asked), os.fdopen(said, "w"), shared)
                status = 0
            finally:
                os._exit(status)  # neither pytest's exit nor the driver's
        os.close(asked)
        os.close(said)
        self._buffer = b""

    @staticmethod
    def _serve(bodies, asked, said, shared) -> None:
        left, context = None, None
        if shared:
            context = cudaclient.start()
            left = Leftovers()
            cudaclient.watch = left.watch
        for line in asked:
            outcome = _run(bodies[json.loads(line)], left, context)
            said.write(json.dumps(outcome.__dict__) + "\n")
            said.flush()
            if outcome.broken:
                break

    def ask(self, name: str) -> Outcome:
        """Run one body. A worker that dies or hangs is an outcome too."""
        try:
            os.write(self._ask, json.dumps(name).encode() + b"\n")
        except BrokenPipeError:
            pass
        until = time.monotonic() + LIMIT
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.end()
                return Outcome(failed=f"still running after {LIMIT:.0f} s", broken=True)
            data = os.read(self._answers, 1 << 16)
            if not data:
                return Outcome(failed=f"the process died: {self.end()}", broken=True)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        made = json.loads(line)
        made["saw"] = [tuple(entry) for entry in made["saw"]]
        return Outcome(**made)

    def end(self) -> str:
        """Ends the process and what it started; in words how it ended, when it had not been ended already."""
        if self.pid is None:
            return "ended before"
        for pipe in (self._ask, self._answers):
            os.close(pipe)
        until = time.monotonic() + 5
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        while not pid and time.monotonic() < until:
            time.sleep(0.002)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if not pid:
            pid, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.pid = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
