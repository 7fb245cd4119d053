# SPDX-License-Identifier: Apache-2.0
"""Images in the simulated driver: what it reads from nvcc's cubins, fatbins and PTX, and that no input can crash it."""

from __future__ import annotations

import struct

import pytest
from nvcc import cuda_program  # noqa: F401  (a fixture)
from simcode import run_script

SUCCESS, INVALID_IMAGE, NO_BINARY, INVALID_PTX, FILE_NOT_FOUND = 0, 200, 209, 218, 301

# (offset, size) of each parameter; the C++ rules of alignment.
LAYOUT = {
    "_Z5plainPfmf": [[0, 8], [8, 8], [16, 4]],
    "_Z5mixedc4Pair6float4sPKc": [[0, 1], [8, 24], [32, 16], [48, 2], [56, 8]],
    "_Z5storeIiEvPT_S0_": [[0, 8], [8, 4]],
    "_Z5storeIhEvPT_S0_": [[0, 8], [8, 1]],
    "count": [],
    "block_sum": [[0, 8], [8, 8]],
    "early_exit": [[0, 8]],
    "votes": [[0, 8]],
    "whoami": [[0, 8]],
    "atomics": [[0, 8], [8, 8], [16, 8], [24, 8]],
    "unknown": [[0, 8], [8, 8]],
}

DESCRIBE = """
context = Ctx()
lib = load(sys.argv[1])
count = ctypes.c_uint()
cu("cuLibraryGetKernelCount", ref(count), lib)
kernels = (ctypes.c_void_p * count.value)()
cu("cuLibraryEnumerateKernels", kernels, count, lib)
layout, numbers = {}, {}
for k in map(ctypes.c_void_p, kernels):
    params, offset, size, n = [], u64(), u64(), u64()
    while code("cuKernelGetParamInfo", k, len(params), ref(offset), ref(size)) == 0:
        params.append([offset.value, size.value])
    cu("cuKernelGetParamCount", k, ref(n))
    assert n.value == len(params)
    layout[name_of(k)] = params
    values, v = [], ctypes.c_int()
    for attribute in (0, 1, 6):  # MAX_THREADS_PER_BLOCK, SHARED_SIZE_BYTES, BINARY_VERSION
        cu("cuKernelGetAttribute", ref(v), attribute, k, 0)
        values.append(v.value)
    numbers[name_of(k)] = values
variables = {}
for name, dtype in (("coef", "f4"), ("counter", "i4"), ("big", "u8")):
    p, size = u64(), u64()
    cu("cuLibraryGetGlobal", ref(p), ref(size), lib, name.encode())
    data = fetch(p, dtype, size.value // np.dtype(dtype).itemsize)
    variables[name] = [size.value, data[:4].tolist()]
answer(layout=layout, numbers=numbers, variables=variables)
"""


def check(facts, arch):
    assert facts["layout"] == LAYOUT
    assert facts["numbers"]["_Z5mixedc4Pair6float4sPKc"] == [128, 400, arch]
    assert facts["numbers"]["count"] == [1024, 0, arch]
    assert facts["variables"] == {"coef": [32, [1, 2, 3, 0]], "counter": [4, [7]], "big": [8000, [0, 0, 0, 0]]}


@pytest.mark.parametrize("arch", [75, 80, 89, 90, 100, 120])
def test_cubin(run_sim, cuda_program, arch):  # noqa: F811
    image = cuda_program.nvcc("kernels.cu", "kernels.cubin", f"-arch=sm_{arch}", "-cubin")
    facts, _ = run_script(run_sim, DESCRIBE, image)
    check(facts, arch)


def test_ptx(run_sim, cuda_program):  # noqa: F811
    image = cuda_program.nvcc("kernels.cu", "kernels.ptx", "-arch=compute_80", "-ptx")
    facts, _ = run_script(run_sim, DESCRIBE, image)
    check(facts, 80)


def fatbin(cuda_program, name, *flags):  # noqa: F811
    return cuda_program.nvcc("kernels.cu", name, "-fatbin", *flags)


def code(*archs):
    return [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]


@pytest.mark.parametrize(
    ("archs", "picked"),
    [([75, 90, 120], 90), ([75, 80], 75), ([80], 80), ([100, 120], 100)],
    ids=["own", "older", "one", "newer"],
)
def test_fatbin_picks_the_entry_that_suits(run_sim, cuda_program, archs, picked):  # noqa: F811
    """The simulated device is an sm_90."""
    image = fatbin(cuda_program, "kernels.fatbin", *code(*archs))
    facts, _ = run_script(run_sim, DESCRIBE, image)
    check(facts, picked)


def test_uncompressed_ptx_in_a_fatbin(run_sim, cuda_program):  # noqa: F811
    flags = ["--no-compress", "-gencode=arch=compute_75,code=compute_75"]
    facts, _ = run_script(run_sim, DESCRIBE, fatbin(cuda_program, "kernels.fatbin", *flags))
    check(facts, 75)


LOAD = """
context = Ctx()
lib, module = handle(), handle()
path = sys.argv[1].encode()
answer(library=code("cuLibraryLoadFromFile", ref(lib), path, None, None, 0, None, None, 0), module=code("cuModuleLoad", ref(module), path))
"""


# What to tell nvcc, the flag that its fatbin then has (fatbin.c), and what is picked from it.
PTX_80 = "-gencode=arch=compute_80,code=compute_80"
COMPRESSED = {
    "ptx": ([PTX_80], 0x8000),
    "ptx-lz4": (["-compress-mode=speed", PTX_80], 0x2000),
    "cubin": (["-Xfatbin", "-compress-all", *code(80)], 0x8000),
    "size": (["-compress-mode=size", *code(80)], 0x8000),
}
ENTRY_FLAGS = 16 + 40  # offset in the file of the first entry's flags


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_entries(run_sim, cuda_program, kind):  # noqa: F811
    flags, expected = COMPRESSED[kind]
    image = fatbin(cuda_program, "kernels.fatbin", *flags)
    assert struct.unpack_from("<Q", image.read_bytes(), ENTRY_FLAGS)[0] & 0xF000 == expected
    facts, _ = run_script(run_sim, DESCRIBE, image)
    check(facts, 80)


@pytest.mark.parametrize(
    ("offset", "form", "value", "wanted"),
    [
        (16 + 56, "<Q", 1 << 62, INVALID_IMAGE),  # the plain size
        (16 + 56, "<Q", (1 << 30) + 1, INVALID_IMAGE),
        (16 + 56, "<Q", 0, INVALID_IMAGE),
        (16 + 56, "<Q", 100, INVALID_IMAGE),  # less than there is
        (16 + 56, "<Q", 1 << 20, INVALID_IMAGE),  # more
        (16 + 16, "<I", 0xFFFFFFFF, INVALID_IMAGE),  # the compressed size
        (16 + 16, "<I", 0, INVALID_IMAGE),
        (16 + 16, "<I", 200, INVALID_IMAGE),  # cut off
        (ENTRY_FLAGS, "<Q", 0x1011, NO_BINARY),  # the scheme that nobody has written down
        (ENTRY_FLAGS, "<Q", 0x2011, INVALID_IMAGE),  # zstd taken for LZ4
    ],
)
def test_compressed_entries_that_lie(run_sim, cuda_program, tmp_path, offset, form, value, wanted):  # noqa: F811
    data = bytearray(fatbin(cuda_program, "kernels.fatbin", PTX_80).read_bytes())
    struct.pack_into(form, data, offset, value)
    (tmp_path / "lie.fatbin").write_bytes(data)
    facts, result = run_script(run_sim, LOAD, tmp_path / "lie.fatbin")
    assert facts == {"library": wanted, "module": wanted}
    assert ("--no-compress" in result.stderr) == (wanted == NO_BINARY), result.stderr


@pytest.mark.parametrize(("kind", "library"), [("ptx", "libzstd.so.1"), ("ptx-lz4", "liblz4.so.1")])
def test_a_missing_decompressor_is_named(run_sim, cuda_program, tmp_path, kind, library):  # noqa: F811
    """An empty file of the library's name comes first on the search path."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / library).touch()
    path = f"{tmp_path / 'lib'}:{run_sim.sim}"
    facts, result = run_script(
        run_sim, LOAD, fatbin(cuda_program, "kernels.fatbin", *COMPRESSED[kind][0]), env={"LD_LIBRARY_PATH": path}
    )
    assert facts == {"library": NO_BINARY, "module": NO_BINARY}
    assert library in result.stderr and "Debian package" in result.stderr, result.stderr


def test_files_that_are_no_images(run_sim, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "elf").write_bytes(open("/bin/true", "rb").read())
    for name, expected in [("missing", FILE_NOT_FOUND), ("empty", INVALID_IMAGE), ("text", INVALID_PTX), ("elf", INVALID_IMAGE)]:
        facts, _ = run_script(run_sim, LOAD, tmp_path / name)
        assert facts == {"library": expected, "module": expected}, name


PTX = r"""// a comment with .entry never(
.version 8.0 /* .target sm_1
*/ .target sm_75, debug
.address_size 64
.visible .global .align 8 .u64 words[3] = {1, 0x10, 3U};
.const .align 4 .f32 half = 0f3F000000;
.global .align 2 .s16 minus = -2;
.extern .global .align 4 .u32 elsewhere;
.extern .shared .align 16 .b8 dynamic[];
.func (.param .b32 ret) helper(.param .b32 x) { { ret; } }
.entry bare { ret; }
.visible .entry all(
  .param .u8 a,
  .param .align 8 .b8 b[12], .param .v4 .f32 c,
  .param .u64 .ptr .global .align 16 d,
  .param .b16 e
) .maxntid 32, 4 .minnctapersm 2
{
  .shared .align 8 .b8 s1[100];
  .shared .u32 s2;
  .reg .b32 %r<3>;
  { .reg .b32 t; ld.shared.u32 t, [s2]; }
  ret;
}
.weak .entry last( .param .u32 x ) .reqntid 64 { ret; }
"""


def test_ptx_by_hand(run_sim, tmp_path):
    (tmp_path / "a.ptx").write_text(PTX)
    facts, _ = run_script(
        run_sim,
        """
        context = Ctx()
        module, kernels = handle(), {}
        cu("cuModuleLoad", ref(module), sys.argv[1].encode())
        for name in ("bare", "all", "last"):
            f, params, offset, size, v = handle(), [], u64(), u64(), ctypes.c_int()
            cu("cuModuleGetFunction", ref(f), module, name.encode())
            while code("cuFuncGetParamInfo", f, len(params), ref(offset), ref(size)) == 0:
                params.append([offset.value, size.value])
            numbers = []
            for attribute in (0, 1):
                cu("cuFuncGetAttribute", ref(v), attribute, f)
                numbers.append(v.value)
            kernels[name] = [params, *numbers]
        data = {}
        for name, dtype in (("words", "u8"), ("half", "f4"), ("minus", "i2")):
            p, size = u64(), u64()
            cu("cuModuleGetGlobal_v2", ref(p), ref(size), module, name.encode())
            data[name] = fetch(p, dtype, size.value // np.dtype(dtype).itemsize).tolist()
        missing = [code("cuModuleGetFunction", ref(f), module, n) for n in (b"never", b"helper", b"")]
        missing.append(code("cuModuleGetGlobal_v2", ref(p), None, module, b"elsewhere"))
        answer(kernels=kernels, data=data, missing=missing)
        """,
        tmp_path / "a.ptx",
    )
    assert facts["kernels"] == {
        "bare": [[], 1024, 0],
        "all": [[[0, 1], [8, 12], [32, 16], [48, 8], [56, 2]], 128, 104],
        "last": [[[0, 4]], 64, 0],
    }
    assert facts["data"] == {"words": [1, 16, 3], "half": [0.5], "minus": [-2]}
    assert facts["missing"] == [500, 500, 500, 500]


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".version 8.0",
        ".version 8.0\n.target sm_80\n.entry k( .param .u64 x",
        ".version 8.0\n.target sm_80\n.entry k() {",
        ".version 8.0\n.target sm_80\n}",
        ".version 8.0\n.target sm_80\n.entry k( .param .u64 x[4000000000] ) { }",
        ".version 8.0\n.target sm_80\n.entry k( .param .align 3 .b8 x[4] ) { }",
        ".version 8.0\n.target sm_80\n/* no end",
        ".target sm_80\n.entry k() { }",
    ],
)
def test_broken_ptx(run_sim, tmp_path, text):
    (tmp_path / "a.ptx").write_text(text or "\n")
    facts, _ = run_script(run_sim, LOAD, tmp_path / "a.ptx")
    assert facts == {"library": INVALID_PTX, "module": INVALID_PTX}


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([1 << 40], 2),  # more than there is
        ([1 << 40] * 20, 2),
        ([(1 << 40) + 1], INVALID_PTX),
        ([1 << 63, 1 << 63], INVALID_PTX),  # would add up to nothing
        ([(1 << 64) - 1], INVALID_PTX),
    ],
)
def test_variables_of_absurd_sizes(run_sim, tmp_path, sizes, wanted):
    declared = "".join(f".visible .global .align 8 .b8 v{i}[{size}];\n" for i, size in enumerate(sizes))
    (tmp_path / "a.ptx").write_text(f".version 8.0\n.target sm_80\n{declared}.visible .entry k() {{ ret; }}\n")
    facts, _ = run_script(run_sim, LOAD, tmp_path / "a.ptx")
    assert facts["module"] == wanted  # a library is loaded into a context at its first use


CORRUPT = """
import mmap, random
seed, rounds = int(sys.argv[2]), int(sys.argv[3])
context = Ctx()
random.seed(seed)
original = open(sys.argv[1], "rb").read()
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
PAGE = 4096
room = (len(original) + 2 * PAGE) // PAGE * PAGE
base = libc.mmap(None, ctypes.c_size_t(room + PAGE), 3, 0x22, -1, ctypes.c_long(0))
assert libc.mprotect(ctypes.c_void_p(base + room), ctypes.c_size_t(PAGE), 0) == 0
results = {}
for i in range(rounds):
    data = bytearray(original)
    if i % 2:
        data = data[: random.randrange(len(data))]
    else:
        for _ in range(random.randrange(1, 9)):
            data[random.randrange(len(data) if random.random() < 0.6 else min(len(data), 512))] ^= 1 << random.randrange(8)
    lib = handle()
    # Ends where readable memory ends, so that one byte too many is a fault.
    start = base + room - len(data)
    ctypes.memmove(start, bytes(data), len(data))
    r = code("cuLibraryLoadData", ref(lib), ctypes.c_void_p(start), None, None, 0, None, None, 0)
    if r == 0:
        n, p, size = ctypes.c_uint(), u64(), u64()
        cu("cuLibraryGetKernelCount", ref(n), lib)
        code("cuLibraryGetGlobal", ref(p), ref(size), lib, b"counter")  # loads the module
        cu("cuLibraryUnload", lib)
    results[r] = results.get(r, 0) + 1
answer(results=results)
"""


@pytest.mark.parametrize("kind", ["cubin", "fatbin", "ptx"])
def test_corrupt_images(run_sim, cuda_program, kind):  # noqa: F811
    flags = {"cubin": ["-arch=sm_90", "-cubin"], "fatbin": ["-fatbin", *code(75, 90)], "ptx": ["-arch=compute_80", "-ptx"]}[kind]
    image = cuda_program.nvcc("kernels.cu", f"kernels.{kind}", *flags)
    seed = 20240611
    print(f"seed {seed}")
    facts, _ = run_script(run_sim, CORRUPT, image, seed, 2000, timeout=120)
    results = {int(key): value for key, value in facts["results"].items()}
    assert set(results) <= {SUCCESS, INVALID_IMAGE, NO_BINARY, INVALID_PTX, 2}, results
    assert sum(results.values()) == 2000
    assert results.get(INVALID_IMAGE, 0) + results.get(INVALID_PTX, 0) >= 900, results  # every truncation that cuts something off


def test_pointers_to_nothing(run_sim):
    facts, _ = run_script(
        run_sim,
        """
        context = Ctx()
        lib, module = handle(), handle()
        results = []
        for p in (0, 8, 1 << 46, (1 << 64) - 8):
            results.append(code("cuLibraryLoadData", ref(lib), ctypes.c_void_p(p), None, None, 0, None, None, 0))
            results.append(code("cuModuleLoadData", ref(module), ctypes.c_void_p(p)))
            results.append(code("cuModuleLoadFatBinary", ref(module), ctypes.c_void_p(p)))
        answer(results=results)
        """,
    )
    assert facts["results"] == [1] * 3 + [INVALID_IMAGE] * 9


