# SPDX-License-Identifier: Apache-2.0
"""RMM with spillshim.allocators. Called by test_allocators_released.py; prints one JSON object."""

import rmm
from shell import *

from spillshim.allocators import in_ram
from spillshim.allocators import rmm as spill

ctx = Ctx()
before = mem_info()[0]
resource = spill.resource()
buffer, data = rmm.DeviceBuffer(size=96 * MIB, mr=resource), pattern(96 * MIB, 3)
upload(buffer.ptr, data)
same = bool((download(buffer.ptr, 96 * MIB) == data).all())
ram = in_ram(buffer.ptr, buffer.size)
try:
    rmm.DeviceBuffer(size=1 << 40, mr=resource)
    refused = "nothing"
except MemoryError as error:
    refused = str(error)
del buffer
tiers = []
for tier in ("ram", "vram"):
    one = rmm.DeviceBuffer(size=8 * MIB, mr=spill.resource(tier))
    tiers.append(in_ram(one.ptr, one.size))
pool = rmm.mr.PoolMemoryResource(resource, initial_pool_size=32 * MIB)
pooled = [rmm.DeviceBuffer(size=12 * MIB, mr=pool) for _ in range(2)]
addresses = [one.ptr for one in pooled]
del one, pooled, pool
done(same=same, ram=ram, refused=refused, tiers=tiers, apart=abs(addresses[0] - addresses[1]), free=[before, mem_info()[0]])
