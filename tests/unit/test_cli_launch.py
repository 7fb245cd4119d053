# SPDX-License-Identifier: Apache-2.0
"""The environment that `run` makes: the order of LD_PRELOAD, paths that the loader would split, a C locale."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from spillshim import launch, native
from spillshim.errors import SpillshimError

OURS = Path("/opt/spillshim/libspillshim.so")


@pytest.mark.parametrize(
    ("current", "sanitizers", "expected"),
    [
        ("", [], f"{OURS}"),
        ("/x/a.so /x/b.so", [], f"{OURS}:/x/a.so:/x/b.so"),
        ("/x/a.so::/x/b.so: ", [], f"{OURS}:/x/a.so:/x/b.so"),
        (f"{OURS}:/x/a.so", [], f"{OURS}:/x/a.so"),
        (f"/x/a.so:{OURS} {OURS}", [], f"{OURS}:/x/a.so"),
        ("/old/place/libspillshim.so", [], f"{OURS}"),
        ("/x/a.so:/usr/lib/libasan.so.8", [], f"/usr/lib/libasan.so.8:{OURS}:/x/a.so"),
        ("/x/a.so", ["libasan.so.8"], f"libasan.so.8:{OURS}:/x/a.so"),
        ("/usr/lib/libasan.so.8", ["libasan.so.8"], f"/usr/lib/libasan.so.8:{OURS}"),
        ("libtsan.so.2", [], f"libtsan.so.2:{OURS}"),
        ("libubsan.so.1", [], f"{OURS}:libubsan.so.1"),
    ],
)
def test_preload_order(current: str, sanitizers: list[str], expected: str) -> None:
    assert launch.preload(OURS, current, sanitizers) == expected


def test_a_preloaded_link_to_the_library_counts_as_the_library(tmp_path: Path) -> None:
    real = tmp_path / "libspillshim.so"
    real.write_bytes(b"\x7fELF")
    link = tmp_path / "0123abcd.so"
    link.symlink_to(real)
    assert launch.preload(real, str(link)) == str(real)


def test_without_shim_keeps_the_rest() -> None:
    env = {"LD_PRELOAD": f"{OURS}:/x/a.so", "HOME": "/h"}
    assert launch.without_shim(env) == {"LD_PRELOAD": "/x/a.so", "HOME": "/h"}
    assert launch.without_shim({"LD_PRELOAD": str(OURS)}) == {}


@pytest.mark.parametrize("awkward", ["with space", "with:colon", "with$dollar", "with;semicolon"])
def test_awkward_folders_get_a_link(awkward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    folder = tmp_path / awkward
    folder.mkdir()
    library = folder / "libspillshim.so"
    library.write_bytes(b"\x7fELF library")
    (folder / "spillshim-probe").write_text("probe")
    link = native.loader_safe(library)
    assert not set(str(link)) & set(" :$;")
    assert link.read_bytes() == library.read_bytes()
    assert (link.parent / "spillshim-probe").read_text() == "probe", "the probe is looked for beside the library"
    assert native.loader_safe(library) == link, "the same link each time"
    assert (runtime / "spillshim").stat().st_mode & 0o777 == 0o700
    assert list((runtime / "spillshim").iterdir()) == [link.parent], "no litter"


def test_an_awkward_file_name_gets_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    library = tmp_path / "my shim.so"
    library.write_bytes(b"\x7fELF")
    assert native.loader_safe(library).resolve() == library
    assert " " not in str(native.loader_safe(library))


def test_a_link_follows_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "x.so").write_bytes(b"1")
    link = native.loader_safe(folder / "x.so")
    link.parent.unlink()
    link.parent.symlink_to(tmp_path)  # a stale link of the same name
    assert native.loader_safe(folder / "x.so").read_bytes() == b"1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to someone else")
def test_somebody_elses_runtime_folder_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    theirs = tmp_path / "spillshim"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "x.so").write_bytes(b"1")
    link = native.loader_safe(folder / "x.so")
    assert not link.is_relative_to(theirs)
    link.parent.unlink()


def test_plain_paths_are_left_alone() -> None:
    assert native.loader_safe(OURS) == OURS


@pytest.mark.parametrize(("content", "message"), [(None, "is not there"), (b"text", "not an ELF file")])
def test_a_library_that_cannot_be_preloaded_is_refused(
    content: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib.so"
    if content is not None:
        library.write_bytes(content)
    monkeypatch.setenv("SPILLSHIM_LIBRARY", str(library))
    with pytest.raises(SpillshimError, match=message) as error:
        native.library()
    assert str(library) in str(error.value)
    assert error.value.exit_code == 125


@pytest.mark.parametrize(
    ("kept", "message"), [(20, "cut off in its headers"), (100, "cut off in its headers"), (3000, "cut off: 3000 of")]
)
def test_a_library_that_is_cut_off_is_refused(
    kept: int, message: str, libspillshim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ld.so would map it all the same, and the program would die of SIGBUS."""
    library = tmp_path / "libspillshim.so"
    monkeypatch.setenv("SPILLSHIM_LIBRARY", str(library))
    library.write_bytes(libspillshim.read_bytes()[:kept])
    with pytest.raises(SpillshimError, match=message):
        native.library()
    library.write_bytes(libspillshim.read_bytes())
    assert native.library() == library


def test_a_library_for_another_machine_is_refused(
    libspillshim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(libspillshim.read_bytes())
    data[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64
    library = tmp_path / "libspillshim.so"
    library.write_bytes(data)
    monkeypatch.setenv("SPILLSHIM_LIBRARY", str(library))
    with pytest.raises(SpillshimError, match="64-bit x86"):
        native.library()


def test_an_unreadable_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # tmp_path itself is closed to other users
        os.chmod(folder, 0o755)
        library = Path(folder) / "libspillshim.so"
        library.write_bytes(b"\x7fELF")
        library.chmod(0)
        monkeypatch.setenv("SPILLSHIM_LIBRARY", str(library))
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)  # root can read everything
        try:
            with pytest.raises(SpillshimError, match="cannot be read") as error:
                native.library()
        finally:
            os.seteuid(was)
    assert error.value.exit_code == 125
    assert "chmod a+r" in error.value.fix


def test_the_simulated_driver_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "sim_dir", lambda: tmp_path)
    made = launch.simulated({"LD_LIBRARY_PATH": f"/usr/local/cuda/lib64:{tmp_path}"}, {"SIMGPU_VRAM": "1G"})
    assert made["LD_LIBRARY_PATH"] == f"{tmp_path}:/usr/local/cuda/lib64"
    assert made["SIMGPU_VRAM"] == "1G"
    assert made["SIMGPU_NAME"]
    assert "LD_PRELOAD" not in made


def test_the_simulated_runtimes_are_loaded_behind_the_shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with DT_RPATH would find NVIDIA's otherwise. A run inside a run names them once."""
    runtimes = [tmp_path / name for name in ("libcublas.so.13", "libcudart.so.12", "libcudart.so.13")]
    for path in (*runtimes, tmp_path / "libcuda.so.1", tmp_path / "libnvidia-ml.so.1", tmp_path / "libspillshim.so"):
        path.touch()
    monkeypatch.setattr(native, "sim_dir", lambda: tmp_path)
    monkeypatch.setattr(native, "library", lambda: tmp_path / "libspillshim.so")
    settings = launch.Settings(sim={"SIMGPU_VRAM": "1G"})
    outer = launch.environment({"LD_PRELOAD": "libjemalloc.so.2"}, settings)
    wanted = [str(tmp_path / "libspillshim.so"), "libjemalloc.so.2", *map(str, runtimes)]
    assert launch.split_preload(outer["LD_PRELOAD"]) == wanted
    assert launch.split_preload(launch.environment(outer, settings)["LD_PRELOAD"]) == wanted
