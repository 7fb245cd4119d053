# SPDX-License-Identifier: Apache-2.0
"""Work for PyTorch's CUDA build: `torch_work.py optimizer|stress|graph|cache|hoard|peers|share MIB`. Called by test_torch.py.

Kernels do nothing on the simulated GPU, so data moves by copies alone, and every comparison is of what was copied there and
back. Prints one JSON object: bytes compared, free memory before the work and after it, and what PyTorch's allocator counted
(`allocator`: retries, and bytes that it held and that tensors held, at moments which the work names). Exit code 3: PyTorch's
OutOfMemoryError, and no other error.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Iterable

import torch
import torch.multiprocessing

MIB = 1 << 20
SEED = 11
WIDTH = 1024  # of a layer: 4 MiB of weights


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
    """A training run is resumed from a checkpoint: forward, backward and step, then weights and moments from the host."""
    layers = mib * MIB // (4 * 4 * WIDTH * WIDTH)  # weights, gradients, two moments
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    first = [p.detach().clone() for p in model.parameters()]
    model.cuda()
    stepper = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train() -> None:
        stepper.zero_grad(set_to_none=True)
        model(torch.randn(8, WIDTH).cuda()).sum().backward()
        stepper.step()

    train()
    # Nothing computed anything: the weights are still those that were copied there.
    compared = same((p.detach(), kept) for p, kept in zip(model.parameters(), first, strict=True))

    weights = {name: torch.randn(WIDTH, WIDTH) for name in model.state_dict()}
    moments = [{key: torch.randn(WIDTH, WIDTH) for key in ("exp_avg", "exp_avg_sq")} for _ in range(layers)]
    checkpoint = stepper.state_dict()
    checkpoint["state"] = {index: {**one, "step": torch.tensor(7.0)} for index, one in enumerate(moments)}
    model.load_state_dict(weights)
    stepper.load_state_dict(checkpoint)
    train()
    compared += same((p.detach(), weights[name]) for name, p in model.named_parameters())
    for p, one in zip(model.parameters(), moments, strict=True):
        compared += same((stepper.state[p][key], one[key]) for key in one)
    return compared


def stress(mib: int) -> int:
    """Tensors of random sizes come and go on three streams, from pageable and pinned memory; the space is full at the end."""
    choice = random.Random(SEED)
    main = torch.cuda.current_stream()
    streams = [main, torch.cuda.Stream(), torch.cuda.Stream()]
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    compared = total = 0

    def put(size: int, seed: int) -> None:
        host, stream = noise(size // 4, seed), choice.choice(streams)
        if choice.random() < 0.3:
            host = host.pin_memory()
        with torch.cuda.stream(stream):
            device = host.to("cuda", non_blocking=True)
        main.wait_stream(stream)
        device.record_stream(main)
        held.append((device, host))

    for round_ in range(200):
        size = choice.choice([1 << 10, 300 << 10, 1 << 20, 5 << 20, 24 << 20])
        put(size, round_)
        total += size
        while total > mib * MIB:
            pair = held.pop(choice.randrange(len(held)))
            compared += same([pair])
            total -= pair[1].numel() * 4
        if round_ == 120:
            torch.cuda.empty_cache()
    while total < mib * MIB:
        put(8 * MIB, total)
        total += 8 * MIB
    return compared + same(held)


def graph(mib: int) -> int:
    """Two captured rows of device-to-device copies through memory that was allocated while capturing, when the rest of the
    space was taken already; replayed with new data each time."""
    ballast = [(part.cuda(), part) for part in (noise(8 * MIB // 4, seed) for seed in range((mib - 128) // 8))]
    size = 32 * MIB // 4
    source = noise(size, 0).cuda()
    recorded, targets = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()], []
    for one in recorded:
        with torch.cuda.graph(one, pool=recorded[0].pool() if targets else None):
            between = torch.empty_like(source)
            between.copy_(source)
            targets.append(torch.empty_like(source))
            targets[-1].copy_(between)
            del between
    compared = 0
    for round_ in range(20):
        fresh = noise(size, 100 + round_)
        source.copy_(fresh)
        recorded[round_ % 2].replay()
        compared += same([(targets[round_ % 2], fresh)])
    compared += same(ballast)
    del targets
    for one in recorded:
        one.reset()
    return compared


noted: dict[str, list[int]] = {}


def note(moment: str) -> None:
    """What the allocator has counted: [retries after an out-of-memory, bytes reserved, bytes allocated]."""
    counts = torch.cuda.memory_stats()
    noted[moment] = [counts["num_alloc_retries"], counts["reserved_bytes.all.current"], counts["allocated_bytes.all.current"]]


def cache(mib: int, live: int | None = None) -> int:
    """Half of the space is freed into PyTorch's cache in pieces that the next, larger tensors (`live` MiB) cannot use."""
    pieces = [noise(24 * MIB // 4, seed).cuda() for seed in range(mib // 2 // 24)]
    note("pieces")
    del pieces
    note("freed")
    larger = [(part.cuda(), part) for part in (noise(40 * MIB // 4, seed) for seed in range((live or mib // 2) // 40))]
    note("larger")
    return same(larger)


def hoard(mib: int) -> int:
    """The same where the larger tensors alone are more than the card holds."""
    return cache(mib, mib)


def peers(mib: int) -> int:
    """Tensors on two devices, filled from the host and from each other; `mib` on each."""
    hosts = [noise(16 * MIB // 4, seed) for seed in range(mib // 16)]
    ones = [host.to("cuda:0") for host in hosts]
    others = [one.to("cuda:1") for one in ones]
    compared = same(zip(others, hosts, strict=True))
    for one, other in zip(ones, reversed(others), strict=True):
        one.copy_(other)
    compared += same(zip(ones, reversed(hosts), strict=True))
    return compared


def borrow(queue: torch.multiprocessing.Queue) -> None:
    """The other process of share(): compares what it is lent, and turns it round."""
    device, host = queue.get(timeout=60)
    same([(device, host)])
    device.copy_(host.flip(0))
    torch.cuda.synchronize()


def share(mib: int) -> int:
    """The last of the tensors, which lies past the end of VRAM, is lent to another process, which writes into it."""
    hosts = [noise(16 * MIB // 4, seed) for seed in range(mib // 16)]
    devices = [host.cuda() for host in hosts]
    spawn = torch.multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    other = spawn.Process(target=borrow, args=(queue,))
    other.start()
    queue.put((devices[-1], hosts[-1]))
    other.join(100)
    if other.exitcode != 0:
        sys.exit(f"the other process ended with {other.exitcode}")
    return same(zip(devices, [*hosts[:-1], hosts[-1].flip(0)], strict=True))


def warm_up(work: object) -> None:
    """The context; for the optimizer also cuBLAS, here and in autograd's thread: both keep their workspaces, and an
    out-of-memory of cuBLAS' own would not be PyTorch's OutOfMemoryError."""
    torch.zeros(1).cuda()
    if work is optimizer:
        torch.nn.Linear(8, 8).cuda()(torch.randn(8, 8).cuda()).sum().backward()


def free() -> int:
    """Bytes that the device has free once PyTorch has given back what it caches."""
    gc.collect()
    torch.cuda.ipc_collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def main() -> None:
    works = [optimizer, stress, graph, cache, hoard, peers, share]
    work = {one.__name__: one for one in works}[sys.argv[1]]
    torch.manual_seed(SEED)
    try:
        warm_up(work)
        before = free()
        compared = work(int(sys.argv[2]))
    except torch.cuda.OutOfMemoryError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    print(json.dumps({"compared": compared, "free": [before, free()], "allocator": noted}))


if __name__ == "__main__":  # not in the other process of share()
    main()
