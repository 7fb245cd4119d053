# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's own offloader at work: `aimdo_work.py WEIGHTS [LIBRARY]`. Called by test_comfy.py.

The PyPI package comfy-aimdo as its README and example use it: loaded before PyTorch, it patches the driver's allocation entries
in memory, keeps weights of 32 MiB each in VRAM as long as there is room, and gives them up when tensors need it. LIBRARY is
loaded in aimdo.so's place (a copy of it under another name). Prints one JSON object: weights that were loaded and that were not,
MiB of weights in VRAM before and after six tensors of 64 MiB, and free and total memory as it hears of them.
"""

from __future__ import annotations

import ctypes
import json
import sys

from comfy_aimdo import control

MIB = 1 << 20
WEIGHT = 32 * MIB

if len(sys.argv) > 2:
    plain_dll = ctypes.CDLL
    ctypes.CDLL = lambda name, *more, **how: plain_dll(sys.argv[2] if name.endswith("aimdo.so") else name, *more, **how)
if not control.init("cuda"):
    sys.exit("comfy-aimdo does not load")

import torch

torch.zeros(1).cuda()

import comfy_aimdo.torch
from comfy_aimdo.model_vbar import ModelVBAR, vbar_fault, vbar_unpin

if not control.init_device(0):
    sys.exit("comfy-aimdo does not take the device")
space = ModelVBAR(4096 * MIB, device=0)
loaded = left = 0
for number in range(int(sys.argv[1])):
    weight = space.alloc(WEIGHT)
    if vbar_fault(weight) is None:
        left += 1
        continue
    generator = torch.Generator().manual_seed(number)
    host = torch.randint(-(2**31), 2**31 - 1, (WEIGHT // 4,), dtype=torch.int32, generator=generator)
    device = comfy_aimdo.torch.aimdo_to_tensor(weight, torch.device("cuda:0")).view(torch.int32)
    device.copy_(host)
    if not torch.equal(device.cpu(), host):
        sys.exit("the device gave back other data than it was given")
    vbar_unpin(weight)
    loaded += 1
before = space.loaded_size()
tensors = [torch.empty(64 * MIB, dtype=torch.uint8, device="cuda") for _ in range(6)]
facts = {"loaded": loaded, "left": left, "mib": [before // MIB, space.loaded_size() // MIB]}
print(json.dumps({**facts, "memory": torch.cuda.mem_get_info()}))
