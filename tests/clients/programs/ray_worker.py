# SPDX-License-Identifier: Apache-2.0
"""A Ray task that allocates past the end of VRAM, and what of Ray loaded the shim: one JSON object on stdout.

`ray_worker.py VARIABLES`: JSON of the environment variables that runtime_env gives to the worker ({}: none).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import ray

MIB = 1 << 20


def loaded(pid: int | str) -> bool:
    return "libspillshim.so" in Path(f"/proc/{pid}/maps").read_text()


def look() -> dict[str, object]:
    """In the worker: what it inherited, and how an allocation of 1.5 times the VRAM ends (a CUresult)."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    for result in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        cuda.cuCtxSetCurrent(context),
    ):
        assert result == 0
    answer = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(1536 * MIB))
    if answer == 0:
        cuda.cuMemFree_v2(pointer)
    return {"preload": os.environ.get("LD_PRELOAD"), "loaded": loaded("self"), "answer": answer}


def servers() -> dict[str, bool]:
    """Ray's own processes that this one started, by name: whether they loaded the shim."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "exe").readlink().name
            if name in ("raylet", "gcs_server") and str(os.getpid()) in _ancestors(int(folder.name)):
                found[name] = loaded(folder.name)
        except OSError:
            continue  # it ended, or is another user's
    return found


def _ancestors(pid: int) -> list[str]:
    made = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        made.append(str(pid))
    return made


def main() -> None:
    variables = json.loads(sys.argv[1])
    ray.init(
        num_cpus=1,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=sys.argv[2],
        runtime_env={"env_vars": variables} if variables else None,
    )
    told = ray.get(ray.remote(num_gpus=1)(look).remote())
    print(json.dumps({**told, **servers()}))
    ray.shutdown()


if __name__ == "__main__":
    main()
