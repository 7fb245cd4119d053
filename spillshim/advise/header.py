# SPDX-License-Identifier: Apache-2.0
"""The header of a GGUF file: metadata, and name, type, size and place of each tensor. No tensor's data is read.

Called by model.py. Every count and length is checked against the file before it is believed, so that a damaged file costs
neither time nor memory; an error names the file, the byte and the field. Types and their sizes come from PyPI's `gguf`. Its
own reader is not used: it makes an object for each entry of the vocabulary (18 s and 0.7 GB for one of 128,000 words), takes
counts on trust, and its errors name no place. The tests hold this one to its answers.
Format: docs/gguf.md of the ggml repository (github.com/ggml-org/ggml).
"""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from spillshim.errors import EXIT_CHECK_FAILED, SpillshimError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the same layout; 1 had 32-bit counts
# More than any model has; what lies beyond is a damaged file, even where the file is (sparsely) long enough.
MOST_TENSORS = 1 << 20
MOST_ENTRIES = 1 << 16
MOST_WORDS = 1 << 22
LONGEST_NAME = 1 << 10
LARGEST_KEPT = 1 << 12  # entries of an array, bytes of a text: longer ones (vocabularies, templates) are skipped
MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class BadModel(SpillshimError):
    """The file is not a GGUF model that can be read, and where it stops being one."""

    exit_code = EXIT_CHECK_FAILED


@dataclass(frozen=True)
class Skipped:
    """A value that was not kept: so many entries or bytes."""

    length: int


@dataclass(frozen=True)
class Tensor:
    """`size` in bytes; `shape` with the row length first, as in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int


@dataclass
class Header:
    """Of one file, or of all files of a split model together (metadata: the first's)."""

    paths: list[Path]
    metadata: dict[str, Any]
    tensors: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Types:
    """What PyPI's gguf knows: value types by number (struct format; None for text and array), tensor types (name, values a block, bytes a block)."""

    scalars: Mapping[int, str]
    text: int
    array: int
    tensors: Mapping[int, tuple[str, int, int]]


@functools.lru_cache(maxsize=1)
def _types() -> _Types:
    """Raises SpillshimError that names the extra when `gguf` is not installed."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
    except ImportError as error:
        raise SpillshimError(
            f"reading a model needs the Python package gguf ({error})", "pip install 'spillshim[advise]' (or: pip install gguf)"
        ) from None
    kinds = GGUFValueType
    scalars = {
        kinds.UINT8: "B", kinds.INT8: "b", kinds.UINT16: "H", kinds.INT16: "h", kinds.UINT32: "I", kinds.INT32: "i",
        kinds.FLOAT32: "f", kinds.BOOL: "?", kinds.UINT64: "Q", kinds.INT64: "q", kinds.FLOAT64: "d",
    }  # fmt: skip
    return _Types(
        {int(kind): letter for kind, letter in scalars.items()},
        int(kinds.STRING),
        int(kinds.ARRAY),
        {int(kind): (GGMLQuantizationType(kind).name, block, size) for kind, (block, size) in GGML_QUANT_SIZES.items()},
    )


def type_size(name: str) -> tuple[int, int]:
    """Values and bytes of a block of a tensor type, `q8_0` -> (32, 34). Raises KeyError."""
    for known, block, size in _types().tensors.values():
        if known == name.upper():
            return block, size
    raise KeyError(name)


class _Walk:
    """Reads on through one file. `field` is what is being read, for errors."""

    def __init__(self, path: Path, file: BinaryIO, size: int, types: _Types) -> None:
        self.path, self.file, self.size, self.types = path, file, size, types
        self.offset = 0
        self.field = "magic"

    def bad(self, message: str, at: int | None = None, fix: str = "") -> BadModel:
        place = self.offset if at is None else at
        return BadModel(f"{self.path}: {message} (byte {place}, {self.field})", fix)

    def truncated(self, need: int) -> BadModel:
        return self.bad(
            f"the file ends within its header: {need} more bytes are needed, {self.size - self.offset} are there",
            fix="It is truncated or damaged: fetch it again.",
        )

    def take(self, count: int) -> bytes:
        if count > self.size - self.offset:
            raise self.truncated(count)
        data = self.file.read(count)
        if len(data) != count:
            raise self.truncated(count)  # it shrank meanwhile
        self.offset += count
        return data

    def skip(self, count: int) -> None:
        if count > self.size - self.offset:
            raise self.truncated(count)
        self.offset += count
        self.file.seek(self.offset)

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """A 64-bit count of things that take at least so many bytes each."""
        at = self.offset
        count = int(self.number("Q"))
        if count > most or count * least_bytes > self.size - self.offset:
            raise self.bad(
                f"{count} {what}: {'more than any model has' if count > most else 'more than the file has room for'}",
                at,
                "It is damaged or no model: fetch it again.",
            )
        return count

    def text(self, longest: int, what: str) -> str:
        at = self.offset
        length = int(self.number("Q"))
        if length > longest:
            raise self.bad(f"{what} of {length} bytes, where {longest} are the most", at, "It is damaged: fetch it again.")
        data = self.take(length)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.bad(f"{what} is not UTF-8: {data[:40]!r}", at, "It is damaged: fetch it again.") from None

    def value(self, kind: int) -> Any:
        """One metadata value."""
        if kind in self.types.scalars:
            return self.number(self.types.scalars[kind])
        if kind == self.types.text:
            length = self.count(self.size, 1, "bytes of text")
            if length > LARGEST_KEPT:
                self.skip(length)
                return Skipped(length)
            return self.take(length).decode(errors="replace")
        if kind == self.types.array:
            return self.array()
        raise self.bad(f"unknown value type {kind}", self.offset - 4, "The file is damaged, or newer than the installed gguf: pip install -U gguf.")

    def array(self) -> Any:
        at = self.offset
        kind = self.number("I")
        letter = self.types.scalars.get(kind)
        if letter:
            width = struct.calcsize("<" + letter)
            length = self.count(self.size, width, "entries of an array")
            if length > LARGEST_KEPT:
                self.skip(length * width)
                return Skipped(length)
            return struct.unpack(f"<{length}{letter}", self.take(length * width))
        if kind != self.types.text:
            raise self.bad(f"an array of value type {kind}, which arrays do not hold", at, "It is damaged: fetch it again.")
        length = self.count(MOST_WORDS, 8, "texts in an array")
        for _ in range(length):
            self.skip(int(self.number("Q")))
        return Skipped(length)


def _open(path: Path) -> tuple[BinaryIO, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer would block
    except OSError as error:
        raise BadModel(f"{path} cannot be opened: {error.strerror}", "Name a GGUF file.") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise BadModel(f"{path} is {what}", "Name a GGUF file (of a split model: its first, NAME-00001-of-0000N.gguf).")
    return os.fdopen(descriptor, "rb", buffering=1 << 16), found.st_size


def read_one(path: Path) -> Header:
    """The header of this file alone. Raises BadModel."""
    types = _types()
    file, size = _open(path)
    with file:
        return _header(_Walk(path, file, size, types))


def _header(walk: _Walk) -> Header:
    magic = walk.take(4)
    if magic != MAGIC:
        hint = "It is an older ggml format: convert it again." if magic in (b"lmgg", b"tjgg", b"fmgg") else "Name a GGUF file."
        raise walk.bad(f"not a GGUF file: it begins with {magic!r}, not with {MAGIC!r}", 0, hint)
    walk.field = "version"
    version = walk.number("I")
    if version and not version & 0xFFFF:
        swapped = int.from_bytes(struct.pack("<I", version), "big")
        raise walk.bad(
            f"the file is big-endian (its version reads {version:#010x}, swapped {swapped})", 4, "Convert it with gguf-convert-endian (PyPI's gguf), or fetch the little-endian one."
        )
    if version not in VERSIONS:
        fix = "Convert the model again: version 1 is of August 2023." if version == 1 else "It is newer than this program, or damaged."
        raise walk.bad(f"GGUF version {version}, where {' and '.join(map(str, VERSIONS))} are known", 4, fix)
    walk.field = "tensor count"
    tensors = walk.count(MOST_TENSORS, 24, "tensors")  # name length, dimensions, type, offset
    walk.field = "metadata count"
    entries = walk.count(MOST_ENTRIES, 13, "metadata entries")  # key length, type, a byte
    metadata: dict[str, Any] = {}
    for index in range(entries):
        walk.field = f"key of metadata entry {index + 1} of {entries}"
        at = walk.offset
        key = walk.text(LONGEST_NAME, "a key")
        if not key or key in metadata:
            raise walk.bad(f"the key {key!r} is {'a second time there' if key else 'empty'}", at, "It is damaged: fetch it again.")
        walk.field = f"value of {key}"
        metadata[key] = walk.value(walk.number("I"))
    return _tensors(walk, Header([walk.path], metadata), tensors)


def _tensors(walk: _Walk, header: Header, count: int) -> Header:
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        walk.field = "value of general.alignment"
        raise walk.bad(f"{alignment!r} is no alignment: it is a power of two", fix="It is damaged: fetch it again.")
    ends: list[tuple[int, str, int]] = []
    names: set[str] = set()
    for index in range(count):
        walk.field = f"name of tensor {index + 1} of {count}"
        at = walk.offset
        name = walk.text(LONGEST_NAME, "a tensor's name")
        if not name or name in names:
            raise walk.bad(f"the tensor {name!r} is {'a second time there' if name else 'without a name'}", at, "It is damaged: fetch it again.")
        names.add(name)
        tensor, start = _tensor(walk, name, alignment)
        header.tensors.append(tensor)
        ends.append((start + tensor.size, name, at))
    data = -(-walk.offset // alignment) * alignment
    for end, name, at in ends:
        if data + end > walk.size:
            walk.field = f"tensor {name}"
            raise walk.bad(
                f"the file has {walk.size} bytes, but its tensor {name} reaches to byte {data + end}", at, "It is truncated: fetch it again."
            )
    return header


def _tensor(walk: _Walk, name: str, alignment: int) -> tuple[Tensor, int]:
    """(tensor, offset in the data)."""
    damaged = "It is damaged: fetch it again."
    walk.field = f"dimensions of tensor {name}"
    at = walk.offset
    dimensions = walk.number("I")
    if dimensions > MOST_DIMENSIONS:
        raise walk.bad(f"{dimensions} dimensions, where {MOST_DIMENSIONS} are the most", at, damaged)
    shape = struct.unpack(f"<{dimensions}Q", walk.take(8 * dimensions))
    values = 1
    for length in shape:
        values *= length
    if not 0 < values < 1 << 62:
        raise walk.bad(f"a shape of {' x '.join(map(str, shape))}", at, damaged)
    walk.field = f"type of tensor {name}"
    at = walk.offset
    number = walk.number("I")
    if number not in walk.types.tensors:
        raise walk.bad(f"unknown tensor type {number}", at, "The file is damaged, or newer than the installed gguf: pip install -U gguf.")
    kind, block, block_size = walk.types.tensors[number]
    row = shape[0] if shape else 1
    if row % block:
        raise walk.bad(f"rows of {row} values, which are not whole blocks of {block} ({kind})", at, damaged)
    walk.field = f"offset of tensor {name}"
    at = walk.offset
    start = walk.number("Q")
    if start % alignment:
        raise walk.bad(f"the tensor begins at {start}, which is no multiple of {alignment}", at, damaged)
    return Tensor(name, kind, shape, values // block * block_size), start


def read(path: Path) -> Header:
    """The header of the model that this file belongs to: all parts of a split one, whichever is named. Raises BadModel."""
    named = _SPLIT.fullmatch(path.name)
    if not named:
        header = read_one(path)
        count = header.metadata.get("split.count", 0)
        if isinstance(count, int) and count > 1:
            raise BadModel(
                f"{path} is part {header.metadata.get('split.no', -1) + 1} of a model of {count} files, and is not named so that the others could be found",
                f"Give the parts back their names: NAME-00001-of-{count:05d}.gguf and so on.",
            )
        return header
    count = int(named["count"])
    if not 1 <= int(named["number"]) <= count:
        raise BadModel(f"{path}: part {int(named['number'])} of {count}", "Give the file back its name.")
    whole: Header | None = None
    for number in range(1, count + 1):
        part = path.with_name(f"{named['stem']}-{number:05d}-of-{named['count']}.gguf")
        if not part.exists():
            raise BadModel(f"{part} is missing: part {number} of {count} of this model", "Fetch all parts into one folder.")
        one = read_one(part)
        told = (one.metadata.get("split.no", number - 1), one.metadata.get("split.count", count))
        if told != (number - 1, count):
            raise BadModel(f"{part} is not part {number} of {count}: split.no and split.count say {told[0]} (from 0) of {told[1]}", "Fetch the parts again.")
        if whole is None:
            whole = one
            continue
        known = {tensor.name for tensor in whole.tensors}
        twice = next((tensor.name for tensor in one.tensors if tensor.name in known), None)
        if twice:
            raise BadModel(f"{part}: the tensor {twice} is in an earlier part, too", "Fetch the parts again.")
        whole.paths.append(part)
        whole.tensors += one.tensors
    assert whole is not None
    wanted = whole.metadata.get("split.tensors.count", len(whole.tensors))
    if wanted != len(whole.tensors):
        raise BadModel(f"{path}: its {count} parts hold {len(whole.tensors)} tensors, split.tensors.count says {wanted}", "Fetch the parts again.")
    return whole
