# SPDX-License-Identifier: Apache-2.0
"""Finds the native parts that were built into the package: the preloaded library, the probe, the simulated driver, the demo.

Called by every command and by the tests. Rules: nothing is loaded into this process (the library is for others to
preload); only the package itself and SPILLSHIM_LIBRARY are looked at, never the current folder or PATH.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tempfile
from importlib import resources
from pathlib import Path
from types import ModuleType

from spillshim.errors import SpillshimError

LIBRARY_NAME = "libspillshim.so"
# ld.so splits LD_PRELOAD at spaces and colons, LD_LIBRARY_PATH at colons and semicolons, and expands $ORIGIN and the like
# in both; there is no way to quote any of them, and a name it does not understand is ignored silently.
_UNSAFE_FOR_LOADER = frozenset(" \t\n:;$")


def _packaged(*parts: str) -> Path:
    """Path of a file or folder of the installed package (editable installs too), whether it exists or not."""
    found = resources.files("spillshim")
    for part in parts:
        found = found / part
    return Path(str(found))


def _required(path: Path, what: str) -> Path:
    if not path.exists():
        raise SpillshimError(
            f"{what} is not there: {path}",
            "The native parts are built at installation: run `pip install .` (or `pip install -e .`) in the source tree.",
        )
    return path


def library() -> Path:
    """Absolute path of libspillshim.so: SPILLSHIM_LIBRARY, else the package's. Raises SpillshimError when it is missing or
    unreadable, because ld.so would only warn and run the program without it."""
    override = os.environ.get("SPILLSHIM_LIBRARY")
    path = Path(os.path.abspath(override)) if override else _packaged(LIBRARY_NAME)
    origin = f"SPILLSHIM_LIBRARY={override}" if override else "the spillshim package"
    if not path.exists():
        raise SpillshimError(
            f"the library to preload is not there: {path} (from {origin})",
            "Unset SPILLSHIM_LIBRARY or point it to a libspillshim.so."
            if override
            else "Run `pip install .` (or `pip install -e .`) in the source tree: it builds the library.",
        )
    if not path.is_file():
        raise SpillshimError(f"the library to preload is not a file: {path} (from {origin})")
    try:
        damage = _damage(path)
    except OSError as error:
        raise SpillshimError(
            f"the library to preload cannot be read: {path} ({error.strerror}; from {origin})",
            f"Make it and the folders above it readable: chmod a+r '{path}'",
        ) from error
    if damage:
        raise SpillshimError(
            f"the library to preload is {damage}: {path} (from {origin})",
            "Unset SPILLSHIM_LIBRARY or point it to a whole libspillshim.so." if override else "Reinstall spillshim.",
        )
    return path


def _damage(path: Path) -> str:
    """Why `path` is no shared library of this machine that is there to its end, or "". ld.so would kill the program by SIGBUS
    for the one, and run it without the shim for the other. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        head = file.read(64)
        if not head.startswith(b"\x7fELF"):
            return "not an ELF file"
        if len(head) == 64 and (head[4], head[18:20]) != (2, b"\x3e\x00"):
            return "not built for 64-bit x86"
        if len(head) == 64:
            (offset,), (entry, count) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<HH", head, 54)
            file.seek(offset)
            table = file.read(entry * count)
        size = os.fstat(file.fileno()).st_size
    if len(head) < 64 or entry < 56 or len(table) < entry * count:
        return f"cut off in its headers ({size} bytes)"
    end = max((sum(struct.unpack_from("<Q16xQ", table, at + 8)) for at in range(0, len(table), entry)), default=0)
    return f"cut off: {size} of at least {end} bytes" if end > size else ""


def probe() -> Path:
    """Path of the spillshim-probe executable (finds out, in a process of its own, what the driver can do)."""
    return _required(_packaged("spillshim-probe"), "the driver probe")


def sim_dir() -> Path:
    """Folder with the simulated driver: the driver, NVML, the CUDA runtimes and stand-ins for cuBLAS."""
    return _required(_packaged("sim", "libcuda.so.1"), "the simulated driver").parent


def sim_runtimes(folder: Path) -> list[Path]:
    """The CUDA runtimes and cuBLAS libraries in the folder of the simulated driver."""
    return sorted(path for path in folder.glob("libcu*.so.*") if not path.name.startswith("libcuda.so"))


def sim_include() -> Path:
    """Folder with simk.h, for companion kernels."""
    return _required(_packaged("sim", "include", "simk.h"), "the header of companion kernels").parent


def demo_dir() -> Path:
    """Folder with the demo decoder and its kernels."""
    return _required(_packaged("demo", "decoder"), "the demo program").parent


def page(name: str) -> Path:
    """A page of documentation that is shipped with the package."""
    return _packaged("pages", f"{name}.md")


def abi() -> ModuleType | None:
    """The cffi module made from spillshim_abi.h, or None when this installation has none that loads."""
    try:
        from spillshim import _abi  # type: ignore[attr-defined]
    except ImportError:
        return None
    return _abi


def _private_folder() -> Path:
    """A folder of this user alone, whose name the loader understands: where links to awkward paths are put."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for base in (runtime, "/tmp"):
        if not base or not os.path.isdir(base) or _UNSAFE_FOR_LOADER & set(base):
            continue
        folder = Path(base) / ("spillshim" if base == runtime else f"spillshim-{os.getuid()}")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            info = folder.lstat()
        except OSError:
            continue
        # Someone else's folder (or a link) here could swap the library under us.
        if stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="spillshim-", dir="/tmp"))


def unsafe_for_loader(path: Path) -> bool:
    """True where ld.so would not understand the path in LD_PRELOAD or its configuration."""
    return bool(_UNSAFE_FOR_LOADER & set(str(path)))


def loader_safe(path: Path) -> Path:
    """`path` itself, or the same through a link without the characters at which ld.so would split it (spaces, colons, ...).

    The link stands for the folder, so that a file's neighbours (the probe beside the library) are found through it too;
    it is the same for the same target, and lies in a folder that only this user can write.
    """
    if not unsafe_for_loader(path):
        return path
    folder = _private_folder()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    if path.is_dir() or _UNSAFE_FOR_LOADER & set(path.name):
        return _link(folder / f"{digest}{'' if path.is_dir() else '.so'}", path)
    return _link(folder / digest, path.parent) / path.name


def _link(link: Path, target: Path) -> Path:
    if not (link.is_symlink() and os.readlink(link) == str(target)):
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        os.replace(fresh, link)  # atomic: another run may be starting through the old link
    return link
