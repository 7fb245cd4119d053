# SPDX-License-Identifier: Apache-2.0
"""Every entry of NVIDIA's headers is there: real, or a stub that csrc/simgpu/STUBS.md lists; and every typed ABI is found."""

from __future__ import annotations

import re
from pathlib import Path

from simgpu_driver import drive, simgpu  # noqa: F401  (a fixture)

STUBS = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "STUBS.md"

ENTRIES = """
    entry = cu.simgpu_entry
    entry.restype, stub, index = C.c_char_p, C.c_int(), 0
    while name := entry(C.c_uint(index), C.byref(stub)):
        print(name.decode(), stub.value)
        index += 1
"""


def entries(simgpu) -> dict[str, bool]:  # noqa: F811
    """Whether each entry is a stub."""
    words = [line.split() for line in drive(simgpu, ENTRIES).stdout.splitlines()]
    return {name: stub == "1" for name, stub in words}


def test_stubs_are_those_that_are_listed(simgpu):  # noqa: F811
    built = entries(simgpu)
    named = re.findall(r"(?<!\w)cu[A-Z]\w+", STUBS.read_text())
    assert len(named) == len(set(named)), "listed twice"
    stubs, listed = {name for name, stub in built.items() if stub}, set(named)
    assert not stubs - listed, f"stubs that STUBS.md does not list: {sorted(stubs - listed)}"
    assert not listed & (set(built) - stubs), f"real by now, strike them from STUBS.md: {sorted(listed - stubs)}"
    assert len(built) > 700 and len(stubs) < len(built) / 2


def test_every_declared_entry_is_there(simgpu, cuda_include):  # noqa: F811
    text = (cuda_include / "cuda.h").read_text(errors="replace")
    declared = set(re.findall(r"CUresult\s+CUDAAPI\s+(cu\w+)\s*\(", text))
    assert len(declared) > 500 and not declared - set(entries(simgpu))


ROWS = """
    call("cuInit", 0)
    class Info(C.Structure):
        _fields_ = [("file", C.c_char_p), ("base", C.c_void_p), ("symbol", C.c_char_p), ("address", C.c_void_p)]
    def symbol_of(pointer):
        info = Info()
        assert C.CDLL(None).dladdr(pointer, C.byref(info)) and info.address == pointer.value
        return info.symbol.decode()
    wrong = []
    for name, version, thread in ROWS:
        pointer, status = C.c_void_p(), C.c_int(-1)
        r = call("cuGetProcAddress_v2", name.encode(), C.byref(pointer), C.c_int(version), 2 if thread else 1, C.byref(status))
        found = symbol_of(pointer) if pointer.value else ""
        if status.value or not (found == name or found.startswith(name + "_")) or thread != found.endswith(("_ptsz", "_ptds")):
            wrong.append((name, version, thread, found))
    assert not wrong, wrong
"""


def test_every_typed_abi_is_found_by_name_version_and_flags(simgpu, cuda_include):  # noqa: F811
    found = re.findall(r"\*\s*PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?\s*\)", (cuda_include / "cudaTypedefs.h").read_text())
    rows = sorted({(name, int(version), bool(suffix)) for name, version, suffix in found if name != "cuGetProcAddress"})
    assert len(rows) > 600
    drive(simgpu, ROWS.replace("ROWS", repr(rows)), DRIVER="13999")
