# SPDX-License-Identifier: Apache-2.0
"""`spillshim unit SERVICE`: the drop-in for `systemctl edit` that puts a service under the shim."""

from __future__ import annotations

from pathlib import Path

import click

from spillshim import __version__, dropin, native, units
from spillshim.cli.options import profile_option, setting_options, settings
from spillshim.errors import EXIT_CHECK_FAILED, SpillshimError


class Unfit(SpillshimError):
    """With this drop-in the service would run without the shim."""

    exit_code = EXIT_CHECK_FAILED


@click.command("unit", epilog=f"More: {native.page('services')}")
@click.argument("service")
@setting_options
@profile_option
@click.option("--force", is_flag=True, help="Print it even if the shim would not be loaded into the service.")
@click.pass_context
def command(ctx: click.Context, service: str, profile: str | None, force: bool) -> None:
    """Print a drop-in for `systemctl edit SERVICE` that puts it under the shim.

    \b
    spillshim unit ollama.service --host-limit 24G > spillshim.conf
    sudo install -D -m 644 spillshim.conf \\
        /etc/systemd/system/ollama.service.d/spillshim.conf
    sudo systemctl daemon-reload
    sudo systemctl restart ollama.service

    What the unit says here (user, program, environment, sandbox) is taken into account. It is refused when the service could
    not load the library, as one in a home folder: `spillshim install-system` puts it where all can.
    """
    name = units.service_name(service)
    made = dropin.compose(name, units.read(name), settings(ctx, None).variables, profile)
    if made.problems and not force:
        raise Unfit("; ".join(what for what, _ in made.problems), " ".join(dict.fromkeys(fix for _, fix in made.problems)) + " (--force prints it all the same.)")
    for what, fix in [*made.problems, *made.warnings]:
        click.echo(f"spillshim: warning: {what}\n  {fix}", err=True)
    target = Path("/etc/systemd/system") / f"{name}.d" / "spillshim.conf"
    heading = [
        f"{name} {units.MARK} {__version__}.",
        f"Put this into {target}",
        f"(or `systemctl edit {name}`), then:",
        f"systemctl daemon-reload && systemctl restart {name}",
    ]
    click.echo(dropin.render(made, heading), nl=False)
