# SPDX-License-Identifier: Apache-2.0
"""What does a program that never uses CUDA pay for being preloaded?

Starts /bin/true many times, in random interleaved order: bare, with an empty shared library preloaded, and with
libspillshim.so. The fair anchor is the empty library: it pays for the loader's work, which no preload avoids.
"""
from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from report import Row, arguments, show

from spillshim import native


def empty_library(folder: Path) -> Path:
    source, library = folder / "empty.c", folder / "empty.so"
    source.write_text("int spillshim_benchmark_empty;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def spawn_seconds(preload: str | None) -> float:
    environment = {"PATH": os.environ["PATH"]} | ({"LD_PRELOAD": preload} if preload else {})
    begin = time.perf_counter()
    pid = os.posix_spawn("/bin/true", ["/bin/true"], environment)
    os.waitpid(pid, 0)
    return time.perf_counter() - begin


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--spawns", type=int, default=500, help="of each kind (default 500)")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"bare": None, "empty library": str(empty_library(Path(folder))), "libspillshim": str(native.library())}
        order = [kind for kind in kinds for _ in range(options.spawns)]
        random.Random(options.seed).shuffle(order)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for kind in order:
            seconds[kind].append(spawn_seconds(kinds[kind]))
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratio = medians["libspillshim"] / medians["empty library"]
    rows = [Row(f"spawn, {kind}", 1e6 * value, "us") for kind, value in medians.items()]
    rows.append(Row("libspillshim / empty library", ratio, "x", "<= 1.05", ratio <= 1.05))
    show("startup", "What does a program that never uses CUDA pay?", "CPU", False, rows,
         "anchor: an empty preloaded library, same run", options.json)


if __name__ == "__main__":
    main()
