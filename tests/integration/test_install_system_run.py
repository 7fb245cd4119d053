# SPDX-License-Identifier: Apache-2.0
"""`install-system` as root, for true: programs of other users load the library by its bare name, and nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import apart
import pytest

SPILLSHIM = apart.command(sys.executable, "-m", "spillshim")
SNAPSHOT = "find /etc /usr/local /opt -xdev \\( -type f -o -type l -o -type d \\) ! -name ld.so.cache ! -path '/etc/ld.so.cache*' | sort"
LOADED = "grep -c libspillshim.so /proc/self/maps"


@pytest.fixture
def env(clean_env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**clean_env, "HOME": str(tmp_path)}


def test_installed_used_and_removed(env: dict[str, str]) -> None:
    script = f"""
{SNAPSHOT} > /mnt/before
{SPILLSHIM} install-system
ldconfig -p | grep libspillshim.so
echo "root: $(LD_PRELOAD=libspillshim.so {LOADED})"
cd /
echo "nobody: $(LD_PRELOAD=libspillshim.so setpriv --reuid=65534 --regid=65534 --clear-groups {LOADED})"
cp /bin/cat /usr/local/bin/privileged
chown 65534 /usr/local/bin/privileged
chmod 4755 /usr/local/bin/privileged
for name in libspillshim.so /usr/local/lib/spillshim/libspillshim.so; do
    echo "setuid: $(LD_PRELOAD=$name /usr/local/bin/privileged /proc/self/maps 2>&1 >/mnt/maps) $(grep -c libspillshim.so /mnt/maps || true)"
done
rm /usr/local/bin/privileged
{SPILLSHIM} install-system >/dev/null
{SPILLSHIM} install-system --uninstall
{SNAPSHOT} > /mnt/after
diff /mnt/before /mnt/after && echo "nothing is left"
ldconfig -p | grep libspillshim.so || echo "nor in the cache"
"""
    ran = apart.run(script, env)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert ran.stderr == ""
    said = ran.stdout
    assert "libspillshim.so (libc6,x86-64) => /usr/local/lib/spillshim/libspillshim.so" in said
    for user in ("root", "nobody"):
        assert int(said.split(f"{user}: ")[1].split()[0]) > 0
    ignored = [line for line in said.splitlines() if line.startswith("setuid:")]
    assert "cannot be preloaded" in ignored[0]  # a bare name is refused with a line,
    assert ignored[1] == "setuid:  0"  # a path without one
    assert ignored[0].endswith(" 0")
    assert "nothing is left" in said
    assert "nor in the cache" in said


def test_another_library_of_that_name_comes_first(env: dict[str, str], libspillshim: Path) -> None:
    script = f"""
mkdir /usr/local/lib/other
cp {apart.command(libspillshim)} /usr/local/lib/other/
echo /usr/local/lib/other > /etc/ld.so.conf.d/0-other.conf
{SPILLSHIM} install-system
"""
    ran = apart.run(script, env)
    assert ran.returncode == 125, f"{ran.stdout}\n{ran.stderr}"
    assert "the loader takes /usr/local/lib/other/libspillshim.so" in ran.stderr


def test_a_library_that_no_program_starts_with(env: dict[str, str], c_program) -> None:
    broken = c_program("int missing_from_every_library(void);\nint here(void) { return missing_from_every_library(); }\n", shared=True, link_libcuda=False, name="broken")
    script = f"SPILLSHIM_LIBRARY={apart.command(broken)} {SPILLSHIM} install-system"
    bound = {**env, "LD_BIND_NOW": "1"}
    ran = apart.run(script, bound)
    assert ran.returncode == 125, f"{ran.stdout}\n{ran.stderr}"
    assert "missing_from_every_library" in ran.stderr
    assert "--uninstall" in ran.stderr
