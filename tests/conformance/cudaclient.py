# SPDX-License-Identifier: Apache-2.0
"""A small driver-API client: what the tests of this folder say to the driver, and (by simgpu_client) the simulator's own tests.

Rules: the driver is opened at the first call, never on import, because pytest imports the tests in a process that must stay
clean; every call's result is checked, an expected error is named; every call is shown to `watch`, which remembers what to
give back after a test (leftovers.py).
"""

import ctypes as C
import os
import signal
import subprocess
import sys
import threading
import time



class Driver:
    """Entries as attributes. `library` may name another file than the one that the loader finds."""

    library = "libcuda.so.1"

    def __getattr__(self, name):
        entry = getattr(C.CDLL(self.library), name)
        setattr(self, name, entry)
        return entry


cu = Driver()
gates = []  # every Gate, so that none is left closed
watch = None  # callable(name, arguments) after each call that succeeded, or None


ANY = None  # as `want`: whatever the result is, it is looked at afterwards
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
GRANULE = 2 * MIB
OK, INVALID, OOM, NOT_INITIALIZED, DEINITIALIZED = 0, 1, 2, 3, 4
INVALID_DEVICE, INVALID_IMAGE, INVALID_CONTEXT, INVALID_HANDLE, NOT_FOUND, NOT_READY = 101, 200, 201, 400, 500, 600
ILLEGAL_ADDRESS, NOT_PERMITTED, NOT_SUPPORTED, UPDATE_FAILURE = 700, 800, 801, 910
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_UNJOINED, CAPTURE_ISOLATION = 900, 901, 904, 905
ALREADY_REGISTERED, NOT_REGISTERED, PEER_UNSUPPORTED, UNSUPPORTED_LIMIT = 712, 713, 217, 215
ILLEGAL_STATE, FILE_NOT_FOUND = 401, 301
ILLEGAL_INSTRUCTION, LAUNCH_FAILED, COOPERATIVE_TOO_LARGE = 715, 719, 720
CAPTURE_IMPLICIT, CAPTURED_EVENT, CAPTURE_WRONG_THREAD = 906, 907, 908
DEVICE, HOST, HOST_NUMA, HOST_NUMA_CURRENT = 1, 2, 3, 4
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
READ, READWRITE = 1, 3
HOST_NUMA_ID, HOST_NUMA_VMM, HOST_VMM = 134, 141, 145  # device attributes
NON_BLOCKING = 1


class Location(C.Structure):
    _fields_ = [("type", C.c_int), ("id", C.c_int)]


class Prop(C.Structure):
    _fields_ = [
        ("type", C.c_int),
        ("handle_types", C.c_int),
        ("location", Location),
        ("win32", C.c_void_p),
        ("flags", C.c_ubyte * 8),
    ]


class Access(C.Structure):
    _fields_ = [("location", Location), ("flags", C.c_int)]


class Copy2D(C.Structure):
    _fields_ = [
        (side + name, kind)
        for side in ("src_", "dst_")
        for name, kind in (
            ("x", C.c_size_t),
            ("y", C.c_size_t),
            ("type", C.c_int),
            ("host", C.c_void_p),
            ("device", C.c_uint64),
            ("array", C.c_void_p),
            ("pitch", C.c_size_t),
        )
    ] + [("width", C.c_size_t), ("height", C.c_size_t)]


def _convert(value):
    return C.c_uint64(value) if isinstance(value, int) else value


def call(name, *args, want=OK):
    """Call an entry; integers are passed as 64 bits. Fails unless the result is `want` (one, a tuple of several, or ANY)."""
    got = getattr(cu, name)(*map(_convert, args))
    expected = want if isinstance(want, tuple) else (want,)
    assert want is ANY or got in expected, f"{name} returned {got}, expected {want}"
    if got == OK and watch:
        watch(name, args)
    return got


def start(device=0):
    """Initialise, make the primary context current."""
    call("cuInit", 0)
    context = C.c_void_p()
    call("cuDevicePrimaryCtxRetain", C.byref(context), device)
    call("cuCtxSetCurrent", context)
    return context


def alloc(size, want=OK):
    pointer = C.c_uint64()
    call("cuMemAlloc_v2", C.byref(pointer), size, want=want)
    return pointer.value


def free(pointer, want=OK):
    return call("cuMemFree_v2", pointer, want=want)


def attribute(number, device=0):
    """A device attribute, -1 where the driver does not know it."""
    value = C.c_int(-1)
    known = call("cuDeviceGetAttribute", C.byref(value), C.c_int(number), C.c_int(device), want=(OK, INVALID)) == OK
    return value.value if known else -1


def version():
    """1000 * major + 10 * minor of the driver."""
    value = C.c_int()
    call("cuDriverGetVersion", C.byref(value))
    return value.value


def used():
    """Bytes of VRAM in use, all processes."""
    available, total = C.c_size_t(), C.c_size_t()
    call("cuMemGetInfo_v2", C.byref(available), C.byref(total))
    return total.value - available.value


def stream(flags=NON_BLOCKING):
    handle = C.c_void_p()
    call("cuStreamCreate", C.byref(handle), flags)
    return handle


def event():
    handle = C.c_void_p()
    call("cuEventCreate", C.byref(handle), 0)
    return handle


def prop(kind=DEVICE, ident=0, handle_types=0):
    return Prop(1, handle_types, Location(kind, ident))


def create(size, kind=DEVICE, ident=None, handle_types=0, want=OK):
    if ident is None:
        ident = max(0, attribute(HOST_NUMA_ID)) if kind == HOST_NUMA else 0
    handle = C.c_uint64()
    call("cuMemCreate", C.byref(handle), size, C.byref(prop(kind, ident, handle_types)), 0, want=want)
    return handle.value


def reserve(size, want=OK):
    pointer = C.c_uint64()
    call("cuMemAddressReserve", C.byref(pointer), size, 0, 0, 0, want=want)
    return pointer.value


def unmap(pointer, size, want=OK):
    return call("cuMemUnmap", pointer, size, want=want)


def release(handle, want=OK):
    return call("cuMemRelease", handle, want=want)


def map_at(pointer, size, handle, offset=0, want=OK):
    return call("cuMemMap", pointer, size, offset, handle, 0, want=want)


def grant(pointer, size, *kinds, flags=READWRITE, want=OK):
    described = (Access * len(kinds))(*(Access(Location(kind, 0), flags) for kind in kinds))
    return call("cuMemSetAccess", pointer, size, described, len(kinds), want=want)


def backed(*kinds, size=GRANULE):
    """A reservation with one mapping of `size` bytes for each location, open to the device, and to the CPU where it is RAM, as
    spillshim opens what it maps; (address, handles)."""
    base = reserve(size * len(kinds))
    handles = [create(size, kind) for kind in kinds]
    for index, handle in enumerate(handles):
        map_at(base + index * size, size, handle)
    for index, kind in enumerate(kinds):
        grant(base + index * size, size, DEVICE, *([] if kind == DEVICE else [kind]))
    return base, handles


def fill(pointer, value, size, want=OK, wait=True):
    """Set bytes; the entry alone only queues the work when they are in VRAM."""
    if call("cuMemsetD8_v2", pointer, C.c_ubyte(value), size, want=want) == OK and wait:
        call("cuStreamSynchronize", None)


def read(pointer, size, want=OK):
    buffer = (C.c_ubyte * size)()
    call("cuMemcpyDtoH_v2", buffer, pointer, size, want=want)
    return bytes(buffer)


def write(pointer, data, want=OK):
    call("cuMemcpyHtoD_v2", pointer, bytes(data), len(data), want=want)


HOST_FN = C.CFUNCTYPE(None, C.c_void_p)


class Gate:
    """Holds a stream up: work enqueued after `close(stream)` starts only after `open()`."""

    def __init__(self):
        self._event = threading.Event()
        self._callback = HOST_FN(lambda _: self._event.wait(30) and None)
        gates.append(self)

    def close(self, handle):
        call("cuLaunchHostFunc", handle, self._callback, None)
        return self

    def open(self):
        self._event.set()


def new_context():
    """A context of its own, current on this thread."""
    context = C.c_void_p()
    if version() >= 12050:
        call("cuCtxCreate_v4", C.byref(context), None, C.c_uint(0), C.c_int(0))
    else:
        call("cuCtxCreate_v2", C.byref(context), C.c_uint(0), C.c_int(0))
    return context


def in_a_thread(work):
    """What work() answers on a thread of its own, on which no context is current."""
    out = []

    def run():
        try:
            out.append(work())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(out[0], BaseException):
        raise out[0]
    return out[0]


# --- waiting ------------------------------------------------------------------------------------------------------


def _asleep(thread):
    try:
        with open(f"/proc/self/task/{thread.native_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"
    except OSError:
        return False


def waits(work, gate):
    """Whether work(), in a thread of its own, returns only after the closed gate was opened; opens it. Returns
    (waited, what work returned).

    A thread that has slept for 100 ms on end waits, one that is merely slow runs or is runnable; a driver that waits by
    spinning is given a second.
    """
    context, out = C.c_void_p(), []
    call("cuCtxGetCurrent", C.byref(context))

    def run():
        try:
            call("cuCtxSetCurrent", context)
            out.append(work())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    asleep, until = 0, time.monotonic() + 1
    while thread.is_alive() and asleep < 20 and time.monotonic() < until:
        time.sleep(0.005)
        asleep = asleep + 1 if _asleep(thread) else 0
    waited = thread.is_alive()
    gate.open()
    thread.join(30)
    assert out, "it did not even return after the gate was opened"
    if isinstance(out[0], BaseException):
        raise out[0]
    return waited, out[0]


# --- kernels ------------------------------------------------------------------------------------------------------

_modules = {}  # (context, file): kept while the context lives


def kernel(name, file="facts"):
    """A kernel of tests/gpu/facts.cu, params.cu or faulty.cu: the driver compiles the text, simgpu finds its companion."""
    context, module, function = C.c_void_p(), C.c_void_p(), C.c_void_p()
    call("cuCtxGetCurrent", C.byref(context))
    if (context.value, file) not in _modules:
        with open(os.path.join(os.environ["CONFORMANCE_KERNELS"], f"{file}.ptx"), "rb") as text:
            assert cu.cuModuleLoadData(C.byref(module), text.read() + b"\0") == OK, f"{file}.ptx cannot be loaded"
        _modules[context.value, file] = module
    call("cuModuleGetFunction", C.byref(function), _modules[context.value, file], name.encode())
    return function


def pointers(*values):
    """kernelParams for ctypes values (an int is 64 bits); what it returns keeps them alive."""
    made = [_convert(value) for value in values]
    array = (C.c_void_p * max(1, len(made)))(*map(C.addressof, made))
    array.values = made
    return array


def launch(function, *values, grid=4, block=64, stream=None, shared=0, want=OK):
    shape = [C.c_uint(n) for n in (grid, 1, 1, block, 1, 1, shared)]
    return call("cuLaunchKernel", function, *shape, stream, pointers(*values), None, want=want)


def scatter(pointer, size, seed, stream=None):
    """A kernel writes a pattern that says for each word where it belongs."""
    launch(kernel("xp_fill"), pointer, size // 8, seed, stream=stream)


def scattered(pointer, size, seed, add=0):
    """Whether a kernel finds that pattern, each word `add` higher; waits for the device before and after."""
    call("cuCtxSynchronize")
    result = alloc(16)
    write(result, bytes(8) + b"\xff" * 8)
    launch(kernel("xp_check"), pointer, size // 8, seed, add, result, result + 8)
    call("cuCtxSynchronize")
    bad = int.from_bytes(read(result, 8), "little")
    free(result)
    return bad == 0


def pinned(size, flags=0):
    """Page-locked host memory; its address."""
    pointer = C.c_void_p()
    call("cuMemHostAlloc", C.byref(pointer), size, flags)
    return pointer.value


class Spin:
    """A kernel that is busy on words of `touch` until open(), or for a while at most."""

    CLOCKS = 20_000_000_000

    def __init__(self, touch, size, stream):
        self._control = (C.c_uint64 * 4).from_address(pinned(32))
        self._control[:] = [0] * 4
        gates.append(self)
        launch(kernel("xp_spin"), C.addressof(self._control), self.CLOCKS, touch, size // 8, grid=1, block=1, stream=stream)
        until = time.monotonic() + 20
        while not self._control[1]:
            assert time.monotonic() < until, "the kernel does not start"
            time.sleep(0.001)

    def open(self):
        self._control[0] = 1


def host_kind():
    """The host location that cuMemCreate takes here: HOST_NUMA, HOST, or None."""
    for kind in (HOST_NUMA, HOST):
        handle = C.c_uint64()
        ident = max(0, attribute(HOST_NUMA_ID)) if kind == HOST_NUMA else 0
        if call("cuMemCreate", C.byref(handle), GRANULE, C.byref(prop(kind, ident)), 0, want=ANY) == OK:
            release(handle.value)
            return kind
    return None


def in_a_child(work):
    """What work() answers in a forked process, or the name of the signal that ends it. The driver must not be in use yet: it does
    not survive a fork. A work() with a parameter gets the pipe into which to write its answer."""
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if work.__code__.co_argcount:
                work(say)
            else:
                os.write(say, str(work()).encode())
        except BaseException as error:
            os.write(say, repr(error).encode()[:400])
        finally:
            os._exit(0)
    os.close(say)
    answer = os.read(said, 400).decode(errors="replace")
    os.close(said)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return int(answer) if answer.isdigit() else answer or "no answer"
