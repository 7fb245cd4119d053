# SPDX-License-Identifier: Apache-2.0
"""`python tests/gpu/kit [options]`: the command behind scripts/gpu-check. Parses the options and starts the run."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append(str(Path(__file__).resolve().parents[3]))  # spillshim's Python, where it is not installed

from kit import build, check, contract  # noqa: E402

EXIT_USAGE = 2
RESULTS = build.ROOT / "benchmarks" / "results"


def _bytes(text: str) -> int:
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(text[-1:].upper())
    try:
        value = int(float(text[:-1]) * factor) if factor else int(text)
    except (ValueError, OverflowError):
        value = 0
    if value < 64 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size of at least 64M")
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes")
    return value


def parser() -> argparse.ArgumentParser:
    groups = "; ".join(f"{name}: {what}" for name, what in contract.GROUPS.items())
    made = argparse.ArgumentParser(
        prog="scripts/gpu-check",
        description="Asks this machine's GPU what spillshim's design rests on, and writes the answers down as one JSON file.",
        epilog=f"Groups: {groups}. Without --only: {', '.join(contract.DEFAULT_GROUPS)}. "
        "Exit code: 0 every row answered, 1 some are not, 2 wrong usage, 3 no device.",
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the JSON file (default benchmarks/results; for sim build/gpu-check)")
    made.add_argument("--minutes", type=_minutes, default=8.0, metavar="N", help="budget for everything (default 8)")
    made.add_argument("--only", metavar="GROUP,...", help="groups, or names of single experiments")
    made.add_argument("--device", choices=("real", "sim"), default="real", help="sim: the simulated driver, whose figures are a model's")
    made.add_argument("--wheels", type=Path, metavar="DIR", help="wheels that are missing here; used from a private folder, nothing is installed")
    made.add_argument("--vram", type=_bytes, metavar="SIZE", help="most VRAM an experiment uses (12G, at most 60 %% of what is free)")
    made.add_argument("--ram", type=_bytes, metavar="SIZE", help="most RAM an experiment uses (24G, at most 60 %% of what is available)")
    made.add_argument("--seed", type=int, default=1, help="of everything random (default 1)")
    made.add_argument("--experiments", type=Path, default=build.ROOT / "tests" / "gpu", metavar="DIR", help="where the experiments lie")
    made.add_argument("--build", type=Path, metavar="DIR", help="where things are built (default build/gpu-check)")
    return made


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def main() -> int:
    made = parser()
    options = made.parse_args()
    options.experiments = options.experiments.resolve()
    if not options.experiments.is_dir():
        made.error(f"--experiments: no such folder: {options.experiments}")
    try:
        names = {experiment.name for experiment in contract.discover(options.experiments)}
    except ValueError as error:
        made.error(str(error))
    options.only = [word.strip() for word in options.only.split(",") if word.strip()] if options.only is not None else None
    if options.only is not None:
        unknown = [word for word in options.only if word not in contract.GROUPS and word not in names]
        if unknown or not options.only:
            made.error(f"--only: {', '.join(unknown) or 'nothing'} is no group ({', '.join(contract.GROUPS)}) and no experiment")
    if options.build is None:
        options.build = build.ROOT / "build" / "gpu-check"
        if not _writable(options.build):
            options.build = Path(tempfile.mkdtemp(prefix="gpu-check-build-"))
    elif not _writable(options.build):
        made.error(f"--build: cannot write into {options.build}")
    options.build = options.build.resolve()
    if options.out is None:
        options.out = options.build if options.device == "sim" else RESULTS
    options.out = options.out.resolve()
    if options.device == "sim" and options.out == RESULTS:
        made.error("benchmarks/results holds results of real devices only; give another --out")
    if not _writable(options.out):
        made.error(f"--out: cannot write into {options.out}")
    if options.wheels and os.environ.get("GPU_CHECK_SITE") is None:
        try:
            site = build.install_wheels(options.wheels.resolve(), options.build)
        except build.CannotBuild as error:
            made.error(f"--wheels: {error}")
        # A fresh start, so that this process finds them as well.
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(os.environ, PYTHONPATH=path, GPU_CHECK_SITE=str(site)))
    try:
        return check.Check(options, sys.argv[1:]).run()
    except check.NoDevice as error:
        print(f"scripts/gpu-check: no device to ask: {error}", file=sys.stderr)
        return check.EXIT_NO_DEVICE


if __name__ == "__main__":
    sys.exit(main())
