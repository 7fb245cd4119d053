# SPDX-License-Identifier: Apache-2.0
"""Streams, default streams, events, host functions: what waits for what, and how faults spread."""

import pytest
from conform import belief, lacks, own_process, pick, saw
from cudaclient import *  # noqa: F403


def done(s):
    return call("cuStreamQuery", s, want=(OK, NOT_READY)) == OK


@belief("order.legacy_and_blocking")
def test_the_legacy_stream_and_the_others():
    p, alone = alloc(MIB), alloc(MIB)
    blocking, apart = stream(0), stream(NON_BLOCKING)
    gate = Gate().close(blocking)
    call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, None)  # legacy: waits for the blocking stream
    call("cuMemsetD8Async", alone, C.c_ubyte(2), 16, apart)
    call("cuStreamSynchronize", apart)  # does not
    held = not done(None)
    other = stream(0)
    call("cuMemsetD8Async", p, C.c_ubyte(3), MIB, other)  # waits for the legacy stream
    held_too = not done(other)
    gate.open()
    call("cuStreamSynchronize", other)
    pick("order.legacy_and_blocking", (held, held_too, done(None), read(p, 4)), (True, True, True, bytes([3]) * 4))


def test_the_per_thread_stream_is_each_threads_own():
    context, q = C.c_void_p(), alloc(MIB)
    call("cuCtxGetCurrent", C.byref(context))
    mine, gate, finished = C.c_void_p(2), Gate(), []
    gate.close(mine)

    def other():
        call("cuCtxSetCurrent", context)
        call("cuMemsetD8Async", q, C.c_ubyte(1), MIB, C.c_void_p(2))
        call("cuStreamSynchronize", C.c_void_p(2))
        finished.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(20)
    assert finished and not done(mine)
    gate.open()
    call("cuCtxSynchronize")


def test_a_stream_waits_for_an_event_of_another():
    p, a, b, e = alloc(MIB), stream(), stream(), event()
    gate = Gate().close(a)
    call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, a)
    call("cuEventRecord", e, a)
    call("cuStreamWaitEvent", b, e, C.c_uint(0))
    call("cuMemsetD8Async", p, C.c_ubyte(2), MIB, b)
    assert call("cuEventQuery", e, want=ANY) == NOT_READY and not done(b)
    gate.open()
    call("cuStreamSynchronize", b)
    assert read(p, 2) == bytes([2, 2])
    call("cuEventQuery", e)


def test_a_wait_is_for_the_record_before_it():
    a, b, e = stream(), stream(), event()
    call("cuEventRecord", e, a)
    call("cuStreamWaitEvent", b, e, C.c_uint(0))
    gate = Gate().close(a)
    call("cuEventRecord", e, a)  # the wait knows nothing of it
    call("cuStreamSynchronize", b)
    gate.open()


def test_events_that_were_never_recorded():
    first, second, s, ms = event(), event(), stream(), C.c_float()
    call("cuEventQuery", first)
    call("cuEventSynchronize", first)
    call("cuStreamWaitEvent", s, first, C.c_uint(0))
    call("cuEventElapsedTime", C.byref(ms), first, second, want=INVALID_HANDLE)


def test_time_between_events():
    p, s, first, second, ms = alloc(64 * MIB), stream(), event(), event(), C.c_float(-1)
    call("cuEventRecord", first, s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), 64 * MIB, s)
    call("cuEventRecord", second, s)
    call("cuEventSynchronize", second)
    call("cuEventElapsedTime", C.byref(ms), first, second)
    assert 0 < ms.value < 10_000
    call("cuEventElapsedTime", C.byref(ms), second, first)
    assert ms.value < 0


def test_events_without_timing():
    bare, timed, s, ms = C.c_void_p(), event(), stream(), C.c_float()
    call("cuEventCreate", C.byref(bare), C.c_uint(2))
    call("cuEventRecord", bare, s)
    call("cuEventRecord", timed, s)
    call("cuStreamSynchronize", s)
    call("cuEventElapsedTime", C.byref(ms), bare, timed, want=INVALID_HANDLE)


def test_time_of_an_event_that_is_not_ready():
    s, first, second, ms = stream(), event(), event(), C.c_float()
    call("cuEventRecord", first, s)
    gate = Gate().close(s)
    call("cuEventRecord", second, s)
    call("cuEventElapsedTime", C.byref(ms), first, second, want=NOT_READY)
    gate.open()


@belief("order.ctx_record_event")
def test_an_event_of_the_whole_context():
    if version() < 12050:
        lacks("cuCtxRecordEvent came with 12.5")
    context, e, p = C.c_void_p(), event(), alloc(4096)
    call("cuCtxGetCurrent", C.byref(context))
    gate = Gate().close(stream())
    call("cuCtxRecordEvent", context, e)
    covered = call("cuEventQuery", e, want=ANY) == NOT_READY
    later = stream()
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, later)
    waited, _ = waits(lambda: call("cuStreamSynchronize", later), gate)
    call("cuEventSynchronize", e)
    pick("order.ctx_record_event", (covered, waited), (True, False))


@belief("order.ctx_wait_event")
def test_a_context_waits_for_an_event():
    if version() < 12050:
        lacks("cuCtxWaitEvent came with 12.5")
    context, e, s, before = C.c_void_p(), event(), stream(), stream()
    call("cuCtxGetCurrent", C.byref(context))
    gate = Gate().close(s)
    call("cuEventRecord", e, s)
    call("cuCtxWaitEvent", context, e)
    later = stream()
    for each in (before, later):
        call("cuMemsetD8Async", alloc(4096), C.c_ubyte(1), 16, each)
    held = [not done(before), not done(later)]
    gate.open()
    call("cuCtxSynchronize")
    pick("order.ctx_wait_event", held, [True, True])


@belief("order.memops")
def test_streams_write_and_wait_for_words():
    s, p = stream(), alloc(4096)
    word = C.c_uint32.from_address(pinned(4, 2))
    word.value = 0
    call("cuStreamWriteValue32_v2", s, p, C.c_uint32(77), C.c_uint(0))
    call("cuStreamWaitValue32_v2", s, C.addressof(word), C.c_uint32(5), C.c_uint(1))  # until it equals
    call("cuStreamWriteValue32_v2", s, p + 4, C.c_uint32(78), C.c_uint(0))
    held = not done(s)
    word.value = 5
    call("cuStreamSynchronize", s)
    unaligned = call("cuStreamWriteValue32_v2", s, p + 1, C.c_uint32(1), C.c_uint(0), want=ANY)
    pick("order.memops", (held, read(p, 8), unaligned), (True, bytes([77, 0, 0, 0, 78, 0, 0, 0]), INVALID))


@belief("order.memops_v1")
def test_the_first_form_of_memory_operations():
    s, p = stream(), alloc(4096)
    seen = (call("cuStreamWriteValue32", s, p, C.c_uint32(1), C.c_uint(0), want=ANY), attribute(92), attribute(94))
    pick("order.memops_v1", seen, (NOT_SUPPORTED, 0, 0), (OK, 1, 1))


@belief("order.host_functions_call_nothing")
@own_process
def test_a_host_function_that_calls_the_driver():
    start()
    s, seen, count = stream(), [], C.c_int()
    ask = HOST_FN(lambda _: seen.append(cu.cuDeviceGetCount(C.byref(count))))
    cu.cuDeviceGetCount(C.byref(count))  # looked up before: the loader is no place for a stream's thread
    call("cuLaunchHostFunc", s, ask, None)
    call("cuStreamSynchronize", s)
    pick("order.host_functions_call_nothing", seen, [NOT_PERMITTED], [OK])


CALLBACK = C.CFUNCTYPE(None, C.c_void_p, C.c_int, C.c_void_p)


@belief("order.callback_after_fault")
@own_process
def test_callbacks_and_host_functions_after_a_fault():
    start()
    s, called, ran = stream(), [], []
    callback, function = CALLBACK(lambda _, status, __: called.append(status)), HOST_FN(lambda _: ran.append(1))
    base = reserve(GRANULE)
    gate = Gate().close(s)
    launch(kernel("xp_fill"), base, GRANULE // 8, 1, stream=s)
    call("cuStreamAddCallback", s, callback, None, C.c_uint(0))
    call("cuLaunchHostFunc", s, function, None)
    gate.open()
    call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
    until = time.monotonic() + 5
    while not called and time.monotonic() < until:
        time.sleep(0.001)
    pick("order.callback_after_fault", (called, ran), ([ILLEGAL_ADDRESS], []))


def test_host_functions_run_in_their_place():
    p, s, seen, out = alloc(4096), stream(), [], pinned(16)
    note = HOST_FN(lambda _: seen.append(C.string_at(out, 1)))
    call("cuMemsetD8Async", p, C.c_ubyte(6), 16, s)
    call("cuMemcpyDtoHAsync_v2", out, p, 16, s)
    call("cuLaunchHostFunc", s, note, None)
    call("cuMemsetD8Async", p, C.c_ubyte(7), 16, s)
    call("cuMemcpyDtoHAsync_v2", out, p, 16, s)
    call("cuStreamSynchronize", s)
    assert seen == [b"\x06"] and C.string_at(out, 1) == b"\x07"


def test_a_synchronise_waits_for_all_streams():
    s = stream()
    gate = Gate().close(s)
    waited, _ = waits(lambda: call("cuCtxSynchronize"), gate)
    assert waited


def test_priorities():
    least, greatest, s, found = C.c_int(), C.c_int(), C.c_void_p(), C.c_int()
    call("cuCtxGetStreamPriorityRange", C.byref(least), C.byref(greatest))
    assert greatest.value <= least.value
    for asked, expected in ((greatest.value, greatest.value), (greatest.value - 100, greatest.value), (100, least.value)):
        call("cuStreamCreateWithPriority", C.byref(s), C.c_uint(1), C.c_int(asked))
        call("cuStreamGetPriority", s, C.byref(found))
        assert found.value == expected


def test_what_a_stream_says_of_itself():
    flags, context, mine = C.c_uint(), C.c_void_p(), C.c_void_p()
    ids = set()
    for asked in (0, 1):
        s, ident = stream(asked), C.c_ulonglong()
        call("cuStreamGetFlags", s, C.byref(flags))
        assert flags.value == asked
        if version() >= 12000:
            call("cuStreamGetId", s, C.byref(ident))
            ids.add(ident.value)
    assert len(ids) != 1
    call("cuStreamGetCtx", s, C.byref(context))
    call("cuCtxGetCurrent", C.byref(mine))
    assert context.value == mine.value


@pytest.mark.parametrize("name, arguments", [
    ("cuStreamCreate", lambda: (None, C.c_uint(0))), ("cuStreamCreate", lambda: (C.byref(C.c_void_p()), C.c_uint(77))),
    ("cuEventCreate", lambda: (None, C.c_uint(0))), ("cuEventCreate", lambda: (C.byref(C.c_void_p()), C.c_uint(0x80))),
    ("cuLaunchHostFunc", lambda: (None, None, None)), ("cuEventCreate", lambda: (C.byref(C.c_void_p()), C.c_uint(4))),
])  # fmt: skip
def test_bad_arguments(name, arguments):
    call(name, *arguments(), want=INVALID)


def test_destroying_a_stream_lets_its_work_finish():
    p, s = alloc(4096), stream()
    gate = Gate().close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(8), 4096, s)
    waited, _ = waits(lambda: call("cuStreamDestroy_v2", s), gate)
    call("cuCtxSynchronize")
    assert read(p, 1) == b"\x08" and not waited


def test_destroying_an_event_that_is_awaited():
    p, a, b, e = alloc(4096), stream(), stream(), event()
    gate = Gate().close(a)
    call("cuEventRecord", e, a)
    call("cuStreamWaitEvent", b, e, C.c_uint(0))
    call("cuEventDestroy_v2", e)
    call("cuMemsetD8Async", p, C.c_ubyte(3), 16, b)
    assert not done(b)
    gate.open()
    call("cuStreamSynchronize", b)


@own_process
@belief("order.fault_is_sticky")
def test_a_fault_is_every_later_calls_error():
    start()
    s, p, out, ran = stream(), alloc(4096), pinned(16), []
    C.memset(out, 9, 16)
    base = reserve(GRANULE)
    launch(kernel("xp_fill"), base, GRANULE // 8, 1, stream=s)
    call("cuMemcpyDtoHAsync_v2", out, p, 16, s, want=ANY)
    codes = [
        call("cuStreamSynchronize", s, want=ANY),
        call("cuCtxSynchronize", want=ANY),
        call("cuMemAlloc_v2", C.byref(C.c_uint64()), 4096, want=ANY),
        call("cuMemcpyDtoH_v2", C.c_void_p(out), p, 16, want=ANY),
        call("cuStreamQuery", None, want=ANY),
        call("cuStreamCreate", C.byref(C.c_void_p()), C.c_uint(0), want=ANY),
    ]
    untouched = C.string_at(out, 16) == bytes([9]) * 16
    assert OK not in codes[:3]
    pick("order.fault_is_sticky", (set(codes), untouched), ({ILLEGAL_ADDRESS}, True))


@own_process
@pytest.mark.parametrize("way", ["cuDevicePrimaryCtxReset_v2"])
def test_a_reset_heals_the_process(way):
    """What a debugger's user does not get on every driver: so only that nothing hangs or crashes is asked."""
    start()
    launch(kernel("xp_fill"), reserve(GRANULE), GRANULE // 8, 1)
    call("cuCtxSynchronize", want=ILLEGAL_ADDRESS)
    call(way, C.c_int(0), want=ANY)
    context = C.c_void_p()
    if call("cuDevicePrimaryCtxRetain", C.byref(context), C.c_int(0), want=ANY) == OK:
        call("cuCtxSetCurrent", context, want=ANY)
        call("cuCtxSynchronize", want=(OK, ILLEGAL_ADDRESS))
