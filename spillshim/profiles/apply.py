# SPDX-License-Identifier: Apache-2.0
"""Fills a profile's settings in where nothing is set yet. Called by run, env, doctor and unit, which print the line about it.

Rules: what an option or the user's environment says is never overridden; nothing is printed or started here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spillshim import launch, program
from spillshim.profiles.recognise import arguments, choose
from spillshim.profiles.tell import line as line_of

if TYPE_CHECKING:
    from spillshim.profiles.model import Profile


@dataclass(frozen=True)
class Applied:
    """`settings` with the profile's variables, of which `added` are the ones that it contributed; `model` as the program's
    arguments name it, `sizes` what else among them decides how much it allocates. Without a profile the settings are as they were."""

    settings: launch.Settings
    profile: Profile | None = None
    added: Mapping[str, str] | None = None
    model: str | None = None
    sizes: Sequence[str] = ()

    @property
    def line(self) -> str:
        """What there is to say of it; empty without a profile."""
        return line_of(self.profile, self.added or {}) if self.profile else ""


def apply(
    settings: launch.Settings,
    env: Mapping[str, str],
    argv: Sequence[str] = (),
    found: program.Program | None = None,
    wanted: str | None = None,
) -> Applied:
    """`settings` for `argv` in `env`, with the profile that choose() finds. Raises SpillshimError as that."""
    chosen = choose(argv, found, env, wanted)
    if chosen is None:
        return Applied(settings)
    own = arguments(argv, found) if found else argv
    filled, added = launch.filled(settings, env, lambda known: chosen.variables(known, own))
    return Applied(filled, chosen, added, chosen.model_file(own, env), chosen.sizes_given(own, env))
