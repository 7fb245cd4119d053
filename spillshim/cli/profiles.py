# SPDX-License-Identifier: Apache-2.0
"""`spillshim profiles`: which application profiles there are, what one sets, which one a program would get."""

from __future__ import annotations

import json
from typing import Any

import click

from spillshim import launch, profiles, program
from spillshim.cli.options import OptionalCommandAfterDashes, show
from spillshim.profiles.model import Profile, When, as_text


def _condition(value: Any) -> str:
    if not isinstance(value, When):
        return ""
    said = []
    if value.given:
        said.append("with " + " or ".join(value.given))
    if value.absent:
        said.append("without " + ", ".join(value.absent))
    return " and ".join(said)


def _rows(profile: Profile) -> list[tuple[str, str, str, str]]:
    """Variable, value, condition, and the profile that it comes from."""
    rows = []
    settings = profile.settings_by_variable()
    if settings.get("SPILLSHIM_REPORT") == "vram":
        settings.pop("SPILLSHIM_REPORT_LIMIT", None)  # inherited, and without effect
    for name, value in settings.items():
        plain = as_text(value.value if isinstance(value, When) else value)
        origin = next(one.name for one in profile.lineage() if name in one.own_variables())
        rows.append((name, plain, _condition(value), origin))
    return rows


def _sources(profile: Profile) -> list[str]:
    return list(dict.fromkeys(line for one in profile.lineage() for line in one.settings.source))


def _as_dict(loaded: profiles.Loaded) -> dict[str, Any]:
    one = loaded.profile
    return {
        "name": one.name,
        "summary": one.settings.summary,
        "origin": loaded.origin,
        "file": one.file,
        "extends": [base.name for base in one.lineage()][1:],
        "match": [rule.model_dump(exclude_defaults=True) for rule in one.settings.match],
        "model": one.model,
        "sizes": one.sizes,
        "sets": [
            {"variable": name, "value": value, "condition": condition or None, "from": origin}
            for name, value, condition, origin in _rows(one)
        ],
        "source": _sources(one),
    }


def _print_list(found: dict[str, profiles.Loaded]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("profile", no_wrap=True)
    table.add_column("origin", no_wrap=True)
    table.add_column("what it is for", overflow="fold")
    for name, loaded in found.items():
        table.add_row(Text(name), Text(loaded.origin), Text(loaded.profile.settings.summary))
    show(table)


def _print_one(loaded: profiles.Loaded) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    one = loaded.profile
    click.echo(f"{one.name}: {one.settings.summary}")
    click.echo(f"{loaded.origin}, {one.file}")
    bases = [base.name for base in one.lineage()][1:]
    if bases:
        click.echo(f"extends {', which extends '.join(bases)}")
    click.echo("\nrecognised by:" if one.settings.match else "\nrecognised by nothing: only --profile chooses it")
    for rule in one.settings.match:
        keys = rule.model_dump(exclude_defaults=True)
        click.echo("  " + ", and ".join(f"{key} {' or '.join(wanted)}" for key, wanted in keys.items()))
    click.echo("\nsets, where the user has not:")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value, condition, origin in _rows(one):
        note = "; ".join(filter(None, [condition, f"from {origin}" if origin != one.name else ""]))
        table.add_row(Text(f"  {name}"), Text(value), Text(note))
    show(table)
    sources = _sources(one)
    if sources:
        click.echo("\nsources:")
        for line in sources:
            show(Padding(Text(line), (0, 0, 0, 2)))


def _print_choice(argv: list[str], as_json: bool) -> None:
    env = launch.inherited()
    found = program.read(argv[0], env.get("PATH"))
    choice = profiles.explain(argv, found)
    sets = choice.profile.variables(env, profiles.arguments(argv, found)) if choice else {}
    if as_json:
        named = {"profile": choice.profile.name, "why": choice.why} if choice else {"profile": None, "why": None}
        click.echo(json.dumps({**named, "sets": sets}))
    elif choice:
        click.echo(f"{profiles.line(choice.profile, sets)} ({choice.why})")
    else:
        click.echo(f"no profile: none recognises {argv[0]}")


class _Command(OptionalCommandAfterDashes):
    options_anywhere = True


@click.command("profiles", cls=_Command)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a profile file, which explains each key.")
@click.pass_context
def command(ctx: click.Context, name: str | None, as_json: bool, schema: bool) -> None:
    """List the application profiles; with NAME (or a file) show what one sets; with `-- PROGRAM [ARGS]` say which it would get.

    A profile is a file NAME.toml: built in, in /etc/spillshim/apps, or in your own configuration folder
    (~/.config/spillshim/apps); the later one overrides the earlier one of the same name. `run` takes the one that
    recognises the program, or the one that --profile names.
    """
    argv: list[str] | None = ctx.meta["command"]
    if schema:
        click.echo(json.dumps(profiles.schema(), indent=2))
    elif argv:
        _print_choice(argv, as_json)
    elif name is None:
        found = profiles.load_all()
        if as_json:
            click.echo(json.dumps([_as_dict(loaded) for loaded in found.values()], indent=2))
        else:
            _print_list(found)
    else:
        loaded = profiles.named(name)
        if as_json:
            click.echo(json.dumps(_as_dict(loaded), indent=2))
        else:
            _print_one(loaded)
