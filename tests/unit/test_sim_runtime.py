# SPDX-License-Identifier: Apache-2.0
"""The runtimes and cuBLAS of the simulated GPU, as files: which names they export, under which version node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection

# Declared in headers that only programs with OpenGL, EGL or VDPAU include.
GRAPHICS = re.compile(r"cuda(Graphics)?(GL|EGL|VDPAU)\w*|cudaEventCreateFromEGLSync|cudaGraphicsResourceGetMappedEglFrame")
STUBS = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "STUBS.md"
# In no public header: what they take is not known.
UNDECLARED = re.compile(r"cudaSubgrid\w+|__cuda(GetProcAddress|RegisterHostVar|RegisterUnifiedTable)")


def exported(path: Path) -> dict[str, str]:
    """Each defined name and the version node that it belongs to."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        nodes = {}
        for section in elf.iter_sections():
            if isinstance(section, GNUVerDefSection):
                for version, names in section.iter_versions():
                    nodes[version["vd_ndx"]] = next(names).name
        versions = elf.get_section_by_name(".gnu.version")
        found = {}
        for number, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["type"] != "STT_OBJECT":
                found[symbol.name] = nodes.get(int(versions.get_symbol(number)["ndx"]) & 0x7FFF, "") if versions else ""
        return found


def nvidias(module: str, name: str) -> Path:
    """The library of NVIDIA's wheel, which the test extra installs for other tests: only its table of names is read here."""
    found = pytest.importorskip(module)
    return Path(list(found.__path__)[0]) / "lib" / name


@pytest.mark.parametrize(("major", "module"), [(12, "nvidia.cuda_runtime"), (13, "nvidia.cu13")])
def test_the_runtime_exports_the_names_of_nvidias(sim_dir: Path, major: int, module: str) -> None:
    name = f"libcudart.so.{major}"
    theirs, ours = exported(nvidias(module, name)), exported(sim_dir / name)
    assert len(theirs) > 400
    missing = {entry for entry in theirs if entry not in ours}
    assert {entry for entry in missing if not GRAPHICS.fullmatch(entry) and not UNDECLARED.fullmatch(entry)} == set()
    assert set(ours.values()) == {name} == set(theirs.values())
    assert set(ours) <= set(theirs), "a name that NVIDIA's does not have hides that a program asks for the wrong one"


@pytest.mark.parametrize("major", [12, 13])
@pytest.mark.parametrize("library", ["libcublas", "libcublasLt"])
def test_cublas_has_the_names_of_its_table(sim_dir: Path, library: str, major: int) -> None:
    table = Path(__file__).resolve().parents[2] / "csrc" / "simgpu" / "cublas" / f"{library}.txt"
    wanted = {name for line in table.read_text().splitlines() if not line.startswith("#") for name in line.split()}
    ours = exported(sim_dir / f"{library}.so.{major}")
    assert set(ours) == wanted
    assert set(ours.values()) == {f"{library}.so.{major}"}


def stubs(path: Path) -> set[str]:
    """The entries without a body: gen_runtime.py makes them weak."""
    with path.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        return {one.name for one in symbols if one["st_info"]["bind"] == "STB_WEAK" and one["st_shndx"] != "SHN_UNDEF"}


def test_the_runtimes_stubs_are_those_that_are_listed(sim_dir: Path) -> None:
    listed = re.findall(r"\bcuda[A-Z]\w+", STUBS.read_text())
    assert len(listed) == len(set(listed)), "listed twice"
    built = stubs(sim_dir / "libcudart.so.12") | stubs(sim_dir / "libcudart.so.13")
    assert not built - set(listed), f"stubs that STUBS.md does not list: {sorted(built - set(listed))}"
    assert not set(listed) - built, f"real by now, strike them from STUBS.md: {sorted(set(listed) - built)}"
    assert len(exported(sim_dir / "libcudart.so.13")) > 2 * len(built) > 0


def built_for(source: str, major: int, c_program, sim_dir: Path, cuda_include) -> Path:
    """A program of tests/programs, against the headers and the runtime of that version."""
    headers = [f"-I{cuda_include}"]
    if major == 12:  # that wheel lacks the folder crt; a folder named so too is not looked at for its -I
        older = Path(list(pytest.importorskip("nvidia.cuda_runtime").__path__)[0]) / "include"
        headers = [f"-isystem{older}", f"-idirafter{cuda_include}"]
    flags = [*headers, f"-L{sim_dir}", f"-l:libcudart.so.{major}"]
    return c_program(source, link_libcuda=False, flags=flags, name=f"{Path(source).stem}_{major}")


@pytest.mark.parametrize("major", [12, 13])
def test_each_runtime_keeps_to_its_own_headers(run_sim, c_program, sim_dir, cuda_include, major):
    """What differs between the two: names with a version, layouts, defaults."""
    program = built_for("runtime_both.c", major, c_program, sim_dir, cuda_include)
    for shim in (False, True):
        result = run_sim([program], vram="64M", shim=shim, sim={"STUB_LOG": "stubs"}).ok()
        assert int(result.stdout) // 1000 == major, str(result)
        assert not (run_sim.tmp_path / "stubs").exists(), (run_sim.tmp_path / "stubs").read_text()


@pytest.mark.parametrize("shim", [False, True])
@pytest.mark.parametrize("major", [12, 13])
def test_answers_that_are_not_the_drivers(run_sim, c_program, sim_dir, cuda_include, major, shim):
    program = built_for("runtime_answers.c", major, c_program, sim_dir, cuda_include)
    result = run_sim([program], vram="64M", shim=shim, sim={"STUB_LOG": "stubs"})
    assert (result.returncode, result.stdout) == (0, "ok\n"), str(result)
    assert not (run_sim.tmp_path / "stubs").exists(), (run_sim.tmp_path / "stubs").read_text()


@pytest.mark.parametrize("shim", [False, True])
def test_two_devices_and_two_processes(run_sim, c_program, sim_dir, shim):
    program = c_program("runtime_machine.c", link_libcuda=False, flags=[f"-L{sim_dir}", "-l:libcudart.so.13"])
    result = run_sim([program], vram="64M", shim=shim, sim={"DEVICES": "2", "STUB_LOG": "stubs"}).ok()
    assert result.stdout == "ok\n", str(result)
    assert not (run_sim.tmp_path / "stubs").exists(), (run_sim.tmp_path / "stubs").read_text()
