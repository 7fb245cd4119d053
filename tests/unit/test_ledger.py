# SPDX-License-Identifier: Apache-2.0
"""The ledger as Python reads it: a folder that can't be trusted is refused, an empty one has no processes."""
import errno
import os

import pytest

from spillshim import _abi as abi


def read(folder):
    slots = abi.ffi.new("struct spill_ledger_slot[]", abi.lib.SPILL_LEDGER_SLOTS)
    return abi.lib.spill_ledger_read(str(folder).encode(), slots)


def write(folder, data, mode=0o600):
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "ledger"
    path.write_bytes(data)
    path.chmod(mode)


FILE = abi.ffi.sizeof("struct spill_ledger_file")
HEADER = (0x4C4C5053).to_bytes(4, "little") + (1).to_bytes(4, "little")


def test_no_ledger(tmp_path):
    assert read(tmp_path / "none") == -errno.ENOENT


def test_empty(tmp_path):
    write(tmp_path / "state", HEADER + bytes(FILE - 8))
    assert read(tmp_path / "state") == 0


def test_slot_without_an_owner_is_not_alive(tmp_path):
    data = bytearray(HEADER + bytes(FILE - 8))
    data[64:68] = os.getpid().to_bytes(4, "little")  # claims to be us, but nobody holds the slot's lock
    write(tmp_path / "state", bytes(data))
    assert read(tmp_path / "state") == 0


@pytest.mark.parametrize("data", [b"", HEADER, b"x" * FILE, HEADER[:4] + bytes(FILE - 4)])
def test_foreign_bytes_are_refused(tmp_path, data):
    write(tmp_path / "state", data)
    assert read(tmp_path / "state") == -errno.EPROTO


def test_writable_by_others_is_refused(tmp_path):
    write(tmp_path / "state", HEADER + bytes(FILE - 8), mode=0o666)
    assert read(tmp_path / "state") == -errno.EPERM
    (tmp_path / "state" / "ledger").chmod(0o600)
    (tmp_path / "state").chmod(0o777)
    assert read(tmp_path / "state") == -errno.EPERM


def test_link_is_not_followed(tmp_path):
    write(tmp_path / "real", HEADER + bytes(FILE - 8))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read(tmp_path / "link") in (-errno.ELOOP, -errno.ENOTDIR)
