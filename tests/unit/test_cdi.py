# SPDX-License-Identifier: Apache-2.0
"""The CDI specification: that it is one by the rules of CDI's SPEC.md, and what it gives to a container.

The schema here is written from that page and is stricter than CDI's own, as engines are that refuse unknown fields. CDI's own is
asked where Debian's package of its sources is installed; podman reads the specification in tests/integration/test_containers.py.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from click.testing import CliRunner, Result
from referencing.jsonschema import DRAFT7

from spillshim import install, native
from spillshim.cli import main

WORD = "[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
PATH = {"type": "string", "pattern": "^/"}
EDITS = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,  # a device without edits is refused
    "properties": {
        "env": {"type": "array", "items": {"type": "string", "pattern": "^[^=\\0\\n]+=[^\\0\\n]*$"}},
        "mounts": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["hostPath", "containerPath"],
                "properties": {"hostPath": PATH, "containerPath": PATH, "options": {"type": "array", "items": {"type": "string", "minLength": 1}}},
            },
        },
    },
}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "required": ["cdiVersion", "kind", "devices"],
    "properties": {
        "cdiVersion": {"enum": ["0.3.0"]},  # the lowest version that is released; later ones add fields that are not used
        "kind": {"type": "string", "pattern": f"^{LABEL}(?:\\.{LABEL})+/{WORD}$", "maxLength": 317},
        "devices": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "containerEdits"],
                # Before 0.5.0 a device's name begins with a letter.
                "properties": {"name": {"type": "string", "pattern": f"^(?=[A-Za-z]){WORD}$"}, "containerEdits": EDITS},
            },
        },
    },
}


OFFICIAL = "src/github.com/*/container-device-interface/schema/schema.json"  # in /usr/share/gocode


@pytest.fixture
def copy(libspillshim: Path, probe_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the library, beside the probe's, that every user can read."""
    for name in [name for name in os.environ if name.startswith("SPILLSHIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(install, "system_library", lambda: None)
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="spillshim-test-") as folder:
        os.chmod(folder, 0o755)
        for source in (libspillshim, probe_path):
            shutil.copy(source, folder)
            (Path(folder) / source.name).chmod(0o755)
        monkeypatch.setenv("SPILLSHIM_LIBRARY", str(Path(folder) / libspillshim.name))
        yield Path(folder) / libspillshim.name


def call(*options: str) -> Result:
    return CliRunner().invoke(main, ["cdi", "generate", *options], catch_exceptions=False)


def specification(*options: str) -> dict[str, Any]:
    result = call(*options)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    told = json.loads(result.stdout)
    jsonschema.validate(told, SCHEMA)
    return told


def edits(told: dict[str, Any], device: str) -> tuple[dict[str, str], dict[str, tuple[str, list[str]]]]:
    """Environment and mounts (by path in the container) of a device."""
    (found,) = [one["containerEdits"] for one in told["devices"] if one["name"] == device]
    env = dict(entry.split("=", 1) for entry in found["env"])
    assert len(env) == len(found["env"])
    return env, {one["containerPath"]: (one["hostPath"], one["options"]) for one in found["mounts"]}


def test_what_a_container_gets(copy: Path) -> None:
    env, mounts = edits(specification(), "all")
    assert set(env) == {"LD_PRELOAD"}
    assert mounts[env["LD_PRELOAD"]][0] == str(copy)
    assert mounts[str(Path(env["LD_PRELOAD"]).with_name("spillshim-probe"))][0] == str(copy.with_name("spillshim-probe"))
    for _, options in mounts.values():
        assert {"ro", "bind", "nosuid", "nodev"} <= set(options)
        assert "noexec" not in options  # nothing could be mapped for execution
    assert native.loader_safe(Path(env["LD_PRELOAD"])) == Path(env["LD_PRELOAD"])


def test_the_projects_own_schema(copy: Path) -> None:
    found = sorted(Path("/usr/share/gocode").glob(OFFICIAL))
    if not found:
        pytest.skip("no schema of CDI's: Debian package golang-github-container-orchestrated-devices-container-device-interface-dev")
    parts = [(name, referencing.Resource.from_contents(json.loads(found[0].with_name(name).read_text()), DRAFT7)) for name in ("schema.json", "defs.json")]
    check = jsonschema.Draft7Validator({"$ref": "schema.json"}, registry=referencing.Registry().with_resources(parts))
    told = specification("--host-limit", "24G")
    check.validate(told)
    for wrong in ({**told, "devices": [{"name": "all"}]}, {**told, "devices": {}}, {"kind": told["kind"], "devices": told["devices"]}):
        assert not check.is_valid(wrong)
    del told["devices"][0]["containerEdits"]["mounts"][0]["hostPath"]
    assert not check.is_valid(told)


def test_a_container_with_a_preload_of_its_own(copy: Path) -> None:
    told = specification("--log", "info")
    env, mounts = edits(told, "files")
    assert "LD_PRELOAD" not in env
    assert env["SPILLSHIM_LOG"] == "info"
    assert mounts == edits(told, "all")[1]
    assert env["SPILLSHIM_LIBRARY"] in mounts


def test_settings(copy: Path) -> None:
    env, _ = edits(specification("--host-limit", "24G", "--vram-limit", "90%", "--oom", "soft"), "all")
    assert env["SPILLSHIM_HOST_LIMIT"] == "24G"
    assert env["SPILLSHIM_VRAM_LIMIT"] == "90%"
    assert env["SPILLSHIM_OOM"] == "soft"


def test_options_that_name_files_are_not_offered(copy: Path) -> None:
    assert call("--stats", "/tmp/x").exit_code == 2


def test_a_folder_that_containers_share(copy: Path) -> None:
    state = copy.parent / "state"
    state.mkdir(mode=0o700)
    env, mounts = edits(specification("--state-dir", str(state)), "all")
    host, options = mounts[env["SPILLSHIM_STATE_DIR"]]
    assert host == str(state)
    assert "rw" in options


@pytest.mark.parametrize("what", ["missing", "file", "open", "link"])
def test_a_shared_folder_that_the_shim_would_not_trust(copy: Path, what: str) -> None:
    state = copy.parent / "state"
    if what == "file":
        state.touch()
    elif what == "open":
        state.mkdir()
        state.chmod(0o777)
    elif what == "link":
        state.symlink_to(copy.parent)
    refused = call("--state-dir", str(state))
    assert refused.exit_code == 125
    assert refused.stdout == ""
    assert "install -d -m 700" in refused.stderr


def test_output(copy: Path) -> None:
    path = copy.parent / "etc" / "cdi" / "spillshim.json"
    old = os.umask(0o077)
    try:
        result = call("--output", str(path))
    finally:
        os.umask(old)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert path.read_text() == call().stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_output_that_no_engine_would_read(copy: Path) -> None:
    refused = call("--output", str(copy.parent / "spillshim.conf"))
    assert refused.exit_code == 2
    assert ".json" in refused.stderr
    assert not (copy.parent / "spillshim.conf").exists()


def test_output_that_cannot_be_written(copy: Path) -> None:
    (copy.parent / "file").touch()
    refused = call("--output", str(copy.parent / "file" / "x.json"))
    assert refused.exit_code == 125
    assert "cannot write" in refused.stderr


@pytest.mark.parametrize("closed", ["library", "folder"])
def test_a_library_that_others_cannot_read_is_warned_of(copy: Path, closed: str) -> None:
    path = copy if closed == "library" else copy.parent
    path.chmod(0o700)
    result = call()
    assert result.exit_code == 0
    assert "install-system" in result.stderr


def test_a_library_without_its_probe(copy: Path) -> None:
    copy.with_name("spillshim-probe").unlink()
    refused = call()
    assert refused.exit_code == 125
    assert "no spillshim-probe beside" in refused.stderr


def test_the_installed_library_is_taken(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPILLSHIM_LIBRARY")
    monkeypatch.setattr(native, "library", lambda: Path("/nonexistent"))
    monkeypatch.setattr(install, "system_library", lambda: copy)
    env, mounts = edits(specification(), "all")
    assert mounts[env["LD_PRELOAD"]][0] == str(copy)
