# SPDX-License-Identifier: Apache-2.0
"""Runs a command under observation and says of each of its processes whether its allocations reached the shim.

Called by `doctor -- CMD`. The shim writes one JSON object per process that loads it (SPILLSHIM_OBSERVE); processes that
never appear there are found by watching the process tree, so one that lived less than a few milliseconds may be missed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from spillshim import launch, program
from spillshim.errors import SpillshimError

CAUGHT = "caught"  # allocations reached the shim
NO_ALLOCATION = "no allocation"  # libcuda was loaded, but no allocation reached the shim
NO_CUDA = "no cuda"  # the shim was loaded, libcuda never
NOT_LOADED = "not loaded"  # the process ran without the shim

_POLL = 0.02  # seconds between looks at the process tree
_ALLOCATIONS = ("cuMemAlloc", "cuMemCreate", "cuMemHostAlloc", "cuMemAllocManaged")


@dataclass
class Process:
    """One process of the command's tree and what became of it. `paths` as the shim reports them."""

    pid: int
    exe: str
    verdict: str
    why: str
    paths: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Observation:
    """How the command ended (`returncode` as subprocess has it: negative for a signal) and its processes."""

    returncode: int
    processes: list[Process]

    @property
    def caught(self) -> bool:
        return any(process.verdict == CAUGHT for process in self.processes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "returncode": self.returncode,
            "caught": self.caught,
            "processes": [asdict(process) for process in self.processes],
        }


def observe(argv: Sequence[str], env: Mapping[str, str], settings: launch.Settings) -> Observation:
    """Run `argv` to its end with the shim and the standard streams of this process. Raises as program.read()."""
    found = program.read(argv[0], env.get("PATH"))
    folder = Path(tempfile.mkdtemp(prefix="spillshim-observe-"))
    try:
        record = folder / "observed.jsonl"
        made = launch.environment(env, settings, found.sanitizers)
        made["SPILLSHIM_OBSERVE"] = str(record)
        child = _start(found, argv, made)
        seen = _watch(child, str(found.elf or found.path))
        returncode = child.wait()
        reports = _settled_reports(record, seen)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    processes = [_judge(report) for report in reports]
    # A process may exec several programs in a row under one pid: any report of that pid counts for it.
    reported = {process.pid for process in processes}
    for pid, exe in sorted(seen.items()):
        if pid not in reported:
            processes.append(Process(pid, exe, NOT_LOADED, _why_not_loaded(exe)))
    return Observation(returncode, processes)


def _start(found: program.Program, argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        try:
            return subprocess.Popen(list(argv), executable=found.file, env=env)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # A script without a #! line: a shell runs it, as in launch.execute().
            return subprocess.Popen(["sh", found.file, *argv[1:]], executable="/bin/sh", env=env)
    except OSError as error:
        raise SpillshimError(f"cannot execute {found.file}: {error.strerror}") from error


def _watch(child: subprocess.Popen[bytes], program_file: str) -> dict[int, str]:
    """Pid and program of every process seen in the child's tree until it ends."""
    seen = {child.pid: program_file}
    try:
        root = psutil.Process(child.pid)
    except psutil.NoSuchProcess:  # it has ended already
        return seen
    while True:
        ended = child.poll() is not None
        try:
            for process in [root, *root.children(recursive=True)]:
                try:
                    if process.status() != psutil.STATUS_ZOMBIE:
                        exe = process.exe()
                        if exe:
                            seen[process.pid] = exe
                except psutil.Error:
                    continue
        except psutil.Error:
            pass
        if ended:
            return seen
        try:
            child.wait(_POLL)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:  # the terminal sent it to the child too: let it end in its own way
            continue


def _settled_reports(record: Path, seen: Mapping[int, str]) -> list[dict[str, Any]]:
    """The reports written so far; children that outlive the command get a second to end and write theirs."""
    deadline = time.monotonic() + 1.0
    while any(psutil.pid_exists(pid) for pid in seen) and time.monotonic() < deadline:
        time.sleep(_POLL)
    if not record.exists():
        return []
    reports = []
    for line in record.read_text(errors="replace").splitlines():
        try:
            report = json.loads(line)
        except json.JSONDecodeError:
            continue  # a process killed in the middle of its line
        if isinstance(report, dict) and isinstance(report.get("pid"), int):
            reports.append(report)
    return reports


def _judge(report: Mapping[str, Any]) -> Process:
    paths = [path for path in report.get("paths", []) if isinstance(path, dict) and path.get("calls", 1)]
    counts = {kind: int((report.get(kind) or {}).get("count", 0)) for kind in ("managed", "native", "spilled")}
    pid, exe = int(report["pid"]), str(report.get("exe") or "?")
    allocations = [path for path in paths if str(path.get("symbol", "")).startswith(_ALLOCATIONS)]
    if counts["managed"] or counts["native"] or counts["spilled"] or allocations:
        total = counts["managed"] + counts["native"]
        return Process(
            pid,
            exe,
            CAUGHT,
            f"{total} allocations reached the shim ({counts['managed']} managed by it, {counts['native']} left to the driver)",
            paths,
            counts,
        )
    if report.get("libcuda"):
        why = f"it loaded {report['libcuda']}, but no allocation reached the shim: it allocated nothing, or got its entry points by a way around the dynamic loader"
        return Process(pid, exe, NO_ALLOCATION, why, paths, counts)
    return Process(
        pid, exe, NO_CUDA, "the shim was loaded, but libcuda.so.1 was not: it never used CUDA", paths, counts
    )


def _why_not_loaded(exe: str) -> str:
    """Why a process ran without the shim, as far as its file tells."""
    try:
        found = program.read(exe)
    except SpillshimError as error:
        return f"the shim was not loaded ({error.message})"
    if found.problems:
        return "; ".join(sentence for _, sentence, _ in found.problems)
    if os.path.basename(exe).startswith("ld-linux"):
        return "it was started through the loader itself"
    return "the shim was not loaded, or the process was killed before it could report: was LD_PRELOAD removed from its environment (sudo, env -i, a launcher), or did it end by _exit or a signal?"
