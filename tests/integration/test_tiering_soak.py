# SPDX-License-Identifier: Apache-2.0
"""The soak (tests/programs/tiering/soak.c): random sequences against a model of every byte, behind hooks, on a GPU of 32 MiB whose
unconfirmed beliefs are held otherwise. `--soak` runs a million operations, --soak=N so many."""

from __future__ import annotations

import re

import pytest
from engine import objects, open_program, run_open  # noqa: F401  (fixtures)
from nvcc import cuda_program  # noqa: F401  (a fixture)

# Seeds and threads that ended in a failure once, with what it was.
KEPT = [
    pytest.param(1, 1, id="a-move-was-made-and-given-up-because-the-next-one-could-not-be-prepared"),
    pytest.param(14, 3, id="a-free-broke-the-capture-that-another-thread-began-meanwhile"),
]


@pytest.fixture
def soak(run_open):  # noqa: F811
    def run(seed, threads, steps, timeout=120):
        ran = run_open("soak.c", seed, threads, steps, doubt=seed, timeout=timeout)
        counted = re.search(r"(\d+) operations; (\d+) demotions, (\d+) promotions, (\d+) moves cut anew", ran.stdout)
        assert counted, ran
        return [int(n) for n in counted.groups()]

    return run


@pytest.mark.parametrize(("seed", "threads"), [(11, 1), (1, 3)])  # 11: copies to RAM want it open to the CPU
def test_a_few_hundred_operations(soak, seed, threads):
    operations, demoted, promoted, cut = soak(seed, threads, 600 // threads)
    assert operations == 600 and min(demoted, promoted, cut) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "threads"), KEPT)
def test_seeds_that_failed(soak, seed, threads):
    soak(seed, threads, 1500, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "threads"), [(11, 1), (12, 2), (13, 4), (14, 4)])
def test_twenty_thousand_operations(soak, seed, threads):
    operations, *moves = soak(seed, threads, 5000 // threads, timeout=240)
    assert operations == 5000 and min(moves) > 10


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_million_operations(soak, request):
    """In runs of 100,000, each with another seed and other beliefs; --soak-seed goes on elsewhere."""
    left, seed = request.config.getoption("--soak"), request.config.getoption("--soak-seed")
    done = [0, 0, 0, 0]
    while left > done[0]:
        threads = (1, 2, 4, 8)[seed % 4]
        counted = soak(seed, threads, max(min(left - done[0], 100_000) // threads, 1), timeout=7200)
        done = [sum(pair) for pair in zip(done, counted, strict=True)]
        seed += 1
    print("{} operations, {} demotions, {} promotions, {} moves cut anew".format(*done))
