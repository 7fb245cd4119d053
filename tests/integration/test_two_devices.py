# SPDX-License-Identifier: Apache-2.0
"""Past the VRAM of two devices, with and without peer access between them: copies across, and every byte as it was written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[1] / "unit"
FINE = {"SPILLSHIM_MANAGED_MIN": "1", "SPILLSHIM_CHUNK": "2M", "SPILLSHIM_SPILL_CHUNK": "2M"}

PROGRAM = """
from simgpu_client import *

contexts, blocks, can = [start(0), start(1)], [], C.c_int()
call("cuDeviceCanAccessPeer", C.byref(can), C.c_int(0), C.c_int(1))
for device, context in enumerate(contexts):
    call("cuCtxSetCurrent", context)
    if can.value:
        call("cuCtxEnablePeerAccess", contexts[1 - device], C.c_uint(0))
    else:
        call("cuCtxEnablePeerAccess", contexts[1 - device], C.c_uint(0), want=PEER_UNSUPPORTED)
    mine = [alloc(8 * MIB) for _ in range(6)]  # 48 MiB on a device of 32
    for index, p in enumerate(mine):
        fill(p, 10 * device + index, 8 * MIB)
    blocks.append(mine)
for p, q in zip(blocks[0], reversed(blocks[1])):  # device 1's go to device 0, from where they come back
    call("cuMemcpyPeer", p, contexts[0], q, contexts[1], 8 * MIB)
    fill(q, 0xEE, 8 * MIB)
    call("cuMemcpyPeer", q, contexts[1], p, contexts[0], 8 * MIB)
for context, mine, values in zip(contexts, blocks, (range(15, 9, -1), range(10, 16))):
    call("cuCtxSetCurrent", context)
    for p, value in zip(mine, values):
        assert read(p, 8 * MIB) == bytes([value]) * 8 * MIB
        free(p)
"""


@pytest.mark.parametrize("peers", ["yes", "no"])
def test_both_devices_spill(run_sim, tmp_path, peers):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    result = run_sim([sys.executable, script], vram="32M", ram="1G", env={**FINE, "PYTHONPATH": str(UNIT)}, sim={"DEVICES": "2", "PEERS": peers}).ok()
    (stats,) = result.stats
    assert stats["spilled"]["bytes_peak"] > 0
