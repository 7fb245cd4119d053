# SPDX-License-Identifier: Apache-2.0
"""Plain, pinned, managed and stream-ordered memory: how much is taken, what may be freed, and when it is given back."""

import pytest
from conform import belief, lacks, own_process, pick, real, saw, shim_differs
from cudaclient import *  # noqa: F403

BIG = 64 * MIB


@shim_differs("each small allocation is a region of its own where the shim is told to manage it")
@belief("alloc.steps")
def test_steps_of_allocation():
    def taken(*sizes):
        before = used()
        held = [alloc(size) for size in sizes]
        took = used() - before
        for pointer in held:
            free(pointer)
        return took

    large = taken(*[2 * MIB + 1] * 8) // 8
    small = taken(*[512] * 256)
    assert large >= 2 * MIB + 1
    seen = (large, small <= GRANULE)
    saw("alloc.steps", 0 if seen == (4 * MIB, True) else 1, f"2 MiB + 1 takes {large} bytes, 256 of 512 bytes take {small}")


@belief("alloc.free_waits")
def test_free_and_queued_work():
    p, q, s = alloc(MIB), alloc(4 * MIB), stream()
    gate = Gate().close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, s)
    waited, _ = waits(lambda: free(q), gate)
    call("cuStreamSynchronize", s)
    saw("alloc.free_waits", int(not waited), "waited for other memory's work" if waited else "returned at once")


def test_work_that_was_queued_before_a_free_is_done():
    p, q, s = alloc(MIB), alloc(MIB), stream()
    out = pinned(16)
    gate = Gate().close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(7), MIB, s)
    call("cuMemcpyDtoHAsync_v2", out, p, 16, s)
    waits(lambda: free(q), gate)
    call("cuStreamSynchronize", s)
    assert C.string_at(out, 16) == bytes([7]) * 16


@belief("alloc.bad_free")
def test_frees_of_what_is_no_allocation():
    p, (base, _) = alloc(10 * MIB), backed(DEVICE)
    buffer = C.create_string_buffer(16)
    results = [free(bad, want=ANY) for bad in (p + 512, 12345, C.addressof(buffer), base)]
    free(p)
    results.append(free(p, want=ANY))
    results += [free(0, want=ANY), alloc_code(0)]
    assert results[5] == OK
    pick("alloc.bad_free", results, [INVALID] * 5 + [OK, INVALID])


def alloc_code(size):
    return call("cuMemAlloc_v2", C.byref(C.c_uint64()), size, want=ANY)


def test_pinned_memory_is_freed_by_its_own_entry():
    p, host = alloc(4096), pinned(4096)
    free(host, want=INVALID)
    call("cuMemFreeHost", p, want=INVALID)
    call("cuMemFreeHost", host)


@pytest.mark.parametrize("size", [(1 << 64) - 1, 1 << 50, 1 << 44])
def test_more_than_there_is(size):
    assert alloc_code(size) in (OOM, INVALID)
    alloc(4096)  # it harmed nothing


def test_bad_arguments_of_allocations():
    call("cuMemAlloc_v2", None, 16, want=INVALID)
    call("cuMemHostAlloc", None, 16, 0, want=INVALID)
    call("cuMemHostAlloc", C.byref(C.c_void_p()), 4096, C.c_uint(0x80), want=INVALID)
    call("cuMemAllocManaged", C.byref(C.c_uint64()), 0, C.c_uint(1), want=INVALID)
    call("cuMemAllocManaged", C.byref(C.c_uint64()), 4096, C.c_uint(7), want=INVALID)


def test_allocations_are_aligned():
    assert all(alloc(size) % 256 == 0 for size in (1, 100, 513, 4097, 3 * MIB))


def test_allocations_do_not_overlap():
    size = 4096
    held = sorted(alloc(size) for _ in range(100))
    assert all(b - a >= size for a, b in zip(held, held[1:]))


def test_pitch_holds_the_width():
    p, pitch = C.c_uint64(), C.c_size_t()
    call("cuMemAllocPitch_v2", C.byref(p), C.byref(pitch), 1000, 20, C.c_uint(16))
    assert pitch.value >= 1000 and pitch.value % 16 == 0
    fill(p.value, 1, pitch.value * 20)
    call("cuMemAllocPitch_v2", C.byref(p), C.byref(pitch), 1000, 20, C.c_uint(5), want=INVALID)


def test_free_and_total_tell_of_an_allocation():
    available, total = C.c_size_t(), C.c_size_t()
    whole = C.c_size_t()
    call("cuMemGetInfo_v2", C.byref(available), C.byref(total))
    call("cuDeviceTotalMem_v2", C.byref(whole), C.c_int(0))
    assert 0 < available.value <= total.value == whole.value
    before = used()
    p = alloc(BIG)
    assert used() - before >= BIG // 2
    free(p)
    assert used() - before < BIG // 2


@belief("alloc.host_pointer_is_device_pointer")
def test_device_pointer_of_pinned_memory():
    host, device = pinned(4096, 2), C.c_uint64()
    call("cuMemHostGetDevicePointer_v2", C.byref(device), host, C.c_uint(0))
    C.memset(host, 5, 4096)
    launch(kernel("xp_add"), device.value, 512, 1)
    call("cuCtxSynchronize")
    assert C.string_at(host, 8) == bytes([6, 5, 5, 5, 5, 5, 5, 5])
    saw("alloc.host_pointer_is_device_pointer", 0 if device.value == host else 1, f"host {host:#x}, device {device.value:#x}")


def test_flags_of_pinned_memory():
    flags = C.c_uint()
    call("cuMemHostGetFlags", C.byref(flags), pinned(4096, 3))
    assert flags.value & 3 == 3
    call("cuMemHostGetFlags", C.byref(flags), alloc(4096), want=INVALID)


def test_registered_memory_is_reached_by_kernels():
    import mmap

    pages = mmap.mmap(-1, 64 * KIB)
    at = C.addressof(C.c_char.from_buffer(pages))
    device = C.c_uint64()
    call("cuMemHostRegister_v2", at, 64 * KIB, C.c_uint(2))
    call("cuMemHostGetDevicePointer_v2", C.byref(device), at, C.c_uint(0))
    launch(kernel("xp_add"), device.value, 64 * KIB // 8, 9)
    call("cuCtxSynchronize")
    assert pages[:8] == bytes([9]) + bytes(7)
    call("cuMemHostRegister_v2", at, 64 * KIB, C.c_uint(2), want=ALREADY_REGISTERED)
    call("cuMemHostUnregister", at)
    call("cuMemHostUnregister", at, want=NOT_REGISTERED)
    call("cuMemHostGetDevicePointer_v2", C.byref(device), at, C.c_uint(0), want=INVALID)


def managed(size):
    pointer = C.c_uint64()
    call("cuMemAllocManaged", C.byref(pointer), size, C.c_uint(1))
    return pointer.value


def test_managed_memory_is_seen_by_both():
    p = managed(MIB)
    words = (C.c_uint64 * (MIB // 8)).from_address(p)
    words[0], words[3] = 10, 30
    launch(kernel("xp_add"), p, MIB // 8, 1)
    call("cuCtxSynchronize")
    assert (words[0], words[3]) == (11, 31)


@belief("alloc.managed_may_exceed_vram")
def test_managed_memory_may_exceed_vram():
    if real():
        lacks("more managed memory than VRAM is never asked of a real card, which others may share")
    p, total = C.c_uint64(), C.c_size_t()
    call("cuDeviceTotalMem_v2", C.byref(total), C.c_int(0))
    result = call("cuMemAllocManaged", C.byref(p), total.value + GRANULE, C.c_uint(1), want=ANY)
    pick("alloc.managed_may_exceed_vram", result, OK, OOM)


@shim_differs("it frees managed memory on a thread without a context too")
@belief("alloc.free_any_context")
@own_process
def test_free_from_another_context():
    start()
    p, q = alloc(MIB), alloc(MIB)
    new_context()
    elsewhere = free(p, want=ANY)
    nowhere = in_a_thread(lambda: free(q, want=ANY))
    pick("alloc.free_any_context", (elsewhere, nowhere), (OK, INVALID_CONTEXT), (OK, OK))


@belief("alloc.stale_access_faults")
@own_process
def test_work_on_memory_that_was_freed():
    start()
    p = alloc(256 * MIB)
    f = kernel("xp_fill")
    free(p)
    launch(f, p, 1000, 1)
    pick("alloc.stale_access_faults", call("cuCtxSynchronize", want=ANY), ILLEGAL_ADDRESS)


# --- stream-ordered -----------------------------------------------------------------------------------------------


def allocated(size, s):
    pointer = C.c_uint64()
    call("cuMemAllocAsync", C.byref(pointer), size, s)
    return pointer.value


def default_pool():
    pool = C.c_void_p()
    call("cuDeviceGetDefaultMemPool", C.byref(pool), C.c_int(0))
    return pool


def pool_number(pool, attribute, value=None):
    number = C.c_uint64(value or 0)
    call("cuMemPoolGetAttribute" if value is None else "cuMemPoolSetAttribute", pool, C.c_int(attribute), C.byref(number))
    return number.value


THRESHOLD, RESERVED, USED = 4, 5, 7


@belief("alloc.free_async_order")
def test_stream_ordered_memory_of_another_stream():
    s, other, out = stream(), stream(), pinned(16)
    first = allocated(8 * MIB, s)
    gate = Gate().close(s)
    call("cuMemsetD8Async", first, C.c_ubyte(1), 8 * MIB, s)
    call("cuMemcpyDtoHAsync_v2", out, first, 16, s)
    call("cuMemFreeAsync", first, s)
    second = allocated(8 * MIB, other)
    call("cuMemsetD8Async", second, C.c_ubyte(2), 8 * MIB, other)
    gate.open()
    call("cuCtxSynchronize")
    assert C.string_at(out, 16) == bytes([1]) * 16
    assert read(second, 4) == bytes([2]) * 4
    apart = abs(second - first) >= 8 * MIB
    saw("alloc.free_async_order", 0 if apart else 1, "memory of its own" if apart else "the same memory, ordered by the driver")


def test_stream_ordered_memory_of_the_same_stream():
    s = stream()
    for value in range(1, 4):
        p = allocated(4 * MIB, s)
        call("cuMemsetD8Async", p, C.c_ubyte(value), 4 * MIB, s)
        out = (C.c_ubyte * 8)()
        call("cuMemcpyDtoHAsync_v2", out, p + 4 * MIB - 8, 8, s)
        call("cuMemFreeAsync", p, s)
        call("cuStreamSynchronize", s)
        assert bytes(out) == bytes([value]) * 8


@belief("alloc.pool_threshold")
def test_a_pool_gives_back_above_its_threshold():
    pool, s = default_pool(), stream()
    before = pool_number(pool, THRESHOLD)
    kept = []
    try:
        for threshold in (0, GIB):
            pool_number(pool, THRESHOLD, threshold)
            call("cuMemFreeAsync", allocated(BIG, s), s)
            call("cuStreamSynchronize", s)
            kept.append(pool_number(pool, RESERVED) >= BIG)
    finally:
        pool_number(pool, THRESHOLD, before)
        call("cuMemPoolTrimTo", pool, 0)
    assert pool_number(pool, USED) == 0
    saw("alloc.pool_threshold", 0 if kept == [False, True] else 1, f"kept with thresholds 0 and 1 GiB: {kept}")


def test_trim_gives_back_what_is_not_used():
    pool, s = default_pool(), stream()
    before = pool_number(pool, THRESHOLD)
    try:
        pool_number(pool, THRESHOLD, GIB)
        p, q = allocated(BIG, s), allocated(BIG, s)
        call("cuMemFreeAsync", q, s)
        call("cuStreamSynchronize", s)
        call("cuMemPoolTrimTo", pool, 0)
        assert BIG <= pool_number(pool, RESERVED) < 2 * BIG
        fill(p, 1, BIG)
    finally:
        pool_number(pool, THRESHOLD, before)


@belief("alloc.free_async_of_alloc")
def test_free_async_of_plain_memory():
    p, s = alloc(MIB), stream()
    result = call("cuMemFreeAsync", p, s, want=ANY)
    call("cuStreamSynchronize", s)
    pick("alloc.free_async_of_alloc", result, OK, INVALID)


def test_plain_free_of_stream_ordered_memory():
    s = stream()
    p = allocated(MIB, s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, s)
    call("cuStreamSynchronize", s)  # such a free waits for nothing
    free(p)
    free(p, want=INVALID)


@belief("alloc.pool_free_no_wait")
@own_process
def test_plain_free_of_stream_ordered_memory_in_use():
    start()
    s = stream()
    p = allocated(MIB, s)
    gate = Gate().close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, s)
    waited, _ = waits(lambda: free(p), gate)
    saw("alloc.pool_free_no_wait", None if waited else 0, "waited for the work" if waited else "returned at once")


def test_stream_ordered_memory_is_freed_once():
    s = stream()
    p = allocated(MIB, s)
    call("cuMemFreeAsync", p, s)
    call("cuMemFreeAsync", p, s, want=INVALID)
    call("cuMemFreeAsync", 0x1234, s, want=INVALID)


class PoolProps(C.Structure):
    _fields_ = [("type", C.c_int), ("handles", C.c_int), ("location", Location), ("win32", C.c_void_p),
                ("max_size", C.c_size_t), ("usage", C.c_ushort), ("reserved", C.c_ubyte * 54)]  # fmt: skip


def test_a_pool_of_ones_own():
    pool, s, p = C.c_void_p(), stream(), C.c_uint64()
    call("cuMemPoolCreate", C.byref(pool), C.byref(PoolProps(type=1, location=Location(DEVICE, 0))))
    call("cuMemAllocFromPoolAsync", C.byref(p), MIB, pool, s)
    call("cuMemsetD8Async", p.value, C.c_ubyte(4), MIB, s)
    call("cuStreamSynchronize", s)
    assert read(p.value, 2) == bytes([4, 4])
    assert MIB <= pool_number(pool, USED) <= 2 * MIB
    found = C.c_void_p()
    call("cuPointerGetAttribute", C.byref(found), C.c_int(17), p.value)
    assert found.value == pool.value
    call("cuMemFreeAsync", p.value, s)
    call("cuStreamSynchronize", s)
    call("cuMemPoolDestroy", pool)


def test_the_current_pool_of_a_device():
    pool, found = C.c_void_p(), C.c_void_p()
    call("cuMemPoolCreate", C.byref(pool), C.byref(PoolProps(type=1, location=Location(DEVICE, 0))))
    try:
        call("cuDeviceSetMemPool", C.c_int(0), pool)
        call("cuDeviceGetMemPool", C.byref(found), C.c_int(0))
        assert found.value == pool.value
    finally:
        call("cuDeviceSetMemPool", C.c_int(0), default_pool())
