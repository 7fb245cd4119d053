# SPDX-License-Identifier: Apache-2.0
"""`spillshim demote` and `promote` on running programs: whatever was ordered, in whatever it was in the middle of, the program's
bytes are as they were at its end (Held.finish looks), and what is told of it adds up."""

from __future__ import annotations

import json
import os
import random
import signal
import struct

import pytest
from clients_common import MIB
from held import HOLD, connected

from spillshim import control

DEMOTE, PROMOTE = 2, 3
REASONS = {"none": 0, "nothing": 1, "state": 2, "capture": 3, "busy": 4, "vram": 5, "ram": 6}


@pytest.fixture
def order(spillshim, run_sim):
    """order("demote", held, "--bytes", "8M") -> Result of the command."""
    return lambda verb, held, *arguments: spillshim(verb, str(held.pid), *arguments, env={"SPILLSHIM_STATE_DIR": str(run_sim.state_dir)})


def request(command: int, size: int = control.ALL) -> bytes:
    return struct.pack("<4sIQQQ", b"SPCC", 1, 7, command, size)


def told(held) -> control.Status:
    with control.Process(held.pid) as process:
        return process.status()


def send(held, command: int, size: int = control.ALL) -> control.Outcome:
    with control.Process(held.pid) as process:
        return process.order(command == DEMOTE, size, 60)


# --- what becomes of an order -------------------------------------------------------------------------------------------------


def test_out_and_back(hold, order):
    held = hold()
    first = told(held)
    assert 0 < first.ram < 96 * MIB and first.moves["demoted"] == 0
    shown = order("demote", held).ok().stdout
    out = told(held)
    assert (out.vram, out.ram, out.moves["demoted_bytes"]) == (0, 96 * MIB, first.vram)
    assert "it has 0 B in VRAM and 96 MiB in RAM now" in shown
    assert "Nothing to move" in order("demote", held).ok().stdout
    result = order("promote", held).ok()  # as much as there is room for is what was asked for
    back = told(held)
    assert back.moves["promoted_bytes"] == back.vram > 0 and back.vram + back.ram == 96 * MIB
    assert "there is no more room in VRAM" in result.stderr
    again = order("promote", held)
    assert again.returncode == 1 and "MiB stayed in RAM: there is no more room in VRAM" in again.stderr
    assert (back.steady.count, back.bulk.count) == (0, back.moves["safepoints"])
    assert 0 < back.bulk.longest_ns <= back.bulk.total_ns
    ended = held.finish()
    (stats,) = ended["stats"]
    down, up = (f"{back.moves[way] / MIB:.1f} MiB" for way in ("demoted_bytes", "promoted_bytes"))
    assert f" spilled into RAM, {down} moved there later, {up} brought back (peak " in ended["stderr"]
    assert {**back.moves, "parked": stats["moves"]["parked"]}.items() <= stats["moves"].items()
    assert stats["moves"]["bulk"] == {"count": back.bulk.count, "total_ns": back.bulk.total_ns, "longest_ns": back.bulk.longest_ns}


def test_as_many_bytes_as_asked_for(hold, order):
    """To RAM whole chunks go (of 4 MiB here), to VRAM no more than that, in the driver's granules of 2 MiB."""
    held = hold()
    vram = told(held).vram
    outcome = json.loads(order("demote", held, "--bytes", "5M", "--json").ok().stdout)
    assert outcome["moved"] == vram - told(held).vram and 5 * MIB <= outcome["moved"] <= 8 * MIB
    assert (outcome["reason"], outcome["left"]) == ("none", told(held).vram)
    order("demote", held).ok()
    outcome = json.loads(order("promote", held, "--bytes", "3M", "--json").ok().stdout)
    assert (outcome["moved"], outcome["vram"], outcome["ram"], outcome["reason"]) == (2 * MIB, 2 * MIB, 94 * MIB, "none")
    outcome = json.loads(order("promote", held, "--bytes", "50%", "--json").ok().stdout)
    assert outcome["moved"] == 46 * MIB
    held.finish()


def test_any_amount(hold):
    """Amounts that no command line would send: nothing is moved beyond them, and all adds up."""
    held = hold()
    seed = 6
    print(f"seed {seed}")
    chance = random.Random(seed)
    for size in [0, 1, 2 * MIB - 1, 2 * MIB, 2**63, 2**64 - 1, *(chance.randrange(64 * MIB) for _ in range(20))]:
        for command in (DEMOTE, PROMOTE):
            before = told(held)
            outcome = send(held, command, size)
            after = told(held)
            assert outcome.moved == abs(after.vram - before.vram) == abs(after.ram - before.ram)
            assert outcome.left == (after.vram if command == DEMOTE else after.ram)
            assert outcome.moved <= (size if command == PROMOTE else size + 4 * MIB)
            assert outcome.reason in ("none", "nothing", "vram")
    held.finish()


def test_memory_that_came_after_an_order_is_like_any_other(hold, order):
    held = hold()
    order("demote", held).ok()
    held.do("more = alloc(16 * MIB); upload(more, data[:16 * MIB])")
    order("demote", held).ok()
    assert told(held).vram == 0
    order("promote", held, "--bytes", "40M").ok()
    held.do("assert (download(more, 16 * MIB) == data[:16 * MIB]).all(); free(more)")
    held.finish()


# --- when nothing may be moved ------------------------------------------------------------------------------------------------


def test_a_frozen_process_says_why(hold, order, status):
    held = hold(SPILLSHIM_MOVES="off")
    before = told(held)
    for verb in ("demote", "promote"):
        result = order(verb, held)
        assert result.returncode == 1 and "is frozen: SPILLSHIM_MOVES=off" in result.stderr
        assert "Start it again" in result.stderr
    assert send(held, DEMOTE) == control.Outcome(0, before.vram, "state")
    assert "frozen: SPILLSHIM_MOVES=off" in status().ok().stdout
    assert told(held).vram == before.vram
    held.finish()


def test_while_a_graph_is_captured_nothing_moves(hold, order):
    held = hold()
    held.do("s = stream(); cu('cuStreamBeginCapture_v2', s, 2)")
    result = order("demote", held)
    assert result.returncode == 1 and "is capturing a CUDA graph" in result.stderr
    assert told(held).moves["refused_capture"] > 0
    held.do("g = u64(); cu('cuStreamEndCapture', s, ref(g))")
    order("demote", held).ok()
    held.finish()


def test_a_gpu_that_never_idles_is_left_alone(hold, order):
    """Work that waits for the program itself: it could wait for ever, so the order gives up."""
    held = hold()
    held.do(
        "import threading; go = threading.Event(); s = stream()\n"
        "wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: (go.wait(), None)[1])\n"
        "cu('cuLaunchHostFunc', s, wait, 0)"
    )
    result = order("demote", held)
    assert result.returncode == 1 and "the GPU was not idle" in result.stderr
    one = told(held)
    assert one.moves["refused_busy"] > 0 and one.moves["demoted"] == 0 and one.given_up == one.moves["refused_busy"]
    held.do("go.set(); cu('cuStreamSynchronize', s)")
    order("demote", held).ok()
    held.finish()


def test_the_ram_budget_holds_for_orders_too(hold, order):
    held = hold(SPILLSHIM_HOST_LIMIT="60M")
    result = order("demote", held)
    one = told(held)
    assert result.returncode == 1 and "the RAM budget grants no more" in result.stderr
    assert one.ram <= 60 * MIB and one.vram >= 36 * MIB
    held.finish()


def test_where_chunks_cannot_lie_in_ram_nothing_is_demoted(hold, order):
    """What has spilled there lies in buffers of its own, which cannot be moved either."""
    held = hold(SIMGPU_HOST_VMM="none")
    before = told(held)
    result = order("demote", held)
    assert result.returncode == 1 and "cannot lie in RAM" in result.stderr and "spillshim doctor" in result.stderr
    result = order("promote", held)
    assert result.returncode == 1 and "must not be moved" in result.stderr
    assert (told(held).vram, told(held).ram) == (before.vram, before.ram) and before.ram == 48 * MIB
    held.finish()


def test_a_program_that_must_not_use_ram_is_not_sent_there(hold, order):
    held = hold(HOLD.replace("48 * MIB", "16 * MIB"), SPILLSHIM_SPILL="0")
    result = order("demote", held)
    assert result.returncode == 1 and "started with --no-spill" in result.stderr
    assert told(held).ram == 0
    held.finish()


# --- in the middle of something ---------------------------------------------------------------------------------------------------


WORK = """
def work(p):
    cu("cuCtxSetCurrent", ctx.handle)
    s, rounds = stream(), 0
    while not enough.is_set():
        at_byte = (rounds * 7919 * 4096) % (47 * MIB)
        # One range in, one out, over chunks of both tiers: what is written is what was there.
        cu("cuMemcpyHtoDAsync_v2", p + at_byte, at(data) + at_byte, 1 * MIB, s)
        cu("cuStreamSynchronize", s)
        wrong.append(at_byte) if (download(p + at_byte, MIB) != data[at_byte : at_byte + MIB]).any() else None
        cu("cuMemcpyDtoDAsync_v2", p + at_byte, p + at_byte, 4096, s)
        rounds += 1
        time.sleep(0.005)
    cu("cuStreamSynchronize", s)
    done_rounds.append(rounds)

import threading, time
enough, wrong, done_rounds = threading.Event(), [], []
threads = [threading.Thread(target=work, args=[p]) for p in regions]
for thread in threads:
    thread.start()
"""


def test_a_program_at_work_is_moved_under_its_feet(hold):
    held = hold()
    held.do(WORK)
    moved = {DEMOTE: 0, PROMOTE: 0}
    with control.Process(held.pid) as process:
        process.status()
        # An order gives up where the GPU is not idle when it looks: until each has moved something, however long that takes.
        while not all(moved.values()):
            for command in (DEMOTE, PROMOTE):
                moved[command] += process.order(command == DEMOTE, control.ALL, 60).moved
                one = process.read()
                for pauses in (one.steady, one.bulk):
                    assert sum(pauses.bucket) == pauses.count
                assert one.steady.count + one.bulk.count == one.moves["safepoints"]
    held.do("enough.set(); [thread.join() for thread in threads]\nassert not wrong and len(done_rounds) == 2, (wrong, done_rounds)")
    one = told(held)
    assert moved[DEMOTE] > 0 and moved[PROMOTE] > 0
    assert one.moves["demoted_bytes"] >= moved[DEMOTE] and one.moves["promoted_bytes"] >= moved[PROMOTE]
    assert (one.moves["rolled_back"], one.moves["poisoned"]) == (0, 0)
    held.finish()


def test_every_copy_of_the_statistics_is_of_one_moment(hold):
    """The segment is read while it is written: what belongs together is never seen half changed."""
    held = hold()
    with control.Process(held.pid) as reader, connected(held.socket) as writer:
        reader.status()
        for _ in range(6):
            writer.send(request(DEMOTE, 8 * MIB))
            writer.send(request(PROMOTE, 8 * MIB))
        answers = 0
        writer.setblocking(False)
        while answers < 12:
            one = reader.read()
            assert sum(one.bulk.bucket) == one.bulk.count
            assert 0 <= one.moves["safepoints"] - one.bulk.count - one.steady.count <= 1
            assert bool(one.moves["demoted"]) == bool(one.moves["demoted_bytes"])
            try:
                reason = struct.unpack("<4sIQQQQQ", writer.recv(4096))[4]
            except BlockingIOError:
                continue
            assert reason in (REASONS["none"], REASONS["nothing"], REASONS["vram"])
            answers += 1
    held.finish()


@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4])
def test_the_program_ends_in_the_middle_of_an_order(hold, delay):
    """What is under way ends, nothing else begins; the program's exit code and its bytes are its own. `delay` only varies where
    in the order the end comes."""
    held = hold()
    with connected(held.socket) as one:
        for _ in range(delay):
            one.send(request(DEMOTE, 12 * MIB))
        one.send(request(DEMOTE))
        one.send(request(PROMOTE))
        for _ in range(delay):
            one.recv(4096)
        held.finish()


def test_exit_handlers_of_the_program_meet_intact_memory(hold, run_sim):
    """Handlers run after the worker was stopped: they use and free their memory as ever."""
    held = hold()
    held.do(
        "import atexit\n"
        "def last():\n"
        "    assert (download(regions[0], 48 * MIB) == data).all()\n"
        "    free(regions[0])\n"
        "    late = alloc(16 * MIB); upload(late, data[: 16 * MIB])\n"
        "    assert (download(late, 16 * MIB) == data[: 16 * MIB]).all()\n"
        "    print('handler done', flush=True)\n"
        "atexit.register(last)"
    )
    with connected(held.socket) as one:
        one.send(request(DEMOTE))
        result = run_sim.finish(held.process, input="").ok()
    assert "handler done" in result.stdout
    assert all(json.loads([line for line in result.stdout.splitlines() if line.startswith("{")][-1])["intact"])


def test_who_ordered_may_go(hold):
    held = hold()
    with connected(held.socket) as one:
        one.send(request(DEMOTE))
    while told(held).vram:  # it is answered after the order that nobody waits for
        pass
    held.finish()


def test_a_killed_program_in_the_middle_of_an_order(hold, order):
    held, other = hold(), hold()
    with connected(held.socket) as one:
        one.send(request(DEMOTE))
        os.kill(held.pid, signal.SIGKILL)
        held.process.communicate()
    result = order("demote", held)
    assert result.returncode == 1 and "there is no process" in result.stderr
    order("demote", other).ok()
    order("promote", other).ok()
    other.finish()


def test_a_fork_in_the_middle_of_an_order(hold):
    """The child has no worker, and its end takes nothing from its parent."""
    held = hold()
    with connected(held.socket) as one:
        for _ in range(5):
            one.send(request(DEMOTE))
            one.send(request(PROMOTE, 16 * MIB))
            held.do("pid = os.fork()\nif pid == 0:\n    libc = ctypes.CDLL(None); libc.exit(7)")
            held.do("assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7")
            one.recv(4096)
            one.recv(4096)
    assert told(held).state == "open"
    held.finish()
