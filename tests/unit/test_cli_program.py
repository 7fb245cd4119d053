# SPDX-License-Identifier: Apache-2.0
"""Reading a program before it is executed: where a name leads, and what a preloaded library would never reach."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from spillshim import program
from spillshim.errors import ProgramNotExecutable, ProgramNotFound

EMPTY = "int main(void) { return 0; }\n"


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def true(tmp_path: Path) -> Path:
    """A copy of an ordinary dynamic program."""
    return Path(shutil.copy(shutil.which("true") or "/bin/true", tmp_path / "true"))


def names(found: program.Program) -> list[str]:
    return [name for name, _, _ in found.problems]


def test_an_ordinary_program_has_no_problems(true: Path) -> None:
    found = program.read(str(true))
    assert found.problems == []
    assert found.elf == true
    assert "libc.so.6" in found.needed


def test_a_static_program(c_program) -> None:
    found = program.read(str(c_program(EMPTY, link_libcuda=False, flags=["-static"], name="static")))
    assert names(found) == ["static"]


def test_a_static_pie_program(c_program) -> None:
    found = program.read(str(c_program(EMPTY, link_libcuda=False, flags=["-static-pie", "-fPIE"], name="static-pie")))
    assert names(found) == ["static"]


def test_a_musl_program(c_program) -> None:
    built = c_program(EMPTY, link_libcuda=False, flags=["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"], name="musl")
    found = program.read(str(built))
    assert names(found) == ["musl"]
    assert "/lib/ld-musl-x86_64.so.1" in found.problems[0][1]


def test_a_missing_loader_is_not_found(c_program) -> None:
    built = c_program(EMPTY, link_libcuda=False, flags=["-Wl,--dynamic-linker=/nowhere/ld.so"], name="foreign")
    with pytest.raises(ProgramNotFound, match="/nowhere/ld.so"):
        program.read(str(built))


def test_a_32_bit_program(true: Path) -> None:
    data = bytearray(true.read_bytes())
    # A 32-bit header is shorter; the fields read here (class, machine) stand at the same place in both.
    data[4] = 1
    data[18:20] = (3).to_bytes(2, "little")  # EM_386
    true.write_bytes(data)
    found = program.read(str(true))
    assert names(found) == ["machine"]
    assert "32-bit" in found.problems[0][1]


def test_a_program_for_another_machine(true: Path) -> None:
    data = bytearray(true.read_bytes())
    data[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64
    true.write_bytes(data)
    assert names(program.read(str(true))) == ["machine"]


@pytest.mark.parametrize(("bit", "word"), [(stat.S_ISUID, "setuid"), (stat.S_ISGID, "setgid")])
def test_setuid_and_setgid_programs(true: Path, bit: int, word: str) -> None:
    true.chmod(0o755 | bit)
    assert names(program.read(str(true))) == [word]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give file capabilities")
def test_file_capabilities(true: Path) -> None:
    # struct vfs_cap_data, revision 2, effective bit, permitted = CAP_NET_RAW (1 << 13)
    value = b"".join(word.to_bytes(4, "little") for word in (0x02000001, 1 << 13, 0, 0, 0))
    try:
        os.setxattr(true, "security.capability", value)
    except OSError as error:
        pytest.skip(f"this file system keeps no capabilities: {error}")
    assert names(program.read(str(true))) == ["capabilities"]


def test_a_script_leads_to_its_interpreter(tmp_path: Path, true: Path) -> None:
    inner = script(tmp_path / "inner", f"#!{true}\n")
    outer = script(tmp_path / "outer", f"#! {inner} -x\n")
    found = program.read(str(outer))
    assert found.path == outer
    assert found.elf == true
    assert found.chain == [outer, inner, true]


def test_a_script_through_env(tmp_path: Path, true: Path) -> None:
    found = program.read(str(script(tmp_path / "s", "#!/usr/bin/env -S true --flag\n")), search=str(tmp_path))
    assert found.elf == true


def test_a_script_with_a_static_interpreter(tmp_path: Path, c_program) -> None:
    built = c_program(EMPTY, link_libcuda=False, flags=["-static"], name="static")
    interpreter = shutil.copy(built, tmp_path / "interpreter")  # a #! line cannot name a path with a space
    assert names(program.read(str(script(tmp_path / "s", f"#!{interpreter}\n")))) == ["static"]


def test_a_script_without_a_first_line_is_the_shells(tmp_path: Path) -> None:
    found = program.read(str(script(tmp_path / "s", "exit 0\n")))
    assert found.elf is not None
    assert found.elf.name == "sh"


def test_a_script_whose_interpreter_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ProgramNotFound, match="/nowhere/python"):
        program.read(str(script(tmp_path / "s", "#!/nowhere/python -u\n")))


def test_a_script_that_runs_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    found = program.read(str(script(path, f"#!{path}\n")))
    assert "interpreters" in found.unreadable


def test_exec_gets_the_name_as_written_and_never_searches_path_again(
    tmp_path: Path, true: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert program.read("./true").file == "./true"
    assert program.read(str(true)).file == str(true)
    assert program.read("true", search=f"/nowhere:{tmp_path}").file == str(true)
    for here in ("", "."):  # both mean this folder in a PATH
        assert program.read("true", search=here).file == "./true"


def test_a_program_of_this_folder_without_the_dot_is_pointed_out(
    tmp_path: Path, true: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProgramNotFound) as error:
        program.read("true", search="/nowhere")
    assert "./true" in error.value.fix


def test_path_is_searched_in_order_and_skips_what_cannot_run(tmp_path: Path, true: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    (first / "tool").write_text("not executable")
    shutil.copy(true, second / "tool")
    (first / "other").mkdir()
    assert program.find("tool", f"{first}:{second}") == second / "tool"
    with pytest.raises(ProgramNotExecutable, match="not executable"):
        program.find("tool", str(first))
    with pytest.raises(ProgramNotFound, match="no program named other"):
        program.find("other", str(first))


@pytest.mark.parametrize("command", ["/nonexistent/x", "./nonexistent", "no-such-program-anywhere", ""])
def test_missing_programs(command: str) -> None:
    with pytest.raises(ProgramNotFound):
        program.read(command)


def test_folders_devices_and_plain_files_are_not_executable(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    for path in (tmp_path, Path("/dev/null"), plain):
        with pytest.raises(ProgramNotExecutable):
            program.read(str(path))


def test_binary_rubbish_and_damaged_elf_files(tmp_path: Path, true: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\x00\x01\x02" * 100)
    rubbish.chmod(0o755)
    with pytest.raises(ProgramNotExecutable, match="neither an ELF"):
        program.read(str(rubbish))
    for cut in (5, 40, 70, 200):
        true.write_bytes(Path(shutil.which("true") or "/bin/true").read_bytes()[:cut])
        with pytest.raises(ProgramNotExecutable):
            program.read(str(true))


def test_sanitizer_runtimes_are_seen(c_program) -> None:
    built = c_program(EMPTY, link_libcuda=False, flags=["-fsanitize=address"], name="asan")
    found = program.read(str(built))
    assert [name.split(".so")[0] for name in found.sanitizers] == ["libasan"]
    needed = subprocess.run(["readelf", "-d", built], capture_output=True, text=True, check=True).stdout
    assert f"[{found.sanitizers[0]}]" in needed
