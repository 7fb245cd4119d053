# SPDX-License-Identifier: Apache-2.0
"""A program under the shim while driver calls fail now and then (SIMGPU_FAULTS): it gets the answers of cuMemAlloc and cuMemFree and
no others, keeps every byte, and at its end nothing is held that the driver took back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from clients_common import FINE

UNIT = Path(__file__).resolve().parents[1] / "unit"

PROGRAM = """
from simgpu_client import *
import random
start()
draw, live, refused = random.Random(5), {}, 0
for _ in range(120):
    if live and draw.random() < 0.45:
        p, (size, value) = live.popitem()
        assert read(p, size) == bytes([value]) * size
        free(p)
        continue
    size, p = draw.randrange(1, 12) * MIB, C.c_uint64()
    if call("cuMemAlloc_v2", C.byref(p), size, want=(OK, OOM)) == OOM:
        refused += 1
    else:
        live[p.value] = size, draw.randrange(256)
        fill(p.value, live[p.value][1], size)
for p, (size, value) in live.items():
    assert read(p, size) == bytes([value]) * size
    free(p)
print(refused, used())
"""

# (rule, whether some allocation must be refused for it)
RULES = [
    ("after-unmap=NOT_READY", False),
    ("after-unmap=NOT_READY@0.2:1", False),
    ("cuMemCreate=OUT_OF_MEMORY@0.1:1", True),
    ("cuMemMap=OUT_OF_MEMORY@0.1:2", True),
    ("cuMemSetAccess=OUT_OF_MEMORY@0.1:3", True),
    ("cuMemCreate/heap=OUT_OF_MEMORY@0.1:1;cuMemMap/heap=OUT_OF_MEMORY@0.1:3", True),
    ("cuCtxSynchronize=delay:1ms@0.2:1;cuMemUnmap=delay:500us@0.3:2", False),
]


@pytest.mark.parametrize(("faults", "refuses"), RULES, ids=[rule for rule, _ in RULES])
def test_a_program_survives_a_driver_that_fails_now_and_then(run_sim, tmp_path, faults, refuses):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    result = run_sim([sys.executable, script], vram="32M", ram="1G", env={**FINE, "PYTHONPATH": str(UNIT)}, sim={"FAULTS": faults}).ok()
    refused, held = map(int, result.stdout.split())
    assert "simgpu: fault:" in result.stderr, "the rule never struck"
    assert bool(refused) == refuses and held == 0, result.stdout
    (stats,) = result.stats
    assert stats["spilled"]["bytes_peak"] > 0
