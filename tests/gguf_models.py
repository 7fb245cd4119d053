# SPDX-License-Identifier: Apache-2.0
"""GGUF files for the advisor's tests, by gguf's own writer: real headers over sparse data of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy

ALIGNMENT = 32


def write(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[tuple[str, Sequence[int], str]], *, sparse_end: bool = True
) -> Path:
    """A file with these metadata values and tensors (name, shape as numpy has it, type). No data is written; the file is
    made as long as its tensors say, unless `sparse_end` is false."""
    writer = gguf.GGUFWriter(path, str(metadata.get("general.architecture", "llama")))
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    data = 0
    for name, shape, kind in tensors:
        number = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[number]
        total = int(numpy.prod([int(one) for one in shape], dtype=object)) // block * size
        writer.add_tensor_info(name, list(shape), numpy.dtype(numpy.float32), total, raw_dtype=number)
        data += -(-total // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    length = path.stat().st_size
    if sparse_end:
        with path.open("r+b") as file:
            file.truncate(-(-length // ALIGNMENT) * ALIGNMENT + data)
    return path


def metadata(layers: int, **more: Any) -> dict[str, Any]:
    """Of a llama with a KV cache of 4 bytes a token and layer, and compute buffers of half a MiB."""
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "synthetic",
        "llama.block_count": layers,
        "llama.context_length": 4096,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 8,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": 1,
        "llama.attention.value_length": 1,
    }
    values.update({f"llama.{name}": value for name, value in more.items()})
    return values


def dense(path: Path, layer_bytes: int, layers: int, **more: Any) -> Path:
    """Layers of equal size and nothing else worth a mention."""
    tensors: list[tuple[str, Sequence[int], str]] = [("token_embd.weight", (64, 8), "I8"), ("output.weight", (64, 8), "I8")]
    tensors += [(f"blk.{index}.ffn_up.weight", (layer_bytes,), "I8") for index in range(layers)]
    return write(path, metadata(layers, **more), tensors)


def mixture(path: Path, always: int, experts: int, layers: int, count: int = 128, used: int = 8, **more: Any) -> Path:
    """Bytes of both in each layer."""
    tensors: list[tuple[str, Sequence[int], str]] = [("token_embd.weight", (64, 8), "I8"), ("output.weight", (64, 8), "I8")]
    for index in range(layers):
        tensors.append((f"blk.{index}.attn_q.weight", (always,), "I8"))
        tensors.append((f"blk.{index}.ffn_up_exps.weight", (count, experts // count), "I8"))
    return write(path, metadata(layers, expert_count=count, expert_used_count=used, **more), tensors)


def llama_70b(path: Path) -> Path:
    """The header of a Llama 3 of 70 billion weights, all in Q4_K (37 GiB), over nothing."""
    values = {
        "general.architecture": "llama", "general.name": "Llama 3 70B", "llama.block_count": 80, "llama.context_length": 131072,
        "llama.embedding_length": 8192, "llama.feed_forward_length": 28672, "llama.attention.head_count": 64,
        "llama.attention.head_count_kv": 8,
    }  # fmt: skip
    shapes = {
        "attn_q": (8192, 8192), "attn_k": (1024, 8192), "attn_v": (1024, 8192), "attn_output": (8192, 8192),
        "ffn_gate": (28672, 8192), "ffn_up": (28672, 8192), "ffn_down": (8192, 28672),
    }  # fmt: skip
    tensors: list[tuple[str, Sequence[int], str]] = [(f"{name}.weight", (128256, 8192), "Q4_K") for name in ("token_embd", "output")]
    for index in range(80):
        tensors += [(f"blk.{index}.{name}.weight", shape, "Q4_K") for name, shape in shapes.items()]
        tensors += [(f"blk.{index}.{name}.weight", (8192,), "F32") for name in ("attn_norm", "ffn_norm")]
    return write(path, values, tensors)
