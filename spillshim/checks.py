# SPDX-License-Identifier: Apache-2.0
"""What `spillshim doctor` checks on this machine. Each check returns Findings; printing is the command's business.

Rules: no driver library is loaded into this process (spillshim-probe asks in its own); a finding that is not `ok` names
what to do; nothing here changes anything. `root` stands for / in the checks that read /proc and /sys (tests give a tree).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from spillshim import launch, native, profiles
from spillshim.errors import SpillshimError
from spillshim.sizes import GIB, MIB, human

OK, INFO, WARN, FAIL = "ok", "info", "warn", "fail"
_CAP_SYS_NICE = 23
_PROBE_TIMEOUT = 60.0  # seconds; a first cuInit on a machine with many cards takes long


@dataclass
class Finding:
    """One checked fact: `status` ok, info, warn or fail; `fix` says what to do where it is not ok."""

    check: str
    status: str
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- the library ---------------------------------------------------------------------------------------------------------


def needed_glibc(library: Path) -> tuple[int, ...]:
    """The newest GLIBC_x.y version that the library asks of the machine, as (x, y); () when it asks none."""
    newest: tuple[int, ...] = ()
    with library.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for _, versions in section.iter_versions():
                    for version in versions:
                        match = re.fullmatch(r"GLIBC_(\d+(?:\.\d+)+)", version.name)
                        if match:
                            newest = max(newest, tuple(map(int, match[1].split("."))))
    return newest


def check_library(env: Mapping[str, str]) -> list[Finding]:
    """The library exists, is readable, this glibc is new enough for it, and the loader really loads it."""
    try:
        library = native.library()
        safe = native.loader_safe(library)
    except SpillshimError as error:
        return [Finding("library", FAIL, error.message, error.fix)]
    found = [
        Finding(
            "library",
            OK,
            str(library) + (f" (through {safe}: the path holds a space or colon)" if safe != library else ""),
        )
    ]
    try:
        need = needed_glibc(library)
    except (ELFError, ValueError) as error:
        return [
            Finding(
                "library",
                FAIL,
                f"{library} is a damaged ELF file ({error})",
                "Reinstall spillshim, or unset SPILLSHIM_LIBRARY.",
            )
        ]
    have_text = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    have = tuple(map(int, re.findall(r"\d+", have_text or "")[:2]))
    dotted = ".".join(map(str, need)) or "no particular version"
    if not have:
        found.append(
            Finding("glibc", FAIL, "this system's C library is not glibc", "spillshim and NVIDIA's driver need glibc.")
        )
    elif have < need:
        found.append(
            Finding(
                "glibc",
                FAIL,
                f"this system has {have_text}, the library needs {dotted}: every program under it would fail to start",
                "Build spillshim on this system (pip install . in the source tree).",
            )
        )
    else:
        found.append(Finding("glibc", OK, f"{have_text}; the library needs {dotted}"))
    clean = launch.without_shim(env)
    clean["LD_PRELOAD"] = launch.preload(safe, clean.get("LD_PRELOAD", ""))
    test = shutil.which("true") or "/bin/true"
    try:
        ran = subprocess.run([test], env=clean, capture_output=True, text=True, timeout=10, check=False)
        said = ran.stderr.strip()
        if ran.returncode or said:
            found.append(
                Finding(
                    "preload",
                    FAIL,
                    f"{test} with the library preloaded ended with {ran.returncode} and said: {said or 'nothing'}",
                    f"Check that the file is whole and readable by every user: ls -lL '{safe}'; reinstall if in doubt.",
                )
            )
        else:
            found.append(Finding("preload", OK, f"the loader takes it ({test} ran with it)"))
    except (OSError, subprocess.TimeoutExpired) as error:
        found.append(Finding("preload", FAIL, f"{test} with the library preloaded: {error}", "Reinstall spillshim."))
    if native.abi() is None:
        found.append(
            Finding(
                "python",
                WARN,
                "the module spillshim._abi does not load: `env --help-vars` is not available",
                "Reinstall spillshim with this Python.",
            )
        )
    return found


# --- the driver ----------------------------------------------------------------------------------------------------------


def run_probe(env: Mapping[str, str]) -> tuple[int, dict[str, Any], str]:
    """Run spillshim-probe --json: (exit code, its object or {}, what it said on stderr). Raises SpillshimError if it can't run."""
    probe = native.probe()
    try:
        ran = subprocess.run(
            [str(probe), "--json"],
            env=launch.without_shim(env),
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SpillshimError(
            f"{probe} did not answer within {_PROBE_TIMEOUT:.0f} s",
            "The driver hangs: see `nvidia-smi` and the kernel log (dmesg).",
        ) from error
    except OSError as error:
        raise SpillshimError(f"{probe} cannot be run: {error.strerror}", "Reinstall spillshim.") from error
    lines = ran.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    return ran.returncode, answer if isinstance(answer, dict) else {}, ran.stderr.strip()


def check_driver(env: Mapping[str, str]) -> list[Finding]:
    """libcuda and a device are there, and a way to give host memory to it."""
    try:
        code, answer, said = run_probe(env)
    except SpillshimError as error:
        return [Finding("driver", FAIL, error.message, error.fix)]
    if code == 4 or (code not in (0, 3) and not answer):
        why = answer.get("error") or said or f"the probe ended with {code}"
        return [
            Finding(
                "driver",
                FAIL,
                f"no usable NVIDIA driver or device: {why}",
                "Install NVIDIA's driver (in a container: start it with --gpus all), or try without a GPU: "
                "spillshim run --sim -- PROGRAM",
            )
        ]
    version = answer.get("driver")
    facts = [f"CUDA {version // 1000}.{version % 1000 // 10}"] if isinstance(version, int) else []
    facts += [
        f"{device.get('name', '?')} with {human(int(device.get('total', 0)))}"
        for device in answer.get("devices", [])
        if isinstance(device, dict)
    ]
    found = [Finding("driver", OK, ", ".join(facts))]
    backend = str(answer.get("backend") or "none")
    tries = "; ".join(
        f"{one.get('backend', '?')}: {'works' if one.get('works') else one.get('detail') or 'refused'}"
        for one in answer.get("tries", [])
        if isinstance(one, dict)
    )
    if code == 3 or backend == "none":
        found.append(
            Finding(
                "backend",
                FAIL,
                f"no way to give host memory to the GPU ({tries or said or 'no details'})",
                "In a container add --cap-add SYS_NICE; else a driver of version 525 or newer.",
            )
        )
    elif backend == "hostalloc":
        found.append(
            Finding(
                "backend",
                WARN,
                f"hostalloc only: cuMemCreate takes no host memory, so what spills is placed once and whole ({tries})",
                "Driver 550 or newer; in a container add --cap-add SYS_NICE.",
            )
        )
    else:
        found.append(Finding("backend", OK, f"{backend} ({tries})" if tries else backend))
    return found


# --- memory limits -----------------------------------------------------------------------------------------------------------


def _meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    return {
        key: int(value) * 1024
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    }


def check_memory(root: Path = Path("/")) -> list[Finding]:
    """RAM that could be pinned."""
    info = _meminfo(root)
    total, available = info.get("MemTotal", 0), info.get("MemAvailable", 0)
    if not total:
        return [
            Finding(
                "ram", WARN, "/proc/meminfo is not readable", "Mount /proc: the shim asks it before it pins memory."
            )
        ]
    detail = f"{human(available)} of {human(total)} available"
    if available < 2 * GIB + max(total // 10, 2 * GIB):
        return [
            Finding(
                "ram",
                WARN,
                f"{detail}: little is left to spill to (10% of RAM, at least 2 GiB, is never pinned)",
                "End programs that hold memory, or lower SPILLSHIM_RAM_RESERVE.",
            )
        ]
    return [Finding("ram", OK, detail)]


def check_memlock(soft: int | None = None) -> list[Finding]:
    """RLIMIT_MEMLOCK: NVIDIA's driver does not count its own pinned pages against it, so it is told, not failed."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if soft is None else soft
    if limit in (resource.RLIM_INFINITY, -1):
        return [Finding("memlock", OK, "unlimited")]
    return [
        Finding(
            "memlock",
            INFO,
            f"{human(limit)}; NVIDIA's driver does not count what it pins against it",
            "Should pinning fail: ulimit -l unlimited (LimitMEMLOCK=infinity in a unit).",
        )
    ]


def cgroup_limit(root: Path = Path("/")) -> tuple[int, int, str] | None:
    """The tightest memory limit on the way up from this process's cgroup: (limit, used, its folder); None without one."""
    lines = _read(root / "proc/self/cgroup").splitlines()
    tightest: tuple[int, int, str] | None = None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, names, used_name = root / "sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current"
        elif "memory" in controllers.split(","):
            base, names, used_name = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(base):
                break
            for name in names:
                text = _read(place / name).strip()
                if text.isdigit() and int(text) < 1 << 62:  # version 1 writes a huge number for "none"
                    used = _read(place / used_name).strip()
                    if tightest is None or int(text) < tightest[0]:
                        tightest = (int(text), int(used) if used.isdigit() else 0, str(place))
    return tightest


def check_cgroup(root: Path = Path("/")) -> list[Finding]:
    """A cgroup memory limit (container, systemd unit) that spilled memory would meet."""
    limit = cgroup_limit(root)
    if limit is None:
        return [Finding("cgroup", OK, "no memory limit")]
    most, used, place = limit
    detail = f"{human(most)} in {place}, {human(used)} used"
    if most - used < 2 * GIB:
        return [
            Finding(
                "cgroup",
                WARN,
                f"{detail}: little is left to spill to",
                "Raise the limit (docker run --memory, MemoryMax= in a unit), or set --host-limit.",
            )
        ]
    return [Finding("cgroup", OK, detail)]


def check_shm(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """/dev/shm, where the processes of a user keep their common ledger."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return [
            Finding(
                "shm",
                FAIL,
                f"{folder} is missing or not writable",
                "Mount it (tmpfs), or set SPILLSHIM_STATE_DIR to a private folder.",
            )
        ]
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize
    if size < MIB:
        return [
            Finding(
                "shm",
                FAIL,
                f"{folder} is full ({human(size)} free)",
                "Remove what fills it, or set SPILLSHIM_STATE_DIR.",
            )
        ]
    return [Finding("shm", OK, f"{folder}, {human(size)} free")]


# --- where we run ------------------------------------------------------------------------------------------------------------


def check_platform(root: Path = Path("/")) -> list[Finding]:
    """WSL2 and containers, where pinned memory is limited in ways the driver does not tell."""
    found = []
    if "microsoft" in _read(root / "proc/version").lower():
        found.append(
            Finding(
                "platform",
                WARN,
                "WSL2: Windows limits pinned memory to about 1 GiB, and host memory through cuMemCreate is not supported",
                "Use Linux on the machine itself for more than a little.",
            )
        )
    container = (
        (root / ".dockerenv").exists()
        or (root / "run/.containerenv").exists()
        or bool(re.search(r"docker|kubepods|containerd|libpod", _read(root / "proc/self/cgroup")))
    )
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", _read(root / "proc/self/status"), re.MULTILINE)
    may_place = bool(match and int(match[1], 16) >> _CAP_SYS_NICE & 1)
    if container and not may_place:
        found.append(
            Finding(
                "container",
                WARN,
                "in a container without CAP_SYS_NICE: cuMemCreate on a NUMA node may be refused",
                "docker run --cap-add SYS_NICE ... (Kubernetes: securityContext.capabilities.add)",
            )
        )
    elif container:
        found.append(Finding("container", OK, "in a container, with CAP_SYS_NICE"))
    return found or [Finding("platform", OK, "Linux, not in a container that is known")]


def check_profiles() -> list[Finding]:
    """Whether every application profile can be used: a bad file stops `run`."""
    try:
        found = profiles.load_all()
    except SpillshimError as error:
        return [Finding("profiles", FAIL, " ".join(error.message.split()), error.fix)]
    counts = {origin: sum(one.origin == origin for one in found.values()) for origin in profiles.ORIGINS}
    return [Finding("profiles", OK, ", ".join(f"{count} {origin}" for origin, count in counts.items() if count))]


def all_findings(env: Mapping[str, str]) -> list[Finding]:
    """Every check, in the order in which they are worth reading. `env` is what a program would get."""
    checks: list[Callable[[], list[Finding]]] = [
        lambda: check_library(env),
        lambda: check_driver(env),
        check_memory,
        check_cgroup,
        check_memlock,
        check_shm,
        check_platform,
        check_profiles,
    ]
    return [finding for check in checks for finding in check()]
