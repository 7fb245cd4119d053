# SPDX-License-Identifier: Apache-2.0
"""The less used entries of device code in the simulated driver: the linker that passes one input through, launches of old,
launch attributes and limits, occupancy of clusters, and what probe mode reads."""

from __future__ import annotations

import json

import pytest
from nvcc import cuda_program  # noqa: F401  (a fixture)
from simcode import run_script

INVALID_VALUE, INVALID_IMAGE, INVALID_PTX, FILE_NOT_FOUND, INVALID_HANDLE = 1, 200, 218, 301, 400
ILLEGAL_ADDRESS, OUT_OF_RESOURCES, COOPERATIVE_TOO_LARGE, NOT_SUPPORTED, INVALID_CLUSTER = 700, 701, 720, 801, 912

PTX = r""".version 8.0
.target sm_80
.address_size 64
.visible .entry count( .param .u64 p ) { ret; }
.visible .entry two( .param .u32 n, .param .u64 p ) { ret; }
.visible .entry nothing() { ret; }
"""

PRELUDE = """
context = Ctx()
module = handle()
cu("cuModuleLoadData", ref(module), open(sys.argv[1], "rb").read() + b"\\0")
def function(name):
    f = handle()
    cu("cuModuleGetFunction", ref(f), module, name.encode())
    return f
class Attribute(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16)]
class Config(ctypes.Structure):
    _fields_ = [("shape", ctypes.c_uint * 7), ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint)]
def config(grid, block, *attributes, stream=None, shared=0):
    array = (Attribute * len(attributes))(*(Attribute(i, 0, (ctypes.c_uint32 * 16)(*values)) for i, *values in attributes))
    return Config((ctypes.c_uint * 7)(*shape(grid, block)[:6], shared), stream, array, len(attributes))
def launch_ex(f, grid, block, *attributes, stream=None):
    return code("cuLaunchKernelEx", ref(config(grid, block, *attributes, stream=stream)), f, None, None)
def number(entry, *arguments):
    v = ctypes.c_int(-1)
    r = code(entry, ref(v), *arguments)
    return v.value if r == 0 else -r
"""


@pytest.fixture
def script(run_sim, tmp_path):
    path = tmp_path / "module.ptx"
    path.write_text(PTX)

    def run(text, *arguments, **how):
        return run_script(run_sim, PRELUDE + text, path, *arguments, **how)

    return run


def test_the_linker_passes_one_input_through(script, tmp_path):
    (tmp_path / "text").write_text("no device code")
    facts, result = script(
        """
CUBIN, PTX, FATBINARY, OBJECT = 0, 1, 2, 3
text = open(sys.argv[1], "rb").read()
state, out, size, linked = handle(), handle(), u64(), handle()
def add(s, kind, data):
    return code("cuLinkAddData_v2", s, kind, data, len(data), b"name", 0, None, None)
r = {}
cu("cuLinkCreate_v2", 0, None, None, ref(state))
r["nothing yet"] = code("cuLinkComplete", state, ref(out), ref(size))
r["not a cubin"] = add(state, CUBIN, text)
r["not PTX"] = add(state, PTX, b"hello")
r["an object"] = add(state, OBJECT, text)
r["no such type"] = add(state, 17, text)
r["no file"] = code("cuLinkAddFile_v2", state, PTX, sys.argv[2].encode() + b"x", 0, None, None)
r["a file that is no code"] = code("cuLinkAddFile_v2", state, PTX, sys.argv[2].encode(), 0, None, None)
r["PTX"] = add(state, PTX, text)
r["another"] = add(state, PTX, text)
r["complete"] = code("cuLinkComplete", state, ref(out), ref(size))
r["size"] = size.value - len(text)
r["load"] = code("cuModuleLoadData", ref(linked), out)
f = handle()
r["function"] = code("cuModuleGetFunction", ref(f), linked, b"two")
r["too late"] = add(state, PTX, text)
r["destroy"] = code("cuLinkDestroy", state)
r["again"] = code("cuLinkDestroy", state)
r["of a dead one"] = add(state, PTX, text)
other = handle()
cu("cuLinkCreate_v2", 0, None, None, ref(other))
r["from a file"] = code("cuLinkAddFile_v2", other, PTX, sys.argv[1].encode(), 0, None, None)
answer(r=r)
""",
        tmp_path / "text",
    )
    assert facts["r"] == {
        "nothing yet": INVALID_VALUE,
        "not a cubin": INVALID_IMAGE,
        "not PTX": INVALID_PTX,
        "an object": NOT_SUPPORTED,
        "no such type": INVALID_VALUE,
        "no file": FILE_NOT_FOUND,
        "a file that is no code": INVALID_PTX,
        "PTX": 0,
        "another": NOT_SUPPORTED,
        "complete": 0,
        "size": 1,  # the NUL
        "load": 0,
        "function": 0,
        "too late": INVALID_VALUE,
        "destroy": 0,
        "again": INVALID_HANDLE,
        "of a dead one": INVALID_HANDLE,
        "from a file": 0,
    }
    assert "second input" in result.stderr and "no linker" in result.stderr


def test_compiler_options_are_checked(script):
    facts, _ = script(
        """
text = open(sys.argv[1], "rb").read() + b"\\0"
m, s, lib = handle(), handle(), handle()
def load(options, values, count=None):
    n = len(options) if count is None else count
    o, v = (ctypes.c_int * 4)(*options), (ctypes.c_void_p * 4)(*values)
    return [code("cuModuleLoadDataEx", ref(m), text, n, o, v), code("cuLibraryLoadData", ref(lib), text, o, v, n, None, None, 0),
            code("cuLinkCreate_v2", n, o, v, ref(s))]
r = {"good": load([0, 7], [32, 4]), "unknown": load([99], [0]), "negative": load([-1], [0])}
r["no values"] = [code("cuModuleLoadDataEx", ref(m), text, 1, (ctypes.c_int * 1)(0), None)]
answer(r=r)
"""
    )
    assert facts["r"].pop("good") == [0, 0, 0]
    assert set(sum(facts["r"].values(), [])) == {INVALID_VALUE}


def test_launches_of_old(run_sim, cuda_program):  # noqa: F811
    image = cuda_program.nvcc("kernels.cu", "kernels.cubin", "-arch=sm_90", "-cubin")
    companion = cuda_program.companion("kernels.cu", "kernels.simk.so")
    facts, _ = run_script(
        run_sim,
        """
context = Ctx()
module, f = handle(), handle()
cu("cuModuleLoad", ref(module), sys.argv[1].encode())
cu("cuModuleGetFunction", ref(f), module, b"_Z5plainPfmf")
p = device(4 * 40)
r = {"no shape": code("cuLaunch", f)}
half = ctypes.c_float(0.5)
r["set"] = [code("cuFuncSetBlockShape", f, 8, 1, 1), code("cuFuncSetSharedSize", f, 16), code("cuParamSetv", f, 0, ref(p), 8),
            code("cuParamSeti", f, 8, 40), code("cuParamSeti", f, 12, 0), code("cuParamSetf", f, 16, half)]
r["too small"] = code("cuLaunchGrid", f, 5, 1)
r["size"] = code("cuParamSetSize", f, 20)
r["launch"] = [code("cuLaunchGrid", f, 5, 1), sync()]
out = fetch(p, "f4", 40).tolist()
r["one block"] = [code("cuLaunch", f), code("cuLaunchGridAsync", f, 1, 1, None), sync()]
r["malformed"] = [code("cuFuncSetBlockShape", f, 0, 1, 1), code("cuParamSetSize", f, 1 << 20), code("cuParamSeti", f, -4, 1),
                  code("cuParamSeti", f, 1 << 20, 1), code("cuParamSetv", f, 0, None, 8), code("cuLaunchGrid", f, 0, 1)]
r["dead"] = [code("cuModuleUnload", module), code("cuLaunch", f), code("cuParamSeti", f, 0, 1)]
answer(r=r, out=out)
""",
        image,
        kernels=companion,
    )
    assert facts["out"] == [1.0 + i for i in range(40)]  # 0.5 * coef[1] + i
    assert facts["r"] == {
        "no shape": INVALID_VALUE,
        "set": [0] * 6,
        "too small": INVALID_VALUE,
        "size": 0,
        "launch": [0, 0],
        "one block": [0, 0, 0],
        "malformed": [INVALID_VALUE] * 6,
        "dead": [0, INVALID_HANDLE, INVALID_HANDLE],
    }


# id and value of a launch attribute, and what a launch of four blocks of 32 threads with it answers.
ATTRIBUTES = {
    "ignored": ((0,), 0),
    "unknown": ((99,), INVALID_VALUE),
    "for streams only": ((3, 1), INVALID_VALUE),
    "cooperative": ((2, 1), 0),
    "cluster": ((4, 2, 1, 1), 0),
    "cluster that does not divide": ((4, 3, 1, 1), INVALID_VALUE),
    "cluster of nothing": ((4, 0, 1, 1), INVALID_VALUE),
    "scheduling policy": ((5, 2), 0),
    "no such policy": ((5, 9), INVALID_VALUE),
    "programmatic serialisation": ((6, 1), 0),
    "programmatic event": ((7, 0), NOT_SUPPORTED),
    "priority": ((8, 0xFFFFFFFB), 0),
    "memory domains": ((9, 0x0101), 0),
    "no such domain": ((9, 0x09), INVALID_VALUE),
    "domain": ((10, 1), 0),
    "neither domain": ((10, 2), INVALID_VALUE),
    "carveout": ((14, 100), 0),
    "more than all": ((14, 101), INVALID_VALUE),
}
HINTS = {"no such policy", "no such domain", "neither domain", "more than all"}


@pytest.mark.parametrize("doubt", ["", "launch.attributes_checked"])
def test_launch_attributes(script, doubt):
    facts, _ = script(
        """
f = function("nothing")
attributes = json.loads(sys.argv[2])
answer(r={name: launch_ex(f, (4,), (32,), a) for name, a in attributes.items()}, sync=sync())
""",
        json.dumps({name: a for name, (a, _) in ATTRIBUTES.items()}),
        sim={"DOUBT": doubt},
    )
    expected = {name: 0 if doubt and name in HINTS else wanted for name, (_, wanted) in ATTRIBUTES.items()}
    assert facts == {"r": expected, "sync": 0}


def test_clusters(script):
    facts, _ = script(
        """
f = function("nothing")
big = (4, 16, 1, 1)
r = [launch_ex(f, (16,), (32,), big), launch_ex(f, (16,), (32,), (4, 4, 1, 1), (11, 8, 1, 1)), launch_ex(f, (16,), (32,), (4, 4, 1, 1), (11, 6, 1, 1))]
sizes = [number("cuOccupancyMaxPotentialClusterSize", f, ref(config((16,), (block,)))) for block in (32, 1024, 1025)]
def active(*attributes):
    return number("cuOccupancyMaxActiveClusters", f, ref(config((16,), (1024,), *attributes)))
answer(r=r, sizes=sizes, active=[active((4, 2, 1, 1)), active((4, 8, 1, 1)), active(), active(big)], sync=sync())
"""
    )
    assert facts["r"] == [INVALID_CLUSTER, 0, INVALID_VALUE]
    assert facts["sizes"] == [8, 8, 0]  # four multiprocessors of two blocks of 1024 threads
    assert facts["active"] == [4, 1, -INVALID_VALUE, -INVALID_CLUSTER]
    assert facts["sync"] == 0


def test_cluster_settings_of_a_function(script):
    facts, _ = script(
        """
f, v = function("nothing"), ctypes.c_int()
WIDTH, HEIGHT, DEPTH, NON_PORTABLE, POLICY = 11, 12, 13, 14, 15
def get(a):
    cu("cuFuncGetAttribute", ref(v), a, f)
    return v.value
def put(a, value):
    return code("cuFuncSetAttribute", f, a, value)
def run(blocks):
    return launch(f, (blocks,), (32,))
r = {"fresh": [get(a) for a in range(WIDTH, POLICY + 1)]}
r["refused"] = [put(WIDTH, -1), put(NON_PORTABLE, 2), put(POLICY, 9), put(10, 1), put(0, 1)]
r["set"] = [put(WIDTH, 4), put(HEIGHT, 1), put(POLICY, 1), get(WIDTH), get(HEIGHT), get(DEPTH), get(POLICY)]
r["half set"] = run(4)
r["launch"] = [put(DEPTH, 1), run(4), run(6), run(8)]
r["large"] = [put(WIDTH, 16), run(16), put(NON_PORTABLE, 1), run(16), put(WIDTH, 32), run(32)]
answer(r=r, sync=sync())
"""
    )
    assert facts["r"] == {
        "fresh": [0] * 5,
        "refused": [INVALID_VALUE] * 5,
        "set": [0, 0, 0, 4, 1, 0, 1],
        "half set": INVALID_VALUE,
        "launch": [0, 0, INVALID_VALUE, 0],
        "large": [0, INVALID_CLUSTER, 0, 0, 0, INVALID_CLUSTER],
    }
    assert facts["sync"] == 0


def test_a_cooperative_launch_must_fit(script):
    facts, _ = script(
        """
f = function("nothing")
per = number("cuOccupancyMaxActiveBlocksPerMultiprocessor", f, 256, 0)
sms = number("cuDeviceGetAttribute", 16, 0)
s = handle()
cu("cuStreamCreate", ref(s), 1)
def cooperative(blocks):
    return [code("cuLaunchCooperativeKernel", f, blocks, 1, 1, 256, 1, 1, 0, s, None), launch_ex(f, (blocks,), (256,), (2, 1))]
r = {"fits": cooperative(per * sms), "does not": cooperative(per * sms + 1), "fits again": cooperative(1)}
class Params(ctypes.Structure):
    _fields_ = [("f", ctypes.c_void_p), ("shape", ctypes.c_uint * 7), ("stream", ctypes.c_void_p), ("params", ctypes.c_void_p)]
def multi(*streams, blocks=2, flags=0):
    all = (Params * len(streams))(*(Params(f, (ctypes.c_uint * 7)(*shape((blocks,), (32,))[:6], 0), x, None) for x in streams))
    return code("cuLaunchCooperativeKernelMultiDevice", all, len(streams), flags)
r["several devices"] = [multi(s), multi(s, blocks=per * sms * 99), multi(None), multi(s, s), multi(s, flags=8), multi()]
answer(r=r, sync=sync())
"""
    )
    assert facts["r"] == {
        "fits": [0, 0],
        "does not": [COOPERATIVE_TOO_LARGE] * 2,
        "fits again": [0, 0],
        "several devices": [0, COOPERATIVE_TOO_LARGE] + [INVALID_VALUE] * 4,
    }
    assert facts["sync"] == 0


@pytest.mark.parametrize("doubt", ["", "launch.limits_not_sticky"])
def test_registers_limit_a_block(run_sim, cuda_program, doubt):  # noqa: F811
    """A kernel's registers are in its cubin: 128 of them leave room for 512 threads."""
    facts, _ = run_script(
        run_sim,
        """
import struct
context = Ctx()
data = bytearray(open(sys.argv[1], "rb").read())
at = [i for i in range(0, len(data) - 12, 4) if data[i : i + 4] == b"\\x04\\x2f\\x08\\x00"]  # EIATTR_REGCOUNT records
for i in at:
    struct.pack_into("<I", data, i + 8, 128)
lib = handle()
cu("cuLibraryLoadData", ref(lib), bytes(data), None, None, 0, None, None, 0)
k, bounded, v = kernel(lib, "count"), kernel(lib, "_Z5mixedc4Pair6float4sPKc"), ctypes.c_int()
cu("cuKernelGetAttribute", ref(v), 4, k, 0)
most = ctypes.c_int()
cu("cuKernelGetAttribute", ref(most), 0, k, 0)
p = u64()
answer(found=len(at), registers=v.value, most=most.value, r=[launch(k, (1,), (512,)), launch(k, (1,), (513,)), launch(bounded, (1,), (129,), *[p] * 5)], sync=sync())
""",
        cuda_program.nvcc("kernels.cu", "kernels.cubin", "-arch=sm_90", "-cubin"),
        sim={"DOUBT": doubt},
    )
    assert facts["found"] > 5
    assert facts["registers"] == 128 and facts["most"] == 512
    assert facts["r"] == [0, OUT_OF_RESOURCES, OUT_OF_RESOURCES if doubt else INVALID_VALUE]
    assert facts["sync"] == 0


def test_the_context_of_a_launch_is_its_streams(script):
    facts, _ = script(
        """
lib, other, s = handle(), handle(), handle()
cu("cuLibraryLoadFromFile", ref(lib), sys.argv[1].encode(), None, None, 0, None, None, 0)
k, f = kernel(lib, "nothing"), function("nothing")
cu("cuStreamCreate", ref(s), 1)
cu("cuCtxCreate_v2", ref(other), 0, 0)  # current from here on
there = handle()
cu("cuStreamCreate", ref(there), 1)
r = [launch(k, (1,), (1,), stream=s.value), launch(k, (1,), (1,)), launch(k, (1,), (1,), stream=there.value),
     launch(f, (1,), (1,), stream=s.value), launch(f, (1,), (1,)), launch(f, (1,), (1,), stream=there.value), launch(k, (1,), (1,), stream=8)]
answer(r=r, sync=[sync(), code("cuStreamSynchronize", s)])
"""
    )
    assert facts == {"r": [0, 0, 0, 0, INVALID_HANDLE, INVALID_HANDLE, INVALID_HANDLE], "sync": [0, 0]}


@pytest.mark.parametrize(("share", "pages"), [(100, 1000), (50, 500), (10, 100), (1, 10)])
def test_probe_reads_a_share_of_the_pages(script, share, pages):
    """Its simulated time tells how many: a thousand pages at 4 GB/s, a microsecond each."""
    facts, _ = script(
        """
p, f, ms = device(1000 * 4096), function("count"), ctypes.c_float()
a, b = handle(), handle()
for e in (a, b):
    cu("cuEventCreate", ref(e), 0)
cu("cuEventRecord", a, None)
r = [launch(f, (1,), (1,), p)]
cu("cuEventRecord", b, None)
r.append(sync())
cu("cuEventElapsedTime", ref(ms), a, b)
answer(r=r, us=ms.value * 1000)
""",
        sim={"UNKNOWN_KERNEL": "probe", "PROBE_SHARE": str(share), "HBM": "4096000000", "LAUNCH": "0"},
    )
    assert facts["r"] == [0, 0]
    assert facts["us"] == pytest.approx(pages, rel=0.02, abs=12)


def test_probe_finds_pointers_anywhere_and_faults_where_a_kernel_would(script):
    facts, _ = script(
        """
p, f = device(1 << 21), function("two")
r = [launch(f, (1,), (1,), ctypes.c_uint32(7), p), sync()]
base, h = u64(), u64()
class Prop(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", ctypes.c_int), ("id", ctypes.c_int), ("win", ctypes.c_void_p), ("flags", ctypes.c_ubyte * 8)]
cu("cuMemCreate", ref(h), 1 << 21, ref(Prop(1, 0, 1, 0)), 0)
cu("cuMemAddressReserve", ref(base), 1 << 21, 0, 0, 0)
cu("cuMemMap", base, 1 << 21, 0, h, 0)
r += [launch(f, (1,), (1,), ctypes.c_uint32(7), base), sync()]  # mapped, not granted
answer(r=r)
""",
        sim={"UNKNOWN_KERNEL": "probe"},
    )
    assert facts == {"r": [0, 0, 0, ILLEGAL_ADDRESS]}
