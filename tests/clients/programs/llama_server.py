# SPDX-License-Identifier: Apache-2.0
"""Stands where llama-server stands, on a prebuilt libllama: `llama_server.py FOLDER [--list-devices | --model FILE [-c N]]`.

FOLDER holds the libraries of the wheel cyllama-cuda12, which has no server of its own. What is llama.cpp's here is everything
that counts: the list of devices, the fit, the loading, the contexts and every line on stderr. What is this program's is the
order in which llama-server calls them (common_init_result in common/common.cpp of llama.cpp b8833), with the options that
llama-server takes from the environment: LLAMA_ARG_FIT, _FIT_TARGET (MiB), _N_GPU_LAYERS, _CTX_SIZE; and GGML_BACKEND_PATH, by
which ollama names the CUDA backend. Without a model it says its system_info and waits to be killed. After loading it reads
commands from stdin, a line each, and answers each with one JSON object on stdout: `decode N`, `memory` (memory_answers.py),
`end`. Other options of llama-server are ignored. Exit code 3: the model or its context could not be made.

The structs are those of include/llama.h of that release; another release may have others, so the wheel's version is pinned.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import memory_answers

MIB = 1 << 20
DEBUG = 1  # of ggml_log_level: what llama-server passes on at the verbosity that ollama gives it
CPU_DEVICE = 0
AUTO, ALL = -1, -2  # of n_gpu_layers
LEAST_CONTEXT = 4096  # what --fit may shrink an unset context to


class Override(ctypes.Structure):
    _fields_ = [("pattern", c_char_p), ("type", c_void_p)]


class ModelParams(ctypes.Structure):
    _fields_ = [
        ("devices", c_void_p), ("overrides", POINTER(Override)), ("n_gpu_layers", c_int32), ("split_mode", c_int32),
        ("main_gpu", c_int32), ("tensor_split", POINTER(c_float)), ("progress", c_void_p), ("progress_data", c_void_p),
        ("kv_overrides", c_void_p), ("vocab_only", c_bool), ("use_mmap", c_bool), ("use_direct_io", c_bool), ("use_mlock", c_bool),
        ("check_tensors", c_bool), ("use_extra_bufts", c_bool), ("no_host", c_bool), ("no_alloc", c_bool),
    ]  # fmt: skip


class ContextParams(ctypes.Structure):
    _fields_ = [
        ("n_ctx", c_uint32), ("n_batch", c_uint32), ("n_ubatch", c_uint32), ("n_seq_max", c_uint32), ("n_threads", c_int32),
        ("n_threads_batch", c_int32), ("rope_scaling", c_int32), ("pooling", c_int32), ("attention", c_int32),
        ("flash_attn", c_int32), ("rope_freq_base", c_float), ("rope_freq_scale", c_float), ("yarn", c_float * 4),
        ("yarn_orig_ctx", c_uint32), ("defrag_thold", c_float), ("eval", c_void_p), ("eval_data", c_void_p), ("type_k", c_int32),
        ("type_v", c_int32), ("abort", c_void_p), ("abort_data", c_void_p), ("embeddings", c_bool), ("offload_kqv", c_bool),
        ("no_perf", c_bool), ("op_offload", c_bool), ("swa_full", c_bool), ("kv_unified", c_bool), ("samplers", c_void_p),
        ("n_samplers", c_size_t),
    ]  # fmt: skip


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32), ("token", POINTER(c_int32)), ("embd", POINTER(c_float)), ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)), ("seq_id", POINTER(POINTER(c_int32))), ("logits", POINTER(ctypes.c_int8)),
    ]  # fmt: skip


def function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    made = getattr(library, name)
    made.restype, made.argtypes = result, list(arguments)
    return made


class Llama:
    """The libraries, with what is called of them. The backends are loaded by path, as ollama has it: nothing links them."""

    def __init__(self, folder: Path) -> None:
        def library(pattern: str) -> str:
            return str(next(folder.glob(pattern)))

        base = ctypes.CDLL(library("libggml-base-*.so*"), mode=ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(library("libggml-[!bc]*.so*"), mode=ctypes.RTLD_GLOBAL)
        llama = ctypes.CDLL(library("libllama-*.so*"))
        load = function(ggml, "ggml_backend_load", c_void_p, c_char_p)
        for backend in (os.environ.get("GGML_BACKEND_PATH") or library("libggml-cuda-*.so"), library("libggml-cpu-*.so")):
            if not load(backend.encode()):
                sys.exit(f"{backend} is no backend")
        self.device_count = function(ggml, "ggml_backend_dev_count", c_size_t)
        self.device = function(ggml, "ggml_backend_dev_get", c_void_p, c_size_t)
        self.device_type = function(base, "ggml_backend_dev_type", c_int32, c_void_p)
        self.device_name = function(base, "ggml_backend_dev_name", c_char_p, c_void_p)
        self.device_text = function(base, "ggml_backend_dev_description", c_char_p, c_void_p)
        self.device_memory = function(base, "ggml_backend_dev_memory", None, c_void_p, POINTER(c_size_t), POINTER(c_size_t))
        self.start = function(llama, "llama_backend_init", None)
        self.max_devices = function(llama, "llama_max_devices", c_size_t)
        self.max_overrides = function(llama, "llama_max_tensor_buft_overrides", c_size_t)
        self.model_defaults = function(llama, "llama_model_default_params", ModelParams)
        self.context_defaults = function(llama, "llama_context_default_params", ContextParams)
        self.fit = function(
            llama, "llama_params_fit", c_int32, c_char_p, POINTER(ModelParams), POINTER(ContextParams), POINTER(c_float),
            POINTER(Override), POINTER(c_size_t), c_uint32, c_int32,
        )  # fmt: skip
        self.load_model = function(llama, "llama_model_load_from_file", c_void_p, c_char_p, ModelParams)
        self.free_model = function(llama, "llama_model_free", None, c_void_p)
        self.init_context = function(llama, "llama_init_from_model", c_void_p, c_void_p, ContextParams)
        self.free_context = function(llama, "llama_free", None, c_void_p)
        self.context_length = function(llama, "llama_n_ctx", c_uint32, c_void_p)
        self.system_info = function(llama, "llama_print_system_info", c_char_p)
        self.batch_of = function(llama, "llama_batch_get_one", Batch, POINTER(c_int32), c_int32)
        self.decode = function(llama, "llama_decode", c_int32, c_void_p, Batch)


def list_devices(llama: Llama) -> None:
    """The text of llama-server --list-devices (common/arg.cpp), which ollama parses."""
    print("Available devices:")
    for index in range(llama.device_count()):
        device = llama.device(index)
        if llama.device_type(device) == CPU_DEVICE:
            continue
        free, total = c_size_t(), c_size_t()
        llama.device_memory(device, free, total)
        name, text = llama.device_name(device).decode(), llama.device_text(device).decode()
        print(f"  {name}: {text} ({total.value // MIB} MiB, {free.value // MIB} MiB free)")


def option(name: str, otherwise: str) -> str:
    return os.environ.get(f"LLAMA_ARG_{name}", otherwise)


def load(llama: Llama, path: str, context: str) -> tuple[int, int]:
    """Model and context, made as llama-server makes them; ends the program with 3 where one could not be."""
    model_wish, context_wish = llama.model_defaults(), llama.context_defaults()
    layers = option("N_GPU_LAYERS", "auto")
    model_wish.n_gpu_layers = {"auto": AUTO, "all": ALL}.get(layers) or int(layers)
    context_wish.n_ctx = int(context or 0)
    context_wish.swa_full = False  # common_context_params_to_llama: a sliding window's cache holds the window
    context_wish.n_threads = context_wish.n_threads_batch = 1
    overrides = (Override * llama.max_overrides())()
    shares = (c_float * llama.max_devices())()
    if option("FIT", "on") not in ("off", "0", "false", "disabled"):
        margins = (c_size_t * llama.max_devices())(*[int(option("FIT_TARGET", "1024")) * MIB] * llama.max_devices())
        least = (1 << 32) - 1 if context == "0" else LEAST_CONTEXT  # a full context that was asked for is kept
        llama.fit(path.encode(), model_wish, context_wish, shares, overrides, margins, least, DEBUG)
    model = llama.load_model(path.encode(), model_wish)
    if not model:
        sys.exit(3)
    made = llama.init_context(model, context_wish)
    if not made:
        sys.exit(3)
    return model, made


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--list-devices", action="store_true")
    options.add_argument("--model")
    options.add_argument("-c", dest="context", default=option("CTX_SIZE", ""))
    given, _ = options.parse_known_args()
    llama = Llama(given.folder)
    if given.list_devices:
        list_devices(llama)
        return
    llama.start()
    print(f"system_info: {llama.system_info().decode()}", file=sys.stderr, flush=True)
    if not given.model:
        signal.pause()
    model, context = load(llama, given.model, given.context)
    token = (c_int32 * 1)(1)

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), flush=True)

    answer(context=llama.context_length(context))
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "end":
            break
        if command == "memory":
            answer(**memory_answers.ask())
            continue
        results = [llama.decode(context, llama.batch_of(token, 1)) for _ in range(int(arguments[0]))]
        answer(decoded=results.count(0), failed=len(results) - results.count(0))
    llama.free_context(context)
    llama.free_model(model)


if __name__ == "__main__":
    main()
