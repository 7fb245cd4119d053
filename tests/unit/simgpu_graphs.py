# SPDX-License-Identifier: Apache-2.0
"""What programs of the graph and capture tests say (`from simgpu_graphs import *`): the client, and graphs of the driver API.

Goes with tests/programs/plain_kernels.c, whose kernels PTX declares.
"""

from simgpu_client import *  # noqa: F403
from simgpu_client import DEVICE, GRANULE, C, call, create, grant, map_at, unmap

KERNEL, MEMCPY, MEMSET, HOST_NODE, CHILD, EMPTY, WAIT_EVENT, RECORD_EVENT = range(8)
MEM_ALLOC, MEM_FREE, BATCH = 10, 11, 12
AUTO_FREE, UPLOAD, DEVICE_LAUNCH, NODE_PRIORITY = 1, 2, 4, 8
LOSSY = 402

PTX = b"""
.version 8.0
.target sm_75
.address_size 64
.visible .global .align 4 .u32 offset_by = 10;
.visible .entry add( .param .u64 out, .param .u64 in, .param .u32 n, .param .u16 step ) { ret; }
.visible .entry nothing() { ret; }
"""


def current():
    context = C.c_void_p()
    call("cuCtxGetCurrent", C.byref(context))
    return context


def fields(**kinds):
    return list(kinds.items())


class KernelV1(C.Structure):
    _fields_ = fields(function=C.c_void_p, grid=C.c_uint * 3, block=C.c_uint * 3, shared=C.c_uint, params=C.c_void_p, extra=C.c_void_p)


class Kernel(C.Structure):
    _fields_ = KernelV1._fields_ + fields(kernel=C.c_void_p, context=C.c_void_p)


class Memset(C.Structure):
    _fields_ = fields(dst=C.c_uint64, pitch=C.c_size_t, value=C.c_uint, element=C.c_uint, width=C.c_size_t, height=C.c_size_t)


class MemsetV2(C.Structure):
    _fields_ = Memset._fields_ + fields(context=C.c_void_p)


class Box(C.Structure):
    """CUDA_MEMCPY3D."""

    _fields_ = [
        (side + name, kind)
        for side in ("src_", "dst_")
        for name, kind in fields(
            x=C.c_size_t, y=C.c_size_t, z=C.c_size_t, lod=C.c_size_t, type=C.c_int, host=C.c_void_p, device=C.c_uint64,
            array=C.c_void_p, reserved=C.c_void_p, pitch=C.c_size_t, rows=C.c_size_t)
    ] + fields(width=C.c_size_t, height=C.c_size_t, depth=C.c_size_t)


class Copy(C.Structure):
    _fields_ = fields(flags=C.c_int, reserved=C.c_int, context=C.c_void_p, box=Box)


class Host(C.Structure):
    _fields_ = fields(function=C.c_void_p, data=C.c_void_p)


class ChildParams(C.Structure):
    _fields_ = fields(graph=C.c_void_p, ownership=C.c_int)


class EventParams(C.Structure):
    _fields_ = fields(event=C.c_void_p, context=C.c_void_p)


class PoolProps(C.Structure):
    _fields_ = fields(kind=C.c_int, handles=C.c_int, where=C.c_int, ident=C.c_int, security=C.c_void_p, most=C.c_size_t,
                      usage=C.c_ushort, reserved=C.c_ubyte * 54)


class Alloc(C.Structure):
    _fields_ = fields(props=PoolProps, access=C.c_void_p, accesses=C.c_size_t, size=C.c_size_t, pointer=C.c_uint64)


class Free(C.Structure):
    _fields_ = fields(pointer=C.c_uint64)


class MemOps(C.Structure):
    _fields_ = fields(context=C.c_void_p, count=C.c_uint, ops=C.c_void_p, flags=C.c_uint)


class _Any(C.Union):
    _fields_ = fields(raw=C.c_longlong * 29, kernel=Kernel, copy=Copy, memset=MemsetV2, host=Host, child=ChildParams,
                      event=EventParams, alloc=Alloc, free=Free, memops=MemOps)


class Params(C.Structure):
    """CUgraphNodeParams."""

    _anonymous_ = ("any",)
    _fields_ = fields(kind=C.c_int, reserved0=C.c_int * 3, any=_Any, reserved2=C.c_longlong)


class Edge(C.Structure):
    _fields_ = fields(from_port=C.c_ubyte, to_port=C.c_ubyte, kind=C.c_ubyte, reserved=C.c_ubyte * 5)


class UpdateInfo(C.Structure):
    _fields_ = fields(result=C.c_int, node=C.c_void_p, source=C.c_void_p)


class InstantiateParams(C.Structure):
    _fields_ = fields(flags=C.c_uint64, stream=C.c_void_p, node=C.c_void_p, result=C.c_int)


def box(dst, src, size, rows=1):
    """A copy between device addresses."""
    b = Box(width=size, height=rows, depth=1)
    b.src_type = b.dst_type = 2
    b.src_device, b.dst_device = src, dst
    b.src_pitch = b.dst_pitch = size
    b.src_rows = b.dst_rows = rows
    return b


def alloc_params(size):
    p = Alloc(size=size)
    p.props.kind, p.props.where = 1, 1
    return p


def graph():
    g = C.c_void_p()
    call("cuGraphCreate", C.byref(g), C.c_uint(0))
    return g


def nodes_array(nodes):
    return (C.c_void_p * max(1, len(nodes)))(*[n.value if isinstance(n, C.c_void_p) else n for n in nodes])


def add(entry, g, *params, needs=(), want=0):
    """cuGraphAdd<entry>Node; the node's handle."""
    node = C.c_void_p()
    call(f"cuGraphAdd{entry}", C.byref(node), g, nodes_array(needs) if needs else None, len(needs), *params, want=want)
    return node


def memset(g, pointer, value, width=64, element=1, needs=(), want=0, context=None):
    return add("MemsetNode", g, C.byref(Memset(pointer, 0, value, element, width, 1)), context or current(), needs=needs, want=want)


def memcpy(g, dst, src, size, needs=(), want=0):
    return add("MemcpyNode", g, C.byref(box(dst, src, size)), current(), needs=needs, want=want)


def instantiate(g, flags=0, want=0):
    e = C.c_void_p()
    call("cuGraphInstantiateWithFlags", C.byref(e), g, flags, want=want)
    return e


def replay(e, s, want=0):
    if call("cuGraphLaunch", e, s, want=want) == 0:
        call("cuStreamSynchronize", s)


def nodes(g):
    count = C.c_size_t()
    call("cuGraphGetNodes", g, None, C.byref(count))
    found = nodes_array([None] * count.value)
    call("cuGraphGetNodes", g, found, C.byref(count))
    return [C.c_void_p(found[i]) for i in range(count.value)]


def kinds(g):
    found = []
    for n in nodes(g):
        kind = C.c_int()
        call("cuGraphNodeGetType", n, C.byref(kind))
        found.append(kind.value)
    return found


def edges(g):
    """[(from, to)] as places in nodes(g)."""
    places = {n.value: i for i, n in enumerate(nodes(g))}
    count = C.c_size_t(64)
    a, b, data = nodes_array([None] * 64), nodes_array([None] * 64), (Edge * 64)()
    call("cuGraphGetEdges_v2", g, a, b, data, C.byref(count))
    return [(places[a[i]], places[b[i]]) for i in range(count.value)]


def begin(s, mode=0, want=0):
    call("cuStreamBeginCapture_v2", s, C.c_int(mode), want=want)


def end(s, want=0):
    g = C.c_void_p()
    call("cuStreamEndCapture", s, C.byref(g), want=want)
    return g


def status(s):
    found = C.c_int()
    call("cuStreamIsCapturing", s, C.byref(found))
    return found.value


def function(name):
    module, found = C.c_void_p(), C.c_void_p()
    call("cuModuleLoadData", C.byref(module), PTX + b"\0")
    call("cuModuleGetFunction", C.byref(found), module, name.encode())
    return found


def kernel_params(f, *values, grid=1, block=64, kind=Kernel):
    array = (C.c_void_p * max(1, len(values)))(*[C.addressof(v) for v in values])
    p = kind(function=f.value, grid=(grid, 1, 1), block=(block, 1, 1), params=C.addressof(array))
    p.keep = (array, values)
    return p


def moved(base, kind=DEVICE):
    """Other memory under the address of a chunk: unmapped, mapped anew from another handle, opened."""
    handle = create(GRANULE, kind)
    unmap(base, GRANULE)
    map_at(base, GRANULE, handle)
    grant(base, GRANULE, DEVICE)
    return handle


def graph_memory(which):
    value = C.c_uint64()
    call("cuDeviceGetGraphMemAttribute", 0, C.c_int(("used", "used_high", "reserved", "reserved_high").index(which)), C.byref(value))
    return value.value
