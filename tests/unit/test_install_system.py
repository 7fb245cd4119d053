# SPDX-License-Identifier: Apache-2.0
"""`install-system` below a folder: what it puts there, that it replaces and removes its own and nothing else."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spillshim import install, native
from spillshim.cli import main
from spillshim.errors import SpillshimError

PLACE = "usr/local/lib/spillshim"
CONF = "etc/ld.so.conf.d/spillshim.conf"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with the folders that every one has."""
    for name in ("usr/local/lib", "etc/ld.so.conf.d"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def built(libspillshim: Path, probe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPILLSHIM_LIBRARY", str(libspillshim))
    monkeypatch.setattr(native, "probe", lambda: probe_path)


def call(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["install-system", "--root", str(root), *arguments], catch_exceptions=False)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_what_is_installed(root: Path, libspillshim: Path, probe_path: Path) -> None:
    old = os.umask(0o077)
    try:
        result = call(root)
    finally:
        os.umask(old)
    assert result.exit_code == 0, result.output
    for source in (libspillshim, probe_path):
        installed = root / PLACE / source.name
        assert installed.read_bytes() == source.read_bytes()
        assert stat.S_IMODE(installed.stat().st_mode) == 0o755  # no setuid bit: programs with privileges must go on ignoring it
        assert f"/{PLACE}/{source.name}" in result.output
    assert (root / CONF).read_text() == f"/{PLACE}\n"
    assert stat.S_IMODE((root / PLACE).stat().st_mode) == 0o755
    assert {path.name for path in (root / PLACE).iterdir()} == {"libspillshim.so", "spillshim-probe", "manifest.json"}


def test_uninstall_leaves_what_was_there_before(root: Path) -> None:
    before = tree(root)
    assert call(root).exit_code == 0
    assert call(root, "--uninstall").exit_code == 0
    assert tree(root) == before


def test_folders_that_were_made_go_too_unless_somebody_uses_them(root: Path) -> None:
    (root / "etc/ld.so.conf.d").rmdir()
    assert call(root, "--prefix", "/opt/x/y").exit_code == 0
    (root / "opt/x/theirs").touch()
    assert call(root, "--prefix", "/opt/x/y", "--uninstall").exit_code == 0
    assert tree(root) == {"usr", "usr/local", "usr/local/lib", "etc", "opt", "opt/x", "opt/x/theirs"}


def test_a_dry_run_does_nothing_and_says_the_same(root: Path) -> None:
    before = tree(root)
    dry = call(root, "--dry-run")
    assert tree(root) == before
    assert call(root).output.splitlines()[:-1] == dry.output.splitlines()[:-1]
    installed = tree(root)
    dry = call(root, "--uninstall", "--dry-run")
    assert tree(root) == installed
    assert call(root, "--uninstall").output.splitlines()[:-1] == dry.output.splitlines()[:-1]


def test_files_only_leaves_the_loader_alone(root: Path) -> None:
    assert call(root, "--files-only").exit_code == 0
    assert not (root / CONF).exists()
    assert (root / PLACE / "libspillshim.so").exists()


def test_the_bare_name_can_be_taken_back_by_itself(root: Path) -> None:
    assert call(root).exit_code == 0
    assert call(root, "--files-only").exit_code == 0
    assert not (root / CONF).exists()
    assert (root / PLACE / "libspillshim.so").exists()


def test_a_new_version_replaces_the_old_one_by_rename(root: Path, tmp_path: Path, libspillshim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(root).exit_code == 0
    installed = root / PLACE / "libspillshim.so"
    newer = tmp_path / "newer" / "libspillshim.so"
    newer.parent.mkdir()
    newer.write_bytes(libspillshim.read_bytes() + b"newer")
    with installed.open("rb") as held:  # as a program has that is running
        monkeypatch.setenv("SPILLSHIM_LIBRARY", str(newer))
        assert call(root).exit_code == 0
        assert held.read() == libspillshim.read_bytes()
    assert installed.read_bytes() == newer.read_bytes()
    assert call(root, "--uninstall").exit_code == 0
    assert not (root / PLACE).exists()


@pytest.mark.parametrize("name", [f"{PLACE}/libspillshim.so", CONF])
@pytest.mark.parametrize("how", ["changed", "link", "folder"])
def test_a_changed_file_is_not_removed_nor_is_anything_else(root: Path, name: str, how: str) -> None:
    assert call(root).exit_code == 0
    path = root / name
    path.unlink()
    if how == "changed":
        path.write_text("theirs\n")
    elif how == "link":
        path.symlink_to("/etc/passwd")
    else:
        path.mkdir()
    before = tree(root)
    for arguments in (["--uninstall"], []):
        refused = call(root, *arguments)
        assert refused.exit_code == 1
        assert f"/{name}" in refused.output
        assert tree(root) == before


def test_what_is_already_gone_does_not_hinder(root: Path) -> None:
    before = tree(root)
    assert call(root).exit_code == 0
    (root / CONF).unlink()
    (root / PLACE / "spillshim-probe").unlink()
    assert call(root, "--uninstall").exit_code == 0
    assert tree(root) == before


def test_somebody_elses_file_is_not_replaced(root: Path) -> None:
    (root / CONF).write_text("/opt/other\n")
    before = tree(root)
    refused = call(root)
    assert refused.exit_code == 1
    assert f"/{CONF}" in refused.output
    assert tree(root) == before
    assert (root / CONF).read_text() == "/opt/other\n"


def test_a_packages_folder(root: Path) -> None:
    result = CliRunner().invoke(main, ["install-system"], env={"DESTDIR": str(root)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert (root / PLACE / "libspillshim.so").exists()


def test_nothing_installed(root: Path) -> None:
    refused = call(root, "--uninstall")
    assert refused.exit_code == 1
    assert "nothing is installed under /usr/local" in refused.output


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "files": [], "folders": []}', '{"format": 1, "files": {"/../etc/passwd": ""}, "folders": []}',
     '{"format": 1, "files": {"etc/passwd": ""}, "folders": []}', '{"format": 1, "files": {}, "folders": [7]}', "\x00"],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense(root: Path, manifest: str) -> None:
    assert call(root).exit_code == 0
    (root / PLACE / "manifest.json").write_text(manifest)
    before = tree(root)
    for arguments in (["--uninstall"], []):
        refused = call(root, *arguments)
        assert refused.exit_code == 1
        assert "manifest.json" in refused.output
        assert tree(root) == before


def test_a_full_disk_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(root)
    create, made = install._create, []

    def full(path: Path, one: install.Entry) -> None:
        if len(made) == 2:
            raise OSError(28, "No space left on device", str(path))
        create(path, one)
        made.append(path)

    monkeypatch.setattr(install, "_create", full)
    refused = call(root)
    assert refused.exit_code == 125
    assert "No space left on device" in refused.output
    assert tree(root) == before


@pytest.mark.parametrize("prefix", ["usr/local", "/usr/../tmp", "/opt/with space", "/opt/a:b", "/opt/$x"])
def test_prefixes_that_the_loader_would_not_understand(root: Path, prefix: str) -> None:
    refused = call(root, "--prefix", prefix)
    assert refused.exit_code == 125
    assert repr(prefix) in refused.output


def test_without_root_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["/venv/bin/spillshim", "install-system", "--prefix", "/opt/x"])
    refused = CliRunner().invoke(main, ["install-system", "--prefix", "/opt/x"])
    assert refused.exit_code == 125
    assert "sudo /venv/bin/spillshim install-system --prefix /opt/x" in refused.output


def test_a_system_without_ldconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SpillshimError, match="no ldconfig"):
        install.Installation(Path("/usr/local")).install(dry=True)


def test_a_prefix_that_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    with pytest.raises(install.Refused, match="others than root could"):
        install.Installation(theirs, cache=False).install(dry=True)


def test_where_the_system_library_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "LOADER_CONF", root / CONF)
    monkeypatch.setattr(install, "PREFIX", root / "nothing")
    assert install.system_library() is None
    place = root / "opt/lib/spillshim"
    place.mkdir(parents=True)
    (root / CONF).write_text(f"{place}\n")
    assert install.system_library() is None
    (place / "libspillshim.so").touch()
    assert install.system_library() == place / "libspillshim.so"


def test_the_manifest_is_for_people_too(root: Path) -> None:
    assert call(root).exit_code == 0
    told = json.loads((root / PLACE / "manifest.json").read_text())
    assert set(told["files"]) == {f"/{PLACE}/libspillshim.so", f"/{PLACE}/spillshim-probe", f"/{CONF}"}
    assert told["folders"] == [f"/{PLACE}"]
