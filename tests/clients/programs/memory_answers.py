# SPDX-License-Identifier: Apache-2.0
"""What a process hears about memory, from everything that programs ask: `memory_answers.py` answers each line of stdin with one
JSON object {question: [free, total]}; a question that has no answer for one of them says null there.

Imported by programs that ask from inside; run by tests as a third process beside them.
"""

from __future__ import annotations

import ctypes
import json
import sys

import pynvml

TOTAL_IN_PROPERTIES = 288  # of totalGlobalMem in cudaDeviceProp: behind the name (256), the UUID (16), the LUID (8) and its mask
PROPERTIES = 4096  # more than any version's


def ask() -> dict[str, list[int | None]]:
    """Bytes free and in all of device 0, by question. Makes the primary context current, as the runtime does."""
    driver, runtime = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libcudart.so.12")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    answers: dict[str, list[int | None]] = {}

    def good(result: int) -> None:
        if result:
            sys.exit(f"{result} after {list(answers)}")

    good(runtime.cudaSetDevice(0))
    good(runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
    answers["cudaMemGetInfo"] = [free.value, total.value]
    good(driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
    answers["cuMemGetInfo"] = [free.value, total.value]
    good(driver.cuDeviceTotalMem_v2(ctypes.byref(total), 0))
    answers["cuDeviceTotalMem"] = [None, total.value]
    properties = ctypes.create_string_buffer(PROPERTIES)
    good(runtime.cudaGetDeviceProperties_v2(properties, 0))
    answers["cudaGetDeviceProperties"] = [None, ctypes.c_size_t.from_buffer(properties, TOTAL_IN_PROPERTIES).value]
    pynvml.nvmlInit()
    memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    pynvml.nvmlShutdown()
    answers["nvmlDeviceGetMemoryInfo"] = [memory.free, memory.total]
    return answers


if __name__ == "__main__":
    for _ in sys.stdin:
        print(json.dumps(ask()), flush=True)
