# SPDX-License-Identifier: Apache-2.0
"""States of a process and ends of contexts by the engine alone: what cannot be ordered from outside, such as one thread's question
in the middle of another's destroy."""

from __future__ import annotations

from engine import engine_program, objects  # noqa: F401  (fixtures)


def test_states(engine_program, tmp_path, run_sim):  # noqa: F811
    (tmp_path / "root" / "proc").mkdir(parents=True)
    result = run_sim([engine_program("states.c"), tmp_path / "root"], vram="64M", ram="1G", shim=False, env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
    assert result.stdout.splitlines()[-1] == "ok", result.stdout
    assert len(result.stdout.splitlines()) == 10
