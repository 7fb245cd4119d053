# SPDX-License-Identifier: Apache-2.0
"""The simulated driver's stream memory operations: waits for, writes to and reductions of words, in stream order."""

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

HELPERS = """
GEQ, EQ, AND, NOR, FLUSH = 0, 1, 2, 3, 1 << 30
class Op(C.Structure):  # CUstreamBatchMemOpParams: the wait and write members are laid out alike
    _fields_ = [("operation", C.c_uint), ("address", C.c_uint64), ("value", C.c_uint64), ("flags", C.c_uint), ("pad", C.c_uint64 * 2)]
class Reduce(C.Structure):
    _fields_ = [("operation", C.c_uint), ("flags", C.c_uint), ("op", C.c_uint), ("type", C.c_uint), ("address", C.c_uint64),
                ("value", C.c_uint64), ("alias", C.c_uint64 * 2)]
assert C.sizeof(Op) == C.sizeof(Reduce) == 48
WAIT32, WRITE32, FLUSH_WRITES, WAIT64, WRITE64, BARRIER, REDUCE = 1, 2, 3, 4, 5, 6, 8
def word(bits=32, flags=2):
    p = C.c_void_p()
    call("cuMemHostAlloc", C.byref(p), 4096, flags)
    kind = C.c_uint64 if bits == 64 else C.c_uint32
    return p.value, kind.from_address(p.value)
def wait(s, p, value, flags=GEQ, bits=32, want=OK):
    call(f"cuStreamWaitValue{bits}_v2", s, p, C.c_uint64(value) if bits == 64 else C.c_uint(value), C.c_uint(flags), want=want)
def write(s, p, value, flags=0, bits=32, want=OK):
    call(f"cuStreamWriteValue{bits}_v2", s, p, C.c_uint64(value) if bits == 64 else C.c_uint(value), C.c_uint(flags), want=want)
def batch(s, *ops, want=OK):
    made = (Op * len(ops))(*[Op.from_buffer_copy(o) for o in ops])
    call("cuStreamBatchMemOp_v2", s, C.c_uint(len(ops)), made, C.c_uint(0), want=want)
"""


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    "flags, value, before, after",
    [
        ("GEQ", 5, 4, 6),
        ("GEQ", 1, -3, 3),  # cyclic: what is just below zero is less
        ("EQ", 5, 6, 5),
        ("AND", 6, 9, 4),
        ("NOR", 1, -1, -3),  # waits until some bit is neither set in the word nor in the value
    ],
)
def test_a_stream_waits_for_a_word(simgpu, bits, flags, value, before, after):
    drive(simgpu, HELPERS + f"""
start()
s, bits = stream(), {bits}
p, cell = word(bits)
d = alloc(4096)
cell.value = {before}
wait(s, p, {value}, {flags}, bits)
call("cuMemsetD8Async", d, C.c_ubyte(7), 4096, s)
call("cuStreamQuery", s, want=NOT_READY)
time.sleep(0.02)
call("cuStreamQuery", s, want=NOT_READY)
cell.value = {after}
call("cuStreamSynchronize", s)
assert read(d, 1) == b"\\x07"
""")


def test_streams_hand_over_by_words_in_device_memory(simgpu):
    drive(simgpu, HELPERS + """
start()
a, b, p = stream(), stream(), alloc(4096)
fill(p, 0, 4096)
log = []
first, second = HOST_FN(lambda _: log.append("a")), HOST_FN(lambda _: log.append("b"))
wait(b, p, 3, EQ)
call("cuLaunchHostFunc", b, second, None)
write(b, p + 8, 1 << 40, bits=64)
call("cuLaunchHostFunc", a, first, None)
write(a, p, 3)
wait(a, p + 8, 1 << 40, EQ, 64)
call("cuStreamSynchronize", a)
assert log == ["a", "b"], log
assert read(p, 16) == bytes([3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0])
""")


def test_batches_run_in_order_and_can_be_captured(simgpu):
    drive(simgpu, HELPERS + """
start()
s, p = stream(), alloc(4096)
fill(p, 0, 4096)
ops = Op(WRITE32, p, 5), Op(WAIT32, p, 5, EQ), Op(BARRIER, 0)
batch(s, *ops)
call("cuStreamSynchronize", s)
assert read(p, 1) == b"\\x05"
graph, exe, nodes, count, kind = C.c_void_p(), C.c_void_p(), (C.c_void_p * 4)(), C.c_size_t(4), C.c_int()
call("cuStreamBeginCapture_v2", s, C.c_int(GLOBAL))
batch(s, *ops)
write(s, p + 4, 9)
call("cuStreamEndCapture", s, C.byref(graph))
call("cuGraphGetNodes", graph, nodes, C.byref(count))
assert count.value == 2
call("cuGraphNodeGetType", C.c_void_p(nodes[0]), C.byref(kind))
assert kind.value == 12
call("cuGraphInstantiateWithFlags", C.byref(exe), graph, 0)
fill(p, 0, 8)
call("cuGraphLaunch", exe, s)
call("cuStreamSynchronize", s)
assert read(p, 8) == bytes([5, 0, 0, 0, 9, 0, 0, 0])
""")


def test_reductions(simgpu):
    drive(simgpu, HELPERS + """
start()
s, p, cell64 = stream(), *word(64)
narrow = C.c_uint32.from_address(p + 8)
UNSIGNED, REDUCTION, SCALAR_32, SCALAR_64 = 1 << 1, 1 << 2, 1 << 3, 1 << 4   # CU_ATOMIC_CAPABILITY_*
U32, U64 = UNSIGNED | REDUCTION | SCALAR_32, UNSIGNED | REDUCTION | SCALAR_64
ADD, AND_, OR = 0, 5, 6
cell64.value, narrow.value = (1 << 40) - 1, 0xFFFFFFFF
batch(s, Reduce(REDUCE, 0, ADD, U64, p, 1), Reduce(REDUCE, 0, ADD, U32, p + 8, 2))
call("cuStreamSynchronize", s)
assert (cell64.value, narrow.value) == (1 << 40, 1), "32 bits wrap"
batch(s, Reduce(REDUCE, 0, OR, U32, p + 8, 6), Reduce(REDUCE, 0, AND_, U32, p + 8, 5))
call("cuStreamSynchronize", s)
assert narrow.value == 5
batch(s, Reduce(REDUCE, 0, 3, U32, p, 1), want=INVALID)
batch(s, Reduce(REDUCE, 1, ADD, U32, p, 1), want=INVALID)
batch(s, Reduce(REDUCE, 0, ADD, 0, p, 1), want=INVALID)
""")


def test_refusals(simgpu):
    drive(simgpu, HELPERS + """
start()
s, (p, cell), managed, q = stream(), word(), C.c_uint64(), alloc(4096)
call("cuMemAllocManaged", C.byref(managed), 4096, C.c_uint(1))
pageable = C.create_string_buffer(64)
for bad in (0, 12345 << 20, p + 2, managed.value, C.addressof(pageable) & ~7):
    wait(s, bad, 0, want=INVALID)
    write(s, bad, 0, want=INVALID)
wait(s, p + 4, 0, bits=64, want=INVALID)
wait(s, p, 0, 4, want=INVALID)
wait(s, p, 0, FLUSH, want=NOT_SUPPORTED)                    # the attribute says so
write(s, p, 0, 1, want=INVALID)                             # no barrier: not in the second form
batch(s, Op(7, p), want=INVALID)
batch(s, Op(FLUSH_WRITES, 0), want=NOT_SUPPORTED)
batch(s, *[Op(BARRIER, 0)] * 256, want=INVALID)
batch(s, *[Op(BARRIER, 0)] * 255)
call("cuStreamBatchMemOp_v2", s, C.c_uint(1), None, C.c_uint(0), want=INVALID)
call("cuStreamBatchMemOp_v2", s, C.c_uint(1), (Op * 1)(Op(BARRIER)), C.c_uint(1), want=INVALID)
write(C.c_void_p(0x1234), p, 0, want=INVALID_HANDLE)
call("cuStreamWriteValue32", s, p, C.c_uint(0), C.c_uint(0), want=NOT_SUPPORTED)
value = C.c_int()
for attribute, has in ((92, 0), (93, 0), (94, 0), (98, 0), (122, 1), (123, 1), (148, 1)):
    call("cuDeviceGetAttribute", C.byref(value), C.c_int(attribute), C.c_int(0))
    assert value.value == has, attribute
call("cuStreamSynchronize", s)
""")


def test_the_first_form_where_it_is_believed_in(simgpu):
    drive(simgpu, HELPERS + """
start()
s, (p, cell), value = stream(), word(), C.c_int()
call("cuStreamWriteValue32_ptsz", s, p, C.c_uint(3), C.c_uint(1))
call("cuStreamWaitValue32_ptsz", s, p, C.c_uint(3), C.c_uint(EQ))
call("cuStreamSynchronize", s)
assert cell.value == 3
call("cuDeviceGetAttribute", C.byref(value), C.c_int(92), C.c_int(0))
assert value.value == 1
""", DOUBT="order.memops_v1")


def test_a_word_that_is_unmapped_meanwhile_is_a_fault(simgpu):
    drive(simgpu, HELPERS + """
start()
s, (p, handle) = stream(), backed(DEVICE)
wait(s, p, 1, EQ)
call("cuStreamQuery", s, want=NOT_READY)
call("cuMemUnmap", p, GRANULE)                              # does not wait for the stream
call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
write(s, p, 1, want=ILLEGAL_ADDRESS)
""")


def test_a_context_with_a_waiting_stream_can_be_destroyed(simgpu):
    drive(simgpu, HELPERS + """
start()
context = C.c_void_p()
call("cuCtxCreate_v2", C.byref(context), C.c_uint(0), C.c_int(0))
s, (p, cell) = stream(), word()
calls = []
note = HOST_FN(lambda _: calls.append(1))
wait(s, p, 1, EQ)
call("cuLaunchHostFunc", s, note, None)
call("cuCtxDestroy_v2", context)
assert not calls, "what waited behind it never ran"
""")


def test_a_wait_is_not_earlier_than_the_write_that_ends_it(simgpu):
    drive(simgpu, HELPERS + """
start()
a, b, p, big = stream(), stream(), alloc(4096), alloc(64 * MIB)
fill(p, 0, 4096)
call("cuCtxSynchronize")
first, last, ms = event(), event(), C.c_float()
call("cuEventRecord", first, b)
wait(b, p, 1, EQ)
call("cuEventRecord", last, b)
call("cuMemsetD8Async", big, C.c_ubyte(1), 64 * MIB, a)     # 64 us at 1000 GiB/s
write(a, p, 1)
call("cuEventSynchronize", last)
call("cuEventElapsedTime", C.byref(ms), first, last)
assert abs(ms.value - 64 / 1024) < 1e-5, ms.value
""", LAUNCH="0")
