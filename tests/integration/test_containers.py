# SPDX-License-Identifier: Apache-2.0
"""The CDI specification in a real engine: podman runs containers that ask for the device, on the simulated GPU.

Needs podman and a runtime that works here (crun or runc); the containers' root is a folder with a program and its libraries,
so nothing is pulled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_cli_run import ALLOCATE

# The same, but it says "ready" and keeps what it has until its standard input ends.
HOLD = ALLOCATE.replace('puts("done");', 'puts("ready"); fflush(stdout); while (getchar() != EOF) { }')
LIBRARY = "/usr/local/lib/spillshim/libspillshim.so"


@dataclass
class Containers:
    """`run("/allocate", "1500", device="all")` -> how that container ended; start() likewise without waiting."""

    podman: list[str]
    root: Path

    def argv(self, *command: str, device: str = "all", user: int = 0, **env: str) -> list[str]:
        made = [*self.podman, "run", "--rm", "--interactive", "--network=none", "--pid=private", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", f"--user={user}"]
        env = {"LD_LIBRARY_PATH": "/sim", "SIMGPU_VRAM": "1G", "SIMGPU_RAM": "8G", **env}
        made += [part for name, value in env.items() for part in ("-e", f"{name}={value}")]
        if device:
            made += ["--device", f"spillshim.io/shim={device}"]
        return [*made, "--rootfs", str(self.root), *command]

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *command: str, device: str = "all", user: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*command, device=device, user=user, **env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )


def _copy_with_libraries(programs: list[Path], root: Path) -> None:
    for program in programs:
        shutil.copy(program, root / program.name)
        listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(?:=> |^\s+)(/\S+) \(", listed, re.MULTILINE):
            target = root / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(os.path.realpath(library), target)


SPECIFICATIONS = Path("/var/run/cdi")


@pytest.fixture
def folder_of_specifications() -> Iterator[None]:
    """podman 4 looks into /etc/cdi and /var/run/cdi only; something must be there to mount over."""
    made = not SPECIFICATIONS.exists() and os.geteuid() == 0
    if made:
        SPECIFICATIONS.mkdir()
    yield
    if made:
        SPECIFICATIONS.rmdir()


@pytest.fixture
def containers(need: Callable[[str], str], c_program, libspillshim: Path, probe_path: Path, sim_dir: Path, spillshim, folder_of_specifications) -> Iterator[Containers]:
    podman = need("podman")
    if os.geteuid() != 0:
        pytest.skip("needs root: the specification is read from /var/run/cdi, here in a mount namespace")
    with tempfile.TemporaryDirectory(prefix="spillshim-test-") as folder:
        os.chmod(folder, 0o755)
        place, root = Path(folder), Path(folder) / "root"
        (place / "state").mkdir(mode=0o700)
        for name in ("proc", "sys", "dev", "run", "etc", "tmp", "sim"):
            (root / name).mkdir(parents=True)
        env = Path(shutil.which("env") or "/usr/bin/env")
        probed = [libspillshim, probe_path, *sim_dir.glob("libcuda.so.1")]
        _copy_with_libraries([c_program(ALLOCATE, name="allocate"), c_program(HOLD, name="hold"), env, *probed], root)
        for one in probed:
            (root / one.name).unlink()  # its libraries were wanted
        shutil.copy(sim_dir / "libcuda.so.1", root / "sim")
        (place / "cdi").mkdir()
        written = spillshim(
            "cdi", "generate", "--output", place / "cdi" / "spillshim.json", "--state-dir", place / "state", "--host-limit", "900M", "--log", "info",
            env={"SPILLSHIM_LIBRARY": str(libspillshim)},
        )  # fmt: skip
        assert written.returncode == 0, str(written)
        # Mounted in a namespace of the call's own.
        apart = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(place / "cdi"), str(SPECIFICATIONS)]
        tried = ""
        for runtime in ("crun", "runc"):
            made = Containers([*apart, podman, "--runtime", runtime], root)
            if shutil.which(runtime, path=os.environ.get("PATH", "") + ":/usr/sbin"):
                ran = made.run("/env", device="")
                if ran.returncode == 0:
                    yield made
                    return
                tried += f"{runtime}: {ran.stderr.strip()} "
        pytest.skip(f"podman runs no container here: {tried or 'neither crun nor runc is installed'}")


def test_a_container_spills(containers: Containers) -> None:
    without = containers.run("/allocate", "1500", device="")
    assert without.stdout == "out of memory\n", without.stderr
    assert without.returncode == 3
    with_it = containers.run("/allocate", "1500")
    assert with_it.stdout == "done\n", with_it.stderr
    assert with_it.returncode == 0
    assert re.search(r"spilled into RAM .*backend host-numa", with_it.stderr)  # found out by the probe that was mounted


@pytest.mark.slow
def test_variables(containers: Containers) -> None:
    """What the device sets wins over -e; `files` leaves LD_PRELOAD to the container."""
    told = dict(line.split("=", 1) for line in containers.run("/env", LD_PRELOAD="/theirs.so").stdout.splitlines())
    assert told["LD_PRELOAD"] == LIBRARY
    assert told["SPILLSHIM_HOST_LIMIT"] == "900M"
    own = containers.run("/env", device="files", LD_PRELOAD=LIBRARY)
    assert f"LD_PRELOAD={LIBRARY}" in own.stdout
    assert "cannot be preloaded" not in own.stderr
    assert containers.run("/allocate", "1500", device="files", LD_PRELOAD=LIBRARY).stdout == "done\n"
    assert containers.run("/allocate", "1500", device="files").stdout == "out of memory\n"


@pytest.mark.slow
def test_containers_share_a_budget(containers: Containers) -> None:
    alone = containers.run("/allocate", "1500")
    assert alone.stdout == "done\n", alone.stderr
    first = containers.start("/hold", "1500")
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        second = containers.run("/allocate", "1500")
        assert second.stdout == "out of memory\n", second.stderr
        assert "of the host limit of 900.0 MiB in use" in second.stderr
        other = containers.run("/allocate", "1500", user=1000)
        assert other.stdout == "done\n", other.stderr
        assert "cannot share budgets" in other.stderr
    finally:
        _, err = first.communicate(input="", timeout=60)
    assert first.returncode == 0, err
    assert containers.run("/allocate", "1500").stdout == "done\n"
