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
from collections.abc import Mapping, Sequence
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


# For `unshare`, so that the script's shell is process 1 of a machine of its own.
MACHINE = ("--pid", "--fork", "--mount-proc", "--kill-child", "--cgroup", "--uts", "--ipc", "--net")


def run(script: str, env: Mapping[str, str], timeout: float = 60, more: Sequence[str] = (), argument: str = "sh") -> subprocess.CompletedProcess[str]:
    """How `script` (sh -eu, `argument` is its $0) ended there, as root; `more` are further arguments for unshare. Skips the test
    where there is no such namespace to be had."""
    layers = _LAYERS.format(folders=" ".join(folder for folder in _FOLDERS if Path(folder).is_dir()))
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare (util-linux): it installs into the system's folders, in a mount namespace")
    command = ["unshare", "--mount", "--propagation", "private", *more, "sh", "-c"]
    tried = subprocess.run([*command, layers], capture_output=True, text=True, check=False, timeout=timeout)
    if tried.returncode:
        pytest.skip(f"no overlays in a mount namespace here: {tried.stderr.strip()}")
    return subprocess.run([*command, layers + script, argument], env=dict(env), capture_output=True, text=True, check=False, timeout=timeout)


def command(*argv: str | Path) -> str:
    """A command line for such a script."""
    return shlex.join(map(str, argv))
