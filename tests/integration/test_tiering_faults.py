# SPDX-License-Identifier: Apache-2.0
"""Every driver call of an allocation and of a free fails once: nothing leaks, no byte changes, the next one succeeds."""
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = [*sorted((ROOT / "csrc" / "tiering").glob("*.c")), ROOT / "csrc/link/ledger.c", ROOT / "csrc/link/segment.c", ROOT / "csrc/shim/driver.c"]


def test_fault_sweep(tmp_path, run_sim, cuda_include):
    program = tmp_path / "faults"
    subprocess.run(["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", f"-I{ROOT / 'csrc'}", f"-isystem{cuda_include}",
                    "-o", program, ROOT / "tests/programs/tiering/faults.c", *ENGINE, "-ldl", "-lpthread"], check=True)
    (tmp_path / "root" / "proc").mkdir(parents=True)
    result = run_sim([program, tmp_path / "root"], vram="64M", ram="1G", shim=False,
                     env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
    assert result.stdout.splitlines()[-1] == "ok", result.stdout
    swept = [int(n) for n in re.findall(r": (\d+) driver calls", result.stdout)]
    assert len(swept) == 4 and min(swept) >= 10, result.stdout
