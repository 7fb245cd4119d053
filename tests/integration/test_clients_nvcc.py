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


def test_every_entry_that_it_calls_has_a_body(run_sim, program):
    result = run_sim([program.program, *SHAPE], vram="1G", shim=False, sim={"STUB_LOG": "stubs"}).ok()
    log = run_sim.tmp_path / "stubs"
    assert not log.exists() or not log.read_text(), log.read_text()
    assert "not implemented" not in result.stderr
