# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a region go, and how they are cut: csrc/tiering/placement.c through the cffi module."""
from hypothesis import given, settings
from hypothesis import strategies as st

from spillshim import _abi as abi

MiB = 1 << 20
GiB = 1 << 30
GRANULE = 2 * MiB


def place(size, free, total, headroom=512 * MiB, holdback=0, chunk=32 * MiB, spill_chunk=4 * MiB, insist=0):
    question = abi.ffi.new("struct spill_place_in *", dict(
        size=size, vram_free=free, vram_total=total, headroom=headroom, holdback=holdback, insist=insist,
        chunk=chunk, spill_chunk=spill_chunk, granularity=GRANULE))
    answer = abi.ffi.new("struct spill_place_out *")
    abi.lib.spill_place(question, answer)
    count = abi.lib.spill_layout(question, answer, abi.ffi.NULL, 0)
    steps = abi.ffi.new("struct spill_layout_step[]", max(count, 1))
    assert abi.lib.spill_layout(question, answer, steps, count) == count
    return answer, [(s.offset, s.size, s.tier) for s in steps[0:count]]


def test_all_in_vram_is_large_chunks():
    answer, steps = place(1 * GiB, free=8 * GiB, total=8 * GiB)
    assert (answer.vram, answer.ram) == (1 * GiB, 0)
    assert {size for _, size, _ in steps} == {32 * MiB}


def test_headroom_is_left():
    answer, _ = place(3 * GiB, free=3 * GiB, total=8 * GiB, headroom=1 * GiB)
    assert (answer.vram, answer.ram) == (2 * GiB, 1 * GiB)


def test_holdback_only_for_a_region_above_half_of_vram_that_spills():
    giant, _ = place(9 * GiB, free=8 * GiB, total=8 * GiB, headroom=0, holdback=4 * GiB)
    assert (giant.vram, giant.ram) == (4 * GiB, 5 * GiB)
    late, _ = place(4 * GiB, free=4 * GiB, total=8 * GiB, headroom=0, holdback=4 * GiB)
    assert (late.vram, late.ram) == (4 * GiB, 0)


def test_a_region_that_fits_is_not_spilled_for_the_holdback_unless_insisted():
    fits, _ = place(7 * GiB, free=8 * GiB, total=8 * GiB, headroom=1 * GiB, holdback=2 * GiB)
    assert (fits.vram, fits.ram) == (7 * GiB, 0)
    insisted, _ = place(7 * GiB, free=8 * GiB, total=8 * GiB, headroom=1 * GiB, holdback=2 * GiB, insist=1)
    assert (insisted.vram, insisted.ram) == (5 * GiB, 2 * GiB)


def test_nothing_free_is_all_in_ram_in_large_chunks():
    answer, steps = place(256 * MiB, free=100 * MiB, total=8 * GiB)
    assert (answer.vram, answer.ram) == (0, 256 * MiB)
    assert steps == [(i * 32 * MiB, 32 * MiB, 1) for i in range(8)]


def test_spilled_chunks_are_spread_evenly():
    """A tenth in RAM: in every tenth of the region about a tenth of that tenth is in RAM."""
    answer, steps = place(10 * GiB, free=9 * GiB, total=16 * GiB, headroom=0)
    assert answer.ram == 1 * GiB
    for part in range(10):
        low, high = part * GiB, (part + 1) * GiB
        ram = sum(min(offset + size, high) - max(offset, low)
                  for offset, size, tier in steps if tier == 1 and offset < high and offset + size > low)
        assert abs(ram - answer.ram / 10) <= 8 * MiB, part


amounts = st.integers(0, 64 * 512).map(lambda granules: granules * GRANULE)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(size=st.integers(1, 64 * 512).map(lambda g: g * GRANULE), free=amounts, total=amounts, headroom=amounts,
       holdback=amounts, insist=st.integers(0, 1), chunk=st.integers(1, 64).map(lambda g: g * GRANULE),
       spill_chunk=st.integers(1, 16).map(lambda g: g * GRANULE), odd=st.integers(0, GRANULE - 1))
def test_every_layout_covers_the_region_once(size, free, total, headroom, holdback, insist, chunk, spill_chunk, odd):
    free += odd  # what a driver says is free is no multiple of anything
    answer, steps = place(size, free, total, headroom, holdback, chunk, spill_chunk, insist)
    assert answer.vram + answer.ram == size
    assert answer.vram <= max(0, free - headroom)
    at = 0
    for offset, length, tier in steps:
        assert offset == at and length > 0 and length % GRANULE == 0
        assert length <= (answer.ram_chunk if tier else answer.vram_chunk)
        at += length
    assert at == size
    assert sum(length for _, length, tier in steps if tier == 1) == answer.ram
