#!/usr/bin/env bash
# Prepares the environment that Triton runs in, .venv-triton: tritonserver for this machine and what a served world model
# imports (images/triton/requirements.txt). Called by make; safe to repeat.
#
#   VENV=.venv          the environment of `make setup`, whose Python is taken
#   TORCH_INDEX=URL     as for tools/setup.sh: an extra package index for torch
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/say.sh
venv=.venv-triton
python=${VENV:-.venv}/bin/python

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11 | 3.12) ;;
    *) fail "Triton's packages are to be had for Python 3.11 and 3.12 (numpy below 2), and ${VENV:-.venv} has $version.
Set WoVR up with one of those: rm -rf ${VENV:-.venv} $venv; make setup PYTHON=/path/to/python3.11
or name an environment that has Triton: WOVR_TRITON_VENV=/path" ;;
esac

if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != \
     "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" ]; then
    say "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

say "Installing Triton and what it needs to dream into $venv (a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --prefer-binary \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement images/triton/requirements.txt

# Triton starts models through a stub made for this Python, which wants the interpreter as a library
packages=$venv/lib/python$version/site-packages
stub=$packages/pytriton/tritonserver/python_backend_stubs/$version/triton_python_backend_stub
[ -x "$stub" ] || fail "Triton serves no models written in Python $version; it knows $(ls "$packages/pytriton/tritonserver/python_backend_stubs" | xargs).
Set WoVR up with one of those: rm -rf ${VENV:-.venv} $venv; make setup PYTHON=/path/to/python3.11"
libraries=$packages/nvidia_pytriton.libs:$("$venv/bin/python" -c 'import sys; print(sys.base_prefix)')/lib
missing() { LD_LIBRARY_PATH=$libraries ldd "$stub" | awk '/not found/ {print $1}'; }
if missing | grep -q '^libpython'; then apt_install "libpython$version"; fi
[ -z "$(missing)" ] || fail "Triton lacks the libraries $(missing | xargs): please install the Debian packages they are in."
say "Ready: make stack"
