# SPDX-License-Identifier: Apache-2.0
"""The demo's decoder against a model of it in numpy, its checksum's dependence on every byte, and `spillshim demo`."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from clients_common import FINE, MIB, spilled_bytes

# --- the model: what decoder.c and decoder_kernels.cu compute, said again in numpy -----------------------------------------

GOLDEN, KV_SALT = np.uint64(0x9E3779B97F4A7C15), 0x5BD1E995
BLOCK, TILE_PAIRS, ROW_WORDS = 256, 4096, 512
U = np.uint64


def mix(z):
    z = (z ^ (z >> U(30))) * U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U(27))) * U(0x94D049BB133111EB)
    return z ^ (z >> U(31))


def generated(first: int, words: int, seed: int):
    return mix(U(seed) + np.arange(first + 1, first + words + 1, dtype=U) * GOLDEN)


def read_into(y, w, x, salt: int) -> None:
    """dec_read: thread t of block b takes pairs t, t + BLOCK, ... of tile b."""
    pairs = w.reshape(-1, 2)
    for tile in range(-(-len(pairs) // TILE_PAIRS)):
        part = pairs[tile * TILE_PAIRS : (tile + 1) * TILE_PAIRS]
        threads = np.arange(min(BLOCK, len(part)))
        lanes = (tile * BLOCK + threads) % len(x)
        m = (x[lanes] + U(salt)) | U(1)
        sums = np.zeros((len(threads), 2), U)
        for start in range(0, len(part), BLOCK):
            row = part[start : start + BLOCK]
            sums[: len(row)] = sums[: len(row)] * m[: len(row), None] + row
        np.add.at(y, lanes, mix(sums[:, 0] + sums[:, 1] * GOLDEN))


def shares(total: int, layers: int) -> list[int]:
    return [total // 16 // layers * layer * 16 for layer in range(layers)] + [total]


def model(weights: int, kv: int, compute: int, layers: int, steps: int, seed: int) -> str:
    with np.errstate(over="ignore"):
        w, cuts, kv_cuts = generated(0, weights // 8, seed), shares(weights, layers), shares(kv, layers)
        rows = kv // 16 // layers * 16 // (ROW_WORDS * 8)
        cache = np.zeros((layers, rows, ROW_WORDS), U)
        for layer in range(layers):
            prompt = (rows - steps) * ROW_WORDS
            cache[layer].reshape(-1)[:prompt] = generated(kv_cuts[layer] // 8, prompt, seed ^ KV_SALT)
        width = compute // 32 * 2
        lanes, one = np.arange(width), np.arange(1, width + 1, dtype=U)
        token = checksum = mix(np.array([seed], U) + GOLDEN)[0]
        for step in range(steps):
            x, y = mix(token + one * GOLDEN), np.zeros(width, U)
            for layer in range(layers):
                salt = int(mix(np.array([step * 4096 + layer + 1], U))[0])
                read_into(y, w[cuts[layer] // 8 : cuts[layer + 1] // 8], x, salt)
                index = np.arange(ROW_WORDS, dtype=U)
                row = rows - steps + step
                cache[layer, row] = mix(y[np.arange(ROW_WORDS) % width] + (U(salt) ^ index))
                read_into(y, cache[layer, : row + 1].reshape(-1), x, salt ^ KV_SALT)
                x, y = mix(x * GOLDEN + y + U(salt)), np.zeros(width, U)
            token = np.sum(mix(x ^ one * GOLDEN), dtype=U)
            checksum = mix(checksum * GOLDEN + token)
        assert len(lanes) == width
        return f"{int(checksum):016x}"


# --- the decoder -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def decode(run_sim, demo_dir):
    """decode(weights=..., ..., shim=False, vram="8G") -> (the decoder's JSON object, Result)."""

    def run(*extra: str, timeout: float = 120, **options):
        how = {key: options.pop(key) for key in ("shim", "vram", "ram", "env", "sim") if key in options}
        how.setdefault("shim", False)
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        result = run_sim([demo_dir / "decoder", *words, *extra, "--json"], timeout=timeout, **how)
        lines = result.stdout.strip().splitlines()
        return (json.loads(lines[-1]) if lines else {}), result

    return run


@pytest.mark.parametrize(
    "sizes",
    [
        dict(weights=1 << 20, kv=1 << 20, compute=64 << 10, layers=4, steps=3, seed=1),
        dict(weights=(3 << 20) + 16 * 77, kv=(1 << 20) + 48, compute=100_000, layers=7, steps=2, seed=12345),  # ragged tiles
        dict(weights=16 * 5, kv=5 * 4096, compute=64, layers=5, steps=1, seed=2**64 - 1),  # a layer of one pair, no prompt
        dict(weights=700_000, kv=90_000, compute=4096, layers=1, steps=5, seed=0),
    ],
    ids=["even", "ragged", "least", "one-layer"],
)
def test_checksum_is_what_the_model_computes(decode, sizes):
    sizes = {name: value // 16 * 16 if name in ("weights", "kv", "compute") else value for name, value in sizes.items()}
    answer, result = decode(**sizes)
    result.ok()
    assert answer["checksum"] == model(**sizes)
    assert (answer["weights"], answer["kv"], answer["steps"]) == (sizes["weights"], sizes["kv"], sizes["steps"])
    assert len(answer["step_ms"]) == sizes["steps"]


def test_any_flipped_byte_changes_the_checksum(decode):
    sizes = dict(weights=(2 << 20) + 16 * 3, kv=1 << 20, compute=64 << 10, layers=3, steps=2, seed=9)
    seed = 20240607
    print(f"seed {seed}")
    layer = sizes["weights"] // 16 // 3 * 16
    offsets = {0, sizes["weights"] - 1, layer - 1, layer, 2 * layer - 1, 2 * layer, 65535, 65536}
    offsets |= {random.Random(seed).randrange(sizes["weights"]) for _ in range(24)}
    seen = {decode(**sizes)[0]["checksum"]: None}
    for offset in sorted(offsets):
        answer, result = decode("--flip-byte", str(offset), **sizes)
        result.ok()
        assert answer["checksum"] not in seen, f"byte {offset}: same checksum as with byte {seen[answer['checksum']]} flipped"
        seen[answer["checksum"]] = offset


def test_out_of_memory_says_so(decode):
    answer, result = decode(weights="300M", vram="256M")
    assert result.returncode == 2, result
    assert (answer["result"], answer["cuda_error"]) == ("oom", "CUDA_ERROR_OUT_OF_MEMORY")
    assert "cuMemAlloc of 314572800 bytes for the weights" in result.stderr


def test_without_a_driver_it_starts_and_says_so(demo_dir, clean_env, tmp_path):
    ran = subprocess.run([demo_dir / "decoder", "--json"], env=clean_env, cwd=tmp_path, capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        pytest.skip("this machine has an NVIDIA driver")
    assert ran.returncode == 3
    assert "no CUDA driver" in ran.stderr and json.loads(ran.stdout)["result"] == "no-device"


@pytest.mark.parametrize("bad", [["--weights", "-1"], ["--weights", "9999999T"], ["--steps", "0"], ["--layers", "x"], ["--nonsense"], ["extra"], ["--weights", "64", "--layers", "9"], ["--flip-byte", "1T"], ["--kv", "64", "--steps", "9"]])  # fmt: skip
def test_bad_options_end_with_a_message(demo_dir, clean_env, bad):
    ran = subprocess.run([demo_dir / "decoder", *bad], env=clean_env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and ran.stderr.startswith(("decoder: ", f"{demo_dir}/decoder: ")), ran


def test_spilled_checksum_is_the_reference(decode):
    sizes = dict(weights="96M", kv="16M", compute="4M", layers=6, steps=2, seed=3)
    plain, ran = decode(vram="64M", **sizes)
    assert ran.returncode == 2 and plain["result"] == "oom"
    spilled, ran = decode(vram="64M", shim=True, env=FINE, **sizes)
    ran.ok()
    assert spilled_bytes(ran.stats) >= 48 * MIB
    reference, ran = decode(vram="1G", sim={"NAME": f"roomy-{os.getpid()}"}, **sizes)
    ran.ok()
    assert spilled["checksum"] == reference["checksum"]


def test_a_flipped_byte_shows_through_the_spill(decode):
    """The checksum under the shim is of what lies in both tiers, not of some cached answer."""
    sizes = dict(weights="96M", kv="8M", compute="4M", layers=6, steps=1, seed=3)
    how = dict(vram="64M", shim=True, env=FINE)
    checksums = set()
    for extra in ([], ["--flip-byte", "0"], ["--flip-byte", str(96 * MIB - 1)], ["--flip-byte", str(50 * MIB + 1)]):
        answer, ran = decode(*extra, **how, **sizes)
        ran.ok()
        checksums.add(answer["checksum"])
    assert len(checksums) == 4


# --- the committed PTX -------------------------------------------------------------------------------------------------------

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "demo"


def entries(ptx: str) -> dict[str, list[str]]:
    """Kernel name -> its parameter types, in order."""
    found = re.findall(r"\.visible \.entry (\w+)\(([^)]*)\)", ptx)
    return {name: re.findall(r"\.param (\.\w+)", parameters) for name, parameters in found}


def test_ptx_has_the_entries_of_the_companion(demo_dir):
    with_types = re.findall(r"^SIM_KERNEL\((\w+), (.*)\);", (SOURCE / "decoder_kernels.cu").read_text(), re.MULTILINE)
    assert with_types
    assert entries((demo_dir / "decoder.ptx").read_text()) == {name: [".u64"] * len(types.split(",")) for name, types in with_types}


def test_ptx_is_what_nvcc_makes_of_the_source(demo_dir, tmp_path):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("nvcc is not installed")
    made = tmp_path / "decoder.ptx"
    include = SOURCE.parent / "simgpu" / "include"
    ran = subprocess.run([nvcc, "-arch=compute_75", "-ptx", f"-I{include}", SOURCE / "decoder_kernels.cu", "-o", made], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    committed = demo_dir / "decoder.ptx"
    assert entries(made.read_text()) == entries(committed.read_text())
    ptxas = shutil.which("ptxas") or Path(os.path.realpath(nvcc)).with_name("ptxas")
    if Path(ptxas).exists():
        ran = subprocess.run([ptxas, "-arch=sm_75", committed, "-o", tmp_path / "decoder.cubin"], capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == 0, ran.stderr


# --- spillshim demo ------------------------------------------------------------------------------------------------------------


def demo(clean_env, tmp_path, *options: str):
    return subprocess.run([sys.executable, "-m", "spillshim", "demo", *options], env=clean_env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280)


def test_demo_json(clean_env, tmp_path, demo_dir):
    ran = demo(clean_env, tmp_path, "--json", "--sim", "--vram", "256M", "--steps", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    assert (answer["plain"], answer["spilled"], answer["reference"]) == ("oom", "ok", "ok")
    assert answer["checksum_equal"] is True
    assert answer["checksums"]["spilled"] == answer["checksums"]["reference"]
    assert answer["backend"] == "host-numa" and answer["device"]
    assert answer["plain_by"] == "no-shim" and answer["simulated"] is True
    assert (answer["vram"], answer["weights"]) == (256 * MIB, 384 * MIB)
    assert answer["spilled_bytes"] >= answer["weights"] + answer["kv"] + answer["compute"] - answer["vram"]
    assert not re.search(r"\x1b|\r", ran.stdout + ran.stderr), "no progress bar in a pipe"
    # The simulated clock counts the bytes that a step reads, by tier: at the default rates of link and VRAM.
    fast, slow = (median(answer["step_ms"][run]) for run in ("reference", "spilled"))
    # Weights and KV once, and with each 64 KiB of them 6 KiB of activations; these themselves by 16 layers, in and out.
    read = (answer["weights"] + answer["kv"]) * 70 / 64 + answer["compute"] * (1 + 2 * 16 + 0.5)
    assert fast == pytest.approx(read / (1000 << 30) * 1e3, rel=0.02)
    # What is in RAM comes over the link: weights once, activations by every layer. Which of them it is may be mended meanwhile.
    least, most = answer["spilled_bytes"] - answer["kv"] - answer["compute"], answer["spilled_bytes"] + 34 * answer["compute"]
    assert least / (25 << 30) * 1e3 <= slow <= most / (25 << 30) * 1e3
    assert slow > 5 * fast


def test_demo_table_labels_the_simulated_gpu(clean_env, tmp_path, demo_dir):
    ran = demo(clean_env, tmp_path, "--sim", "--vram", "128M", "--steps", "1", "--seed", "5")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "neither is a GPU's speed" in ran.stdout
    assert re.search(r"^plain\s.*\boom\b", ran.stdout, re.MULTILINE) and re.search(r"^spilled\s.*\bok\b", ran.stdout, re.MULTILINE)


def test_demo_on_a_driver_of_the_machine_uses_a_cap(clean_env, tmp_path, sim_dir, demo_dir):
    """The branch for real GPUs: a driver that the demo finds by itself (here a copy of the simulated one) is used under a
    VRAM limit, and "plain" is the shim with spilling off."""
    driver = tmp_path / "driver"
    shutil.copytree(sim_dir, driver)
    env = {**clean_env, "LD_LIBRARY_PATH": str(driver), "SIMGPU_VRAM": "4G", "SIMGPU_NAME": f"demo-{os.getpid()}"}
    ran = demo(env, tmp_path, "--json", "--gpu", "--vram", "256M", "--steps", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    assert (answer["plain"], answer["spilled"], answer["checksum_equal"]) == ("oom", "ok", True)
    assert answer["plain_by"] == "cap" and answer["simulated"] is False
    assert answer["vram_peak"] <= 256 * MIB and answer["spilled_bytes"] >= 128 * MIB


def test_demo_gpu_without_a_gpu(clean_env, tmp_path, demo_dir):
    ran = demo(clean_env, tmp_path, "--json", "--gpu")
    if ran.returncode == 0:
        pytest.skip("this machine has an NVIDIA GPU")
    assert ran.returncode == 1 and "no usable NVIDIA driver or device" in ran.stderr
    assert "no usable NVIDIA driver" in json.loads(ran.stdout.strip().splitlines()[-1])["reason"]


def test_demo_that_fits_is_a_failure_with_the_reason(clean_env, tmp_path, demo_dir):
    ran = demo(clean_env, tmp_path, "--json", "--sim", "--vram", "256M", "--ratio", "0.25", "--steps", "1")
    assert ran.returncode == 1
    answer = json.loads(ran.stdout.strip().splitlines()[-1])
    assert answer["plain"] == "ok" and "plain run ended with ok instead of oom" in answer["reason"]


def test_demo_refuses_what_does_not_fit_into_ram(clean_env, tmp_path, demo_dir):
    ran = demo(clean_env, tmp_path, "--sim", "--vram", "100T")
    assert ran.returncode == 1 and "not enough RAM for the simulated GPU" in ran.stderr, ran.stderr
