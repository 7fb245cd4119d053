# SPDX-License-Identifier: Apache-2.0
"""The line that says which profile was taken and what it set. Called by run, doctor and profiles; nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spillshim.profiles.model import Profile


def told(variables: Mapping[str, str]) -> str:
    """Variables in few words: `report virtual (+3%), oom soft, LLAMA_ARG_FIT_TARGET=512`."""
    limit = variables.get("SPILLSHIM_REPORT_LIMIT")
    words = []
    for name, value in variables.items():
        if name == "SPILLSHIM_REPORT_LIMIT" and "SPILLSHIM_REPORT" in variables:
            continue
        if name == "SPILLSHIM_DISABLE" and value == "1":
            words.append("the shim steps aside")
            continue
        key = name.removeprefix("SPILLSHIM_").lower().replace("_", "-")
        words.append(f"{key} {value}" if name.startswith("SPILLSHIM_") else f"{name}={value}")
        if name == "SPILLSHIM_REPORT" and limit:
            words[-1] += f" (+{limit})"
    return ", ".join(words)


def line(profile: Profile, added: Mapping[str, str]) -> str:
    """What `run` says of the profile that it took; `added` is what this one set."""
    return f"profile {profile.name}: {told(added) or 'sets nothing that is not set already'}"
