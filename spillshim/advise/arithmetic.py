# SPDX-License-Identifier: Apache-2.0
"""Seconds per generated token (batch 1) from the bytes that one token reads, by where they live. Pure formulas.

Units: bytes, bytes per second, seconds; shares are 0..1. Called by plan.py and examples.py.
The model behind them: decoding one token reads every weight that it uses once and computes next to nothing, so time is
bytes / rate of where they are. Sources of the constants stand beside them. **Model arithmetic, not measured.**
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1e9  # of rates, as datasheets give them; sizes of memory are in GiB elsewhere
REACHED_OF_PEAK = 0.8  # of a card's peak memory rate that kernels reach; of PCIe's peak, too (4.0 x16: 25 of 31.5 GB/s)
UVM_RATE = 3.8 * GB  # llama.cpp PR 8035: a 70B model of 23.71 GiB by unified memory on an RTX 4090 (PCIe 4): 0.15 tokens/s
PCIE4_PEAK = 31.5 * GB  # of 16 lanes; a link that reaches more is PCIe 5


@dataclass(frozen=True)
class Rates:
    """Bytes per second: `hbm` kernels read VRAM, `link` kernels read pinned RAM, `ddr` the CPU reads RAM, `uvm` unified
    memory brings in what it faults on. `overlap`: share of the shorter of a kernel's two reads (VRAM and link) that is
    hidden behind the longer one; 1 is the bound, not a measurement.
    """

    hbm: float
    link: float
    ddr: float
    uvm: float
    overlap: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hbm", "link", "ddr", "uvm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: a rate is above 0 bytes/s")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"overlap is {self.overlap}: a share lies between 0 and 1")


def assumed_uvm(link: float) -> float:
    """Bytes/s of unified memory on such a link: the one measured figure, doubled above PCIe 4 (an assumption), never above the link."""
    return min(link, UVM_RATE * 2 if link > PCIE4_PEAK else UVM_RATE)


# --- one token ---------------------------------------------------------------------------------------------------------


def resident(read: float, rates: Rates) -> float:
    """All of it in VRAM."""
    return read / rates.hbm


def cpu_split(vram: float, ram: float, rates: Rates) -> float:
    """The CPU computes on what is in RAM, after (or before) the GPU did its part: they depend on each other."""
    return vram / rates.hbm + ram / rates.ddr


def tail(vram: float, spilled: float, rates: Rates) -> float:
    """The spilled bytes are one piece: read over the link after the rest."""
    return vram / rates.hbm + spilled / rates.link


def interleaved(vram: float, spilled: float, rates: Rates) -> float:
    """The spilled bytes are spread evenly, so that each kernel draws on VRAM and on the link at the same time."""
    own, over = vram / rates.hbm, spilled / rates.link
    return max(own, over) + (1 - rates.overlap) * min(own, over)


def unified(read: float, rates: Rates) -> float:
    """Unified memory: a sweep larger than VRAM faults on everything, each time (least recently used goes first)."""
    return read / rates.uvm


def combined(vram: float, spilled: float, cpu: float, rates: Rates) -> float:
    """CPU split whose GPU part spills a margin: the margin is read while VRAM is, and the CPU has that much less to do."""
    return interleaved(vram, spilled, rates) + cpu / rates.ddr


def best_margin(vram: float, overflow: float, rates: Rates) -> float:
    """Bytes of `overflow` to spill, the rest going to the CPU: the time is piecewise linear in them, with one kink where the
    link takes as long as VRAM, so the least is at the kink or at an end."""
    kink = min(overflow, vram / rates.hbm * rates.link)
    return min((0.0, kink, float(overflow)), key=lambda margin: combined(vram, margin, overflow - margin, rates))


# --- shares of a dense model ---------------------------------------------------------------------------------------------


def hidden_share(rates: Rates) -> float:
    """Share of a model that can be read over the link in the time that the rest takes to be read from VRAM."""
    return rates.link / (rates.hbm + rates.link)


def cpu_border(rates: Rates) -> float:
    """Share in RAM below which `interleaved` (with full overlap) beats `cpu_split`: f/link = (1-f)/hbm + f/ddr.
    1 where the link is not slower than the CPU's memory: then it always does.
    """
    if rates.link >= rates.ddr:
        return 1.0
    return (1 / rates.hbm) / (1 / rates.link - 1 / rates.ddr + 1 / rates.hbm)


# --- a mixture of experts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """`always`: bytes that every token reads; `experts`: bytes of all experts; `used`: share of them that a token uses.

    `overflow`, where it is asked for, is bytes of experts beyond VRAM: the always-read part stays in VRAM.
    """

    always: float
    experts: float
    used: float

    @property
    def read(self) -> float:
        return self.always + self.experts * self.used

    def uniform(self, overflow: float, rates: Rates) -> float:
        """Any expert is as likely as any other to be used; the overflow is spilled."""
        return interleaved(self.read - overflow * self.used, overflow * self.used, rates)

    def on_cpu(self, overflow: float, rates: Rates) -> float:
        """The same experts, computed by the CPU (llama.cpp -ncmoe)."""
        return cpu_split(self.read - overflow * self.used, overflow * self.used, rates)

    def hot_placed(self, miss: float, rates: Rates) -> float:
        """The experts in use are in VRAM but for a share `miss` of the reads. The share is an assumption, never known beforehand."""
        missed = self.experts * self.used * miss
        return interleaved(self.read - missed, missed, rates)
