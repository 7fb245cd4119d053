# SPDX-License-Identifier: Apache-2.0
"""A program that nvcc built on the shared runtime, unmodified, on a card smaller than what it asks for."""

from __future__ import annotations

import pytest
from clients_common import FINE, spilled_bytes
from nvcc import cuda_program  # noqa: F401  (a fixture)

# PIECES PIECE_MIB BIG_MIB
SHAPE = ["6", "16", "128"]
CARD = "128M"


@pytest.fixture
def program(cuda_program):  # noqa: F811
    return cuda_program("saxpy_spill.cu")


def test_it_dies_plain_and_finishes_with_the_shim(run_sim, program):
    reference = run_sim([program.program, *SHAPE], vram="1G", shim=False).ok()
    assert reference.stdout.startswith("checksum "), str(reference)
    plain = run_sim([program.program, *SHAPE], vram=CARD, shim=False)
    assert plain.returncode == 2 and "cudaErrorMemoryAllocation" in plain.stdout, str(plain)
    spilled = run_sim([program.program, *SHAPE], vram=CARD, env=FINE).ok()
    assert spilled.stdout == reference.stdout
    assert spilled_bytes(spilled.stats) > 0, spilled.stats
    paths = {row["path"] for row in spilled.stats[0]["paths"] if row["calls"]}
    assert paths == {"cuGetProcAddress", "dlsym"} or paths == {"cuGetProcAddress"}, spilled.stats


@pytest.mark.parametrize("host_vmm", ["numa", "host", "none"])
def test_every_backend(run_sim, program, host_vmm):
    result = run_sim([program.program, *SHAPE], vram=CARD, env=FINE, sim={"HOST_VMM": host_vmm}).ok()
    assert spilled_bytes(result.stats) > 0, result.stats


def test_per_thread_default_streams(run_sim, cuda_program):  # noqa: F811
    """The _ptds and _ptsz entries of the runtime, and the per-thread entries of the driver under them."""
    program = cuda_program("saxpy_spill.cu", "--default-stream=per-thread")
    reference = run_sim([program.program, *SHAPE], vram="1G", shim=False, sim={"TRACE": "trace"}).ok()
    assert "cuMemcpyDtoH_v2_ptds" in (run_sim.tmp_path / "trace").read_text()
    spilled = run_sim([program.program, *SHAPE], vram=CARD, env=FINE).ok()
    assert spilled.stdout == reference.stdout
    assert spilled_bytes(spilled.stats) > 0


def test_runtime_answers(run_sim, cuda_program):  # noqa: F811
    """The runtime, call by call; a plugin with kernels that is opened and closed twice; with the shim in between, too."""
    program = cuda_program("runtime_api.cu")
    plugin = cuda_program("plugin_kernels.cu", "-shared", "-Xcompiler=-fPIC")
    for shim in (False, True):
        result = run_sim([program.program, plugin.program], vram="1G", shim=shim, env=FINE).ok()
        assert result.stdout == "ok\n", str(result)
        assert "simgpu:" not in result.stderr, result.stderr


@pytest.mark.stubs("cudaDeviceFlushGPUDirectRDMAWrites")
def test_an_entry_without_a_body_names_itself(run_sim, cuda_program, tmp_path):  # noqa: F811
    source = tmp_path / "stub.cu"
    source.write_text(
        "#include <stdio.h>\n#ifdef __CUDACC__\nint main() { int e = cudaDeviceFlushGPUDirectRDMAWrites(\n"
        "cudaFlushGPUDirectRDMAWritesTargetCurrentDevice, cudaFlushGPUDirectRDMAWritesToOwner);\n"
        'printf("%d %d\\n", e, (int)cudaGetLastError()); }\n#endif\n#include "simk.h"\n'
    )
    result = run_sim([cuda_program(source).program], shim=False).ok()
    assert result.stdout == "801 801\n"
    assert "cudaDeviceFlushGPUDirectRDMAWrites is not implemented" in result.stderr
    assert run_sim.stub_log.read_text() == "cudaDeviceFlushGPUDirectRDMAWrites\n"


def test_code_that_had_no_room_is_loaded_when_there_is(run_sim, cuda_program, tmp_path):  # noqa: F811
    source = tmp_path / "twice.cu"
    source.write_text(
        '#include <stdio.h>\n#include "simk.h"\n__global__ void nothing() {}\nSIM_KERNEL(nothing);\n#ifdef __CUDACC__\nint main()\n{\n'
        "    for (int i = 0; i < 2; i++) {\n        nothing<<<1, 1>>>();\n"
        '        printf("%d\\n", (int)cudaGetLastError());\n    }\n}\n#endif\n'
    )
    faults = ";".join(f"cuLibraryLoadData=OUT_OF_MEMORY@{n}" for n in (1, 2))  # asked for the kernel, then launched
    result = run_sim([cuda_program(source).program], shim=False, sim={"FAULTS": faults}).ok()
    assert result.stdout == "2\n0\n"
