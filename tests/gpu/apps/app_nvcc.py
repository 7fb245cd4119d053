# SPDX-License-Identifier: Apache-2.0
"""Experiment: a C++ program that nvcc built here, on the static and on the shared CUDA runtime, over a VRAM cap.
gpu-check: groups=facts,apps order=320 expect=30 limit=150

The program is tests/programs/saxpy_spill.cu: it checks every byte it wrote and prints a checksum. It is started by this
script (--work), which turns that into the result that common.py wants.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import MIB, REAL, App, Limits, Load, NotHere, need_gpu

ROOT = Path(os.environ.get("GPU_CHECK_SOURCE") or Path(__file__).resolve().parents[3])
SOURCE = ROOT / "tests" / "programs" / "saxpy_spill.cu"
SIMK = ROOT / "csrc" / "simgpu" / "include"
PIECES = 6


def _call(argv: list[str]) -> None:
    ran = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    if ran.returncode:
        raise NotHere(f"{Path(argv[0]).name} failed: {' '.join((ran.stderr or ran.stdout).split())[-300:]}")


def _runtime_link(folder: Path) -> list[str]:
    """-L for `-cudart shared` where only the versioned name exists (NVIDIA's Python packages)."""
    for place in sys.path:
        found = Path(place) / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
        if found.exists():
            link = folder / "libcudart.so"
            link.unlink(missing_ok=True)
            link.symlink_to(found)
            return [f"-L{folder}"]
    return []


def build(runtime: str) -> Path:
    """The program on that runtime, with its kernels for the simulated driver beside it. Raises NotHere."""
    nvcc = os.environ.get("GPU_CHECK_NVCC") or shutil.which("nvcc")
    if not nvcc:
        raise NotHere("not installed: nvcc")
    folder = Path(os.environ.get("GPU_CHECK_SCRATCH") or os.getcwd())
    program = folder / f"saxpy_{runtime}"
    links = _runtime_link(folder) if runtime == "shared" and not REAL else []
    arch = "native" if REAL else "sm_80"
    _call([nvcc, f"-arch={arch}", "-O2", "-cudart", runtime, f"-I{SIMK}", str(SOURCE), "-o", str(program), *links])
    if not REAL:
        companion = ["g++", "-x", "c++", "-std=c++17", "-O2", "-fPIC", "-shared", f"-I{SIMK}", str(SOURCE), "-o", f"{program}.simk.so"]
        _call(companion)
    return program


def command(runtime: str):
    def made(limits: Limits) -> list[str]:
        if runtime == "static":
            need_gpu()
        unit = max(min(limits.vram // 3, limits.ram // 3, 3 << 30) // 16 // MIB, 8)
        return [sys.executable, sys.argv[0], "--work", str(build(runtime)), str(PIECES), str(unit), str(8 * unit)]

    return made


def work() -> int:
    """Run the program as a child and say its checksum as JSON."""
    program, *shape = sys.argv[2:]
    started = time.monotonic()
    ran = subprocess.run([program, *shape], capture_output=True, text=True, check=False)
    if ran.returncode or not ran.stdout.startswith("checksum "):
        print(ran.stdout + ran.stderr, file=sys.stderr)
        return ran.returncode or 1
    needed = (int(shape[0]) * int(shape[1]) + int(shape[2])) * MIB
    print(json.dumps({"checksum": ran.stdout.strip(), "peak": needed, "seconds": time.monotonic() - started}))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        sys.exit(work())
    sys.exit(
        App(
            "nvcc",
            [
                Load("static", "an nvcc program on the static runtime", command("static")),
                Load("shared", "an nvcc program on the shared runtime", command("shared")),
            ],
        ).main()
    )
