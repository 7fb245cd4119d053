# SPDX-License-Identifier: Apache-2.0
"""`spillshim run [OPTIONS] -- PROGRAM [ARGS]`: become the program, with the shim preloaded.

Everything that can be refused is refused before exec; after it, pid, signals and exit code are the program's own.
"""

from __future__ import annotations

import click

from spillshim import launch, profiles, program, remember
from spillshim.cli.options import CommandAfterDashes, profile_option, settings, shim_options


@click.command("run", cls=CommandAfterDashes)
@shim_options
@profile_option
@click.option("--no-remember", is_flag=True, help="Neither use what the program needed when it ran before, nor remember it.")
@click.option("--force", is_flag=True, help="Run the program even if the shim cannot be loaded into it.")
@click.pass_context
def command(ctx: click.Context, sim: dict[str, str] | None, profile: str | None, no_remember: bool, force: bool) -> None:
    """Run PROGRAM; what does not fit into VRAM goes to pinned host memory.

    \b
    spillshim run -- ./llama-cli -m model.gguf -ngl 99
    spillshim run --vram-limit 90% --host-limit 24G -- python train.py

    What is right for a known application comes from its profile, where neither an option nor the environment says otherwise;
    one line on stderr tells which. What the program needed when it last ran is remembered (`spillshim cache`).

    Sizes are 8G, 512M, 1.5T (1024-based) or, of what the option limits, 90%. The program keeps this process's id, gets the
    signals sent to it, and its exit code is returned; spillshim's own are 2 (usage), 125 (it failed before the program
    ran), 126 (not executable), 127 (not found).
    """
    argv: list[str] = ctx.meta["command"]
    wanted = settings(ctx, sim)
    env = launch.inherited()
    found = program.read(argv[0], env.get("PATH"))
    if found.problems and force:
        for _, sentence, _ in found.problems:
            click.echo(f"spillshim: warning: {sentence}; running it without the shim (--force)", err=True)
    else:
        launch.refuse_uncatchable(found)
    if found.unreadable:
        click.echo(
            f"spillshim: warning: {found.unreadable}; whether the shim can be loaded into it is not known", err=True
        )
    # What a profile says is right with the shim only.
    applied = profiles.apply(wanted, env, argv, found, "none" if found.problems else profile)
    wanted = applied.settings
    if applied.profile and not launch.quiet(wanted, env):
        click.echo(f"spillshim: {applied.line}", err=True)
    if no_remember:
        wanted.variables[remember.VARIABLE] = "0"
    known = {**env, **wanted.variables}
    past = remember.recall(found, argv, known, applied.profile.name if applied.profile else None, applied.model, applied.sizes)
    wanted.variables.update(past.variables)
    for line in [] if launch.quiet(wanted, env) else past.lines:
        click.echo(f"spillshim: {line}", err=True)
    launch.execute(found, argv, launch.environment(env, wanted, found.sanitizers))
