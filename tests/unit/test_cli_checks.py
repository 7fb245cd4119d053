# SPDX-License-Identifier: Apache-2.0
"""The checks of `doctor` on trees of /proc and /sys made by the test, and its judgement of observed processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spillshim import checks, observe


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(total_gib: float, available_gib: float) -> str:
    return f"MemTotal:       {int(total_gib * (1 << 20))} kB\nMemFree: 1 kB\nMemAvailable:   {int(available_gib * (1 << 20))} kB\n"


def only(findings: list[checks.Finding]) -> checks.Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_ram_that_can_be_spilled_to(tmp_path: Path) -> None:
    finding = only(checks.check_memory(tree(tmp_path, {"proc/meminfo": meminfo(64, 50)})))
    assert (finding.status, finding.detail) == ("ok", "50 GiB of 64 GiB available")


@pytest.mark.parametrize("available", [0.5, 8.3])
def test_little_ram_is_warned_of(available: float, tmp_path: Path) -> None:
    finding = only(checks.check_memory(tree(tmp_path, {"proc/meminfo": meminfo(64, available)})))
    assert finding.status == "warn"
    assert finding.fix


def test_no_meminfo(tmp_path: Path) -> None:
    assert only(checks.check_memory(tmp_path)).status == "warn"


def test_the_tightest_cgroup_limit_on_the_way_up(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/job.service\n",
            "sys/fs/cgroup/system.slice/job.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/job.service/memory.high": str(8 << 30),
            "sys/fs/cgroup/system.slice/memory.max": str(4 << 30),
            "sys/fs/cgroup/system.slice/memory.current": str(3 << 30),
        },
    )
    assert checks.cgroup_limit(root) == (4 << 30, 3 << 30, str(root / "sys/fs/cgroup/system.slice"))
    finding = only(checks.check_cgroup(root))
    assert finding.status == "warn"
    assert "4 GiB" in finding.detail and "3 GiB used" in finding.detail


def test_cgroup_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": str(64 << 30),
            "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": "4096",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    )
    finding = only(checks.check_cgroup(root))
    assert finding.status == "ok"
    assert finding.detail.startswith("64 GiB in ")


def test_no_cgroup_limit(tmp_path: Path) -> None:
    assert only(checks.check_cgroup(tree(tmp_path, {"proc/self/cgroup": "0::/\n"}))).detail == "no memory limit"


def test_wsl2_is_warned_of(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/version": "Linux version 5.15.153.1-microsoft-standard-WSL2"})
    finding = checks.check_platform(root)[0]
    assert (finding.check, finding.status) == ("platform", "warn")
    assert "WSL2" in finding.detail


@pytest.mark.parametrize(("capabilities", "status"), [("00000000a80425fb", "warn"), ("00000000a88425fb", "ok")])
def test_containers_without_sys_nice(capabilities: str, status: str, tmp_path: Path) -> None:
    root = tree(tmp_path, {".dockerenv": "", "proc/self/status": f"CapEff:\t{capabilities}\n"})
    finding = only(checks.check_platform(root))
    assert (finding.check, finding.status) == ("container", status)
    assert ("--cap-add SYS_NICE" in finding.fix) == (status == "warn")


def test_memlock_is_told_not_failed() -> None:
    assert only(checks.check_memlock(soft=8 << 20)).status == "info"
    assert only(checks.check_memlock(soft=-1)).status == "ok"


def test_missing_shm_fails_with_its_fix(tmp_path: Path) -> None:
    finding = only(checks.check_shm(tmp_path / "none"))
    assert finding.status == "fail"
    assert "SPILLSHIM_STATE_DIR" in finding.fix


def fake_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, answer: Any) -> None:
    probe = tmp_path / "probe"
    text = answer if isinstance(answer, str) else json.dumps(answer)
    probe.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    probe.chmod(0o755)
    monkeypatch.setattr(checks.native, "probe", lambda: probe)


@pytest.mark.parametrize(
    ("code", "answer", "statuses"),
    [
        (
            0,
            {
                "backend": "host-numa",
                "driver": 13000,
                "device": 0,
                "devices": [{"name": "GPU", "total": 8 << 30}],
                "tries": [{"backend": "host-numa", "works": True}],
            },
            ["ok", "ok"],
        ),
        (0, {"backend": "hostalloc", "tries": []}, ["ok", "warn"]),
        (
            3,
            {"backend": "none", "tries": [{"backend": "host", "works": False, "detail": "refused: 801"}]},
            ["ok", "fail"],
        ),
        (4, {"backend": "none", "error": "libcuda.so.1: no such file", "devices": []}, ["fail"]),
        (139, "", ["fail"]),
    ],
)
def test_the_probes_answers(
    code: int, answer: Any, statuses: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_probe(tmp_path, monkeypatch, code, answer)
    findings = checks.check_driver({})
    assert [finding.status for finding in findings] == statuses
    assert all(finding.fix for finding in findings if finding.status in ("warn", "fail"))


# --- observed processes -------------------------------------------------------------------------------------------------


def report(**how: Any) -> dict[str, Any]:
    return {
        "pid": 7,
        "exe": "/bin/app",
        "libcuda": None,
        "managed": {"count": 0},
        "native": {"count": 0},
        "spilled": {"count": 0},
        "paths": [],
        **how,
    }


@pytest.mark.parametrize(
    ("observed", "verdict"),
    [
        (report(), observe.NO_CUDA),
        (report(libcuda="/lib/libcuda.so.1"), observe.NO_ALLOCATION),
        (
            report(
                libcuda="/lib/libcuda.so.1",
                paths=[{"module": "app", "path": "dlsym", "symbol": "cuGetProcAddress_v2", "calls": 2}],
            ),
            observe.NO_ALLOCATION,
        ),
        (report(libcuda="/lib/libcuda.so.1", managed={"count": 2}), observe.CAUGHT),
        (report(libcuda="/lib/libcuda.so.1", native={"count": 1}), observe.CAUGHT),
    ],
)
def test_verdicts(observed: dict[str, Any], verdict: str) -> None:
    assert observe._judge(observed).verdict == verdict
