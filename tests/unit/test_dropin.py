# SPDX-License-Identifier: Apache-2.0
"""`spillshim unit`: what the drop-in holds for a unit, and when it is refused because the service would run without the shim."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spillshim import dropin, install, native, units
from spillshim.cli import main

TRUE = shutil.which("true")
UNIT = f"[Service]\nExecStart={TRUE} serve\nUser=nobody\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can enter, as /usr/local/lib is; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="spillshim-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def copy(place: Path, libspillshim: Path, probe_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of library and probe in a folder of its own; what `install-system` may have put on this machine is not there."""
    folder = place / "lib"
    folder.mkdir(mode=0o755)
    for source in (libspillshim, probe_path):
        shutil.copy(source, folder)
        (folder / source.name).chmod(0o755)
    monkeypatch.setattr(native, "library", lambda: folder / "libspillshim.so")
    monkeypatch.setattr(install, "system_library", lambda: None)
    monkeypatch.setattr(dropin, "_TEMPORARY", ())  # where `place` is
    for name in [name for name in os.environ if name.startswith("SPILLSHIM_")]:
        monkeypatch.delenv(name)
    return folder / "libspillshim.so"


Call = Callable[..., Result]


@pytest.fixture
def call(place: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """call(unit file's text, *options) -> Result of `spillshim unit x.service`, where that is the unit's file."""

    def make(text: str | None, *options: str) -> Result:
        if text is not None:
            path = place / "etc/systemd/system/x.service"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        read = units.read
        with monkeypatch.context() as patch:
            patch.setattr(units, "read", lambda name: read(name, place))
            return CliRunner().invoke(main, ["unit", "x", *options], catch_exceptions=False)

    return make


def lines(result: Result) -> list[str]:
    """The settings of a drop-in."""
    assert result.exit_code == 0, result.output
    text = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    assert text[0] == "[Service]"
    return text[1:]


# --- what it holds --------------------------------------------------------------------------------------------------------


def test_a_drop_in(call: Call, copy: Path) -> None:
    result = call(UNIT, "--vram-limit", "90%", "--log", "info")
    assert lines(result) == [
        f'Environment="LD_PRELOAD={copy}"',
        "RuntimeDirectory=spillshim/%N",
        'Environment="SPILLSHIM_STATE_DIR=%t/spillshim/%N/state"',
        'Environment="SPILLSHIM_VRAM_LIMIT=90%%"',
        'Environment="SPILLSHIM_LOG=info"',
        "LimitMEMLOCK=infinity",
    ]
    assert "user nobody can" in result.stdout
    assert "/etc/systemd/system/x.service.d/spillshim.conf" in result.stdout


def test_what_the_unit_preloads_already_is_kept(call: Call, copy: Path) -> None:
    result = call(f'{UNIT}Environment="LD_PRELOAD=/usr/lib/libjemalloc.so.2 /old/libspillshim.so"\n')
    assert lines(result)[0] == f'Environment="LD_PRELOAD={copy}:/usr/lib/libjemalloc.so.2"'


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("ProcSubset=pid", "ProcSubset=all"),
        ("RestrictAddressFamilies=AF_INET AF_INET6", "RestrictAddressFamilies=AF_UNIX"),
        ("NoExecPaths=/\nExecPaths=/usr/bin /lib", "ExecPaths={folder}"),
    ],
)
def test_a_sandbox_that_the_shim_would_fail_in(call: Call, copy: Path, setting: str, expected: str) -> None:
    assert lines(call(f"{UNIT}{setting}\n"))[-1] == expected.format(folder=copy.parent)


@pytest.mark.parametrize(
    "setting", ["ProcSubset=all", "RestrictAddressFamilies=AF_UNIX AF_INET", "RestrictAddressFamilies=~AF_PACKET", "NoExecPaths=/tmp/x", "NoExecPaths=/\nExecPaths=/usr {folder}"]
)
def test_a_sandbox_that_does_no_harm(call: Call, copy: Path, setting: str) -> None:
    assert lines(call(UNIT + setting.format(folder=copy.parent.parent) + "\n"))[-1] == "LimitMEMLOCK=infinity"


LLAMA = """[Service]
User=nobody
ExecStart={path} -m /srv/model.gguf -c 8192
"""


def test_the_profile_of_its_program(call: Call, place: Path) -> None:
    program = place / "llama-server"
    shutil.copy(TRUE, program)
    text = LLAMA.format(path=program)
    by_profile = [line for line in lines(call(text)) if "SPILLSHIM_REPORT=" in line or "LLAMA_ARG" in line]
    assert by_profile == ['Environment="SPILLSHIM_REPORT=virtual"', 'Environment="LLAMA_ARG_FIT_TARGET=512"']
    assert "profile llama.cpp" in call(text).stdout
    # An option wins over the unit, the unit over the profile.
    assert 'Environment="SPILLSHIM_REPORT=vram"' in lines(call(text, "--report", "vram"))
    file = place / "default"
    file.write_text("SPILLSHIM_REPORT=vram\n")
    ours = lines(call(f"{text}Environment=LLAMA_ARG_FIT_TARGET=99\nEnvironmentFile={file}\n"))
    assert not [line for line in ours if "SPILLSHIM_REPORT=" in line or "LLAMA_ARG" in line]
    assert not [line for line in lines(call(text, "--profile", "none")) if "SPILLSHIM_REPORT=" in line]


def test_made_again_over_the_one_in_place(call: Call, place: Path) -> None:
    program = place / "llama-server"
    shutil.copy(TRUE, program)
    text = LLAMA.format(path=program)
    first = call(text, "--host-limit", "24G").stdout
    in_place = place / "etc/systemd/system/x.service.d"
    in_place.mkdir()
    (in_place / "override.conf").write_text(f"[Service]\nEnvironment=LLAMA_ARG_FIT_TARGET=99\n{first}")
    assert call(text, "--host-limit", "24G").stdout == first.replace('Environment="LLAMA_ARG_FIT_TARGET=512"\n', "").replace(", LLAMA_ARG_FIT_TARGET=512", "")


def test_a_profile_that_does_not_exist(call: Call) -> None:
    result = call(UNIT, "--profile", "no-such")
    assert result.exit_code == 125
    assert "no-such" in result.output


# --- what is refused ------------------------------------------------------------------------------------------------------


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "--force" in result.stderr


@pytest.mark.parametrize("closed", ["lib", "lib/libspillshim.so", "lib/spillshim-probe"])
def test_a_library_that_the_user_cannot_read(call: Call, copy: Path, closed: str) -> None:
    path = copy.parent.parent / closed
    path.chmod(0o700)
    try:
        refused(call(UNIT), "user nobody cannot", str(path), "0700", "sudo spillshim install-system")
        assert lines(call(UNIT.replace("nobody", pwd.getpwuid(os.getuid()).pw_name)))  # who owns it can
    finally:
        path.chmod(0o755)


def test_force_prints_it_all_the_same(call: Call, copy: Path) -> None:
    copy.chmod(0o600)
    result = call(UNIT, "--force")
    assert lines(result)
    assert "cannot read it" in result.stderr


def test_a_dynamic_user_has_everybodys_rights(call: Call, copy: Path) -> None:
    copy.chmod(0o750)
    refused(call(f"[Service]\nExecStart={TRUE}\nDynamicUser=yes\n"), "its dynamic user cannot read it")


@pytest.mark.parametrize(("setting", "folders"), [("ProtectHome=yes", "_HOMES"), ("ProtectHome=tmpfs", "_HOMES"), ("PrivateTmp=true", "_TEMPORARY")])
def test_folders_that_a_sandbox_hides(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch, setting: str, folders: str) -> None:
    monkeypatch.setattr(dropin, folders, (str(copy.parent.parent),))
    refused(call(f"{UNIT}{setting}\n"), setting.partition("=")[0], "install-system")
    without = call(UNIT)
    assert lines(without)
    assert "not meant for services" in without.stderr


def test_a_home_folder_is_refused_where_the_unit_is_not_known(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropin, "_HOMES", (str(copy.parent.parent),))
    refused(call(None), "home folder")


def test_a_path_that_the_loader_would_split(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awkward = copy.parent / "with space"
    shutil.copytree(copy.parent, awkward)
    monkeypatch.setattr(native, "library", lambda: awkward / copy.name)
    refused(call(UNIT), "with space", "install-system")


def test_a_program_that_preloads_nothing(call: Call, place: Path, c_program) -> None:
    static = c_program("int main(void) {\n return 0; }\n", link_libcuda=False, flags=["-static"], name="static")
    refused(call(f"[Service]\nExecStart={static}\n"), "statically linked")


def test_an_environment_file_that_wins(call: Call, place: Path) -> None:
    file = place / "default"
    file.write_text("A=1\nLD_PRELOAD=/x.so\n")
    refused(call(f"{UNIT}EnvironmentFile=-{file}\n"), str(file), "LD_PRELOAD")


def test_an_environment_file_that_wins_over_an_option(call: Call, place: Path) -> None:
    file = place / "default"
    file.write_text("SPILLSHIM_HOST_LIMIT=1G\nSPILLSHIM_LOG=info\n")
    result = call(f"{UNIT}EnvironmentFile={file}\n", "--host-limit", "24G")
    assert lines(result)
    assert f"EnvironmentFile={file} sets SPILLSHIM_HOST_LIMIT, which wins" in result.stderr


# --- what is warned of ----------------------------------------------------------------------------------------------------


def test_no_unit_file(call: Call) -> None:
    result = call(None)
    assert lines(result)
    assert "there is no unit file of x.service" in result.stderr


@pytest.mark.parametrize(
    ("setting", "words"), [("MemoryMax=8G", "MemoryMax=8G"), ("RootDirectory=/srv/x", "BindReadOnlyPaths="), ("ExecStart=\nExecStart=/nonexistent/x", "/nonexistent/x")]
)
def test_warnings(call: Call, setting: str, words: str) -> None:
    result = call(f"{UNIT}{setting}\n")
    assert lines(result)
    assert words in result.stderr


def test_a_library_that_others_can_change(call: Call, copy: Path) -> None:
    copy.chmod(0o777)
    assert "can be replaced by every user" in call(UNIT).stderr


def test_the_installed_library_is_taken_and_compared(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = copy.parent / "installed" / copy.name
    shutil.copytree(copy.parent, installed.parent)
    monkeypatch.setattr(install, "system_library", lambda: installed)
    result = call(UNIT)
    assert lines(result)[0] == f'Environment="LD_PRELOAD={installed}"'
    assert "another build" not in result.stderr
    installed.write_bytes(copy.read_bytes() + b"other")
    assert "another build" in call(UNIT).stderr


# --- what systemd says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sandbox", ["", "DynamicUser=yes\nProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nProcSubset=pid\nRestrictAddressFamilies=AF_INET\nNoExecPaths=/\nExecPaths=/usr /lib\n"])
def test_systemd_takes_it(call: Call, copy: Path, place: Path, need, sandbox: str) -> None:
    analyze = need("systemd-analyze")
    awkward = place / 'a "quoted" 50%n back\\slash'
    awkward.mkdir()
    result = call(UNIT + sandbox, "--host-limit", "50%", "--stats", str(awkward / "stats.jsonl"))
    assert result.exit_code == 0, result.output
    unit = place / "etc/systemd/system/x.service"
    drop_in = unit.with_name("x.service.d") / "spillshim.conf"
    drop_in.parent.mkdir()
    for text, said in ((result.stdout, False), (result.stdout + "Environment=%@\n", True)):  # the second: that it would say something
        drop_in.write_text(text)
        ran = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False)
        assert (str(drop_in) in ran.stderr) == said, ran.stderr
