# SPDX-License-Identifier: Apache-2.0
"""Renders results of scripts/gpu-check as a page with figures: README.md, DEVICE-DATE-roofline.svg, DEVICE-DATE-layouts.svg.

    python benchmarks/render.py [RESULT.json ...]                  all of benchmarks/results, into it
    python benchmarks/render.py --out DIR [--model] RESULT.json    anywhere else; --model takes simulated results, labelled

Rules: every number comes from the JSON files; a figure without its rows is left out, never drawn from assumptions; results of the
simulated device never enter benchmarks/results. The same input gives the same bytes (with the same matplotlib).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SCHEMA = 1
GIB = 1 << 30
LAYOUTS = {"tail": "RAM at the end", "chunk": "spread by chunk", "granule": "spread by 2 MiB"}
MIX = re.compile(r"bandwidth\.mix_(tail|chunk|granule|q4_chunk)_(\d+)")
UNFOLDED = 40  # rows of an experiment that the page shows without a click
MODEL = "model: a simulated device, no GPU was measured"


class NotAResult(ValueError):
    """A file that cannot be rendered, and why."""


def load(path: Path, model_allowed: bool) -> dict[str, Any]:
    """One result. Raises NotAResult."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotAResult(f"{path}: {error}") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise NotAResult(f"{path}: not a result of scripts/gpu-check with schema {SCHEMA}")
    if result["model"] and not model_allowed:
        raise NotAResult(f"{path}: from a simulated device; its figures are a model's (--model with another --out labels them so)")
    return result


def all_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for experiment in result["experiments"] for row in experiment["rows"]]


def rates(result: dict[str, Any]) -> dict[str, float]:
    """The answered rows in GB/s, by name."""
    return {
        row["row"]: float(row["value"])
        for row in all_rows(result)
        if row["unit"] == "GB/s" and row["verdict"] != "unanswered" and isinstance(row["value"], (int, float)) and row["value"] > 0
    }


def mixes(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """By layout: (share of the bytes in RAM, GB/s), rising. The share is the real one where the row gives it: regions are cut
    into whole chunks, so it is near the one in the row's name only."""
    found: dict[str, list[tuple[float, float]]] = {}
    raw = {row["row"]: row["raw"] or {} for row in all_rows(result)}
    for name, value in rates(result).items():
        match = MIX.fullmatch(name)
        if match:
            size, in_ram = raw[name].get("bytes"), raw[name].get("bytes_in_ram")
            share = in_ram / size if size and in_ram is not None else 1 - int(match[2]) / 100
            found.setdefault(match[1], []).append((share, value))
    return {layout: sorted(points) for layout, points in found.items()}


# --- figures -----------------------------------------------------------------------------------------------------------


def _axes(title: str, result: dict[str, Any]):
    import matplotlib

    matplotlib.use("Agg")
    # Text stays text, ids and dates are fixed: the same input gives the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "spillshim", "svg.fonttype": "none", "font.size": 10})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.set_title(f"{title}\n{result['device']['name']}" + (f" ({MODEL})" if result["model"] else ""))
    axes.grid(True, which="major", alpha=0.3)
    return figure, axes


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def overlapped(share: float, vram: float, ram: float) -> float:
    """GB/s when VRAM and RAM are read at the same time; rates in GB/s, `share` of the bytes in RAM."""
    return 1 / max((1 - share) / vram, share / ram)


def in_turn(share: float, vram: float, ram: float) -> float:
    """GB/s when one is read after the other."""
    return 1 / ((1 - share) / vram + share / ram)


def draw_roofline(result: dict[str, Any], path: Path) -> bool:
    """GB/s over the share in RAM: the two bounds that this device's own rates set, and what kernels reached."""
    known = rates(result)
    vram, ram = known.get("bandwidth.hbm_read"), known.get("bandwidth.zero_copy_16")
    if not vram or not ram:
        return False
    figure, axes = _axes("Reading a region that is partly in RAM: bounds, and what kernels reached", result)
    shares = [0.005 * 1.02**step for step in range(268)]
    shares = [share for share in shares if share < 1] + [1.0]
    axes.plot([100 * s for s in shares], [overlapped(s, vram, ram) for s in shares], "k-", label="bound: both at once")
    axes.plot([100 * s for s in shares], [in_turn(s, vram, ram) for s in shares], "k:", label="bound: one after the other")
    for (layout, points), mark in zip(sorted(mixes(result).items()), "osD^"):
        drawn = [(100 * share, value) for share, value in points if share > 0]
        if drawn:
            label = "Q4-like product, spread by chunk" if layout.startswith("q4") else LAYOUTS[layout]
            axes.plot(*zip(*drawn), mark, fillstyle="none", label=label)
    axes.set(xscale="log", yscale="log", xlabel="% of the bytes in RAM", ylabel="GB/s")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5", "1", "2", "5", "10", "20", "50", "100"])
    axes.legend(loc="lower left")
    _save(figure, path)
    return True


def draw_layouts(result: dict[str, Any], path: Path) -> bool:
    """GB/s of one kernel over mixtures of VRAM and RAM, a line a layout."""
    found = {layout: points for layout, points in mixes(result).items() if layout in LAYOUTS}
    if not found:
        return False
    figure, axes = _axes("One kernel over VRAM and RAM, three layouts", result)
    for layout, text in LAYOUTS.items():
        if layout in found:
            axes.plot(*zip(*[(100 * share, value) for share, value in found[layout]]), "o-", label=text)
    axes.set(yscale="log", xlabel="% of the bytes in RAM", ylabel="GB/s")
    axes.legend()
    _save(figure, path)
    return True


# --- the page ----------------------------------------------------------------------------------------------------------


def cell(text: object) -> str:
    """As the text of a table's cell."""
    made = " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return made or "–"


def shown(row: dict[str, Any]) -> str:
    value, unit = row["value"], row["unit"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or unit in (None, "bool"):
        return row["seen"]
    if unit in row["seen"]:  # the words give the figure already
        return row["seen"]
    return f"{value:,.4g} {unit}: {row['seen']}" if isinstance(value, float) else f"{value:,} {unit}: {row['seen']}"


def _size(value: int | None) -> str:
    return f"{value / GIB:.0f} GiB" if value else "?"


def section(result: dict[str, Any], name: str, figures: list[tuple[str, str]]) -> list[str]:
    """The part of one result. `figures`: (file name, what it shows)."""
    device, machine, totals = result["device"], result["machine"], result["totals"]
    date = result["started"][:10]
    lines = [f"## {device['name']}, {date}" + (f" ({MODEL})" if result["model"] else ""), ""]
    link = f"PCIe {device.get('pcie_generation_most', '?')} x{device.get('pcie_width_most', '?')}"
    seen = f"at the start {device.get('pcie_generation', '?')} x{device.get('pcie_width', '?')}"
    lines += [
        f"{_size(device['vram'])} of VRAM, compute capability {device['compute_capability']}, driver {device.get('driver', '?')} "
        f"(CUDA {device['cuda']}), {link} ({seen}), {len(machine['numa'])} NUMA node(s); {machine['cpu'] or '?'}, {machine['cpus']} CPUs, "
        f"{_size(machine['ram'])} of RAM, Linux {machine['kernel']}. spillshim {result['revision'] or '?'}, sources {result['sources']}, "
        f"seed {result['seed']}, {result['seconds']:.0f} s: `{' '.join(result['command'])}`",
        "",
        f"**{totals['answered']} of {totals['asked']} questions answered**, {totals['unanswered']} not. Beliefs: "
        f"{len(result['beliefs']['confirmed'])} confirmed, {len(result['beliefs']['corrected'])} corrected. Raw figures: [{name}]({name})."
        + ("" if result["complete"] else f" The run was not completed ({result['interrupted'] or 'it was killed'})."),
        "",
    ]
    for file, text in figures:
        lines += [f"![{text}]({file})", ""]
    for experiment in result["experiments"]:
        lines += [f"### {experiment['name']} ({', '.join(experiment['groups'])}; {experiment['seconds']:.1f} s)", ""]
        many = len(experiment["rows"]) > UNFOLDED
        if many:
            lines += [f"<details><summary>{len(experiment['rows'])} rows</summary>", ""]
        lines += ["| asked | seen | verdict | decides |", "|---|---|---|---|"]
        for row in experiment["rows"]:
            verdict = row["verdict"]
            said = f"**{verdict}** `{row['belief']}`" if verdict == "corrects" else f"{verdict} `{row['belief']}`" if verdict == "confirms" else verdict
            lines.append(f"| {cell(row['ask'] or row['row'])} | {cell(shown(row))} | {'**not answered**' if verdict == 'unanswered' else said} | {cell(row['decides'])} |")
        lines.append("")
        if many:
            lines += ["</details>", ""]
        lines += [f"- problem: {cell(problem)}" for problem in experiment["problems"]]
        if experiment["problems"]:
            lines.append("")
    return lines


def page(parts: list[tuple[str, dict[str, Any], list[tuple[str, str]]]]) -> str:
    """The whole page: (file name, result, figures), newest first."""
    command = "`scripts/gpu-check`, rendered by `python benchmarks/render.py`"
    lines = ["# What devices answered", "", f"Made from the JSON files beside this page: {command}. Do not edit.", ""]
    for name, result, figures in sorted(parts, key=lambda part: (part[1]["started"], part[0]), reverse=True):
        lines += section(result, name, figures)
    return "\n".join(lines).rstrip() + "\n"


def render(files: list[Path], out: Path, model_allowed: bool, figures: bool = True) -> str:
    """Writes the figures (unless `figures` is False: then those that lie there are named) and returns the page."""
    parts = []
    for path in files:
        result = load(path, model_allowed)
        drawn = []
        for kind, draw, text in (
            ("roofline", draw_roofline, "Bounds and GB/s reached over the share in RAM"),
            ("layouts", draw_layouts, "GB/s over mixtures of VRAM and RAM in three layouts"),
        ):
            target = out / f"{path.stem}-{kind}.svg"
            if draw(result, target) if figures else target.exists():
                drawn.append((target.name, text))
        parts.append((path.name, result, drawn))
    return page(parts)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Renders results of scripts/gpu-check as README.md with figures.")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT.json", help="default: all of benchmarks/results")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--model", action="store_true", help="take results of the simulated device too, and label them")
    options = parser.parse_args(words)
    out = options.out.resolve()
    if options.model and out == RESULTS:
        parser.error("benchmarks/results holds results of real devices only; give another --out with --model")
    files = options.results or sorted(RESULTS.glob("*.json"))
    if out == RESULTS and options.results:
        # The page of the repository shows all that is there, whichever was named.
        files = sorted({*RESULTS.glob("*.json"), *(path.resolve() for path in options.results)})
        outside = [path for path in files if path.parent != RESULTS]
        if outside:
            parser.error(f"not in benchmarks/results: {', '.join(map(str, outside))}; copy it there first, or give --out")
    if not files:
        parser.error(f"no results in {RESULTS}: run scripts/gpu-check on a machine with a GPU")
    try:
        for path in files:  # nothing is written when one of them is refused
            load(path, options.model)
        out.mkdir(parents=True, exist_ok=True)
        text = render(files, out, options.model)
    except NotAResult as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except ImportError:
        print(f"{parser.prog}: matplotlib is needed: pip install matplotlib", file=sys.stderr)
        return 1
    (out / "README.md").write_text(text, encoding="utf-8")
    print(out / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
