# SPDX-License-Identifier: Apache-2.0
"""Application profiles without a program that runs: what a file may hold, which file counts, what recognises a program."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spillshim import profiles, program
from spillshim.errors import SpillshimError
from spillshim.profiles import load, model, source


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """The three folders of profiles (package's, system's, user's), empty."""
    made = tuple(tmp_path / name for name in ("package", "system", "user/spillshim/apps"))
    for folder in made:
        folder.mkdir(parents=True)
    monkeypatch.setattr(load, "PACKAGE", made[0])
    monkeypatch.setattr(load, "SYSTEM", made[1])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    return made[0], made[1], made[2]


@pytest.fixture
def write(folders) -> Callable[..., Path]:
    """`write("name", text)` -> the file, in the package's folder or in folder number `level`."""

    def put(name: str, text: str, level: int = 0) -> Path:
        path = folders[level] / f"{name}.toml"
        path.write_text('summary = "s"\n' + text)
        return path

    return put


def wrong(name: str = "bad") -> str:
    with pytest.raises(SpillshimError) as caught:
        profiles.named(name)
    assert caught.value.exit_code == 125 and caught.value.fix
    return caught.value.message


# --- what a file may hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sumary = "x"', "line 2: sumary: unknown key; did you mean 'summary'?"),
        ('priority = "high"', "line 2: priority: expected an integer, not 'high'"),
        ("priority = 1.5", "line 2: priority: expected an integer, not 1.5"),
        ("summary2 = 1", "line 2: summary2: unknown key; did you mean 'summary'?"),
        ('[shim]\nreport = "virtul"', "line 3: shim.report: expected 'vram' or 'virtual', not 'virtul'"),
        ("[shim]\nreport = 1", "line 3: shim.report: expected 'vram' or 'virtual', not 1"),
        ("[shim]\noom = true", "line 3: shim.oom: expected 'never' or 'soft', not True"),
        ('[shim]\n# one\nmanaged_min = "90%"', "line 4: shim.managed_min: '90%' is not a size"),
        ('[shim]\nheadroom = "-1G"', "line 3: shim.headroom: '-1G' is negative"),
        ("[shim]\nholdback = 5", "line 3: shim.holdback: expected a string, not 5"),
        ('[shim]\ndisable = "yes"', "line 3: shim.disable: expected a boolean, not 'yes'"),
        ('[shim]\naside = "x"', "line 3: shim.aside: expected a list, not 'x'"),
        ('[shim]\naside = ["lib/x"]', "line 3: shim.aside[0]: 'lib/x' is not the name of a file"),
        (f'[shim]\naside = ["{"x" * 256}"]', "shim: the names in 'aside' are longer than 255 bytes together"),
        ("[shim]\nreports = 1", "line 3: shim.reports: unknown key; did you mean 'report'?"),
        ("[shim]\nxyz = 1", "line 3: shim.xyz: unknown key; known ones: report, report_limit, oom,"),
        ('[shim]\noom = { value = "soft" }', "line 3: shim.oom: a table needs 'given' or 'absent'"),
        ('[shim]\noom = { value = "hard", given = ["-x"] }', "line 3: shim.oom.value: expected 'never' or 'soft', not 'hard'"),
        ('[shim]\noom = { value = "soft", givn = ["-x"] }', "line 3: shim.oom.givn: unknown key; did you mean 'given'?"),
        ('[shim]\noom = { given = ["-x"] }', "line 3: shim.oom.value: is missing"),
        ('[shim.oom]\nvalue = "soft"\ngiven = ["a b"]', "line 4: shim.oom.given[0]: 'a b' is no argument"),
        ('[[match]]\nexecutable = ["a"]\n[[match]]\nscript = "b"', "line 5: match[1].script: expected a list, not 'b'"),
        ('[[match]]\nexecutabel = ["a"]', "line 3: match[0].executabel: unknown key; did you mean 'executable'?"),
        ("[[match]]", "line 2: match[0]: an empty [[match]] would match every program"),
        ('[[match]]\nexecutable = ["/usr/bin/x"]', "match[0].executable[0]: '/usr/bin/x' is not the name of a file"),
        ('[[match]]\nbeside = ["/opt/x"]', "match[0].beside[0]: '/opt/x' is no path beside a file: it must be relative"),
        ('[[match]]\nbeside = [""]', "match[0].beside[0]: '' is no path beside a file"),
        ('match = "x"', "line 2: match: expected a list, not 'x'"),
        ('shim = "x"', "line 2: shim: expected a table"),
        ("[environment]\nGOOD = 5", "line 3: environment.GOOD: expected a string, not 5"),
        ('[environment]\n"A B" = "x"', "environment.A B: not the name of an environment variable"),
        ('[environment]\nSPILLSHIM_OOM = "soft"', "environment.SPILLSHIM_OOM: a key of [shim] is for that"),
        ('[environment]\nLD_PRELOAD = "x"', "environment.LD_PRELOAD: `spillshim run` sets these itself"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(write, text: str, said: str) -> None:
    path = write("bad", text)
    message = wrong()
    assert message.startswith(f"the profile {path} is wrong:\n    ")
    assert said in message


def test_all_that_is_wrong_is_said_at_once_in_the_files_order(write) -> None:
    write("bad", 'one = 1\n[shim]\noom = "x"\nmoves = 1\n[environment]\nA = 1\n')
    lines = wrong().splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["line 2", "line 4", "line 5", "line 7"]


def test_a_summary_is_demanded(folders) -> None:
    (folders[0] / "bad.toml").write_text("priority = 1\n")
    assert "summary: is missing" in wrong()


def test_what_is_no_toml_is_named_with_its_line(write) -> None:
    write("bad", "[shim\n")
    assert "bad.toml is not TOML: " in wrong() and "line 2" in wrong()
    write("bad", 'model = ["a"]\nmodel = ["b"]\n')
    assert "is not TOML" in wrong()


def test_what_is_no_text_is_named_with_its_line(folders) -> None:
    (folders[0] / "bad.toml").write_bytes(b'summary = "s"\n# \xff\n')
    assert "line 2: not UTF-8 text" in wrong()


def test_a_file_that_cannot_be_read_is_named(folders) -> None:
    path = folders[2] / "bad.toml"
    path.mkdir()
    assert wrong() == f"cannot read the profile {path}: Is a directory"
    assert "No such file" in wrong("/no/such/file.toml")


def test_a_pipe_is_no_profile(folders) -> None:
    path = folders[2] / "bad.toml"
    os.mkfifo(path)
    assert wrong() == f"the profile {path} is not a regular file"


def test_a_file_of_absurd_size_is_refused(write) -> None:
    write("bad", "# " + "x" * load.LARGEST_FILE)
    assert "is larger than 256 KiB" in wrong()


@pytest.mark.parametrize("circle", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_circle_of_extends_is_told_whole(write, circle: list[str]) -> None:
    paths = [write(name, f'extends = "{circle[(at + 1) % len(circle)]}"') for at, name in enumerate(circle)]
    expected = " -> ".join(str(path) for path in [*paths, paths[0]])
    assert wrong("a") == f"profiles extend each other in a circle: {expected}"


def test_an_unknown_base_is_named_with_its_place(write) -> None:
    path = write("bad", 'extends = "pytorhc"')
    write("pytorch", "")
    said = f"the profile {path} is wrong:\n    line 2: extends: no profile is named 'pytorhc'; did you mean 'pytorch'?"
    assert wrong() == said


def test_an_unknown_name_is_told_with_the_known_ones(write) -> None:
    write("llama.cpp", "")
    with pytest.raises(SpillshimError, match=r"no profile is named 'llama.cp'; did you mean 'llama.cpp'\?") as caught:
        profiles.named("llama.cp")
    assert caught.value.fix == "Known ones: llama.cpp, none; or give the path of a file."


def test_one_bad_file_among_others_is_an_error_and_none_is_not_read(write) -> None:
    write("good", '[[match]]\nexecutable = ["sh"]')
    write("bad", "xyz = 1", level=2)
    found = program.read("sh")
    with pytest.raises(SpillshimError, match="bad.toml is wrong"):
        profiles.choose(["sh"], found, {})
    assert profiles.choose(["sh"], found, {}, "none") is None
    assert profiles.choose(["sh"], found, {"SPILLSHIM_PROFILE": "good"}).name == "good"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["llama.cpp", "jax"])
def test_a_damaged_file_is_an_error_with_its_name_or_a_profile(folders, name: str, seed: int) -> None:
    """Bytes of a real one changed, cut, doubled: never another exception, never another file named."""
    draw = random.Random(seed)
    print("seed", seed)
    whole = (Path(load.__file__).parents[1] / f"apps/{name}.toml").read_bytes()
    path, refused = folders[0] / f"{name}.toml", 0
    (folders[0] / "base.toml").write_text('summary = "s"\n')
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at, length = draw.randrange(len(data)), draw.randint(1, 40)
            what = draw.choice(["change", "cut", "double", "end"])
            if what == "change":
                data[at] = draw.choice(b'[]{}"=,.#\n\xff\0 0aZ-')
            elif what == "cut":
                del data[at : at + length]
            elif what == "double":
                data[at:at] = data[at : at + length]
            else:
                del data[at + 1 :]
        path.write_bytes(data)
        try:
            one = profiles.named(name).profile
            assert all(isinstance(value, str) for value in one.proposed(["x", "-c", "1"], {}).values())
        except SpillshimError as error:
            refused += 1
            assert str(path) in error.message
    assert refused > 50


# --- which file counts ------------------------------------------------------------------------------------------------


def test_the_users_file_overrides_the_systems_and_that_the_packages(write) -> None:
    for level, oom in enumerate(("never", "soft", "never")):
        write("app", f'[shim]\noom = "{oom}"\nheadroom = "{level}G"', level)
        found = profiles.load_all()["app"]
        assert found.profile.proposed() == {"SPILLSHIM_OOM": oom, "SPILLSHIM_HEADROOM": f"{level}G"}
        assert found.origin == ("built in", "system", "user")[level]


def test_a_file_may_extend_the_one_that_it_overrides(write) -> None:
    write("app", '[shim]\noom = "soft"\nheadroom = "1G"')
    write("app", 'extends = "app"\n[shim]\nheadroom = "2G"', level=1)
    write("app", 'extends = "app"\n[shim]\nholdback = "3G"', level=2)
    write("other", 'extends = "app"\n[environment]\nA = "1"')
    expected = {"SPILLSHIM_OOM": "soft", "SPILLSHIM_HEADROOM": "2G", "SPILLSHIM_HOLDBACK": "3G"}
    assert profiles.named("app").profile.proposed() == expected
    assert profiles.named("other").profile.proposed() == {**expected, "A": "1"}


def test_match_is_not_inherited_and_the_model_is(write) -> None:
    write("base", 'model = ["-m"]\n[[match]]\nexecutable = ["x"]')
    write("app", 'extends = "base"')
    one = profiles.named("app").profile
    assert one.settings.match == [] and one.model == ["-m"]
    write("app", 'extends = "base"\nmodel = []')
    assert profiles.named("app").profile.model == []


def test_a_file_is_chosen_by_its_path(tmp_path: Path, folders, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('summary = "s"\n[shim]\noom = "soft"\n')
    monkeypatch.chdir(tmp_path)
    for given in ("mine.toml", "./mine.toml", str(tmp_path / "mine.toml")):
        chosen = profiles.choose([], None, {}, given)
        assert (chosen.name, chosen.file) == ("mine", str(tmp_path / "mine.toml"))
        assert profiles.choose([], None, {"SPILLSHIM_PROFILE": given}).name == "mine"


def test_without_a_folder_there_are_only_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(load, "SYSTEM", tmp_path / "nowhere")
    assert set(profiles.load_all()) == {path.stem for path in load.PACKAGE.glob("*.toml")}


# --- what is set ------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(write) -> model.Profile:
    write(
        "app",
        """
[shim]
report = { value = "virtual", given = ["-c", "--ctx", "APP_CTX"] }
report_limit = "3%"
disable = false
aside = ["liba", "libb"]
[environment]
A = "1"
B = { value = "2", absent = ["-b", "MODE=*fast*"] }
""",
    )
    return profiles.named("app").profile


@pytest.mark.parametrize(
    ("argv", "env", "virtual", "b"),
    [
        ([], {}, False, True),
        (["-c", "4096"], {}, True, True),
        (["--ctx=4096"], {}, True, True),
        (["--ctxt=4096", "-cx"], {}, False, True),
        (["-b"], {"APP_CTX": "1"}, True, False),
        ([], {"MODE": "very-fast"}, False, False),
        ([], {"MODE": "slow"}, False, True),
    ],
)
def test_conditions_look_at_arguments_and_variables(app, argv, env, virtual: bool, b: bool) -> None:
    expected = {"SPILLSHIM_DISABLE": "0", "SPILLSHIM_ASIDE": "liba,libb", "A": "1"}
    expected.update({"SPILLSHIM_REPORT": "virtual", "SPILLSHIM_REPORT_LIMIT": "3%"} if virtual else {})
    expected.update({"B": "2"} if b else {})
    assert app.variables(env, ["app", *argv]) == expected


def test_what_the_user_has_set_is_left_alone(app) -> None:
    user = {"A": "mine", "SPILLSHIM_ASIDE": "", "B": ""}
    assert app.variables(user, ["app"]) == {"SPILLSHIM_DISABLE": "0"}
    assert app.variables({**user, "SPILLSHIM_REPORT": "virtual"}, ["app", "-c", "1"]) == {"SPILLSHIM_DISABLE": "0"}, (
        "the limit belongs to the report that the user did not take"
    )
    own_limit = app.variables({**user, "SPILLSHIM_REPORT_LIMIT": "9%"}, ["app", "-c", "1"])
    assert own_limit == {"SPILLSHIM_REPORT": "virtual", "SPILLSHIM_DISABLE": "0"}


def test_the_line_tells_what_is_set(app) -> None:
    said = profiles.line(app, app.variables({}, ["app", "-c", "1"]))
    assert said == "profile app: report virtual (+3%), disable 0, aside liba,libb, A=1, B=2"
    assert profiles.line(app, {}) == "profile app: sets nothing that is not set already"
    assert profiles.line(app, {"SPILLSHIM_DISABLE": "1"}) == "profile app: the shim steps aside"


@pytest.mark.parametrize(
    ("argv", "env", "expected"),
    [
        (["-m", "a.gguf"], {}, "a.gguf"),
        (["--model", "a", "-m", "b"], {}, "b"),
        (["--model=a=b"], {}, "a=b"),
        (["-m"], {}, None),
        (["-mx"], {"MODEL": "c"}, "c"),
        (["-m", "a"], {"MODEL": "c"}, "a"),
    ],
)
def test_the_model_is_found_among_the_arguments(write, argv, env, expected: str | None) -> None:
    write("app", 'model = ["-m", "--model", "MODEL"]')
    assert profiles.named("app").profile.model_file(["app", *argv], env) == expected


def test_what_sizes_depend_on_is_told_as_it_was_given(write) -> None:
    write("app", 'sizes = ["-c", "--ctx", "CTX", "-fa"]')
    write("more", 'extends = "app"')
    one = profiles.named("more").profile
    assert one.sizes_given(["app", "-p", "x", "-c", "8", "--ctx=9", "-fa"], {"CTX": "7", "OTHER": "1"}) == ["-c", "8", "--ctx=9", "-fa", "CTX=7"]
    assert one.sizes_given(["app"], {}) == []


# --- which Python code runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["-"], None),
        (["-V"], None),
        (["a.py", "-m", "x"], source.Code(script=Path("a.py"), arguments=("-m", "x"))),
        (["-u", "-W", "ignore", "-Xdev", "a.py"], source.Code(script=Path("a.py"))),
        (["-X", "importtime", "--check-hash-based-pycs", "never", "a.py"], source.Code(script=Path("a.py"))),
        (["-m", "vllm.entrypoints", "-c"], source.Code(module="vllm.entrypoints", arguments=("-c",))),
        (["-Im", "vllm"], source.Code(module="vllm")),
        (["-mvllm"], source.Code(module="vllm")),
        (["-c", "import torch", "a.py"], source.Code(text="import torch", arguments=("a.py",))),
        (["-m"], None),
    ],
)
def test_what_an_interpreter_is_told_to_run(arguments: list[str], expected) -> None:
    assert source.of_command(arguments) == expected


def test_interpreters_are_known_by_name() -> None:
    for name in ("python", "python3", "python3.11", "python3.13t", "pypy3.10", "python3-dbg"):
        assert source.is_python(name), name
    for name in ("pythonic", "bash", "ipython", "python3-config", ""):
        assert not source.is_python(name), name


def test_imports_are_read_from_the_source_and_from_modules_beside_it(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("raise SystemExit('executed')\ndef f():\n    from helper import x\nimport pkg.deep as d\n")
    (tmp_path / "helper.py").write_text("import cupy.cuda\nfrom . import nothing\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").write_text("from .inner import y\n")
    (tmp_path / "pkg/inner.py").write_text("from ..main import z\nimport jax\n")
    (tmp_path / "pkg/deep.py").write_text("from torch import nn\n")
    found = source.imports(source.Code(script=Path("main.py")), tmp_path)
    assert {"helper", "cupy.cuda", "pkg.deep", "jax", "torch", "torch.nn"} <= found
    assert source.imports(source.Code(module="pkg"), tmp_path) >= {"jax", "pkg.inner"}
    assert source.imports(source.Code(module="pkg.deep"), tmp_path) == {"torch", "torch.nn"}
    assert source.imports(source.Code(text="import helper"), tmp_path) >= {"helper", "cupy.cuda"}


@pytest.mark.parametrize("content", [b"import torch\n\0", b"import torch (", b"\xff\xfe", b"#" * (3 << 20), b"(" * 100_000])
def test_a_source_that_does_not_parse_imports_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.py").write_bytes(content)
    assert source.imports(source.Code(script=Path("a.py")), tmp_path) == set()
    assert source.imports(source.Code(script=Path("missing.py")), tmp_path) == set()


def test_a_pipe_is_left_to_the_program(tmp_path: Path) -> None:
    """`python <(...)`: what is read here the program would miss."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as pipe:
        os.write(writer, b"import torch\n")
        os.close(writer)
        assert source.imports(source.Code(script=Path(f"/dev/fd/{reader}")), tmp_path) == set()
        assert pipe.read() == "import torch\n"


def test_modules_that_import_each_other_end(tmp_path: Path) -> None:
    for at in range(200):
        (tmp_path / f"m{at}.py").write_text(f"import m{(at + 1) % 200}\nimport m{(at * 7) % 200}\n")
    assert 64 <= len(source.imports(source.Code(script=Path("m0.py")), tmp_path)) <= 128


# --- what recognises a program ----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def script(path: Path, text: str, interpreter: str = sys.executable) -> Path:
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


def chosen(*argv: str | Path) -> tuple[str, str] | None:
    words = [str(word) for word in argv]
    choice = profiles.explain(words, program.read(words[0]))
    return (choice.profile.name, choice.why) if choice else None


def built_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setattr(load, "SYSTEM", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-server", "llama.cpp"),
        ("llama-cli", "llama.cpp"),
        ("llama-bench", "llama.cpp"),
        ("ollama", "ollama"),
        ("vllm", "vllm"),
        ("blender", "blender"),
        ("torchrun", "pytorch"),
        ("myllama-server", None),
        ("llamafile", None),
    ],
)
def test_programs_are_known_by_their_name(place, tmp_path, monkeypatch, name: str, expected: str | None) -> None:
    built_in(monkeypatch, tmp_path)
    found = chosen(script(place / name, "pass", "/bin/sh"))
    assert (found[0] if found else None) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch", "pytorch"),
        ("from torch.nn import functional", "pytorch"),
        ("import torch\nfrom transformers import AutoModel", "transformers"),
        ("import diffusers", "transformers"),
        ("from vllm import LLM\nimport torch", "vllm"),
        ("import jax.numpy", "jax"),
        ("import cupy", "cupy"),
        ("import llama_cpp", "llama.cpp"),
        ("import bpy", "blender"),
        ("import torchy\nimport numpy", None),
        ("x = 'import torch'", None),
    ],
)
def test_scripts_are_known_by_what_they_import(place, tmp_path, monkeypatch, text: str, expected: str | None) -> None:
    built_in(monkeypatch, tmp_path)
    path = script(place / "train.py", text)
    for argv in ([path, "--epochs", "3"], [sys.executable, "-u", path], [sys.executable, "-c", text]):
        found = chosen(*argv)
        assert (found[0] if found else None) == expected, argv


def test_comfyui_is_known_by_its_files(place, tmp_path, monkeypatch) -> None:
    built_in(monkeypatch, tmp_path)
    (place / "main.py").write_text("import torch\n")
    assert chosen(sys.executable, "main.py") == ("pytorch", "it imports torch")
    (place / "comfy").mkdir()
    for name in ("comfy/model_management.py", "execution.py", "nodes.py"):
        (place / name).write_text("")
    assert chosen(sys.executable, "main.py", "--listen") == ("comfyui", "its script is main.py")
    assert chosen(sys.executable, "other.py") is None


def test_modules_are_known_by_name(place, tmp_path, monkeypatch) -> None:
    built_in(monkeypatch, tmp_path)
    assert chosen(sys.executable, "-m", "vllm.entrypoints.openai.api_server") == ("vllm", "it runs the module vllm")
    assert chosen(sys.executable, "-m", "vllmish") is None


def test_programs_are_known_by_what_they_are_linked_with(write, place) -> None:
    write("libc", '[[match]]\nneeds = ["libc.so*"]')
    found = program.read("cat")
    assert chosen("cat") == (("libc", "it is linked with libc.so*") if any("libc.so" in one for one in found.needed) else None)
    assert found.needed, "this machine's cat is dynamic"


@pytest.mark.parametrize(
    ("launcher", "known"),
    [
        (["nice", "-n", "5"], True),
        (["env", "-u", "X", "A=1", "nohup"], True),
        (["timeout", "60"], True),
        (["taskset", "-c", "0-3"], True),
        (["env", "A=1"], True),
        (["echo"], False),
        (["sh", "-c"], False),
    ],
)
def test_what_a_launcher_starts_is_known(write, place, launcher: list[str], known: bool) -> None:
    write("app", '[[match]]\nexecutable = ["the-app"]')
    argv = [*launcher, str(script(place / "the-app", "", "/bin/sh")), "-c", "1"]
    found = program.read(argv[0])
    assert (chosen(*argv) == ("app", "it is called the-app")) == known
    assert profiles.arguments(argv, found)[1:] == (["-c", "1"] if known else argv[1:])


def test_launchers_of_nothing_are_themselves(write, place) -> None:
    write("app", '[[match]]\nexecutable = ["nice"]')
    for argv in (["nice"], ["nice", "-n", "5", "no-such-program-anywhere"]):
        assert chosen(*argv) == ("app", "it is called nice")


def test_arguments_of_an_interpreter_are_not_the_programs(place) -> None:
    path = script(place / "a.py", "")
    found = program.read(sys.executable)
    for argv, own in (
        (["-c", "import x", "-m", "y"], ["-m", "y"]),
        (["-u", "-m", "llama_cpp.server", "--model", "z"], ["--model", "z"]),
        (["-X", "dev", str(path), "-c"], ["-c"]),
        (["-V"], ["-V"]),
    ):
        assert profiles.arguments([sys.executable, *argv], found) == [sys.executable, *own]
    assert profiles.arguments([str(path), "-c", "1"], program.read(str(path))) == [str(path), "-c", "1"]


def test_a_link_is_known_by_its_own_name_and_by_its_targets(write, place) -> None:
    write("app", '[[match]]\nexecutable = ["real-app"]')
    script(place / "real-app", "", "/bin/sh")
    (place / "app").symlink_to("real-app")
    assert chosen("./app") == ("app", "it is called real-app")


def test_all_keys_of_a_rule_must_agree_and_one_rule_is_enough(write, place) -> None:
    write("app", '[[match]]\nexecutable = ["run"]\nbeside = ["data", "*.bin"]\n[[match]]\nexecutable = ["other"]')
    path = script(place / "run", "", "/bin/sh")
    assert chosen(path) is None
    (place / "data").mkdir()
    assert chosen(path) is None
    (place / "x.bin").touch()
    assert chosen(path) == ("app", "it is called run")
    assert chosen(script(place / "other", "", "/bin/sh")) == ("app", "it is called other")


def test_stronger_evidence_wins_then_priority_then_the_users_then_the_name(write, place) -> None:
    path = script(place / "work.py", "import torch")
    write("b", '[[match]]\nimports = ["torch"]')
    write("c", '[[match]]\nimports = ["torch"]')
    assert chosen(path)[0] == "b"
    write("c", '[[match]]\nimports = ["torch"]', level=2)
    assert chosen(path)[0] == "c", "the user's"
    write("d", 'priority = 1\n[[match]]\nimports = ["torch"]')
    assert chosen(path)[0] == "d", "the greater priority"
    write("e", 'priority = -5\n[[match]]\nscript = ["work.py"]')
    assert chosen(path)[0] == "e", "a script's name says more than what it imports"
    write("f", 'priority = -9\n[[match]]\nexecutable = ["work*"]')
    assert chosen(path)[0] == "f", "the program's name says most"


def test_a_program_without_a_profile_does_not_wait_for_the_checker(tmp_path: Path) -> None:
    code = (
        "import sys; from spillshim import profiles, program\n"
        "assert profiles.choose(['true'], program.read('true'), {}) is None\n"
        "print('pydantic' in sys.modules)\n"
        "print(profiles.choose([], None, {}, 'cupy').name, 'pydantic' in sys.modules)"
    )
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert ran.stdout == "False\ncupy True\n", ran.stderr


# --- the package's own ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in load.PACKAGE.glob("*.toml")))
def test_each_of_the_packages_profiles_is_sound(name: str, tmp_path, monkeypatch) -> None:
    built_in(monkeypatch, tmp_path)
    one = profiles.named(name).profile
    assert len(one.settings.summary) <= 120
    assert any(base.settings.source for base in one.lineage()), "where its facts come from"
    text = Path(one.file).read_text()
    lines = text.splitlines()
    for key in [key for key in model.Shim.model_fields if getattr(one.settings.shim, key) is not None]:
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{key} ="))
        above = next(line for line in reversed(lines[:at]) if not line.startswith(tuple(f"{other} =" for other in model.Shim.model_fields)))
        assert above.startswith("#"), f"{key}: a comment says why"
    assert all(line == line.rstrip() and len(line) <= 320 for line in lines)


def test_every_key_of_the_schema_is_explained() -> None:
    schema = profiles.schema()
    tables = [schema, *schema["$defs"].values()]
    for table in tables:
        for key, value in table.get("properties", {}).items():
            assert value.get("description"), f"{table['title']}.{key}"


def test_the_settings_are_the_librarys(native_dir) -> None:
    """A key of [shim] is a variable of the library's own table."""
    from spillshim.cli.env import documented_variables

    known = {row["name"] for row in documented_variables()}
    assert {f"SPILLSHIM_{key.upper()}" for key in model.Shim.model_fields} | {"SPILLSHIM_PROFILE"} <= known
