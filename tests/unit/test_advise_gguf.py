# SPDX-License-Identifier: Apache-2.0
"""Reading the header of GGUF files: the same as gguf's own reader says, and a clear error, with the place, for what is none."""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_models
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spillshim.advise import header, model
from spillshim.errors import SpillshimError

TENSORS = [
    ("token_embd.weight", (512, 256), "Q6_K"),
    ("output.weight", (512, 256), "Q8_0"),
    ("blk.0.attn_q.weight", (256, 256), "Q4_K"),
    ("blk.0.ffn_up_exps.weight", (4, 256, 256), "IQ4_XS"),
    ("blk.0.attn_norm.weight", (256,), "F32"),
    ("blk.1.ffn_down.weight", (256, 512), "MXFP4"),
]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    values = gguf_models.metadata(2, expert_count=4, expert_used_count=2)
    values.update({"some.flags": [True, False], "some.words": ["a", "bc", ""], "some.real": 0.5, "tokenizer.chat_template": "x" * 5000})
    values["many.numbers"] = list(range(5000))
    return gguf_models.write(tmp_path / "whole.gguf", values, TENSORS)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    values = gguf_models.metadata(2, expert_count=4, expert_used_count=2)
    tensors = [("token_embd.weight", (8, 32), "Q8_0"), ("blk.0.ffn_up_exps.weight", (4, 2, 32), "Q4_0"), ("blk.1.x.weight", (32,), "F32")]
    return gguf_models.write(tmp_path_factory.mktemp("pristine") / "p.gguf", values, tensors).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    path = tmp_path_factory.mktemp("fuzz") / "fuzzed.gguf"

    def write(data: bytes) -> Path:
        path.write_bytes(data)
        return path

    return write


def refused(path: Path, *words: str) -> SpillshimError:
    """Reading fails in the expected way, without taking memory to speak of."""
    tracemalloc.start()
    try:
        with pytest.raises(header.BadModel) as caught:
            header.read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    for word in (str(path.name), *words):
        assert word in str(caught.value)
    assert caught.value.fix
    return caught.value


def changed(path: Path, at: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return path


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u64(len(value)) + value.encode()


# --- what is one ------------------------------------------------------------------------------------------------------------------


def test_the_same_as_the_package_says(whole: Path) -> None:
    mine, theirs = header.read(whole), gguf.GGUFReader(whole)
    assert [(one.name, one.type, one.size) for one in mine.tensors] == [
        (one.name, one.tensor_type.name, one.n_bytes) for one in theirs.tensors
    ]
    assert [list(one.shape) for one in mine.tensors] == [one.shape.tolist() for one in theirs.tensors]
    names = [name for name in theirs.fields if not name.startswith("GGUF.")]
    assert list(mine.metadata) == names
    for name in names:
        value, said = mine.metadata[name], theirs.fields[name].contents()
        if isinstance(value, header.Skipped):
            assert value.length == len(said), name
        else:
            assert list(value) == said if isinstance(value, tuple) else value == said, name


def test_long_values_are_skipped(whole: Path) -> None:
    values = header.read(whole).metadata
    assert values["tokenizer.chat_template"] == header.Skipped(5000)
    assert values["many.numbers"] == header.Skipped(5000)
    assert values["some.words"] == header.Skipped(3)
    assert values["some.flags"] == (True, False)


@pytest.mark.parametrize("kind", [kind.name for kind in gguf.GGMLQuantizationType if kind in gguf.GGML_QUANT_SIZES])
def test_every_type_of_the_package(kind: str, tmp_path: Path) -> None:
    path = gguf_models.write(tmp_path / "one.gguf", gguf_models.metadata(1), [("blk.0.x.weight", (3, 1024), kind)])
    block, size = header.type_size(kind)
    assert header.read(path).tensors[0].size == 3 * 1024 // block * size


def test_a_model_of_any_size_is_read_by_its_header_alone(tmp_path: Path) -> None:
    path = gguf_models.dense(tmp_path / "huge.gguf", 4 << 30, 100)
    assert path.stat().st_size > 400 << 30
    assert sum(one.size for one in header.read(path).tensors) > 400 << 30


def split(tmp_path: Path, **changes: int) -> list[Path]:
    """A model in three parts, the first with metadata alone, as llama-gguf-split makes them."""
    paths = []
    for number, tensors in enumerate([[], TENSORS[:3], TENSORS[3:]]):
        values = gguf_models.metadata(2, expert_count=4, expert_used_count=2) if number == 0 else {"general.architecture": "llama"}
        values.update({"split.no": number, "split.count": 3, "split.tensors.count": len(TENSORS), **changes})
        paths.append(gguf_models.write(tmp_path / f"m-{number + 1:05d}-of-00003.gguf", values, tensors))
    return paths


@pytest.mark.parametrize("named", [0, 1, 2])
def test_a_split_model_is_one(tmp_path: Path, named: int) -> None:
    paths = split(tmp_path)
    found = header.read(paths[named])
    assert found.paths == paths
    assert [one.name for one in found.tensors] == [name for name, _, _ in TENSORS]
    assert model.build(found).path == paths[0]


# --- what is none -----------------------------------------------------------------------------------------------------------------


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].unlink()
    with pytest.raises(header.BadModel, match="m-00002-of-00003.gguf is missing: part 2 of 3"):
        header.read(paths[2])


def test_a_part_of_another_model(tmp_path: Path) -> None:
    paths = split(tmp_path)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(header.BadModel, match=r"is not part 2 of 3: split.no and split.count say 2 \(from 0\) of 3"):
        header.read(paths[0])


def test_parts_that_lack_tensors(tmp_path: Path) -> None:
    with pytest.raises(header.BadModel, match="hold 6 tensors, split.tensors.count says 7"):
        header.read(split(tmp_path, **{"split.tensors.count": 7})[0])


def test_a_part_under_another_name(tmp_path: Path) -> None:
    with pytest.raises(header.BadModel, match="is part 2 of a model of 3 files"):
        header.read(split(tmp_path)[1].rename(tmp_path / "renamed.gguf"))


def test_a_part_beyond_the_last(tmp_path: Path) -> None:
    with pytest.raises(header.BadModel, match="part 4 of 3"):
        header.read(split(tmp_path)[0].rename(tmp_path / "m-00004-of-00003.gguf"))


def test_every_truncation(scratch: Callable[[bytes], Path], pristine: bytes) -> None:
    assert header.read(scratch(pristine)).tensors
    for length in range(len(pristine)):
        path = scratch(pristine[:length])
        with pytest.raises(header.BadModel, match=r"the file ends within its header|reaches to byte|has room for") as caught:
            header.read(path)
        assert "(byte " in caught.value.message and caught.value.fix


def test_truncated_data_names_the_tensor(whole: Path) -> None:
    os.truncate(whole, whole.stat().st_size - 64)
    refused(whole, "blk.1.ffn_down.weight reaches to byte", "truncated")


@pytest.mark.parametrize(("version", "words"), [(1, "August 2023"), (4, "newer"), (0, "version 0"), (0x7FFF, "version 32767")])
def test_another_version(whole: Path, version: int, words: str) -> None:
    refused(changed(whole, 4, u32(version)), f"GGUF version {version}, where 2 and 3 are known", "byte 4", words)


def test_version_2_is_the_same_layout(whole: Path) -> None:
    assert len(header.read(changed(whole, 4, u32(2))).tensors) == len(TENSORS)


def test_the_other_byte_order(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(tmp_path / "big.gguf", "big-endian", "byte 4", "gguf-convert-endian")


@pytest.mark.parametrize(("magic", "words"), [(b"\x7fELF", "ELF"), (b"tjgg", "older ggml format"), (b"ggug", "not with b'GGUF'")])
def test_another_magic(whole: Path, magic: bytes, words: str) -> None:
    refused(changed(whole, 0, magic), "byte 0, magic", words)


@pytest.mark.parametrize("count", [1 << 60, (1 << 64) - 1, 1 << 21])
@pytest.mark.parametrize(("at", "field"), [(8, "tensor count"), (16, "metadata count")])
@pytest.mark.parametrize("grown", [False, True])
def test_absurd_counts(whole: Path, count: int, at: int, field: str, grown: bool) -> None:
    changed(whole, at, u64(count))
    if grown:
        os.truncate(whole, 1 << 40)  # sparse: there would be room
    refused(whole, f"{count} ", f"byte {at}, {field}")


def test_zeroes_without_end(tmp_path: Path) -> None:
    path = tmp_path / "zero.gguf"
    for tensors, entries, words in ((1 << 20, 0, "without a name"), (0, 1 << 16, "empty"), (0, 1, "empty")):
        path.write_bytes(b"GGUF" + u32(3) + u64(tensors) + u64(entries))
        os.truncate(path, 1 << 40)
        refused(path, words)


def one_entry(value: bytes, key: bytes = text("k")) -> bytes:
    return b"GGUF" + u32(3) + u64(0) + u64(1) + key + value


ARRAY, STRING, UINT8 = int(gguf.GGUFValueType.ARRAY), int(gguf.GGUFValueType.STRING), int(gguf.GGUFValueType.UINT8)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (one_entry(u32(99)), "unknown value type 99 (byte 33, value of k)"),
        (one_entry(u32(STRING) + u64(1 << 60)), f"{1 << 60} bytes of text"),
        (one_entry(u32(ARRAY) + u32(STRING) + u64(1 << 60)), f"{1 << 60} texts in an array"),
        (one_entry(u32(ARRAY) + u32(STRING) + u64(2) + text("a") + u64(1 << 60)), f"{1 << 60} more bytes are needed"),
        (one_entry(u32(ARRAY) + u32(UINT8) + u64(1 << 60)), f"{1 << 60} entries of an array"),
        (one_entry(u32(ARRAY) + u32(ARRAY) + u64(0)), f"an array of value type {ARRAY}, which arrays do not hold (byte 37"),
        (one_entry(u32(ARRAY) + u32(77) + u64(0)), "an array of value type 77"),
        (one_entry(u32(UINT8) + b"\0", u64(1 << 30)), f"a key of {1 << 30} bytes, where 1024 are the most (byte 24"),
        (one_entry(u32(UINT8) + b"\0", u64(2) + b"\xff\xfe"), "a key is not UTF-8"),
    ],
)
def test_damaged_metadata(tmp_path: Path, value: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(value + bytes(32))
    refused(path, words)


def test_a_key_twice(tmp_path: Path) -> None:
    path = tmp_path / "twice.gguf"
    path.write_bytes(b"GGUF" + u32(3) + u64(0) + u64(2) + 2 * (text("same") + u32(UINT8) + b"\1"))
    refused(path, "'same' is a second time there", "metadata entry 2 of 2")


def one_tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, times: int = 1) -> bytes:
    info = text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)
    return b"GGUF" + u32(3) + u64(times) + u64(0) + info * times + bytes(4096)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (one_tensor(shape=(1,) * 5), "5 dimensions, where 4 are the most (byte 33, dimensions of tensor t)"),
        (one_tensor(shape=(1 << 40, 1 << 40)), "a shape of"),
        (one_tensor(shape=(0, 32)), "a shape of 0 x 32"),
        (one_tensor(kind=12345), "unknown tensor type 12345 (byte 45, type of tensor t)"),
        (one_tensor(kind=2, shape=(33,)), "rows of 33 values, which are not whole blocks of 32 (Q4_0)"),
        (one_tensor(offset=7), "begins at 7, which is no multiple of 32 (byte 49, offset of tensor t)"),
        (one_tensor(offset=1 << 50), f"reaches to byte {64 + (1 << 50) + 128}"),
        (one_tensor(offset=(1 << 64) - 32), "reaches to byte"),
        (one_tensor(name=""), "without a name"),
        (one_tensor(times=2), "a second time there"),
        (one_tensor(shape=(1 << 30, 1 << 30)), "reaches to byte"),
    ],
)
def test_damaged_tensors(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    refused(path, words)


@pytest.mark.parametrize("alignment", [0, 3])
def test_an_alignment_that_is_none(tmp_path: Path, alignment: int) -> None:
    path = gguf_models.write(tmp_path / "a.gguf", {**gguf_models.metadata(1), "general.alignment": alignment}, [])
    refused(path, f"{alignment} is no alignment", "general.alignment")


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none.gguf", "cannot be opened: No such file")
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "not a regular file")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "byte 0, magic")


def test_without_the_package(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    monkeypatch.setattr(header, "_types", header._types.__wrapped__)  # asked once for all
    with pytest.raises(SpillshimError, match="needs the Python package gguf") as caught:
        header.read(whole)
    assert "spillshim[advise]" in caught.value.fix


# --- anything -----------------------------------------------------------------------------------------------------------------------


def read_quietly(path: Path) -> None:
    """Reads and builds; nothing but our own error may come out of it."""
    try:
        model.build(header.read(path))
    except SpillshimError as error:
        assert path.name in error.message and error.fix


@settings(derandomize=True, max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
@example(data=b"")
def test_any_bytes_after_the_magic(scratch: Callable[[bytes], Path], data: bytes) -> None:
    read_quietly(scratch(b"GGUF" + data))
    read_quietly(scratch(b"GGUF" + u32(3) + u64(1) + u64(2) + data))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 900), st.sampled_from([0, 1, 7, 0x7F, 0x80, 0xFF])), min_size=1, max_size=4))
def test_any_damaged_bytes(scratch: Callable[[bytes], Path], pristine: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(pristine)
    for at, value in changes:
        data[at % len(data)] = value
    read_quietly(scratch(bytes(data)))
