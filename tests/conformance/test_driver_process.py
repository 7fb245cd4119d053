# SPDX-License-Identifier: Apache-2.0
"""Contexts, threads and processes: who may call, and what is left when something ends."""

import pytest
from conform import belief, lacks, own_process, pick, saw
from cudaclient import *  # noqa: F403


def current():
    context = C.c_void_p()
    call("cuCtxGetCurrent", C.byref(context))
    return context


@own_process
def test_before_init():
    call("cuMemAlloc_v2", C.byref(C.c_uint64()), 16, want=NOT_INITIALIZED)
    call("cuDeviceGetCount", C.byref(C.c_int()), want=NOT_INITIALIZED)
    call("cuInit", C.c_uint(1), want=INVALID)
    assert version() > 0
    call("cuInit", C.c_uint(0))
    call("cuInit", C.c_uint(0))


@own_process
def test_without_a_context():
    call("cuInit", C.c_uint(0))
    call("cuMemAlloc_v2", C.byref(C.c_uint64()), 16, want=INVALID_CONTEXT)
    call("cuStreamCreate", C.byref(C.c_void_p()), C.c_uint(0), want=INVALID_CONTEXT)
    call("cuCtxSynchronize", want=INVALID_CONTEXT)
    assert current().value is None


class Cookie(C.Structure):
    """cookie_io_functions_t of the C library."""

    WRITE = C.CFUNCTYPE(C.c_ssize_t, C.c_void_p, C.c_void_p, C.c_size_t)
    _fields_ = [("read", C.c_void_p), ("write", WRITE), ("seek", C.c_void_p), ("close", C.c_void_p)]


def asked_past_every_destructor(say):
    """What the driver answers when it has been told that the process ends. Files are flushed last, and one of them is ours."""
    libc = C.CDLL(None)
    libc.fopencookie.restype = C.c_void_p
    start()
    signal.alarm(50)  # a sanitizer looks for leaks first, which takes long on a machine with other work

    def flushed(cookie, data, size):
        os.write(say, str(cu.cuDeviceGetCount(C.byref(C.c_int()))).encode())
        return size

    functions = Cookie(write=Cookie.WRITE(flushed))
    libc.fputc(C.c_int(1), C.c_void_p(libc.fopencookie(None, b"w", functions)))
    libc.exit(0)


@own_process
@belief("process.fork_and_exit")
def test_a_forked_child_has_no_driver():
    late = in_a_child(asked_past_every_destructor)
    start()
    p = alloc(MIB)
    seen = in_a_child(lambda: call("cuMemAlloc_v2", C.byref(C.c_uint64()), 4096, want=ANY))
    init = in_a_child(lambda: call("cuInit", C.c_uint(0), want=ANY))
    assert seen != OK
    fill(p, 1, MIB)  # the child's end gave nothing back that is ours
    assert read(p, 1) == b"\x01"
    saw("process.fork_and_exit", None if (seen, init) != (NOT_INITIALIZED,) * 2 else {DEINITIALIZED: 0, OK: 1}.get(late), (seen, init, late))


@own_process
def test_a_child_of_fork_may_use_the_driver_that_its_parent_did_not():
    def work():
        start()
        return alloc(4096) == 0

    assert in_a_child(lambda: int(work())) == 0


@own_process
def test_the_primary_context_lives_by_count():
    first, second, flags, active = C.c_void_p(), C.c_void_p(), C.c_uint(), C.c_int()
    call("cuInit", C.c_uint(0))
    call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
    assert active.value == 0
    call("cuDevicePrimaryCtxRetain", C.byref(first), C.c_int(0))
    call("cuDevicePrimaryCtxRetain", C.byref(second), C.c_int(0))
    assert first.value == second.value
    call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
    assert active.value == 1
    call("cuCtxSetCurrent", first)
    p = alloc(4096)
    call("cuDevicePrimaryCtxRelease_v2", C.c_int(0))
    fill(p, 1, 4096)  # one holder is left
    call("cuDevicePrimaryCtxRelease_v2", C.c_int(0))
    call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
    assert active.value == 0
    call("cuDevicePrimaryCtxRelease_v2", C.c_int(0), want=INVALID_CONTEXT)
    call("cuDevicePrimaryCtxRetain", C.byref(first), C.c_int(0))
    call("cuCtxSetCurrent", first)
    alloc(4096)


@own_process
@belief("process.reset_keeps_retains")
def test_a_reset_releases_nothing():
    context, flags, active = C.c_void_p(), C.c_uint(), C.c_int()
    call("cuInit", C.c_uint(0))

    def state():
        call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
        return active.value

    call("cuDevicePrimaryCtxRetain", C.byref(context), C.c_int(0))
    got = {"before": state()}
    call("cuDevicePrimaryCtxReset_v2", C.c_int(0))
    got["reset"] = state()
    call("cuDevicePrimaryCtxRetain", C.byref(context), C.c_int(0))
    got["again"] = state()
    call("cuDevicePrimaryCtxRelease_v2", C.c_int(0))
    got["released once"] = state()
    got["second release"] = call("cuDevicePrimaryCtxRelease_v2", C.c_int(0), want=ANY)
    got["released twice"] = state()
    pick("process.reset_keeps_retains", got,
         {"before": 1, "reset": 0, "again": 1, "released once": 1, "second release": 0, "released twice": 0})  # fmt: skip


@own_process
def test_memory_ends_with_its_context():
    start()
    big = 256 * MIB
    before = used()
    own = new_context()
    alloc(big)
    assert used() - before >= big // 2
    call("cuCtxDestroy_v2", own)
    start()
    assert used() - before < big // 2


@own_process
def test_a_reset_frees_what_the_primary_context_held():
    start()
    before, big = used(), 256 * MIB
    alloc(big)
    call("cuDevicePrimaryCtxReset_v2", C.c_int(0))
    start()
    assert used() - before < big // 2


def test_the_stack_of_contexts():
    primary, popped = current(), C.c_void_p()
    own = new_context()
    assert current().value == own.value
    call("cuCtxPushCurrent_v2", primary)
    assert current().value == primary.value
    call("cuCtxPopCurrent_v2", C.byref(popped))
    assert (popped.value, current().value) == (primary.value, own.value)
    call("cuCtxPopCurrent_v2", C.byref(popped))
    assert (popped.value, current().value) == (own.value, primary.value)


def test_a_context_tells_of_itself():
    device, flags, api = C.c_int(-1), C.c_uint(), C.c_uint()
    call("cuCtxGetDevice", C.byref(device))
    assert device.value == 0
    call("cuCtxGetFlags", C.byref(flags))
    call("cuCtxGetApiVersion", current(), C.byref(api))
    assert api.value >= 3000


def test_each_thread_has_a_current_context_of_its_own():
    assert in_a_thread(lambda: current().value) is None
    assert in_a_thread(lambda: call("cuMemAlloc_v2", C.byref(C.c_uint64()), 4096, want=ANY)) == INVALID_CONTEXT
    context = current()

    def other():
        call("cuCtxSetCurrent", context)
        p = alloc(4096)
        free(p)
        return True

    assert in_a_thread(other)


@belief("copy.needs_own_grant")
@own_process
def test_memory_of_another_device_that_granted_nothing():
    count, context = C.c_int(), C.c_void_p()
    call("cuInit", C.c_uint(0))
    call("cuDeviceGetCount", C.byref(count))
    if count.value < 2:
        lacks("one device only")
    start()
    base, _ = backed(DEVICE)
    fill(base, 1, 16)
    call("cuDevicePrimaryCtxRetain", C.byref(context), C.c_int(1))
    call("cuCtxSetCurrent", context)
    out = (C.c_ubyte * 16)()
    result = call("cuMemcpyDtoH_v2", out, base, 16, want=ANY) or call("cuCtxSynchronize", want=ANY)
    saw("copy.needs_own_grant", 1 if result == OK else 0, f"a copy by a device without a grant: {result}")


def test_memory_of_another_context_is_reached():
    """Unified addressing: an allocation belongs to a context, its bytes to the device."""
    primary, p = current(), alloc(4096)
    fill(p, 3, 4096)
    own = new_context()
    q = alloc(4096)
    call("cuMemcpyDtoD_v2", q, p, 4096)
    call("cuCtxSynchronize")
    assert read(q, 2) == bytes([3, 3])
    call("cuCtxDestroy_v2", own)
    call("cuCtxSetCurrent", primary)


def test_streams_and_events_belong_to_their_context():
    primary, s, e = current(), stream(), event()
    own = new_context()
    call("cuEventRecord", e, s)  # both of the other context, whichever is current
    call("cuStreamSynchronize", s)
    mine = stream()
    call("cuEventRecord", e, mine, want=(INVALID_HANDLE, INVALID_CONTEXT))
    call("cuCtxDestroy_v2", own)
    call("cuCtxSetCurrent", primary)


def test_limits_of_a_context():
    value, before = C.c_size_t(), C.c_size_t()
    call("cuCtxGetLimit", C.byref(before), C.c_int(0))
    assert before.value >= 1024
    call("cuCtxSetLimit", C.c_int(0), before.value)
    call("cuCtxGetLimit", C.byref(value), C.c_int(0))
    assert value.value >= before.value
    call("cuCtxGetLimit", C.byref(value), C.c_int(999), want=(INVALID, UNSUPPORTED_LIMIT))


@pytest.mark.parametrize("name, arguments", [
    ("cuDevicePrimaryCtxRetain", lambda: (C.byref(C.c_void_p()), C.c_int(99))), ("cuDeviceGetCount", lambda: (None,)),
    ("cuCtxGetDevice", lambda: (None,)), ("cuMemGetInfo_v2", lambda: (None, None)), ("cuDriverGetVersion", lambda: (None,)),
])  # fmt: skip
def test_bad_arguments_of_contexts(name, arguments):
    assert call(name, *arguments(), want=ANY) in (INVALID, INVALID_DEVICE, *((OK,) if name == "cuMemGetInfo_v2" else ()))


@own_process
def test_two_processes_share_the_card():
    before = in_a_child(lambda: start() and used())

    def holder():
        start()
        alloc(256 * MIB)
        ready.write(b"x")
        ready.flush()
        os.read(done[0], 1)
        return 0

    said = os.pipe()
    ready, done = os.fdopen(said[1], "wb"), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            holder()
        finally:
            os._exit(0)
    assert os.read(said[0], 1) == b"x"
    start()
    held = used() - before
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    assert held >= 128 * MIB
    until = time.monotonic() + 10
    while used() - before >= 128 * MIB and time.monotonic() < until:
        time.sleep(0.01)
    assert used() - before < 128 * MIB
