# SPDX-License-Identifier: Apache-2.0
"""`--sim vram=8G,ram=16G,...`: the simulated driver's settings as one option, turned into SIMGPU_* variables.

Called by run, env, doctor and demo. The names follow csrc/simgpu/config.def, which decides what they mean; a test compares.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spillshim import sizes

DEFAULT_VRAM = "8G"
DEFAULT_LINK = "25G"
DEFAULT_HBM = "1000G"


def _size(text: str) -> str:
    sizes.parse(text, percent=False, minimum=sizes.MIB)
    return text


def _rate(text: str) -> str:
    sizes.parse(text.removesuffix("/s"), percent=False, minimum=1)
    return text.removesuffix("/s")


def _number(text: str) -> str:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return text


def _count(text: str) -> str:
    if not text.isascii() or not text.isdigit() or int(text) > 10**9:
        raise ValueError(f"{text!r} is not a whole number up to 10^9")
    return text


def _flag(text: str) -> str:
    if text not in ("0", "1"):
        raise ValueError(f"{text!r}: expected 0 or 1")
    return text


def _word(*words: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r}: expected one of {', '.join(words)}")
        return text

    return check


def _times(text: str) -> str:
    parts = text.split("/")
    if len(parts) != 5 or not all(part.replace(".", "", 1).isdigit() and part.isascii() for part in parts):
        raise ValueError(f"{text!r}: expected five times in microseconds, create/map/access/unmap/reserve")
    return text


def _name(text: str) -> str:
    # It becomes part of a file name in /dev/shm.
    if not text or len(text) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in text):
        raise ValueError(f"{text!r}: a machine's name has 1 to 64 letters, digits, '-', '_' or '.'")
    return text


def _text(text: str) -> str:
    return text  # the driver checks it, and says what is wrong


def _path(text: str) -> str:
    return os.path.abspath(text)


def _paths(text: str) -> str:
    return ":".join(os.path.abspath(part) for part in text.split(":"))


@dataclass(frozen=True)
class Key:
    """One key of --sim: what its value must be, the driver's default, what it means."""

    check: Callable[[str], str]
    default: str
    help: str


KEYS: Mapping[str, Key] = {
    "vram": Key(_size, DEFAULT_VRAM, "VRAM of each simulated device"),
    "ram": Key(_size, "16G", "host memory that all its processes may pin together"),
    "devices": Key(_number, "1", "number of devices"),
    "link": Key(_rate, DEFAULT_LINK, "bytes per second between host and device"),
    "hbm": Key(_rate, DEFAULT_HBM, "bytes per second of device memory"),
    "pin": Key(_rate, "2081M", "bytes of host memory pinned per second"),
    "vmm": Key(_times, "193/1.5/36/26/19", "microseconds of memory management: create/map/access/unmap a handle/reserve"),
    "overlap": Key(_word("no", "yes"), "yes", "a kernel draws on VRAM and on the link at the same time"),
    "launch": Key(_count, "2500", "nanoseconds of host time that queueing work costs"),
    "clock": Key(_word("simulated", "real"), "simulated", "real: work and calls last as long as the simulated clock says"),
    "name": Key(_name, "", "machine id; runs with the same name share its memory (without one: a machine of this run alone)"),
    "driver": Key(_number, "13000", "what cuDriverGetVersion answers"),
    "host_vmm": Key(_word("numa", "host", "none", "crash"), "numa", "which host location cuMemCreate accepts"),
    "mixed_copy": Key(_word("allow", "refuse"), "refuse", "one copy over VRAM and RAM mappings"),
    "kernels": Key(_paths, "", "companion .so files of kernels, separated by colons"),
    "unknown_kernel": Key(
        _word("noop", "probe", "fail"),
        "noop",
        "a launch of a kernel without companion does nothing, touches what its parameters name, or fails",
    ),
    "trace": Key(_path, "", "file that gets one line a driver call"),
    "stub_log": Key(_path, "", "file that gets the name of each unimplemented entry that was called"),
    "faults": Key(_text, "", "driver calls that fail, are late or die: ENTRY=FAULT[@WHEN], separated by semicolons"),
    "doubt": Key(_text, "", "a seed, or ids of BELIEFS.md separated by semicolons: hold unconfirmed beliefs otherwise"),
    "poison": Key(_flag, "0", "1: fresh device memory holds a pattern instead of zeroes"),
}


def parse(text: str) -> dict[str, str]:
    """`vram=8G,ram=16G` as {"SIMGPU_VRAM": "8G", ...}; an empty text is the default machine.

    Raises ValueError that names the key or value. A comma ends a value: paths with commas go into the variable itself.
    """
    made: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip().lower().replace("-", "_")
        if not equals or key not in KEYS:
            raise ValueError(f"{part!r} is not KEY=VALUE with one of the keys {', '.join(KEYS)}")
        try:
            made[f"SIMGPU_{key.upper()}"] = KEYS[key].check(value.strip())
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return made


def fresh_name(env: Mapping[str, str]) -> str:
    """The machine's name when --sim gives none: SIMGPU_NAME if set, else one that no other run has."""
    return env.get("SIMGPU_NAME") or f"run-{os.getpid()}-{secrets.token_hex(4)}"


def vram_sizes(sim: Mapping[str, str], env: Mapping[str, str]) -> list[int]:
    """Bytes of VRAM of the simulated card, from --sim, else the environment; empty where that is malformed (cuInit will say so)."""
    try:
        return [
            sizes.parse(sim.get("SIMGPU_VRAM") or env.get("SIMGPU_VRAM") or DEFAULT_VRAM, percent=False).bytes_of(0)
        ]
    except ValueError:
        return []
