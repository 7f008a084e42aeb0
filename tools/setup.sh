#!/usr/bin/env bash
# Prepares this machine for WoVR, and says what it does: a Python >= 3.11 with venv (through apt-get if missing),
# then a virtual environment with the exact versions of constraints.txt. Called by `make setup`; safe to repeat.
#
#   VENV=.venv          where the environment goes
#   PYTHON=python3.12   use this interpreter instead of the first suitable one
#   TORCH_INDEX=URL     an extra package index for torch, for instance one that carries its smaller CPU-only builds
#   EXTRAS=dev          which extras of pyproject.toml to install, separated by commas
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
venv=${VENV:-.venv}
extras=${EXTRAS:-dev}

suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

find_python() {  # the versions were pinned on 3.11, so that one is preferred where there are several
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if suits "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

if [ -z "${PYTHON:-}" ] && ! command -v python3 >/dev/null; then apt_install python3 python3-venv; fi
python=$(find_python) || fail "WoVR needs Python 3.11 or newer; found $("${PYTHON:-python3}" --version 2>&1 || true).
Install one and name it: make setup PYTHON=/path/to/python3.11"
if ! has_venv "$python"; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    apt_install "$version-venv"
    has_venv "$python" || fail "$python still has no venv module. Name another interpreter: make setup PYTHON=..."
fi

if ! suits "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

say "Installing WoVR [$extras] with the versions of constraints.txt into $venv (a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 \
    --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --editable ".[$extras]"
say "Ready: $venv/bin/wovr --help"
