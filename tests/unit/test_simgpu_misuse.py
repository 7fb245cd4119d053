# SPDX-License-Identifier: Apache-2.0
"""Programs that are wrong, or right but unreasonable: the simulated driver answers them as it answers others, keeps what belongs
to somebody else intact, and does not die of them."""

from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)


def test_a_context_ends_under_threads_that_use_it(simgpu):
    """cuda.h makes it the program's business that nobody uses the context then; the process and the budget survive it here."""
    drive(
        simgpu,
        """
        call("cuInit", 0)
        def work():
            for _ in range(200):
                c, s, e, p, h = (C.c_void_p() for _ in range(5))
                cu.cuDevicePrimaryCtxRetain(C.byref(c), 0)
                cu.cuCtxSetCurrent(c)
                cu.cuStreamCreate(C.byref(s), 0)
                cu.cuMemAlloc_v2(C.byref(p), C.c_size_t(4096))
                cu.cuMemHostAlloc(C.byref(h), C.c_size_t(4096), 0)
                cu.cuMemsetD8Async(p, C.c_ubyte(1), C.c_size_t(2048), s)
                cu.cuMemsetD8_v2_ptds(C.c_uint64((p.value or 0) + 2048), C.c_ubyte(1), C.c_size_t(2048))
                cu.cuEventCreate(C.byref(e), 0)
                cu.cuEventRecord(e, s)
                cu.cuEventSynchronize(e)
                cu.cuDevicePrimaryCtxReset_v2(0)
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        call("cuDevicePrimaryCtxReset_v2", 0)
        start()
        assert used() == 0
        """,
    )


def test_events_end_with_their_context(simgpu):
    drive(
        simgpu,
        """
        call("cuInit", 0)
        context, e = new_context(), event()
        s = stream()
        call("cuEventRecord", e, s)
        call("cuCtxDestroy_v2", context)
        new_context()
        for name in ("cuEventQuery", "cuEventSynchronize", "cuEventDestroy_v2"):
            call(name, e, want=INVALID_HANDLE)
        call("cuStreamWaitEvent", stream(), e, C.c_uint(0), want=INVALID_HANDLE)
        """,
    )


def test_a_context_ends_behind_its_work(simgpu):
    drive(
        simgpu,
        """
        call("cuInit", 0)
        context, s, gate, ran = new_context(), stream(), Gate(), []
        done = HOST_FN(lambda _: ran.append(True))
        gate.close(s)
        call("cuLaunchHostFunc", s, done, None)
        waited, _ = waits(lambda: call("cuCtxDestroy_v2", context), gate)
        assert waited and ran == [True]
        """,
    )


def test_a_thread_ends_while_its_stream_captures(simgpu):
    """Its default stream goes with it, and so does the capture: nothing is left that forbids others to allocate."""
    drive(
        simgpu,
        """
        context = start()
        p = alloc(4096)
        def work():
            call("cuCtxSetCurrent", context)
            call("cuStreamBeginCapture_v2_ptsz", None, GLOBAL)
            call("cuMemsetD8Async_ptsz", p, C.c_ubyte(1), 4096, None)
            return threading.get_native_id()
        ended = in_a_thread(work)
        while os.path.exists(f"/proc/self/task/{ended}"):    # join() returns before the thread's own data are gone
            time.sleep(0.001)
        free(p)
        alloc(4096)
        call("cuCtxSynchronize")
        """,
    )


def test_a_context_does_not_wait_for_an_event_of_a_capture(simgpu):
    """Not even for one of another context: and that capture is lost (cuda.h, cuCtxWaitEvent)."""
    drive(
        simgpu,
        """
        call("cuInit", 0)
        first, graph = new_context(), C.c_void_p()
        s, e = stream(), event()
        call("cuStreamBeginCapture_v2", s, RELAXED)
        call("cuEventRecord", e, s)
        second = new_context()
        call("cuCtxWaitEvent", second, e, want=CAPTURE_UNSUPPORTED)
        call("cuCtxSetCurrent", first)
        call("cuStreamEndCapture", s, C.byref(graph), want=CAPTURE_INVALIDATED)
        """,
    )


def test_memory_that_a_pool_keeps_is_closed(simgpu):
    """Freed in stream order and kept by its pool: what another stream still does to it is a fault, not a lucky hit."""
    drive(
        simgpu,
        """
        start()
        pool, p, s, other, gate = C.c_void_p(), C.c_uint64(), stream(), stream(), Gate()
        call("cuDeviceGetDefaultMemPool", C.byref(pool), C.c_int(0))
        call("cuMemPoolSetAttribute", pool, C.c_int(4), C.byref(C.c_uint64(1 << 60)))
        call("cuMemAllocAsync", C.byref(p), 8 * MIB, s)
        call("cuStreamSynchronize", s)
        gate.close(other)
        call("cuMemsetD8Async", p, C.c_ubyte(1), 8 * MIB, other)
        call("cuMemFreeAsync", p, s)
        call("cuStreamSynchronize", s)
        gate.open()
        call("cuStreamSynchronize", other, want=ILLEGAL_ADDRESS)
        """,
    )


def test_flags_that_no_context_has(simgpu):
    drive(
        simgpu,
        """
        start()
        c = C.c_void_p()
        for flags in (0x100, 0x3, 0xFFFFFFFF):               # unknown; two ways of waiting; both
            call("cuCtxCreate_v2", C.byref(c), C.c_uint(flags), C.c_int(0), want=INVALID)
            call("cuCtxSetFlags", C.c_uint(flags), want=INVALID)
            call("cuDevicePrimaryCtxSetFlags_v2", C.c_int(0), C.c_uint(flags), want=INVALID)
        call("cuCtxSetFlags", C.c_uint(4))
        for name, last in ("cuCtxSetCacheConfig", 3), ("cuCtxSetSharedMemConfig", 2):
            call(name, C.c_int(last))
            call(name, C.c_int(last + 1), want=INVALID)
            call(name, C.c_int(-1), want=INVALID)
        """,
    )


def test_a_queued_free_outlives_its_block_and_its_pool(simgpu):
    """cuMemFree and cuMemPoolDestroy wait for nothing: what an earlier cuMemFreeAsync does when its turn comes is nobody's business
    any more, least of all the next owner's of the address."""
    drive(
        simgpu,
        """
        start()
        pool, p, q = C.c_void_p(), C.c_uint64(), C.c_uint64()
        call("cuMemPoolCreate", C.byref(pool), (C.c_uint64 * 11)(1, 1))
        s, other, gate = stream(), stream(), Gate()
        def take(out, where):
            call("cuMemAllocFromPoolAsync", C.byref(out), 8 * MIB, pool, where)
        gate.close(s)
        take(p, s)
        call("cuMemFreeAsync", p, s)
        take(q, s)
        assert p.value == q.value
        free(q.value)
        take(q, other)
        assert p.value == q.value, "otherwise this test asks nothing"
        call("cuMemsetD8Async", q, C.c_ubyte(0x22), 8 * MIB, other)
        call("cuStreamSynchronize", other)
        gate.open()
        call("cuStreamSynchronize", s)
        assert set(read(q.value, 8 * MIB)) == {0x22}

        gate = Gate().close(s)
        call("cuMemFreeAsync", q, s)
        take(q, s)
        free(q.value)
        call("cuMemPoolDestroy", pool)
        gate.open()
        call("cuStreamSynchronize", s)
        """,
    )


def test_a_pool_has_the_size_that_it_was_given(simgpu):
    drive(
        simgpu,
        """
        start()
        pool, p, q, r = C.c_void_p(), C.c_uint64(), C.c_uint64(), C.c_uint64()
        call("cuMemPoolCreate", C.byref(pool), (C.c_uint64 * 11)(1, 1, 0, 16 * MIB))
        call("cuMemPoolSetAttribute", pool, C.c_int(4), C.byref(C.c_uint64(1 << 60)))      # keeps what is freed
        def take(out, size, want=OK):
            call("cuMemAllocFromPoolAsync", C.byref(out), size, pool, None, want=want)
        take(p, 18 * MIB, want=OOM)
        take(p, 8 * MIB)
        take(q, 8 * MIB)
        take(r, 2 * MIB, want=OOM)
        call("cuMemFreeAsync", p, None)
        call("cuMemFreeAsync", q, None)
        call("cuStreamSynchronize", None)
        take(r, 16 * MIB)                                    # what the pool only kept makes room

        def asked(attribute):
            value = C.c_uint64()
            call("cuMemPoolGetAttribute", pool, C.c_int(attribute), C.byref(value))
            return value.value
        pinned, none, at, kind, most = 9, 10, 11, 12, 13
        assert [asked(n) for n in (pinned, none, at, kind, most)] == [1, 0, 0, DEVICE, 16 * MIB]
        call("cuMemPoolSetAttribute", pool, C.c_int(most), C.byref(C.c_uint64(1 << 40)), want=INVALID)
        call("cuMemPoolCreate", C.byref(pool), (C.c_uint64 * 11)(1, HOST_NUMA | 7 << 32), want=INVALID)   # there is no node 7
        """,
    )


def test_descriptors_that_are_no_handle_of_this_machine(simgpu):
    """What another process exported may be of a device that this one does not see; a name alone makes no handle."""
    drive(
        simgpu,
        """
        start()
        for name, size in ("simgpu-1-7", GRANULE), ("simgpu-1--1", GRANULE), ("simgpu-9-0", GRANULE), ("simgpu-1-0", 4096), ("else", GRANULE):
            fd = os.memfd_create(name)
            os.ftruncate(fd, size)
            handle = C.c_uint64()
            call("cuMemImportFromShareableHandle", C.byref(handle), C.c_void_p(fd), C.c_int(1), want=INVALID)
        """,
    )


def test_a_large_allocation_is_prefetched_page_by_page(simgpu):
    drive(
        simgpu,
        """
        start()
        p, where = C.c_uint64(), C.c_int(-7)
        call("cuMemAllocManaged", C.byref(p), GIB, C.c_uint(1))
        pages, last_prefetch = 60000, 4
        for page in range(pages):
            cu.cuMemPrefetchAsync(C.c_uint64(p.value + 4096 * page), C.c_size_t(4096), C.c_int(0), None)
        call("cuMemRangeGetAttribute", C.byref(where), 4, C.c_int(last_prefetch), p.value, 4096 * pages)
        assert where.value == 0
        call("cuMemPrefetchAsync", p.value + 4096, 4096, C.c_int(-1), None)
        call("cuMemRangeGetAttribute", C.byref(where), 4, C.c_int(last_prefetch), p.value, 4096 * pages)
        assert where.value == -2, "no longer one place"
        call("cuMemRangeGetAttribute", C.byref(where), 4, C.c_int(last_prefetch), p.value + 4096, 4096)
        assert where.value == -1
        """,
    )


def test_absurd_rates_do_not_turn_the_clock_over(simgpu):
    drive(
        simgpu,
        """
        start()
        p, ms, s = C.c_uint64(), C.c_float(), stream()
        call("cuMemAllocManaged", C.byref(p), 32 * GIB, C.c_uint(1))
        marks = [event() for _ in range(3)]
        for mark, place in zip(marks, (-1, 0, None)):
            call("cuEventRecord", mark, s)
            if place is not None:
                call("cuMemPrefetchAsync", p.value, 32 * GIB, C.c_int(place), s)
        call("cuStreamSynchronize", s)
        call("cuEventElapsedTime", C.byref(ms), marks[0], marks[1])
        once = ms.value
        call("cuEventElapsedTime", C.byref(ms), marks[0], marks[2])
        assert 1e9 < once < ms.value, (once, ms.value)      # milliseconds: a month and more
        """,
        LINK="1",
    )
