# SPDX-License-Identifier: Apache-2.0
"""Runs a command under observation and says of each of its processes whether its allocations reached the shim.

Called by `doctor -- CMD`. The shim writes one JSON object per process that loads it (SPILLSHIM_OBSERVE); processes that
never appear there (a shell ends by _exit, a static program loads nothing) are found by watching the process tree and what
is mapped in it, so one that lived less than a few milliseconds may be missed.
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

from spillshim import launch, native, program
from spillshim.errors import SpillshimError

CAUGHT = "caught"  # allocations reached the shim
NO_ALLOCATION = "no allocation"  # libcuda was loaded, but no allocation reached the shim
NO_CUDA = "no cuda"  # the shim was loaded, libcuda never
NO_REPORT = "no report"  # the shim and libcuda were loaded, but the process ended before it could report
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
class Seen:
    """What was seen of a process while it ran: its program, and whether the two libraries were mapped in it."""

    exe: str
    shim: bool = False
    libcuda: bool = False
    looked: bool = False


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
    probe = os.path.realpath(native.probe())
    for pid, one in sorted(seen.items()):
        if pid not in reported and one.exe != probe:  # the shim's own child is no process of the command
            processes.append(Process(pid, one.exe, *_without_report(one)))
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


def _look(pid: int, one: Seen, library: str) -> None:
    """Note which of the two libraries process `pid` has mapped."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:  # ended, or of another user
        return
    one.looked = True
    one.shim = one.shim or library in maps
    one.libcuda = one.libcuda or "/libcuda.so" in maps


def _watch(child: subprocess.Popen[bytes], program_file: str) -> dict[int, Seen]:
    """Every process seen in the child's tree until it ends, by its pid."""
    library = os.path.realpath(native.library())
    seen = {child.pid: Seen(os.path.realpath(program_file))}
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
                        if not exe:
                            continue
                        if process.pid not in seen or seen[process.pid].exe != exe:
                            seen[process.pid] = Seen(exe)  # new, or it has executed another program
                        one = seen[process.pid]
                        if not (one.shim and one.libcuda):
                            _look(process.pid, one, library)
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


def _settled_reports(record: Path, seen: Mapping[int, Seen]) -> list[dict[str, Any]]:
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


def _without_report(one: Seen) -> tuple[str, str]:
    """Verdict and reason for a process that reported nothing."""
    ended = "the process ended without a report (by _exit, as shells do, or by a signal)"
    if one.shim and one.libcuda:
        return NO_REPORT, f"the shim was loaded, and libcuda too, but {ended}: what it allocated is not known"
    if one.shim:
        return NO_CUDA, f"the shim was loaded, libcuda.so.1 was not seen in it; {ended}"
    try:
        found = program.read(one.exe)
    except SpillshimError as error:
        return NOT_LOADED, f"the shim was not loaded ({error.message})"
    if found.problems:
        return NOT_LOADED, "; ".join(sentence for _, sentence, _ in found.problems)
    if os.path.basename(one.exe).startswith("ld-linux"):
        return NOT_LOADED, "it was started through the loader itself"
    removed = "LD_PRELOAD was removed from its environment (sudo, env -i, a launcher)"
    if one.looked:
        return NOT_LOADED, f"the shim was not loaded: {removed}"
    return NOT_LOADED, f"either {removed}, or {ended}; it was too short to see which"
