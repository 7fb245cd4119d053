# SPDX-License-Identifier: Apache-2.0
"""The simulated driver's task engine and its edges: many streams, contexts side by side, host functions, ends of threads and processes."""

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

FAULT = """
def fault(s=None):
    p, handle = backed(DEVICE)
    gate = Gate().close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
    call("cuMemUnmap", p, GRANULE)
    gate.open()
CALLBACK = C.CFUNCTYPE(None, C.c_void_p, C.c_int, C.c_void_p)
"""


def test_host_functions_may_not_call_cuda(simgpu):
    drive(simgpu, FAULT + """
start()
s, got = stream(), []
def body():
    got.append([cu.cuCtxSynchronize(), cu.cuStreamQuery(None), cu.cuEventCreate(C.byref(C.c_void_p()), C.c_uint(0)), cu.cuInit(0)])
fn, callback = HOST_FN(lambda _: body()), CALLBACK(lambda s, r, _: body())
call("cuLaunchHostFunc", s, fn, None)
call("cuStreamAddCallback", s, callback, None, C.c_uint(0))
call("cuStreamSynchronize", s)
assert got == [[800, 800, 800, 0]] * 2, got                      # NOT_PERMITTED; cuInit has nothing to do any more
call("cuLaunchHostFunc_v2", s, fn, None, C.c_uint(2), want=INVALID)
call("cuLaunchHostFunc", s, None, None, want=INVALID)
call("cuStreamAddCallback", s, callback, None, C.c_uint(1), want=INVALID)
""")


def test_host_functions_may_where_that_is_believed(simgpu):
    drive(simgpu, FAULT + """
start()
context, got, s = C.c_void_p(), [], stream()
call("cuCtxGetCurrent", C.byref(context))
def body():
    got.append(cu.cuCtxSetCurrent(context) or cu.cuMemAlloc_v2(C.byref(C.c_uint64()), C.c_size_t(4096)))
fn, callback = HOST_FN(lambda _: body()), CALLBACK(lambda s, r, _: body())
call("cuLaunchHostFunc", s, fn, None)
call("cuStreamAddCallback", s, callback, None, C.c_uint(0))
call("cuStreamSynchronize", s)
assert got == [0, 800], got
""", DOUBT="order.host_functions_call_nothing")


def test_callbacks_see_the_fault_and_host_functions_do_not_run(simgpu):
    drive(simgpu, FAULT + """
start()
s, seen = stream(), []
fn, callback = HOST_FN(lambda _: seen.append("function")), CALLBACK(lambda s, r, data: seen.append((s, r, data)))
call("cuStreamAddCallback", s, callback, C.c_void_p(7), C.c_uint(0))
gate = Gate()
p, handle = backed(DEVICE)
gate.close(s)
call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
call("cuLaunchHostFunc", s, fn, None)
call("cuStreamAddCallback", s, callback, C.c_void_p(8), C.c_uint(0))
call("cuMemUnmap", p, GRANULE)
gate.open()
call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
assert seen == [(s.value, 0, 7), (s.value, ILLEGAL_ADDRESS, 8)], seen
""")


def test_a_callback_breaks_a_capture(simgpu):
    drive(simgpu, FAULT + """
start()
s, graph, callback = stream(), C.c_void_p(), CALLBACK(lambda s, r, data: None)
call("cuStreamBeginCapture_v2", s, C.c_int(RELAXED))
call("cuStreamAddCallback", s, callback, None, C.c_uint(0), want=CAPTURE_UNSUPPORTED)
call("cuStreamEndCapture", s, C.byref(graph), want=CAPTURE_INVALIDATED)
""")


def test_every_entry_of_streams_and_events_says_the_context_s_error(simgpu):
    drive(simgpu, FAULT + """
context = start()
s, other, e, done, out, ms = stream(), stream(), event(), event(), C.c_void_p(), C.c_float()
call("cuEventRecord", done, other)
fault(s)
call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
fn = HOST_FN(lambda _: None)
callback = CALLBACK(lambda s, r, _: None)
number, big = C.c_int(), C.c_uint64()
for name, *args in (
    ("cuStreamCreate", C.byref(out), C.c_uint(0)), ("cuStreamCreateWithPriority", C.byref(out), C.c_uint(0), C.c_int(0)),
    ("cuStreamSynchronize", other), ("cuStreamQuery", other), ("cuStreamQuery", None), ("cuStreamWaitEvent", other, done, C.c_uint(0)),
    ("cuEventCreate", C.byref(out), C.c_uint(0)), ("cuEventRecord", e, other), ("cuEventRecordWithFlags", e, other, C.c_uint(0)),
    ("cuEventQuery", done), ("cuEventSynchronize", done), ("cuEventElapsedTime", C.byref(ms), done, done),
    ("cuEventElapsedTime_v2", C.byref(ms), done, done), ("cuCtxRecordEvent", context, e), ("cuCtxWaitEvent", context, done),
    ("cuCtxSynchronize",), ("cuCtxSynchronize_v2", context), ("cuLaunchHostFunc", other, fn, None),
    ("cuStreamAddCallback", other, callback, None, C.c_uint(0)), ("cuStreamGetFlags", other, C.byref(number)),
    ("cuStreamGetPriority", other, C.byref(number)), ("cuStreamGetId", other, C.byref(big)), ("cuStreamGetCtx", other, C.byref(out)),
    ("cuStreamGetCtx_v2", other, C.byref(out), None), ("cuStreamGetDevice", other, C.byref(number)),
    ("cuStreamGetAttribute", other, C.c_int(1), C.create_string_buffer(256)), ("cuStreamBeginCapture_v2", other, C.c_int(RELAXED)),
    ("cuStreamCopyAttributes", other, s), ("cuEventDestroy_v2", e), ("cuStreamDestroy_v2", other),
):
    call(name, *args, want=ILLEGAL_ADDRESS)
call("cuStreamDestroy_v2", other, want=INVALID_HANDLE)           # gone all the same
""")


def test_properties_of_streams(simgpu):
    drive(simgpu, """
context = start()
least, greatest, number, ident, out, green = C.c_int(), C.c_int(), C.c_int(), C.c_uint64(), C.c_void_p(), C.c_void_p(5)
call("cuCtxGetStreamPriorityRange", C.byref(least), C.byref(greatest))
assert (least.value, greatest.value) == (0, -5)
for asked, given in ((0, 0), (3, 0), (-2, -2), (-9, -5)):        # out of range is clamped
    s = C.c_void_p()
    call("cuStreamCreateWithPriority", C.byref(s), C.c_uint(1), C.c_int(asked))
    call("cuStreamGetPriority", s, C.byref(number))
    assert number.value == given
    call("cuStreamGetFlags", s, C.byref(number))
    assert number.value == 1
call("cuStreamCreate", C.byref(out), C.c_uint(2), want=INVALID)
call("cuStreamCreate", None, C.c_uint(0), want=INVALID)
call("cuStreamGetCtx_v2", s, C.byref(out), C.byref(green))
assert (out.value, green.value) == (context.value, None)
ids = []
for handle in (s, None, C.c_void_p(1), C.c_void_p(2)):
    call("cuStreamGetId", handle, C.byref(ident))
    ids.append(ident.value)
assert ids[1] == ids[2] and len(set(ids)) == 3                   # NULL is the legacy stream, the thread's is another
call("cuStreamGetId_ptsz", None, C.byref(ident))
assert ident.value == ids[3]
call("cuStreamGetId", s, None, want=INVALID)
""")


def test_events(simgpu):
    drive(simgpu, """
start()
s, e, blocking, quiet, ms = stream(), event(), C.c_void_p(), C.c_void_p(), C.c_float()
call("cuEventCreate", C.byref(blocking), C.c_uint(1))
call("cuEventCreate", C.byref(quiet), C.c_uint(2))
call("cuEventCreate", C.byref(C.c_void_p()), C.c_uint(4), want=INVALID)          # INTERPROCESS needs DISABLE_TIMING
call("cuEventCreate", C.byref(C.c_void_p()), C.c_uint(8), want=INVALID)
call("cuStreamWaitEvent", s, e, C.c_uint(0))                     # never recorded: nothing to wait for
call("cuStreamQuery", s)
call("cuEventSynchronize", e)
call("cuEventRecord", blocking, s)
call("cuEventRecord", quiet, s)
call("cuStreamSynchronize", s)
call("cuEventElapsedTime", C.byref(ms), blocking, quiet, want=INVALID_HANDLE)
call("cuEventElapsedTime", C.byref(ms), blocking, e, want=INVALID_HANDLE)
call("cuEventElapsedTime", None, blocking, blocking, want=INVALID)
call("cuEventRecordWithFlags", e, s, C.c_uint(1), want=INVALID)  # EXTERNAL means something in a capture only
call("cuEventRecordWithFlags", e, s, C.c_uint(2), want=INVALID)
call("cuStreamWaitEvent", s, e, C.c_uint(1), want=INVALID)
call("cuStreamWaitEvent", s, None, C.c_uint(0), want=INVALID_HANDLE)
# Recording again: who waited before waits for the first, who waits later for the second.
a, b, c, log = stream(), stream(), stream(), []
notes = [HOST_FN(lambda _, n=n: log.append(n)) for n in "bc"]
call("cuEventRecord", e, a)
call("cuStreamWaitEvent", b, e, C.c_uint(0))
gate = Gate().close(a)
call("cuEventRecord", e, a)
call("cuStreamWaitEvent", c, e, C.c_uint(0))
call("cuLaunchHostFunc", c, notes[1], None)
call("cuLaunchHostFunc", b, notes[0], None)
call("cuStreamSynchronize", b)
call("cuEventQuery", e, want=NOT_READY)
call("cuEventElapsedTime", C.byref(ms), blocking, e, want=NOT_READY)
assert log == ["b"]
call("cuEventDestroy_v2", e)                                     # before it is complete
gate.open()
call("cuCtxSynchronize")
assert log == ["b", "c"]
""")


def test_contexts_side_by_side(simgpu):
    drive(simgpu, """
first = start()
second, e1, e2 = C.c_void_p(), event(), C.c_void_p()
a, p = stream(0), alloc(MIB)
call("cuCtxCreate_v2", C.byref(second), C.c_uint(0), C.c_int(0))
b, q, e2 = stream(0), alloc(MIB), event()
gate = Gate()
call("cuCtxSetCurrent", first)
gate.close(None)                                                 # the first context's legacy stream
call("cuStreamQuery", a)
call("cuMemsetD8Async", p, C.c_ubyte(1), MIB, a)
call("cuEventRecord", e1, a)
call("cuEventRecord", e2, a, want=INVALID_HANDLE)                # an event of the other context
call("cuCtxSetCurrent", second)
call("cuMemsetD8Async", q, C.c_ubyte(2), MIB, b)                 # its blocking streams know nothing of that
call("cuCtxSynchronize")
call("cuStreamWaitEvent", b, e1, C.c_uint(0))                    # but they can wait for its events
call("cuMemsetD8Async", q, C.c_ubyte(3), MIB, b)
call("cuStreamQuery", b, want=NOT_READY)
call("cuEventQuery", e1, want=NOT_READY)
gate.open()
call("cuStreamSynchronize", b)
call("cuEventQuery", e1)
assert read(q, 1) == b"\\x03" and read(p, 1) == b"\\x01"
""")


def test_a_context_s_wait_holds_for_streams_made_later(simgpu):
    drive(simgpu, """
context = start()
a, b, e = stream(), stream(), event()
gate = Gate().close(a)
call("cuEventRecord", e, a)
call("cuCtxWaitEvent", context, e)
later = stream()
for s in (b, later, None):
    call("cuStreamQuery", s, want=NOT_READY)
gate.open()
call("cuCtxSynchronize")
for s in (b, later, stream(), None):
    call("cuStreamQuery", s)
graph = C.c_void_p()
call("cuStreamBeginCapture_v2", a, C.c_int(RELAXED))
call("cuCtxWaitEvent", context, e, want=CAPTURE_UNSUPPORTED)
call("cuStreamEndCapture", a, C.byref(graph), want=CAPTURE_INVALIDATED)
""")


@pytest.mark.no_sanitizer("its runtime has a thread of its own", only="thread")
def test_a_stream_without_work_has_no_thread(simgpu):
    drive(simgpu, """
start()
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
streams = [stream(n % 2) for n in range(200)]
gate = Gate().close(streams[0])
e = event()
call("cuEventRecord", e, streams[0])
for s in streams[1:]:
    call("cuStreamWaitEvent", s, e, C.c_uint(0))
    call("cuEventRecord", e, s)                                  # a chain over all of them
call("cuStreamQuery", streams[-1], want=NOT_READY)
assert threads() == before + 1, "one for the host function"
gate.open()
call("cuEventSynchronize", e)
for s in streams:
    call("cuStreamDestroy_v2", s)
call("cuCtxSynchronize")
deadline = time.monotonic() + 20
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
assert threads() == before
""")


def test_many_streams_finish_what_they_wait_for(simgpu):
    """No wake-up is lost: chains over streams with workers, waited for by several threads at once."""
    drive(simgpu, """
context = start()
streams, ran, failed = [stream(n % 2) for n in range(40)], [], []
note = HOST_FN(lambda _: ran.append(1))
for turn in range(20):
    for n, s in enumerate(streams):
        e = event()
        call("cuEventRecord", e, streams[n - 1])
        call("cuStreamWaitEvent", s, e, C.c_uint(0))
        call("cuLaunchHostFunc", s, note, None)
        call("cuEventDestroy_v2", e)
def wait(n):
    try:
        call("cuCtxSetCurrent", context)
        for s in streams[n::4]:
            call("cuStreamSynchronize", s)
        call("cuCtxSynchronize")
        assert len(ran) == 800, len(ran)
    except AssertionError as e:
        failed.append(e)
threads = [threading.Thread(target=wait, args=(n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert not failed, failed
""")


def test_a_thread_ends_before_the_work_of_its_stream(simgpu):
    drive(simgpu, """
context = start()
gate, ran, p = Gate(), [], alloc(MIB)
note = HOST_FN(lambda _: ran.append(1))
def other():
    call("cuCtxSetCurrent", context)
    call("cuLaunchHostFunc_ptsz", None, gate._callback, None)
    call("cuLaunchHostFunc_ptsz", None, note, None)
t = threading.Thread(target=other); t.start(); t.join()
gate.open()
deadline = time.monotonic() + 20
while not ran and time.monotonic() < deadline:
    time.sleep(0.001)
assert ran
call("cuCtxSynchronize")
""")


@pytest.mark.parametrize("how", ["sys.exit(0)", "os._exit(0)", "call('cuDevicePrimaryCtxReset_v2', C.c_int(0))"])
def test_a_process_ends_while_streams_work(simgpu, how):
    """Spinning host functions, waits for words and queued copies do not hold up the end of a process."""
    drive(simgpu, f"""
start()
a, b, h = stream(), stream(), C.c_void_p()
call("cuMemHostAlloc", C.byref(h), 4096, C.c_uint(2))
call("cuStreamWaitValue32_v2", a, h, C.c_uint(1), C.c_uint(1))
d = alloc(64 * MIB)
for n in range(50):
    call("cuMemsetD8Async", d, C.c_ubyte(n), 64 * MIB, b)
{how}
""")


@pytest.mark.no_sanitizer("gcc's AddressSanitizer keeps its allocator's lock over a fork if another thread has it: its children hang", only="address")
def test_a_child_ends_without_the_parent_s_locks(simgpu):
    drive(simgpu, """
context = start()
s, d, own = stream(), alloc(MIB), alloc(MIB)
call("cuMemsetD8Async_ptsz", own, C.c_ubyte(1), MIB, None)       # this thread owns a stream
stop = threading.Event()
def busy():
    call("cuCtxSetCurrent", context)
    while not stop.is_set():
        call("cuMemsetD8Async", d, C.c_ubyte(1), 64, s)
t = threading.Thread(target=busy); t.start()
for n in range(30):
    child = os.fork()
    if child == 0:
        ended = threading.Thread(target=lambda: cu.cuCtxSynchronize()); ended.start(); ended.join()
        os._exit(3 if cu.cuCtxSynchronize() == NOT_INITIALIZED else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
stop.set(); t.join()
call("cuCtxSynchronize")
""")


def test_attributes_of_streams(simgpu):
    drive(simgpu, """
start()
WINDOW, SYNC, PRIORITY, MAP, DOMAIN = 1, 3, 8, 9, 10
a, b, value = stream(), stream(), C.create_string_buffer(64)
word = C.c_int.from_buffer(value)
def get(s, which):
    call("cuStreamGetAttribute", s, C.c_int(which), value)
    return word.value
def put(s, which, number, want=OK):
    C.memset(value, 0, 64)
    word.value = number
    call("cuStreamSetAttribute", s, C.c_int(which), value, want=want)
assert (get(a, SYNC), get(a, PRIORITY), get(a, DOMAIN)) == (1, 0, 0)         # AUTO, least, DEFAULT
put(a, SYNC, 4)
put(a, SYNC, 5, want=INVALID)
put(a, SYNC, 0, want=INVALID)
put(a, PRIORITY, -9)                                             # clamped
put(a, DOMAIN, 2, want=INVALID)
put(a, MAP, 1, want=INVALID)                                     # there is one domain
call("cuStreamCopyAttributes", b, a)
assert (get(b, SYNC), get(b, PRIORITY)) == (4, -5)
priority = C.c_int()
call("cuStreamGetPriority", b, C.byref(priority))
assert priority.value == -5
for bad in (0, 2, 4, 99):                                        # not of streams
    call("cuStreamGetAttribute", a, C.c_int(bad), value, want=INVALID)
call("cuStreamGetAttribute", a, C.c_int(SYNC), None, want=INVALID)
call("cuStreamGetAttribute", C.c_void_p(0x1234), C.c_int(SYNC), value, want=INVALID_HANDLE)
context = C.c_void_p()
call("cuCtxCreate_v2", C.byref(context), C.c_uint(0), C.c_int(0))
call("cuStreamCopyAttributes", stream(), a, want=INVALID)        # of another context
""")
