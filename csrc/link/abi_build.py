# SPDX-License-Identifier: Apache-2.0
"""Describes the cffi module `spillshim._abi`; run by CMake through `python -m cffi.gen_src exec-python`.

cffi parses the part of spillshim_abi.h between the two marker comments, the compiler the whole header: one contract.
"""
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).resolve().parent.parent / "spillshim_abi.h"


def declarations() -> str:
    text = HEADER.read_text()
    return text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source("spillshim._abi", '#include "spillshim_abi.h"')
