# SPDX-License-Identifier: Apache-2.0
"""The cache of what programs needed: whose an entry is, what of it is believed, and how it stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spillshim import program, remember

RECORD = {
    "version": 1, "keep": 40 << 20, "after": 2, "waits": 7, "rest": 1, "steady": True, "when": "exit", "pid": 1, "exe": "/bin/llama", "limit": 1 << 30,
    "index": 0, "size": 3 << 28, "kept": 0, "vram_peak": 1, "ram_peak": 2, "native_peak": 3, "promoted_bytes": 4,
    "demoted_bytes": 5, "regions": 2, "allocations": [[3 << 28, 1 << 20, 1], [40 << 20, 0, 0]],
}  # fmt: skip
NAME = f"{RECORD['limit']}-{RECORD['index']}-{RECORD['size']}.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own; returns where entries will lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spillshim" / "remembered"


@pytest.fixture
def llama(tmp_path: Path) -> program.Program:
    path = tmp_path / "llama"
    path.write_text("a program")
    return program.Program("llama", path, [path])


def recall(llama: program.Program, *words: str, env: dict[str, str] | None = None, **more: Any) -> remember.Remembered:
    return remember.recall(llama, ["llama", *words], env or {}, **more)


def entry(found: remember.Remembered) -> Path:
    return Path(found.variables[remember.VARIABLE])


def put(folder: Path, **changes: object) -> Path:
    made = {**RECORD, **changes}
    path = folder / f"{made['limit']}-{made['index']}-{made['size']}.json"
    path.write_text(json.dumps(made) + "\n")
    path.chmod(0o600)
    return path


# --- whose it is --------------------------------------------------------------------------------------------------------------


def test_one_program_and_its_arguments_are_one_entry(llama) -> None:
    first, again = recall(llama, "-c", "8"), recall(llama, "-c", "8")
    assert entry(first) == entry(again) and entry(first).is_dir() and entry(first).stat().st_mode & 0o777 == 0o700
    assert not first.lines
    assert entry(recall(llama, "-c", "9")) != entry(first)


def test_another_build_of_the_program_is_another_entry(llama) -> None:
    first = entry(recall(llama))
    llama.path.write_text("another program")
    assert entry(recall(llama)) != first


def test_a_named_model_stands_for_all_arguments(llama, tmp_path) -> None:
    model = tmp_path / "m.gguf"
    model.write_text("weights")
    first = entry(recall(llama, "-p", "hello", model=str(model)))
    assert entry(recall(llama, "-p", "bye", "-m", "x", model=str(model))) == first
    assert entry(recall(llama, "-p", "hello")) != first
    (tmp_path / "link.gguf").symlink_to(model)
    assert entry(recall(llama, model=str(tmp_path / "link.gguf"))) == first
    model.write_text("other weights")
    assert entry(recall(llama, "-p", "hello", model=str(model))) != first
    assert entry(recall(llama, model=str(model), sizes_given=["-c", "8"])) != entry(recall(llama, model=str(model), sizes_given=["-c", "9"]))
    assert entry(recall(llama, model="repo/name")) != entry(recall(llama, model="repo/other")), "not every model is a file"


def test_a_relative_path_is_the_file_that_it_names(llama, tmp_path, monkeypatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.py").write_text("pass")
    monkeypatch.chdir(tmp_path / "a")
    first = entry(recall(llama, "train.py"))
    assert entry(recall(llama, str(tmp_path / "a" / "train.py"))) == first
    monkeypatch.chdir(tmp_path / "b")
    assert entry(recall(llama, "train.py")) != first


def test_arguments_are_not_written_down(llama, tmp_path) -> None:
    (tmp_path / "train.py").write_text("pass")
    folder = entry(recall(llama, str(tmp_path / "train.py"), "--token", "secret-of-mine", profile="pytorch"))
    about = json.loads((folder / "about.json").read_text())
    assert about == {"version": 1, "what": "llama train.py", "program": str(llama.path), "model": None, "profile": "pytorch"}


# --- what is believed -----------------------------------------------------------------------------------------------------------


def test_what_is_remembered_is_said_in_one_line(llama) -> None:
    put(entry(recall(llama)))
    found = recall(llama)
    assert found.lines == ["remembered: 40 MiB of VRAM is kept for what comes after an allocation of 768 MiB"]
    put(entry(found), index=1, keep=1 << 20)
    assert recall(llama).lines[0].endswith("768 MiB (and so for 1 more)")


@pytest.mark.parametrize("changes", [{"steady": False}, {"keep": 0}])
def test_what_is_not_used_is_not_said(llama, changes) -> None:
    put(entry(recall(llama)), **changes)
    assert recall(llama).lines == []


def test_a_holdback_goes_before_what_is_remembered(llama) -> None:
    put(entry(recall(llama)))
    found = recall(llama, env={"SPILLSHIM_HOLDBACK": "1G"})
    assert found.variables and not found.lines, "it is learnt all the same"


@pytest.mark.parametrize("env", [{"SPILLSHIM_REMEMBER": "0"}, {"SPILLSHIM_REMEMBER": "/mine"}, {"SPILLSHIM_DISABLE": "1"}, {"SPILLSHIM_SPILL": "0"}])
def test_who_does_not_want_it_has_none(llama, cache, env) -> None:
    assert recall(llama, env=env) == remember.Remembered({}, [])
    assert not cache.exists()


def spoil(how: str, path: Path) -> None:
    text = path.read_text()
    path.unlink()
    match how:
        case "cut off":
            path.write_text(text[:-20])
        case "empty":
            path.write_text("")
        case "no JSON":
            path.write_bytes(b"\xff\x00")
        case "deep":
            path.write_text("[" * 16000)
        case "long":
            path.write_text(text + " " * 16384)
        case "another version":
            path.write_text(text.replace('"version": 1', '"version": 2'))
        case "an unknown key":
            path.write_text(text.replace('"keep"', '"keeps": 1, "keep"'))
        case "a wrong type":
            path.write_text(text.replace('"waits": 7', '"waits": "7"'))
        case "negative":
            path.write_text(text.replace('"waits": 7', '"waits": -7'))
        case "another allocation":
            path.write_text(text.replace('"index": 0', '"index": 1'))
        case "a link":
            target = path.with_name("elsewhere")
            target.write_text(text)
            path.symlink_to(target)
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "anybody's":
            path.write_text(text)
            path.chmod(0o666)
        case "another user's":
            if os.geteuid():
                pytest.skip("only root can give a file away")
            path.write_text(text)
            os.chown(path, 4711, 4711)


FILES = ["cut off", "empty", "no JSON", "deep", "long", "another version", "an unknown key", "a wrong type", "negative",
         "another allocation", "a link", "a pipe", "a folder", "anybody's", "another user's"]  # fmt: skip


@pytest.mark.parametrize("how", FILES)
def test_a_spoilt_record_is_ignored_with_one_line(llama, how) -> None:
    folder = entry(recall(llama))
    spoil(how, put(folder))
    put(folder, index=3, keep=1 << 20)
    found = recall(llama)
    assert entry(found) == folder
    ignored, told = found.lines[0], found.lines[-1]
    assert ignored.startswith("warning: ignored: ") and NAME in ignored and "\n" not in ignored
    assert told == "remembered: 1 MiB of VRAM is kept for what comes after an allocation of 768 MiB"
    assert len(found.lines) == 2, "one line, whatever else there is"


@pytest.mark.parametrize("how", ["cut off", "another version", "a link", "anybody's"])
def test_a_spoilt_description_is_made_anew(llama, how, tmp_path) -> None:
    folder = entry(recall(llama))
    about = folder / "about.json"
    kept = about.read_text()
    spoil(how, about)
    recall(llama)
    assert about.read_text() == kept and not about.is_symlink() and about.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("level", ["remembered", "entry"])
@pytest.mark.parametrize("how", ["a link", "anybody's", "a file", "another user's"])
def test_a_folder_that_is_not_ours_alone_is_left_alone(llama, cache, level, how, tmp_path) -> None:
    put(entry(recall(llama)))
    path = cache if level == "remembered" else entry(recall(llama))
    aside = tmp_path / "aside"
    match how:
        case "a link":
            path.rename(aside)
            path.symlink_to(aside)
        case "anybody's":
            path.chmod(0o777)
        case "a file":
            path.rename(aside)
            path.write_text("")
        case "another user's":
            if os.geteuid():
                pytest.skip("only root can give a folder away")
            os.chown(path, 4711, 4711)
    held = sorted(map(str, tmp_path.rglob("*")))
    found = recall(llama)
    assert not found.variables
    assert len(found.lines) == 1 and found.lines[0].startswith("warning: nothing is remembered: ") and str(path) in found.lines[0]
    listed, ignored = remember.entries()
    assert listed == [] and len(ignored) == 1
    remember.clear()
    assert sorted(map(str, tmp_path.rglob("*"))) == held or how in ("anybody's", "another user's") and level == "entry"


def test_a_cache_that_cannot_be_made_is_one_line(llama, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = recall(llama)
    assert not found.variables and len(found.lines) == 1 and "Not a directory" in found.lines[0]


def test_a_path_too_long_for_the_shim_is_one_line(llama, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 200)))
    found = recall(llama)
    assert not found.variables and "longer than 255 bytes" in found.lines[0]


# --- how it stays small -----------------------------------------------------------------------------------------------------------


def test_entries_used_longest_ago_go_first(llama, cache, monkeypatch) -> None:
    monkeypatch.setattr(remember, "MOST_ENTRIES", 4)
    folders = [entry(recall(llama, str(n))) for n in range(4)]
    for age, folder in enumerate(folders):
        os.utime(folder / "about.json", (1000 + age, 1000 + age))
    recall(llama, "0")  # used again
    newest = entry(recall(llama, "new"))
    assert sorted(path.name for path in cache.iterdir()) == sorted(path.name for path in (folders[0], *folders[2:], newest))


def test_records_written_longest_ago_go_first(llama, monkeypatch) -> None:
    monkeypatch.setattr(remember, "MOST_RECORDS", 2)
    folder = entry(recall(llama))
    for age in range(5):
        os.utime(put(folder, index=age), (1000 + age, 1000 + age))
    (folder / f".{os.getpid()}").write_text("a draft that is being written")
    (folder / ".999999999").write_text("a draft whose writer is gone")
    recall(llama)
    assert sorted(path.name.split("-")[1] for path in folder.glob("*-*")) == ["3", "4"]
    assert [path.name for path in folder.glob(".*")] == [f".{os.getpid()}"]


# argv: a program, a record's text, its name. Starts the program twenty times, with five different arguments, and writes each time.
START_OFTEN = """
import sys
from pathlib import Path
from spillshim import program, remember
path = Path(sys.argv[1])
for n in range(20):
    found = remember.recall(program.Program("llama", path, [path]), ["llama", str(n % 5)], {})
    file = Path(found.variables[remember.VARIABLE]) / sys.argv[3]
    file.touch(mode=0o600)
    file.write_text(sys.argv[2])
"""


def test_writers_at_the_same_time_disturb_nobody(llama, tmp_path) -> None:
    workers = []
    for index in range(4):
        record = put(tmp_path, index=index)
        command = [sys.executable, "-c", START_OFTEN, str(llama.path), record.read_text(), record.name]
        workers.append(subprocess.Popen(command, cwd=tmp_path))
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    found, ignored = remember.entries()
    assert len(found) == 5 and not ignored
    assert all(one.about and not one.ignored and [record.index for record in one.records] == [0, 1, 2, 3] for one in found)
    assert not list(remember.root().rglob(".*"))


def test_clear_takes_what_was_named(llama) -> None:
    folders = [entry(recall(llama, str(n))) for n in range(3)]
    (remember.root() / "not-an-entry").mkdir()
    assert remember.clear([folders[0].name]) == [folders[0].name]
    assert len(remember.clear()) == 2
    assert [path.name for path in remember.root().iterdir()] == ["not-an-entry"]
