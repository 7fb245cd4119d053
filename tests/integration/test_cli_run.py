# SPDX-License-Identifier: Apache-2.0
"""`spillshim run` as a process: it becomes the program and leaves no trace of itself but LD_PRELOAD and SPILLSHIM_*."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EMPTY = "int main(void) { return 0; }\n"

# Allocates `argv[1]` MiB in pieces of 32 MiB and touches each through the driver.
ALLOCATE = """
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#define CHECK(call) do { CUresult r = (call); if (r) { printf("%s: %d\\n", #call, r); return 10; } } while (0)
int main(int argc, char **argv)
{
    CUdevice device;
    CUcontext context;
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    for (int left = argc > 1 ? atoi(argv[1]) : 64; left > 0; left -= 32) {
        CUdeviceptr p;
        CUresult r = cuMemAlloc(&p, 32 << 20);
        if (r == CUDA_ERROR_OUT_OF_MEMORY)
            return puts("out of memory"), 3;
        CHECK(r);
        CHECK(cuMemsetD8(p, left & 0xff, 32 << 20));
    }
    CHECK(cuCtxSynchronize());
    puts("done");
    return 0;
}
"""


@pytest.fixture
def allocate(c_program) -> Path:
    return c_program(ALLOCATE, name="allocate")


# --- becoming the program ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 2, 37, 125, 255])
def test_the_exit_code_is_the_programs(spillshim, code: int) -> None:
    result = spillshim("run", "--", "sh", "-c", f"exit {code}")
    assert result.returncode == code
    assert result.stdout == result.stderr == ""


def started(script: str, env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """`spillshim run -- sh -c script`, running; its standard output is a pipe."""
    argv = [sys.executable, "-m", "spillshim", "run", "--", "sh", "-c", script]

    def interruptible() -> None:
        # A shell's background jobs ignore SIGINT, and that is inherited: the suite may be one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True, preexec_fn=interruptible)


def test_the_process_is_the_programs(clean_env, tmp_path: Path) -> None:
    process = started("echo $$", clean_env, tmp_path)
    out, _ = process.communicate(timeout=30)
    assert int(out) == process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR1])
def test_signals_reach_the_program(number: signal.Signals, clean_env, tmp_path: Path) -> None:
    process = started("echo ready; exec sleep 30", clean_env, tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == -number
    process.stdout.close()


def test_signal_dispositions_and_descriptors_are_untouched(spillshim, clean_env) -> None:
    look = ["sh", "-c", "grep ^Sig /proc/self/status; ls /proc/self/fd"]
    bare = subprocess.run(
        look, env=clean_env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout
    strip = re.compile(r"^SigQ.*\n", re.MULTILINE)  # pending signals of the whole user: changes by itself
    assert strip.sub("", spillshim("run", "--", *look).ok().stdout) == strip.sub("", bare)


def test_only_our_variables_are_added(spillshim, clean_env) -> None:
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        clean_env.pop(name, None)  # in a C locale Python sets LC_CTYPE for its children
    shown = spillshim("run", "--", "env", "-0", env={"MARK": "a b\nc"}).ok().stdout
    seen = dict(entry.split("=", 1) for entry in shown.split("\0") if entry)
    added = {name for name in seen if clean_env.get(name) != seen[name]} - {"MARK", "PWD", "_"}
    assert added == {"LD_PRELOAD", "SPILLSHIM_JOB"}
    assert seen["MARK"] == "a b\nc"
    assert "LC_CTYPE" not in seen


def test_missing_and_unusable_programs(spillshim, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    for argv, code, message in [
        (["no-such-program-anywhere"], 127, "no program named no-such-program-anywhere on PATH"),
        (["/no/such/program"], 127, "no such program: /no/such/program"),
        ([str(plain)], 126, "is not executable (mode"),
        ([str(tmp_path)], 126, "is a folder"),
    ]:
        result = spillshim("run", "--", *argv)
        assert result.returncode == code, result
        assert message in result.stderr
        assert result.stdout == ""


def test_a_script_without_a_first_line_runs(spillshim, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$1"; exit 5\n')
    script.chmod(0o755)
    result = spillshim("run", "--", script, "hello")
    assert (result.returncode, result.stdout) == (5, "hello\n")


@pytest.mark.parametrize("flags", [["-static"], ["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"]])
def test_what_cannot_be_caught_is_refused_before_it_runs(
    spillshim, c_program, flags: list[str], tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    source = f'#include <stdio.h>\nint main(void) {{ fclose(fopen("{mark}", "w")); return 9; }}\n'
    built = c_program(source, link_libcuda=False, flags=flags, name="escapes")
    result = spillshim("run", "--", built)
    assert result.returncode == 125, result
    assert str(built) in result.stderr
    assert "--force" in result.stderr
    assert not mark.exists()
    if flags == ["-static"]:
        forced = spillshim("run", "--force", "--", built)
        assert forced.returncode == 9
        assert "warning" in forced.stderr and "statically linked" in forced.stderr
        assert mark.exists()


def test_a_setuid_program_is_refused(spillshim, tmp_path: Path) -> None:
    copy = Path(shutil.copy(shutil.which("true") or "/bin/true", tmp_path / "true"))
    copy.chmod(0o4755)
    result = spillshim("run", "--", copy)
    assert result.returncode == 125
    assert "is setuid (mode 4755)" in result.stderr


def test_a_missing_library_is_refused(spillshim) -> None:
    result = spillshim("run", "--", "true", env={"SPILLSHIM_LIBRARY": "/no/such/lib.so"})
    assert result.returncode == 125
    assert "/no/such/lib.so" in result.stderr


# --- what is preloaded ------------------------------------------------------------------------------------------------------


def test_the_library_is_loaded(spillshim, libspillshim: Path) -> None:
    assert str(libspillshim.resolve()) in spillshim("run", "--", "cat", "/proc/self/maps").ok().stdout


@pytest.mark.parametrize("folder", ["with space", "with:colon"])
def test_awkward_paths_survive(spillshim, libspillshim: Path, folder: str, tmp_path: Path) -> None:
    place = tmp_path / folder
    place.mkdir()
    copy = shutil.copy(libspillshim, place / "libspillshim.so")
    program = Path(shutil.copy(shutil.which("cat") or "/bin/cat", place / "my cat"))
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    env = {"SPILLSHIM_LIBRARY": str(copy), "XDG_RUNTIME_DIR": str(runtime)}
    result = spillshim("run", "--", program, "/proc/self/maps", env=env).ok()
    assert str(copy) in result.stdout
    assert result.stderr == ""


def test_the_users_preload_is_kept(spillshim, c_program, preloadable: Path, tmp_path: Path) -> None:
    source = '#include <unistd.h>\n__attribute__((constructor)) static void hello(void) { (void)!write(2, "user library\\n", 13); }\n'
    library = Path(
        shutil.copy(c_program(source, link_libcuda=False, shared=True, name="user"), tmp_path)
    )  # no space in its path
    result = spillshim("run", "--", "sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": str(library)}).ok()
    assert result.stdout.strip().split(":") == [str(preloadable), str(library)]
    assert "user library" in result.stderr


def test_a_sanitized_program_runs(spillshim, c_program) -> None:
    built = c_program(EMPTY, link_libcuda=False, flags=["-fsanitize=address"], name="asan")
    result = spillshim("run", "--", built)
    assert result.returncode == 0, result
    assert "ASan runtime does not come first" not in result.stderr
    # The same mistake that the order avoids, so that this test is known to see it:
    wrong = spillshim("run", "--", "sh", "-c", 'exec "$0"', built)
    assert "ASan runtime does not come first" in wrong.stderr


def test_a_sanitizer_in_the_users_preload_stays_in_front(spillshim, preloadable: Path) -> None:
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    result = spillshim(
        "run",
        "--",
        "sh",
        "-c",
        "echo $LD_PRELOAD",
        env={"LD_PRELOAD": os.path.realpath(asan), "ASAN_OPTIONS": "detect_leaks=0"},
    ).ok()
    assert result.stdout.strip().split(":") == [os.path.realpath(asan), str(preloadable)]


def test_a_run_inside_a_run_preloads_once_and_overrides(spillshim, preloadable: Path) -> None:
    inner = [
        sys.executable,
        "-m",
        "spillshim",
        "run",
        "--log",
        "error",
        "--",
        "sh",
        "-c",
        "echo $LD_PRELOAD; echo $SPILLSHIM_LOG $SPILLSHIM_HOST_LIMIT; echo $SPILLSHIM_JOB",
    ]
    lines = (
        spillshim("run", "--log", "info", "--host-limit", "1G", "--", *inner, env={"SPILLSHIM_JOB": "outer"})
        .ok()
        .stdout.splitlines()
    )
    assert lines == [str(preloadable), "error 1G", "outer"]


# --- a program that never touches CUDA pays nothing -----------------------------------------------------------------------------


def test_a_program_without_cuda_leaves_no_trace(spillshim, need, tmp_path: Path) -> None:
    trace, state = tmp_path / "trace", tmp_path / "state"
    # strace runs under the shim, and so does the program it starts; only the latter is in the trace.
    env = {"SPILLSHIM_STATE_DIR": str(state)}
    result = spillshim(
        "run", "--stats", tmp_path / "stats", "--", need("strace"), "-f", "-o", trace, "/bin/true", env=env
    ).ok()
    assert result.stdout == result.stderr == ""
    calls = trace.read_text()
    assert "libspillshim.so" in calls, "the shim was loaded"
    assert "/dev/shm/spillshim" not in calls
    assert "exited with 0" in calls
    names = {match[1] for match in re.finditer(r"^\d+ +(\w+)\(", calls, re.MULTILINE)}
    assert not names & {
        "clone",
        "clone3",
        "fork",
        "vfork",
        "memfd_create",
        "shmget",
        "socket",
        "write",
        "writev",
        "mkdir",
        "unlink",
        "prctl",
        "timer_create",
        "inotify_init",
    }, names
    assert not re.search(r"O_CREAT|O_WRONLY|O_RDWR|MAP_SHARED", calls)
    opened = set(re.findall(r'open(?:at)?\([^"]*"([^"]+)"', calls))
    assert all(
        re.search(
            r"/(ld\.so\.cache|libspillshim\.so|libc\.so\.6|libdl\.so\.2|locale-archive|[\w@.-]+/gconv-modules.*)$", path
        )
        or "/locale/" in path
        for path in opened
    ), opened
    assert not state.exists()
    assert not (tmp_path / "stats").exists()


# --- the simulated GPU ----------------------------------------------------------------------------------------------------------


def test_a_program_spills_on_the_simulated_gpu(spillshim, allocate: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats file"
    machine = f"vram=512M,ram=2G,name=cli-{os.getpid()}"
    plain = spillshim("run", "--sim", machine, "--no-spill", "--", allocate, "1024")
    assert (plain.returncode, plain.stdout) == (3, "out of memory\n"), plain
    result = spillshim("run", "--sim", machine, "--stats", stats, "--", allocate, "1024")
    assert (result.returncode, result.stdout) == (0, "done\n"), result
    record = json.loads(stats.read_text())
    assert record["spilled"]["bytes_peak"] >= 512 << 20
    assert record["exe"].endswith("allocate")
    assert "spill" in result.stderr, "the first spill and the summary are said"
    assert not [
        name for name in os.listdir("/dev/shm") if name.startswith("simgpu-") and name.endswith(f"cli-{os.getpid()}")
    ]


def test_quiet_says_no_summary(spillshim, allocate: Path) -> None:
    loud = spillshim("run", "--sim", "vram=512M,ram=2G", "--log", "off", "--", allocate, "1024").ok()
    quiet = spillshim("run", "--sim", "vram=512M,ram=2G", "--log", "off", "--quiet", "--", allocate, "1024").ok()
    assert len(loud.stderr.splitlines()) == 1, loud
    assert quiet.stderr == ""


def test_two_simulated_runs_do_not_share_a_machine(spillshim, allocate: Path) -> None:
    # Both machines have room for one such program, not for two.
    script = '"$@" & "$@"; first=$?; wait $! && exit $first'
    run = [
        sys.executable,
        "-m",
        "spillshim",
        "run",
        "--quiet",
        "--sim",
        "vram=1G,ram=64M",
        "--no-spill",
        "--headroom",
        "0",
        "--",
        str(allocate),
        "640",
    ]
    result = spillshim("run", "--force", "--", "sh", "-c", script, "sh", *run)
    assert result.returncode == 0, result
    assert result.stdout == "done\ndone\n"


# --- path and env -------------------------------------------------------------------------------------------------------------


def test_path_is_for_ld_preload(spillshim, preloadable: Path, sim_dir: Path) -> None:
    assert spillshim("path").ok().stdout == f"{preloadable}\n"
    assert Path(spillshim("path", "--sim").ok().stdout.strip()).resolve() == sim_dir.resolve()
    assert (Path(spillshim("path", "--include").ok().stdout.strip()) / "simk.h").is_file()


def test_env_can_be_evaluated(spillshim, allocate: Path, clean_env, tmp_path: Path) -> None:
    lines = (
        spillshim("env", "--sim", "vram=512M,ram=2G", "--quiet", "--log", "off", "--stats", tmp_path / "it's a file")
        .ok()
        .stdout
    )
    ran = subprocess.run(
        ["sh", "-c", 'eval "$1"; exec "$2" 1024', "sh", lines, str(allocate)],
        env=clean_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
    assert json.loads((tmp_path / "it's a file").read_text())["spilled"]["bytes_peak"] > 0


def test_env_as_json(spillshim, preloadable: Path) -> None:
    made = json.loads(spillshim("env", "--json", "--vram-limit", "90%").ok().stdout)
    assert made.pop("SPILLSHIM_JOB")
    assert made == {"LD_PRELOAD": str(preloadable), "SPILLSHIM_VRAM_LIMIT": "90%"}


def test_the_variables_are_documented(spillshim) -> None:
    rows = json.loads(spillshim("env", "--help-vars", "--json").ok().stdout)
    named = {row["name"]: row for row in rows}
    assert {"SPILLSHIM_VRAM_LIMIT", "SPILLSHIM_HOST_LIMIT", "SPILLSHIM_STATS", "SIMGPU_VRAM"} <= set(named)
    assert all(row["help"] for row in rows)
    table = spillshim("env", "--help-vars").ok().stdout
    assert all(name in table for name in named)


def test_every_option_has_a_documented_variable(spillshim) -> None:
    from spillshim.cli.options import _OPTIONS

    rows = json.loads(spillshim("env", "--help-vars", "--json").ok().stdout)
    assert {f"SPILLSHIM_{variable}" for _, variable, _ in _OPTIONS} <= {row["name"] for row in rows}


# --- colour ---------------------------------------------------------------------------------------------------------------------


def on_a_terminal(argv: list[str], env: dict[str, str], cwd: Path) -> str:
    """What `argv` writes to a terminal of 80 columns."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(argv, env=env, cwd=cwd, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    data = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the last writer has closed it
            break
        if not piece:
            break
        data += piece
    os.close(master)
    process.wait(timeout=60)
    return data.decode(errors="replace")


def test_colour_only_on_a_terminal_and_never_with_no_color(spillshim, clean_env, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "spillshim", "run", "--", "no-such-program-anywhere"]
    env = {**clean_env, "TERM": "xterm"}
    assert "\x1b[" not in spillshim("run", "--", "no-such-program-anywhere", env={"TERM": "xterm"}).stderr
    assert "\x1b[" not in on_a_terminal(argv, env, tmp_path), "clean_env sets NO_COLOR"
    env.pop("NO_COLOR")
    assert "\x1b[31m" in on_a_terminal(argv, env, tmp_path)
