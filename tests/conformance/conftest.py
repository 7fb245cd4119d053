# SPDX-License-Identifier: Apache-2.0
"""The conformance suite: what spillshim needs of a CUDA driver, asked of the simulated one or of a real one.

    python -m pytest tests/conformance                      on simgpu
    python -m pytest tests/conformance --device real        on this machine's GPU; --observations FILE writes down what was seen
    SIMGPU_DOUBT=7 python -m pytest tests/conformance       on simgpu with its unconfirmed beliefs drawn otherwise
    python -m pytest tests/conformance --shim               on simgpu through libspillshim.so: nothing changes for memory that fits

Each test here is a body for a worker (worker.py), without fixtures. On simgpu every test that is marked with a belief also runs
once for each other branch of it (csrc/simgpu/doubt.def), and has to report the branch that is in force: a test that cannot see its
belief fall is worthless. Real drivers may take any branch; only what no permissible driver does is a failure.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNELS = HERE.parent / "gpu"  # facts.ptx, params.ptx, faulty.ptx and their sources
DESCRIBE = KERNELS / "kit" / "device.py"
DOUBTS = ROOT / "csrc" / "simgpu" / "doubt.def"
SIM = {"SIMGPU_VRAM": "4G", "SIMGPU_RAM": "4G", "SIMGPU_DEVICES": "2"}
# Everything that can be is managed by the shim, in the smallest chunks, so that the tests meet it and not the driver behind it.
SHIM = {"SPILLSHIM_MANAGED_MIN": "1", "SPILLSHIM_CHUNK": "2M", "SPILLSHIM_SPILL_CHUNK": "2M", "SPILLSHIM_QUIET": "1"}
VRAM_NEEDED = 2 << 30  # bytes free; the tests take at most half of it

sys.path.insert(0, str(HERE))

from worker import Outcome, Worker  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--device", choices=("sim", "real"), default="sim", help="the driver that is asked: simgpu, or this machine's")
    group.addoption("--observations", type=Path, metavar="FILE", help="write what was seen of each belief as JSON")
    group.addoption("--shim", action="store_true", help="with libspillshim.so preloaded (simgpu only)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("shim", False):
        preload(config)
    config.stash[SUITE] = Suite(config)


def pytest_sessionstart(session: pytest.Session) -> None:
    suite = session.config.stash[SUITE]
    if suite.real:
        suite.device = real_device()


def real_device() -> str:
    """The card and the driver in words; ends the run where there is none, or too little is free to share it."""
    ran = subprocess.run([sys.executable, DESCRIBE], capture_output=True, text=True, timeout=60, check=False)
    try:
        said = json.loads(ran.stdout)
    except json.JSONDecodeError:
        said = {"error": f"the driver's description ended with {ran.returncode}: {ran.stderr[-300:]}"}
    if "error" in said:
        pytest.exit(f"no device to ask: {said['error']}", returncode=3)
    device = said["device"]
    if "simgpu" in device["name"]:
        pytest.exit("the driver that the loader finds is the simulated one (LD_LIBRARY_PATH?)", returncode=3)
    if device.get("vram_free_at_start", VRAM_NEEDED) < VRAM_NEEDED:
        pytest.exit(f"less than {VRAM_NEEDED >> 30} GiB of VRAM are free", returncode=3)
    return f"{device['name']}, driver {device.get('driver', '?')} (CUDA {device['cuda']})"


def pytest_report_header(config: pytest.Config) -> str:
    suite = config.stash[SUITE]
    return f"device: {suite.device}{', SIMGPU_DOUBT=' + suite.doubt if suite.doubt else ''}{', through libspillshim.so' if suite.shim else ''}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if SUITE in config.stash:
        config.stash[SUITE].close()
        if config.getoption("shim", False):
            shutil.rmtree(os.environ["SPILLSHIM_STATE_DIR"], ignore_errors=True)


def preload(config: pytest.Config) -> None:
    """Start anew with the shim preloaded, unless it is: the workers are forked from this process."""
    if config.getoption("device", "sim") == "real":
        raise pytest.UsageError("--shim is for simgpu")
    if "libspillshim" in Path("/proc/self/maps").read_text():
        return
    from spillshim import native

    built = os.environ.get("SPILLSHIM_TEST_NATIVE")
    library = Path(built).resolve() / "libspillshim.so" if built else native.library()
    env = dict(os.environ, **SHIM, LD_PRELOAD=str(native.loader_safe(library)), SPILLSHIM_STATE_DIR=tempfile.mkdtemp(prefix="conformance-"))
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


def branches() -> dict[str, int]:
    """Belief id: how many ways simgpu can hold it."""
    rows = re.findall(r'^SIM_DOUBT\(\w+,\s*"([\w.]+)",\s*(\d+),', DOUBTS.read_text(), re.MULTILINE)
    return {name: int(count) for name, count in rows}


class Suite:
    """One run: the driver, the shared worker, what was seen."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.real = config.getoption("device", "sim") == "real"
        self.shim = config.getoption("shim", False)
        self.observations: Path | None = config.getoption("observations", None)
        self.doubt = "" if self.real else os.environ.get("SIMGPU_DOUBT", "")
        self.device = "simgpu"
        self.sim: Path | None = None  # the folder of simgpu's libcuda.so.1
        self.worker: Worker | None = None
        self.bodies: dict = {}
        self.seen: dict[str, list[tuple[int | None, str, str]]] = {}  # belief: (branch, text, test)
        self.failed: dict[str, str] = {}  # belief: the test that ended without an answer
        self.started = 0

    @functools.cached_property
    def library(self) -> Path | None:
        return None if self.real else self.sim / "libcuda.so.1"

    @functools.cached_property
    def env(self) -> dict[str, str]:
        env = {"CONFORMANCE_DEVICE": "real" if self.real else "sim", "CONFORMANCE_KERNELS": str(KERNELS), "PYTHONPATH": str(HERE)}
        if not self.real:
            from nvcc import Builder

            builder = Builder(self.config.cache.mkdir("cuda_programs"))
            companions = [builder.companion(KERNELS / f"{name}.cu", f"{name}.simk.so", "c") for name in ("facts", "params", "faulty")]
            env.update(SIM, LD_LIBRARY_PATH=str(self.sim), SIMGPU_KERNELS=":".join(map(str, companions)))
        return env

    def start(self, doubt: str, shared: bool) -> Worker:
        self.started += 1
        env = dict(self.env, SIMGPU_NAME=f"conformance-{os.getpid()}-{self.started}", SIMGPU_DOUBT=doubt)
        return Worker(self.bodies, env, self.library, shared)

    def run(self, name: str, doubt: str, own_process: bool) -> Outcome:
        if own_process or doubt != self.doubt:
            worker = self.start(doubt, shared=not own_process)
            outcome = worker.ask(name)
            worker.end()
            return outcome
        self.worker = self.worker or self.start(doubt, shared=True)
        outcome = self.worker.ask(name)
        if outcome.broken:
            self.worker.end()
            self.worker = None
        return outcome

    @functools.cache  # noqa: B019 (one object a run)
    def drawn(self, doubt: str) -> dict[str, int]:
        """The branches in force, as simgpu itself says them."""
        if not doubt:
            return {}
        code = f"import ctypes; raise SystemExit(ctypes.CDLL({str(self.library)!r}).cuInit(0))"
        env = dict(os.environ, **self.env, SIMGPU_DOUBT=doubt, SIMGPU_NAME=f"conformance-{os.getpid()}-drawn")
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
        return {name: int(branch) for name, branch in re.findall(r" ([a-z]+\.\w+)=(\d)", ran.stderr)}

    def close(self) -> None:
        if self.worker:
            self.worker.end()
            self.worker = None
        for left in Path("/dev/shm").glob(f"simgpu-{os.getuid()}-conformance-{os.getpid()}-*"):
            left.unlink(missing_ok=True)  # a process that ended by _exit or a signal cannot


# A belief that another one hides when it falls, so that a test cannot tell: whatever it reports then is right.
HIDDEN_BY = {
    "vmm.remap_beside_running_kernel": "vmm.unmap_no_drain",
    "copy.rectangle_extent": "copy.over_tiers_refused",
    "copy.ram_mappings": "copy.checked_at_call",
    "copy.needs_own_grant": "copy.checked_at_call",
}
COUNTS = {"passed": 0, "failed": 0, "skipped": 0}
SUITE = pytest.StashKey[Suite]()


# --- collection ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def doubt(request: pytest.FixtureRequest) -> str:
    """Which beliefs simgpu holds otherwise while this test runs."""
    suite = request.config.stash[SUITE]
    if not suite.real and not suite.sim:
        from spillshim import native

        suite.sim = native.loader_safe(request.getfixturevalue("sim_dir"))
    return getattr(request, "param", suite.doubt)


def beliefs_of(definition: pytest.Function) -> list[str]:
    return [name for mark in definition.iter_markers("belief") for name in mark.args]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = metafunc.config.stash[SUITE]
    if suite.real or suite.doubt or suite.shim or suite.observations:
        return  # one driver is asked, as it is
    known = branches()
    others = [f"{name}={n}" for name in beliefs_of(metafunc.definition) for n in range(1, known.get(name, 1))]
    if others:
        metafunc.parametrize("doubt", ["", *others], ids=["believed", *others], indirect=True)


# --- running ------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    suite = pyfuncitem.config.stash[SUITE]
    if not suite.bodies:
        for item in pyfuncitem.session.items:
            if item.path.is_relative_to(HERE) and isinstance(item, pytest.Function):
                params = {k: v for k, v in getattr(item, "callspec", NO_PARAMS).params.items() if k != "doubt"}
                suite.bodies[item.nodeid] = functools.partial(item.obj, **params)
    doubt = pyfuncitem.funcargs["doubt"]
    differs = pyfuncitem.get_closest_marker("shim_differs")
    if suite.shim and differs:
        pytest.skip(f"libspillshim.so answers otherwise: {differs.args[0]}")
    outcome = suite.run(pyfuncitem.nodeid, doubt, pyfuncitem.get_closest_marker("own_process") is not None)
    beliefs = beliefs_of(pyfuncitem)
    for name, branch, text in outcome.saw:
        if name in beliefs:
            suite.seen.setdefault(name, []).append((branch, text, pyfuncitem.name))
    if outcome.skipped is not None or outcome.failed:
        for name in beliefs:
            suite.failed[name] = f"{pyfuncitem.name} {'failed' if outcome.failed else f'was skipped: {outcome.skipped}'}"
    if outcome.skipped is not None:
        pytest.skip(outcome.skipped)
    if outcome.failed:
        pytest.fail(outcome.failed, pytrace=False)
    check_report(suite, doubt, beliefs, outcome.saw)
    return True


class NO_PARAMS:
    params: dict = {}


def check_report(suite: Suite, doubt: str, beliefs: list[str], saw: list[tuple[str, int | None, str]]) -> None:
    """A passed test has said what it saw of each of its beliefs; on simgpu that is the branch in force."""
    stray = {name for name, _, _ in saw} - set(beliefs)
    silent = set(beliefs) - {name for name, _, _ in saw}
    if stray or silent:
        pytest.fail(f"reported without being marked: {sorted(stray)}; marked and not reported: {sorted(silent)}", pytrace=False)
    if suite.real or (suite.shim and doubt):
        return  # what the driver does about a belief, spillshim may do otherwise for it
    in_force = suite.drawn(doubt)
    for name, branch, text in saw:
        expected = in_force.get(name, 0)
        if branch != expected and not in_force.get(HIDDEN_BY.get(name)):
            seen = "something else" if branch is None else f"branch {branch}"
            pytest.fail(f"{name}: branch {expected} is in force, the test saw {seen}: {text}", pytrace=False)


# --- what was seen ------------------------------------------------------------------------------------------------


def verdicts(suite: Suite) -> dict[str, dict]:
    """Belief: confirmed, corrected (any test that saw another branch) or unanswered, with what was seen."""
    made = {}
    for name in sorted({*suite.seen, *suite.failed}):
        seen = suite.seen.get(name, [])
        verdict = "corrected" if any(branch != 0 for branch, _, _ in seen) else "unanswered" if name in suite.failed or not seen else "confirmed"
        why = [suite.failed[name]] if name in suite.failed else []
        made[name] = {"verdict": verdict, "seen": [f"{test}: {text}" for _, text, test in seen] + why}
    return made


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # A report knows its test's path, not the run; both the suite and whole runs of the tests come by here.
    if report.when == "call" or report.outcome == "skipped":
        COUNTS[report.outcome] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    suite = session.config.stash[SUITE]
    if suite.observations:
        made = {"device": suite.device, "tests": COUNTS, "beliefs": verdicts(suite)}
        suite.observations.write_text(json.dumps(made, indent=1) + "\n")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    suite = config.stash[SUITE]
    if not suite.real:
        return
    found = verdicts(suite)
    count = {word: sum(v["verdict"] == word for v in found.values()) for word in ("confirmed", "corrected", "unanswered")}
    terminalreporter.write_sep("=", "beliefs")
    for name, verdict in found.items():
        if verdict["verdict"] != "confirmed":
            terminalreporter.write_line(f"{verdict['verdict']:<10} {name}: {'; '.join(verdict['seen'])}")
    terminalreporter.write_line(", ".join(f"{n} {word}" for word, n in count.items()))
