# SPDX-License-Identifier: Apache-2.0
"""Compiles experiments and companions with the C compiler found here, and finds or builds spillshim's native parts.

Called by check.py. Rules: no network, nothing installed outside the build folder; what is built is kept there under a key of
everything that goes in. A missing tool raises CannotBuild, whose text becomes the reason of the rows that needed it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NATIVE_PARTS = ("libspillshim.so", "spillshim-probe", "sim/libcuda.so.1", "sim/libnvidia-ml.so.1", "sim/libcudart.so.13")
HEADERS_NEEDED = 13050  # csrc/shim/hooks.def names entries of that version
COMPILE_LIMIT = 120  # seconds
BUILD_LIMIT = 400


def header_version(folder: Path) -> int:
    """CUDA_VERSION of a folder's cuda.h, such as 13050."""
    found = re.search(r"^#define CUDA_VERSION (\d+)", (folder / "cuda.h").read_text(errors="replace"), re.MULTILINE)
    return int(found[1]) if found else 0


class CannotBuild(Exception):
    """What could not be built, why, and what to do."""


def _tail(text: str, lines: int = 12) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def run_tool(argv: Sequence[str | Path], limit: float, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    words = [str(part) for part in argv]
    try:
        ran = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=limit, env=env, cwd=cwd, stdin=subprocess.DEVNULL, check=False
        )  # fmt: skip
    except OSError as error:
        raise CannotBuild(f"{words[0]} could not be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CannotBuild(f"{words[0]} took longer than {limit:.0f} s") from None
    if ran.returncode:
        raise CannotBuild(f"{' '.join(words[:2])} ... failed with {ran.returncode}:\n{_tail(ran.stdout + ran.stderr)}")


class Toolbox:
    """The tools of this machine, looked for once."""

    def __init__(self, folder: Path, experiments: Path) -> None:
        """`folder`: where everything built lies. `experiments`: tests/gpu, or another folder like it."""
        self.folder = folder
        self.experiments = experiments

    @cached_property
    def compiler(self) -> str:
        for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
            found = shutil.which(name) if name else None
            if found:
                return found
        raise CannotBuild("no C compiler found (cc, gcc, clang; or set CC)")

    @cached_property
    def nvcc(self) -> str | None:
        candidates = [f"{os.environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
        for candidate in [*candidates, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]:
            if candidate and os.access(candidate, os.X_OK):
                return candidate
        return None

    @cached_property
    def cuda_include(self) -> Path:
        """A folder with cuda.h and cudaTypedefs.h: a toolkit's, or that of NVIDIA's Python packages. The newest, because the shim
        names entries that older headers lack; a newer header is no matter on an older driver, entries are looked up there."""
        candidates = [Path(os.environ[n]) / "include" for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)]
        if self.nvcc:
            candidates += self._includes_of_nvcc(self.nvcc)
        for place in sys.path:
            candidates += [Path(place) / "nvidia" / part / "include" for part in ("cu13", "cuda_runtime")]
        candidates += [Path("/usr/local/cuda/include"), Path("/usr/include")]
        found = [folder for folder in candidates if all((folder / name).is_file() for name in ("cuda.h", "cudaTypedefs.h"))]
        if not found:
            raise CannotBuild("cuda.h and cudaTypedefs.h not found (set CUDA_HOME to a CUDA toolkit, or pip install nvidia-cuda-runtime)")
        return max(found, key=lambda folder: (header_version(folder), (folder / "nvml.h").is_file()))  # of equals the first

    def headers(self) -> Path:
        """The same, with nvml.h from elsewhere where that folder lacks it (it is a package of its own)."""
        base = self.cuda_include
        if (base / "nvml.h").is_file():
            return base
        places = [Path(place) / "nvidia" / "cu13" / "include" for place in sys.path]
        nvml = next((folder / "nvml.h" for folder in places if (folder / "nvml.h").is_file()), None)
        if nvml is None:
            raise CannotBuild(f"nvml.h not found: {base} lacks it (carry the wheel nvidia-nvml-dev in --wheels, or pip install it)")
        merged = self.folder / "include"
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir(parents=True)
        for source in (*base.iterdir(), nvml):
            (merged / source.name).symlink_to(source)
        return merged

    @staticmethod
    def _includes_of_nvcc(nvcc: str) -> list[Path]:
        # It may be a script that starts another one: ask it.
        said = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True, timeout=60, check=False)
        home = Path(nvcc).resolve().parent.parent
        asked = [Path(path) for path in re.findall(r'-I([^"\s]+)', said.stderr + said.stdout)]
        return [*asked, home / "include", home / "targets" / "x86_64-linux" / "include"]

    @cached_property
    def programs(self) -> Path:
        """Where this version of the experiments is built; its key covers every source, header and kernel."""
        digest = hashlib.sha256(f"{self.compiler}\0{self.cuda_include}".encode())
        sources = [p for p in self.experiments.glob("*") if p.suffix in (".c", ".h", ".cu", ".ptx")]
        for path in sorted([*sources, *(ROOT / "csrc" / "simgpu" / "include").glob("*.h")]):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        folder = self.folder / f"programs-{digest.hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        for ptx in self.experiments.glob("*.ptx"):
            self._place(folder / ptx.name, lambda to, ptx=ptx: shutil.copyfile(ptx, to))
        return folder

    @staticmethod
    def _place(target: Path, make) -> Path:
        """Makes a file under a name of its own first, so that a half-made one is never taken for done."""
        if not target.exists():
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                make(partial)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def _includes(self) -> list[str]:
        return [f"-I{self.experiments}", f"-I{ROOT / 'csrc' / 'simgpu' / 'include'}", f"-I{self.cuda_include}"]

    def program(self, source: Path) -> Path:
        """The executable of an experiment in C. Raises CannotBuild."""
        flags = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", *self._includes()]
        return self._place(
            self.programs / source.stem,
            lambda to: run_tool([self.compiler, *flags, source, "-o", to, "-ldl", "-lpthread", "-lm"], COMPILE_LIMIT),
        )

    def companions(self) -> list[Path]:
        """The kernels of every .cu as host code, for the simulated driver. Raises CannotBuild."""
        return [
            self._place(self.programs / f"{source.stem}.simk.so", lambda to, source=source: self._companion(source, to))
            for source in sorted(self.experiments.glob("*.cu"))
        ]

    def _companion(self, source: Path, to: Path) -> None:
        plain = [self.compiler, "-x", "c", "-std=gnu11", "-O2", "-fPIC", "-shared", *self._includes()[:2], source, "-o", to]
        # So compiled a companion tells of every access (simk_account.h), and its kernels take simulated time; only gcc can.
        accounting = ["-DSIM_ACCOUNT", "-fsanitize=thread", "-nodefaultlibs", "-lm", "-lc"]
        try:
            run_tool([*plain, *accounting], COMPILE_LIMIT)
        except CannotBuild:
            run_tool(plain, COMPILE_LIMIT)

    # --- spillshim itself -------------------------------------------------------------------------------------------

    @cached_property
    def native(self) -> Path:
        """A folder with NATIVE_PARTS: GPU_CHECK_NATIVE, the installed package when it is no older than csrc, else a build by
        cmake. Raises CannotBuild."""
        override = os.environ.get("GPU_CHECK_NATIVE")
        if override:
            folder = Path(override).resolve()
            missing = [part for part in NATIVE_PARTS if not (folder / part).exists()]
            if missing:
                raise CannotBuild(f"GPU_CHECK_NATIVE={override} has no {', '.join(missing)}")
            return folder
        return self._installed() or self._built()

    @staticmethod
    def _installed() -> Path | None:
        newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*") if path.is_file())
        for place in map(Path, sys.path):
            folder = place / "spillshim"
            parts = [folder / part for part in NATIVE_PARTS]
            if all(part.exists() for part in parts) and all(part.stat().st_mtime >= newest for part in parts):
                return folder
        return None

    def _built(self) -> Path:
        cmake = shutil.which("cmake")
        if not cmake:
            raise CannotBuild("spillshim is not installed and cmake was not found to build it (pip install ., or install cmake)")
        tree, prefix = self.folder / "cmake", self.folder / "native"
        # A build tree remembers absolute paths; one made elsewhere (a copied folder) is of no use.
        cached = tree / "CMakeCache.txt"
        if cached.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT / 'csrc'}\n" not in cached.read_text(errors="replace"):
            shutil.rmtree(tree)
        configure = [cmake, "-S", ROOT / "csrc", "-B", tree, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCMAKE_INSTALL_PREFIX={prefix}"]
        configure += [f"-DCUDA_H_DIR={self.headers()}", f"-DPython_EXECUTABLE={sys.executable}"]
        if not cached.exists() and shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        jobs = str(os.cpu_count() or 2)
        try:
            run_tool(configure, BUILD_LIMIT)
            if _has_cffi():
                run_tool([cmake, "--build", tree, "-j", jobs], BUILD_LIMIT)
                run_tool([cmake, "--install", tree], COMPILE_LIMIT)
                return prefix / "spillshim"
            return self._built_without_cffi(cmake, tree, prefix / "spillshim", jobs)
        except CannotBuild as error:
            version = header_version(self.cuda_include)
            advice = (
                f"{HEADERS_NEEDED // 1000}.{HEADERS_NEEDED % 1000 // 10} or newer are needed; carry the wheels nvidia-cuda-runtime, "
                f"nvidia-cuda-crt, nvidia-nvml-dev (or one of spillshim) in --wheels. " if version < HEADERS_NEEDED else ""
            )  # fmt: skip
            raise CannotBuild(f"spillshim could not be built with headers of CUDA {version // 1000}.{version % 1000 // 10}. {advice}{error}") from None

    @staticmethod
    def _built_without_cffi(cmake: str, tree: Path, to: Path, jobs: str) -> Path:
        # `cmake --install` wants every target, and the cffi module is one; nothing here loads it.
        targets = ["libspillshim", "spillshim-probe", "sim_cuda", "sim_nvml", "sim_cudart13", "decoder", "decoder_simk"]
        run_tool([cmake, "--build", tree, "-j", jobs, "--target", *targets], BUILD_LIMIT)
        places = {"libspillshim.so": "", "spillshim-probe": "", "decoder": "demo", "decoder.simk.so": "demo", "decoder.ptx": "demo"}
        places |= {name: "sim" for name in ("libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.13")}
        for name, place in places.items():
            found = [path for path in tree.rglob(name) if path.is_file()]
            if len(found) != 1:
                raise CannotBuild(f"the build made {len(found)} files named {name}")
            (to / place).mkdir(parents=True, exist_ok=True)
            shutil.copy2(found[0], to / place / name)
        shutil.copytree(ROOT / "csrc" / "simgpu" / "include", to / "sim" / "include", dirs_exist_ok=True)
        return to


def _has_cffi() -> bool:
    try:
        import cffi.gen_src  # noqa: F401  (2.1 and newer)
    except ImportError:
        return False
    return True


def python_path(native: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH in which `spillshim` is this source tree with these native parts: symlinks, made anew."""
    package = folder / "python" / "spillshim"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in (*(ROOT / "spillshim").iterdir(), *native.iterdir()):
        link = package / source.name
        if source.name != "__pycache__" and not link.exists():
            link.symlink_to(source)
    return package.parent


def install_wheels(wheels: Path, folder: Path) -> Path:
    """Installs every wheel of a folder into a private folder for PYTHONPATH, without network. Raises CannotBuild."""
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise CannotBuild(f"no .whl file in {wheels}")
    digest = hashlib.sha256("\0".join(f"{f.name} {f.stat().st_size}" for f in files).encode()).hexdigest()[:12]
    target = folder / f"site-{digest}"
    if not target.is_dir():
        partial = folder / f".site-{digest}.{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
        try:
            run_tool([*pip, "--find-links", wheels, "--target", partial, *files], BUILD_LIMIT)
            # NVIDIA's runtime package is carried for its headers; frameworks here would load its library instead of their own.
            for library in partial.glob("nvidia/*/lib/libcudart*"):
                library.unlink()
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target
