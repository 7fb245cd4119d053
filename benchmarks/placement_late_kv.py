# SPDX-License-Identifier: Apache-2.0
"""Where do a KV cache and compute buffers end up that a program allocates last, and what does each step read over the link?

The demo's decoder (weights, then KV, then compute buffers; more than VRAM holds in all), unmodified, on the simulated GPU, once for each
way of placing:
  best static    VRAM is kept free for just what comes later, and nothing is moved: what a person who knows the program would do
  settled        the default: the usual holdback, then the settle pass
  remembered     the default once more: what the run before needed is known, so that there is nothing to settle
  settled, late  no holdback at all: everything that comes late has to be brought in by displacement and the settle pass
  first come     no holdback, nothing is moved
  tail           as best static, but what lies in RAM is one piece of the weights instead of spread over them

Link bytes are the simulated clock's: with VRAM that takes no time and no overlap a step lasts as long as the link is busy. Step times
are of a second run, with a card's ratio of VRAM to link. Both are of the last step. Where regions lie is what the shim's log says;
what was moved until then is counted at the end.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spillshim import native

MIB = 1 << 20
LINK = 25 << 30  # bytes per second
WAYS = ("best static", "settled", "remembered", "settled, late", "first come", "tail")


@dataclass(frozen=True)
class Sizes:
    """In MiB."""

    vram: int = 256
    weights: int = 320
    kv: int = 48
    compute: int = 16
    steps: int = 12


@dataclass
class Run:
    """Bytes in RAM by region at the end, the last step in ms, the decoder's checksum, and bytes that were moved from tier to tier."""

    ram: list[int]
    step_ms: float
    checksum: str
    moved: int


def settings(way: str, sizes: Sizes) -> dict[str, str]:
    late = f"{sizes.kv + sizes.compute}M"
    return {
        "best static": {"HOLDBACK": late, "MOVES": "off"},
        "settled": {},
        "remembered": {},
        "settled, late": {"HOLDBACK": "0"},
        "first come": {"HOLDBACK": "0", "MOVES": "off"},
        "tail": {"HOLDBACK": late, "MOVES": "off", "CHUNK": "1T", "SPILL_CHUNK": "1T"},
    }[way]


def decode(native_folder: Path, sizes: Sizes, seed: int, shim: Mapping[str, str], sim: Mapping[str, str], memory: Path | None = None) -> Run:
    """One run of the decoder. `native_folder`: where libspillshim.so, sim/ and demo/ lie; `memory`: the folder of what is remembered."""
    demo = native_folder / "demo"
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        state.mkdir(mode=0o700)
        env = {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(native.loader_safe(native_folder / "sim")),
            "LD_PRELOAD": str(native.loader_safe(native_folder / "libspillshim.so")),
            "SPILLSHIM_STATE_DIR": str(state),
            "SPILLSHIM_STATS": f"{folder}/stats",
            "SPILLSHIM_REMEMBER": str(memory or 0),
            "SPILLSHIM_LOG": "debug",
            "SPILLSHIM_LOG_FILE": f"{folder}/log-%p",
            "SIMGPU_NAME": f"late-kv-{os.getpid()}",
            "SIMGPU_VRAM": f"{sizes.vram}M",
            "SIMGPU_LINK": str(LINK),
            "SIMGPU_LAUNCH": "0",
            "SIMGPU_KERNELS": str(demo / "decoder.simk.so"),
            **{f"SPILLSHIM_{name}": value for name, value in shim.items()},
            **{f"SIMGPU_{name}": value for name, value in sim.items()},
        }
        command = [demo / "decoder", "--json", "--layers", "16", "--seed", str(seed), "--steps", str(sizes.steps)]
        for what in ("weights", "kv", "compute"):
            command += [f"--{what}", f"{getattr(sizes, what)}M"]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
        if ran.returncode:
            raise RuntimeError(f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
        log = "".join(path.read_text() for path in Path(folder).glob("log-*"))
        moves = json.loads(Path(folder, "stats").read_text())["moves"]
    answer = json.loads(ran.stdout)
    # The last word on each region; addresses in the order of allocation.
    ram = {int(base, 16): int(bytes_) for base, bytes_ in re.findall(r"region base=0x([0-9a-f]+) bytes=\d+ ram=(\d+)", log)}
    return Run([ram[base] for base in ram], answer["step_ms"][-1], answer["checksum"], moves["promoted_bytes"] + moves["demoted_bytes"])


def compare(native_folder: Path, sizes: Sizes, seed: int, ways: tuple[str, ...] = WAYS) -> dict[str, tuple[Run, float]]:
    """By way: where regions lie (weights, KV, compute) and step time, and link bytes of a step."""
    found = {}
    for way in ways:
        with tempfile.TemporaryDirectory() as folder:
            memory = Path(folder) if way == "remembered" else None
            if memory:
                decode(native_folder, sizes, seed, settings(way, sizes), {}, memory)
            run = decode(native_folder, sizes, seed, settings(way, sizes), {"HBM": "1000G"}, memory)
            busy = decode(native_folder, sizes, seed, settings(way, sizes), {"HBM": "1000000G", "OVERLAP": "no"}, memory)
        if busy.checksum != run.checksum:
            raise RuntimeError(f"{way}: two runs of one program differ: {run.checksum}, {busy.checksum}")
        found[way] = (run, busy.step_ms * 1e-3 * LINK)
    return found


def main() -> None:
    from report import Row, arguments, show

    options = arguments(__doc__).parse_args()
    print(f"seed {options.seed}")
    sizes = Sizes()
    found = compare(native.library().parent, sizes, options.seed)
    best = found["best static"][1]
    rows = []
    for way, (run, link) in found.items():
        settled = way.startswith("settled") or way == "remembered"
        late = sum(run.ram[1:]) / MIB
        rows.append(Row(f"{way}: KV and compute in RAM", late, "MiB", "0" if settled else "", late == 0 if settled else None))
        ratio = link / best
        rows.append(Row("  read over the link", link / MIB, "MiB/step"))
        rows.append(Row("  of best static", ratio, "x", "<= 1.03" if settled else "", ratio <= 1.03 if settled else None))
        rows.append(Row("  a step", run.step_ms, "ms"))
        still = way == "remembered"
        rows.append(Row("  moved from tier to tier before", run.moved / MIB, "MiB", "0" if still else "", run.moved == 0 if still else None))
    same = len({run.checksum for run, _ in found.values()}) == 1
    rows.append(Row("all ways compute the same", float(same), "", "1", same))
    show("placement_late_kv", "A KV cache that comes last: where does it end up, and what does it cost?", "simulated GPU", True, rows,
         f"anchor: best static placement, same program; {sizes.vram} MiB of VRAM, link 25 GiB/s; a model, no GPU was measured", options.json)


if __name__ == "__main__":
    main()
