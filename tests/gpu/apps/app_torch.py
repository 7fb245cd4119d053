# SPDX-License-Identifier: Apache-2.0
"""Experiment: PyTorch over a VRAM cap: generating with a transformer of random weights, a training step with a spike, and
the allocator's and the graph's variants of it.
gpu-check: groups=facts,apps order=330 expect=100 limit=280

Every load is deterministic: seeded weights, deterministic kernels, float32 without TF32; the checksum is over the bytes of
the result. SIZE bytes are what a load allocates at its peak, about.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from typing import Any

from common import App, Limits, Load, itself, need, need_gpu, work

VOCABULARY = 8192


def _torch(seed: int) -> Any:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no device")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch


def _digest(*tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _result(torch: Any, started: float, *tensors: Any) -> dict[str, Any]:
    torch.cuda.synchronize()
    seconds = time.monotonic() - started
    return {"checksum": _digest(*tensors), "peak": torch.cuda.max_memory_reserved(), "seconds": seconds, "torch": torch.__version__}


def _transformer(torch: Any, size: int) -> Any:
    """Blocks of a decoder whose float32 weights take `size` bytes together."""
    width = 2048
    per_block = 12 * width * width * 4
    blocks = max(2, size // per_block)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
            self.out = torch.nn.Linear(width, width, bias=False)
            self.up = torch.nn.Linear(width, 4 * width, bias=False)
            self.down = torch.nn.Linear(4 * width, width, bias=False)
            self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)

        def forward(self, x: Any, cache: list[Any] | None) -> Any:
            batch, length, _ = x.shape
            q, k, v = self.qkv(self.first(x)).view(batch, length, 3, 16, width // 16).permute(2, 0, 3, 1, 4)
            if cache is not None:
                if cache:
                    k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
                cache[:] = [k, v]
            scores = (q @ k.transpose(-1, -2)) * (width // 16) ** -0.5
            x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))
            return x + self.down(torch.nn.functional.gelu(self.up(self.second(x))))

    with torch.device("cuda"):
        return torch.nn.Embedding(VOCABULARY, width), torch.nn.ModuleList([Block() for _ in range(blocks)])


def generate(size: int, seed: int) -> dict[str, Any]:
    torch = _torch(seed)
    embedding, blocks = _transformer(torch, size)
    started = time.monotonic()
    tokens = torch.arange(16, device="cuda")[None]
    caches: list[list[Any]] = [[] for _ in blocks]
    said, new = [], tokens
    with torch.no_grad():
        for _ in range(12):
            x = embedding(new)
            for block, cache in zip(blocks, caches):
                x = block(x, cache)
            new = (x[:, -1] @ embedding.weight.T).argmax(-1, keepdim=True)
            said.append(new)
    return _result(torch, started, torch.cat(said, 1), x)


def train(size: int, seed: int) -> dict[str, Any]:
    """Two steps; the second has a batch whose activations are the spike."""
    torch = _torch(seed)
    _, blocks = _transformer(torch, size // 6)  # weights, gradients, two moments of Adam: four times as much
    optimizer = torch.optim.Adam(blocks.parameters(), lr=1e-3, foreach=False)
    started = time.monotonic()
    for batch in (1, max(2, size // 3 // (len(blocks) * 256 * 2048 * 4 * 16))):
        x = torch.randn(batch, 256, 2048, device="cuda")
        for block in blocks:
            x = block(x, None)
        loss = x.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return _result(torch, started, loss, next(blocks.parameters())[0])


def graph(size: int, seed: int) -> dict[str, Any]:
    torch = _torch(seed)
    _, blocks = _transformer(torch, size)
    still = torch.randn(1, 8, 2048, device="cuda")
    started = time.monotonic()
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # cuBLAS allocates at its first use, which a capture forbids
            for _ in range(2):
                x = still
                for block in blocks:
                    x = block(x, None)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            out = still
            for block in blocks:
                out = block(out, None)
        for _ in range(4):
            captured.replay()
            still.copy_(out.clamp(-3, 3))
    return _result(torch, started, out)


def command(name: str):
    def made(limits: Limits) -> list[str]:
        need("torch", "numpy")
        need_gpu("PyTorch's own kernels have no companions")
        return itself(name)(limits)

    return made


LOADS = {"generate": generate, "train": train, "graph": graph}

if __name__ == "__main__" and not work(LOADS):
    expandable = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    asynchronous = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync", "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}
    sys.exit(
        App(
            "torch",
            [
                Load("generate", "generating with a transformer in PyTorch", command("generate")),
                Load("train", "a training step with a spike of activations", command("train"), options=("--oom", "soft")),
                Load("graph", "torch.cuda.graph, captured and replayed", command("graph")),
                # It reserves addresses for 1 1/8 of what the device is said to have.
                Load("expandable", "generating with expandable_segments", command("generate"), env=expandable, options=("--report", "virtual")),
                Load("async", "generating with cudaMallocAsync", command("generate"), env=asynchronous),
            ],
        ).main()
    )
