# SPDX-License-Identifier: Apache-2.0
"""PyTorch with spillshim.allocators: `torch_allocators.py plain|pool|hints|graph`. Called by test_allocators_released.py.

Kernels do nothing on the simulated GPU, so what is compared was copied there and back. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import threading

import torch

from spillshim.allocators import hooked
from spillshim.allocators import torch as spill

MIB = 1 << 20


def noise(size: int, seed: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (size // 4,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def hosts() -> list[torch.Tensor]:
    return [noise(24 * MIB, seed) for seed in range(12)]


def same(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return all(torch.equal(device.cpu(), host) for device, host in pairs)


def free() -> int:
    spill.empty_cache()
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0]


def plain() -> dict[str, object]:
    """Every tensor by the pluggable allocator alone, as PyTorch's documentation shows it."""
    torch.cuda.memory.change_current_allocator(spill.allocator())
    torch.zeros(1).cuda()
    before = torch.cuda.mem_get_info()[0]
    held = [(host.cuda(), host) for host in hosts()]
    told = {"same": same(held), "ram": sum(spill.in_ram(device) for device, _ in held)}
    nothing = torch.empty(1 << 40, dtype=torch.uint8, device="cuda")  # PyTorch does not look whether it got anything
    told["address"] = nothing.data_ptr()
    del held, nothing
    torch.cuda.synchronize()
    return {**told, "free": [before, torch.cuda.mem_get_info()[0]]}


def pool() -> dict[str, object]:
    """A MemPool: tensors come and go, more than the card holds; out-of-memory is PyTorch's; all of it comes back."""
    torch.zeros(1).cuda()
    before, told = free(), {}
    with spill.use():
        held = [(host.cuda(), host) for host in hosts()]
        for round_ in range(20):
            del held[round_ % len(held)]
            host = noise((8 + round_) * MIB, 100 + round_)
            held.append((host.cuda(), host))
        told["ram"] = sum(spill.in_ram(device) for device, _ in held)
        try:
            torch.empty(1 << 40, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            told["refused"] = True
    told["same"] = same(held)
    try:
        torch.empty(160 * MIB, dtype=torch.uint8, device="cuda")  # outside the block: PyTorch's own
    except torch.OutOfMemoryError:
        told["outside"] = "out of memory"
    else:
        told["outside"] = "granted"
    last = held[-1]
    del held
    free()
    told["last"] = same([last])
    del last
    return {**told, "free": [before, free()]}


def hints() -> dict[str, object]:
    """Where each hint puts tensors, also those that are made where another hint's were freed, and of another thread."""
    torch.zeros(1).cuda()
    host, told = noise(24 * MIB, 1), {}
    with spill.prefer("ram"):
        wished = host.cuda()
        with spill.keep("vram"):
            kept = host.cuda()
        again = host.cuda()
        strided = torch.empty((4, 24 * MIB), dtype=torch.uint8, device="cuda")[1:3, ::2]
        del again
    with spill.use():
        usual = host.cuda()
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(spill.in_ram(torch.empty(24 * MIB, dtype=torch.uint8, device="cuda"))))
        with spill.prefer("ram"):
            thread.start()
            thread.join()
    told["ram"] = [spill.in_ram(t) // MIB for t in (wished, kept, usual, strided)] + found
    try:
        with spill.keep("vram"):
            torch.empty(400 * MIB, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        told["refused"] = True
    for _ in range(50):  # a busy machine may miss a deadline
        told["cold"] = spill.cold(usual) // MIB
        if told["cold"] or not hooked():
            break
    told["kept cold"] = spill.cold(kept)
    told["same"] = same([(wished, host), (kept, host), (usual, host)])
    wrong = []
    for value in (host, "tensor"):
        try:
            spill.cold(value)
        except TypeError as error:
            wrong.append(str(error))
    return {**told, "wrong": wrong}


def graph() -> dict[str, object]:
    """A captured graph whose memory is our pool's, past the end of VRAM; replayed with new data."""
    held = []
    with spill.use():
        held = [(host.cuda(), host) for host in hosts()]
    size = 24 * MIB // 4
    source = noise(24 * MIB, 0).cuda()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, pool=spill.pool().id):
        between = torch.empty(size, dtype=torch.int32, device="cuda")
        between.copy_(source)
        target = torch.empty(size, dtype=torch.int32, device="cuda")
        target.copy_(between)
        small = torch.empty(1000, dtype=torch.int32, device="cuda")  # of a segment of 2 MiB, which is the driver's
        small.copy_(target[-1000:])
        del between
    pairs, ram = [], spill.in_ram(target)
    for round_ in range(4):
        fresh = noise(24 * MIB, 200 + round_)
        source.copy_(fresh)
        captured.replay()
        pairs.append(torch.equal(target.cpu(), fresh) and torch.equal(small.cpu(), fresh[-1000:]))
    return {"same": all(pairs) and same(held), "ram": ram}


if __name__ == "__main__":
    print(json.dumps({**{"plain": plain, "pool": pool, "hints": hints, "graph": graph}[sys.argv[1]](), "hooked": hooked()}))
