# SPDX-License-Identifier: Apache-2.0
"""Every path by which a program gets a driver entry must end in the shim's hook of exactly that ABI, and nowhere else.

Each trap is tested twice: on the library as it ships, and on one whose fix for this trap is switched off
(SPILL_TEST_BREAKS, csrc/shim/testbreak.h), where the program must be seen to escape or to break. A trap whose second half
passes like the first would be a test that can't fail.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
SOURCES = ROOT / "tests" / "programs" / "resolution"
LOOKUPS = ROOT / "tests" / "data" / "cudart13-lookups.txt"

SHIM = "libspillshim.so"
DRIVER = "libcuda.so.1"

# What is asked here is whose function a look-up finds: a runtime in front of everything answers some itself.
pytestmark = pytest.mark.no_sanitizer("another library interposes on the loader")

# With the fix / with it switched off.
both = pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "broken"])


# --- what is built --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def hooks(cuda_include: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, int, int]]:
    """The rows of hooks.def: (symbol, name, version, flags)."""
    source = tmp_path_factory.mktemp("hooks") / "rows.c"
    source.write_text('#define HOOK(symbol, name, version, flags, pfn) row symbol name version flags;\n#include "shim/hooks.def"\n')
    text = subprocess.run(["gcc", "-E", "-P", f"-I{CSRC}", str(source)], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"row (\w+) \"(\w+)\" (\d+) (\d+);", text)
    assert len(rows) == text.count("row "), "a row of hooks.def was not understood"
    return [(symbol, name, int(version), int(flags)) for symbol, name, version, flags in rows]


@pytest.fixture(scope="session")
def variants(cuda_include: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Test-only builds of the library: "breaks" obeys SPILLSHIM_TEST_BREAK, the others are linked wrongly on purpose."""
    folder = tmp_path_factory.mktemp("breaks")
    sources = [*(CSRC / "shim").glob("*.c"), *(CSRC / "shim").glob("*.S"), *(CSRC / "tiering").glob("*.c"), *(CSRC / "link" / f"{name}.c" for name in ("ledger", "segment", "socket"))]
    flags = ["-std=gnu11", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-ftls-model=initial-exec", "-DSPILL_TEST_BREAKS=1"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.name}.o"
        command = ["gcc", *flags, f"-I{CSRC}", "-isystem", str(cuda_include), "-c", str(source), "-o", str(target)]
        built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert built.returncode == 0, built.stderr
        return target

    maps = {
        "breaks": None,
        "only-2.2.5": "GLIBC_2.2.5 { global: dlsym; dlvsym; dlopen; };",
        "only-2.34": "GLIBC_2.34 { global: dlsym; dlvsym; dlopen; };",
        "no-exports": "{ global: dlsym; dlvsym; dlopen; local: *; };",
    }
    made: dict[str, Path] = {}
    objects: list[Path] = []

    def build(name: str) -> Path:
        if not objects:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects.extend(pool.map(compile_one, sources))
        if name not in made:
            target = folder / name / SHIM
            target.parent.mkdir()
            options = ["-Wl,-Bsymbolic", "-Wl,-z,now", "-Wl,-z,nodelete"]
            if maps[name]:
                script = folder / f"{name}.map"
                script.write_text(maps[name])
                options.append(f"-Wl,--version-script={script}")
            command = ["gcc", "-shared", "-o", str(target), *map(str, objects), *options, "-lm", "-ldl"]
            linked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert linked.returncode == 0, linked.stderr
            made[name] = target
        return made[name]

    return build


@pytest.fixture(scope="session")
def program(c_program: Callable[..., Path]) -> Callable[..., Path]:
    """One of tests/programs/resolution, not linked to libcuda unless said."""

    @functools.cache
    def build(source: str, *flags: str, link_libcuda: bool = False, shared: bool = False) -> Path:
        return c_program(SOURCES / source, link_libcuda=link_libcuda, flags=[*flags, f"-I{CSRC}"], shared=shared)

    return build


@pytest.fixture
def driver_at(tmp_path: Path, program: Callable[..., Path]) -> Callable[..., Path]:
    """A folder that holds one of the test drivers as libcuda.so.1."""

    def build(source: str, *flags: str) -> Path:
        library = program(source, *flags, f"-Wl,-soname,{DRIVER}", "-Wl,-Bsymbolic", shared=True)
        folder = tmp_path / source.removesuffix(".c")
        folder.mkdir(exist_ok=True)
        shutil.copy(library, folder / DRIVER)
        return folder

    return build


@pytest.fixture
def look(run_sim, program: Callable[..., Path], variants: Callable[[str], Path], tmp_path: Path):
    """`look("open=libcuda.so.1", "sym=cuMemAlloc_v2")` -> {word: "object:symbol"}; see lookup.c for the words."""

    def run(*words: str, without: str | None = None, shim: bool = True, library: str | None = None, glibc: str = "", **how) -> dict[str, str]:
        flags = [f'-DDL_VERSION="{glibc}"'] if glibc else []
        return table(launch(run_sim, variants, [program("lookup.c", *flags), *words], without, library, shim=shim, **how).ok().stdout)

    return run


def launch(run_sim, variants, argv, without: str | None = None, library: str | None = None, env: dict[str, str] | None = None, **how):
    """Run under the shim as it ships, or under the test build with the fix `without` off, or under another wrong build."""
    env = dict(env or {})
    shipped = run_sim.library
    try:
        if without or library:
            run_sim.library = variants(library or "breaks")
        if without:
            env["SPILLSHIM_TEST_BREAK"] = without
        return run_sim(argv, env=env, **how)
    finally:
        run_sim.library = shipped


def table(text: str) -> dict[str, str]:
    """Lines "key<tab>value" as a dict."""
    return dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)


def hook(symbol: str) -> str:
    return f"{SHIM}:{symbol}"


def real(symbol: str) -> str:
    return f"{DRIVER}:{symbol}"


# --- cuGetProcAddress --------------------------------------------------------------------------------------------------


def test_one_dlsym_gives_the_hook(look) -> None:
    out = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", "gpa2=cuMemAlloc,3020,0", "sym=cuGetProcAddress", "gpa1=cuMemFree,3020,0")
    assert out["sym=cuGetProcAddress_v2"] == hook("cuGetProcAddress_v2")
    assert out["gpa2=cuMemAlloc,3020,0"] == hook("cuMemAlloc_v2")
    assert out["sym=cuGetProcAddress"] == hook("cuGetProcAddress")
    assert out["gpa1=cuMemFree,3020,0"] == hook("cuMemFree_v2")


@both
def test_the_four_argument_abi_is_kept(look, fixed: bool) -> None:
    """A CUDA 11 runtime asks version 11030 and calls with four arguments: the fifth would be read from nowhere."""
    words = ["gpa2=cuGetProcAddress,11030,0", "gpa2=cuGetProcAddress,12000,0"]
    out = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", *words, without=None if fixed else "row_version")
    assert (out[words[0]] == hook("cuGetProcAddress")) is fixed
    assert out[words[1]] == hook("cuGetProcAddress_v2")


@both
def test_the_first_query_is_empty(look, fixed: bool) -> None:
    """The runtime's first query has no name; it must see what the driver answers."""
    words = ["gpa2=,0,0", "gpa2=-,0,0"]
    start = [f"open={DRIVER}", "sym=cuGetProcAddress_v2"]
    out = look(*start, *words, without=None if fixed else "empty_name")
    plain = look(*start, *words, shim=False)
    assert [out[word] == plain[word] for word in words] == [fixed, fixed]


@both
@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("cuCtxSynchronize", {2000: "cuCtxSynchronize", 12090: "cuCtxSynchronize", 13000: "cuCtxSynchronize_v2"}),
        ("cuMemcpyBatchAsync", {12080: "cuMemcpyBatchAsync", 13000: "cuMemcpyBatchAsync_v2"}),
        ("cuGraphInstantiate", {10000: "cuGraphInstantiate", 11000: "cuGraphInstantiate_v2", 11040: "cuGraphInstantiateWithFlags"}),
        ("cuStreamBeginCapture", {10000: "cuStreamBeginCapture", 10010: "cuStreamBeginCapture_v2"}),
    ],
)
def test_one_name_with_two_abis(look, fixed: bool, name: str, versions: dict[int, str]) -> None:
    words = {version: f"gpa2={name},{version},0" for version in versions}
    out = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", *words.values(), without=None if fixed else "row_version")
    assert all(out[words[version]] == hook(symbol) for version, symbol in versions.items()) is fixed


@both
def test_per_thread_stream_variants_come_under_the_same_name(look, fixed: bool) -> None:
    words = ["gpa2=cuMemcpyHtoDAsync,7000,2", "gpa2=cuMemcpyHtoD,7000,2", "gpa2=cuMemcpyBatchAsync,13000,2"]
    out = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", *words, without=None if fixed else "row_flags")
    want = [hook("cuMemcpyHtoDAsync_v2_ptsz"), hook("cuMemcpyHtoD_v2_ptds"), hook("cuMemcpyBatchAsync_v2_ptsz")]
    assert all(out[word] == symbol for word, symbol in zip(words, want)) is fixed


def test_flags_of_names_without_a_stream(look) -> None:
    """CU_GET_PROC_ADDRESS_LEGACY_STREAM is flag 1; a name without a per-thread variant is the same under all flags."""
    out = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", "gpa2=cuMemAlloc,3020,2", "gpa2=cuMemAlloc,3020,1", "gpa2=cuMemcpyHtoD,3020,1")
    assert out["gpa2=cuMemAlloc,3020,2"] == out["gpa2=cuMemAlloc,3020,1"] == hook("cuMemAlloc_v2")
    assert out["gpa2=cuMemcpyHtoD,3020,1"] == hook("cuMemcpyHtoD_v2")


@both
def test_a_future_abi_is_not_captured(look, driver_at, fixed: bool) -> None:
    """A driver of a later release gives a third function for a name of ours: it isn't what any hook stands for."""
    folder = driver_at("future_driver.c")
    words = ["gpa2=cuMemAlloc,99000,0", "gpa2=cuMemAlloc,13000,0", "gpa2=cuMemAlloc,2000,0"]
    out = look(
        f"open={DRIVER}", "sym=cuGetProcAddress_v2", *words,
        env={"LD_LIBRARY_PATH": str(folder)}, without=None if fixed else "row_function",
    )  # fmt: skip
    assert (out[words[0]] == real("cuMemAlloc_v3")) is fixed
    assert out[words[1]] == hook("cuMemAlloc_v2")
    assert (out[words[2]] == real("cuMemAlloc")) is fixed


@both
def test_an_older_driver_keeps_its_abi(look, driver_at, fixed: bool) -> None:
    """A program built for 13.0 asks version 13000 of a driver that knows only the ABI of 2.0."""
    word = "gpa2=cuCtxSynchronize,13000,0"
    out = look(
        f"open={DRIVER}", "sym=cuGetProcAddress_v2", word,
        env={"LD_LIBRARY_PATH": str(driver_at("future_driver.c")), "FUTURE_DRIVER_VERSION": "12080"},
        without=None if fixed else "row_version",
    )  # fmt: skip
    assert (out[word] == hook("cuCtxSynchronize")) is fixed


def test_the_export_tables_are_the_drivers(look) -> None:
    """NVIDIA's runtime asks cuGetProcAddress; who looks it up by name is watched (test_states.py), and gets the very table too."""
    out = look(f"open={DRIVER}", "sym=cuGetExportTable", "sym=cuGetProcAddress_v2", "gpa2=cuGetExportTable,3000,0")
    assert out["gpa2=cuGetExportTable,3000,0"] == real("cuGetExportTable")
    assert out["sym=cuGetExportTable"] == hook("cuGetExportTable")


# --- dlsym and dlvsym ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("glibc", ["GLIBC_2.2.5", "GLIBC_2.34"])
def test_both_versions_of_dlsym(look, fixed: bool, glibc: str) -> None:
    """Programs built before and after glibc 2.34 refer to different versions of dlsym and dlopen."""
    wrong = "only-2.34" if glibc == "GLIBC_2.2.5" else "only-2.2.5"
    out = look(f"open={DRIVER}", "sym=cuMemAlloc_v2", glibc=glibc, library=None if fixed else wrong)
    assert (out["sym=cuMemAlloc_v2"] == hook("cuMemAlloc_v2")) is fixed


@both
def test_dlvsym(look, driver_at, tmp_path: Path, fixed: bool) -> None:
    script = tmp_path / "versions.map"
    script.write_text("DRIVER_1 { global: cu*; };\n")
    env = {"LD_LIBRARY_PATH": str(driver_at("future_driver.c", f"-Wl,--version-script={script}"))}
    words = [f"open-global={DRIVER}", "vsym=cuMemAlloc_v2@DRIVER_1", "vdefault=cuMemAlloc_v2@DRIVER_1", "vnext=cuMemAlloc_v2@DRIVER_1"]
    out = look(*words, "vsym=cuMemAlloc_v2@OTHER", env=env, without=None if fixed else "dlvsym")
    assert [out[word] == hook("cuMemAlloc_v2") for word in words[1:]] == [fixed] * 3
    assert out["vsym=cuMemAlloc_v2@OTHER"].startswith("NULL")


@both
@pytest.mark.parametrize("how", ["fetch=dlsym", "vfetch=dlsym@GLIBC_2.2.5", "vfetch-next=dlsym@GLIBC_2.34", "vfetch-next=dlsym@GLIBC_2.2.5"])
def test_dlsym_fetched_by_dlsym(look, fixed: bool, how: str) -> None:
    """Overlays and wrappers fetch the linker's functions by name, from libc's or libdl's handle or by RTLD_NEXT."""
    words = ["open=libdl.so.2", how, f"open={DRIVER}", "sym=cuMemAlloc_v2"]
    out = look(*words, without=None if fixed else "dlsym_of_dlsym")
    assert (out[how] == hook("dlsym")) is fixed
    assert (out["sym=cuMemAlloc_v2"] == hook("cuMemAlloc_v2")) is fixed


def test_dlopen_and_dlvsym_fetched(look) -> None:
    out = look("open=libc.so.6", "sym=dlopen", "sym=dlvsym", "sym=dlclose", "default=dlsym", "next=dlsym", "vnext=dlsym@NONE")
    assert out["sym=dlopen"] == hook("dlopen")
    assert out["sym=dlvsym"] == hook("dlvsym")
    assert out["sym=dlclose"] == "libc.so.6:dlclose"
    assert out["default=dlsym"] == out["next=dlsym"] == hook("dlsym")
    assert out["vnext=dlsym@NONE"].startswith("NULL")


def test_exact_symbols_only(look, hooks) -> None:
    """cuMemAlloc is the 32-bit ABI of 1.0: not what cuMemAlloc_v2's hook implements."""
    old = ["cuMemAlloc", "cuMemFree", "cuMemGetInfo", "cuMemcpyHtoD", "cuMemcpy2D", "cuMemsetD8", "cuInit"]
    assert not set(old) & {symbol for symbol, *_ in hooks}
    out = look(f"open={DRIVER}", *[f"sym={name}" for name in old])
    assert out == {f"sym={name}": real(name) for name in old}


def test_every_hook_by_dlsym(look, hooks) -> None:
    names = sorted({symbol for symbol, *_ in hooks})
    out = look(f"open={DRIVER}", *[f"sym={name}" for name in names])
    plain = look(f"open={DRIVER}", *[f"sym={name}" for name in names], shim=False)
    for name in names:  # a driver older than a hook has no such entry, and then there is none to hand out
        assert out[f"sym={name}"] == (hook(name) if plain[f"sym={name}"] == real(name) else plain[f"sym={name}"])
    assert sum(value.startswith(SHIM) for value in out.values()) > 0.9 * len(names)


def test_nvml(look, sim_dir: Path) -> None:
    words = ["sym=nvmlDeviceGetMemoryInfo", "sym=nvmlDeviceGetMemoryInfo_v2", "sym=nvmlInit_v2", "sym=cuMemAlloc_v2"]
    out = look("open=libnvidia-ml.so.1", *words)
    assert out[words[0]] == hook("nvmlDeviceGetMemoryInfo")
    assert out[words[1]] == hook("nvmlDeviceGetMemoryInfo_v2")
    assert out[words[2]] == "libnvidia-ml.so.1:nvmlInit_v2"
    assert out[words[3]].startswith("NULL")


def test_switched_off(look) -> None:
    out = look(f"open={DRIVER}", "sym=cuMemAlloc_v2", "sym=cuGetProcAddress_v2", "gpa2=cuMemFree,3020,0", env={"SPILLSHIM_DISABLE": "1"})
    assert out["sym=cuMemAlloc_v2"] == real("cuMemAlloc_v2")
    assert out["gpa2=cuMemFree,3020,0"] == real("cuMemFree_v2")


@both
def test_libcuda_by_path_and_other_name(look, sim_dir: Path, tmp_path: Path, fixed: bool) -> None:
    """An absolute path, and a file that isn't named libcuda (a container's or a store's copy): the SONAME tells."""
    shutil.copy(sim_dir / DRIVER, tmp_path / "vendor-driver.so")
    out = look(f"open={sim_dir / DRIVER}", "sym=cuMemAlloc_v2")
    assert out["sym=cuMemAlloc_v2"] == hook("cuMemAlloc_v2")
    out = look(f"open={tmp_path / 'vendor-driver.so'}", "sym=cuMemAlloc_v2", without=None if fixed else "soname")
    assert (out["sym=cuMemAlloc_v2"] == hook("cuMemAlloc_v2")) is fixed


def test_libcuda_in_a_namespace_of_its_own(look) -> None:
    """dlmopen: nothing is preloaded there, but who asks from the base namespace gets the hook."""
    out = look(f"open-apart={DRIVER}", "sym=cuMemAlloc_v2", "sym=cuGetProcAddress_v2", "gpa2=cuMemAlloc,3020,0")
    assert out["sym=cuMemAlloc_v2"] == out["gpa2=cuMemAlloc,3020,0"] == hook("cuMemAlloc_v2")


@pytest.mark.parametrize("style", ["sysv", "gnu", "both"])
def test_either_hash_section(look, driver_at, style: str) -> None:
    """The real entries are found in libraries with either kind of symbol hash."""
    env = {"LD_LIBRARY_PATH": str(driver_at("future_driver.c", f"-Wl,--hash-style={style}"))}
    out = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", "gpa2=cuMemAlloc,3020,0", env=env)
    assert out["gpa2=cuMemAlloc,3020,0"] == hook("cuMemAlloc_v2")


def test_an_older_glibc_finds_objects_by_their_headers(look) -> None:
    """Before glibc 2.35 there is no _dl_find_object; the test build can go the older way."""
    words = [f"open-global={DRIVER}", "sym=cuMemAlloc_v2", "sym=cuMemAlloc", "default=cuMemAlloc_v2", "fetch=dlsym"]
    assert look(*words, without="find_object") == look(*words)


# --- programs without a driver ----------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("words", [["default=cuMemAlloc_v2"], ["open-program", "sym=cuMemAlloc_v2"], ["next=cuMemAlloc_v2"]])
def test_a_probe_finds_no_driver_where_there_is_none(look, fixed: bool, words: list[str], tmp_path: Path) -> None:
    """The shim exports the hooks, so a program that probes the global scope must be told what holds without it."""
    without = None if fixed else "probe" if words[-1].startswith(("default", "sym")) else "next"
    out = look(*words, env={"LD_LIBRARY_PATH": str(tmp_path)}, without=without)
    assert out[words[-1]].startswith("NULL") is fixed
    if fixed:
        assert "undefined symbol: cuMemAlloc_v2" in out[words[-1]]


def test_the_global_scope_with_a_driver(look) -> None:
    for words in (["default=cuMemAlloc_v2"], ["open-program", "sym=cuMemAlloc_v2"], ["next=cuMemAlloc_v2"]):
        assert look(f"open-global={DRIVER}", *words)[words[-1]] == hook("cuMemAlloc_v2")
        # Loaded privately it isn't in the global scope, with or without the shim.
        assert look(f"open={DRIVER}", *words)[words[-1]].startswith("NULL")


# --- the caller that libc sees -----------------------------------------------------------------------------------------------


@pytest.fixture
def next_program(program: Callable[..., Path], tmp_path: Path) -> Path:
    """A program linked to two libraries that define one function, and to one that opens its neighbour by RUNPATH."""
    folder = tmp_path / "libs"
    (folder / "near").mkdir(parents=True)
    for define, name in (("FIRST", "libfirst.so"), ("SECOND", "libsecond.so"), ("SECOND", "near/libneighbour.so")):
        shutil.copy(program("next_lib.c", f"-D{define}", shared=True), folder / name)
    shutil.copy(program("next_lib.c", "-DOPENER", "-Wl,-rpath,$ORIGIN/near", "-Wl,--enable-new-dtags", shared=True), folder / "libopener.so")
    target = folder / "program"
    links = [f"-L{folder}", "-Wl,--no-as-needed", "-lfirst", "-lsecond", "-lopener", f"-Wl,-rpath,{folder}"]
    subprocess.run(["gcc", "-O1", "-o", str(target), str(SOURCES / "next_lib.c"), *links], check=True, timeout=60)
    return target


@both
def test_the_caller_stays_the_caller(run_sim, variants, next_program: Path, fixed: bool) -> None:
    """RTLD_NEXT and RUNPATH depend on who calls: a C wrapper around dlsym sends a library into itself for ever."""
    out = table(launch(run_sim, variants, [next_program], None if fixed else "tail_jump").ok().stdout)
    assert out == ({"twice": "42", "neighbour": "1"} if fixed else {"twice": "-1", "neighbour": "0"})


@both
def test_a_program_with_its_own_wrapper(run_sim, variants, program, fixed: bool) -> None:
    """A program that defines cuMemAlloc_v2 itself and goes on by RTLD_NEXT reaches us, once."""
    wrapper = program("own_wrapper.c", "-DPROGRAM", "-Wl,--export-dynamic", link_libcuda=True)
    result = launch(run_sim, variants, [wrapper], None if fixed else "tail_jump").ok()
    assert table(result.stdout) == {"next": SHIM if fixed else DRIVER, "result": "0"}


def test_a_preloaded_wrapper_before_us(run_sim, program, tmp_path: Path) -> None:
    """Likewise a profiler's library that is preloaded before the shim."""
    # The loader splits at blanks, and the clone's path may hold one.
    wrapper = Path(shutil.copy(program("own_wrapper.c", shared=True), tmp_path))
    linked = program("linked.c", "-DPROGRAM", link_libcuda=True)
    out = table(run_sim([linked], env={"LD_PRELOAD": f"{wrapper}:{run_sim.library}"}).ok().stdout)
    assert out == {"bound": wrapper.name, "next": SHIM, "result": "0"}


@both
def test_a_driver_that_looks_itself_up(run_sim, variants, program, driver_at, sim_dir: Path, fixed: bool) -> None:
    """On WSL libcuda.so.1 opens the real driver and asks dlsym for its own names: given our hooks it would never return."""
    env = {"LD_LIBRARY_PATH": str(driver_at("store_driver.c", f"-I{CSRC}")), "STORE_DRIVER": str(sim_dir / DRIVER)}
    linked = program("linked.c", "-DPROGRAM", link_libcuda=True)
    result = launch(run_sim, variants, [linked], None if fixed else "driver_caller", env=env)
    if fixed:
        assert table(result.ok().stdout) == {"bound": SHIM, "result": "0"}
    else:
        assert result.returncode == -signal.SIGSEGV, "the recursion ends at the stack's"


# --- how programs are put together ---------------------------------------------------------------------------------------------


def handed(log: Path, path: str) -> dict[str, set[str]]:
    """{module: symbols handed out by `path`} of a debug log."""
    found: dict[str, set[str]] = {}
    for symbol, module in re.findall(rf"hook handed out symbol=(\S+) path={path} module=(\S+)", log.read_text()):
        found.setdefault(module, set()).add(symbol)
    return found


def paths(result) -> set[tuple[str, str, str]]:
    return {(entry["module"], entry["path"], entry["symbol"]) for stats in result.stats for entry in stats["paths"]}


@both
def test_a_program_linked_to_libcuda(run_sim, variants, program, fixed: bool) -> None:
    """As ggml: no look-up at all, the references must bind to exported symbols of the shim."""
    linked = program("linked.c", "-DPROGRAM", link_libcuda=True)
    result = launch(run_sim, variants, [linked], library=None if fixed else "no-exports").ok()
    assert table(result.stdout) == {"bound": SHIM if fixed else DRIVER, "result": "0"}
    assert ((linked.name, "link", "cuMemAlloc_v2") in paths(result)) is fixed


@both
def test_a_plugin_that_came_in_privately(run_sim, variants, program, fixed: bool) -> None:
    """A runtime opened with RTLD_LOCAL: RTLD_NEXT is NULL in it and in us, the real entries must come from libcuda itself."""
    host, plugin = program("host.c"), program("runtime_like.c", shared=True)
    result = launch(run_sim, variants, [host, "local", plugin], None if fixed else "real_by_library")
    assert result.returncode == (0 if fixed else 3), str(result)
    if fixed:
        assert table(result.stdout)["symbol"] == "cuMemAlloc_v2"
        assert (plugin.name, "cuGetProcAddress", "cuMemAlloc_v2") in paths(result)


@both
def test_a_plugin_opened_with_deepbind(run_sim, variants, program, fixed: bool) -> None:
    host, plugin = program("host.c"), program("linked.c", shared=True, link_libcuda=True)
    result = launch(run_sim, variants, [host, "deepbind", plugin], None if fixed else "deepbind").ok()
    assert (table(result.stdout)["bound"] == SHIM) is fixed


def test_deepbind_kept_on_request(run_sim, program, tmp_path: Path) -> None:
    host, plugin = program("host.c"), program("linked.c", shared=True, link_libcuda=True)
    kept = run_sim([host, "deepbind", plugin], env={"SPILLSHIM_KEEP_DEEPBIND": "1"}).ok()
    assert table(kept.stdout)["bound"] == DRIVER
    log = tmp_path / "log"
    run_sim([host, "deepbind", plugin], env={"SPILLSHIM_LOG": "debug", "SPILLSHIM_LOG_FILE": str(log)}).ok()
    assert f"RTLD_DEEPBIND masked file={plugin}" in log.read_text()


def test_a_static_program_escapes(run_sim, c_program) -> None:
    """What the loader doesn't load the shim can't catch; `spillshim run` refuses such a program (test_cli)."""
    source = '#include <stdio.h>\n#include <string.h>\nint main(void){char l[512];int n=0;FILE*f=fopen("/proc/self/maps","r");\n' \
        'while(f&&fgets(l,sizeof l,f)) n+=strstr(l,"libspillshim")!=NULL;printf("mapped\\t%d\\n",n);return 0;}\n'
    dynamic = c_program(source, link_libcuda=False, name="dynamic")
    static = c_program(source, link_libcuda=False, flags=["-static"], name="static")
    assert int(table(run_sim([dynamic]).ok().stdout)["mapped"]) > 0
    assert table(run_sim([static]).ok().stdout)["mapped"] == "0"


@both
def test_behind_the_address_sanitizer(run_sim, variants, program, fixed: bool) -> None:
    """libasan must come first and asks dlsym before it can serve its own strcmp: no libc string function in that path."""
    libasan = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(libasan).is_absolute():
        pytest.skip("libasan is not installed (Debian package libasan8)")
    library = run_sim.library if fixed else variants("breaks")
    env = {"LD_PRELOAD": f"{Path(libasan).resolve()}:{library}", "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
    if not fixed:
        env["SPILLSHIM_TEST_BREAK"] = "local_strings"
    result = run_sim([program("lookup.c"), f"open={DRIVER}", "sym=cuMemAlloc_v2"], env=env)
    assert (result.returncode == 0 and table(result.stdout)["sym=cuMemAlloc_v2"] == hook("cuMemAlloc_v2")) is fixed


# --- the runtime's look-ups -------------------------------------------------------------------------------------------------------


def test_replay_of_the_runtimes_lookups(look, hooks) -> None:
    """All look-ups of a CUDA 13.0 runtime: the hook of the ABI that the driver gives where there is one, else the driver's."""
    start = [f"open={DRIVER}", "sym=cuGetProcAddress_v2", f"replay={LOOKUPS}"]
    plain, shimmed = look(*start, shim=False), look(*start)
    assert len(plain) == 441 and plain.keys() == shimmed.keys()
    symbols = {symbol for symbol, *_ in hooks}
    expected = {word: value for word, value in plain.items()}
    for word, value in plain.items():
        if value.startswith(f"{DRIVER}:") and value.split(":")[1] in symbols:
            expected[word] = hook(value.split(":")[1])
    assert shimmed == expected
    # The names that a runtime can't do without, so that an empty table would not pass.
    assert shimmed["cuMemAlloc,3020,0"] == hook("cuMemAlloc_v2")
    assert shimmed["cuMemFreeAsync,11020,2"] == hook("cuMemFreeAsync_ptsz")
    assert shimmed["cuDevicePrimaryCtxRelease,7000,0"] == hook("cuDevicePrimaryCtxRelease")
    asked = {(word.split(",")[0], word.split(",")[2]) for word in plain if word.count(",") == 2}
    for symbol, name, version, flags in hooks:  # every row is used, unless this runtime never asks its name or an older one
        if (name, str(flags)) in asked and plain.get(f"{name},{version},{flags}") == real(symbol):
            assert shimmed[f"{name},{version},{flags}"] == hook(symbol)


def nvidia_runtime(major: int) -> Path:
    """The real libcudart of the PyPI wheel (test extra)."""
    module, file = ("nvidia.cuda_runtime", "libcudart.so.12") if major == 12 else ("nvidia.cu13", "libcudart.so.13")
    try:
        package = __import__(module, fromlist=["__path__"])
    except ImportError:
        pytest.fail(f"{file} not found: pip install -e .[test]", pytrace=False)
    for folder in package.__path__:
        if (Path(folder) / "lib" / file).is_file():
            return Path(folder) / "lib" / file
    pytest.fail(f"{file} not found in {list(package.__path__)}", pytrace=False)


@pytest.mark.parametrize("major", [12, 13])
def test_nvidias_runtime_up_to_its_refusal(look, run_sim, program, hooks, tmp_path: Path, major: int) -> None:
    """NVIDIA's own runtime makes all its look-ups before it refuses a driver that isn't NVIDIA's."""
    log = tmp_path / "log"
    runtime = nvidia_runtime(major)
    words = [f"open={runtime}", "call=cudaFree"]
    out = table(
        run_sim([program("lookup.c"), *words], env={"SPILLSHIM_LOG": "debug", "SPILLSHIM_LOG_FILE": str(log)}, sim={"DRIVER": "13000"}).ok().stdout
    )
    assert out["call=cudaFree"] not in ("0", "-1"), "the runtime accepted a simulated driver"
    assert handed(log, "dlsym") == {runtime.name: {"cuGetProcAddress_v2"}}, "one dlsym"
    asked = re.findall(r"cuGetProcAddress name=(\w+) version=(\d+) flags=(\d+) hook=(\S+)", log.read_text())
    assert len(asked) > 350
    # What the driver itself gives for each of them, without the shim, says which hook it must have been.
    recorded = tmp_path / "recorded.txt"
    recorded.write_text("".join(f"gpa2({name},{version},flags={flags})\n" for name, version, flags, _ in asked))
    plain = look(f"open={DRIVER}", "sym=cuGetProcAddress_v2", f"replay={recorded}", shim=False)
    symbols = {symbol for symbol, *_ in hooks}
    for name, version, flags, got in asked:
        symbol = plain[f"{name},{version},{flags}"].removeprefix(f"{DRIVER}:")
        assert got == (symbol if symbol in symbols else "-"), (name, version, flags)
    given = handed(log, "cuGetProcAddress")[runtime.name]
    assert {"cuMemAlloc_v2", "cuMemFree_v2", "cuMemGetInfo_v2", "cuMemcpyHtoDAsync_v2_ptsz", "cuGetProcAddress", "cuGetProcAddress_v2"} <= given
    assert ("cuCtxSynchronize_v2" in given) is (major == 13)
