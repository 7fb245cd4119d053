# SPDX-License-Identifier: Apache-2.0
"""Application profiles: what is right for one program, as data (spillshim/apps/*.toml and the user's own files).

Called by run, env, doctor and profiles. A profile fills in what neither the command line nor the user's environment says; it
changes no argument of the program. Parts: model.py (what a file may hold: Profile), check.py (what is wrong with one), load.py
(where files lie, extends), recognise.py and source.py (which profile is a program's), apply.py (what it then sets), tell.py (the line about it). Nothing
here executes a program or imports one; a program that no profile recognises pays for no more than reading the files.
"""

from typing import Any

from spillshim.profiles.apply import Applied, apply
from spillshim.profiles.load import ORIGINS, Loaded, load_all, named
from spillshim.profiles.recognise import Choice, arguments, choose, explain
from spillshim.profiles.tell import line, told

__all__ = ["ORIGINS", "Applied", "Choice", "Loaded", "apply", "arguments", "choose", "explain", "line", "load_all", "named", "schema", "told"]


def schema() -> dict[str, Any]:
    """The JSON schema of a profile file, with every key's description."""
    from spillshim.profiles.model import Settings

    return Settings.model_json_schema()
