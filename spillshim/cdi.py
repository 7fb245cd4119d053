# SPDX-License-Identifier: Apache-2.0
"""The CDI specification that brings the shim into containers: for podman, Docker, containerd and CRI-O. Called by `spillshim cdi`.

https://github.com/cncf-tags/container-device-interface (SPEC.md) says what it may hold. Rules: the version is the lowest that
knows all that is used, because an engine refuses a specification newer than itself; paths are absolute and as the loader
understands them, because an engine's container has neither our folder nor our loader's cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spillshim import install, native
from spillshim.errors import SpillshimError

VERSION = "0.3.0"
KIND = "spillshim.io/shim"
ALL = "all"  # the device that a container asks for
FILES = "files"  # the same without LD_PRELOAD, for containers that set their own
INSIDE = Path("/usr/local/lib/spillshim")  # in the container
STATE = Path("/run/spillshim")  # in the container
DEFAULT_FILE = Path("/etc/cdi/spillshim.json")


def source() -> tuple[Path, Path]:
    """Library and probe that are mounted: SPILLSHIM_LIBRARY and what is beside it, else those of `install-system`, else the package's."""
    named = native.library()
    if os.environ.get("SPILLSHIM_LIBRARY"):
        return named, _probe_beside(named)
    system = install.system_library()
    return (system, _probe_beside(system)) if system else (named, native.probe())


def _probe_beside(library: Path) -> Path:
    probe = library.with_name("spillshim-probe")
    if not probe.is_file():
        raise SpillshimError(f"there is no spillshim-probe beside {library}", "Install both: sudo spillshim install-system")
    return probe


def specification(library: Path, probe: Path, variables: Mapping[str, str], state: Path | None = None) -> dict[str, Any]:
    """What a container gets that asks for KIND=ALL, and for KIND=FILES. `state` is a folder of the host that all of them share.

    Raises SpillshimError for a value that a specification cannot hold.
    """
    for name, value in variables.items():
        if "\0" in value or "\n" in value:
            raise SpillshimError(f"{name} has a value with a line's end in it: {value!r}", "Give one without.")
    env = [f"{name}={value}" for name, value in variables.items()]
    mounts = [_mount(library, INSIDE / native.LIBRARY_NAME, "ro"), _mount(probe, INSIDE / "spillshim-probe", "ro")]
    if state is not None:
        env.append(f"SPILLSHIM_STATE_DIR={STATE}")
        mounts.append(_mount(state, STATE, "rw"))
    # LD_PRELOAD apart: whoever asks for FILES sets it to more than the shim.
    preload = f"LD_PRELOAD={INSIDE / native.LIBRARY_NAME}"
    return {
        "cdiVersion": VERSION,
        "kind": KIND,
        "devices": [
            {"name": ALL, "containerEdits": {"env": [preload, *env], "mounts": mounts}},
            {"name": FILES, "containerEdits": {"env": [f"SPILLSHIM_LIBRARY={INSIDE / native.LIBRARY_NAME}", *env], "mounts": mounts}},
        ],
    }


def _mount(host: Path, container: Path, access: str) -> dict[str, Any]:
    """A bind mount. No device files, no setuid; executable, because a library is mapped so."""
    return {"hostPath": str(host), "containerPath": str(container), "options": [access, "nosuid", "nodev", "bind"]}
