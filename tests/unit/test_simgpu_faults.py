# SPDX-License-Identifier: Apache-2.0
"""SIMGPU_FAULTS: which calls a rule strikes, what each fault leaves behind, and what a malformed rule says."""

from __future__ import annotations

import textwrap

import pytest
from nvcc import cuda_program  # noqa: F401  (a fixture)
from simgpu_driver import drive, simgpu  # noqa: F401  (a fixture)

ALLOCATIONS = """
    start()
    got, pointer = [], C.c_uint64()
    for _ in range({count}):
        got.append(call("{entry}", C.byref(pointer), 4096, want=ANY))
    print(*got)
"""


def results(simgpu, faults, count=8, entry="cuMemAlloc_v2"):  # noqa: F811
    out = drive(simgpu, ALLOCATIONS.format(count=count, entry=entry), FAULTS=faults).stdout
    return [int(word) for word in out.split()]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("", [2] * 8),
        ("@3", [0, 0, 2, 0, 0, 0, 0, 0]),
        ("@3+", [0, 0, 2, 2, 2, 2, 2, 2]),
        ("@%3", [0, 0, 2, 0, 0, 2, 0, 0]),
        ("@0:7", [0] * 8),
        ("@1:7", [2] * 8),
    ],
)
def test_which_calls_are_struck(simgpu, when, expected):  # noqa: F811
    assert results(simgpu, f"cuMemAlloc=OUT_OF_MEMORY{when}") == expected


def test_a_seed_strikes_the_same_calls_every_time(simgpu):  # noqa: F811
    first = results(simgpu, "cuMemAlloc=999@0.25:1", 200)
    assert first == results(simgpu, "cuMemAlloc=UNKNOWN@0.25:1", 200)
    assert first != results(simgpu, "cuMemAlloc=UNKNOWN@0.25:2", 200)
    assert 30 <= first.count(999) <= 70 and set(first) == {0, 999}


@pytest.mark.parametrize("name", ["cuMemAlloc", "cuMemAlloc_v2", "cuMemAll*", "*"])
def test_a_name_is_all_abis_of_an_entry_or_a_beginning(simgpu, name):  # noqa: F811
    nth = 4 if name == "*" else 1  # cuInit, cuDevicePrimaryCtxRetain and cuCtxSetCurrent come first
    assert results(simgpu, f"{name}=UNKNOWN@{nth}", 2) == [999, 0]


def test_a_name_is_not_its_longer_neighbours(simgpu):  # noqa: F811
    drive(simgpu, """
        start()
        pointer, pitch = C.c_uint64(), C.c_size_t()
        call("cuMemAllocPitch_v2", C.byref(pointer), C.byref(pitch), 100, 10, C.c_uint(4))
        call("cuMemAllocManaged", C.byref(pointer), 4096, C.c_uint(1))
    """, FAULTS="cuMemAlloc=UNKNOWN;cuMemAlloc_v2=UNKNOWN")


def test_rules_for_one_call_all_strike_and_the_first_refusal_answers(simgpu):  # noqa: F811
    assert results(simgpu, "cuMemAlloc=delay:1us,cuMemAlloc=UNKNOWN@2;cuMem*=OUT_OF_MEMORY@2+", 3) == [0, 999, 2]


def test_entries_before_initialisation_can_fail(simgpu):  # noqa: F811
    drive(simgpu, """
        version = C.c_int()
        call("cuDriverGetVersion", C.byref(version), want=999)
        call("cuInit", 0, want=100)
        call("cuInit", 0)
    """, FAULTS="cuDriverGetVersion=UNKNOWN;cuInit=NO_DEVICE@1")


def test_a_refused_call_has_done_nothing_and_a_lost_answer_hides_what_was_done(simgpu):  # noqa: F811
    drive(simgpu, """
        start()
        before = used()
        alloc(8 * MIB, want=999)
        assert used() == before
        alloc(8 * MIB, want=OOM)
        assert used() == before + 8 * MIB
    """, FAULTS="cuMemAlloc=UNKNOWN@1;cuMemAlloc=after:OUT_OF_MEMORY@2")


def test_a_fault_in_the_queued_operation_is_the_contexts_from_then_on(simgpu):  # noqa: F811
    drive(simgpu, """
        start()
        p = alloc(4096)
        call("cuMemsetD8Async", p, C.c_ubyte(1), 4096, None)
        call("cuCtxSynchronize")
        call("cuMemsetD8Async", p, C.c_ubyte(2), 4096, None)
        call("cuCtxSynchronize", want=ILLEGAL_ADDRESS)
        alloc(4096, want=ILLEGAL_ADDRESS)
    """, FAULTS="cuMemsetD8Async=queued:ILLEGAL_ADDRESS@2")


def test_a_captured_operation_fails_when_the_graph_runs(simgpu):  # noqa: F811
    drive(simgpu, """
        start()
        p, s, graph, exec = alloc(4096), stream(), C.c_void_p(), C.c_void_p()
        call("cuStreamBeginCapture_v2", s, C.c_int(GLOBAL))
        call("cuMemsetD8Async", p, C.c_ubyte(2), 4096, s)
        call("cuStreamEndCapture", s, C.byref(graph))
        call("cuGraphInstantiateWithFlags", C.byref(exec), graph, 0)
        call("cuCtxSynchronize")
        call("cuGraphLaunch", exec, s)
        call("cuCtxSynchronize", want=ILLEGAL_ADDRESS)
    """, FAULTS="cuMemsetD8Async=queued:ILLEGAL_ADDRESS")


def test_a_sticky_fault_breaks_the_context_at_once(simgpu):  # noqa: F811
    drive(simgpu, """
        start()
        call("cuCtxSynchronize", want=719)
        alloc(4096, want=719)
    """, FAULTS="cuCtxSynchronize=sticky:LAUNCH_FAILED@1")


def test_a_delay_is_real_time_before_the_call(simgpu):  # noqa: F811
    drive(simgpu, """
        start()
        begin = time.monotonic()
        alloc(4096)
        assert time.monotonic() - begin >= 0.03  # a sleep is never shorter
    """, FAULTS="cuMemAlloc=delay:30ms")


def test_kill(simgpu, tmp_path):  # noqa: F811
    trace = tmp_path / "trace"
    code = "from simgpu_client import *\nstart()\nalloc(4096)\nalloc(4096)\nprint('alive')"
    result = simgpu(["python", "-c", code], FAULTS="cuMemAlloc=kill@2", TRACE=str(trace))
    assert result.returncode == -9 and "alive" not in result.stdout
    assert [line.split()[4:] for line in trace.read_text().splitlines()][-2:] == [
        ["cuMemAlloc_v2"],
        ["cuMemAlloc_v2", "!", "cuMemAlloc=kill@2", "(number", "2)"],
    ]


def test_not_ready_after_unmap_and_the_retry_works(simgpu):  # noqa: F811
    result = drive(simgpu, """
        start()
        base = reserve(2 * GRANULE)
        handle = create(GRANULE, DEVICE)
        map_at(base, GRANULE, handle)
        grant(base, GRANULE, DEVICE)
        call("cuMemUnmap", base, GRANULE)
        map_at(base + GRANULE, GRANULE, handle)    # beside what was unmapped
        grant(base + GRANULE, GRANULE, DEVICE)
        map_at(base, GRANULE, handle, want=NOT_READY)
        map_at(base, GRANULE, handle)
        grant(base, GRANULE, DEVICE, want=NOT_READY)
        grant(base, GRANULE, DEVICE)
        grant(base, GRANULE, DEVICE)
        fill(base, 7, GRANULE)
    """, FAULTS="after-unmap=NOT_READY")
    assert "fault: after-unmap=NOT_READY (number 1) strikes in cuMemMap" in result.stderr


def test_not_ready_after_unmap_at_random(simgpu):  # noqa: F811
    out = drive(simgpu, """
        start()
        base, handle, refused = reserve(GRANULE), create(GRANULE, DEVICE), 0
        for _ in range(100):
            if call("cuMemMap", base, GRANULE, 0, handle, 0, want=ANY):
                map_at(base, GRANULE, handle)
                refused += 1
            if call("cuMemSetAccess", base, GRANULE, (Access * 1)(Access(Location(DEVICE, 0), READWRITE)), 1, want=ANY):
                grant(base, GRANULE, DEVICE)
                refused += 1
            call("cuMemUnmap", base, GRANULE)
        print(refused)
    """, FAULTS="after-unmap=NOT_READY@0.2:3").stdout
    assert 20 <= int(out) <= 60  # of 198 occasions


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("cuMemAlloc", "expected ENTRY=FAULT[@WHEN]"),
        ("cuMemAlloca=UNKNOWN", "no entry of the driver has this name"),
        ("malloc=UNKNOWN", "no entry of the driver has this name"),
        ("cuNo*=UNKNOWN", "no entry of the driver has this name"),
        ("cuMemAlloc=NO_SUCH", "expected a CUresult"),
        ("cuMemAlloc=0", "expected a CUresult"),
        ("cuMemAlloc=12345", "expected a CUresult"),
        ("cuMemAlloc=delay:5", "expected a CUresult"),
        ("cuMemAlloc=delay:-5us", "expected a CUresult"),
        ("cuMemAlloc=UNKNOWN@0", "after @ comes"),
        ("cuMemAlloc=UNKNOWN@x", "after @ comes"),
        ("cuMemAlloc=UNKNOWN@%0", "after @ comes"),
        ("cuMemAlloc=UNKNOWN@2:1", "after @ comes"),
        ("cuMemAlloc=UNKNOWN@0.5", "after @ comes"),
        ("cuMemAlloc/disk=OUT_OF_MEMORY", "a site is vram, ram or heap"),
        ("cuMemAlloc/heap=UNKNOWN", "is OUT_OF_MEMORY"),
        ("after-unmap=kill", "a CUresult"),
        ("cuMemFree=UNKNOWN;cuMemAlloc", "expected ENTRY=FAULT[@WHEN]"),
    ],
)
def test_a_malformed_rule_fails_initialisation_and_says_why(simgpu, value, says):  # noqa: F811
    result = drive(simgpu, 'call("cuInit", 0, want=INVALID)', FAULTS=value)
    lines = [line for line in result.stderr.splitlines() if "SIMGPU_FAULTS" in line]
    assert len(lines) == 1 and says in lines[0] and "initialisation fails" in lines[0], result.stderr


# --- out of memory inside a call: the driver unwinds --------------------------------------------------------------------

INSIDE = """
    start()
    image = open(sys.argv[1], "rb").read()
    module, graph, exec, kernel, s = C.c_void_p(), C.c_void_p(), C.c_void_p(), C.c_void_p(), stream()
    while not (p := alloc(8 * MIB, want=(OK, OOM))):
        pass

    def load():
        r = call("cuModuleLoadData", C.byref(module), image, want=(OK, OOM))
        if r == OK:
            call("cuModuleUnload", module)
        return r

    def launch():
        n, v, q = C.c_uint64(16), C.c_float(1), C.c_uint64(p)
        values = (C.c_void_p * 3)(*[C.addressof(x) for x in (q, n, v)])
        r = call("cuLaunchKernel", kernel, *[C.c_uint(x) for x in (1, 1, 1, 32, 1, 1, 0)], s, values, None, want=(OK, OOM))
        call("cuStreamSynchronize", s)
        return r

    def graph_of(launched):
        call("cuStreamBeginCapture_v2", s, C.c_int(GLOBAL))
        for _ in range(4):
            call("cuMemsetD8Async", p, C.c_ubyte(2), 4096, s)
        call("cuStreamEndCapture", s, C.byref(graph))

    def instantiate():
        r = call("cuGraphInstantiateWithFlags", C.byref(exec), graph, 0, want=(OK, OOM))
        if r == OK:
            r = call("cuGraphUpload", exec, s, want=(OK, OOM)) or call("cuGraphLaunch", exec, s, want=(OK, OOM))
            call("cuStreamSynchronize", s)
            call("cuGraphExecDestroy", exec)
        return r

    def allocate():
        q = C.c_uint64()
        r = call("cuMemAlloc_v2", C.byref(q), 4 * MIB, want=(OK, OOM))
        return r or free(q.value)

    whole = C.c_void_p()
    call("cuModuleLoadDataEx", C.byref(whole), image, C.c_uint(0), None, None)
    call("cuModuleGetFunction", C.byref(kernel), whole, b"_Z5plainPfmf")
    graph_of(1)
    for what in (load, launch, instantiate, allocate):
        what_before, seen = used(), set()
        for _ in range(150):
            seen.add(what())
            assert used() == what_before, what
        print(what.__name__, *sorted(seen))
    read(p, 4096)
"""


@pytest.mark.parametrize("site", ["heap", "vram"])
@pytest.mark.parametrize("seed", [1, 2])
def test_out_of_memory_inside_a_call_leaves_everything_as_it_was(simgpu, cuda_program, tmp_path, site, seed):  # noqa: F811
    """Any allocation inside a load, a launch, a graph's instantiation, upload and launch, and an allocation may fail."""
    image = cuda_program.nvcc("kernels.cu", "kernels.cubin", "-arch=sm_90", "-cubin")
    companion = cuda_program.companion("kernels.cu", "kernels.simk.so")
    entries = ["cuModuleLoadData", "cuLaunchKernel", "cuGraphInstantiateWithFlags", "cuGraphUpload", "cuGraphLaunch", "cuMemAlloc"]
    script = tmp_path / "inside.py"
    script.write_text("from simgpu_client import *\n" + textwrap.dedent(INSIDE))
    faults = ";".join(f"{entry}/{site}=OUT_OF_MEMORY@0.1:{seed}" for entry in entries)
    out = simgpu(["python", script, image], FAULTS=faults, KERNELS=str(companion)).ok().stdout
    seen = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(seen) == {"load", "launch", "instantiate", "allocate"}
    strikes = {"heap": seen, "vram": {"load": seen["load"], "allocate": seen["allocate"]}}[site]
    assert set(strikes.values()) == {"0 2"}, out  # each both failed and succeeded
