# SPDX-License-Identifier: Apache-2.0
"""Building and installing from scratch: the sdist is complete, the wheel fits every Python from 3.10, paths may hold spaces."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(argv: list[str | Path], cwd: Path, env: dict[str, str]) -> str:
    ran = subprocess.run([str(part) for part in argv], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{argv}\n{ran.stdout[-6000:]}\n{ran.stderr[-6000:]}"
    return ran.stdout


@pytest.fixture(scope="module")
def build_env() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SPILLSHIM_", "SIMGPU_", "LD_", "PYTHON"))
    }
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"  # cmake and ninja may live there
    return kept


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, build_env: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(
        [sys.executable, "-c", "import sys, scikit_build_core.build as b; b.build_sdist(sys.argv[1])", folder],
        REPOSITORY,
        build_env,
    )
    (made,) = folder.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory, build_env: dict[str, str]) -> Path:
    """Built from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sdist],
        folder,
        build_env,
    )
    (made,) = folder.glob("*.whl")
    return made


def test_the_sdist_holds_sources_and_no_products(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for wanted in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "csrc/CMakeLists.txt",
        "csrc/shim/hooks.def",
        "spillshim/native.py",
        "spillshim/cli/run.py",
        "spillshim/apps/llama.cpp.toml",
    ):
        assert wanted in names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc")) or name.startswith((".venv", "build/"))]
    assert not [name for name in names if name.endswith(("cuda.h", "cudaTypedefs.h", "nvml.h"))], (
        "NVIDIA's headers are not ours to ship"
    )


def test_the_wheel_is_for_every_python_from_3_10(wheel: Path) -> None:
    assert re.fullmatch(r"spillshim-[\w.]+-cp310-abi3-\w+_x86_64\.whl", wheel.name)


def test_the_wheel_holds_every_native_part(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for wanted in (
        "spillshim/libspillshim.so",
        "spillshim/spillshim-probe",
        "spillshim/sim/libcuda.so.1",
        "spillshim/sim/libnvidia-ml.so.1",
        "spillshim/sim/libcudart_static.a",
        "spillshim/sim/libcudart.so.12",
        "spillshim/sim/libcudart.so.13",
        "spillshim/sim/libcublas.so.12",
        "spillshim/sim/libcublas.so.13",
        "spillshim/sim/libcublasLt.so.12",
        "spillshim/sim/libcublasLt.so.13",
        "spillshim/sim/include/simk.h",
        "spillshim/demo/decoder",
        "spillshim/demo/decoder.simk.so",
        "spillshim/demo/decoder.ptx",
        "spillshim/pages/kubernetes.yaml",
        "spillshim/pages/services.md",
    ):
        assert wanted in names
    assert [name for name in names if re.fullmatch(r"spillshim/_abi\.abi3\.so", name)]
    assert {f"spillshim/apps/{path.name}" for path in (REPOSITORY / "spillshim/apps").glob("*.toml")} <= names
    assert not [name for name in names if name.endswith((".c", "cuda.h"))]


def test_an_installation_in_a_path_with_a_space_works(
    wheel: Path, tmp_path: Path, build_env: dict[str, str], c_program
) -> None:
    place = tmp_path / "with space"
    run([sys.executable, "-m", "venv", place], tmp_path, build_env)
    python = place / "bin" / "python"
    run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel], tmp_path, build_env)
    out = run([python, "-m", "spillshim", "path"], tmp_path, build_env).strip()
    assert " " not in out and Path(out).resolve().is_relative_to(place)
    maps = run(
        [python, "-m", "spillshim", "run", "--", shutil.which("cat") or "cat", "/proc/self/maps"], tmp_path, build_env
    )
    assert f"{place}/" in maps and "libspillshim.so" in maps
    program = c_program("#include <cuda.h>\nint main(void) { return cuInit(0); }\n", name="init")
    run([python, "-m", "spillshim", "run", "--sim", "--quiet", "--", program], tmp_path, build_env)
    answer = run([python, "-m", "spillshim", "doctor", "--sim", "vram=1G,ram=1G", "--json"], tmp_path, build_env)
    assert '"ok": true' in answer
