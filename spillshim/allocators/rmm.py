# SPDX-License-Identifier: Apache-2.0
"""spillshim as a memory resource of RMM (RAPIDS: cuDF, cuML, …).

    from spillshim.allocators import rmm as spill

    rmm.mr.set_current_device_resource(rmm.mr.BinningMemoryResource(spill.resource()))

Called by programs; RMM is imported at the first call. Rules: the resource caches nothing, and each of its frees waits for the GPU, so
one of RMM's pools belongs in front of it; a MemoryError in the callback becomes RMM's out-of-memory.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from spillshim import allocators
from spillshim.errors import SpillshimError

__all__ = ["resource"]


@functools.cache
def _rmm() -> ModuleType:
    try:
        return importlib.import_module("rmm")
    except ImportError as error:
        raise SpillshimError(f"spillshim.allocators.rmm needs RMM: {error}") from error


def resource(tier: str = "", device: int = 0) -> Any:
    """A rmm.mr.CallbackMemoryResource for `device`; its memory has the hint `tier` ("ram", "vram")."""
    if tier not in allocators.HINTS:
        raise ValueError(f"resource({tier!r}): expected one of {', '.join(map(repr, allocators.HINTS))}")

    def allocate(size: int, stream: Any) -> int:
        with allocators.hint(tier):
            return allocators.allocate(size, device)

    def deallocate(pointer: int, size: int, stream: Any) -> None:
        allocators.free(pointer, device)

    return _rmm().mr.CallbackMemoryResource(allocate, deallocate)
