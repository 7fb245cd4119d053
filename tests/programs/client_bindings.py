# SPDX-License-Identifier: Apache-2.0
"""A program on NVIDIA's cuda-bindings (driver API): regions up to a total, kernel and copy results checked.

Usage: client_bindings.py COUNT MIB SEED. Prints ok, oom or wrong; exit status 0, 2, 1.
"""

import os
import sys

import numpy as np
from cuda.bindings import driver as cuda


class CudaError(Exception):
    pass


def must(answer):
    result, *values = answer
    if result != cuda.CUresult.CUDA_SUCCESS:
        raise CudaError(result)
    return values[0] if len(values) == 1 else tuple(values)


def mix(z):
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def run(count: int, size: int, seed: int) -> str:
    must(cuda.cuInit(0))
    device = must(cuda.cuDeviceGet(0))
    context = must(cuda.cuDevicePrimaryCtxRetain(device))
    must(cuda.cuCtxSetCurrent(context))
    with open(os.environ["DECODER_PTX"], "rb") as file:
        ptx = np.frombuffer(file.read() + b"\0", np.uint8)
    module = must(cuda.cuModuleLoadData(ptx.ctypes.data))
    embed = must(cuda.cuModuleGetFunction(module, b"dec_embed"))
    words = size // 8
    regions, originals = [], []
    for i in range(count):
        regions.append(must(cuda.cuMemAlloc(size)))
        originals.append(np.random.default_rng(seed + i).integers(0, 2**64, words, dtype=np.uint64))
        must(cuda.cuMemcpyHtoD(regions[i], originals[i].ctypes.data, size))
    # The first half of every second region by a kernel that writes two buffers: x = embedding of the token, y = 0.
    for i in range(0, count, 2):
        half = words // 2
        values = [np.array([v], np.uint64) for v in (int(regions[i]), int(regions[i]) + 8 * half, half, seed + i)]
        pointers = np.array([v.ctypes.data for v in values], np.uint64)
        blocks = -(-half * 8 // 65536)
        must(cuda.cuLaunchKernel(embed, blocks, 1, 1, 256, 1, 1, 0, 0, pointers.ctypes.data, 0))
        with np.errstate(over="ignore"):
            index = np.arange(1, half + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            originals[i][:half] = mix(np.uint64(seed + i) + index)
        originals[i][half : 2 * half] = 0
    must(cuda.cuCtxSynchronize())
    for i in range(count):
        got = np.empty(words, np.uint64)
        must(cuda.cuMemcpyDtoH(got.ctypes.data, regions[i], size))
        if not np.array_equal(got, originals[i]):
            print(f"region {i} differs from word {np.flatnonzero(got != originals[i])[0]}", file=sys.stderr)
            return "wrong"
    for region in regions:
        must(cuda.cuMemFree(region))
    must(cuda.cuDevicePrimaryCtxRelease(device))
    return "ok"


def main() -> int:
    count, mib, seed = (int(a) for a in sys.argv[1:4])
    try:
        said = run(count, mib << 20, seed)
    except CudaError as error:
        print(error, file=sys.stderr)
        said = "oom" if error.args[0] == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY else "wrong"
    print(said)
    return {"ok": 0, "oom": 2}.get(said, 1)


if __name__ == "__main__":
    sys.exit(main())
