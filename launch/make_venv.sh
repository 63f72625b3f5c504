#!/bin/bash
# Creates the virtual environment FOLDER and installs tolktrain into it, editable, with the versions of constraints.txt.
# Usage: make_venv.sh FOLDER, from the root of the repository. PYTHON names the interpreter; otherwise one is searched.
set -euo pipefail
venv=$1

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

# Why this interpreter cannot be used; empty if it can.
objection() {
    "$1" - 2>/dev/null <<'PYTHON' || echo "does not run"
import importlib.util
import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    print("is Python %d.%d" % sys.version_info[:2])
elif importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
    print("lacks the venv module (Debian, Ubuntu: apt-get install python3-venv)")
PYTHON
}

find_python() {
    local candidate problem problems=""
    # Word splitting is intended: PYTHON is one name or empty.
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
        if ! command -v "$candidate" >/dev/null; then
            problem="is not installed"
        else
            problem=$(objection "$candidate")
        fi
        if [ -z "$problem" ]; then
            echo "$candidate"
            return
        fi
        problems+=$'\n'"  $candidate $problem"
    done
    fail "tolktrain needs Python 3.10, 3.11 or 3.12 with its venv module:$problems" \
        "install one, or name it: make PYTHON=/path/to/python3.11 ..."
}

# An interrupted installation may have left a folder without a working pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "Creating $venv with $("$python" --version) ..."
    "$python" -m venv --clear "$venv"
fi

echo "Installing tolktrain and its libraries into $venv (7 GB the first time, in two to five minutes) ..."
start=$SECONDS
# uv takes less than half of pip's time. It does not read pip's configuration, so pip follows where it fails.
install() {
    local packages=(-e '.[audio,text,eval,demo,dev]' -c constraints.txt)
    if command -v uv >/dev/null; then
        if UV_COMPILE_BYTECODE=${UV_COMPILE_BYTECODE:-1} uv pip install -q --python "$venv/bin/python" "${packages[@]}"; then
            return
        fi
        echo "uv could not install them (the reason is above); continuing with pip ..." >&2
    fi
    # pip warns once per package about configured index folders that do not exist, which would hide the actual error.
    "$venv/bin/python" -m pip install -q --no-input --disable-pip-version-check --root-user-action ignore \
        "${packages[@]}" 2>&1 | { grep -v "^WARNING: Location .* is ignored" >&2 || true; }
}
install || fail "the installation failed; see the reason above. Run make again to continue where it stopped."
echo "Installed in $((SECONDS - start)) s."
