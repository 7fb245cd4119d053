# SPDX-License-Identifier: Apache-2.0
"""What the tests of device code in the simulated driver share: scripts in a process of their own, without the shim."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).resolve().parent.parent / "programs"

# Put in front of every script: tests/programs/shell.py, and what all of these scripts need.
PRELUDE = """
from shell import *

def handle():
    return ctypes.c_void_p()

def load(path):
    lib = handle()
    cu("cuLibraryLoadFromFile", ref(lib), str(path).encode(), None, None, 0, None, None, 0)
    return lib

def kernel(lib, name):
    k = handle()
    cu("cuLibraryGetKernel", ref(k), lib, name.encode())
    return k

def pointers(*values):
    "kernelParams for ctypes values, which must stay alive until the call"
    return (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])

def shape(grid, block, shared=0, stream=0):
    g, b = (tuple(grid) + (1, 1))[:3], (tuple(block) + (1, 1))[:3]
    return [*g, *b, shared, stream]

def launch(f, grid, block, *values, shared=0, stream=0):
    return code("cuLaunchKernel", f, *shape(grid, block, shared, stream), pointers(*values), None)

def device(bytes_or_size):
    p = u64()
    data = bytes_or_size if isinstance(bytes_or_size, bytes) else None
    cu("cuMemAlloc_v2", ref(p), len(data) if data is not None else bytes_or_size)
    if data is not None:
        cu("cuMemcpyHtoD_v2", p, data, len(data))
    else:
        cu("cuMemsetD8_v2", p, 0, bytes_or_size)
        cu("cuCtxSynchronize")  # a memset may be later than the call, and a non-blocking stream does not wait for it
    return p

def fetch(p, dtype, count):
    out = np.empty(count, dtype)
    cu("cuMemcpyDtoH_v2", ctypes.c_void_p(at(out)), p, out.nbytes)
    return out

def name_of(f):
    n = ctypes.c_char_p()
    cu("cuKernelGetName", ref(n), f)
    return n.value.decode()

def sync():
    return code("cuCtxSynchronize")

def answer(**facts):
    print(json.dumps(facts))
"""


def run_script(run_sim: Any, text: str, *arguments: object, kernels: object = "", sim: dict[str, str] | None = None, **how: Any):
    """Run a script to its end; returns (what it handed to answer(), the Result)."""
    path = run_sim.tmp_path / f"script{sum(1 for _ in run_sim.tmp_path.glob('script*.py'))}.py"
    path.write_text(PRELUDE + textwrap.dedent(text))
    env = {"PYTHONPATH": str(PROGRAMS), "PYTHONDONTWRITEBYTECODE": "1", **how.pop("env", {})}
    settings = {"KERNELS": str(kernels), **(sim or {})}
    result = run_sim([sys.executable, path, *arguments], shim=False, vram="256M", env=env, sim=settings, **how).ok()
    return json.loads(result.stdout.strip().splitlines()[-1]), result
