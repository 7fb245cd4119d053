# SPDX-License-Identifier: Apache-2.0
"""Regions whose address somebody keeps are pinned, others are not: tests/programs/pins.c, read from the statistics at the end."""

from __future__ import annotations

import pytest

MIB = 1 << 20
# Regions pinned by each way; they are of 20 MiB.
WAYS = {
    "captured_copy": 2,
    "captured_upload": 1,
    "captured_2d": 1,
    "captured_3d": 2,
    "captured_memset": 1,
    "captured_memset_2d": 1,
    "captured_per_thread": 1,
    "captured_value": 1,
    "captured_mem_ops": 2,
    "added_copy": 2,
    "added_memset": 1,
    "added_mem_op": 1,
    "set_copy": 1,
    "set_memset": 1,
    "set_mem_op": 1,
    "set_in_executable_copy": 1,
    "set_in_executable_memset": 1,
    "set_in_executable_mem_op": 1,
    "added_any_copy": 2,
    "added_any_memset": 1,
    "added_any_mem_op": 1,
    "set_any": 1,
    "set_in_executable_any": 1,
    "sync_memops": 1,
    "twice": 1,
    "freed": 2,
    "no_copy": 0,
    "no_copy_beside_a_capture": 0,
    "no_own_memory": 0,
}


@pytest.mark.parametrize("way", WAYS)
def test_pins(c_program, run_sim, way):
    (stats,) = run_sim([c_program("pins.c"), way], vram="1G").ok().stats
    assert stats["managed"]["bytes_peak"] == 40 * MIB
    assert stats["pins"] == {"count": WAYS[way], "bytes": WAYS[way] * 20 * MIB}
