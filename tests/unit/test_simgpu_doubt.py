# SPDX-License-Identifier: Apache-2.0
"""SIMGPU_DOUBT: which beliefs can be held otherwise, that nothing is forgotten, and what the doubts of look-up and exit do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from simgpu_driver import drive, simgpu  # noqa: F401  (a fixture)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))
from kit import beliefs  # noqa: E402

TABLE = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "doubt.def"
ROW = re.compile(r'^SIM_DOUBT\((\w+), "([a-z0-9_.]+)", (\d), "(.*)"\)$')
SEEDS = 20


def table() -> dict[str, tuple[int, str]]:
    """Branches and text of each belief that can be doubted."""
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("SIM_DOUBT")]
    found = [ROW.match(line) for line in rows]
    assert all(found), rows
    return {match[2]: (int(match[3]), match[4]) for match in found if match}


def test_each_doubt_is_of_one_belief_that_nobody_has_looked_at():
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("SIM_DOUBT")]
    assert len(table()) == len(rows), "a belief has two rows"
    known = beliefs.read()
    for name, (branches, text) in table().items():
        assert name in known, f"{name} is no belief of BELIEFS.md"
        assert known[name].confirmed == beliefs.NOT_YET, f"{name} is confirmed: its row of doubt.def goes"
        told = [int(number) for number in re.findall(r"(?:^|; )(\d): ", text)]
        assert told == list(range(1, branches)), f"{name}: the text tells branches {told} of 1 to {branches - 1}"


@pytest.mark.parametrize("name", sorted(beliefs.read()))
def test_a_belief_that_nobody_has_looked_at_is_doubted_or_says_why_not(name):
    belief = beliefs.read()[name]
    if belief.confirmed != beliefs.NOT_YET:
        return
    assert (belief.doubt == beliefs.BRANCH) == (name in table()), f"{name}: `{belief.doubt}`, and doubt.def says otherwise"
    if belief.doubt == beliefs.DOCUMENTED:
        assert belief.source == "D", f"{name} is not documented alone: {belief.source}"
    elif belief.doubt != beliefs.BRANCH:
        assert len(belief.doubt.split()) >= 3, f"{name}: `{belief.doubt}` is no reason"


def doubted(simgpu, value):  # noqa: F811
    """The branches that cuInit names."""
    lines = drive(simgpu, 'call("cuInit", 0)', DOUBT=value).stderr.splitlines()
    words = [word for line in lines if line.startswith("simgpu: doubted:") for word in line.split()[2:]]
    return {name: int(branch) for name, branch in (word.split("=") for word in words)}


def test_a_seed_draws_the_same_branches_and_a_few_seeds_draw_all(simgpu):  # noqa: F811
    drawn = [doubted(simgpu, str(seed)) for seed in range(SEEDS)]
    assert drawn[7] == doubted(simgpu, "7")
    missing = [
        f"{name}={branch}"
        for name, (branches, _) in table().items()
        for branch in range(branches)
        if branch not in {branches_of.get(name, 0) for branches_of in drawn}
    ]
    assert not missing, f"no seed from 0 to {SEEDS - 1} draws {missing}"


def test_names_pick_branches(simgpu):  # noqa: F811
    assert doubted(simgpu, "") == {}
    assert doubted(simgpu, "vmm.missing_location_error=2,clock.overlap;copy.rectangle_extent=0") == {
        "vmm.missing_location_error": 2,
        "clock.overlap": 1,
    }


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("vmm.no_such", "no belief vmm.no_such can be doubted"),
        ("clock.overlap=2", "has the branches 0 to 1"),
        ("clock.overlap=x", "has the branches 0 to 1"),
        ("7x", "expected a seed"),
    ],
)
def test_a_malformed_doubt_fails_initialisation(simgpu, value, says):  # noqa: F811
    result = drive(simgpu, 'call("cuInit", 0, want=INVALID)', DOUBT=value)
    assert says in result.stderr and result.stderr.count("initialisation fails") == 1


# --- look-up and the end of the process ---------------------------------------------------------------------------------

ASK = """
    def ask(name, version, flags):
        pointer, status = C.c_void_p(), C.c_int(-1)
        r = call("cuGetProcAddress_v2", name, C.byref(pointer), C.c_int(version), flags, C.byref(status), want=ANY)
        return r, pointer.value
    def at(symbol):
        return 0, C.cast(getattr(cu, symbol), C.c_void_p).value
    print(ask(b"", 12000, 0)[0], ask(b"cuMemcpyHtoD", 6050, 2) == at("cuMemcpyHtoD_v2_ptds"),
          ask(b"cuMemcpyHtoD", 6050, 1) == at("cuMemcpyHtoD_v2"), ask(b"cuMemcpyHtoD", 7000, 2) == at("cuMemcpyHtoD_v2_ptds"),
          ask(b"cuStreamGetId", 11000, 2)[1])
"""


@pytest.mark.parametrize(
    ("doubt", "expected"),
    [
        ("", "0 False True True None"),
        ("lookup.unknown_name", "1 False True True None"),
        ("lookup.per_thread_abi", "0 True True True None"),
    ],
)
def test_look_ups(simgpu, doubt, expected):  # noqa: F811
    assert drive(simgpu, ASK, DOUBT=doubt).stdout.strip() == expected


LATE = """
/* Asks the driver once more when its destructor has run: of two libraries that do not need each other, glibc ends the one that
 * was loaded first first. */
#include <stdio.h>
static int (*ask)(int *);
void set(int (*entry)(int *)) { ask = entry; }
__attribute__((destructor)) static void end(void)
{
    int count = 0, r = ask ? ask(&count) : -1;
    dprintf(1, "%d %d\\n", r, count);
}
"""


@pytest.mark.parametrize(("doubt", "expected"), [("", "4 0"), ("process.fork_and_exit", "0 1")])
def test_calls_after_the_drivers_end(simgpu, c_program, doubt, expected):  # noqa: F811
    library = c_program(LATE, shared=True, link_libcuda=False, name="late")
    code = f"""
        start()
        C.CDLL({str(library)!r}).set(cu.cuDeviceGetCount)
    """
    assert drive(simgpu, code, DOUBT=doubt).stdout.strip() == expected
