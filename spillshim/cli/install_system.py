# SPDX-License-Identifier: Apache-2.0
"""`spillshim install-system`: the library in a place where every user's programs find it, and its removal."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from spillshim import install, native
from spillshim.errors import SpillshimError


@click.command("install-system", epilog=f"More: {native.page('services')}")
@click.option("--prefix", type=click.Path(path_type=Path), default=install.PREFIX, show_default=True, help="Install below PREFIX/lib/spillshim.")
@click.option("--uninstall", is_flag=True, help="Remove exactly what was installed; refused where a file was changed since.")
@click.option("--files-only", is_flag=True, help="Library and probe only, not the bare name: for units, CDI and systems without ldconfig.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    envvar="DESTDIR",
    metavar="FOLDER",
    help="Take FOLDER for / and leave the loader's cache alone, for packaging. [also: DESTDIR]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def command(prefix: Path, uninstall: bool, files_only: bool, root: Path, dry_run: bool) -> None:
    """Make LD_PRELOAD=libspillshim.so work in every user's programs.

    Copies the library and its probe to PREFIX/lib/spillshim, names that folder to the dynamic loader in /etc/ld.so.conf.d, and
    runs ldconfig. Nothing is loaded into any program by that: it is what LD_PRELOAD, units and containers can then name.
    Programs with privileges of their own (setuid) go on ignoring it.
    """
    place = install.Installation(prefix, Path(os.path.abspath(root)), not files_only)
    if place.touches_machine and os.geteuid() != 0 and not dry_run:
        again = shlex.join([os.path.abspath(sys.argv[0]), *sys.argv[1:]])
        raise SpillshimError(
            f"only root can {'remove from' if uninstall else 'install to'} {install.folder(prefix)}, and this is user {os.geteuid()}",
            f"Run: sudo {again}\n  (--dry-run shows what it would do; --root FOLDER installs elsewhere.)",
        )
    steps = place.uninstall(dry_run) if uninstall else place.install(dry_run)
    width = max(len(step.verb) for step in steps)
    for step in steps:
        click.echo(f"{step.verb.ljust(width)}  {step.what}" + (f"  ({step.detail})" if step.detail else ""))
    if dry_run:
        click.echo("Nothing was done (--dry-run).")
    elif uninstall:
        click.echo("Removed. Whatever still sets LD_PRELOAD to it runs without the shim, with a line of the loader's on stderr.")
    elif place.touches_machine and place.cache:
        click.echo(f"LD_PRELOAD={native.LIBRARY_NAME} now works for every user.")
    else:
        click.echo(f"LD_PRELOAD={install.folder(prefix) / native.LIBRARY_NAME} now works for every user." if place.touches_machine else f"Installed below {place.root}.")
