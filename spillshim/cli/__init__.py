# SPDX-License-Identifier: Apache-2.0
"""The `spillshim` command: one file a verb. `main` is the entry point of the package.

Rules: results on stdout, everything else on stderr; colour only on a terminal and never with NO_COLOR; exit codes as in
spillshim.errors; a verb's module is imported only when it is called for (`run` is on the way of every program).
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from spillshim import __version__
from spillshim.errors import SpillshimError

# verb -> what `spillshim --help` says of it
_VERBS = {
    "run": "Run a program under the shim.",
    "path": "Print the path of the library to preload.",
    "env": "Print the environment of `run`, for eval in a shell.",
    "doctor": "Check this machine, or prove that a program's allocations reach the shim.",
    "advise": "Tell how fast a GGUF model would run here, and the best way to run it.",
    "profiles": "List the application profiles, or tell which one a program gets.",
    "status": "Show what the shim does in running programs.",
    "demote": "Send a running program's memory from VRAM to RAM.",
    "promote": "Bring a running program's memory from RAM into VRAM.",
    "install-system": "Make the bare name LD_PRELOAD=libspillshim.so work for every user.",
    "unit": "Print a drop-in that puts a systemd service under the shim.",
    "cdi": "Describe the shim to container engines (CDI).",
    "cache": "List or clear what is remembered of programs that ran before.",
    "demo": "Show a program that survives the end of VRAM.",
}


class _Verbs(click.Group):
    """Finds spillshim.cli.<verb>.command (with _ for -) only when that verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        return importlib.import_module(f"spillshim.cli.{cmd_name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        if os.environ.get("NO_COLOR"):
            ctx.color = False  # click itself looks at the terminal only
        try:
            return super().invoke(ctx)
        except SpillshimError as error:
            click.echo(f"spillshim: {click.style('error', fg='red')}: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="spillshim")
def main() -> None:
    """Unmodified CUDA programs keep running past the end of VRAM.

    spillshim run -- PROGRAM runs it with what does not fit into VRAM placed in pinned host memory, at one unchanged address.
    """


if __name__ == "__main__":
    sys.exit(main())
