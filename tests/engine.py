# SPDX-License-Identifier: Apache-2.0
"""The tiering engine and the shim as parts of test programs.

`from engine import engine_program` (or `open_program`) makes the fixture available in a test module:
  engine_program(source)  a program of tests/programs/tiering that links the engine alone, without hooks (harness.h)
  open_program(source)    such a program, and the shim of the very same sources with all its functions visible, so that what runs
                          behind hooks can order moves and look at chunks (open.h): (program, library)
Both are watched by the sanitizer whose build is under test.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sanitize

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
PROGRAMS = ROOT / "tests" / "programs" / "tiering"


def run(command: list[object]) -> None:
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=280)
    if ran.returncode:
        pytest.fail(f"{command}\n{ran.stdout}{ran.stderr}", pytrace=False)


class Objects:
    """Compiles sources of csrc/ as they are compiled for what is shipped, except that nothing is hidden; kept between runs, and shared by
    the suite's workers, in a folder named after all that goes in."""

    def __init__(self, cache: Path, cuda_include: Path, sanitizer: sanitize.Sanitizer | None) -> None:
        watched = sanitizer.flags if sanitizer else []
        self.compiler = ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-I{CSRC}", f"-isystem{cuda_include}", *watched]
        self.library_flags = ["-fPIC", "-ftls-model=initial-exec"]
        version = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, check=True).stdout
        sources = [path for part in ("", "tiering", "link", "shim") for path in sorted((CSRC / part).glob("*.*"))]
        parts = [repr(self.compiler).encode(), version, *(path.read_bytes() for path in [*sources, *sorted(PROGRAMS.glob("*.[ch]"))])]
        self.folder = cache / hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
        self.folder.mkdir(exist_ok=True)

    def make(self, target: Path, *command: object) -> Path:
        """Have the compiler make `target`, whole or not at all."""
        if not target.exists():
            partial = target.with_name(f".{os.getpid()}.{target.name}")
            run([*self.compiler, *command, "-o", partial])
            os.replace(partial, target)
        return target

    def __call__(self, *sources: str) -> list[Path]:
        paths = [path for pattern in sources for path in sorted(CSRC.glob(pattern))]

        def compile_one(path: Path) -> Path:
            return self.make(self.folder / f"{path.parent.name}-{path.name}.o", *self.library_flags, "-c", path)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(compile_one, paths))


@pytest.fixture(scope="session")
def objects(request, cuda_include, sanitizer) -> Objects:
    return Objects(request.config.cache.mkdir("engine"), cuda_include, sanitizer)


@pytest.fixture(scope="session")
def engine_program(objects: Objects) -> Callable[[str], Path]:
    def build(source: str) -> Path:
        linked = objects("tiering/*.c", "link/ledger.c", "link/segment.c", "shim/driver.c")
        clock = "-Wl,--wrap=clock_gettime,--wrap=nanosleep"  # harness.h has its own
        return objects.make(objects.folder / Path(source).stem, PROGRAMS / source, *linked, clock, "-ldl", "-lpthread")

    return build


@pytest.fixture(scope="session")
def open_program(objects: Objects, sim_dir: Path) -> Callable[[str], tuple[Path, Path]]:
    def build(source: str) -> tuple[Path, Path]:
        linked = objects("tiering/*.c", "link/ledger.c", "link/segment.c", "link/socket.c", "shim/*.c", "shim/*.S")
        library = objects.make(objects.folder / "libspillshim-open.so", "-shared", *linked, "-Wl,-z,nodelete",
                               "-Wl,-Bsymbolic-functions", "-Wl,-soname,libspillshim-open.so", "-ldl", "-lpthread")
        kernels = f'-DOPEN_KERNELS="{PROGRAMS / "soak_kernels.ptx"}"'
        program = objects.make(objects.folder / Path(source).stem, PROGRAMS / source, kernels, library, f"-L{sim_dir}",
                               "-l:libcuda.so.1", "-ldl", "-lpthread")
        return program, library

    return build


# What makes programs small enough that every step meets both tiers; the card has 32 to 40 MiB.
SMALL = {
    "SPILLSHIM_MANAGED_MIN": "2M",
    "SPILLSHIM_CHUNK": "4M",
    "SPILLSHIM_SPILL_CHUNK": "2M",
    "SPILLSHIM_HEADROOM": "2M",
    "SPILLSHIM_HOLDBACK": "0",
}


@pytest.fixture
def run_open(run_sim, open_program, probe_path, request):
    """`run_open(source, *arguments, vram="32M", doubt=SEED)`: build such a program and run it, on a simulated GPU whose unconfirmed
    beliefs are held otherwise, with the kernels of soak_kernels.cu. Its last line must be `ok`."""
    cuda_program = request.getfixturevalue("cuda_program")
    kernels = cuda_program.companion("tiering/soak_kernels.cu", "soak.simk.so", "c")

    def call(source: str, *arguments: object, vram: str = "32M", doubt: int = 0, timeout: float = 120):
        program, library = open_program(source)
        print(source, *arguments, "doubt", doubt)
        ran = run_sim([program, *arguments], vram=vram, ram="2G", sim={"KERNELS": kernels, **({"DOUBT": doubt} if doubt else {})},
                      env={**SMALL, "LD_PRELOAD": str(library), "SPILLSHIM_PROBE": str(probe_path)}, timeout=timeout).ok()
        print(ran.stdout)
        assert ran.stdout.splitlines()[-1] == "ok", ran
        return ran

    return call
