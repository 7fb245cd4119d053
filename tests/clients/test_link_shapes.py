# SPDX-License-Identifier: Apache-2.0
"""One CUDA program, linked in each way that nvcc knows: it dies plain on a small card and finishes with the shim."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvcc import cuda_program  # noqa: F401  (a fixture)

pytestmark = pytest.mark.clients

SHAPE = ["6", "16", "128"]  # PIECES PIECE_MIB BIG_MIB of saxpy_spill.cu: 224 MiB
SHAPES = {
    "-cudart shared": [],
    "our static runtime": None,
    "-rdc=true": ["-rdc=true"],
    "--default-stream per-thread": ["--default-stream=per-thread"],
    "-compress-all": ["-Xfatbin=-compress-all"],
}


EVERYDAY = {"-cudart shared", "our static runtime"}


@pytest.mark.parametrize("shape", [s if s in EVERYDAY else pytest.param(s, marks=pytest.mark.slow) for s in SHAPES])
def test_every_link_shape(run_sim, sim_dir, cuda_program, calls, shape, sanitizer):  # noqa: F811
    flags = SHAPES[shape]
    archive = sim_dir / "libcudart_static.a" if flags is None else None
    if archive and sanitizer:
        pytest.skip("the sanitizers' builds have no static runtime")
    built = cuda_program("saxpy_spill.cu", *(flags or []), archive=archive)
    reference = run_sim([built.program, *SHAPE], vram="1G", shim=False, sim=calls.sim).ok()
    assert reference.stdout.startswith("checksum "), str(reference)
    traced = calls.traced()
    assert traced.index("cuMemAlloc_v2") < traced.index("cuLibraryLoadData"), "its code was loaded before a kernel was used"
    plain = run_sim([built.program, *SHAPE], vram="128M", shim=False)
    assert plain.returncode == 2 and "cudaErrorMemoryAllocation" in plain.stdout, str(plain)
    spilled = run_sim([built.program, *SHAPE], vram="128M", env={"SPILLSHIM_HEADROOM": "4M"}).ok()
    assert spilled.stdout == reference.stdout
    assert sum(one["spilled"]["bytes_peak"] for one in spilled.stats) > 0, spilled.stats
    calls.check(f"nvcc program, {shape}")


@pytest.mark.no_sanitizer("valgrind and a sanitizer's runtime exclude each other")
@pytest.mark.parametrize("runtime", ["shared", "static"])
def test_unloading_and_exit_are_clean_under_valgrind(run_sim, need, sim_dir, cuda_program, c_program, runtime):  # noqa: F811
    """A plugin with a kernel and a runtime, opened and closed twice. The kernel has no barrier: valgrind cannot follow the
    fibers of those that have one."""
    archive = sim_dir / "libcudart_static.a" if runtime == "static" else None
    plugin = cuda_program("plugin_kernels.cu", "-shared", "-Xcompiler=-fPIC", archive=archive)
    host = c_program(Path(__file__).parent / "programs" / "plugin_host.c", link_libcuda=False)
    watched = [need("valgrind"), "-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]
    watched += ["--show-leak-kinds=definite", host, plugin.program, "2"]
    result = run_sim(watched, shim=False, sim={"UNKNOWN_KERNEL": "fail"}, timeout=120)
    assert result.returncode == 0, str(result)
