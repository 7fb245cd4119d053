# SPDX-License-Identifier: Apache-2.0
"""`spillshim demo`: one unmodified decoder-like program, run three times with weights larger than VRAM.

plain: dies of out-of-memory. spilled: under `spillshim run`, finishes. reference: with enough VRAM and without the shim.
The checksums of the last two must be equal. With an NVIDIA GPU all three run there, under a VRAM cap (plain is then the
shim with the cap and spilling off); without one, on the simulated driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil

from spillshim import checks, launch, native, sizes
from spillshim.cli.options import SizeType, console, show
from spillshim.errors import EXIT_CHECK_FAILED, SpillshimError
from spillshim.sizes import GIB, MIB, human

_LAYERS = 16
_RUN_TIMEOUT = 600.0  # seconds for one of the three runs
_NO_DEVICE = 3  # the decoder's exit status without a driver or device
_SIM_VRAM = (GIB, 512 * MIB, 256 * MIB, 128 * MIB)  # tried in this order: what this machine's RAM allows
_GPU_VRAM = 2 * GIB
# Settings of an outer run that would change what the demo shows.
_NOT_INHERITED = {f"SPILLSHIM_{name}" for name in ("DISABLE", "SPILL", "VRAM_LIMIT", "HOST_LIMIT", "OOM", "JOB", "STATS", "OBSERVE", "QUIET")}
_SIM_LABEL = "simulated GPU: a step's time is the model's figure, the run's is this CPU's; neither is a GPU's speed"


class CannotShow(SpillshimError):
    """The demo cannot be run here; as any demo that shows nothing, it ends with 1."""

    exit_code = EXIT_CHECK_FAILED


@dataclass
class Run:
    """One run of the decoder. `result` is ok, oom or error; sizes in bytes, `seconds` of wall time."""

    name: str
    how: str
    vram: int
    result: str
    seconds: float
    checksum: str | None = None
    device: str | None = None
    step_ms: list[float] = field(default_factory=list)
    said: str = ""  # what the program and the shim wrote to stderr


@dataclass
class Plan:
    """Sizes of the demo in bytes; `cap` is the VRAM of the simulated card, or the limit set on the real one."""

    cap: int
    weights: int
    kv: int
    compute: int
    steps: int
    seed: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute

    def decoder(self) -> list[str]:
        options = {"weights": self.weights, "kv": self.kv, "compute": self.compute, "layers": _LAYERS, "steps": self.steps, "seed": self.seed}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [str(native.demo_dir() / "decoder"), *words, "--json"]


def _plan(cap: int, ratio: float, steps: int, seed: int) -> Plan:
    """Weights of `ratio` x VRAM; KV and compute buffers in the proportions of a small chat model."""
    kv = max(cap // 16, 16 * MIB, _LAYERS * (steps + 1) * 4096)
    return Plan(cap, int(cap * ratio) // 16 * 16, kv, max(cap // 32, 16 * MIB), steps, seed)


def _available() -> tuple[int, int]:
    """(RAM that can be had now within the cgroup's limit, RAM that the shim leaves alone), bytes."""
    memory = psutil.virtual_memory()
    available = memory.available
    limit = checks.cgroup_limit()
    if limit is not None:
        available = min(available, limit[0] - limit[1])
    return available, max(memory.total // 10, 2 * GIB)


def _needed_ram(plan: Plan) -> int:
    """RAM the demo needs at once on the simulated driver, where VRAM is RAM too."""
    return plan.total + plan.total // 8 + 256 * MIB


def _simulated_plan(vram: int | None, ratio: float, steps: int, seed: int) -> Plan:
    available, reserve = _available()
    for cap in (vram,) if vram else _SIM_VRAM:
        plan = _plan(cap, ratio, steps, seed)
        if _needed_ram(plan) + reserve <= available:
            return plan
    raise CannotShow(
        f"not enough RAM for the simulated GPU: VRAM of {human(plan.cap)} and weights of {human(plan.weights)} need "
        f"{human(_needed_ram(plan))} and {human(reserve)} stay untouched, but {human(available)} are available",
        "Close something, give a smaller --vram or --ratio, or run it on a machine with an NVIDIA GPU.",
    )


def _without_sim(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without the shim and without the simulated driver, for asking whether there is a real GPU."""
    made = launch.without_shim(env)
    try:
        ours = {str(native.sim_dir()), str(native.loader_safe(native.sim_dir()))}
    except SpillshimError:
        ours = set()
    kept = [entry for entry in made.pop("LD_LIBRARY_PATH", "").split(":") if entry and entry not in ours]
    if kept:
        made["LD_LIBRARY_PATH"] = ":".join(kept)
    return {name: value for name, value in made.items() if name not in _NOT_INHERITED}


def _real_device(env: Mapping[str, str]) -> bool:
    """True with a usable NVIDIA GPU. Raises CannotShow when there is one that does not work."""
    tiny = [str(native.demo_dir() / "decoder"), "--weights", "1M", "--kv", "1M", "--compute", "1M", "--steps", "1", "--json"]
    try:
        ran = subprocess.run(tiny, env=dict(env), capture_output=True, text=True, timeout=_RUN_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotShow("the NVIDIA driver does not answer", "See `nvidia-smi` and the kernel log (dmesg).") from error
    if ran.returncode == 0:
        return True
    if ran.returncode == _NO_DEVICE:
        return False
    raise CannotShow(f"the demo program fails on this machine's GPU: {ran.stderr.strip() or ran.returncode}", "See `spillshim doctor`.")


def _last_object(text: str) -> dict[str, Any]:
    lines = text.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _execute(name: str, how: str, vram: int, argv: list[str], env: Mapping[str, str], folder: Path) -> Run:
    """Run one of the three to its end; its output is kept in `folder`, which is also its working folder: `python -m` must
    find the installed package, not a source tree that happens to be the current folder."""
    started = time.monotonic()
    try:
        ran = subprocess.run(argv, env=dict(env), cwd=folder, capture_output=True, text=True, errors="replace", timeout=_RUN_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return Run(name, how, vram, "error", time.monotonic() - started, said=f"no end after {_RUN_TIMEOUT:.0f} s")
    seconds = time.monotonic() - started
    (folder / f"{name}.out").write_text(ran.stdout)
    (folder / f"{name}.err").write_text(ran.stderr)
    answer = _last_object(ran.stdout)
    result = answer.get("result", "error")
    if ran.returncode not in (0, 2) or result not in ("ok", "oom"):
        result = "error"
    said = ran.stderr.strip() or (f"exit status {ran.returncode}" if result == "error" else "")
    return Run(name, how, vram, result, seconds, answer.get("checksum"), answer.get("device"), answer.get("step_ms", []), said)


def _stats(path: Path) -> dict[str, Any]:
    """What the shim wrote at the decoder's end; {} when it wrote nothing."""
    try:
        return _last_object(path.read_text())
    except OSError:
        return {}


def _three_runs(plan: Plan, simulated: bool, folder: Path, env: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yields (what is about to run, a function that runs it) for the three runs."""
    decoder = plan.decoder()
    spillshim = [sys.executable, "-m", "spillshim", "run"]
    stats = ["--stats", str(folder / "spilled.stats")]
    if simulated:
        # Enough RAM for whatever cannot stay in VRAM; a fresh machine for each run.
        ram = plan.total + GIB
        small = {"SIMGPU_VRAM": str(plan.cap), "SIMGPU_RAM": str(ram)}
        large = 2 * plan.total + GIB
        roomy = {"SIMGPU_VRAM": str(large), "SIMGPU_RAM": str(ram)}
        machine = ["--sim", f"vram={plan.cap},ram={ram}"]
        yield "plain", lambda: _execute("plain", "no shim", plan.cap, decoder, launch.simulated(env, small), folder)
        yield "spilled", lambda: _execute("spilled", "spillshim run --sim", plan.cap, [*spillshim, *machine, *stats, "--", *decoder], env, folder)
        yield "reference", lambda: _execute("reference", "no shim", large, decoder, launch.simulated(env, roomy), folder)
    else:
        cap = ["--vram-limit", str(plan.cap)]
        yield "plain", lambda: _execute("plain", "run --no-spill", plan.cap, [*spillshim, *cap, "--no-spill", "--quiet", "--", *decoder], env, folder)
        yield "spilled", lambda: _execute("spilled", "run --vram-limit", plan.cap, [*spillshim, *cap, *stats, "--", *decoder], env, folder)
        yield "reference", lambda: _execute("reference", "no shim", 0, decoder, env, folder)


def _reason(runs: Mapping[str, Run], spilled_bytes: int) -> str | None:
    """Why the demo failed, or None."""
    wanted = {"plain": "oom", "spilled": "ok", "reference": "ok"}
    for name, result in wanted.items():
        run = runs[name]
        if run.result != result:
            return f"the {name} run ended with {run.result} instead of {result}" + (f": {run.said.splitlines()[-1]}" if run.said else "")
    if runs["spilled"].checksum is None or runs["spilled"].checksum != runs["reference"].checksum:
        return f"the checksums differ: {runs['spilled'].checksum} spilled, {runs['reference'].checksum} with enough VRAM"
    if spilled_bytes <= 0:
        return "the spilled run reported no spilled bytes, so it proves nothing"
    return None


@contextmanager
def _progress() -> Iterator[Any]:
    """A progress bar on a terminal, nothing in a pipe: yields a function that announces the next run."""
    if not sys.stderr.isatty():
        yield lambda name, done: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=3)
        yield lambda name, done: bar.update(task, description=f"{name} run", completed=done)


def _print_table(plan: Plan, runs: Mapping[str, Run], stats: Mapping[str, Any], simulated: bool, reason: str | None) -> None:
    from rich.table import Table

    device = runs["reference"].device or runs["spilled"].device or "unknown device"
    click.echo(f"decoder on {device}: weights {human(plan.weights)}, KV {human(plan.kv)}, compute {human(plan.compute)}, {plan.steps} steps")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "VRAM", "result", "checksum", "spilled", "step", "time"):
        table.add_column(column, no_wrap=True)
    for run in runs.values():
        spilled = human(stats["spilled"]["bytes_peak"]) if run.name == "spilled" and "spilled" in stats else "-"
        step = f"{median(run.step_ms):.1f} ms" if run.step_ms else "-"
        vram = human(run.vram) if run.vram else "no limit"
        table.add_row(run.name, vram, run.result, run.checksum or "-", spilled, step, f"{run.seconds:.1f} s")
    show(table)
    if simulated:
        click.echo(_SIM_LABEL)
    for line in runs["spilled"].said.splitlines():
        click.echo(line)
    click.echo(f"FAILED: {reason}" if reason else "plain runs out of memory; with spillshim the same program finishes, with the reference's checksum")


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on the last line instead of the table.")
@click.option("--vram", type=SizeType(percent=False, minimum=64 * MIB), help="VRAM of the simulated card, or the limit on a real one. [default: 1G, less where RAM is short; 2G on a GPU]")
@click.option("--ratio", type=click.FloatRange(0.1, 16), default=1.5, show_default=True, help="Weights as a multiple of that VRAM.")
@click.option("--steps", type=click.IntRange(1, 10000), default=4, show_default=True, help="Decode steps.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=1, show_default=True, help="Seed of the weights.")
@click.option("--sim/--gpu", "force_sim", default=None, help="The simulated GPU even where there is a real one; or the real one or nothing. [default: the real one if there is one]")
@click.option("--keep", is_flag=True, help="Keep what the runs wrote, and say where.")
@click.pass_context
def command(ctx: click.Context, as_json: bool, vram: sizes.Amount | None, ratio: float, steps: int, seed: int, force_sim: bool | None, keep: bool) -> None:
    """Run one unmodified program three times: plain (out of memory), spilled, and with enough VRAM; compare the results.

    Exit code 0 when the plain run died of out-of-memory, the spilled one finished and the checksums are equal; else 1.
    """
    env = _without_sim(launch.inherited())
    asked = vram.size if vram else None
    try:
        simulated = force_sim if force_sim else not _real_device(env)
        if force_sim is False and simulated:
            raise CannotShow("no usable NVIDIA driver or device, and --gpu was given", "Leave --gpu out: the simulated GPU is used then.")
        plan = _simulated_plan(asked, ratio, steps, seed) if simulated else _plan(asked or _GPU_VRAM, ratio, steps, seed)
    except CannotShow as error:
        if as_json:
            click.echo(json.dumps({"plain": None, "spilled": None, "reference": None, "checksum_equal": False, "reason": error.message}))
        raise

    folder = Path(tempfile.mkdtemp(prefix="spillshim-demo-"))
    try:
        runs: dict[str, Run] = {}
        with _progress() as announce:
            for name, execute in _three_runs(plan, simulated, folder, env):
                announce(name, len(runs))
                runs[name] = execute()
        stats = _stats(folder / "spilled.stats")
    finally:
        if keep:
            click.echo(f"kept: {folder}", err=True)
        else:
            for file in folder.iterdir():
                file.unlink()
            os.rmdir(folder)

    spilled_bytes = int(stats.get("spilled", {}).get("bytes_peak", 0))
    reason = _reason(runs, spilled_bytes)
    if not as_json:
        _print_table(plan, runs, stats, simulated, reason)
    else:
        answer = {
            "plain": runs["plain"].result,
            "spilled": runs["spilled"].result,
            "reference": runs["reference"].result,
            "checksum_equal": runs["spilled"].checksum is not None and runs["spilled"].checksum == runs["reference"].checksum,
            "backend": stats.get("backend"),
            "device": runs["reference"].device or runs["spilled"].device,
            "simulated": simulated,
            "plain_by": "no-shim" if simulated else "cap",
            "vram": plan.cap,
            "weights": plan.weights,
            "kv": plan.kv,
            "compute": plan.compute,
            "steps": plan.steps,
            "seed": plan.seed,
            "spilled_bytes": spilled_bytes,
            "vram_peak": stats.get("vram_peak"),
            "checksums": {name: run.checksum for name, run in runs.items() if run.checksum},
            "seconds": {name: round(run.seconds, 3) for name, run in runs.items()},
            "step_ms": {name: run.step_ms for name, run in runs.items() if run.step_ms},
            "reason": reason,
        }
        if keep:
            answer["runs"] = [asdict(run) for run in runs.values()]
        click.echo(json.dumps(answer))
    if reason:
        if as_json:
            click.echo(f"spillshim: the demo failed: {reason}", err=True)
        ctx.exit(EXIT_CHECK_FAILED)
