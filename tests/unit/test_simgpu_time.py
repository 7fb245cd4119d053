# SPDX-License-Identifier: Apache-2.0
"""Simulated time over streams and threads: what starts when, who has the link, and that the same program gives the same times."""

import json

import pytest
from simcode import run_script
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)
from test_simgpu_clock import KERNELS, RATES, SCRIPT, built  # noqa: F401  (fixture)

TIMES = """
def host(size):
    p = C.c_void_p()
    call("cuMemHostAlloc", C.byref(p), size, 0)
    return p
def mark(s=None):
    e = event()
    call("cuEventRecord", e, s)
    return e
def between(a, b):
    ms = C.c_float()
    call("cuEventElapsedTime", C.byref(ms), a, b)
    return round(ms.value * 1e6) / 1e3           # microseconds
def push(s, size, to=None):
    call("cuMemcpyHtoDAsync_v2", to or d, h, size, s)
def pull(s, size):
    call("cuMemcpyDtoHAsync_v2", h, d, size, s)
def near(got, want):
    assert abs(got - want) <= 0.01 + want * 1e-6, (got, want)
"""
# A link of 1000 bytes per microsecond, VRAM of 100,000.
PLAIN = {"LAUNCH": "0", "LINK": "1000000000", "HBM": "100000000000"}


def test_queueing_work_costs_host_time(simgpu):
    drive(simgpu, TIMES + """
start()
s, d = stream(), alloc(MIB)
begin = mark(s)
for n in range(10):
    call("cuMemsetD8Async", d, C.c_ubyte(1), 100, s)             # 1 ns each: far less than what it costs to queue them
end = mark(s)
call("cuStreamSynchronize", s)
near(between(begin, end), 10 * 5 + 0.001)
begin = mark(s)
for n in range(10):
    call("cuMemsetD8Async", d, C.c_ubyte(1), MIB, s)             # 10.5 us each: the device is behind, the host runs ahead
end = mark(s)
call("cuStreamSynchronize", s)
near(between(begin, end), 5 + 10 * 10.485)
""", **{**PLAIN, "LAUNCH": "5000"})


def test_waiting_moves_the_host_on(simgpu):
    drive(simgpu, TIMES + """
start()
a, b, d, h = stream(), stream(), alloc(MIB), host(MIB)
first = mark(a)
push(a, 500000)
second = mark(b)                                                 # b is idle, the host did not wait: no time has passed
call("cuStreamSynchronize", a)
third = mark(b)
call("cuCtxSynchronize")
near(between(first, second), 0)
near(between(first, third), 500)
call("cuMemcpyHtoD_v2", d, h, 100000)                            # a copy that waits
fourth = mark(b)
call("cuStreamSynchronize", b)
near(between(first, fourth), 600)
push(a, 100000)
done = mark(a)
while call("cuEventQuery", done, want=(OK, NOT_READY)):
    pass
fifth = mark(b)                                                  # a query that says yes is a wait
push(a, 100000)
free(alloc(MIB))                                                 # so is a free
sixth = mark(b)
call("cuStreamSynchronize", b)
near(between(first, fifth), 700)
near(between(first, sixth), 800)
""", **PLAIN)


def test_memory_management_costs_host_time(simgpu):
    drive(simgpu, TIMES + """
start()
s = stream()
begin = mark(s)
base, handle = backed(DEVICE)                                    # reserve, create, map, grant
middle = mark(s)
call("cuMemUnmap", base, GRANULE)
end = mark(s)
call("cuStreamSynchronize", s)
assert between(begin, middle) > 200 and between(middle, end) > 20, (between(begin, middle), between(middle, end))
""", **PLAIN)


@pytest.mark.no_sanitizer("its streams write the same bytes: only their times matter", only="thread")
def test_each_direction_has_one_engine(simgpu):
    drive(simgpu, TIMES + """
start()
a, b, c, d, h = stream(), stream(), stream(), alloc(MIB), host(MIB)
begin = mark(a)
push(a, 500000); one = mark(a)
push(b, 300000); two = mark(b)                                   # behind the first
pull(c, 400000); three = mark(c)                                 # the other way: beside both
call("cuMemcpyDtoDAsync_v2", d, d + MIB // 2, 500000, c); four = mark(c)   # over no link: 2 x 5 us
push(a, 100000); five = mark(a)
call("cuCtxSynchronize")
for e, want in ((one, 500), (two, 800), (three, 400), (four, 410), (five, 900)):
    near(between(begin, e), want)
push(c, 100000); six = mark(c)                                   # after the wait the engine is free
call("cuCtxSynchronize")
near(between(begin, six), 1000)
""", **PLAIN)


@pytest.mark.no_sanitizer("its streams write the same bytes: only their times matter", only="thread")
def test_a_copy_whose_start_is_not_known_gives_way(simgpu):
    drive(simgpu, TIMES + """
start()
a, b, d, h = stream(), stream(), alloc(MIB), host(MIB)
begin = mark(a)
gate = Gate().close(a)                                           # nobody knows when it opens
push(a, 100000); held = mark(a)
push(b, 300000); free_one = mark(b)                              # so this one is not held up by that
call("cuStreamSynchronize", b)
push(b, 300000); later = mark(b)
gate.open()
call("cuCtxSynchronize")
near(between(begin, free_one), 300)
near(between(begin, later), 600)
near(between(begin, held), 100)                                  # queued before them: it did not see them
gate = Gate().close(a)
push(b, 200000)
push(a, 100000); held = mark(a)                                  # queued behind one: it finds the gap after it
gate.open()
call("cuCtxSynchronize")
near(between(begin, held), 900)
""", **PLAIN)


@pytest.mark.no_sanitizer("its streams write the same bytes: only their times matter", only="thread")
def test_copies_beside_each_other_where_that_is_believed_in(simgpu):
    drive(simgpu, TIMES + """
start()
a, b, d, h = stream(), stream(), alloc(MIB), host(MIB)
begin = mark(a)
push(a, 500000); one = mark(a)
push(b, 300000); two = mark(b)
call("cuCtxSynchronize")
near(between(begin, one), 500)
near(between(begin, two), 300)
""", **PLAIN, DOUBT="clock.link_shared")


BESIDE = """
streams = [handle(), handle()]
for s in streams:
    cu("cuStreamCreate", ref(s), 1)
copied, target = handle(), u64()
cu("cuMemHostAlloc", ref(copied), 8 << 20, 0)
cu("cuMemAlloc_v2", ref(target), 8 << 20)
cu("cuCtxSynchronize")
def beside(copy_first, bytes_):
    ms = ctypes.c_float()
    cu("cuEventRecord", marks[0], streams[0])
    if copy_first:
        cu("cuMemcpyHtoDAsync_v2", target, copied, bytes_, streams[1])
    last = (u64(passes), total) if kernel_name != "bw_fill" else (u64(1),)
    assert launch(f, (4,), (256,), p, u64(size), *last, stream=streams[0]) == 0
    cu("cuEventRecord", marks[1], streams[0])
    if not copy_first:
        cu("cuMemcpyHtoDAsync_v2", target, copied, bytes_, streams[1])
    cu("cuCtxSynchronize")
    cu("cuEventElapsedTime", ref(ms), *marks)
    return ms.value
"""


@pytest.mark.parametrize("doubt", ["", "clock.link_shared"])
def test_a_kernel_that_reads_ram_shares_the_link_with_copies_before_it(run_sim, built, doubt):
    mib = 1 << 20
    facts = run_script(
        run_sim, SCRIPT + BESIDE + "answer(alone=timed(sweep), long=beside(True, 8 << 20), short=beside(True, 1 << 20), after=beside(False, 8 << 20))",
        "bw_read16", "host", 4 * mib, 1,
        kernels=built[True], sim={**RATES, "DOUBT": doubt}, env={"PTX": str(KERNELS / "bw.ptx")},
    )[0]  # fmt: skip
    alone = 4 * mib / 1e6  # milliseconds over a link of one byte a nanosecond
    assert facts["alone"] == pytest.approx(alone, rel=1e-4)
    assert facts["long"] == pytest.approx(alone if doubt else 2 * alone, rel=1e-4), "half of the link all the time"
    assert facts["short"] == pytest.approx(alone if doubt else alone + mib / 2 / 1e6, rel=1e-4), "half of it for 1 MiB's time"
    assert facts["after"] == pytest.approx(alone, rel=1e-4), "what is queued later is not seen"


MANY = TIMES + """
import random
random.seed(SEED)
start()
streams, d, h = [stream(random.choice((0, 1))) for _ in range(6)] + [None], alloc(4 * MIB), host(4 * MIB)
kept, marks = [], []
for step in range(500):
    s = random.choice(streams)
    kind = random.randrange(8)
    if kind == 0:
        push(s, random.randrange(1, 2 * MIB))
    elif kind == 1:
        pull(s, random.randrange(1, 2 * MIB))
    elif kind == 2:
        call("cuMemsetD8Async", d, C.c_ubyte(1), random.randrange(1, MIB), s)
    elif kind == 3:
        note = HOST_FN(lambda _: time.sleep(random.Random().random() / 1000))   # real time that differs from run to run
        kept.append(note)
        call("cuLaunchHostFunc", s, note, None)
    elif kind == 4 and marks:
        call("cuStreamWaitEvent", s, random.choice(marks), C.c_uint(0))
    elif kind == 5:
        marks.append(mark(s))
    elif kind == 6:
        call("cuStreamSynchronize", random.choice(streams)) if random.random() < 0.3 else None
    elif marks:
        call("cuEventSynchronize", random.choice(marks))
call("cuCtxSynchronize")
print([between(marks[0], m) for m in marks])
"""


@pytest.mark.no_sanitizer("its streams write the same bytes: only their times matter", only="thread")
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_the_same_program_has_the_same_times(simgpu, seed):
    runs = [drive(simgpu, MANY.replace("SEED", str(seed)), **PLAIN).stdout for _ in range(3)]
    assert len(set(runs)) == 1, runs
    assert len(set(json.loads(runs[0]))) > 20


def test_threads_that_hand_work_over_have_one_time(simgpu):
    """Causality through CUDA objects: two threads that take turns see times that never go back, the same in every run."""
    text = TIMES + """
context = start()
d, h, ring, times = alloc(MIB), host(MIB), [event() for _ in range(20)], []
turns = [threading.Event() for _ in range(20)]
def work(me):
    call("cuCtxSetCurrent", context)
    s = stream()
    for n in range(me, 20, 2):
        if n:
            turns[n - 1].wait(20)
            call("cuStreamWaitEvent", s, ring[n - 1], C.c_uint(0))
        push(s, 1000 * (n + 1))
        call("cuEventRecord", ring[n], s)
        turns[n].set()
    call("cuStreamSynchronize", s)
threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
for t in threads: t.start()
for t in threads: t.join()
print([between(ring[0], e) for e in ring])
"""
    runs = {drive(simgpu, text, **PLAIN).stdout for _ in range(3)}
    assert len(runs) == 1, runs
    assert json.loads(runs.pop()) == pytest.approx([sum(range(2, n + 2)) for n in range(20)])


def test_real_time_when_asked_for(simgpu):
    """What lasts 100 ms by the clock is not done earlier, the host may go on meanwhile, and the clock says the same as ever."""
    text = TIMES + """
start()
s, d, h = stream(), alloc(MIB), host(MIB)
begin, real = mark(s), time.monotonic()
push(s, 100000)
end = mark(s)
for look in ("cuStreamQuery", "cuEventSynchronize"):
    done = call(look, s if look == "cuStreamQuery" else end, want=(OK, NOT_READY)) == OK
    assert not done or {lasts} == 0 or time.monotonic() - real >= {lasts}, look
near(between(begin, end), 100000)
real = time.monotonic()
backed(DEVICE)                                                   # 193 us and more
assert {lasts} == 0 or time.monotonic() - real >= 193e-6
"""
    slow = {**PLAIN, "LINK": "1000000"}
    drive(simgpu, text.format(lasts=0.1), CLOCK="real", **slow)
    drive(simgpu, text.format(lasts=0), **slow)


def test_who_works_after_a_remap_by_another_thread_is_later_than_it(simgpu):
    drive(simgpu, TIMES + """
context = start()
s = stream()
begin = mark(s)
def other():
    call("cuCtxSetCurrent", context)
    backed(DEVICE)                                               # 193 us and more, by that thread's clock
t = threading.Thread(target=other); t.start(); t.join()
end = mark(s)
call("cuStreamSynchronize", s)
assert 200 < between(begin, end) < 1000, between(begin, end)
""", **PLAIN)
