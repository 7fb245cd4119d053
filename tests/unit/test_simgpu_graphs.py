# SPDX-License-Identifier: Apache-2.0
"""Graphs of the simulated driver: nodes of every kind, topology, executables, updates, order and time."""

import pytest
from nvcc import cuda_program  # noqa: F401
from simgpu_driver import graphs, simgpu  # noqa: F401

TIMES = {"HBM": "1000000000", "LINK": "1000000000", "LAUNCH": "0"}  # a byte inside VRAM costs 1 ns read and 1 ns written


# --- nodes --------------------------------------------------------------------------------------------------------


def test_kernel_nodes_are_made_asked_and_changed(graphs):
    graphs("""
        start()
        s, g, f = stream(), graph(), function("add")
        a, b, out = alloc(4096), alloc(4096), alloc(4096)
        for p, v in ((a, 1), (b, 2), (out, 0)):
            fill(p, v, 4096)
        def params(source, step, kind=Kernel):
            return kernel_params(f, C.c_uint64(out), C.c_uint64(source), C.c_int(64), C.c_short(step), kind=kind)
        node = add("KernelNode_v2", g, C.byref(params(a, 5)))
        old = add("KernelNode", g, C.byref(params(a, 5, KernelV1)), needs=[node])
        asked = Kernel()
        call("cuGraphKernelNodeGetParams_v2", node, C.byref(asked))
        assert (asked.function, list(asked.grid), list(asked.block)) == (f.value, [1, 1, 1], [64, 1, 1])
        pointers = C.cast(asked.params, C.POINTER(C.c_void_p))
        assert [C.c_uint64.from_address(pointers[i]).value for i in (0, 1)] == [out, a]
        assert C.c_short.from_address(pointers[3]).value == 5
        asked_v1 = KernelV1()
        call("cuGraphKernelNodeGetParams", old, C.byref(asked_v1))
        assert asked_v1.function == f.value
        e = instantiate(g)
        def result():
            replay(e, s)
            return int.from_bytes(read(out, 4), "little")
        one, two = 0x01010101 + 10, 0x02020202 + 10
        assert result() == one + 5
        call("cuGraphKernelNodeSetParams_v2", old, C.byref(params(b, 7)))          # the graph's, not the executable's
        assert result() == one + 5
        call("cuGraphExecKernelNodeSetParams_v2", e, old, C.byref(params(b, 9)))
        assert result() == two + 9
        call("cuGraphExecKernelNodeSetParams", e, old, C.byref(params(b, -1, KernelV1)))
        assert result() == two - 1
        call("cuGraphExecUpdate_v2", e, g, C.byref(UpdateInfo()))
        assert result() == two + 7
        call("cuGraphExecDestroy", e)
    """)


def test_captured_nodes_are_asked_and_changed_as_added_ones(graphs):
    graphs("""
        start()
        s, f, a, out = stream(), function("add"), alloc(4096), alloc(4096)
        fill(a, 0, 4096)
        ran = []
        ours = HOST_FN(lambda _: ran.append(1))
        other = HOST_FN(lambda _: ran.append(2))
        begin(s)
        p = kernel_params(f, C.c_uint64(out), C.c_uint64(a), C.c_int(64), C.c_short(1))
        call("cuLaunchKernel", f, *[C.c_uint(n) for n in (1, 1, 1, 64, 1, 1, 0)], s, C.c_void_p(p.params), None)
        call("cuMemcpyDtoDAsync_v2", out + 1024, out, 256, s)
        call("cuMemsetD32Async", out + 2048, C.c_uint(7), 16, s)
        call("cuLaunchHostFunc", s, ours, None)
        g = end(s)
        assert kinds(g) == [KERNEL, MEMCPY, MEMSET, HOST_NODE] and edges(g) == [(0, 1), (1, 2), (2, 3)]
        k, c, m, h = nodes(g)
        asked, b, ms, hp = Kernel(), Box(), Memset(), Host()
        call("cuGraphKernelNodeGetParams_v2", k, C.byref(asked))
        call("cuGraphMemcpyNodeGetParams", c, C.byref(b))
        call("cuGraphMemsetNodeGetParams", m, C.byref(ms))
        call("cuGraphHostNodeGetParams", h, C.byref(hp))
        assert asked.function == f.value and asked.block[0] == 64
        assert (b.src_device, b.dst_device, b.width, b.src_type, b.dst_type) == (out, out + 1024, 256, 2, 2)
        assert (ms.dst, ms.value, ms.element, ms.width, ms.height) == (out + 2048, 7, 4, 16, 1)
        assert hp.function == C.cast(ours, C.c_void_p).value
        e = instantiate(g)
        b.dst_device = out + 512
        call("cuGraphExecMemcpyNodeSetParams", e, c, C.byref(b), current())
        ms.value = 9
        call("cuGraphExecMemsetNodeSetParams", e, m, C.byref(ms), current())
        hp.function = C.cast(other, C.c_void_p).value
        call("cuGraphExecHostNodeSetParams", e, h, C.byref(hp))
        fill(out, 0, 4096)
        replay(e, s)
        assert read(out + 512, 4) == (11).to_bytes(4, "little") and read(out + 1024, 4) == bytes(4)
        assert read(out + 2048, 4) == (9).to_bytes(4, "little") and ran == [2]
    """)


def test_every_kind_by_the_common_entry(graphs):
    graphs("""
        start()
        g, child, p, q, e = graph(), graph(), alloc(4096), alloc(4096), event()
        memset(child, p, 1)
        call_back = HOST_FN(lambda _: None)
        made = {}
        def node(kind, **filled):
            params, handle = Params(kind=kind), C.c_void_p()
            for name, value in filled.items():
                setattr(params, name, value)
            call("cuGraphAddNode_v2", C.byref(handle), g, None, None, 0, C.byref(params))
            made[kind] = handle
            return params
        f = function("nothing")
        node(KERNEL, kernel=kernel_params(f))
        node(MEMCPY, copy=Copy(context=current().value, box=box(q, p, 64)))
        node(MEMSET, memset=MemsetV2(p, 0, 3, 1, 64, 1, current().value))
        node(HOST_NODE, host=Host(C.cast(call_back, C.c_void_p).value, 5))
        node(CHILD, child=ChildParams(child.value, 0))
        node(EMPTY)
        node(WAIT_EVENT, event=EventParams(e.value))
        node(RECORD_EVENT, event=EventParams(e.value))
        ops = (C.c_uint64 * 6)(2 | 0 << 32, q, 77, 0, 0, 0)                       # WRITE_VALUE_32
        node(BATCH, memops=MemOps(current().value, 1, C.addressof(ops), 0))
        given = node(MEM_ALLOC, alloc=alloc_params(MIB))
        assert given.alloc.pointer
        node(MEM_FREE, free=Free(given.alloc.pointer))
        assert kinds(g) == [KERNEL, MEMCPY, MEMSET, HOST_NODE, CHILD, EMPTY, WAIT_EVENT, RECORD_EVENT, BATCH, MEM_ALLOC, MEM_FREE]
        def asked(kind):
            params = Params()
            call("cuGraphNodeGetParams", made[kind], C.byref(params))
            assert params.kind == kind
            return params
        assert asked(KERNEL).kernel.function == f.value
        assert asked(MEMCPY).copy.box.src_device == p and asked(MEMCPY).copy.context == current().value
        assert asked(MEMSET).memset.value == 3 and asked(HOST_NODE).host.data == 5
        assert asked(WAIT_EVENT).event.event == asked(RECORD_EVENT).event.event == e.value
        assert asked(BATCH).memops.count == 1
        assert asked(MEM_ALLOC).alloc.size == MIB and asked(MEM_FREE).free.pointer == given.alloc.pointer
        inner = C.c_void_p(asked(CHILD).child.graph)
        assert inner.value != child.value and kinds(inner) == [MEMSET]            # a clone
        changed = Params(kind=MEMSET, memset=MemsetV2(q, 0, 4, 1, 64, 1, current().value))
        call("cuGraphNodeSetParams", made[MEMSET], C.byref(changed))
        assert asked(MEMSET).memset.dst == q
        call("cuGraphNodeSetParams", made[EMPTY], C.byref(changed), want=INVALID)
        call("cuGraphNodeSetParams_v2", made[MEMSET], C.byref(asked(MEMSET)))    # what was asked for can be set
        call("cuGraphNodeSetParams", made[MEM_FREE], C.byref(asked(MEM_FREE)), want=NOT_SUPPORTED)
    """)


@pytest.mark.parametrize("code", [
    "add('EmptyNode', None, want=INVALID)",
    "add('EmptyNode', g, needs=[a, a], want=INVALID)",
    "add('EmptyNode', g, needs=[foreign], want=INVALID)",
    "add('EmptyNode', g, needs=[C.c_void_p(64)], want=INVALID)",
    "call('cuGraphAddEmptyNode', C.byref(C.c_void_p()), g, None, 1, want=INVALID)",
    "add('KernelNode_v2', g, None, want=INVALID)",
    "add('KernelNode_v2', g, C.byref(kernel_params(f, block=1025)), want=INVALID)",
    "add('KernelNode_v2', g, C.byref(Kernel(grid=(1, 1, 1), block=(1, 1, 1))), want=(INVALID, INVALID_HANDLE))",
    "memset(g, p + 1, 1, element=4, want=INVALID)",
    "memset(g, p, 1, width=1 << 22, want=INVALID)",
    "memset(g, 12345, 1, want=INVALID)",
    "add('MemsetNode', g, C.byref(Memset(p, 0, 1, 1, 64, 1)), C.c_void_p(64), want=INVALID_CONTEXT)",
    "memcpy(g, p, tiers + GRANULE - 64, 128, want=INVALID)",
    "memset(g, tiers + GRANULE - 64, 1, width=128, want=INVALID)",
    "add('HostNode', g, C.byref(Host()), want=INVALID)",
    "add('EventRecordNode', g, C.c_void_p(64), want=INVALID_HANDLE)",
    "add('EventWaitNode', g, None, want=INVALID_HANDLE)",
    "add('ChildGraphNode', g, g, want=INVALID)",
    "add('MemFreeNode', g, p, want=INVALID)",
    "add('MemAllocNode', g, C.byref(alloc_params(0)), want=INVALID)",
    "add('Node', g, C.byref(Params(kind=13)), want=INVALID)",
    "add('Node', g, C.byref(Params(kind=99)), want=INVALID)",
    "add('Node', g, C.byref(Params(kind=EMPTY, reserved2=1)), want=INVALID)",
    "add('Node', g, C.byref(Params(kind=EMPTY, free=Free(1))), want=INVALID)",
    "call('cuGraphAddNode_v3', C.byref(C.c_void_p()), g, None, None, 0, C.byref(foreign_kernel), want=INVALID_CONTEXT)",
    "call('cuGraphAddNode_v3', C.byref(C.c_void_p()), g, None, None, 0, None, want=INVALID)",
    "call('cuGraphMemsetNodeGetParams', a, C.byref(Memset()), want=INVALID)",
    "call('cuGraphDestroyNode', C.c_void_p(64), want=INVALID)",
])  # fmt: skip
def test_what_no_node_can_be(graphs, code):
    graphs(f"""
        start()
        g, other, p, f = graph(), graph(), alloc(4096), function("nothing")
        a, foreign = add("EmptyNode", g), add("EmptyNode", other)
        tiers, _ = backed(DEVICE, HOST_NUMA)
        here, second = current(), C.c_void_p()
        call("cuCtxCreate_v2", C.byref(second), C.c_uint(0), 0)
        call("cuCtxSetCurrent", here)
        foreign_kernel = Params(kind=KERNEL, kernel=kernel_params(f))
        foreign_kernel.kernel.context = second.value
        {code}
        assert len(nodes(g)) == 1
    """)


# --- topology -----------------------------------------------------------------------------------------------------


def test_edges(graphs):
    graphs("""
        start()
        g, f = graph(), function("nothing")
        a, b = (add("KernelNode_v2", g, C.byref(kernel_params(f))) for _ in range(2))
        c = add("EmptyNode", g, needs=[b, a])
        assert edges(g) == [(1, 2), (0, 2)]                               # in the order in which they were made
        link = lambda name, x, y, data, want=0: call(f"cuGraph{name}Dependencies_v2", g, C.byref(x), C.byref(y),
                                                     C.byref(data) if data else None, 1, want=want)
        link("Add", a, c, None, want=INVALID)                             # once
        link("Add", a, a, None, want=INVALID)
        programmatic = Edge(from_port=1, kind=1)
        link("Add", a, c, programmatic, want=INVALID)                     # between kernels only
        link("Add", a, b, Edge(to_port=1), want=INVALID)
        link("Add", a, b, Edge(reserved=(1, 0, 0, 0, 0)), want=INVALID)
        link("Add", a, b, programmatic)
        count = C.c_size_t(8)
        froms, tos = nodes_array([None] * 8), nodes_array([None] * 8)
        call("cuGraphGetEdges", g, froms, tos, C.byref(count), want=LOSSY)
        call("cuGraphNodeGetDependencies", b, froms, C.byref(count), want=LOSSY)
        data = (Edge * 8)()
        count.value = 8
        call("cuGraphNodeGetDependencies_v2", b, froms, data, C.byref(count))
        assert (count.value, froms[0], data[0].from_port, data[0].kind) == (1, a.value, 1, 1)
        link("Remove", a, b, None, want=INVALID)                          # other data: another edge
        link("Remove", a, b, programmatic)
        link("Remove", a, b, programmatic, want=INVALID)
        pair, twice = nodes_array([a, a]), nodes_array([b, b])
        call("cuGraphAddDependencies", g, pair, twice, 2, want=INVALID)   # all or none
        assert edges(g) == [(1, 2), (0, 2)]
        call("cuGraphDestroyNode", b)
        assert edges(g) == [(0, 1)] and len(nodes(g)) == 2
    """)


def test_clones_and_children(graphs):
    graphs("""
        start()
        s, g, p = stream(), graph(), alloc(4096)
        a = memset(g, p, 1)
        b = memset(g, p + 64, 2, needs=[a])
        inner = graph()
        memset(inner, p + 128, 3)
        c = add("ChildGraphNode", g, inner, needs=[b])
        call("cuGraphDestroy", inner)
        clone, found, embedded = C.c_void_p(), C.c_void_p(), C.c_void_p()
        call("cuGraphClone", C.byref(clone), g)
        call("cuGraphNodeFindInClone", C.byref(found), b, clone)
        assert found.value == nodes(clone)[1].value != b.value
        call("cuGraphNodeFindInClone", C.byref(found), b, g, want=INVALID)
        assert kinds(clone) == [MEMSET, MEMSET, CHILD] and edges(clone) == edges(g)
        call("cuGraphChildGraphNodeGetGraph", nodes(clone)[2], C.byref(embedded))
        call("cuGraphDestroy", embedded, want=INVALID)                    # the node's
        call("cuGraphMemsetNodeSetParams", nodes(embedded)[0], C.byref(Memset(p + 128, 0, 9, 1, 64, 1)))
        call("cuGraphMemsetNodeSetParams", a, C.byref(Memset(p, 0, 7, 1, 64, 1)))
        fill(p, 0, 4096)
        replay(instantiate(clone), s)
        assert [read(p + 64 * i, 1)[0] for i in range(3)] == [1, 2, 9]
        replay(instantiate(g), s)
        assert [read(p + 64 * i, 1)[0] for i in range(3)] == [7, 2, 3]
        e = instantiate(g)
        other = graph()
        memset(other, p + 128, 5)
        call("cuGraphExecChildGraphNodeSetParams", e, c, other)
        replay(e, s)
        assert read(p + 128, 1)[0] == 5
        add("EmptyNode", other)
        call("cuGraphExecChildGraphNodeSetParams", e, c, other, want=INVALID)
        call("cuGraphChildGraphNodeGetGraph", c, C.byref(embedded))
        call("cuGraphExecMemsetNodeSetParams", e, nodes(embedded)[0], C.byref(Memset(p + 128, 0, 6, 1, 64, 1)), current())
        replay(e, s)
        assert read(p + 128, 1)[0] == 6
        call("cuGraphDestroy", g)
        call("cuGraphNodeGetType", nodes(clone)[0], C.byref(C.c_int()))
        call("cuGraphNodeGetType", a, C.byref(C.c_int()), want=INVALID)   # gone with its graph
    """)


def test_a_launch_that_is_captured_becomes_a_child(graphs):
    graphs("""
        start()
        s, g, p = stream(), graph(), alloc(4096)
        memset(g, p, 4)
        e = instantiate(g)
        fill(p, 0, 64)
        begin(s)
        call("cuGraphLaunch", e, s)
        call("cuMemsetD8Async", p + 64, C.c_ubyte(5), 64, s)
        whole = end(s)
        call("cuGraphExecDestroy", e)
        assert kinds(whole) == [CHILD, MEMSET] and read(p, 1) == b"\\0"
        replay(instantiate(whole), s)
        assert (read(p, 1), read(p + 64, 1)) == (b"\\4", b"\\5")
    """)


# --- executables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build, flags, want, result, which", [
    ("a, b = add('EmptyNode', g), add('EmptyNode', g)", 0, "OK", 0, None),
    ("a, b = add('EmptyNode', g), add('EmptyNode', g); circle(a, b)", 0, "INVALID", 2, "either"),
    ("a = memset(g, p, 1)", 4, "OK", 0, None),
    ("a = memset(g, p, 1)", 5, "INVALID", 1, None),
    ("a = memset(g, p, 1)", 16, "INVALID", 1, None),
    ("a = add('HostNode', g, C.byref(Host(C.cast(nothing, C.c_void_p).value)))", 4, "NOT_SUPPORTED", 3, "a"),
    ("a = add('EmptyNode', g)", 4, "NOT_SUPPORTED", 3, "a"),
    ("a = None", 4, "INVALID", 2, None),
    ("a = None", 8, "OK", 0, None),
    ("a = None", 2, "OK", 0, None),
])  # fmt: skip
def test_instantiation(graphs, build, flags, want, result, which):
    graphs(f"""
        start()
        g, p, s, nothing = graph(), alloc(4096), stream(), HOST_FN(lambda _: None)
        def circle(a, b):
            call("cuGraphAddDependencies", g, nodes_array([a, b]), nodes_array([b, a]), 2)
        {build}
        params, e = InstantiateParams({flags}, s.value, 64, 99), C.c_void_p()
        call("cuGraphInstantiateWithParams", C.byref(e), g, C.byref(params), want={want})
        assert params.result == {result}
        bad = {which!r}
        assert bool(params.node) == bool(bad) and (bad != "a" or params.node == a.value)
        if e.value:
            flags = C.c_uint64()
            call("cuGraphExecGetFlags", e, C.byref(flags))
            assert flags.value == {flags} & ~UPLOAD
    """)


def test_nodes_are_switched_off_and_on(graphs):
    graphs("""
        start()
        s, g, p = stream(), graph(), alloc(4096)
        a = memset(g, p, 1)
        b = add("EmptyNode", g, needs=[a])
        e, on = instantiate(g), C.c_uint(9)
        call("cuGraphNodeGetEnabled", e, a, C.byref(on))
        assert on.value == 1
        call("cuGraphNodeSetEnabled", e, a, C.c_uint(0))
        call("cuGraphNodeSetEnabled", e, b, C.c_uint(0), want=INVALID)
        call("cuGraphNodeGetEnabled", e, b, C.byref(on), want=INVALID)
        fill(p, 0, 64)
        replay(e, s)
        assert read(p, 1) == b"\\0"
        call("cuGraphExecUpdate_v2", e, g, C.byref(UpdateInfo()))
        call("cuGraphNodeGetEnabled", e, a, C.byref(on))
        assert on.value == 0
        call("cuGraphNodeSetEnabled", e, a, C.c_uint(1))
        replay(e, s)
        assert read(p, 1) == b"\\1"
    """)


SUCCESS, ERROR, TOPOLOGY, TYPE, FUNCTION_CHANGED, PARAMETERS = range(6)


@pytest.mark.parametrize("first, second, result, node, source", [
    ("two(g)", "two(g)", SUCCESS, None, None),
    ("two(g)", "two(g); add('EmptyNode', g)", TOPOLOGY, None, None),
    ("a = memset(g, p, 1); b = add('EmptyNode', g, needs=[a])", "a = add('EmptyNode', g); b = add('EmptyNode', g, needs=[a])", TYPE, 0, None),
    ("add('EmptyNode', g); add('EmptyNode', g)", "a = add('EmptyNode', g); add('EmptyNode', g, needs=[a])", TOPOLOGY, None, None),
    ("a = add('EmptyNode', g); add('EmptyNode', g, needs=[a])", "add('EmptyNode', g); add('EmptyNode', g)", TOPOLOGY, 1, None),
    ("diamond(g, 'l', 'l')", "diamond(g, 'l', 'r')", TOPOLOGY, None, None),
    ("memset(g, p, 1, width=64)", "memset(g, p, 1, width=32)", PARAMETERS, 0, None),
    ("memset(g, p, 1)", "memset(g, q, 3)", SUCCESS, None, None),
    ("memset(g, p, 1)", "memset(g, ram, 1)", PARAMETERS, 0, None),
    ("memcpy(g, p, q, 64)", "memcpy(g, q, p, 32)", SUCCESS, None, None),
    ("memcpy(g, p, q, 64)", "memcpy(g, p, ram, 64)", PARAMETERS, 0, None),
    ("add('MemcpyNode', g, C.byref(box(p, q, 64)), current())", "b = box(p, q, 64); b.src_type = 4; add('MemcpyNode', g, C.byref(b), current())", PARAMETERS, 0, None),
    ("add('ChildGraphNode', g, one)", "add('ChildGraphNode', g, pair)", TOPOLOGY, None, None),
    ("add('ChildGraphNode', g, one)", "add('ChildGraphNode', g, one)", SUCCESS, None, None),
])  # fmt: skip
def test_updates_say_what_differs(graphs, first, second, result, node, source):
    graphs(f"""
        start()
        p, q = alloc(4096), alloc(4096)
        ram, _ = backed(HOST_NUMA)
        one, pair = graph(), graph()
        memset(one, p, 1); add("EmptyNode", pair); add("EmptyNode", pair)
        def two(g):
            a = memset(g, p, 1)
            add("EmptyNode", g, needs=[a])
        def diamond(g, *sides):
            l, r = add("EmptyNode", g), add("EmptyNode", g)
            bottom = [add("EmptyNode", g, needs=[dict(l=l, r=r)[side]]) for side in sides]
        g = before = graph()
        {first}
        e = instantiate(g)
        g = graph()
        {second}
        info = UpdateInfo(99, 64, 64)
        call("cuGraphExecUpdate_v2", e, g, C.byref(info), want={"OK" if result == SUCCESS else "UPDATE_FAILURE"})
        assert info.result == {result}, info.result
        place = {node!r}
        found = [n.value for n in nodes(g)]
        assert place is None or info.node == found[place], (info.node, found)
        old, bad = C.c_int(99), C.c_void_p()
        call("cuGraphExecUpdate", e, g, C.byref(bad), C.byref(old), want={"OK" if result == SUCCESS else "UPDATE_FAILURE"})
        assert old.value == {result} and (place is None or bad.value == info.node)
        call("cuGraphExecUpdate_v2", e, before, C.byref(info))            # a refused one changed nothing
    """)


def test_an_executable_is_destroyed_under_its_launch(graphs):
    graphs("""
        start()
        s, g, p, gate = stream(), graph(), alloc(4096), Gate()
        memset(g, p, 3)
        fill(p, 0, 64)
        e = instantiate(g)
        gate.close(s)
        call("cuGraphLaunch", e, s)
        call("cuGraphExecDestroy", e)
        call("cuGraphDestroy", g)
        gate.open()
        call("cuStreamSynchronize", s)
        assert read(p, 1) == b"\\3"
        call("cuGraphLaunch", e, s, want=INVALID)
    """)


def test_user_objects(graphs):
    graphs("""
        start()
        gone = []
        over = threading.Event()
        def destroyed(data):
            gone.append(data)
            over.set()
        destroy = HOST_FN(destroyed)
        def made(count=1):
            o = C.c_void_p()
            over.clear()
            call("cuUserObjectCreate", C.byref(o), C.c_void_p(7), destroy, C.c_uint(count), C.c_uint(1))
            return o
        def ends():
            assert over.wait(20)
        call("cuUserObjectCreate", C.byref(C.c_void_p()), None, destroy, C.c_uint(1), C.c_uint(0), want=INVALID)
        call("cuUserObjectCreate", C.byref(C.c_void_p()), None, destroy, C.c_uint(0), C.c_uint(1), want=INVALID)
        o = made(2)
        call("cuUserObjectRelease", o, C.c_uint(3), want=INVALID)
        call("cuUserObjectRelease", o, C.c_uint(1)); call("cuUserObjectRetain", o, C.c_uint(2))
        call("cuUserObjectRelease", o, C.c_uint(2))
        assert not gone
        call("cuUserObjectRelease", o, C.c_uint(1)); ends()
        call("cuUserObjectRelease", o, C.c_uint(1), want=INVALID)
        s, g, gate = stream(), graph(), Gate()
        add("EmptyNode", g)
        o = made()
        call("cuGraphRetainUserObject", g, o, C.c_uint(1), C.c_uint(1))   # moved: the caller has none left
        call("cuUserObjectRelease", o, C.c_uint(1), want=INVALID)
        e, clone = instantiate(g), C.c_void_p()
        call("cuGraphClone", C.byref(clone), g)
        gate.close(s)
        call("cuGraphLaunch", e, s)
        call("cuGraphDestroy", g); call("cuGraphDestroy", clone); call("cuGraphExecDestroy", e)
        assert gone == [7]                                                # the launch still runs
        gate.open(); call("cuStreamSynchronize", s); ends()
        assert gone == [7, 7]
        g, o = graph(), made()
        call("cuGraphRetainUserObject", g, o, C.c_uint(2), C.c_uint(0))
        call("cuGraphReleaseUserObject", g, o, C.c_uint(3), want=INVALID)
        call("cuGraphReleaseUserObject", g, o, C.c_uint(2))
        call("cuUserObjectRelease", o, C.c_uint(1)); ends()
    """)


def test_a_graph_is_printed(graphs, tmp_path):
    graphs(f"""
        start()
        g, p = graph(), alloc(4096)
        memset(g, p, 1, needs=[add("EmptyNode", g)])
        call("cuGraphDebugDotPrint", g, {str(tmp_path / "g.dot")!r}.encode(), C.c_uint(0))
        call("cuGraphDebugDotPrint", g, b"/nowhere/g.dot", C.c_uint(0), want=304)
        call("cuGraphDebugDotPrint", g, None, C.c_uint(0), want=INVALID)
    """)
    text = (tmp_path / "g.dot").read_text()
    assert text.startswith("digraph") and "EMPTY" in text and "MEMSET" in text and text.count("->") == 1


# --- order and time -----------------------------------------------------------------------------------------------


def test_a_launch_lasts_as_long_as_its_longest_path(graphs):
    graphs("""
        start()
        p, q, s, a, b = alloc(4 * MIB), alloc(4 * MIB), stream(), event(), event()
        def lasts(build):
            g = graph()
            build(g)
            e, ms = instantiate(g), C.c_float()
            call("cuEventRecord", a, s)
            call("cuGraphLaunch", e, s)
            call("cuEventRecord", b, s)
            call("cuStreamSynchronize", s)
            call("cuEventElapsedTime", C.byref(ms), a, b)
            return round(ms.value * 1e6)
        def chain(g):
            memset(g, q, 1, 2000, needs=[memset(g, p, 1, 1000)])
        def apart(g):
            memset(g, p, 1, 1000), memset(g, q, 1, 2000)
        def joined(g):
            last = memset(g, p, 1, 500, needs=[memset(g, p, 1, 1000), memset(g, q, 1, 2000)])
        def nested(g):
            child = graph()
            apart(child)
            c = add("ChildGraphNode", g, child, needs=[memset(g, p, 1, 100)])
            memset(g, p, 1, 30, needs=[c]), memset(g, p, 1, 2500)
        found = [lasts(build) for build in (chain, apart, joined, nested)]
        assert found == [3000, 2000, 2500, 2500], found
    """, **TIMES)  # fmt: skip


def test_launches_of_one_executable_wait_for_each_other(graphs):
    graphs("""
        start()
        p, s, t, gate = alloc(4096), stream(), stream(), Gate()
        g, other = graph(), graph()
        memset(g, p, 1); memset(other, p + 64, 1)
        e, free = instantiate(g), instantiate(other)
        fill(p, 0, 4096)
        gate.close(s)
        call("cuGraphLaunch", e, s)
        call("cuGraphLaunch", free, t)
        call("cuStreamSynchronize", t)                                    # another executable does not wait
        assert read(p + 64, 1) == b"\\1"
        call("cuGraphLaunch", e, t)
        call("cuStreamQuery", t, want=NOT_READY)
        gate.open()
        call("cuStreamSynchronize", t)
        assert read(p, 1) == b"\\1"
    """)


def test_event_nodes_act_on_events(graphs):
    graphs("""
        start()
        p, s, t, gate = alloc(4096), stream(), stream(), Gate()
        first, go, done, last = event(), event(), event(), event()
        g = graph()
        wait = add("EventWaitNode", g, go)
        work = memset(g, p, 1, 1000, needs=[wait])
        mark = add("EventRecordNode", g, done, needs=[work])
        memset(g, p, 2, 3000, needs=[mark])
        found = C.c_void_p()
        call("cuGraphEventWaitNodeGetEvent", wait, C.byref(found))
        assert found.value == go.value
        e, ms = instantiate(g), C.c_float()
        gate.close(t)
        call("cuMemsetD8Async", p + 8192 - 8192, C.c_ubyte(9), 500, t)
        call("cuEventRecord", go, t)
        call("cuEventRecord", first, s)
        call("cuGraphLaunch", e, s)
        call("cuEventRecord", last, s)
        call("cuEventQuery", done, want=NOT_READY)
        gate.open()
        call("cuEventSynchronize", done)
        call("cuStreamSynchronize", s)
        call("cuEventElapsedTime", C.byref(ms), done, last)
        assert round(ms.value * 1e6) == 3000
        call("cuEventElapsedTime", C.byref(ms), go, done)
        assert round(ms.value * 1e6) == 1000
        fresh = event()
        call("cuGraphExecEventRecordNodeSetEvent", e, mark, fresh)
        call("cuEventQuery", fresh)
        replay(e, s)
        call("cuEventElapsedTime", C.byref(ms), done, fresh)
        assert ms.value > 0
        call("cuEventDestroy_v2", fresh)
        call("cuGraphLaunch", e, s, want=INVALID_HANDLE)
    """, **TIMES)  # fmt: skip


def test_an_event_of_a_failed_launch_holds_nobody_up(graphs):
    graphs("""
        start()
        base, _ = backed(DEVICE)
        s, t, done, g = stream(), stream(), event(), graph()
        bad = memset(g, base, 1)
        add("EventRecordNode", g, done, needs=[bad])
        e = instantiate(g)
        unmap(base, GRANULE)
        call("cuGraphLaunch", e, s)
        call("cuStreamWaitEvent", t, done, C.c_uint(0), want=(OK, ILLEGAL_ADDRESS))  # the launch may have failed by now
        call("cuStreamSynchronize", t, want=ILLEGAL_ADDRESS)
    """)
