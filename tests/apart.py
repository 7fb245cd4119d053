# SPDX-License-Identifier: Apache-2.0
"""Runs shell scripts that change a system's own folders, as root, so that nothing of it reaches this machine.

A mount namespace of its own, in which /etc, /usr/local, /opt and /run have a writable layer in memory above them; it ends with
the script. Called by the tests of install-system, of units and of the Kubernetes page.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_FOLDERS = ("/etc", "/usr/local", "/opt", "/run")
_LAYERS = """set -eu
mount -t tmpfs tmpfs /mnt
for folder in {folders}; do
    mkdir -p /mnt$folder/upper /mnt$folder/work
    mount -t overlay overlay -o lowerdir=$folder,upperdir=/mnt$folder/upper,workdir=/mnt$folder/work $folder
done
"""
_MACHINE = ("--pid", "--fork", "--mount-proc", "--kill-child", "--cgroup", "--uts", "--ipc", "--net")
# Puts the shell into the groups that are its arguments up to --, and becomes the rest.
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'


def run(script: str, env: Mapping[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """How `script` (sh -eu) ended there, as root. Skips the test where there is no such namespace to be had."""
    return _run([], script, [], env, timeout)


def machine(script: str, argument: str, env: Mapping[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The same with the script's shell as process 1 of a machine of its own, so that it can become `argument` (its $0), an init.
    That may make control groups, in groups of its own that are gone afterwards."""
    with _groups() as groups:
        # Mounted anew, because the mounts that are there show the hierarchies from their own roots.
        mounts = "".join(f"{group.remount}\n" for group in groups)
        return _run(["sh", "-euc", _ENTER, "sh", *(str(group.path) for group in groups), "--"], mounts + script, [argument], env, timeout, _MACHINE)


def _run(
    before: Sequence[str], script: str, arguments: Sequence[str], env: Mapping[str, str], timeout: float, more: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare (util-linux): it changes the system's folders, in a mount namespace")
    layers = _LAYERS.format(folders=" ".join(folder for folder in _FOLDERS if Path(folder).is_dir()))
    shell = [*before, "unshare", "--mount", "--propagation", "private", *more, "sh", "-c"]
    tried = subprocess.run([*shell, layers], capture_output=True, text=True, check=False, timeout=timeout)
    if tried.returncode:
        pytest.skip(f"no overlays in a mount namespace here: {tried.stderr.strip()}")
    return subprocess.run([*shell, layers + script, *arguments], env=dict(env), capture_output=True, text=True, check=False, timeout=timeout)


@dataclass(frozen=True)
class _Group:
    """A control group of our own, and how its hierarchy is mounted where it is the root."""

    path: Path
    remount: str


@contextmanager
def _groups() -> Iterator[list[_Group]]:
    """A group below this process's own in each hierarchy of control groups in which an init makes some."""
    name, made = f"spillshim-test-{uuid.uuid4().hex[:10]}", []
    try:
        for entry in Path("/proc/self/cgroup").read_text().split():
            _, controllers, path = entry.split(":", 2)
            mounted = _mounted(controllers)
            # Nothing can enter a new group of `cpuset` before it has been told of CPUs; an init leaves it alone.
            if mounted and controllers != "cpuset":
                named = "none," if controllers.startswith("name=") else ""
                kind = f"cgroup -o {named}{controllers}" if controllers else "cgroup2"
                group = _Group(mounted / path.strip("/") / name, f"umount {command(mounted)}\nmount -t {kind} cgroup {command(mounted)}")
                group.path.mkdir()
                made.append(group)
        if not made:
            pytest.skip("no hierarchy of control groups is mounted here")
    except OSError as error:
        _remove(made)
        pytest.skip(f"no control group of its own to be had: {error}")
    try:
        yield made
    finally:
        _remove(made)


def _mounted(controllers: str) -> Path | None:
    """Where a hierarchy is mounted: `memory`, `name=systemd` (version 1), or "" for version 2."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if (kind == "cgroup2" and not controllers) or (kind == "cgroup" and controllers and set(controllers.split(",")) <= set(options.split(","))):
            return Path(fields.split()[4])
    return None


def _remove(groups: Sequence[_Group]) -> None:
    """All processes in them have ended with their process 1."""
    for group in groups:
        for folder in sorted((path for path in group.path.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        group.path.rmdir()


def command(*argv: str | Path) -> str:
    """A command line for such a script."""
    return shlex.join(map(str, argv))
