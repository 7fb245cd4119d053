# SPDX-License-Identifier: Apache-2.0
"""Experiment: Numba's CUDA target (driver API through ctypes or cuda-bindings, kernels compiled here) over a VRAM cap.
gpu-check: groups=facts,apps order=360 expect=20 limit=90
"""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

from common import App, Limits, Load, itself, need, need_gpu, work

ARRAYS = 8


def arrays(size: int, seed: int) -> dict[str, Any]:
    global cuda, np  # the compiler looks a kernel's modules up among the globals
    import numpy as np
    from numba import cuda

    @cuda.jit
    def mix(out, other, start):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        step = cuda.gridsize(1)
        while i < out.size:
            out[i] = np.uint32(np.uint32(i + start) * np.uint32(2654435761)) ^ (other[i] >> np.uint32(9))
            i += step

    words = size // ARRAYS // 4
    held = [cuda.device_array(words, np.uint32) for _ in range(ARRAYS)]
    held[-1].copy_to_device(np.arange(words, dtype=np.uint32))
    started = time.monotonic()
    for i in range(ARRAYS):
        mix[1024, 256](held[i], held[i - 1], np.uint32(seed + i))
    digest = hashlib.sha256()
    for array in held:
        digest.update(array.copy_to_host().tobytes())
    return {"checksum": digest.hexdigest(), "peak": words * 4 * ARRAYS, "seconds": time.monotonic() - started}


def command(limits: Limits) -> list[str]:
    need("numba", "numpy")
    need_gpu("Numba's kernels have no companions")
    return itself("arrays")(limits)


if __name__ == "__main__" and not work({"arrays": arrays}):
    sys.exit(App("numba", [Load("arrays", "a Numba program", command)]).main())
