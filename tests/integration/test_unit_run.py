# SPDX-License-Identifier: Apache-2.0
"""The drop-in of `spillshim unit` in a real systemd: process 1 of namespaces of its own, which starts one sandboxed service.

The service is a program that allocates past the end of a simulated GPU; beside it root's `spillshim status` runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import apart
import pytest

HOLD = """
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
int main(void)
{
    CUdevice device;
    CUcontext context;
    CUdeviceptr p;
    if (cuInit(0) || cuDeviceGet(&device, 0) || cuDevicePrimaryCtxRetain(&context, device) || cuCtxSetCurrent(context))
        return 1;
    printf("allocated %d\\n", cuMemAlloc(&p, 1536u << 20));
    for (const char *const *name = (const char *const[]){ "AWKWARD", "LD_PRELOAD", "SPILLSHIM_HOST_LIMIT", NULL }; *name; name++)
        printf("%s=%s\\n", *name, getenv(*name) ? getenv(*name) : "");
    fflush(stdout);
    return getchar() == 'q' ? 0 : 2;
}
"""
AWKWARD = 'a "quoted" 50%n $HOME back\\slash\ttab'
UNIT = """\
[Unit]
DefaultDependencies=no
[Service]
Type=exec
ExecStart=/bin/sh -c 'exec /opt/test/hold <>/opt/test/orders'
Environment=LD_LIBRARY_PATH=/opt/test/sim SIMGPU_VRAM=1G SIMGPU_RAM=8G
{awkward}
StandardOutput=file:{out}/out
StandardError=file:{out}/err
ProtectHome=yes
ProtectSystem=strict
PrivateTmp=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_INET
SystemCallFilter=@system-service
SystemCallArchitectures=native
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
LockPersonality=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
PrivateUsers=yes
CapabilityBoundingSet=
UMask=0077
{more}
"""
# Ends systemd, and so the namespaces, when it has ended.
WATCH = """\
[Unit]
DefaultDependencies=no
Wants=x.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
TimeoutStartSec=40
EnvironmentFile={out}/environment
ExecStart=/bin/sh -c 'until grep -q SPILLSHIM_HOST_LIMIT {out}/out; do sleep 0.1; done; {spillshim} status --json >{out}/status; \
ls -ld /run/spillshim/x/state >{out}/folder; echo q >/opt/test/orders; until ! ls /run/spillshim/x; do sleep 0.1; done'
StandardError=file:{out}/watch
"""
SCRIPT = """
mkdir -p /opt/test/sim
cp {hold} /opt/test/hold
cp {driver} /opt/test/sim/
mkfifo -m 666 /opt/test/orders
chmod -R a+rX /opt/test
{spillshim} install-system --files-only >/dev/null
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /etc/systemd/system
cp {out}/x.service {out}/watch.service /etc/systemd/system/
mkdir /etc/systemd/system/x.service.d
SPILLSHIM_LIBRARY=/usr/local/lib/spillshim/libspillshim.so {spillshim} unit x --host-limit 4G >/etc/systemd/system/x.service.d/spillshim.conf
cat /etc/systemd/system/x.service.d/spillshim.conf
exec env -i container=other PATH="$PATH" "$0" --system --unit=watch.service --log-target=console --log-level=warning --show-status=no </dev/null
"""


@pytest.fixture
def out() -> Iterator[Path]:
    """Where systemd writes what its services say; the service itself does not see it (PrivateTmp)."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="spillshim-test-") as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "user",
    [
        pytest.param("User=nobody", id="user"),
        pytest.param("DynamicUser=yes", id="dynamic"),
        pytest.param("User=nobody\nRuntimeDirectory=own\nRuntimeDirectoryMode=0770", id="own-folder", marks=pytest.mark.slow),
        pytest.param("", id="root", marks=pytest.mark.slow),
    ],
)
def test_a_service_spills(c_program, sim_dir: Path, clean_env: dict[str, str], out: Path, user: str) -> None:
    systemd = next((path for path in map(Path, ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")) if path.exists()), None)
    if systemd is None:
        pytest.skip("systemd is not installed (Debian package systemd)")
    from spillshim import units

    spillshim = apart.command(sys.executable, "-m", "spillshim")
    (out / "x.service").write_text(UNIT.format(out=out, more=user, awkward=units.assignment("AWKWARD", AWKWARD)))
    (out / "watch.service").write_text(WATCH.format(out=out, spillshim=spillshim.replace("%", "%%")))
    (out / "environment").write_text("".join(f"{name}={clean_env[name]}\n" for name in ("PATH", "PYTHONPATH") if name in clean_env))
    script = SCRIPT.format(out=out, spillshim=spillshim, hold=apart.command(c_program(HOLD, name="hold")), driver=apart.command(sim_dir / "libcuda.so.1"))
    ran = apart.machine(script, str(systemd), clean_env)
    said = {name: (out / name).read_text() for name in ("out", "err", "watch", "status", "folder") if (out / name).exists()}
    shown = f"{ran.stdout}\n{ran.stderr}\n{said}"
    if not said:
        pytest.skip(f"systemd does not start in namespaces here: {ran.stderr.strip()}")
    lines = said["out"].splitlines()
    assert lines == ["allocated 0", f"AWKWARD={AWKWARD}", "LD_PRELOAD=/usr/local/lib/spillshim/libspillshim.so", "SPILLSHIM_HOST_LIMIT=4G"], shown
    assert "spilled into RAM" in said["err"], shown
    assert "cannot share budgets" not in said["err"], shown
    (process,) = json.loads(said["status"])["processes"]
    assert process["ram"] > 0, shown
    assert said["folder"].startswith("drwx------"), shown
