# SPDX-License-Identifier: Apache-2.0
"""The control socket of a running program: who finds it, who is heard, what hostile callers achieve (nothing), what becomes of it
when the program forks, ends or is killed. The program's own memory is checked at its end in every test."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from clients_common import MIB, facts
from held import HOLD, connected
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spillshim import control

EMPTY_STATUS = struct.pack("<4sIQQQ", b"SPCC", 1, 7, 1, 0)


def descriptors(pid: int) -> list[str]:
    """What the process has open, by name."""
    return [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]


def threads(pid: int) -> list[str]:
    return [path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/comm")]


# --- status -----------------------------------------------------------------------------------------------------------------


def test_status_lists_the_programs_and_what_they_hold(hold, status):
    programs = sorted((hold(), hold()), key=lambda held: held.pid)
    told = json.loads(status("--json").ok().stdout)
    assert [one["pid"] for one in told["processes"]] == [held.pid for held in programs] and told["silent"] == []
    for one in told["processes"]:
        assert (one["state"], one["why"], one["regions"], one["managed"]) == ("open", "", 2, 96 * MIB)
        assert one["vram"] + one["ram"] == 96 * MIB and one["ram"] >= 36 * MIB
        assert "script" in one["command"]
    shown = status().ok().stdout.splitlines()
    assert shown[0].split() == "pid state VRAM RAM regions moves p50 p99 max gave up command".split()
    assert [line.split()[:2] for line in shown[1:]] == [[str(held.pid), "open"] for held in programs]
    alone = status(str(programs[0].pid)).ok().stdout
    assert "2 managed regions of 96 MiB in all" in alone
    for held in programs:
        held.finish()
    assert status().ok().stdout == "No program of yours has managed memory under the shim now.\n"


@pytest.mark.parametrize("width", [80, 200])
def test_lines_are_no_wider_than_the_terminal(hold, width, capsys):
    from spillshim.cli import status as verb

    held = hold()
    with control.Process(held.pid) as process:
        one = process.status()
    one.command = "a program with a very long name " * 10
    one.pid, one.vram, one.ram, one.managed = 4194304, 123 << 30, 999 << 20, 124 << 30
    one.moves.update(promoted=99999, demoted=99999, refused_busy=1234567)
    one.steady.bucket[20] = 7
    one.steady.count, one.steady.longest_ns = 7, 1234567
    verb._table([one], width)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= width for line in lines), lines
    assert all(word in lines[1] for word in ("4194304", "123 GiB", "999 MiB", "199998", "1.23 ms", "1234567"))
    assert any("very long name" in line for line in lines)
    held.finish()


def test_memory_that_is_freed_is_no_longer_told(hold, status):
    held = hold()
    held.do("extra = alloc(16 * MIB)")
    assert json.loads(status("--json", str(held.pid)).ok().stdout)["regions"] == 3
    held.do("free(extra)")
    told = json.loads(status("--json", str(held.pid)).ok().stdout)
    assert (told["regions"], told["managed"]) == (2, 96 * MIB)
    held.finish()


def test_watching_ends_with_the_program(hold, run_sim, clean_env):
    held = hold()
    watch = subprocess.Popen(
        [sys.executable, "-m", "spillshim", "status", "--watch", "0.05", "--json", str(held.pid)],
        env={**clean_env, "SPILLSHIM_STATE_DIR": str(run_sim.state_dir)}, cwd=run_sim.tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert [json.loads(watch.stdout.readline())["regions"] for _ in range(3)] == [2, 2, 2]
        held.do("extra = alloc(16 * MIB)")
        while json.loads(watch.stdout.readline())["regions"] != 3:
            pass
        held.finish()
        _, said = watch.communicate(timeout=60)
        assert watch.returncode == 1 and str(held.pid) in said
    finally:
        watch.kill()
        watch.communicate()


OWN_HANDLES = """
    ctx = Ctx()
    handles = [u64() for _ in range(3)]
    for handle in handles:
        cu("cuMemCreate", ref(handle), 32 * MIB, ref(device_prop()), 0)
    print("ready", flush=True)
    sys.stdin.read()
    done(intact=[True, True])
"""


def test_a_program_whose_own_handles_spill_is_listed_too(hold, status):
    """As PyTorch's expandable segments: RAM is held, nothing of it can be moved."""
    held = hold(OWN_HANDLES)
    told = json.loads(status("--json", str(held.pid)).ok().stdout)
    assert told["regions"] == told["managed"] == 0 and told["ram"] >= 32 * MIB
    held.finish()


# --- who can't be spoken to ---------------------------------------------------------------------------------------------------


def test_no_such_process(status):
    result = status(str(2**22 + 1))  # above every possible pid_max
    assert result.returncode == 1
    assert f"there is no process {2**22 + 1}" in result.stderr and "spillshim status" in result.stderr


def test_a_process_without_the_shim(status):
    result = status(str(os.getpid()))
    assert result.returncode == 1
    assert "runs without the shim" in result.stderr and "spillshim run --" in result.stderr


SMALL = 'ctx = Ctx()\nalloc(1024)\nprint("ready", flush=True)\nsys.stdin.read()\ndone(intact=[True, True])\n'


def test_a_process_that_manages_nothing_has_nothing_of_ours(hold, status):
    held = hold(SMALL, SPILLSHIM_MANAGED_MIN="16M")
    assert "spillshim" not in threads(held.pid)
    assert not any("memfd:spillshim" in name or "eventfd" in name for name in descriptors(held.pid))
    result = status(str(held.pid))
    assert result.returncode == 1 and "no control socket: it has no managed memory (yet)" in result.stderr
    held.finish()


def test_control_can_be_left_out(hold, status):
    held = hold(SPILLSHIM_CONTROL="0")
    assert "spillshim" not in threads(held.pid) and not any("memfd:spillshim" in name for name in descriptors(held.pid))
    result = status(str(held.pid))
    assert result.returncode == 1 and "SPILLSHIM_CONTROL=0" in result.stderr
    held.finish()


def test_a_stopped_process_is_named(hold, monkeypatch):
    held = hold()
    os.kill(held.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, held.pid, os.WSTOPPED | os.WNOWAIT)
    monkeypatch.setattr(control, "_ANSWER", 0.2)
    with pytest.raises(control.NoAnswer, match="stopped") as caught, control.Process(held.pid) as process:
        process.status()
    assert f"kill -CONT {held.pid}" in caught.value.fix
    os.kill(held.pid, signal.SIGCONT)
    held.finish()


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_another_user_is_turned_away(hold, run_sim):
    """The folder and the socket opened to all, so that only the look at the caller is left."""
    with tempfile.TemporaryDirectory() as folder:
        held = hold(SPILLSHIM_STATE_DIR=folder)
        path = Path(folder) / f"{held.pid}.sock"
        os.chmod(folder, 0o711)
        os.chmod(path, 0o666)
        assert answered(path)
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            try:
                os._exit(0 if answered(path) else 42)
            except ConnectionError:
                os._exit(42)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert answered(path)
        held.finish()


# --- hostile callers --------------------------------------------------------------------------------------------------------


@contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    with connected(path) as made:
        yield made


def answered(path: Path) -> bool:
    """Whether a caller who behaves gets its answer."""
    with connection(path) as one:
        one.send(EMPTY_STATUS)
        reply, sent, _, _ = socket.recv_fds(one, 4096, 4)
    for fd in sent:
        os.close(fd)
    return reply[:24] == struct.pack("<4sIQQ", b"SPCC", 1, 7, 1) and len(reply) == 48 and len(sent) == 1


def hangs_up(one: socket.socket) -> bool:
    try:
        return one.recv(4096) == b""
    except ConnectionError:
        return True


WORD = st.integers(0, 2**64 - 1)
BROKEN = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.integers(0, 31).map(lambda length: EMPTY_STATUS[:length] or b"x"),
    st.binary(min_size=1, max_size=5000).map(lambda more: EMPTY_STATUS + more),
    st.tuples(st.integers(0, 7), st.integers(1, 255)).map(lambda flip: bytes(b ^ flip[1] if i == flip[0] else b for i, b in enumerate(EMPTY_STATUS))),
    st.tuples(WORD, WORD, WORD.filter(lambda command: command not in (1, 2, 3))).map(lambda words: EMPTY_STATUS[:8] + struct.pack("<QQQ", words[0], words[2], words[1])),
)


def test_what_is_no_request_ends_its_own_connection_and_nothing_else(hold):
    held = hold()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(BROKEN)
    @example(EMPTY_STATUS[:31])
    @example(EMPTY_STATUS + b"\0")
    @example(b"\0" * 100_000)
    def run(message: bytes) -> None:
        with connection(held.socket) as other, connection(held.socket) as one:
            one.send(message)
            assert hangs_up(one)
            other.send(EMPTY_STATUS)
            assert len(other.recv(4096)) == 48

    run()
    assert answered(held.socket)
    held.finish()


def test_descriptors_that_come_along_are_not_kept(hold):
    held = hold()
    with connection(held.socket) as one:
        one.send(EMPTY_STATUS)
        one.recv(4096)
        before = len(descriptors(held.pid))
        for _ in range(20):
            socket.send_fds(one, [EMPTY_STATUS], [0, 1, 2])
            if hangs_up(one):
                break
        assert len(descriptors(held.pid)) <= before
    assert answered(held.socket)
    held.finish()


def test_silent_callers_make_room_for_others(hold):
    held = hold()
    silent = []
    try:
        for _ in range(40):
            silent.append(connected(held.socket))
        assert answered(held.socket)
        assert hangs_up(silent[0])
    finally:
        for one in silent:
            one.close()
    held.finish()


def test_a_caller_who_does_not_read_is_dropped(hold):
    held = hold()
    with connection(held.socket) as one:
        sent = 0
        try:
            while sent < 100_000:
                one.send(EMPTY_STATUS)
                sent += 1
        except (ConnectionError, TimeoutError) as error:
            assert isinstance(error, ConnectionError), "it is neither read nor dropped"
        assert sent < 100_000
        assert answered(held.socket)
    held.finish()


def test_callers_who_come_and_go(hold):
    """A mixture of all, in a random order: the program neither loses descriptors nor its answers."""
    held = hold()
    assert answered(held.socket)
    before = sorted(descriptors(held.pid))
    seed = 20261121
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(300):
        with connection(held.socket) as one, suppress(ConnectionError):
            for _ in range(chance.randrange(3)):
                one.send(chance.choice([EMPTY_STATUS, EMPTY_STATUS, chance.randbytes(chance.randrange(1, 60))]))
                if chance.random() < 0.5:
                    one.recv(4096)
    assert answered(held.socket)
    with connection(held.socket) as last:  # the ninth-last caller's place has been given away, all others have ended
        last.send(EMPTY_STATUS)
        last.recv(4096)
    for _ in range(8):
        answered(held.socket)
    assert [name for name in sorted(descriptors(held.pid)) if "socket" not in name] == [name for name in before if "socket" not in name]
    held.finish()


# --- the life of the socket -----------------------------------------------------------------------------------------------------


def test_a_child_leaves_the_socket_to_its_parent(hold):
    held = hold()
    held.do("pid = os.fork() or os._exit(0)")
    held.do("os.waitpid(pid, 0)")
    assert answered(held.socket)
    held.do("import multiprocessing as mp; child = mp.get_context('fork').Process(target=os.getpid); child.start(); child.join(); assert child.exitcode == 0")
    assert answered(held.socket)
    held.finish()


def test_a_child_that_lives_on_does_not_hold_the_socket(hold):
    """Its parent has gone: nobody may take the child for it."""
    held = hold()
    held.do("r, w = os.pipe()\nif os.fork() == 0:\n    os.close(w)\n    os.read(r, 1)\n    os._exit(0)")
    assert answered(held.socket)
    os.kill(held.pid, signal.SIGKILL)
    held.process.wait()
    with pytest.raises(ConnectionRefusedError), connection(held.socket):
        pass


def test_what_a_killed_program_leaves_is_taken_away(hold, status):
    held = hold()
    held.process.kill()
    held.process.communicate()
    assert held.socket.exists()
    assert status().ok().stdout.startswith("No program")
    assert not held.socket.exists()


def starting(statement: str) -> list[str]:
    """argv before a program's own: it does something as the process that the program will be."""
    return [sys.executable, "-c", f"import os, socket, sys; name = os.environ['SPILLSHIM_STATE_DIR'] + '/%d.sock' % os.getpid()\n{statement}\nos.execv(sys.argv[1], sys.argv[1:])"]


def test_a_socket_that_nobody_listens_on_is_replaced(hold):
    held = hold(argv=starting("s = socket.socket(socket.AF_UNIX, 5); os.chdir(os.path.dirname(name)); s.bind(os.path.basename(name)); s.close()"))
    assert answered(held.socket)
    held.finish()


def test_a_socket_that_somebody_listens_on_is_left_alone(hold, run_sim):
    held = hold(argv=starting("s = socket.socket(socket.AF_UNIX, 5); os.chdir(os.path.dirname(name)); s.bind(os.path.basename(name)); s.listen(); s.set_inheritable(True)"))
    assert held.socket.exists()
    result = run_sim.finish(held.process, input="").ok()
    assert facts(result.stdout)["intact"] == [True, True]
    assert held.socket.exists()


@pytest.mark.parametrize("kind", ["missing", "file", "open to all"])
def test_without_a_folder_the_program_runs_on(hold, tmp_path, run_sim, kind):
    folder = tmp_path / "missing" / "state" if kind == "missing" else tmp_path / "other"
    if kind == "file":
        folder.write_text("")
    if kind == "open to all":
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
    held = hold(SPILLSHIM_STATE_DIR=str(folder), SPILLSHIM_LOG="debug")
    result = run_sim.finish(held.process, input="").ok()
    assert facts(result.stdout)["intact"] == [True, True]
    assert "no control socket in" in result.stderr
    assert not list(tmp_path.glob("**/*.sock"))


def test_an_end_while_callers_are_connected(hold):
    held = hold()
    with connection(held.socket) as one, connection(held.socket):
        one.send(EMPTY_STATUS)
        one.recv(4096)
        held.finish()
        assert hangs_up(one)


# All but the simulated driver's: without a real one's the program could not go on either.
CLOSE_ALL = """
for fd in range(3, 64):
    try:
        if "simgpu" not in os.readlink(f"/proc/self/fd/{fd}"):
            os.close(fd)
    except OSError:
        pass
"""


@pytest.mark.no_sanitizer("closes descriptors under their owners' feet, on purpose", only="thread")
def test_a_program_that_closes_all_descriptors_keeps_its_files(hold, tmp_path):
    """The numbers that were the shim's are the program's files afterwards: nothing of ours may write to or close them."""
    held = hold()
    with connection(held.socket) as one:
        one.send(EMPTY_STATUS)
        one.recv(4096)
        names = [f"{tmp_path}/file{number}" for number in range(40)]
        held.do(CLOSE_ALL)
        held.do(f"files = [open(name, 'w+') for name in {names!r}]")
        with suppress(ConnectionError):  # it closed this connection, too
            one.send(EMPTY_STATUS)
        held.do("for file in files:\n    file.write('mine')\n    file.flush()")
    told = held.run_sim.finish(held.process, input="").ok()
    assert facts(told.stdout)["intact"] == [True, True]
    assert [Path(name).read_text() for name in names] == ["mine"] * len(names)


def test_idle_it_makes_no_calls(hold):
    """The thread sleeps in poll() without a timeout: after its last answer it has not run again."""
    held = hold()
    assert answered(held.socket)
    (task,) = [path.parent for path in Path(f"/proc/{held.pid}/task").glob("*/comm") if path.read_text().strip() == "spillshim"]
    number, arguments = "running", []
    while number != "7":  # poll: it has gone back to sleep
        select.select([], [], [], 0.01)
        number, *arguments = (task / "syscall").read_text().split()
    assert int(arguments[2], 16) & 0xFFFFFFFF == 0xFFFFFFFF  # for ever
    (mask,) = [line.split()[1] for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk")]
    blocked = {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}
    never = {signal.SIGKILL, signal.SIGSTOP, 32, 33}  # the last two are libc's own
    assert blocked == set(range(1, 65)) - never
    held.finish()
