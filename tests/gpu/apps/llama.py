# SPDX-License-Identifier: Apache-2.0
"""Experiment: llama.cpp itself, built here from the source in PyPI's llama-cpp-python, over a VRAM cap below the model.
gpu-check: groups=llama order=400 expect=300 limit=900

Its own example program llama-simple decodes greedily with all layers on the device, through CUDA graphs where llama.cpp uses
them; a dense and a mixture-of-experts model of random Q4_0 weights are written with PyPI's gguf. The checksum is that of the
text. The source is llama_cpp_python-*.tar.gz in $GPU_CHECK_WHEELS, else what pip downloads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import GIB, MIB, App, Limits, Load, NotHere, need, need_gpu

FOLDER = Path(os.environ.get("GPU_CHECK_SCRATCH") or os.getcwd())
TOKENS = 32
VOCABULARY = 32000


# --- the model ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A LLaMA-like model; experts=0: dense."""

    width: int
    inner: int
    heads: int
    heads_kv: int
    experts: int = 0
    experts_used: int = 0


DENSE = Shape(4096, 14336, 32, 8)
MIXTURE = Shape(2048, 1408, 16, 4, 64, 8)


def _tokens() -> tuple[list[bytes], list[float], list[int]]:
    """A vocabulary that any text can be written in: three control tokens, all bytes, and words."""
    kinds = {"normal": 1, "unknown": 2, "control": 3, "byte": 6}
    names = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256))]
    types = [kinds["unknown"], kinds["control"], kinds["control"], *[kinds["byte"]] * 256]
    while len(names) < VOCABULARY:
        names.append(f"\u2581w{len(names)}".encode())
        types.append(kinds["normal"])
    return names, [-float(i) for i in range(VOCABULARY)], types


class Random:
    """Q4_0 weights from one seeded block of bytes, read at another place for each tensor: gigabytes in seconds."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self.np = np
        self.rng = np.random.default_rng(seed)
        # A weight is scale * (nibble - 8): without nibble 0 their mean is 0, else all activations drift to one token.
        blocks = self.rng.integers(1, 16, (1 << 20, 18), np.uint8) | self.rng.integers(1, 16, (1 << 20, 18), np.uint8) << 4
        # The scale of 32 weights, a half: small enough that activations stay finite through all layers.
        blocks[:, :2] = (self.rng.random((1 << 20, 1), np.float32) * 0.004 + 0.001).astype(np.float16).view(np.uint8)
        self.blocks = blocks

    def q4(self, *shape: int) -> Any:
        """Rows of Q4_0 as bytes: shape (..., rows, columns) becomes (..., rows, columns / 32 * 18)."""
        np = self.np
        count = int(np.prod(shape)) // 32
        start = int(self.rng.integers(0, len(self.blocks)))
        rolled = np.roll(self.blocks, -start, axis=0)
        data = np.resize(rolled, (count, 18)) if count > len(rolled) else rolled[:count]
        return np.ascontiguousarray(data).reshape(*shape[:-1], shape[-1] // 32 * 18)


def write_model(path: Path, shape: Shape, size: int, seed: int) -> int:
    """Write a model of about `size` bytes of weights. Returns the file's size."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=False)
    random, q4 = Random(seed), gguf.GGMLQuantizationType.Q4_0
    kv_width = shape.width // shape.heads * shape.heads_kv
    inner = shape.inner * max(shape.experts, 1)
    per_layer = (2 * shape.width * (shape.width + kv_width) + 3 * shape.width * inner) // 32 * 18
    layers = max(2, (size - 2 * VOCABULARY * shape.width // 32 * 18) // per_layer)
    writer.add_name("random")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(VOCABULARY)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
    names, scores, types = _tokens()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def weight(name: str, *dims: int) -> None:
        writer.add_tensor(name, random.q4(*dims), raw_dtype=q4)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.width, np.float32))

    weight("token_embd.weight", VOCABULARY, shape.width)
    ones("output_norm.weight")
    weight("output.weight", VOCABULARY, shape.width)
    for i in range(layers):
        block = f"blk.{i}."
        ones(f"{block}attn_norm.weight")
        weight(f"{block}attn_q.weight", shape.width, shape.width)
        weight(f"{block}attn_k.weight", kv_width, shape.width)
        weight(f"{block}attn_v.weight", kv_width, shape.width)
        weight(f"{block}attn_output.weight", shape.width, shape.width)
        ones(f"{block}ffn_norm.weight")
        if shape.experts:
            gate = random.rng.standard_normal((shape.experts, shape.width), np.float32)
            writer.add_tensor(f"{block}ffn_gate_inp.weight", gate)
            weight(f"{block}ffn_gate_exps.weight", shape.experts, shape.inner, shape.width)
            weight(f"{block}ffn_down_exps.weight", shape.experts, shape.width, shape.inner)
            weight(f"{block}ffn_up_exps.weight", shape.experts, shape.inner, shape.width)
        else:
            weight(f"{block}ffn_gate.weight", shape.inner, shape.width)
            weight(f"{block}ffn_down.weight", shape.width, shape.inner)
            weight(f"{block}ffn_up.weight", shape.inner, shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


# --- the program ----------------------------------------------------------------------------------------------------------


def _call(argv: list[str], seconds: float) -> None:
    try:
        ran = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise NotHere(f"{' '.join(argv[:2])} took longer than {seconds:.0f} s") from None
    if ran.returncode:
        raise NotHere(f"{' '.join(argv[:2])} failed: {' '.join((ran.stderr or ran.stdout).split())[-400:]}")


def _source() -> Path:
    """llama.cpp's folder, unpacked."""
    wheels = Path(os.environ.get("GPU_CHECK_WHEELS") or FOLDER)
    found = sorted(wheels.glob("llama_cpp_python-*.tar.gz"))
    if not found:
        # Metadata is not wanted, but pip prepares it: without isolation it needs nothing but what is installed.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        try:
            _call([*pip, "--dest", str(FOLDER), "llama-cpp-python"], 120)
        except NotHere as why:
            raise NotHere(f"no source: llama_cpp_python-*.tar.gz is not in --wheels, and {why}") from None
        found = sorted(FOLDER.glob("llama_cpp_python-*.tar.gz"))
        if not found:
            raise NotHere("no source: pip downloaded no llama_cpp_python-*.tar.gz")
    with tarfile.open(found[-1]) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # before 3.10.12 there is none
        archive.extractall(FOLDER, **safe)
    return next(FOLDER.glob("llama_cpp_python-*/vendor/llama.cpp"))


@cache
def program() -> Path:
    """llama-simple, built for this machine's device. Raises NotHere."""
    nvcc = os.environ.get("GPU_CHECK_NVCC") or shutil.which("nvcc")
    if not nvcc:
        raise NotHere("not installed: nvcc")
    if not shutil.which("cmake"):
        raise NotHere("not installed: cmake")
    source, build = _source(), FOLDER / "llama-build"
    # Of the kernels only what decoding needs, for one architecture: minutes instead of an hour.
    options = {
        "CMAKE_BUILD_TYPE": "Release", "CMAKE_CUDA_COMPILER": nvcc, "CMAKE_CUDA_ARCHITECTURES": "native", "GGML_CUDA": "ON",
        "GGML_CUDA_FA": "OFF", "GGML_CUDA_NCCL": "OFF", "GGML_NATIVE": "ON", "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_TOOLS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "ON", "LLAMA_BUILD_SERVER": "OFF", "LLAMA_BUILD_APP": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_CURL": "OFF",
    }  # fmt: skip
    _call(["cmake", "-S", str(source), "-B", str(build), *(f"-D{name}={value}" for name, value in options.items())], 120)
    _call(["cmake", "--build", str(build), "--target", "llama-simple", f"-j{os.cpu_count() or 4}"], 420)
    found = next(iter(build.rglob("llama-simple")), None)
    if not found:
        raise NotHere("the build left no llama-simple")
    return found


def command(name: str, shape: Shape):
    def made(limits: Limits) -> list[str]:
        need_gpu("llama.cpp's kernels have no companions here")
        need("gguf", "numpy")
        built = program()
        path = FOLDER / f"{name}.gguf"
        written = write_model(path, shape, min(limits.vram // 3, limits.ram // 3, 4 * GIB), limits.seed)
        return [sys.executable, sys.argv[0], "--work", str(built), str(path), str(written + 256 * MIB)]

    return made


def work(built: str, model: str, needed: str) -> int:
    """Decode, and say the text's checksum as JSON."""
    argv = [built, "-m", model, "-ngl", "99", "-n", str(TOKENS), "Hello"]
    ran = subprocess.run(argv, capture_output=True, check=False)
    told = ran.stderr.decode(errors="replace")
    speed = re.search(r"decoded (\d+) tokens in ([0-9.]+) s", told)
    if ran.returncode or not speed:
        print(told[-2000:], file=sys.stderr)
        return ran.returncode or 1
    result = {"checksum": hashlib.sha256(ran.stdout).hexdigest(), "peak": int(needed), "seconds": float(speed[2]), "tokens": int(speed[1])}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        sys.exit(work(*sys.argv[2:]))
    sys.exit(
        App(
            "llama",
            [
                Load("dense", "llama.cpp decoding with a dense model", command("dense", DENSE), cap=0.8),
                Load("mixture", "llama.cpp decoding with a mixture of experts", command("mixture", MIXTURE), cap=0.8),
            ],
        ).main()
    )
