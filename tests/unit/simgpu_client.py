# SPDX-License-Identifier: Apache-2.0
"""What programs of the simulator's tests say (`from simgpu_client import *`): the vocabulary of the conformance suite, because
what one asks of the simulated driver is what one asks of a real one."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "conformance"))

from cudaclient import *  # noqa: E402, F403
