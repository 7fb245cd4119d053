# SPDX-License-Identifier: Apache-2.0
"""Whose processes `status` lists: one's own; as root those of services and other users, believed only where they are theirs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from spillshim import control

OWN, THEIRS, DEAD = os.getpid(), os.getppid(), 4194305  # above the largest pid that Linux gives


def listening(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        os.chdir(path.parent)  # an address is short
        made.bind(path.name)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service's folder with the sockets of this process, of another user's, and of one that has ended."""
    monkeypatch.chdir(tmp_path)
    service = tmp_path / "run" / "ollama" / "state"
    for pid in (OWN, THEIRS, DEAD):
        listening(service / f"{pid}.sock")
    listening(service / "1x.sock")
    monkeypatch.setattr(control, "_OTHERS", ((str(tmp_path / "run"), "*/state"), (str(tmp_path / "none"), "*")))
    monkeypatch.setattr(control, "_folders", lambda env, uid: [tmp_path / "own"])
    monkeypatch.delenv("SPILLSHIM_STATE_DIR", raising=False)
    return service


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(control.os, "getuid", lambda: uid)


def test_root_sees_services(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    # A folder's owner could put any number there: only of its own processes is it believed.
    monkeypatch.setattr(control, "_owner_of", lambda pid: folders.stat().st_uid + (pid == THEIRS))
    assert control.running() == [OWN]
    assert (folders / f"{DEAD}.sock").exists()  # somebody else's to take away


def test_others_see_their_own(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 1000)
    assert control.running() == []


def test_a_folder_that_is_named_is_the_only_one(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_user(monkeypatch, 0)
    monkeypatch.setenv("SPILLSHIM_STATE_DIR", "/somewhere")
    assert control.running() == []


def test_what_the_dead_left_in_ones_own_folder_goes(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_folders", lambda env, uid: [folders])
    as_user(monkeypatch, 1000)
    assert control.running() == sorted([OWN, THEIRS])
    assert not (folders / f"{DEAD}.sock").exists()
    assert (folders / "1x.sock").exists()
