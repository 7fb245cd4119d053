# SPDX-License-Identifier: Apache-2.0
"""The segment as Python reads it: what isn't sealed, or isn't a segment, is refused; what is has every field where it belongs."""

import errno
import fcntl
import os
import struct
import tempfile

import pytest

from spillshim import _abi as abi
from spillshim import control

SIZE = abi.ffi.sizeof("struct spill_segment_file")
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MAGIC = b"SPGG"


@pytest.fixture
def memory():
    """memory(data, seals) -> descriptor of a memfd."""
    made = []

    def make(data: bytes, seals: int = SEALED) -> int:
        fd = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        made.append(fd)
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    yield make
    for fd in made:
        os.close(fd)


def head(size: int = 4096, magic: bytes = MAGIC, version: int = 1, sequence: int = 0) -> bytes:
    return (magic + struct.pack("<IQQ", version, size, sequence)).ljust(size, b"\0")


def read(fd: int):
    out = abi.ffi.new("struct spill_segment_file *")
    return abi.lib.spill_segment_read(fd, out), out


def test_an_empty_segment(memory):
    result, out = read(memory(head()))
    assert (result, out.pid, out.moves.safepoints) == (0, 0, 0)


def test_every_field_arrives(memory):
    """All words differ, so a field read from a neighbour's place would show."""
    data = bytearray(head())
    for offset in range(24, SIZE, 8):
        data[offset : offset + 8] = struct.pack("<Q", offset)
    result, out = read(memory(bytes(data)))
    assert result == 0
    expected = [("pid", 24), ("started", 32), ("job", 40), ("state", 48), ("vram", 184), ("ram", 192), ("managed", 200), ("regions", 208)]
    assert [(name, getattr(out, name)) for name, _ in expected] == expected
    first = abi.ffi.offsetof("struct spill_segment_file", "moves")
    for name, kind in abi.ffi.typeof("struct spill_move_stats").fields:
        if kind.type.kind == "primitive":
            assert getattr(out.moves, name) == first + kind.offset, name
    assert out.moves.pause[1].bucket[0] == first + abi.ffi.offsetof("struct spill_move_stats", "pause", 1, "bucket", 0)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", errno.EPROTO),
        (head()[: SIZE - 1], errno.EPROTO),
        (head(magic=b"SPLL"), errno.EPROTO),
        (head(version=2), errno.EPROTO),
        (head(8192)[:4096], errno.EPROTO),  # says that it is longer than it is
        (head(sequence=1), errno.EAGAIN),  # its owner died while it wrote
    ],
)
def test_what_is_no_segment_is_refused(memory, data, error):
    assert read(memory(data))[0] == -error


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL])
def test_what_could_still_change_its_size_is_refused(memory, missing):
    assert read(memory(head(), SEALED & ~missing))[0] == -errno.EPERM


def test_what_cannot_be_sealed_is_refused():
    with tempfile.TemporaryFile() as file:
        file.write(head())
        file.flush()
        assert read(file.fileno())[0] == -errno.EPERM
    assert read(-1)[0] == -errno.EBADF


def test_quantiles_of_pauses():
    """Of 100 pauses of 1 us (bucket 9 ends at 1024 ns) one took 1 ms: the 99th is a short one, the longest is exact."""
    bucket = [0] * 40
    bucket[9], bucket[19] = 99, 1
    pauses = control.Pauses(100, 1_099_000, 1_000_000, bucket)
    assert [pauses.quantile(share) for share in (0.5, 0.99, 1.0)] == [1024, 1024, 1_000_000]
    assert control.Pauses(0, 0, 0, [0] * 40).quantile(0.5) is None
    both = pauses + pauses
    assert (both.count, both.longest_ns, both.bucket[9]) == (200, 1_000_000, 198)
