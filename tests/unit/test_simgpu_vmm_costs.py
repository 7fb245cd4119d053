# SPDX-License-Identifier: Apache-2.0
"""What memory management costs the calling thread in simulated time: the published figures, whatever the settings say else."""

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

TIMED = """
start()
s = stream()
def timed(work):
    "Microseconds of host time that a call takes, seen by two events around it."
    a, b, ms = event(), event(), C.c_float()
    call("cuEventRecord", a, s)
    result = work()
    call("cuEventRecord", b, s)
    call("cuEventSynchronize", b)
    call("cuEventElapsedTime", C.byref(ms), a, b)
    return round(ms.value * 1000, 2), result
"""


@pytest.mark.parametrize("setting, costs", [({}, (193, 1.5, 36, 26, 19)), ({"VMM": "100/2/3.5/4/50"}, (100, 2, 3.5, 4, 50)), ({"VMM": "0/0/0/0/0"}, (0,) * 5)])
def test_vmm_calls_cost_what_is_configured_for_each_handle(simgpu, setting, costs):
    drive(
        simgpu,
        TIMED
        + f"""
create_us, map_us, access_us, unmap_us, reserve_us = {costs!r}
cost, base = timed(lambda: reserve(8 * GRANULE)); assert cost == reserve_us, cost
cost, big = timed(lambda: create(4 * GRANULE)); assert cost == create_us, "of a handle, not of its bytes"
handles = [create(GRANULE) for _ in range(4)]
cost, _ = timed(lambda: map_at(base, 4 * GRANULE, big)); assert cost == map_us
for i, h in enumerate(handles):
    map_at(base + (4 + i) * GRANULE, GRANULE, h)
cost, _ = timed(lambda: grant(base, 8 * GRANULE, DEVICE)); assert cost == 5 * access_us, "five handles in one call"
cost, _ = timed(lambda: call("cuMemUnmap", base, 8 * GRANULE)); assert cost == 5 * unmap_us
cost, _ = timed(lambda: create(3, want=INVALID)); assert cost == 0, "what is refused costs nothing"
cost, _ = timed(lambda: free(alloc(GRANULE))); assert cost == 0, "no published figure"
""",
        LAUNCH="0",
        **setting,
    )


def test_pinning_costs_time_by_the_byte(simgpu):
    drive(
        simgpu,
        TIMED
        + """
def pin(n):
    call("cuMemHostAlloc", C.byref(C.c_void_p()), n, 0)
page = C.create_string_buffer(8192)
start_of_page = (C.addressof(page) + 4095) // 4096 * 4096
assert timed(lambda: pin(MIB))[0] == 1000
assert timed(lambda: create(2 * MIB, HOST_NUMA))[0] == 2193
cost = timed(lambda: call("cuMemHostRegister_v2", C.c_void_p(start_of_page), 4096, 0))[0]
assert cost == round(4096e6 / (1000 * MIB), 2), cost
""",
        LAUNCH="0",
        PIN="1000M",
    )


@pytest.mark.parametrize("text", ["1/2/3/4", "1/2/3/4/5/6", "a/2/3/4/5", "-1/2/3/4/5", "1,2,3,4,5", "1/2/3/4/nan"])
def test_malformed_costs_are_refused(simgpu, text):
    result = simgpu(["python", "-c", "from simgpu_client import *; call('cuInit', 0)"], VMM=text)
    assert result.returncode and "SIMGPU_VMM=" in result.stderr, result
