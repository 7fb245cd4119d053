# SPDX-License-Identifier: Apache-2.0
"""Many threads on one simulated driver at once (tests/programs/simgpu_stress.c), alone and behind the shim on a small card;
`--san` runs it on the sanitizers' builds. And proof that those builds report what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from nvcc import cuda_program  # noqa: F401  (a fixture)

REPOSITORY = Path(__file__).resolve().parents[2]

# Small regions on a small card: most of what the program allocates is managed, and some of it spills.
SPILLING = {
    "SPILLSHIM_MANAGED_MIN": "2M",
    "SPILLSHIM_CHUNK": "4M",
    "SPILLSHIM_SPILL_CHUNK": "2M",
    "SPILLSHIM_HEADROOM": "4M",
    "SPILLSHIM_HOLDBACK": "0",
}
BOTH = pytest.mark.parametrize("sanitizer", ["address", "thread"], indirect=True)


@pytest.fixture
def stress(run_sim, c_program, cuda_program):  # noqa: F811
    program = c_program("simgpu_stress.c")
    kernels = cuda_program.companion("simgpu_stress_kernels.c", "stress.simk.so", "c")

    def run(seed, threads, steps, shim):
        print(f"seed {seed}")
        how = {"vram": "48M", "env": SPILLING} if shim else {"vram": "256M", "shim": False}
        ran = run_sim([program, seed, threads, steps], ram="512M", sim={"KERNELS": str(kernels)}, timeout=240, **how).ok()
        assert ran.stdout.split()[0] == "ok", ran
        return ran

    return run


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
@pytest.mark.parametrize("shim", [False, True], ids=["alone", "shim"])
def test_threads_streams_graphs_contexts(stress, seed, shim):
    stress(seed, 4, 120, shim)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("shim", [False, True], ids=["alone", "shim"])
def test_many_threads_on_the_sanitizers_builds(stress, shim):
    stress(20240607, 8, 60, shim)


PLANTED = """
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int counter;
static void *race(void *arg) { (void)arg; for (int i = 0; i < 1000; i++) counter++; return NULL; }
static void wait_for(void *flag) { while (!__atomic_load_n((int *)flag, __ATOMIC_RELAXED)) usleep(1000); }
int main(int argc, char **argv)
{
    CUdevice device; CUcontext context; CUdeviceptr p; CUstream s[2]; pthread_t t; char *pinned;
    const char *what = argv[argc - 1];
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context) ||
        cuMemAlloc(&p, 4 << 20) || cuMemHostAlloc((void **)&pinned, 4096, 0) || cuStreamCreate(&s[0], CU_STREAM_NON_BLOCKING) || cuStreamCreate(&s[1], CU_STREAM_NON_BLOCKING))
        return 2;
    char *heap = malloc(100);
    if (!strcmp(what, "race in a program")) {
        pthread_create(&t, NULL, race, NULL);
        race(NULL);
        pthread_join(t, NULL);
    }
    /* A stream and the host write the same bytes, in the driver's own thread. The copy begins when the host is out of the driver,
     * and the host calls nothing until it has run: the driver's locks would put an order into what has none. */
    if (!strcmp(what, "race with a stream")) {
        static int written;
        if (cuMemsetD8(p, 3, 64) || cuCtxSynchronize() || cuLaunchHostFunc(s[0], wait_for, &written) || cuMemcpyDtoHAsync(pinned, p, 64, s[0]))
            return 3;
        pinned[8] = 4;
        __atomic_store_n(&written, 1, __ATOMIC_RELAXED);
        while (__atomic_load_n(pinned, __ATOMIC_RELAXED) != 3)
            usleep(1000);
    }
    /* The driver reads past the end of the program's buffer. */
    if (!strcmp(what, "overflow in a copy") && cuMemcpyHtoD(p, heap, argc + 199))
        return 4;
    if (!strcmp(what, "undefined shift"))
        printf("%d\\n", argc << (31 + argc));
    if (!strcmp(what, "leak"))
        heap = NULL;
    free(heap);
    if (cuCtxSynchronize() || cuStreamDestroy(s[0]) || cuStreamDestroy(s[1]) || cuMemFree(p) || cuMemFreeHost(pinned) || cuDevicePrimaryCtxRelease(device))
        return 5;
    puts("end");
    return 0;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "what", "report"),
    [
        ("thread", "race in a program", r"data race"),
        ("thread", "race with a stream", r"data race[\s\S]*/simgpu/copy\.c"),
        ("thread", "nothing", None),
        ("address", "overflow in a copy", r"heap-buffer-overflow[\s\S]*/simgpu/copy\.c"),
        ("address", "undefined shift", r"runtime error: shift exponent"),
        ("address", "leak", r"Direct leak of 100 byte"),
        ("address", "nothing", None),
    ],
    indirect=["sanitizer"],
)
def test_what_is_planted_is_reported(run_sim, c_program, sanitizer, what, report):
    """The sanitizers run, see into the driver, and their reports reach the test."""
    process = run_sim.start([c_program(PLANTED, name="planted"), what], shim=False, vram="1G")
    out, err = process.communicate(timeout=60)
    found = "\n".join(sanitizer.reports(run_sim.reports, err))
    if report is None:
        assert (found, out) == ("", "end\n"), err
    else:
        assert re.search(report, found), (found, out, err)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@BOTH
def test_conformance_on_the_sanitizers_builds(sanitizer, clean_env, tmp_path):
    """Its workers are forked from the test run itself, which therefore has the runtime in front too."""
    logs = tmp_path / "reports"
    logs.mkdir()
    env = {**clean_env, "SPILLSHIM_TEST_NATIVE": str(sanitizer.native), "PYTHONPATH": str(REPOSITORY)}
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "tests/conformance", "-o", f"cache_dir={tmp_path / 'cache'}"]
    if sanitizer.kind == "thread":  # its shadow memory leaves a program 1.5 TiB less what randomization takes: not always 1 TiB in a piece
        argv += ["--deselect", "tests/conformance/test_driver_vmm.py::test_reservations"]
    ran = subprocess.run(argv, env=sanitizer.environment(env, logs), cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=1100)
    found = sanitizer.reports(logs, ran.stderr)
    assert (ran.returncode, found) == (0, []), ran.stdout[-5000:] + "\n\n".join(found)
    assert re.search(r"^\d{2,} passed", ran.stdout, re.M), ran.stdout[-500:]
