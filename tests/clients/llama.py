# SPDX-License-Identifier: Apache-2.0
"""A server that has loaded a model, and what it says: shared by the tests of llama.cpp's fit and of ollama's sequence.

What is read from its log is read as ollama reads it (memoryParsingWriter in llm/llama_server.go of ollama fb30760): the last
value of each buffer counts, because --fit tries several loads before the real one.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHEEL, GGUF = "cyllama-cuda12==0.2.12", "gguf==0.19.0"  # llama.cpp b8833
PROGRAMS = Path(__file__).resolve().parent / "programs"
MIB = 1 << 20

_BUFFER = re.compile(r"^[^\n:]*?(\w+):\s+(\S+)\s+(model|KV|compute|output|RS)\s+buffer size\s*=\s*([\d.]+)\s*MiB", re.MULTILINE)
_LAYERS = re.compile(r"offloaded\s+(\d+)/(\d+)\s+layers to GPU")


@dataclass(frozen=True)
class Loaded:
    """What a log says of a load: layers on the device and in all, and MiB of each kind of buffer on the device."""

    layers: tuple[int, int]
    device: dict[str, float]

    @property
    def bytes(self) -> int:
        """What ollama believes that the model takes of VRAM."""
        return int(sum(self.device.values()) * MIB)


def parse(log: str) -> Loaded:
    """Fails (IndexError) on a log without the line of the layers: what ollama would report as 0 % GPU."""
    here, all_ = _LAYERS.findall(log)[-1]
    last = {match[:3]: float(match[3]) for match in _BUFFER.findall(log)}
    return Loaded((int(here), int(all_)), {kind: size for (_, backend, kind), size in last.items() if backend == "CUDA0"})


class Server:
    """A running llama_server.py, or ollama_runner, that has loaded its model: `ask("decode 3")`, then `end()` or `kill()`."""

    def __init__(self, run_sim: Any, program: Sequence[str | Path], how: Mapping[str, Any]) -> None:
        self.run_sim = run_sim
        self.log_file = run_sim.tmp_path / f"{len(list(run_sim.tmp_path.glob('*.log')))}.log"
        with self.log_file.open("w") as log:  # a pipe would be full before anybody reads
            self.process = run_sim.start(program, stdin=subprocess.PIPE, stderr=log, **how)
        self.context = self._answer()["context"]

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"ended with {self.process.wait(60)}\n{self.log[-3000:]}")
        return json.loads(line)  # and so nothing else is on stdout

    def ask(self, command: str) -> dict[str, Any]:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._answer()

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def loaded(self) -> Loaded:
        return parse(self.log)

    def end(self) -> Any:
        """Have it free everything and end; its Result, with the log as stderr."""
        result = self.run_sim.finish(self.process, input="end\n")
        result.stderr = self.log
        return result.ok()

    def kill(self) -> None:
        """As ollama unloads a model (stopProcess)."""
        self.process.kill()
        assert self.process.wait(60) == -signal.SIGKILL
        self.process.communicate()


class Watch:
    """A third process that asks what memory there is (memory_answers.py)."""

    def __init__(self, run_sim: Any, how: Mapping[str, Any]) -> None:
        self.run_sim = run_sim
        self.process = run_sim.start([sys.executable, PROGRAMS / "memory_answers.py"], stdin=subprocess.PIPE, **how)

    def ask(self) -> dict[str, list[int | None]]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def agreed(self, *others: Mapping[str, list[int | None]]) -> tuple[int, int]:
        """Free and total in bytes, when every question has one answer here and in the `others` that were asked just before."""
        answers = [*others, self.ask()]
        pairs = [pair for one in answers for pair in one.values()]
        free = {free for free, _ in pairs if free is not None}
        total = {total for _, total in pairs if total is not None}
        assert len(free) == len(total) == 1, f"the answers differ: {answers}"
        assert 0 <= min(free) <= min(total)
        return free.pop(), total.pop()

    def end(self) -> None:
        self.run_sim.finish(self.process).ok()
