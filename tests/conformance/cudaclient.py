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
INVALID_CONTEXT, INVALID_HANDLE, NOT_FOUND, NOT_READY = 201, 400, 500, 600
ILLEGAL_ADDRESS, NOT_SUPPORTED, UPDATE_FAILURE = 700, 801, 910
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_UNJOINED, CAPTURE_ISOLATION = 900, 901, 904, 905
CAPTURE_IMPLICIT, CAPTURED_EVENT, CAPTURE_WRONG_THREAD = 906, 907, 908
DEVICE, HOST, HOST_NUMA, HOST_NUMA_CURRENT = 1, 2, 3, 4
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
READ, READWRITE = 1, 3
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


def create(size, kind=DEVICE, ident=0, handle_types=0, want=OK):
    handle = C.c_uint64()
    call("cuMemCreate", C.byref(handle), size, C.byref(prop(kind, ident, handle_types)), 0, want=want)
    return handle.value


def reserve(size, want=OK):
    pointer = C.c_uint64()
    call("cuMemAddressReserve", C.byref(pointer), size, 0, 0, 0, want=want)
    return pointer.value


def map_at(pointer, size, handle, offset=0, want=OK):
    return call("cuMemMap", pointer, size, offset, handle, 0, want=want)


def grant(pointer, size, *kinds, flags=READWRITE, want=OK):
    described = (Access * len(kinds))(*(Access(Location(kind, 0), flags) for kind in kinds))
    return call("cuMemSetAccess", pointer, size, described, len(kinds), want=want)


def backed(*kinds, size=GRANULE):
    """A reservation with one accessible mapping of `size` bytes for each location; (address, handles)."""
    base = reserve(size * len(kinds))
    handles = [create(size, kind) for kind in kinds]
    for index, handle in enumerate(handles):
        map_at(base + index * size, size, handle)
    grant(base, size * len(kinds), DEVICE)
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
