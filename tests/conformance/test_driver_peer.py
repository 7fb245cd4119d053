# SPDX-License-Identifier: Apache-2.0
"""Two devices, two contexts, two processes: who reaches whose memory, and whose faults are whose."""

from conform import belief, entry, lacks, own_process, pick, real
from cudaclient import *  # noqa: F403

ALREADY_ENABLED, NOT_ENABLED, NO_AFFINITY = 704, 705, 224


def devices():
    count = C.c_int()
    call("cuDeviceGetCount", C.byref(count))
    return count.value


def reaches(device, peer):
    can = C.c_int(-1)
    call("cuDeviceCanAccessPeer", C.byref(can), C.c_int(device), C.c_int(peer))
    return can.value


def two():
    """The primary contexts of two devices; the first one is current."""
    first = start()
    if devices() < 2:
        lacks("one device only")
    second = start(1)
    call("cuCtxSetCurrent", first)
    return first, second


def enable(context, flags=0, want=OK):
    return call("cuCtxEnablePeerAccess", context, C.c_uint(flags), want=want)


def disable(context, want=OK):
    return call("cuCtxDisablePeerAccess", context, want=want)


def test_a_device_is_no_peer_of_its_own():
    assert reaches(0, 0) == 0
    value = C.c_int()
    call("cuDeviceGetP2PAttribute", C.byref(value), C.c_int(2), C.c_int(0), C.c_int(0), want=INVALID_DEVICE)
    call("cuDeviceCanAccessPeer", C.byref(value), C.c_int(0), C.c_int(devices()), want=INVALID_DEVICE)


@belief("peer.errors")
@own_process
def test_errors_of_peer_access():
    first, second = two()
    got = {"self": enable(first, want=ANY), "nothing": disable(second, want=ANY), "flags": enable(second, flags=1, want=ANY)}
    expected = {"self": INVALID_CONTEXT, "nothing": NOT_ENABLED, "flags": INVALID}
    if reaches(0, 1):
        got |= {"once": enable(second, want=ANY), "twice": enable(second, want=ANY)}
        got |= {"back": disable(second, want=ANY), "back twice": disable(second, want=ANY)}
        expected |= {"once": OK, "twice": ALREADY_ENABLED, "back": OK, "back twice": NOT_ENABLED}
    else:
        got["no P2P"], expected["no P2P"] = enable(second, want=ANY), PEER_UNSUPPORTED
    other = new_context()
    got["same device"], expected["same device"] = enable(first, want=ANY), PEER_UNSUPPORTED
    call("cuCtxDestroy_v2", other)
    pick("peer.errors", got, expected)


@own_process
def test_access_is_one_way_and_ends_with_the_peer():
    first, second = two()
    if not reaches(0, 1):
        lacks("the devices cannot reach each other")
    enable(second)
    call("cuCtxSetCurrent", second)
    disable(first, want=NOT_ENABLED)
    enable(first)
    call("cuDevicePrimaryCtxReset_v2", C.c_int(0))
    first = start(0)
    disable(second, want=NOT_ENABLED)


@own_process
def test_copies_between_devices_need_no_peer_access():
    first, second = two()
    p = alloc(MIB)
    write(p, b"across")
    call("cuCtxSetCurrent", second)
    q = alloc(MIB)
    call("cuMemcpyPeer", q, second, p, first, 6)
    assert read(q, 6) == b"across"
    write(q, b"return")
    s = stream()
    call("cuMemcpyPeerAsync", p, first, q, second, 6, s)
    call("cuStreamSynchronize", s)
    call("cuCtxSetCurrent", first)
    assert read(p, 6) == b"return"
    call("cuMemcpyPeer", q, second, p, C.c_void_p(8), 6, want=(INVALID_CONTEXT, INVALID))


def add_seven(p):
    call("cuLaunchKernel", kernel("xp_add"), *[C.c_uint(1)] * 6, C.c_uint(0), None, pointers(p, 1, 7), None)


@belief("peer.kernels_need_access")
@own_process
def test_a_kernel_needs_peer_access():
    if not real():
        lacks("the suite's companions do not account: tests/unit/test_simgpu_grants.py asks the simulator")
    first, second = two()
    p = alloc(MIB)
    fill(p, 0, MIB)
    call("cuCtxSetCurrent", second)
    if reaches(1, 0):
        enable(first)
        add_seven(p)
        call("cuCtxSynchronize")
        assert read(p, 8) == (7).to_bytes(8, "little")
        disable(first)
    add_seven(p)
    pick("peer.kernels_need_access", call("cuCtxSynchronize", want=(OK, ILLEGAL_ADDRESS)), ILLEGAL_ADDRESS)


@belief("context.affinity_needs_mps")
@own_process
def test_a_share_of_the_multiprocessors_needs_mps():
    start()
    supported = C.c_int(-1)
    call("cuDeviceGetExecAffinitySupport", C.byref(supported), C.c_int(0), C.c_int(0))
    if supported.value:
        lacks("MPS runs here")
    entry("cuCtxCreate_v3")
    share, context = (C.c_int * 4)(0, 4), C.c_void_p()
    got = call("cuCtxCreate_v3", C.byref(context), share, C.c_int(1), C.c_uint(0), C.c_int(0), want=ANY)
    pick("context.affinity_needs_mps", got, NO_AFFINITY)
    call("cuCtxCreate_v3", C.byref(context), None, C.c_int(0), C.c_uint(3), C.c_int(0), want=INVALID)  # two ways to wait


FAULTY = """
import os, sys
sys.path.insert(0, os.environ["CLIENT"])
from cudaclient import *
start()
p, _ = backed(DEVICE)
unmap(p, GRANULE)
call("cuLaunchKernel", kernel("xp_add"), *[C.c_uint(1)] * 6, C.c_uint(0), None, pointers(p, 1, 7), None)
assert call("cuCtxSynchronize", want=ANY) != OK
print("failed")
"""


@belief("context.faults_apart")
@own_process
def test_a_fault_stays_in_its_context():
    home = start()
    p = alloc(MIB)
    write(p, b"whole")
    env = dict(os.environ, CLIENT=os.path.dirname(os.path.abspath(sys.modules["cudaclient"].__file__)))
    other = subprocess.run([sys.executable, "-c", FAULTY], env=env, capture_output=True, text=True, timeout=60)
    assert other.stdout == "failed\n", other.stderr
    neighbour = call("cuCtxSynchronize", want=ANY)
    new_context()
    gone, _ = backed(DEVICE)
    unmap(gone, GRANULE)
    add_seven(gone)
    assert call("cuCtxSynchronize", want=ANY) != OK
    call("cuCtxSetCurrent", home)
    second = call("cuCtxSynchronize", want=ANY)
    if second == OK:
        assert read(p, 5) == b"whole"
    pick("context.faults_apart", (neighbour, second), (OK, OK))


@belief("peer.grant_needs_peers")
@own_process
def test_a_grant_needs_devices_that_reach_each_other():
    os.environ["SIMGPU_PEERS"] = "no"  # a real driver does not ask
    two()
    if reaches(1, 0):
        lacks("the devices reach each other")
    p = reserve(GRANULE)
    map_at(p, GRANULE, create(GRANULE))
    both = (Access * 2)(Access(Location(DEVICE, 0), READWRITE), Access(Location(DEVICE, 1), READWRITE))
    pick("peer.grant_needs_peers", call("cuMemSetAccess", p, GRANULE, both, 2, want=ANY), PEER_UNSUPPORTED, INVALID_DEVICE)


@belief("copy.peer_by_own_context")
@own_process
def test_peer_copies_reach_memory_that_is_granted_to_its_own_device_alone():
    first, second = two()
    p, _ = backed(DEVICE)
    write(p, b"alone")
    call("cuCtxSetCurrent", second)
    q = alloc(GRANULE)
    fill(q, 0, 16)
    got = call("cuMemcpyPeer", q, second, p, first, 5, want=ANY)
    pick("copy.peer_by_own_context", (got, read(q, 5)), (OK, b"alone"))
