# SPDX-License-Identifier: Apache-2.0
"""spillshim as CuPy's allocator: a cupy.cuda.MemoryPool whose blocks may lie in RAM, and hints for arrays.

    from spillshim.allocators import cupy as spill

    cupy.cuda.set_allocator(spill.pool().malloc)   # for the whole program; or `with spill.use():`, for this thread
    with spill.prefer("ram"):
        table = cupy.zeros(...)

Called by programs; CuPy is imported at the first call. Rules: CuPy's pool stays in front, so frees are rare; out-of-memory is the
error on which it gives its cache back and tries again; each hint has a pool of its own.
"""

from __future__ import annotations

import functools
import importlib
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from spillshim import allocators
from spillshim.errors import SpillshimError

__all__ = ["allocator", "cold", "in_ram", "keep", "pool", "prefer", "use"]


@functools.cache
def _cupy() -> ModuleType:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise SpillshimError(f"spillshim.allocators.cupy needs CuPy: {error}") from error


def allocator(tier: str = "") -> Any:
    """The cupy.cuda.PythonFunctionAllocator, without a cache; its memory has the hint `tier` ("ram", "vram")."""
    if tier not in allocators.HINTS:
        raise ValueError(f"allocator({tier!r}): expected one of {', '.join(map(repr, allocators.HINTS))}")
    runtime = _cupy().cuda.runtime

    def malloc(size: int, device: int) -> int:
        try:
            with allocators.hint(tier):
                return allocators.allocate(size, device)
        except MemoryError:
            raise runtime.CUDARuntimeError(runtime.errorMemoryAllocation) from None

    return _cupy().cuda.PythonFunctionAllocator(malloc, allocators.free)


@functools.cache
def _pool(tier: str) -> Any:
    return _cupy().cuda.MemoryPool(allocator(tier).malloc)


def pool(tier: str = "") -> Any:
    """The cupy.cuda.MemoryPool on it, one for each hint. Its free_all_blocks() releases what is unused."""
    return _pool(tier)


def use() -> AbstractContextManager[None]:
    """Inside the block this thread's arrays come from pool()."""
    made: AbstractContextManager[None] = _cupy().cuda.using_allocator(pool().malloc)
    return made


def prefer(tier: str) -> AbstractContextManager[None]:
    """`with prefer("ram"):` this thread's new arrays are in RAM as long as the budget has any (blocks of 2 MiB and more)."""
    made: AbstractContextManager[None] = _cupy().cuda.using_allocator(pool(allocators.checked("prefer", tier, "ram")).malloc)
    return made


def keep(tier: str) -> AbstractContextManager[None]:
    """`with keep("vram"):` this thread's arrays are in VRAM and never moved out of it; cupy.cuda.memory.OutOfMemoryError where
    there is none."""
    made: AbstractContextManager[None] = _cupy().cuda.using_allocator(pool(allocators.checked("keep", tier, "vram")).malloc)
    return made


def _extent(array: Any) -> tuple[int, int]:
    """Address and bytes from the array's first byte in memory to its last."""
    if not isinstance(array, _cupy().ndarray):
        raise TypeError(f"expected a cupy.ndarray, got {type(array).__name__}")
    if not array.size:
        return 0, 0
    spans = [(size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True)]
    before = -sum(span for span in spans if span < 0)
    return array.data.ptr - before, before + sum(span for span in spans if span > 0) + array.itemsize


def cold(array: Any) -> int:
    """The array is not needed soon: its memory goes to RAM and stays there, in whole pieces and as far as anything can be moved
    (spillshim run, a process that is not frozen). Returns how many of its bytes lie in RAM; 0 where nothing could be done."""
    return allocators.cold(*_extent(array))


def in_ram(array: Any) -> int:
    """How many of the array's bytes lie in RAM."""
    return allocators.in_ram(*_extent(array))
