# SPDX-License-Identifier: Apache-2.0
"""No invalid access and no leak: a spilling program and the driver's bad-input answers under valgrind and AddressSanitizer."""

from __future__ import annotations

import pytest
from clients_common import FINE, MIB, kernel_env, spilled_bytes

SHAPE = ["4", "10", "7"]  # 4 regions of 10 MiB, seed 7
CARD = "24M"


@pytest.mark.slow
def test_spilling_program_under_valgrind(run_sim, c_program, demo_dir, need):
    valgrind = need("valgrind")
    options = ["--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite", "--show-leak-kinds=definite", "--child-silent-after-fork=yes"]
    result = run_sim([valgrind, *options, c_program("client_linked.c"), *SHAPE], vram=CARD, env={**FINE, **kernel_env(demo_dir)}, timeout=280).ok()
    assert result.stdout.split() == ["ok"]
    mine = [one for one in result.stats if one["spilled"]["bytes_peak"]]
    assert len(mine) == 1 and spilled_bytes(mine) >= 16 * MIB, result


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address"], indirect=True)
@pytest.mark.parametrize("host_vmm", ["numa", "none"])
def test_spilling_program_under_asan(run_sim, c_program, demo_dir, host_vmm):
    env = {**FINE, **kernel_env(demo_dir)}
    result = run_sim([c_program("client_linked.c"), *SHAPE], vram=CARD, env=env, sim={"HOST_VMM": host_vmm}, timeout=120).ok()
    assert result.stdout.split() == ["ok"]
    assert spilled_bytes(result.stats) >= 16 * MIB


BAD_INPUT = """
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
/* Frees what it must not, asks for what cannot be, and uses what it has freed: each an error, none an invalid access. */
int main(void)
{
    CUdevice device; CUcontext context; CUdeviceptr p[3] = {0}, q = 0; size_t pitch; char on_stack[64]; char *heap = malloc(64);
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context)) return 2;
    for (int i = 0; i < 3; i++)
        if (cuMemAlloc(&p[i], 10 << 20)) return 3;
    int refused = 0;
    refused += cuMemFree((CUdeviceptr)on_stack) != 0;
    refused += cuMemFree((CUdeviceptr)heap) != 0;
    refused += cuMemFree(p[0] + 4096) != 0;
    refused += cuMemFreeAsync(p[0] + 4096, 0) != 0;
    refused += cuMemAlloc(&q, 0) != 0;
    refused += cuMemAlloc(&q, (size_t)-1) != 0;
    refused += cuMemAlloc(&q, (size_t)1 << 63) != 0;
    refused += cuMemAllocPitch(&q, &pitch, (size_t)1 << 40, (size_t)1 << 40, 4) != 0;
    refused += cuMemcpyHtoD(p[2] + (10 << 20) - 8, heap, 64) != 0;
    refused += cuMemcpyDtoH(heap, p[2] + (10 << 20) - 8, 64) != 0;
    refused += cuMemsetD8(p[2] + (10 << 20) - 8, 1, 64) != 0;
    if (cuMemFree(p[1])) return 4;
    refused += cuMemFree(p[1]) != 0;
    refused += cuMemcpyDtoH(heap, p[1], 64) != 0;
    if (cuMemFree(p[0]) || cuMemFree(p[2]) || cuDevicePrimaryCtxRelease(device)) return 5;
    free(heap);
    printf("%d\\n", refused);
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address"], indirect=True)
def test_bad_input_under_asan(run_sim, c_program):
    result = run_sim([c_program(BAD_INPUT, name="bad_input")], vram=CARD, env=FINE, timeout=120).ok()
    assert result.stdout.split() == ["13"], result


def test_bad_input_is_refused_without_a_crash(run_sim, c_program):
    for shim in (False, True):
        result = run_sim([c_program(BAD_INPUT, name="bad_input")], vram=CARD if shim else "1G", shim=shim, env=FINE if shim else {}).ok()
        assert result.stdout.split() == ["13"], result
