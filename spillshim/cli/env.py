# SPDX-License-Identifier: Apache-2.0
"""`spillshim env`: the environment that `run` would give a program, for a shell, a unit file or another launcher."""

from __future__ import annotations

import json
import shlex

import click

from spillshim import launch, native, profiles, simulation
from spillshim.cli.options import profile_option, settings, shim_options, show
from spillshim.errors import SpillshimError


def documented_variables() -> list[dict[str, str]]:
    """Name, type, default and help of each SPILLSHIM_* variable, from the table that the library itself was built from.

    Raises SpillshimError where this installation's cffi module does not load.
    """
    module = native.abi()
    if module is None:
        raise SpillshimError(
            "the table of variables is not available: the module spillshim._abi does not load",
            "Reinstall spillshim with the Python that runs it (pip install .).",
        )
    lib, text = module.lib, lambda pointer: module.ffi.string(pointer).decode()
    return [
        {
            "name": text(lib.spill_env_name(index)),
            "type": text(lib.spill_env_type(index)).lower(),
            "default": text(lib.spill_env_default(index)),
            "help": text(lib.spill_env_help(index)),
        }
        for index in range(lib.spill_env_count())
    ]


def _simulated_variables() -> list[dict[str, str]]:
    """The same for the simulated driver's variables, the keys of --sim."""
    return [
        {"name": f"SIMGPU_{name.upper()}", "type": key.values or key.kind, "default": key.default, "help": key.help}
        for name, key in simulation.keys().items()
    ]


def _print_variables(as_json: bool) -> None:
    rows = documented_variables() + _simulated_variables()
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("variable", "type", "default", "meaning"):
        table.add_column(title, no_wrap=title != "meaning")
    for row in rows:
        table.add_row(row["name"], row["type"], row["default"] or "-", _escape(row["help"]))
    show(table)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@click.command("env")
@shim_options
@profile_option
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object (with --help-vars a list) instead of shell lines."
)
@click.option(
    "--help-vars",
    is_flag=True,
    help="List the environment variables that the library and the simulated GPU read, with their defaults.",

)
@click.pass_context
def command(ctx: click.Context, sim: dict[str, str] | None, profile: str | None, as_json: bool, help_vars: bool) -> None:
    """Print shell lines that put every program started afterwards under the shim.

    \b
    eval "$(spillshim env --vram-limit 90%)"

    The programs started from that shell are one job: they share a VRAM limit. Which programs they will be is not known here:
    without --profile (or SPILLSHIM_PROFILE) no profile's settings are among the lines.
    """
    if help_vars:
        _print_variables(as_json)
        return
    before = launch.inherited()
    applied = profiles.apply(settings(ctx, sim), before, wanted=profile)
    after = launch.environment(before, applied.settings)
    changed = {
        name: value for name, value in sorted(after.items()) if before.get(name) != value or name == "LD_PRELOAD"
    }
    if as_json:
        click.echo(json.dumps(changed, indent=2))
        return
    for name, value in changed.items():
        click.echo(f"export {name}={shlex.quote(value)}")
