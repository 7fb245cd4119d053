# SPDX-License-Identifier: Apache-2.0
"""Replays the fuzzing corpus of the readers of device code (tests/fuzz), with address and undefined-behaviour sanitizers.

How the corpus was found and is extended: the opening comment of tests/fuzz/image_fuzz.c.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FUZZ = REPOSITORY / "tests" / "fuzz"
SIMGPU = REPOSITORY / "csrc" / "simgpu"
READERS = ["code_image.c", "fatbin.c", "elf.c", "ptx.c", "compress.c"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def corpus():
    files = sorted(path for path in (FUZZ / "corpus").iterdir() if path.is_file())
    assert len(files) > 100
    return files


@pytest.fixture(scope="session")
def image_fuzz(c_program, cuda_include, request):
    generated = request.config.cache.mkdir("simgpu_generated")
    subprocess.run([sys.executable, SIMGPU / "gen_stubs.py", cuda_include, generated], check=True, timeout=120)
    sources = [str(SIMGPU / name) for name in READERS]
    flags = ["-std=gnu11", f"-I{SIMGPU}", f"-I{generated}", *SANITIZE, *sources]
    return c_program(FUZZ / "image_fuzz.c", link_libcuda=False, flags=flags)


def run(program, env, *arguments, timeout=120):
    env = {**env, "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    ran = subprocess.run(
        [str(program), *map(str, arguments)], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    return ran.stdout


def test_every_input_of_the_corpus(image_fuzz, clean_env, corpus):
    assert run(image_fuzz, clean_env, *corpus) == f"{len(corpus)} files, 0 mutations\n"


def mutate(image_fuzz, clean_env, corpus, seed, count):
    print(f"seed {seed}, {count} mutations")
    out = run(image_fuzz, clean_env, "--mutate", seed, count, *corpus, timeout=300)
    assert out == f"{len(corpus)} files, {count} mutations\n"


def test_mutations(image_fuzz, clean_env, corpus):
    mutate(image_fuzz, clean_env, corpus, 20260401, 3000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_many_mutations(image_fuzz, clean_env, corpus, seed):
    mutate(image_fuzz, clean_env, corpus, seed, 100_000)


def test_the_corpus_reaches_every_reader(image_fuzz, clean_env, corpus):
    """Without seeds of each kind the replay would prove little."""
    heads = [path.read_bytes()[:4] for path in corpus]
    assert sum(head == b"\x7fELF" for head in heads) > 10
    assert sum(head == b"\x50\xed\x55\xba" for head in heads) > 10
    assert sum(b".version" in path.read_bytes() for path in corpus) > 10
