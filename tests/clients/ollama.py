# SPDX-License-Identifier: Apache-2.0
"""ollama's side of its discovery, loading and unloading, after ollama fb30760: which processes it starts in which order, with
which environment, what it reads from their text, and what it concludes. Used by test_ollama.py.

What mirrors what:
  Ollama.environment   SetupLlamaServerCommandEnv, llamaServerLibraryPaths (llm/llama_server.go:445-559)
  Ollama.discover      llamaServerDiscoverDevices (discover/llama_server.go:42-165): llama-server without a model, killed at its
                       system_info; --list-devices with both outputs in one; `ollama gpu-discover`. The patterns: :174-194
  Ollama.free_now      the refresh with no runner left (discover/runner.go:335-366)
  Ollama.fits          the scheduler's check before it loads beside other models (server/sched.go:544-561)
  Ollama.load          startLlamaServer with num_gpu = -1 (llm/llama_server.go:348-440), then memoryParsingWriter (:2702-2818)
  Runner.free          GetDeviceInfos (:2593-2634): the least of its own accounting and what was free when it loaded
  Runner.unload        stopProcess (:2575-2591), which is SIGKILL, and waitForVRAMRecovery (server/sched.go:1433-1499)
  error_lines          StatusWriter (llm/status.go): lines that make it believe in an error
Waiting is left out: what ollama waits for has to be there when the process is gone.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama

_DEVICE = re.compile(r"^\s+(.+?):\s+(.+?)\s+\((\d+)\s+MiB,\s+(\d+)\s+MiB\s+free\)", re.MULTILINE)
_COMPUTE = re.compile(r"Device\s+(\d+):.*compute capability\s+(\d+)\.(\d+)")
_ARCHITECTURES = re.compile(r"CUDA\s*:\s*ARCHS\s*=\s*([\d,]+)")
_FREE_AT_LOAD = re.compile(r"using device (\S+)\s+\(.*\)\s+-\s+(\d+)\s+MiB free")
_ERRORS = ("panic:", "fatal error:", "error:", "Error:", "CUDA error", "cudaMalloc failed", "error loading model", "GGML_ASSERT")
_OUT_OF_MEMORY = ("out of memory", "failed to allocate", "allocation failed", "not enough memory", "insufficient memory")


def error_lines(log: str) -> list[str]:
    """The lines of a server's output that ollama takes for errors, and of which it says that memory ran out."""
    return [
        line
        for line in log.splitlines()
        if any(sign in line for sign in _ERRORS) or any(sign in line.lower() for sign in _OUT_OF_MEMORY)
    ]


@dataclass(frozen=True)
class Device:
    """The one device, as the text and the probe told it. Bytes; `total` and `free` from the list are whole MiB."""

    name: str
    total: int
    free: int
    compute: tuple[int, int]
    architectures: list[str]
    probe: dict[str, Any]


class Runner:
    """A loaded model."""

    def __init__(self, ollama: Ollama, server: llama.Server) -> None:
        self.ollama, self.server, self.size = ollama, server, server.loaded().bytes
        self.free_at_load = int(_FREE_AT_LOAD.findall(server.log)[-1][1]) * llama.MIB

    @property
    def free(self) -> int:
        """What ollama believes to be free while the model is loaded."""
        return max(0, min(self.ollama.device.total - self.size, self.free_at_load - self.size))

    def unload(self) -> bool:
        """Killed; True when free memory has risen by three quarters of the model, so that ollama does not wait any longer."""
        before = self.free
        self.server.kill()
        return self.ollama.free_now() - before > self.size * 0.75


class Ollama:
    """One server of ollama. `server` and `probe` are the programs llama-server and `ollama gpu-discover`; `folders` what it
    calls its library paths, the last one with the backend `backend`; `how` goes to run_sim for every process."""

    def __init__(
        self,
        run_sim: Any,
        server: Sequence[str | Path],
        probe: Sequence[str | Path],
        folders: Sequence[Path],
        backend: Path,
        how: Mapping[str, Any],
    ) -> None:
        self.run_sim, self.server, self.folders, self.backend, self.how = run_sim, server, folders, backend, dict(how)
        self.probe = [*probe, *(part for folder in folders for part in ("--lib-dir", folder))]
        self.device = self.discover()

    def environment(self, **more: str) -> dict[str, Any]:
        """`how` of a child: ollama's own environment goes on to it, LD_PRELOAD and LLAMA_ARG_* among it; the library path is
        made anew, with what was in it at its end."""
        inherited = self.run_sim.env()["LD_LIBRARY_PATH"]
        env = {
            **self.how.get("env", {}),
            "LD_LIBRARY_PATH": ":".join([*map(str, self.folders), inherited]),
            "GGML_BACKEND_PATH": str(self.backend),
            **more,
        }
        return {**self.how, "env": env}

    def _until_system_info(self, how: Mapping[str, Any]) -> str:
        options = ["--port", "49152", "--host", "127.0.0.1", "--no-webui", "--offline", "--verbose"]
        process = self.run_sim.start([*self.server, *options], **how)
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "system_info:" in line:
                break
        process.kill()
        out, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"ended by itself: {''.join(lines)}"
        assert out == "", "something was written to stdout"
        return "".join(lines)

    def _list(self, how: Mapping[str, Any]) -> str:
        process = self.run_sim.start([*self.server, "--list-devices", "--offline", "--verbose"], stderr=subprocess.STDOUT, **how)
        return self.run_sim.finish(process).ok().stdout

    def discover(self, **more: str) -> Device:
        how = self.environment(**more)
        said = self._until_system_info(how)
        listed = self._list(how)
        probed = self.run_sim(self.probe, **how).ok()
        (device,) = json.loads(probed.stdout)["devices"]  # nothing else is on stdout, or this fails
        ((name, _, total, free),) = _DEVICE.findall(listed)
        ((_, major, minor), *_) = _COMPUTE.findall(said + listed)
        (architectures,) = (found.split(",") for found in _ARCHITECTURES.findall(said))
        return Device(name, int(total) * llama.MIB, int(free) * llama.MIB, (int(major), int(minor)), architectures, device)

    def free_now(self) -> int:
        ((_, _, _, free),) = _DEVICE.findall(self._list(self.environment(CUDA_VISIBLE_DEVICES="0")))
        return int(free) * llama.MIB

    def fits(self, predicted: int, beside: Runner) -> bool:
        """False: the other model would be evicted first."""
        return predicted <= beside.free * 80 // 100

    def load(self, model: Path, context: int) -> Runner:
        options = ["--port", "49153", "--host", "127.0.0.1", "--no-webui", "--offline", "-c", str(context), "-np", "1"]
        options += ["--log-verbosity", "4", "--no-log-prefix", "--no-log-timestamps"]
        program = [*self.server, "--model", model, *options]
        return Runner(self, llama.Server(self.run_sim, program, self.environment(CUDA_VISIBLE_DEVICES="0")))
