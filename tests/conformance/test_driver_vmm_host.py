# SPDX-License-Identifier: Apache-2.0
"""VMM memory in RAM: which locations there are, who may touch it, and kernels over VRAM and RAM side by side."""

import pytest
from conform import belief, lacks, own_process, pick, ram, saw
from cudaclient import *  # noqa: F403


@belief("vmm.granularity_2mib")
def test_granularity():
    kind, seen = host_kind(), []
    for place in [(DEVICE, 0)] + ([(kind, 0)] if kind else []):
        for option in (0, 1):
            size = C.c_size_t()
            call("cuMemGetAllocationGranularity", C.byref(size), C.byref(prop(*place)), C.c_int(option))
            assert size.value >= 4096 and size.value & (size.value - 1) == 0
            seen.append(size.value)
    assert seen[0] == GRANULE, "spillshim moves pieces of 2 MiB"
    saw("vmm.granularity_2mib", 0 if set(seen) == {GRANULE} else 1, f"minimum and recommended of VRAM and RAM: {seen}")


@belief("vmm.host_locations")
def test_host_locations():
    if host_kind() != HOST_NUMA:
        lacks("cuMemCreate does not take HOST_NUMA here")
    numa = max(0, attribute(HOST_NUMA_ID))
    seen = [create(GRANULE, HOST_NUMA, numa) > 0]
    seen += [call("cuMemCreate", C.byref(C.c_uint64()), GRANULE, C.byref(prop(kind, ident)), 0, want=ANY)
             for kind, ident in ((HOST_NUMA, -1), (HOST_NUMA_CURRENT, 0))]  # fmt: skip
    pick("vmm.host_locations", seen, [True, INVALID, INVALID])


@belief("vmm.host_numa_exportable")
def test_handles_in_ram_are_exported():
    if host_kind() != HOST_NUMA:
        lacks("cuMemCreate does not take HOST_NUMA here")
    handle, fd = C.c_uint64(), C.c_int()
    made = call("cuMemCreate", C.byref(handle), GRANULE, C.byref(prop(HOST_NUMA, max(0, attribute(HOST_NUMA_ID)), 1)), 0, want=ANY)
    if pick("vmm.host_numa_exportable", made, OK, NOT_SUPPORTED, INVALID) == 0:
        call("cuMemExportToShareableHandle", C.byref(fd), handle.value, C.c_int(1), 0)


def created(kind):
    return call("cuMemCreate", C.byref(C.c_uint64()), GRANULE, C.byref(prop(kind)), 0, want=ANY)


def without_host():
    os.environ["SIMGPU_HOST_VMM"] = "none"  # of which a real driver knows nothing
    start()
    return created(HOST_NUMA)


@own_process
@belief("vmm.missing_location_error")
def test_a_location_that_is_missing():
    none = in_a_child(without_host)
    start()
    here = [created(kind) for kind in (HOST_NUMA, HOST)]
    missing = [result for result in here if result != OK]
    if not missing:
        lacks("the driver takes every host location")
    assert set(missing) <= {INVALID, NOT_SUPPORTED, NOT_PERMITTED}, missing
    if len(missing) == 1:  # another kind of location is there
        branch = 2 if missing == [NOT_SUPPORTED] else 1 if none == INVALID else 0
    else:
        branch = 0 if set(missing) == {NOT_SUPPORTED} else 1
    saw("vmm.missing_location_error", branch, f"HOST_NUMA, HOST: {here}")


@belief("vmm.attributes_by_version")
def test_attributes_come_with_their_driver():
    known = [attribute(number) != -1 for number in (HOST_NUMA_VMM, HOST_VMM)]
    pick("vmm.attributes_by_version", known, [version() >= 12090, version() >= 13000])


def test_attributes_say_what_create_does():
    for number, kind in ((HOST_NUMA_VMM, HOST_NUMA), (HOST_VMM, HOST)):
        if attribute(number) == 1 and kind == HOST_NUMA:
            create(GRANULE, kind)


@belief("vmm.access_descriptors")
def test_who_needs_which_descriptor():
    kind = ram()
    base = reserve(2 * GRANULE)
    map_at(base, GRANULE, create(GRANULE))
    map_at(base + GRANULE, GRANULE, create(GRANULE, kind))
    host_on_device = grant(base, GRANULE, kind, want=ANY)
    both = grant(base + GRANULE, GRANULE, DEVICE, kind, want=ANY)
    grant(base, GRANULE, DEVICE)
    pick("vmm.access_descriptors", [host_on_device, both], [INVALID, OK])


@belief("vmm.cpu_reads_at_same_address")
def test_cpu_and_gpu_at_one_address():
    kind = ram()
    base, _ = backed(kind)
    grant(base, GRANULE, DEVICE, kind)
    words = (C.c_uint64 * (GRANULE // 8)).from_address(base)
    words[0], words[1000] = 40, 50
    launch(kernel("xp_add"), base, GRANULE // 8, 2)
    call("cuCtxSynchronize")
    pick("vmm.cpu_reads_at_same_address", (words[0], words[1000]), (42, 52))


@belief("vmm.ram_atomics")
def test_atomics_in_ram():
    counters, _ = backed(ram())
    words = alloc(8 * 100_000)
    fill(words, 1, 8 * 100_000)
    fill(counters, 0, 16)
    launch(kernel("xp_differs"), words, 100_000, 5, counters, counters + 8, grid=32, block=128)
    call("cuCtxSynchronize")
    count = int.from_bytes(read(counters, 8), "little")
    pick("vmm.ram_atomics", count, 100_000)


@belief("vmm.set_access_over_tiers")
def test_one_grant_over_both_tiers():
    base, kind = reserve(2 * GRANULE), ram()
    map_at(base, GRANULE, create(GRANULE))
    map_at(base + GRANULE, GRANULE, create(GRANULE, kind))
    result = grant(base, 2 * GRANULE, DEVICE, want=ANY)
    if result != OK:
        grant(base, GRANULE, DEVICE)
        grant(base + GRANULE, GRANULE, DEVICE)
    assert scattered_over(base)
    pick("vmm.set_access_over_tiers", result, OK, INVALID)


def scattered_over(base):
    scatter(base, 2 * GRANULE, 3)
    return scattered(base, 2 * GRANULE, 3)


@belief("vmm.mixed_access")
@own_process
def test_a_kernel_over_both_tiers():
    start()
    kind = ram()
    base = reserve(4 * GRANULE)
    for i, place in enumerate((DEVICE, kind, DEVICE, kind)):
        map_at(base + i * GRANULE, GRANULE, create(GRANULE, place))
        grant(base + i * GRANULE, GRANULE, DEVICE)
    scatter(base, 4 * GRANULE, 8)
    launch(kernel("xp_add"), base, 4 * GRANULE // 8, 4)
    whole = scattered(base, 4 * GRANULE, 8, add=4)
    saw("vmm.mixed_access", 0 if whole else None, "every word as expected" if whole else "words differ")


@pytest.mark.parametrize("tier", ["VRAM", "RAM"])
def test_a_chunk_changes_its_tier(tier):
    kind = ram()
    here, there = (DEVICE, kind) if tier == "VRAM" else (kind, DEVICE)
    base, (old,) = backed(here)
    scatter(base, GRANULE, 21)
    call("cuCtxSynchronize")
    alias, fresh, s = reserve(GRANULE), create(GRANULE, there), stream()
    map_at(alias, GRANULE, fresh)
    grant(alias, GRANULE, DEVICE, *([] if there == DEVICE else [there]))
    call("cuMemcpyDtoDAsync_v2", alias, base, GRANULE, s)
    call("cuStreamSynchronize", s)
    unmap(base, GRANULE)
    release(old)
    map_at(base, GRANULE, fresh)
    grant(base, GRANULE, DEVICE, *([] if there == DEVICE else [there]))
    assert scattered(base, GRANULE, 21)


def test_ram_takes_no_vram():
    kind, before = ram(), used()
    backed(kind, size=64 * MIB)
    assert used() - before < 32 * MIB
