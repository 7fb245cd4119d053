# SPDX-License-Identifier: Apache-2.0
"""`spillshim doctor` against the real library, probe and simulated driver: what it checks, and what it proves of a program."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

MACHINE = "vram=1G,ram=1G"

LINKED = """
#include <cuda.h>
#include <string.h>
int main(int argc, char **argv)
{
    CUdevice device;
    CUcontext context;
    CUdeviceptr p;
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context))
        return 10;
    if (argc > 1 && strcmp(argv[1], "nothing") == 0)
        return 0;
    return cuMemAlloc(&p, 64 << 20) || cuMemFree(p) ? 11 : 7;
}
"""

DLSYM = """
#include <cuda.h>
#include <dlfcn.h>
typedef CUresult (*fn)();
int main(void)
{
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    CUdevice device;
    CUcontext context;
    CUdeviceptr p;
    if (!lib)
        return 9;
    if (((fn)dlsym(lib, "cuInit"))(0) || ((fn)dlsym(lib, "cuDeviceGet"))(&device, 0) ||
        ((fn)dlsym(lib, "cuDevicePrimaryCtxRetain"))(&context, device) || ((fn)dlsym(lib, "cuCtxSetCurrent"))(context))
        return 10;
    return ((fn)dlsym(lib, "cuMemAlloc_v2"))(&p, (size_t)64 << 20) ? 11 : 0;
}
"""


def checks(output: str) -> dict[str, dict[str, str]]:
    return {check["check"]: check for check in json.loads(output.splitlines()[-1])["checks"]}


def test_the_simulated_machine_passes(spillshim) -> None:
    result = spillshim("doctor", "--sim", MACHINE, "--json")
    found = checks(result.stdout)
    assert {"library", "glibc", "preload", "driver", "backend", "ram", "cgroup", "memlock", "shm"} <= set(found)
    assert [name for name, check in found.items() if check["status"] == "fail"] == [], result
    assert result.returncode == 0
    assert found["backend"]["detail"].startswith("host-numa")
    assert all(check["fix"] for check in found.values() if check["status"] in ("warn", "fail"))


@pytest.mark.parametrize(
    ("host_vmm", "backend", "status"),
    [("host", "host", "ok"), ("none", "hostalloc", "warn"), ("crash", "hostalloc", "warn")],
)
def test_the_backend_is_found_out(spillshim, host_vmm: str, backend: str, status: str) -> None:
    check = checks(spillshim("doctor", "--sim", f"{MACHINE},host_vmm={host_vmm}", "--json").stdout)["backend"]
    assert check["detail"].startswith(backend)
    assert check["status"] == status


def test_a_machine_without_a_driver_fails_with_the_fix(spillshim) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has an NVIDIA driver")
    result = spillshim("doctor", "--json")
    assert result.returncode == 1
    assert checks(result.stdout)["driver"]["status"] == "fail"
    assert "--sim" in checks(result.stdout)["driver"]["fix"]
    text = spillshim("doctor")
    assert text.returncode == 1
    assert "1 failed" in text.stdout


def test_a_library_that_cannot_be_preloaded_fails(spillshim, tmp_path: Path) -> None:
    broken = tmp_path / "libspillshim.so"
    broken.write_bytes(b"\x7fELF" + bytes(60))
    result = spillshim("doctor", "--sim", MACHINE, "--json", env={"SPILLSHIM_LIBRARY": str(broken)})
    assert result.returncode == 1
    assert "fail" in {
        check["status"] for check in checks(result.stdout).values() if check["check"] in ("library", "glibc", "preload")
    }


# --- proving that allocations reach the shim ------------------------------------------------------------------------------


def observed(spillshim, *argv: str | Path) -> tuple[int, dict[str, Any]]:
    result = spillshim("doctor", "--sim", MACHINE, "--json", "--", *argv)
    return result.returncode, json.loads(result.stdout.splitlines()[-1])


def test_a_linked_program_is_caught(spillshim, c_program) -> None:
    code, answer = observed(spillshim, c_program(LINKED, name="linked"))
    assert code == 0
    assert answer["returncode"] == 7, "the program's own exit code is told, and is no failure of the check"
    (process,) = answer["processes"]
    assert process["verdict"] == "caught"
    assert any(
        path["path"] == "link" and path["symbol"].startswith("cuMemAlloc") and path["calls"] >= 1
        for path in process["paths"]
    ), process


def test_a_program_that_uses_dlsym_is_caught(spillshim, c_program) -> None:
    code, answer = observed(spillshim, c_program(DLSYM, link_libcuda=False, name="dlsym"))
    assert code == 0
    (process,) = answer["processes"]
    assert any(path["path"] == "dlsym" and path["symbol"].startswith("cuMemAlloc") for path in process["paths"]), (
        process
    )


def test_a_program_without_cuda_is_told_so(spillshim) -> None:
    code, answer = observed(spillshim, "/bin/true")
    assert code == 1
    assert [process["verdict"] for process in answer["processes"]] == ["no cuda"]


def test_a_program_that_allocates_nothing_is_told_so(spillshim, c_program) -> None:
    code, answer = observed(spillshim, c_program(LINKED, name="linked"), "nothing")
    assert code == 1
    assert [process["verdict"] for process in answer["processes"]] == ["no allocation"]


def test_a_process_that_loses_the_preload_is_named(spillshim, c_program) -> None:
    code, answer = observed(spillshim, "env", "-u", "LD_PRELOAD", "sleep", "0.3")
    assert code == 1
    assert any(
        process["verdict"] == "not loaded" and process["exe"].endswith("sleep") for process in answer["processes"]
    ), answer


def test_each_process_of_a_tree_is_listed(spillshim, c_program) -> None:
    linked = c_program(LINKED, name="linked")
    static = c_program(
        "#include <unistd.h>\nint main(void) { usleep(300000); return 0; }\n",
        link_libcuda=False,
        flags=["-static"],
        name="sleeper",
    )
    script = '"$0"; "$1"; /bin/true; env -u LD_PRELOAD sleep 0.3; exit 0'
    code, answer = observed(spillshim, "sh", "-c", script, linked, static)
    assert code == 0
    verdicts = {os.path.basename(process["exe"]): process for process in answer["processes"]}
    shell = verdicts.pop(os.path.basename(os.path.realpath(shutil.which("sh") or "/bin/sh")))
    assert shell["verdict"] == "no cuda", "a shell that ends by _exit is no process without the shim"
    assert verdicts["sleep"]["verdict"] == "not loaded"
    assert "LD_PRELOAD was removed" in verdicts["sleep"]["why"]
    assert set(verdicts) == {"linked", "sleeper", "true", "sleep"}, "the shim's own probe is not one of them"
    assert verdicts["linked"]["verdict"] == "caught"
    assert verdicts["sleeper"]["verdict"] == "not loaded"
    assert "statically linked" in verdicts["sleeper"]["why"]
    assert verdicts["true"]["verdict"] == "no cuda"


def test_a_program_in_this_folder(spillshim, c_program, tmp_path: Path) -> None:
    """As a person names it: ./PROGRAM, which is not on PATH; $0 is as it was written."""
    folder = tmp_path / "cwd"  # where the fixture runs
    shutil.copy(c_program(LINKED, name="linked"), folder / "linked")
    (folder / "script").write_text('[ "$0" = ./script ] && exec ./linked\n')
    (folder / "script").chmod(0o755)
    for name in ("./linked", "./script"):  # the second has no #! line: a shell runs it
        code, answer = observed(spillshim, name)
        assert (code, answer["returncode"]) == (0, 7), answer


def test_a_static_program_is_not_run_at_all(spillshim, c_program, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f'#include <stdio.h>\nint main(void) {{ fclose(fopen("{mark}", "w")); return 0; }}\n'
    result = spillshim("doctor", "--", c_program(source, link_libcuda=False, flags=["-static"], name="static"))
    assert result.returncode == 1
    assert "statically linked" in result.stderr
    assert not mark.exists()


def test_the_report_for_people(spillshim, c_program) -> None:
    result = spillshim("doctor", "--sim", MACHINE, "--", c_program(LINKED, name="linked"))
    assert result.returncode == 0, result
    assert "ended with exit code 7" in result.stderr
    assert "Allocations reach the shim." in result.stderr
    assert "cuMemAlloc" in result.stderr
    assert result.stdout == "", "standard output is the program's"


def test_a_missing_program_has_its_own_exit_code(spillshim) -> None:
    assert spillshim("doctor", "--", "no-such-program-anywhere").returncode == 127
