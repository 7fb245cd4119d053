# SPDX-License-Identifier: Apache-2.0
"""llama.cpp fits itself into the free memory that it is told; what that means where memory overflows into RAM.

A prebuilt CUDA build, with its own --fit, device list and loading (programs/llama_server.py says what is whose). Its models
are made here, of random weights. Layers, buffers and context are what its own log and API say.
"""

from __future__ import annotations

import pytest
from llama import MIB, WHEEL

pytestmark = [pytest.mark.clients, pytest.mark.large]

SMALL = "160M"  # of VRAM; the model has 197 MiB of weights on the device
SHORT = {"LLAMA_ARG_CTX_SIZE": "512"}
MARGIN = {"LLAMA_ARG_FIT_TARGET": "16"}  # MiB that --fit leaves free: its 1024 are more than these cards have
UNFITTED = {"LLAMA_ARG_FIT": "off"}
CALLED = ["llama-server", "-c", "512"]  # how the profile is chosen; the program is called with SHORT
REPORTS = ["vram", "virtual"]


def spilled(result) -> int:
    return max((one["spilled"]["bytes_peak"] for one in result.stats), default=0)


def test_it_decodes_where_there_is_enough(llama_server, calls):
    server = llama_server("a", vram="1G", shim=False, sim=calls.sim, env={**SHORT, **MARGIN})
    assert server.loaded().layers == (9, 9) and server.context == 512
    assert server.ask("decode 4") == {"decoded": 4, "failed": 0}
    server.end()
    calls.check(f"llama.cpp ({WHEEL})")


@pytest.mark.parametrize("shim", [False, True])
def test_by_itself_it_moves_layers_to_the_cpu(llama_server, shim):
    """It is told the truth, with the shim or without: nothing overflows, because nothing is tried."""
    server = llama_server("a", vram=SMALL, shim=shim, env={**SHORT, **MARGIN})
    layers, device = server.loaded().layers, server.loaded().device
    assert layers == (5, 9) and device["model"] < 100, server.log[-2000:]
    assert server.ask("decode 2") == {"decoded": 2, "failed": 0}
    assert spilled(server.end()) == 0


def test_by_itself_it_shrinks_its_context(llama_server):
    server = llama_server("a", vram="512M", env={"LLAMA_ARG_FIT_TARGET": "96"})  # more than the shim's headroom
    assert server.loaded().layers == (9, 9)
    assert 4096 <= server.context < 16384
    assert spilled(server.end()) == 0


def test_with_its_profile_a_model_a_little_too_large_stays_whole(llama_server, watch, profiled):
    """The card is a hundredth of a usual one, and so is the margin of --fit, which the user's own setting keeps. By itself
    llama.cpp leaves a layer to the CPU; with the profile none, and the part that does not fit overflows."""
    card, own = "250M", {**SHORT, **MARGIN}
    plain = llama_server("a", vram=card, env=own)
    assert plain.loaded().layers == (8, 9)
    assert spilled(plain.end()) == 0

    env = profiled("llama.cpp", CALLED, own)
    assert env["LLAMA_ARG_FIT_TARGET"] == "16" and env["SPILLSHIM_REPORT"] == "virtual"
    watcher = watch(vram=card, env=env)
    before, told = watcher.agreed()
    assert 250 * MIB < told < 260 * MIB
    server = llama_server("a", vram=card, env=env)
    assert server.loaded().layers == (9, 9) and server.context == 512
    watcher.agreed(server.ask("memory"))
    assert server.ask("decode 4") == {"decoded": 4, "failed": 0}
    watcher.agreed(server.ask("memory"))
    assert spilled(server.end()) > 16 * MIB
    assert watcher.agreed()[0] == before
    watcher.end()


def test_with_its_profile_a_model_far_too_large_is_still_split(llama_server, profiled):
    """A dense model far past VRAM is faster by llama.cpp's own split: what is reported beyond VRAM is a margin."""
    server = llama_server("a", vram=SMALL, env=profiled("llama.cpp", CALLED, {**SHORT, **MARGIN}))
    here, all_ = server.loaded().layers
    assert 5 <= here < all_
    server.end()


def test_with_its_profile_an_unset_context_takes_no_more_than_vram(llama_server, profiled):
    server = llama_server("a", vram="512M", env=profiled("llama.cpp", ["llama-server"], {"LLAMA_ARG_FIT_TARGET": "96"}))
    assert server.loaded().layers == (9, 9) and 4096 <= server.context < 16384
    assert spilled(server.end()) == 0


def test_layers_by_order_end_the_fit_after_it_has_shrunk_the_context(llama_server, profiled):
    """The profile for all layers on the device: the context is still fitted, to its least here, and everything past VRAM
    spills."""
    env = profiled("llama.cpp-gpu", ["llama-server"], MARGIN)
    assert env["LLAMA_ARG_N_GPU_LAYERS"] == "all" and env["SPILLSHIM_REPORT"] == "vram"
    server = llama_server("a", vram=SMALL, env=env)
    assert server.loaded().layers == (9, 9) and server.context == 4096
    assert "n_gpu_layers already set by user" in server.log
    assert server.ask("decode 2") == {"decoded": 2, "failed": 0}
    assert spilled(server.end()) > 100 * MIB


@pytest.mark.parametrize("report", REPORTS)
def test_with_the_fit_off_all_layers_stay_on_the_device(llama_server, watch, report):
    """Weights and KV cache past the end of VRAM; every question about memory has one answer throughout."""
    env = {**SHORT, **UNFITTED, "SPILLSHIM_REPORT": report}
    watcher = watch(vram=SMALL, env=env)
    before, _ = watcher.agreed()
    server = llama_server("a", vram=SMALL, env=env)
    loaded = server.loaded()
    assert loaded.layers == (9, 9) and loaded.device["model"] > 190 and loaded.device["KV"] == 16, server.log[-2000:]
    after, total = watcher.agreed(server.ask("memory"))
    # All of it is owed or used; small buffers (the output) are not in the log.
    assert before - after >= min(before, loaded.bytes) and total >= before
    assert server.ask("decode 4") == {"decoded": 4, "failed": 0}
    watcher.agreed(server.ask("memory"))
    result = server.end()
    assert spilled(result) > 64 * MIB
    assert watcher.agreed()[0] == before
    watcher.end()


@pytest.mark.parametrize("report", REPORTS)
def test_with_fit_off_an_unset_context_is_the_whole_of_the_models(llama_server, report):
    """Why a profile that switches the fit off has to set a context: whatever is reported, the KV cache is the largest."""
    server = llama_server("a", vram="512M", env={**UNFITTED, "SPILLSHIM_REPORT": report})
    assert server.context == 16384 and server.loaded().device["KV"] == 512
    assert spilled(server.end()) > 200 * MIB


def test_with_the_fit_an_unset_context_grows_into_what_is_reported(llama_server):
    """Why reporting more is no profile by itself."""
    server = llama_server("a", vram="512M", env={**MARGIN, "SPILLSHIM_REPORT": "virtual"})
    assert server.context == 16384 and server.loaded().layers == (9, 9)
    assert spilled(server.end()) > 200 * MIB


@pytest.mark.parametrize("report", REPORTS)
def test_two_models_take_turns_on_one_card(llama_server, watch, report):
    """One loads and is unloaded, by its end and by SIGKILL; free memory rises each time to what it was, and by all of the
    model where the report is virtual."""
    env = {**SHORT, **UNFITTED, "SPILLSHIM_REPORT": report}
    watcher = watch(vram=SMALL, env=env)
    before, _ = watcher.agreed()
    for name, unload in (("a", "kill"), ("b", "end"), ("a", "end"), ("b", "kill")):
        server = llama_server(name, vram=SMALL, env=env)
        layers, size = server.loaded().layers, server.loaded().bytes
        assert layers[0] == layers[1], server.log[-2000:]
        assert server.ask("decode 2") == {"decoded": 2, "failed": 0}
        while_loaded, _ = watcher.agreed(server.ask("memory"))
        getattr(server, unload)()
        after, _ = watcher.agreed()
        assert after == before
        assert after - while_loaded >= min(size, before)
    watcher.end()


def test_two_models_are_loaded_at_once(llama_server, watch):
    """The second finds no VRAM; all of both is on the device, and what one leaves the card's other processes see."""
    env = {**SHORT, **UNFITTED, "SPILLSHIM_REPORT": "virtual"}
    watcher = watch(vram=SMALL, env=env)
    before, _ = watcher.agreed()
    first = llama_server("a", vram=SMALL, env=env)
    second = llama_server("b", vram=SMALL, env=env)
    for server in (first, second, first):
        assert server.ask("decode 2") == {"decoded": 2, "failed": 0}
    both, _ = watcher.agreed(first.ask("memory"), second.ask("memory"))
    assert before - both >= first.loaded().bytes + second.loaded().bytes
    first.kill()
    one, _ = watcher.agreed(second.ask("memory"))
    assert one - both >= first.loaded().bytes * 3 // 4
    second.end()
    assert watcher.agreed()[0] == before
    watcher.end()
