# SPDX-License-Identifier: Apache-2.0
"""The advisor's formulas against the tables that the design was decided on (dense and mixture of experts, three cards).

The tables are written out here as they were published, in milliseconds a token: nothing below computes them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillshim.advise import arithmetic, examples
from spillshim.advise.arithmetic import GB, Mixture, Rates

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = ("RTX 4090", "RTX 5090", "H100")
SHARES = (0.10, 0.25, 0.50)

# card -> by share: all in VRAM, CPU split, UVM, tail, interleaved
DENSE = {
    "RTX 4090": [(30, 68, 6433, 125, 98), (36, 150, 7719, 321, 293), (55, 394, 11579, 907, 880)],
    "RTX 5090": [(23, 69, 4386, 88, 67), (28, 164, 5263, 221, 200), (42, 449, 7895, 621, 600)],
    "H100": [(31, 111, 10417, 180, 152), (37, 278, 12500, 483, 455), (56, 778, 18750, 1392, 1364)],
}
WAYS = ("vram", "split", "uvm", "tail", "spill")
# card -> by share: uniform interleaved, CPU experts, hot-placed with a miss of 1, 4, 10 %
MIXTURE = {
    "RTX 4090": [(6.1, 6.6, 4.2), (18.3, 11.7, 4.5), (55, 26.9, 10.5)],
    "RTX 5090": [(4.2, 5.6, 2.7), (12.5, 11.5, 3.0), (37.5, 29.4, 7.3)],
    "H100": [(9.5, 7.7, 2.6), (28.4, 18.1, 4.5), (85, 49, 16.8)],
}
MIXTURE_RESIDENT = {"RTX 4090": (4.2, 5.7), "RTX 5090": (2.8, 3.9), "H100": (2.6, 4.2)}
RATES_PRINTED = {("RTX 4090", 0.10): {"vram": 33, "split": 14.7, "tail": 8.0, "spill": 10.2}, ("RTX 4090", 0.25): {"split": 6.7, "spill": 3.4},
                 ("RTX 4090", 0.50): {"split": 2.5, "spill": 1.1}, ("RTX 5090", 0.10): {"split": 14.6, "spill": 15.0},
                 ("H100", 0.10): {"split": 9.0, "spill": 6.6}}  # fmt: skip


def card(name: str) -> examples.Example:
    return next(one for one in examples.EXAMPLES if one.name == name)


def rates(**changes: float) -> Rates:
    return Rates(**{"hbm": 1000 * GB, "link": 25 * GB, "ddr": 60 * GB, "uvm": 4 * GB, **changes})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("way", WAYS)
def test_the_dense_table(name: str, index: int, way: str) -> None:
    printed = DENSE[name][index][WAYS.index(way)]
    computed = examples.dense(card(name), SHARES[index])[way] * 1e3
    if (name, way) == ("H100", "uvm"):
        # The table's rule is 3.8 GB/s, doubled on PCIe 5: 7.6, as for the RTX 5090. Its H100 column was computed with 8.0, so it
        # cannot follow from the rule; the formula is kept, and README shows what it gives.
        whole = card(name).whole(SHARES[index])
        assert printed == pytest.approx(whole / (8.0 * GB) * 1e3, rel=0.001)
        assert computed == pytest.approx(printed * 8.0 / 7.6, rel=0.001)
    else:
        assert computed == pytest.approx(printed, rel=0.02)


@pytest.mark.parametrize(("name", "share"), RATES_PRINTED)
def test_the_dense_table_in_tokens_per_second(name: str, share: float) -> None:
    ways = examples.dense(card(name), share)
    for way, printed in RATES_PRINTED[name, share].items():
        digits = 0 if isinstance(printed, int) else 1
        assert round(1 / ways[way], digits) == printed, way


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(3))
def test_the_mixture_table(name: str, index: int) -> None:
    computed = examples.mixture(card(name), SHARES[index])
    for way, printed in zip(("uniform", "experts", "hot"), MIXTURE[name][index], strict=True):
        assert computed[way] * 1e3 == pytest.approx(printed, rel=0.02), way


@pytest.mark.parametrize("name", NAMES)
def test_the_mixture_all_in_vram(name: str) -> None:
    least, most = (examples.mixture(card(name), share)["vram"] * 1e3 for share in (0.10, 0.50))
    assert (round(least, 1), round(most, 1)) == MIXTURE_RESIDENT[name]


@pytest.mark.parametrize(("name", "percent"), [("RTX 4090", 3.0), ("RTX 5090", 3.4), ("H100", 2.0)])
def test_the_share_that_is_hidden(name: str, percent: float) -> None:
    example = card(name)
    hidden = arithmetic.hidden_share(example.rates)
    assert round(hidden * 100, 1) == percent
    over = example.whole(hidden) - example.vram
    assert arithmetic.interleaved(example.vram, over, example.rates) == pytest.approx(arithmetic.resident(example.vram, example.rates))
    halved = arithmetic.interleaved(example.vram, over, example.rates) / arithmetic.tail(example.vram, over, example.rates)
    assert halved == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "link", "ddr", "percent"),
    [("RTX 4090", 25, 60, 5.0), ("RTX 4090", 25, 80, 4.3), ("RTX 4090", 25, 40, 7.6), ("RTX 5090", 50, 70, 10.9),
     ("H100", 55, 100, 4.4), ("H100", 55, 250, 2.6), ("RTX 4090", 12, 60, 1.8)],
)  # fmt: skip
def test_where_the_cpu_split_begins_to_win(name: str, link: float, ddr: float, percent: float) -> None:
    mine = Rates(card(name).rates.hbm, link * GB, ddr * GB, GB)
    border = arithmetic.cpu_border(mine)
    assert border * 100 == pytest.approx(percent, rel=0.02)
    for share, spill_wins in ((border * 0.99, True), (border * 1.01, False)):
        ways = arithmetic.interleaved(1 - share, share, mine), arithmetic.cpu_split(1 - share, share, mine)
        assert (ways[0] < ways[1]) is spill_wins


def test_a_link_as_fast_as_the_cpus_memory_always_wins() -> None:
    mine = rates(link=61 * GB)
    assert arithmetic.cpu_border(mine) == 1
    assert arithmetic.best_margin(10 * GB, 30 * GB, mine) == 30 * GB


@pytest.mark.parametrize("link", [12, 25, 50])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("overflow", [0.1, 2, 40])
def test_no_other_margin_is_better(link: float, overlap: float, overflow: float) -> None:
    mine, vram, over = rates(link=link * GB, overlap=overlap), 22 * GB, overflow * GB
    margin = arithmetic.best_margin(vram, over, mine)
    assert 0 <= margin <= over
    best = arithmetic.combined(vram, margin, over - margin, mine)
    for step in range(201):
        other = over * step / 200
        assert best <= arithmetic.combined(vram, other, over - other, mine) * (1 + 1e-12)


def test_without_overlap_spread_is_a_tail() -> None:
    assert arithmetic.interleaved(9 * GB, GB, rates(overlap=0.0)) == arithmetic.tail(9 * GB, GB, rates())


@settings(derandomize=True, max_examples=200, deadline=None)
@given(vram=st.floats(0, 1e12), over=st.floats(0, 1e12), overlap=st.floats(0, 1))
def test_orders_that_hold_everywhere(vram: float, over: float, overlap: float) -> None:
    mine = rates(overlap=overlap)
    spread = arithmetic.interleaved(vram, over, mine)
    assert max(vram / mine.hbm, over / mine.link) * (1 - 1e-12) <= spread <= arithmetic.tail(vram, over, mine) * (1 + 1e-12)
    assert arithmetic.combined(vram, over, 0, mine) == spread
    assert arithmetic.combined(vram, 0, over, mine) == pytest.approx(arithmetic.cpu_split(vram, over, mine))


def test_a_mixture_whose_experts_are_all_used_is_dense() -> None:
    mine, over = rates(), 5 * GB
    model = Mixture(10 * GB, 30 * GB, 1.0)
    assert model.read == 40 * GB
    assert model.uniform(over, mine) == arithmetic.interleaved(35 * GB, over, mine)
    assert model.on_cpu(over, mine) == arithmetic.cpu_split(35 * GB, over, mine)
    assert model.hot_placed(0.0, mine) == arithmetic.resident(40 * GB, mine)


@pytest.mark.parametrize(("link", "uvm"), [(25, 3.8), (31.5, 3.8), (50, 7.6), (55, 7.6), (2, 2)])
def test_unified_memory_is_one_measured_figure(link: float, uvm: float) -> None:
    assert arithmetic.assumed_uvm(link * GB) == pytest.approx(uvm * GB)


@pytest.mark.parametrize("wrong", [{"hbm": 0}, {"link": -1}, {"ddr": float("nan")}, {"overlap": 1.5}, {"overlap": float("nan")}])
def test_rates_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rates(**wrong)


def test_readme_shows_what_the_formulas_give() -> None:
    text = (REPOSITORY / "README.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("|") and re.search(r"\d+ % \|", line)]
    assert shown == examples.dense_table()[2:]
    assert examples.dense_table()[0] in text
    hidden = [arithmetic.hidden_share(one.rates) * 100 for one in examples.EXAMPLES]
    assert f"below {min(hidden):.0f} to {max(hidden):.1f} %" in text
    borders = [f"{arithmetic.cpu_border(one.rates) * 100:.0f} % ({one.name.removeprefix('RTX ')})" for one in examples.EXAMPLES]
    assert f"below about {', '.join(borders)}" in " ".join(text.split())
