# SPDX-License-Identifier: Apache-2.0
"""How much VRAM this machine's cards have, asked from NVML in a forked child, so that no driver library stays in this process.

Called by `run` and `env` to refuse a VRAM limit above the card. An answer is a courtesy: no driver, no answer, no error.
"""

from __future__ import annotations

import ctypes
import os
import select


class _MemoryInfo(ctypes.Structure):
    """nvmlMemory_t (nvml.h): bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _ask_nvml() -> list[int]:
    os.environ["SPILLSHIM_DISABLE"] = "1"  # in the child: should the shim be preloaded here, the card itself is asked
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    if nvml.nvmlInit_v2() != 0:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    sizes = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        info = _MemoryInfo()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
            continue
        if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(info)) == 0:
            sizes.append(info.total)
    return sizes


def vram_sizes(timeout: float = 5.0) -> list[int]:
    """Bytes of VRAM of each NVIDIA card, in NVML's order; empty when there is none or no answer within `timeout` seconds."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b""
        try:
            os.close(receive)
            silent = os.open(os.devnull, os.O_RDWR)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            answer = " ".join(map(str, _ask_nvml())).encode()
        except BaseException:  # whatever goes wrong in a driver library is "no answer"
            answer = b""
        finally:
            os.write(send, answer)
            os._exit(0)
    os.close(send)
    data = b""
    try:
        if select.select([receive], [], [], timeout)[0]:
            data = os.read(receive, 4096)
        else:
            os.kill(child, 9)
    finally:
        os.close(receive)
        os.waitpid(child, 0)
    return [int(word) for word in data.split()]
