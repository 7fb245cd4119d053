# SPDX-License-Identifier: Apache-2.0
"""The GPU proof kit itself, on fake experiments: a crash, a hang, a lie or junk costs the rows it belongs to and no others.

The fakes are Python files that need no GPU; the kit runs them for the simulated device, as it would run real ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GPU = REPOSITORY / "tests" / "gpu"
KIT = GPU / "kit"
sys.path.insert(0, str(GPU))

from kit import beliefs, build, contract, report  # noqa: E402

PROLOGUE = """
import ctypes, json, os, signal, subprocess, sys, time

def say(row, verdict="measured", seen="seen", belief=None, **more):
    made = dict(row=row, ask="what " + row + " is", seen=seen, value=1, unit="bool", belief=belief, verdict=verdict,
                decides="the design", raw={}, **more)
    print(json.dumps(made), flush=True)
"""
BELIEF, OTHER_BELIEF = "vmm.mixed_access", "vmm.unmap_no_drain"


class Kit:
    """Fake experiments in a folder, and the kit run over them."""

    def __init__(self, tmp_path: Path, native: Path, env: dict[str, str]) -> None:
        self.folder = tmp_path / "experiments"
        self.folder.mkdir()
        self.out = tmp_path / "out"
        self.build = tmp_path / "build"
        self.env = dict(env, GPU_CHECK_NATIVE=str(native), TMPDIR=str(tmp_path))  # one that is killed leaves its scratch folder
        self.order = 0

    def add(self, name: str, rows: str, body: str, *, groups: str = "facts", expect: float = 0.1, limit: float = 20) -> None:
        """An experiment that lists `rows` (names without the prefix, separated by spaces) and then does `body`."""
        self.order += 10
        listed = [f"{name}.{row}" for row in rows.split()]
        (self.folder / f"{name}.py").write_text(
            f'"""A fake.\n\ngpu-check: groups={groups} order={self.order} expect={expect:g} limit={limit:g}\n"""\n{PROLOGUE}\n'
            f"if '--list' in sys.argv:\n    print({chr(10).join(listed)!r})\n    sys.exit(0)\n" + textwrap.dedent(body)
        )

    def argv(self, *more: str) -> list[str]:
        return [
            sys.executable, str(KIT), "--device", "sim", "--experiments", str(self.folder), "--out", str(self.out),
            "--build", str(self.build), *more,
        ]  # fmt: skip

    def result(self) -> dict:
        (path,) = self.out.glob("*.json")
        return json.loads(path.read_text())

    def run(self, *more: str, timeout: float = 60) -> tuple[subprocess.CompletedProcess[str], dict]:
        """What it printed and the JSON it wrote."""
        ran = subprocess.run(
            self.argv("--only", "facts", *more), env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert ran.returncode in (0, 1), f"{ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran, self.result()


@pytest.fixture
def kit(tmp_path: Path, native_dir: Path, clean_env: dict[str, str]) -> Kit:
    return Kit(tmp_path, native_dir, clean_env)


def rows(result: dict, experiment: str) -> dict[str, dict]:
    (found,) = [e for e in result["experiments"] if e["name"] == experiment]
    return {row["row"].partition(".")[2]: row for row in found["rows"]}


def experiment(result: dict, name: str) -> dict:
    (found,) = [e for e in result["experiments"] if e["name"] == name]
    return found


# --- one fake each -----------------------------------------------------------------------------------------------------


def test_answers_count_and_exit_is_0(kit: Kit) -> None:
    kit.add("good", "one two", f"say('good.one', 'confirms', belief='{BELIEF}')\nsay('good.two')")
    ran, result = kit.run()
    assert ran.returncode == 0, ran.stdout
    assert result["totals"] == {
        "asked": 2, "answered": 2, "confirms": 1, "corrects": 0, "measured": 1, "unanswered": 0, "problems": 0,
    }  # fmt: skip
    assert result["beliefs"] == {"confirmed": [BELIEF], "corrected": []}
    assert result["model"] is True and result["complete"] is True and result["schema"] == report.SCHEMA
    assert result["device"]["name"].startswith("simgpu") and result["machine"]["cpus"] >= 1
    assert "good.one: what good.one is -> seen | belief: confirms vmm.mixed_access | decides: the design" in ran.stdout
    assert "SIMULATED" in ran.stdout and "2 of 2 rows answered, 0 not" in ran.stdout


def test_crash_costs_only_what_was_not_said(kit: Kit) -> None:
    kit.add("crash", "before after", "say('crash.before')\nos.kill(os.getpid(), signal.SIGSEGV)\nsay('crash.after')")
    kit.add("next", "one", "say('next.one')")
    ran, result = kit.run()
    assert ran.returncode == 1
    assert rows(result, "crash")["before"]["verdict"] == "measured"
    after = rows(result, "crash")["after"]
    assert after["verdict"] == "unanswered" and after["seen"] == "never said: the experiment died of SIGSEGV"
    assert experiment(result, "crash")["signal"] == "SIGSEGV" and experiment(result, "crash")["exit"] is None
    assert rows(result, "next")["one"]["verdict"] == "measured"
    assert (result["totals"]["asked"], result["totals"]["answered"], result["totals"]["unanswered"]) == (3, 2, 1)
    assert "no answer  crash.after" in ran.stdout


def test_hang_is_killed_at_its_limit(kit: Kit) -> None:
    # Its child hangs too and holds the pipes open.
    body = """
        say('hang.before')
        subprocess.Popen(['sleep', '3600'])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    """
    kit.add("hang", "before after", body, limit=1.5)
    kit.add("next", "one", "say('next.one')")
    started = time.monotonic()
    ran, result = kit.run()
    assert time.monotonic() - started < 20
    hung = experiment(result, "hang")
    assert hung["timed_out"] and hung["status"] == "timed out" and 1.4 < hung["seconds"] < 5
    assert rows(result, "hang")["before"]["verdict"] == "measured"
    assert rows(result, "hang")["after"]["seen"].startswith("never said: the experiment killed at its time limit")
    assert rows(result, "next")["one"]["verdict"] == "measured" and ran.returncode == 1


def test_opposite_of_a_belief_is_a_correction(kit: Kit) -> None:
    kit.add("opposite", "one two", f"say('opposite.one', 'corrects', 'it drained', '{OTHER_BELIEF}')\n"
            f"say('opposite.two', 'confirms', belief='{BELIEF}')")  # fmt: skip
    kit.add("second", "one", f"say('second.one', 'confirms', belief='{OTHER_BELIEF}')")
    ran, result = kit.run()
    # An answer that nobody hoped for is an answer; and one correction outweighs any number of confirmations.
    assert ran.returncode == 0
    assert result["beliefs"] == {"confirmed": [BELIEF], "corrected": [OTHER_BELIEF]}
    assert result["totals"]["corrects"] == 1
    assert f"CORRECTS   opposite.one: what opposite.one is -> it drained | belief: corrects {OTHER_BELIEF}" in ran.stdout
    assert f"beliefs corrected: {OTHER_BELIEF}" in ran.stdout


def test_row_that_was_not_listed_counts_for_nothing(kit: Kit) -> None:
    kit.add("unlisted", "one", f"say('unlisted.one')\nsay('unlisted.bonus', 'confirms', belief='{BELIEF}')")
    ran, result = kit.run()
    assert list(rows(result, "unlisted")) == ["one"]
    assert [row["row"] for row in experiment(result, "unlisted")["unlisted"]] == ["unlisted.bonus"]
    assert experiment(result, "unlisted")["problems"] == ["unlisted.bonus was not listed; it counts for nothing"]
    assert result["totals"]["asked"] == 1 and result["beliefs"]["confirmed"] == [] and ran.returncode == 0


def test_forgotten_row_is_unanswered_though_the_exit_is_0(kit: Kit) -> None:
    kit.add("forgets", "one two", "say('forgets.one')")
    ran, result = kit.run()
    assert ran.returncode == 1
    assert rows(result, "forgets")["two"]["verdict"] == "unanswered"
    assert experiment(result, "forgets")["problems"] == ["it ended with 0 and never said forgets.two"]


def test_junk_is_no_row(kit: Kit) -> None:
    body = r"""
        print("Hello from a library")
        print('{"row": "junk.one"}')
        print('[1, 2]')
        print('{"row": NaN}')
        sys.stdout.buffer.write(b"\xff\xfe\x00\n"); sys.stdout.flush()
        print('{' * 100000)
        say('junk.two', 'perhaps')
        say('junk.two', 'confirms')
        say('junk.one', verdict='measured', colour='blue')
        say('junk.three')
        say('junk.three', seen='again')
        print('{"no newline at the end"', end='')
    """
    kit.add("junk", "one two three", body)
    ran, result = kit.run()
    assert ran.returncode == 1
    assert {name: row["verdict"] for name, row in rows(result, "junk").items()} == {
        "one": "unanswered", "two": "unanswered", "three": "measured",
    }  # fmt: skip
    assert rows(result, "junk")["three"]["seen"] == "seen"
    found = experiment(result, "junk")
    assert found["junk"] == 10
    assert sum("no row" in problem for problem in found["problems"]) == 6  # five quoted, one line for the others
    assert "junk.three was said twice; the first counts" in found["problems"]


def test_endless_output_is_ended(kit: Kit) -> None:
    kit.add("flood", "one", "line = 'x' * (1 << 20)\nwhile True:\n    sys.stdout.write(line)", limit=30)
    _, result = kit.run()
    assert rows(result, "flood")["one"]["seen"] == "never said: the experiment killed: it wrote without end"
    assert experiment(result, "flood")["seconds"] < 25


@pytest.mark.parametrize("escape", [False, True], ids=["same group", "own session"])
def test_child_left_behind_is_found_and_ended(kit: Kit, tmp_path: Path, escape: bool) -> None:
    pid_file = tmp_path / "pid"
    body = f"""
        child = subprocess.Popen(['sleep', '3600'], start_new_session={escape})
        open({str(pid_file)!r}, 'w').write(str(child.pid))
        say('leaves.one')
        os._exit(0)
    """
    kit.add("leaves", "one", body)
    started = time.monotonic()
    ran, result = kit.run()
    assert ran.returncode == 0 and time.monotonic() - started < 20
    assert rows(result, "leaves")["one"]["verdict"] == "measured"
    assert experiment(result, "leaves")["problems"] == ["it left 1 running process(es) behind, killed now"]
    assert not Path("/proc", pid_file.read_text()).exists()


def test_exit_code_after_all_rows_is_a_problem(kit: Kit) -> None:
    kit.add("late", "one", "say('late.one')\nsys.exit(5)")
    ran, result = kit.run()
    assert rows(result, "late")["one"]["verdict"] == "measured"
    assert experiment(result, "late")["problems"] == ["all rows were said, and then it ended with exit code 5"]


def test_honest_no_answer_is_not_answered(kit: Kit) -> None:
    kit.add("honest", "one", "say('honest.one', 'unanswered', 'torch is not installed')")
    ran, result = kit.run()
    assert ran.returncode == 1 and result["totals"]["unanswered"] == 1
    assert "not answered: honest.one: torch is not installed" in ran.stdout


def test_unknown_belief_is_no_belief(kit: Kit) -> None:
    kit.add("fancy", "one", "say('fancy.one', 'confirms', belief='vmm.never_heard_of')")
    _, result = kit.run()
    row = rows(result, "fancy")["one"]
    assert (row["verdict"], row["belief"], row["seen"]) == ("measured", None, "seen")
    assert result["beliefs"] == {"confirmed": [], "corrected": []} and result["totals"]["problems"] == 1


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", "--list failed: died of SIGABRT"),
        ("sys.exit(0)", "--list named no rows"),
        ("print('not a name')", "--list names what no row can be, or one twice: not a name"),
        ("print('broken.one\\nbroken.one')", "--list names what no row can be, or one twice: broken.one, broken.one"),
    ],
)
def test_experiment_that_cannot_list_counts_as_not_answered(kit: Kit, listing: str, reason: str) -> None:
    (kit.folder / "broken.py").write_text(f"# gpu-check: groups=facts order=1 expect=1 limit=5\n{PROLOGUE}\n{listing}\n")
    kit.add("next", "one", "say('next.one')")
    ran, result = kit.run()
    assert ran.returncode == 1
    assert rows(result, "broken")["all"]["seen"] == reason and experiment(result, "broken")["status"] == "not runnable"
    assert rows(result, "next")["one"]["verdict"] == "measured"


def test_experiment_that_does_not_compile(kit: Kit) -> None:
    (kit.folder / "wrong.c").write_text("/* gpu-check: groups=facts order=1 expect=1 limit=5 */\nint main(void) { return nothing; }\n")
    kit.add("next", "one", "say('next.one')")
    ran, result = kit.run()
    assert ran.returncode == 1
    assert "nothing" in rows(result, "wrong")["all"]["seen"] and "failed with 1" in rows(result, "wrong")["all"]["seen"]
    assert rows(result, "next")["one"]["verdict"] == "measured"


def test_experiment_in_c_gets_driver_options_and_environment(kit: Kit) -> None:
    (kit.folder / "native.c").write_text(
        """/* gpu-check: groups=facts order=1 expect=1 limit=20 */
        #include <cuda.h>
        #include <dlfcn.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        int main(int argc, char **argv)
        {
            if (argc == 2 && !strcmp(argv[1], "--list")) { puts("native.devices"); return 0; }
            void *driver = dlopen("libcuda.so.1", RTLD_NOW);
            CUresult (*init)(unsigned) = (CUresult (*)(unsigned))dlsym(driver, "cuInit");
            CUresult (*count)(int *) = (CUresult (*)(int *))dlsym(driver, "cuDeviceGetCount");
            int n = -1;
            if (init(0) || count(&n)) return 9;
            printf("{\\"row\\": \\"native.devices\\", \\"ask\\": \\"a\\", \\"seen\\": \\"%s %s %s %s %s %s\\", \\"value\\": %d, \\"unit\\": \\"count\\","
                   "\\"belief\\": null, \\"verdict\\": \\"measured\\", \\"decides\\": \\"d\\", \\"raw\\": {\\"cwd\\": \\"%s\\"}}\\n",
                   argv[1], argv[3], argv[5], argv[7], argv[8], getenv("GPU_CHECK_DEVICE"), n, getenv("GPU_CHECK_SCRATCH"));
            return 0;
        }
        """
    )
    ran, result = kit.run("--seed", "7")
    row = rows(result, "native")["devices"]
    assert ran.returncode == 0, ran.stdout
    assert row["value"] == 1 and row["seen"] == "--vram --ram --seconds --seed 7 sim"
    # Nothing of this machine's paths is written down.
    assert row["raw"]["cwd"] == "SCRATCH/native" and str(REPOSITORY) not in json.dumps(result["experiments"])
    assert not list(Path("/dev/shm").glob(f"simgpu-{os.getuid()}-gpu-check-{ran.args[0]}*"))


# --- budget, groups, interruption -----------------------------------------------------------------------------------------


def test_budget_skips_what_no_longer_fits(kit: Kit) -> None:
    kit.add("short", "one", "say('short.one')")
    kit.add("long", "one two", "say('long.one')", expect=500, limit=600)
    kit.add("last", "one", "say('last.one')")
    ran, result = kit.run("--minutes", "1")
    assert ran.returncode == 1
    assert experiment(result, "long")["status"] == "skipped" and experiment(result, "long")["exit"] is None
    assert all(row["seen"].startswith("skipped: takes 500 s, ") for row in rows(result, "long").values())
    assert result["totals"]["answered"] == 2 and result["totals"]["unanswered"] == 2
    assert "skipped: takes 500 s" in ran.stdout


def test_limit_never_exceeds_the_budget(kit: Kit) -> None:
    kit.add("hang", "one", "time.sleep(3600)", limit=600)
    started = time.monotonic()
    _, result = kit.run("--minutes", "0.07")
    assert time.monotonic() - started < 20
    assert rows(result, "hang")["one"]["verdict"] == "unanswered"


def test_order_is_by_decisiveness_and_groups_choose(kit: Kit) -> None:
    kit.add("b_first", "one", "say('b_first.one')")
    kit.add("a_second", "one", "say('a_second.one')", groups="facts,bandwidth")
    kit.add("other", "one", "say('other.one')", groups="hook")
    _, result = kit.run()
    assert [e["name"] for e in result["experiments"]] == ["b_first", "a_second"]


@pytest.mark.parametrize("group", ["llama", "conformance", "bandwidth"])
def test_group_without_experiments_is_not_answered(kit: Kit, group: str) -> None:
    ran, result = kit.run("--only", group)
    assert ran.returncode == 1
    assert rows(result, group)["all"]["seen"].startswith("not there yet: ")
    assert (result["totals"]["asked"], result["totals"]["answered"]) == (1, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_interrupted_run_still_writes_the_json(kit: Kit, tmp_path: Path, number: signal.Signals) -> None:
    marker = tmp_path / "running"
    kit.add("done", "one", "say('done.one')")
    kit.add("busy", "one two", f"say('busy.one')\nopen({str(marker)!r}, 'w').close()\ntime.sleep(3600)", limit=3600)
    kit.add("never", "one", "say('never.one')")
    process = subprocess.Popen(
        kit.argv("--only", "facts", "--minutes", "120"), env=kit.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert marker.exists()
        time.sleep(0.2)  # its row is on the way
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    result = kit.result()
    assert process.returncode == 1 and "Traceback" not in err, err
    assert result["interrupted"] == number.name and result["complete"] is False
    assert rows(result, "done")["one"]["verdict"] == "measured" and rows(result, "busy")["one"]["verdict"] == "measured"
    assert rows(result, "busy")["two"]["seen"].startswith("interrupted after ")
    assert rows(result, "never")["one"]["seen"] == f"not run: interrupted by {number.name}"
    assert (result["totals"]["asked"], result["totals"]["answered"], result["totals"]["unanswered"]) == (4, 2, 2)
    assert f"interrupted by {number.name}" in out


def test_killed_kit_leaves_what_was_known(kit: Kit, tmp_path: Path) -> None:
    marker = tmp_path / "running"
    kit.add("done", "one", "say('done.one')")
    kit.add("busy", "one", f"open({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(3600)", limit=3600)
    process = subprocess.Popen(kit.argv("--only", "facts", "--minutes", "120"), env=kit.env, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait(10)
    finally:
        process.kill()
        process.wait()
        if marker.exists() and marker.read_text():
            os.kill(int(marker.read_text()), signal.SIGKILL)
    result = kit.result()
    assert result["complete"] is False
    assert rows(result, "done")["one"]["verdict"] == "measured" and rows(result, "busy")["one"]["verdict"] == "unanswered"


def test_two_runs_a_day_are_two_files(kit: Kit) -> None:
    kit.add("good", "one", "say('good.one')")
    kit.run()
    ran = subprocess.run(kit.argv("--only", "facts"), env=kit.env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0
    first, second = sorted(kit.out.glob("*.json"), key=lambda path: len(path.name))
    assert second.name == f"{first.stem}-2.json"


# --- usage and devices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "nonsense"], "nonsense is no group"),
        (["--only", ""], "is no group"),
        (["--minutes", "0"], "not a number of minutes"),
        (["--vram", "12"], "not a size of at least 64M"),
        (["--device", "toaster"], "invalid choice"),
        (["--experiments", "/does/not/exist"], "no such folder"),
        (["--wheels", "/does/not/exist"], "no .whl file"),
        (["--device", "sim", "--out", str(REPOSITORY / "benchmarks" / "results")], "results of real devices only"),
    ],
)
def test_wrong_usage_is_2(clean_env: dict[str, str], tmp_path: Path, words: list[str], said: str) -> None:
    ran = subprocess.run(
        [str(REPOSITORY / "scripts" / "gpu-check"), "--out", str(tmp_path), "--build", str(tmp_path), *words],
        env=dict(clean_env, PYTHON=sys.executable), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 2 and said in ran.stderr, ran.stderr
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("marker", ["order=1", "groups=facts order=x expect=1 limit=2", "groups=moon order=1 expect=1 limit=2",
                                    "groups=facts order=1 expect=3 limit=2", "groups=facts order=1 expect=1 limit=2 fast"])  # fmt: skip
def test_wrong_marker_is_2(kit: Kit, marker: str) -> None:
    (kit.folder / "odd.py").write_text(f"# gpu-check: {marker}\n")
    ran = subprocess.run(kit.argv(), env=kit.env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2 and "odd.py" in ran.stderr


FAKE_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { (void)flags; return INIT; }
int cuGetErrorName(int e, const char **n) { (void)e; *n = "CUDA_ERROR_NO_DEVICE"; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int ordinal) { *d = ordinal; return 0; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
int cuDeviceGetName(char *to, int n, int d) { (void)n; (void)d; strcpy(to, "Fake GPU (X)"); return 0; }
int cuDeviceGetPCIBusId(char *to, int n, int d) { (void)n; (void)d; strcpy(to, "0000:FF:00.0"); return 0; }
int cuDeviceTotalMem_v2(unsigned long *to, int d) { (void)d; *to = 8ul << 30; return 0; }
int cuDeviceGetUuid(unsigned char *to, int d) { (void)d; memset(to, 7, 16); return 0; }
int cuDeviceGetAttribute(int *to, int a, int d) { (void)d; if (a == 134) return 1; *to = a; return 0; }
"""


@pytest.fixture
def fake_driver(tmp_path: Path):
    """`fake_driver(0)`: a folder with a libcuda.so.1 that describes a device, or whose cuInit fails; put before any real one."""

    def make(init: int) -> Path:
        folder = tmp_path / "driver"
        folder.mkdir()
        (tmp_path / "driver.c").write_text(FAKE_DRIVER)
        for name in ("libcuda.so.1", "libnvidia-ml.so.1"):  # the second has none of NVML's entries that count
            more = "" if name == "libcuda.so.1" else "int nvmlInit_v2(void) { return 9; }"
            (tmp_path / "driver.c").write_text(FAKE_DRIVER + more)
            subprocess.run(["gcc", f"-DINIT={init}", "-shared", "-fPIC", "-o", folder / name, tmp_path / "driver.c"], check=True)
        return folder

    return make


def real_argv(kit: Kit, *words: str) -> list[str]:
    return [word if word != "sim" else "real" for word in kit.argv(*words)]


def test_no_device_is_3(kit: Kit, fake_driver) -> None:
    kit.add("good", "one", "say('good.one')")
    env = dict(kit.env, LD_LIBRARY_PATH=str(fake_driver(100)))
    ran = subprocess.run(real_argv(kit), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 3, ran.stdout + ran.stderr
    assert "no device to ask: cuInit answered CUDA_ERROR_NO_DEVICE (100)" in ran.stderr
    assert not list(kit.out.glob("*"))


def test_simulated_driver_does_not_pass_for_a_gpu(kit: Kit, sim_dir: Path) -> None:
    kit.add("good", "one", "say('good.one')")
    env = dict(kit.env, LD_LIBRARY_PATH=str(sim_dir))
    ran = subprocess.run(real_argv(kit), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 3 and "is the simulated one" in ran.stderr and not list(kit.out.glob("*"))


def test_real_device_without_the_library_still_answers_facts(kit: Kit, fake_driver, tmp_path: Path) -> None:
    """The path of a real run, up to the driver: bounds, description, file name; and what needs libspillshim says that it is missing."""
    body = "say('fact.bounds', seen=' '.join(sys.argv[1:]))\nassert 'SIMGPU_NAME' not in os.environ\nassert 'LD_PRELOAD' not in os.environ"
    kit.add("fact", "bounds", body)
    kit.add("hooked", "one", "say('hooked.one')", groups="hook")
    env = dict(kit.env, LD_LIBRARY_PATH=str(fake_driver(0)), GPU_CHECK_NATIVE=str(tmp_path), SIMGPU_NAME="leak", CUDA_VISIBLE_DEVICES="0")
    ran = subprocess.run(real_argv(kit, "--only", "facts,hook"), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    result = kit.result()
    (path,) = kit.out.glob("*.json")
    assert path.name.startswith("fake-gpu-x-20") and result["model"] is False and "SIMULATED" not in ran.stdout
    device = result["device"]
    assert (device["vram"], device["cuda"], device["compute_capability"], device["host_numa_id"]) == (8 << 30, "12.8", "75.76", None)
    assert len(device["uuid_hash"]) == 16 and "07070707" not in path.read_text()
    assert result["bounds"]["vram"] <= 0.6 * (4 << 30) and result["bounds"]["ram"] <= 24 << 30  # what is free is unknown: half
    assert rows(result, "fact")["bounds"]["seen"].startswith(f"--vram {result['bounds']['vram']} --ram ")
    assert "has no libspillshim.so" in rows(result, "hooked")["all"]["seen"]


def test_terminal_gets_columns(kit: Kit) -> None:
    pytest.importorskip("rich")
    import pty

    kit.add("good", "one", f"say('good.one', 'confirms', belief='{BELIEF}')")
    main_end, other_end = pty.openpty()
    env = dict(kit.env, TERM="xterm", COLUMNS="120")
    process = subprocess.Popen(kit.argv("--only", "facts"), env=env, stdin=subprocess.DEVNULL, stdout=other_end, stderr=other_end)
    os.close(other_end)
    shown = b""
    while True:
        try:
            data = os.read(main_end, 4096)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(main_end)
    text = shown.decode()
    assert process.wait(60) == 0, text
    for word in ("verdict", "asked", "decides", "confirms", "what good.one is", "1 of 1 rows answered"):
        assert word in text


# --- what the kit builds ---------------------------------------------------------------------------------------------------


def test_wheels_serve_without_network_or_installation(kit: Kit, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "ANSWER = 42\n")
        wheel.writestr("nvidia/cu13/lib/libcudart.so.13", "would be found by frameworks instead of theirs")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    kit.add("uses", "one", "import carried\nsay('uses.one', seen=f'{carried.ANSWER} ' + os.environ['GPU_CHECK_WHEELS'])")
    ran, result = kit.run("--wheels", str(wheels))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert rows(result, "uses")["one"]["seen"] == f"42 {wheels}"
    assert not list(kit.build.rglob("libcudart*")) and len(result["library"]) == 16
    assert result["command"][-2:] == ["--wheels", "wheels"]
    assert subprocess.run([sys.executable, "-c", "import carried"], capture_output=True, check=False).returncode != 0


def test_newest_headers_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, version, files in (
        ("toolkit", 13000, ("cudaTypedefs.h", "nvml.h")), ("package/nvidia/cu13", 13050, ("cudaTypedefs.h",)), ("bare", 19990, ()),
    ):  # fmt: skip
        folder = tmp_path / name / "include"
        folder.mkdir(parents=True)
        (folder / "cuda.h").write_text(f"#define CUDA_VERSION {version}\n")
        for file in files:
            (folder / file).touch()
    monkeypatch.setattr(build.Toolbox, "nvcc", None)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "package")])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "bare"))
    tools = build.Toolbox(tmp_path / "build", tmp_path)
    assert build.header_version(tools.cuda_include) >= 13050 and tools.cuda_include != tmp_path / "bare" / "include"


def test_package_of_the_source_tree_is_importable_in_experiments(kit: Kit, native_dir: Path) -> None:
    kit.add("uses", "one", "import spillshim.native as n\nsay('uses.one', seen=str(n.library().resolve()))")
    _, result = kit.run()
    seen = rows(result, "uses")["one"]["seen"]
    assert seen.endswith("libspillshim.so") and "never said" not in seen


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cffi", [True, False], ids=["with cffi", "without cffi"])
def test_native_parts_are_built_where_nothing_is_installed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda_include: Path, cffi: bool
) -> None:
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    if cffi:
        pytest.importorskip("cffi.gen_src")
    monkeypatch.delenv("GPU_CHECK_NATIVE", raising=False)
    monkeypatch.setattr(build, "_has_cffi", lambda: cffi)
    monkeypatch.setattr(build.Toolbox, "_installed", staticmethod(lambda: None))
    tools = build.Toolbox(tmp_path / "with space", kit.folder)
    if not cffi:  # a bare machine in another respect too: its toolkit has no nvml.h, a package has
        toolkit = tmp_path / "toolkit"
        toolkit.mkdir()
        for header in cuda_include.iterdir():
            if header.name != "nvml.h":
                (toolkit / header.name).symlink_to(header)
        tools.__dict__["cuda_include"] = toolkit
    folder = tools.native
    assert all((folder / part).is_file() for part in build.NATIVE_PARTS) and (folder / "sim" / "include" / "simk.h").is_file()
    kit.env["GPU_CHECK_NATIVE"] = str(folder)
    kit.add("good", "one", "say('good.one', seen=ctypes.CDLL('libcuda.so.1').cuInit(0) == 0 and 'initialised' or 'no')")
    _, result = kit.run()
    assert rows(result, "good")["one"]["seen"] == "initialised"


# --- the contract, held against every experiment that is there ------------------------------------------------------------------


def test_beliefs_are_read_from_the_table() -> None:
    known = beliefs.read()
    assert len(known) > 50 and {BELIEF, OTHER_BELIEF} <= set(known)
    assert known[OTHER_BELIEF].source == "C" and "cuMemUnmap" in known[OTHER_BELIEF].text
    assert all(belief.confirmed for belief in known.values())


@pytest.mark.parametrize(
    "table",
    [
        "| `a.b` | x | D | documented | not yet |\n| `a.b` | y | D | documented | not yet |",
        "| a b | x | D | documented | not yet |",
        "| `a.b` | x | D | not yet |",
        "| `a.b` | | D | documented | not yet |",
    ],
    ids=["twice", "bad id", "short", "empty cell"],
)
def test_wrong_belief_table_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "BELIEFS.md"
    path.write_text(f"# x\n| id | belief | source | doubt | confirmed |\n|---|---|---|---|---|\n{table}\n")
    with pytest.raises(ValueError, match=r"BELIEFS\.md:\d"):
        beliefs.read(path)


def _sources() -> list[Path]:
    return sorted([*GPU.glob("*.c"), *GPU.glob("*.h"), *(GPU / "apps").glob("*.py")])


@pytest.mark.parametrize("path", sorted(GPU.glob("*.c")), ids=lambda path: path.name)
def test_every_c_file_is_an_experiment(path: Path) -> None:
    assert contract.declared(path) is not None, f"{path.name} has no `gpu-check:` line in its opening comment"


@pytest.mark.parametrize("path", _sources(), ids=lambda path: path.name)
def test_experiments_name_known_beliefs_only(path: Path) -> None:
    known = beliefs.read()
    areas = {name.partition(".")[0] for name in known}
    named = set(re.findall(r'"((?:' + "|".join(sorted(areas)) + r')\.[a-z0-9_]+)"', path.read_text()))
    # Rows may be named like a belief's area (graph.replay_after_remap of the experiment graph).
    named = {name for name in named if name.partition(".")[0] != path.stem}
    assert not named - set(known), f"{path.name} names beliefs that BELIEFS.md does not have: {sorted(named - set(known))}"


def test_discovery_finds_each_name_once() -> None:
    found = contract.discover(GPU)
    assert [e.order for e in found] == sorted(e.order for e in found)
    assert all(e.source.exists() for e in found)
