# SPDX-License-Identifier: Apache-2.0
"""What a profile file may hold. The descriptions below are the documentation (`spillshim profiles --schema`).

Called by load.py; check.py turns what pydantic says of a bad file into one error with the places. Rules: unknown keys and values
of another type are refused; sizes and choices are the command line's; a variable is proposed here and set by nobody here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from spillshim import sizes

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_TEXT_MAX = 255  # bytes; the library keeps a list of names in a fixed buffer


def _size(text: str) -> str:
    sizes.parse(text)
    return text


def _plain_size(text: str) -> str:
    sizes.parse(text, percent=False)
    return text


def _name(text: str) -> str:
    if not text or any(letter in text for letter in ",/\0") or text != text.strip():
        raise ValueError(f"{text!r} is not the name of a file: no '/', no ',', no blanks around it")
    return text


def _beside(text: str) -> str:
    if not text.strip("./") or text.startswith("/") or "\0" in text:
        raise ValueError(f"{text!r} is no path beside a file: it must be relative, and not the folder itself")
    return text


def _condition(text: str) -> str:
    if not re.fullmatch(r"--?[A-Za-z0-9][\w.-]*|[A-Za-z_]\w*(=.*)?", text, re.ASCII | re.DOTALL):
        raise ValueError(f"{text!r} is no argument (-x, --name) and no variable (NAME, NAME=VALUE)")
    return text


T = TypeVar("T")
PLAIN, WHEN = "plain", "when"  # which form a value has, in the places that pydantic tells
Size = Annotated[str, AfterValidator(_size)]
PlainSize = Annotated[str, AfterValidator(_plain_size)]
Name = Annotated[str, AfterValidator(_name)]
Beside = Annotated[str, AfterValidator(_beside)]
Condition = Annotated[str, AfterValidator(_condition)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class When(_Table, Generic[T]):
    """A value that depends on what the user has given."""

    value: T = Field(description="the value, as it would stand without a condition")
    given: list[Condition] = Field([], description="apply only if one of these is there: an argument of the program (begins "
        "with '-'), an environment variable, or VARIABLE=VALUE with * and ?")
    absent: list[Condition] = Field([], description="apply only if none of these is there")

    @model_validator(mode="after")
    def _conditions(self) -> When[T]:
        if not self.given and not self.absent:
            raise ValueError("a table needs 'given' or 'absent'; without a condition write the value alone")
        return self

    def holds(self, argv: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether the value applies to a program called with `argv` in `env`."""
        return (not self.given or any(_there(one, argv, env) for one in self.given)) and not any(
            _there(one, argv, env) for one in self.absent
        )


def _there(condition: str, argv: Sequence[str], env: Mapping[str, str]) -> bool:
    if condition.startswith("-"):
        return any(word == condition or word.startswith(condition + "=") for word in argv[1:])
    name, equals, pattern = condition.partition("=")
    return name in env and (not equals or fnmatchcase(env[name], pattern))


def _or_when(kind: Any) -> Any:
    """`kind`, or a table with a condition and such a value: told apart beforehand, so that an error is about the one meant."""
    return Annotated[
        Annotated[kind, Tag(PLAIN)] | Annotated[When[kind], Tag(WHEN)],
        Discriminator(lambda value: WHEN if isinstance(value, (dict, When)) else PLAIN),
    ]


class Match(_Table):
    """One way to recognise the program. All keys that are given must agree; of a key's list one entry is enough."""

    executable: list[Name] = Field([], description="file name of the program as it is called, with * and ?")
    script: list[Name] = Field([], description="file name of the script that an interpreter is given, with * and ?")
    module: list[str] = Field([], description="Python module run with -m; one of its submodules counts, too")
    imports: list[str] = Field(
        [],
        description="Python module that the script imports (or a submodule of it), itself or through modules beside it; "
        "read from its source, nothing is executed",
    )
    needs: list[Name] = Field([], description="library that the program is linked with (DT_NEEDED), with * and ?")
    beside: list[Beside] = Field(
        [], description="paths that must all exist beside the script or else the executable, with * and ?"
    )

    @model_validator(mode="after")
    def _something(self) -> Match:
        if not any(getattr(self, key) for key in type(self).model_fields):
            raise ValueError("an empty [[match]] would match every program: give one of " + ", ".join(type(self).model_fields))
        return self


class Shim(_Table):
    """Settings of the shim. Each is the variable SPILLSHIM_<KEY>, and is not applied where the user has set that."""

    report: _or_when(Literal["vram", "virtual"]) | None = Field(  # type: ignore[valid-type]
        None, description="what free and total memory the program is told: VRAM, or VRAM and RAM together"
    )
    report_limit: _or_when(Size) | None = Field(  # type: ignore[valid-type]
        None,
        description='with report = "virtual": the most that is told beyond VRAM; % of VRAM. '
        "Not applied if the user has set SPILLSHIM_REPORT",
    )
    oom: _or_when(Literal["never", "soft"]) | None = Field(  # type: ignore[valid-type]
        None, description="soft: answer out-of-memory once before spilling, so that the program gives back its cache"
    )
    managed_min: _or_when(PlainSize) | None = Field(  # type: ignore[valid-type]
        None, description="smaller allocations are left to the driver"
    )
    headroom: _or_when(Size) | None = Field(  # type: ignore[valid-type]
        None, description="VRAM kept free for the driver; % of VRAM"
    )
    holdback: _or_when(Size) | None = Field(  # type: ignore[valid-type]
        None, description="VRAM kept back for late allocations; % of VRAM"
    )
    moves: _or_when(Literal["auto", "order", "off"]) | None = Field(  # type: ignore[valid-type]
        None, description="whether placement is mended while the program runs"
    )
    disable: _or_when(bool) | None = Field(  # type: ignore[valid-type]
        None, description="true: step aside, the shim does nothing in the program and in what it starts"
    )
    aside: list[Name] | None = Field(
        None,
        description="file names of libraries (as far as a '.' or '-') that manage memory themselves: once one is "
        "loaded the shim steps aside in that process, nothing spills from then on",
    )

    @model_validator(mode="after")
    def _fits(self) -> Shim:
        if self.aside is not None and len(",".join(self.aside).encode()) > _TEXT_MAX:
            raise ValueError(f"the names in 'aside' are longer than {_TEXT_MAX} bytes together")
        return self


class Settings(_Table):
    """A profile file, `NAME.toml`."""

    summary: str = Field(description="one line: which programs, and what is done for them")
    extends: str | None = Field(
        None,
        description="name of another profile whose [shim], [environment] and model this one starts from; a file that extends "
        "its own name starts from the one that it overrides",
    )
    priority: int = Field(
        0, description="decides between profiles that recognise a program by evidence of the same kind; the greater wins"
    )
    match: list[Match] = Field(
        [], description="ways to recognise the program (not inherited); without any, only --profile NAME chooses it"
    )
    shim: Shim = Field(default_factory=lambda: Shim.model_validate({}), description="settings of the shim")
    environment: dict[str, _or_when(str)] = Field(  # type: ignore[valid-type]
        {}, description="variables of the program itself; set only where the user has not"
    )
    model: list[Condition] | None = Field(
        None,
        description="arguments (and environment variables) that name the model file, so that what is remembered of a run is "
        "kept apart for each model",
    )
    sizes: list[Condition] | None = Field(
        None,
        description="arguments (and environment variables) beside the model on which the sizes of allocations depend, such as the "
        "context's length; with other values the program starts as if for the first time",
    )
    source: list[str] = Field([], description="where the facts behind the settings come from")

    @model_validator(mode="after")
    def _names(self) -> Settings:
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment.{name}: not the name of an environment variable")
            if name.startswith(("SPILLSHIM_", "SIMGPU_", "LD_")):
                where = "a key of [shim] is for that" if name.startswith("SPILLSHIM_") else "`spillshim run` sets these itself"
                raise ValueError(f"environment.{name}: {where}")
        return self


class Profile:
    """A profile with all that it extends. `file` is its path."""

    def __init__(self, name: str, file: str, settings: Settings, base: Profile | None = None) -> None:
        self.name, self.file, self.settings, self.base = name, file, settings, base
        self.model: list[str] = settings.model if settings.model is not None else (base.model if base else [])
        self.sizes: list[str] = settings.sizes if settings.sizes is not None else (base.sizes if base else [])

    def lineage(self) -> Iterator[Profile]:
        """This profile, then what it extends, and so on."""
        one: Profile | None = self
        while one:
            yield one
            one = one.base

    def own_variables(self) -> dict[str, Any]:
        """What this file itself sets: a variable's value, or a When."""
        shim = {key: getattr(self.settings.shim, key) for key in Shim.model_fields}
        made = {f"SPILLSHIM_{key.upper()}": value for key, value in shim.items() if value is not None}
        return {**made, **self.settings.environment}

    def settings_by_variable(self) -> dict[str, Any]:
        """The same with what it extends, the shim's settings first."""
        made: dict[str, Any] = {}
        for one in reversed(list(self.lineage())):
            made.update(one.own_variables())
        return dict(sorted(made.items(), key=lambda item: not item[0].startswith("SPILLSHIM_")))

    def proposed(self, argv: Sequence[str] = (), env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Every variable that holds for a program called with `argv` in `env`, whether or not the user has it already.

        `argv` as profiles.arguments() gives it: an interpreter's own `-c` is no context.
        """
        made: dict[str, str] = {}
        for name, value in self.settings_by_variable().items():
            if not isinstance(value, When):
                made[name] = as_text(value)
            elif value.holds(argv, env or {}):
                made[name] = as_text(value.value)
        if made.get("SPILLSHIM_REPORT") != "virtual":
            made.pop("SPILLSHIM_REPORT_LIMIT", None)
        return made

    def variables(self, env: Mapping[str, str], argv: Sequence[str] = ()) -> dict[str, str]:
        """The variables to add to `env`, the user's own (with what the command line has set): only ones that it lacks."""
        made = {name: value for name, value in self.proposed(argv, env).items() if name not in env}
        if "SPILLSHIM_REPORT" in env:
            made.pop("SPILLSHIM_REPORT_LIMIT", None)  # it belongs to the report that the profile would have chosen
        return made

    def model_file(self, argv: Sequence[str], env: Mapping[str, str]) -> str | None:
        """The model that the program was given, as written; None where it is not told by `model`'s arguments."""
        arguments = [name for name in self.model if name.startswith("-")]
        found: str | None = None
        for index, word in enumerate(argv[1:], 1):
            for name in arguments:
                if word == name and index + 1 < len(argv):
                    found = argv[index + 1]
                elif name.startswith("--") and word.startswith(name + "="):
                    found = word[len(name) + 1 :]
        if found is None:
            found = next((env[name] for name in self.model if not name.startswith("-") and name in env), None)
        return found

    def sizes_given(self, argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
        """What `sizes` names, as it was given: `-c`, `8192`, `LLAMA_ARG_BATCH=512`."""
        found: list[str] = []
        for index, word in enumerate(argv[1:], 1):
            if word in self.sizes:
                found += argv[index : index + 2]
            elif word.partition("=")[0] in self.sizes:
                found.append(word)
        return found + [f"{name}={env[name]}" for name in self.sizes if not name.startswith("-") and name in env]


def as_text(value: Any) -> str:
    """A setting as the text of its variable."""
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(value) if isinstance(value, list) else str(value)
