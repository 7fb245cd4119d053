# SPDX-License-Identifier: Apache-2.0
"""Decodes with a prebuilt CUDA build of llama.cpp: `ggml_decode.py MODULE MODEL TOKENS [SUPPLEMENT]`. Called by test_ggml.py.

MODULE is the cffi extension of the wheel llama-cpp-cffi, SUPPLEMENT a library that has to be there before it. Prints one JSON
object: tokens decoded, and how many bytes of weights were compared with the model file after reading them back from the
device (ggml_backend_tensor_get), before the decoding and after it.
Exit code 3 when the model or the context could not be made (out of memory).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from typing import Any

import gguf

SEEN_BEFORE = 16  # tokens of the prompt


def load(path: str) -> Any:
    name = path.rsplit("/", 1)[-1].split(".", 1)[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Weights:
    """The device's weights against the file's. They are met as sources of the graph's nodes, which llama.cpp shows to its
    evaluation callback: that is the public way to them."""

    def __init__(self, module: Any, model: str) -> None:
        self.lib, self.ffi = module.lib, module.ffi
        self.file = {tensor.name: tensor for tensor in gguf.GGUFReader(model).tensors}
        self.met: dict[str, Any] = {}
        self.callback = self.ffi.callback("bool(struct ggml_tensor *, bool, void *)", self._meet)

    def _meet(self, node: Any, ask: bool, _data: Any) -> bool:
        for source in node.src:
            if source != self.ffi.NULL and source.buffer != self.ffi.NULL:
                name = self.ffi.string(source.name).decode()
                if name in self.file and not self.lib.ggml_backend_buffer_is_host(source.buffer):
                    self.met[name] = source
        return not ask  # no need to stop after a node

    def compare(self) -> int:
        """Bytes read back and found equal; ends the program at the first tensor that differs."""
        total = 0
        for name, tensor in self.met.items():
            size = self.lib.ggml_nbytes(tensor)
            back = bytearray(size)
            self.lib.ggml_backend_tensor_get(tensor, self.ffi.from_buffer(back), 0, size)
            if back != self.file[name].data.tobytes():
                sys.exit(f"{name}: the device gave back other bytes than the model file has")
            total += size
        return total


def decode(lib: Any, ffi: Any, context: Any, batch: Any, tokens: list[int], position: int) -> int:
    """Decode tokens at a position; the token that would follow."""
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = i == len(tokens) - 1
    result = lib.llama_decode(context, batch)
    if result:
        sys.exit(f"llama_decode: {result}")
    logits = lib.llama_get_logits_ith(context, -1)
    return max(range(512), key=lambda token: logits[token])


def main() -> None:
    if len(sys.argv) > 4:
        ctypes.CDLL(sys.argv[4], ctypes.RTLD_GLOBAL)
    module = load(sys.argv[1])
    lib, ffi = module.lib, module.ffi
    wanted = int(sys.argv[3])
    lib.llama_backend_init()

    options = lib.llama_model_default_params()
    options.n_gpu_layers = 999
    model = lib.llama_model_load_from_file(sys.argv[2].encode(), options)
    if model == ffi.NULL:
        sys.exit(3)
    weights = Weights(module, sys.argv[2])

    def context(callback: Any) -> Any:
        wish = lib.llama_context_default_params()
        wish.n_ctx, wish.n_batch, wish.n_ubatch, wish.n_threads, wish.n_threads_batch = 512, 512, 512, 1, 1
        wish.cb_eval = callback
        made = lib.llama_init_from_model(model, wish)
        if made == ffi.NULL:
            sys.exit(3)
        return made

    # With a callback llama.cpp computes node by node: one context to meet the weights, another one to decode.
    batch = lib.llama_batch_init(512, 0, 1)
    meeting = context(weights.callback)
    decode(lib, ffi, meeting, batch, [1], 0)
    before = weights.compare()
    decoding = context(ffi.NULL)
    position, token = SEEN_BEFORE, decode(lib, ffi, decoding, batch, [1] * SEEN_BEFORE, 0)
    done = 0
    for _ in range(wanted):
        token = decode(lib, ffi, decoding, batch, [token], position)
        position, done = position + 1, done + 1
    after = weights.compare()

    lib.llama_batch_free(batch)
    lib.llama_free(decoding)
    lib.llama_free(meeting)
    lib.llama_model_free(model)
    lib.llama_backend_free()
    print(json.dumps({"tokens": done, "weights": len(weights.met), "compared": [before, after]}))


main()
