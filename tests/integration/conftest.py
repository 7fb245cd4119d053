# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that speak to a running program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from clients_common import FINE, script_argv, script_env
from held import CARD, HOLD, Held


@pytest.fixture
def hold(run_sim, tmp_path, monkeypatch):
    """hold(text=HOLD, env={}) -> Held, past its allocations. This process looks for sockets where the program has its own."""
    monkeypatch.setenv("SPILLSHIM_STATE_DIR", str(run_sim.state_dir))

    def start(text: str = HOLD, argv: list[str] | None = None, **env: str) -> Held:
        made = [*(argv or []), *script_argv(tmp_path, text)]
        process = run_sim.start(made, stdin=subprocess.PIPE, vram=CARD, env=script_env({**FINE, **env}))
        held = Held(run_sim, process)
        if held.line() != "ready":
            pytest.fail(str(run_sim.finish(process, input="")))
        return held

    return start


@pytest.fixture
def status(spillshim, run_sim):
    """status(*arguments) -> Result of `spillshim status`, which looks where run_sim's programs have their sockets."""
    return lambda *arguments, **env: spillshim("status", *arguments, env={"SPILLSHIM_STATE_DIR": str(run_sim.state_dir), **env})
