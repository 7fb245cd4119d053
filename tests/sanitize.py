# SPDX-License-Identifier: Apache-2.0
"""The native parts built with a sanitizer, and what its runtime says of the programs that run on them.

Called by conftest.py: the fixture `sanitizer` makes one (`--san` gives it to every test that runs programs on simgpu), and
`run_sim` puts its runtime in front, collects its reports after each program, and fails the test that has one.
Rules: a report is never dropped because of its text, with three exceptions: a leak counts only when a frame of its allocation
lies in our own parts or in the test's program, because Python, its modules and libc keep much until they exit;
LeakSanitizer says in the child of a fork that it does not find its parent's threads; and AddressSanitizer says at each
program's first swapcontext that it knows fibers only where it is told (simk.h tells it). A runtime that could not work (no address space, no ptrace) says so in the same file: that fails too. Beside AddressSanitizer, gcc's runtime
for undefined behaviour cannot be given a file: its reports are read from what the program wrote, and end the program.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"

# What gcc is given, and the runtime that must be loaded before everything else.
KINDS = {"address": ("address,undefined", "libasan.so"), "thread": ("thread", "libtsan.so")}

# handle_*=0: simgpu answers faults of simulated kernels itself, and a program's own crash must stay one.
# exitcode=0: programs end as they would have; the report is what fails the test.
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1:detect_stack_use_after_return=0:handle_segv=0:handle_sigbus=0:handle_abort=0",
        "LSAN_OPTIONS": "exitcode=0:print_suppressions=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:abort_on_error=1",
    },
    "thread": {
        "TSAN_OPTIONS": "exitcode=0:halt_on_error=0:handle_segv=0:handle_sigbus=0:handle_abort=0:die_after_fork=0:history_size=4",
    },
}

SLOWER = 5  # how much longer a watched program may take before it counts as hanging

OURS = re.compile(r"libcuda\.so\.1|libspillshim\.so|libnvidia-ml\.so\.1|libcudart\.so\.13|\.simk\.so|/c_programs/|/demo/")


class Unavailable(Exception):
    """This machine's compiler has no such sanitizer, or no cmake: the reason."""


def runtime(library: str) -> Path:
    """The runtime itself; gcc's name for it may be a linker script or a link."""
    said = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(said):
        raise Unavailable(f"gcc has no {library} (Debian: it belongs to libgcc-N-dev)")
    path = Path(os.path.realpath(said))
    if not path.read_bytes()[:4] == b"\x7fELF":
        path = Path(re.findall(rf"/\S+{re.escape(library)}\S*", path.read_text())[0])
    return path


@dataclass(frozen=True)
class Sanitizer:
    kind: str  # "address" (with undefined behaviour) or "thread"
    native: Path  # the installed folder: libspillshim.so, sim/, demo/
    runtime: Path

    @property
    def flags(self) -> list[str]:
        """What a test program is compiled with to be watched itself."""
        divides = ["-fno-sanitize=integer-divide-by-zero"] if self.kind == "address" else []  # kernels that do are answered
        # gcc warns of what its own checks insert.
        return [f"-fsanitize={KINDS[self.kind][0]}", *divides, "-fno-omit-frame-pointer", "-Wno-error"]

    def environment(self, env: Mapping[str, str], logs: Path) -> dict[str, str]:
        """`env` with the runtime first in LD_PRELOAD and its reports going to files in `logs`."""
        made = dict(env)
        made["LD_PRELOAD"] = ":".join(filter(None, [str(self.runtime), made.get("LD_PRELOAD", "")]))
        for variable, options in OPTIONS[self.kind].items():
            made[variable] = f"{options}:log_path='{logs / 'report'}'"
        return made

    def reports(self, logs: Path, written: str = "") -> list[str]:
        """What the runtimes have said so far, one text a process, and in what a program has written; emptied by reading."""
        found = re.findall(r"^\S+:\d+:\d+: runtime error: (?:.*\n?)(?: {4}#.*\n?)*", written, re.M)
        for file in sorted(logs.glob("report*")):
            text = without_foreign_leaks(file.read_text(errors="replace"))
            file.unlink()
            if text.strip():
                found.append(f"{file.name}:\n{text}")
        return found


def without_foreign_leaks(text: str) -> str:
    """The report less the leaks that have no frame of ours, and less the frame around them when none is left."""
    text = re.sub(r"^==\d+==WARNING: ASan doesn't fully support makecontext/swapcontext functions .*\n", "", text, flags=re.M)
    text = re.sub(r"^==\d+==Running thread \d+ was not suspended\. False leaks are possible\.\n", "", text, flags=re.M)
    kept, leaks, ours = [], 0, 0
    for block in re.split(r"\n\n+", text):
        if re.match(r"\s*(Direct|Indirect) leak of", block):
            leaks += 1
            if not OURS.search(block):
                continue
            ours += 1
        kept.append(block)
    if leaks and not ours:
        kept = [block for block in kept if not re.search(r"ERROR: LeakSanitizer: detected memory leaks|^SUMMARY: \w+: .* leaked in", block, re.M)]
        kept = [block for block in kept if block.strip("=\n ")]
    return "\n\n".join(kept)


@functools.cache
def built(kind: str, folder: Path, cuda_include: Path, cmake: str | None) -> Sanitizer:
    """Build and install into `folder`, which may hold an earlier build; raises Unavailable or RuntimeError.

    Once in a process; several processes share what the first one builds.
    """
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(kind, folder, cuda_include, cmake)


def _build(kind: str, folder: Path, cuda_include: Path, cmake: str | None) -> Sanitizer:
    flags, library = KINDS[kind]
    found = runtime(library)
    if not cmake:
        raise Unavailable("cmake is not installed (Debian package cmake)")
    tree, prefix = folder / "build", folder / "installed"
    steps = [
        [cmake, "-S", CSRC, "-B", tree, f"-DSPILL_SANITIZE={flags}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCUDA_INCLUDE={cuda_include}"],
        [cmake, "--build", tree, "-j2"],
        [cmake, "--install", tree, "--prefix", prefix],
    ]
    for step in steps:
        ran = subprocess.run([str(part) for part in step], capture_output=True, text=True, check=False, timeout=280)
        if ran.returncode:
            raise RuntimeError(f"{step}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
    return Sanitizer(kind, prefix / "spillshim", found)
