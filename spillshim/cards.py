# SPDX-License-Identifier: Apache-2.0
"""What this machine's cards are, asked from NVML in a forked child, so that no driver library stays in this process.

Called by `run` and `env` to refuse a VRAM limit above the card, and by `advise` for its rates. An answer is a courtesy: no
driver, no answer, no error.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_CLOCK_MEMORY = 2  # NVML_CLOCK_MEM
_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}  # bytes/s of a PCIe lane, one way, by generation


class _MemoryInfo(ctypes.Structure):
    """nvmlMemory_t (nvml.h): bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


@dataclass(frozen=True)
class Card:
    """`vram`, `free`: bytes. `hbm_peak`, `link_peak`: bytes/s by the data sheet's arithmetic; None where NVML does not say."""

    name: str
    vram: int
    free: int
    hbm_peak: float | None
    link_peak: float | None
    link: str = ""


def _each_device(nvml: Any) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    devices = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) == 0:
            devices.append(device)
    return devices


def _memory(nvml: Any, device: ctypes.c_void_p) -> tuple[int, int] | None:
    info = _MemoryInfo()
    return (info.total, info.free) if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(info)) == 0 else None


def _ask_sizes(nvml: Any) -> list[int]:
    return [found[0] for device in _each_device(nvml) if (found := _memory(nvml, device))]


def _ask_cards(nvml: Any) -> list[dict[str, Any]]:
    def number(entry: str, device: ctypes.c_void_p, *before: int) -> int | None:
        answer = ctypes.c_uint()
        function = getattr(nvml, entry, None)
        return answer.value or None if function and function(device, *before, ctypes.byref(answer)) == 0 else None

    found = []
    for device in _each_device(nvml):
        memory = _memory(nvml, device)
        if memory is None:
            continue
        text = ctypes.create_string_buffer(96)
        name = text.value.decode(errors="replace") if nvml.nvmlDeviceGetName(device, text, 96) == 0 else "?"
        clock, bits = number("nvmlDeviceGetMaxClockInfo", device, _CLOCK_MEMORY), number("nvmlDeviceGetMemoryBusWidth", device)
        # The most of card and system together; the present generation of an idle card is lower. Lanes do not change.
        generation, lanes = number("nvmlDeviceGetMaxPcieLinkGeneration", device), number("nvmlDeviceGetCurrPcieLinkWidth", device)
        found.append({
            "name": name, "vram": memory[0], "free": memory[1],
            "hbm_peak": 2 * clock * 1e6 * bits / 8 if clock and bits else None,  # NVML's clock is that of the commands: two data words each
            "link_peak": _LANE[generation] * lanes if lanes and generation in _LANE else None,
            "link": f"PCIe {generation} x{lanes}" if generation and lanes else "",
        })  # fmt: skip
    return found


def _in_child(ask: Callable[[Any], list[Any]], timeout: float) -> list[Any]:
    """What `ask` says of NVML, from a child; empty when there is no driver or no answer within `timeout` seconds."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"[]"
        try:
            os.close(receive)
            silent = os.open(os.devnull, os.O_RDWR)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            os.environ["SPILLSHIM_DISABLE"] = "1"  # should the shim be preloaded here, the card itself is asked
            answer = json.dumps(ask(ctypes.CDLL("libnvidia-ml.so.1"))).encode()
        except BaseException:  # whatever goes wrong in a driver library is "no answer"
            answer = b"[]"
        finally:
            os.write(send, answer[:65536])  # what a pipe holds: no card has more to say
            os._exit(0)
    os.close(send)
    data = b""
    try:
        if select.select([receive], [], [], timeout)[0]:
            data = os.read(receive, 65536)
        else:
            os.kill(child, 9)
    finally:
        os.close(receive)
        os.waitpid(child, 0)
    try:
        return list(json.loads(data or b"[]"))
    except ValueError:
        return []


def vram_sizes(timeout: float = 5.0) -> list[int]:
    """Bytes of VRAM of each NVIDIA card, in NVML's order; empty when there is none or no answer within `timeout` seconds."""
    return _in_child(_ask_sizes, timeout)


def found(timeout: float = 5.0) -> list[Card]:
    """The NVIDIA cards of this machine, in NVML's order; empty when there is none or no answer within `timeout` seconds."""
    return [Card(**one) for one in _in_child(_ask_cards, timeout)]
