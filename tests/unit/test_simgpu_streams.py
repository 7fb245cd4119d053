# SPDX-License-Identifier: Apache-2.0
"""The simulated driver's order of work beyond what any GPU must do (tests/conformance asks that): simulated times, stale handles,
threads, graphs in detail."""
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)


def test_synchronous_copies_wait_and_device_copies_do_not(simgpu):
    drive(simgpu, """
        start()
        p, q, s, gate = alloc(MIB), alloc(MIB), stream(0), Gate()
        gate.close(s)
        call("cuMemcpyDtoD_v2", p, q, MIB)         # returns: no host wait between device ranges
        fill(p, 1, MIB, wait=False)
        threading.Timer(0.2, gate.open).start()
        began = time.monotonic()
        assert read(p, 1) == b"\\x01"
        assert time.monotonic() - began > 0.1
    """)


def test_event_order_and_time(simgpu):
    drive(simgpu, """
        start()
        p, a, b = alloc(256 * MIB), stream(), stream()
        begin, middle, end = event(), event(), event()
        ms = C.c_float()
        call("cuEventQuery", begin)                                       # never recorded: done
        call("cuEventElapsedTime", C.byref(ms), begin, end, want=INVALID_HANDLE)
        gate = Gate().close(a)
        call("cuEventRecord", begin, a)
        call("cuMemsetD8Async", p, C.c_ubyte(1), 128 * MIB, a)
        call("cuEventRecord", middle, a)
        call("cuStreamWaitEvent", b, middle, C.c_uint(0))
        call("cuMemsetD8Async", p, C.c_ubyte(2), 64 * MIB, b)
        call("cuEventRecord", end, b)
        call("cuEventQuery", end, want=NOT_READY)
        call("cuEventElapsedTime", C.byref(ms), begin, end, want=NOT_READY)
        gate.open()
        call("cuEventSynchronize", end)
        assert read(p, 1) == b"\\x02"
        call("cuEventElapsedTime", C.byref(ms), begin, middle)
        assert abs(ms.value - 128 / 1024 / 1000 * 1000) < 1e-6, ms.value   # 128 MiB at 1000 GiB/s
        call("cuEventElapsedTime", C.byref(ms), begin, end)
        assert abs(ms.value - 192 / 1024) < 1e-6, ms.value
        pinned = C.c_void_p()
        call("cuMemHostAlloc", C.byref(pinned), 100 * MIB, 0)
        call("cuEventRecord", begin, a)
        call("cuMemcpyHtoDAsync_v2", p, pinned, 100 * MIB, a)
        call("cuEventRecord", end, a)
        call("cuStreamSynchronize", a)
        call("cuEventElapsedTime", C.byref(ms), begin, end)
        assert abs(ms.value - 100 / 1024 / 25 * 1000) < 1e-3, ms.value     # over the link, 25 GiB/s
        call("cuEventDestroy_v2", end)
        call("cuEventQuery", end, want=INVALID_HANDLE)
    """, LAUNCH="0")


def test_stale_handles(simgpu):
    drive(simgpu, """
        start()
        s = stream()
        call("cuStreamDestroy_v2", s)
        call("cuStreamDestroy_v2", s, want=INVALID_HANDLE)
        call("cuStreamSynchronize", s, want=INVALID_HANDLE)
        p = alloc(4096)
        call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s, want=INVALID_HANDLE)
        call("cuMemAllocAsync", C.byref(C.c_uint64()), 4096, s, want=INVALID_HANDLE)
        call("cuEventRecord", C.c_void_p(0x1234), None, want=INVALID_HANDLE)
        call("cuGraphDestroy", C.c_void_p(0x1234), want=INVALID)
        call("cuGraphLaunch", C.c_void_p(0x1234), None, want=INVALID)
        call("cuCtxSetCurrent", C.c_void_p(0x1234), want=INVALID_CONTEXT)
        call("cuMemPoolTrimTo", C.c_void_p(0x1234), 0, want=INVALID)
    """)


def test_a_thread_without_a_context(simgpu):
    drive(simgpu, """
        context = start()
        def other():
            device = C.c_int()
            call("cuCtxGetDevice_v2", C.byref(device), None, want=INVALID_CONTEXT)
            call("cuCtxGetDevice_v2", C.byref(device), context)
            call("cuCtxGetDevice", C.byref(device), want=INVALID_CONTEXT)
            alloc(4096, want=INVALID_CONTEXT)
            call("cuCtxSynchronize_v2", context)
        out = []
        t = threading.Thread(target=lambda: out.append(other())); t.start(); t.join()
        assert out == [None]
    """)


# --- capture ------------------------------------------------------------------------------------------------------

def test_capture_and_replay(simgpu):
    drive(simgpu, """
        start()
        p, q, s, t = alloc(MIB), alloc(MIB), stream(), stream()
        calls = []
        note = HOST_FN(lambda _: calls.append(1))
        graph, exe, e, joined = C.c_void_p(), C.c_void_p(), event(), event()
        call("cuStreamBeginCapture_v2", s, C.c_int(GLOBAL))
        call("cuMemsetD8Async", p, C.c_ubyte(7), MIB, s)
        call("cuEventRecord", e, s)
        call("cuStreamWaitEvent", t, e, C.c_uint(0))                      # t joins the capture
        call("cuMemcpyDtoDAsync_v2", q, p, MIB, t)
        call("cuEventRecord", joined, t)
        call("cuLaunchHostFunc", s, note, None)
        call("cuStreamWaitEvent", s, joined, C.c_uint(0))
        status, ident = C.c_int(), C.c_uint64()
        call("cuStreamGetCaptureInfo", t, C.byref(status), C.byref(ident))
        assert status.value == 1
        call("cuStreamEndCapture", s, C.byref(graph))
        count = C.c_size_t()
        call("cuGraphGetNodes", graph, None, C.byref(count))
        assert count.value == 3 and not calls and read(q, 1) == b"\\0"
        call("cuGraphInstantiateWithFlags", C.byref(exe), graph, 0)
        call("cuGraphDestroy", graph)
        for n in range(1, 4):
            fill(q, 0, MIB)
            call("cuGraphLaunch", exe, s)
            call("cuStreamSynchronize", s)
            assert read(q, 4) == bytes([7]) * 4 and len(calls) == n
        call("cuGraphExecDestroy", exe)
        call("cuGraphExecDestroy", exe, want=INVALID)
    """)


def test_relaxed_mode_lets_the_thread_allocate(simgpu):
    drive(simgpu, """
        start()
        s, graph, mode = stream(), C.c_void_p(), C.c_int(RELAXED)
        call("cuStreamBeginCapture_v2", s, C.c_int(GLOBAL))
        call("cuThreadExchangeStreamCaptureMode", C.byref(mode))
        assert mode.value == GLOBAL
        p = alloc(4096)
        base, _ = backed(DEVICE)
        call("cuCtxSynchronize", want=CAPTURE_UNSUPPORTED)                # conflicts in every mode
        call("cuThreadExchangeStreamCaptureMode", C.byref(mode))
        assert mode.value == RELAXED
        call("cuStreamEndCapture", s, C.byref(graph), want=CAPTURE_INVALIDATED)
    """)


def test_stream_ordered_memory_in_a_graph(simgpu):
    drive(simgpu, """
        start()
        s, p, q, graph, exe = stream(), C.c_uint64(), alloc(MIB), C.c_void_p(), C.c_void_p()
        outside = C.c_uint64()
        call("cuMemAllocAsync", C.byref(outside), MIB, s)
        call("cuStreamBeginCapture_v2", s, C.c_int(GLOBAL))
        call("cuMemAllocAsync", C.byref(p), MIB, s)
        call("cuMemsetD8Async", p, C.c_ubyte(5), MIB, s)
        call("cuMemcpyDtoDAsync_v2", q, p, MIB, s)
        call("cuMemFreeAsync", outside, s, want=INVALID)
        call("cuMemFreeAsync", p, s)
        call("cuStreamEndCapture", s, C.byref(graph))
        call("cuGraphInstantiateWithFlags", C.byref(exe), graph, 0)
        call("cuGraphDestroy", graph)
        for _ in range(2):
            call("cuGraphLaunch", exe, s)
        call("cuStreamSynchronize", s)
        assert read(q, 2) == bytes([5, 5])
        call("cuMemFreeAsync", outside, s)
        call("cuGraphExecDestroy", exe)
        call("cuCtxSynchronize")
        assert used() == 2 * GRANULE                                      # q, and what graphs keep reserved
        call("cuDeviceGraphMemTrim", 0)
        assert used() == GRANULE
    """)


def test_explicit_nodes_and_update(simgpu):
    drive(simgpu, """
        class Memset(C.Structure):
            _fields_ = [("dst", C.c_uint64), ("pitch", C.c_size_t), ("value", C.c_uint), ("element", C.c_uint),
                        ("width", C.c_size_t), ("height", C.c_size_t)]
        context = start()
        p, s = alloc(MIB), stream()
        def build(value, extra=0):
            graph, node = C.c_void_p(), C.c_void_p()
            call("cuGraphCreate", C.byref(graph), C.c_uint(0))
            call("cuGraphAddMemsetNode", C.byref(node), graph, None, 0, C.byref(Memset(p, 0, value, 4, 64, 1)), context)
            for _ in range(extra):
                call("cuGraphAddEmptyNode", C.byref(C.c_void_p()), graph, C.byref(node), 1)
            return graph, node
        (one, node), (two, _), (three, _) = build(0x01010101), build(0x02020202), build(3, extra=1)
        kept = Memset()
        call("cuGraphMemsetNodeGetParams", node, C.byref(kept))
        assert (kept.dst, kept.value) == (p, 0x01010101)
        exe, info = C.c_void_p(), (C.c_uint64 * 4)()
        call("cuGraphInstantiate_v2", C.byref(exe), one, None, None, 0)
        call("cuGraphLaunch", exe, s); call("cuStreamSynchronize", s)
        assert read(p, 2) == bytes([1, 1])
        call("cuGraphExecUpdate_v2", exe, two, info)
        call("cuGraphLaunch", exe, s); call("cuStreamSynchronize", s)
        assert read(p, 2) == bytes([2, 2])
        call("cuGraphExecUpdate_v2", exe, three, info, want=UPDATE_FAILURE)
        call("cuGraphExecMemsetNodeSetParams", exe, node, C.byref(Memset(p, 0, 0x07070707, 4, 64, 1)), context)
        call("cuGraphLaunch", exe, s); call("cuStreamSynchronize", s)
        assert read(p, 2) == bytes([7, 7])
        call("cuGraphExecMemsetNodeSetParams", exe, C.c_void_p(8), C.byref(Memset(p, 0, 1, 4, 64, 1)), context, want=INVALID)
        count, found = C.c_size_t(1), C.c_void_p()
        nodes = (C.c_void_p * 2)()
        call("cuGraphGetNodes", three, nodes, C.byref(C.c_size_t(2)))
        call("cuGraphNodeGetDependencies", C.c_void_p(nodes[1]), C.byref(found), C.byref(count))
        assert (count.value, found.value) == (1, nodes[0])
        call("cuGraphRemoveDependencies", three, C.byref(nodes), C.byref(C.c_void_p(nodes[1])), 1)
        call("cuGraphAddDependencies", three, C.byref(C.c_void_p(nodes[1])), C.byref(nodes), 1)
        call("cuGraphAddDependencies", three, C.byref(nodes), C.byref(C.c_void_p(nodes[1])), 1)
        call("cuGraphInstantiateWithFlags", C.byref(exe), three, 0, want=INVALID)      # a circle
        call("cuGraphAddMemsetNode", C.byref(node), one, None, 0, C.byref(Memset(12345, 0, 1, 4, 64, 1)), context, want=INVALID)
    """)


def test_many_threads(simgpu):
    drive(simgpu, """
        context = start()
        failed = []
        def work(seed):
            try:
                call("cuCtxSetCurrent", context)
                s = stream()
                for i in range(60):
                    p, q = alloc(MIB), C.c_uint64()
                    call("cuMemAllocAsync", C.byref(q), 64 * KIB, s)
                    call("cuMemsetD8Async", p, C.c_ubyte(seed + i & 255), MIB, s)
                    call("cuMemcpyDtoDAsync_v2", q, p, 64 * KIB, s)
                    buffer = (C.c_ubyte * 64)()
                    call("cuMemcpyDtoHAsync_v2", buffer, q, 64, s)
                    call("cuStreamSynchronize", s)
                    assert set(buffer) == {seed + i & 255}
                    call("cuMemFreeAsync", q, s)
                    free(p)
                call("cuStreamDestroy_v2", s)
            except AssertionError as e:
                failed.append(e)
        threads = [threading.Thread(target=work, args=(17 * n,)) for n in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert not failed, failed
        call("cuCtxSynchronize")
        assert used() == 0
    """)
