# SPDX-License-Identifier: Apache-2.0
"""Graphs, captured and explicit: replay, update, and what a graph knows of memory that was remapped meanwhile."""

import pytest
from conform import belief, own_process, pick, saw
from cudaclient import *  # noqa: F403


class MemsetParams(C.Structure):
    _fields_ = [("dst", C.c_uint64), ("pitch", C.c_size_t), ("value", C.c_uint), ("element", C.c_uint),
                ("width", C.c_size_t), ("height", C.c_size_t)]  # fmt: skip


class KernelParams(C.Structure):
    _fields_ = [("function", C.c_void_p), ("grid", C.c_uint * 3), ("block", C.c_uint * 3), ("shared", C.c_uint),
                ("params", C.c_void_p), ("extra", C.c_void_p), ("kernel", C.c_void_p), ("context", C.c_void_p)]  # fmt: skip


class HostParams(C.Structure):
    _fields_ = [("function", C.c_void_p), ("data", C.c_void_p)]


class Box(C.Structure):
    """CUDA_MEMCPY3D for linear memory."""

    _fields_ = [
        (side + name, kind)
        for side in ("src_", "dst_")
        for name, kind in (("x", C.c_size_t), ("y", C.c_size_t), ("z", C.c_size_t), ("lod", C.c_size_t), ("type", C.c_int),
                           ("host", C.c_void_p), ("device", C.c_uint64), ("array", C.c_void_p), ("reserved", C.c_void_p),
                           ("pitch", C.c_size_t), ("rows", C.c_size_t))
    ] + [("width", C.c_size_t), ("height", C.c_size_t), ("depth", C.c_size_t)]  # fmt: skip


class UpdateInfo(C.Structure):
    _fields_ = [("result", C.c_int), ("node", C.c_void_p), ("from_node", C.c_void_p)]


def current():
    context = C.c_void_p()
    call("cuCtxGetCurrent", C.byref(context))
    return context


def captured(s, work):
    graph = C.c_void_p()
    call("cuStreamBeginCapture_v2", s, C.c_int(RELAXED))
    work()
    call("cuStreamEndCapture", s, C.byref(graph))
    return graph


def instantiate(graph, want=OK):
    exe = C.c_void_p()
    call("cuGraphInstantiateWithFlags", C.byref(exe), graph, 0, want=want)
    return exe


def replay(exe, s):
    call("cuGraphLaunch", exe, s)
    call("cuStreamSynchronize", s)


def new_graph():
    graph = C.c_void_p()
    call("cuGraphCreate", C.byref(graph), C.c_uint(0))
    return graph


def memset_node(graph, pointer, value, after=None, want=OK):
    node = C.c_void_p()
    params = MemsetParams(pointer, 0, value, 1, 64, 1)
    call("cuGraphAddMemsetNode", C.byref(node), graph, C.byref(after) if after else None, 1 if after else 0, C.byref(params), current(),
         want=want)  # fmt: skip
    return node


def copy_box(target, source, size):
    return Box(src_type=DEVICE_SIDE, src_device=source, src_pitch=size, src_rows=1, dst_type=DEVICE_SIDE, dst_device=target, dst_pitch=size,
               dst_rows=1, width=size, height=1, depth=1)  # fmt: skip


DEVICE_SIDE = 2
TOPOLOGY_CHANGED = 2  # CUgraphExecUpdateResult


# --- captured -----------------------------------------------------------------------------------------------------


def test_a_captured_sequence_replays():
    p, q, s, calls = alloc(MIB), alloc(MIB), stream(), []
    note = HOST_FN(lambda _: calls.append(1))

    def work():
        call("cuMemsetD8Async", p, C.c_ubyte(7), MIB, s)
        call("cuMemcpyDtoDAsync_v2", q, p, MIB, s)
        call("cuLaunchHostFunc", s, note, None)

    exe = instantiate(captured(s, work))
    assert not calls
    for n in range(1, 4):
        fill(q, 0, MIB)
        replay(exe, s)
        assert read(q, 4) == bytes([7]) * 4 and len(calls) == n


def test_a_kernel_replays_with_the_parameters_of_its_capture():
    p, s = alloc(MIB), stream()
    scatter(p, MIB, 1)
    call("cuCtxSynchronize")
    exe = instantiate(captured(s, lambda: launch(kernel("xp_add"), p, MIB // 8, 2, stream=s)))
    for _ in range(3):
        replay(exe, s)
    assert scattered(p, MIB, 1, add=6)


def test_a_graph_outlives_what_it_was_made_of():
    p, s = alloc(4096), stream()
    graph = captured(s, lambda: call("cuMemsetD8Async", p, C.c_ubyte(5), 4096, s))
    exe = instantiate(graph)
    call("cuGraphDestroy", graph)
    other = stream()
    replay(exe, other)
    assert read(p, 1) == b"\x05"


@belief("graph.exec_serializes")
def test_launches_of_one_graph_follow_each_other():
    p, s, t = alloc(4096), stream(), stream()
    fill(p, 0, 4096)
    exe = instantiate(captured(s, lambda: launch(kernel("xp_add"), p, 512, 1, stream=s)))
    gate = Gate().close(s)
    call("cuGraphLaunch", exe, s)
    call("cuGraphLaunch", exe, t)
    waited, _ = waits(lambda: call("cuStreamSynchronize", t), gate)
    call("cuCtxSynchronize")
    pick("graph.exec_serializes", (waited, int.from_bytes(read(p, 8), "little")), (True, 2))


# --- explicit -----------------------------------------------------------------------------------------------------


def test_nodes_run_in_the_order_of_their_edges():
    p, s, graph = alloc(4096), stream(), new_graph()
    first = memset_node(graph, p, 1)
    second = memset_node(graph, p, 2, after=first)
    memset_node(graph, p, 3, after=second)
    replay(instantiate(graph), s)
    assert read(p, 64) == bytes([3]) * 64


def test_every_kind_of_node():
    p, q, s, graph, calls = alloc(4096), alloc(4096), stream(), new_graph(), []
    first = memset_node(graph, p, 1)
    copy, launched, host, empty = (C.c_void_p() for _ in range(4))
    call("cuGraphAddMemcpyNode", C.byref(copy), graph, C.byref(first), 1, C.byref(copy_box(q, p, 64)), current())
    values = pointers(q, 8, 1)
    params = KernelParams(kernel("xp_add"), (1, 1, 1), (32, 1, 1), 0, C.cast(values, C.c_void_p), None, None, None)
    call("cuGraphAddKernelNode_v2", C.byref(launched), graph, C.byref(copy), 1, C.byref(params))
    note = HOST_FN(lambda _: calls.append(1))
    call("cuGraphAddHostNode", C.byref(host), graph, C.byref(launched), 1, C.byref(HostParams(C.cast(note, C.c_void_p), None)))
    call("cuGraphAddEmptyNode", C.byref(empty), graph, C.byref(host), 1)
    replay(instantiate(graph), s)
    assert read(q, 9) == bytes([2] + [1] * 7 + [2]) and calls == [1]
    kinds = []
    for node in (first, copy, launched, host, empty):
        kind = C.c_int()
        call("cuGraphNodeGetType", node, C.byref(kind))
        kinds.append(kind.value)
    assert kinds == [2, 1, 0, 3, 5]


@belief("graph.params_stay")
def test_a_kernels_parameters_stay_in_place():
    """As ggml does it for each token: ask once, then write through those pointers and set them, again and again."""
    graph, node, s = new_graph(), C.c_void_p(), stream()
    targets = [alloc(64) for _ in range(4)]
    for target in targets:
        write(target, bytes(64))
    values = pointers(targets[0], 8, 1)
    params = KernelParams(kernel("xp_add"), (1, 1, 1), (32, 1, 1), 0, C.cast(values, C.c_void_p), None, None, None)
    call("cuGraphAddKernelNode_v2", C.byref(node), graph, None, 0, C.byref(params))
    asked, again = KernelParams(), KernelParams()
    call("cuGraphKernelNodeGetParams_v2", node, C.byref(asked))
    first = C.cast(asked.params, C.POINTER(C.POINTER(C.c_uint64)))[0]
    for target in targets:
        first[0] = target
        call("cuGraphKernelNodeSetParams_v2", node, C.byref(asked))
        call("cuGraphKernelNodeGetParams_v2", node, C.byref(again))
        assert again.params == asked.params and first[0] == target
        replay(instantiate(graph), s)
    assert [read(target, 9) for target in targets] == [bytes([1] + [0] * 7 + [1])] * 4
    saw("graph.params_stay", 0, "where they were, with each value that was set")


def test_a_clone_stands_alone():
    graph, clone, p, s = new_graph(), C.c_void_p(), alloc(4096), stream()
    node = memset_node(graph, p, 1)
    call("cuGraphClone", C.byref(clone), graph)
    call("cuGraphMemsetNodeSetParams", node, C.byref(MemsetParams(p, 0, 9, 1, 64, 1)))
    replay(instantiate(clone), s)
    assert read(p, 1) == b"\x01"
    replay(instantiate(graph), s)
    assert read(p, 1) == b"\x09"


def test_edges_are_told():
    graph, p = new_graph(), alloc(4096)
    first = memset_node(graph, p, 1)
    second = memset_node(graph, p, 2, after=first)
    count, found = C.c_size_t(1), (C.c_void_p * 1)()
    call("cuGraphNodeGetDependencies", second, found, C.byref(count))
    assert (count.value, found[0]) == (1, first.value)
    roots = (C.c_void_p * 2)()
    count = C.c_size_t(2)
    call("cuGraphGetRootNodes", graph, roots, C.byref(count))
    assert (count.value, roots[0]) == (1, first.value)


def test_a_circle_is_no_graph():
    graph, p = new_graph(), alloc(4096)
    first = memset_node(graph, p, 1)
    second = memset_node(graph, p, 2, after=first)
    added = call("cuGraphAddDependencies", graph, C.byref(second), C.byref(first), 1, want=ANY)
    assert added == INVALID or call("cuGraphInstantiateWithFlags", C.byref(C.c_void_p()), graph, 0, want=ANY) == INVALID


def test_node_parameters_are_answered():
    graph, p = new_graph(), alloc(4096)
    node, kept = memset_node(graph, p, 7), MemsetParams()
    call("cuGraphMemsetNodeGetParams", node, C.byref(kept))
    assert (kept.dst, kept.value, kept.width) == (p, 7, 64)


def test_nodes_of_an_executable_graph_change():
    graph, p, s = new_graph(), alloc(4096), stream()
    node = memset_node(graph, p, 1)
    exe = instantiate(graph)
    call("cuGraphExecMemsetNodeSetParams", exe, node, C.byref(MemsetParams(p, 0, 4, 1, 64, 1)), current())
    replay(exe, s)
    assert read(p, 1) == b"\x04"


@belief("graph.memset_size_fixed")
def test_a_memset_node_gets_another_width():
    graph, p = new_graph(), alloc(4096)
    node = memset_node(graph, p, 1)
    exe = instantiate(graph)
    narrow = MemsetParams(p, 0, 4, 1, 32, 1)
    result = call("cuGraphExecMemsetNodeSetParams", exe, node, C.byref(narrow), current(), want=ANY)
    pick("graph.memset_size_fixed", result, INVALID, OK)


@belief("graph.update_pairing")
def test_update_takes_the_same_shape_only():
    p, s, info = alloc(4096), stream(), UpdateInfo()
    graphs = []
    for value, more in ((1, 0), (2, 0), (3, 1)):
        graph = new_graph()
        node = memset_node(graph, p, value)
        if more:
            memset_node(graph, p, value, after=node)
        graphs.append(graph)
    exe = instantiate(graphs[0])
    call("cuGraphExecUpdate_v2", exe, graphs[1], C.byref(info))
    replay(exe, s)
    assert read(p, 1) == b"\x02"
    failed = call("cuGraphExecUpdate_v2", exe, graphs[2], C.byref(info), want=ANY)
    pick("graph.update_pairing", (failed, info.result), (UPDATE_FAILURE, TOPOLOGY_CHANGED))


def test_a_node_that_goes_takes_its_edges_along():
    graph, p, count = new_graph(), alloc(4096), C.c_size_t()
    first = memset_node(graph, p, 1)
    memset_node(graph, p, 2, after=first)
    call("cuGraphDestroyNode", first)
    call("cuGraphGetNodes", graph, None, C.byref(count))
    edges = C.c_size_t()
    name = "cuGraphGetEdges_v2" if version() >= 13000 else "cuGraphGetEdges"
    call(name, graph, None, None, *([None] if name.endswith("_v2") else []), C.byref(edges))
    assert (count.value, edges.value) == (1, 0)


@pytest.mark.parametrize("bad", ["operand", "null"])
def test_nodes_that_cannot_be(bad):
    graph = new_graph()
    if bad == "operand":
        memset_node(graph, 12345, 1, want=INVALID)
    else:
        call("cuGraphAddMemsetNode", C.byref(C.c_void_p()), graph, None, 0, None, current(), want=INVALID)


# --- remapped memory ----------------------------------------------------------------------------------------------


def moved(base, old, kind=DEVICE):
    """The chunk at `base` gets other memory with the same bytes, as a migration does."""
    alias, fresh = reserve(GRANULE), create(GRANULE, kind)
    both = [DEVICE] if kind == DEVICE else [DEVICE, kind]
    map_at(alias, GRANULE, fresh)
    grant(alias, GRANULE, *both)
    call("cuMemcpyDtoD_v2", alias, base, GRANULE)
    call("cuCtxSynchronize")
    unmap(base, GRANULE)
    release(old)
    map_at(base, GRANULE, fresh)
    grant(base, GRANULE, *both)
    return fresh


@belief("graph.kernel_nodes_replay_after_remap")
@own_process
def test_kernel_nodes_after_a_remap():
    start()
    base, (old,) = backed(DEVICE)
    s = stream()
    scatter(base, GRANULE, 1)
    call("cuCtxSynchronize")
    exe = instantiate(captured(s, lambda: launch(kernel("xp_add"), base, GRANULE // 8, 2, stream=s)))
    replay(exe, s)
    moved(base, old)
    replay(exe, s)
    kept = scattered(base, GRANULE, 1, add=4)
    saw("graph.kernel_nodes_replay_after_remap", 0 if kept else None, "every word as expected" if kept else "words differ")
    assert kept


@belief("graph.copy_nodes_keep_addresses")
@own_process
def test_copy_nodes_after_a_remap():
    """Operands that were remapped: the driver may refuse the launch, but not take other bytes."""
    start()
    base, (old,) = backed(DEVICE)
    p, s = alloc(GRANULE), stream()
    fill(base, 1, GRANULE)

    def work():
        call("cuMemcpyDtoDAsync_v2", p, base, GRANULE, s)
        call("cuMemsetD8Async", base + 4096, C.c_ubyte(9), 4096, s)

    exe = instantiate(captured(s, work))
    moved(base, old)
    fill(base, 2, GRANULE)
    codes = [call("cuGraphLaunch", exe, s, want=ANY), call("cuStreamSynchronize", s, want=ANY)]
    seen = (read(p, 1), read(base + 4096, 1)) if codes == [OK, OK] else codes
    pick("graph.copy_nodes_keep_addresses", seen, (b"\x02", b"\x09"), [INVALID, OK])


@belief("graph.set_params_after_remap")
def test_parameters_of_copy_nodes_after_a_remap():
    base, (old,) = backed(DEVICE)
    p, graph, s = alloc(GRANULE), new_graph(), stream()
    copy, info = C.c_void_p(), UpdateInfo()
    box, memset = copy_box(p, base, 4096), MemsetParams(base, 0, 3, 1, 64, 1)
    call("cuGraphAddMemcpyNode", C.byref(copy), graph, None, 0, C.byref(box), current())
    node = memset_node(graph, base, 3)
    exe = instantiate(graph)
    replay(exe, s)

    def again():
        return [
            call("cuGraphExecMemcpyNodeSetParams", exe, copy, C.byref(box), current(), want=ANY),
            call("cuGraphExecMemsetNodeSetParams", exe, node, C.byref(memset), current(), want=ANY),
            call("cuGraphExecUpdate_v2", exe, graph, C.byref(info), want=ANY),
        ]

    refused, taken = [INVALID, INVALID, UPDATE_FAILURE], [OK, OK, OK]
    handle = moved(base, old)
    seen = [again()]
    host = host_kind()
    if host is not None:
        moved(base, handle, host)
        seen.append(again())
    ways = ([refused, refused], [taken, refused], [taken, taken])
    branch = next((index for index, way in enumerate(ways) if way[: len(seen)] == seen), None)
    saw("graph.set_params_after_remap", branch, f"memcpy, memset, update after a move in VRAM, to RAM: {seen}")


def test_stream_ordered_memory_in_a_graph():
    s, p, q = stream(), C.c_uint64(), alloc(MIB)

    def work():
        call("cuMemAllocAsync", C.byref(p), MIB, s)
        call("cuMemsetD8Async", p.value, C.c_ubyte(5), MIB, s)
        call("cuMemcpyDtoDAsync_v2", q, p.value, MIB, s)
        call("cuMemFreeAsync", p.value, s)

    exe = instantiate(captured(s, work))
    for _ in range(2):
        fill(q, 0, MIB)
        replay(exe, s)
        assert read(q, 2) == bytes([5, 5])


@belief("graph.memory_lifetime")
def test_memory_of_a_graph_that_nobody_freed():
    s, p = stream(), C.c_uint64()

    def work():
        call("cuMemAllocAsync", C.byref(p), MIB, s)
        call("cuMemsetD8Async", p.value, C.c_ubyte(5), MIB, s)

    exe = instantiate(captured(s, work))
    replay(exe, s)
    kept = read(p.value, 1)
    second = call("cuGraphLaunch", exe, s, want=ANY)
    call("cuMemFreeAsync", p.value, s)
    replay(exe, s)
    call("cuMemFreeAsync", p.value, s)
    pick("graph.memory_lifetime", (kept, second), (b"\x05", INVALID))


@pytest.mark.parametrize("name", ["cuGraphDestroy", "cuGraphExecDestroy"])
def test_destroying_nothing(name):
    call(name, None, want=(INVALID, INVALID_HANDLE))


def test_capturing_into_a_graph_that_is_there():
    p, s, graph, out = alloc(4096), stream(), new_graph(), C.c_void_p()
    first = memset_node(graph, p, 1)
    if version() < 12030:
        pytest.skip("cuStreamBeginCaptureToGraph came with 12.3")
    call("cuStreamBeginCaptureToGraph", s, graph, C.byref(first), None, 1, C.c_int(RELAXED))
    call("cuMemsetD8Async", p, C.c_ubyte(2), 64, s)
    assert cu.cuStreamEndCapture(s, C.byref(out)) == OK and out.value == graph.value
    replay(instantiate(graph), s)
    assert read(p, 1) == b"\x02"
