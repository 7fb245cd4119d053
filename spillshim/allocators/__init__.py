# SPDX-License-Identifier: Apache-2.0
"""spillshim as an allocator, for programs that may change: managed memory without `spillshim run`, and hints with or without it.

Called by programs that use a GPU; `.torch`, `.cupy` and `.rmm` are the same for these libraries. Rules: there is one engine in a
process, so a library that is preloaded (or loaded already) is the one that is used; nothing is loaded before the first call.

Without LD_PRELOAD nothing of the program is intercepted: memory that is allocated here spills, all other does not, and where it
lies is settled at its allocation, because moving it needs to see the program's launches. `hooked()` tells which it is.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from spillshim import native
from spillshim.errors import SpillshimError

__all__ = ["allocate", "cold", "free", "hooked", "in_ram", "keep", "library_path", "prefer"]

_OUT_OF_MEMORY, _NOT_FOUND = 2, 500  # of CUresult
HINTS = {"": 0, "ram": 1, "vram": 2}  # of spill_memory_hint (csrc/shim/allocator.h)


def _loaded() -> str | None:
    """Path of the libspillshim.so that is in this process already, or None."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").split(None, 5)[5:]
            if path and os.path.basename(path[0]).startswith(native.LIBRARY_NAME.removesuffix(".so")):
                return path[0]
    return None


@functools.cache
def library_path() -> str:
    """Path of the library whose engine this process uses: the loaded one, else SPILLSHIM_LIBRARY, else the package's.

    Raises SpillshimError where there is none, or where the loaded one is no longer on disk."""
    path = _loaded() or str(native.library())
    if path.endswith(" (deleted)"):
        raise SpillshimError(
            f"the spillshim library in this process has been removed from disk or replaced: {path.removesuffix(' (deleted)')}",
            "Start the program again.",
        )
    return path


@functools.cache
def _library() -> ctypes.CDLL:
    # RTLD_LOCAL, ctypes' default: the hooks must not stand for the driver in libraries that are loaded later.
    try:
        lib = ctypes.CDLL(library_path())
        for name, answer, *arguments in (
            ("spill_memory_alloc", ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.POINTER(ctypes.c_uint64)),
            ("spill_memory_free", ctypes.c_int, ctypes.c_uint64, ctypes.c_int),
            ("spill_memory_hint", ctypes.c_int, ctypes.c_int),
            ("spill_memory_cold", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64),
            ("spill_memory_in_ram", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64),
            ("spill_memory_hooked", ctypes.c_int),
        ):
            entry = getattr(lib, name)
            entry.restype, entry.argtypes = answer, arguments
    except OSError as error:
        raise SpillshimError(f"the spillshim library cannot be loaded: {error}") from error
    except AttributeError as error:
        raise SpillshimError(
            f"the spillshim library is of another version than this package: {error}",
            "Start the program with this installation's `spillshim run`, or without one.",
        ) from error
    return lib


def hooked() -> bool:
    """Whether the program's own CUDA calls pass the shim (it was preloaded): then placement can be mended later."""
    return bool(_library().spill_memory_hooked())


def allocate(size: int, device: int = 0) -> int:
    """`size` bytes of device memory, in VRAM or RAM; the device pointer. Free it with free(), before its context ends.

    Raises MemoryError where neither has room, ValueError for a size that is no positive number of bytes, SpillshimError with the
    driver's error (CUresult) otherwise."""
    if not 0 < size < 1 << 63:
        raise ValueError(f"{size} bytes: expected a positive number of bytes")
    pointer = ctypes.c_uint64()
    error = _library().spill_memory_alloc(size, device, ctypes.byref(pointer))
    if error == _OUT_OF_MEMORY:
        raise MemoryError(f"neither VRAM nor the RAM budget has {size} bytes left for device {device}")
    if error == _NOT_FOUND:
        raise SpillshimError("there is no CUDA driver: libcuda.so.1 cannot be loaded", "`spillshim doctor` says why.")
    if error:
        raise SpillshimError(f"the CUDA driver refused {size} bytes for device {device}: error {error}")
    return pointer.value


def free(pointer: int, device: int = 0) -> None:
    """Free what allocate() gave, once the GPU has done all work of its context. Raises SpillshimError with the driver's error."""
    error = _library().spill_memory_free(pointer, device)
    if error:
        raise SpillshimError(f"the CUDA driver did not free 0x{pointer:x} of device {device}: error {error}")


# --- hints ------------------------------------------------------------------------------------------------------------


def checked(what: str, tier: str, only: str) -> str:
    """`tier`, where it is the one that `what` takes; else ValueError."""
    if tier != only:
        raise ValueError(f"{what}({tier!r}): expected {what}({only!r})")
    return tier


@contextmanager
def hint(tier: str) -> Iterator[None]:
    """This thread's allocations inside the block go where `tier` says: a key of HINTS."""
    set_hint = _library().spill_memory_hint
    before = set_hint(HINTS[tier])
    try:
        yield
    finally:
        set_hint(before)


def prefer(tier: str) -> AbstractContextManager[None]:
    """`with prefer("ram"):` what this thread allocates goes to RAM as long as the budget has any, and stays there.

    From 2 MiB on; what is smaller stays with the driver."""
    return hint(checked("prefer", tier, "ram"))


def keep(tier: str) -> AbstractContextManager[None]:
    """`with keep("vram"):` what this thread allocates is in VRAM and is never moved out of it; out-of-memory where VRAM has no
    room that other managed memory could give up."""
    return hint(checked("keep", tier, "vram"))


def cold(pointer: int, size: int) -> int:
    """`size` bytes from `pointer` are not needed soon: they go to RAM now and stay there, in whole pieces and as far as anything can
    be moved. Returns how many of them lie in RAM, 0 where nothing could be done (not managed, or not hooked())."""
    return int(_library().spill_memory_cold(pointer, size))


def in_ram(pointer: int, size: int) -> int:
    """How many of `size` bytes from `pointer` lie in RAM; 0 for memory that is not managed."""
    return int(_library().spill_memory_in_ram(pointer, size))
