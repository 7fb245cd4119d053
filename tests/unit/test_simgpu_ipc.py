# SPDX-License-Identifier: Apache-2.0
"""What the machine counts of memory that processes share, when its exporter frees it or dies; peers and events of the dead."""

import textwrap

from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

# The exporter is a process that was forked before either has a driver; the two speak by pipes.
PAIR = """
import select
down, up = os.pipe(), os.pipe()
child = os.fork()
def send(data):
    os.write(up[1] if child == 0 else down[1], data)
def receive(size=64):
    data = os.read(down[0] if child == 0 else up[0], size)
    assert data, "the other process ended"
    return data
def handle_of(data):
    class Passed(C.Structure):
        _fields_ = [("bytes", C.c_ubyte * 64)]
    return Passed((C.c_ubyte * 64).from_buffer_copy(data))
if child == 0:
    start()
EXPORTER
    signal.pause()
def killed():
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
EXPORT = """
p, h = alloc(64 * MIB), (C.c_ubyte * 64)()
write(p, b"shared")
call("cuIpcGetMemHandle", h, p)
send(bytes(h))
receive(1)
free(p)
send(b"x")
"""
OPENED = """
start()
p, handle = C.c_uint64(), handle_of(receive())
call("cuIpcOpenMemHandle_v2", C.byref(p), handle, C.c_uint(1))
p = p.value
assert used() == 64 * MIB
"""


def pair(simgpu, exporter, code, **settings):  # noqa: F811
    return drive(simgpu, PAIR.replace("EXPORTER", textwrap.indent(exporter, "    ")) + code, **settings)


def test_memory_of_a_dead_exporter_counts_while_it_is_open(simgpu):  # noqa: F811
    pair(
        simgpu,
        EXPORT,
        OPENED
        + """
killed()
assert used() == 64 * MIB and read(p, 6) == b"shared"
alloc(80 * MIB, want=OOM)
call("cuIpcCloseMemHandle", p)
assert used() == 0
alloc(80 * MIB)
""",
        vram="128M",
    )


def test_memory_that_was_freed_counts_while_it_is_open(simgpu):  # noqa: F811
    pair(
        simgpu,
        EXPORT,
        OPENED
        + """
send(b"x"); receive(1)
assert used() == 64 * MIB and read(p, 6) == b"shared"
call("cuIpcCloseMemHandle", p)
assert used() == 0
killed()
""",
    )


def test_an_importer_that_dies_leaves_nothing(simgpu):  # noqa: F811
    pair(
        simgpu,
        """
p, handle = C.c_uint64(), handle_of(receive())
call("cuIpcOpenMemHandle_v2", C.byref(p), handle, C.c_uint(1))
send(b"x")
""",
        """
start()
p, h = alloc(64 * MIB), (C.c_ubyte * 64)()
call("cuIpcGetMemHandle", h, p)
send(bytes(h)); receive(1)
free(p)
assert used() == 64 * MIB
killed()
alloc(16 * MIB)
assert used() == 16 * MIB
""",
    )


def test_handles_of_a_dead_exporter_count_while_they_are_imported(simgpu):  # noqa: F811
    pair(
        simgpu,
        """
fd, h = C.c_int(), create(64 * MIB, handle_types=1)
call("cuMemExportToShareableHandle", C.byref(fd), h, C.c_int(1), 0)
send(f"{os.getpid()} {fd.value}".encode())
""",
        """
start()
pid, fd = receive().split()
fd = os.open(f"/proc/{int(pid)}/fd/{int(fd)}", os.O_RDWR)
h = C.c_uint64()
call("cuMemImportFromShareableHandle", C.byref(h), C.c_void_p(fd), C.c_int(1))
assert used() == 64 * MIB
killed()
assert used() == 64 * MIB
release(h.value)
assert used() == 0
""",
    )


def test_memory_of_another_device(simgpu):  # noqa: F811
    export = "start(1)\n" + EXPORT
    code = """
start(0)
p, handle = C.c_uint64(), handle_of(receive())
call("cuIpcOpenMemHandle_v2", C.byref(p), handle, C.c_uint(1), want=WANT)
if WANT == OK:
    ordinal = C.c_int()
    call("cuPointerGetAttribute", C.byref(ordinal), C.c_int(9), p)
    assert ordinal.value == 1 and read(p, 6) == b"shared"
killed()
"""
    pair(simgpu, export, code.replace("WANT", "OK"), DEVICES="2")
    pair(simgpu, export, code.replace("WANT", "PEER_UNSUPPORTED"), DEVICES="2", PEERS="no")


def test_an_event_of_a_dead_process_is_reached(simgpu):  # noqa: F811
    pair(
        simgpu,
        """
e, s, h = C.c_void_p(), stream(), (C.c_ubyte * 64)()
call("cuEventCreate", C.byref(e), C.c_uint(6))
Gate().close(s)
call("cuEventRecord", e, s)
call("cuIpcGetEventHandle", h, e)
send(bytes(h))
""",
        """
start()
e, s, handle = C.c_void_p(), stream(), handle_of(receive())
call("cuIpcOpenEventHandle", C.byref(e), handle)
call("cuEventQuery", e, want=NOT_READY)
call("cuStreamWaitEvent", s, e, C.c_uint(0))
killed()
call("cuStreamSynchronize", s)
call("cuEventSynchronize", e)
call("cuEventQuery", e)
call("cuEventDestroy_v2", e)
call("cuIpcOpenEventHandle", C.byref(e), handle, want=INVALID_HANDLE)
g, node = C.c_void_p(), C.c_void_p()
call("cuEventCreate", C.byref(e), C.c_uint(6))
call("cuGraphCreate", C.byref(g), C.c_uint(0))
call("cuGraphAddEventRecordNode", C.byref(node), g, None, 0, e, want=NOT_SUPPORTED)
""",
    )
