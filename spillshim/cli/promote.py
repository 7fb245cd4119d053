# SPDX-License-Identifier: Apache-2.0
"""`spillshim promote PID`: bring a running program's memory from RAM into VRAM, as far as there is room."""

from __future__ import annotations

import click

from spillshim import sizes
from spillshim.cli.demote import bytes_option, order


@click.command("promote")
@bytes_option
@click.pass_context
def command(ctx: click.Context, pid: int, size: sizes.Amount | None, as_json: bool) -> None:
    """Move the memory of program PID into VRAM as far as there is room; its pointers stay the same and it runs on.

    With --bytes no more than that. The program waits while memory is being moved.
    """
    ctx.exit(order(False, pid, size, as_json))
