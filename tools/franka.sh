#!/usr/bin/env bash
# Adds a simulated Franka cell to the environment of `make setup`: an arm in MuJoCo that speaks libfranka's protocol,
# franky to command it, and Debian's Chromium, in which the operator's page is tried. Called by `make franka`; safe to
# repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
venv=${VENV:-.venv}

has() { ldconfig -p | grep -q "$1"; }
missing=()
has libEGL.so.1 || missing+=(libegl1)
has libGLESv2.so.2 || missing+=(libgles2)
command -v chromium >/dev/null || missing+=(chromium)
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"

say "Installing a simulated Franka cell into $venv (some 150 MB the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 \
    --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --editable ".[${EXTRAS:-dev},cell]"
