# SPDX-License-Identifier: Apache-2.0
"""spillshim as PyTorch's allocator: a torch.cuda.MemPool whose segments may lie in RAM, and hints for tensors.

    from spillshim.allocators import torch as spill

    with spill.use():                  # like torch.cuda.use_mem_pool: this thread, the current device
        model = Model().cuda()
    with spill.prefer("ram"):          # RAM from the start: embeddings, an optimizer's state
        table = torch.empty(...)
    with spill.keep("vram"):           # VRAM or torch.OutOfMemoryError, and never moved out
        cache = torch.empty(...)
    spill.cold(table)                  # not needed soon

Called by programs; needs a PyTorch with torch.cuda.MemPool (tried: 2.15), which is imported at the first call. Rules: PyTorch's own
caching allocator stays in front, so frees are rare and out-of-memory is PyTorch's; each hint has a pool of its own, because what is
cached in one must not be reused for the other.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from spillshim import allocators
from spillshim.errors import SpillshimError

__all__ = ["allocator", "cold", "empty_cache", "in_ram", "keep", "pool", "prefer", "use"]


@functools.cache
def _torch() -> ModuleType:
    try:
        found = importlib.import_module("torch")
    except ImportError as error:
        raise SpillshimError(f"spillshim.allocators.torch needs PyTorch: {error}") from error
    if found.version.cuda is None:
        raise SpillshimError(f"spillshim.allocators.torch needs PyTorch for CUDA; {found.__version__} is built without it")
    if not hasattr(found.cuda, "MemPool") or not hasattr(found.cuda, "use_mem_pool"):
        raise SpillshimError(f"PyTorch {found.__version__} has no torch.cuda.MemPool", "Take a newer one (tried: 2.15).")
    return found


@functools.cache
def allocator() -> Any:
    """The torch.cuda.memory.CUDAPluggableAllocator. pool() is what most programs want.

    As torch.cuda.memory.change_current_allocator(allocator()) it serves every tensor by itself, without a cache: each free waits for
    the GPU, memory of captured graphs is not kept for them, and PyTorch does not notice out-of-memory (the tensor's data_ptr() is 0).
    """
    return _torch().cuda.memory.CUDAPluggableAllocator(allocators.library_path(), "spill_torch_alloc", "spill_torch_free")


_pools: dict[str, Any] = {}


def pool(tier: str = "") -> Any:
    """The torch.cuda.MemPool on that allocator; "ram" and "vram" are the pools of prefer("ram") and keep("vram"), which alone give
    their memory the hint. empty_cache() releases what is unused in them."""
    if tier not in allocators.HINTS:
        raise ValueError(f"pool({tier!r}): expected one of {', '.join(map(repr, allocators.HINTS))}")
    if tier not in _pools:
        _pools[tier] = _torch().cuda.MemPool(allocator().allocator())
    return _pools[tier]


def empty_cache() -> None:
    """torch.cuda.empty_cache() for our pools too, which it passes over: they are dropped, and made anew when they are asked for.
    Tensors in them stay what they are; their memory comes back when they are gone and this is called again."""
    _pools.clear()
    _torch().cuda.empty_cache()


@contextmanager
def _using(tier: str, device: Any) -> Iterator[None]:
    with _torch().cuda.use_mem_pool(pool(tier), device), allocators.hint(tier):
        yield


def use(device: Any = None) -> AbstractContextManager[None]:
    """Inside the block this thread's tensors on `device` (the current one) come from pool()."""
    return _using("", device)


def prefer(tier: str, device: Any = None) -> AbstractContextManager[None]:
    """`with prefer("ram"):` as use(), and new memory is taken from RAM as long as the budget has any. Tensors of 1 MiB and less share
    segments of 2 MiB. Autograd's backward runs in threads of its own, which the block does not concern."""
    return _using(allocators.checked("prefer", tier, "ram"), device)


def keep(tier: str, device: Any = None) -> AbstractContextManager[None]:
    """`with keep("vram"):` as use(), and memory is in VRAM and never moved out of it; torch.OutOfMemoryError where there is none."""
    return _using(allocators.checked("keep", tier, "vram"), device)


def _extent(tensor: Any) -> tuple[int, int]:
    """Address and bytes from the tensor's first element to its last."""
    if not isinstance(tensor, _torch().Tensor) or not tensor.is_cuda:
        raise TypeError(f"expected a CUDA tensor, got {getattr(tensor, 'device', type(tensor).__name__)}")
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def cold(tensor: Any) -> int:
    """The tensor is not needed soon: its memory goes to RAM and stays there, in whole pieces and as far as anything can be moved
    (spillshim run, a process that is not frozen). Returns how many of its bytes lie in RAM; 0 where nothing could be done."""
    return allocators.cold(*_extent(tensor))


def in_ram(tensor: Any) -> int:
    """How many of the tensor's bytes lie in RAM."""
    return allocators.in_ram(*_extent(tensor))
