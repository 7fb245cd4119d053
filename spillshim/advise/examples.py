# SPDX-License-Identifier: Apache-2.0
"""The tables of README.md: a dense model and a mixture of experts on three cards, by the formulas of arithmetic.py.

    python -m spillshim.advise.examples        prints both as Markdown; a test holds README.md to it
"""

from __future__ import annotations

from dataclasses import dataclass

from spillshim.advise import arithmetic
from spillshim.advise.arithmetic import GB, REACHED_OF_PEAK, Mixture, Rates, assumed_uvm

SHARES = (0.10, 0.25, 0.50)
ALWAYS = 2 * GB  # of the mixture, read by every token
USED = 8 / 128
MISSES = dict(zip(SHARES, (0.01, 0.04, 0.10), strict=True))  # assumed


@dataclass(frozen=True)
class Example:
    """`vram`: bytes of the model that are in VRAM; `rates`: HBM at 80 % of the data sheet's figure."""

    name: str
    vram: float
    rates: Rates

    def whole(self, share: float) -> float:
        """Bytes of the model of which `share` is beyond VRAM."""
        return self.vram / (1 - share)


def _example(name: str, vram: float, peak: float, link: float, ddr: float) -> Example:
    """GB and GB/s."""
    return Example(name, vram * GB, Rates(peak * REACHED_OF_PEAK * GB, link * GB, ddr * GB, assumed_uvm(link * GB)))


EXAMPLES = (
    _example("RTX 4090", 22, 1008, 25, 60),
    _example("RTX 5090", 30, 1792, 50, 70),
    _example("H100", 75, 3350, 55, 100),
)


def dense(example: Example, share: float) -> dict[str, float]:
    """Seconds per token, by way."""
    rates, vram, whole = example.rates, example.vram, example.whole(share)
    over = whole - vram
    margin = arithmetic.best_margin(vram, over, rates)
    return {
        "vram": arithmetic.resident(whole, rates),
        "split": arithmetic.cpu_split(vram, over, rates),
        "uvm": arithmetic.unified(whole, rates),
        "tail": arithmetic.tail(vram, over, rates),
        "spill": arithmetic.interleaved(vram, over, rates),
        "both": arithmetic.combined(vram, margin, over - margin, rates),
    }


def mixture(example: Example, share: float) -> dict[str, float]:
    """Seconds per token, by way; hot placement with the assumed miss of this share."""
    whole = example.whole(share)
    over, model = whole - example.vram, Mixture(ALWAYS, whole - ALWAYS, USED)
    return {
        "vram": arithmetic.resident(model.read, example.rates),
        "uniform": model.uniform(over, example.rates),
        "experts": model.on_cpu(over, example.rates),
        "hot": model.hot_placed(MISSES[share], example.rates),
    }


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}" if seconds >= 0.02 else f"{seconds * 1e3:.1f}"


def cell(seconds: float) -> str:
    """`68 (14.7)`: milliseconds a token and tokens per second."""
    rate = 1 / seconds
    return f"{milliseconds(seconds)} ({rate:.0f})" if rate >= 20 else f"{milliseconds(seconds)} ({rate:.1f})"


def dense_table() -> list[str]:
    """Lines of Markdown. Bold: the fastest way that is one way alone."""
    lines = [
        "| GPU (VRAM used; PCIe; DDR) | f | all in VRAM | llama.cpp CPU split | UVM | tail | interleaved | CPU split and spill margin |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for example in EXAMPLES:
        rates = example.rates
        title = f" {example.name} ({example.vram / GB:.0f} GB; {rates.link / GB:.0f}; {rates.ddr / GB:.0f})"
        for share in SHARES:
            ways = dense(example, share)
            best = min(("split", "tail", "spill"), key=lambda way: ways[way])
            cells = [f"**{cell(ways[way])}**" if way == best else cell(ways[way]) for way in ("split", "tail", "spill", "both")]
            cells.insert(1, milliseconds(ways["uvm"]))
            lines.append(f"|{title} | {share:.0%} | {cell(ways['vram'])} | {' | '.join(cells)} |".replace("%", " %"))
            title = ""
    return lines


def mixture_table() -> list[str]:
    """Lines of Markdown: all in VRAM / uniform interleaved / CPU experts / hot-placed, in milliseconds."""
    lines = [f"| GPU | {' | '.join(f'{share:.0%}'.replace('%', ' %') for share in SHARES)} |", "|---|" + "---|" * len(SHARES)]
    for example in EXAMPLES:
        cells = [" / ".join(milliseconds(seconds) for seconds in mixture(example, share).values()) for share in SHARES]
        lines.append(f"| {example.name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*dense_table(), "", *mixture_table()]))
