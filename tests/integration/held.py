# SPDX-License-Identifier: Apache-2.0
"""A program that holds managed memory and does as it is told, for tests that speak to it from outside (fixture `hold`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from clients_common import facts

CARD = "64M"

# 96 MiB on a card of 64: fills them, obeys lines on stdin, and says at the end whether every byte is as it was.
HOLD = """
    import hashlib
    ctx = Ctx()
    # An odd number of bytes, so that no two chunks are alike.
    data = np.resize(np.arange(251, dtype=np.uint8), 48 * MIB)
    regions = [alloc(48 * MIB) for _ in range(2)]
    for p in regions:
        upload(p, data)
    before = hashlib.sha256(data).hexdigest()
    print("ready", flush=True)
    for line in sys.stdin:
        exec(json.loads(line))
        print("done", flush=True)
    done(intact=[hashlib.sha256(download(p, 48 * MIB)).hexdigest() == before for p in regions])
"""


class Held:
    """A program that holds managed memory until it is told to end."""

    def __init__(self, run_sim: Any, process: subprocess.Popen[str]) -> None:
        self.run_sim, self.process, self.pid = run_sim, process, process.pid
        self.socket = Path(run_sim.state_dir) / f"{process.pid}.sock"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def do(self, statement: str) -> None:
        self.process.stdin.write(f"{json.dumps(statement)}\n")
        self.process.stdin.flush()
        assert self.line() == "done"

    def finish(self) -> dict[str, Any]:
        """End it; its memory must be intact and its socket gone."""
        result = self.run_sim.finish(self.process, input="").ok()
        told = facts(result.stdout)
        assert all(told["intact"]) and len(told["intact"]) == 2
        assert not self.socket.exists()
        return {**told, "stderr": result.stderr, "stats": [one for one in result.stats if one["pid"] == self.pid]}


def connected(path: Path) -> socket.socket:
    """A connection to a control socket; it waits for a queue that is full, and no longer than half a minute for an answer."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(path.parent, os.O_PATH)
    try:
        made.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        made.close()
        raise
    finally:
        os.close(folder)
    made.settimeout(30)
    return made
