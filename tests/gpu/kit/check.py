# SPDX-License-Identifier: Apache-2.0
"""One run of the kit: what is asked, in which order, within which budget, and what came of it.

Called by __main__.py. Rules: every experiment is a child of its own (runner.py); its rows are those that it listed, and each is
answered, or unanswered with the reason; the JSON file is rewritten after every experiment.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from kit import beliefs, contract, report, runner, table
from kit.build import CannotBuild, Toolbox, python_path
from kit.contract import Experiment

EXIT_ANSWERED, EXIT_UNANSWERED, EXIT_NO_DEVICE = 0, 1, 3
LIST_LIMIT = 60.0  # seconds: Python ones import what they need
SHARE = 0.6  # of its limit, that an experiment is told to take at most
NAMES_SHOWN = 4  # rows that share a reason, named in the summary
JUNK_KEPT = 5  # lines of stdout that were no rows, quoted per experiment
MIB = 1 << 20
GIB = 1 << 30
# The simulated machine, and how much of it is used: enough for every question, little enough for continuous integration.
SIM = {"SIMGPU_VRAM": "4G", "SIMGPU_RAM": "8G"}
SIM_BOUNDS = (512 * MIB, 1 * GIB)
REAL_BOUNDS = (12 * GIB, 24 * GIB)
FREE_SHARE = 0.6  # of what is free at the start, that may be used on a real machine
DROPPED = ("SPILLSHIM_", "SIMGPU_", "GPU_CHECK_", "LD_PRELOAD", "LD_AUDIT", "CUDA_INJECTION")
NEEDS_LIBRARY = {"hook", "apps", "moves", "llama"}


class NoDevice(Exception):
    """Nothing to run on, with the reason."""


class Check:
    def __init__(self, options: Namespace, arguments: list[str]) -> None:
        self.options = options
        self.sim = options.device == "sim"
        self.started = time.monotonic()
        self.deadline = self.started + options.minutes * 60
        self.toolbox = Toolbox(options.build, options.experiments)
        self.known = beliefs.read()
        self.stopped: str | None = None
        # ld.so splits its lists of paths at these characters, and this folder's links stand in them.
        temporary = tempfile.gettempdir()
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-check-", dir="/tmp" if set(temporary) & set(" \t\n:;$") else None))
        self.native_error: str | None = None
        self.library: str | None = None
        self.env: dict[str, str] = {}
        self.table = table.make()
        self.arguments = arguments
        self.result: dict[str, Any] = {}
        self.path: Path | None = None
        self.machines = 0

    # --- the environment of every child ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        env.update(PYTHONUNBUFFERED="1", GPU_CHECK_DEVICE=self.options.device, GPU_CHECK_SOURCE=str(report.ROOT))
        if self.toolbox.nvcc:
            env["GPU_CHECK_NVCC"] = self.toolbox.nvcc
        if self.options.wheels:
            env["GPU_CHECK_WHEELS"] = str(self.options.wheels.resolve())
        env["GPU_CHECK_BUILD"] = str(self.options.build)
        try:
            env["GPU_CHECK_CUDA_INCLUDE"] = str(self.toolbox.cuda_include)
            env["GPU_CHECK_KERNELS"] = str(self.toolbox.programs)
        except CannotBuild:
            pass  # each experiment in C says so
        groups = {group for experiment in self.chosen for group in experiment.groups}
        if self.sim or groups & NEEDS_LIBRARY:
            try:
                native = self.toolbox.native
                (self.scratch / "native").symlink_to(native)
                env["GPU_CHECK_NATIVE"] = str(self.scratch / "native")
                env["GPU_CHECK_LIBRARY"] = str(self.scratch / "native" / "libspillshim.so")
                path = [str(python_path(native, self.scratch)), *filter(None, [os.environ.get("PYTHONPATH")])]
                env["PYTHONPATH"] = os.pathsep.join(path)
                self.library = hashlib.sha256((native / "libspillshim.so").read_bytes()).hexdigest()[:16]
            except CannotBuild as error:
                if self.sim:
                    raise NoDevice(f"the simulated device is not there: {error}") from None
                self.native_error = str(error)
        if self.sim:
            env.pop("CUDA_VISIBLE_DEVICES", None)
            env.update(SIM, LD_LIBRARY_PATH=str(self.scratch / "native" / "sim"))
            try:
                companions = self.toolbox.companions()
            except CannotBuild as error:
                raise NoDevice(f"the simulated device has no kernels: {error}") from None
            (self.scratch / "kernels").symlink_to(self.toolbox.programs)
            env["SIMGPU_KERNELS"] = ":".join(str(self.scratch / "kernels" / path.name) for path in companions)
        self.env = env

    def _env_of(self, name: str, folder: Path) -> dict[str, str]:
        """The environment of one child; on the simulated device a machine of its own."""
        env = dict(self.env, GPU_CHECK_SCRATCH=str(folder))
        if self.sim:
            self.machines += 1
            env["SIMGPU_NAME"] = f"gpu-check-{os.getpid()}-{self.machines}"
            env["SIMGPU_STUB_LOG"] = str(folder / "stubs")
            env["SPILLSHIM_STATE_DIR"] = str(folder)
        return env

    def _forget_machine(self, env: dict[str, str]) -> None:
        # A killed program cannot remove the simulated machine that it shared.
        if self.sim:
            for left in Path("/dev/shm").glob(f"simgpu-{os.getuid()}-{env['SIMGPU_NAME']}*"):
                left.unlink(missing_ok=True)

    # --- the device ---------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        lines: list[str] = []
        env = self._env_of("device", self.scratch)
        source = Path(__file__).with_name("device.py")
        ended = runner.run([sys.executable, source], env=env, cwd=self.scratch, limit=60, take_line=lines.append)
        self._forget_machine(env)
        try:
            said = json.loads(lines[-1])
        except (IndexError, json.JSONDecodeError):
            raise NoDevice(f"the device could not be described: {ended.end()}\n{ended.stderr[-500:]}") from None
        if "device" not in said:
            raise NoDevice(said.get("error", "no device"))
        if not self.sim and "simgpu" in said["device"]["name"]:
            raise NoDevice("the driver that the loader finds is the simulated one (LD_LIBRARY_PATH?); --device sim asks it")
        return said

    def _bounds(self, said: dict[str, Any]) -> tuple[int, int]:
        """Bytes of VRAM and RAM that an experiment may use: as asked, else little enough to share the card."""
        if self.sim:
            vram, ram = SIM_BOUNDS
        else:
            free = said["device"].get("vram_free_at_start") or said["device"]["vram"] // 2
            available = said["machine"].get("ram_available") or 8 * GIB
            limit = said["machine"].get("cgroup_memory_max") or ""
            available = min(available, int(limit)) if limit.isdigit() else available
            vram, ram = min(REAL_BOUNDS[0], int(free * FREE_SHARE)), min(REAL_BOUNDS[1], int(available * FREE_SHARE))
        vram, ram = self.options.vram or vram, self.options.ram or ram
        return vram // (2 * MIB) * 2 * MIB, ram // (2 * MIB) * 2 * MIB

    # --- one experiment -----------------------------------------------------------------------------------------------

    def _argv(self, experiment: Experiment) -> list[str | Path]:
        if self.native_error and NEEDS_LIBRARY & set(experiment.groups):
            raise CannotBuild(self.native_error)
        if experiment.source.suffix == ".py":
            return [sys.executable, experiment.source]
        return [self.toolbox.program(experiment.source)]

    def _list(self, experiment: Experiment, record: dict[str, Any]) -> list[str | Path] | None:
        """Fills in the rows that will be asked, unanswered as yet. Returns how to run it, None when it cannot be."""
        names: list[str] = []
        argv = None
        try:
            argv = self._argv(experiment)
            lines: list[str] = []
            folder = self._folder(experiment)
            env = self._env_of(experiment.name, folder)
            ended = runner.run([*argv, "--list"], env=env, cwd=folder, limit=LIST_LIMIT, take_line=lines.append)
            self._forget_machine(env)
            names = [line.strip() for line in lines if line.strip()]
            wrong = [name for name in names if not contract.ROW_NAME.fullmatch(name)] or [n for n in names if names.count(n) > 1]
            if ended.exit != 0 or not names or wrong:
                if ended.exit != 0:
                    reason = f"--list failed: {ended.end()}"
                else:
                    reason = f"--list names what no row can be, or one twice: {', '.join(wrong[:3])[:200]}" if wrong else "--list named no rows"
                argv, record["stderr"] = None, ended.stderr
        except CannotBuild as error:
            reason, argv = str(error), None
        if argv is None:
            # What it would have asked is not known; that it was not answered is.
            record["problems"].append(" ".join(reason.split())[:400])
            record["status"] = "not runnable"
            names = [f"{experiment.name}.all"]
        record["rows"] = [contract.unanswered(name, record["problems"][0] if argv is None else "not run yet") for name in names]
        return argv

    def _folder(self, experiment: Experiment) -> Path:
        folder = self.scratch / experiment.name
        folder.mkdir(exist_ok=True)
        return folder

    def _take(self, record: dict[str, Any], line: str, said: set[str], started: float) -> None:
        """One line of an experiment's stdout."""
        if not line.strip():
            return
        problems, rows = record["problems"], record["rows"]
        try:
            row = contract.parse_row(line)
        except contract.NotARow as error:
            record["junk"] += 1
            if record["junk"] <= JUNK_KEPT:
                problems.append(f"stdout has a line that is no row: {error}: {line[:120]!r}")
            return
        name = row["row"]
        at = next((index for index, listed in enumerate(rows) if listed["row"] == name), None)
        if row["belief"] and row["belief"] not in self.known:
            problems.append(f"{name} names the belief {row['belief']}, which {beliefs.BELIEFS.name} does not have")
            # What was seen stands; it says nothing about a belief that nobody holds.
            answered = row["verdict"] != contract.UNANSWERED
            row = dict(row, belief=None, verdict=contract.MEASURED if answered else contract.UNANSWERED)
        if at is None:
            problems.append(f"{name} was not listed; it counts for nothing")
            record["unlisted"].append(row)
        elif name in said:
            problems.append(f"{name} was said twice; the first counts")
        else:
            said.add(name)
            rows[at] = dict(row, at=round(time.monotonic() - started, 3))
            self.table.row(row)

    def _ask(self, experiment: Experiment, argv: list[str | Path], record: dict[str, Any]) -> None:
        left = self.deadline - time.monotonic()
        limit = min(experiment.limit, left)
        folder = self._folder(experiment)
        env = self._env_of(experiment.name, folder)
        said: set[str] = set()
        started = time.monotonic()
        vram, ram = self.result["bounds"]["vram"], self.result["bounds"]["ram"]
        words = ["--vram", vram, "--ram", ram, "--seconds", max(1, int(limit * SHARE)), "--seed", self.options.seed]
        ended = runner.run(
            [*argv, *map(str, words)],
            env=env,
            cwd=folder,
            limit=limit,
            take_line=lambda line: self._take(record, line, said, started),
            stop=lambda: self.stopped is not None,
        )
        self._forget_machine(env)
        record.update(
            status="interrupted" if ended.interrupted else "timed out" if ended.timed_out else "ran",
            seconds=round(ended.seconds, 3), exit=ended.exit, signal=ended.signal, timed_out=ended.timed_out, stderr=ended.stderr,
        )  # fmt: skip
        problems = record["problems"]
        if record["junk"] > JUNK_KEPT:
            problems.append(f"stdout has {record['junk'] - JUNK_KEPT} more lines that are no rows")
        missing = [row["row"] for row in record["rows"] if row["row"] not in said]
        for index, row in enumerate(record["rows"]):
            if row["row"] in missing:
                why = f"never said: the experiment {ended.end()}" if not ended.interrupted else ended.end()
                record["rows"][index] = contract.unanswered(row["row"], why)
                self.table.row(record["rows"][index])
        if ended.exit == 0 and missing:
            problems.append(f"it ended with 0 and never said {', '.join(missing)}")
        elif not missing and ended.exit != 0:
            problems.append(f"all rows were said, and then it {ended.end()}")
        if ended.stuck:
            problems.append("it could not be killed: stuck in the kernel")
        elif ended.left_behind and ended.exit is not None:
            problems.append(f"it left {ended.left_behind} running process(es) behind, killed now")
        stubs = folder / "stubs"
        if stubs.exists():
            names = sorted({line.split()[0] for line in stubs.read_text(errors="replace").splitlines() if line.strip()})
            problems += [f"the simulated driver lacks {name}" for name in names if name not in experiment.sim_lacks]

    def _skip(self, record: dict[str, Any], status: str, why: str) -> None:
        record["status"] = status
        for index, row in enumerate(record["rows"]):
            record["rows"][index] = contract.unanswered(row["row"], why)
            self.table.row(record["rows"][index])

    # --- the run ------------------------------------------------------------------------------------------------------

    def _choose(self) -> list[Experiment]:
        every = contract.discover(self.options.experiments)
        wanted = self.options.only or list(contract.DEFAULT_GROUPS)
        self.empty_groups = [word for word in wanted if word in contract.GROUPS and not any(word in e.groups for e in every)]
        return [e for e in every if e.name in wanted or set(e.groups) & set(wanted)]

    def _on_signal(self, number: int, _frame: object) -> None:
        self.stopped = signal.Signals(number).name

    def run(self) -> int:
        """The exit code. Raises NoDevice before anything was asked, ValueError for a wrong experiment file."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        runner.become_subreaper()
        try:
            self.chosen = self._choose()
            self._prepare()
            self._begin(self._describe())
            self._all()
            return self._end()
        finally:
            self.table.close()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _begin(self, said: dict[str, Any]) -> None:
        vram, ram = self._bounds(said)
        now = datetime.datetime.now(datetime.timezone.utc)
        self.result = {
            "schema": report.SCHEMA,
            "model": self.sim,
            "complete": False,
            "interrupted": None,
            **said,
            # Of a path only its name: this is published.
            "command": ["scripts/gpu-check", *(Path(word).name if word.startswith(("/", "~")) else word for word in self.arguments)],
            "revision": report.revision(),
            "sources": report.sources(),
            "library": self.library,
            "started": now.isoformat(timespec="seconds"),
            "seconds": 0.0,
            "seed": self.options.seed,
            "bounds": {"vram": vram, "ram": ram, "minutes": self.options.minutes},
            "totals": {},
            "beliefs": {},
            "experiments": [],
        }
        self.path = report.choose(self.options.out, said["device"]["name"], now.date())
        device, machine = said["device"], said["machine"]
        label = "SIMULATED device, its figures are a model's and no GPU's: " if self.sim else ""
        self.table.note(
            f"{label}{device['name']}, {device['vram'] / GIB:.1f} GiB, driver {device.get('driver', '?')} (CUDA {device['cuda']}), "
            f"PCIe {device.get('pcie_generation', '?')}x{device.get('pcie_width', '?')}, kernel {machine['kernel']}, {machine['cpus']} CPUs, "
            f"{(machine['ram'] or 0) / GIB:.0f} GiB RAM; uses at most {vram / GIB:.1f} GiB VRAM, {ram / GIB:.1f} GiB RAM, "
            f"{self.options.minutes:g} min; seed {self.options.seed}"
        )  # fmt: skip
        if self.native_error:
            self.table.problem(self.native_error)

    def _save(self) -> None:
        assert self.path
        result = self.result
        result["seconds"] = round(time.monotonic() - self.started, 3)
        result["totals"], result["beliefs"] = report.totals(result["experiments"]), report.beliefs(result["experiments"])
        report.write(self.path, report.scrubbed(result, self.scratch))

    def _all(self) -> None:
        planned = []
        for experiment in self.chosen:
            record = self._record(experiment.name, list(experiment.groups))
            planned.append((experiment, record, self._list(experiment, record)))
        for group in self.empty_groups:
            record = self._record(group, [group])
            record.update(status="not there", rows=[contract.unanswered(f"{group}.all", f"not there yet: {contract.GROUPS[group]}")])
        self._save()
        self.table.begin(len(self.result["experiments"]))
        for number, (experiment, record, argv) in enumerate(planned, 1):
            self.table.experiment(number, experiment.name, ",".join(experiment.groups))
            left = self.deadline - time.monotonic()
            if argv is None:
                self._skip(record, record["status"], record["rows"][0]["seen"])
            elif self.stopped:
                self._skip(record, "interrupted", f"not run: interrupted by {self.stopped}")
            elif experiment.expect > left:
                self._skip(record, "skipped", f"skipped: takes {experiment.expect:g} s, {max(left, 0):.0f} s of the budget are left")
            else:
                self._ask(experiment, argv, record)
            for problem in record["problems"]:
                self.table.problem(problem)
            self.table.done()
            self._save()
        for number, record in enumerate(self.result["experiments"][len(planned) :], len(planned) + 1):
            self.table.experiment(number, record["name"], record["name"])
            self._skip(record, record["status"], record["rows"][0]["seen"])
            self.table.done()

    def _record(self, name: str, groups: list[str]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "name": name, "groups": groups, "status": "not run", "rows": [], "unlisted": [], "problems": [], "junk": 0,
            "seconds": 0.0, "exit": None, "signal": None, "timed_out": False, "stderr": "",
        }  # fmt: skip
        self.result["experiments"].append(record)
        return record

    def _end(self) -> int:
        self.result.update(complete=self.stopped is None, interrupted=self.stopped)
        self._save()
        self.table.close()
        totals, found = self.result["totals"], self.result["beliefs"]
        say = self.table.note
        say("")
        for experiment in self.result["experiments"]:
            by_reason: dict[str, list[str]] = {}
            for row in experiment["rows"]:
                if row["verdict"] == contract.UNANSWERED:
                    by_reason.setdefault(" ".join(row["seen"].split())[:300], []).append(row["row"])
            for reason, names in by_reason.items():
                more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                say(f"not answered: {', '.join(names[:NAMES_SHOWN])}{more}: {reason}")
        if found["corrected"]:
            say(f"beliefs corrected: {', '.join(found['corrected'])}")
        say(
            f"{totals['answered']} of {totals['asked']} rows answered, {totals['unanswered']} not; beliefs: {len(found['confirmed'])} confirmed, "
            f"{len(found['corrected'])} corrected; problems: {totals['problems']}; {self.result['seconds']:.1f} s"
        )  # fmt: skip
        if self.stopped:
            say(f"interrupted by {self.stopped}")
        say(f"written: {self.path}")
        return EXIT_ANSWERED if totals["asked"] and not totals["unanswered"] and not self.stopped else EXIT_UNANSWERED
