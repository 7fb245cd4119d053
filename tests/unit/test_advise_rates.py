# SPDX-License-Identifier: Apache-2.0
"""Where the advisor's sizes and rates come from: options, a result of the GPU kit, the card, a quick measure; in that order."""

from __future__ import annotations

import ctypes
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spillshim import cards
from spillshim.advise import rates
from spillshim.advise.arithmetic import GB
from spillshim.advise.rates import Told

GIB = 1 << 30
ALL = {"vram": 8.0 * GIB, "ram": 16.0 * GIB, "hbm": 800 * GB, "link": 25 * GB, "ddr": 60 * GB}
CARD = cards.Card("Card", 24 * GIB, 22 * GIB, 1000 * GB, 31.5 * GB, "PCIe 4 x16")


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card, and no second spent on measuring."""
    monkeypatch.setattr(cards, "found", list)
    monkeypatch.setattr(rates, "quick_ddr", lambda: Told(33 * GB, "quick"))
    monkeypatch.setattr(rates, "available_ram", lambda: Told(7 * GIB, "here"))


def row(name: str, value: Any, verdict: str = "measured") -> dict[str, Any]:
    return {"row": name, "value": value, "unit": "GB/s", "verdict": verdict, "raw": {}}


def result(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """A file as scripts/gpu-check writes it, as far as it matters here."""
    whole = {
        "schema": 1, "model": False, "device": {"name": "NVIDIA X", "vram": 24 * GIB}, "machine": {"ram": 64 * GIB},
        "experiments": [{"name": "bw", "rows": rows}], **changes,
    }  # fmt: skip
    path = tmp_path / "x-2026-11-21.json"
    path.write_text(json.dumps(whole))
    return path


MEASURED = [
    row("bandwidth.hbm_read", 900.0), row("bandwidth.hbm_q4", 850.0), row("bandwidth.zero_copy_16", 24.0), row("bandwidth.zero_copy_q4", 0, "unanswered"),
    row("bandwidth.uvm_cycle", 9.5), row("bandwidth.overlap", 0.75),
]  # fmt: skip


# --- options --------------------------------------------------------------------------------------------------------------------------


def test_options_are_taken_as_they_are() -> None:
    known = rates.collect(ALL, None)
    assert (known.machine.vram, known.machine.ram) == (8 * GIB, 16 * GIB)
    assert known.machine.rates == rates.Rates(800 * GB, 25 * GB, 60 * GB, 3.8 * GB, 1.0)
    assert {name: one.source for name, one in known.told.items() if name in ALL} == {name: f"--{name}" for name in ALL}
    assert "PR 8035" in known.told["uvm"].source and "assumed" in known.told["overlap"].source


def test_what_nothing_tells_is_an_error_that_names_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "quick_ddr", lambda: pytest.fail("a second spent on measuring for nothing"))
    with pytest.raises(rates.NoRate, match="not known: vram, hbm, link. There is no NVIDIA card") as caught:
        rates.collect({}, None)
    assert all(f"--{name} " in caught.value.fix for name in ("vram", "hbm", "link")) and "--ddr" not in caught.value.fix
    assert caught.value.exit_code == 2


def test_no_quick_measure_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "quick_ddr", lambda: None)
    with pytest.raises(rates.NoRate, match="not known: ddr. It could not be measured here"):
        rates.collect({name: value for name, value in ALL.items() if name != "ddr"}, None)


def test_a_fast_link_doubles_unified_memory_and_says_so() -> None:
    told = rates.collect({**ALL, "link": 50 * GB}, None).told["uvm"]
    assert told.value == 7.6 * GB and "doubled for PCIe 5 (assumed)" in told.source


# --- a result -------------------------------------------------------------------------------------------------------------------------


def test_a_result_of_the_kit(tmp_path: Path) -> None:
    known = rates.collect({}, result(tmp_path, MEASURED))
    # The product over VRAM is answered, that over the link is not: its plain read stands in.
    assert known.machine.rates == rates.Rates(850 * GB, 24 * GB, 33 * GB, 9.5 * GB, 0.75)
    assert known.told["hbm"].source == "measured: bandwidth.hbm_q4 of x-2026-11-21.json"
    assert known.told["link"].source == "measured: bandwidth.zero_copy_16 of x-2026-11-21.json"
    assert known.machine.vram == 24 * GIB - 24 * GIB * 3 // 100
    assert known.machine.ram == 64 * GIB - 64 * GIB // 10
    assert known.told["ddr"].source == "quick"


def test_an_option_wins_over_the_file(tmp_path: Path) -> None:
    known = rates.collect({"hbm": 1.0 * GB, "vram": 1.0 * GIB}, result(tmp_path, MEASURED))
    assert known.machine.rates.hbm == GB and known.machine.vram == GIB and known.machine.rates.link == 24 * GB


def test_the_card_is_not_asked_beside_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "found", lambda: [CARD])
    with pytest.raises(rates.NoRate, match="not known: link. .*has no answered row"):
        rates.collect({}, result(tmp_path, MEASURED[:2]))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema": 2}, "with schema 1"), ({"model": True}, "a simulated device"), ({"experiments": None}, "damaged"), ({"device": {}}, "damaged: KeyError"),
     ({"device": {"name": "x", "vram": -1}}, "-1 bytes of VRAM"), ({"experiments": [{"rows": [{}]}]}, "damaged: KeyError"), ({"device": {"name": "x", "vram": "much"}}, "damaged: ValueError")],
)  # fmt: skip
def test_results_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(rates.NotAResult, match=words) as caught:
        rates.measured(result(tmp_path, MEASURED, **change))
    assert "x-2026-11-21.json" in caught.value.message and caught.value.fix


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), None, True, "fast"])
def test_rows_without_a_rate_count_for_nothing(tmp_path: Path, value: Any) -> None:
    told = rates.measured(result(tmp_path, [row("bandwidth.hbm_q4", value), *MEASURED[:1], row("bandwidth.zero_copy_q4", value)]))
    assert told["hbm"].value == 900 * GB and "link" not in told


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", "3", "[" * 100000, '{"schema": 1}'])
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(rates.NotAResult, match=r"r\.json"):
        rates.measured(path)
    with pytest.raises(rates.NotAResult, match="No such file"):
        rates.measured(tmp_path / "none.json")


# --- this machine -----------------------------------------------------------------------------------------------------------------------


def test_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "found", lambda: [CARD, cards.Card("Other", 1, 1, None, None)])
    known = rates.collect({}, None)
    assert known.machine.rates.hbm == 800 * GB and known.machine.rates.link == pytest.approx(25.2 * GB)
    assert known.machine.vram == 22 * GIB - 24 * GIB * 3 // 100
    assert "Card: 22 GiB free now" in known.told["vram"].source and "PCIe 4 x16" in known.told["link"].source


def test_a_card_that_does_not_say_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "found", lambda: [cards.Card("Card", 24 * GIB, 24 * GIB, None, None)])
    with pytest.raises(rates.NoRate, match="not known: hbm, link"):
        rates.collect({}, None)


class FakeNvml:
    """Answers as an RTX 4090 does; entries may be missing, as in old drivers."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        numbers = {"GetMaxClockInfo": 10501, "GetMemoryBusWidth": 384, "GetMaxPcieLinkGeneration": 4, "GetCurrPcieLinkWidth": 16}
        for name, number in numbers.items():
            if name not in without:
                setattr(self, f"nvmlDevice{name}", lambda *args, number=number: self._give(args[-1], number))

    @staticmethod
    def _give(where: Any, number: int) -> int:
        where._obj.value = number
        return 0

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        return self._give(count, 1)

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        return self._give(device, 1 + index)

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, info: Any) -> int:
        info._obj.total, info._obj.free = 24 * GIB, 23 * GIB
        return 0

    def nvmlDeviceGetName(self, device: ctypes.c_void_p, text: Any, size: int) -> int:
        text.value = b"NVIDIA GeForce RTX 4090"
        return 0


def test_peaks_by_clock_and_width() -> None:
    card = cards.Card(**cards._ask_cards(FakeNvml())[0])
    assert card.hbm_peak == pytest.approx(1008 * GB, rel=0.001) and card.link_peak == pytest.approx(31.5 * GB, rel=0.001)
    assert (card.name, card.vram, card.free, card.link) == ("NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB, "PCIe 4 x16")
    less = cards.Card(**cards._ask_cards(FakeNvml(("GetMaxClockInfo", "GetCurrPcieLinkWidth")))[0])
    assert less.hbm_peak is None and less.link_peak is None and less.vram == 24 * GIB


def test_the_simulated_card(sim_dir: Path, clean_env: dict[str, str]) -> None:
    # It gives no memory clock, and so no rate of VRAM: nothing of the simulator's model is taken for a machine's.
    code = "import json; from spillshim import cards; print(json.dumps([cards.vram_sizes(), [vars(one) for one in cards.found()]]))"
    env = {**clean_env, "LD_LIBRARY_PATH": str(sim_dir), "SIMGPU_VRAM": "3G", "PYTHONPATH": str(Path(cards.__file__).parents[1])}
    told = json.loads(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert told[0] == [3 * GIB]
    assert told[1][0]["vram"] == 3 * GIB and told[1][0]["hbm_peak"] is None


def test_the_best_of_five_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(rates, "_BUFFER", 16 << 20)
    monkeypatch.setattr(rates.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(rates, "available_ram", lambda: Told(1 * GIB, ""))
    took = iter([4.0, 2.0, 0.5, 1.0, 3.0])
    times = itertools.chain.from_iterable((100.0 * index, 100.0 * index + next(took)) for index in range(5))
    told = rates.quick_ddr(lambda: next(times))
    assert told and told.value == 2 * (16 << 20) / 0.5 and "2 threads, best of 5" in told.source


def test_no_room_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(rates, "available_ram", lambda: Told(1 << 20, ""))
    assert rates.quick_ddr() is None


def test_ram_within_a_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    free = rates.available_ram().value
    monkeypatch.setattr(rates, "cgroup_limit", lambda: (3 * GIB, 1 * GIB, "/x"))
    told = rates.available_ram()
    assert told.value == 0 and "2 GiB left in this cgroup" in told.source
    monkeypatch.setattr(rates, "cgroup_limit", lambda: (1 << 60, 0, "/x"))
    assert "available now" in rates.available_ram().source and free >= 0
