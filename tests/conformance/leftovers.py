# SPDX-License-Identifier: Apache-2.0
"""Gives back what a test leaves behind, so that hundreds of tests share one context. Called by worker.py.

Rule: what a test made and did not end itself is ended, newest first, after its work has finished. Nothing is ended twice: a
real driver need not survive a stale handle.
"""

import ctypes as C

import cudaclient

# entry: (kind, index of the argument that holds what it made)
_MAKERS = {
    "cuMemAlloc_v2": ("memory", 0), "cuMemAllocPitch_v2": ("memory", 0), "cuMemAllocManaged": ("memory", 0),
    "cuMemAllocAsync": ("memory", 0), "cuMemAllocFromPoolAsync": ("memory", 0),
    "cuMemHostAlloc": ("host", 0), "cuMemAllocHost_v2": ("host", 0), "cuMemHostRegister_v2": ("registered", 0),
    "cuMemCreate": ("handle", 0), "cuMemRetainAllocationHandle": ("handle", 0), "cuMemImportFromShareableHandle": ("handle", 0),
    "cuMemAddressReserve": ("reservation", 0), "cuMemMap": ("mapping", 0),
    "cuStreamCreate": ("stream", 0), "cuStreamCreateWithPriority": ("stream", 0), "cuEventCreate": ("event", 0),
    "cuGraphCreate": ("graph", 0), "cuStreamEndCapture": ("graph", 1), "cuGraphClone": ("graph", 0),
    "cuGraphInstantiateWithFlags": ("exec", 0), "cuGraphInstantiate_v2": ("exec", 0), "cuGraphInstantiateWithParams": ("exec", 0),
    "cuModuleLoadData": ("module", 0), "cuModuleLoadDataEx": ("module", 0), "cuLibraryLoadData": ("library", 0),
    "cuMemPoolCreate": ("pool", 0), "cuArrayCreate_v2": ("array", 0), "cuArray3DCreate_v2": ("array", 0),
    "cuCtxCreate_v4": ("context", 0), "cuCtxCreate_v2": ("context", 0), "cuDevicePrimaryCtxRetain": ("primary", 1),
}  # fmt: skip
# kind: the entry that ends one
_ENDERS = {
    "memory": "cuMemFree_v2", "host": "cuMemFreeHost", "registered": "cuMemHostUnregister", "handle": "cuMemRelease",
    "reservation": "cuMemAddressFree", "mapping": "cuMemUnmap", "stream": "cuStreamDestroy_v2", "event": "cuEventDestroy_v2",
    "graph": "cuGraphDestroy", "exec": "cuGraphExecDestroy", "module": "cuModuleUnload", "library": "cuLibraryUnload",
    "pool": "cuMemPoolDestroy", "array": "cuArrayDestroy", "context": "cuCtxDestroy_v2", "primary": "cuDevicePrimaryCtxRelease_v2",
}  # fmt: skip
_KINDS = {**{entry: kind for kind, entry in _ENDERS.items()}, "cuMemFreeAsync": "memory"}
_SIZED = ("mapping", "reservation")  # they end by address and size


def _number(argument):
    """The number in an argument: an int, a ctypes value, a reference to one; None for anything else."""
    argument = getattr(argument, "_obj", argument)
    return getattr(argument, "value", argument)


class Leftovers:
    def __init__(self):
        self.kept = []  # (kind, number, size or 0), oldest first

    def watch(self, name, arguments):
        if name in _MAKERS:
            kind, index = _MAKERS[name]
            number = _number(arguments[index])
            if number is not None:
                self.kept.append((kind, number, arguments[1] if kind in _SIZED else 0))
        elif name in _KINDS:
            self._ended(_KINDS[name], _number(arguments[0]), arguments[1] if name == "cuMemUnmap" else 1)

    def _ended(self, kind, number, size):
        """A range of mappings may end at once; of anything else, the newest with that number."""
        inside = [entry for entry in self.kept if entry[0] == kind and number is not None and number <= entry[1] < number + size]
        for entry in inside if kind == "mapping" else inside[-1:]:
            self.kept.remove(entry)

    def clear(self, context):
        """Ends what is left. Returns the CUresult of the context's last synchronise: not 0 says that it is broken."""
        call = cudaclient.cu
        for gate in cudaclient.gates:
            gate.open()
        cudaclient.gates.clear()
        call.cuCtxSetCurrent(context)
        call.cuThreadExchangeStreamCaptureMode(C.byref(C.c_int(cudaclient.GLOBAL)))
        for kind, number, _ in self.kept:
            status, graph = C.c_int(), C.c_void_p()
            if kind == "stream" and not call.cuStreamIsCapturing(C.c_void_p(number), C.byref(status)) and status.value:
                if call.cuStreamEndCapture(C.c_void_p(number), C.byref(graph)) == 0:
                    call.cuGraphDestroy(graph)
        call.cuCtxSynchronize()
        while self.kept:
            kind, number, size = self.kept.pop()
            getattr(call, _ENDERS[kind])(C.c_uint64(number), *([C.c_uint64(size)] if kind in _SIZED else []))
        return call.cuCtxSynchronize()
