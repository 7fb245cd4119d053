# SPDX-License-Identifier: Apache-2.0
"""Experiment: CuPy (its wheels hold a static runtime) over a VRAM cap, with its pool and with the driver's.
gpu-check: groups=facts,apps order=340 expect=30 limit=120
"""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

from common import MIB, App, Limits, Load, itself, need, need_gpu, work

ARRAYS = 8


def arrays(size: int, seed: int) -> dict[str, Any]:
    """Arrays that are made, mixed and sorted; whole 64-bit numbers, so that no order of additions matters."""
    import cupy

    words = size // (ARRAYS + 2) // 8  # two more for what the operations hold meanwhile
    held = [cupy.arange(i, i + words, dtype=cupy.uint64) * cupy.uint64(2 * seed + 1) for i in range(ARRAYS)]
    cupy.cuda.Device().synchronize()
    started = time.monotonic()
    digest = hashlib.sha256()
    for i, array in enumerate(held):
        array ^= held[i - 1] >> cupy.uint64(7)
        part = cupy.sort(array[-(4 * MIB) // 8 :] * cupy.uint64(0x9E3779B97F4A7C15))
        digest.update(cupy.asnumpy(part).tobytes())
        digest.update(int(array.sum()).to_bytes(8, "little"))
    return {"checksum": digest.hexdigest(), "peak": words * 8 * (ARRAYS + 2), "seconds": time.monotonic() - started}


def asynchronous(size: int, seed: int) -> dict[str, Any]:
    import cupy

    cupy.cuda.set_allocator(cupy.cuda.MemoryAsyncPool().malloc)
    return arrays(size, seed)


def command(name: str):
    def made(limits: Limits) -> list[str]:
        need("cupy")
        need_gpu()
        return itself(name)(limits)

    return made


if __name__ == "__main__" and not work({"arrays": arrays, "async": asynchronous}):
    sys.exit(
        App(
            "cupy",
            [
                Load("arrays", "CuPy with its memory pool", command("arrays")),
                Load("async", "CuPy with the driver's asynchronous pool", command("async")),
            ],
        ).main()
    )
