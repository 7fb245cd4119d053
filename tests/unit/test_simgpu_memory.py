# SPDX-License-Identifier: Apache-2.0
"""The simulated driver's memory where it goes beyond what any GPU must do (tests/conformance asks that): settings, budgets between
processes, handles and copies in detail."""
from pathlib import Path

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)


# --- virtual memory management ------------------------------------------------------------------------------------

def test_vmm_round_trip(simgpu):
    drive(simgpu, """
        start()
        base, (handle,) = backed(DEVICE)
        fill(base, 0x5A, GRANULE)
        assert read(base, 64) == b"\\x5A" * 64
        assert used() == GRANULE
        call("cuMemUnmap", base, GRANULE)
        assert used() == GRANULE, "released and unmapped, not one of them"
        call("cuMemRelease", handle)
        assert used() == 0
        call("cuMemAddressFree", base, GRANULE)
    """)


def test_released_handle_lives_while_mapped(simgpu):
    drive(simgpu, """
        start()
        base, (handle,) = backed(DEVICE)
        call("cuMemRelease", handle)
        assert used() == GRANULE
        fill(base, 1, GRANULE)
        call("cuMemRelease", handle, want=INVALID)
        again = C.c_uint64()
        call("cuMemRetainAllocationHandle", C.byref(again), C.c_void_p(base + 4096))
        assert again.value == handle
        call("cuMemUnmap", base, GRANULE)
        assert used() == GRANULE
        call("cuMemRelease", handle)
        assert used() == 0
    """)


def test_unmap_and_set_access_take_whole_mappings(simgpu):
    drive(simgpu, """
        start()
        base = reserve(4 * GRANULE)
        for i in range(2):
            map_at(base + 2 * i * GRANULE, 2 * GRANULE, create(2 * GRANULE))
        grant(base, GRANULE, DEVICE, want=INVALID)
        grant(base + GRANULE, 2 * GRANULE, DEVICE, want=INVALID)
        grant(base, 4 * GRANULE, DEVICE)
        call("cuMemUnmap", base, GRANULE, want=INVALID)
        call("cuMemUnmap", base + GRANULE, 2 * GRANULE, want=INVALID)
        call("cuMemAddressFree", base, 4 * GRANULE, want=INVALID)    # still mapped
        fill(base, 1, 4 * GRANULE)                                   # many handles, one operand
        call("cuMemUnmap", base, 4 * GRANULE)
        call("cuMemUnmap", base, 4 * GRANULE, want=INVALID)
        call("cuMemAddressFree", base, GRANULE, want=INVALID)
        call("cuMemAddressFree", base, 4 * GRANULE)
    """)


def test_create_refuses_bad_requests(simgpu):
    drive(simgpu, """
        start()
        create(0, want=INVALID)
        create(GRANULE + 4096, want=INVALID)
        create(GRANULE, HOST_NUMA_CURRENT, want=INVALID)
        create(GRANULE, HOST_NUMA, -1, want=INVALID)
        create(GRANULE, DEVICE, 5, want=101)
        create(1 << 40, want=OOM)
        assert used() == 0
    """)


@pytest.mark.parametrize("mode, numa, host", [("numa", 0, 1), ("host", 1, 0), ("none", 801, 1)])
def test_host_backends(simgpu, mode, numa, host):
    drive(simgpu, f"""
        start()
        create(GRANULE, HOST_NUMA, want={numa})
        create(GRANULE, HOST, want={host})
        create(GRANULE)
    """, HOST_VMM=mode)


def test_host_backend_that_crashes(simgpu):
    result = simgpu(["python", "-c", "from simgpu_client import *; start(); create(GRANULE, HOST_NUMA)"], HOST_VMM="crash")
    assert result.returncode == -11, result


@pytest.mark.no_sanitizer("shadow memory leaves programs less than 2 TiB of address space", only="thread")
def test_huge_reservations(simgpu):
    drive(simgpu, """
        start()
        base = reserve(1 << 40)
        map_at(base + (1 << 39), GRANULE, create(GRANULE))
        grant(base + (1 << 39), GRANULE, DEVICE)
        fill(base + (1 << 39), 1, GRANULE)
        reserve(1 << 60, want=OOM)
        reserve((1 << 64) - 4096, want=OOM)
        reserve(0, want=INVALID)
    """)


def test_thousands_of_chunks_need_no_descriptors(simgpu):
    drive(simgpu, """
        start()
        n = 2000
        base = reserve(n * GRANULE)
        for i in range(n):
            map_at(base + i * GRANULE, GRANULE, create(GRANULE))
        grant(base, n * GRANULE, DEVICE)
        write(base + (n - 1) * GRANULE, b"end")
        assert read(base + (n - 1) * GRANULE, 3) == b"end"
        assert len(os.listdir("/proc/self/fd")) < 64
    """, vram="8G")


def test_export_and_import_between_processes(simgpu):
    drive(simgpu, """
        import socket
        ours, theirs = socket.socketpair()
        if os.fork():                                                # before CUDA: it does not survive a fork
            ours.close()
            start()
            base, handle = reserve(GRANULE), create(GRANULE, handle_types=1)
            map_at(base, GRANULE, handle); grant(base, GRANULE, DEVICE)
            write(base, b"shared")
            fd = C.c_int()
            call("cuMemExportToShareableHandle", C.byref(fd), handle, 1, 0)
            socket.send_fds(theirs, [b"x"], [fd.value])
            assert theirs.recv(1) == b"y"
            assert read(base, 6) == b"SHARED"
            assert used() == GRANULE
            plain, out = create(GRANULE), C.c_int()
            call("cuMemExportToShareableHandle", C.byref(out), plain, 1, 0, want=INVALID)
            assert os.wait()[1] == 0
        else:
            theirs.close()
            start()
            fd = socket.recv_fds(ours, 1, 1)[1][0]
            handle, base = C.c_uint64(), reserve(GRANULE)
            call("cuMemImportFromShareableHandle", C.byref(handle), C.c_void_p(fd), 1)
            map_at(base, GRANULE, handle.value); grant(base, GRANULE, DEVICE)
            assert read(base, 6) == b"shared"
            write(base, b"SHARED")
            ours.send(b"y")
    """)


# --- plain allocations --------------------------------------------------------------------------------------------

def test_frees_that_are_not_ours(simgpu):
    drive(simgpu, """
        start()
        p = alloc(10 * MIB)
        free(p + 512, want=INVALID)
        free(p)
        free(p, want=INVALID)
        free(12345, want=INVALID)
        free(C.addressof(C.create_string_buffer(16)), want=INVALID)
        base, _ = backed(DEVICE)
        free(base, want=INVALID)
        pinned = C.c_void_p()
        call("cuMemHostAlloc", C.byref(pinned), 4096, 0)
        free(pinned.value, want=INVALID)
        call("cuMemFreeHost", pinned)
        call("cuMemFreeHost", pinned, want=INVALID)
        free(0)
        alloc(0, want=INVALID)
        call("cuMemAlloc_v2", None, 16, want=INVALID)
        alloc((1 << 64) - 1, want=OOM)
        assert used() == GRANULE
    """)


def test_copies_past_an_allocation_are_refused(simgpu):
    drive(simgpu, """
        start()
        p = alloc(MIB)
        read(p + MIB - 16, 32, want=INVALID)
        fill(p + MIB, 1, 1, want=INVALID)
        fill(0, 1, 1, want=INVALID)
        call("cuMemcpyDtoD_v2", p, p + MIB - 8, 16, want=INVALID)
        host = C.create_string_buffer(16)
        call("cuMemcpyDtoD_v2", p, C.addressof(host), 16, want=INVALID)      # not device memory
        call("cuMemcpyDtoD_v2", p, p + 4096, (1 << 64) - 4096, want=INVALID)
        call("cuMemcpy", p, C.addressof(host), 16)                            # direction inferred
        read(p, 0)
    """)


@pytest.mark.parametrize("mode, want", [("refuse", "INVALID"), ("allow", "OK")])
def test_operand_over_both_tiers(simgpu, mode, want):
    drive(simgpu, f"""
        start()
        base, _ = backed(DEVICE, HOST_NUMA, DEVICE)
        for i in range(3):
            fill(base + i * GRANULE, i + 1, GRANULE)
        fill(base, 9, 2 * GRANULE, want={want})
        read(base + GRANULE - 8, 16, want={want})
        write(base + 2 * GRANULE - 8, bytes(16), want={want})
        flat = alloc(3 * GRANULE)
        call("cuMemcpyDtoD_v2", flat, base, 3 * GRANULE, want={want})
        call("cuMemcpyDtoD_v2", flat, base + GRANULE, GRANULE)                # each operand in one tier
        c = Copy2D(src_type=2, src_device=base, src_pitch=GRANULE, dst_type=2, dst_device=flat, dst_pitch=64, width=64, height=3)
        call("cuMemcpy2D_v2", C.byref(c), want={want})
    """, MIXED_COPY=mode)


def test_rectangles_and_arrays(simgpu):
    drive(simgpu, """
        class Desc(C.Structure):
            _fields_ = [("width", C.c_size_t), ("height", C.c_size_t), ("format", C.c_int), ("channels", C.c_uint)]
        start()
        p, pitch = C.c_uint64(), C.c_size_t()
        call("cuMemAllocPitch_v2", C.byref(p), C.byref(pitch), 100, 4, C.c_uint(4))
        assert pitch.value >= 100 and pitch.value % 512 == 0
        source = bytes(range(100)) * 4
        c = Copy2D(src_type=1, src_host=C.cast(C.c_char_p(source), C.c_void_p), src_pitch=100,
                   dst_type=2, dst_device=p.value, dst_pitch=pitch.value, width=100, height=4)
        call("cuMemcpy2D_v2", C.byref(c))
        assert read(p.value + 3 * pitch.value, 100) == bytes(range(100))
        array = C.c_void_p()
        call("cuArrayCreate_v2", C.byref(array), C.byref(Desc(25, 4, 0x20, 1)))
        c = Copy2D(src_type=2, src_device=p.value, src_pitch=pitch.value, dst_type=3, dst_array=array, width=100, height=4)
        call("cuMemcpy2DUnaligned_v2", C.byref(c))
        call("cuMemcpyAtoD_v2", p, array, 100, 100)
        assert read(p.value, 100) == bytes(range(100))
        call("cuMemcpyAtoD_v2", p, array, 350, 100, want=INVALID)
        call("cuArrayDestroy", array)
        call("cuArrayDestroy", array, want=INVALID_HANDLE)
    """)


def test_stream_ordered_memory(simgpu):
    drive(simgpu, """
        start()
        s, other, gate, p = stream(), stream(), Gate(), C.c_uint64()
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, s)
        first = p.value
        gate.close(s)
        call("cuMemsetD8Async", first, C.c_ubyte(1), 8 * MIB, s)
        call("cuMemFreeAsync", first, s)
        call("cuMemFreeAsync", first, s, want=INVALID)
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, other)
        assert p.value != first, "another stream must not have it before the free has run"
        second = p.value
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, s)
        assert p.value == first, "the same stream may, at once"
        gate.open()
        call("cuMemFreeAsync", first, s)
        call("cuMemFreeAsync", second, other)
        pool = C.c_void_p()
        call("cuDeviceGetDefaultMemPool", C.byref(pool), 0)
        assert used() == 16 * MIB
        call("cuCtxSynchronize")
        assert used() == 0, "above the threshold (0): released once the host has waited"
        call("cuMemPoolSetAttribute", pool, 4, C.byref(C.c_uint64(GIB)))
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, s)
        call("cuMemFreeAsync", p, s)
        call("cuStreamSynchronize", s)
        assert used() == 8 * MIB, "below the threshold: kept"
        call("cuMemPoolTrimTo", pool, 0)
        assert used() == 0
    """)


def test_pointer_answers(simgpu):
    drive(simgpu, """
        def ask(attribute, pointer, kind, want=OK):
            value = kind()
            call("cuPointerGetAttribute", C.byref(value), C.c_int(attribute), pointer, want=want)
            return value.value
        context = start()
        p = alloc(MIB)
        base, handles = backed(DEVICE, HOST_NUMA)
        pinned = C.c_void_p()
        call("cuMemHostAlloc", C.byref(pinned), MIB, 0)
        assert ask(1, p, C.c_void_p) == context.value and ask(1, base, C.c_void_p) is None
        assert [ask(2, q, C.c_uint) for q in (p, base, base + GRANULE, pinned.value)] == [2, 2, 1, 1]
        assert ask(11, base + GRANULE, C.c_uint64) == base and ask(12, base + GRANULE, C.c_size_t) == 2 * GRANULE
        assert ask(19, base + GRANULE, C.c_uint64) == base + GRANULE and ask(18, base, C.c_size_t) == GRANULE
        assert ask(10, p, C.c_uint) == 1 and ask(10, base, C.c_uint) == 0
        assert len({ask(7, q, C.c_uint64) for q in (p, base, base + GRANULE, pinned.value)}) == 4
        ask(2, 4096, C.c_uint, want=INVALID)
        at, size = C.c_uint64(), C.c_size_t()
        call("cuMemGetAddressRange_v2", C.byref(at), C.byref(size), base + GRANULE + 100)
        assert (at.value, size.value) == (base + GRANULE, GRANULE)
        one = C.c_uint(1)
        call("cuPointerSetAttribute", C.byref(one), C.c_int(6), p)
        call("cuPointerSetAttribute", C.byref(one), C.c_int(6), base, want=INVALID)
        handle = C.create_string_buffer(64)
        call("cuIpcGetMemHandle", handle, base, want=INVALID)
        write(p, b"ipc")
        call("cuIpcGetMemHandle", handle, p)
        assert read(p, 3) == b"ipc"
        kinds, places = (C.c_int * 2)(2, 9), (C.c_void_p * 2)()
        kind, ordinal = C.c_uint(77), C.c_int(77)
        places[0], places[1] = C.addressof(kind), C.addressof(ordinal)
        call("cuPointerGetAttributes", C.c_uint(2), kinds, places, C.addressof(kind))
        assert (kind.value, ordinal.value) == (0, -2), "foreign memory is no error in the plural form"
    """)


def test_poison(simgpu):
    drive(simgpu, """
        start()
        assert read(alloc(MIB), 8) == b"\\xA5" * 8
        base, _ = backed(DEVICE)
        assert read(base, 8) == b"\\xA5" * 8
    """, POISON="1")


# --- budgets ------------------------------------------------------------------------------------------------------

def test_vram_ends_exactly(simgpu):
    drive(simgpu, """
        start()
        p = alloc(64 * MIB)
        alloc(1, want=OOM)
        create(GRANULE, want=OOM)
        create(GRANULE, HOST_NUMA)
        free(p)
        q = [alloc(512) for _ in range(4096)]      # small ones share 2 MiB blocks
        assert used() == GRANULE
        for p in q: free(p)
        assert used() == 0
    """, vram="64M")


def test_ram_ends(simgpu):
    drive(simgpu, """
        start()
        pinned = C.c_void_p()
        call("cuMemHostAlloc", C.byref(pinned), 8 * MIB, 0)
        create(4 * MIB, HOST_NUMA)
        call("cuMemHostAlloc", C.byref(C.c_void_p()), 8 * MIB, 0, want=OOM)
        create(6 * MIB, HOST_NUMA, want=OOM)
        call("cuMemFreeHost", pinned)
        create(8 * MIB, HOST_NUMA)
        assert used() == 0
    """, ram="16M")


def test_budget_is_shared_and_survives_kill(simgpu):
    drive(simgpu, """
        child = subprocess.Popen([sys.executable, "-c", "from simgpu_client import *; start(); p = alloc(40 * MIB);"
                                  "print('have', flush=True); time.sleep(60)"], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "have\\n"
        start()
        assert used() == 40 * MIB
        alloc(32 * MIB, want=OOM)
        p = alloc(16 * MIB)
        os.kill(child.pid, signal.SIGKILL)         # not reaped: a zombie holds nothing either
        deadline = time.monotonic() + 10
        while used() != 16 * MIB and time.monotonic() < deadline:
            time.sleep(0.01)
        q = alloc(48 * MIB)
        child.wait()
        free(p); free(q)
    """, vram="64M")
    assert not list(Path("/dev/shm").glob(f"*{simgpu.name}*")), "the last process removes the machine"


def test_exited_process_gives_everything_back(simgpu):
    drive(simgpu, """
        code = "from simgpu_client import *; start(); alloc(40 * MIB); create(20 * MIB)"
        start()
        for _ in range(3):
            subprocess.run([sys.executable, "-c", code], check=True)
            assert used() == 0
    """, vram="64M")


def test_exec_gives_everything_back(simgpu):
    drive(simgpu, """
        code = "from simgpu_client import *; start(); alloc(40 * MIB); os.execv(sys.executable, ['python', '-c', \\"print('new', flush=True); input()\\"])"
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "new\\n"
        start()
        assert used() == 0, "same pid, same start time, another program"
        alloc(60 * MIB)
        child.communicate("\\n")
    """, vram="64M")


def test_forked_child_does_not_keep_the_share_of_a_killed_parent(simgpu):
    drive(simgpu, """
        code = "from simgpu_client import *; start(); alloc(40 * MIB); p = os.fork()\\nif p: print(p, flush=True)\\ntime.sleep(60)"
        parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        parent.kill(); parent.wait()
        start()
        assert used() == 0
        os.kill(child, signal.SIGKILL)
    """, vram="64M")


def test_two_processes_at_once_cannot_share_a_byte(simgpu):
    drive(simgpu, """
        code = "from simgpu_client import *; start(); n = 0\\nwhile call('cuMemAlloc_v2', C.byref(C.c_uint64()), 2 * MIB, want=(OK, OOM)) == OK: n += 1\\nprint(n, flush=True); sys.stdin.read()"
        many = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        counts = [int(p.stdout.readline()) for p in many]
        assert sum(counts) == 32, counts
        for p in many: p.communicate()
    """, vram="64M")


def test_other_sizes_on_a_live_machine_are_refused(simgpu):
    drive(simgpu, """
        start()
        env = dict(os.environ, SIMGPU_VRAM="1G")
        run = subprocess.run([sys.executable, "-c", "from simgpu_client import *; start()"], env=env, capture_output=True, text=True)
        assert run.returncode != 0 and "runs with 1 devices of 64 MiB VRAM" in run.stderr, run
    """, vram="64M")


def test_context_end_frees_its_memory(simgpu):
    drive(simgpu, """
        start()
        base, _ = backed(DEVICE)
        p = alloc(10 * MIB)
        call("cuDevicePrimaryCtxRelease_v2", 0)
        call("cuDevicePrimaryCtxRelease_v2", 0, want=INVALID_CONTEXT)
        fill(p, 1, 1, want=INVALID_CONTEXT)
        start()
        assert used() == GRANULE, "VMM memory belongs to no context"
        free(p, want=INVALID)
    """)
