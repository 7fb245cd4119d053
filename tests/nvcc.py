# SPDX-License-Identifier: Apache-2.0
"""Builds CUDA programs for tests: the program by nvcc with the shared runtime, its kernels by g++ as companion.

`from nvcc import cuda_program` makes the fixture available in a test module. nvcc is looked for in $NVCC, $CUDA_HOME/bin,
$CUDA_PATH/bin, PATH, the PyPI packages of the running Python (nvidia-cuda-nvcc), /usr/local/cuda/bin. Without one the test is
skipped, except with SPILLSHIM_REQUIRE_NVCC=1, where it fails.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parent / "programs"
SIMK_INCLUDE = Path(__file__).resolve().parent.parent / "csrc" / "simgpu" / "include"


def _wheel() -> Path | None:
    """nvidia/cu13 of the PyPI packages, when they are installed."""
    try:
        import nvidia.cu13  # type: ignore[import-not-found]
    except ImportError:
        return None
    return Path(list(nvidia.cu13.__path__)[0])


@cache
def find_nvcc() -> Path | None:
    """The compiler, or None."""
    wheel = _wheel()
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [
        os.environ.get("NVCC"),
        *[f"{folder}/bin/nvcc" for folder in folders if folder],
        shutil.which("nvcc"),
        str(wheel / "bin" / "nvcc") if wheel else None,
        "/usr/local/cuda/bin/nvcc",
    ]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK) and _works(candidate):
            return Path(candidate)
    return None


def _works(candidate: str) -> bool:
    # The packages come in parts: without nvidia-nvvm there is an nvcc that compiles nothing.
    ran = subprocess.run(
        [candidate, "-x", "cu", "-ptx", "-o", "/dev/null", "/dev/null"], capture_output=True, check=False, timeout=120
    )
    return ran.returncode == 0


def need_nvcc() -> Path:
    """The compiler; skips (or fails, see above) without one."""
    found = find_nvcc()
    if found:
        return found
    message = "nvcc not found: pip install 'nvidia-cuda-nvcc>=13,<14', or put a CUDA 13 toolkit on PATH"
    if os.environ.get("SPILLSHIM_REQUIRE_NVCC") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@cache
def _version(nvcc: Path) -> bytes:
    return subprocess.run([str(nvcc), "--version"], capture_output=True, check=True, timeout=60).stdout


@cache
def _simk() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SIMK_INCLUDE.glob("simk*.h"))]


@dataclass(frozen=True)
class CudaProgram:
    program: Path
    companion: Path  # <program>.simk.so, which the simulated driver finds by itself


class Builder:
    """Compiles and keeps what it made, under a key of the source, the header, the flags and the compiler."""

    def __init__(self, cache_dir: Path, companion_flags: Sequence[str] = ()) -> None:
        self.cache = cache_dir
        self.companion_flags = list(companion_flags)

    def _folder(self, source: Path, *what: object) -> Path:
        nvcc = need_nvcc()
        parts = [source.read_bytes(), *_simk(), str(nvcc).encode(), _version(nvcc), repr(what).encode()]
        folder = self.cache / hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _link_folder(self) -> list[str]:
        """-L of a folder with the name that `-cudart shared` links; the packages carry the versioned name alone."""
        wheel = _wheel()
        library = wheel / "lib" / "libcudart.so.13" if wheel else None
        if not library or not library.exists():
            return []
        folder = self.cache / "link"
        folder.mkdir(exist_ok=True)
        link = folder / "libcudart.so"
        if not link.is_symlink() or os.readlink(link) != str(library):
            temporary = folder / f".libcudart.so.{os.getpid()}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(library)
            os.replace(temporary, link)
        return [f"-L{folder}"]

    @staticmethod
    def run(command: Sequence[str | Path], target: Path) -> Path:
        """Run a compiler whose last argument pair is `-o target`; a partly written file never stays."""
        partial = target.with_name(f".{os.getpid()}.{target.name}")
        ran = subprocess.run(
            [*map(str, command), "-o", str(partial)], capture_output=True, text=True, check=False, timeout=280
        )
        if ran.returncode:
            pytest.fail(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}", pytrace=False)
        os.replace(partial, target)
        return target

    def nvcc(self, source: str | Path, output: str, *flags: str) -> Path:
        """Anything else nvcc makes of a source: `nvcc("a.cu", "a.cubin", "-arch=sm_90", "-cubin")`."""
        path = PROGRAMS / source
        target = self._folder(path, output, flags) / output
        if not target.exists():
            self.run([need_nvcc(), *flags, f"-I{SIMK_INCLUDE}", path], target)
        return target

    def companion(self, source: str | Path, output: str, language: str = "c++") -> Path:
        """The kernels of a source as a companion; language "c" or "c++"."""
        path = PROGRAMS / source
        compiler = ["gcc", "-std=gnu11"] if language == "c" else ["g++", "-std=c++17"]
        parts = [path.read_bytes(), *_simk(), repr((compiler, output, self.companion_flags)).encode()]
        folder = self.cache / hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / output
        if not target.exists():
            self.run(
                [*compiler, "-x", language, "-Wall", "-Wextra", "-O2", *self.companion_flags, "-fPIC", "-shared"]
                + [f"-I{SIMK_INCLUDE}", path],
                target,
            )
        return target

    def __call__(
        self, source: str | Path, *flags: str, arch: str = "sm_80", archive: Path | None = None
    ) -> CudaProgram:
        """`cuda_program("saxpy_spill.cu")`: a program on the shared runtime, and its companion beside it. With `archive`: on
        that static runtime instead."""
        path = PROGRAMS / source
        digest = hashlib.sha256(archive.read_bytes()).hexdigest() if archive else ""
        folder = self._folder(path, flags, arch, digest, self.companion_flags)
        program, companion = folder / path.stem, folder / f"{path.stem}.simk.so"
        if not program.exists():
            runtime = "none" if archive else "shared"
            links = [archive, "-ldl", "-lpthread"] if archive else self._link_folder()
            self.run(
                [need_nvcc(), f"-arch={arch}", "-O2", "-cudart", runtime, *flags, f"-I{SIMK_INCLUDE}", path, *links], program
            )
        if not companion.exists():
            partial = companion.with_name(f".{companion.name}.{os.getpid()}")
            shutil.copy2(self.companion(path, companion.name), partial)
            os.replace(partial, companion)
        return CudaProgram(program, companion)


@pytest.fixture(scope="session")
def cuda_program(request: pytest.FixtureRequest, sanitizer) -> Builder:
    """See Builder."""
    return Builder(request.config.cache.mkdir("cuda_programs"), sanitizer.flags if sanitizer else ())
