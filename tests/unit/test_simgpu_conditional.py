# SPDX-License-Identifier: Apache-2.0
"""Conditional nodes, with kernels that set their handles: which bodies run, how often, and what such graphs may not be."""

import subprocess
from pathlib import Path

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (fixture)

INCLUDE = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "include"
SOURCE = """
#include "simk.h"
__global__ void count(unsigned long long *log, unsigned long long step) { *log += step; }
SIM_KERNEL(count, unsigned long long *, unsigned long long);
__global__ void choose(unsigned long long handle, unsigned long long value) { cudaGraphSetConditional(handle, (unsigned)value); }
SIM_KERNEL(choose, unsigned long long, unsigned long long);
/* While there is something left, one less; the handle says whether there still is. */
__global__ void less(unsigned long long *left, unsigned long long handle) { cudaGraphSetConditional(handle, --*left != 0); }
SIM_KERNEL(less, unsigned long long *, unsigned long long);
"""
PTX = ".version 8.0\n.target sm_90\n.address_size 64\n" + "".join(
    f".visible .entry {name}(.param .u64 a, .param .u64 b)\n{{\n\tret;\n}}\n" for name in ("count", "choose", "less")
)
CLIENT = f"""
from simgpu_graphs import *
IF, WHILE, SWITCH = 0, 1, 2
ASSIGN = 1
start()
module = C.c_void_p()
call("cuModuleLoadData", C.byref(module), {PTX!r}.encode() + b"\\0")
log, s = alloc(64), stream()

class Conditional(C.Structure):
    _fields_ = fields(handle=C.c_uint64, kind=C.c_int, size=C.c_uint, bodies=C.POINTER(C.c_void_p), context=C.c_void_p)

def kernel(g, name, a, b, needs=()):
    f = C.c_void_p()
    call("cuModuleGetFunction", C.byref(f), module, name.encode())
    p = kernel_params(f, C.c_uint64(a), C.c_uint64(b), block=1)
    return add("KernelNode_v2", g, C.byref(p), needs=needs)

def handle(g, default=0, flags=ASSIGN, want=OK, context=None):
    h = C.c_uint64()
    call("cuGraphConditionalHandleCreate", C.byref(h), g, context, C.c_uint(default), C.c_uint(flags), want=want)
    return h.value

def conditional(g, h, kind, size=1, needs=(), want=OK, context=None):
    node, p = C.c_void_p(), Params(kind=13)
    own = Conditional(h, kind, size, None, context)
    C.memmove(C.byref(p, 16), C.byref(own), C.sizeof(own))
    call("cuGraphAddNode_v2", C.byref(node), g, nodes_array(needs) if needs else None, None, len(needs), C.byref(p), want=want)
    if want == OK:
        C.memmove(C.byref(own), C.byref(p, 16), C.sizeof(own))
        node.bodies = [C.c_void_p(own.bodies[i]) for i in range(size)]
    return node

def logged():
    return int.from_bytes(read(log, 8), "little")

def run(e):
    fill(log, 0, 64)
    replay(e, s)
    return logged()
"""


@pytest.fixture(scope="module")
def companion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    (folder / "k.c").write_text(SOURCE)
    command = ["gcc", "-std=gnu11", "-O1", "-fPIC", "-shared", f"-I{INCLUDE}", folder / "k.c", "-o", folder / "k.so", "-lm"]
    subprocess.run(command, check=True)
    return folder / "k.so"


@pytest.fixture
def graphs(simgpu, companion):
    def run(code, **settings):
        return drive(simgpu, CLIENT + code, KERNELS=str(companion), **settings)

    return run


def test_if_and_else(graphs):
    graphs(
        """
for bodies, chosen, expected in ((1, 1, 1), (1, 0, 0), (2, 5, 1), (2, 0, 10)):
    g = graph()
    h = handle(g, default=1 - bool(chosen))
    first = kernel(g, "choose", h, chosen)
    node = conditional(g, h, IF, bodies, needs=[first])
    for step, body in zip((1, 10), node.bodies):
        kernel(body, "count", log, step)
    kernel(g, "count", log, 100, needs=[node])
    e = instantiate(g)
    assert [run(e), run(e)] == [100 + expected] * 2, (bodies, chosen)
"""
    )


def test_switch(graphs):
    graphs(
        """
for chosen, expected in ((0, 1), (2, 100), (3, 0), (1 << 31, 0)):
    g = graph()
    h = handle(g, default=chosen)
    node = conditional(g, h, SWITCH, 3)
    for step, body in zip((1, 10, 100), node.bodies):
        kernel(body, "count", log, step)
        assert call("cuGraphDestroy", body, want=INVALID)
    assert run(instantiate(g)) == expected, chosen
"""
    )


def test_while_with_another_inside(graphs):
    graphs(
        """
g = graph()
turns, inner = log + 8, log + 16
h, odd = handle(g, default=1), handle(g, default=1)
loop = conditional(g, h, WHILE)
count = kernel(loop.bodies[0], "count", log, 1)
once = conditional(loop.bodies[0], odd, IF, needs=[count])
one = kernel(once.bodies[0], "count", log, 1000)
kernel(once.bodies[0], "choose", odd, 0, needs=[one])     # the default comes with the launch, not with the turn
kernel(loop.bodies[0], "less", turns, h, needs=[once])
e = instantiate(g)
for n in (1, 7):
    fill(log, 0, 64)
    write(turns, n.to_bytes(8, "little"))
    replay(e, s)
    assert logged() == 1000 + n
call("cuGraphExecDestroy", e)
call("cuGraphDestroy", g)
"""
    )


def test_without_a_default_the_value_stays(graphs):
    graphs(
        """
g = graph()
h = handle(g, default=1, flags=0)
node = conditional(g, h, IF)
one = kernel(node.bodies[0], "count", log, 1)
e = instantiate(g)
assert run(e) == 0
f = C.c_void_p()
call("cuModuleGetFunction", C.byref(f), module, b"choose")
call("cuLaunchKernel", f, *[C.c_uint(1)] * 6, C.c_uint(0), s, pointers(h, 1), None)
assert run(e) == 1 and run(e) == 1
"""
    )


def test_capture(graphs):
    graphs(
        """
begin(s, mode=2)
state, ident, g, deps, count = C.c_int(), C.c_uint64(), C.c_void_p(), C.POINTER(C.c_void_p)(), C.c_size_t()
f = C.c_void_p()
call("cuModuleGetFunction", C.byref(f), module, b"count")
call("cuLaunchKernel", f, *[C.c_uint(1)] * 6, C.c_uint(0), s, pointers(log, 1), None)
call("cuStreamGetCaptureInfo_v2", s, C.byref(state), C.byref(ident), C.byref(g), C.byref(deps), C.byref(count))
h = handle(g, default=1)
node = conditional(g, h, WHILE, needs=[C.c_void_p(deps[i]) for i in range(count.value)])
call("cuStreamUpdateCaptureDependencies", s, nodes_array([node]), 1, C.c_uint(1))
t = stream()
call("cuStreamBeginCaptureToGraph", t, node.bodies[0], None, None, 0, C.c_int(2))
call("cuLaunchKernel", f, *[C.c_uint(1)] * 6, C.c_uint(0), t, pointers(log, 10), None)
less = C.c_void_p()
call("cuModuleGetFunction", C.byref(less), module, b"less")
call("cuLaunchKernel", less, *[C.c_uint(1)] * 6, C.c_uint(0), t, pointers(log + 8, h), None)
body = end(t)
assert body.value == node.bodies[0].value
call("cuLaunchKernel", f, *[C.c_uint(1)] * 6, C.c_uint(0), s, pointers(log, 1000), None)
e = instantiate(end(s))
fill(log, 0, 64)
write(log + 8, (3).to_bytes(8, "little"))
replay(e, s)
assert logged() == 1031
"""
    )


def test_what_such_a_graph_may_not(graphs):
    graphs(
        """
g, out = graph(), C.c_void_p()
h = handle(g)
for kind, size in ((WHILE, 2), (WHILE, 0), (IF, 3), (IF, 0), (SWITCH, 0), (3, 1)):
    conditional(g, h, kind, size, want=INVALID)
conditional(g, h + 1000, IF, want=INVALID)
conditional(graph(), h, IF, want=INVALID)           # the handle is another graph's
handle(g, flags=2, want=INVALID)
handle(None, want=INVALID)
handle(g, context=C.c_void_p(8), want=INVALID)
p = InstantiateParams()
call("cuGraphInstantiateWithParams", C.byref(out), g, C.byref(p), want=INVALID)
assert p.result == 5                                # the handle is not used
node = conditional(g, h, IF)
conditional(g, h, IF, want=INVALID)                 # it is, by now
call("cuGraphClone", C.byref(out), g, want=INVALID)
call("cuGraphClone", C.byref(out), node.bodies[0])  # nothing conditional in that one
outer = graph()
add("ChildGraphNode", outer, g, want=INVALID)
add("ChildGraphNode", outer, node.bodies[0], want=INVALID)
instantiate(node.bodies[0], want=INVALID)
e = instantiate(g)
instantiate(g, want=INVALID)                        # one at a time
call("cuGraphExecDestroy", e)
e = instantiate(g)
params = Params()
call("cuGraphNodeGetParams", node, C.byref(params))
assert params.kind == 13
call("cuGraphNodeSetParams", node, C.byref(params), want=NOT_SUPPORTED)
call("cuGraphExecNodeSetParams", e, node, C.byref(params), want=NOT_SUPPORTED)
begin(s, mode=2)
call("cuGraphLaunch", e, s, want=NOT_SUPPORTED)     # into a capture: it would be a child
end(s)
call("cuGraphExecDestroy", e)
call("cuGraphDebugDotPrint", g, b"/dev/null", C.c_uint(0))
noop = HOST_FN(lambda _: None)
add("HostNode", node.bodies[0], C.byref(Host(C.cast(noop, C.c_void_p))))
instantiate(g, want=INVALID)                        # no host functions in bodies
call("cuGraphDestroyNode", nodes(node.bodies[0])[0])
add("MemAllocNode", node.bodies[0], C.byref(alloc_params(MIB)), want=INVALID)
call("cuGraphDestroyNode", node)
conditional(g, h, SWITCH, 2)                        # its handle is free again
instantiate(g)
"""
    )


def test_a_strange_handle_ends_the_kernel(graphs):
    graphs(
        """
f = C.c_void_p()
call("cuModuleGetFunction", C.byref(f), module, b"choose")
call("cuLaunchKernel", f, *[C.c_uint(1)] * 6, C.c_uint(0), s, pointers(12345678, 1), None)
call("cuStreamSynchronize", s, want=LAUNCH_FAILED)
"""
    )


UPDATE = """
def made(default, step, bodies=1):
    g = graph()
    h = handle(g, default=default)
    node = conditional(g, h, IF, bodies)
    body = kernel(node.bodies[0], "count", log, step)
    return g, body

(g, body), (other, _), (wide, _) = made(1, 1), made(0, 5), made(1, 1, bodies=2)
e, info = instantiate(g), UpdateInfo()
"""


def test_update(graphs):
    graphs(
        UPDATE
        + """
assert run(e) == 1
f = C.c_void_p()
call("cuModuleGetFunction", C.byref(f), module, b"count")
call("cuGraphExecKernelNodeSetParams_v2", e, body, C.byref(kernel_params(f, C.c_uint64(log), C.c_uint64(3), block=1)))
assert run(e) == 3
call("cuGraphExecUpdate_v2", e, other, C.byref(info))
assert run(e) == 0                                  # the default of the other graph
call("cuGraphExecUpdate_v2", e, wide, C.byref(info), want=UPDATE_FAILURE)
again, _ = made(1, 9)
call("cuGraphExecUpdate_v2", e, again, C.byref(info))
call("cuGraphDestroy", again)
assert run(e) == 9
"""
    )


def test_update_may_be_refused(graphs):
    graphs(
        UPDATE + 'call("cuGraphExecUpdate_v2", e, other, C.byref(info), want=UPDATE_FAILURE)\nassert info.result == 5 and run(e) == 1',
        DOUBT="graph.condition_update",
    )
