# SPDX-License-Identifier: Apache-2.0
"""Copies and memsets of every form: the bytes, the refusals, and what waits for what."""

import pytest
from conform import belief, entry, lacks, own_process, pick, ram, saw
from cudaclient import *  # noqa: F403

HOST_SIDE, DEVICE_SIDE, ARRAY_SIDE, UNIFIED = 1, 2, 3, 4


def sample(size, seed=1):
    return bytes((i * 7 + seed * 13 + (i >> 8)) & 255 for i in range(size))


def text_at(data):
    return C.cast(C.c_char_p(data), C.c_void_p)


# --- one dimension ------------------------------------------------------------------------------------------------


def test_there_and_back():
    p, data = alloc(MIB), sample(100_000)
    write(p + 13, data)
    assert read(p + 13, len(data)) == data


def test_between_device_allocations():
    p, q, data = alloc(MIB), alloc(MIB), sample(5000)
    write(p, data)
    call("cuMemcpyDtoD_v2", q + 1, p, len(data))
    assert read(q + 1, len(data)) == data


@pytest.mark.parametrize("suffix", ["", "Async"])
def test_the_direction_is_inferred(suffix):
    p, data, out = alloc(MIB), sample(4096), (C.c_ubyte * 4096)()
    s = [stream()] if suffix else []
    source = C.create_string_buffer(data, 4096)
    call("cuMemcpy" + suffix, p, C.addressof(source), 4096, *s)
    call("cuMemcpy" + suffix, p + 8192, p, 4096, *s)
    call("cuMemcpy" + suffix, C.addressof(out), p + 8192, 4096, *s)
    call("cuCtxSynchronize")
    assert bytes(out) == data


def test_asynchronous_copies_keep_the_order_of_their_stream():
    p, s, host, out = alloc(MIB), stream(), pinned(MIB), pinned(MIB)
    C.memset(host, 7, MIB)
    call("cuMemcpyHtoDAsync_v2", p, host, MIB, s)
    call("cuMemsetD8Async", p + 100, C.c_ubyte(9), 50, s)
    call("cuMemcpyDtoHAsync_v2", out, p, MIB, s)
    call("cuStreamSynchronize", s)
    assert C.string_at(out, 200) == bytes([7]) * 100 + bytes([9]) * 50 + bytes([7]) * 50


@pytest.mark.parametrize("width, value", [(8, 0xAB), (16, 0xABCD), (32, 0xDEADBEEF)])
@pytest.mark.parametrize("suffix", ["", "Async"])
def test_memset(width, value, suffix):
    p, s = alloc(4096), stream()
    fill(p, 0, 4096)
    name = f"cuMemsetD{width}" + (suffix or "_v2")
    call(name, p + 64, {8: C.c_ubyte, 16: C.c_ushort, 32: C.c_uint}[width](value), 101, *([s] if suffix else []))
    call("cuCtxSynchronize")
    size = width // 8
    assert read(p, 4096) == bytes(64) + value.to_bytes(size, "little") * 101 + bytes(4096 - 64 - 101 * size)


@pytest.mark.parametrize("width, value", [(8, 0xAB), (16, 0xABCD), (32, 0xDEADBEEF)])
@pytest.mark.parametrize("suffix", ["", "Async"])
def test_memset_of_a_rectangle(width, value, suffix):
    p, s, size, pitch = alloc(64 * KIB), stream(), width // 8, 512
    fill(p, 0, 64 * KIB)
    name = f"cuMemsetD2D{width}" + (suffix or "_v2")
    call(name, p, pitch, {8: C.c_ubyte, 16: C.c_ushort, 32: C.c_uint}[width](value), 21, 5, *([s] if suffix else []))
    call("cuCtxSynchronize")
    row = value.to_bytes(size, "little") * 21
    assert read(p, 6 * pitch) == (row + bytes(pitch - len(row))) * 5 + bytes(pitch)


def test_memset_wants_aligned_addresses():
    p = alloc(4096)
    call("cuMemsetD16_v2", p + 1, C.c_ushort(1), 4, want=INVALID)
    call("cuMemsetD32_v2", p + 2, C.c_uint(1), 4, want=INVALID)


def test_nothing_is_copied_of_no_bytes():
    p = alloc(4096)
    assert read(p, 0) == b""
    write(p, b"")
    call("cuMemcpyDtoD_v2", p, p + 64, 0)


# --- rectangles and boxes -----------------------------------------------------------------------------------------


def rectangle(**fields):
    return C.byref(Copy2D(**fields))


@pytest.mark.parametrize("name", ["cuMemcpy2D_v2", "cuMemcpy2DUnaligned_v2", "cuMemcpy2DAsync_v2"])
def test_rectangles(name):
    p, width, height, pitch = alloc(64 * KIB), 100, 8, 512
    data, s = sample(width * height), stream()
    more = [s] if "Async" in name else []
    out = C.create_string_buffer(width * height)
    call(name, rectangle(src_type=HOST_SIDE, src_host=text_at(data), src_pitch=width, dst_type=DEVICE_SIDE, dst_device=p,
                         dst_pitch=pitch, width=width, height=height), *more)  # fmt: skip
    call(name, rectangle(src_type=DEVICE_SIDE, src_device=p, src_pitch=pitch, src_x=10, src_y=2, dst_type=DEVICE_SIDE,
                         dst_device=p + 32 * KIB, dst_pitch=pitch, dst_x=3, dst_y=1, width=50, height=4), *more)  # fmt: skip
    call(name, rectangle(src_type=DEVICE_SIDE, src_device=p, src_pitch=pitch, dst_type=HOST_SIDE,
                         dst_host=C.addressof(out), dst_pitch=width, width=width, height=height), *more)  # fmt: skip
    call("cuCtxSynchronize")
    assert out.raw == data
    for row in range(4):
        at = (row + 2) * width + 10
        assert read(p + 32 * KIB + (row + 1) * pitch + 3, 50) == data[at : at + 50]


def test_rectangles_with_unified_addresses():
    p, host = alloc(8192), pinned(8192)
    C.memmove(host, sample(4096), 4096)
    call("cuMemcpy2D_v2", rectangle(src_type=UNIFIED, src_device=host, src_pitch=64, dst_type=UNIFIED, dst_device=p,
                                    dst_pitch=128, width=64, height=10))  # fmt: skip
    assert read(p + 128 * 9, 64) == sample(4096)[64 * 9 : 64 * 10]


@pytest.mark.parametrize("wrong", [dict(src_pitch=50), dict(dst_pitch=50), dict(dst_type=9), dict(dst_device=0x1000), dict(height=1 << 40)],
                         ids=str)  # fmt: skip
def test_rectangles_that_are_none(wrong):
    p = alloc(64 * KIB)
    fields = dict(src_type=DEVICE_SIDE, src_device=p, src_pitch=512, dst_type=DEVICE_SIDE, dst_device=p + 32 * KIB, dst_pitch=512,
                  width=100, height=4)  # fmt: skip
    call("cuMemcpy2D_v2", rectangle(**{**fields, **wrong}), want=INVALID)


class Copy3D(C.Structure):
    _fields_ = [
        (side + name, kind)
        for side in ("src_", "dst_")
        for name, kind in (("x", C.c_size_t), ("y", C.c_size_t), ("z", C.c_size_t), ("lod", C.c_size_t), ("type", C.c_int),
                           ("host", C.c_void_p), ("device", C.c_uint64), ("array", C.c_void_p), ("reserved", C.c_void_p),
                           ("pitch", C.c_size_t), ("rows", C.c_size_t))
    ] + [("width", C.c_size_t), ("height", C.c_size_t), ("depth", C.c_size_t)]  # fmt: skip


@pytest.mark.parametrize("name", ["cuMemcpy3D_v2", "cuMemcpy3DAsync_v2"])
def test_boxes(name):
    p, data, out = alloc(64 * KIB), sample(10 * 6 * 4), C.create_string_buffer(10 * 6 * 4)
    more = [stream()] if "Async" in name else []
    there = Copy3D(src_type=HOST_SIDE, src_host=text_at(data), src_pitch=10, src_rows=6, dst_type=DEVICE_SIDE, dst_device=p,
                   dst_pitch=64, dst_rows=8, width=10, height=6, depth=4)  # fmt: skip
    back = Copy3D(src_type=DEVICE_SIDE, src_device=p, src_pitch=64, src_rows=8, dst_type=HOST_SIDE, dst_host=C.addressof(out),
                  dst_pitch=10, dst_rows=6, width=10, height=6, depth=4)  # fmt: skip
    call(name, C.byref(there), *more)
    call(name, C.byref(back), *more)
    call("cuCtxSynchronize")
    assert out.raw == data
    assert read(p + 64 * 8 * 3 + 64 * 5, 10) == data[-10:]


class ArrayDesc(C.Structure):
    _fields_ = [("width", C.c_size_t), ("height", C.c_size_t), ("format", C.c_int), ("channels", C.c_uint)]


def test_arrays():
    array, p, data = C.c_void_p(), alloc(4096), sample(100 * 4)
    call("cuArrayCreate_v2", C.byref(array), C.byref(ArrayDesc(25, 4, 0x20, 1)))  # 25 floats, 4 rows
    call("cuMemcpy2D_v2", rectangle(src_type=HOST_SIDE, src_host=text_at(data), src_pitch=100, dst_type=ARRAY_SIDE, dst_array=array,
                                    width=100, height=4))  # fmt: skip
    call("cuMemcpy2D_v2", rectangle(src_type=ARRAY_SIDE, src_array=array, dst_type=DEVICE_SIDE, dst_device=p, dst_pitch=100,
                                    width=100, height=4))  # fmt: skip
    assert read(p, 400) == data
    found = ArrayDesc()
    call("cuArrayGetDescriptor_v2", C.byref(found), array)
    assert (found.width, found.height, found.format, found.channels) == (25, 4, 0x20, 1)


def test_a_linear_array():
    array, p, out = C.c_void_p(), alloc(4096), C.create_string_buffer(64)
    call("cuArrayCreate_v2", C.byref(array), C.byref(ArrayDesc(64, 0, 0x01, 1)))
    call("cuMemcpyHtoA_v2", array, 0, sample(64), 64)
    call("cuMemcpyAtoD_v2", p, array, 0, 64)
    assert read(p, 64) == sample(64)
    fill(p, 5, 64)
    call("cuMemcpyDtoA_v2", array, 32, p, 32)
    call("cuMemcpyAtoH_v2", out, array, 0, 64)
    assert out.raw == sample(64)[:32] + bytes([5]) * 32


# --- batches ------------------------------------------------------------------------------------------------------


class CopyAttributes(C.Structure):
    _fields_ = [("order", C.c_int), ("source", Location), ("target", Location), ("flags", C.c_uint)]


def batch(pairs, s, want=OK):
    """cuMemcpyBatchAsync of (target, source, size); its second form came with 13.0."""
    name = "cuMemcpyBatchAsync_v2" if version() >= 13000 else entry("cuMemcpyBatchAsync")
    targets, sources, sizes = ((C.c_uint64 * len(pairs))(*column) for column in zip(*pairs))
    attributes, first, failed = CopyAttributes(order=1), C.c_size_t(0), C.c_size_t()
    more = [] if name.endswith("_v2") else [C.byref(failed)]
    return call(name, targets, sources, sizes, len(pairs), C.byref(attributes), C.byref(first), 1, *more, s, want=want)


def test_a_batch_of_copies():
    if version() < 12080:
        lacks("cuMemcpyBatchAsync came with 12.8")
    p, host, s = alloc(MIB), pinned(MIB), stream()
    C.memmove(host, sample(8192), 8192)
    batch([(p, host, 4096), (p + 512 * KIB, host + 4096, 4096)], s)
    batch([(host + 512 * KIB, p + 512 * KIB, 4096)], s)
    call("cuStreamSynchronize", s)
    assert C.string_at(host + 512 * KIB, 4096) == sample(8192)[4096:] and read(p, 4096) == sample(8192)[:4096]


@belief("copy.batch_refuses_legacy")
def test_a_batch_on_the_legacy_stream():
    if version() < 12080:
        lacks("cuMemcpyBatchAsync came with 12.8")
    p, host = alloc(4096), pinned(4096)
    results = [batch([(p, host, 4096)], s, want=ANY) for s in (None, C.c_void_p(1))]
    pick("copy.batch_refuses_legacy", results, [INVALID] * 2)


# --- what is refused ----------------------------------------------------------------------------------------------


@own_process
@belief("copy.checked_at_call")
def test_operands_that_are_none_are_refused_at_the_call():
    start()
    s, p, host = stream(), alloc(MIB), pinned(MIB)
    base = reserve(4 * GRANULE)
    for i in (0, 2, 3):
        map_at(base + i * GRANULE, GRANULE, create(GRANULE))
    for i in (0, 2):
        grant(base + i * GRANULE, GRANULE, DEVICE)
    operands = {
        "past its end": (p + MIB - 16, 32),
        "into a hole": (base + GRANULE - 16, 32),
        "over a hole": (base, 3 * GRANULE),
        "into what is not granted": (base + 3 * GRANULE - 16, 32),
        "not granted": (base + 3 * GRANULE, 16),
    }
    seen = {}
    for name, (at, size) in operands.items():
        seen[name] = [
            call("cuMemsetD8Async", at, C.c_ubyte(1), size, s, want=ANY),
            call("cuMemcpyDtoHAsync_v2", host, at, size, s, want=ANY) if size <= MIB else INVALID,
        ]
    later = call("cuCtxSynchronize", want=ANY)
    assert later != OK or OK not in sum(seen.values(), []), seen
    saw("copy.checked_at_call", 0 if set(sum(seen.values(), [])) == {INVALID} and later == OK else 1, f"{seen}, then {later}")


def test_host_memory_is_no_device_operand():
    p, host = alloc(MIB), C.create_string_buffer(16)
    call("cuMemcpyDtoD_v2", p, C.addressof(host), 16, want=INVALID)
    call("cuMemsetD8_v2", C.addressof(host), C.c_ubyte(1), 16, want=INVALID)
    fill(0, 1, 1, want=INVALID)
    call("cuMemcpyHtoD_v2", p, None, 16, want=INVALID)
    call("cuMemcpyDtoD_v2", p, p + 4096, (1 << 64) - 4096, want=INVALID)


# --- operands over several mappings -------------------------------------------------------------------------------


@belief("copy.over_device_mappings")
def test_an_operand_over_device_mappings():
    base, _ = backed(DEVICE, DEVICE, DEVICE)
    data = sample(64)
    results = [
        call("cuMemcpyHtoD_v2", base + GRANULE - 32, data, 64, want=ANY),
        call("cuMemsetD8_v2", base + 2 * GRANULE - 100, C.c_ubyte(3), 200, want=ANY),
        call("cuMemcpyDtoD_v2", base + GRANULE + 64, base + GRANULE - 32, 64, want=ANY),
    ]
    call("cuCtxSynchronize")
    if results == [OK] * 3:
        assert read(base + GRANULE + 64, 64) == data and read(base + 2 * GRANULE - 100, 200) == bytes([3]) * 200
    pick("copy.over_device_mappings", results, [OK] * 3, [INVALID] * 3)


@own_process
@belief("copy.ram_mappings")
def test_every_form_on_a_ram_mapping():
    start()
    kind = ram()
    results = {name: code for name, code in every_form(kind, cpu=True).items() if code}
    assert not results, f"with access of the CPU too: {results}"
    results = {name: code for name, code in every_form(kind, cpu=False).items() if code}
    saw("copy.ram_mappings", 1 if results else 0, f"with access of the device alone: {results or 'all forms work'}")


def every_form(kind, cpu):
    """Each copy and memset on RAM mappings: its result, and the bytes when all went through."""
    base = reserve(2 * GRANULE)
    for at in (base, base + GRANULE):
        map_at(at, GRANULE, create(GRANULE, kind))
    grant(base, 2 * GRANULE, DEVICE, *([kind] if cpu else []))
    p, s, data, out = alloc(MIB), stream(), sample(4096), (C.c_ubyte * 4096)()
    host = pinned(4096)
    C.memmove(host, data, 4096)
    forms = {
        "HtoD": lambda: call("cuMemcpyHtoD_v2", base, data, 4096, want=ANY),
        "DtoD into VRAM": lambda: call("cuMemcpyDtoD_v2", p, base, 4096, want=ANY),
        "DtoD out of VRAM": lambda: call("cuMemcpyDtoD_v2", base + 8192, p, 4096, want=ANY),
        "DtoD inside RAM": lambda: call("cuMemcpyDtoD_v2", base + GRANULE, base, 4096, want=ANY),
        "HtoD async": lambda: call("cuMemcpyHtoDAsync_v2", base + 16384, host, 4096, s, want=ANY),
        "DtoD async": lambda: call("cuMemcpyDtoDAsync_v2", base + 32768, base + 16384, 4096, s, want=ANY),
        "inferred": lambda: call("cuMemcpyAsync", base + 65536, base + 32768, 4096, s, want=ANY),
        "rectangle": lambda: call("cuMemcpy2D_v2", rectangle(src_type=DEVICE_SIDE, src_device=base, src_pitch=64, dst_type=DEVICE_SIDE,
                                  dst_device=base + 131072, dst_pitch=64, width=64, height=64), want=ANY),
        "memset 8": lambda: call("cuMemsetD8_v2", base + 262144, C.c_ubyte(7), 4096, want=ANY),
        "memset 32 async": lambda: call("cuMemsetD32Async", base + 300032, C.c_uint(0x07070707), 1024, s, want=ANY),
        "DtoH": lambda: call("cuMemcpyDtoH_v2", out, base + 65536, 4096, want=ANY),
    }  # fmt: skip
    results = {}
    for name, form in forms.items():
        results[name] = form()
        results[name] = results[name] or call("cuCtxSynchronize", want=ANY)
    if set(results.values()) == {OK}:
        for at in (0, 8192, GRANULE, 16384, 32768, 65536, 131072):
            assert read(base + at, 4096) == data, f"at {at}"
        assert read(p, 4096) == data and bytes(out) == data
        assert read(base + 262144, 4096) == read(base + 300032, 4096) == bytes([7]) * 4096
    return results


@belief("copy.over_tiers_refused")
def test_an_operand_over_both_tiers():
    kind = ram()
    base, _ = backed(DEVICE, kind, DEVICE)
    flat = alloc(3 * GRANULE)
    fill(flat, 1, 3 * GRANULE)
    results = [
        call("cuMemsetD8_v2", base, C.c_ubyte(9), 2 * GRANULE, want=ANY),
        call("cuMemcpyHtoD_v2", base + 2 * GRANULE - 8, sample(16), 16, want=ANY),
        call("cuMemcpyDtoD_v2", base, flat, 3 * GRANULE, want=ANY),
        call("cuMemcpyDtoD_v2", flat, base, 3 * GRANULE, want=ANY),
    ]
    call("cuCtxSynchronize")
    if results == [OK] * 4:
        assert read(base, 4) == read(base + 3 * GRANULE - 4, 4) == bytes([1]) * 4
    pick("copy.over_tiers_refused", results, [INVALID] * 4, [OK] * 4)


@belief("copy.rectangle_extent")
def test_a_rectangle_whose_rows_lie_in_one_tier_each():
    kind = ram()
    base, _ = backed(DEVICE, kind, DEVICE)
    flat = alloc(4096)
    results = [
        call("cuMemcpy2D_v2", rectangle(src_type=DEVICE_SIDE, src_device=base, src_pitch=GRANULE, dst_type=DEVICE_SIDE, dst_device=flat,
                                        dst_pitch=64, width=64, height=3), want=ANY),
        call("cuMemsetD2D8_v2", base, GRANULE, C.c_ubyte(5), 64, 3, want=ANY),
    ]  # fmt: skip
    call("cuCtxSynchronize")
    if results == [OK] * 2:
        assert [read(base + i * GRANULE, 64) for i in range(3)] == [bytes([5]) * 64] * 3
    pick("copy.rectangle_extent", results, [INVALID] * 2, [OK] * 2)


# --- what waits ---------------------------------------------------------------------------------------------------


@belief("copy.async_returns_at_once")
@pytest.mark.parametrize("form", ["RAM to VRAM", "VRAM to RAM", "RAM to RAM", "memset RAM"])
def test_asynchronous_work_on_ram_mappings_returns_at_once(form):
    kind = ram()
    base, _ = backed(kind, kind)
    p, s = alloc(GRANULE), stream()
    gate = Gate().close(s)
    work = {
        "RAM to VRAM": lambda: call("cuMemcpyDtoDAsync_v2", p, base, GRANULE, s),
        "VRAM to RAM": lambda: call("cuMemcpyDtoDAsync_v2", base, p, GRANULE, s),
        "RAM to RAM": lambda: call("cuMemcpyDtoDAsync_v2", base, base + GRANULE, GRANULE, s),
        "memset RAM": lambda: call("cuMemsetD8Async", base, C.c_ubyte(1), GRANULE, s),
    }[form]
    waited, _ = waits(work, gate)
    saw("copy.async_returns_at_once", int(waited), f"{form}: {'returned when done' if waited else 'returned at once'}")


@pytest.mark.parametrize("form", ["VRAM to VRAM", "pinned to VRAM", "VRAM to pinned", "memset VRAM"])
def test_asynchronous_work_returns_at_once(form):
    p, q, host, s = alloc(MIB), alloc(MIB), pinned(MIB), stream()
    gate = Gate().close(s)
    work = {
        "VRAM to VRAM": lambda: call("cuMemcpyDtoDAsync_v2", p, q, MIB, s),
        "pinned to VRAM": lambda: call("cuMemcpyHtoDAsync_v2", p, host, MIB, s),
        "VRAM to pinned": lambda: call("cuMemcpyDtoHAsync_v2", host, p, MIB, s),
        "memset VRAM": lambda: call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, s),
    }[form]
    waited, _ = waits(work, gate)
    assert not waited


@belief("copy.sync_waits")
def test_which_synchronous_copies_wait():
    p, q, host = alloc(MIB), alloc(MIB), pinned(MIB)
    forms = {
        "VRAM to host": lambda: read(p, 16),
        "VRAM to VRAM": lambda: call("cuMemcpyDtoD_v2", p, q, MIB),
        "memset of VRAM": lambda: call("cuMemsetD8_v2", p, C.c_ubyte(1), MIB),
        "memset of pinned memory": lambda: call("cuMemsetD8_v2", host, C.c_ubyte(1), MIB),
    }
    seen = {}
    for name, work in forms.items():
        gate = Gate().close(stream(0))  # the legacy stream, on which these run, comes behind blocking streams
        seen[name], _ = waits(work, gate)
        call("cuCtxSynchronize")
    assert seen["VRAM to host"]
    saw("copy.sync_waits", 0 if list(seen.values()) == [True, False, False, True] else 1, seen)


@belief("copy.pageable_done_at_return")
def test_asynchronous_copies_of_pageable_memory():
    p, s, out = alloc(MIB), stream(), C.create_string_buffer(MIB)
    source = C.create_string_buffer(b"a" * MIB, MIB)
    call("cuMemcpyHtoDAsync_v2", p, source, MIB, s)
    C.memset(source, ord("b"), MIB)
    call("cuStreamSynchronize", s)
    taken = read(p, MIB) == b"a" * MIB
    call("cuMemcpyDtoHAsync_v2", out, p, MIB, s)
    arrived = out.raw == b"a" * MIB
    call("cuStreamSynchronize", s)
    pick("copy.pageable_done_at_return", (taken, arrived), (True, True))
