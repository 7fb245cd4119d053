# SPDX-License-Identifier: Apache-2.0
"""What does a launch cost in spillshim, on a program whose memory all fits?

Instructions that callgrind counts in libspillshim.so itself (what the driver does is not among them), the difference between N and
2N launches divided by N: exact, and the same on every run. Of these, those that the source lines of csrc/tiering/gate.h became are
the gate; the rest is the hook: eleven arguments passed on, the door to the driver, the look at its answer.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

MOST_GATE, MOST_HOOK = 60, 90
LAUNCHES = 500


def costs(profile: str, library: str) -> Counter[str]:
    """Instructions inside `library` by source file, of callgrind's output."""
    names: dict[tuple[str, str], str] = {}
    found: Counter[str] = Counter()
    place = {"ob": "", "fl": ""}
    skip = False
    for line in profile.splitlines():
        position = re.fullmatch(r"(c?)(ob|fl|fi|fe|fn)=\((\d+)\)(?: (.*))?", line)
        if position:
            called, kind, number, name = position.groups()
            kind = "fl" if kind in ("fi", "fe") else kind  # an inlined function's file, and the way back
            if name:
                names[kind, number] = name
            if not called:
                place[kind] = names[kind, number]
        elif line.startswith("calls="):
            skip = True  # the next line is what the called function cost
        elif re.match(r"[+*\d-]", line):
            if not skip and place["ob"].endswith(library):
                found[place["fl"]] += int(line.split()[1])
            skip = False
    return found


def profile(valgrind: str, program: Path, env: Mapping[str, str], launches: int) -> Counter[str]:
    """Instructions of a run of simgpu_cost.c in libspillshim.so, by source file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", str(program), "launch", str(launches)]
        ran = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False, timeout=300)
        if ran.returncode:
            raise RuntimeError(f"{command} ended with {ran.returncode}:\n{ran.stderr}")
        return costs(out.read_text(), "/libspillshim.so")


def per_launch(valgrind: str, program: Path, env: Mapping[str, str], library: Path) -> tuple[float, float]:
    """Instructions of one launch in the library: the gate's, and all."""
    preloaded = {**env, "LD_PRELOAD": str(library)}
    once, twice = (profile(valgrind, program, preloaded, n * LAUNCHES) for n in (1, 2))
    gate = sum(twice[file] - once[file] for file in twice if file.endswith("tiering/gate.h"))
    return gate / LAUNCHES, (twice.total() - once.total()) / LAUNCHES


def main() -> None:
    import shutil

    import simgpu
    from report import Row, arguments, show

    from spillshim import native

    options = arguments(__doc__).parse_args()
    valgrind = shutil.which("valgrind")
    if not valgrind:
        raise SystemExit("valgrind is not installed (Debian package valgrind): nothing can be counted")
    with tempfile.TemporaryDirectory() as folder:
        program, env = simgpu.build(Path(folder), native.loader_safe(native.sim_dir()))
        gate, hook = per_launch(valgrind, program, env, native.loader_safe(native.library()))
    rows = [
        Row("the gate, entered and left", gate, "instructions", f"<= {MOST_GATE}", 0 < gate <= MOST_GATE),
        Row("the hook of a launch in all", hook, "instructions", f"<= {MOST_HOOK}", hook <= MOST_HOOK),
    ]
    show("gate", "What does a launch cost in spillshim?", "CPU", False, rows,
         "anchor: the same program without spillshim executes none of these", options.json)  # fmt: skip


if __name__ == "__main__":
    main()
