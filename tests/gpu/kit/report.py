# SPDX-License-Identifier: Apache-2.0
"""The JSON file of a run: its shape, its totals, its name. Written by check.py, read by benchmarks/render.py.

Rule: it is published, so it holds no host name, user name, path of this machine or UUID.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from kit import contract
from kit.build import ROOT

SCHEMA = 1


def totals(experiments: list[dict[str, Any]]) -> dict[str, int]:
    """Counts over the rows that were asked. `answered + unanswered == asked`; rows never listed are in none of them."""
    verdicts = [row["verdict"] for experiment in experiments for row in experiment["rows"]]
    count = {verdict: verdicts.count(verdict) for verdict in contract.VERDICTS}
    return {
        "asked": len(verdicts),
        "answered": len(verdicts) - count[contract.UNANSWERED],
        **count,
        "problems": sum(len(experiment["problems"]) for experiment in experiments),
    }


def beliefs(experiments: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The ids confirmed and corrected. One that any row corrects counts as corrected, whatever other rows say."""
    by: dict[str, set[str]] = {contract.CONFIRMS: set(), contract.CORRECTS: set()}
    for experiment in experiments:
        for row in experiment["rows"]:
            if row["verdict"] in by:
                by[row["verdict"]].add(row["belief"])
    return {"confirmed": sorted(by[contract.CONFIRMS] - by[contract.CORRECTS]), "corrected": sorted(by[contract.CORRECTS])}


def sources() -> str:
    """A hash of what was run and what it ran on: csrc, the package and the experiments."""
    digest = hashlib.sha256()
    for folder in ("csrc", "spillshim", "tests/gpu"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in (".c", ".h", ".def", ".S", ".py", ".cu", ".ptx", ".map", ".txt"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def revision() -> str | None:
    """The git commit with `+changes` where files differ; None outside a clone."""

    def git(*words: str) -> str | None:
        try:
            ran = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain") else commit


def scrubbed(value: Any, scratch: Path) -> Any:
    """The same with the paths of this machine replaced, in every text inside."""
    if isinstance(value, dict):
        return {key: scrubbed(part, scratch) for key, part in value.items()}
    if isinstance(value, list):
        return [scrubbed(part, scratch) for part in value]
    if isinstance(value, str):
        for path, name in ((str(scratch), "SCRATCH"), (str(ROOT), "."), (str(Path.home()), "~")):
            if len(path) > 1:
                value = value.replace(path, name)
    return value


def choose(folder: Path, device: str, date: datetime.date) -> Path:
    """FOLDER/DEVICE-DATE.json, or with -2, -3, ... where that is taken. The file is created, so that it is taken now."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"{slug}-{date.isoformat()}{f'-{number}' if number > 1 else ''}.json"
        try:
            path.open("x").close()
            return path
        except FileExistsError:
            number += 1


def write(path: Path, result: dict[str, Any]) -> None:
    """Replaces the file at once, so that a killed kit leaves the last whole state."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
