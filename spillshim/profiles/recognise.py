# SPDX-License-Identifier: Apache-2.0
"""Which profile is a program's. Called by run and doctor through spillshim.profiles.

Deterministic: of all profiles that recognise the program the strongest evidence wins (its name, then the script or module that
an interpreter is given, then what it is linked with, then what lies beside it, then what its source imports); among equals
the greater `priority`, then the user's before the system's before the package's, then the rule with more keys, then the name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from spillshim import program
from spillshim.errors import SpillshimError
from spillshim.profiles import load, source

if TYPE_CHECKING:
    from spillshim.profiles.model import Profile

VARIABLE = "SPILLSHIM_PROFILE"
# Kinds of evidence, weakest first.
_EVIDENCE = ("imports", "beside", "needs", "module", "script", "executable")


@dataclass(frozen=True)
class Choice:
    """A profile and why it was taken (`why` is for people)."""

    profile: Profile
    why: str


# Programs that start another one, given after their own options.
_LAUNCHERS = {"chrt", "env", "ionice", "nice", "nohup", "numactl", "prlimit", "setsid", "stdbuf", "taskset", "time", "timeout"}


def _launched(argv: Sequence[str], found: program.Program) -> tuple[Sequence[str], program.Program]:
    """The command that a launcher starts: its first word that names a program, as far as that shows without the launcher's
    own rules; `argv` itself where it is no launcher's."""
    while os.path.basename(argv[0]) in _LAUNCHERS:
        for at, word in enumerate(argv[1:], 1):
            if word.startswith("-") or "=" in word:
                continue
            try:
                argv, found = argv[at:], program.read(word)
                break
            except SpillshimError:
                continue
        else:
            break
    return argv, found


class _Subject:
    """The program as rules see it."""

    def __init__(self, argv: Sequence[str], found: program.Program) -> None:
        self.argv, self.found = _launched(argv, found)
        self.folder = Path.cwd()

    @property
    def arguments(self) -> Sequence[str]:
        """The program's own arguments: those of the script or module where an interpreter runs one."""
        return self.code.arguments if self.code else self.argv[1:]

    @cached_property
    def code(self) -> source.Code | None:
        """The Python code that runs, if it is Python: given to the interpreter, or a script whose first line names one."""
        chain = self.found.chain or [self.found.path]
        if source.is_python(chain[0].name):
            return source.of_command(self.argv[1:])
        if len(chain) > 1 and source.is_python(chain[-1].name):
            return source.Code(script=self.found.path, arguments=tuple(self.argv[1:]))
        return None

    @cached_property
    def imports(self) -> set[str]:
        return source.imports(self.code, self.folder) if self.code else set()

    @cached_property
    def names(self) -> list[str]:
        """What the program is called; a link's own name and its target's."""
        return list(dict.fromkeys([os.path.basename(self.argv[0]), self.found.path.name, self.found.path.resolve().name]))

    @property
    def script(self) -> str:
        return self.code.script.name if self.code and self.code.script else ""

    @cached_property
    def beside(self) -> Path:
        """The folder of the script, else of the module's package, else of the program."""
        code = self.code
        if code and code.script:
            path = self.folder / code.script
            return path if path.is_dir() else path.parent
        return self.folder if code else self.found.path.resolve().parent

    def has(self, kind: str, wanted: str) -> bool:
        """Whether one entry of a rule's list holds."""
        if kind == "executable":
            return any(fnmatchcase(name, wanted) for name in self.names)
        if kind == "script":
            return bool(self.script) and fnmatchcase(self.script, wanted)
        if kind == "module":
            module = (self.code.module if self.code else None) or ""
            return module == wanted or module.startswith(wanted + ".")
        if kind == "needs":
            return any(fnmatchcase(name, wanted) for name in self.found.needed)
        if kind == "beside":
            try:
                return any(self.beside.glob(wanted))
            except (OSError, ValueError):  # a folder that cannot be read, a pattern such as a**
                return False
        return any(name == wanted or name.startswith(wanted + ".") for name in self.imports)


def _fits(rule: Mapping[str, Sequence[str]], subject: _Subject) -> tuple[str, str] | None:
    """The strongest evidence that a rule found, as (kind, entry), or None where one of its keys disagrees."""
    strongest: tuple[str, str] | None = None
    for kind in reversed(_EVIDENCE):
        wanted = rule.get(kind)
        if not wanted:
            continue
        there = [one for one in wanted if subject.has(kind, one)]
        if not there or (kind == "beside" and len(there) < len(wanted)):
            return None
        strongest = strongest or (kind, there[0])
    return strongest


_WORDS = {
    "executable": "it is called {}",
    "script": "its script is {}",
    "module": "it runs the module {}",
    "needs": "it is linked with {}",
    "beside": "{} lies beside it",
    "imports": "it imports {}",
}


def explain(argv: Sequence[str], found: program.Program) -> Choice | None:
    """The profile that recognises the program, and by what; None if none does. Raises SpillshimError for a bad file."""
    subject, best = _Subject(argv, found), None
    for rules in load.all_rules():
        for rule in rules.tables:
            evidence = _fits(rule, subject)
            if evidence is None:
                continue
            keys = sum(bool(rule.get(kind)) for kind in _EVIDENCE)
            rank = (_EVIDENCE.index(evidence[0]), rules.priority, rules.level, keys)
            if best is None or rank > best[0]:  # names come sorted, so among equals the first one stays
                best = rank, rules, evidence
    return Choice(best[1].profile(), _WORDS[best[2][0]].format(best[2][1])) if best else None


def arguments(argv: Sequence[str], found: program.Program) -> list[str]:
    """`argv` without what belongs to a launcher (`nice`) or an interpreter: the program's name and its own arguments."""
    subject = _Subject(argv, found)
    return [subject.argv[0], *subject.arguments]


def choose(
    argv: Sequence[str], found: program.Program | None, env: Mapping[str, str], wanted: str | None = None
) -> Profile | None:
    """The profile for `argv`: the one `wanted` (--profile) or named by SPILLSHIM_PROFILE, else the one that recognises it.

    Names are a profile's, a file's path, or `none`; without a program (`found` is None) none is recognised. Raises
    SpillshimError for a name that does not exist and for a file that cannot be used.
    """
    wanted = wanted if wanted is not None else env.get(VARIABLE) or None
    if wanted == "none":
        return None
    if wanted is not None:
        return load.named(wanted).profile
    choice = explain(argv, found) if found else None
    return choice.profile if choice else None
