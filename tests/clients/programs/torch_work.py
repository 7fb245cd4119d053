# SPDX-License-Identifier: Apache-2.0
"""Work for PyTorch's CUDA build: `torch_work.py optimizer|stress|graph MIB`. Called by test_torch.py.

Kernels do nothing on the simulated GPU, so data moves by copies alone, and every comparison is of what was copied there and
back. Prints one JSON object: bytes compared, and the most that the allocator had reserved. Exit code 3: out of memory.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable

import torch

MIB = 1 << 20
SEED = 11


def noise(elements: int, seed: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (elements,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def same(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Bytes compared between tensors of the device and of the host; ends the program at a difference."""
    total = 0
    for device, host in pairs:
        if not torch.equal(device.cpu(), host):
            sys.exit("the device gave back other data than it was given")
        total += host.numel() * host.element_size()
    return total


def optimizer(mib: int) -> int:
    """Parameters of some MiB, gradients and two moments as large again: forward, backward, two steps."""
    width = 1024
    layers = max(1, mib * MIB // 4 // (4 * width * width))  # parameter, gradient, two moments of 4 bytes
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(*[torch.nn.Linear(width, width, bias=False) for _ in range(layers)])
    before = [p.detach().clone() for p in model.parameters()]
    model.cuda()
    inputs = torch.randn(8, width)
    stepper = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=False)
    for _ in range(2):
        stepper.zero_grad(set_to_none=True)
        model(inputs.cuda()).sum().backward()
        stepper.step()
    torch.cuda.synchronize()
    # Nothing computed anything: the parameters are still those that were copied there, in VRAM as in RAM.
    return same((p.detach(), kept) for p, kept in zip(model.parameters(), before, strict=True))


def stress(mib: int) -> int:
    """Tensors of random sizes come and go; what stays is compared, and the space is full at the end."""
    choice = random.Random(SEED)
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    compared = total = 0
    for round_ in range(200):
        size = choice.choice([1 << 10, 300 << 10, 1 << 20, 5 << 20, 24 << 20])
        host = noise(size // 4, round_)
        held.append((host.cuda(), host))
        total += size
        while total > mib * MIB:
            pair = held.pop(choice.randrange(len(held)))
            compared += same([pair])
            total -= pair[1].numel() * 4
        if round_ == 120:
            torch.cuda.empty_cache()
    while total < mib * MIB:
        host = noise(8 * MIB // 4, total)
        held.append((host.cuda(), host))
        total += 8 * MIB
    return compared + same(held)


def graph(mib: int) -> int:
    """A captured row of device-to-device copies, replayed with new data each time; ballast takes the rest of the space."""
    ballast = [(part.cuda(), part) for part in (noise(8 * MIB // 4, seed) for seed in range(max(1, (mib - 96) // 8)))]
    size = 32 * MIB // 4
    source, between, target = (noise(size, 0).cuda() for _ in range(3))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        between.copy_(source)
    side.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, stream=side):
        between.copy_(source)
        target.copy_(between)
    compared = 0
    for round_ in range(20):
        fresh = noise(size, 100 + round_)
        source.copy_(fresh)
        recorded.replay()
        compared += same([(target, fresh)])
    return compared + same(ballast)


def main() -> None:
    work = {"optimizer": optimizer, "stress": stress, "graph": graph}[sys.argv[1]]
    try:
        compared = work(int(sys.argv[2]))
    except RuntimeError as error:
        # cuBLAS' own allocation fails with a name of its own.
        if not isinstance(error, torch.cuda.OutOfMemoryError) and "CUBLAS_STATUS_ALLOC_FAILED" not in str(error):
            raise
        print(error, file=sys.stderr)
        sys.exit(3)
    print(json.dumps({"compared": compared, "reserved": torch.cuda.max_memory_reserved()}))


main()
