# SPDX-License-Identifier: Apache-2.0
"""Application profiles: what is right for one program, as data (spillshim/apps/*.toml and the user's own files).

Called by run, env, doctor and profiles. A profile fills in what neither the command line nor the user's environment says; it
changes no argument of the program. Parts: model.py (what a file may hold), load.py (where files lie, extends, errors),
recognise.py (which profile is a program's). Nothing here executes a program or imports one.
"""

from spillshim.profiles.load import Loaded, load_all, named
from spillshim.profiles.model import Profile, as_text, line, schema
from spillshim.profiles.recognise import Choice, choose, explain

__all__ = ["Choice", "Loaded", "Profile", "as_text", "choose", "explain", "line", "load_all", "named", "schema"]
