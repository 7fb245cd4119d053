# SPDX-License-Identifier: Apache-2.0
"""What the driver answers about an address."""

import pytest
from conform import belief, pick, ram, saw, shim_differs
from cudaclient import *  # noqa: F403

CONTEXT, MEMORY_TYPE, HOST_POINTER, SYNC_MEMOPS, BUFFER_ID, MANAGED, ORDINAL = 1, 2, 4, 6, 7, 8, 9
IPC_CAPABLE, RANGE_START, RANGE_SIZE, MAPPED = 10, 11, 12, 13
MAPPING_SIZE, MAPPING_BASE = 18, 19


def ask(attribute, pointer, kind=C.c_uint64, want=OK):
    value = kind()
    got = call("cuPointerGetAttribute", C.byref(value), C.c_int(attribute), pointer, want=want)
    return value.value if got == OK else f"error {got}"


def current():
    context = C.c_void_p()
    call("cuCtxGetCurrent", C.byref(context))
    return context.value


def address_range(pointer, want=OK):
    base, size = C.c_uint64(), C.c_size_t()
    got = call("cuMemGetAddressRange_v2", C.byref(base), C.byref(size), pointer, want=want)
    return (base.value, size.value) if got == OK else got


def test_plain_memory():
    p = alloc(MIB)
    assert ask(MEMORY_TYPE, p + 100, C.c_uint) == 2 and ask(ORDINAL, p, C.c_int) == 0
    assert ask(CONTEXT, p) == current() and ask(MANAGED, p, C.c_uint) == 0
    assert (ask(RANGE_START, p + 4096), ask(RANGE_SIZE, p)) == (p, MIB)
    assert address_range(p + 4096) == (p, MIB)


def test_pinned_memory():
    p = pinned(MIB)
    assert ask(MEMORY_TYPE, p, C.c_uint) == 1 and ask(HOST_POINTER, p + 8) == p + 8


def test_managed_memory():
    p = C.c_uint64()
    call("cuMemAllocManaged", C.byref(p), MIB, C.c_uint(1))
    assert ask(MANAGED, p.value, C.c_uint) == 1


def test_buffer_ids_are_unique():
    first = alloc(MIB)
    before = ask(BUFFER_ID, first)
    free(first)
    ids = {before} | {ask(BUFFER_ID, p) for p in [alloc(MIB) for _ in range(4)]}
    assert len(ids) == 5, "also from an allocation that is gone"


@belief("pointer.vmm_attributes")
def test_vmm_memory():
    base, _ = backed(DEVICE)
    assert ask(MEMORY_TYPE, base, C.c_uint) == 2
    handle, one = C.create_string_buffer(64), C.c_uint(1)
    seen = {
        "CONTEXT": ask(CONTEXT, base, want=ANY),
        "IPC capable": ask(IPC_CAPABLE, base, C.c_uint, want=ANY),
        "set SYNC_MEMOPS": call("cuPointerSetAttribute", C.byref(one), C.c_int(SYNC_MEMOPS), base, want=ANY),
        "cuIpcGetMemHandle": call("cuIpcGetMemHandle", handle, base, want=ANY),
    }
    saw("pointer.vmm_attributes", branch_of(seen), seen)


def branch_of(seen):
    return 0 if list(seen.values()) == [0, 0, INVALID, INVALID] else 1


@belief("pointer.host_vmm_type")
def test_host_vmm_memory():
    base, _ = backed(ram())
    seen = (ask(MEMORY_TYPE, base, C.c_uint, want=ANY), ask(ORDINAL, base, C.c_int, want=ANY))
    assert seen[0] in (1, 2)
    saw("pointer.host_vmm_type", 0 if seen == (1, -1) else 1 if seen[0] == 1 else 2, f"type and ordinal: {seen}")


@belief("pointer.range_is_reservation")
def test_ranges_of_vmm_memory():
    base, _ = backed(DEVICE, ram(), DEVICE)
    at = base + GRANULE + 100
    reservation = (ask(RANGE_START, at, want=ANY), ask(RANGE_SIZE, at, want=ANY))
    mapping = (ask(MAPPING_BASE, at, want=ANY), ask(MAPPING_SIZE, at, want=ANY))
    one = address_range(at, want=ANY)
    expected = ((base, 3 * GRANULE), (base + GRANULE, GRANULE), (base + GRANULE, GRANULE))
    saw("pointer.range_is_reservation", 0 if (reservation, mapping, one) == expected else 1, f"{reservation} {mapping} {one} of {base:#x}")


@belief("pointer.unknown_is_not_found")
def test_range_of_an_unknown_pointer():
    buffer = C.create_string_buffer(16)
    seen = [address_range(p, want=ANY) for p in (4096, C.addressof(buffer))]
    assert OK not in seen
    pick("pointer.unknown_is_not_found", seen, [NOT_FOUND] * 2, [INVALID] * 2)


def test_single_query_of_an_unknown_pointer():
    ask(MEMORY_TYPE, 4096, C.c_uint, want=INVALID)


@belief("pointer.plural_answers_zeroes")
def test_plural_query_of_an_unknown_pointer():
    kind, ordinal = C.c_uint(77), C.c_int(77)
    kinds = (C.c_int * 2)(MEMORY_TYPE, ORDINAL)
    places = (C.c_void_p * 2)(C.addressof(kind), C.addressof(ordinal))
    buffer = C.create_string_buffer(16)
    result = call("cuPointerGetAttributes", C.c_uint(2), kinds, places, C.addressof(buffer), want=ANY)
    assert (result, kind.value) == (OK, 0)
    pick("pointer.plural_answers_zeroes", ordinal.value, -2, 0)


def test_plural_query():
    p = alloc(MIB)
    kind, start_of, size = C.c_uint(), C.c_uint64(), C.c_uint64()
    kinds = (C.c_int * 3)(MEMORY_TYPE, RANGE_START, RANGE_SIZE)
    places = (C.c_void_p * 3)(*map(C.addressof, (kind, start_of, size)))
    call("cuPointerGetAttributes", C.c_uint(3), kinds, places, p + 64)
    assert (kind.value, start_of.value, size.value) == (2, p, MIB)


@pytest.mark.parametrize("bad", [0, 999])
def test_attributes_that_do_not_exist(bad):
    ask(bad, alloc(4096), want=INVALID)


@shim_differs("managed memory cannot be shared with other processes")
def test_ipc_handle_of_plain_memory():
    p, handle = alloc(4 * MIB), C.create_string_buffer(64)
    write(p, b"ipc")
    call("cuIpcGetMemHandle", handle, p, want=(OK, NOT_SUPPORTED))  # containers may lack it
    assert read(p, 3) == b"ipc"
    host = pinned(4096)
    call("cuIpcGetMemHandle", handle, host, want=(INVALID, NOT_SUPPORTED))


def test_peer_access_to_oneself_is_refused():
    can = C.c_int(7)
    call("cuDeviceCanAccessPeer", C.byref(can), C.c_int(0), C.c_int(0))
    assert can.value == 0
    call("cuCtxEnablePeerAccess", C.c_void_p(current()), C.c_uint(0), want=(INVALID_DEVICE, PEER_UNSUPPORTED, INVALID_CONTEXT))
