# SPDX-License-Identifier: Apache-2.0
"""SIMGPU_TRACE: one line for each call of the program, with thread, time and stream; one more for each that failed."""

from __future__ import annotations

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (a fixture)


def traced(simgpu, code, **how):  # noqa: F811
    """(lines as words, output) of client code."""
    trace = simgpu.tmp_path / "trace"
    out = drive(simgpu, code, TRACE=str(trace), **how).stdout
    return [line.split() for line in trace.read_text().splitlines()], out


def test_each_call_has_process_thread_time_and_entry(simgpu):  # noqa: F811
    lines, out = traced(simgpu, """
        start()
        free(alloc(4096))
        threading.Thread(target=lambda: call("cuInit", 0)).start()
        print(os.getpid(), threading.get_native_id())
    """)
    assert [words[4] for words in lines] == [
        "cuInit", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemAlloc_v2", "cuMemFree_v2", "cuInit",
    ]  # fmt: skip
    assert all(len(words) == 5 and words[2].isdigit() and words[3] == "-" for words in lines)
    assert {tuple(words[:2]) for words in lines[:5]} == {tuple(out.split())}
    assert lines[5][0] == lines[0][0] and lines[5][1] != lines[0][1]


def test_the_stream_is_the_one_that_the_call_names(simgpu):  # noqa: F811
    lines, out = traced(simgpu, """
        start()
        p, s, id = alloc(4096), stream(), C.c_uint64()
        call("cuStreamGetId", s, C.byref(id))
        for handle in (s, None, C.c_void_p(1), C.c_void_p(2)):
            call("cuMemsetD8Async", p, C.c_ubyte(0), 16, handle)
        call("cuMemsetD8Async_ptsz", p, C.c_ubyte(0), 16, None)
        call("cuStreamDestroy_v2", s)
        call("cuStreamSynchronize", s, want=ANY)
        call("cuLaunchKernelEx", None, None, None, None, want=INVALID)
        print(id.value)
    """)
    streams = [words[3] for words in lines if words[4].startswith("cuMemsetD8Async")]
    assert streams == [out.strip(), "legacy", "legacy", "thread", "thread"]
    last = [words for words in lines if words[4] in ("cuStreamSynchronize", "cuLaunchKernelEx")]
    assert [words[3] for words in last] == ["?", "?", "-", "-"]


@pytest.mark.stubs("cuTexRefCreate")
def test_a_failure_has_a_line_of_its_own(simgpu):  # noqa: F811
    lines, _ = traced(simgpu, """
        call("cuMemFree_v2", 4096, want=NOT_INITIALIZED)
        start()
        free(4096, want=INVALID)
        call("cuTexRefCreate", None, want=NOT_SUPPORTED)
    """)
    assert [words[4:] for words in lines] == [
        ["cuMemFree_v2"],
        ["cuMemFree_v2", "=", "NOT_INITIALIZED"],
        ["cuInit"],
        ["cuDevicePrimaryCtxRetain"],
        ["cuCtxSetCurrent"],
        ["cuMemFree_v2"],
        ["cuMemFree_v2", "=", "INVALID_VALUE"],
        ["cuTexRefCreate"],
        ["cuTexRefCreate", "=", "NOT_SUPPORTED"],
    ]


def test_time_is_the_threads_simulated_one(simgpu):  # noqa: F811
    lines, _ = traced(simgpu, """
        start()
        p, q = alloc(64 * MIB), C.create_string_buffer(64 * MIB)
        write(p, q)
        call("cuCtxSynchronize")
    """, LINK="1G")
    before, after = (int(next(w for w in lines if w[4] == entry)[2]) for entry in ("cuMemcpyHtoD_v2", "cuCtxSynchronize"))
    assert before < 10**7 and 6 * 10**7 < after < 7 * 10**7  # 64 MiB over 1 GiB/s


def test_a_call_that_never_comes_back_is_the_last_line(simgpu):  # noqa: F811
    trace = simgpu.tmp_path / "trace"
    code = "from simgpu_client import *\nstart()\ncreate(GRANULE, HOST_NUMA)"
    assert simgpu(["python", "-c", code], TRACE=str(trace), HOST_VMM="crash").returncode == -11
    assert trace.read_text().splitlines()[-1].split()[4:] == ["cuMemCreate"]


@pytest.mark.parametrize("place", ["no-such-folder/trace", "."])
def test_a_trace_that_cannot_be_written_is_said_once(simgpu, place):  # noqa: F811
    where = str(simgpu.tmp_path / place)
    said = drive(simgpu, "start(); free(alloc(4096))", TRACE=where).stderr
    assert said.count("cannot write to") == 1 and where in said


def test_the_child_of_a_fork_waits_for_no_lock_of_its_parent(simgpu):  # noqa: F811
    """The other threads hold the driver's lock most of the time: of 100 children several are born while it is held."""
    traced(simgpu, """
        start()
        s = stream()
        def busy():
            start()
            while True:
                free(alloc(64 * KIB))
        for _ in range(3):
            threading.Thread(target=busy, daemon=True).start()
        for _ in range(100):
            child = os.fork()
            if not child:
                signal.alarm(10)
                cu.cuStreamQuery(s)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        os._exit(0)
    """)
