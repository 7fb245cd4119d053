# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them: `8G`, `1.5T`, `512M`, `4096`, `90%`. K/M/G/T are 1024-based, as in the shim's own parser.

Used by the command line to refuse nonsense before a program runs (inside the program the shim could only ignore it).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
LARGEST = 1024 * TIB  # no machine has more; a larger number is a slip
_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_FORM = re.compile(r"(?P<number>\d+(?:\.\d+)?|\.\d+)(?P<unit>[KMGT]?)(?:I?B)?", re.IGNORECASE | re.ASCII)
_SHARE = re.compile(r"(?P<number>\d+(?:\.\d+)?|\.\d+)%", re.ASCII)


@dataclass(frozen=True)
class Amount:
    """A size in bytes, or a share of something in percent; exactly one of the two is set."""

    text: str
    size: int | None = None
    percent: float | None = None

    def bytes_of(self, whole: int) -> int:
        """Bytes, a percentage being taken of `whole` bytes."""
        return self.size if self.size is not None else int(whole * (self.percent or 0) / 100)


def parse(text: str, *, percent: bool = True, minimum: int = 0) -> Amount:
    """Read a size. `percent` says whether 90% is a form too; `minimum` is the least sensible value in bytes.

    Raises ValueError with a message that names the value and the accepted form.
    """
    forms = "a size such as 8G, 512M or 1.5T" + (", or a percentage such as 90%" if percent else "")
    stripped = text.strip()
    if re.fullmatch(r"-\s*[\d.]+.*", stripped):
        raise ValueError(f"{text!r} is negative: expected {forms}")
    share = _SHARE.fullmatch(stripped)
    if share and percent:
        value = float(share["number"])
        if value > 100 or (minimum and value == 0):
            raise ValueError(
                f"{text!r} is out of range: a percentage lies between {'1%' if minimum else '0%'} and 100%"
            )
        return Amount(stripped, percent=value)
    form = _FORM.fullmatch(stripped)
    if not form:
        raise ValueError(f"{text!r} is not a size: expected {forms} (K, M, G, T are 1024-based)")
    size = int(float(form["number"]) * _UNITS[form["unit"].upper()])
    if size >= LARGEST:
        raise ValueError(f"{text!r} is more memory than any machine has: expected {forms}, below 1024T")
    if size < minimum:
        hint = f"; did you mean {stripped}G?" if not form["unit"] and size < 4096 and size > 0 else ""
        raise ValueError(
            f"{text!r} is {human(size)}, less than the least sensible value {human(minimum)}: expected {forms}{hint}"
        )
    return Amount(stripped, size=size)


def human(size: float) -> str:
    """`12.5 GiB`, `512 MiB`, `17 B`: at most one decimal, none where it says nothing."""
    for unit, step in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= step:
            return f"{size / step:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size:.0f} B"
