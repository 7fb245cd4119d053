# SPDX-License-Identifier: Apache-2.0
"""What the device and the machine are, as one JSON object on stdout. Run by check.py in a child: a driver may crash.

`python device.py` exits 0 with the object, 3 with {"error": text} when there is no usable device. The UUID is hashed: results
are published. Nothing is allocated on the device, no context is made.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

NO_DEVICE = 3


def _text(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip() or None
    except OSError:
        return None


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def driver(ordinal: int = 0) -> dict[str, Any]:
    """What the driver API says of a device. Raises RuntimeError when there is none."""
    cuda = _library("libcuda.so.1")
    if cuda is None:
        raise RuntimeError("libcuda.so.1 cannot be loaded: no NVIDIA driver here")

    def check(result: int, what: str) -> None:
        if result:
            name = ctypes.c_char_p()
            cuda.cuGetErrorName(result, ctypes.byref(name))
            raise RuntimeError(f"{what} answered {(name.value or b'?').decode()} ({result})")

    check(cuda.cuInit(0), "cuInit")
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    check(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    if count.value == 0:
        raise RuntimeError("the driver sees no device")
    check(cuda.cuDeviceGet(ctypes.byref(device), ordinal), "cuDeviceGet")
    check(cuda.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    name, bus = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    check(cuda.cuDeviceGetName(name, 256, device), "cuDeviceGetName")
    check(cuda.cuDeviceGetPCIBusId(bus, 32, device), "cuDeviceGetPCIBusId")
    total, uuid = ctypes.c_size_t(), (ctypes.c_ubyte * 16)()
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device), "cuDeviceTotalMem")
    check(cuda.cuDeviceGetUuid(uuid, device), "cuDeviceGetUuid")

    def attribute(number: int) -> int | None:
        value = ctypes.c_int()
        return value.value if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0 else None

    return {
        "name": name.value.decode(errors="replace"),
        "uuid_hash": hashlib.sha256(bytes(uuid)).hexdigest()[:16],
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "devices": count.value,
        "vram": total.value,
        "compute_capability": f"{attribute(75)}.{attribute(76)}",
        "multiprocessors": attribute(16),
        "l2": attribute(38),
        "host_numa_id": attribute(134),
        "bus": bus.value.decode().lower(),
    }


def nvml(bus: str) -> dict[str, Any]:
    """Driver version, link, free memory and neighbours by NVML; what it does not answer is left out."""
    library = _library("libnvidia-ml.so.1")
    if library is None or library.nvmlInit_v2() != 0:
        return {}
    said: dict[str, Any] = {}
    text = ctypes.create_string_buffer(96)
    if library.nvmlSystemGetDriverVersion(text, 96) == 0:
        said["driver"] = text.value.decode(errors="replace")
    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByPciBusId_v2(bus.encode(), ctypes.byref(handle)) != 0 and (
        library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0
    ):
        return said
    number = ctypes.c_uint()
    for key, entry in (
        ("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration"),  # of an idle card it may be less than the most
        ("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth"),
        ("pcie_generation_most", "nvmlDeviceGetMaxPcieLinkGeneration"),
        ("pcie_width_most", "nvmlDeviceGetMaxPcieLinkWidth"),
    ):
        function = getattr(library, entry, None)
        if function and function(handle, ctypes.byref(number)) == 0:
            said[key] = number.value
    memory = (ctypes.c_ulonglong * 3)()
    if library.nvmlDeviceGetMemoryInfo(handle, memory) == 0:
        said["vram_free_at_start"] = memory[1]
    return said


def sysfs(bus: str) -> dict[str, Any]:
    folder = Path("/sys/bus/pci/devices") / bus
    names = ("current_link_speed", "current_link_width", "max_link_speed", "max_link_width", "numa_node")
    return {name: value for name in names if (value := _text(folder / name)) is not None}


def machine() -> dict[str, Any]:
    """The computer around the device. Sizes in bytes."""
    memory = {}
    for line in (_text("/proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            memory[key] = int(value.split()[0]) * 1024
    cpu = next((line.partition(":")[2].strip() for line in (_text("/proc/cpuinfo") or "").splitlines() if line.startswith("model name")), None)
    status = dict(line.split(":\t", 1) for line in (_text("/proc/self/status") or "").splitlines() if ":\t" in line)
    limits = _text("/proc/self/limits") or ""
    memlock = next((line[26:].split()[0] for line in limits.splitlines() if line.startswith("Max locked memory")), None)
    module = (_text("/proc/driver/nvidia/version") or "").splitlines()
    return {
        "kernel": platform.release(),
        "kernel_module": module[0] if module else None,
        "libc": " ".join(platform.libc_ver()),
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "ram": memory.get("MemTotal"),
        "ram_available": memory.get("MemAvailable"),
        "numa": {path.name: _text(path / "cpulist") for path in sorted(Path("/sys/devices/system/node").glob("node[0-9]*"))},
        "cgroup_memory_max": _text("/sys/fs/cgroup/memory.max"),
        "memlock": memlock,
        "capabilities": status.get("CapEff"),
        "seccomp": status.get("Seccomp"),
        "thp": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "python": platform.python_version(),
    }


def main() -> int:
    try:
        device = driver()
    except (RuntimeError, AttributeError) as error:
        print(json.dumps({"error": str(error), "machine": machine()}))
        return NO_DEVICE
    device |= nvml(device["bus"])
    device["pci"] = sysfs(device["bus"])
    print(json.dumps({"device": device, "machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
