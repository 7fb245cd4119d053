# SPDX-License-Identifier: Apache-2.0
"""What the advisor makes of a model's metadata: KV cache, recurrent state, experts, compute buffers, as llama.cpp has them.

Expected sizes are those that llama.cpp prints when it loads such a model, or follow from the shapes written out beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillshim.advise import header, model, plan
from spillshim.advise.arithmetic import Rates
from spillshim.advise.header import Header, Tensor
from spillshim.advise.model import Model

MIB = 1 << 20


def made(architecture: str, layers: int, tensors: list[Tensor] | None = None, context: int = 8192, cache_type: str = "f16", **keys: Any) -> Model:
    """A model from these keys (`__` for a dot), of one tensor a layer where none are given."""
    values = {"general.architecture": architecture, f"{architecture}.block_count": layers}
    values.update({f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()})
    default = [Tensor(f"blk.{index}.ffn_up.weight", "F16", (8, 8), 128) for index in range(layers)]
    return model.build(Header([Path("m.gguf")], values, default if tensors is None else tensors), context, cache_type)


LLAMA_8B: dict[str, Any] = {
    "embedding_length": 4096, "feed_forward_length": 14336, "context_length": 131072,
    "attention__head_count": 32, "attention__head_count_kv": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("cache_type", "context", "mib"),
    [("f16", 8192, 1024), ("f16", 131072, 16384), ("f32", 8192, 2048), ("q8_0", 8192, 544), ("q4_0", 8192, 288), ("bf16", 1, 32)],
)
def test_grouped_heads(cache_type: str, context: int, mib: int) -> None:
    # 32 layers, 8 of 32 heads of 128, keys and values; contexts are rounded up to 256
    assert made("llama", 32, context=context, cache_type=cache_type, **LLAMA_8B).cache == mib * MIB


def test_heads_by_layer() -> None:
    assert made("llama", 3, context=256, **{**LLAMA_8B, "attention__head_count_kv": (8, 0, 2)}).cache == 256 * 10 * 256 * 2


def test_own_key_and_value_lengths() -> None:
    keys = {**LLAMA_8B, "attention__key_length": 192, "attention__value_length": 64}
    assert made("llama", 1, context=256, **keys).cache == 256 * 8 * (192 + 64) * 2


@pytest.mark.parametrize(
    ("architecture", "pattern", "full"), [("gemma3", None, 8), ("gpt-oss", None, 24), ("llama", 4, 12), ("llama", 1, 48), ("llama", 0, 0)]
)
def test_sliding_windows_by_a_period(architecture: str, pattern: int | None, full: int) -> None:
    keys = {**LLAMA_8B, "attention__sliding_window": 1000}
    if pattern is not None:
        keys["attention__sliding_window_pattern"] = pattern
    found = made(architecture, 48, context=32768, **keys)
    token = 8 * 256 * 2
    # The window and a batch of 512, rounded up to 256: 1536 tokens; a token looks back on 1000.
    assert [layer.cache for layer in found.layers].count(32768 * token) == full
    assert found.cache == (full * 32768 + (48 - full) * 1536) * token
    assert found.cache_read == (full * 32768 + (48 - full) * 1000) * token
    assert found.notes == ()
    if 0 < full < 48:
        assert found.layers[-1].cache == 32768 * token and found.layers[0].cache == 1536 * token


def test_sliding_windows_by_layer() -> None:
    keys = {**LLAMA_8B, "attention__sliding_window": 512, "attention__sliding_window_pattern": (True, False, True), "attention__key_length_swa": 64}
    assert [layer.cache // (8 * 2 * 256) for layer in made("gemma4", 3, context=4096, **keys).layers] == [1024 * (64 + 128) // 256, 4096, 1024 * 192 // 256]


def test_a_window_larger_than_the_context() -> None:
    found = made("gpt-oss", 2, context=256, **{**LLAMA_8B, "attention__sliding_window": 4096})
    assert found.cache == found.cache_read == 2 * 256 * 8 * 256 * 2


def test_a_window_without_a_pattern_is_counted_at_its_largest_and_said() -> None:
    found = made("unheard-of", 2, **{**LLAMA_8B, "attention__sliding_window": 512})
    assert found.cache == made("llama", 2, **LLAMA_8B).cache
    assert "sliding window of 512 tokens" in found.notes[0]


def test_latent_attention_keeps_keys_alone() -> None:
    # DeepSeek V3: 61 layers, a latent of 512 and 64 for positions, in f16
    keys = {"embedding_length": 7168, "attention__head_count": 128, "attention__head_count_kv": 1, "attention__kv_lora_rank": 512,
            "attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192, "attention__value_length_mla": 128}  # fmt: skip
    assert made("deepseek2", 61, context=4096, **keys).cache == 61 * 4096 * 576 * 2


QWEN35_9B: dict[str, Any] = {
    "embedding_length": 4096, "attention__head_count": 16, "attention__head_count_kv": 4, "attention__key_length": 256,
    "attention__value_length": 256, "full_attention_interval": 4, "ssm__conv_kernel": 4, "ssm__inner_size": 4096,
    "ssm__state_size": 128, "ssm__group_count": 16,
}  # fmt: skip


def test_recurrent_layers_keep_a_state_of_one_size() -> None:
    # llama.cpp prints for this model with 262144 tokens in q8_0: KV buffer 4352.00 MiB; RS buffer 100.50 MiB for two sequences
    found = made("qwen35", 32, context=262144, cache_type="q8_0", **QWEN35_9B)
    full = [layer.cache for layer in found.layers[3::4]]
    assert sum(full) == 4352 * MIB
    assert found.cache - sum(full) == round(100.5 / 2 * MIB)


def test_recurrent_layers_by_name_and_by_heads() -> None:
    keys = {**QWEN35_9B, "attention__recurrent_layers": (True, False)}
    state = made("qwen35", 4, **QWEN35_9B).layers[0].cache
    assert [layer.cache == state for layer in made("qwen35", 2, **keys).layers] == [True, False]
    keys = {**QWEN35_9B, "attention__head_count_kv": (0, 4)}
    del keys["full_attention_interval"]
    assert [layer.cache == state for layer in made("granitehybrid", 2, **keys).layers] == [True, False]


def test_layers_that_share_a_cache() -> None:
    found = made("gemma4", 4, context=256, **{**LLAMA_8B, "attention__shared_kv_layers": 2})
    assert [layer.cache > 0 for layer in found.layers] == [True, True, False, False]
    assert all(layer.cache_read for layer in found.layers)


@pytest.mark.parametrize(
    ("vocabulary", "width", "context", "mib"),
    [(128256, 4096, 512, 258.5), (201088, 2880, 768, 398.4), (32000, 4096, 512, 70.5), (248320, 4096, 262144, 808.0)],
)
def test_compute_buffers_as_llama_cpp_prints_them(vocabulary: int, width: int, context: int, mib: float) -> None:
    # Published logs: Llama 3 8B, gpt-oss 120B, Llama 2 7B, Qwen 3.5 9B
    tensors = [Tensor("token_embd.weight", "F16", (width, vocabulary), 1), Tensor("blk.0.x.weight", "F16", (8,), 16)]
    found = made("llama", 1, tensors, context=context, embedding_length=width, attention__head_count=1)
    assert found.compute / MIB == pytest.approx(mib, rel=0.01)


def test_what_is_read_and_what_is_not() -> None:
    tensors = [
        Tensor("token_embd.weight", "F16", (8, 10), 1000), Tensor("output.weight", "F16", (8, 10), 500), Tensor("output_norm.weight", "F32", (8,), 7),
        Tensor("blk.0.attn_q.weight", "F16", (8, 8), 30), Tensor("blk.0.ffn_gate_exps.weight", "F16", (8, 8, 4), 100),
        Tensor("blk.0.ffn_down_exps.bias", "F16", (8, 4), 12), Tensor("blk.0.ffn_up_shexp.weight", "F16", (8, 8), 5),
        Tensor("blk.0.ffn_gate_inp.weight", "F16", (8, 8), 3), Tensor("blk.1.ffn_up_chexps.weight", "F16", (8, 8, 4), 40),
    ]  # fmt: skip
    found = made("llama", 2, tensors, expert_count=4, expert_used_count=1)
    assert [(layer.always, layer.experts) for layer in found.layers] == [(38, 112), (0, 40)]
    assert (found.output, found.embedding, found.used) == (507, 1000, 0.25)
    assert found.weights == 507 + 38 + 152
    assert found.mixture.read == 507 + 38 + 152 / 4


def test_one_tensor_for_input_and_output_is_kept_twice() -> None:
    tensors = [Tensor("token_embd.weight", "F16", (8, 10), 1000), Tensor("blk.0.x.weight", "F16", (8,), 16)]
    found = made("gemma3", 1, tensors)
    assert (found.output, found.embedding) == (1000, 1000)


def test_layers_that_only_draft_are_left_out() -> None:
    found = made("glm4moe", 3, nextn_predict_layers=1, **LLAMA_8B)
    assert found.layers[2] == model.Layer() and found.layers[1].always and found.layers[1].cache
    assert "nextn" in found.notes[0]


def test_more_layers_that_draft_than_layers() -> None:
    assert made("glm4moe", 3, nextn_predict_layers=9, **LLAMA_8B).layers == (model.Layer(),) * 3


@pytest.mark.parametrize(("trained", "context", "expected"), [(131072, None, 8192), (4096, None, 4096), (None, None, 8192), (4096, 9000, 9000)])
def test_the_context(trained: int | None, context: int | None, expected: int) -> None:
    keys = {"context_length": trained} if trained else {}
    found = made("llama", 1, context=context, **keys)  # type: ignore[arg-type]
    assert found.context == expected
    assert any("trained for" in note for note in found.notes) is bool(context)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": None}, "general.architecture: missing"),
        ({"general.architecture": 5}, "general.architecture: 5 is not a text"),
        ({"llama.block_count": None}, "llama.block_count: missing"),
        ({"llama.block_count": 0}, "llama.block_count: 0 layers"),
        ({"llama.block_count": 1 << 30}, f"llama.block_count: {1 << 30} layers"),
        ({"llama.block_count": "two"}, "llama.block_count: 'two' is not a whole number"),
        ({"llama.block_count": 1}, "1 layers, but there is a tensor blk.1.ffn_up.weight"),
        ({"llama.attention.head_count_kv": (1, 2, 3)}, "llama.attention.head_count_kv: 3 entries for 2 layers"),
        ({"llama.attention.head_count_kv": (1, -2)}, "are not whole numbers"),
        ({"llama.attention.head_count_kv": header.Skipped(9000)}, "9000 entries for 2 layers"),
        ({"llama.attention.key_length": 0.5}, "llama.attention.key_length: 0.5 is not a whole number"),
        ({"llama.embedding_length": -1}, "llama.embedding_length: -1 is not"),
        ({"llama.context_length": True}, "llama.context_length: True is not"),
    ],
)
def test_metadata_that_cannot_be(change: dict[str, Any], words: str) -> None:
    values = {"general.architecture": "llama", "llama.block_count": 2, **{key: value for key, value in change.items() if value is not None}}
    values = {key: value for key, value in values.items() if key not in change or change[key] is not None}
    tensors = [Tensor(f"blk.{index}.ffn_up.weight", "F16", (8, 8), 128) for index in range(2)]
    with pytest.raises(header.BadModel) as caught:
        model.build(Header([Path("m.gguf")], values, tensors))
    assert words in caught.value.message and "m.gguf" in caught.value.message


@pytest.mark.parametrize("used", [0, 5])
def test_experts_that_cannot_be(used: int) -> None:
    tensors = [Tensor("blk.0.ffn_up_exps.weight", "F16", (8, 8, 4), 128)]
    with pytest.raises(header.BadModel, match=f"expert_used_count: {used} of 4 experts are used"):
        made("llama", 1, tensors, expert_count=4, expert_used_count=used)


def test_a_vocabulary_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(header.BadModel, match="holds no tensors"):
        model.build(header.read(gguf_models.write(tmp_path / "v.gguf", gguf_models.metadata(1), [])))


KEYS = sorted({*LLAMA_8B, *QWEN35_9B, "nextn_predict_layers", "expert_count", "expert_used_count", "expert_feed_forward_length", "attention__sliding_window",
               "attention__sliding_window_pattern", "attention__recurrent_layers", "attention__shared_kv_layers", "attention__kv_lora_rank",
               "attention__key_length_mla", "attention__key_length_swa"})  # fmt: skip
LIKELY = st.one_of(st.integers(0, 5), st.sampled_from([256, 4096, 1 << 31]))
ODD = st.one_of(st.integers(-2, 5), st.just(1 << 63), st.booleans(), st.floats(allow_nan=True))
VALUES = st.one_of(
    LIKELY, LIKELY, LIKELY, ODD, st.text(max_size=3), st.lists(LIKELY | ODD, max_size=4).map(tuple), st.builds(header.Skipped, st.integers(0, 9999))
)  # fmt: skip


def test_any_metadata() -> None:
    """A model whose sizes are none below zero and whose advice can be given, or a BadModel that names the key."""
    ends = {"built": 0, "refused": 0}

    @settings(derandomize=True, max_examples=300, deadline=None)
    @given(keys=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), layers=st.integers(1, 4), context=st.integers(1, 1 << 20))
    def any_of_them(keys: dict[str, Any], layers: int, context: int) -> None:
        tensors = [Tensor("blk.0.ffn_up_exps.weight", "F16", (8, 8, 4), 512), Tensor("output.weight", "F16", (8, 8), 128)]
        try:
            found = made("llama", layers, tensors, context, **{**LLAMA_8B, "expert_count": 4, "expert_used_count": 1, **keys})
        except header.BadModel as error:
            assert "metadata llama." in error.message
            ends["refused"] += 1
            return
        ends["built"] += 1
        assert min(found.output, found.compute, *(min(vars(layer).values()) for layer in found.layers)) >= 0
        assert all(layer.cache_read <= layer.cache for layer in found.layers if layer.cache)
        for vram in (1 << 10, 1 << 20, 1 << 60):
            advice = plan.advise(found, plan.Machine(vram, 1 << 60, Rates(8e11, 2.5e10, 6e10, 3.8e9)))
            assert (advice.best or advice.sentences) and all(way.seconds is None or way.seconds > 0 for way in advice.ways)

    any_of_them()
    assert min(ends.values()) > 50, ends


@pytest.mark.parametrize("cache_type", model.CACHE_TYPES)
def test_every_cache_type_is_known(cache_type: str) -> None:
    assert made("llama", 1, cache_type=cache_type, **LLAMA_8B).cache > 0
