# SPDX-License-Identifier: Apache-2.0
"""What `spillshim advise` counts is what llama.cpp allocates: layers by -ngl, weights, KV cache with and without sliding windows.

A prebuilt CUDA build of llama.cpp on the simulated GPU says in its log how large each buffer on the device is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_models
import llama
import pytest

from spillshim.advise import arithmetic, header, model, plan

pytestmark = [pytest.mark.clients, pytest.mark.large]

MIB = 1 << 20
VOCABULARY = 512
PLENTY = plan.Machine(1 << 40, 1 << 40, arithmetic.Rates(1, 1, 1, 1))


def tokenizer() -> dict[str, Any]:
    """The least that llama.cpp takes for a vocabulary."""
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    words += [f"t{number}" for number in range(VOCABULARY - len(words))]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": [0.0] * VOCABULARY,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip


def made(path: Path, kind: str, layers: int, *, heads: int = 8, heads_kv: int = 2, width: int = 512, inner: int = 1024, tied: bool = False,
         experts: int = 0) -> Path:  # fmt: skip
    """A model of zeroes in f16."""
    size = width // heads
    keys: dict[str, Any] = {
        "block_count": layers, "context_length": 32768, "embedding_length": width, "feed_forward_length": inner, "attention.head_count": heads,
        "attention.head_count_kv": heads_kv, "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": size, "vocab_size": VOCABULARY,
    }  # fmt: skip
    blocks: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (size * heads_kv, width), "attn_v": (size * heads_kv, width),
        "attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner),
    }  # fmt: skip
    if kind == "gemma3":
        keys |= {"attention.key_length": size, "attention.value_length": size, "attention.sliding_window": 512}
        blocks |= {"attn_q_norm": (size,), "attn_k_norm": (size,), "post_attention_norm": (width,), "post_ffw_norm": (width,)}
    if experts:
        keys |= {"expert_count": experts, "expert_used_count": 2}
        blocks = {name: shape for name, shape in blocks.items() if not name.startswith("ffn_") or name == "ffn_norm"}
        blocks |= {"ffn_gate_inp": (experts, width), "ffn_gate_exps": (experts, inner, width), "ffn_up_exps": (experts, inner, width),
                   "ffn_down_exps": (experts, width, inner)}  # fmt: skip
    shapes = {"token_embd": (VOCABULARY, width), "output_norm": (width,)} | ({} if tied else {"output": (VOCABULARY, width)})
    shapes |= {f"blk.{index}.{name}": shape for index in range(layers) for name, shape in blocks.items()}
    tensors = [(f"{name}.weight", shape, "F32" if len(shape) == 1 else "F16") for name, shape in shapes.items()]
    return gguf_models.write(path, {"general.architecture": kind, **{f"{kind}.{key}": value for key, value in keys.items()}, **tokenizer()}, tensors)


@pytest.fixture
def load(run_sim, llama_parts) -> Callable[..., dict[str, float]]:
    """`load(path, layers, context)` -> MiB of each kind of buffer on the device, with all the VRAM that it wants."""
    program = [llama.PROGRAMS / "llama_server.py", llama_parts[0], "--model"]

    def run(path: Path, layers: int, context: int) -> dict[str, float]:
        env = {"LLAMA_ARG_FIT": "off", "LLAMA_ARG_N_GPU_LAYERS": str(layers), "LLAMA_ARG_CTX_SIZE": str(context)}
        server = llama.Server(run_sim, [sys.executable, *program, path], {"vram": "4G", "shim": False, "env": env})
        server.ask("decode 1")
        server.end()
        assert server.loaded().layers[0] == layers
        said = re.findall(r"CUDA0 (model|KV|compute) buffer size =\s*([\d.]+) MiB", server.log)
        return {kind: sum(float(size) for of, size in said if of == kind) for kind in ("model", "KV", "compute")}  # a window's cache is one of two

    return run


@pytest.mark.parametrize(
    ("kind", "layers", "more", "context"),
    [
        ("llama", 8, {}, 4096),
        ("llama", 6, {"heads_kv": 8, "tied": True}, 1000),
        ("llama", 4, {"experts": 8}, 2048),
        ("gemma3", 12, {"tied": True}, 16384),
    ],
)
@pytest.mark.parametrize("left", [0, 3])
def test_buffers_are_as_counted(load, tmp_path: Path, kind: str, layers: int, more: dict[str, Any], context: int, left: int) -> None:
    """`left`: layers left to the CPU."""
    path = made(tmp_path / f"{kind}.gguf", kind, layers, **more)
    counted = model.build(header.read(path), context)
    told = load(path, layers + 1 - left, context)
    on_device = counted.layers[left:]
    weights = counted.output + sum(layer.always + layer.experts for layer in on_device)
    assert told["model"] == pytest.approx(weights / MIB, abs=0.02)
    assert told["KV"] == pytest.approx(sum(layer.cache for layer in on_device) / MIB, abs=0.02)
    assert told["compute"] == pytest.approx(counted.compute / MIB, rel=0.2)  # an estimate
    placed = plan.place(counted, PLENTY, layers + 1 - left)
    assert placed and placed.vram == pytest.approx(weights + sum(layer.cache for layer in on_device) + counted.compute)
