# SPDX-License-Identifier: Apache-2.0
"""`spillshim cdi generate`: the file by which container engines give the shim to containers that ask for it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from spillshim import cdi, native
from spillshim.cli.options import setting_options, settings
from spillshim.errors import SpillshimError


@click.group("cdi")
def command() -> None:
    """Describe the shim to container engines, as a device of the Container Device Interface."""


def _container_options(function: Callable[..., None]) -> Callable[..., None]:
    """Those of `run`, without the ones that name files: they would be the container's."""
    return setting_options(function, but=("--log-file", "--stats"))


@command.command("generate", epilog=f"More: {native.page('services')}")
@_container_options
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help=f"Write it there (engines read {cdi.DEFAULT_FILE.parent}/*.json) instead of to stdout.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A folder of the host that the containers share, so that --host-limit holds for all of them together. It must belong to "
    "the user that their programs run as, on the host: root for containers without a user namespace.",
)
@click.pass_context
def generate(ctx: click.Context, output: Path | None, state_dir: Path | None) -> None:
    """Print a CDI specification, or write it with --output.

    \b
    sudo spillshim install-system
    sudo spillshim cdi generate --output /etc/cdi/spillshim.json
    podman run --device nvidia.com/gpu=all --device spillshim.io/shim=all IMAGE
    docker run --gpus all --device spillshim.io/shim=all IMAGE

    The device `all` sets LD_PRELOAD in the container, over what the image or -e says. A container that must preload more asks for
    `files` instead and names both: -e LD_PRELOAD=/usr/local/lib/spillshim/libspillshim.so:/its/own.so

    The options of `run` become the containers' settings. Their images need glibc 2.34 or newer.
    """
    library, probe = cdi.source()
    for path in (library, probe):
        _warn_unless_for_all(path)
    state = None
    if state_dir is not None:
        state = Path(os.path.abspath(state_dir))
        _check_state(state)
    text = json.dumps(cdi.specification(library, probe, settings(ctx, None).variables, state), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    if output.suffix not in (".json", ".yaml"):
        raise click.BadParameter(f"{str(output)!r}: engines read files that end in .json or .yaml only", ctx=ctx, param_hint="'--output'")
    _write(output, text)
    click.echo(f"{output}: {cdi.KIND}={cdi.ALL} mounts {library} into containers that ask for it.", err=True)


def _warn_unless_for_all(path: Path) -> None:
    """A container's user is somebody else; what it cannot read the loader passes over."""
    closed = [place for place in path.parents if not place.stat().st_mode & stat.S_IXOTH]
    if not path.stat().st_mode & stat.S_IROTH:
        closed.append(path)
    # A mount of the file itself passes by the folders above, but the engine of another user does not.
    if closed or native.unsafe_for_loader(path):
        what = f"{closed[0]} is closed to other users" if closed else "its name holds a space or colon"
        click.echo(f"spillshim: warning: {path}: {what}\n  Copy it to where all can read it first: sudo spillshim install-system", err=True)


def _check_state(state: Path) -> None:
    try:
        info = state.lstat()
    except OSError as error:
        raise SpillshimError(f"the folder {state} cannot be looked at: {error.strerror}", f"Make it: sudo install -d -m 700 {state}") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_mode & 0o022:
        raise SpillshimError(
            f"{state} is no folder that only its owner can write (mode {stat.S_IMODE(info.st_mode):04o}), and the shim would not trust it",
            f"sudo install -d -m 700 {state}",
        )


def _write(path: Path, text: str) -> None:
    """By rename: an engine may be reading its folder at this moment."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # no suffix that engines look for
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o755)  # whatever the umask: engines of other users read there too
        draft.write_text(text)
        draft.chmod(0o644)
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise SpillshimError(f"cannot write {path}: {error.strerror}", "Be root (sudo), or give another --output.") from error
