# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes page: its objects are ones by Kubernetes' own schemas, and what the DaemonSet runs does what the pods expect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import apart
import pytest

VALIDATOR = "kubernetes-validate==1.37.0"  # the schemas of Kubernetes' releases, as a PyPI package
OLDEST = "1.29"  # of the versions that the objects are checked against
PAGE = Path(str(resources.files("spillshim").joinpath("pages", "kubernetes.yaml")))

CHECK = """
import json, sys
import yaml, kubernetes_validate
objects = list(yaml.safe_load_all(open(sys.argv[1])))
for one in objects:
    for version in (sys.argv[2], kubernetes_validate.latest_version()):
        kubernetes_validate.validate(one, version, strict=True)
print(json.dumps(objects))
"""

pytestmark = pytest.mark.clients


def checked(path: Path, packages: Callable[..., Path]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(packages(VALIDATOR))}
    return subprocess.run([sys.executable, "-c", CHECK, str(path), OLDEST], env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def objects(packages: Callable[..., Path]) -> list[dict[str, Any]]:
    ran = checked(PAGE, packages)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_check_finds_what_is_wrong(packages: Callable[..., Path], tmp_path: Path, objects: list[dict[str, Any]]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(PAGE.read_text().replace("hostPath:", "hostpath:"))
    assert checked(wrong, packages).returncode != 0


def test_what_the_daemon_set_runs(objects: list[dict[str, Any]], clean_env: dict[str, str]) -> None:
    """Its script, with its folders and no more; then a program with the pod's variable, and the specification's mounts."""
    daemon_set, by_volume, by_cdi = objects
    (install,) = daemon_set["spec"]["template"]["spec"]["initContainers"]
    (app,) = by_volume["spec"]["containers"]
    library = next(one["value"] for one in app["env"] if one["name"] == "LD_PRELOAD")
    python = apart.command(sys.executable, "-m", "spillshim")
    script = f"""
spillshim() {{ {python} "$@"; }}
{install["args"][0]}
test -x {library} && test -x $(dirname {library})/spillshim-probe
echo "loaded: $(LD_PRELOAD={library} grep -c libspillshim.so /proc/self/maps)"
cat /etc/cdi/spillshim.json
"""
    ran = apart.run(script, clean_env)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    count, _, text = ran.stdout.partition("loaded: ")[2].partition("\n")
    assert int(count) > 0
    told = json.loads(text)
    (annotation,) = by_cdi["metadata"]["annotations"].values()
    assert annotation.strip() == f"- {told['kind']}={told['devices'][0]['name']}"
    mounted = {one["mountPath"] for one in install["volumeMounts"]}
    for device in told["devices"]:
        for mount in device["containerEdits"]["mounts"]:
            # On the node the files are where the script saw them.
            assert any(Path(mount["hostPath"]).is_relative_to(place) for place in mounted)
    paths = {one["name"]: one["hostPath"]["path"] for one in daemon_set["spec"]["template"]["spec"]["volumes"]}
    assert {one["mountPath"] for one in install["volumeMounts"]} == set(paths.values())
    assert {one["mountPath"]: paths[one["name"]] for one in install["volumeMounts"]} == {path: path for path in paths.values()}
