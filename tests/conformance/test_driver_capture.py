# SPDX-License-Identifier: Apache-2.0
"""Stream capture: what is recorded, what breaks a capture, and which threads are concerned."""

import pytest
from conform import belief, lacks, pick, ram, saw
from cudaclient import *  # noqa: F403


def begin(s, mode=GLOBAL, want=OK):
    return call("cuStreamBeginCapture_v2", s, C.c_int(mode), want=want)


def end(s, want=OK):
    """The graph; after an expected error, the result."""
    graph = C.c_void_p()
    got = call("cuStreamEndCapture", s, C.byref(graph), want=want)
    if got:
        assert not graph.value
        return got
    return graph


def node_count(graph):
    count = C.c_size_t()
    call("cuGraphGetNodes", graph, None, C.byref(count))
    return count.value


def status(s):
    value = C.c_int()
    call("cuStreamIsCapturing", s, C.byref(value))
    return value.value


class Relaxed:
    """This thread may make potentially unsafe calls, as spillshim's own do."""

    def __enter__(self):
        self.mode = C.c_int(RELAXED)
        call("cuThreadExchangeStreamCaptureMode", C.byref(self.mode))

    def __exit__(self, *_):
        call("cuThreadExchangeStreamCaptureMode", C.byref(self.mode))


UNSAFE = {
    "cuMemAlloc_v2": lambda s, p, vmm: (C.byref(C.c_uint64()), 4096),
    "cuMemFree_v2": lambda s, p, vmm: (p,),
    "cuMemHostAlloc": lambda s, p, vmm: (C.byref(C.c_void_p()), 4096, C.c_uint(0)),
    "cuStreamSynchronize": lambda s, p, vmm: (s,),
    "cuStreamQuery": lambda s, p, vmm: (s,),
    "cuCtxSynchronize": lambda s, p, vmm: (),
}
VMM = {
    "cuMemCreate": lambda s, p, vmm: (C.byref(C.c_uint64()), GRANULE, C.byref(prop()), 0),
    "cuMemMap": lambda s, p, vmm: (vmm[0] + GRANULE, GRANULE, 0, vmm[1], 0),
    "cuMemUnmap": lambda s, p, vmm: (vmm[0], GRANULE),
    "cuMemSetAccess": lambda s, p, vmm: (vmm[0], GRANULE, C.byref(Access(Location(DEVICE, 0), READWRITE)), 1),
}
VMM_SAFE = {
    "cuMemRelease": lambda s, p, vmm: (vmm[1],),
    "cuMemAddressReserve": lambda s, p, vmm: (C.byref(C.c_uint64()), GRANULE, 0, 0, 0),
}


def during_capture(name, arguments, mode=GLOBAL):
    """(what the call answered, whether the capture outlived it)"""
    p, s = alloc(4096), stream()
    base, handle = reserve(2 * GRANULE), create(GRANULE)
    map_at(base, GRANULE, handle)
    other = create(GRANULE)
    grant(base, GRANULE, DEVICE)
    vmm = (base, other if name in ("cuMemMap", "cuMemRelease") else handle)
    begin(s, mode)
    got = call(name, *arguments(s, p, vmm), want=ANY)
    alive = call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s, want=ANY) == OK
    end(s, want=(OK, CAPTURE_INVALIDATED))
    return got, alive


@belief("capture.unsafe_calls")
@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_calls_break_a_capture(name):
    got, alive = during_capture(name, UNSAFE[name])
    assert (got == OK) == alive, "a refusal breaks the capture, and nothing else does"
    saw("capture.unsafe_calls", 0 if (got, alive) == (CAPTURE_UNSUPPORTED, False) else 1, f"{name}: {got}")


@belief("capture.vmm_unsafe")
def test_vmm_calls_during_a_capture():
    seen = {name: during_capture(name, arguments) for name, arguments in {**VMM, **VMM_SAFE}.items()}
    for got, alive in seen.values():
        assert alive == (got == OK)
    codes = {name: got for name, (got, _) in seen.items()}
    allowed, refused = dict.fromkeys([*VMM, *VMM_SAFE], OK), dict.fromkeys(VMM, CAPTURE_UNSUPPORTED)
    pick("capture.vmm_unsafe", codes, {**allowed, "cuMemUnmap": CAPTURE_UNSUPPORTED}, {**allowed, **refused}, allowed)


@pytest.mark.parametrize("name", [*UNSAFE][:3] + [*VMM] + [*VMM_SAFE])
def test_a_relaxed_thread_may(name):
    """What spillshim relies on while an app captures."""
    p, s = alloc(4096), stream()
    base, handle = reserve(2 * GRANULE), create(GRANULE)
    map_at(base, GRANULE, handle)
    other = create(GRANULE)
    vmm = (base, other if name in ("cuMemMap", "cuMemRelease") else handle)
    begin(s)
    with Relaxed():
        call(name, *UNSAFE.get(name, VMM.get(name, VMM_SAFE.get(name)))(s, p, vmm))
    call("cuLaunchHostFunc", s, HOST_FN(lambda _: None), None)
    assert node_count(end(s)) == 1


@belief("capture.context_wide_breaks")
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
def test_context_wide_calls_break_a_capture_in_every_mode(mode):
    context, codes = C.c_void_p(), []
    call("cuCtxGetCurrent", C.byref(context))
    names = ["cuCtxSynchronize"] + (["cuCtxRecordEvent"] if version() >= 12050 else [])
    for name in names:
        arguments = (context, event()) if name == "cuCtxRecordEvent" else ()
        codes.append(during_capture(name, lambda *_: arguments, mode))
    pick("capture.context_wide_breaks", codes, [(CAPTURE_UNSUPPORTED, False)] * len(names))


@belief("capture.legacy_implicit")
def test_the_legacy_stream_beside_a_capture():
    p, s, apart = alloc(4096), stream(0), stream(NON_BLOCKING)
    begin(s)
    got = call("cuMemsetD8Async", p, C.c_ubyte(1), 16, None, want=ANY)
    broken = end(s, want=ANY)
    begin(apart)
    free_of_it = call("cuMemsetD8Async", p, C.c_ubyte(1), 16, None, want=ANY)
    end(apart, want=ANY)
    pick("capture.legacy_implicit", (got, broken, free_of_it), (CAPTURE_IMPLICIT, CAPTURE_INVALIDATED, OK))


@belief("capture.event_query_unsafe")
def test_asking_for_an_event_outside_during_a_capture():
    e = event()
    call("cuEventRecord", e, stream())
    call("cuEventSynchronize", e)
    seen = [during_capture(name, lambda *_: (e,)) for name in ("cuEventQuery", "cuEventSynchronize")]
    pick("capture.event_query_unsafe", seen, [(CAPTURE_UNSUPPORTED, False)] * 2, [(OK, True)] * 2)


def node_kinds(graph):
    nodes, count, kinds = (C.c_void_p * 8)(), C.c_size_t(8), []
    call("cuGraphGetNodes", graph, nodes, C.byref(count))
    for node in nodes[: count.value]:
        kind = C.c_int()
        call("cuGraphNodeGetType", C.c_void_p(node), C.byref(kind))
        kinds.append(kind.value)
    return sorted(kinds)


@belief("capture.external_events")
def test_external_events_become_nodes():
    e, s, outside = event(), stream(), stream()
    refused = [call("cuEventRecordWithFlags", e, outside, C.c_uint(1), want=ANY), call("cuStreamWaitEvent", outside, e, C.c_uint(1), want=ANY)]
    begin(s)
    call("cuEventRecordWithFlags", e, s, C.c_uint(1))
    call("cuStreamWaitEvent", s, e, C.c_uint(1))
    pick("capture.external_events", (refused, node_kinds(end(s))), ([INVALID] * 2, [6, 7]))


@belief("capture.mem_nodes")
def test_stream_ordered_memory_becomes_nodes():
    s, p, outside = stream(), C.c_uint64(), C.c_uint64()
    call("cuMemAllocAsync", C.byref(outside), 4096, s)
    begin(s)
    call("cuMemAllocAsync", C.byref(p), 4096, s)
    refused = call("cuMemFreeAsync", outside, s, want=ANY)
    call("cuMemFreeAsync", p, s)
    pick("capture.mem_nodes", (refused, node_kinds(end(s))), (INVALID, [10, 11]))


def test_work_is_recorded_and_not_done():
    p, s = alloc(4096), stream()
    fill(p, 1, 4096)
    begin(s)
    assert status(s) == 1
    call("cuMemsetD8Async", p, C.c_ubyte(2), 4096, s)
    graph = end(s)
    assert status(s) == 0 and node_count(graph) == 1 and read(p, 1) == b"\x01"


def test_another_stream_joins_by_an_event():
    p, s, t, fork, join = alloc(4096), stream(), stream(), event(), event()
    begin(s)
    call("cuEventRecord", fork, s)
    call("cuStreamWaitEvent", t, fork, C.c_uint(0))
    call("cuMemsetD8Async", p, C.c_ubyte(2), 16, t)
    assert status(t) == 1
    call("cuEventRecord", join, t)
    call("cuStreamWaitEvent", s, join, C.c_uint(0))
    call("cuMemsetD8Async", p, C.c_ubyte(3), 16, s)
    assert node_count(end(s)) == 2 and status(t) == 0


def test_a_stream_that_joined_and_was_not_joined_back():
    p, s, t, fork = alloc(4096), stream(), stream(), event()
    begin(s)
    call("cuEventRecord", fork, s)
    call("cuStreamWaitEvent", t, fork, C.c_uint(0))
    call("cuMemsetD8Async", p, C.c_ubyte(2), 16, t)
    end(s, want=CAPTURE_UNJOINED)
    call("cuMemsetD8Async", p, C.c_ubyte(2), 16, t)  # it left the capture
    call("cuStreamSynchronize", t)


def test_an_event_of_a_capture_cannot_be_asked():
    s, e = stream(), event()
    begin(s)
    call("cuEventRecord", e, s)
    call("cuEventQuery", e, want=CAPTURED_EVENT)
    end(s, want=CAPTURE_INVALIDATED)


def test_a_capture_does_not_wait_for_work_outside():
    s, t, e = stream(), stream(), event()
    call("cuEventRecord", e, t)
    begin(s)
    call("cuStreamWaitEvent", s, e, C.c_uint(0), want=CAPTURE_ISOLATION)
    end(s, want=CAPTURE_INVALIDATED)


def test_captures_that_cannot_begin_or_end():
    s = stream()
    begin(None, want=CAPTURE_UNSUPPORTED)
    end(s, want=ILLEGAL_STATE)
    begin(s, mode=9, want=INVALID)
    begin(s)
    begin(s, want=ILLEGAL_STATE)
    end(s, want=(OK, CAPTURE_INVALIDATED))


def test_a_stream_that_goes_takes_its_capture_along():
    s = stream()
    begin(s)
    call("cuStreamDestroy_v2", s)
    call("cuCtxSynchronize")


def test_a_new_capture_after_a_broken_one():
    p, s = alloc(4096), stream()
    begin(s)
    call("cuCtxSynchronize", want=CAPTURE_UNSUPPORTED)
    assert status(s) == 2
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s, want=CAPTURE_INVALIDATED)
    end(s, want=CAPTURE_INVALIDATED)
    begin(s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
    assert node_count(end(s)) == 1


@pytest.mark.parametrize("capture, thread, allowed", [
    (GLOBAL, GLOBAL, False), (GLOBAL, THREAD_LOCAL, True), (GLOBAL, RELAXED, True), (THREAD_LOCAL, GLOBAL, True), (RELAXED, GLOBAL, True),
])  # fmt: skip
def test_calls_of_another_thread(capture, thread, allowed):
    context, s, out = C.c_void_p(), stream(), []
    call("cuCtxGetCurrent", C.byref(context))
    begin(s, capture)

    def other():
        call("cuCtxSetCurrent", context)
        call("cuThreadExchangeStreamCaptureMode", C.byref(C.c_int(thread)))
        out.append(call("cuMemAlloc_v2", C.byref(C.c_uint64()), 4096, want=ANY))
        out.append(call("cuStreamEndCapture", s, C.byref(C.c_void_p()), want=ANY))

    worker = threading.Thread(target=other)
    worker.start()
    worker.join()
    assert out[0] == (OK if allowed else CAPTURE_UNSUPPORTED)
    if capture != RELAXED:
        assert out[1] == CAPTURE_WRONG_THREAD
        end(s, want=OK if allowed else CAPTURE_INVALIDATED)
    else:
        assert out[1] == OK


def test_the_mode_of_a_thread_is_handed_back():
    mode = C.c_int(RELAXED)
    call("cuThreadExchangeStreamCaptureMode", C.byref(mode))
    assert mode.value == GLOBAL
    call("cuThreadExchangeStreamCaptureMode", C.byref(mode))
    assert mode.value == RELAXED
    call("cuThreadExchangeStreamCaptureMode", C.byref(C.c_int(7)), want=INVALID)


def test_a_captured_copy_reads_at_each_launch():
    p, s, source, exe = alloc(4096), stream(), pinned(16), C.c_void_p()
    begin(s)
    call("cuMemcpyHtoDAsync_v2", p, source, 16, s)
    call("cuGraphInstantiateWithFlags", C.byref(exe), end(s), 0)
    for value in (1, 2):
        C.memset(source, value, 16)
        call("cuGraphLaunch", exe, s)
        call("cuStreamSynchronize", s)
        assert read(p, 2) == bytes([value] * 2)
