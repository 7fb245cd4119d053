# SPDX-License-Identifier: Apache-2.0
"""A driver-API program's vocabulary: the small scripts that the integration tests run in a process of their own begin with
`from shell import *`. Reaches the driver as a C program does (dlopen, dlsym of exported symbols, no error checks by a
binding), so wrong pointers and absurd sizes get through to the driver.

    cu("cuMemAlloc_v2", ref(p), size)   calls, raises DriverError unless CUDA_SUCCESS
    code("cuMemAlloc_v2", ...)          calls, returns the CUresult

Python ints are passed as 64-bit values, which suits pointers, sizes and (on x86-64) every narrower integer parameter.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY = 0, 1, 2
NOT_INITIALIZED, INVALID_CONTEXT, NOT_SUPPORTED = 3, 201, 801
STREAM_CAPTURE_UNSUPPORTED, STREAM_CAPTURE_INVALIDATED, ILLEGAL_ADDRESS = 900, 901, 700
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

libcuda = ctypes.CDLL("libcuda.so.1")


class Numpy:
    """numpy at its first use: to import it takes longer than most of these scripts run."""

    def __getattr__(self, name: str) -> object:
        import numpy

        return getattr(numpy, name)


np = Numpy()


class DriverError(Exception):
    def __init__(self, name: str, result: int) -> None:
        super().__init__(f"{name} answered {result}")
        self.result = result


def code(name: str, *args: object) -> int:
    """The CUresult of one driver call."""
    entry = getattr(libcuda, name)
    return entry(*[ctypes.c_uint64(a & (1 << 64) - 1) if isinstance(a, int) else a for a in args])


def cu(name: str, *args: object) -> None:
    result = code(name, *args)
    if result:
        raise DriverError(name, result)


ref = ctypes.byref


def u64(value: int = 0) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def at(array: np.ndarray) -> int:
    """Host address of a numpy array's first byte."""
    return array.ctypes.data


class Ctx:
    """Context of device 0, as NVIDIA's runtime makes it: retained and current on this thread."""

    def __init__(self, device: int = 0) -> None:
        cu("cuInit", 0)
        dev, handle = ctypes.c_int(), u64()
        cu("cuDeviceGet", ref(dev), device)
        cu("cuDevicePrimaryCtxRetain", ref(handle), dev.value)
        cu("cuCtxSetCurrent", handle.value)
        self.device, self.handle = dev.value, handle.value


def alloc(size: int) -> int:
    p = u64()
    cu("cuMemAlloc_v2", ref(p), size)
    return p.value


def try_alloc(size: int) -> tuple[int, int]:
    """(CUresult, pointer)"""
    p = u64(0xDEAD)
    result = code("cuMemAlloc_v2", ref(p), size)
    return result, p.value


def free(p: int) -> None:
    cu("cuMemFree_v2", p)


def stream(flags: int = 1) -> int:
    s = u64()
    cu("cuStreamCreate", ref(s), flags)
    return s.value


def sync() -> None:
    cu("cuCtxSynchronize")


def upload(p: int, data: np.ndarray) -> None:
    cu("cuMemcpyHtoD_v2", p, at(data), data.nbytes)


def download(p: int, size: int) -> np.ndarray:
    out = np.empty(size, np.uint8)
    cu("cuMemcpyDtoH_v2", at(out), p, size)
    return out


def mem_info() -> tuple[int, int]:
    """(free, total) in bytes."""
    free_bytes, total = u64(), u64()
    cu("cuMemGetInfo_v2", ref(free_bytes), ref(total))
    return free_bytes.value, total.value


def total_mem(device: int = 0) -> int:
    total = u64()
    cu("cuDeviceTotalMem_v2", ref(total), device)
    return total.value


POINTER_ATTRIBUTES = {
    "context": 1, "memory_type": 2, "device_pointer": 3, "sync_memops": 6, "buffer_id": 7, "is_managed": 8,
    "device_ordinal": 9, "range_start": 11, "range_size": 12, "mapped": 13, "allowed_handle_types": 14,
    "mempool_handle": 17,
}  # fmt: skip


def attribute(name: str, p: int) -> int | str:
    """One pointer attribute, or "error N"."""
    value = u64(0)
    result = code("cuPointerGetAttribute", ref(value), POINTER_ATTRIBUTES[name], p)
    return f"error {result}" if result else value.value


def address_range(p: int) -> tuple[int, int]:
    base, size = u64(), u64()
    cu("cuMemGetAddressRange_v2", ref(base), ref(size), p)
    return base.value, size.value


# --- virtual memory management ---------------------------------------------------------------------------------------


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp"""

    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("win32", ctypes.c_void_p),
        ("compression", ctypes.c_uint8),
        ("gpu_direct_rdma", ctypes.c_uint8),
        ("usage", ctypes.c_uint16),
        ("reserved", ctypes.c_uint8 * 4),
    ]


class AccessDesc(ctypes.Structure):
    """CUmemAccessDesc"""

    _fields_ = [("location_type", ctypes.c_int), ("location_id", ctypes.c_int), ("flags", ctypes.c_int)]


def device_prop(handle_types: int = 0) -> AllocationProp:
    return AllocationProp(type=1, handle_types=handle_types, location_type=1, location_id=0)


# --- pools ------------------------------------------------------------------------------------------------------------


class PoolProps(ctypes.Structure):
    """CUmemPoolProps"""

    _fields_ = [
        ("alloc_type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("win32", ctypes.c_void_p),
        ("max_size", ctypes.c_size_t),
        ("usage", ctypes.c_uint16),
        ("reserved", ctypes.c_uint8 * 54),
    ]


# --- NVML -------------------------------------------------------------------------------------------------------------


class NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_uint64), ("free", ctypes.c_uint64), ("used", ctypes.c_uint64)]


class NvmlMemoryV2(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint)] + [(n, ctypes.c_uint64) for n in ("total", "reserved", "free", "used")]


def nvml_memory() -> tuple[NvmlMemory, NvmlMemoryV2]:
    """Memory info of device 0 in both versions."""
    lib = ctypes.CDLL("libnvidia-ml.so.1")
    assert lib.nvmlInit_v2() == 0
    device = ctypes.c_void_p()
    assert lib.nvmlDeviceGetHandleByIndex_v2(0, ref(device)) == 0
    v1, v2 = NvmlMemory(), NvmlMemoryV2()
    v2.version = ctypes.sizeof(NvmlMemoryV2) | 2 << 24
    assert lib.nvmlDeviceGetMemoryInfo(device, ref(v1)) == 0
    assert lib.nvmlDeviceGetMemoryInfo_v2(device, ref(v2)) == 0
    return v1, v2


# --- kernels ----------------------------------------------------------------------------------------------------------


class Kernels:
    """The demo's kernels (its PTX; simgpu finds their host code through SIMGPU_KERNELS): real GPU work with known results."""

    GOLDEN = 0x9E3779B97F4A7C15
    TILE = 64 * KIB

    def __init__(self) -> None:
        with open(os.environ["DECODER_PTX"], "rb") as file:
            text = file.read() + b"\0"
        self.module = u64()
        cu("cuModuleLoadData", ref(self.module), ctypes.c_char_p(text))

    def launch(self, name: str, size: int, *args: int, on: int = 0) -> None:
        function = u64()
        cu("cuModuleGetFunction", ref(function), self.module.value, ctypes.c_char_p(name.encode()))
        values = [ctypes.c_uint64(a & (1 << 64) - 1) for a in args]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        blocks = -(-size // self.TILE)
        cu("cuLaunchKernel", function.value, blocks, 1, 1, 256, 1, 1, 0, on, pointers, None)

    def fill(self, p: int, size: int, seed: int, on: int = 0) -> None:
        """Write the seeded generator's bytes to p."""
        self.launch("dec_fill", size, p, size // 8, seed, 0, on=on)

    @classmethod
    def filled(cls, size: int, seed: int) -> np.ndarray:
        """What fill() writes."""
        with np.errstate(over="ignore"):
            i = np.arange(1, size // 8 + 1, dtype=np.uint64)
            return mix(np.uint64(seed) + i * np.uint64(cls.GOLDEN)).view(np.uint8)


def mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser, as the kernels compute it."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def pattern(size: int, seed: int) -> np.ndarray:
    """Seeded bytes."""
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def done(**facts: object) -> None:
    """Hand the facts to the test: the last line on stdout, one JSON object."""
    print(json.dumps(facts), flush=True)
