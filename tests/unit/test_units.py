# SPDX-License-Identifier: Apache-2.0
"""Reading systemd's units and writing values for them: its quoting, drop-ins, templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillshim import units


def write(root: Path, path: str, text: str) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return target


# --- words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  a\t b ", ["a", "b"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ('"FOO=a b"', ["FOO=a b"]),
        ('FOO="a b"c', ["FOO=a bc"]),
        ("''", [""]),
        (r'"a\"b\\c"', ['a"b\\c']),
        (r"a\x20b \101 \u00e9", ["a b", "A", "é"]),
        (r"a\sb", ["a b"]),
        (r"'it\'s'", ["it's"]),
        (r"\q", [r"\q"]),
        ("a;b", ["a;b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert units.split(text) == words


@pytest.mark.parametrize("text", ['"open', "'open", "a 'b"])
def test_an_open_quote_is_named(text: str) -> None:
    with pytest.raises(units.BadUnit, match="does not close"):
        units.split(text)


TAKEN = st.text(st.characters(exclude_categories=("Cs", "Cc"), include_characters="\t\n"))


@given(TAKEN)
def test_a_value_is_read_back_as_it_was(value: str) -> None:
    line = units.assignment("NAME", value)
    assert "\n" not in line
    setting, _, rest = line.partition("=")
    assert setting == "Environment"
    assert units.Service("x", settings={"Environment": [rest]}).environment == {"NAME": value}


@pytest.mark.parametrize("value", ["\0", "a\x1b[0m", "\x7f", "\udcff"])
def test_what_systemd_takes_for_no_value(value: str) -> None:
    with pytest.raises(units.BadUnit, match="NAME"):
        units.assignment("NAME", value)


def test_a_percent_sign_is_no_specifier() -> None:
    assert units.assignment("SPILLSHIM_VRAM_LIMIT", "90%") == 'Environment="SPILLSHIM_VRAM_LIMIT=90%%"'


# --- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [("ollama", "ollama.service"), ("ollama.service", "ollama.service"), ("vllm@8001", "vllm@8001.service"), (r"a\x2db.service", r"a\x2db.service")],
)
def test_names(text: str, name: str) -> None:
    assert units.service_name(text) == name


@pytest.mark.parametrize("text", ["", "../x.service", "a b.service", "ollama.socket", "x/y", "a" * 260])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(units.BadUnit):
        units.service_name(text)


# --- files ----------------------------------------------------------------------------------------------------------------

OLLAMA = """\
# a comment
[Unit]
Description=Ollama \\
  Service
[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
; another
Environment="PATH=/usr/local/bin:/usr/bin" \\
# between
  'LLAMA_ARG_FIT=on' ODD=5%%
[Install]
User=nobody
"""


def test_a_unit(tmp_path: Path) -> None:
    path = write(tmp_path, "etc/systemd/system/ollama.service", OLLAMA)
    service = units.read("ollama.service", tmp_path)
    assert service is not None
    assert service.files == [path]
    assert service.argv == ["/usr/local/bin/ollama", "serve"]
    assert service.last("User") == "ollama"
    assert service.environment == {"PATH": "/usr/local/bin:/usr/bin", "LLAMA_ARG_FIT": "on", "ODD": "5%"}


def test_no_unit(tmp_path: Path) -> None:
    assert units.read("ollama.service", tmp_path) is None


def test_the_administrators_unit_comes_before_the_packages(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/systemd/system/x.service", "[Service]\nUser=package\n")
    write(tmp_path, "etc/systemd/system/x.service", "[Service]\nUser=admin\n")
    service = units.read("x.service", tmp_path)
    assert service is not None
    assert service.settings == {"User": ["admin"]}


def test_drop_ins_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/systemd/system/x-y.service", "[Service]\nUser=unit\nEnvironment=A=1 B=1\n")
    write(tmp_path, "usr/lib/systemd/system/x-y.service.d/20-b.conf", "[Service]\nEnvironment=A=2\n")
    write(tmp_path, "usr/lib/systemd/system/x-y.service.d/30-c.conf", "[Service]\nUser=never\n")
    write(tmp_path, "etc/systemd/system/x-y.service.d/30-c.conf", "[Service]\nEnvironment=\nEnvironment=B=3\n")  # in its place
    write(tmp_path, "etc/systemd/system/x-.service.d/10-a.conf", "[Service]\nUser=prefix\n")
    write(tmp_path, "etc/systemd/system/service.d/40-all.conf", "[Service]\nProtectHome=yes\n")
    service = units.read("x-y.service", tmp_path)
    assert service is not None
    assert [path.name for path in service.files] == ["x-y.service", "10-a.conf", "20-b.conf", "30-c.conf", "40-all.conf"]
    assert service.last("User") == "prefix"
    assert service.environment == {"B": "3"}
    assert service.yes("ProtectHome")


def test_a_masked_drop_in(tmp_path: Path) -> None:
    write(tmp_path, "usr/lib/systemd/system/x.service", "[Service]\n")
    write(tmp_path, "usr/lib/systemd/system/x.service.d/a.conf", "[Service]\nUser=x\n")
    mask = tmp_path / "etc/systemd/system/x.service.d/a.conf"
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    service = units.read("x.service", tmp_path)
    assert service is not None
    assert service.settings == {}


def test_an_instance_of_a_template(tmp_path: Path) -> None:
    write(tmp_path, "etc/systemd/system/vllm@.service", "[Service]\nExecStart=/opt/vllm serve --port %i\n")
    write(tmp_path, "etc/systemd/system/vllm@.service.d/a.conf", "[Service]\nUser=all\n")
    write(tmp_path, "etc/systemd/system/vllm@8001.service.d/b.conf", "[Service]\nUser=one\n")
    service = units.read("vllm@8001.service", tmp_path)
    assert service is not None
    assert service.last("User") == "one"
    assert service.argv == ["/opt/vllm", "serve", "--port", "%i"]


@pytest.mark.parametrize(
    ("value", "argv"),
    [
        ("-/bin/x a", ["/bin/x", "a"]),
        ("@/bin/x called a", ["/bin/x", "a"]),
        ("+!/bin/x 'a b' 100%% $$HOME", ["/bin/x", "a b", "100%", "$HOME"]),
    ],
)
def test_commands(value: str, argv: list[str]) -> None:
    assert units.Service("x", settings={"ExecStart": [value]}).argv == argv


def test_a_unit_that_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "etc/systemd/system/x.service", "")
    path.write_bytes(b"[Service]\nUser=\xff\n")
    with pytest.raises(units.BadUnit, match="cannot be read"):
        units.read("x.service", tmp_path)
