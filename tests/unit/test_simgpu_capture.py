# SPDX-License-Identifier: Apache-2.0
"""Capture in the simulated driver: what breaks one, in which mode, on which side; how streams join and leave; what becomes a node."""

import textwrap

import pytest
from nvcc import cuda_program  # noqa: F401
from simgpu_driver import drive, simgpu  # noqa: F401


@pytest.fixture
def capture(simgpu, cuda_program):  # noqa: F811
    """Run code that sees everything of simgpu_graphs, in a process of its own, with the kernels of plain_kernels.c."""
    companion = cuda_program.companion("plain_kernels.c", "plain.simk.so", "c")

    def run(code, **how):
        return drive(simgpu, "from simgpu_graphs import *\n" + textwrap.dedent(code), KERNELS=str(companion), **how)

    return run


# --- calls beside a capture: (what, answer in the capturing thread, does the capture go on) -----------------------

OTHERS = {  # what another thread's GLOBAL capture forbids a GLOBAL thread, and no other
    "alloc": "alloc(4096, want={})",
    "free": "free(p, want={})",
    "managed": "call('cuMemAllocManaged', C.byref(C.c_uint64()), 4096, C.c_uint(1), want={})",
    "pitched": "call('cuMemAllocPitch_v2', C.byref(C.c_uint64()), C.byref(C.c_size_t()), 64, 64, C.c_uint(4), want={})",
    "pinned": "call('cuMemHostAlloc', C.byref(C.c_void_p()), 4096, C.c_uint(0), want={})",
    "free pinned": "call('cuMemFreeHost', host, want={})",
    "unmap": "unmap(base, GRANULE, want={})",
    "query event": "call('cuEventQuery', old, want={})",
    "wait for event": "call('cuEventSynchronize', old, want={})",
}
VMM = {  # what no capture forbids, on a driver as BELIEFS.md has it
    "create": "create(GRANULE, want={})",
    "map": "map_at(empty, GRANULE, handle, want={})",
    "access": "grant(base, GRANULE, DEVICE, want={})",
}
PREPARED = """
    context = start()
    p, s, t, old, host = alloc(4096), stream(), stream(), event(), C.c_void_p()
    base, _ = backed(DEVICE)
    empty, handle = reserve(GRANULE), create(GRANULE)
    call("cuMemHostAlloc", C.byref(host), 4096, C.c_uint(0))
    call("cuEventRecord", old, t)
    call("cuStreamSynchronize", t)
"""


@pytest.mark.parametrize("mode, allowed", [("GLOBAL", False), ("THREAD_LOCAL", False), ("RELAXED", True)])
@pytest.mark.parametrize("what", OTHERS)
def test_unsafe_calls_of_the_capturing_thread(capture, what, mode, allowed):
    capture(f"""{PREPARED}
    begin(s, {mode})
    {OTHERS[what].format("OK" if allowed else "CAPTURE_UNSUPPORTED")}
    assert status(s) == {1 if allowed else 2}
    end(s, want={"OK" if allowed else "CAPTURE_INVALIDATED"})
    assert status(s) == 0
    """)


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("mode, thread, allowed", [
    ("GLOBAL", "GLOBAL", False), ("GLOBAL", "THREAD_LOCAL", True), ("GLOBAL", "RELAXED", True), ("THREAD_LOCAL", "GLOBAL", True),
])  # fmt: skip
def test_unsafe_calls_of_another_thread(capture, what, mode, thread, allowed):
    capture(f"""{PREPARED}
    begin(s, {mode})
    failed = []
    def other():
        try:
            call("cuCtxSetCurrent", context)
            call("cuThreadExchangeStreamCaptureMode", C.byref(C.c_int({thread})))
            {OTHERS[what].format("OK" if allowed else "CAPTURE_UNSUPPORTED")}
        except AssertionError as e:
            failed.append(e)
    thread = threading.Thread(target=other); thread.start(); thread.join()
    assert not failed, failed
    assert status(s) == {1 if allowed else 2}
    """)


@pytest.mark.parametrize("branch, allowed", [(0, True), (1, False), (2, True)])
@pytest.mark.parametrize("what", VMM)
def test_making_and_mapping_memory_while_capturing(capture, what, branch, allowed):
    capture(f"""{PREPARED}
    begin(s, GLOBAL)
    {VMM[what].format("OK" if allowed else "CAPTURE_UNSUPPORTED")}
    assert status(s) == {1 if allowed else 2}
    end(s, want={"OK" if allowed else "CAPTURE_INVALIDATED"})
    """, DOUBT=f"capture.vmm_unsafe={branch}")  # fmt: skip


@pytest.mark.parametrize("belief, what", [("capture.vmm_unsafe=2", "unmap"), ("capture.event_query_unsafe", "query event"),
                                          ("capture.event_query_unsafe", "wait for event")])  # fmt: skip
def test_drivers_that_allow_more(capture, belief, what):
    capture(f"""{PREPARED}
    begin(s)
    {OTHERS[what].format("OK")}
    end(s)
    """, DOUBT=belief)  # fmt: skip


@pytest.mark.parametrize("call, want, after", [
    # what waits for, or asks, more than it may: in every mode
    ("call('cuCtxSynchronize', want=WANT)", "CAPTURE_UNSUPPORTED", 2),
    ("call('cuCtxRecordEvent', context, event(), want=WANT)", "CAPTURE_UNSUPPORTED", 2),
    ("call('cuCtxWaitEvent', context, old, want=WANT)", "CAPTURE_UNSUPPORTED", 2),
    ("call('cuStreamSynchronize', s, want=WANT)", "CAPTURE_UNSUPPORTED", 2),
    ("call('cuStreamQuery', s, want=WANT)", "CAPTURE_UNSUPPORTED", 2),
    ("call('cuStreamAddCallback', s, C.cast(HOST_FN(lambda _: None), C.c_void_p), None, C.c_uint(0), want=WANT)", "CAPTURE_UNSUPPORTED", 2),
    ("call('cuEventRecord', e, s); call('cuEventQuery', e, want=WANT)", "CAPTURED_EVENT", 2),
    ("call('cuEventRecord', e, s); call('cuEventSynchronize', e, want=WANT)", "CAPTURED_EVENT", 2),
    ("call('cuStreamWaitEvent', s, old, C.c_uint(0), want=WANT)", "CAPTURE_ISOLATION", 2),
    # the legacy stream, beside a blocking stream
    ("call('cuMemsetD8Async', p, C.c_ubyte(1), 16, None, want=WANT)", "CAPTURE_IMPLICIT", 2),
    ("call('cuMemsetD8_v2', p, C.c_ubyte(1), 16, want=WANT)", "CAPTURE_IMPLICIT", 2),
    ("call('cuMemcpyDtoH_v2', (C.c_ubyte * 16)(), p, 16, want=WANT)", "CAPTURE_IMPLICIT", 2),
    ("call('cuStreamSynchronize', None, want=WANT)", "CAPTURE_IMPLICIT", 2),
    ("call('cuEventRecord', e, None, want=WANT)", "CAPTURE_IMPLICIT", 2),
    ("call('cuGraphLaunch', ready, None, want=WANT)", "CAPTURE_IMPLICIT", 2),
    # what only asks, or is refused without harm
    ("call('cuStreamIsCapturing', None, C.byref(C.c_int()), want=WANT)", "CAPTURE_IMPLICIT", 1),
    ("begin(s, want=WANT)", "401", 1),
    ("begin(None, want=WANT)", "CAPTURE_UNSUPPORTED", 1),
    ("call('cuStreamBeginCapture_v2', t, C.c_int(3), want=WANT)", "INVALID", 1),
    ("end(t, want=WANT)", "401", 1),
    ("call('cuMemFreeAsync', p, s, want=WANT)", "INVALID", 1),
    ("call('cuStreamUpdateCaptureDependencies', t, None, 0, C.c_uint(0), want=WANT)", "401", 1),
    ("call('cuStreamUpdateCaptureDependencies', s, C.byref(C.c_void_p(64)), 1, C.c_uint(0), want=WANT)", "INVALID", 1),
    ("call('cuStreamUpdateCaptureDependencies', s, None, 0, C.c_uint(2), want=WANT)", "INVALID", 1),
    ("call('cuEventRecordWithFlags', e, t, C.c_uint(1), want=WANT)", "INVALID", 1),
    ("call('cuStreamWaitEvent', t, old, C.c_uint(1), want=WANT)", "INVALID", 1),
    ("call('cuEventRecordWithFlags', e, s, C.c_uint(2), want=WANT)", "INVALID", 1),
    # what a capture has nothing against
    ("reserve(GRANULE, want=WANT)", "OK", 1),
    ("call('cuStreamSynchronize', t, want=WANT)", "OK", 1),
    ("call('cuMemsetD8Async', p, C.c_ubyte(1), 16, t, want=WANT)", "OK", 1),
    ("call('cuStreamCreate', C.byref(C.c_void_p()), C.c_uint(1), want=WANT)", "OK", 1),
    ("call('cuGraphLaunch', ready, t, want=WANT)", "OK", 1),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["GLOBAL", "THREAD_LOCAL", "RELAXED"])
def test_calls_that_meet_a_capture(capture, mode, call, want, after):
    capture(f"""
    context = start()
    p, s, t, old, e = alloc(4096), stream(0), stream(), event(), event()
    ready = graph()
    add("EmptyNode", ready)
    ready = instantiate(ready)
    call("cuEventRecord", old, t)
    begin(s, {mode})
    WANT = {want}
    {call}
    assert status(s) == {after}, status(s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s, want={"OK" if after == 1 else "CAPTURE_INVALIDATED"})
    made = end(s, want={"OK" if after == 1 else "CAPTURE_INVALIDATED"})
    assert bool(made.value) == ({after} == 1)
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)                        # the stream is an ordinary one again
    call("cuStreamSynchronize", s)
    """)


# --- streams that join, leave, or do not --------------------------------------------------------------------------


def test_forks_and_joins(capture):
    capture("""
        start()
        p, s, t, u, fork, side, join = alloc(4096), stream(), stream(0), stream(), event(), event(), event()
        work = lambda where, at: call("cuMemsetD8Async", p + 64 * at, C.c_ubyte(at + 1), 64, where)
        begin(s)
        work(s, 0)
        call("cuEventRecord", fork, s)
        call("cuStreamWaitEvent", t, fork, C.c_uint(0))
        call("cuStreamWaitEvent", u, fork, C.c_uint(0))
        assert status(t) == status(u) == 1
        work(t, 1); work(u, 2); work(s, 3)
        call("cuEventRecord", side, u)
        call("cuStreamWaitEvent", t, side, C.c_uint(0))
        work(t, 4)
        call("cuEventRecord", join, t)
        call("cuStreamWaitEvent", s, join, C.c_uint(0))
        work(s, 5)
        end(t, want=903)                                                   # begun on another stream
        g = end(s)
        assert sorted(edges(g)) == [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 5), (4, 5)]
        assert status(t) == status(u) == 0
        call("cuEventQuery", fork, want=CAPTURED_EVENT)                    # as long as it is not recorded anew
        call("cuEventRecord", fork, s)
        call("cuEventSynchronize", fork)
        replay(instantiate(g), s)
        assert [read(p + 64 * i, 1)[0] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    """)


@pytest.mark.parametrize("code, want", [
    ("fork(t)", "OK"),                                                       # nothing captured there: its tip is the fork's
    ("fork(t); work(t)", "CAPTURE_UNJOINED"),
    ("fork(t); work(t); call('cuStreamDestroy_v2', t)", "CAPTURE_INVALIDATED"),
    ("fork(t); work(t); call('cuStreamUpdateCaptureDependencies', t, None, 0, C.c_uint(1))", "OK"),
    ("fork(t); work(t); join(t)", "OK"),
    ("fork(t); work(t); join(t); work(t)", "CAPTURE_UNJOINED"),
])  # fmt: skip
def test_what_a_capture_leaves_unjoined(capture, code, want):
    capture(f"""
        start()
        p, s, t, e = alloc(4096), stream(), stream(), event()
        work = lambda where: call("cuMemsetD8Async", p, C.c_ubyte(1), 64, where)
        def fork(where):
            call("cuEventRecord", e, s)
            call("cuStreamWaitEvent", where, e, C.c_uint(0))
        def join(where):
            call("cuEventRecord", e, where)
            call("cuStreamWaitEvent", s, e, C.c_uint(0))
        begin(s)
        work(s)
        {code}
        end(s, want={want})
        work(s)                                                            # an ordinary stream again
        call("cuStreamSynchronize", s)
    """)


def test_two_captures_do_not_mix(capture):
    capture("""
        start()
        p, s, t, e = alloc(4096), stream(), stream(), event()
        begin(s); begin(t)
        call("cuEventRecord", e, s)
        call("cuStreamWaitEvent", t, e, C.c_uint(0), want=902)
        assert status(s) == status(t) == 2
        end(s, want=CAPTURE_INVALIDATED); end(t, want=CAPTURE_INVALIDATED)
        call("cuStreamWaitEvent", t, e, C.c_uint(0), want=(OK, 904, 905, 907))    # of a capture that is over
    """)


def test_the_end_of_another_thread(capture):
    capture("""
        context = start()
        s, t = stream(), stream()
        begin(s, THREAD_LOCAL); begin(t, RELAXED)
        failed = []
        def other():
            try:
                call("cuCtxSetCurrent", context)
                end(s, want=CAPTURE_WRONG_THREAD)
                assert end(t).value
            except AssertionError as e:
                failed.append(e)
        thread = threading.Thread(target=other); thread.start(); thread.join()
        assert not failed, failed
        assert status(s) == 1 and end(s).value
    """)


@pytest.mark.parametrize("how", ["call('cuStreamDestroy_v2', s)", "call('cuCtxDestroy_v2', inner)"])
def test_a_capture_ends_with_its_stream(capture, how):
    capture(f"""
        start()
        inner, other = C.c_void_p(), C.c_void_p()
        call("cuCtxCreate_v2", C.byref(inner), C.c_uint(0), 0)
        p, s = alloc(4096), stream()
        begin(s)
        call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
        ident, g, state, deps, count = C.c_uint64(), C.c_void_p(), C.c_int(), C.c_void_p(), C.c_size_t()
        call("cuStreamGetCaptureInfo_v2", s, C.byref(state), C.byref(ident), C.byref(g), C.byref(deps), C.byref(count))
        assert state.value == 1 and g.value and count.value == 1 and deps.value
        {how}
        call("cuGraphGetNodes", g, None, C.byref(count), want=INVALID)         # gone with it
        call("cuStreamEndCapture", s, C.byref(g), want=(INVALID_CONTEXT, INVALID_HANDLE, 709))
    """)


# --- what is asked of, and put into, a capture --------------------------------------------------------------------


def test_information_in_every_form(capture):
    capture("""
        start()
        p, s, f = alloc(4096), stream(), function("nothing")
        state, ident, g, deps, data, count = C.c_int(9), C.c_uint64(), C.c_void_p(), C.c_void_p(), C.c_void_p(), C.c_size_t(9)
        call("cuStreamGetCaptureInfo_v3", s, C.byref(state), None, None, None, None, None)
        assert state.value == 0
        begin(s)
        call("cuStreamGetCaptureInfo", s, C.byref(state), C.byref(ident))
        assert state.value == 1 and ident.value
        first = ident.value
        launch(f, stream=s)
        info = lambda: call("cuStreamGetCaptureInfo_v3", s, C.byref(state), C.byref(ident), C.byref(g),
            C.byref(deps), C.byref(data), C.byref(count))
        info()
        assert ident.value == first and count.value == 1
        node = C.c_void_p.from_address(deps.value)
        edge = Edge(from_port=1, kind=1)
        call("cuStreamUpdateCaptureDependencies_v2", s, C.byref(node), C.byref(edge), 1, C.c_uint(1))
        call("cuStreamGetCaptureInfo_v3", s, C.byref(state), None, None, C.byref(deps), None, C.byref(count), want=LOSSY)
        call("cuStreamGetCaptureInfo_v2", s, C.byref(state), None, None, C.byref(deps), C.byref(count), want=LOSSY)
        call("cuStreamGetCaptureInfo_v3", s, C.byref(state), None, None, None, C.byref(data), C.byref(count), want=INVALID)
        info()
        assert Edge.from_address(data.value).from_port == 1
        launch(f, stream=s)                                                # takes the programmatic edge
        made, n = nodes(g)[0], C.c_size_t(4)
        asked = (Edge * 4)()
        call("cuGraphNodeGetDependentNodes_v2", made, nodes_array([None] * 4), asked, C.byref(n))
        assert (n.value, asked[0].kind) == (1, 1)
        call("cuStreamUpdateCaptureDependencies", s, None, 0, C.c_uint(1))
        call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)                    # a root of its own
        call("cuStreamUpdateCaptureDependencies", s, nodes_array(nodes(g)[:2]), 2, C.c_uint(0))
        call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
        whole = end(s)
        assert whole.value == g.value and edges(g) == [(0, 1), (2, 3), (0, 3), (1, 3)]
        begin(s)
        call("cuStreamGetCaptureInfo", s, C.byref(state), C.byref(ident))
        assert ident.value != first
    """)


def test_launches_that_may_overlap_their_predecessor(capture):
    capture("""
        class Attribute(C.Structure):
            _fields_ = [("id", C.c_int), ("pad", C.c_int), ("value", C.c_int), ("rest", C.c_ubyte * 60)]
        class Config(C.Structure):
            _fields_ = [("shape", C.c_uint * 7), ("stream", C.c_void_p), ("attributes", C.c_void_p), ("count", C.c_uint)]
        start()
        s, f, p = stream(), function("nothing"), alloc(4096)
        overlap = Attribute(6, 0, 1)                                       # PROGRAMMATIC_STREAM_SERIALIZATION
        def overlapping():
            c = Config((C.c_uint * 7)(1, 1, 1, 1, 1, 1, 0), s.value, C.addressof(overlap), 1)
            call("cuLaunchKernelEx", C.byref(c), f, None, None)
        begin(s)
        launch(f, stream=s)
        overlapping()
        call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
        overlapping()                                                      # behind a memset: nothing to overlap
        g = end(s)
        count, data = C.c_size_t(8), (Edge * 8)()
        call("cuGraphGetEdges_v2", g, nodes_array([None] * 8), nodes_array([None] * 8), data, C.byref(count))
        assert [(data[i].from_port, data[i].kind) for i in range(count.value)] == [(1, 1), (0, 0), (0, 0)]
        value = (C.c_ubyte * 64)()
        call("cuGraphKernelNodeGetAttribute", nodes(g)[1], C.c_int(6), value)
        assert value[0] == 1
        call("cuGraphKernelNodeGetAttribute", nodes(g)[0], C.c_int(6), value)
        assert value[0] == 0
        call("cuGraphKernelNodeCopyAttributes", nodes(g)[0], nodes(g)[1])
        call("cuGraphKernelNodeGetAttribute", nodes(g)[0], C.c_int(6), value)
        assert value[0] == 1
        call("cuGraphKernelNodeSetAttribute", nodes(g)[0], C.c_int(6), (C.c_ubyte * 64)())
        call("cuGraphKernelNodeGetAttribute", nodes(g)[0], C.c_int(6), value)
        assert value[0] == 0
        call("cuGraphKernelNodeSetAttribute", nodes(g)[2], C.c_int(6), value, want=INVALID)
        call("cuGraphKernelNodeGetAttribute", nodes(g)[0], C.c_int(0), value, want=INVALID)
        replay(instantiate(g), s)
    """)


def test_capture_into_a_graph(capture):
    capture("""
        start()
        p, s, t, g, other = alloc(4096), stream(), stream(), graph(), graph()
        first, foreign = memset(g, p, 1), memset(other, p, 1)
        into = lambda where, deps, want=OK, edges=None: call("cuStreamBeginCaptureToGraph", where, g, nodes_array(deps), edges, len(deps),
                                                             C.c_int(RELAXED), want=want)
        into(s, [foreign], want=INVALID)
        into(s, [first], want=INVALID, edges=C.byref(Edge(from_port=1, kind=1)))
        call("cuStreamBeginCaptureToGraph", s, None, None, None, 0, C.c_int(0), want=INVALID)
        into(s, [first])
        into(t, [], want=INVALID)                                          # one at a time
        call("cuMemsetD8Async", p + 64, C.c_ubyte(2), 64, s)
        call("cuGraphDestroy", g, want=INVALID)
        call("cuGraphDestroyNode", first, want=INVALID)
        memset(g, p + 128, 3)                                              # by hand, beside it
        assert end(s).value == g.value and edges(g) == [(0, 1)]
        into(s, [first])
        call("cuCtxSynchronize", want=CAPTURE_UNSUPPORTED)
        end(s, want=CAPTURE_INVALIDATED)
        assert kinds(g) == [MEMSET] * 3                                    # the app's graph stays
        fill(p, 0, 4096)
        replay(instantiate(g), s)
        assert [read(p + 64 * i, 1)[0] for i in range(3)] == [1, 2, 3]
    """)


def test_a_broken_capture_may_lose_its_graph(capture):
    capture("""
        start()
        p, s, g = alloc(4096), stream(), graph()
        call("cuStreamBeginCaptureToGraph", s, g, None, None, 0, C.c_int(RELAXED))
        call("cuCtxSynchronize", want=CAPTURE_UNSUPPORTED)
        call("cuGraphDestroy", g)
        call("cuMemAllocAsync", C.byref(C.c_uint64()), MIB, s, want=CAPTURE_INVALIDATED)
        call("cuMemFreeAsync", p, s, want=CAPTURE_INVALIDATED)
        call("cuStreamUpdateCaptureDependencies", s, None, 0, C.c_uint(0), want=CAPTURE_INVALIDATED)
        end(s, want=CAPTURE_INVALIDATED)
        assert status(s) == 0
    """)


def test_everything_that_a_stream_can_hold_becomes_a_node(capture):
    capture("""
        start()
        p, q, s, f, e = alloc(4096), C.c_uint64(), stream(), function("nothing"), event()
        ready = graph()
        memset(ready, p, 1)
        exe = instantiate(ready)
        host = HOST_FN(lambda _: None)
        pinned, pageable = C.c_void_p(), (C.c_ubyte * 64)()
        call("cuMemHostAlloc", C.byref(pinned), 4096, C.c_uint(0))
        begin(s)
        for entry, arguments, kind in (
            ("cuMemAllocAsync", (C.byref(q), MIB, s), MEM_ALLOC),
            ("cuMemcpyHtoDAsync_v2", (p, pinned, 64, s), MEMCPY),
            ("cuMemcpyHtoDAsync_v2", (p, pageable, 64, s), MEMCPY),
            ("cuMemcpyAsync", (p, p + 64, 64, s), MEMCPY),
            ("cuMemsetD2D32Async", (p, 64, C.c_uint(1), 4, 4, s), MEMSET),
            ("cuLaunchHostFunc", (s, host, None), HOST_NODE),
            ("cuGraphLaunch", (exe, s), CHILD),
            ("cuEventRecordWithFlags", (e, s, C.c_uint(1)), RECORD_EVENT),
            ("cuStreamWaitEvent", (s, e, C.c_uint(1)), WAIT_EVENT),
            ("cuStreamWriteValue32_v2", (s, p, C.c_uint(7), C.c_uint(0)), BATCH),
        ):
            call(entry, *arguments)
            g = C.c_void_p()
            call("cuStreamGetCaptureInfo_v2", s, C.byref(C.c_int()), None, C.byref(g), None, None)
            assert kinds(g)[-1] == kind, (entry, kinds(g))
        launch(f, stream=s)
        call("cuMemFreeAsync", q, s)
        call("cuMemFreeAsync", q, s, want=INVALID)
        whole = end(s)
        assert kinds(whole)[-2:] == [KERNEL, MEM_FREE]
        b = Box()
        call("cuGraphMemcpyNodeGetParams", nodes(whole)[1], C.byref(b))
        assert (b.src_type, b.src_host, b.dst_type, b.dst_device) == (1, pinned.value, 2, p)
        replay(instantiate(whole), s)
        assert read(p, 4) == (7).to_bytes(4, "little")
        call("cuEventQuery", e)
    """)
