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
PROFILE = {"LLAMA_ARG_FIT": "off"}
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
def test_without_the_profile_it_moves_layers_to_the_cpu(llama_server, shim):
    """It is told the truth, with the shim or without: nothing overflows, because nothing is tried."""
    server = llama_server("a", vram=SMALL, shim=shim, env={**SHORT, **MARGIN})
    layers, device = server.loaded().layers, server.loaded().device
    assert layers == (5, 9) and device["model"] < 100, server.log[-2000:]
    assert server.ask("decode 2") == {"decoded": 2, "failed": 0}
    assert spilled(server.end()) == 0


def test_without_the_profile_it_shrinks_its_context(llama_server):
    server = llama_server("a", vram="512M", env={"LLAMA_ARG_FIT_TARGET": "96"})  # more than the shim's headroom
    assert server.loaded().layers == (9, 9)
    assert 4096 <= server.context < 16384
    assert spilled(server.end()) == 0


@pytest.mark.parametrize("report", REPORTS)
def test_with_the_profile_all_layers_stay_on_the_device(llama_server, watch, report):
    """Weights and KV cache past the end of VRAM; every question about memory has one answer throughout."""
    env = {**SHORT, **PROFILE, "SPILLSHIM_REPORT": report}
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
    server = llama_server("a", vram="512M", env={**PROFILE, "SPILLSHIM_REPORT": report})
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
    env = {**SHORT, **PROFILE, "SPILLSHIM_REPORT": report}
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
    env = {**SHORT, **PROFILE, "SPILLSHIM_REPORT": "virtual"}
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
