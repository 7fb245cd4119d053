# SPDX-License-Identifier: Apache-2.0
"""`spillshim path`: for `LD_PRELOAD=$(spillshim path) program` and unit files."""

from __future__ import annotations

import click

from spillshim import native


@click.command("path")
@click.option("--sim", is_flag=True, help="Print the folder of the simulated driver (for LD_LIBRARY_PATH) instead.")
@click.option("--include", is_flag=True, help="Print the folder of simk.h, the header of companion kernels, instead.")
def command(sim: bool, include: bool) -> None:
    """Print the absolute path of libspillshim.so, as the dynamic loader understands it.

    Should the installation's path hold a space or a colon, at which the loader would split it, a link without them is
    printed. SPILLSHIM_LIBRARY names another library.
    """
    if sim and include:
        raise click.UsageError("--sim and --include exclude each other")
    if include:
        click.echo(native.sim_include())
    else:
        click.echo(native.loader_safe(native.sim_dir() if sim else native.library()))
