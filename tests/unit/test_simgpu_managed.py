# SPDX-License-Identifier: Apache-2.0
"""Managed memory's hints and questions, arrays and mipmapped arrays, and what this device refuses to have."""

from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

MANAGED = """
CPU, NOWHERE = -1, -2
def managed(n):
    p = C.c_uint64()
    call("cuMemAllocManaged", C.byref(p), n, 1)
    return p.value
def ask(attribute, p, n, count=1):
    out = (C.c_int * count)()
    call("cuMemRangeGetAttribute", out, 4 * count, C.c_int(attribute), p, n)
    return out[0] if count == 1 else list(out)
"""


def test_advice_is_kept_by_range(simgpu):
    drive(
        simgpu,
        MANAGED
        + """
start()
p = managed(8 * MIB)
assert ask(1, p, 8 * MIB) == 0 and ask(2, p, 8 * MIB) == NOWHERE and ask(4, p, 8 * MIB) == NOWHERE
call("cuMemAdvise", p + 2 * MIB, 4 * MIB, C.c_int(1), C.c_int(0))
assert [ask(1, p + at * MIB, n * MIB) for at, n in ((0, 8), (2, 4), (3, 1), (1, 2), (5, 2))] == [0, 1, 1, 0, 0]
call("cuMemAdvise", p, 2 * MIB, C.c_int(1), C.c_int(0))
assert ask(1, p, 6 * MIB) == 1, "two pieces of advice that meet"
call("cuMemAdvise", p + MIB, MIB, C.c_int(2), C.c_int(0))
assert ask(1, p, 6 * MIB) == 0 and ask(1, p, MIB) == 1
call("cuMemAdvise", p, 4 * MIB, C.c_int(3), C.c_int(CPU))
call("cuMemAdvise", p + 4 * MIB, 4 * MIB, C.c_int(3), C.c_int(1))
assert (ask(2, p, 4 * MIB), ask(2, p + 4 * MIB, 4 * MIB), ask(2, p, 8 * MIB)) == (CPU, 1, NOWHERE)
assert (ask(5, p, 4 * MIB), ask(5, p + 4 * MIB, MIB), ask(6, p + 4 * MIB, MIB)) == (HOST, DEVICE, 1)
call("cuMemAdvise", p, 8 * MIB, C.c_int(5), C.c_int(1))
call("cuMemAdvise", p, 8 * MIB, C.c_int(5), C.c_int(CPU))
assert sorted(ask(3, p, 8 * MIB, 4)) == [NOWHERE, NOWHERE, CPU, 1]
call("cuMemAdvise", p, MIB, C.c_int(6), C.c_int(1))
assert ask(3, p, 8 * MIB, 2) == [CPU, NOWHERE]
call("cuMemPrefetchAsync", p, 8 * MIB, C.c_int(1), None)
assert ask(4, p, 8 * MIB) == 1 and ask(8, p, MIB) == 1
""",
        DEVICES="2",
    )


def test_questions_about_ranges_are_checked(simgpu):
    drive(
        simgpu,
        MANAGED
        + """
start()
p, plain, out = managed(MIB), alloc(MIB), (C.c_int * 4)()
def bad(data, size, attribute, at, n):
    call("cuMemRangeGetAttribute", data, size, C.c_int(attribute), at, n, want=INVALID)
bad(out, 8, 1, p, MIB); bad(out, 3, 3, p, MIB); bad(out, 0, 3, p, MIB); bad(None, 4, 1, p, MIB)
bad(out, 4, 99, p, MIB); bad(out, 4, 1, p, MIB + 1); bad(out, 4, 1, p, 0); bad(out, 4, 1, plain, MIB)
bad(out, 4, 1, p, (1 << 64) - 1)
call("cuMemRangeGetAttributes", None, None, None, 0, p, MIB, want=INVALID)
call("cuMemAdvise", plain, MIB, C.c_int(1), C.c_int(0), want=INVALID)
call("cuMemAdvise", p, MIB, C.c_int(3), C.c_int(7), want=101)
call("cuMemAdvise", p, MIB, C.c_int(9), C.c_int(0), want=INVALID)
call("cuMemPrefetchAsync", p, MIB, C.c_int(7), None, want=101)
call("cuMemPrefetchAsync", plain, MIB, C.c_int(0), None, want=INVALID)
call("cuStreamAttachMemAsync", None, p, 0, C.c_uint(3), want=INVALID)
""",
    )


def test_batches_of_prefetches_and_discards(simgpu):
    drive(
        simgpu,
        MANAGED
        + """
start()
p, s = [managed(4 * MIB) for _ in range(3)], stream()
at, sizes = (C.c_uint64 * 3)(*p), (C.c_size_t * 3)(*[4 * MIB] * 3)
places, starts = (Location * 2)(Location(HOST, 0), Location(DEVICE, 0)), (C.c_size_t * 2)(0, 2)
def move(count=3, starts=starts, n=2, flags=0, stream=s, want=OK, name="cuMemPrefetchBatchAsync"):
    call(name, at, sizes, count, places, starts, n, flags, stream, want=want)
move()
assert [ask(4, q, 4 * MIB) for q in p] == [CPU, CPU, 0]
for wrong in (dict(count=0), dict(n=0), dict(n=4), dict(flags=1), dict(stream=None), dict(starts=(C.c_size_t * 2)(1, 2)),
              dict(starts=(C.c_size_t * 2)(0, 3)), dict(starts=(C.c_size_t * 2)(0, 0))):
    move(**wrong, want=INVALID)
where = (Location * 2)()
call("cuStreamSynchronize", s)
call("cuMemGetLocationInfo", p[0], 4 * MIB, 2 * MIB, 0, where)
assert [l.type for l in where] == [HOST, HOST]
call("cuMemGetLocationInfo", p[0], 4 * MIB, 8 * MIB, 0, where, want=INVALID)
for q in p:
    C.memset(q, 0x33, 4 * MIB)
call("cuMemDiscardBatchAsync", at, sizes, 2, 0, s)
call("cuStreamSynchronize", s)
assert set(C.string_at(p[0], 4096)) == {0xA5}, "what was discarded is not read back"
assert set(C.string_at(p[2], 4096)) == {0x33}
move(name="cuMemDiscardAndPrefetchBatchAsync")
call("cuStreamSynchronize", s)
assert set(C.string_at(p[2], 4096)) == {0xA5} and ask(4, p[2], MIB) == 0
""",
    )


ARRAYS = """
class Desc(C.Structure):
    _fields_ = [("width", C.c_size_t), ("height", C.c_size_t), ("depth", C.c_size_t), ("format", C.c_int),
                ("channels", C.c_uint), ("flags", C.c_uint)]
"""


def test_mipmapped_arrays(simgpu):
    drive(
        simgpu,
        ARRAYS
        + """
start()
m, level, d = C.c_void_p(), C.c_void_p(), Desc()
call("cuMipmappedArrayCreate", C.byref(m), C.byref(Desc(20, 12, 0, 1, 1, 0)), C.c_uint(99))   # clamped: 20, 10, 5, 2, 1
seen = []
for i in range(5):
    call("cuMipmappedArrayGetLevel", C.byref(level), m, C.c_uint(i))
    call("cuArray3DGetDescriptor_v2", C.byref(d), level)
    seen.append((d.width, d.height))
assert seen == [(20, 12), (10, 6), (5, 3), (2, 1), (1, 1)]
call("cuMipmappedArrayGetLevel", C.byref(level), m, C.c_uint(5), want=INVALID)
call("cuMipmappedArrayGetLevel", C.byref(level), m, C.c_uint(1))
call("cuMemcpyHtoA_v2", level, 0, b"x" * 60, 60)
call("cuMemcpyHtoA_v2", level, 1, b"x" * 60, 60, want=INVALID)
call("cuArrayDestroy", level, want=INVALID_HANDLE)
call("cuArrayGetPlane", C.byref(C.c_void_p()), level, C.c_uint(0), want=INVALID)
call("cuMipmappedArrayDestroy", m)
call("cuMipmappedArrayDestroy", m, want=INVALID_HANDLE)
call("cuMemcpyHtoA_v2", level, 0, b"x" * 60, 60, want=INVALID_HANDLE)
assert used() == 0
call("cuMipmappedArrayCreate", C.byref(m), C.byref(Desc(1 << 20, 1 << 20, 0, 0x20, 4, 0)), C.c_uint(4), want=OOM)
call("cuMipmappedArrayCreate", C.byref(m), C.byref(Desc(16, 0, 0, 0x77, 1, 0)), C.c_uint(1), want=INVALID)
call("cuArray3DCreate_v2", C.byref(m), C.byref(Desc(16, 16, 0, 1, 1, 0x40)), want=NOT_SUPPORTED)       # sparse
assert used() == 0
""",
    )


def test_what_this_device_does_not_have(simgpu):
    """The attribute says no, and so does the entry, by itself: none of these is a stub."""
    result = drive(
        simgpu,
        """
        start()
        def attribute(which):
            out = C.c_int(9)
            call("cuDeviceGetAttribute", C.byref(out), C.c_int(which), C.c_int(0))
            return out.value
        assert [attribute(a) for a in (132, 119, 112, 136, 117)] == [0] * 5   # multicast, pool handles, sparse, decompression, RDMA
        out, blob = C.c_void_p(), C.create_string_buffer(256)
        call("cuMulticastCreate", C.byref(out), blob, want=NOT_SUPPORTED)
        call("cuMulticastGetGranularity", C.byref(out), blob, C.c_int(0), want=NOT_SUPPORTED)
        call("cuMulticastBindMem", 1, 0, 1, 0, GRANULE, 0, want=INVALID)
        pool = C.c_void_p()
        call("cuDeviceGetDefaultMemPool", C.byref(pool), 0)
        call("cuMemPoolExportToShareableHandle", C.byref(out), pool, C.c_int(1), 0, want=INVALID)
        call("cuMemPoolImportFromShareableHandle", C.byref(out), None, C.c_int(1), 0, want=NOT_SUPPORTED)
        call("cuMemMapArrayAsync", blob, C.c_uint(1), None, want=NOT_SUPPORTED)
        call("cuMemBatchDecompressAsync", blob, 1, C.c_uint(0), None, None, want=NOT_SUPPORTED)
        call("cuFlushGPUDirectRDMAWrites", C.c_int(0), C.c_int(100), want=NOT_SUPPORTED)
        call("cuMemGetHandleForAddressRange", C.byref(out), alloc(GRANULE), GRANULE, C.c_int(1), 0, want=NOT_SUPPORTED)
        assert attribute(124) == attribute(128) == 0                           # dma-buf, fabric
        create(GRANULE, handle_types=8, want=NOT_SUPPORTED)
        create(GRANULE, handle_types=64, want=INVALID)
        call("cuMemImportFromShareableHandle", C.byref(out), None, C.c_int(8), want=NOT_SUPPORTED)
        call("cuMemImportFromShareableHandle", C.byref(out), None, C.c_int(64), want=INVALID)
        call("cuMemExportToShareableHandle", C.byref(out), create(GRANULE, handle_types=1), C.c_int(8), 0, want=INVALID)
        """,
    )
    assert "not implemented" not in result.stderr
