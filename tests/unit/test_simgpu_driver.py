# SPDX-License-Identifier: Apache-2.0
"""The simulated driver as a library: initialisation, settings, look-ups, stubs, NVML, fork, exit."""
import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

LOOKUPS = Path(__file__).resolve().parent.parent / "data" / "cudart13-lookups.txt"


@pytest.mark.parametrize("name, value", [
    ("VRAM", "8Q"), ("VRAM", "-1"), ("VRAM", "0"), ("VRAM", "G"), ("VRAM", "99999999999T"), ("VRAM", " 8G"), ("RAM", "1.5G"),
    ("DEVICES", "0"), ("DEVICES", "9"), ("DEVICES", "two"), ("DEVICES", " 2"), ("DEVICES", "+2"), ("LINK", "fast"), ("HOST_VMM", "maybe"), ("HOST_VMM", "num"),
    ("MIXED_COPY", "1"), ("NAME", "a/b"), ("NAME", "../x"), ("DRIVER", "13"), ("POISON", "2"),
])
def test_malformed_settings(simgpu, name, value):
    result = drive(simgpu, "call('cuInit', 0, want=INVALID); call('cuDeviceGetCount', C.byref(C.c_int()), want=NOT_INITIALIZED)",
                   env={f"SIMGPU_{name}": value})
    assert len(result.stderr.splitlines()) == 1 and f"SIMGPU_{name}={value} is not valid" in result.stderr


def test_unknown_setting_is_warned_of_once(simgpu):
    result = drive(simgpu, "start(); start()", env={"SIMGPU_VRAMM": "1G"})
    assert result.stderr.count("SIMGPU_VRAMM") == 1


def test_before_init(simgpu):
    drive(simgpu, """
        alloc(16, want=NOT_INITIALIZED)
        call("cuCtxSynchronize", want=NOT_INITIALIZED)
        call("cuInit", 1, want=INVALID)
        call("cuDriverGetVersion", C.byref(C.c_int()))
        start()
    """)


def test_runtime_lookups(simgpu):
    """Every look-up that NVIDIA's runtime 13.0 makes has an answer, but the first one, which asks for the empty name."""
    asked = re.findall(r"gpa2\((\w*),(\d+),flags=(\d+)\)", LOOKUPS.read_text())
    assert len(asked) == 440
    drive(simgpu, f"""
        missing = []
        for name, version, flags in {[(n, int(v), int(f)) for n, v, f in asked]!r}:
            pointer, status = C.c_void_p(), C.c_int(-1)
            call("cuGetProcAddress_v2", C.c_char_p(name.encode()), C.byref(pointer), C.c_int(version), flags, C.byref(status))
            if not pointer.value or status.value:
                missing.append(name)
        assert missing == [""], missing
    """)


def test_lookup_takes_the_asked_abi(simgpu):
    drive(simgpu, """
        def ask(name, version, flags=0, want=OK):
            pointer, status = C.c_void_p(), C.c_int(-1)
            call("cuGetProcAddress_v2", C.c_char_p(name.encode()), C.byref(pointer), C.c_int(version), flags, C.byref(status), want=want)
            return pointer.value, status.value
        def at(symbol):
            return C.cast(getattr(cu, symbol), C.c_void_p).value, 0
        assert ask("cuCtxSynchronize", 12090) == at("cuCtxSynchronize")
        assert ask("cuCtxSynchronize", 13000) == at("cuCtxSynchronize_v2")
        assert ask("cuMemAlloc", 3010) == at("cuMemAlloc")
        assert ask("cuMemAlloc", 3020) == ask("cuMemAlloc", 13000) == at("cuMemAlloc_v2")
        assert ask("cuCtxCreate", 13000) == at("cuCtxCreate_v4") and ask("cuCtxCreate", 11040) == at("cuCtxCreate_v3")
        assert ask("cuMemcpyBatchAsync", 12080) == at("cuMemcpyBatchAsync")
        assert ask("cuMemcpyBatchAsync", 13000, 2) == at("cuMemcpyBatchAsync_v2_ptsz")
        assert ask("cuMemcpyHtoD", 7000, 2) == at("cuMemcpyHtoD_v2_ptds")
        assert ask("cuMemcpyHtoD", 6050, 2) == at("cuMemcpyHtoD_v2")      # the per-thread form came with 7.0
        assert ask("cuInit", 13000, 2) == at("cuInit")
        assert ask("cuGetProcAddress", 11030) == at("cuGetProcAddress") and ask("cuGetProcAddress", 12000) == at("cuGetProcAddress_v2")
        assert ask("cuMemCreate", 10010) == (None, 2)                     # known, but not to that version
        assert ask("cuNothing", 13000) == (None, 1)
        ask("cuInit", 13010, want=INVALID)                                # newer than the driver
        ask("cuInit", 13000, 3, want=INVALID)
        old = C.c_void_p()
        call("cuGetProcAddress", C.c_char_p(b"cuNothing"), C.byref(old), C.c_int(13000), 0, want=NOT_FOUND)
        call("cuGetProcAddress", C.c_char_p(b"cuMemFree"), C.byref(old), C.c_int(11030), 0)
        assert (old.value, 0) == at("cuMemFree_v2")
    """)


def test_older_driver(simgpu):
    drive(simgpu, """
        pointer, status = C.c_void_p(), C.c_int()
        call("cuGetProcAddress_v2", C.c_char_p(b"cuCtxSynchronize"), C.byref(pointer), C.c_int(13000), 0, C.byref(status), want=INVALID)
        call("cuGetProcAddress_v2", C.c_char_p(b"cuMemcpyBatchAsync"), C.byref(pointer), C.c_int(12040), 0, C.byref(status))
        assert pointer.value is None and status.value == 1
        start()
        call("cuDeviceGetAttribute", C.byref(C.c_int()), C.c_int(141), C.c_int(0), want=INVALID)
        call("cuDeviceGetAttribute", C.byref(C.c_int()), C.c_int(134), C.c_int(0))
    """, DRIVER="12040")


def test_private_tables_are_refused(simgpu):
    drive(simgpu, """
        table = C.c_void_p(1)
        call("cuGetExportTable", C.byref(table), C.create_string_buffer(16), want=NOT_FOUND)
        assert not table.value
    """)


@pytest.mark.stubs("cuTexRefCreate", "cuGraphicsUnregisterResource")
def test_stub_names_itself_once(simgpu):
    result = drive(simgpu, """
        start()
        for _ in range(3):
            call("cuTexRefCreate", None, want=NOT_SUPPORTED)
        call("cuGraphicsUnregisterResource", None, want=NOT_SUPPORTED)
    """)
    assert simgpu.stub_log.read_text().split() == ["cuTexRefCreate", "cuGraphicsUnregisterResource"]
    assert result.stderr.count("cuTexRefCreate is not implemented") == 1


def test_trace(simgpu, tmp_path):
    trace = tmp_path / "trace"
    drive(simgpu, "start(); free(alloc(4096))", TRACE=str(trace))
    names = [line.split()[4] for line in trace.read_text().splitlines()]
    assert names == ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemAlloc_v2", "cuMemFree_v2"]


def test_device(simgpu):
    drive(simgpu, """
        def attribute(number):
            value = C.c_int()
            call("cuDeviceGetAttribute", C.byref(value), C.c_int(number), C.c_int(0))
            return value.value
        call("cuInit", 0)
        assert [attribute(n) for n in (41, 75, 76, 102, 134, 141, 145)] == [1, 9, 0, 1, 0, 1, 0]
        rate = 2 * attribute(36) * 1000 * attribute(37) / 8
        assert abs(rate / (1000 * GIB) - 1) < 0.01
        assert attribute(18) == 0                                          # never an integrated device
        name, total, count = C.create_string_buffer(100), C.c_size_t(), C.c_int()
        call("cuDeviceGetName", name, C.c_int(100), C.c_int(0))
        assert b"simulated" in name.value
        call("cuDeviceTotalMem_v2", C.byref(total), C.c_int(0))
        assert total.value == 2 * GIB
        call("cuDeviceGetCount", C.byref(count))
        call("cuDeviceGet", C.byref(count), C.c_int(2), want=101)
        text = C.c_char_p()
        call("cuGetErrorName", C.c_int(2), C.byref(text))
        assert text.value == b"CUDA_ERROR_OUT_OF_MEMORY"
        call("cuGetErrorString", C.c_int(123456), C.byref(text), want=INVALID)
    """, DEVICES="2")


def test_devices_have_their_own_vram(simgpu):
    drive(simgpu, """
        start(1)
        p = alloc(60 * MIB)
        alloc(8 * MIB, want=OOM)
        start(0)
        assert used() == 0
        q = alloc(60 * MIB)
        fill(q, 4, MIB)
        call("cuMemcpyDtoD_v2", p, q, MIB)
        assert read(p, 2) == bytes([4, 4])
    """, vram="64M", DEVICES="2")


def test_forked_child_is_not_initialised(simgpu):
    drive(simgpu, """
        start()
        p = alloc(MIB)
        if os.fork() == 0:
            call("cuInit", 0, want=NOT_INITIALIZED)
            alloc(4096, want=NOT_INITIALIZED)
            os._exit(0)
        assert os.wait()[1] == 0
        assert used() == GRANULE, "the child's end must not give back what is ours"
        fill(p, 1, MIB)
    """)


@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "sys.exit(0)", "os.execv('/bin/true', ['true'])"])
def test_exit_with_work_in_flight(simgpu, end):
    drive(simgpu, f"""
        start()
        p, s = alloc(256 * MIB), stream()
        for _ in range(8):
            call("cuMemsetD8Async", p, C.c_ubyte(1), 256 * MIB, s)
        {end}
    """)


NVML = """
import ctypes as C
nv = C.CDLL("libnvidia-ml.so.1")
class Memory(C.Structure):
    _fields_ = [("total", C.c_uint64), ("free", C.c_uint64), ("used", C.c_uint64)]
class Memory2(C.Structure):
    _fields_ = [("version", C.c_uint), ("total", C.c_uint64), ("reserved", C.c_uint64), ("free", C.c_uint64), ("used", C.c_uint64)]
"""


def test_nvml_alone(simgpu):
    simgpu(["python", "-c", NVML + """
device, memory, count = C.c_void_p(), Memory(), C.c_uint()
assert nv.nvmlDeviceGetCount_v2(C.byref(count)) == 1
assert nv.nvmlInit_v2() == 0
assert nv.nvmlDeviceGetCount_v2(C.byref(count)) == 0 and count.value == 1
assert nv.nvmlDeviceGetHandleByIndex_v2(1, C.byref(device)) == 2
assert nv.nvmlDeviceGetHandleByIndex_v2(0, C.byref(device)) == 0
assert nv.nvmlDeviceGetMemoryInfo(device, C.byref(memory)) == 0
assert (memory.total, memory.used, memory.free) == (2 << 30, 0, 2 << 30)
uuid, again = C.create_string_buffer(96), C.c_void_p()
assert nv.nvmlDeviceGetUUID(device, uuid, 96) == 0 and uuid.value.startswith(b"GPU-")
assert nv.nvmlDeviceGetHandleByUUID(uuid, C.byref(again)) == 0 and again.value == device.value
assert nv.nvmlDeviceGetMemoryInfo(C.c_void_p(64), C.byref(memory)) == 2
assert nv.nvmlDeviceGetFanSpeed(device, C.byref(count)) == 3
assert nv.nvmlShutdown() == 0 and nv.nvmlShutdown() == 1
assert "libcuda" not in open("/proc/self/maps").read()
"""]).ok()


def test_nvml_sees_other_processes(simgpu):
    drive(simgpu, NVML + """
start()
alloc(100 * MIB)
code = '''""" + NVML + """
import sys
device, one, two, n = C.c_void_p(), Memory(), Memory2(2 << 24 | C.sizeof(Memory2)), C.c_uint(4)
assert nv.nvmlInit_v2() == 0 and nv.nvmlDeviceGetHandleByIndex_v2(0, C.byref(device)) == 0
assert nv.nvmlDeviceGetMemoryInfo(device, C.byref(one)) == 0 and one.used == 100 << 20
assert nv.nvmlDeviceGetMemoryInfo_v2(device, C.byref(two)) == 0 and two.used == 100 << 20 and two.free == one.free
records = (C.c_uint64 * 12)()
assert nv.nvmlDeviceGetComputeRunningProcesses_v3(device, C.byref(n), records) == 0
assert n.value == 1 and records[0] & 0xffffffff == int(sys.argv[1]) and records[1] == 100 << 20
'''
subprocess.run([sys.executable, "-c", code, str(os.getpid())], check=True)
""")


def test_nothing_but_libc_is_needed(sim_dir):
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        with open(sim_dir / name, "rb") as file:
            tags = list(ELFFile(file).get_section_by_name(".dynamic").iter_tags())
        needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
        assert needed <= {"libc.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}
        assert [tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"] == [name]
        assert not any(tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH") for tag in tags)
        assert not (sim_dir / name).is_symlink()
