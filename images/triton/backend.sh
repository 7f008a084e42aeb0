# While the image is built: put Triton's Python backend together with the stub for this Python, and give that what it wants.
set -eu
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
server=/opt/venv/lib/python$python/site-packages/pytriton/tritonserver
mkdir -p /opt/triton/backends
cp -r "$server/backends/python" /opt/triton/backends/
cp "$server/python_backend_stubs/$python/triton_python_backend_stub" /opt/triton/backends/python/
# those of other Pythons are of no use here
rm -r "$server/backends" "$server/python_backend_stubs"
# the stub wants the interpreter as a library, which python:3.11-slim has and Debian's python3 has not
libraries=/opt/venv/lib/python$python/site-packages/nvidia_pytriton.libs:$(python3 -c 'import sys; print(sys.base_prefix)')/lib
missing() { LD_LIBRARY_PATH=$libraries ldd /opt/triton/backends/python/triton_python_backend_stub | grep 'not found' || true; }
if missing | grep -q libpython; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "libpython$python" >/dev/null
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /var/log/apt
fi
[ -z "$(missing)" ] || { echo "Triton's stub lacks libraries:" >&2; missing >&2; exit 1; }
