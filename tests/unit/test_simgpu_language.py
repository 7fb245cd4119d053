# SPDX-License-Identifier: Apache-2.0
"""The CUDA language of simk.h: tests/programs/language.cu compiles with nvcc and with g++, and its kernels give the results
that the CUDA documentation promises; what goes wrong in a kernel becomes the driver's sticky error."""

from __future__ import annotations

import json
import math
import struct
import subprocess

import pytest
from nvcc import SIMK_INCLUDE, cuda_program  # noqa: F401  (a fixture)
from simcode import run_script

ILLEGAL_ADDRESS, ASSERT, STACK_ERROR, ILLEGAL_INSTRUCTION, LAUNCH_FAILED = 700, 710, 714, 715, 719
MASK = 0xFFFFFFFF


@pytest.fixture
def script(run_sim, cuda_program):  # noqa: F811
    image = cuda_program.nvcc("language.cu", "language.cubin", "-arch=sm_90", "-cubin")
    companion = cuda_program.companion("language.cu", "language.simk.so")

    def run(text, *arguments, **how):
        text = "context = Ctx()\nlib = load(sys.argv[1])\n" + text
        return run_script(run_sim, text, image, *arguments, kernels=companion, **how)

    return run


def signed(v):
    return (v & MASK) - (1 << 32) if v & 0x80000000 else v & MASK


def byte_perm(a, b, select):
    both, r = (b << 32 | a).to_bytes(8, "little"), []
    for i in range(4):
        s = select >> 4 * i & 15
        byte = both[s & 7]
        r.append((255 if byte & 128 else 0) if s & 8 else byte)
    return int.from_bytes(bytes(r), "little")


def float_bits(v):
    return struct.unpack("<I", struct.pack("<f", v))[0]


def integers_of(v):
    """What the kernel `integers` writes for one word, by the definitions of the CUDA Math API."""
    inverse, low = ~v & MASK, v % 1000
    dot = sum(struct.unpack("<4b", v.to_bytes(4, "little"))[i] * (-2, 2, -1, 1)[i] for i in range(4))
    saturated = struct.unpack("<f", struct.pack("<f", struct.unpack("<f", struct.pack("<f", v))[0] / 4294967296.0))[0]
    return [
        bin(v).count("1"),
        32 - v.bit_length(),
        (v & -v).bit_length(),
        int(f"{v:032b}"[::-1], 2),
        byte_perm(v, inverse, 0x3524),
        byte_perm(v, 0x80FF7F01, 0xC0D4),
        v * 0x9E3779B9 >> 32,
        (signed(v) * -3 >> 32) & MASK,
        ((inverse << 32 | v) << 7 >> 32) & MASK,
        ((inverse << 32 | v) >> 8) & MASK,
        (dot + 5) & MASK,
        abs(signed(v) - 7) + 1,
        bin((v << 17 | v) & ((1 << 64) - 1)).count("1"),
        64 - v.bit_length(),
        (min(v, 100) + max(signed(v), 5)) & MASK,
        (10, 20, 30, 40)[v % 4],
        round(2.5 * low),  # to even, as the device rounds
        -(3 * low // 2) & MASK,
        float_bits(min(max(saturated, 0.0), 1.0)),
        0x7FFFFFFF,
    ]


def test_integer_intrinsics(script):
    words = [0, 1, 2, 3, 7, 0x80000000, 0x7FFFFFFF, MASK, 0x12345678, 0xDEADBEEF, 1000, 999_999]
    facts, _ = script(
        """
words = json.loads(sys.argv[2])
out = device(4 * 20 * len(words))
r = launch(kernel(lib, "integers"), (1,), (len(words),), device(np.uint32(words).tobytes()), out)
answer(r=[r, sync()], out=fetch(out, "u4", 20 * len(words)).reshape(-1, 20).tolist())
""",
        json.dumps(words),
    )
    assert facts["r"] == [0, 0]
    for word, got in zip(words, facts["out"], strict=True):
        assert got == integers_of(word), hex(word)


def test_floating_point_intrinsics(script):
    facts, _ = script(
        """
out = device(4 * 8 * 3)
r = launch(kernel(lib, "floats"), (1,), (3,), device(np.float32([0.25, 2, 3]).tobytes()), out)
answer(r=[r, sync()], out=fetch(out, "f4", 24).reshape(-1, 8).tolist())
"""
    )
    assert facts["r"] == [0, 0]
    for v, got in zip((0.25, 2, 3), facts["out"], strict=True):
        expected = [v**-0.5, math.exp(v), math.log(v), 1, 1 / v, v * v + 1, max(v, 2) + v**0.5, v**-0.5]
        assert got == pytest.approx(expected, rel=1e-5)


def test_vectors_and_structs(script):
    facts, _ = script(
        """
class Packed(ctypes.Structure):
    _fields_ = [("a", ctypes.c_float * 4), ("b", ctypes.c_int * 2), ("c", ctypes.c_short * 3), ("gap", ctypes.c_char * 2)]
p = Packed((1, 2, 3, 4), (5, 6), (7, 8, 9))
out, where = device(16 * 8), device(12 * 8)
r = launch(kernel(lib, "vectors"), (3,), (8,), p, out, where)
answer(r=[r, sync()], out=fetch(out, "f4", 32).reshape(-1, 4).tolist(), where=fetch(where, "u4", 24).reshape(-1, 3).tolist())
"""
    )
    assert facts["r"] == [0, 0]
    assert facts["out"] == [[1 + i, 2 + 30, 3 + 9, 8] for i in range(8)]
    assert facts["where"] == [[i, 3, 32] for i in range(8)]


def test_templates(script):
    facts, _ = script(
        """
p = device(np.int64([2, -3, 1 << 20]).tobytes())
r = launch(kernel(lib, "_Z6powersIxLi3EEvPT_"), (1,), (3,), p)
answer(r=[r, sync()], out=fetch(p, "i8", 3).tolist())
"""
    )
    assert facts == {"r": [0, 0], "out": [8, -27, 1 << 60]}


def test_atomics_of_every_width(script):
    facts, _ = script(
        """
u, l = device(np.uint32([0, 5, 1000, 0, 0, 0xFFFFFFFF]).tobytes()), device(np.int64([0, 0, 0]).tobytes())
d, f = device(8), device(8)
r = launch(kernel(lib, "more_atomics"), (2,), (32,), u, l, d, f)
answer(r=[r, sync()], u=fetch(u, "u4", 6).tolist(), l=fetch(l, "i8", 3).tolist(), d=fetch(d, "f8", 1).tolist(), f=fetch(f, "f4", 2).tolist())
"""
    )
    # 64 threads: a counter of ten values counts up, one counts down from 5; bits set twice by exclusive or are gone.
    assert facts["r"] == [0, 0]
    assert facts["u"] == [64 % 10, (5 - 64) % 10, 1000 - 192, 0, MASK, 0]
    assert facts["l"] == [64 << 33, 26, -31]
    assert facts["d"] == [16] and facts["f"] == [32, 2.5]


@pytest.mark.parametrize("warps", [1, 3, 32])
def test_sums_by_shuffles(script, warps):
    facts, _ = script(
        """
n = 32 * int(sys.argv[2])
data = np.arange(n, dtype="i4") ** 2 % 101
warp, block = device(4 * n), device(4 * n)
r = launch(kernel(lib, "warp_sums"), (2,), (n,), device(data.tobytes()), warp, block)
warps = np.repeat(data.reshape(-1, 32).sum(1), 32)
answer(r=[r, sync()], warp=fetch(warp, "i4", n).tolist() == warps.tolist(), block=set(fetch(block, "i4", n).tolist()) == {data.sum()})
""",
        warps,
    )
    assert facts == {"r": [0, 0], "warp": True, "block": True}


def test_warp_functions(script):
    facts, _ = script(
        """
out = device(4 * 16 * 64)
r = launch(kernel(lib, "warp_functions"), (1,), (64,), out)
answer(r=[r, sync()], out=fetch(out, "u4", 16 * 64).reshape(-1, 16).tolist())
"""
    )
    assert facts["r"] == [0, 0]
    for t, got in enumerate(facts["out"]):
        warp, lane = t // 32 * 32, t % 32
        expected = [
            warp + 5,
            warp + lane // 8 * 8 + (lane + 1) % 8,
            t - 3 if lane >= 3 else t,
            t + 2 if lane % 4 < 2 else t,
            int(1.5 * (warp + 31)) * 2,
            sum(1 << i for i in range(32) if (warp + i) % 3 == 0),
            (1 if warp else 0) + 2 * (0 if warp else 1),
            sum(1 << i for i in range(32) if (warp + i) // 10 == t // 10),
            (MASK + 1) & MASK,
            t ^ 1 if lane < 8 else 0xFFFFFF00,
            sum(range(warp, warp + 8)) if lane < 8 else warp + 31,
            -(warp + 31) & MASK,
            (63 - t) // 32 * 32 + 5,
        ]
        if lane < 20:
            xor = 0
            for i in range(20):
                xor ^= warp + i
            expected += [20, warp + 19, xor]
        else:
            expected += [0, 0, 0]
        assert got == expected, t


def test_warps_of_a_two_dimensional_block(script):
    """A warp is 32 threads in the order of x, then y; a lane that the block does not fill gives the caller's own value."""
    facts, _ = script(
        """
out = device(4 * 60)
r = launch(kernel(lib, "two_dimensional"), (1,), (12, 5), out)
answer(r=[r, sync()], out=fetch(out, "i4", 60).tolist())
"""
    )
    assert facts["r"] == [0, 0]
    own = [t // 12 * 100 + t % 12 for t in range(60)]
    assert facts["out"] == [own[31]] * 32 + own[32:]


FAULTY = """
name, block = sys.argv[2], int(sys.argv[3])
p = device(8)
values = {"asserts": [ctypes.c_int(3)], "divides": [p, ctypes.c_int(0)], "overflows": [p, ctypes.c_int(1 << 24), ctypes.c_int(block - 1)]}
other = handle()
cu("cuCtxCreate_v2", ref(other), 0, 0)
cu("cuCtxPopCurrent_v2", None)
first = launch(kernel(lib, name), (1,), (block,), *values.get(name, []))
after = [sync(), sync(), code("cuMemAlloc_v2", ref(u64()), 4096), launch(kernel(lib, "empty"), (1,), (1,))]
cu("cuCtxPushCurrent_v2", other)
elsewhere = [launch(kernel(lib, "empty"), (1,), (1,)), sync()]
if name == "overflows":  # a stack is as good as new for the next kernel that waits on it
    q = device(8)
    elsewhere += [launch(kernel(lib, name), (1,), (2,), q, ctypes.c_int(10), ctypes.c_int(1)), sync()]
answer(first=first, after=after, elsewhere=set(elsewhere) == {0})
"""


@pytest.mark.parametrize(
    ("name", "block", "result", "said"),
    [
        ("asserts", 1, ASSERT, "a number but three"),
        ("traps", 1, LAUNCH_FAILED, ""),
        ("divides", 1, LAUNCH_FAILED, ""),
        ("overflows", 1, STACK_ERROR, ""),
        ("overflows", 2, STACK_ERROR, ""),
        ("never_meets", 32, LAUNCH_FAILED, "never come"),
    ],
)
def test_what_goes_wrong_in_a_kernel(script, name, block, result, said):
    """Sticky in its context; another context of the same process goes on."""
    facts, ran = script(FAULTY, name, block)
    assert facts == {"first": 0, "after": [result] * 4, "elsewhere": True}
    assert said in ran.stderr


@pytest.mark.parametrize(("name", "result"), [("traps", ILLEGAL_INSTRUCTION), ("overflows", LAUNCH_FAILED), ("asserts", ASSERT)])
def test_fault_results_are_doubted(script, name, result):
    facts, _ = script(FAULTY, name, 1, sim={"DOUBT": "launch.fault_results"})
    assert facts["after"] == [result] * 4


def test_warp_functions_in_c_do_not_compile(tmp_path):
    source = tmp_path / "a.cu"
    source.write_text('#include "simk.h"\n__global__ void k(int *p) { __syncwarp(); *p = 1; }\nSIM_KERNEL(k, int *);\n')
    command = ["gcc", "-x", "c", "-std=gnu11", "-O2", "-fPIC", "-shared", f"-I{SIMK_INCLUDE}", source, "-o", tmp_path / "a.so"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode != 0 and "C++" in ran.stderr, ran.stderr
