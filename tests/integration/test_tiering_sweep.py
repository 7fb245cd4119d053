# SPDX-License-Identifier: Apache-2.0
"""Driver calls fail, alone, in pairs and for good, and processes are killed, at every point of a displacement, a settle pass, a free
and a teardown (tests/programs/tiering/sweep.c)."""

import re

import pytest
from engine import engine_program, objects  # noqa: F401  (fixtures)


@pytest.fixture
def sweep(engine_program, tmp_path, run_sim):  # noqa: F811
    (tmp_path / "root" / "proc").mkdir(parents=True)

    def run(*what):
        ran = run_sim([engine_program("sweep.c"), tmp_path / "root", *what], vram="32M", ram="1G", shim=False, timeout=280,
                      env={"HARNESS_STATE": str(tmp_path / "state")}).ok()
        print(ran.stdout)
        assert ran.stdout.splitlines()[-1] == "ok", ran.stdout
        return {name: [int(n) for n in re.findall(r"\d+", said)] for name, said in re.findall(r"^(.+): (.*)$", ran.stdout, re.M)}

    return run


def test_each_call_fails_once(sweep):
    swept = sweep("singles")
    assert swept["displacement"][0] >= 40 and swept["settle pass"][0] >= 50 and swept["free"][0] >= 3 and len(swept) == 5


@pytest.mark.slow
def test_each_two_calls_fail(sweep):
    swept = sweep("pairs")
    assert min(swept["displacement"][1], swept["settle pass"][1]) >= 100 and min(pairs for _, pairs in swept.values()) >= 1


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_all_calls_fail_from_one_on(sweep, step):
    swept = sweep("lasting", step)
    assert swept["displacement"][0] >= 40 // step
    assert step > 1 or swept["displacement"][1] > 0


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_a_call(sweep, step):
    swept = sweep("kills", step)
    assert swept["displacement"][0] >= 40 // step and swept["teardown"][0] >= 1
