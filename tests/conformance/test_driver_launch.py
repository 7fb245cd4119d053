# SPDX-License-Identifier: Apache-2.0
"""Code and launches: images, handles, parameters, limits, faults of kernels, occupancy."""

import struct

import pytest
from conform import belief, entry, lacks, own_process, pick, saw
from cudaclient import *  # noqa: F403

NOT_AN_IMAGE, BAD_PTX = 200, 218
PTX = b".version 6.0\n.target sm_60\n.address_size 64\n"
BOUNDED_PTX = PTX + b".visible .entry bounded() .maxntid 64, 1, 1 { ret; }\n\0"
GLOBAL_PTX = PTX + b".visible .global .align 8 .u64 counter = 5;\n.visible .entry nothing() { ret; }\n\0"
BROKEN_PTX = PTX + b".visible .entry broken( .param .u64 \0"


class Pair(C.Structure):
    """struct pair_of_pointers of tests/gpu/params.h."""

    _fields_ = [("first", C.c_uint64), ("second", C.c_uint64), ("count", C.c_uint64)]


def mixed_values():
    """The values of par_mixed, where its sum goes, and the sum."""
    a, b, out = alloc(8), alloc(8), alloc(8)
    write(a, struct.pack("<Q", 1000))
    write(b, struct.pack("<Q", 200))
    values = [C.c_ubyte(3), Pair(a, b, 7), C.c_ushort(50), C.c_uint64(out), C.c_int(-9)]
    return values, out, 1000 + 200 + 7 + 3 + 50 - 9


def number(pointer):
    call("cuCtxSynchronize")
    return int.from_bytes(read(pointer, 8), "little")


def library():
    handle = C.c_void_p()
    with open(os.path.join(os.environ["CONFORMANCE_KERNELS"], "params.ptx"), "rb") as text:
        call("cuLibraryLoadData", C.byref(handle), text.read() + b"\0", None, None, C.c_uint(0), None, None, C.c_uint(0))
    return handle


def of_library(lib, name):
    kernel = C.c_void_p()
    call("cuLibraryGetKernel", C.byref(kernel), lib, name)
    return kernel


def test_parameters_of_every_kind():
    values, out, total = mixed_values()
    launch(kernel("par_mixed", "params"), *values, grid=1, block=1)
    assert number(out) == total


@belief("launch.parameters_copied")
def test_parameters_are_copied_by_the_call():
    values, out, total = mixed_values()
    s = stream()
    gate = Gate().close(s)
    launch(kernel("par_mixed", "params"), *values, grid=1, block=1, stream=s)
    values[0].value = 99
    values[1].count = 10_000
    gate.open()
    first = number(out) == total
    values[0].value, values[1].count = 3, 7
    as_function = launch(of_library(library(), b"par_mixed"), *values, grid=1, block=1, want=ANY)
    pick("launch.parameters_copied", (first, as_function, number(out) == total), (True, OK, True))


@belief("launch.extra_buffer")
def test_a_packed_buffer_of_parameters():
    values, out, total = mixed_values()
    pair = values[1]
    packed = struct.pack("<B7x3QH6xQi", 3, pair.first, pair.second, pair.count, 50, out, -9)
    buffer, size = C.create_string_buffer(packed, len(packed)), C.c_size_t(len(packed))
    extra = (C.c_void_p * 5)(1, C.addressof(buffer), 2, C.addressof(size), 0)
    shape = [C.c_uint(n) for n in (1, 1, 1, 1, 1, 1, 0)]
    result = call("cuLaunchKernel", kernel("par_mixed", "params"), *shape, None, None, extra, want=ANY)
    pick("launch.extra_buffer", (result, number(out)), (OK, total))


LAYOUT = [(0, 1), (8, 24), (32, 2), (40, 8), (48, 4)]


def layout(name, function):
    params, offset, size = [], C.c_size_t(), C.c_size_t()
    while (got := call(name, function, len(params), C.byref(offset), C.byref(size), want=ANY)) == OK and len(params) < 99:
        params.append((offset.value, size.value))
    return params, got


@belief("code.param_info", "code.param_info_end")
def test_parameters_are_described():
    if version() < 12040:
        lacks("cuFuncGetParamInfo came with 12.4")
    of_function, end = layout("cuFuncGetParamInfo", kernel("par_mixed", "params"))
    of_kernel, end_too = layout("cuKernelGetParamInfo", of_library(library(), b"par_mixed"))
    pick("code.param_info", (of_function, of_kernel), (LAYOUT, LAYOUT))
    pick("code.param_info_end", (end, end_too), (INVALID, INVALID))


def test_kernels_have_names():
    if version() < 12030:
        lacks("cuFuncGetName came with 12.3")
    name = C.c_char_p()
    call("cuFuncGetName", C.byref(name), kernel("par_mixed", "params"))
    assert name.value == b"par_mixed"


def test_a_kernel_without_parameters():
    launch(kernel("par_empty0", "params"), grid=100, block=1024)
    call("cuCtxSynchronize")


class Config(C.Structure):
    """CUlaunchConfig."""

    _fields_ = [("shape", C.c_uint * 7), ("stream", C.c_void_p), ("attributes", C.c_void_p), ("count", C.c_uint)]


class Attribute(C.Structure):
    """CUlaunchAttribute, of whose value only the first numbers are needed here."""

    _fields_ = [("id", C.c_int), ("pad", C.c_int), ("value", C.c_int * 16)]


CARVEOUT, CLUSTER = 14, 4


@belief("launch.attributes_checked")
def test_attributes_that_are_malformed():
    if version() < 12000:
        lacks("these attributes came with 12.0")
    f = kernel("par_empty0", "params")

    def tried(ident, *value):
        attributes = (Attribute * 1)(Attribute(ident, 0, (C.c_int * 16)(*value)))
        config = Config((C.c_uint * 7)(16, 1, 1, 32, 1, 1, 0), None, C.cast(attributes, C.c_void_p), 1)
        return call("cuLaunchKernelEx", C.byref(config), f, pointers(), None, want=ANY)

    assert tried(CARVEOUT, 50) == OK
    seen = [tried(CARVEOUT, 101), tried(900, 1)]
    call("cuCtxSynchronize")
    pick("launch.attributes_checked", seen, [INVALID, INVALID], [OK, INVALID])


@belief("launch.cooperative_limit")
def test_a_cooperative_launch_that_cannot_be_resident():
    f, blocks = kernel("par_empty0", "params"), C.c_int()
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", C.byref(blocks), f, C.c_int(256), 0)
    most = blocks.value * attribute(16)

    def tried(count):
        return call("cuLaunchCooperativeKernel", f, *[C.c_uint(n) for n in (count, 1, 1, 256, 1, 1, 0)], None, None, want=ANY)

    pick("launch.cooperative_limit", [tried(most), tried(most + 1), tried(1)], [OK, COOPERATIVE_TOO_LARGE, OK])


@belief("launch.context_of_stream")
def test_a_launch_in_another_contexts_stream():
    s, primary, q = stream(), C.c_void_p(), alloc(4096)
    call("cuCtxGetCurrent", C.byref(primary))
    fill(q, 0, 4096)
    values = mixed_values()
    lib = library()
    own = new_context()
    function = kernel("xp_add")
    as_function = launch(function, q, 8, 1, stream=s, want=ANY)
    as_kernel = launch(of_library(lib, b"par_mixed"), *values[0], grid=1, block=1, stream=s, want=ANY)
    call("cuStreamSynchronize", s)
    call("cuCtxDestroy_v2", own)
    call("cuCtxSetCurrent", primary)
    seen = (as_function != OK, as_kernel, number(values[1]) == values[2])
    pick("launch.context_of_stream", seen, (True, OK, True))


@own_process
@belief("launch.fault_results")
def test_a_kernel_that_traps():
    start()
    stop = alloc(8)
    write(stop, b"\1" * 8)
    launch(kernel("ft_trap", "faulty"), stop, grid=1, block=1)
    seen = [call("cuCtxSynchronize", want=ANY), call("cuCtxSynchronize", want=ANY), call("cuMemAlloc_v2", C.byref(C.c_uint64()), 8, want=ANY)]
    assert OK not in seen
    new_context()
    elsewhere = call("cuCtxSynchronize", want=ANY)
    pick("launch.fault_results", (seen, elsewhere), ([LAUNCH_FAILED] * 3, OK), ([ILLEGAL_INSTRUCTION] * 3, OK))


def test_extended_launch():
    values, out, total = mixed_values()
    config = Config((C.c_uint * 7)(1, 1, 1, 1, 1, 1, 0), None, None, 0)
    call(entry("cuLaunchKernelEx"), C.byref(config), kernel("par_mixed", "params"), pointers(*values), None)
    assert number(out) == total
    call("cuLaunchKernelEx", None, kernel("par_mixed", "params"), pointers(*values), None, want=INVALID)


def test_cooperative_launch():
    p = alloc(4096)
    fill(p, 0, 4096)
    shape = [C.c_uint(n) for n in (2, 1, 1, 32, 1, 1, 0)]
    call("cuLaunchCooperativeKernel", kernel("xp_add"), *shape, None, pointers(p, 512, 1))
    assert number(p) == 1


@belief("launch.limits_not_sticky")
def test_launches_beyond_the_limits():
    f, p = kernel("xp_add"), alloc(4096)
    values = pointers(p, 8, 1)
    shapes = {
        "no grid": (0, 1, 1, 32, 1, 1, 0), "no block": (1, 1, 1, 32, 0, 1, 0), "wide block": (1, 1, 1, 1025, 1, 1, 0),
        "many threads": (1, 1, 1, 32, 33, 1, 0), "deep block": (1, 1, 1, 1, 1, 65, 0), "tall grid": (1, 65536, 1, 1, 1, 1, 0),
        "shared memory": (1, 1, 1, 32, 1, 1, 1 << 20),
    }  # fmt: skip
    codes = {name: call("cuLaunchKernel", f, *map(C.c_uint, shape), None, values, None, want=ANY) for name, shape in shapes.items()}
    module, bounded = C.c_void_p(), C.c_void_p()
    call("cuModuleLoadData", C.byref(module), BOUNDED_PTX)
    call("cuModuleGetFunction", C.byref(bounded), module, b"bounded")
    codes["launch bounds"] = launch(bounded, grid=1, block=65, want=ANY)
    launch(bounded, grid=1, block=64)
    assert OK not in codes.values()
    fill(p, 0, 4096)
    launch(f, p, 8, 1)
    assert number(p) == 1
    saw("launch.limits_not_sticky", 0 if set(codes.values()) == {INVALID} else 1, codes)


def test_parameters_must_be_given():
    f = kernel("xp_add")
    shape = [C.c_uint(n) for n in (1, 1, 1, 1, 1, 1, 0)]
    both = (C.c_void_p * 1)(0)
    call("cuLaunchKernel", f, *shape, None, pointers(1, 2, 3), both, want=INVALID)


@own_process
@belief("launch.stray_access_sticky")
@pytest.mark.parametrize("where", ["nowhere", "reserved", "not granted", "unmapped"])
def test_a_stray_access(where):
    start()
    base = reserve(GRANULE)
    if where in ("not granted", "unmapped"):
        map_at(base, GRANULE, create(GRANULE))
    if where == "unmapped":
        grant(base, GRANULE, DEVICE)
        fill(base, 0, GRANULE)
        unmap(base, GRANULE)
    f = kernel("xp_fill")
    launch(f, (1 << 20) if where == "nowhere" else base, 1, 1)
    codes = [call("cuCtxSynchronize", want=ANY), call("cuCtxSynchronize", want=ANY), launch(f, base, 1, 1, want=ANY),
             call("cuMemAlloc_v2", C.byref(C.c_uint64()), 4096, want=ANY)]  # fmt: skip
    assert OK not in codes
    pick("launch.stray_access_sticky", codes, [ILLEGAL_ADDRESS] * 4)


# --- images and handles -------------------------------------------------------------------------------------------


@belief("code.bad_image_errors")
def test_images_that_are_none():
    module = C.c_void_p()
    with open("/proc/self/exe", "rb") as file:
        program = file.read(1 << 20)
    images = {"another machine's ELF": program, "an ELF header alone": program[:64], "bad PTX": BROKEN_PTX}
    codes = {name: call("cuModuleLoadData", C.byref(module), image, want=ANY) for name, image in images.items()}
    assert OK not in codes.values()
    saw("code.bad_image_errors", 0 if list(codes.values()) == [NOT_AN_IMAGE, NOT_AN_IMAGE, BAD_PTX] else 1, codes)


def test_no_image_and_no_such_name():
    call("cuModuleLoadData", C.byref(C.c_void_p()), None, want=INVALID)
    call("cuModuleLoad", C.byref(C.c_void_p()), b"/nonexistent/image", want=FILE_NOT_FOUND)
    kernel("xp_add")
    module = C.c_void_p()
    with open(os.path.join(os.environ["CONFORMANCE_KERNELS"], "params.ptx"), "rb") as text:
        call("cuModuleLoadData", C.byref(module), text.read() + b"\0")
    call("cuModuleGetFunction", C.byref(C.c_void_p()), module, b"no_such_kernel", want=NOT_FOUND)
    call("cuModuleGetGlobal_v2", C.byref(C.c_uint64()), None, module, b"no_such_variable", want=NOT_FOUND)
    call("cuModuleUnload", module)


def test_a_library_serves_every_kernel_in_it():
    lib, count = library(), C.c_uint()
    if version() >= 12040:
        call("cuLibraryGetKernelCount", C.byref(count), lib)
        assert count.value == 4
    function = C.c_void_p()
    call("cuKernelGetFunction", C.byref(function), of_library(lib, b"par_empty0"))
    launch(function, grid=1, block=1)
    call("cuLibraryGetKernel", C.byref(C.c_void_p()), lib, b"no_such_kernel", want=NOT_FOUND)


def module_with_a_variable():
    module, pointer, size = C.c_void_p(), C.c_uint64(), C.c_size_t()
    call("cuModuleLoadData", C.byref(module), GLOBAL_PTX)
    call("cuModuleGetGlobal_v2", C.byref(pointer), C.byref(size), module, b"counter")
    return module, pointer.value, size.value


def test_variables_of_a_module():
    module, pointer, size = module_with_a_variable()
    assert (size, number(pointer)) == (8, 5)
    write(pointer, struct.pack("<Q", 77))
    assert number(pointer) == 77


@belief("code.unload_waits")
def test_unloading_beside_queued_work():
    module, _, _ = module_with_a_variable()
    p, s = alloc(4096), stream()
    gate = Gate().close(s)
    call("cuMemsetD8Async", p, C.c_ubyte(1), 16, s)
    waited, _ = waits(lambda: call("cuModuleUnload", module), gate)
    saw("code.unload_waits", int(not waited), "waited for the context's work" if waited else "returned at once")


def dead_module():
    start()
    module = C.c_void_p()
    call("cuModuleLoadData", C.byref(module), GLOBAL_PTX)
    call("cuModuleUnload", module)
    return call("cuModuleUnload", module, want=ANY)


def dead_stream():
    start()
    s = stream()
    call("cuStreamDestroy_v2", s)
    return call("cuStreamSynchronize", s, want=ANY)


def garbage_function():
    start()
    return launch(C.c_void_p(0x1234), grid=1, block=1, want=ANY)


@own_process
@belief("code.dead_handle_error")
@pytest.mark.parametrize("dead", [dead_module, dead_stream, garbage_function])
def test_dead_handles(dead):
    seen = in_a_child(dead)
    assert seen != OK
    saw("code.dead_handle_error", 0 if seen == INVALID_HANDLE else 1, seen)


# --- attributes and occupancy -------------------------------------------------------------------------------------


def test_attributes_of_a_function():
    f, value = kernel("xp_add"), C.c_int()
    call("cuFuncGetAttribute", C.byref(value), C.c_int(0), f)
    assert 32 <= value.value <= 1024
    call("cuFuncGetAttribute", C.byref(value), C.c_int(999), f, want=INVALID)


def test_more_dynamic_shared_memory_must_be_asked_for():
    f, most, p = kernel("xp_add"), attribute(97), alloc(4096)
    if most <= 48 * KIB:
        lacks("blocks have no more than 48 KiB here")
    launch(f, p, 8, 1, shared=most, want=INVALID)
    call("cuFuncSetAttribute", f, C.c_int(8), C.c_int(most))
    launch(f, p, 8, 1, shared=most)
    call("cuFuncSetAttribute", f, C.c_int(8), C.c_int(1 << 20), want=INVALID)
    call("cuCtxSynchronize")


def test_occupancy_is_plausible():
    f, blocks, grid, block = kernel("xp_add"), C.c_int(), C.c_int(), C.c_int()
    threads, multiprocessors = attribute(39), attribute(16)
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", C.byref(blocks), f, C.c_int(128), 0)
    assert 1 <= blocks.value <= threads // 128
    few = blocks.value
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", C.byref(blocks), f, C.c_int(128), 40000)
    assert blocks.value <= few
    call("cuOccupancyMaxPotentialBlockSize", C.byref(grid), C.byref(block), f, None, 0, C.c_int(0))
    assert grid.value % multiprocessors == 0 and block.value % 32 == 0 and 32 <= block.value <= 1024
    call("cuOccupancyMaxActiveBlocksPerMultiprocessor", C.byref(blocks), f, C.c_int(0), 0, want=INVALID)
