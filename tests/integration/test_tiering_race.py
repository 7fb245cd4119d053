# SPDX-License-Identifier: Apache-2.0
"""Work of ten threads on many streams against moves that are ordered all the time (tests/programs/tiering/race.c): counted in moves, so
that nothing depends on how fast the machine is. How long the gate was closed is printed, not judged."""

from __future__ import annotations

import re
import time

import pytest
from engine import objects, open_program, run_open  # noqa: F401  (fixtures)
from nvcc import cuda_program  # noqa: F401  (a fixture)


@pytest.fixture
def race(run_open):  # noqa: F811
    def run(seed, moves, deadline_ms, timeout=240):
        ran = run_open("race.c", seed, moves, deadline_ms, vram="40M", doubt=seed, timeout=timeout)
        counted = re.search(r"(\d+) demotions, (\d+) promotions, (\d+) moves cut anew", ran.stdout)
        assert counted, ran
        return [int(n) for n in counted.groups()]

    return run


@pytest.mark.no_sanitizer("minutes on its build: test_on_thread_sanitizer is its size", only="thread")
def test_some_moves(race):
    assert min(race(1, 15, 40)) >= 15


@pytest.mark.slow
def test_more_moves_of_each_kind(race):
    assert min(race(2, 50, 40)) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread"], indirect=True)
def test_on_thread_sanitizer(race):
    race(3, 5, 400)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_minutes_and_a_thousand_moves_of_each_kind(race, request):
    done, seed, until = [0, 0, 0], request.config.getoption("--soak-seed"), time.monotonic() + 600
    while min(done) < 1000 or time.monotonic() < until:
        done = [sum(pair) for pair in zip(done, race(seed, 250, 40, timeout=3600), strict=True)]
        seed += 1
    print("{} demotions, {} promotions, {} moves cut anew".format(*done))
