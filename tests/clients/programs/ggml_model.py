# SPDX-License-Identifier: Apache-2.0
"""Makes a small model of llama's shape with random weights: `ggml_model.py FILE LAYERS WIDTH INNER [CONTEXT]`. Called by the
tests of llama.cpp.

Its vocabulary is the bytes and some more; its answers are noise. The weights are what matters: they must come back from the
device as they were written.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

HEAD, VOCABULARY, SEED = 64, 512, 7


def write(path: str, layers: int, width: int, inner: int, context: int = 512) -> None:
    random = np.random.default_rng(SEED)
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(context)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(width // HEAD)
    out.add_head_count_kv(width // HEAD)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(HEAD)
    out.add_vocab_size(VOCABULARY)
    out.add_tokenizer_model("llama")
    tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % byte for byte in range(256)]
    tokens += [b"t%d" % number for number in range(VOCABULARY - len(tokens))]
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * VOCABULARY)
    kinds = gguf.TokenType
    out.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * (VOCABULARY - 259))
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)

    def tensor(name: str, *shape: int) -> None:
        kind = np.float32 if len(shape) == 1 else np.float16
        out.add_tensor(name, random.standard_normal(shape, dtype=np.float32).astype(kind))

    tensor("token_embd.weight", VOCABULARY, width)
    tensor("output_norm.weight", width)
    tensor("output.weight", VOCABULARY, width)
    for layer in range(layers):
        block = f"blk.{layer}."
        tensor(block + "attn_norm.weight", width)
        tensor(block + "ffn_norm.weight", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{block}{name}.weight", width, width)
        tensor(block + "ffn_gate.weight", inner, width)
        tensor(block + "ffn_up.weight", inner, width)
        tensor(block + "ffn_down.weight", width, inner)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    write(sys.argv[1], *map(int, sys.argv[2:6]))
