# SPDX-License-Identifier: Apache-2.0
"""Virtual memory management: what may be mapped, unmapped and opened, and when memory is given back."""

import pytest
from conform import belief, own_process, pick, real, saw
from cudaclient import *  # noqa: F403

BIG = 64 * MIB  # visible among what other programs do to a shared card


@belief("vmm.map_whole_handle")
def test_a_handle_is_mapped_whole_and_alone():
    base, handle = reserve(4 * GRANULE), create(2 * GRANULE)

    def tried(pointer, size, offset=0):
        result = map_at(pointer, size, handle, offset, want=ANY)
        if result == OK:
            unmap(pointer, size)
        return result

    refused = [
        tried(base, GRANULE, offset=GRANULE),
        tried(base, GRANULE),
        tried(base + 4096, 2 * GRANULE),
        tried(base + 3 * GRANULE, 2 * GRANULE),  # past the reservation
    ]
    map_at(base, 2 * GRANULE, handle)
    refused.append(map_at(base + GRANULE, 2 * GRANULE, handle, want=ANY))  # over a mapping
    assert refused[2:] == [INVALID] * 3
    pick("vmm.map_whole_handle", refused, [INVALID] * 5)


@pytest.mark.parametrize("bad", ["unknown handle", "no reservation", "flags"])
def test_map_refuses_strangers(bad):
    base, handle = reserve(GRANULE), create(GRANULE)
    pointer = 0x1000000 if bad == "no reservation" else base
    stranger = 0x1234 if bad == "unknown handle" else handle
    call("cuMemMap", pointer, GRANULE, 0, stranger, 1 if bad == "flags" else 0, want=(INVALID, INVALID_HANDLE))
    map_at(base, GRANULE, handle)


@belief("vmm.range_of_whole_mappings")
def test_unmap_and_set_access_take_rows_of_whole_mappings():
    base = reserve(4 * GRANULE)
    for i in range(2):
        map_at(base + 2 * i * GRANULE, 2 * GRANULE, create(2 * GRANULE))
    parts = [
        grant(base, GRANULE, DEVICE, want=ANY),
        grant(base + GRANULE, 2 * GRANULE, DEVICE, want=ANY),
        unmap(base, GRANULE, want=ANY),
        unmap(base + GRANULE, 2 * GRANULE, want=ANY),
    ]
    grant(base, 4 * GRANULE, DEVICE)
    fill(base, 1, 4 * GRANULE)  # many handles, one operand
    unmap(base, 4 * GRANULE)
    pick("vmm.range_of_whole_mappings", parts, [INVALID] * 4)


def test_a_mapping_is_unmapped_once():
    base, _ = backed(DEVICE)
    unmap(base, GRANULE)
    unmap(base, GRANULE, want=INVALID)


@belief("vmm.unmap_gap_refused")
def test_unmap_over_a_gap():
    base = reserve(3 * GRANULE)
    for i in (0, 2):
        map_at(base + i * GRANULE, GRANULE, create(GRANULE))
    result = unmap(base, 3 * GRANULE, want=ANY)
    pick("vmm.unmap_gap_refused", result, INVALID, OK)


@own_process
@belief("vmm.no_access_after_map")
@pytest.mark.parametrize("which", ["first map", "second map"])
def test_a_map_gives_no_access(which):
    start()
    base, handle = reserve(GRANULE), create(GRANULE)
    map_at(base, GRANULE, handle)
    if which == "second map":
        grant(base, GRANULE, DEVICE)
        write(base, b"x" * 16)
        unmap(base, GRANULE)
        map_at(base, GRANULE, handle)
    result = call("cuMemcpyHtoD_v2", base, b"x" * 16, 16, want=ANY) or call("cuCtxSynchronize", want=ANY)
    saw("vmm.no_access_after_map", 0 if result != OK else None, f"a copy between map and cuMemSetAccess: {result}")
    assert result != OK


@own_process
@pytest.mark.parametrize("when", ["reserved", "mapped", "unmapped"])
@pytest.mark.parametrize("how", ["cuMemsetD8_v2", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2"])
def test_use_without_access_fails(when, how):
    start()
    base = reserve(GRANULE)
    if when != "reserved":
        map_at(base, GRANULE, create(GRANULE))
    if when == "unmapped":
        grant(base, GRANULE, DEVICE)
        fill(base, 3, 16)
        unmap(base, GRANULE)
    buffer = (C.c_ubyte * 16)()
    arguments = {"cuMemsetD8_v2": (base, C.c_ubyte(1), 16), "cuMemcpyDtoH_v2": (buffer, base, 16)}.get(how, (base, buffer, 16))
    at_call = call(how, *arguments, want=ANY)
    later = call("cuCtxSynchronize", want=ANY)
    assert at_call != OK or later != OK, "it went through"


@own_process
@belief("vmm.unmap_no_drain")
def test_unmap_under_queued_work():
    start()
    base, _ = backed(DEVICE)
    s = stream()
    gate = Gate().close(s)
    call("cuMemsetD8Async", base, C.c_ubyte(1), GRANULE, s)
    waited, result = waits(lambda: unmap(base, GRANULE, want=ANY), gate)
    after = [call("cuStreamSynchronize", s, want=ANY), call("cuCtxSynchronize", want=ANY)]
    assert result == OK and after == ([OK, OK] if waited else [ILLEGAL_ADDRESS] * 2), (waited, result, after)
    saw("vmm.unmap_no_drain", int(waited), f"{'waited for' if waited else 'returned before'} the work, which ended with {after[0]}")


@belief("vmm.freed_when_released_and_unmapped")
def test_memory_goes_when_released_and_unmapped():
    before, base = used(), reserve(BIG)
    steps = []
    for order in ("release first", "unmap first"):
        handle = create(BIG)
        map_at(base, BIG, handle)
        steps.append(used() - before > BIG // 2)
        if order == "release first":
            release(handle)
        else:
            unmap(base, BIG)
        steps.append(used() - before > BIG // 2)
        if order == "release first":
            unmap(base, BIG)
        else:
            release(handle)
        steps.append(used() - before > BIG // 2)
    pick("vmm.freed_when_released_and_unmapped", steps, [True, True, False] * 2)


def test_a_retained_handle_is_the_same_memory():
    base, (handle,) = backed(DEVICE)
    write(base, b"kept")
    again = C.c_uint64()
    call("cuMemRetainAllocationHandle", C.byref(again), C.c_void_p(base + 4096))
    release(handle)
    unmap(base, GRANULE)
    map_at(base, GRANULE, again.value)
    grant(base, GRANULE, DEVICE)
    assert read(base, 4) == b"kept"


def test_retain_needs_a_mapping():
    base, handle = reserve(GRANULE), C.c_uint64()
    call("cuMemRetainAllocationHandle", C.byref(handle), C.c_void_p(base), want=INVALID)
    call("cuMemRetainAllocationHandle", C.byref(handle), C.c_void_p(alloc(4096)), want=INVALID)


@belief("vmm.alias_same_bytes")
def test_one_handle_at_two_addresses():
    base, (handle,) = backed(DEVICE)
    other = reserve(GRANULE)
    fill(base, 7, GRANULE)
    second = map_at(other, GRANULE, handle, want=ANY)
    seen = second
    if second == OK:
        grant(other, GRANULE, DEVICE)
        first = read(other, 8)
        fill(other, 9, GRANULE)
        seen = (first, read(base, 8))
    pick("vmm.alias_same_bytes", seen, (bytes([7]) * 8, bytes([9]) * 8))


def test_contents_survive_a_remap_elsewhere():
    base, (handle,) = backed(DEVICE)
    scatter(base, GRANULE, 11)
    call("cuCtxSynchronize")
    unmap(base, GRANULE)
    other = reserve(GRANULE)
    map_at(other, GRANULE, handle)
    grant(other, GRANULE, DEVICE)
    assert scattered(other, GRANULE, 11)


@own_process  # so that nothing of it was in use before
@belief("vmm.fresh_is_zero")
def test_contents_of_fresh_memory():
    start()
    base, _ = backed(DEVICE)
    zero = not any(read(base, GRANULE))
    saw("vmm.fresh_is_zero", 0 if zero else 1, "zeroes" if zero else "other bytes")


@own_process
@belief("vmm.outlives_context")
def test_memory_outlives_the_context_it_was_made_in():
    start()
    base, _ = backed(DEVICE)
    write(base, b"older than you")
    call("cuDevicePrimaryCtxReset_v2", 0)
    start()
    buffer = (C.c_ubyte * 14)()
    result = call("cuMemcpyDtoH_v2", buffer, base, 14, want=ANY)
    pick("vmm.outlives_context", (result, bytes(buffer)), (OK, b"older than you"))


@pytest.mark.parametrize(
    "request_, want",
    [((0, DEVICE, 0), (INVALID,)), ((GRANULE + 4096, DEVICE, 0), (INVALID,)), ((1 << 46, DEVICE, 0), (OOM,)),
     ((GRANULE, DEVICE, 99), (INVALID, INVALID_DEVICE)), ((GRANULE, 77, 0), (INVALID, NOT_SUPPORTED))],
    ids=["nothing", "not of granules", "too much", "no such device", "no such place"],
)  # fmt: skip
def test_create_refuses_bad_requests(request_, want):
    create(*request_, want=want)


def test_reservations():
    base = reserve(1 << 40)  # of addresses there are plenty
    far = base + (1 << 39)
    map_at(far, GRANULE, create(GRANULE))
    grant(far, GRANULE, DEVICE)
    write(far, b"far")
    assert read(far, 3) == b"far"
    call("cuMemAddressFree", base, 1 << 40, want=INVALID)  # still mapped
    unmap(far, GRANULE)
    call("cuMemAddressFree", base, 1 << 40)
    reserve(1 << 60, want=(OOM, INVALID))
    reserve(0, want=INVALID)


def test_a_reservation_ends_as_a_whole():
    base = reserve(2 * GRANULE)
    call("cuMemAddressFree", base, GRANULE, want=INVALID)
    call("cuMemAddressFree", base, 2 * GRANULE)


def test_reservations_are_aligned_as_asked():
    pointer = C.c_uint64()
    call("cuMemAddressReserve", C.byref(pointer), GRANULE, 1 << 30, 0, 0)
    assert pointer.value % (1 << 30) == 0


def test_access_is_answered_as_granted():
    base, _ = backed(DEVICE)
    flags, place = C.c_ulonglong(), Location(DEVICE, 0)
    call("cuMemGetAccess", C.byref(flags), C.byref(place), base)
    assert flags.value == READWRITE
    grant(base, GRANULE, DEVICE, flags=0)
    call("cuMemGetAccess", C.byref(flags), C.byref(place), base)
    assert flags.value == 0


def test_properties_of_a_handle():
    handle, made = create(GRANULE), Prop()
    call("cuMemGetAllocationPropertiesFromHandle", C.byref(made), handle)
    assert (made.type, made.location.type, made.location.id) == (1, DEVICE, 0)


@belief("vmm.remapped_under_load")
def test_chunks_move_between_launches():
    """As spillshim moves them: copied through an alias, then remapped at the same address."""
    chunks, size = 4, 4 * GRANULE
    base, handles = backed(*[DEVICE] * chunks)
    alias, s = reserve(GRANULE), stream()
    scatter(base, size, 5)
    call("cuCtxSynchronize")
    for turn in range(8):
        launch(kernel("xp_add"), base, size // 8, 3, stream=s)
        call("cuStreamSynchronize", s)
        at = turn % chunks
        fresh = create(GRANULE)
        map_at(alias, GRANULE, fresh)
        grant(alias, GRANULE, DEVICE)
        call("cuMemcpyDtoDAsync_v2", alias, base + at * GRANULE, GRANULE, s)
        call("cuStreamSynchronize", s)
        unmap(alias, GRANULE)
        unmap(base + at * GRANULE, GRANULE)
        release(handles[at])
        map_at(base + at * GRANULE, GRANULE, fresh)
        grant(base + at * GRANULE, GRANULE, DEVICE)
        handles[at] = fresh
    kept = scattered(base, size, 5, add=24)
    saw("vmm.remapped_under_load", 0 if kept else None, "every word as expected" if kept else "words differ")
    assert kept


@belief("vmm.remap_beside_running_kernel")
def test_other_chunks_move_while_a_kernel_runs():
    base, (_, handle) = backed(DEVICE, DEVICE)
    at, s = base + GRANULE, stream()
    scatter(base, GRANULE, 2)
    call("cuCtxSynchronize")
    busy = Spin(base, GRANULE, s)

    def move():
        unmap(at, GRANULE)
        map_at(at, GRANULE, handle)
        grant(at, GRANULE, DEVICE)

    waited, _ = waits(move, busy)
    call("cuStreamSynchronize", s)
    assert scattered(base, GRANULE, 2)
    fill(at, 1, GRANULE)
    saw("vmm.remap_beside_running_kernel", int(waited), "waited for the kernel" if waited else "done beside the kernel")


@pytest.mark.skipif("not hasattr(__import__('socket'), 'send_fds')", reason="needs Python 3.9")
@own_process
def test_a_handle_goes_to_another_process():
    import socket

    ours, theirs = socket.socketpair()
    child = os.fork()  # before cuInit: a driver does not survive a fork
    if child == 0:
        theirs.close()
        try:
            start()
            fd = socket.recv_fds(ours, 1, 1)[1][0]
            handle, base = C.c_uint64(), reserve(GRANULE)
            call("cuMemImportFromShareableHandle", C.byref(handle), C.c_void_p(fd), C.c_int(1))
            map_at(base, GRANULE, handle.value)
            grant(base, GRANULE, DEVICE)
            assert read(base, 6) == b"shared"
            write(base, b"SHARED")
            ours.send(b"y")
        finally:
            os._exit(0)
    ours.close()
    start()
    base, handle, fd = reserve(GRANULE), create(GRANULE, handle_types=1), C.c_int()
    map_at(base, GRANULE, handle)
    grant(base, GRANULE, DEVICE)
    write(base, b"shared")
    call("cuMemExportToShareableHandle", C.byref(fd), handle, C.c_int(1), 0)
    socket.send_fds(theirs, [b"x"], [fd.value])
    assert theirs.recv(1) == b"y", "the other process failed"
    assert read(base, 6) == b"SHARED"


def test_only_exportable_handles_are_exported():
    fd = C.c_int()
    call("cuMemExportToShareableHandle", C.byref(fd), create(GRANULE), C.c_int(1), 0, want=(INVALID, NOT_SUPPORTED))
