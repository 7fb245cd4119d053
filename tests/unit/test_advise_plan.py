# SPDX-License-Identifier: Apache-2.0
"""From a GGUF file to the advice: the published tables once more, now through files of the right sizes, and what is recommended."""

from __future__ import annotations

import shlex
from pathlib import Path

import gguf_models
import pytest

from spillshim.advise import arithmetic, examples, header, model, plan
from spillshim.advise.arithmetic import GB, Rates
from spillshim.advise.plan import Advice, Machine, Way

GIB, MIB = 1 << 30, 1 << 20
LAYERS = 200  # so many that whole ones come within half a percent of a share
PLENTY = 1 << 42
# Milliseconds, as published: card -> by share (all in VRAM, CPU split, tail aside, interleaved)
DENSE = {
    "RTX 4090": [(30, 68, 98), (36, 150, 293), (55, 394, 880)],
    "RTX 5090": [(23, 69, 67), (28, 164, 200), (42, 449, 600)],
    "H100": [(31, 111, 152), (37, 278, 455), (56, 778, 1364)],
}
UVM = {"RTX 4090": [6433, 7719, 11579], "RTX 5090": [4386, 5263, 7895]}  # H100's column breaks its own rule: test_advise_arithmetic
MIXTURE = {
    "RTX 4090": [(6.1, 6.6, 4.2), (18.3, 11.7, 4.5), (55, 26.9, 10.5)],
    "RTX 5090": [(4.2, 5.6, 2.7), (12.5, 11.5, 3.0), (37.5, 29.4, 7.3)],
    "H100": [(9.5, 7.7, 2.6), (28.4, 18.1, 4.5), (85, 49, 16.8)],
}
MISSES = ("hot-0.01", "hot-0.04", "hot-0.1")
CASES = [(name, index) for name in DENSE for index in range(3)]
RATES = Rates(800 * GB, 25 * GB, 60 * GB, 3.8 * GB)


def by_key(advice: Advice) -> dict[str, Way]:
    return {way.key: way for way in advice.ways}


def milliseconds(advice: Advice) -> dict[str, float]:
    return {way.key: way.seconds * 1e3 for way in advice.ways if way.seconds is not None}


def loaded(path: Path, context: int = 256) -> model.Model:
    return model.build(header.read(path), context)


def dense(tmp_path: Path, layer: int, layers: int = LAYERS) -> model.Model:
    return loaded(gguf_models.dense(tmp_path / "dense model.gguf", layer, layers))


@pytest.mark.parametrize(("name", "index"), CASES)
def test_the_dense_table_from_a_file(tmp_path: Path, name: str, index: int) -> None:
    card, share = next(one for one in examples.EXAMPLES if one.name == name), examples.SHARES[index]
    found = dense(tmp_path, round(card.whole(share) / LAYERS))
    over = round(share * LAYERS) * found.layers[0].always
    advice = plan.advise(found, Machine(found.needs - over, PLENTY, card.rates))
    took = milliseconds(advice)
    assert (took["vram"], took["split"], took["spill"]) == pytest.approx(DENSE[name][index], rel=0.02)
    if name in UVM:
        assert took["uvm"] == pytest.approx(UVM[name][index], rel=0.02)
    # Whole layers: at most one layer on the CPU more than the best margin.
    least = examples.dense(card, share)["both"] * 1e3
    assert least * 0.999 <= took["both"] <= least * 1.001 + found.layers[0].always / card.rates.ddr * 1e3


@pytest.mark.parametrize(("name", "index"), CASES)
def test_the_mixture_table_from_a_file(tmp_path: Path, name: str, index: int) -> None:
    card, share = next(one for one in examples.EXAMPLES if one.name == name), examples.SHARES[index]
    experts = round((card.whole(share) - examples.ALWAYS) / LAYERS)
    path = gguf_models.mixture(tmp_path / "moe.gguf", round(examples.ALWAYS / LAYERS), experts, LAYERS)
    found = loaded(path)
    vram = found.needs - round(card.whole(share) - card.vram)
    took = milliseconds(plan.advise(found, Machine(vram, PLENTY, card.rates)))
    assert (took["uniform"], took["experts"], took[MISSES[index]]) == pytest.approx(MIXTURE[name][index], rel=0.02)
    assert took["vram"] == pytest.approx(examples.mixture(card, share)["vram"] * 1e3, rel=0.001)


# --- what is recommended --------------------------------------------------------------------------------------------------------------


def test_what_fits_needs_nothing(tmp_path: Path) -> None:
    found = dense(tmp_path, 20 * MIB)
    advice = plan.advise(found, Machine(found.needs, PLENTY, RATES))
    assert advice.best and advice.best.key == "vram"
    assert advice.best.command == f"llama-server -m '{found.path}' -ngl {LAYERS + 1} -c 256"
    assert advice.best.seconds == pytest.approx(arithmetic.resident(found.mixture.read, RATES))
    assert all(way.seconds is None and "not needed" in way.why for way in advice.ways[1:])


def test_one_byte_too_many_is_a_spill(tmp_path: Path) -> None:
    found = dense(tmp_path, 20 * MIB)
    advice = plan.advise(found, Machine(found.needs - 1, PLENTY, RATES))
    assert advice.best and advice.best.key == "spill" and advice.best.spilled == 1
    assert advice.best.command.startswith("spillshim run --holdback 64M -- llama-server ")
    assert "costs less than having the CPU compute" in advice.sentences[0]


def test_a_dense_model_far_past_vram_gets_the_split_and_a_margin(tmp_path: Path) -> None:
    found = dense(tmp_path, 200 * MIB)
    advice = plan.advise(found, Machine(20 * GIB, PLENTY, RATES))
    ways = by_key(advice)
    assert advice.best and advice.best.key == "both"
    assert 0 < advice.best.spilled < 20 * GIB / RATES.hbm * RATES.link + 200 * MIB  # hidden behind VRAM, up to a layer
    assert "far past VRAM" in advice.sentences[0] and "CPU split, plus a spill margin" in advice.sentences[0]
    words = shlex.split(advice.best.command)
    assert words[:5] == ["spillshim", "run", "--holdback", "64M", "--"]
    layers = int(words[words.index("-ngl") + 1])
    split = shlex.split(ways["split"].command)
    assert split[0] == "llama-server" and int(split[split.index("-ngl") + 1]) < layers <= LAYERS
    # What the words say is what was computed.
    placed = plan.place(found, Machine(20 * GIB, PLENTY, RATES), layers)
    assert placed and placed.seconds == advice.best.seconds and placed.vram == 20 * GIB


def test_a_mixture_gets_its_experts_on_the_cpu(tmp_path: Path) -> None:
    found = loaded(gguf_models.mixture(tmp_path / "moe.gguf", 10 * MIB, 128 * MIB, 100))
    advice = plan.advise(found, Machine(6 * GIB, PLENTY, RATES))
    assert advice.best and advice.best.key in ("experts", "experts-both")
    words = shlex.split(advice.best.command)
    assert words[words.index("-ngl") + 1] == "101" and 0 < int(words[words.index("-ncmoe") + 1]) < 100
    ways = by_key(advice)
    assert ways["experts"].seconds < ways["split"].seconds  # type: ignore[operator]
    assert not any(ways[key].real for key in (*MISSES, "uniform", "uvm", "vram"))


def test_experts_and_layers_on_the_cpu_where_even_the_rest_is_too_much(tmp_path: Path) -> None:
    found = loaded(gguf_models.mixture(tmp_path / "moe.gguf", 100 * MIB, 128 * MIB, 100))
    way = by_key(plan.advise(found, Machine(5 * GIB, PLENTY, RATES)))["experts"]
    words = shlex.split(way.command)
    assert words[words.index("-ncmoe") + 1] == "100" and int(words[words.index("-ngl") + 1]) < 60
    assert way.vram <= 5 * GIB


def test_what_does_not_fit_ram_is_said(tmp_path: Path) -> None:
    found = dense(tmp_path, 200 * MIB)
    advice = plan.advise(found, Machine(20 * GIB, 8 * GIB, RATES))
    assert advice.best is None
    assert "It does not fit" in advice.sentences[0] and "28 GiB" in advice.sentences[0]
    ways = by_key(advice)
    assert ways["spill"].seconds is None and "of RAM, 8 GiB are there" in ways["spill"].why
    assert ways["split"].seconds is None and "8 GiB" in ways["split"].why
    assert not any(way.real for way in advice.ways)


def test_ram_limits_what_is_left_to_the_cpu(tmp_path: Path) -> None:
    found = dense(tmp_path, 200 * MIB)
    enough = found.needs - 20 * GIB + found.embedding
    assert plan.advise(found, Machine(20 * GIB, enough + 400 * MIB, RATES)).best
    assert plan.advise(found, Machine(20 * GIB, enough - 1, RATES)).best is None


def test_a_cache_larger_than_vram_cannot_be_spilled_away(tmp_path: Path) -> None:
    found = model.build(header.read(gguf_models.dense(tmp_path / "kv.gguf", MIB, 10)), 1 << 20)
    way = by_key(plan.advise(found, Machine(24 * MIB, PLENTY, RATES)))["spill"]
    assert way.seconds is None and "KV cache and compute buffers alone need" in way.why


def test_the_layers_of_the_cpu_take_their_cache_along(tmp_path: Path) -> None:
    found = model.build(header.read(gguf_models.dense(tmp_path / "kv.gguf", MIB, 10)), 1 << 18)
    machine = Machine(PLENTY, PLENTY, RATES)
    none, some, every = (plan.place(found, machine, layers) for layers in (0, 4, 11))
    assert none and some and every
    assert none.vram == 0 and none.cpu == found.weights + found.cache
    assert some.cpu == 7 * (found.layers[0].always + found.layers[0].cache)  # -ngl 4: the output and the last three
    assert every.cpu == 0 and every.vram == found.needs and every.ram == found.embedding
    assert none.seconds == pytest.approx((found.weights + found.cache_read) / RATES.ddr)


def test_a_quantised_cache_is_in_the_command(tmp_path: Path) -> None:
    found = model.build(header.read(gguf_models.dense(tmp_path / "q.gguf", MIB, 4)), 256, "q8_0")
    best = plan.advise(found, Machine(PLENTY, PLENTY, RATES)).best
    assert best and best.command.endswith("-c 256 -ctk q8_0 -ctv q8_0")


def test_a_kernel_that_hides_nothing_makes_the_margin_useless(tmp_path: Path) -> None:
    found, slow = dense(tmp_path, 200 * MIB), Rates(800 * GB, 25 * GB, 60 * GB, 3.8 * GB, overlap=0.0)
    advice = plan.advise(found, Machine(20 * GIB, PLENTY, slow))
    assert advice.best and advice.best.key == "split"
    assert by_key(advice)["both"].seconds >= advice.best.seconds * 0.99  # type: ignore[operator]
