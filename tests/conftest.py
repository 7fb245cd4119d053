# SPDX-License-Identifier: Apache-2.0
"""What every test shares: where the native parts are, a clean environment, a compiler, and `run_sim`.

The parts are those of the installed package; SPILLSHIM_TEST_NATIVE=FOLDER takes a folder of the same layout instead
(`cmake --install BUILD --prefix X` makes X/spillshim), SPILLSHIM_TEST_{LIBRARY,PROBE,SIM,DEMO} single parts of it.
SPILLSHIM_TEST_DOUBT=SEED (or ids) runs every program on a simulated GPU whose unconfirmed beliefs are held otherwise: the
integration tests must pass with any; unit tests of the simulator itself need not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sanitize

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run the longer members (marker `slow`); `scripts/test --ci` does"
    )
    parser.addoption(
        "--clients", action="store_true", help="also run the large clients (marker `large`): fetches up to some GB once"
    )
    parser.addoption(
        "--soak",
        nargs="?",
        type=int,
        const=1_000_000,
        help="only the soak (marker `soak`): so many operations (a million), and ten minutes' worth of moves against launches",
    )
    parser.addoption("--soak-seed", type=int, default=1, help="the soak's first seed")
    parser.addoption(
        "--san",
        action="store_true",
        help="only the tests that run programs on the simulated driver, each on an AddressSanitizer build (with undefined "
        "behaviour) and on a ThreadSanitizer build",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: a longer member of the suite, run by `scripts/test --ci`")
    config.addinivalue_line("markers", "soak: runs for an hour, and with --soak only")
    config.addinivalue_line("markers", "clients: programs that others wrote, on the simulated GPU (tests/clients)")
    config.addinivalue_line("markers", "large: a client of hundreds of MB and more, run with --clients only")
    config.addinivalue_line("markers", "no_sanitizer(reason, only=kind): cannot run on a sanitizer's build (of that kind)")
    # Here and not in tests/conformance: its helpers use them before its own conftest is configured.
    config.addinivalue_line("markers", "belief(id, ...): decides these rows of csrc/simgpu/BELIEFS.md")
    config.addinivalue_line("markers", "own_process: runs in a process of its own")
    config.addinivalue_line("markers", "shim_differs(reason): libspillshim.so answers otherwise, on purpose")
    config.addinivalue_line("markers", "stubs(name, ...): run_sim may reach these unimplemented entries of the simulated driver")


def _wants_sanitizer(definition: pytest.Item) -> bool:
    """True for a test that names its sanitizers itself."""
    named = (mark.args[0] for mark in definition.iter_markers("parametrize"))
    return any("sanitizer" in (names.split(",") if isinstance(names, str) else names) for names in named)


def _under_sanitizer(item: pytest.Item, config: pytest.Config) -> bool:
    kind = getattr(getattr(item, "callspec", None), "params", {}).get("sanitizer")
    if not kind or any(mark.kwargs.get("only", kind) == kind for mark in item.iter_markers("no_sanitizer")):
        return False
    skipped = item.get_closest_marker("large") or item.get_closest_marker("soak") or (item.get_closest_marker("slow") and not config.getoption("--slow"))
    return _wants_sanitizer(item) or not skipped


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not metafunc.config.getoption("--san") or "run_sim" not in metafunc.fixturenames:
        return
    if not _wants_sanitizer(metafunc.definition):
        metafunc.parametrize("sanitizer", list(sanitize.KINDS), indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--san"):
        chosen = [item for item in items if _under_sanitizer(item, config)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
        for item in items:
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(sanitize.SLOWER * float(config.getini("timeout"))))
        return
    if config.getoption("--soak"):
        chosen = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="soak: run with --soak (scripts/test --soak)"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="longer member: run with --slow (scripts/test --ci)"))
        if item.get_closest_marker("large") and not config.getoption("--clients"):
            item.add_marker(pytest.mark.skip(reason="large client: run with --clients"))


# --- where things are ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sanitizer(request: pytest.FixtureRequest) -> sanitize.Sanitizer | None:
    """The sanitizer whose build of the native parts is under test, None for the plain ones. See sanitize.py.

    Tests that always want one say `@pytest.mark.parametrize("sanitizer", ["address", "thread"], indirect=True)`.
    """
    kind = getattr(request, "param", None)
    if not kind:
        return None
    folder = request.config.cache.mkdir(f"sanitizer-{kind}")
    try:
        return sanitize.built(kind, folder, request.getfixturevalue("cuda_include"), shutil.which("cmake"))
    except sanitize.Unavailable as why:
        if request.config.getoption("--san"):
            pytest.fail(str(why), pytrace=False)
        pytest.skip(str(why))


def _part(sanitizer: sanitize.Sanitizer | None, variable: str, *parts: str) -> Path:
    override = os.environ.get(f"SPILLSHIM_TEST_{variable}")
    if sanitizer:
        path = sanitizer.native.joinpath(*parts)
    elif override:
        path = Path(override).resolve()
    elif os.environ.get("SPILLSHIM_TEST_NATIVE"):
        path = Path(os.environ["SPILLSHIM_TEST_NATIVE"]).resolve().joinpath(*parts)
    else:
        from importlib import resources

        path = Path(str(resources.files("spillshim").joinpath("/".join(parts))))
    if not path.exists():
        pytest.fail(
            f"native part not built: {path} (pip install -e ., or set SPILLSHIM_TEST_{variable})", pytrace=False
        )
    return path


@pytest.fixture(scope="session")
def native_dir(sanitizer: sanitize.Sanitizer | None) -> Path:
    """The folder that holds libspillshim.so, spillshim-probe, sim/ and demo/."""
    return _part(sanitizer, "LIBRARY", "libspillshim.so").parent


@pytest.fixture(scope="session")
def libspillshim(sanitizer: sanitize.Sanitizer | None) -> Path:
    """The library under test."""
    return _part(sanitizer, "LIBRARY", "libspillshim.so")


@pytest.fixture(scope="session")
def preloadable(libspillshim: Path) -> Path:
    """The same as LD_PRELOAD can name it: a link where the clone's path holds a space."""
    from spillshim import native

    return native.loader_safe(libspillshim)


@pytest.fixture(scope="session")
def probe_path(sanitizer: sanitize.Sanitizer | None) -> Path:
    return _part(sanitizer, "PROBE", "spillshim-probe")


@pytest.fixture(scope="session")
def sim_dir(sanitizer: sanitize.Sanitizer | None) -> Path:
    """The folder of the simulated driver, NVML, CUDA runtimes and cuBLAS."""
    return _part(sanitizer, "SIM", "sim")


@pytest.fixture(scope="session")
def sim_include(sanitizer: sanitize.Sanitizer | None) -> Path:
    """The folder of simk.h."""
    return _part(sanitizer, "SIM_INCLUDE", "sim", "include")


@pytest.fixture(scope="session")
def demo_dir(sanitizer: sanitize.Sanitizer | None) -> Path:
    return _part(sanitizer, "DEMO", "demo")


@pytest.fixture(scope="session")
def cuda_include() -> Path:
    """The folder of cuda.h and nvml.h (PyPI wheels of the test extra, or SPILLSHIM_TEST_CUDA_INCLUDE)."""
    override = os.environ.get("SPILLSHIM_TEST_CUDA_INCLUDE")
    candidates = [Path(override)] if override else []
    try:
        import nvidia.cu13  # type: ignore[import-not-found]

        candidates += [Path(entry) / "include" for entry in nvidia.cu13.__path__]
    except ImportError:
        pass
    for folder in candidates:
        if (folder / "cuda.h").is_file():
            return folder
    pytest.fail("cuda.h not found: pip install -e .[test], or set SPILLSHIM_TEST_CUDA_INCLUDE", pytrace=False)


# --- a clean environment ------------------------------------------------------------------------------------------

_OURS = ("SPILLSHIM_", "SIMGPU_", "CUDA_", "LD_", "ASAN_", "LSAN_", "TSAN_", "UBSAN_")


@pytest.fixture
def clean_env() -> dict[str, str]:
    """This process's environment without anything that would change how a program under test is loaded or behaves."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    kept["NO_COLOR"] = "1"
    kept["SPILLSHIM_REMEMBER"] = "0"  # no test leaves anything in the user's cache, or finds something there
    return kept


# --- running programs on the simulated driver ---------------------------------------------------------------------


@dataclass
class Result:
    """How a program ended: `stats` holds the JSON objects that the shim appended at exit, one a process."""

    argv: list[str]
    returncode: int
    stdout: str
    stderr: str
    stats: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.argv} ended with {self.returncode}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    def ok(self) -> Result:
        """Self, or a failed assertion that shows the program's output."""
        assert self.returncode == 0, str(self)
        return self


def read_stats(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a stats or observe file (one a line)."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


class SimRunner:
    """Runs programs on one simulated machine, private to a test: `run_sim(argv, vram="1G")`.

    Calls in one test share the machine (its VRAM and RAM budgets) unless they name another with sim={"NAME": ...}.
    """

    def __init__(
        self,
        library: Path,
        sim: Path,
        base_env: Mapping[str, str],
        tmp_path: Path,
        sanitizer: sanitize.Sanitizer | None = None,
    ) -> None:
        self.sanitizer = sanitizer
        self.reports = tmp_path / "sanitizer"
        self.library = library
        self.sim = sim
        self.base_env = dict(base_env)
        self.tmp_path = tmp_path
        self.name = f"t{os.getpid()}-{uuid.uuid4().hex[:10]}"
        self.state_dir = tmp_path / "spillshim-state"
        self.stats_file = tmp_path / "stats.jsonl"
        self.stub_log = tmp_path / "stubs-reached"
        self._started: list[subprocess.Popen[str]] = []

    def env(
        self,
        vram: str = "8G",
        ram: str = "16G",
        shim: bool = True,
        env: Mapping[str, str] | None = None,
        sim: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """The environment such a program gets. `env` wins over everything; sim={"HOST_VMM": "none"} sets SIMGPU_HOST_VMM."""
        made = dict(self.base_env)
        made["LD_LIBRARY_PATH"] = str(self.sim)
        made.update(SIMGPU_VRAM=vram, SIMGPU_RAM=ram, SIMGPU_NAME=self.name, SIMGPU_STUB_LOG=str(self.stub_log))
        if os.environ.get("SPILLSHIM_TEST_DOUBT"):
            made["SIMGPU_DOUBT"] = os.environ["SPILLSHIM_TEST_DOUBT"]
        made.update({f"SIMGPU_{key}": str(value) for key, value in (sim or {}).items()})
        made["SPILLSHIM_STATE_DIR"] = str(self.state_dir)
        made["OPENBLAS_NUM_THREADS"] = "1"  # numpy's would be started in each program that imports it
        if shim:
            made["LD_PRELOAD"] = str(self.library)
            made["SPILLSHIM_STATS"] = str(self.stats_file)
        made.update(env or {})
        if self.sanitizer:
            self.reports.mkdir(exist_ok=True)
            made = self.sanitizer.environment(made, self.reports)
        return made

    def check(self, shown: object = "") -> None:
        """Fails the test when a sanitizer has reported anything since the last look, or in this text."""
        found = self.sanitizer.reports(self.reports, str(shown)) if self.sanitizer else []
        if found:
            pytest.fail("\n\n".join([*found, str(shown)]), pytrace=False)

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stderr: Any = subprocess.PIPE,
        **how: Any,
    ):
        """Start without waiting; `how` as for env(), `stderr` as for Popen. Finish with finish(process), or the test's end kills it."""
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        process = subprocess.Popen(
            [str(part) for part in argv],
            env=self.env(**how),
            cwd=cwd or self.tmp_path,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,  # so that a timeout ends the whole tree
        )
        self._started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout: float = 60, input: str | None = None) -> Result:
        """Wait for a started program. A timeout (seconds; longer on a sanitizer's build) kills its whole tree and fails the test."""
        timeout *= sanitize.SLOWER if self.sanitizer else 1
        try:
            out, err = process.communicate(input=input, timeout=timeout)
        except subprocess.TimeoutExpired:
            self._kill(process)
            out, err = process.communicate()
            pytest.fail(
                f"{process.args} still ran after {timeout} s\n--- stdout\n{out}\n--- stderr\n{err}", pytrace=False
            )
        result = Result(list(map(str, process.args)), process.returncode, out, err or "", read_stats(self.stats_file))
        self.check(result)
        return result

    def __call__(
        self, argv: Sequence[str | Path], *, timeout: float = 60, input: str | None = None, **how: Any
    ) -> Result:
        """Run to the end. The stats of this call alone are in the result (the file is emptied before)."""
        self.stats_file.unlink(missing_ok=True)
        process = self.start(argv, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL, **how)
        return self.finish(process, timeout, input)

    @staticmethod
    def _kill(process: subprocess.Popen[str]) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def stubs_reached(self) -> set[str]:
        """Entries without a body that the programs of this test called: the driver, NVML or the runtime does not have them."""
        return set(self.stub_log.read_text().split()) if self.stub_log.exists() else set()

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                self._kill(process)
                process.communicate()
        # A killed program cannot remove the simulated machine it shared.
        for left in Path("/dev/shm").glob(f"simgpu-{os.getuid()}-{self.name}*"):
            left.unlink(missing_ok=True)


@pytest.fixture
def run_sim(
    request: pytest.FixtureRequest,
    preloadable: Path,
    sim_dir: Path,
    clean_env: dict[str, str],
    tmp_path: Path,
    sanitizer: sanitize.Sanitizer | None,
):
    """`run_sim(argv, vram="1G", ram="4G", shim=True, env={}, sim={}, timeout=60)` -> Result. See SimRunner.

    A test whose programs reach a stub of the simulated driver fails: what it says would hold of no GPU. Marked
    @pytest.mark.stubs("cuMulticastCreate") it may reach those (and fails when it does not).
    """
    from spillshim import native

    runner = SimRunner(preloadable, native.loader_safe(sim_dir), clean_env, tmp_path, sanitizer)
    yield runner
    runner.close()
    runner.check()
    marks = request.node.iter_markers("stubs")
    allowed = {name for mark in marks for name in mark.args}
    if runner.stubs_reached() != allowed:
        pytest.fail(f"stubs reached: {sorted(runner.stubs_reached())}, expected: {sorted(allowed)}", pytrace=False)


@pytest.fixture
def spillshim(clean_env: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """`spillshim("run", "--quiet", "--", "true")` -> Result: the real command in a process of its own, from an empty folder.

    `env` adds to a clean environment; `prefix` is put before the command (strace, sh -c); `timeout` in seconds.
    """
    # Not below tmp_path's own entries: `python -m` looks for modules in the folder in which it starts.
    folder = tmp_path / "cwd"
    folder.mkdir()

    def call(
        *arguments: str | Path, env: Mapping[str, str] | None = None, prefix: Sequence[str] = (), timeout: float = 60
    ) -> Result:
        argv = [*prefix, sys.executable, "-m", "spillshim", *map(str, arguments)]
        made = {**clean_env, **(env or {})}
        ran = subprocess.run(
            argv,
            env=made,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
        return Result(argv, ran.returncode, ran.stdout, ran.stderr)

    return call


# --- compiling --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def c_program(request: pytest.FixtureRequest, sanitizer: sanitize.Sanitizer | None) -> Callable[..., Path]:
    """`c_program(source, link_libcuda=True, flags=(), shared=False)` -> path of the built program.

    `source` is a path (relative ones lie in tests/programs) or C source text. Built with gcc (g++ for .cc/.cpp/.cu), kept
    between runs under a key of everything that goes in: the preprocessed source, the flags, the compiler. Watched by the
    sanitizer whose build is under test.
    """
    cache = request.config.cache.mkdir("c_programs")
    made: dict[tuple, Path] = {}  # of this run: to find out the key takes a run of the preprocessor

    def program(
        source: str | Path,
        *,
        link_libcuda: bool = True,
        flags: Sequence[str] = (),
        shared: bool = False,
        name: str | None = None,
    ) -> Path:
        asked = (source, link_libcuda, tuple(flags), shared, name)
        if asked not in made:
            made[asked] = build(*asked)
        return made[asked]

    def build(source: str | Path, link_libcuda: bool, asked_flags: Sequence[str], shared: bool, name: str | None) -> Path:
        flags = [*asked_flags, *(sanitizer.flags if sanitizer else [])]
        text_given = isinstance(source, str) and "\n" in source
        if text_given:
            stem = name or "inline"
            path = cache / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.c"
            written = path.with_name(f".{path.name}.{os.getpid()}")  # others may be reading it
            written.write_text(source)
            os.replace(written, path)
        else:
            path = Path(source) if Path(source).is_absolute() else PROGRAMS / source
            stem = name or path.stem
        compiler = "g++" if path.suffix in {".cc", ".cpp", ".cu"} else "gcc"
        includes = [f"-I{request.getfixturevalue('cuda_include')}", f"-I{PROGRAMS}"]
        command = [compiler, "-g", "-O1", "-Wall", "-pthread", *includes, *(["-shared", "-fPIC"] if shared else [])]
        links: list[str] = []
        if link_libcuda:
            sim = request.getfixturevalue("sim_dir")
            links = [f"-L{sim}", "-l:libcuda.so.1"]
        compile_flags = [flag for flag in flags if not flag.startswith(("-l", "-L", "-Wl,"))]
        preprocessed = subprocess.run(
            [*command, *compile_flags, "-E", str(path)], capture_output=True, check=False, timeout=60
        )
        if preprocessed.returncode:
            pytest.fail(f"cannot preprocess {path}:\n{preprocessed.stderr.decode()}", pytrace=False)
        version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, check=True).stdout
        more = [Path(flag).read_bytes() for flag in flags if flag.endswith(".c")]
        key = hashlib.sha256(
            b"\0".join([preprocessed.stdout, version, repr((command, flags, links)).encode(), *more])
        ).hexdigest()[:20]
        target = cache / key / (f"{stem}.so" if shared else stem)
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        built = subprocess.run(
            [
                *command,
                *compile_flags,
                str(path),
                "-o",
                str(partial),
                *[f for f in flags if f not in compile_flags],
                *links,
                "-ldl",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if built.returncode:
            pytest.fail(f"cannot compile {path}:\n{built.stderr}", pytrace=False)
        os.replace(partial, target)
        return target

    return program


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """`need("strace")` -> its path, or the test is skipped with the reason (scripts/test installs it when it may)."""

    def find(tool: str) -> str:
        path = shutil.which(tool)
        if not path:
            pytest.skip(f"{tool} is not installed (Debian package {tool})")
        return path

    return find
