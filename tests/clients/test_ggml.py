# SPDX-License-Identifier: Apache-2.0
"""A prebuilt CUDA build of llama.cpp decodes on a card that is smaller than what it asks for.

The wheel llama-cpp-cffi carries it as one library that links libcudart.so.12, libcublas.so.12 and libcuda.so.1. Its model is
made here, of random weights. The kernels do nothing: what is shown is that llama.cpp loads, copies its weights, captures
its graph and replays it, and that the weights read back from the device are those of the file.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.clients, pytest.mark.large]

WHEEL, GGUF = "llama-cpp-cffi==0.4.42", "gguf==0.19.0"
PROGRAMS = Path(__file__).resolve().parent / "programs"
TOKENS = 20
MODEL = ["8", "1024", "2816"]  # layers, width, inner width: 196 MiB of weights
ENOUGH, SMALL = "1G", "160M"


@pytest.fixture(scope="session")
def supplement(tmp_path_factory, c_program) -> list[Path]:
    """The wheel was built with GCC 14, whose libstdc++ has a function that older ones lack."""
    if hasattr(ctypes.CDLL("libstdc++.so.6"), "__cxa_call_terminate"):
        return []
    text = "#include <stdlib.h>\nvoid __cxa_call_terminate(void *exception);\n"
    text += "void __cxa_call_terminate(void *exception) { (void)exception; abort(); }\n"
    return [c_program(text, shared=True, link_libcuda=False, name="cxa")]


@pytest.fixture
def decode(run_sim, packages, wheel_member, supplement):
    """`decode(vram=..., shim=...)` -> Result of ggml_decode.py."""
    library = wheel_member(WHEEL, r"_llama_cpp_cuda_\w+\.cpython-\w+-x86_64-linux-gnu\.so")
    path = {"PYTHONPATH": str(packages(GGUF)), "PYTHONDONTWRITEBYTECODE": "1"}
    model = run_sim.tmp_path / "model.gguf"
    run_sim([sys.executable, PROGRAMS / "ggml_model.py", model, *MODEL], shim=False, env=path).ok()

    def run(**how):
        how["env"] = {**path, **how.get("env", {})}
        return run_sim([sys.executable, PROGRAMS / "ggml_decode.py", library, model, TOKENS, *supplement], timeout=240, **how)

    return run


def check(result, weights: int = 190 << 20) -> None:
    assert result.returncode == 0, f"ended with {result.returncode}\n{result.stderr[-3000:]}"
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["tokens"] == TOKENS
    before, after = facts["compared"]
    assert before == after > weights, facts


def test_it_decodes_by_graph_replay(decode, calls):
    check(decode(vram=ENOUGH, shim=False, sim=calls.sim))
    # Two decodes pass before it captures; every later one is a replay.
    assert calls.traced().count("cuGraphLaunch") >= TOKENS - 2
    calls.check(f"llama.cpp ({WHEEL})")


def test_it_fails_on_a_small_card_without_the_shim(decode):
    result = decode(vram=SMALL, shim=False)
    assert result.returncode == 3 and "cudaMalloc failed" in result.stderr, str(result)[-3000:]


def test_it_decodes_past_the_end_of_vram(decode, calls):
    result = decode(vram=SMALL, sim=calls.sim)
    check(result)
    assert sum(one["spilled"]["bytes_peak"] for one in result.stats) > 64 << 20, result.stats
    assert calls.traced().count("cuGraphLaunch") >= TOKENS - 2
    calls.no_stub()


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_it_decodes_whatever_the_driver_turns_out_to_do(decode, calls, seed):
    """Beliefs that no GPU has confirmed, held otherwise."""
    check(decode(vram=SMALL, sim={**calls.sim, "DOUBT": seed}))
    calls.no_stub()
