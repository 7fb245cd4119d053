# SPDX-License-Identifier: Apache-2.0
"""Launches in the simulated driver: parameters, threads and barriers, faults, handles, and kernels that nobody knows."""

from __future__ import annotations

import subprocess

import pytest
from nvcc import SIMK_INCLUDE, cuda_program  # noqa: F401  (a fixture)
from simcode import run_script

INVALID_VALUE, INVALID_IMAGE, INVALID_HANDLE, NOT_FOUND, ILLEGAL_ADDRESS = 1, 200, 400, 500, 700


@pytest.fixture
def image(cuda_program):  # noqa: F811
    return cuda_program.nvcc("kernels.cu", "kernels.cubin", "-arch=sm_90", "-cubin")


@pytest.fixture
def companion(cuda_program):  # noqa: F811
    return cuda_program.companion("kernels.cu", "kernels.simk.so")


@pytest.fixture
def script(run_sim, image, companion):
    """Run a script with the image as its first argument."""

    def run(text, *arguments, kernels=companion, **how):
        return run_script(run_sim, "context = Ctx()\nlib = load(sys.argv[1])\n" + text, image, *arguments, kernels=kernels, **how)

    return run


def test_kernel_parameters_by_pointers_and_by_buffer(script):
    facts, _ = script(
        """
n = 1000
p = device(4 * n)
k = kernel(lib, "_Z5plainPfmf")
values = [p, u64(n), ctypes.c_float(0.5)]
assert launch(k, (4,), (256,), *values) == 0 and sync() == 0
by_pointers = fetch(p, "f4", n).tolist()
class Buffer(ctypes.Structure):
    _fields_ = [("p", ctypes.c_uint64), ("n", ctypes.c_uint64), ("v", ctypes.c_float)]
def extra(buffer, size):
    size = u64(size)
    array = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
    return code("cuLaunchKernel", k, *shape((4,), (256,)), None, array), (size, array)
b = Buffer(p.value, n, 1.5)
results = [extra(b, ctypes.sizeof(b))[0]]
sync()
by_buffer = fetch(p, "f4", n).tolist()
results.append(extra(b, 19)[0])   # 20 bytes are needed
results.append(extra(b, 20)[0])
both = (ctypes.c_void_p * 1)(0)
results.append(code("cuLaunchKernel", k, *shape((4,), (256,)), pointers(*values), both))
results.append(code("cuLaunchKernel", k, *shape((4,), (256,)), None, None))
wrong = (ctypes.c_void_p * 3)(7, 0, 0)
results.append(code("cuLaunchKernel", k, *shape((4,), (256,)), None, wrong))
answer(by_pointers=by_pointers, by_buffer=by_buffer, results=results, last=sync())
"""
    )
    assert facts["by_pointers"] == [1.0 + i for i in range(1000)]  # 0.5 * coef[1] + i
    assert facts["by_buffer"] == [3.0 + i for i in range(1000)]
    assert facts["results"] == [0, INVALID_VALUE, 0, INVALID_VALUE, INVALID_VALUE, INVALID_VALUE]
    assert facts["last"] == 0


def test_struct_by_value_and_barrier(script):
    facts, _ = script(
        """
class Pair(ctypes.Structure):
    _fields_ = [("a", ctypes.c_uint64), ("n", ctypes.c_int), ("b", ctypes.c_uint64)]
a, b, q = device(np.float32([2.5]).tobytes()), device(8 * 64), device(bytes([3]))
k = kernel(lib, "_Z5mixedc4Pair6float4sPKc")
s = Pair(a.value, 63, b.value)
f = (ctypes.c_float * 4)(0, 0, 0, 10)
r = launch(k, (1,), (64,), ctypes.c_byte(-5), s, f, ctypes.c_short(100), q)
answer(r=r, sync=sync(), out=fetch(b, "f8", 64).tolist())
"""
    )
    assert facts == {"r": 0, "sync": 0, "out": [2.5 + 10 + 100 - 5 + 3] * 64}


def test_every_thread_knows_its_place(script):
    facts, _ = script(
        """
out = device(4 * 24 * 30)
k = kernel(lib, "whoami")
r = launch(k, (2, 3, 4), (5, 3, 2), out)
answer(r=r, sync=sync(), out=fetch(out, "u4", 24 * 30).tolist())
"""
    )
    assert facts["out"] == [block << 16 | thread for block in range(24) for thread in range(30)]


@pytest.mark.parametrize(("block", "blocks"), [((1,), 3), ((32,), 5), ((8, 4, 2), 3), ((1024,), 2)])
def test_barriers_and_dynamic_shared_memory(script, block, blocks):
    facts, _ = script(
        f"""
block, blocks = {block}, {blocks}
n = int(np.prod(block))
data = np.arange(n * blocks, dtype="i4") ** 2 % 1009
p, out = device(data.tobytes()), device(8 * blocks)
k = kernel(lib, "block_sum")
r = launch(k, (blocks,), block, p, out, shared=8 * n)
answer(r=r, sync=sync(), out=fetch(out, "i8", blocks).tolist(), want=data.reshape(blocks, n).sum(1, dtype="i8").tolist())
"""
    )
    assert facts["r"] == facts["sync"] == 0
    assert facts["out"] == facts["want"]


def test_threads_that_leave_before_a_barrier(script):
    facts, _ = script(
        """
out = device(4 * 40)
r = launch(kernel(lib, "early_exit"), (4,), (10,), out)
votes = device(4 * 10)
r2 = launch(kernel(lib, "votes"), (1,), (10,), votes)
answer(r=[r, r2, sync()], out=fetch(out, "i4", 40).tolist(), votes=fetch(votes, "i4", 10).tolist())
"""
    )
    assert facts == {"r": [0, 0, 0], "out": [5, 0] * 20, "votes": [1 + 0 + 4 * 4] * 10}


def test_atomics(script):
    facts, _ = script(
        """
i, u, l, f = device(12), device(8), device(8), device(4)
r = launch(kernel(lib, "atomics"), (2,), (100,), i, u, l, f)
answer(r=[r, sync()], i=fetch(i, "i4", 3).tolist(), u=fetch(u, "u4", 2).tolist(), l=fetch(l, "u8", 1).tolist(), f=fetch(f, "f4", 1).tolist())
"""
    )
    assert facts == {"r": [0, 0], "i": [400, 99, -99], "u": [100, 9], "l": [200 << 33], "f": [100.0]}


def test_module_variables_are_shared_with_the_host(script):
    facts, _ = script(
        """
p, size = u64(), u64()
cu("cuLibraryGetGlobal", ref(p), ref(size), lib, b"counter")
k = kernel(lib, "count")
r = [launch(k, (3,), (5,)), sync()]
first = fetch(p, "i4", 1).tolist()
cu("cuMemcpyHtoD_v2", p, np.int32([-100]).tobytes(), 4)
r += [launch(k, (1,), (7,)), sync()]
answer(r=r, first=first, second=fetch(p, "i4", 1).tolist())
"""
    )
    assert facts == {"r": [0] * 4, "first": [7 + 15], "second": [-93]}


def test_limits_of_a_launch(script):
    facts, _ = script(
        """
p = device(4 * 2048)
k, mixed, whoami = kernel(lib, "block_sum"), kernel(lib, "_Z5mixedc4Pair6float4sPKc"), kernel(lib, "whoami")
v = [p, p]
r = {}
r["no grid"] = launch(k, (0,), (32,), *v)
r["no block"] = launch(k, (1,), (32, 0), *v)
r["too many threads"] = launch(k, (1,), (1025,), *v)
r["too many in all"] = launch(k, (1,), (32, 33), *v)
r["deep block"] = launch(k, (1,), (1, 1, 65), *v)
r["tall grid"] = launch(k, (1, 65536), (1,), *v)
r["launch bounds"] = code("cuLaunchKernel", mixed, *shape((1,), (129,)), pointers(*[p] * 5), None)
r["48 KiB of shared memory"] = launch(k, (1,), (32,), *v, shared=49152)
r["more"] = launch(k, (1,), (32,), *v, shared=49153)
cu("cuKernelSetAttribute", 8, 65536, k, 0)
r["opted in"] = launch(k, (1,), (32,), *v, shared=65536)
r["more than opted in"] = launch(k, (1,), (32,), *v, shared=65537)
r["opt in to too much"] = code("cuKernelSetAttribute", 8, 228 << 10, k, 0)
r["whole"] = launch(whoami, (2,), (1024,), p)
answer(r=r, sync=sync())
"""
    )
    fine = {"48 KiB of shared memory", "opted in", "whole"}
    assert facts["r"] == {name: 0 if name in fine else INVALID_VALUE for name in facts["r"]}
    assert facts["sync"] == 0


def test_parameters_are_copied_by_the_call(script):
    """The stream is held back by a host function while the caller overwrites what it passed."""
    facts, _ = script(
        """
import threading
gate = threading.Event()
callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: gate.wait(30))
s = handle()
cu("cuStreamCreate", ref(s), 1)
p = device(4)
cu("cuLaunchHostFunc", s, callback, None)
k = kernel(lib, "_Z5storeIiEvPT_S0_")
value = ctypes.c_int(41)
r = launch(k, (1,), (1,), p, value, stream=s.value)
value.value = 99
gate.set()
answer(r=[r, code("cuStreamSynchronize", s)], out=fetch(p, "i4", 1).tolist())
"""
    )
    assert facts == {"r": [0, 0], "out": [41]}


@pytest.mark.parametrize("where", ["nowhere", "freed", "reserved"])
def test_a_bad_address_is_a_sticky_error(script, where):
    facts, _ = script(
        """
p = device(64 << 20)
bad = {"nowhere": 1 << 20, "freed": p.value, "reserved": 0}[sys.argv[2]]
if sys.argv[2] == "freed":
    cu("cuMemFree_v2", p)
if sys.argv[2] == "reserved":
    r = u64()
    cu("cuMemAddressReserve", ref(r), 4 << 20, 0, 0, 0)
    bad = r.value
k = kernel(lib, "_Z5storeIiEvPT_S0_")
first = launch(k, (1,), (1,), u64(bad), ctypes.c_int(1))
after = [sync(), sync(), launch(k, (1,), (1,), u64(bad), ctypes.c_int(1)), code("cuMemAlloc_v2", ref(u64()), 4096)]
answer(first=first, after=after)
""",
        where,
    )
    assert facts == {"first": 0, "after": [ILLEGAL_ADDRESS] * 4}


def test_a_fault_behind_a_barrier(script):
    """The fault happens on a fiber's own stack."""
    facts, _ = script(
        """
k = kernel(lib, "early_exit")
answer(r=[launch(k, (2,), (64,), u64(4096)), sync(), sync()])
"""
    )
    assert facts["r"] == [0, ILLEGAL_ADDRESS, ILLEGAL_ADDRESS]


def test_garbage_handles(script):
    facts, _ = script(
        """
k = kernel(lib, "whoami")
f, m = handle(), handle()
cu("cuKernelGetFunction", ref(f), k)
cu("cuLibraryGetModule", ref(m), lib)
v, n, s, z, t = ctypes.c_int(), ctypes.c_uint(), ctypes.c_char_p(), u64(), handle()
r = {}
for name, h in {"null": 0, "small": 8, "stack": ctypes.addressof(v), "library": lib.value}.items():
    h = ctypes.c_void_p(h)
    r[name] = [
        launch(h, (1,), (1,), z), code("cuFuncGetAttribute", ref(v), 0, h), code("cuFuncSetAttribute", h, 8, 0),
        code("cuFuncGetName", ref(s), h), code("cuFuncGetModule", ref(t), h), code("cuFuncGetParamInfo", h, 0, ref(z), ref(z)),
        code("cuKernelGetFunction", ref(t), h), code("cuKernelGetName", ref(s), h), code("cuKernelGetParamInfo", h, 0, ref(z), ref(z)),
        code("cuKernelGetAttribute", ref(v), 0, h, 0), code("cuModuleGetFunction", ref(t), h, b"x"), code("cuModuleUnload", h),
        code("cuModuleGetGlobal_v2", ref(z), None, h, b"x"),
        code("cuOccupancyMaxActiveBlocksPerMultiprocessor", ref(v), h, 32, 0),
    ]
for h in (f, k, m):
    r.setdefault("as library", []).extend([code("cuLibraryGetKernel", ref(t), h, b"x"), code("cuLibraryUnload", h)])
answer(r=r, sync=sync())
"""
    )
    assert set(sum(facts["r"].values(), [])) == {INVALID_HANDLE}, facts["r"]
    assert facts["sync"] == 0


def test_handles_die_with_what_they_belong_to(script):
    facts, _ = script(
        """
k, f, m = kernel(lib, "whoami"), handle(), handle()
p = device(4096)
cu("cuKernelGetFunction", ref(f), k)
r = {"alive": [launch(f, (1,), (1,), p), launch(k, (1,), (1,), p)]}
cu("cuModuleLoad", ref(m), sys.argv[1].encode())
g = handle()
cu("cuModuleGetFunction", ref(g), m, b"whoami")
r["alive"].append(launch(g, (1,), (1,), p))
cu("cuModuleUnload", m)
r["module unloaded"] = [launch(g, (1,), (1,), p), code("cuModuleUnload", m)]
r["alive"] += [launch(f, (1,), (1,), p), sync()]
cu("cuDevicePrimaryCtxReset_v2", 0)
Ctx()
p = device(4096)
r["context reset"] = [launch(f, (1,), (1,), p)]
r["alive"] += [launch(k, (1,), (1,), p), sync()]  # a kernel belongs to no context
cu("cuLibraryUnload", lib)
r["library unloaded"] = [launch(k, (1,), (1,), p), code("cuLibraryUnload", lib)]
answer(r=r, sync=sync())
"""
    )
    alive = facts["r"].pop("alive")
    assert alive == [0] * 7
    assert set(sum(facts["r"].values(), [])) == {INVALID_HANDLE}, facts["r"]
    assert facts["sync"] == 0


def test_one_library_in_two_contexts(script):
    facts, _ = script(
        """
values = []
for context in range(2):
    c = handle()
    cu("cuCtxCreate_v2", ref(c), 0, 0)
    p = u64()
    k = kernel(lib, "count")
    for _ in range(context + 1):
        assert launch(k, (1,), (10,)) == 0
    assert sync() == 0
    cu("cuLibraryGetGlobal", ref(p), None, lib, b"counter")
    values.append(fetch(p, "i4", 1)[0].item())
answer(values=values)
"""
    )
    assert facts == {"values": [17, 27]}


def test_a_captured_launch_runs_at_each_replay(script):
    facts, _ = script(
        """
s, graph, executable, p = handle(), handle(), handle(), u64()
cu("cuStreamCreate", ref(s), 1)
k = kernel(lib, "count")
cu("cuLibraryGetGlobal", ref(p), None, lib, b"counter")
cu("cuStreamBeginCapture_v2", s, 2)
r = [launch(k, (1,), (10,), stream=s.value)]
cu("cuStreamEndCapture", s, ref(graph))
before = fetch(p, "i4", 1)[0].item()
cu("cuGraphInstantiateWithFlags", ref(executable), graph, 0)
for _ in range(3):
    cu("cuGraphLaunch", executable, s)
cu("cuStreamSynchronize", s)
answer(r=r, before=before, after=fetch(p, "i4", 1)[0].item())
"""
    )
    assert facts == {"r": [0], "before": 7, "after": 37}


def test_extended_and_cooperative_launches(script):
    facts, _ = script(
        """
class Config(ctypes.Structure):
    _fields_ = [("shape", ctypes.c_uint * 7), ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint)]
out = device(4 * 64)
k = kernel(lib, "whoami")
c = Config((ctypes.c_uint * 7)(2, 1, 1, 32, 1, 1, 0), None, None, 0)
r = [code("cuLaunchKernelEx", ref(c), k, pointers(out), None), sync()]
ex = fetch(out, "u4", 64).tolist()
cu("cuMemsetD8_v2", out, 0, 256)
r += [code("cuLaunchCooperativeKernel", k, *shape((2,), (32,)), pointers(out)), sync()]
r += [code("cuLaunchKernelEx", None, k, pointers(out), None), code("cuLaunchKernel_ptsz", k, *shape((2,), (32,)), pointers(out), None)]
c.count = 1
r.append(code("cuLaunchKernelEx", ref(c), k, pointers(out), None))
answer(r=r, ex=ex, cooperative=fetch(out, "u4", 64).tolist())
"""
    )
    want = [block << 16 | thread for block in range(2) for thread in range(32)]
    assert facts == {"r": [0, 0, 0, 0, INVALID_VALUE, 0, INVALID_VALUE], "ex": want, "cooperative": want}


UNKNOWN = """
k = kernel(lib, "unknown")
p = device(8 << 20)
bad = u64()
cu("cuMemAddressReserve", ref(bad), 2 << 20, 0, 0, 0)
r = [launch(k, (1,), (32,), p, u64(8 << 20)), launch(k, (1,), (32,), p, u64(1)), sync()]
answer(r=r)
"""


@pytest.mark.parametrize(("mode", "expected"), [("noop", [0, 0, 0]), ("probe", [0, 0, 0]), ("fail", [NOT_FOUND, NOT_FOUND, 0])])
def test_unknown_kernels(script, mode, expected):
    facts, result = script(UNKNOWN, sim={"UNKNOWN_KERNEL": mode})
    assert facts["r"] == expected
    assert result.stderr.count("no companion holds the kernel unknown") == 1, result.stderr


def test_probe_reads_what_the_parameters_name(script):
    """A mapping without access: reading it faults, so the probe was there."""
    text = """
class Prop(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("handles", ctypes.c_int), ("location", ctypes.c_int), ("id", ctypes.c_int), ("win32", ctypes.c_void_p), ("flags", ctypes.c_uint64)]
prop, h, va = Prop(1, 0, 1, 0, None, 0), u64(), u64()
cu("cuMemCreate", ref(h), 2 << 20, ref(prop), 0)
cu("cuMemAddressReserve", ref(va), 2 << 20, 0, 0, 0)
cu("cuMemMap", va, 2 << 20, 0, h, 0)
answer(r=[launch(kernel(lib, "unknown"), (1,), (32,), u64(va.value + 4096), u64(1)), sync()])
"""
    facts, _ = script(text, sim={"UNKNOWN_KERNEL": "probe"})
    assert facts["r"] == [0, ILLEGAL_ADDRESS]
    facts, _ = script(text, sim={"UNKNOWN_KERNEL": "noop"})
    assert facts["r"] == [0, 0]


def test_companion_beside_the_image(run_sim, tmp_path, image, companion):
    moved = tmp_path / "moved.cubin"
    moved.write_bytes(image.read_bytes())
    (tmp_path / "moved.cubin.simk.so").write_bytes(companion.read_bytes())
    facts, result = run_script(
        run_sim,
        """
context = Ctx()
out = device(4 * 32)
r = launch(kernel(load(sys.argv[1]), "whoami"), (1,), (32,), out)
answer(r=[r, sync()], out=fetch(out, "u4", 32).tolist())
""",
        moved,
    )
    assert facts == {"r": [0, 0], "out": list(range(32))}, result


def test_companions_that_do_not_fit(run_sim, script, cuda_program, tmp_path, companion):  # noqa: F811
    other = tmp_path / "other.c"
    other.write_text('#include "simk.h"\n__global__ void whoami(unsigned *out, int more) { *out = (unsigned)more; }\nSIM_KERNEL(whoami, unsigned *, int);\n')
    text = "p = device(4096)\nanswer(r=[launch(kernel(lib, 'whoami'), (1,), (1,), p), sync()])\n"
    facts, result = script(text, kernels=cuda_program.companion(other, "other.simk.so", "c"))
    assert facts["r"] == [INVALID_IMAGE, 0]
    assert "whoami has 1 parameters of 8 bytes" in result.stderr and "different sources" in result.stderr
    not_one = cuda_program.companion(tmp_path / "none.c", "none.simk.so", "c") if (tmp_path / "none.c").write_text("int x;\n") else None
    facts, result = script(text, kernels=f"{not_one}:{tmp_path}/missing.so:{companion}")
    assert facts["r"] == [0, 0]
    assert "registers no kernels" in result.stderr and "cannot load the companion" in result.stderr, result.stderr


PTX = """
.version 8.0
.target sm_75
.address_size 64
.visible .global .align 4 .u32 offset_by = 10;
.visible .entry add( .param .u64 out, .param .u64 in, .param .u32 n, .param .u16 step ) { ret; }
.visible .entry take( .param .u8 c, .param .align 8 .b8 w[24], .param .u64 out ) { ret; }
.visible .entry nothing() { ret; }
.visible .entry slow( .param .u64 flag, .param .u32 n ) { ret; }
"""


def test_a_companion_in_c(run_sim, cuda_program, tmp_path):  # noqa: F811
    """PTX by hand and a companion that gcc compiled as C11: nothing of NVIDIA's is needed."""
    (tmp_path / "plain.ptx").write_text(PTX)
    facts, _ = run_script(
        run_sim,
        """
class Wide(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_byte), ("values", ctypes.c_double * 2)]
context = Ctx()
text = open(sys.argv[1], "rb").read()
m, add, take, nothing = handle(), handle(), handle(), handle()
cu("cuModuleLoadData", ref(m), text)
for f, name in ((add, b"add"), (take, b"take"), (nothing, b"nothing")):
    cu("cuModuleGetFunction", ref(f), m, name)
data = np.arange(100, dtype="i4")
source, out, doubles = device(data.tobytes()), device(400), device(32)
r = [launch(add, (2,), (64,), out, source, ctypes.c_int(100), ctypes.c_short(-3))]
w = Wide(7, (ctypes.c_double * 2)(1.5, 2.5))
r += [launch(take, (1,), (1,), ctypes.c_byte(-1), w, doubles), launch(nothing, (100,), (1024,)), sync()]
answer(r=r, out=fetch(out, "i4", 100).tolist(), doubles=fetch(doubles, "f8", 4).tolist())
""",
        tmp_path / "plain.ptx",
        kernels=cuda_program.companion("plain_kernels.c", "plain.simk.so", "c"),
    )
    assert facts == {"r": [0] * 4, "out": [i + 7 for i in range(100)], "doubles": [-1, 7, 1.5, 2.5]}


def test_occupancy(script):
    facts, _ = script(
        """
k, f, mixed = kernel(lib, "whoami"), handle(), handle()
cu("cuKernelGetFunction", ref(f), k)
cu("cuKernelGetFunction", ref(mixed), kernel(lib, "_Z5mixedc4Pair6float4sPKc"))
blocks, grid, block, smem = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), u64()
r = []
for function, threads, shared in ((f, 1024, 0), (f, 32, 0), (f, 128, 40000), (f, 128, 49153), (mixed, 129, 0)):
    cu("cuOccupancyMaxActiveBlocksPerMultiprocessor", ref(blocks), function, threads, shared)
    r.append(blocks.value)
cu("cuOccupancyMaxPotentialBlockSize", ref(grid), ref(block), f, None, 0, 0)
sms = ctypes.c_int()
cu("cuDeviceGetAttribute", ref(sms), 16, 0)
cu("cuOccupancyAvailableDynamicSMemPerBlock", ref(smem), f, 2, 128)
answer(r=r, potential=[grid.value // sms.value * block.value, grid.value % sms.value], smem=smem.value)
"""
    )
    assert facts["r"] == [2, 32, 5, 0, 0]
    assert facts["potential"] == [2048, 0]
    assert facts["smem"] == 228 * 1024 // 2 - 1024


def test_companion_of_two_objects(script, tmp_path):
    """Each object includes simk.h; both see the same thread indices, and the registry lists the kernels of both."""
    (tmp_path / "a.c").write_text(
        '#include "simk.h"\nunsigned place(void);\n__global__ void whoami(unsigned *out) { out[place()] = 100 + place(); }\nSIM_KERNEL(whoami, unsigned *);\n'
    )
    (tmp_path / "b.c").write_text(
        '#include "simk.h"\n__device__ unsigned place(void) { return blockIdx.x * blockDim.x + threadIdx.x; }\n'
        "__global__ void early_exit(unsigned *out) { __shared__ unsigned n; if (!threadIdx.x) n = 0; __syncthreads(); atomicAdd(&n, 1);\n"
        "__syncthreads(); out[place()] = n; }\nSIM_KERNEL(early_exit, unsigned *);\n"
    )
    both = tmp_path / "both.so"
    command = ["gcc", "-O2", "-fPIC", "-shared", f"-I{SIMK_INCLUDE}", tmp_path / "a.c", tmp_path / "b.c", "-o", both]
    subprocess.run(command, check=True, timeout=60)
    facts, _ = script(
        """
a, b = device(4 * 12), device(4 * 12)
r = [launch(kernel(lib, "whoami"), (3,), (4,), a), launch(kernel(lib, "early_exit"), (3,), (4,), b), sync()]
answer(r=r, a=fetch(a, "u4", 12).tolist(), b=fetch(b, "u4", 12).tolist())
""",
        kernels=both,
    )
    assert facts == {"r": [0, 0, 0], "a": [100 + i for i in range(12)], "b": [4] * 12}


def test_two_streams_run_the_same_kernel_at_once(script):
    """Shared memory and thread indices belong to a launch, not to the process."""
    facts, _ = script(
        """
import threading
k = kernel(lib, "block_sum")
n, blocks, rounds = 64, 20, 10
wrong = []
def work(seed):
    cu("cuCtxSetCurrent", context.handle)
    s = handle()
    cu("cuStreamCreate", ref(s), 1)
    data = np.random.default_rng(seed).integers(-1000, 1000, n * blocks, dtype="i4")
    p, out = device(data.tobytes()), device(8 * blocks)
    for _ in range(rounds):
        if launch(k, (blocks,), (n,), p, out, shared=8 * n, stream=s.value) or code("cuStreamSynchronize", s):
            wrong.append("error")
        if fetch(out, "i8", blocks).tolist() != data.reshape(blocks, n).sum(1, dtype="i8").tolist():
            wrong.append(seed)
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
answer(wrong=wrong)
"""
    )
    assert facts == {"wrong": []}


def test_compiler_logs_are_empty(run_sim, tmp_path):
    (tmp_path / "plain.ptx").write_text(PTX)
    facts, _ = run_script(
        run_sim,
        """
context = Ctx()
text = open(sys.argv[1], "rb").read()
m, log = handle(), ctypes.create_string_buffer(b"x" * 64, 64)
options = (ctypes.c_uint * 3)(5, 6, 0)  # ERROR_LOG_BUFFER, its size, MAX_REGISTERS
values = (ctypes.c_void_p * 3)(ctypes.addressof(log), 64, 32)
r = code("cuModuleLoadDataEx", ref(m), text, 3, options, values)
answer(r=r, size=values[1] or 0, registers=values[2])
""",
        tmp_path / "plain.ptx",
    )
    assert facts == {"r": 0, "size": 0, "registers": 32}


def test_a_kernel_under_another_name(script, cuda_program, tmp_path):  # noqa: F811
    """A static function has no symbol of its own; SIM_KERNEL_SYMBOL names it, SIM_KERNEL alone says why it cannot be found."""
    source = tmp_path / "named.cu"
    text = '#include "simk.h"\nnamespace { void mine(unsigned *out) { *out = 77; } }\n'
    launch = "p = device(4096)\nanswer(r=[launch(kernel(lib, 'whoami'), (1,), (1,), p), sync()], out=fetch(p, 'u4', 1).tolist())\n"
    source.write_text(text + 'SIM_KERNEL_SYMBOL(mine, "whoami");\n')
    facts, _ = script(launch, kernels=cuda_program.companion(source, "named.so"))
    assert facts == {"r": [0, 0], "out": [77]}
    source.write_text(text + "SIM_KERNEL(mine);\n")
    facts, result = script(launch, kernels=cuda_program.companion(source, "named.so"))
    assert facts == {"r": [0, 0], "out": [0]}
    assert "SIM_KERNEL_SYMBOL" in result.stderr and "no companion holds the kernel whoami" in result.stderr
