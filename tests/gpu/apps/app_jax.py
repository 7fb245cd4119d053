# SPDX-License-Identifier: Apache-2.0
"""Experiment: JAX over a VRAM cap, with allocations of its own (platform) and with its pool growing on demand.
gpu-check: groups=facts,apps order=350 expect=50 limit=180
"""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

from common import App, Limits, Load, NotHere, itself, need, need_gpu, work

ARRAYS = 8


def arrays(size: int, seed: int) -> dict[str, Any]:
    """Integer arrays, each mixed with its neighbour by a compiled function; the checksum is over all of them."""
    import jax
    import numpy as np
    from jax import numpy as jnp

    if jax.default_backend() != "gpu":
        raise SystemExit(f"JAX runs on {jax.default_backend()}")
    words = size // (ARRAYS + 2) // 4

    @jax.jit
    def mix(a: Any, b: Any) -> Any:
        x = a * jnp.uint32(0x9E3779B1) + (b >> 15)
        return x ^ (x >> 13)

    held = [jnp.arange(words, dtype=jnp.uint32) + jnp.uint32(seed + i) for i in range(ARRAYS)]
    jax.block_until_ready(held)
    started = time.monotonic()
    for i in range(ARRAYS):
        held[i] = mix(held[i], held[i - 1])
    digest = hashlib.sha256()
    for array in held:
        digest.update(np.asarray(array.sum(dtype=jnp.uint32)).tobytes())
        digest.update(np.asarray(array[-(1 << 20) :]).tobytes())
    return {"checksum": digest.hexdigest(), "peak": words * 4 * (ARRAYS + 2), "seconds": time.monotonic() - started}


def command(limits: Limits) -> list[str]:
    need("jax", "numpy")
    need_gpu("XLA's kernels have no companions")
    from importlib import metadata

    if not any((d.metadata["Name"] or "").lower().startswith("jax-cuda") for d in metadata.distributions()):
        raise NotHere("not installed: JAX's CUDA plugin (jax-cuda12-plugin, jax-cuda13-plugin)")
    return itself("arrays")(limits)


if __name__ == "__main__" and not work({"arrays": arrays}):
    plain = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    sys.exit(
        App(
            "jax",
            [
                Load("platform", "JAX, an allocation of the driver for each array", command, env={**plain, "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}),
                # Its pool never grows beyond a share of what the device is said to have.
                Load("pool", "JAX with its pool, growing on demand", command, env=plain, options=("--report", "virtual")),
            ],
        ).main()
    )
