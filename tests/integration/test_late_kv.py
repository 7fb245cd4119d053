# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/placement_late_kv.py measures, for the placements that nothing moves afterwards: where a late KV cache lies, and what
that costs. (That the settle pass mends it is tested by the engine's tests, which have a clock of their own.)"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import placement_late_kv as late  # noqa: E402

pytestmark = pytest.mark.no_sanitizer("it measures what is shipped, by simulated time")


def test_late_buffers_in_ram_cost_more_than_weights(sim_dir):
    sizes = late.Sizes(vram=160, weights=176, kv=16, compute=16, steps=2)
    found = late.compare(sim_dir.parent, sizes, 3, ("best static", "first come", "tail"))
    (best, link), (first, more), (tail, same) = found.values()
    mib = late.MIB
    assert best.ram[1:] == tail.ram[1:] == [0, 0] and best.ram[0] == tail.ram[0] > 0
    assert first.ram[1:] == [16 * mib, 16 * mib] and sum(first.ram) == sum(best.ram)
    assert best.checksum == first.checksum == tail.checksum
    # All weights are read once in a step; VRAM's time is as good as none.
    assert link == pytest.approx(best.ram[0], rel=0.001) and same == pytest.approx(link, rel=0.001)
    assert more > 3 * link, "work space is read and written for each layer"
