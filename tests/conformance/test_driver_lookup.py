# SPDX-License-Identifier: Apache-2.0
"""How entries are found, and what the driver says of itself before and without a context."""

import pytest
from conform import belief, own_process, pick, saw
from cudaclient import *  # noqa: F403

FOUND, NO_SYMBOL, TOO_OLD = 0, 1, 2


def ask(name, asked, flags=0, want=OK):
    """(address or None, status) of cuGetProcAddress_v2; after an expected error, the result."""
    pointer, status = C.c_void_p(), C.c_int(-1)
    got = call("cuGetProcAddress_v2", C.c_char_p(name.encode()), C.byref(pointer), C.c_int(asked), flags, C.byref(status), want=want)
    return (pointer.value, status.value) if got == OK else got


def at(symbol):
    return C.cast(getattr(cu, symbol), C.c_void_p).value, FOUND


@belief("lookup.newest_not_above")
def test_the_newest_abi_that_is_not_newer_than_asked():
    questions = [("cuMemAlloc", 3010, "cuMemAlloc"), ("cuMemAlloc", 3020, "cuMemAlloc_v2"), ("cuMemAlloc", 12000, "cuMemAlloc_v2"),
                 ("cuMemFree", 12000, "cuMemFree_v2"), ("cuCtxCreate", 11040, "cuCtxCreate_v3"),
                 ("cuGetProcAddress", 11030, "cuGetProcAddress"), ("cuGetProcAddress", 12000, "cuGetProcAddress_v2")]  # fmt: skip
    if version() >= 13000:
        questions += [("cuCtxSynchronize", 12090, "cuCtxSynchronize"), ("cuCtxSynchronize", 13000, "cuCtxSynchronize_v2")]
    seen = [same(*question) for question in questions]
    above = ask("cuInit", version() + 10, want=ANY)
    wrong = [question for question, fine in zip(questions, seen) if not fine]
    saw("lookup.newest_not_above", 0 if not wrong and above == INVALID else 1, f"otherwise than believed: {wrong}; above the driver: {above}")


@belief("lookup.graph_instantiate")
def test_a_name_that_came_to_stand_for_another_entry():
    seen = [same("cuGraphInstantiate", 11000, "cuGraphInstantiate_v2"), same("cuGraphInstantiate", 11040, "cuGraphInstantiateWithFlags")]
    saw("lookup.graph_instantiate", 0 if all(seen) else 1, f"at 11.0 the one with a log, at 11.4 the one with flags: {seen}")


def same(name, asked, symbol):
    """Whether a look-up leads to what the exported symbol is; a symbol that is not exported says nothing."""
    try:
        return ask(name, asked) == at(symbol)
    except AttributeError:
        return True


def test_a_version_before_the_entry():
    assert ask("cuMemCreate", 10010) == (None, TOO_OLD)


@belief("lookup.unknown_name")
def test_names_that_nobody_has():
    old = C.c_void_p()
    seen = [ask("cuNothing", 12000, want=ANY), ask("", 12000, want=ANY),
            call("cuGetProcAddress", C.c_char_p(b"cuNothing"), C.byref(old), C.c_int(12000), 0, want=ANY)]  # fmt: skip
    pick("lookup.unknown_name", seen, [(None, NO_SYMBOL), (None, NO_SYMBOL), NOT_FOUND], [(None, NO_SYMBOL), INVALID, NOT_FOUND])


def test_flags_that_exclude_each_other():
    ask("cuInit", 12000, flags=3, want=INVALID)


@belief("lookup.per_thread_abi")
def test_the_per_thread_form_of_an_entry():
    seen = [same("cuMemcpyHtoD", 7000, "cuMemcpyHtoD_v2") or ask("cuMemcpyHtoD", 7000), ask("cuInit", 12000, 2) == at("cuInit"),
            ask("cuMemcpyHtoD", 7000, 2) == at("cuMemcpyHtoD_v2_ptds"), ask("cuMemcpyHtoD", 6050, 2) == at("cuMemcpyHtoD_v2")]  # fmt: skip
    pick("lookup.per_thread_abi", seen, [True] * 4, [True, True, True, False])


def test_what_is_found_works():
    pointer, _ = ask("cuMemGetInfo", 12000)
    available, total = C.c_size_t(), C.c_size_t()
    assert C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_void_p)(pointer)(C.addressof(available), C.addressof(total)) == OK
    assert 0 < available.value <= total.value


@belief("lookup.ctx_get_device_v2_null")
def test_the_device_of_no_context():
    if version() < 13000:
        pytest.skip("cuCtxGetDevice_v2 came with 13.0")
    out = []
    thread = threading.Thread(target=lambda: out.append(call("cuCtxGetDevice_v2", C.byref(C.c_int()), None, want=ANY)))
    thread.start()
    thread.join()
    assert out[0] != OK
    pick("lookup.ctx_get_device_v2_null", out[0], INVALID_CONTEXT, INVALID)


def test_names_of_errors():
    text = C.c_char_p()
    call("cuGetErrorName", C.c_int(2), C.byref(text))
    assert text.value == b"CUDA_ERROR_OUT_OF_MEMORY"
    call("cuGetErrorString", C.c_int(2), C.byref(text))
    assert text.value
    call("cuGetErrorName", C.c_int(123456), C.byref(text), want=INVALID)


def test_private_tables():
    """A driver answers its own runtime here; anybody else's UUID is not found."""
    table = C.c_void_p(1)
    call("cuGetExportTable", C.byref(table), C.create_string_buffer(16), want=(NOT_FOUND, INVALID))


# --- the device ---------------------------------------------------------------------------------------------------


def test_devices():
    count, device = C.c_int(), C.c_int(-1)
    call("cuDeviceGetCount", C.byref(count))
    assert count.value >= 1
    call("cuDeviceGet", C.byref(device), C.c_int(0))
    assert device.value == 0
    call("cuDeviceGet", C.byref(device), C.c_int(count.value), want=INVALID_DEVICE)
    call("cuDeviceGet", C.byref(device), C.c_int(-1), want=INVALID_DEVICE)


def test_what_a_device_says_of_itself():
    name, bus, uuid = C.create_string_buffer(100), C.create_string_buffer(20), C.create_string_buffer(16)
    call("cuDeviceGetName", name, C.c_int(100), C.c_int(0))
    call("cuDeviceGetPCIBusId", bus, C.c_int(20), C.c_int(0))
    call("cuDeviceGetUuid_v2" if version() < 13000 else "cuDeviceGetUuid", uuid, C.c_int(0))
    assert name.value and any(uuid.raw) and bus.value.count(b":") == 2
    found = C.c_int(-1)
    call("cuDeviceGetByPCIBusId", C.byref(found), bus)
    assert found.value == 0


@pytest.mark.parametrize("number, least", [(1, 1024), (5, 65535), (10, 32), (16, 1), (39, 1024), (41, 1), (75, 5)])
def test_attributes_are_plausible(number, least):
    """Threads a block, grid y, warp, multiprocessors, threads a multiprocessor, unified addressing, compute capability."""
    assert attribute(number) >= least


def test_an_attribute_that_does_not_exist():
    call("cuDeviceGetAttribute", C.byref(C.c_int()), C.c_int(5000), C.c_int(0), want=INVALID)
    call("cuDeviceGetAttribute", None, C.c_int(1), C.c_int(0), want=INVALID)
    call("cuDeviceGetAttribute", C.byref(C.c_int()), C.c_int(1), C.c_int(99), want=INVALID_DEVICE)


def test_virtual_memory_management_is_there():
    """spillshim cannot do without."""
    assert attribute(102) == 1


def test_the_version_is_known_before_anything_else():
    assert version() >= 11000 and version() % 10 == 0
