# SPDX-License-Identifier: Apache-2.0
"""Experiment: a Python program on NVIDIA's cuda-bindings (driver API) over a VRAM cap.
gpu-check: groups=facts,apps order=310 expect=10 limit=90

Fills regions by a kernel, sums them by another, copies parts back; the checksum depends on every byte.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from common import MIB, App, Limits, Load, NotHere, itself, need, work

REGIONS = 8


def kernels() -> Path:
    """bw.ptx: where the kit built it, else beside the sources."""
    beside = Path(__file__).resolve().parent.parent
    return Path(os.environ.get("GPU_CHECK_KERNELS") or beside) / "bw.ptx"


def regions(size: int, seed: int) -> dict[str, Any]:
    import numpy as np
    from cuda.bindings import driver as cuda

    def must(answer: tuple[Any, ...]) -> Any:
        error, *values = answer
        if error != cuda.CUresult.CUDA_SUCCESS:
            raise SystemExit(f"{error.name}")
        return values[0] if len(values) == 1 else tuple(values)

    def launch(function: Any, blocks: int, *values: int) -> None:
        words = [np.array([value], np.uint64) for value in values]
        pointers = np.array([word.ctypes.data for word in words], np.uint64)
        must(cuda.cuLaunchKernel(function, blocks, 1, 1, 256, 1, 1, 0, 0, pointers.ctypes.data, 0))

    must(cuda.cuInit(0))
    device = must(cuda.cuDeviceGet(0))
    must(cuda.cuCtxSetCurrent(must(cuda.cuDevicePrimaryCtxRetain(device))))
    text = np.frombuffer(kernels().read_bytes() + b"\0", np.uint8)
    module = must(cuda.cuModuleLoadData(text.ctypes.data))
    fill = must(cuda.cuModuleGetFunction(module, b"bw_fill"))
    read = must(cuda.cuModuleGetFunction(module, b"bw_read16"))
    each = size // REGIONS // (2 * MIB) * 2 * MIB
    total = must(cuda.cuMemAlloc(8))
    must(cuda.cuMemsetD8(total, 0, 8))
    blocks = -(-each // (64 << 10))
    held = [must(cuda.cuMemAlloc(each)) for _ in range(REGIONS)]
    for i, region in enumerate(held):
        launch(fill, blocks, int(region), each, seed + i)
    must(cuda.cuMemcpyDtoD(held[0], held[-1], each))
    must(cuda.cuCtxSynchronize())
    started = time.monotonic()
    for _ in range(3):
        for region in held:
            launch(read, blocks, int(region), each, 1, int(total))
    must(cuda.cuCtxSynchronize())
    seconds = time.monotonic() - started
    digest, part = hashlib.sha256(), np.empty(4 * MIB, np.uint8)
    for region in held:
        must(cuda.cuMemcpyDtoH(part.ctypes.data, int(region) + each - part.size, part.size))
        digest.update(part)
    must(cuda.cuMemcpyDtoH(part.ctypes.data, total, 8))
    digest.update(part[:8])
    for region in held:
        must(cuda.cuMemFree(region))
    return {"checksum": digest.hexdigest(), "peak": each * REGIONS, "seconds": seconds}


def command(limits: Limits) -> list[str]:
    need("cuda", "numpy")
    try:
        import cuda.bindings  # noqa: F401
    except ImportError:
        raise NotHere("not installed: cuda-bindings") from None
    return itself("regions")(limits)


if __name__ == "__main__" and not work({"regions": regions}):
    sys.exit(App("bindings", [Load("regions", "a program on cuda-bindings, eight regions", command)]).main())
