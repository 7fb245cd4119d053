# SPDX-License-Identifier: Apache-2.0
"""Experiment: the conformance suite (tests/conformance) on this driver; one row for each belief that it decides, one for the suite.
gpu-check: groups=conformance order=500 expect=60 limit=240
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(os.environ["GPU_CHECK_SOURCE"])
SUITE = SOURCE / "tests" / "conformance"
sys.path.append(str(SOURCE / "tests" / "gpu"))

from kit import beliefs, contract  # noqa: E402

VERDICTS = {"confirmed": contract.CONFIRMS, "corrected": contract.CORRECTS, "unanswered": contract.UNANSWERED}
ALL = "conformance.suite"


def decided() -> list[str]:
    """The beliefs that tests are marked with; pytest is not needed to list them."""
    marked = set()
    for path in SUITE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "belief":
                marked.update(ast.literal_eval(argument) for argument in node.args)
    return sorted(marked)


def row_of(belief: str) -> str:
    return f"conformance.{belief}"


def say(row: str, ask: str, seen: str, verdict: str, belief: str | None = None, value: object = None, unit: str | None = None, raw: Any = None):
    made = {"row": row, "ask": ask, "seen": seen[:600], "value": value, "unit": unit, "belief": belief, "verdict": verdict,
            "decides": "what simgpu may be trusted with", "raw": raw}  # fmt: skip
    print(json.dumps(made), flush=True)


def main() -> int:
    names = decided()
    if "--list" in sys.argv:
        print("\n".join([ALL, *map(row_of, names)]))
        return 0
    file = Path(os.environ["GPU_CHECK_SCRATCH"]) / "observations.json"
    device = os.environ["GPU_CHECK_DEVICE"]
    env = {name: value for name, value in os.environ.items() if name not in ("LD_LIBRARY_PATH", "SIMGPU_NAME")}
    if "GPU_CHECK_NATIVE" in env:
        env["SPILLSHIM_TEST_NATIVE"] = env["GPU_CHECK_NATIVE"]
    argv = [sys.executable, "-m", "pytest", "-q", "-ra", "-o", f"cache_dir={file.parent / 'cache'}", str(SUITE), "--device", device,
            "--observations", str(file)]  # fmt: skip
    ran = subprocess.run(argv, cwd=SOURCE, env=env, capture_output=True, text=True, errors="replace", check=False)
    sys.stderr.write(ran.stdout[-6000:] + ran.stderr[-2000:])
    ask = "the conformance suite passes: the driver does nothing that no permissible driver does"
    if not file.exists():
        reason = "pytest is not installed for this Python" if "No module named pytest" in ran.stderr else f"pytest ended with {ran.returncode}"
        for row in (ALL, *map(row_of, names)):
            say(row, ask, reason, contract.UNANSWERED)
        return 0
    seen = json.loads(file.read_text())
    counts = seen["tests"]
    failed = [line for line in ran.stdout.splitlines() if line.startswith("FAILED")]
    say(ALL, ask, f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", contract.MEASURED,
        value=counts["failed"], unit="failed tests", raw={"failed": failed, **counts})  # fmt: skip
    held = beliefs.read()
    for name in names:
        found = seen["beliefs"].get(name, {"verdict": "unanswered", "seen": ["no test reported"]})
        say(row_of(name), held[name].text, "; ".join(found["seen"]), VERDICTS[found["verdict"]], belief=name, raw=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
