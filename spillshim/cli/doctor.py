# SPDX-License-Identifier: Apache-2.0
"""`spillshim doctor`: checks this machine; `spillshim doctor -- PROGRAM` proves that a program's allocations reach the shim."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from spillshim import checks, launch, observe, profiles, program
from spillshim.cli.options import OptionalCommandAfterDashes, profile_option, show, sim_option
from spillshim.errors import EXIT_CHECK_FAILED

_STYLES = {checks.OK: "green", checks.INFO: "cyan", checks.WARN: "yellow", checks.FAIL: "bold red"}
_VERDICTS = {
    observe.CAUGHT: "green",
    observe.NO_CUDA: "cyan",
    observe.NO_ALLOCATION: "yellow",
    observe.NO_REPORT: "yellow",
    observe.NOT_LOADED: "yellow",
}


@click.command("doctor", cls=OptionalCommandAfterDashes)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, as the last line.")
@sim_option
@profile_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, sim: dict[str, str] | None, profile: str | None) -> None:
    """Check driver, limits and library; each problem comes with its fix.

    With `-- PROGRAM [ARGS]` run the program instead and say, for each of its processes, by which path (linked, dlsym,
    cuGetProcAddress) its allocations reached the shim, or why they did not. Exit code 1 if a check fails or no
    allocation reached the shim.
    """
    argv: list[str] | None = ctx.meta["command"]
    failed = _observe(argv, sim, profile, as_json) if argv else _check_machine(sim, as_json)
    if failed:
        ctx.exit(EXIT_CHECK_FAILED)


def _check_machine(sim: dict[str, str] | None, as_json: bool) -> bool:
    env = dict(os.environ)
    if sim is not None:
        env = launch.simulated(env, sim)
    findings = checks.all_findings(env)
    failed = any(finding.status == checks.FAIL for finding in findings)
    if as_json:
        click.echo(
            json.dumps(
                {"ok": not failed, "simulated": sim is not None, "checks": [finding.as_dict() for finding in findings]}
            )
        )
        return failed
    _print_findings(findings)
    click.echo("")
    warnings = sum(finding.status == checks.WARN for finding in findings)
    failures = sum(finding.status == checks.FAIL for finding in findings)
    click.echo(f"{len(findings)} checks, {failures} failed, {warnings} warning{'' if warnings == 1 else 's'}.")
    return failed


def _print_findings(findings: list[checks.Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        detail = Text(finding.detail)
        if finding.fix:
            detail.append(f"\n-> {finding.fix}", style="bold" if finding.status in (checks.WARN, checks.FAIL) else "")
        table.add_row(Text(finding.status, style=_STYLES[finding.status]), finding.check, detail)
    show(table)


def _observe(argv: list[str], sim: dict[str, str] | None, profile: str | None, as_json: bool) -> bool:
    env = launch.inherited()
    found = program.read(argv[0], env.get("PATH"))
    if found.problems:
        why = "; ".join(sentence for _, sentence, _ in found.problems)
        fixes = " ".join(dict.fromkeys(advice for _, _, advice in found.problems))
        if as_json:
            click.echo(json.dumps({"caught": False, "ran": False, "why": why, "fix": fixes}))
        else:
            click.echo(f"The program was not run: {why}.\n-> {fixes}", err=True)
        return True
    applied = profiles.apply(launch.Settings({"SPILLSHIM_QUIET": "1"}, sim), env, argv, found, profile)
    observation = observe.observe(argv, env, applied.settings)
    if as_json:
        named = {"profile": applied.profile.name if applied.profile else None, "profile_sets": applied.added or {}}
        click.echo(json.dumps({"ran": True, **named, **observation.as_dict()}))
    else:
        if applied.profile:
            click.echo(f"\n{applied.line}", err=True)
        _print_observation(argv, observation)
    return not observation.caught


def _ending(returncode: int) -> str:
    return f"was ended by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"


def _print_observation(argv: list[str], observation: observe.Observation) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    def out(renderable: Any) -> None:
        show(renderable, stderr=True)  # stdout is the program's

    out(Text(f"\n{argv[0]} {_ending(observation.returncode)}. Its processes:"))
    for process in observation.processes:
        line = Text(f"  {process.pid} {process.exe}: ", no_wrap=True, overflow="ignore")
        line.append(process.verdict, style=_VERDICTS[process.verdict])
        out(line)
        out(Padding(Text(process.why), (0, 0, 0, 4)))
        if process.paths:
            table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
            for title in ("    module", "path", "symbol"):
                table.add_column(title, no_wrap=True)
            table.add_column("calls", justify="right")
            for path in process.paths:
                table.add_row(
                    f"    {path.get('module', '?')}",
                    str(path.get("path", "?")),
                    str(path.get("symbol", "?")),
                    str(path.get("calls", "?")),
                )
            out(table)
    if not observation.processes:
        out(Text("  none was seen: it ended before it could be looked at, and none of them loaded the shim"))
    verdict = "Allocations reach the shim." if observation.caught else "No allocation reached the shim."
    out(Text(verdict, style="bold green" if observation.caught else "bold red"))
