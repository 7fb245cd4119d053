# SPDX-License-Identifier: Apache-2.0
"""Green contexts: shares of a device's multiprocessors, which share everything else with the primary context."""

from conform import belief, entry, own_process, pick
from cudaclient import *  # noqa: F403

SM, WORKQUEUE_CONFIG = 1, 1000
INVALID_RESOURCE_TYPE, INVALID_CONFIGURATION, DETACHED = 914, 915, 917


class Resource(C.Structure):
    _fields_ = [("type", C.c_int), ("internal", C.c_ubyte * 92), ("sms", C.c_uint), ("least", C.c_uint), ("step", C.c_uint),
                ("flags", C.c_uint), ("domain", C.c_uint), ("rest", C.c_ubyte * 20), ("next", C.c_void_p)]  # fmt: skip


def whole():
    """The multiprocessors of the device."""
    entry("cuGreenCtxCreate")
    assert C.sizeof(Resource) == 144
    found = Resource()
    call("cuDeviceGetDevResource", C.c_int(0), C.byref(found), C.c_int(SM))
    assert found.type == SM and found.sms == attribute(16)
    return found


def split(resource, groups, least, want=OK):
    """(groups made, the rest)"""
    made, count, rest = (Resource * groups)(), C.c_uint(groups), Resource()
    call("cuDevSmResourceSplitByCount", made, C.byref(count), C.byref(resource), C.byref(rest), C.c_uint(0), C.c_uint(least), want=want)
    return list(made)[: count.value], rest


def described(*resources, want=OK):
    desc = C.c_void_p()
    call("cuDevResourceGenerateDesc", C.byref(desc), (Resource * len(resources))(*resources), C.c_uint(len(resources)), want=want)
    return desc


def green(resource):
    made = C.c_void_p()
    call("cuGreenCtxCreate", C.byref(made), described(resource), C.c_int(0), C.c_uint(1))
    return made


def context_of(g):
    view = C.c_void_p()
    call("cuCtxFromGreenCtx", C.byref(view), g)
    return view


def green_stream(g, flags=NON_BLOCKING, want=OK):
    made = C.c_void_p()
    call("cuGreenCtxStreamCreate", C.byref(made), g, C.c_uint(flags), C.c_int(0), want=want)
    return made


def asked(name, *arguments):
    out = C.c_void_p()
    call(name, *arguments, C.byref(out))
    return out.value


@belief("green.shares")
@own_process
def test_shares():
    start()
    all_of_it, found, count = whole(), Resource(), C.c_uint(99)
    least = all_of_it.least
    (one, *_), rest = split(all_of_it, 1, least)
    got = {"group": one.sms, "rest": rest.sms}
    expected = {"group": least, "rest": all_of_it.sms - least}
    (odd,), _ = split(all_of_it, 1, least - 1)
    got["rounded"], expected["rounded"] = odd.sms, least
    call("cuDevSmResourceSplitByCount", None, C.byref(count), C.byref(all_of_it), None, C.c_uint(0), C.c_uint(least))
    got["how many"], expected["how many"] = 0 < count.value <= all_of_it.sms // least, True
    (whole_one,), nothing = split(all_of_it, 1, all_of_it.sms)
    if whole_one.sms == all_of_it.sms:
        got["no rest"], expected["no rest"] = nothing.type, 0
    for name, work in (
        ("again", lambda: split(one, 1, 1, want=INVALID_CONFIGURATION)),
        ("more than there is", lambda: split(all_of_it, 1, all_of_it.sms + 1, want=(INVALID, INVALID_CONFIGURATION))),
        ("of two splits", lambda: described(one, odd, want=INVALID_CONFIGURATION)),
        ("invalid type", lambda: described(Resource(), want=(INVALID_RESOURCE_TYPE, INVALID))),
    ):
        try:
            work()
            got[name] = True
        except AssertionError as error:
            got[name] = str(error)
        expected[name] = True
    g = green(one)
    call("cuGreenCtxGetDevResource", g, C.byref(found), C.c_int(SM))
    got["of the context"], expected["of the context"] = found.sms, one.sms
    call("cuCtxGetDevResource", context_of(g), C.byref(found), C.c_int(SM))
    got["of its handle"], expected["of its handle"] = found.sms, one.sms
    split(found, 1, 1)  # now it may be
    call("cuGreenCtxDestroy", g)
    pick("green.shares", got, expected)


@belief("green.is_primary")
@own_process
def test_everything_else_is_the_primary_contexts():
    primary = start()
    g = green(whole())
    view, got = context_of(g), {}
    assert view.value != primary.value
    p = alloc(MIB)
    call("cuCtxSetCurrent", view)
    got["current"] = asked("cuCtxGetCurrent") == view.value
    q, s = alloc(MIB), stream()
    write(p, b"shared")
    call("cuMemcpyDtoDAsync_v2", q, p, 6, s)
    call("cuLaunchKernel", kernel("xp_add"), *[C.c_uint(1)] * 6, C.c_uint(0), s, pointers(p, 1, 0), None)
    call("cuCtxSynchronize")
    got["stream's green context"] = asked("cuStreamGetGreenCtx", s) == g.value
    got["stream's context"] = asked("cuStreamGetCtx", s) == view.value
    call("cuCtxSetCurrent", primary)
    got["bytes"] = read(q, 6) == b"shared"
    got["plain stream"] = asked("cuStreamGetGreenCtx", stream()) is None
    call("cuStreamDestroy_v2", s)
    call("cuGreenCtxDestroy", g)
    got["memory outlives it"] = read(q, 6) == b"shared"
    call("cuCtxSetCurrent", view, want=INVALID_CONTEXT)
    pick("green.is_primary", got, dict.fromkeys(got, True))


@belief("green.streams_detached")
@own_process
def test_streams_of_a_destroyed_one():
    start()
    g, graph = green(whole()), C.c_void_p()
    p, gate = alloc(MIB), Gate()
    green_stream(g, flags=0, want=INVALID)
    s, capturing = green_stream(g), green_stream(g)
    fill(p, 1, MIB)
    gate.close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(2), MIB, s)
    call("cuStreamBeginCapture_v2", capturing, C.c_int(RELAXED))
    call("cuGreenCtxDestroy", g)
    got = [call("cuMemsetD8Async", p, C.c_ubyte(3), MIB, s, want=ANY), call("cuStreamQuery", s, want=ANY)]
    got.append(call("cuStreamEndCapture", capturing, C.byref(graph), want=ANY))
    got += [call("cuStreamDestroy_v2", x, want=ANY) for x in (s, capturing)]
    gate.open()
    call("cuCtxSynchronize")
    assert read(p, 1) == b"\2"
    pick("green.streams_detached", got, [DETACHED] * 3 + [OK] * 2)


@belief("green.events")
@own_process
def test_events_of_green_contexts():
    start()
    g, e, done = green(whole()), event(), event()
    mine, other, gate, foreign = green_stream(g), stream(), Gate(), Gate()
    foreign.close(other)
    call("cuGreenCtxRecordEvent", g, e)
    call("cuEventSynchronize", e)  # the other stream is none of it
    gate.close(mine)
    call("cuGreenCtxRecordEvent", g, e)
    got = {"recorded": call("cuEventQuery", e, want=ANY)}
    gate.open()
    call("cuEventSynchronize", e)
    call("cuEventRecord", done, other)
    call("cuGreenCtxWaitEvent", g, done)
    free_one, later = stream(), green_stream(g)
    got |= {name: call("cuStreamQuery", s, want=ANY) for name, s in (("held", mine), ("later", later), ("free", free_one))}
    foreign.open()
    call("cuStreamSynchronize", mine)
    call("cuStreamSynchronize", later)
    call("cuStreamBeginCapture_v2", mine, C.c_int(RELAXED))
    got["while capturing"] = call("cuGreenCtxRecordEvent", g, e, want=ANY)
    expected = {"recorded": NOT_READY, "held": NOT_READY, "later": NOT_READY, "free": OK, "while capturing": CAPTURE_UNSUPPORTED}
    pick("green.events", got, expected)
