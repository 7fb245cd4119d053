# SPDX-License-Identifier: Apache-2.0
"""`--sim vram=8G,ram=16G,...`: the simulated driver's settings as one option, turned into SIMGPU_* variables.

Called by run, env, doctor and demo. The keys, their defaults and what they mean come from csrc/simgpu/config.def, the table that
the driver reads them with; here is only what a command line adds: a rate may end in "/s", a path is made absolute.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spillshim import native, sizes
from spillshim.errors import SpillshimError


@dataclass(frozen=True)
class Key:
    """One key of --sim. `kind`: size, count, choice or text; `values`: LOWEST..HIGHEST of a count, word|word of a choice."""

    kind: str
    default: str
    values: str
    help: str


@functools.lru_cache(maxsize=None)
def keys() -> Mapping[str, Key]:
    """Every key: `vram` for SIMGPU_VRAM. Raises SpillshimError where this installation's cffi module does not load."""
    module = native.abi()
    if module is None:
        raise SpillshimError(
            "the table of the simulated GPU's settings is not available: the module spillshim._abi does not load",
            "Reinstall spillshim with the Python that runs it (pip install .).",
        )
    lib, text = module.lib, lambda pointer: module.ffi.string(pointer).decode()
    return {
        text(lib.spill_sim_name(index)).removeprefix("SIMGPU_").lower(): Key(
            text(lib.spill_sim_kind(index)),
            text(lib.spill_sim_default(index)),
            text(lib.spill_sim_values(index)),
            text(lib.spill_sim_help(index)),
        )
        for index in range(lib.spill_sim_count())
    }


def _name(text: str) -> str:
    # It becomes part of a file name in /dev/shm.
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError(f"{text!r}: a machine's name has 1 to 64 letters, digits, '-', '_' or '.'")
    return text


def _paths(text: str) -> str:
    return ":".join(os.path.abspath(part) for part in text.split(":"))


_SPECIAL: Mapping[str, Callable[[str], str]] = {"name": _name, "kernels": _paths, "trace": _paths, "stub_log": _paths, "calls": _paths}


def _checked(name: str, key: Key, text: str) -> str:
    if name in _SPECIAL:
        return _SPECIAL[name](text)
    if key.kind == "size":
        rate = name in ("link", "hbm", "pin")
        text = text.removesuffix("/s") if rate else text
        sizes.parse(text, percent=False, minimum=1 if rate else sizes.MIB)
    elif key.kind == "count":
        lowest, highest = map(int, key.values.split(".."))
        if not re.fullmatch(r"[0-9]{1,18}", text) or not lowest <= int(text) <= highest:
            raise ValueError(f"{text!r} is not a whole number from {lowest} to {highest}")
    elif key.kind == "choice" and text not in key.values.split("|"):
        raise ValueError(f"{text!r}: expected one of {', '.join(key.values.split('|'))}")
    return text


def parse(text: str) -> dict[str, str]:
    """`vram=8G,ram=16G` as {"SIMGPU_VRAM": "8G", ...}; an empty text is the default machine.

    Raises ValueError that names the key or value. A comma ends a value: paths with commas go into the variable itself, and
    what the driver takes as a list (faults, doubt) is separated by semicolons.
    """
    made: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        name = name.strip().lower().replace("-", "_")
        if not equals or name not in keys():
            raise ValueError(f"{part!r} is not KEY=VALUE with one of the keys {', '.join(keys())}")
        try:
            made[f"SIMGPU_{name.upper()}"] = _checked(name, keys()[name], value.strip())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return made


def fresh_name(env: Mapping[str, str]) -> str:
    """The machine's name when --sim gives none: SIMGPU_NAME if set, else one that no other run has."""
    return env.get("SIMGPU_NAME") or f"run-{os.getpid()}-{secrets.token_hex(4)}"


def vram_sizes(sim: Mapping[str, str], env: Mapping[str, str]) -> list[int]:
    """Bytes of VRAM of the simulated card, from --sim, else the environment; empty where that is malformed (cuInit will say so)."""
    try:
        return [
            sizes.parse(sim.get("SIMGPU_VRAM") or env.get("SIMGPU_VRAM") or keys()["vram"].default, percent=False).bytes_of(0)
        ]
    except ValueError:
        return []
