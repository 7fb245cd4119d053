# SPDX-License-Identifier: Apache-2.0
# Sourced by scripts/demo and scripts/test: makes .venv in the clone and installs spillshim into it (editable, because
# `./spillshim` in the clone would hide any other installation from a Python that is started here).
# Quick when nothing changed. Everything it says goes to stderr; what pip says goes to .venv/setup.log, shown on failure.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
unset PYTHONPATH PYTHONHOME LD_PRELOAD
venv_python="$PWD/.venv/bin/python"
setup_log="$PWD/.venv/setup.log"

say() { printf '%s\n' "$*" >&2; }
die() { say "$0: $*"; exit 1; }

# Runs a command with its output in the log; on failure shows the log's end.
logged() {
    if ! "$@" >>"$setup_log" 2>&1; then
        say "failed: $*"
        tail -n 40 "$setup_log" >&2
        die "set-up failed; the whole log is $setup_log"
    fi
}

# apt_install WHY PACKAGE...: as root on a Debian-like system, else fails. Says what it does before it does it.
apt_install() {
    local why=$1
    shift
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    say "installing Debian packages ($why): $*"
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    apt-get install -y -q --no-install-recommends "$@" >>"$setup_log" 2>&1 && return 0
    apt-get update -q >>"$setup_log" 2>&1 && apt-get install -y -q --no-install-recommends "$@" >>"$setup_log" 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "no python3 of version 3.10 or newer found (PYTHON=/path/to/python3 names one)"
}

# What an installation depends on: the native sources, the package's list of modules, the build file, the Python.
fingerprint() {
    "$venv_python" - <<'PYTHON'
import hashlib, pathlib, sys
digest = hashlib.sha256(repr((sys.version, sys.prefix)).encode())
for path in sorted(p for p in pathlib.Path("csrc").rglob("*") if p.is_file()):
    digest.update(str(path).encode() + path.read_bytes())
for path in sorted(pathlib.Path("spillshim").rglob("*.py")):
    digest.update(str(path).encode())
digest.update(pathlib.Path("pyproject.toml").read_bytes())
print(digest.hexdigest())
PYTHON
}

# One line a requirement: what the build needs, so that a rebuild can reuse its folder (no isolated environment each time).
build_requirements() {
    "$venv_python" - <<'PYTHON'
import re, shutil, subprocess
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
said = subprocess.run(["cmake", "--version"], capture_output=True, text=True).stdout if shutil.which("cmake") else ""
version = re.search(r"(\d+)\.(\d+)", said)
if not version or (int(version[1]), int(version[2])) < (3, 20):
    print("cmake>=3.20")
if not shutil.which("ninja"):
    print("ninja")
PYTHON
}

# setup EXTRA: afterwards "$venv_python" runs spillshim. EXTRA is "" or "[test]".
setup() {
    local extra=$1 python missing=() requirements now
    mkdir -p .venv || die "cannot create $PWD/.venv"
    exec 9>.venv/.lock
    flock 9
    python=$(find_python) || exit 1
    command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    [ "$extra" = "" ] || command -v g++ >/dev/null || missing+=(g++)
    if [ ! -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then
        missing+=(python3-dev)
    fi
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    if [ ${#missing[@]} != 0 ]; then
        apt_install "needed to build" "${missing[@]}" || die "missing on this machine: ${missing[*]} (Debian names); install them and run $0 again"
    fi

    if ! "$venv_python" -c 'import pip' 2>/dev/null; then
        say "[1/3] making a Python environment in .venv"
        rm -rf .venv/bin .venv/lib .venv/lib64 .venv/include .venv/installed*
        logged "$python" -m venv .venv
    fi

    now=$(fingerprint) || die "cannot read the source tree"
    # The demo is content with what the tests installed, and never takes it away from them.
    [ ! -e ".venv/installed[test]" ] || extra="[test]"
    if [ "$(cat ".venv/installed${extra}" 2>/dev/null)" = "$now" ]; then
        return
    fi
    requirements=$(build_requirements) || die "cannot read pyproject.toml"
    : >"$setup_log"
    say "[2/3] fetching what the build needs"
    # shellcheck disable=SC2086  # one requirement a word
    logged "$venv_python" -m pip install --disable-pip-version-check --progress-bar off $requirements
    say "[3/3] building and installing spillshim${extra}"
    : >".venv/installed${extra}"
    logged env PATH="$PWD/.venv/bin:$PATH" "$venv_python" -m pip install --disable-pip-version-check --progress-bar off \
        --no-build-isolation -e ".${extra}"
    printf '%s\n' "$now" >".venv/installed${extra}"
}
