# SPDX-License-Identifier: Apache-2.0
"""ollama finds the device, loads a model that is larger than VRAM, and unloads it: its sequence (ollama.py), replayed with
everything it starts under the shim.

Twice: with small programs that make the same calls and say the same text (tests/programs/ollama_*.c), and with a prebuilt
llama.cpp in llama-server's place. What ollama parses has to arrive intact, and what it concludes from it has to be right.
"""

from __future__ import annotations

import re
import shutil
import sys

import llama
import ollama
import pytest

pytestmark = pytest.mark.clients

CONTEXT = 512
SETTINGS = {"LLAMA_ARG_FIT": "off"}  # of the environment in which `ollama serve` runs
BOTH = ["programs", pytest.param("llama.cpp", marks=pytest.mark.large)]


@pytest.fixture
def parts(request, run_sim, c_program, sim_dir):
    """`parts` -> (server, probe, folders, backend, models, vram): of small programs, or of a prebuilt llama.cpp. The model "a"
    is larger than VRAM (bytes), by less than a third of it; "b" is not."""
    probe = [c_program("ollama_probe.c", link_libcuda=False)]
    folders = [run_sim.tmp_path / "lib" / "ollama", run_sim.tmp_path / "lib" / "ollama" / "cuda_v12"]
    folders[1].mkdir(parents=True)
    if request.param == "programs":
        links = [f"-L{sim_dir}", "-l:libcudart.so.13"]
        backend = c_program("ollama_backend.c", shared=True, flags=links)
        models = {name: run_sim.tmp_path / f"{name}.gguf" for name in ("a", "b")}
        for mib, model in zip((90, 60), models.values(), strict=True):
            with model.open("wb") as file:
                file.truncate(mib * llama.MIB)
        return [c_program("ollama_runner.c", link_libcuda=False)], probe, folders, backend, models, 96 * llama.MIB
    libraries, model = request.getfixturevalue("llama_parts")
    backend = next(libraries.glob("libggml-cuda-*.so"))
    for name, pattern in (("libggml-base.so", "libggml-base-*"), ("libggml.so", "libggml-[!bc]*")):
        (folders[0] / name).symlink_to(next(libraries.glob(pattern)))
    (folders[1] / "libggml-cuda.so").symlink_to(backend)
    models = {name: model(name) for name in ("a", "b")}
    return [sys.executable, llama.PROGRAMS / "llama_server.py", libraries], probe, folders, backend, models, 192 * llama.MIB


@pytest.fixture
def serve(run_sim, parts):
    """`serve(report="vram")` -> Ollama that has discovered its device, and the models' files; `env` in SETTINGS' place."""
    server, probe, folders, backend, models, vram = parts

    def start(*, shim: bool = True, report: str = "vram", vram: int = vram, env: dict[str, str] | None = None):
        how = {"vram": str(vram), "shim": shim, "env": env or {**SETTINGS, "SPILLSHIM_REPORT": report}}
        return ollama.Ollama(run_sim, server, probe, folders, backend, how), models

    return start


@pytest.mark.parametrize("parts", BOTH, indirect=True)
def test_discovery_reads_the_same_with_the_shim_as_without(serve, parts):
    """Device, compute capability, architectures, totals and free memory: nothing is lost, nothing is added."""
    (plain, _), (shimmed, _) = serve(shim=False), serve()
    assert shimmed.device == plain.device
    assert plain.device.total == plain.device.probe["driver_total"] == plain.device.probe["total"] == parts[-1]
    assert 0 < plain.device.free <= plain.device.total
    assert shimmed.discover(CUDA_VISIBLE_DEVICES="0", GGML_CUDA_INIT="1") == plain.device  # the second pass


@pytest.mark.parametrize("parts", BOTH, indirect=True)
def test_discovery_agrees_on_a_total_that_holds_ram(serve, parts):
    """The list, the backend's properties and the driver: a total told by one only would be cut back to another's."""
    device = serve(report="virtual")[0].device
    assert parts[-1] < device.free <= device.total
    assert 0 <= device.probe["total"] - device.total < llama.MIB and device.probe["total"] == device.probe["driver_total"]


@pytest.mark.parametrize("report", ["vram", "virtual"])
@pytest.mark.parametrize("parts", BOTH, indirect=True)
def test_a_model_larger_than_vram_is_loaded_and_unloaded(serve, report):
    served, models = serve(report=report)
    for name in ("a", "b", "a"):
        runner = served.load(models[name], CONTEXT)
        assert runner.server.context == CONTEXT
        layers = runner.server.loaded().layers
        assert layers[0] == layers[1], "not reported as 100 % GPU"
        assert runner.free_at_load == served.device.free
        assert runner.server.ask("decode 3") == {"decoded": 3, "failed": 0}
        assert ollama.error_lines(runner.server.log) == []
        assert runner.unload()
        assert served.free_now() == served.device.free


@pytest.mark.parametrize("parts", BOTH, indirect=True)
def test_what_it_waits_for_after_unloading_needs_the_virtual_report(serve, parts):
    """Free memory cannot rise by more than the total. ollama waits, five seconds, for three quarters of what the log says the
    model took: of a model of 4/3 of VRAM and more that never comes where the report is honest."""
    honest, models = serve()
    runner = honest.load(models["a"], 4096)  # with 128 MiB of KV cache
    assert runner.size > parts[-1] * 4 // 3
    assert not runner.unload() and honest.free_now() == honest.device.free
    virtual, _ = serve(report="virtual")
    assert virtual.load(models["a"], 4096).unload()


@pytest.mark.parametrize("parts", BOTH, indirect=True)
def test_a_second_model_evicts_the_first_or_stays_beside_it_by_what_is_reported(serve):
    honest, models = serve()
    runner = honest.load(models["a"], CONTEXT)
    assert runner.free == 0 and not honest.fits(models["b"].stat().st_size, runner)
    runner.unload()

    virtual, _ = serve(report="virtual")
    first = virtual.load(models["a"], CONTEXT)
    assert virtual.fits(models["b"].stat().st_size, first)
    # Its own accounting and what a fresh process hears differ by what no line of the log names: small buffers, rounding.
    assert 0 <= first.free - virtual.free_now() < 64 * llama.MIB
    second = virtual.load(models["b"], CONTEXT)
    for one in (first, second, first):
        assert one.server.ask("decode 2") == {"decoded": 2, "failed": 0}
    assert second.unload() and first.unload()


@pytest.mark.parametrize("parts", BOTH[1:], indirect=True)
def test_under_its_profile_it_loads_a_little_too_much_and_one_model_at_a_time(serve, profiled):
    """Its profile is chosen for `ollama serve` and goes on to what that starts. The card is a hundredth of a usual one, and so is
    the margin of --fit, by the user's own setting. The list, the fit and the accounting are told of the same 3 % more."""
    user = {"LLAMA_ARG_FIT_TARGET": "16"}
    env = profiled("ollama", ["ollama", "serve"], user)
    assert env["SPILLSHIM_REPORT"] == "virtual" and "LLAMA_ARG_FIT" not in env
    vram = 250 * llama.MIB
    served, models = serve(vram=vram, env=env)
    assert vram < served.device.total < vram * 104 // 100
    runner = served.load(models["a"], CONTEXT)
    assert runner.server.loaded().layers == (9, 9) and 0 < runner.size <= served.device.total
    assert runner.server.ask("decode 3") == {"decoded": 3, "failed": 0}
    assert not served.fits(models["b"].stat().st_size, runner), "the next model comes into VRAM, not beside it into RAM"
    assert ollama.error_lines(runner.server.log) == []
    assert runner.unload() and served.free_now() == served.device.free

    plain, _ = serve(vram=vram, shim=False, env=user)
    assert plain.load(models["a"], CONTEXT).server.loaded().layers == (8, 9)


@pytest.mark.parametrize("parts", ["programs"], indirect=True)
def test_without_the_shim_the_model_does_not_load(serve):
    served, models = serve(shim=False)
    with pytest.raises(AssertionError, match="ended with 3"):
        served.load(models["a"], CONTEXT)


@pytest.mark.parametrize("parts", ["programs"], indirect=True)
def test_a_load_that_no_ram_is_left_for_reads_as_out_of_memory(serve):
    """ollama retries with a shorter context where the log says so: what refuses must not hide it."""
    served, models = serve()
    served.how["env"]["SPILLSHIM_HOST_LIMIT"] = "16M"
    with pytest.raises(AssertionError, match="ended with 3") as refused:
        served.load(models["a"], CONTEXT)
    assert any("cudaMalloc failed" in line for line in ollama.error_lines(str(refused.value)))


@pytest.mark.parametrize(("options", "total", "said"), [((), 206, "spillshim: profile ollama: "), (("--profile", "none"), 200, "")])
def test_the_command_takes_its_profile_and_leaves_stdout_alone(spillshim, c_program, sim_dir, tmp_path, options, total, said):
    """What `spillshim run -- ollama ...` hands to all that ollama starts, asked by a program of that name."""
    program = tmp_path / "ollama"
    shutil.copy(c_program("ollama_runner.c", link_libcuda=False), program)
    backend = c_program("ollama_backend.c", shared=True, flags=[f"-L{sim_dir}", "-l:libcudart.so.13"])
    ran = spillshim("run", "--sim", "vram=200M", *options, "--", program, "--list-devices", env={"GGML_BACKEND_PATH": str(backend)})
    assert re.fullmatch(rf"Available devices:\n  CUDA0: .* \({total} MiB, \d+ MiB free\)\n", ran.ok().stdout), ran.stdout
    ours = [line for line in ran.stderr.splitlines() if line.startswith("spillshim")]
    assert len(ours) == bool(said) and all(line.startswith(said) for line in ours), ran.stderr


def test_the_pattern_of_an_error_finds_ours_where_it_is_one():
    """The lines that the shim writes at a spill are no errors to ollama; the one it writes at level error would be."""
    assert ollama.error_lines("spillshim[7]: error: x\n") and not ollama.error_lines("spillshim[7]: warn: VRAM is full: 82.0 MiB\n")
