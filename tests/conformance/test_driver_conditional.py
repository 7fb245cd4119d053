# SPDX-License-Identifier: Apache-2.0
"""Conditional nodes as far as no kernel has to set their handles: what the defaults choose, and what such graphs may not be."""

from conform import belief, entry, pick, saw
from cudaclient import *  # noqa: F403
from test_driver_graph import MemsetParams, UpdateInfo, current, instantiate, replay

IF, WHILE, SWITCH = 0, 1, 2
CONDITIONAL, ASSIGN_DEFAULT = 13, 1
HANDLE_UNUSED = 5


class Node(C.Structure):
    """CUgraphNodeParams of a conditional node."""

    _fields_ = [("kind", C.c_int), ("reserved0", C.c_int * 3), ("handle", C.c_uint64), ("type", C.c_int), ("size", C.c_uint),
                ("bodies", C.POINTER(C.c_void_p)), ("context", C.c_void_p), ("rest", C.c_ubyte * 200), ("reserved2", C.c_longlong)]  # fmt: skip


class InstantiateParams(C.Structure):
    _fields_ = [("flags", C.c_uint64), ("stream", C.c_void_p), ("node", C.c_void_p), ("result", C.c_int)]


def graph():
    entry("cuGraphConditionalHandleCreate")
    made = C.c_void_p()
    call("cuGraphCreate", C.byref(made), C.c_uint(0))
    return made


def handle(g, default):
    made = C.c_uint64()
    call("cuGraphConditionalHandleCreate", C.byref(made), g, current(), C.c_uint(default), C.c_uint(ASSIGN_DEFAULT))
    return made.value


def conditional(g, h, kind, size=1, want=OK):
    node, p = C.c_void_p(), Node(CONDITIONAL, handle=h, type=kind, size=size, context=current())
    assert C.sizeof(p) == 256
    got = call("cuGraphAddNode", C.byref(node), g, None, 0, C.byref(p), want=want)
    return node, [C.c_void_p(p.bodies[i]) for i in range(size)] if got == OK else []


def memset(g, p, value):
    node = C.c_void_p()
    call("cuGraphAddMemsetNode", C.byref(node), g, None, 0, C.byref(MemsetParams(p, 0, value, 1, 16, 1)), current())


def choice(p, kind, default, size):
    """A graph whose n-th body sets p to n + 1."""
    g = graph()
    _, bodies = conditional(g, handle(g, default), kind, size)
    for index, body in enumerate(bodies):
        memset(body, p, index + 1)
    return g


@belief("graph.conditional_runs")
def test_defaults_choose_the_body():
    p, s, got = alloc(MIB), stream(), []
    cases = [(IF, 1, 1), (IF, 0, 1), (SWITCH, 2, 3), (SWITCH, 0, 3), (SWITCH, 3, 3), (WHILE, 0, 1)]
    for kind, default, size in cases:
        exe = instantiate(choice(p, kind, default, size))
        for _ in range(2):
            fill(p, 0, 16)
            replay(exe, s)
            got.append(read(p, 1)[0])
        call("cuGraphExecDestroy", exe)
    expected = [1, 0, 3, 1, 0, 0]
    pick("graph.conditional_runs", got, [value for value in expected for _ in range(2)])


@belief("graph.conditional_rules")
def test_what_such_a_graph_may_not():
    g, out, params = graph(), C.c_void_p(), InstantiateParams()
    h = handle(g, 0)
    got = {"unused": (call("cuGraphInstantiateWithParams", C.byref(out), g, C.byref(params), want=ANY) != OK, params.result)}
    for name, kind, size in (("while with two", WHILE, 2), ("if with three", IF, 3), ("switch without", SWITCH, 0)):
        got[name] = bool(conditional(g, h, kind, size, want=ANY)[1])
    assert conditional(g, h, IF)[1]
    got["handle twice"] = bool(conditional(g, h, IF, want=ANY)[1])
    got["clone"] = call("cuGraphClone", C.byref(out), g, want=ANY) == OK
    outer, node = graph(), C.c_void_p()
    got["child"] = call("cuGraphAddChildGraphNode", C.byref(node), outer, None, 0, g, want=ANY) == OK
    exe = instantiate(g)
    got["second instantiation"] = call("cuGraphInstantiateWithFlags", C.byref(out), g, 0, want=ANY) == OK
    call("cuGraphExecDestroy", exe)
    call("cuGraphExecDestroy", instantiate(g))
    expected = dict.fromkeys(got, False) | {"unused": (True, HANDLE_UNUSED)}
    pick("graph.conditional_rules", got, expected)


@belief("graph.condition_update")
def test_update_with_another_graphs_handle():
    p, s, info = alloc(MIB), stream(), UpdateInfo()
    exe = instantiate(choice(p, IF, 0, 1))
    got = call("cuGraphExecUpdate_v2", exe, choice(p, IF, 1, 1), C.byref(info), want=(OK, UPDATE_FAILURE))
    fill(p, 0, 16)
    replay(exe, s)
    seen = got, read(p, 1)[0]
    saw("graph.condition_update", {(OK, 1): 0, (UPDATE_FAILURE, 0): 1}.get(seen), seen)
