# SPDX-License-Identifier: Apache-2.0
"""cuda-bindings' driver API: it looks every entry up by itself, without any runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "client_bindings.py"


def test_the_driver_api_of_cuda_bindings(run_sim, demo_dir, calls):
    pytest.importorskip("cuda.bindings.driver")
    program = [sys.executable, PROGRAM, "6", "32", "5"]  # COUNT MIB SEED: 192 MiB
    env = {"DECODER_PTX": str(demo_dir / "decoder.ptx"), "SIMGPU_KERNELS": str(demo_dir / "decoder.simk.so")}
    run_sim(program, vram="1G", shim=False, env=env, sim=calls.sim).ok()
    plain = run_sim(program, vram="96M", shim=False, env=env)
    assert (plain.returncode, plain.stdout) == (2, "oom\n"), str(plain)
    spilled = run_sim(program, vram="96M", env={**env, "SPILLSHIM_HEADROOM": "4M"}).ok()
    assert sum(one["spilled"]["bytes_peak"] for one in spilled.stats) > 64 << 20, spilled.stats
    calls.check("cuda-bindings, driver API")
