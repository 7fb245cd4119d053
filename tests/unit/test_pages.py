# SPDX-License-Identifier: Apache-2.0
"""The pages that are shipped with the package: what they name is there."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click
import pytest

from spillshim.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(Path(str(resources.files("spillshim").joinpath("pages"))).glob("*.md"))


def test_there_are_pages() -> None:
    assert {"kubernetes", "ray", "services"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_files(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for named in re.findall(r"\b(?:tests|spillshim|csrc)/[\w./]+\.(?:py|yaml|md)", text):
        assert (REPOSITORY / named).exists(), named


@pytest.mark.parametrize("page", [*PAGES, *(page.with_suffix(".yaml") for page in PAGES if page.stem == "kubernetes")], ids=lambda page: page.name)
def test_commands_and_options(page: Path) -> None:
    """Each `spillshim VERB ... --option` of a page is one that the command line takes."""
    calls = re.findall(r'(?:^|[`\s])(?:sudo )?(?:"\$\(command -v spillshim\)"|spillshim) ([a-z][a-z-]+(?: generate)?)([^`#>|&\n\\]*)', page.read_text(), re.MULTILINE)
    checked = 0
    for verb, rest in calls:
        command: click.Command | None = main
        for word in verb.split():
            command = command.get_command(click.Context(main), word) if isinstance(command, click.Group) else None
        if command is None:
            continue  # prose
        options = {name for param in command.params for name in param.opts} | {"--help"}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= options, (verb, rest)
        checked += 1
    if page.stem in ("services", "kubernetes"):
        assert checked
