# SPDX-License-Identifier: Apache-2.0
"""The tiering engine and the shim as parts of test programs.

`from engine import engine_program` (or `open_program`) makes the fixture available in a test module:
  engine_program(source)  a program of tests/programs/tiering that links the engine alone, without hooks (harness.h)
  open_program(source)    such a program, and the shim of the very same sources with all its functions visible, so that what runs
                          behind hooks can order moves and look at chunks (open.h): (program, library)
Both are watched by the sanitizer whose build is under test.
"""

from __future__ import annotations

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
    """Compiles sources of csrc/ once each, as they are compiled for what is shipped, except that nothing is hidden."""

    def __init__(self, folder: Path, cuda_include: Path, sanitizer: sanitize.Sanitizer | None) -> None:
        self.folder = folder
        watched = sanitizer.flags if sanitizer else []
        self.compiler = ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-I{CSRC}", f"-isystem{cuda_include}", *watched]
        self.library_flags = ["-fPIC", "-ftls-model=initial-exec"]

    def __call__(self, *sources: str) -> list[Path]:
        paths = [path for pattern in sources for path in sorted(CSRC.glob(pattern))]

        def compile_one(path: Path) -> Path:
            target = self.folder / f"{path.parent.name}-{path.name}.o"
            if not target.exists():
                run([*self.compiler, *self.library_flags, "-c", path, "-o", target])
            return target

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(compile_one, paths))


@pytest.fixture(scope="session")
def objects(tmp_path_factory, cuda_include, sanitizer) -> Objects:
    return Objects(tmp_path_factory.mktemp("engine"), cuda_include, sanitizer)


@pytest.fixture(scope="session")
def engine_program(objects: Objects) -> Callable[[str], Path]:
    def build(source: str) -> Path:
        target = objects.folder / Path(source).stem
        if not target.exists():
            linked = objects("tiering/*.c", "link/ledger.c", "link/segment.c", "shim/driver.c")
            clock = "-Wl,--wrap=clock_gettime,--wrap=nanosleep"  # harness.h has its own
            run([*objects.compiler, "-o", target, PROGRAMS / source, *linked, clock, "-ldl", "-lpthread"])
        return target

    return build


@pytest.fixture(scope="session")
def open_program(objects: Objects, sim_dir: Path) -> Callable[[str], tuple[Path, Path]]:
    def build(source: str) -> tuple[Path, Path]:
        library, target = objects.folder / "libspillshim-open.so", objects.folder / Path(source).stem
        if not library.exists():
            linked = objects("tiering/*.c", "link/ledger.c", "link/segment.c", "link/socket.c", "shim/*.c", "shim/*.S")
            run([*objects.compiler, "-shared", "-o", library, *linked, "-Wl,-z,nodelete", "-Wl,-Bsymbolic-functions", "-ldl", "-lpthread"])
        if not target.exists():
            run([*objects.compiler, "-o", target, PROGRAMS / source, library, f"-L{sim_dir}", "-l:libcuda.so.1", "-ldl", "-lpthread"])
        return target, library

    return build
