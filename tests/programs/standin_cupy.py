# SPDX-License-Identifier: Apache-2.0
"""The part of CuPy that spillshim.allocators.cupy speaks to, after cupy/cuda/memory.pyx: an allocator of Python functions called with
size and device, a pool in front that gives its cache back when the allocation fails with errorMemoryAllocation and with no other
error, an allocator for each thread. CuPy itself has NVIDIA's runtime inside, which accepts no simulated driver.

Called by tests/integration/test_allocators.py, as `cupy`: `sys.modules["cupy"] = standin_cupy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class Memory:
    """PythonFunctionAllocatorMemory."""

    def __init__(self, size: int, malloc: Callable[[int, int], int], free: Callable[[int, int], None]) -> None:
        self.size, self._free = size, free
        self.ptr = malloc(size, 0)

    def release(self) -> None:
        self._free(self.ptr, 0)


class PythonFunctionAllocator:
    def __init__(self, malloc: Callable[[int, int], int], free: Callable[[int, int], None]) -> None:
        self._malloc, self._free = malloc, free

    def malloc(self, size: int) -> Memory:
        return Memory(size, self._malloc, self._free)


class MemoryPool:
    """Keeps what is freed, by size; made() counts what was asked of the allocator."""

    def __init__(self, allocator: Callable[[int], Memory]) -> None:
        self.allocator, self.kept, self.asked = allocator, [], 0

    def malloc(self, size: int) -> Memory:
        for one in self.kept:
            if one.size == size:
                self.kept.remove(one)
                return one
        try:
            self.asked += 1
            return self.allocator(size)
        except CUDARuntimeError as error:
            if error.status != runtime.errorMemoryAllocation:
                raise
        self.free_all_blocks()
        self.asked += 1
        return self.allocator(size)

    def free(self, one: Memory) -> None:
        self.kept.append(one)

    def free_all_blocks(self) -> None:
        while self.kept:
            self.kept.pop().release()


_current: list[Callable[[int], Memory]] = []


@contextmanager
def using_allocator(malloc: Callable[[int], Memory]) -> Iterator[None]:
    _current.append(malloc)
    yield
    _current.pop()


def alloc(size: int) -> Memory:
    return _current[-1](size)


class ndarray:
    """Of bytes: `data.ptr` is the address of the element whose indices are all 0."""

    def __init__(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.data, self.shape, self.strides, self.itemsize = SimpleNamespace(ptr=pointer), shape, strides, 1
        self.size = 1
        for length in shape:
            self.size *= length


runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, errorMemoryAllocation=2)
cuda = SimpleNamespace(
    runtime=runtime, PythonFunctionAllocator=PythonFunctionAllocator, MemoryPool=MemoryPool, using_allocator=using_allocator, alloc=alloc
)
