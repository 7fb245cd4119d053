# SPDX-License-Identifier: Apache-2.0
"""Memory and events that two processes share by handles, and what no handle is given for."""

from conform import belief, lacks, own_process, pick, shim_differs
from cudaclient import *  # noqa: F403

not_managed = shim_differs("managed memory cannot be shared with other processes")
INTERPROCESS = 4 | 2  # with timing disabled
LAZY = 1
STARTED = """
import os, sys
sys.path.insert(0, os.environ["CLIENT"])
from cudaclient import *
start()
Handle = C.c_ubyte * 64
class Passed(C.Structure):  # by value
    _fields_ = [("bytes", Handle)]
def tell(value):
    print(value.hex() if isinstance(value, bytes) else value, flush=True)
def handle():
    return Passed(Handle.from_buffer_copy(bytes.fromhex(sys.stdin.readline())))
def opened(h, want=OK):
    p = C.c_uint64()
    got = call("cuIpcOpenMemHandle_v2", C.byref(p), h, C.c_uint(1), want=want)
    return p.value if got == OK else got
"""


class Other:
    """Another process that runs code and speaks in lines."""

    def __init__(self, code):
        env = dict(os.environ, CLIENT=os.path.dirname(os.path.abspath(sys.modules["cudaclient"].__file__)))
        self.process = subprocess.Popen([sys.executable, "-c", STARTED + code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, value):
        self.process.stdin.write((value.hex() if isinstance(value, bytes) else str(value)) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline().strip()
        assert line, f"the other process ended: {self.process.wait(30)}"
        return line

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def kill(self):
        self.process.kill()
        self.process.wait(30)


def passed(data):
    class Passed(C.Structure):
        _fields_ = [("bytes", C.c_ubyte * 64)]

    return Passed((C.c_ubyte * 64).from_buffer_copy(data))


def exported(p):
    handle = (C.c_ubyte * 64)()
    if call("cuIpcGetMemHandle", handle, p, want=(OK, NOT_SUPPORTED)) == NOT_SUPPORTED:
        lacks("legacy IPC is not there")
    return bytes(handle)


def opened(handle, want=OK):
    p = C.c_uint64()
    call("cuIpcOpenMemHandle_v2", C.byref(p), passed(handle), C.c_uint(LAZY), want=want)
    return p.value


EXPORT = """
p = alloc(4 * MIB)
write(p, b"theirs")
h = Handle()
call("cuIpcGetMemHandle", h, p)
tell(bytes(h))
"""


@belief("ipc.shares_bytes")
@own_process
@not_managed
def test_both_processes_have_the_same_bytes():
    start()
    other = Other(EXPORT + 'sys.stdin.readline(); tell(read(p, 4)); sys.stdin.readline(); free(p); tell("freed"); sys.stdin.readline()')
    handle = bytes.fromhex(other.hear())
    p = opened(handle)
    got = {"theirs": read(p, 6)}
    got["again"] = opened(handle) == p
    write(p, b"ours")
    other.say("look")
    got["ours"] = bytes.fromhex(other.hear())
    call("cuIpcCloseMemHandle", p)
    got["still open"] = read(p, 4)
    other.say("free")
    other.hear()
    got["after its free"] = read(p, 4)  # undefined, says cuda.h: what is asked is that nothing breaks
    other.end()
    got["after its end"] = read(p, 4)
    call("cuIpcCloseMemHandle", p)
    call("cuIpcCloseMemHandle", p, want=(INVALID, INVALID_HANDLE))
    pick("ipc.shares_bytes", got, {"theirs": b"theirs", "again": True} | dict.fromkeys(("ours", "still open", "after its free", "after its end"), b"ours"))


@belief("ipc.base_only")
@own_process
@not_managed
def test_what_no_handle_is_given_for():
    start()
    handle, got = (C.c_ubyte * 64)(), {}
    p, pooled, managed = alloc(4 * MIB), C.c_uint64(), C.c_uint64()
    exported(p)
    call("cuMemAllocManaged", C.byref(managed), MIB, C.c_uint(1))
    call("cuMemAllocAsync", C.byref(pooled), MIB, None)
    call("cuStreamSynchronize", None)
    vmm, _ = backed(DEVICE)
    for name, pointer in (("inner", p + MIB), ("managed", managed), ("pooled", pooled), ("vmm", vmm), ("none", 0)):
        got[name] = call("cuIpcGetMemHandle", handle, pointer, want=ANY)
    pick("ipc.base_only", got, dict.fromkeys(got, INVALID))


@belief("ipc.own_process")
@own_process
@not_managed
def test_a_process_does_not_open_its_own():
    start()
    p = C.c_uint64()
    handle = exported(alloc(4 * MIB))
    pick("ipc.own_process", call("cuIpcOpenMemHandle_v2", C.byref(p), passed(handle), C.c_uint(LAZY), want=ANY), INVALID_CONTEXT)
    call("cuIpcOpenMemHandle_v2", C.byref(p), passed(handle), C.c_uint(0), want=INVALID)


@belief("ipc.stale_handle")
@own_process
@not_managed
def test_stale_handles():
    start()
    p, got = C.c_uint64(), {}

    def try_it(handle):
        return call("cuIpcOpenMemHandle_v2", C.byref(p), passed(handle), C.c_uint(LAZY), want=ANY)

    freed = Other(EXPORT + 'free(p); q = alloc(4 * MIB); call("cuIpcGetMemHandle", h, q); tell(bytes(h)); sys.stdin.readline()')
    first, second = bytes.fromhex(freed.hear()), bytes.fromhex(freed.hear())
    assert first != second
    got["freed"] = try_it(first)
    call("cuIpcCloseMemHandle", opened(second))
    freed.kill()
    got["gone"] = try_it(second)
    got["nonsense"] = try_it(b"no handle" * 7 + b"!")
    pick("ipc.stale_handle", got, {"freed": INVALID_HANDLE, "gone": INVALID_HANDLE, "nonsense": INVALID})


@belief("ipc.events")
@own_process
def test_events_of_two_processes():
    start()
    e, handle, s = C.c_void_p(), (C.c_ubyte * 64)(), stream()
    call("cuIpcGetEventHandle", handle, event(), want=(INVALID, INVALID_HANDLE))  # not made for it
    call("cuEventCreate", C.byref(e), C.c_uint(4), want=INVALID)  # it would have to measure time
    call("cuEventCreate", C.byref(e), C.c_uint(INTERPROCESS))
    if call("cuIpcGetEventHandle", handle, e, want=ANY) == NOT_SUPPORTED:
        lacks("legacy IPC is not there")
    other = Other("""
e, s, gate = C.c_void_p(), stream(), Gate()
call("cuIpcOpenEventHandle", C.byref(e), handle())
tell(call("cuEventQuery", e, want=ANY))
sys.stdin.readline(); tell(call("cuEventQuery", e, want=ANY))
call("cuStreamWaitEvent", s, e, C.c_uint(0))
tell(call("cuStreamQuery", s, want=ANY))
sys.stdin.readline(); call("cuStreamSynchronize", s); call("cuEventSynchronize", e)
gate.close(s); call("cuEventRecord", e, s); tell("recorded")
sys.stdin.readline(); gate.open(); call("cuStreamSynchronize", s); tell(call("cuEventQuery", e, want=ANY))
call("cuEventDestroy_v2", e)
""")
    other.say(bytes(handle))
    got = {"never recorded": int(other.hear())}
    gate = Gate().close(s)
    call("cuEventRecord", e, s)
    other.say("look")
    got["theirs, pending"] = int(other.hear())
    got["theirs, stream"] = int(other.hear())
    gate.open()
    call("cuStreamSynchronize", s)
    other.say("wait")
    other.hear()
    got["ours, pending"] = call("cuEventQuery", e, want=ANY)
    t = stream()
    call("cuStreamWaitEvent", t, e, C.c_uint(0))
    got["ours, stream"] = call("cuStreamQuery", t, want=ANY)
    other.say("open")
    call("cuEventSynchronize", e)
    call("cuStreamSynchronize", t)
    got["ours, done"], got["theirs, done"] = call("cuEventQuery", e, want=ANY), int(other.hear())
    other.end()
    call("cuEventDestroy_v2", e)
    expected = {name: NOT_READY if name.endswith(("pending", "stream")) else OK for name in got}
    pick("ipc.events", got, expected)
