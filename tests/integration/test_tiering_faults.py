# SPDX-License-Identifier: Apache-2.0
"""Every driver call of an allocation and of a free fails once: nothing leaks, no byte changes, the next one succeeds."""

import re

from engine import engine_program, objects  # noqa: F401  (fixtures)


def test_fault_sweep(tmp_path, run_sim, engine_program):  # noqa: F811
    (tmp_path / "root" / "proc").mkdir(parents=True)
    result = run_sim([engine_program("faults.c"), tmp_path / "root"], vram="32M", ram="1G", shim=False, timeout=240,
                     env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
    assert result.stdout.splitlines()[-1] == "ok", result.stdout
    swept = [int(n) for n in re.findall(r": (\d+) driver calls", result.stdout)]
    assert len(swept) == 4 and min(swept) >= 10, result.stdout
