# SPDX-License-Identifier: Apache-2.0
"""Memory nodes of the simulated driver's graphs, and what remapping the operands of copy nodes means."""

import pytest
from nvcc import cuda_program  # noqa: F401
from simgpu_driver import graphs, simgpu  # noqa: F401


# --- memory nodes -------------------------------------------------------------------------------------------------


def test_memory_exists_from_launch_to_free(graphs):
    graphs("""
        start()
        s, g, q = stream(), graph(), alloc(4096)
        params = alloc_params(3 * MIB)
        a = add("MemAllocNode", g, C.byref(params))
        p = params.pointer
        copy = memcpy(g, q, p, 64, needs=[memset(g, p, 6, needs=[a])])
        f = add("MemFreeNode", g, p, needs=[copy])
        assert p and used() == GRANULE and graph_memory("reserved") == 0  # q alone
        add("MemFreeNode", g, p, needs=[copy], want=INVALID)              # once
        add("MemFreeNode", graph(), p, want=INVALID)
        call("cuMemFreeAsync", p, s, want=INVALID)
        call("cuMemFree_v2", p, want=INVALID)
        call("cuGraphDestroyNode", copy, want=INVALID)
        call("cuGraphRemoveDependencies", g, C.byref(a), C.byref(nodes(g)[1]), 1, want=INVALID)
        call("cuGraphClone", C.byref(C.c_void_p()), g, want=INVALID)
        add("ChildGraphNode", graph(), g, want=INVALID)
        e = instantiate(g)
        instantiate(g, want=INVALID)                                      # one at a time
        for _ in range(3):
            replay(e, s)
        assert read(q, 1) == b"\\6" and used() == 3 * GRANULE
        assert [graph_memory(w) for w in ("used", "used_high", "reserved", "reserved_high")] == [2 * GRANULE] * 4
        call("cuGraphExecDestroy", e)
        assert (graph_memory("used"), graph_memory("reserved")) == (0, 2 * GRANULE)
        call("cuDeviceGraphMemTrim", 0)
        assert (graph_memory("reserved"), used()) == (0, GRANULE)
        call("cuDeviceSetGraphMemAttribute", 0, C.c_int(1), C.byref(C.c_uint64(0)))
        call("cuDeviceSetGraphMemAttribute", 0, C.c_int(1), C.byref(C.c_uint64(1)), want=INVALID)
        call("cuDeviceSetGraphMemAttribute", 0, C.c_int(0), C.byref(C.c_uint64(0)), want=INVALID)
        assert graph_memory("used_high") == 0
        replay(instantiate(g), s)                                         # the graph is still there
        assert graph_memory("reserved") == 2 * GRANULE
        read(p, 1, want=ILLEGAL_ADDRESS)
    """)


@pytest.mark.parametrize("release", ["call('cuMemFreeAsync', p, s)", "call('cuMemFree_v2', p)", "replay(other, s)"])
def test_memory_that_a_graph_leaves_behind(graphs, release):
    graphs(f"""
        start()
        s, g, freeing, other = stream(), graph(), graph(), None
        params = alloc_params(MIB)
        add("MemAllocNode", g, C.byref(params))
        p = params.pointer
        call("cuMemFreeAsync", p, s, want=INVALID)                        # not allocated yet
        if "other" in {release!r}:
            add("MemFreeNode", freeing, p)
            add("MemFreeNode", g, p, want=INVALID)                        # either graph, not both
            other = instantiate(freeing)
            replay(other, s, want=INVALID)
        e = instantiate(g)
        for _ in range(2):
            replay(e, s)
            fill(p, 4, MIB)
            assert read(p + MIB - 1, 1) == b"\\4"
            call("cuGraphLaunch", e, s, want=INVALID)                     # still allocated
            {release}
            assert graph_memory("reserved") == GRANULE
        call("cuMemFreeAsync", p, s, want=INVALID)
        call("cuStreamSynchronize", s)
        fill(p, 1, 16, want=(OK, INVALID), wait=False)                    # at the call, or as a fault
        call("cuCtxSynchronize", want=ILLEGAL_ADDRESS)
    """)


def test_auto_free_and_what_outlives_the_executable(graphs):
    graphs("""
        start()
        s, g = stream(), graph()
        params = alloc_params(MIB)
        add("MemAllocNode", g, C.byref(params))
        p = params.pointer
        e = instantiate(g, AUTO_FREE)
        for _ in range(3):
            replay(e, s)
        call("cuGraphExecDestroy", e)
        call("cuGraphDestroy", g)
        call("cuDeviceGraphMemTrim", 0)                                   # not what is allocated
        fill(p, 3, MIB)
        assert read(p, 1) == b"\\3" and graph_memory("reserved") == GRANULE
        call("cuMemFreeAsync", p, s)
        call("cuStreamSynchronize", s)
        call("cuDeviceGraphMemTrim", 0)
        assert used() == 0
        call("cuMemFreeAsync", p, s, want=INVALID)
    """)


@pytest.mark.parametrize("entry", ["cuGraphLaunch", "cuGraphUpload"])
def test_a_launch_or_an_upload_runs_out_of_memory(graphs, entry):
    graphs(f"""
        start()
        s, g = stream(), graph()
        params = alloc_params(700 * MIB)
        a = add("MemAllocNode", g, C.byref(params))
        add("MemFreeNode", g, params.pointer, needs=[a])
        e, hog = instantiate(g), alloc(700 * MIB)
        call("{entry}", e, s, want=OOM)
        free(hog)
        call("{entry}", e, s)
        assert graph_memory("used") == 700 * MIB
        alloc(700 * MIB, want=OOM)                                        # graphs keep it
        call("cuStreamSynchronize", s)
        call("cuDeviceGraphMemTrim", 0)
        free(alloc(700 * MIB))
        replay(e, s)                                                      # takes it again
    """, vram="1G")  # fmt: skip


def test_moved_children_may_hold_memory_nodes(graphs):
    graphs("""
        start()
        s, g, child, q = stream(), graph(), graph(), alloc(4096)
        params = alloc_params(MIB)
        a = add("MemAllocNode", child, C.byref(params))
        m = memset(child, params.pointer, 8, needs=[a])
        c = memcpy(child, q, params.pointer, 64, needs=[m])
        add("MemFreeNode", child, params.pointer, needs=[c])
        node, p = C.c_void_p(), Params(kind=CHILD, child=ChildParams(child.value, 1))
        call("cuGraphAddNode_v2", C.byref(node), g, None, None, 0, C.byref(p))
        call("cuGraphDestroy", child, want=INVALID)
        instantiate(child, want=INVALID)
        add("ChildGraphNode", graph(), child, want=INVALID)
        add("MemAllocNode", child, C.byref(alloc_params(MIB)), want=INVALID)
        e = instantiate(g)
        instantiate(g, want=INVALID)
        replay(e, s)
        assert read(q, 1) == b"\\10"
        call("cuGraphDestroy", g)
        call("cuGraphGetNodes", child, None, C.byref(C.c_size_t()), want=INVALID)
    """)


# --- remapped operands --------------------------------------------------------------------------------------------

REMAP = """
    start()
    base, (old,) = backed(DEVICE)
    p, s, g = alloc(GRANULE), stream(), graph()
    copy = memcpy(g, p, base, 4096)
    zero = memset(g, base + 8192, 3)
    e, info = instantiate(g), UpdateInfo()
    replay(e, s)
    def answers():
        given = [box(p, base, 4096), Memset(base + 8192, 0, 3, 1, 64, 1)]
        return [call("cuGraphExecMemcpyNodeSetParams", e, copy, C.byref(given[0]), current(), want=(OK, INVALID)),
                call("cuGraphExecMemsetNodeSetParams", e, zero, C.byref(given[1]), current(), want=(OK, INVALID)),
                call("cuGraphExecUpdate_v2", e, g, C.byref(info), want=(OK, UPDATE_FAILURE))]
    refused, taken = [INVALID, INVALID, UPDATE_FAILURE], [OK, OK, OK]
"""


@pytest.mark.parametrize("doubt, in_vram, in_ram", [("0", "refused", "refused"), ("1", "taken", "refused"), ("2", "taken", "taken")])
def test_parameters_of_copy_nodes_after_a_remap(graphs, doubt, in_vram, in_ram):
    graphs(f"""{REMAP}
    assert answers() == taken
    moved(base)
    assert answers() == {in_vram} and (answers() == taken or info.result == 5)
    fresh = instantiate(g)                                                # as it is mapped now
    call("cuGraphExecMemcpyNodeSetParams", fresh, copy, C.byref(box(p, base, 4096)), current())
    moved(base, HOST_NUMA)
    assert answers() == {in_ram}
    """, DOUBT=f"graph.set_params_after_remap={doubt}")  # fmt: skip


def test_copy_nodes_work_on_what_is_mapped_when_they_run(graphs):
    graphs(f"""{REMAP}
    moved(base)
    fill(base, 7, GRANULE)
    replay(e, s)
    assert (read(p, 1), read(base + 8192, 1), read(base + 8192 + 64, 1)) == (b"\\7", b"\\3", b"\\7")
    unmap(base, GRANULE)
    call("cuGraphLaunch", e, s)
    call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
    call("cuCtxSynchronize", want=ILLEGAL_ADDRESS)                        # sticky
    """)


def test_copy_nodes_before_access_is_granted_again(graphs):
    graphs(f"""{REMAP}
    handle = create(GRANULE)
    unmap(base, GRANULE)
    map_at(base, GRANULE, handle)
    call("cuGraphLaunch", e, s)
    call("cuStreamSynchronize", s, want=ILLEGAL_ADDRESS)
    """)


def test_a_driver_that_refuses_launches_after_a_remap(graphs):
    graphs(f"""{REMAP}
    moved(base)
    call("cuGraphLaunch", e, s, want=INVALID)
    replay(instantiate(g), s)
    """, DOUBT="graph.copy_nodes_keep_addresses")  # fmt: skip


@pytest.mark.parametrize("doubt, want", [("0", "INVALID"), ("1", "OK")])
def test_the_size_of_a_memset_node(graphs, doubt, want):
    graphs(f"""
        start()
        s, g, p = stream(), graph(), alloc(4096)
        node = memset(g, p, 1, 64)
        e = instantiate(g)
        call("cuGraphExecMemsetNodeSetParams", e, node, C.byref(Memset(p, 0, 2, 4, 32, 1)), current(), want={want})
        call("cuGraphExecMemsetNodeSetParams", e, node, C.byref(Memset(p, 64, 2, 1, 64, 2)), current(), want=INVALID)
    """, DOUBT=f"graph.memset_size_fixed={doubt}")  # fmt: skip


@pytest.mark.parametrize("code", [
    "call('cuGraphExecMemcpyNodeSetParams', e, copy, C.byref(box(p, base, 64, rows=2)), current(), want=INVALID)",
    "call('cuGraphExecMemcpyNodeSetParams', e, zero, C.byref(box(p, base, 64)), current(), want=INVALID)",
    "call('cuGraphExecMemcpyNodeSetParams', e, copy, C.byref(box(p, p + GRANULE - 32, 64)), current(), want=INVALID)",
    "call('cuGraphExecMemcpyNodeSetParams', e, copy, C.byref(box(p, both + GRANULE - 32, 64)), current(), want=INVALID)",
    "call('cuGraphExecMemsetNodeSetParams', e, zero, C.byref(Memset(both + GRANULE - 32, 0, 3, 1, 64, 1)), current(), want=INVALID)",
    "call('cuGraphDestroyNode', copy); call('cuGraphExecMemcpyNodeSetParams', e, copy, C.byref(box(p, base, 64)), current(), want=INVALID)",
    "call('cuGraphExecMemcpyNodeSetParams', e, C.c_void_p(8), C.byref(box(p, base, 64)), current(), want=INVALID)",
    "call('cuGraphExecHostNodeSetParams', e, copy, C.byref(Host()), want=INVALID)",
])  # fmt: skip
def test_parameters_that_an_executable_refuses(graphs, code):
    graphs(f"""{REMAP}
    both, _ = backed(DEVICE, HOST_NUMA)
    {code}
    replay(e, s)
    """)
