#!/usr/bin/env bash
# Adds LIBERO to the environment of `make setup`: MuJoCo, the benchmark with its meshes (some 400 MB), and the Debian
# packages that draw without a screen. Called by `make libero`; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
venv=${VENV:-.venv}

has() { ldconfig -p | grep -q "$1"; }
missing=()
has libOSMesa.so || missing+=(libosmesa6)
has libEGL.so.1 || missing+=(libegl1)
has libGLESv2.so.2 || missing+=(libgles2)
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"

say "Installing LIBERO into $venv (some 400 MB the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 \
    --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --editable ".[${EXTRAS:-dev},libero]"
