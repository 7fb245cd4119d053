# SPDX-License-Identifier: Apache-2.0
"""Kernels are held to what their device was granted: by the pages where nobody may, by an accounting companion where somebody may."""

import subprocess
from pathlib import Path

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

INCLUDE = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "include"
SOURCE = """
#include "simk.h"
__global__ void put(unsigned long long *p) { *p = 7; }
SIM_KERNEL(put, unsigned long long *);
__global__ void get(unsigned long long *p) { if (*p == 1) p[1] = 0; }
SIM_KERNEL(get, unsigned long long *);
"""
PTX = ".version 8.0\n.target sm_90\n.address_size 64\n" + "".join(
    f".visible .entry {name}(.param .u64 {name}_param_0)\n{{\n\tret;\n}}\n" for name in ("put", "get")
)
CLIENT = f"""
def loaded():
    module = C.c_void_p()
    call("cuModuleLoadData", C.byref(module), {PTX!r}.encode() + b"\\0")
    return module

def run(module, name, p, want=OK):
    function, value = C.c_void_p(), C.c_uint64(p)
    call("cuModuleGetFunction", C.byref(function), module, name.encode())
    parameters = (C.c_void_p * 1)(C.addressof(value))
    call("cuLaunchKernel", function, *[C.c_uint(1)] * 6, C.c_uint(0), None, parameters, None)
    call("cuCtxSynchronize", want=want)
"""


@pytest.fixture(scope="module")
def companions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grants")
    (folder / "k.c").write_text(SOURCE)
    made = {}
    for accounting in (True, False):
        made[accounting] = folder / f"{accounting}.so"
        flags = ["-DSIM_ACCOUNT", "-fsanitize=thread", "-nodefaultlibs"] if accounting else []
        command = ["gcc", "-std=gnu11", "-O1", "-fPIC", "-shared", f"-I{INCLUDE}", *flags, folder / "k.c", "-o", made[accounting], "-lm", "-lc"]
        subprocess.run(command, check=True)
    return made


@pytest.fixture
def kernels(simgpu, companions):
    def run(code, accounting=True, **settings):
        return drive(simgpu, CLIENT + "start()\nmodule = loaded()\n" + code, KERNELS=str(companions[accounting]), **settings)

    return run


@pytest.mark.parametrize(
    "setup",
    [
        "p = reserve(GRANULE)",
        "p = reserve(GRANULE); map_at(p, GRANULE, create(GRANULE))",
        "p, _ = backed(DEVICE); call('cuMemUnmap', p, GRANULE)",
        "p, _ = backed(DEVICE); grant(p, GRANULE, DEVICE, flags=0)",
        "p = alloc(4 * MIB); free(p)",
        "p, q = C.c_uint64(), C.c_void_p(); call('cuMemAllocAsync', C.byref(p), MIB, None); p = p.value; call('cuMemFreeAsync', p, None)",
        "p = C.c_void_p(); call('cuMemHostAlloc', C.byref(p), MIB, 0); call('cuMemFreeHost', p); p = p.value",
        "p, _ = backed(DEVICE); call('cuMemUnmap', p, GRANULE); call('cuMemAddressFree', p, GRANULE)",
    ],
)
@pytest.mark.parametrize("accounting", [True, False])
def test_nobody_may(kernels, setup, accounting):
    kernels(setup + "\nrun(module, 'get', p, want=ILLEGAL_ADDRESS)\nalloc(16, want=ILLEGAL_ADDRESS)", accounting)


@pytest.mark.parametrize("accounting", [True, False])
def test_a_read_only_grant(kernels, accounting):
    kernels(
        "p, _ = backed(DEVICE); fill(p, 1, 16); grant(p, GRANULE, DEVICE, flags=READ)\n"
        "call('cuCtxSynchronize'); run(module, 'get', p + 64); run(module, 'put', p, want=ILLEGAL_ADDRESS)",
        accounting,
    )


def test_only_the_cpu_may(kernels):
    kernels(
        """
p = reserve(GRANULE)
map_at(p, GRANULE, create(GRANULE, HOST_NUMA))
grant(p, GRANULE, HOST_NUMA)
C.memset(p, 5, 64)
run(module, "get", p, want=ILLEGAL_ADDRESS)
"""
    )


def test_only_another_device_may(kernels):
    kernels(
        """
p = reserve(GRANULE)
map_at(p, GRANULE, create(GRANULE))
call("cuMemSetAccess", p, GRANULE, (Access * 1)(Access(Location(DEVICE, 1), READWRITE)), 1)
start(1)
run(loaded(), "put", p)
start(0)
run(module, "put", p, want=ILLEGAL_ADDRESS)
""",
        DEVICES="2",
    )


def test_a_peer_needs_peer_access(kernels):
    kernels(
        """
home, p = C.c_void_p(), alloc(MIB)
call("cuCtxGetCurrent", C.byref(home))
start(1)
other = loaded()
call("cuCtxEnablePeerAccess", home, C.c_uint(0))
run(other, "put", p)
assert read(p, 8) == (7).to_bytes(8, "little")
call("cuCtxDisablePeerAccess", home)
run(other, "put", p, want=ILLEGAL_ADDRESS)
""",
        DEVICES="2",
    )


def test_a_pool_must_be_opened_to_a_peer(kernels):
    kernels(
        """
pool, p, flags, there = C.c_void_p(), C.c_uint64(), C.c_int(-1), Location(DEVICE, 1)
call("cuDeviceGetDefaultMemPool", C.byref(pool), C.c_int(0))
call("cuMemAllocAsync", C.byref(p), MIB, None)
call("cuStreamSynchronize", None)
start(1)
other = loaded()
call("cuMemPoolGetAccess", C.byref(flags), pool, C.byref(there))
assert flags.value == 0
call("cuMemPoolSetAccess", pool, (Access * 1)(Access(there, READWRITE)), 1)
call("cuMemPoolGetAccess", C.byref(flags), pool, C.byref(there))
assert flags.value == READWRITE
run(other, "put", p.value)
call("cuMemPoolSetAccess", pool, (Access * 1)(Access(there, 0)), 1)
run(other, "put", p.value, want=ILLEGAL_ADDRESS)
""",
        DEVICES="2",
    )


def test_peer_access_is_to_one_context(kernels):
    kernels(
        """
home, p = C.c_void_p(), alloc(MIB)
call("cuCtxGetCurrent", C.byref(home))
second = new_context()
q = alloc(MIB)
start(1)
other = loaded()
call("cuCtxEnablePeerAccess", home, C.c_uint(0))
run(other, "put", p)
run(other, "put", q, want=ILLEGAL_ADDRESS)
""",
        DEVICES="2",
    )


def test_a_machine_without_peers(simgpu):
    drive(
        simgpu,
        """
start(0)
home, p = C.c_void_p(), alloc(MIB)
call("cuCtxGetCurrent", C.byref(home))
write(p, b"staged")
there, can, pool = start(1), C.c_int(-1), C.c_void_p()
call("cuDeviceCanAccessPeer", C.byref(can), C.c_int(1), C.c_int(0))
assert can.value == 0
call("cuDeviceGetP2PAttribute", C.byref(can), C.c_int(2), C.c_int(0), C.c_int(1))
assert can.value == 0
call("cuCtxEnablePeerAccess", home, C.c_uint(0), want=PEER_UNSUPPORTED)
q = alloc(MIB)
call("cuMemcpyPeer", q, there, p, home, 6)
assert read(q, 6) == b"staged"
base = reserve(2 * GRANULE)
map_at(base, GRANULE, create(GRANULE))
map_at(base + GRANULE, GRANULE, create(GRANULE, HOST_NUMA))
both = (Access * 2)(Access(Location(DEVICE, 0), READWRITE), Access(Location(DEVICE, 1), READWRITE))
call("cuMemSetAccess", base, GRANULE, both, 2, want=PEER_UNSUPPORTED)
call("cuMemSetAccess", base + GRANULE, GRANULE, both, 2)
call("cuMemSetAccess", base, GRANULE, both, 1)
call("cuDeviceGetDefaultMemPool", C.byref(pool), C.c_int(0))
call("cuMemPoolSetAccess", pool, (Access * 1)(both[1]), 1, want=INVALID_DEVICE)
""",
        DEVICES="2",
        PEERS="no",
    )
