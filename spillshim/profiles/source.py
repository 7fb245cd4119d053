# SPDX-License-Identifier: Apache-2.0
"""Which Python code a command line runs, and what that code imports, read from its source. Called by recognise.py.

Rules: nothing is executed or imported; a file that cannot be read or parsed imports nothing, as far as this is concerned (the
program will say so itself); only modules that lie beside the script are followed, and not without end.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_MAX_FILES = 64
_MAX_BYTES = 2 << 20
_PYTHON = re.compile(r"(python|pypy)[0-9.]*(t|d)?|python[0-9.]*-dbg", re.ASCII)
_WITH_VALUE = "WXQ"  # interpreter options whose value may be the next word


@dataclass(frozen=True)
class Code:
    """What an interpreter is told to run: one of a script, a module (`-m`) or a text (`-c`); `arguments` are that code's own."""

    script: Path | None = None
    module: str | None = None
    text: str | None = None
    arguments: tuple[str, ...] = ()


def is_python(name: str) -> bool:
    """True for the file name of a Python interpreter."""
    return bool(_PYTHON.fullmatch(name))


def of_command(arguments: Sequence[str]) -> Code | None:
    """What `python ARGUMENTS` runs; None for a prompt, standard input or an option that only prints something."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            return None if word == "-" else Code(script=Path(word), arguments=tuple(words))
        if word.startswith("--"):
            if word == "--check-hash-based-pycs":
                next(words, None)
            continue
        for index, letter in enumerate(word[1:], 1):
            if letter not in _WITH_VALUE + "cm":
                continue
            value = word[index + 1 :] or next(words, None)
            if letter == "m":
                return Code(module=value, arguments=tuple(words)) if value else None
            if letter == "c":
                return Code(text=value, arguments=tuple(words)) if value else None
            break
    return None


def _file_of(script: Path) -> Path:
    return script / "__main__.py" if script.is_dir() else script


def _module_file(name: str, folder: Path) -> Path | None:
    """The source of a module that lies in `folder`."""
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        return None
    path = folder.joinpath(*name.split("."))
    for file in (path.with_suffix(".py") if path.name else path, path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _parsed(text: str | bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the program's source: its own interpreter will tell it
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    """Dotted names that are imported anywhere in `tree`, a module of `package` (for `from . import x`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".") if package else []
                kept = parents[: len(parents) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            if base:
                yield base
            for alias in node.names:
                if alias.name != "*":
                    yield f"{base}.{alias.name}" if base else alias.name


def _read(path: Path) -> ast.Module | None:
    try:
        if not path.is_file():  # a pipe (`python <(...)`) is the program's to read
            return None
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError:
        return None
    return _parsed(text) if len(text) <= _MAX_BYTES else None


def imports(code: Code, folder: Path) -> set[str]:
    """Dotted names that `code` imports, itself or through modules beside it; `folder` is the current one.

    A name stays even if no such module exists: `from torch import nn` gives torch and torch.nn.
    """
    found: set[str] = set()
    waiting: list[tuple[ast.Module, str]] = []  # a parsed file and its package
    seen: set[Path] = set()

    def look(path: Path, package: str) -> None:
        if path in seen or len(seen) >= _MAX_FILES:
            return
        seen.add(path)
        tree = _read(path)
        if tree:
            waiting.append((tree, package))

    if code.text is not None:
        tree = _parsed(code.text)
        if tree:
            waiting.append((tree, ""))
    elif code.script is not None:
        script = _file_of(folder / code.script)
        folder = script.parent
        look(script, "")
    elif code.module is not None:
        file = _module_file(code.module, folder)
        if file and file.name == "__init__.py":
            look(file, code.module)
            file = file.with_name("__main__.py")
            look(file, code.module)
        elif file:
            look(file, code.module.rpartition(".")[0])
    while waiting:
        tree, package = waiting.pop(0)
        for name in sorted(set(_names(tree, package)) - found):
            found.add(name)
            parts = name.split(".")
            for module in [".".join(parts[: count + 1]) for count in range(len(parts))]:  # its packages run first
                file = _module_file(module, folder)
                if file:
                    look(file, module if file.name == "__init__.py" else module.rpartition(".")[0])
    return found
