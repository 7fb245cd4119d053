# SPDX-License-Identifier: Apache-2.0
"""A model as placement sees it: bytes by layer, experts apart, the KV cache for a context, what one token reads.

Called by plan.py's callers with what header.py read. Follows llama.cpp (October 2026), because its command lines are what is
advised: the input embedding stays in RAM and only a row of it is read; the output layer counts as one more layer; a sliding
window's cache holds the window and one batch. What the metadata leaves open is taken at its largest and said in `notes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spillshim.advise.arithmetic import Mixture
from spillshim.advise.header import BadModel, Header, Skipped, type_size

DEFAULT_CONTEXT = 8192
CACHE_TYPES = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")  # llama.cpp's -ctk and -ctv
_BATCH = 512  # llama.cpp's n_ubatch
_PAD = 256  # to which it rounds contexts and windows up
_LAYER = re.compile(r"(?:dec\.|enc\.)?blk\.(\d+)\.")
_EXPERTS = re.compile(r"\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\b")  # what -ncmoe moves
_INPUT = ("token_embd", "per_layer_token_embd", "position_embd", "token_types")
# One full layer in so many, the last of each group, where the file gives a window and no pattern (llama.cpp's own defaults).
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4}
_MOST_LAYERS = 1 << 10  # several times the deepest; every split of them is tried


@dataclass(frozen=True)
class Layer:
    """Bytes: `always` of weights that each token reads, `experts` of all experts; `cache` of the KV cache (or recurrent
    state), of which a token reads `cache_read` when the context is full."""

    always: int = 0
    experts: int = 0
    cache: int = 0
    cache_read: int = 0


@dataclass(frozen=True)
class Model:
    """Bytes. `output` is read by each token, of `embedding` a row. `used`: share of the experts that a token uses."""

    path: Path
    name: str
    architecture: str
    layers: tuple[Layer, ...]
    output: int
    embedding: int
    used: float
    expert_count: int
    expert_used: int
    compute: int
    context: int
    trained_context: int | None
    cache_type: str
    types: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        """All that `-ngl all` brings to the GPU."""
        return self.output + sum(layer.always + layer.experts for layer in self.layers)

    @property
    def experts(self) -> int:
        return sum(layer.experts for layer in self.layers)

    @property
    def cache(self) -> int:
        return sum(layer.cache for layer in self.layers)

    @property
    def cache_read(self) -> int:
        return sum(layer.cache_read for layer in self.layers)

    @property
    def needs(self) -> int:
        """VRAM for all of it: weights, KV cache, compute buffers."""
        return self.weights + self.cache + self.compute

    @property
    def mixture(self) -> Mixture:
        """What one token reads, with a full context."""
        return Mixture(self.weights - self.experts + self.cache_read, self.experts, self.used)


class _Metadata:
    """Typed look-ups; a wrong type is a BadModel that names the key."""

    def __init__(self, header: Header) -> None:
        self.path, self.values = header.paths[0], header.metadata
        self.architecture = self.word("general.architecture")

    def bad(self, key: str, message: str) -> BadModel:
        return BadModel(f"{self.path}: metadata {key}: {message}", "It is no language model for llama.cpp, or damaged.")

    def word(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise self.bad(key, "missing" if value is None else f"{value!r} is not a text")
        return value

    def find(self, key: str) -> Any:
        return self.values.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of 0 and more. Without a default it has to be there."""
        value, full = self.find(key), f"{self.architecture}.{key}"
        if value is None and default is not None:
            return default
        if value is None:
            raise self.bad(full, "missing")
        if isinstance(value, (list, tuple)) and value:
            value = max(value)  # a figure by layer, where the largest is what matters
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise self.bad(full, f"{value!r} is not a whole number of 0 and more")
        return value

    def by_layer(self, key: str, count: int, default: int | None = None) -> list[int]:
        """One number for each layer, from an array of as many or one number for all."""
        value = self.find(key)
        if isinstance(value, Skipped) or (isinstance(value, tuple) and len(value) != count):
            length = value.length if isinstance(value, Skipped) else len(value)
            raise self.bad(f"{self.architecture}.{key}", f"{length} entries for {count} layers")
        if isinstance(value, tuple):
            if any(not isinstance(one, int) or not 0 <= one < 1 << 40 for one in value):
                raise self.bad(f"{self.architecture}.{key}", f"{value[:8]!r} … are not whole numbers of 0 and more")
            return [int(one) for one in value]
        return [self.number(key, default)] * count


def _recurrent_layers(data: _Metadata, count: int, heads: Sequence[int]) -> list[bool]:
    """Which layers keep a state of one size instead of a cache that grows with the context."""
    if not data.number("ssm.inner_size", 0):
        return [False] * count
    if data.find("attention.recurrent_layers") is not None:
        return [bool(one) for one in data.by_layer("attention.recurrent_layers", count)]
    interval = data.number("full_attention_interval", 0)
    if interval:
        return [(index + 1) % interval != 0 for index in range(count)]
    return [not head for head in heads]


def _windows(data: _Metadata, count: int, notes: list[str]) -> list[int]:
    """Tokens that each layer looks back on; 0: all."""
    window = data.number("attention.sliding_window", 0)
    if not window:
        return [0] * count
    pattern = data.find("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        flags = data.by_layer("attention.sliding_window_pattern", count)
        return [window if flag else 0 for flag in flags]
    every = data.number("attention.sliding_window_pattern", _FULL_EVERY.get(data.architecture, -1))
    if every < 0:
        notes.append(
            f"The file gives a sliding window of {window} tokens and not which layers use it: the KV cache is counted as if none did."
        )
        return [0] * count
    return [window if not every or index % every < every - 1 else 0 for index in range(count)]


def _caches(data: _Metadata, count: int, context: int, cache_type: str, notes: list[str]) -> list[tuple[int, int]]:
    """(bytes kept, bytes read by a token when the context is full) by layer."""
    block, block_size = type_size(cache_type)
    default_heads = data.by_layer("attention.head_count", count, 0)
    heads = default_heads if data.find("attention.head_count_kv") is None else data.by_layer("attention.head_count_kv", count)
    width = data.number("embedding_length", 0)
    each = width // default_heads[0] if default_heads and default_heads[0] else 0
    lengths = (data.number("attention.key_length", each), data.number("attention.value_length", each))
    window_lengths = (data.number("attention.key_length_swa", lengths[0]), data.number("attention.value_length_swa", lengths[1]))
    if data.number("attention.kv_lora_rank", 0) and data.number("attention.key_length_mla", 0):
        lengths = window_lengths = (lengths[0], 0)  # latent attention: the values are a view of the keys
    recurrent = _recurrent_layers(data, count, heads)
    windows = _windows(data, count, notes)
    inner, state, groups = data.number("ssm.inner_size", 0), data.number("ssm.state_size", 0), data.number("ssm.group_count", 0)
    fixed = 4 * (max(data.number("ssm.conv_kernel", 0) - 1, 0) * (inner + 2 * groups * state) + state * inner)  # in f32
    own = count - data.number("attention.shared_kv_layers", 0)  # the last ones use the cache of earlier layers
    whole = _padded(context)
    caches = []
    for index in range(count):
        if recurrent[index]:
            caches.append((fixed, fixed))
            continue
        window = windows[index]
        key, value = window_lengths if window else lengths
        values = heads[index] * (key + value)
        kept = min(whole, _padded(window + _BATCH)) if window else whole
        read = min(context, window) if window else context
        token = values * block_size / block
        caches.append((round(kept * token) if index < own else 0, round(read * token)))
    return caches


def _padded(tokens: int) -> int:
    return -(-tokens // _PAD) * _PAD


def _compute(data: _Metadata, vocabulary: int, context: int) -> int:
    """Bytes of llama.cpp's compute buffers: an estimate. The largest of three moments of a batch of 512 tokens, in f32: the
    logits; the attention's mask, made in f32 and kept in f16; a feed-forward layer with that mask. The multiples of activations
    are those at which it agrees with what llama.cpp b8833 says of small models (tests/clients/test_llama_advice.py) and with
    published logs: 258.5 MiB for Llama 3 8B, 398.4 for gpt-oss, 808 for Qwen 3.5 9B with 262144 tokens.
    """
    width, used = data.number("embedding_length", 0), data.number("expert_used_count", 0)
    dense = data.number("feed_forward_length", 0)
    inner = max(dense, data.number("expert_feed_forward_length", dense) * used)
    window = data.number("attention.sliding_window", 0)
    cells = _padded(context) + (min(_padded(context), _padded(window + _BATCH)) if window else 0)
    logits = 4 * (vocabulary + width)
    mask = 6 * cells + 4 * 4 * width
    forward = 2 * cells + 4 * (3 * inner + (3 + used) * width)
    return _BATCH * max(logits, mask, forward)


def build(header: Header, context: int | None = None, cache_type: str = "f16") -> Model:
    """The model of a header. `context` in tokens: 8192, or what the model was trained for if that is less, where None.

    Raises BadModel where the metadata or the tensors are not those of a language model.
    """
    data = _Metadata(header)
    if not header.tensors:
        raise BadModel(f"{header.paths[0]} holds no tensors (a vocabulary only?)", "Name the model itself.")
    count = data.number("block_count")
    if not 0 < count <= _MOST_LAYERS:
        raise data.bad(f"{data.architecture}.block_count", f"{count} layers")
    trained = data.number("context_length", 0) or None
    context = context or min(DEFAULT_CONTEXT, trained or DEFAULT_CONTEXT)
    expert_count, expert_used = data.number("expert_count", 0), data.number("expert_used_count", 0)
    drafted = data.number("nextn_predict_layers", 0)
    notes: list[str] = []
    always, experts = [0] * count, [0] * count
    output = embedding = vocabulary = 0
    types: dict[str, int] = {}
    for tensor in header.tensors:
        types[tensor.type] = types.get(tensor.type, 0) + tensor.size
        layer = _LAYER.match(tensor.name)
        if layer is None and tensor.name.startswith(_INPUT):
            embedding += tensor.size
            if tensor.name == "token_embd.weight":
                vocabulary = tensor.shape[1] if len(tensor.shape) > 1 else 0
        elif layer is None:
            output += tensor.size
        elif int(layer[1]) >= count:
            raise data.bad(f"{data.architecture}.block_count", f"{count} layers, but there is a tensor {tensor.name}")
        elif _EXPERTS.search(tensor.name):
            experts[int(layer[1])] += tensor.size
        else:
            always[int(layer[1])] += tensor.size
    if not any(tensor.name == "output.weight" for tensor in header.tensors):
        output += sum(tensor.size for tensor in header.tensors if tensor.name == "token_embd.weight")  # one tensor in both roles, kept twice
    if any(experts) and not 0 < expert_used <= expert_count:
        raise data.bad(f"{data.architecture}.expert_used_count", f"{expert_used} of {expert_count} experts are used, but there are expert tensors")
    caches = _caches(data, count, context, cache_type, notes)
    layers = [Layer(always[index], experts[index], *caches[index]) for index in range(count)]
    if drafted:
        drafted = min(drafted, count)
        layers[count - drafted :] = [Layer()] * drafted
        notes.append(f"The last {drafted} of its layers predict further tokens (nextn); they are left out: llama.cpp uses them for drafts only.")
    if trained and context > trained:
        notes.append(f"A context of {context} tokens is beyond the {trained} that the model was trained for.")
    name = header.metadata.get("general.name")
    return Model(
        path=header.paths[0],
        name=name if isinstance(name, str) and name.isprintable() and name else header.paths[0].stem,
        architecture=data.architecture,
        layers=tuple(layers),
        output=output,
        embedding=embedding,
        used=expert_used / expert_count if any(experts) else 0.0,
        expert_count=expert_count if any(experts) else 0,
        expert_used=expert_used if any(experts) else 0,
        compute=_compute(data, vocabulary, context),
        context=context,
        trained_context=trained,
        cache_type=cache_type,
        types=tuple(sorted(types.items(), key=lambda one: -one[1])),
        notes=tuple(notes),
    )
