# SPDX-License-Identifier: Apache-2.0
"""Programs that a lax simulator would let pass and a GPU would not: each must fail here, in the way that a driver fails it.

What a GPU can show as well lies in tests/conformance; this file is about what only the simulator can be asked (contents of
recycled memory, addresses after a free) and about every wrong turn of memory management.
"""

import textwrap

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

HELPERS = """
def touched(pointer, size):
    "Set every byte through the device, and wait."
    fill(pointer, 0x11, size)

def kinds(data):
    "Which of zero, old and poison a piece of memory holds."
    return {"zero" if b == 0 else "old" if b == 0x11 else "poison" if b == 0xA5 else b for b in set(data)}
"""


def strict(simgpu, code, **how):
    return drive(simgpu, HELPERS + "\n" + textwrap.dedent(code), **how)


# --- what recycled memory holds -----------------------------------------------------------------------------------


def test_untouched_memory_is_zero_and_costs_nothing(simgpu):
    strict(
        simgpu,
        """
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        start()
        before = resident()
        p = alloc(1536 * MIB)
        base, _ = backed(DEVICE, size=256 * MIB)
        free(p)
        assert resident() - before < 8 * MIB
        assert kinds(read(alloc(MIB), 4096)) == {"zero"}, "nothing was ever touched"
        """,
    )


@pytest.mark.parametrize(
    "take, give",
    [
        ("alloc(8 * MIB)", "free(p)"),
        ("pooled(8 * MIB)", "unpool(p)"),
        ("pinned(8 * MIB)", "call('cuMemFreeHost', C.c_void_p(p))"),
        ("backed(DEVICE, size=8 * MIB)", "drop(*p)"),
        ("backed(HOST_NUMA, size=8 * MIB)", "drop(*p)"),
    ],
)
def test_recycled_memory_holds_neither_old_bytes_nor_zeroes(simgpu, take, give):
    strict(
        simgpu,
        f"""
        def pooled(n):
            out = C.c_uint64()
            call("cuMemAllocAsync", C.byref(out), n, None)
            call("cuStreamSynchronize", None)
            return out.value
        def unpool(p):
            call("cuMemFreeAsync", p, None)
            call("cuStreamSynchronize", None)
        def pinned(n):
            out = C.c_void_p()
            call("cuMemHostAlloc", C.byref(out), n, 0)
            return out.value
        def drop(base, handles):
            call("cuMemUnmap", base, 8 * MIB)
            call("cuMemRelease", handles[0])
        def at(p):
            return p if isinstance(p, int) else p[0]
        start()
        p = {take}
        touched(at(p), 8 * MIB)
        {give}
        p = {take}
        assert kinds(read(at(p), 8 * MIB)) == {{"poison"}}
        {give}
        """,
    )


def test_pool_memory_is_poisoned_in_stream_order(simgpu):
    strict(
        simgpu,
        """
        start()
        s, gate, p, q = stream(), Gate(), C.c_uint64(), C.c_uint64()
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, s)
        gate.close(s)
        call("cuMemsetD8Async", p.value, C.c_ubyte(0x11), 8 * MIB, s)
        call("cuMemFreeAsync", p, s)
        call("cuMemAllocAsync", C.byref(q), 8 * MIB, s)   # the same block, at once
        assert p.value == q.value
        call("cuMemsetD8Async", q.value, C.c_ubyte(0x22), MIB, s)
        gate.open()
        call("cuStreamSynchronize", s)
        data = read(q.value, 8 * MIB)
        assert set(data[:MIB]) == {0x22}, "what came after the free stays"
        assert kinds(data[MIB:]) == {"poison"}
        """,
    )


# --- after the end ------------------------------------------------------------------------------------------------


def test_freed_memory_is_nobodys(simgpu):
    strict(
        simgpu,
        """
        start()
        host = C.create_string_buffer(64)
        p = alloc(4 * MIB)
        free(p)
        free(p, want=INVALID)
        read(p, 16, want=INVALID)
        write(p, b"x", want=INVALID)
        fill(p, 1, 16, want=INVALID)
        call("cuMemcpy", C.addressof(host), p, 16, want=INVALID)     # not pageable memory either
        call("cuMemcpy", p, C.addressof(host), 16, want=INVALID)
        call("cuMemHostRegister_v2", C.c_void_p(p), 4096, 0, want=INVALID)
        call("cuMemGetAddressRange_v2", None, None, p, want=NOT_FOUND)
        call("cuPointerGetAttribute", host, C.c_int(2), p, want=INVALID)
        import mmap
        others = [mmap.mmap(-1, 4 * MIB) for _ in range(64)]
        ours = {C.addressof(C.c_char.from_buffer(m)) for m in others}
        assert not any(a <= p < a + 4 * MIB for a in ours), "the program's own memory never gets a device address"
        """,
    )


def test_queued_work_on_freed_pool_memory_faults(simgpu):
    """cuMemFree of a pool's pointer waits for nothing (cuda.h), unlike that of other pointers."""
    strict(
        simgpu,
        """
        start()
        s, gate, p = stream(), Gate(), C.c_uint64()
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, s)
        call("cuStreamSynchronize", s)
        gate.close(s)
        call("cuMemsetD8Async", p.value, C.c_ubyte(1), 8 * MIB, s)
        free(p.value)
        gate.open()
        call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
        call("cuMemAlloc_v2", C.byref(p), 16, want=ILLEGAL_ADDRESS)
        """,
    )


def test_free_in_another_context(simgpu):
    strict(
        simgpu,
        """
        start()
        p, q, r = alloc(4 * MIB), alloc(4 * MIB), alloc(4 * MIB)
        second = C.c_void_p()
        call("cuCtxCreate_v2", C.byref(second), 0, 0)
        mine = alloc(4 * MIB)
        free(p)                                          # the pointer says whose it is
        call("cuCtxSetCurrent", None)                    # pops: the first one is current again
        free(q)
        call("cuCtxDestroy_v2", second)
        free(mine, want=INVALID)                         # went with its context
        read(mine, 16, want=INVALID)
        call("cuDevicePrimaryCtxReset_v2", 0)
        start()
        free(r, want=INVALID)
        assert used() == 0
        """,
    )


@pytest.mark.parametrize("doubt, want", [("", "INVALID_CONTEXT"), ("alloc.free_any_context", "OK")])
def test_free_without_a_context(simgpu, doubt, want):
    strict(
        simgpu,
        f"""
        start()
        p = alloc(4 * MIB)
        call("cuCtxSetCurrent", None)
        free(p, want={want})
        """,
        DOUBT=doubt,
    )


# --- virtual memory management ------------------------------------------------------------------------------------


def test_handles_are_released_once(simgpu):
    strict(
        simgpu,
        """
        start()
        base, (handle,) = backed(DEVICE)
        call("cuMemRelease", handle)
        call("cuMemRelease", handle, want=INVALID)
        other = reserve(GRANULE)
        map_at(other, GRANULE, handle, want=INVALID)     # its number is gone, though it is still mapped
        fill(base, 1, GRANULE)
        call("cuMemUnmap", base, GRANULE)
        assert used() == 0
        call("cuMemRelease", 0, want=INVALID)
        call("cuMemRelease", (1 << 64) - 1, want=INVALID)
        """,
    )


def test_ranges_end_with_mappings_and_have_no_holes(simgpu):
    strict(
        simgpu,
        """
        start()
        base = reserve(6 * GRANULE)
        for i in (0, 1, 3):
            map_at(base + i * GRANULE, GRANULE, create(GRANULE))
        grant(base, 4 * GRANULE, DEVICE, want=INVALID)               # a hole
        grant(base, 2 * GRANULE + 4096, DEVICE, want=INVALID)
        grant(base + 4096, GRANULE, DEVICE, want=INVALID)
        grant(base, 0, DEVICE, want=INVALID)
        grant(base, 2 * GRANULE, DEVICE)
        call("cuMemUnmap", base, 4 * GRANULE, want=INVALID)
        call("cuMemUnmap", base + 4096, GRANULE, want=INVALID)
        call("cuMemUnmap", base, 0, want=INVALID)
        call("cuMemUnmap", base, (1 << 64) - 1, want=INVALID)
        call("cuMemUnmap", base + 2 * GRANULE, GRANULE, want=INVALID)   # nothing there
        call("cuMemUnmap", alloc(4 * MIB), 4 * MIB, want=INVALID)       # not a mapping
        map_at(base + GRANULE, GRANULE, create(GRANULE), want=INVALID)  # mapped already
        read(base + GRANULE, GRANULE + 1, want=INVALID)
        read(base, 2 * GRANULE)
        """,
    )


def test_a_new_mapping_starts_without_access(simgpu):
    strict(
        simgpu,
        """
        start()
        base, (handle,) = backed(DEVICE)
        call("cuMemUnmap", base, GRANULE)
        map_at(base, GRANULE, handle)
        flags = C.c_ulonglong(9)
        call("cuMemGetAccess", C.byref(flags), C.byref(Location(DEVICE, 0)), base)
        assert flags.value == 0
        fill(base, 1, 16, want=INVALID)
        grant(base, GRANULE, DEVICE)
        grant(base, GRANULE, DEVICE, flags=0)                         # taken away again
        fill(base, 1, 16, want=INVALID)
        """,
    )


def test_read_only_grants_are_read_only(simgpu):
    strict(
        simgpu,
        """
        start()
        base, _ = backed(DEVICE, HOST_NUMA)
        grant(base, 2 * GRANULE, DEVICE, flags=READ)
        for at in (base, base + GRANULE):
            read(at, 16)
            write(at, b"x", want=INVALID)
            fill(at, 1, 16, want=INVALID)
        flags = C.c_ulonglong(9)
        call("cuMemGetAccess", C.byref(flags), C.byref(Location(DEVICE, 0)), base)
        assert flags.value == READ
        grant(base + GRANULE, GRANULE, HOST_NUMA)                     # the CPU may write, the device still may not
        C.memset(base + GRANULE, 7, 16)
        write(base + GRANULE, b"x", want=INVALID)
        assert read(base + GRANULE, 16) == bytes([7]) * 16
        """,
    )


def test_memory_open_to_the_host_alone(simgpu):
    strict(
        simgpu,
        """
        start()
        base = reserve(GRANULE)
        map_at(base, GRANULE, create(GRANULE, HOST_NUMA))
        grant(base, GRANULE, HOST_NUMA)
        C.memset(base, 7, 16)
        read(base, 16, want=INVALID)
        write(base, b"x", want=INVALID)
        grant(base, GRANULE, DEVICE)
        assert read(base, 16) == bytes([7]) * 16
        """,
    )


def test_grants_are_per_device(simgpu):
    strict(
        simgpu,
        """
        start()
        base = reserve(GRANULE)
        map_at(base, GRANULE, create(GRANULE))
        both = (Access * 1)(Access(Location(DEVICE, 1), READWRITE))
        call("cuMemSetAccess", base, GRANULE, both, 1)
        fill(base, 1, 16, want=INVALID)                               # device 0 holds it, and may not touch it
        start(1)
        fill(base, 1, 16)
        start(0)
        grant(base, GRANULE, DEVICE)
        fill(base, 1, 16)
        beyond = (Access * 1)(Access(Location(DEVICE, 2), READWRITE))
        call("cuMemSetAccess", base, GRANULE, beyond, 1, want=101)
        """,
        DEVICES="2",
    )


def test_reservations(simgpu):
    strict(
        simgpu,
        """
        start()
        at = C.c_uint64()
        for size, align, want in [(0, 0, INVALID), (GRANULE + 100, 0, INVALID), (GRANULE, 3, INVALID), (1 << 47, 0, OOM),
                                  (1 << 63, 0, OOM), ((1 << 64) - GRANULE, 0, OOM), (GRANULE, 1 << 47, OOM), (GRANULE, 1 << 63, OOM)]:
            call("cuMemAddressReserve", C.byref(at), size, align, 0, 0, want=want)
        call("cuMemAddressReserve", C.byref(at), GRANULE, 1 << 30, 0, 0)
        assert at.value % (1 << 30) == 0
        base = at.value
        call("cuMemAddressFree", base + GRANULE, GRANULE, want=INVALID)
        call("cuMemAddressFree", base, 2 * GRANULE, want=INVALID)
        handle = create(GRANULE)
        map_at(base, GRANULE, handle)
        call("cuMemAddressFree", base, GRANULE, want=INVALID)         # something is mapped
        call("cuMemUnmap", base, GRANULE)
        call("cuMemAddressFree", base, GRANULE)
        call("cuMemAddressFree", base, GRANULE, want=INVALID)
        map_at(base, GRANULE, handle, want=INVALID)
        """,
    )


# --- doubts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "doubt, code",
    [
        ("alloc.steps", "alloc(512); alloc(512); assert used() == 4 * MIB"),
        ("copy.checked_at_call", "read(reserve(GRANULE), 16, want=ILLEGAL_ADDRESS)"),
        ("copy.ram_mappings", "base, _ = backed(HOST_NUMA); grant(base, GRANULE, HOST_NUMA, flags=0); read(base, 1, want=INVALID); grant(base, GRANULE, HOST_NUMA); read(base, 1)"),
        ("copy.over_tiers_refused", "base, _ = backed(DEVICE, HOST_NUMA); fill(base, 1, 2 * GRANULE)"),
        (
            "copy.rectangle_extent",
            "base, _ = backed(DEVICE, HOST_NUMA, DEVICE)\n"
            "c = Copy2D(src_type=2, src_device=base, src_pitch=2 * GRANULE, dst_type=2, dst_device=alloc(MIB), dst_pitch=64, width=64, height=2)\n"
            "call('cuMemcpy2D_v2', C.byref(c))",
        ),
        ("vmm.unmap_gap_refused", "base, _ = backed(DEVICE, DEVICE, DEVICE); call('cuMemUnmap', base + GRANULE, GRANULE); call('cuMemUnmap', base, 3 * GRANULE)"),
        ("vmm.fresh_is_zero", "base, _ = backed(DEVICE); assert read(base, 16) == bytes([0xA5]) * 16"),
        (
            "vmm.granularity_2mib",
            "n = C.c_size_t(); call('cuMemGetAllocationGranularity', C.byref(n), C.byref(prop()), C.c_int(1)); assert n.value == 32 * MIB",
        ),
        (
            "pointer.range_is_reservation",
            "base, _ = backed(HOST_NUMA); at = C.c_uint64(9); call('cuMemGetAddressRange_v2', C.byref(at), None, base); assert at.value == 0",
        ),
        (
            "alloc.free_waits",
            "p, s, gate = alloc(MIB), stream(), Gate(); gate.close(s); call('cuMemsetD8Async', p, C.c_ubyte(1), MIB, s)\n"
            "threading.Timer(0.3, gate.open).start(); free(p); call('cuStreamSynchronize', s, want=ILLEGAL_ADDRESS)",
        ),
        (
            "vmm.unmap_no_drain",
            "base, _ = backed(DEVICE); s, gate = stream(), Gate(); gate.close(s); call('cuMemsetD8Async', base, C.c_ubyte(1), GRANULE, s)\n"
            "threading.Timer(0.2, gate.open).start(); call('cuMemUnmap', base, GRANULE); call('cuStreamSynchronize', s)",
        ),
    ],
)
def test_what_is_doubted_is_otherwise(simgpu, doubt, code):
    """Each of these fails without the doubt: the other branch is a different driver."""
    program = "start()\n" + code
    drive(simgpu, program, DOUBT=doubt)
    plain = simgpu(["python", "-c", "from simgpu_client import *\n" + program])
    assert plain.returncode != 0 and "AssertionError" in plain.stderr, plain


def test_registered_memory_that_the_device_only_reads(simgpu):
    strict(
        simgpu,
        """
        start()
        import mmap
        room = mmap.mmap(-1, 64 * KIB)
        at, p = C.addressof(C.c_char.from_buffer(room)), alloc(MIB)
        call("cuMemHostRegister_v2", C.c_void_p(at), 64 * KIB, 4, want=NOT_SUPPORTED)       # I/O memory: there is none
        call("cuMemHostRegister_v2", C.c_void_p(at), 64 * KIB, 64, want=INVALID)
        call("cuMemHostRegister_v2", C.c_void_p(at), 64 * KIB, 8)
        call("cuMemcpyHtoD_v2", p, C.c_void_p(at), 64 * KIB)
        call("cuMemcpyDtoH_v2", C.c_void_p(at), p, 64 * KIB, want=INVALID)
        call("cuMemHostRegister_v2", C.c_void_p(at + 4096), 4096, 0, want=712)             # registered already
        call("cuMemHostUnregister", C.c_void_p(at + 4096), want=713)                        # not where it begins
        call("cuMemHostUnregister", C.c_void_p(at))
        call("cuMemHostUnregister", C.c_void_p(at), want=713)
        call("cuMemcpyDtoH_v2", C.c_void_p(at), p, 64 * KIB)
        """,
    )


# --- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_process_killed_anywhere_leaves_nothing(simgpu, seed):
    """Both tiers are whole again, whatever the victim was doing: its slot dies with it, even in the middle of a change."""
    drive(
        simgpu,
        f"""
        import random
        random = random.Random({seed})
        busy = '''from simgpu_client import *
        start()
        print("go", flush=True)
        while True:
            p, q = alloc(8 * MIB), C.c_void_p()
            h = [create(4 * MIB, kind) for kind in (DEVICE, HOST_NUMA)]
            call("cuMemHostAlloc", C.byref(q), MIB, 0)
            free(p)
            for one in h: call("cuMemRelease", one)
            call("cuMemFreeHost", q)
        '''.replace("\\n        ", "\\n")
        start()
        for _ in range(6):
            victims = [subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE, text=True) for _ in range(2)]
            for v in victims:
                assert v.stdout.readline() == "go\\n"
            time.sleep(random.random() / 50)             # where it is hit is chance; what holds afterwards is not
            for v in victims:
                v.kill()
                v.wait()
            assert used() == 0
            p, q = alloc(64 * MIB), C.c_void_p()
            call("cuMemHostAlloc", C.byref(q), 32 * MIB, 0)
            free(p)
            call("cuMemFreeHost", q)
        """,
        vram="64M",
        ram="32M",
    )
