# SPDX-License-Identifier: Apache-2.0
"""Experiment: spillshim.allocators in PyTorch and CuPy over a VRAM cap, with nothing preloaded: the work of app_torch.py and
app_cupy.py, on memory that they ask us for.
gpu-check: groups=facts,apps order=345 expect=60 limit=200

Over the cap only what the allocators gave can be in RAM, so the cap is theirs alone.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import app_cupy
import app_torch
from common import App, Limits, Load, itself, need, need_gpu, work

CAPPED = "SPILLSHIM_VRAM_LIMIT" in os.environ  # common.py sets it for the run that is to spill


def torch_pool(size: int, seed: int) -> dict[str, Any]:
    if not CAPPED:
        return app_torch.generate(size, seed)
    from spillshim.allocators import torch as spill

    with spill.use():
        return app_torch.generate(size, seed)


def torch_graph(size: int, seed: int) -> dict[str, Any]:
    """A captured graph has a pool of its own; its weights and what it reads are ours."""
    if not CAPPED:
        return app_torch.graph(size, seed)
    from spillshim.allocators import torch as spill

    with spill.use():
        return app_torch.graph(size, seed)


def cupy_pool(size: int, seed: int) -> dict[str, Any]:
    if not CAPPED:
        return app_cupy.arrays(size, seed)
    from spillshim.allocators import cupy as spill

    with spill.use():
        return app_cupy.arrays(size, seed)


def cupy_hints(size: int, seed: int) -> dict[str, Any]:
    """Everything in RAM by preference."""
    if not CAPPED:
        return app_cupy.arrays(size, seed)
    from spillshim.allocators import cupy as spill

    with spill.prefer("ram"):
        return app_cupy.arrays(size, seed)


def command(name: str, *modules: str):
    def made(limits: Limits) -> list[str]:
        need(*modules)
        need_gpu("their kernels have no companions")
        return itself(name)(limits)

    return made


LOADS = {"torch": torch_pool, "graph": torch_graph, "cupy": cupy_pool, "ram": cupy_hints}

if __name__ == "__main__" and not work(LOADS):
    sys.exit(
        App(
            "allocators",
            [
                Load("torch", "PyTorch on our pool", command("torch", "torch", "numpy"), preload=False),
                Load("graph", "a captured graph of PyTorch on our pool", command("graph", "torch", "numpy"), preload=False),
                Load("cupy", "CuPy on our pool", command("cupy", "cupy"), preload=False),
                Load("ram", "CuPy with all of its memory in RAM by preference", command("ram", "cupy"), preload=False),
            ],
        ).main()
    )
