# SPDX-License-Identifier: Apache-2.0
"""Options that run, env and doctor share, and the part after `--`. Turns them into launch.Settings; sets nothing itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from spillshim import cards, simulation, sizes
from spillshim.launch import Settings

F = TypeVar("F", bound=Callable[..., Any])
_TEXT_MAX = 255  # bytes; the library keeps its settings in fixed buffers
_FIELDS = "spillshim.settings"


class SizeType(click.ParamType):
    """A size or a percentage, checked here and handed on as written."""

    name = "size"

    def __init__(self, percent: bool = True, minimum: int = 0) -> None:
        self.percent = percent
        self.minimum = minimum

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "SIZE|%" if self.percent else "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> sizes.Amount:
        if isinstance(value, sizes.Amount):
            return value
        try:
            return sizes.parse(value, percent=self.percent, minimum=self.minimum)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SimType(click.ParamType):
    """KEY=VALUE,... for the simulated driver."""

    name = "machine"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "[KEY=VALUE,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        if isinstance(value, dict):
            return value
        try:
            return simulation.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class OutputFileType(click.ParamType):
    """A file that the program will append to: made absolute (the program may change folder), its folder must be writable."""

    name = "file"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = os.path.abspath(value)
        folder = os.path.dirname(path)
        if len(os.fsencode(path)) > _TEXT_MAX:
            self.fail(f"{path!r} is longer than {_TEXT_MAX} bytes", param, ctx)
        if os.path.isdir(path):
            self.fail(f"{path!r} is a folder", param, ctx)
        if not os.path.isdir(folder):
            self.fail(f"the folder {folder!r} does not exist", param, ctx)
        if not os.access(path if os.path.exists(path) else folder, os.W_OK):
            self.fail(f"{path!r} cannot be written", param, ctx)
        return path


# option, SPILLSHIM_ variable, click arguments
_OPTIONS: list[tuple[str, str, dict[str, Any]]] = [
    (
        "--vram-limit",
        "VRAM_LIMIT",
        {
            "type": SizeType(minimum=2 * sizes.MIB),
            "help": "Most VRAM the program (with its children) may use on a device.",
        },
    ),
    (
        "--host-limit",
        "HOST_LIMIT",
        {"type": SizeType(), "help": "Most RAM that all your programs under spillshim may pin together."},
    ),
    (
        "--headroom",
        "HEADROOM",
        {"type": SizeType(), "help": "VRAM kept free for the driver. [default: 3%, at least 512M, at most 1/8]"},
    ),
    (
        "--holdback",
        "HOLDBACK",
        {
            "type": SizeType(),
            "help": "VRAM kept back for late allocations from a region above half of VRAM. "
            "[default: 15%, if that region has to spill anyway]",
        },
    ),
    (
        "--managed-min",
        "MANAGED_MIN",
        {"type": SizeType(percent=False), "help": "Smaller allocations are left to the driver. [default: 16M]"},
    ),
    (
        "--report",
        "REPORT",
        {
            "type": click.Choice(["vram", "virtual"]),
            "help": "What free and total memory the program is told: VRAM's, or VRAM and RAM together. [default: vram]",
        },
    ),
    (
        "--report-limit",
        "REPORT_LIMIT",
        {
            "type": SizeType(),
            "help": "With --report virtual: the most that is told beyond VRAM, in % of it or as a size. [default: all RAM that may be pinned]",
        },
    ),
    (
        "--oom",
        "OOM",
        {
            "type": click.Choice(["never", "soft"]),
            "help": "soft: answer out-of-memory once before spilling, so that a caching allocator gives back its cache. [default: never]",
        },
    ),
    (
        "--moves",
        "MOVES",
        {
            "type": click.Choice(["auto", "order", "off"]),
            "help": "Whether placement is mended by itself, only by `spillshim demote` and `promote`, or never. [default: auto]",
        },
    ),
    (
        "--no-spill",
        "SPILL",
        {"is_flag": True, "flag_value": "0", "help": "Never use RAM (to see how the program ends without it)."},
    ),
    (
        "--backend",
        "BACKEND",
        {
            "type": click.Choice(["auto", "host-numa", "host", "hostalloc", "none"]),
            "help": "How RAM is given to the GPU. [default: auto, found out by a probe]",
        },
    ),
    (
        "--log",
        "LOG",
        {
            "type": click.Choice(["off", "error", "warn", "info", "debug"]),
            "help": "How much the shim writes to stderr. [default: warn]",
        },
    ),
    (
        "--log-file",
        "LOG_FILE",
        {
            "type": OutputFileType(),
            "help": "Write those lines to FILE instead; %h becomes the host's name, %p the process id.",
        },
    ),
    (
        "--stats",
        "STATS",
        {"type": OutputFileType(), "help": "Append one JSON object per process that used CUDA to FILE when it ends."},
    ),
    ("--quiet", "QUIET", {"is_flag": True, "flag_value": "1", "help": "No lines that only inform: about the profile, and at the program's end."}),
]


def sim_option(function: F) -> F:
    """Add --sim (with or without a value) as the keyword argument `sim`: {"SIMGPU_...": value} or None."""
    return click.option(
        "--sim",
        type=SimType(),
        is_flag=False,
        flag_value="",
        default=None,
        help="Use the simulated GPU that comes with spillshim, e.g. vram=8G,ram=16G,link=25G. "
        "Each SIMGPU_* variable that `spillshim env --help-vars` explains is a key.",
    )(function)


def shim_options(function: F) -> F:
    """Add every option that sets a SPILLSHIM_ variable, and --sim."""
    return setting_options(sim_option(function))


def setting_options(function: F, but: tuple[str, ...] = ()) -> F:
    """Add every option that sets a SPILLSHIM_ variable, `but` for those. The command gets them through settings(ctx)."""

    def remember(variable: str) -> Callable[[click.Context, click.Parameter, Any], None]:
        def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
            if value is not None and value is not False:
                text = value.text if isinstance(value, sizes.Amount) else str(value)
                ctx.meta.setdefault(_FIELDS, {})[f"SPILLSHIM_{variable}"] = text
                if variable == "VRAM_LIMIT":
                    ctx.meta["vram_limit"] = value

        return callback

    for name, variable, arguments in reversed([option for option in _OPTIONS if option[0] not in but]):
        function = click.option(name, callback=remember(variable), expose_value=False, default=None, **arguments)(
            function
        )
    return function


def profile_option(function: F) -> F:
    """Add --profile as the keyword argument `profile`: a name, `none`, a file's path, or None (the program decides)."""
    return click.option(
        "--profile",
        metavar="NAME|none|FILE",
        help="Settings for a known application, instead of those of the profile that recognises the program "
        "(`spillshim profiles` lists them). [default: SPILLSHIM_PROFILE, else recognised]",
    )(function)


def settings(ctx: click.Context, sim: dict[str, str] | None) -> Settings:
    """What the options of this call ask for. Ends with a usage error when a VRAM limit exceeds the card."""
    limit: sizes.Amount | None = ctx.meta.get("vram_limit")
    if limit is not None and limit.size is not None:
        if sim is not None:
            known, what = simulation.vram_sizes(sim, os.environ), "the simulated card"
        else:
            known, what = cards.vram_sizes(), "the largest card"
        if known and limit.size > max(known):
            raise click.BadParameter(
                f"{limit.text!r} is {sizes.human(limit.size)}, more than the {sizes.human(max(known))} of VRAM that {what} has: "
                "a limit can only lower it. What does not fit spills into RAM by itself (its limit is --host-limit).",
                ctx=ctx,
                param_hint="'--vram-limit'",
            )
    return Settings(dict(ctx.meta.get(_FIELDS, {})), sim)


class CommandAfterDashes(click.Command):
    """A verb that is followed by `-- PROGRAM [ARGS]`, kept apart from its own options in ctx.meta["command"] (None: no --)."""

    program_required = True
    options_anywhere = False  # True: after an argument of the verb's own, too

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, command = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, None)
        ctx.meta["command"] = command
        ctx.allow_extra_args = True
        ctx.allow_interspersed_args = self.options_anywhere
        super().parse_args(ctx, own)
        if ctx.resilient_parsing:
            return []
        extra, verb = list(ctx.args), ctx.command_path
        if extra and command is None:
            raise click.UsageError(f"'--' is missing before the program: {verb} [OPTIONS] -- {' '.join(extra)}", ctx)
        if extra:
            raise click.UsageError(f"unexpected {' '.join(extra)!r} before '--': only options stand there", ctx)
        if command is None and self.program_required:
            raise click.UsageError(f"no program given: {verb} [OPTIONS] -- PROGRAM [ARGS]", ctx)
        if command == []:
            raise click.UsageError(f"no program after '--': {verb} [OPTIONS] -- PROGRAM [ARGS]", ctx)
        return []

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        tail = "-- PROGRAM [ARGS]..."
        return [*super().collect_usage_pieces(ctx), tail if self.program_required else f"[{tail}]"]


class OptionalCommandAfterDashes(CommandAfterDashes):
    """The same, with `-- PROGRAM` left out at will."""

    program_required = False


def console(stderr: bool = False) -> Any:
    """A rich console as wide as the terminal; plain and so wide that no table is cut when there is none (or with NO_COLOR plain)."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 1000, highlight=False)


def show(renderable: Any, stderr: bool = False) -> None:
    """Print a rich renderable: fitted to the terminal; in a pipe without the trailing blanks of a wide table."""
    out = console(stderr)
    if out.is_terminal:
        out.print(renderable)
        return
    with out.capture() as captured:
        out.print(renderable)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), err=stderr)
