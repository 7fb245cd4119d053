# SPDX-License-Identifier: Apache-2.0
"""Green contexts where the conformance suite does not look: bad arguments, resets, faults, and what is refused."""

from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

CLIENT = "from test_driver_green import *\n"


def test_bad_arguments(simgpu):  # noqa: F811
    drive(
        simgpu,
        CLIENT
        + """
start()
r, out, count = whole(), Resource(), C.c_uint(1)
call("cuDeviceGetDevResource", C.c_int(0), C.byref(out), C.c_int(WORKQUEUE_CONFIG), want=INVALID_RESOURCE_TYPE)
call("cuDeviceGetDevResource", C.c_int(0), None, C.c_int(SM), want=INVALID)
call("cuDeviceGetDevResource", C.c_int(5), C.byref(out), C.c_int(SM), want=INVALID_DEVICE)
forged = Resource(type=SM, sms=2)
split(forged, 1, 1, want=INVALID_CONFIGURATION)
described(forged, want=INVALID_CONFIGURATION)
described(r, r, want=INVALID_CONFIGURATION)
(one, two), rest = split(r, 2, 2)
assert (one.sms, two.sms, rest.type) == (2, 2, 0)
assert described(one, two).value
described(one, one, two, want=INVALID_CONFIGURATION)
call("cuDevResourceGenerateDesc", C.byref(C.c_void_p()), None, C.c_uint(0), want=INVALID)
g = C.c_void_p()
call("cuGreenCtxCreate", C.byref(g), C.c_void_p(8), C.c_int(0), C.c_uint(1), want=INVALID)
call("cuGreenCtxCreate", C.byref(g), described(r), C.c_int(3), C.c_uint(1), want=INVALID_DEVICE)
call("cuGreenCtxCreate", C.byref(g), described(r), C.c_int(0), C.c_uint(6), want=INVALID)
g, ident, other = green(one), C.c_uint64(), C.c_uint64()
call("cuGreenCtxGetId", None, C.byref(ident), want=INVALID_CONTEXT)
call("cuGreenCtxGetId", g, C.byref(ident))
call("cuCtxSetCurrent", context_of(g))
call("cuGreenCtxGetId", None, C.byref(other))
assert ident.value == other.value != 0
call("cuStreamGetGreenCtx", None, C.byref(out_green := C.c_void_p()))
assert out_green.value == g.value
call("cuStreamGetCtx", C.c_void_p(2), C.byref(C.c_void_p()), want=INVALID_HANDLE)  # CU_STREAM_PER_THREAD
call("cuCtxDestroy_v2", context_of(g), want=INVALID_CONTEXT)
call("cuGreenCtxDestroy", g)
call("cuGreenCtxDestroy", g, want=INVALID_CONTEXT)
call("cuCtxSynchronize", want=709)
call("cuCtxFromGreenCtx", C.byref(C.c_void_p()), g, want=INVALID_CONTEXT)
green_stream(g, want=INVALID_CONTEXT)
""",
    )


def test_it_holds_its_primary_context(simgpu):  # noqa: F811
    drive(
        simgpu,
        CLIENT
        + """
start()
g = green(whole())
active, flags = C.c_int(), C.c_uint()
call("cuDevicePrimaryCtxRelease_v2", C.c_int(0))
call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
assert active.value == 1
call("cuCtxSetCurrent", context_of(g))
alloc(MIB)
call("cuGreenCtxDestroy", g)
call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
assert active.value == 0
start()
g = green(whole())
view = context_of(g)
call("cuCtxSetCurrent", view)
call("cuDevicePrimaryCtxReset_v2", C.c_int(0))
call("cuCtxSynchronize", want=709)
call("cuCtxSetCurrent", view, want=INVALID_CONTEXT)
call("cuGreenCtxDestroy", g)
start()
call("cuDevicePrimaryCtxRelease_v2", C.c_int(0))
call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
assert active.value == 1                              # the reset released nothing
call("cuDevicePrimaryCtxRelease_v2", C.c_int(0))
call("cuDevicePrimaryCtxGetState", C.c_int(0), C.byref(flags), C.byref(active))
assert active.value == 0
call("cuDevicePrimaryCtxRelease_v2", C.c_int(0), want=INVALID_CONTEXT)
""",
    )


def test_a_fault_is_the_primary_contexts(simgpu):  # noqa: F811
    drive(
        simgpu,
        CLIENT
        + """
primary = start()
g = green(whole())
call("cuCtxSetCurrent", context_of(g))
p, _ = backed(DEVICE)
s, gate = stream(), Gate()
gate.close(s)
call("cuMemsetD8Async", p, C.c_ubyte(1), GRANULE, s)
unmap(p, GRANULE)
gate.open()
call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
call("cuCtxSetCurrent", primary)
call("cuCtxSynchronize", want=ILLEGAL_ADDRESS)
green_stream(g, want=ILLEGAL_ADDRESS)
""",
    )
