# SPDX-License-Identifier: Apache-2.0
"""How the tests of the simulated driver run a client: in a process of its own, without the shim.

Used by test_simgpu_*.py: `drive(simgpu, "python code")`; the code sees everything of simgpu_client.
"""

import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def simgpu(run_sim):
    """run_sim without the shim: settings of the simulator in capitals, vram= and ram= as there."""

    def run(argv, vram="2G", ram="2G", env=None, **settings):
        program = [sys.executable if argv[0] == "python" else argv[0], *argv[1:]]
        return run_sim(program, vram=vram, ram=ram, shim=False, sim=settings, env={"PYTHONPATH": str(HERE), **(env or {})})

    run.name = run_sim.name
    run.env = run_sim.env
    run.tmp_path = run_sim.tmp_path
    run.stub_log = run_sim.stub_log
    return run


def drive(simgpu, code, **how):
    """Run client code; fails with its output unless it ends with 0. Returns the result."""
    return simgpu(["python", "-c", "from simgpu_client import *\n" + textwrap.dedent(code)], **how).ok()


@pytest.fixture
def graphs(simgpu, cuda_program):  # noqa: F811
    """Run code that sees everything of simgpu_graphs, in a process of its own, with the kernels of plain_kernels.c."""
    companion = cuda_program.companion("plain_kernels.c", "plain.simk.so", "c")

    def run(code, **how):
        return drive(simgpu, "from simgpu_graphs import *\n" + textwrap.dedent(code), KERNELS=str(companion), **how)

    return run
