# SPDX-License-Identifier: Apache-2.0
"""The built files as the loader sees them: what the preloaded library asks of a machine, and exactly what it exports.

A preloaded library that needs anything a machine lacks stops every program on it, so each of these is a promise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from spillshim import checks

REPOSITORY = Path(__file__).resolve().parents[2]
ALLOWED = {"libc.so.6", "libdl.so.2", "ld-linux-x86-64.so.2"}
GLIBC_FLOOR = (2, 34)  # dlsym's home since then; a build against an older glibc asks for less


@contextmanager
def elf(path: Path) -> Iterator[ELFFile]:
    with path.open("rb") as file:
        yield ELFFile(file)


def dynamic(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    with elf(path) as image:
        for tag in image.get_section_by_name(".dynamic").iter_tags():
            value = next(
                (getattr(tag, name) for name in ("needed", "soname", "runpath", "rpath") if hasattr(tag, name)),
                tag.entry.d_val,
            )
            found.setdefault(tag.entry.d_tag, []).append(value)
    return found


def exported(path: Path) -> set[str]:
    with elf(path) as image:
        return {
            symbol.name
            for symbol in image.get_section_by_name(".dynsym").iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] in ("STB_GLOBAL", "STB_WEAK", "STB_LOOS")
        }


def hook_symbols() -> set[str]:
    from spillshim import _abi

    return {_abi.ffi.string(_abi.lib.spill_hook_symbol(index)).decode() for index in range(_abi.lib.spill_hook_count())}


def test_the_library_needs_libc_only(libspillshim: Path) -> None:
    assert set(dynamic(libspillshim)["DT_NEEDED"]) <= ALLOWED


def test_the_library_has_no_search_path(libspillshim: Path) -> None:
    tags = dynamic(libspillshim)
    assert "DT_RUNPATH" not in tags
    assert "DT_RPATH" not in tags


def allocator_symbols() -> set[str]:
    header = (REPOSITORY / "csrc" / "shim" / "allocator.h").read_text()
    return set(re.findall(r"^SPILL_API .*?(spill_\w+)\(", header, re.MULTILINE))


def test_the_library_exports_its_hooks_and_its_allocator_and_nothing_else(libspillshim: Path) -> None:
    hooks, allocator = hook_symbols(), allocator_symbols()
    assert len(hooks) > 100 and {"spill_torch_alloc", "spill_torch_free"} < allocator
    assert exported(libspillshim) == hooks | allocator


def test_dlsym_is_exported_without_a_version(libspillshim: Path) -> None:
    # An unversioned definition answers to both of glibc's (GLIBC_2.2.5 and GLIBC_2.34).
    with elf(libspillshim) as image:
        versions = image.get_section_by_name(".gnu.version")
        index = {
            symbol.name: number for number, symbol in enumerate(image.get_section_by_name(".dynsym").iter_symbols())
        }
        for name in ("dlsym", "dlvsym", "dlopen"):
            assert versions.get_symbol(index[name])["ndx"] in ("VER_NDX_GLOBAL", 1), name
        assert image.get_section_by_name(".gnu.version_d") is None


def test_the_library_asks_for_no_newer_glibc_than_promised(libspillshim: Path) -> None:
    assert (2, 2) <= checks.needed_glibc(libspillshim) <= GLIBC_FLOOR


def test_the_library_binds_at_start_and_stays(libspillshim: Path) -> None:
    tags = dynamic(libspillshim)
    flags, flags_1 = tags.get("DT_FLAGS", [0])[0], tags.get("DT_FLAGS_1", [0])[0]
    assert flags & 0x8 or flags_1 & 0x1, "bound now: no lazy binding inside a hook"
    assert flags_1 & 0x8, "never unloaded"
    assert "DT_TEXTREL" not in tags
    with elf(libspillshim) as image:
        stack = [segment for segment in image.iter_segments() if segment["p_type"] == "PT_GNU_STACK"]
        assert stack and not stack[0]["p_flags"] & 1, "an executable stack would make every program's stack executable"


@pytest.mark.parametrize(
    ("name", "soname"),
    [
        ("libcuda.so.1", "libcuda.so.1"),
        ("libnvidia-ml.so.1", "libnvidia-ml.so.1"),
        ("libcudart.so.12", "libcudart.so.12"),
        ("libcudart.so.13", "libcudart.so.13"),
        ("libcublas.so.12", "libcublas.so.12"),
        ("libcublas.so.13", "libcublas.so.13"),
        ("libcublasLt.so.12", "libcublasLt.so.12"),
        ("libcublasLt.so.13", "libcublasLt.so.13"),
    ],
)
def test_the_simulated_libraries(sim_dir: Path, name: str, soname: str) -> None:
    path = sim_dir / name
    assert path.is_file() and not path.is_symlink()
    tags = dynamic(path)
    assert tags["DT_SONAME"] == [soname]
    assert "DT_RUNPATH" not in tags and "DT_RPATH" not in tags


def test_the_programs_are_executable(probe_path: Path, demo_dir: Path) -> None:
    assert os.access(probe_path, os.X_OK)
    assert os.access(demo_dir / "decoder", os.X_OK)


def test_the_source_tree_does_not_hide_the_installed_parts(clean_env) -> None:
    code = "from spillshim import native; print(native.library()); print(native.sim_dir()); print(native.abi().lib.spill_hook_count())"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=clean_env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    library, sim, hooks = ran.stdout.splitlines()
    assert Path(library).is_file() and Path(sim).is_dir() and int(hooks) > 100


def test_the_package_reads_the_same_table_as_the_library_was_built_from() -> None:
    """Each row of hooks.def is a hook of the cffi module, found by the C preprocessor on the sources themselves."""
    program = '#define HOOK(symbol, name, version, flags, pfn) @symbol@\n#define HOOK_BY_NAME(symbol, pfn) @symbol@\n#define HOOK_NVML(symbol) @symbol@\n#define HOOK_LIBC(symbol) @symbol@\n#include "shim/hooks.def"\n'
    ran = subprocess.run(
        ["gcc", "-E", "-P", "-I", str(REPOSITORY / "csrc"), "-x", "c", "-"],
        input=program,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {row.strip() for row in ran.stdout.split("@")[1::2]}
    assert rows == hook_symbols()
